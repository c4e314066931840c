"""`fit` against the book's loop in plain NumPy, and what a run leaves behind however it ends."""

import inspect
import signal
import subprocess
import sys
import threading
import warnings

import numba
import numpy as np
import pytest
from reference import SETTINGS, Optimizer, gradient, loss, probabilities, rows

import fastgrad
from fastgrad import (
    SGD,
    AdaGrad,
    Adam,
    History,
    Momentum,
    MultiLayerNet,
    Nesterov,
    RMSprop,
    TwoLayerNet,
    load_mnist,
)
from fastgrad.networks import fit

#: Rates at which every rule still learns after a hundred steps.
OPTIMIZERS = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: Momentum(0.05, 0.8),
    "nesterov": lambda: Nesterov(0.05, 0.8),
    "adagrad": lambda: AdaGrad(0.01),
    "rmsprop": lambda: RMSprop(0.002, 0.9),
    "adam": lambda: Adam(0.002, 0.85, 0.99),
}


def book_loop(params, x, t, optimizer, iterations, batch_size, activation, decay=0.0):
    """Train as the book's scripts do, with NumPy's global generator; change `params`."""
    kind = type(optimizer).__name__
    rule = Optimizer(kind, **{name: getattr(optimizer, name) for name in SETTINGS[kind]})
    losses = []
    t = rows(t, params[f"b{len(params) // 2}"].size)
    for _ in range(iterations):
        batch = np.random.choice(len(x), batch_size)
        losses.append(loss(params, x[batch], t[batch], activation, 1e-7, decay))
        rule.update(params, gradient(params, x[batch], t[batch], activation, 1e-7, decay))
    return np.array(losses)


def copied(params):
    return {name: array.astype(float) for name, array in params.items()}


@pytest.fixture(scope="module")
def mnist():
    (x, t), _ = load_mnist()
    return x[:3000], t[:3000]


@pytest.fixture(scope="module")
def dense():
    rng = np.random.default_rng(0)
    return rng.random((500, 784)), rng.integers(0, 10, 500)


@pytest.fixture
def small():
    rng = np.random.default_rng(1)
    return TwoLayerNet(6, 5, 3, 0.5, rng=2), rng.standard_normal((40, 6)), rng.integers(0, 3, 40)


