"""Networks that a reader wrote, recognised or not: what is computed is what was written."""

import numpy as np
import pytest

from fastgrad.book.recognition import NotRecognised, Recognition
from fastgrad.numdiff.reading import read

H = 1e-4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(0, x)


def softmax(x):
    x = x - np.max(x, axis=-1, keepdims=True)
    return np.exp(x) / np.sum(np.exp(x), axis=-1, keepdims=True)


def cross_entropy(y, t, delta=1e-7):
    return -np.sum(np.log(y[np.arange(len(y)), t] + delta)) / len(y)


def central_differences(f, x, h):
    """The textbook loop."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        kept = x[place]
        x[place] = kept + h
        upper = f(x)
        x[place] = kept - h
        slopes[place] = (upper - f(x)) / (2 * h)
        x[place] = kept
    return slopes


class Net:
    """A small network, its batch, and what a test changes about its loss."""

    def __init__(self, seed, activation=sigmoid):
        rng = np.random.default_rng(seed)
        self.activation = activation
        self.params = {
            "W1": 0.5 * rng.normal(size=(12, 6)), "b1": 0.1 * rng.normal(size=6),
            "W2": 0.5 * rng.normal(size=(6, 4)), "b2": 0.1 * rng.normal(size=4),
        }  # fmt: skip
        self.x = rng.random((20, 12)) * (rng.random((20, 12)) < 0.5)
        self.x[0] = 0.5  # every entry of W1 counts
        self.t = rng.integers(0, 4, 20)
        self.kept = {name: array.copy() for name, array in self.params.items()}
        self.rng = rng

    def loss(self, W1=None, W2=None, delta=1e-7):
        p = self.params
        z = self.activation(self.x @ (p["W1"] if W1 is None else W1) + p["b1"])
        return cross_entropy(softmax(z @ (p["W2"] if W2 is None else W2) + p["b2"]), self.t, delta)

    def is_unchanged(self):
        return all((self.params[name] == self.kept[name]).all() for name in self.params)


def gradient(net, f, name):
    x = net.params[name]
    return Recognition().gradient(f, x, H, read(f, x).objects, float(f(x)))[:2]


@pytest.mark.parametrize("activation", [sigmoid, relu])
@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_the_class_of_chapter_4(activation, name):
    net = Net(0, activation)
    found, what = gradient(net, lambda W: net.loss(), name)
    want = central_differences(lambda W: net.loss(), net.params[name], H)
    np.testing.assert_allclose(found, want, atol=2e-11)
    assert what == f"12-6-4 ({activation.__name__}, cross entropy)"
    assert net.is_unchanged()


def weight_decay(net):
    squares = sum(np.sum(net.params[name] ** 2) for name in ("W1", "W2"))
    return net.loss() + 0.5 * 0.1 * squares


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda net: net.loss(delta=0), "sigmoid, cross entropy"),
        (lambda net: net.loss(delta=1e-10), "sigmoid, cross entropy"),
        (lambda net: 20 * net.loss(), "sigmoid, cross entropy, summed"),
        (weight_decay, "sigmoid, cross entropy, weight decay"),
    ],
    ids=["no delta", "small delta", "sum", "decay"],
)
def test_other_losses(loss, said):
    net, recognition = Net(1), Recognition()
    for name, x in net.params.items():
        f = lambda W: loss(net)  # noqa: E731 - as the book writes it
        found, what, _ = recognition.gradient(f, x, H, read(f, x).objects)
        want = central_differences(lambda W: loss(net), net.params[name], H)
        np.testing.assert_allclose(found, want, atol=2e-9)
        assert what == f"12-6-4 ({said})"


class Layer:
    def __init__(self, weights, shift):
        self.weights, self.shift = weights, shift

    def forward(self, x):
        return x @ self.weights + self.shift


def test_parameters_anywhere():
    net = Net(2)
    W1, b1, W2, b2 = net.params.values()
    layers, pair = [Layer(W1, b1), Layer(W2, b2)], [W1, b1, W2, b2]

    def by_layers(_):
        return cross_entropy(softmax(layers[1].forward(sigmoid(layers[0].forward(net.x)))), net.t)

    def by_list(_):
        z = sigmoid(net.x @ pair[0] + pair[1])
        return cross_entropy(softmax(z @ pair[2] + pair[3]), net.t)

    want = central_differences(by_list, W1, H)
    net.params = {}
    for f in (by_layers, by_list):
        found, *_ = Recognition().gradient(f, W1, H, read(f, W1).objects)
        np.testing.assert_allclose(found, want, atol=2e-11)


def deviations():
    def masked(net):
        return net.loss(net.params["W1"] * net.mask)

    def one_frozen(net):
        W1 = net.params["W1"].copy()
        W1[3, 2] = net.kept["W1"][3, 2]
        return net.loss(W1)

    def row_frozen(net):
        W1 = net.params["W1"].copy()
        W1[3] = net.kept["W1"][3]
        return net.loss(W1)

    def bound_above(net):
        return net.loss(np.minimum(net.params["W1"], net.kept["W1"].max() + 2e-5))

    def bound_below(net):
        return net.loss(np.maximum(net.params["W1"], net.kept["W1"].min() - 2e-5))

    def hinge(net):
        return net.loss() + max(0.0, net.params["W1"][3, 2] - net.kept["W1"][3, 2])

    def falling_hinge(net):
        return net.loss() + max(0.0, net.kept["W1"][3, 2] - net.params["W1"][3, 2])

    def pruned(net):
        return net.loss(np.where(np.abs(net.params["W1"]) < 0.2, 0, net.params["W1"]))

    def tied(net):
        W1 = net.params["W1"].copy()
        W1[0, 0] = W1[1, 1]
        return net.loss(W1)

    def penalty_of_everything(net):
        return net.loss() + 1e-7 * sum(np.sum(a**2) for a in net.params.values())

    def absolute_penalty(net):
        return net.loss() + 1e-8 * np.sum(np.abs(net.params["W1"]))

    def hyperbolic(net):
        net.activation = np.tanh
        return net.loss()

    return list(locals().values())


@pytest.mark.parametrize("f", deviations(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(10))
def test_no_deviation_goes_unseen(f, seed):
    net = Net(seed)
    net.mask = net.rng.random((12, 6)) < 0.8
    want = central_differences(lambda W: f(net), net.params["W1"], H)
    try:
        found, _ = gradient(net, lambda W: f(net), "W1")
    except NotRecognised:
        pass
    else:  # a mask may have hidden nothing that counts
        np.testing.assert_allclose(found, want, atol=1e-9)
    assert net.is_unchanged()


def test_a_function_that_does_not_deviate_is_always_recognised():
    for seed in range(40):
        net = Net(seed, (sigmoid, relu)[seed % 2])
        gradient(net, lambda W, net=net: net.loss(), ("W1", "b1", "W2", "b2")[seed % 4])


def test_what_changes_between_calls_is_noticed():
    net, recognition = Net(3), Recognition()
    mask = np.ones((12, 6))

    def f(_):
        return net.loss(net.params["W1"] * mask)

    W1 = net.params["W1"]
    recognition.gradient(f, W1, H, read(f, W1).objects)
    mask[3, 2] = 0
    with pytest.raises(NotRecognised):
        recognition.gradient(f, W1, H, read(f, W1).objects)


def test_parameters_come_back_when_f_raises():
    net = Net(4)
    W1 = net.params["W1"]

    def f(_):
        if not net.is_unchanged():
            raise KeyboardInterrupt
        return net.loss()

    with pytest.raises(KeyboardInterrupt):
        Recognition().gradient(f, W1, H, read(f, W1).objects)
    assert net.is_unchanged()


def test_a_vain_search_is_not_repeated_for_ever():
    net, calls = Net(5), []

    def f(_):
        calls.append(1)
        return net.loss() + np.sum(np.sin(net.params["W1"]))

    recognition, W1 = Recognition(), net.params["W1"]
    for _ in range(4):
        with pytest.raises(NotRecognised):
            recognition.gradient(f, W1, H, read(f, W1).objects, 1.0)
    assert len(calls) == 2 * 2


def test_the_generator_of_the_reader_is_left_alone():
    net = Net(6)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    gradient(net, lambda W: net.loss(), "W1")
    assert (np.random.get_state()[1] == before).all()


def test_a_network_is_known_by_its_loss():
    net, recognition = Net(7), Recognition()

    def f(_):
        return net.loss()

    assert not recognition.knows(f)
    recognition.gradient(f, net.params["W1"], H, read(f).objects)
    assert recognition.knows(f)
    assert not recognition.knows(lambda W: net.loss())
