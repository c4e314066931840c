"""Networks that a reader wrote: recognised, or left to the loop; never taken for another."""

import functools
import itertools
import linecache
import random
import signal
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrad import gradients, layers
from fastgrad.book import recognition
from fastgrad.book.recognition import numerical_gradient


@pytest.fixture(autouse=True)
def recognised(monkeypatch):
    """Begin with nothing recognised; the value says what has been. Tiny networks are tried, too."""
    monkeypatch.setattr(recognition, "_FEW", 0)
    monkeypatch.setattr(recognition, "_SHARE", 1e9)
    now = recognition.Recognition()
    now.evaluations, at = 0, recognition._Function.at

    def counted(self, arrays, points):
        now.evaluations += 1
        return at(self, arrays, points)

    monkeypatch.setattr(recognition._Function, "at", counted)
    before = recognition.use(now)
    yield now
    recognition.use(before)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.maximum(0, a)


def softmax(a):
    a = a - np.max(a, axis=-1, keepdims=True)
    return np.exp(a) / np.sum(np.exp(a), axis=-1, keepdims=True)


def cross_entropy_error(y, t, delta=1e-7, summed=False, largest=True):
    """As the book's editions have it: soft targets by their largest entry, or as they are."""
    if y.ndim == 1:
        t = np.reshape(t, (1, np.size(t)))
        y = y.reshape(1, y.size)
    if t.size == y.size and not largest:
        total = -np.sum(t * np.log(y + delta))
    else:
        if t.size == y.size:
            t = t.argmax(axis=1)
        total = -np.sum(np.log(y[np.arange(len(y)), t] + delta))
    return total if summed else total / len(y)


class Net:
    """The exercise as it is typed from chapter 4, with some freedom."""

    def __init__(self, *sizes, activation=sigmoid, scale=0.5, seed=0, **loss):
        rng = np.random.default_rng(seed)
        self.params = {}
        self.activation, self.how = activation, loss
        for n, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.params[f"W{n}"] = scale * rng.standard_normal((n_in, n_out))
            self.params[f"b{n}"] = 0.1 * rng.standard_normal(n_out)

    def predict(self, x):
        last = len(self.params) // 2
        for n in range(1, last):
            x = self.activation(np.dot(x, self.params[f"W{n}"]) + self.params[f"b{n}"])
        return softmax(np.dot(x, self.params[f"W{last}"]) + self.params[f"b{last}"])

    def loss(self, x, t):
        return cross_entropy_error(self.predict(x), t, **self.how)

    def numerical_gradient(self, x, t):
        loss_W = lambda W: self.loss(x, t)  # noqa: E731 - as the book has it
        return {name: numerical_gradient(loss_W, W) for name, W in self.params.items()}


def make_batch(n=5, width=6, classes=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.random((n, width)), rng.integers(0, classes, n)


def loop(net, x, t):
    return {
        name: gradients.numerical_gradient(lambda _: net.loss(x, t), W)
        for name, W in net.params.items()
    }


def assert_recognised(recognised, net, x, t, *, points=40):
    """Compare with the loop, to the loop's own rounding, and count the evaluations."""
    want = loop(net, x, t)
    before = {name: W.tobytes() for name, W in net.params.items()}
    recognised.evaluations = 0
    got = net.numerical_gradient(x, t)
    assert recognised.lines == []
    assert 0 < recognised.evaluations < points * len(got)
    tolerance = 1e-13 * (1 + abs(net.loss(x, t))) / 1e-4
    for name, W in net.params.items():
        assert W.tobytes() == before[name]
        assert got[name].shape == W.shape
        assert got[name].dtype == W.dtype
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=tolerance)
    assert any(np.abs(slopes).max() > 1e-3 for slopes in got.values())


def assert_left_to_the_loop(recognised, net, x, t, reason):
    want = loop(net, x, t)
    got = net.numerical_gradient(x, t)
    for name, slopes in want.items():
        np.testing.assert_array_equal(got[name], slopes)
    (line,) = recognised.lines
    assert line.startswith("fastgrad left ")
    assert reason in line
    assert len(recognised.report()) == 1


# --- what is recognised


TARGETS = {
    "labels": lambda t: t,
    "bytes": lambda t: t.astype(np.uint8),
    "one-hot": lambda t: np.eye(4)[t],
    "whole one-hot": lambda t: np.eye(4, dtype=int)[t],
    "soft": lambda t: np.random.default_rng(2).random((len(t), 4)),
}