class TestTheBooksRun:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("data", ["mnist", "dense"])
    def test_a_hundred_iterations(self, data, name, request):
        x, t = request.getfixturevalue(data)
        np.random.seed(0)
        net = TwoLayerNet(784, 50, 10)
        params = copied(net.params)
        history = net.fit(x, t, iterations=100, batch_size=100, optimizer=OPTIMIZERS[name]())
        np.random.seed(0)
        np.random.randn(784 * 50 + 50 * 10)
        want = book_loop(params, x, t, OPTIMIZERS[name](), 100, 100, "sigmoid")
        np.testing.assert_allclose(history.loss, want, rtol=1e-9)
        for key, array in params.items():
            scale = np.abs(array).max()
            np.testing.assert_allclose(net.params[key], array, rtol=0, atol=1e-7 * scale)
        assert np.random.rand() == _after_the_same_draws(len(x))

    def test_float32(self, mnist):
        x, t = mnist
        net = TwoLayerNet(784, 50, 10, dtype=np.float32, rng=0)
        params = copied(net.params)
        np.random.seed(3)
        history = net.fit(x, t, iterations=100, batch_size=100)
        np.random.seed(3)
        want = book_loop(params, x, t, SGD(0.1), 100, 100, "sigmoid")
        np.testing.assert_allclose(history.loss, want, rtol=2e-5)
        assert net.params["W1"].dtype == np.float32

    def test_numerical_gradients_all_the_way(self, mnist):
        x, t = mnist
        net = TwoLayerNet(784, 50, 10, rng=0)
        params = copied(net.params)
        np.random.seed(0)
        history = net.fit(x, t, iterations=100, batch_size=100, method="numerical_gradient")
        np.random.seed(0)
        want = book_loop(params, x, t, SGD(0.1), 100, 100, "sigmoid")
        # Apart by the truncation error only, h squared.
        np.testing.assert_allclose(history.loss, want, rtol=1e-7)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_many_layers(self, name, mnist):
        x, t = mnist
        net = MultiLayerNet(784, [100, 100, 100, 100], 10, rng=0)
        params = copied(net.params)
        np.random.seed(0)
        history = net.fit(x, t, iterations=50, batch_size=100, optimizer=OPTIMIZERS[name]())
        np.random.seed(0)
        want = book_loop(params, x, t, OPTIMIZERS[name](), 50, 100, "relu")
        np.testing.assert_allclose(history.loss, want, rtol=1e-6)

    @pytest.mark.parametrize("form", ["labels", "one-hot", "column"])
    @pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 40, 50])
    def test_batches_of_any_size(self, batch_size, form, small):
        net, x, t = small
        for decay, sizes in [(0.0, (6, 5, 3)), (0.1, (6, 4, 5, 3))]:
            if decay:
                net = MultiLayerNet(6, sizes[1:-1], 3, "sigmoid", 0.5, decay, rng=0)
            params = copied(net.params)
            given = {"labels": t, "one-hot": rows(t, 3), "column": t[:, None]}[form]
            np.random.seed(5)
            history = net.fit(x, given, iterations=30, batch_size=batch_size, learning_rate=0.3)
            np.random.seed(5)
            want = book_loop(params, x, t, SGD(0.3), 30, batch_size, "sigmoid", decay)
            np.testing.assert_allclose(history.loss, want, rtol=1e-10)
            for key, array in params.items():
                np.testing.assert_allclose(net.params[key], array, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_numerical_method_is_calls_of_numerical_gradient(self, name, small):
        net, x, t = small
        twin = TwoLayerNet(6, 5, 3, rng=0)
        twin.params = copied(net.params)
        np.random.seed(7)
        history = net.fit(
            x, t, iterations=20, batch_size=8, method="numerical_gradient",
            optimizer=OPTIMIZERS[name](),
        )  # fmt: skip
        np.random.seed(7)
        rule = OPTIMIZERS[name]()
        for i in range(20):
            batch = np.random.choice(40, 8)
            assert history.loss[i] == pytest.approx(twin.loss(x[batch], t[batch]), rel=1e-10)
            rule.update(twin.params, twin.numerical_gradient(x[batch], t[batch]))
        for key, array in twin.params.items():
            np.testing.assert_allclose(net.params[key], array, rtol=1e-9, atol=1e-12)

    def test_soft_targets_that_do_not_sum_to_one(self, small):
        net, x, _ = small
        t = np.random.default_rng(0).random((40, 3)) * 2
        params = copied(net.params)
        np.random.seed(5)
        history = net.fit(x, t, iterations=30, batch_size=9)
        np.random.seed(5)
        want = book_loop(params, x, t, SGD(0.1), 30, 9, "sigmoid")
        np.testing.assert_allclose(history.loss, want, rtol=1e-11)

    def test_thread_counts_agree_to_rounding(self, mnist):
        x, t = mnist
        before, curves = numba.get_num_threads(), []
        try:
            for count in {1, before}:
                numba.set_num_threads(count)
                net = TwoLayerNet(784, 50, 10, rng=0)
                curves.append(net.fit(x, t, iterations=50, rng=0).loss)
                again = TwoLayerNet(784, 50, 10, rng=0)
                np.testing.assert_array_equal(
                    again.fit(x, t, iterations=50, rng=0).loss, curves[-1]
                )
        finally:
            numba.set_num_threads(before)
        np.testing.assert_allclose(curves[0], curves[-1], rtol=1e-11)


def _after_the_same_draws(n):
    """Return the number that NumPy's generator gives after the book's parameters and batches."""
    np.random.seed(0)
    np.random.randn(784 * 50 + 50 * 10)
    for _ in range(100):
        np.random.choice(n, 100)
    return np.random.rand()


class TestRandomStreams:
    def test_a_generator_or_an_integer_leaves_the_global_one_alone(self, small):
        net, x, t = small
        state = np.random.get_state()[1].copy()
        start = copied(net.params)
        first = net.fit(x, t, iterations=9, rng=4).loss
        net.params = start
        second = net.fit(x, t, iterations=9, rng=np.random.default_rng(4)).loss
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(state, np.random.get_state()[1])


class TestHistory:
    def test_without_validation(self, small):
        net, x, t = small
        history = net.fit(x, t, iterations=11, batch_size=8, rng=0)
        assert isinstance(history, History)
        assert history.loss.shape == (11,)
        assert history.loss.dtype == np.float64
        for array in (history.epochs, history.train_accuracy, history.test_accuracy):
            assert array.shape == (0,)
        assert history.seconds > 0
        assert not history.interrupted

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_accuracies_after_the_first_iteration_of_each_epoch(self, method, small):
        net, x, t = small
        test_x, test_t = x[:7] + 0.1, t[:7]
        params = copied(net.params)
        np.random.seed(1)
        history = net.fit(
            x, t, iterations=12, batch_size=8, learning_rate=1.0, method=method,
            validation=(test_x, test_t),
        )  # fmt: skip
        np.testing.assert_array_equal(history.epochs, [0, 1, 2])
        np.random.seed(1)
        for i, (train, test) in enumerate(
            zip(history.train_accuracy, history.test_accuracy, strict=True)
        ):
            book_loop(params, x, t, SGD(1.0), 1, 8, "sigmoid")
            for accuracy, (a, b) in ((train, (x, t)), (test, (test_x, test_t))):
                assert accuracy == np.mean(probabilities(params, a, "sigmoid").argmax(1) == b)
            if i < 2:
                book_loop(params, x, t, SGD(1.0), 4, 8, "sigmoid")

    def test_validation_changes_nothing(self, small):
        net, x, t = small
        start = copied(net.params)
        plain = net.fit(x, t, iterations=23, batch_size=8, rng=0).loss
        net.params = start
        with_it = net.fit(x, t, iterations=23, batch_size=8, rng=0, validation=(x, t)).loss
        np.testing.assert_array_equal(plain, with_it)

    def test_no_iterations(self, small):
        net, x, t = small
        before = copied(net.params)
        history = net.fit(x, t, iterations=0)
        assert history.loss.shape == (0,)
        for name, array in before.items():
            np.testing.assert_array_equal(net.params[name], array)

    def test_batches_larger_than_the_set(self, small):
        net, x, t = small
        history = net.fit(x[:3], t[:3], iterations=4, batch_size=10, validation=(x, t), rng=0)
        np.testing.assert_array_equal(history.epochs, [0, 1, 2, 3])

    def test_a_progress_bar_on_stderr(self, small, capsys):
        net, x, t = small
        net.fit(x, t, iterations=30, batch_size=8, progress=True, validation=(x, t))
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "30/30" in captured.err
        assert "loss=" in captured.err
        net.fit(x, t, iterations=3)
        assert capsys.readouterr().err == ""


class TestParameters:
    def test_arrays_stay_the_users_own(self, small):
        net, x, t = small
        arrays = dict(net.params)
        net.fit(x, t, iterations=3)
        for name, array in arrays.items():
            assert net.params[name] is array

    def test_odd_arrays(self, small):
        net, x, t = small
        plain = copied(net.params)
        frozen = net.params["W1"]
        kept = frozen.copy()
        frozen.flags.writeable = False
        net.params["W2"] = np.asfortranarray(net.params["W2"])
        net.params["b1"] = net.params["b1"].astype(np.float32)
        net.params["b2"] = net.params["b2"].tolist()
        net.fit(x, t, iterations=5, rng=0)
        np.testing.assert_array_equal(frozen, kept)
        twin = TwoLayerNet(6, 5, 3, rng=0)
        twin.params = plain
        twin.fit(x, t, iterations=5, rng=0)
        for name, array in twin.params.items():
            np.testing.assert_array_equal(net.params[name], array)

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_optimizers_go_on_where_they_were(self, name, method, small):
        net, x, t = small
        start, settings = copied(net.params), {"batch_size": 8, "method": method}
        one = OPTIMIZERS[name]()
        whole = net.fit(
            x, t, iterations=20, optimizer=one, rng=np.random.default_rng(0), **settings
        )
        end = copied(net.params)

        net.params, two, rng = copied(start), OPTIMIZERS[name](), np.random.default_rng(0)
        parts = [net.fit(x, t, iterations=n, optimizer=two, rng=rng, **settings) for n in (6, 10)]
        for _ in range(4):  # and by hand
            batch = rng.integers(40, size=8)
            grads = getattr(net, method)(x[batch], t[batch])
            two.update(net.params, grads)
        np.testing.assert_allclose(
            np.concatenate([part.loss for part in parts]), whole.loss[:16], rtol=1e-12
        )
        for key, array in end.items():
            np.testing.assert_allclose(net.params[key], array, rtol=1e-9, atol=1e-13)
        for memory in ("v", "h", "m"):
            if getattr(one, memory, None) is not None:
                for key in end:
                    np.testing.assert_allclose(
                        getattr(two, memory)[key], getattr(one, memory)[key], rtol=1e-9, atol=1e-15
                    )


class TestCallback:
    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_sees_every_iteration_with_parameters_up_to_date(self, method, small):
        net, x, t = small
        params, seen = copied(net.params), []

        def callback(iteration, value):
            seen.append((iteration, value, net.loss(x, t)))

        np.random.seed(0)
        history = net.fit(x, t, iterations=6, batch_size=8, method=method, callback=callback)
        assert [i for i, _, _ in seen] == list(range(6))
        np.testing.assert_array_equal([value for _, value, _ in seen], history.loss)
        np.random.seed(0)
        for _, _, whole in seen:
            book_loop(params, x, t, SGD(0.1), 1, 8, "sigmoid")
            assert whole == pytest.approx(loss(params, x, rows(t, 3), "sigmoid", 1e-7), rel=1e-8)

    def test_true_ends_the_run(self, small):
        net, x, t = small
        history = net.fit(x, t, iterations=50, callback=lambda i, value: i == 4)
        assert len(history.loss) == 5
        assert not history.interrupted

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_exception_reaches_the_caller(self, error, small):
        net, x, t = small
        start = copied(net.params)

        def callback(iteration, value):
            if iteration == 4:
                raise error("mine")

        with pytest.raises(error, match="mine"):
            net.fit(x, t, iterations=50, callback=callback, rng=0)
        stopped = copied(net.params)
        net.params = start
        net.fit(x, t, iterations=5, rng=0)
        for name, array in stopped.items():
            np.testing.assert_array_equal(net.params[name], array)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": -1}, "iterations"),
        ({"iterations": 1.5}, "iterations"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"learning_rate": np.nan}, "learning_rate"),
        ({"learning_rate": "0.1"}, "learning_rate"),
        ({"method": "newton"}, "method"),
        ({"optimizer": "SGD"}, "optimizer"),
        ({"optimizer": SGD}, "optimizer"),
        ({"validation": np.zeros((3, 6))}, "validation"),
        ({"validation": (np.zeros((3, 5)), [0, 1, 2])}, "must have shape"),
        ({"validation": (np.zeros((3, 6)), [0, 1, 5])}, "labels from 0 to 2"),
        ({"progress": "yes"}, "progress"),
        ({"rng": "seed"}, "rng"),
        ({"rng": -3}, "rng"),
        ({"callback": 3}, "callback"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)) + str(value)[:40],
)
def test_bad_arguments_change_nothing(arguments, message, small):
    net, x, t = small
    before, state = copied(net.params), np.random.get_state()[1].copy()
    optimizer = Adam()
    with pytest.raises((ValueError, TypeError)) as caught:
        net.fit(x, t, **{"iterations": 5, "optimizer": optimizer, **arguments})
    assert message in str(caught.value)
    for name, array in before.items():
        np.testing.assert_array_equal(net.params[name], array)
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert optimizer.iter == 0
    assert optimizer.m is None


@pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.params.update(W1=np.zeros((3, 3))), "params['W1']"),
        (lambda net: net.params.update(W1=np.zeros((2, 6, 5))), "params['W1']"),
        (lambda net: net.params.update(b1=np.zeros(5, complex)), "params['b1']"),
        (lambda net: net.params.pop("b2"), "`params` must be a dict with the keys"),
        (lambda net: setattr(net, "params", [1, 2]), "`params` must be a dict"),
    ],
    ids=["resized", "stacked", "complex", "removed", "no dict"],
)
def test_a_callback_that_spoils_the_parameters(spoil, message, method):
    rng = np.random.default_rng(0)
    net = TwoLayerNet(6, 5, 3, rng=0)
    x, t = rng.random((20, 6)), rng.integers(0, 3, 20)
    with pytest.raises((ValueError, TypeError)) as caught:
        net.fit(x, t, iterations=5, method=method, callback=lambda i, loss: [spoil(net)])
    assert message in str(caught.value)


def test_a_callback_that_replaces_the_parameters():
    rng = np.random.default_rng(0)
    net, twin = TwoLayerNet(6, 5, 3, rng=0), TwoLayerNet(6, 5, 3, rng=0)
    x, t = rng.random((20, 6)), rng.integers(0, 3, 20)

    def replace(iteration, value):
        net.params = {name: array.tolist() for name, array in net.params.items()}

    twin.fit(x, t, iterations=5, rng=1)
    net.fit(x, t, iterations=5, rng=1, callback=replace)
    for name, array in twin.params.items():
        np.testing.assert_allclose(net.params[name], array, rtol=1e-13)


