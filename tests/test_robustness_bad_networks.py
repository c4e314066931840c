"""Odd and bad arguments of networks: NumPy's answer, or an error.

Hypothesis draws each case, and a plain NumPy reference says both what comes out and what is
refused, by an error that names the argument. `strategies.NIGHTLY` draws twenty times as many.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ELEMENTWISE,
    Refused,
    are_labels,
    arrays,
    close,
    judge,
    mean_loss,
    number,
    numbers,
    real,
    robust,
    softmax,
    target_matrix,
    targets,
    wide,
)

import fastgrad
from fastgrad import MultiLayerNet, TwoLayerNet

pytestmark = pytest.mark.filterwarnings(
    "ignore:the loss is not finite:RuntimeWarning",
    "ignore:the numerical gradient of:fastgrad.GradientCheckWarning",
    "ignore:f does not depend on:UserWarning",  # an integer result may be the same everywhere
)

seeds = st.integers(0, 2**32 - 1)


D, H, C = 3, 4, 2
DELTA = 1e-7  # what networks have unless they are told otherwise


def activation_of(net):
    return "relu" if "relu" in repr(net) else "sigmoid"


def scores(params, x, activation, layers=2):
    """Return the last layer's values, in NumPy."""
    for layer in range(1, layers + 1):
        x = x @ wide(params[f"W{layer}"]) + wide(params[f"b{layer}"])
        if layer < layers:
            x = ELEMENTWISE[activation](x)
    return x


def reference_loss(params, x, weights, activation, delta):
    return mean_loss(softmax(scores(params, x, activation)), weights, delta)


@st.composite
def networks(draw):
    """Draw a small network, sometimes with parameters that are odd or bad."""
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    net = TwoLayerNet(
        D, H, C, float(rng.choice([0.01, 1.0])), rng=seed,
        activation=str(rng.choice(["sigmoid", "relu"])),
        dtype=rng.choice([np.float64, np.float64, np.float32]),
    )  # fmt: skip
    if rng.random() < 0.5:
        key = str(rng.choice(["W1", "b1", "W2", "b2"]))
        match rng.choice(["odd", "missing", "extra", "swapped", "NaN", "inf", "not a dict"]):
            case "odd":
                net.params[key] = draw(arrays(net.params[key].shape, specials=False))
            case "missing":
                del net.params[key]
            case "extra":
                net.params["W3"] = np.zeros((2, 2))
            case "swapped":
                net.params["W1"], net.params["W2"] = net.params["W2"], net.params["W1"]
            case "NaN":
                net.params[key].flat[-1] = np.nan
            case "inf":
                net.params[key].flat[-1] = np.inf
            case "not a dict":
                net.params = draw(st.sampled_from([None, [], {}, "W1", {1: 2}]))
    return net


def good_params(net):
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    if not isinstance(net.params, dict) or set(net.params) != set(shapes):
        raise Refused
    cast = {name: real(value).astype(net.dtype) for name, value in net.params.items()}
    if any(cast[name].shape != shape for name, shape in shapes.items()):
        raise Refused
    return cast


def good_samples(x, dtype):
    array = real(x).astype(dtype)
    if array.ndim not in (1, 2) or array.shape[-1] != D or len(array) == 0:
        raise Refused
    return wide(np.atleast_2d(array))


NAMES = ["x", "t", "h", "params"]