@pytest.mark.parametrize("activation", [sigmoid, relu])
@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_every_hypothesis(recognised, activation, delta, summed, largest, targets):
    x, t = make_batch()
    net = Net(6, 5, 4, activation=activation, delta=delta, summed=summed, largest=largest)
    assert_recognised(recognised, net, x, TARGETS[targets](t))
    (line,) = recognised.report()
    assert "recognised Net.numerical_gradient as a network of 6-5-4" in line
    assert f"({activation.__name__}, " in line
    assert f"{'summed' if summed else 'averaged'} over the batch)" in line


@pytest.mark.parametrize("sizes", [(6, 4, 4), (6, 5, 3, 4), (6, 3, 5, 3, 4)])
@pytest.mark.parametrize("activation", [sigmoid, relu])
def test_any_number_of_layers(recognised, sizes, activation):
    x, t = make_batch()
    assert_recognised(recognised, Net(*sizes, activation=activation), x, t)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(np.float32),
        lambda x: (255 * x).astype(np.uint8),
        lambda x: x > 0.5,
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x * (x > 0.6),
    ],
    ids=["float32", "uint8", "bool", "column order", "strided", "sparse"],
)
def test_forms_of_x(recognised, form):
    x, t = make_batch()
    assert_recognised(recognised, Net(6, 5, 4, scale=0.1), form(x), t)


def test_a_single_sample(recognised):
    x, _ = make_batch()
    net = Net(6, 5, 4)
    assert_recognised(recognised, net, x[0], np.array([0, 0, 1, 0]))
    assert_recognised(recognised, net, x[0], np.array([2]))
    assert_recognised(recognised, net, x[:1], np.array([2]))


def test_a_single_sample_leaves_open_what_more_of_them_decide(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4, summed=True)
    assert_recognised(recognised, net, x[:1], t[:1])
    assert_recognised(recognised, net, x, t)


class Layered(Net):
    """Chapter 5's: of layers that hold the parameters."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.layers = {
            "Affine1": layers.Affine(self.params["W1"], self.params["b1"]),
            "Relu1": layers.Relu(),
            "Affine2": layers.Affine(self.params["W2"], self.params["b2"]),
        }
        self.lastLayer = layers.SoftmaxWithLoss()

    def predict(self, x):
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def loss(self, x, t):
        return self.lastLayer.forward(self.predict(x), t)


def test_images_are_flattened_by_layers(recognised):
    x, t = make_batch()
    assert_recognised(recognised, Layered(6, 5, 4), x.reshape(5, 1, 2, 3), t)


def test_a_function_of_globals(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4)
    names = {"net": net, "x_batch": x, "t_batch": t, "numerical_gradient": numerical_gradient}
    code = """
def loss(x, t):
    return net.loss(x, t)