class TestDivergence:
    def diverging(self):
        net = TwoLayerNet(3, 4, 2, 1.0, activation="relu", delta=0.0, rng=0)
        return net, np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_warns_once(self, method):
        net, x, t = self.diverging()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = net.fit(x, t, iterations=300, learning_rate=1e200, method=method, rng=0)
        assert len(history.loss) == 300
        assert not np.isfinite(history.loss[-1])
        assert [w.category for w in caught] == [RuntimeWarning]
        assert "learning rate" in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_a_warning_made_an_error_leaves_the_parameters_of_that_moment(self):
        net, x, t = self.diverging()
        with pytest.raises(RuntimeWarning, match="not finite"):
            net.fit(x, t, iterations=300, learning_rate=1e200, rng=0)
        assert not all(np.isfinite(array).all() for array in net.params.values())


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from fastgrad import TwoLayerNet

method, iterations, validation = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "validation"
rng = np.random.default_rng(1)
x, t = rng.standard_normal((400, 9)), rng.integers(0, 3, 400)
net = TwoLayerNet(9, 7, 3, 0.5, rng=0)
settings = dict(batch_size=10, method=method, rng=3, validation=(x, t) if validation else None)
net.fit(x, t, iterations=2, **settings)  # compiled now
net = TwoLayerNet(9, 7, 3, 0.5, rng=0)
timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
timer.start()
history = net.fit(x, t, iterations=iterations, **settings)
timer.join()
assert history.interrupted
assert 0 < len(history.loss) < iterations
assert np.isfinite(history.loss).all()
assert len(history.epochs) == len(history.train_accuracy) == len(history.test_accuracy)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
twin = TwoLayerNet(9, 7, 3, 0.5, rng=0)
again = twin.fit(x, t, iterations=len(history.loss), **settings)
np.testing.assert_array_equal(again.loss, history.loss)
for name, array in twin.params.items():
    np.testing.assert_array_equal(net.params[name], array)