@robust(60)
@given(data=st.data(), net=networks())
def test_predict_loss_and_accuracy(data, net):
    n = data.draw(st.integers(1, 4))
    sparse = data.draw(st.booleans())
    shape = (D,) if n == 1 and data.draw(st.booleans()) else (n, D)
    x, t = data.draw(arrays(shape)), data.draw(targets(n, C))
    if sparse and type(x) is np.ndarray and x.dtype == np.float64 and x.flags.carray and x.size:
        x = np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, x, 0)

    def expected():
        params, rows = good_params(net), good_samples(x, net.dtype)
        weights = target_matrix(t, len(rows), C).astype(net.dtype)
        return params, rows, wide(weights)

    def same(result, wanted):
        params, rows, weights = wanted
        y, loss, accuracy = result
        a = scores(params, rows, activation_of(net))
        p = softmax(a)
        eps = np.finfo(net.dtype).eps
        if np.abs(np.nan_to_num(a)).max() < 1e6:
            # Rounding of the scores goes straight into the probabilities.
            room = 64 * (1 + np.nan_to_num(np.abs(a)).max(axis=1, keepdims=True)) + 0 * p
            room = np.nan_to_num(room)
            big = np.abs(rows).max() > 1e3  # cancellation among large terms
            if not big:
                close(y, p.reshape(y.shape), room, eps=eps)
                hard = are_labels(t, len(rows), C)
                seen = p[weights > 0][:, None] if hard else p
                ones = np.ones_like(seen) if hard else weights
                exact = mean_loss(seen, ones, DELTA)
                if not np.isnan(p).any(axis=1).any() or not hard:
                    scale = 1e3 * (1 + np.abs(np.nan_to_num(weights)).sum()) * room.max()
                    close(np.asarray(loss), exact, scale / max(DELTA, 1e-3), eps=eps)
                margin = np.abs(p[:, 0] - p[:, 1]).min()
                if margin > 1e-3 and not np.isnan(weights).any():
                    hits = p.argmax(axis=1) == weights.argmax(axis=1)
                    assert accuracy == pytest.approx(np.mean(hits))
        assert np.isnan(y).any() == np.isnan(p).any()

    judge(
        lambda: (net.predict(x), net.loss(x, t), net.accuracy(x, t)),
        (x, t, net.params), expected, NAMES, same=same,
    )  # fmt: skip


def reference_gradient(params, x, weights, activation, delta):
    """Return the gradient of the loss by backpropagation, in NumPy."""
    a1 = x @ wide(params["W1"]) + wide(params["b1"])
    z = ELEMENTWISE[activation](a1)
    y = softmax(z @ wide(params["W2"]) + wide(params["b2"]))
    q = weights * y / (y + delta)
    da2 = (y * q.sum(axis=1, keepdims=True) - q) / len(x)
    dz = da2 @ wide(params["W2"]).T
    da1 = dz * z * (1 - z) if activation == "sigmoid" else np.where(a1 <= 0, 0, dz)
    return {"W1": x.T @ da1, "b1": da1.sum(0), "W2": z.T @ da2, "b2": da2.sum(0)}


@robust(50)
@given(data=st.data(), net=networks())
def test_gradients_of_networks(data, net):
    n = data.draw(st.integers(1, 4))
    x, t = data.draw(arrays((n, D), specials=False)), data.draw(targets(n, C))
    h = data.draw(st.one_of(st.just(1e-4), st.just(1e-5), numbers))

    def expected():
        params, rows = good_params(net), good_samples(x, net.dtype)
        weights = wide(target_matrix(t, len(rows), C).astype(net.dtype))
        size = number(h)
        with np.errstate(all="ignore"):
            fits = np.finfo(net.dtype).tiny <= net.dtype.type(size) < np.inf
        if not fits:
            raise Refused
        return params, rows, weights

    def same(result, wanted):
        params, rows, weights = wanted
        gradient, numerical = result
        plain = reference_gradient(params, rows, weights, activation_of(net), DELTA)
        eps = np.finfo(net.dtype).eps
        broken = not np.isfinite(scores(params, rows, activation_of(net))).all()
        small = max(np.abs(rows).max(), *(np.abs(v).max() for v in params.values())) < 100
        for name, exact in plain.items():
            assert gradient[name].shape == numerical[name].shape == exact.shape
            if broken or not np.isfinite(weights).all():
                if np.isnan(exact).all():
                    assert np.isnan(gradient[name]).any()
                continue
            if small:
                scale = 1e3 * (1 + np.abs(rows).max()) * (1 + np.abs(weights).sum())
                scale *= 1 + max(np.abs(v).max() for v in params.values()) ** 2
                close(gradient[name], exact, scale, eps=eps)
                if h in (1e-4, 1e-5) and activation_of(net) == "sigmoid":
                    assert np.abs(numerical[name] - exact).max() <= 1e3 * eps * scale + (
                        1e2 * h**2 * scale
                    )

    judge(
        lambda: (net.gradient(x, t), net.numerical_gradient(x, t, h)),
        (x, t, net.params), expected, NAMES, same=same,
    )  # fmt: skip


@robust(20)
@given(data=st.data(), net=networks())
def test_checks_of_networks(data, net):
    n = data.draw(st.integers(1, 3))
    x, t = data.draw(arrays((n, D), specials=False)), data.draw(targets(n, C))
    h = data.draw(st.one_of(st.just(1e-4), numbers))

    def expected():
        good_params(net)
        rows = good_samples(x, net.dtype)
        target_matrix(t, len(rows), C)
        size = number(h)
        with np.errstate(all="ignore"):
            if not np.finfo(net.dtype).tiny <= net.dtype.type(size) < np.inf:
                raise Refused

    judge(lambda: str(net.check_gradient(x, t, h)), (x, t, net.params), expected, NAMES)