f = lambda W: loss(x_batch, t_batch)
grad = numerical_gradient(f, net.params["W1"])
"""
    linecache.cache["globals.py"] = len(code), None, code.splitlines(keepends=True), "globals.py"
    exec(compile(code, "globals.py", "exec"), names)
    np.testing.assert_allclose(names["grad"], loop(net, x, t)["W1"], atol=1e-9)
    assert "recognised a lambda" in recognised.report()[0]


def test_other_ways_to_write_the_function(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4)
    want = loop(net, x, t)["W2"]
    holder = types.SimpleNamespace(**net.params)
    net.x, net.t = x, t

    def by_method(self, W):
        return self.loss(self.x, self.t)

    def by_attributes(W):
        a = sigmoid(x @ holder.W1 + holder.b1) @ holder.W2 + holder.b2
        return cross_entropy_error(softmax(a), t)

    for f in (
        lambda W, x=x, t=t: net.loss(x, t),
        functools.partial(lambda x, t, W: net.loss(x, t), x, t),
        types.MethodType(by_method, net),
        by_attributes,
    ):
        got = numerical_gradient(f, net.params["W2"])
        np.testing.assert_allclose(got, want, atol=1e-9)
    assert recognised.lines == []


def test_h_is_handed_on(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4, scale=2)
    f = lambda W: net.loss(x, t)  # noqa: E731
    wide = numerical_gradient(f, net.params["W1"], 0.5)
    np.testing.assert_allclose(
        wide, gradients.numerical_gradient(f, net.params["W1"], 0.5), atol=1e-9
    )
    assert np.abs(wide - numerical_gradient(f, net.params["W1"])).max() > 1e-5
    assert len(recognised.report()) == 1


def test_training_goes_on_being_right(recognised):
    """Updates in place, and updates that put new arrays into the dict."""
    net = Net(6, 5, 4)
    for step in range(6):
        x, t = make_batch(seed=step)
        grads, want = net.numerical_gradient(x, t), loop(net, x, t)
        for name in net.params:
            np.testing.assert_allclose(grads[name], want[name], atol=1e-9)
            if step < 3:
                net.params[name] -= 0.5 * grads[name]
            else:
                net.params[name] = net.params[name] - 0.5 * grads[name]
    assert recognised.lines == []


# --- surprises


def test_a_closure_over_two_networks(recognised):
    x, t = make_batch()
    net, other = Net(6, 5, 4), Net(6, 5, 4)  # of equal parameters

    def total(W):
        return net.loss(x, t) + other.loss(x, t)

    def of_the_other(W):
        return (net, other)[1].loss(x, t)

    want = loop(net, x, t)["W1"]
    np.testing.assert_allclose(numerical_gradient(total, net.params["W1"]), want, atol=1e-9)
    assert not numerical_gradient(of_the_other, net.params["W1"]).any()
    assert len(recognised.lines) == 1, recognised.lines


@pytest.mark.parametrize(
    "form",
    [np.asfortranarray, lambda W: np.repeat(W, 2, axis=-1)[..., ::2], lambda W: W[::-1]],
    ids=["column order", "strided", "reversed"],
)
def test_views_and_column_order(recognised, form):
    x, t = make_batch()
    net = Net(6, 5, 4)
    net.params = {name: form(W) for name, W in net.params.items()}
    assert_recognised(recognised, net, x, t)


def test_parameters_that_are_parts_of_one_vector(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4)
    vector = np.concatenate([W.ravel() for W in net.params.values()])
    start = 0
    for name, W in net.params.items():
        net.params[name] = vector[start : start + W.size].reshape(W.shape)
        start += W.size
    assert_recognised(recognised, net, x, t)


def test_parameters_that_share_memory(recognised):
    x, t = make_batch()
    net = Net(6, 6, 6, seed=3)
    net.params["W2"] = net.params["W1"]
    assert_left_to_the_loop(recognised, net, x, t, "none that fastgrad knows")


def test_float32_parameters(recognised):
    x, t = make_batch()
    net = Net(6, 5, 4)
    net.params = {name: W.astype(np.float32) for name, W in net.params.items()}
    want, got = loop(net, x, t), net.numerical_gradient(x, t)
    np.testing.assert_array_equal(got["W1"], want["W1"])
    assert "float64" in recognised.reason


def test_a_read_only_batch(recognised):
    x, t = make_batch()
    x.flags.writeable = t.flags.writeable = False
    assert_recognised(recognised, Net(6, 5, 4), x, t)


def test_a_loss_that_prints(recognised, capsys):
    class Talking(Net):
        def loss(self, x, t):
            print("loss")
            return super().loss(x, t)

    x, t = make_batch()
    net = Talking(6, 5, 4)
    loop(net, x, t)
    printed = capsys.readouterr().out
    net.numerical_gradient(x, t)
    assert capsys.readouterr().out == printed
    assert "calls print" in recognised.lines[0]


@pytest.mark.parametrize("source", [np.random.rand, random.random], ids=["NumPy", "Python"])
def test_a_loss_that_draws(recognised, source):
    class Drawing(Net):
        def loss(self, x, t):
            return super().loss(x, t) + 0 * source()

    x, t = make_batch()
    np.random.seed(0)
    want = loop(Drawing(6, 5, 4), x, t), np.random.rand()
    np.random.seed(0)
    got = Drawing(6, 5, 4).numerical_gradient(x, t), np.random.rand()
    np.testing.assert_equal(got, want)
    assert "calls " in recognised.lines[0]


def test_a_loss_that_raises_far_away(recognised):
    class Careful(Net):
        def loss(self, x, t):
            if np.abs(self.params["b1"]).max() > 0.3:
                raise ValueError("too far")
            return super().loss(x, t)

    x, t = make_batch()
    assert_left_to_the_loop(recognised, Careful(6, 5, 4), x, t, "it raised ValueError")


class Counting(Net):
    count = 0

    def loss(self, x, t):
        self.count += 1
        return super().loss(x, t)

    def record(self):
        return self.count


class Noting(Net):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.curve = []

    def loss(self, x, t):
        self.curve.append(super().loss(x, t))
        return self.curve[-1]

    def record(self):
        return self.curve


class KeepingTheBest(Net):
    best = np.inf

    def loss(self, x, t):
        value = super().loss(x, t)
        self.best = min(self.best, value)
        return value

    def record(self):
        return self.best


LOSSES = []


class NotingInAGlobal(Net):
    def loss(self, x, t):
        LOSSES.append(super().loss(x, t))
        return LOSSES[-1]

    def record(self):
        kept, LOSSES[:] = LOSSES.copy(), []
        return kept


class CountingByKeys(Net):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.seen = {}

    def loss(self, x, t):
        self.seen[len(self.seen)] = 1
        return super().loss(x, t)

    def record(self):
        return self.seen


@pytest.mark.parametrize(
    "kind", [Counting, Noting, KeepingTheBest, NotingInAGlobal, CountingByKeys]
)
def test_a_loss_that_keeps_a_record(recognised, kind):
    x, t = make_batch()
    want, net = kind(6, 5, 4), kind(6, 5, 4)
    loop(want, x, t)
    kept = want.record()
    assert net.numerical_gradient(x, t)["W1"].any()
    assert ".py:" in recognised.lines[0]
    assert net.record() == kept


def test_a_closure_that_counts(recognised):
    x, t = make_batch()
    net, count = Net(6, 5, 4), 0

    def f(W):
        nonlocal count
        count += 1
        return net.loss(x, t)

    numerical_gradient(f, net.params["W1"])
    assert count == 60
    assert ".py:" in recognised.lines[0]


def test_a_loss_that_remembers_its_last_value_keeps_no_record(recognised):
    class Remembering(Net):
        def loss(self, x, t):
            self.last = super().loss(x, t)
            return self.last

    x, t = make_batch()
    assert_recognised(recognised, Remembering(6, 5, 4), x, t)


def test_a_guard_that_is_met_here(recognised):
    class Stopping(Net):
        def loss(self, x, t):
            raise SystemExit("stop")

    x, t = make_batch()
    with pytest.raises(SystemExit, match="stop"):
        Stopping(6, 5, 4).numerical_gradient(x, t)


def test_a_loss_that_raises_everywhere(recognised):
    class Broken(Net):
        def loss(self, x, t):
            raise ZeroDivisionError("broken")

    x, t = make_batch()
    with pytest.raises(ZeroDivisionError, match="broken"):
        Broken(6, 5, 4).numerical_gradient(x, t)


def test_a_mistake_that_is_corrected_as_in_a_notebook(recognised, monkeypatch):
    x, t = make_batch()
    net = Net(6, 5, 4)
    with monkeypatch.context() as mistaken:
        mistaken.setattr(Net, "loss", lambda self, x, t: undefined_name)  # noqa: F821
        with pytest.raises(NameError, match="undefined_name"):
            net.numerical_gradient(x, t)
    recognised.lines.clear()
    assert_recognised(recognised, net, x, t)


def test_a_refusal_leaves_the_line_of_another_function_of_that_name(recognised):
    x, t = make_batch()
    Net(6, 5, 4).numerical_gradient(x, t)
    Net(6, 5, 4, activation=np.tanh).numerical_gradient(x, t)
    found, left = recognised.report()
    assert "recognised Net.numerical_gradient" in found
    assert "left Net.numerical_gradient" in left


def test_a_loss_without_return(recognised):
    class Forgetful(Net):
        def loss(self, x, t):
            super().loss(x, t)

    x, t = make_batch()
    with pytest.raises(TypeError, match=r"`f` must return one real number\. Got None"):
        Forgetful(6, 5, 4).numerical_gradient(x, t)


def test_a_loss_that_changes_parameters(recognised):
    class Training(Net):
        def loss(self, x, t):
            value = super().loss(x, t)
            self.params["b2"] -= 0.1
            return value

    x, t = make_batch()
    net = Training(6, 5, 4)
    before = net.params["b2"].copy()
    f = lambda W: net.loss(x, t)  # noqa: E731
    with pytest.raises(ValueError, match="must not change"):
        numerical_gradient(f, net.params["b2"])
    np.testing.assert_array_equal(net.params["b2"], before)
    assert "changes self.params" in recognised.lines[0]


def test_threads(recognised):
    x, t = make_batch()
    nets = [Net(6, 5, 4, seed=seed) for seed in range(4)]
    want = [loop(net, x, t) for net in nets]
    got = [None] * 4

    def work(k):
        for _ in range(10):
            got[k] = nets[k].numerical_gradient(x, t)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(got, want, strict=True):
        for name, slopes in other.items():
            np.testing.assert_allclose(one[name], slopes, atol=1e-9)
    assert recognised.lines == []


@pytest.mark.parametrize("place", range(12))
def test_an_interrupt_while_parameters_are_put_back(recognised, monkeypatch, place):
    put_back, calls = recognition._put_back, []

    def interrupted(arrays, values):
        calls.append(len(calls))
        if len(calls) - 1 == place:
            put_back(arrays[:1], values[:1])
            raise KeyboardInterrupt
        put_back(arrays, values)

    monkeypatch.setattr(recognition, "_put_back", interrupted)
    x, t = make_batch()
    net = Net(6, 5, 4)
    before = {name: W.tobytes() for name, W in net.params.items()}
    with pytest.raises(KeyboardInterrupt):
        net.numerical_gradient(x, t)
    assert {name: W.tobytes() for name, W in net.params.items()} == before


def test_without_a_network_nothing_is_said(recognised):
    x = np.array([3.0, 4.0])
    np.testing.assert_allclose(numerical_gradient(lambda x: np.sum(x**2), x), [6, 8])
    np.testing.assert_allclose(numerical_gradient(lambda x: np.sum(x**2), [3, 4]), [6, 8])
    net = types.SimpleNamespace(W=np.ones((2, 3)))
    f = lambda W: cross_entropy_error(softmax(x @ net.W), np.array([0, 0, 1]))  # noqa: E731
    assert numerical_gradient(f, net.W).any()
    assert recognised.report() == []


def test_a_fit_is_no_network(recognised):
    rng = np.random.default_rng(0)
    A, b, w = rng.random((7, 3)), rng.random(7), rng.random(3)
    assert numerical_gradient(lambda _: np.sum((A @ w - b) ** 2), w).any()
    assert numerical_gradient(lambda w: np.sum((A @ w - b) ** 2), w).any()
    assert numerical_gradient(lambda x: x[0] ** 2 + x[1] ** 2, np.array([3.0, 4.0])).any()
    assert recognised.report() == []


# --- what is recognised beyond the book's dict


def test_parameters_in_lists_attributes_and_variables(recognised):
    x, t = make_batch()
    W1, b1, W2, b2 = Net(6, 5, 4).params.values()
    named = types.SimpleNamespace(first=W1, shift=b1, second=W2, other=b2)
    listed = [W1, b1, W2, b2]

    def of(p, q, r, s):
        return cross_entropy_error(softmax(sigmoid(x @ p + q) @ r + s), t)

    def by_attributes(W):
        return of(named.first, named.shift, named.second, named.other)

    def of_a_list(W):
        return of(*listed)

    def of_variables(W):
        return of(W1, b1, W2, b2)

    for f in (by_attributes, of_a_list, of_variables):
        want = gradients.numerical_gradient(f, W1)
        np.testing.assert_allclose(numerical_gradient(f, W1), want, atol=1e-9)
        assert recognised.reason == ""
    assert recognised.lines == []


@pytest.mark.parametrize("rate", [0.1, 1e-4, 2.5])
def test_weight_decay(recognised, rate):
    class Decaying(Net):
        def loss(self, x, t):
            decay = 0.0
            for n in range(1, 3):
                W = self.params[f"W{n}"]
                decay += 0.5 * rate * np.sum(W**2)
            return super().loss(x, t) + decay

    x, t = make_batch()
    assert_recognised(recognised, Decaying(6, 5, 4), x, t)
    assert f"weight decay {rate:g}" in recognised.report()[0]


class RememberingLayer:
    """An affine layer that a reader typed; `out` is what it computed last."""

    def __init__(self, W, b):
        self.W, self.b, self.out = W, b, None

    def forward(self, x):
        self.out = np.dot(x, self.W) + self.b
        return self.out


def test_layers_are_left_as_the_loop_leaves_them(recognised):
    class OfLayers(Net):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            p = self.params
            self.layers = [RememberingLayer(p[f"W{n}"], p[f"b{n}"]) for n in (1, 2)]

        def predict(self, x):
            first, second = self.layers
            return softmax(second.forward(sigmoid(first.forward(x))))

    x, t = make_batch()
    net, plain = OfLayers(6, 5, 4), OfLayers(6, 5, 4)
    assert_recognised(recognised, net, x, t)
    for name in ("W1", "b2"):
        numerical_gradient(lambda _: net.loss(x, t), net.params[name])
        gradients.numerical_gradient(lambda _: plain.loss(x, t), plain.params[name])
        for layer, other in zip(net.layers, plain.layers, strict=True):
            np.testing.assert_allclose(layer.out, other.out, rtol=0, atol=1e-12)


def test_what_a_handler_raises_goes_through(recognised):
    class TooLongError(Exception):
        pass

    def handler(*_):
        raise TooLongError

    x, t = make_batch()
    net = Net(6, 5, 4)
    before = net.params["W1"].copy()
    old = signal.signal(signal.SIGALRM, handler)

    def forever(W):
        while x.size:
            net.predict(x)
        return net.loss(x, t)

    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TooLongError):
            recognised.gradient(forever, net.params["W1"], 1e-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    np.testing.assert_array_equal(net.params["W1"], before)


def test_a_changed_function_is_read_again(recognised, monkeypatch):
    x, t = make_batch()
    net = Net(6, 5, 4)
    net.numerical_gradient(x, t)
    monkeypatch.setattr(Net, "predict", lambda self, x: softmax(0.5 * x[:, :4] @ np.eye(4)))
    f = lambda W: net.loss(x, t)  # noqa: E731
    assert recognised.gradient(f, net.params["W1"], 1e-4) is None


# --- near misses: what differs from a network by little. The campaign of the nightly profile, which
# FASTGRAD_NIGHTLY=1 chooses, takes 2,000 of them.


def leaky(slope):
    return lambda a: np.where(a > 0, a, slope * a)


OTHER_ACTIVATIONS = {
    "tanh": np.tanh,
    "leaky": leaky(0.01),
    "slightly leaky": leaky(1e-6),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "swish": lambda a: a * sigmoid(a),
    "relu6": lambda a: np.clip(a, 0, 6),
    "steep sigmoid": lambda a: sigmoid((1 + 1e-6) * a),
    "hard sigmoid": lambda a: np.clip(0.2 * a + 0.5, 0, 1),
    "clipped sigmoid": lambda a: np.clip(sigmoid(a), 0.01, 0.99),
    "identity": lambda a: a,
    "step": lambda a: (a > 0) * 1.0,
}


class NearMiss(Net):
    """A network that does one thing differently."""

    def __init__(self, *sizes, twist, size, seed, **options):
        super().__init__(*sizes, seed=seed, **options)
        self.twist, self.size = twist, size
        self.frozen = self.params["W1"].copy()
        rng = np.random.default_rng(seed)
        self.mask = np.ones(sizes[1])
        self.mask[rng.integers(sizes[1])] = 0
        self.weights = np.ones(100)
        self.weights[0] += size
        if twist in OTHER_ACTIVATIONS:
            self.activation = OTHER_ACTIVATIONS[twist]

    def predict(self, x):
        p, size = self.params, self.size
        last = len(p) // 2
        x = x.astype(float)
        if self.twist == "scaled input":
            x = x * (1 + size)
        for n in range(1, last):
            W = self.frozen if n == 1 and self.twist == "frozen" else p[f"W{n}"]
            a = np.dot(x, W) + p[f"b{n}"]
            if self.twist == "batch normalisation":
                a = (a - a.mean(axis=0)) / np.sqrt(a.var(axis=0) + 1e-6)
            if self.twist == "shared bias":
                a = a + size * p[f"b{last}"][0]
            x = self.activation(a)
            if self.twist == "dropout":
                x = x * (np.random.rand(*x.shape) > 0.5)
            if self.twist == "fixed dropout" and n == 1:
                x = x * self.mask
        W = p[f"W{last}"]
        if self.twist == "used twice":
            x = x + size * x @ W @ W.T
        a = np.dot(x, W) + p[f"b{last}"]
        if self.twist == "skip":
            a = a + size * p["W1"].sum() * np.arange(a.shape[-1])
        if self.twist == "temperature":
            a = a * (1 + size)
        return softmax(a)

    def loss(self, x, t):
        y, size = self.predict(x), self.size
        if self.twist == "squared error":
            return 0.5 * np.sum((y - np.eye(y.shape[1])[t]) ** 2)
        if self.twist == "weighted samples":
            chosen = y[np.arange(len(y)), t]
            return -np.sum(self.weights[: len(y)] * np.log(chosen + 1e-7)) / len(y)
        if self.twist == "smoothed labels":
            soft = (1 - size) * np.eye(y.shape[1])[t] + size / y.shape[1]
            return -np.sum(soft * np.log(y + 1e-7)) / len(y)
        if self.twist == "without the last":
            y, t = y[:-1], t[:-1]
        if self.twist == "delta":
            return cross_entropy_error(y, t, **{**self.how, "delta": 1e-7 * (1 + 1e3 * size)})
        value = cross_entropy_error(y, t, **self.how)
        if self.twist == "factor":
            value = value * (1 + size)
        if self.twist == "decay":
            value += 0.5 * size * np.sum(self.params["W1"] ** 2)
        if self.twist == "bias decay":
            value += size * np.sum(self.params["b1"] ** 2)
        if self.twist == "penalty":
            value += size * np.abs(self.params["W2"]).sum()
        if self.twist == "entropy":
            value += size * np.sum(y * np.log(y + 1e-7))
        return value


TWISTS = (
    *OTHER_ACTIVATIONS, "scaled input", "frozen", "batch normalisation", "shared bias", "dropout",
    "fixed dropout", "used twice", "skip", "temperature", "squared error", "weighted samples",
    "smoothed labels", "without the last", "delta", "factor", "decay", "bias decay", "penalty",
    "entropy",
)  # fmt: skip


@given(
    twist=st.sampled_from(TWISTS),
    size=st.sampled_from([1e-6, 1e-5, 1e-3, 0.1]),
    hidden=st.lists(st.integers(2, 7), min_size=1, max_size=2),
    width=st.integers(2, 9),
    classes=st.integers(2, 6),
    n=st.integers(2, 9),
    activation=st.sampled_from([sigmoid, relu]),
    summed=st.booleans(),
    scale=st.sampled_from([0.01, 0.5, 3.0]),
    seed=st.integers(0, 2**20),
)
def test_near_misses_are_left_to_the_loop(
    twist, size, hidden, width, classes, n, activation, summed, scale, seed
):
    recognised = recognition.Recognition()
    recognition.use(recognised)
    sizes = (width, *hidden, classes)
    net = NearMiss(
        *sizes, twist=twist, size=size, seed=seed, activation=activation, summed=summed,
        scale=scale,
    )  # fmt: skip
    x, t = make_batch(n, width, classes, seed)
    f = lambda W: net.loss(x, t)  # noqa: E731
    before = {name: W.tobytes() for name, W in net.params.items()}
    for name in ("W1", "b2"):
        assert recognised.gradient(f, net.params[name], 1e-4) is None
    assert {name: W.tobytes() for name, W in net.params.items()} == before
    assert len(recognised.lines) == 1


@settings(max_examples=settings().max_examples // 4)
@given(
    hidden=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    width=st.integers(1, 9),
    classes=st.integers(2, 6),
    n=st.integers(1, 9),
    activation=st.sampled_from([sigmoid, relu]),
    summed=st.booleans(),
    scale=st.sampled_from([0.01, 0.5, 3.0]),
    seed=st.integers(0, 2**20),
)
def test_networks_of_all_sizes_are_recognised(
    hidden, width, classes, n, activation, summed, scale, seed
):
    recognised = recognition.Recognition()
    recognition.use(recognised)
    net = Net(width, *hidden, classes, seed=seed, activation=activation, summed=summed, scale=scale)
    x, t = make_batch(n, width, classes, seed)
    f = lambda W: net.loss(x, t)  # noqa: E731
    for name, W in net.params.items():
        got, want = recognised.gradient(f, W, 1e-4), gradients.numerical_gradient(f, W)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * (1 + abs(f(W))), err_msg=name)