print("consistent after", len(history.loss))
"""


def run_child(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="there, Ctrl-C is no signal to send")
class TestInterrupt:
    @pytest.mark.parametrize("validation", ["", "validation"], ids=["plain", "validation"])
    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_leaves_the_history_and_its_parameters(self, method, validation):
        done = run_child(INTERRUPTED, method, "1000000000", validation)
        assert done.returncode == 0, done.stderr
        assert "consistent after" in done.stdout

    def test_a_handler_of_the_users_own_stays(self, small):
        net, x, t = small
        before, heard = signal.getsignal(signal.SIGINT), []

        def callback(iteration, value):
            if iteration == 2:
                signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        try:
            history = net.fit(x, t, iterations=5, callback=callback)
        finally:
            signal.signal(signal.SIGINT, before)
        assert heard == [signal.SIGINT]
        assert len(history.loss) == 5

    def test_a_second_one_raises_at_once(self, small):
        net, x, t = small

        def callback(iteration, value):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                net.fit(x, t, iterations=5, callback=callback)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)

    def test_other_threads_train_too(self, small):
        net, x, t = small
        result = []
        thread = threading.Thread(target=lambda: result.append(net.fit(x, t, iterations=5)))
        thread.start()
        thread.join()
        assert len(result[0].loss) == 5


def test_defaults_are_the_books():
    parameters = inspect.signature(fastgrad.TwoLayerNet.fit).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults["iterations"] == 10_000
    assert defaults["batch_size"] == 100
    assert defaults["learning_rate"] is None  # of SGD(0.1)
    assert defaults["method"] == "gradient"


class HaltError(Exception):
    pass


RUNS = {"gradient": fit._GradientRun, "numerical_gradient": fit._NumericalRun}


class TestWhatUsersDoMeanwhile:
    x = np.random.default_rng(0).random((20, 5))
    t = np.random.default_rng(1).integers(3, size=20)

    def net(self):
        return MultiLayerNet(5, [4], 3, rng=0)

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    @pytest.mark.parametrize("soft", [False, True])
    def test_targets_written_over(self, method, soft):
        options = {"iterations": 5, "batch_size": 4, "method": method, "rng": 0}
        net, untouched = self.net(), self.net()
        t = np.eye(3)[self.t] if soft else self.t.copy()
        expected = untouched.fit(self.x, t.copy(), **options)

        def callback(iteration, value):
            t[...] = 10**9

        history = net.fit(self.x, t, callback=callback, **options)
        np.testing.assert_array_equal(history.loss, expected.loss)

    def test_a_callback_that_is_an_empty_list(self):
        class Log(list):
            def __call__(self, iteration, value):
                self.append(iteration)

        log = Log()
        self.net().fit(self.x, self.t, iterations=40, batch_size=4, callback=log)
        assert log == list(range(40))

    @pytest.mark.parametrize("end", ["true", "raise"])
    def test_the_callbacks_last_changes_stay(self, end):
        net, best = self.net(), self.net().params
        expected = copied(best)

        def callback(iteration, value):
            if iteration == 3:
                net.params.update(best)
                if end == "raise":
                    raise HaltError
                return True

        try:
            net.fit(self.x, self.t, iterations=9, batch_size=4, callback=callback)
        except HaltError:
            assert end == "raise"
        for name, array in expected.items():
            np.testing.assert_array_equal(net.params[name], array)

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_an_exception_keeps_what_was_learned(self, method, monkeypatch):
        options = {"batch_size": 4, "method": method, "rng": 0}
        net, optimizer = self.net(), Adam()
        kind = RUNS[method]
        advance = kind.advance

        def fail_later(run, batches, losses):
            if run.done >= 7:
                optimizer.next_step()  # as between this and the kernel
                raise HaltError
            advance(run, batches, losses)

        monkeypatch.setattr(kind, "advance", fail_later)
        with pytest.raises(HaltError):
            net.fit(self.x, self.t, iterations=100, optimizer=optimizer, **options)
        monkeypatch.undo()
        count = optimizer.iter
        assert count >= 7
        expected, same = self.net(), Adam()
        expected.fit(self.x, self.t, iterations=count, optimizer=same, **options)
        for name, array in expected.params.items():
            np.testing.assert_array_equal(net.params[name], array)
            np.testing.assert_array_equal(optimizer.v[name], same.v[name])

    @pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
    def test_the_first_stretch_is_one_iteration(self, method, monkeypatch):
        """An interrupt waits for a stretch's end, and how long that takes is not known yet."""
        counts = []
        kind = RUNS[method]
        advance = kind.advance

        def count(run, batches, losses):
            counts.append(len(batches))
            advance(run, batches, losses)

        monkeypatch.setattr(kind, "advance", count)
        self.net().fit(self.x, self.t, iterations=20, batch_size=4, method=method)
        assert counts[0] == 1
        assert sum(counts) == 20