FIT_ARGUMENTS = {
    "iterations": ([0, 1, 3], [-1, 2.0, None, "3", True]),
    "batch_size": ([1, 5], [0, -1, 2.0, None, True]),
    "learning_rate": ([0.1, 0, None, 1e300], [float("nan"), float("inf"), -0.1, "a", True, 1j]),
    "method": (["gradient", "numerical_gradient"], ["", None, 1, "Gradient"]),
    "optimizer": ([None], ["SGD", fastgrad.SGD, 3, object()]),
    "validation": ([None], [3, (1,), "ab", (None, None), ([[1.0]], [0])]),
    "progress": ([False, 0], ["yes", None, 2]),
    "rng": ([0, 7], ["a", -1, 1.5, True, object()]),
    "callback": ([None, lambda i, loss: None], [3, "f", object()]),
}


@robust(40)
@given(data=st.data(), net=networks())
def test_fit(data, net):
    n = data.draw(st.integers(1, 4))
    x, t = data.draw(arrays((n, D))), data.draw(targets(n, C))
    wrong = data.draw(st.sampled_from([None, None, *FIT_ARGUMENTS]))
    kwargs = {
        name: data.draw(st.sampled_from(bad if name == wrong else good))
        for name, (good, bad) in FIT_ARGUMENTS.items()
    }
    before = net.params.copy() if isinstance(net.params, dict) else net.params
    contents = repr(before)

    def expected():
        params, rows = good_params(net), good_samples(x, net.dtype)
        weights = wide(target_matrix(t, len(rows), C).astype(net.dtype))
        if wrong:
            raise Refused
        if kwargs["iterations"]:
            loss = reference_loss(params, rows, weights, activation_of(net), DELTA)
            return loss
        return None

    def same(history, wanted):
        assert len(history.loss) == kwargs["iterations"]
        assert {name: net.params[name].shape for name in net.params} == {
            "W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,),
        }  # fmt: skip
        assert all(value.dtype == net.dtype for value in net.params.values())

    judge(lambda: net.fit(x, t, **kwargs), (x, t), expected, [*NAMES, *FIT_ARGUMENTS], same=same)
    if wrong:
        assert repr(net.params) == contents, "a call that raised changed the parameters"


CONSTRUCTOR = {
    "input_size": ([1, 3, np.int64(2)], [0, -1, 2.0, None, "3", True]),
    "hidden_size": ([1, 20], [0, -1, 2.0, None, True]),
    "output_size": ([1, 2], [0, 1.5, None, True]),
    "weight_init_std": ([0, 0.01, np.float32(1)], [-1, float("nan"), float("inf"), 1j, True, []]),
    "activation": (["sigmoid", "relu"], ["tanh", None, 3, ""]),
    "delta": ([0, 1e-7, 1.0], [-1e-9, float("nan"), None, "0", True]),
    "dtype": ([float, "float32", np.float64], ["float16", int, "no dtype", object, complex, 3]),
    "rng": ([None, 0, np.random.default_rng(0)], [-1, 1.0, "a", True, object()]),
}


@robust(30)
@given(data=st.data(), many=st.booleans())
def test_constructors(data, many):
    wrong = data.draw(st.sampled_from([None, *CONSTRUCTOR]))
    kwargs = {
        name: data.draw(st.sampled_from(bad if name == wrong else good))
        for name, (good, bad) in CONSTRUCTOR.items()
    }
    names = list(kwargs)
    sizes = [kwargs.pop(name) for name in names[:3]]
    if many:
        hidden = data.draw(st.sampled_from([[sizes[1]], [sizes[1], 2], sizes[1]]))
        if hidden is sizes[1]:
            wrong = "hidden_size"
        sizes[1] = hidden
        names.append("hidden_size_list")

    def expected():
        if wrong:
            raise Refused

    def same(net, wanted):
        assert net.params["W1"].shape[0] == sizes[0]
        assert np.isfinite(net.loss(np.zeros((1, int(sizes[0]))), [0]))

    make = MultiLayerNet if many else TwoLayerNet
    judge(lambda: make(*sizes, **kwargs), kwargs, expected, names, same=same)
