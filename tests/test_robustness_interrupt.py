"""Ctrl-C at random moments, exceptions in a user's functions, and training that diverges.

The signals are real; the calls they meet would go on for minutes.
"""

import gc
import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from numba import njit

import fastgrad

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

rng = np.random.default_rng(0)
X = rng.random((200, 30)) * (rng.random((200, 30)) < 0.3)
T = rng.integers(0, 4, 200)


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """Give SIGINT the handler that a shell gives: what starts the tests may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class ctrl_c:  # noqa: N801 - reads as what it does
    """Send SIGINT to this process after so many seconds, or so many after `fit` has begun.

    The garbage collector rests meanwhile: Python drops a KeyboardInterrupt that is raised inside a
    callback of the collector, Hypothesis has such a callback, and a test would wait for ever.
    """

    def __init__(self, seconds, in_fit=False):
        self.seconds, self.in_fit = seconds, in_fit
        self.thread = threading.Thread(target=self.press)

    def press(self):
        # A busy machine may take longer to begin than the signal takes to come.
        while self.in_fit and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.001)
        time.sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        gc.disable()
        try:
            self.thread.start()
        except KeyboardInterrupt:  # which may come before the thread is said to have begun
            gc.enable()
            raise

    def __exit__(self, *exception):
        self.thread.join()
        gc.enable()


def network(**options):
    return fastgrad.TwoLayerNet(30, 12, 4, 0.3, rng=0, **options)


@pytest.mark.parametrize("delay", [0.01, 0.19, 0.37])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "numerical_gradient"},
        {"validation": (X, T)},
        {"optimizer": "Adam"},
        {"callback": lambda iteration, loss: None},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_fit_hands_back_what_was_learned(delay, options):
    def train(iterations):
        net = network()
        given = dict(options)
        if "optimizer" in given:
            given["optimizer"] = fastgrad.Adam()
        return net, net.fit(X, T, iterations=iterations, batch_size=20, rng=5, **given)

    train(2)  # compiles
    with ctrl_c(delay, in_fit=True):
        net, history = train(2_000_000)
    assert history.interrupted
    assert 0 < len(history.loss) < 2_000_000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, whole = train(len(history.loss))
    assert not whole.interrupted
    np.testing.assert_array_equal(history.loss, whole.loss)
    for name in net.params:
        np.testing.assert_array_equal(net.params[name], again.params[name])


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.2, 0.4])
def test_numerical_gradient_restores_x(delay):
    x = np.random.default_rng(1).standard_normal((400, 300))
    before = x.copy()

    def go_on():
        while True:
            fastgrad.numerical_gradient(lambda x: float(x[0, 0]) ** 2, x)

    with pytest.raises(KeyboardInterrupt), ctrl_c(delay):
        go_on()
    np.testing.assert_array_equal(x, before)


@njit
def slow(x):
    total = 0.0
    for _ in range(1000):
        for value in x.flat:
            total += np.sin(value)
    return total


@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_compiled_functions_stop(delay):
    x = np.random.default_rng(1).standard_normal(3000)
    before = x.copy()
    fastgrad.numerical_gradient(slow, x[:2])
    with pytest.raises(KeyboardInterrupt), ctrl_c(delay):
        fastgrad.numerical_gradient(slow, x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(fastgrad.numerical_gradient(lambda x: float(x[0]), x)[1:], 0)


@pytest.mark.parametrize("delay", [0.05, 0.3])
@pytest.mark.parametrize("f", [lambda x: np.sum(x**2), slow], ids=["python", "njit"])
def test_gradient_descent_leaves_its_start_alone(f, delay):
    x = np.random.default_rng(1).standard_normal(10)
    before = x.copy()
    with pytest.raises(KeyboardInterrupt), ctrl_c(delay):
        fastgrad.gradient_descent(f, x, lr=1e-9, step_num=10**9)
    np.testing.assert_array_equal(x, before)


def test_methods_of_networks_can_be_interrupted_and_used_again():
    net = network()
    expected = {name: a.copy() for name, a in net.numerical_gradient(X, T).items()}
    before = {name: a.copy() for name, a in net.params.items()}

    def go_on():
        while True:
            net.numerical_gradient(X, T)
            net.gradient(X, T)
            net.loss(X, T)

    for delay in np.linspace(0.0, 0.1, 10):
        with pytest.raises(KeyboardInterrupt), ctrl_c(delay):
            go_on()
        for name, array in net.params.items():
            np.testing.assert_array_equal(array, before[name])
        for name, array in net.numerical_gradient(X, T).items():
            np.testing.assert_array_equal(array, expected[name])


def test_a_handler_of_the_users_own_stays():
    caught = []

    def handler(*_):
        caught.append(1)

    signal.signal(signal.SIGINT, handler)
    with ctrl_c(0.05):
        history = network().fit(X, T, iterations=2_000_000, batch_size=20, rng=0,
                                callback=lambda i, loss: bool(caught))  # fmt: skip
    assert caught
    assert not history.interrupted
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_second_ctrl_c_raises():
    def ask_again(iteration, loss):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    net = network()
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, T, iterations=5, batch_size=20, rng=0, callback=ask_again)
    assert np.isfinite(net.loss(X, T))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Mine(Exception):  # noqa: N818
    """An exception of the user's."""