class TestOptimizersMemory:
    x, t = TestWhatUsersDoMeanwhile.x, TestWhatUsersDoMeanwhile.t

    def test_of_another_network(self):
        optimizer = Momentum()
        ones = np.ones((3, 1))
        MultiLayerNet(1, [1], 1).fit(ones, [0, 0, 0], iterations=4, optimizer=optimizer)
        net = MultiLayerNet(5, [4], 3, rng=0)
        before = copied(net.params)
        with pytest.raises(ValueError, match=r"`params\['W1'\]` must keep its shape \(1, 1\)"):
            net.fit(self.x, self.t, iterations=4, optimizer=optimizer)
        for name, array in before.items():
            np.testing.assert_array_equal(net.params[name], array)

    @pytest.mark.parametrize("kind", ["missing", "read-only", "list", "float32"])
    def test_in_any_form(self, kind):
        options = {"iterations": 4, "batch_size": 4, "rng": 0}
        nets = [MultiLayerNet(5, [4], 3, rng=0) for _ in range(2)]
        odd, plain = AdaGrad(), AdaGrad()
        for net, optimizer in zip(nets, (odd, plain), strict=True):
            optimizer.update(net.params, {k: np.ones_like(p) for k, p in net.params.items()})
        if kind == "missing":
            del odd.h["W1"]
            plain.h["W1"][...] = 0
        elif kind == "read-only":
            odd.h["W1"].flags.writeable = False
        else:
            odd.h["W1"] = odd.h["W1"].tolist() if kind == "list" else np.float32(odd.h["W1"])
        for net, optimizer in zip(nets, (odd, plain), strict=True):
            net.fit(self.x, self.t, optimizer=optimizer, **options)
        for name, array in nets[1].params.items():
            np.testing.assert_array_equal(nets[0].params[name], array)
            np.testing.assert_array_equal(odd.h[name], plain.h[name])
            assert odd.h[name].dtype == np.float64


def test_a_history_shows_itself_in_a_line():
    nothing = fastgrad.History(np.empty(0))
    assert repr(nothing) == "History: 0 iterations, 0 s"
    accuracies = np.array([0.0, 1.0]), np.array([0.1, 0.9]), np.array([0.1, 0.85])
    some = fastgrad.History(np.linspace(2, 0.25, 1200), *accuracies, 1.234, True)
    assert repr(some) == (
        "History: 1,200 iterations, last loss 0.25, accuracy 90.00% in training and 85.00% in test,"
        " 1.23 s, interrupted"
    )


def test_validation_data_that_do_not_fit_are_named():
    net = TwoLayerNet(4, 3, 2, rng=0)
    with pytest.raises(ValueError, match=r"In `validation`: `x` must have shape \(N, 4\)"):
        net.fit(np.ones((2, 4)), [0, 1], validation=(np.ones((2, 3)), [0, 1]))