@pytest.mark.parametrize("place", [1, 2, 7, 120])
def test_an_exception_in_f_reaches_the_caller(place):
    error, calls = Mine("mine"), []
    x = np.random.default_rng(1).standard_normal((6, 10))
    before = x.copy()

    def f(x):
        calls.append(1)
        if len(calls) == place:
            raise error
        return float(np.sum(x))

    with pytest.raises(Mine) as caught:
        fastgrad.numerical_gradient(f, x)
    assert caught.value is error
    np.testing.assert_array_equal(x, before)


def test_an_exception_in_a_compiled_f_reaches_the_caller():
    @njit
    def f(x):
        if x[2] > 1:
            raise ValueError("too large")
        return np.sum(x)

    x = np.array([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="too large"):
        fastgrad.numerical_gradient(f, x)
    np.testing.assert_array_equal(x, [0.0, 1.0, 1.0])


def test_an_exception_in_a_callback_reaches_the_caller():
    error = Mine("mine")
    seen = []

    def callback(iteration, loss):
        seen.append(loss)
        if iteration == 3:
            raise error

    net = network()
    with pytest.raises(Mine) as caught:
        net.fit(X, T, iterations=10, batch_size=20, rng=5, callback=callback)
    assert caught.value is error
    other = network()
    history = other.fit(X, T, iterations=4, batch_size=20, rng=5)
    np.testing.assert_array_equal(history.loss, seen)
    for name in net.params:
        np.testing.assert_array_equal(net.params[name], other.params[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["gradient", "numerical_gradient"])
def test_training_that_diverges_warns_once_and_goes_on(dtype, method, capfd):
    net = network(activation="relu", dtype=dtype)
    x = 100 * X
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = net.fit(x, T, iterations=60, batch_size=20, learning_rate=1e200 if dtype is
                          np.float64 else 1e30, method=method, rng=0, progress=True)  # fmt: skip
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "not finite" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert len(history.loss) == 60
    assert np.isfinite(history.loss[0])
    assert not np.isfinite(history.loss[-1])
    assert "60/60" in capfd.readouterr().err


def test_divergence_as_numpy_has_it():
    """Learning rate 10 on the book's network: the same losses as in NumPy."""
    net = network()
    W1, b1, W2, b2 = (net.params[name].copy() for name in ("W1", "b1", "W2", "b2"))
    batches = np.random.default_rng(3).integers(200, size=(40, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        history = net.fit(X, T, iterations=40, batch_size=20, learning_rate=10.0, rng=3)
    expected = []
    for batch in batches:
        x, one_hot = X[batch], np.eye(4)[T[batch]]
        z = 1 / (1 + np.exp(-(x @ W1 + b1)))
        a = z @ W2 + b2
        y = np.exp(a - a.max(1, keepdims=True))
        y /= y.sum(1, keepdims=True)
        expected.append(-np.sum(one_hot * np.log(y + 1e-7)) / 20)
        q = one_hot * y / (y + 1e-7)
        d2 = (y * q.sum(1, keepdims=True) - q) / 20
        d1 = d2 @ W2.T * z * (1 - z)
        W1, b1 = W1 - 10 * x.T @ d1, b1 - 10 * d1.sum(0)
        W2, b2 = W2 - 10 * z.T @ d2, b2 - 10 * d2.sum(0)
    np.testing.assert_allclose(history.loss, expected, rtol=1e-6)
