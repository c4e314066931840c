"""Odd and bad arguments of every public callable: NumPy's answer, or an error that names them.

Each case is drawn by hypothesis and judged against a plain NumPy reference, which says both what
comes out and what is refused. `strategies.NIGHTLY` draws twenty times as many.
"""

import copy
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import SETTINGS, Optimizer
from strategies import (
    Refused,
    arrays,
    close,
    judge,
    laid_out,
    number,
    numbers,
    real,
    robust,
    target_matrix,
    targets,
)

import fastgrad
from fastgrad import MultiLayerNet, TwoLayerNet

pytestmark = pytest.mark.filterwarnings(
    "ignore:the loss is not finite:RuntimeWarning",
    "ignore:the numerical gradient of:fastgrad.GradientCheckWarning",
    "ignore:f does not depend on:UserWarning",  # an integer result may be the same everywhere
)

seeds = st.integers(0, 2**32 - 1)


def wide(array):
    """Return float64 for the reference to compute in."""
    return np.asarray(array, np.float64)


def eps_of(*given):
    """Return the epsilon in which a function of these arguments computes."""
    return np.finfo(np.float32 if all(a.dtype == np.float32 for a in given) else np.float64).eps


# -------------------------------------------------------------------------------- functions

ELEMENTWISE = {
    "step_function": lambda x: wide(x > 0),
    "sigmoid": lambda x: np.where(x >= 0, 1 / (1 + np.exp(-x)), np.exp(x) / (1 + np.exp(x))),
    "sigmoid_grad": lambda x: np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu_grad": lambda x: wide(x > 0),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@robust(20)
@given(x=arrays(high=20))
def test_elementwise_functions(name, x):
    def same(result, wanted):
        wanted = wanted.astype(float)
        assert result.dtype == (np.int_ if name == "step_function" else real(x).dtype)
        close(wide(result), wanted, 16 * np.abs(wanted), eps=eps_of(real(x)))

    function = getattr(fastgrad, name)
    judge(lambda: function(x), x, lambda: ELEMENTWISE[name](wide(real(x))), ["x"], same=same)


@robust(10)
@given(x=arrays())
def test_identity_function(x):
    assert fastgrad.identity_function(x) is x


def softmax(x):
    if x.ndim == 0:
        return np.where(np.isfinite(x), 1.0, np.nan)
    if x.size == 0:
        return x
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_scale(x):
    """Return by how many epsilons a softmax of these scores may be off: exp(d) by about d."""
    if x.size == 0:
        return x
    with np.errstate(all="ignore"):
        depth = np.abs(x - (x.max(axis=-1, keepdims=True) if x.ndim else x))
        return (16 + 4 * np.nan_to_num(np.fmin(depth, 750))) * np.nan_to_num(softmax(x))


@robust(30)
@given(x=arrays(high=30))
def test_softmax(x):
    def same(result, wanted):
        close(result, wanted, softmax_scale(wide(real(x))) + 1e-30)
        assert result.dtype == real(x).dtype

    judge(lambda: fastgrad.softmax(x), x, lambda: softmax(wide(real(x))), ["x"], same=same)


@robust(30)
@given(data=st.data(), swap=st.booleans())
def test_squared_error(data, swap):
    shape = data.draw(st.sampled_from([(3,), (2, 4), (0, 3), (), (2, 1, 3)]))
    y, t = data.draw(arrays(shape)), data.draw(arrays(shape))

    def expected():
        a, b = real(y), real(t)
        if a.shape != b.shape:
            raise Refused
        return 0.5 * np.sum((wide(a) - wide(b)) ** 2)

    def same(result, wanted):
        a, b = real(y), real(t)
        with np.errstate(all="ignore"):
            if not swap and np.isinf(wanted):  # a square may overflow
                assert np.isinf(result)
                return
            close(result, wanted, 16 * np.nan_to_num(wanted), eps=eps_of(a, b))

    judge(lambda: fastgrad.sum_squared_error(y, t), (y, t), expected, ["y", "t"], same=same)
    assert fastgrad.mean_squared_error is fastgrad.sum_squared_error


def scored(value):
    """Return scores or probabilities as a matrix."""
    array = real(value)
    matrix = array[None] if array.ndim == 1 else array
    if matrix.ndim != 2 or matrix.size == 0:
        raise Refused
    return wide(matrix)


def are_labels(t, n, classes):
    """Return whether good targets are labels."""
    array = np.asarray(t)
    if array.shape == (n, classes) or (n == 1 and array.shape == (classes,)):
        return classes == 1 and array.dtype.kind in "iu"
    return True


def mean_loss(y, weights, delta):
    """Return the loss as NumPy has it; an entry without weight counts nothing if it can be one of
    a softmax, where the logarithm may be minus infinity.
    """
    logs = np.log(y + delta)
    terms = np.where((weights == 0) & (logs < np.inf), 0, weights * logs)
    return -terms.sum() / len(y)


@robust(40)
@given(data=st.data())
def test_cross_entropy_error(data):
    n, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = (classes,) if n == 1 and data.draw(st.booleans()) else (n, classes)
    y, t = data.draw(arrays(shape, high=1.0)), data.draw(targets(n, classes))

    def expected():
        matrix = scored(y)
        return matrix, target_matrix(t, *matrix.shape)

    def same(result, wanted):
        matrix, weights = wanted
        if are_labels(t, *matrix.shape):  # other entries are not looked at
            matrix = matrix[weights > 0][:, None]
            weights = np.ones_like(matrix)
        with np.errstate(all="ignore"):
            loss = mean_loss(matrix, weights, 1e-7)
            terms = np.abs(np.nan_to_num(weights * np.log(matrix + 1e-7))) + 2 * np.abs(
                np.nan_to_num(weights)
            )
        close(result, loss, 16 * terms.sum(), eps=eps_of(real(y)))

    call = fastgrad.cross_entropy_error
    judge(lambda: call(y, t), (y, t), expected, ["y", "t"], same=same)


@robust(50)
@given(data=st.data(), delta=st.one_of(st.just(1e-7), st.just(0), numbers))
def test_softmax_cross_entropy_and_its_layer(data, delta):
    n, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = (classes,) if n == 1 and data.draw(st.booleans()) else (n, classes)
    a, t = data.draw(arrays(shape, high=20, specials=False)), data.draw(targets(n, classes))
    with_layer = delta == 1e-7 and data.draw(st.booleans())
    names = ["x" if with_layer else "a", "t", "delta"]

    def expected():
        small = number(delta, minimum=0)
        matrix = scored(a)
        weights = target_matrix(t, *matrix.shape)
        y = softmax(matrix)
        if eps_of(real(a)) > 1e-15:
            small = float(np.float32(small))  # infinite where it is too large for the dtype
        if small > 0:
            log = np.log(y + small)
        else:
            log = matrix - matrix.max(axis=1, keepdims=True)
            log = log - np.log(np.exp(log).sum(axis=1, keepdims=True))
        gradient = weights * y / (y + small) if small > 0 else weights
        gradient = (y * gradient.sum(axis=1, keepdims=True) - gradient) / len(y)
        return matrix, -np.sum(weights * log) / len(y), y, gradient, np.abs(weights).sum()

    def call():
        if with_layer:
            layer = fastgrad.SoftmaxWithLoss()
            return layer.forward(a, t), layer.y, layer.backward()
        loss, y = fastgrad.softmax_cross_entropy(a, t, delta)
        return loss, y, fastgrad.softmax_cross_entropy_backward(y, t, delta)

    def same(result, wanted):
        matrix, loss, y, gradient, weight = wanted
        eps = eps_of(real(a))
        depth = np.nan_to_num(np.abs(matrix).max() + 1, nan=0, posinf=1e300)
        weight = np.nan_to_num(weight)
        close(result[0], loss, 32 * (1 + depth) * (1 + weight), eps=eps)
        close(result[1], y.reshape(np.shape(a)), softmax_scale(matrix).reshape(np.shape(a)) + 1e-30)
        scale = 64 * (1 + min(depth, 750)) * (1 + weight)
        close(result[2], gradient.reshape(np.shape(a)), scale, eps=eps)

    judge(call, (a, t), expected, names, same=same)


def flattened(x, W):
    if W.ndim != 2:
        raise Refused
    if x.ndim == 1 and x.shape == W.shape[:1]:
        return x[None]
    if x.ndim > 1 and int(np.prod(x.shape[1:])) == W.shape[0]:
        return x.reshape(len(x), W.shape[0])
    raise Refused


@robust(60)
@given(data=st.data())
def test_affine_and_its_layer(data):
    n, d, h = (data.draw(st.integers(0, 4)) for _ in range(3))
    single = data.draw(st.booleans())
    x = data.draw(arrays((d,) if single else data.draw(st.sampled_from([(n, d), (n, d, 1)]))))
    W, b = data.draw(arrays((d, h))), data.draw(arrays((h,)))
    dout = data.draw(arrays((h,) if single else (n, h)))
    layer = data.draw(st.booleans())

    def expected():
        given = [real(value) for value in (x, W, b, dout)]
        rows, out = flattened(given[0], given[1]), given[3]
        if given[2].shape != given[1].shape[1:]:
            raise Refused
        shape = (len(rows), given[1].shape[1])
        if out.shape != (shape if given[0].ndim > 1 else shape[1:]):
            raise Refused
        return [wide(value) for value in (rows, given[1], given[2], out.reshape(shape))]

    def call():
        if layer:
            affine = fastgrad.Affine(W, b)
            forward = affine.forward(x)
            return forward, affine.backward(dout), affine.dW, affine.db
        return fastgrad.affine_forward(x, W, b), *fastgrad.affine_backward(dout, x, W)

    def same(result, wanted):
        X, M, v, D = wanted
        eps = max(eps_of(real(x), real(W), real(b)), eps_of(real(dout), real(x), real(W)))
        pairs = [(X, M, v), (D, M.T, 0), (X.T, D, 0), (np.ones((1, len(D))), D, 0)]
        with np.errstate(all="ignore"):
            for got, (left, right, add) in zip(result, pairs, strict=True):
                wanted = products(left, right) + add
                scale = products(np.abs(left), np.abs(right)) + np.abs(add)
                scale = 32 * np.nan_to_num(scale, posinf=0)
                close(got, wanted.reshape(got.shape), scale.reshape(got.shape), eps=eps)

    judge(call, (x, W, b, dout), expected, ["x", "W", "b", "dout"], same=same)


def products(left, right):
    """Return a matrix product that adds up without BLAS, whose NaN may depend on blocking."""
    return (left[:, :, None] * right[None]).sum(axis=1)


# ----------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid"])
@robust(20)
@given(data=st.data())
def test_activation_layers(kind, data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), (), (2, 1, 2)]))
    x, dout = data.draw(arrays(shape, high=20)), data.draw(arrays(shape))

    def expected():
        a, d = real(x), real(dout)
        if a.shape != d.shape:
            raise Refused
        a, d = wide(a), wide(d)
        if kind == "Relu":
            return np.maximum(a, 0), np.where(a <= 0, 0, d)
        out = ELEMENTWISE["sigmoid"](a)
        return out, d * (1 - out) * out

    def call():
        layer = getattr(fastgrad, kind)()
        return layer.forward(x), layer.backward(dout)

    def same(result, wanted):
        eps = max(eps_of(real(x)), eps_of(real(dout)))
        close(result[0], wanted[0], 16 * np.abs(np.nan_to_num(wanted[0])), eps=eps)
        close(result[1], wanted[1], 16 * np.abs(np.nan_to_num(real(dout))), eps=eps)

    judge(call, (x, dout), expected, ["x", "dout"], same=same)


@pytest.mark.parametrize("kind", ["MulLayer", "AddLayer"])
@robust(20)
@given(data=st.data())
def test_arithmetic_layers(kind, data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), (), (2, 1, 2)]))
    x, y, dout = (data.draw(arrays(shape)) for _ in range(3))

    def expected():
        a, b, d = real(x), real(y), real(dout)
        if a.shape != b.shape or (kind == "MulLayer" and d.shape != a.shape):
            raise Refused
        a, b, d = wide(a), wide(b), wide(d)
        return (a * b, d * b, d * a) if kind == "MulLayer" else (a + b, d, d)

    def call():
        layer = getattr(fastgrad, kind)()
        with np.errstate(all="ignore"):  # NumPy's own warnings, of infinity times zero
            return layer.forward(x, y), *layer.backward(dout)

    def same(result, wanted):
        eps = max(eps_of(real(value)) for value in (x, y, dout))
        for got, want in zip(result, wanted, strict=True):
            close(wide(got), want, 4 * np.abs(np.nan_to_num(want)), eps=eps)

    judge(call, (x, y, dout), expected, ["x", "y", "dout"], same=same)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("MulLayer", ()),
        ("Relu", ()),
        ("Sigmoid", ()),
        ("Affine", (np.eye(2), np.zeros(2))),
        ("SoftmaxWithLoss", ()),
        ("BatchNormalization", (np.ones(2), np.zeros(2))),
        ("Dropout", ()),
    ],
)
def test_backward_before_forward(kind, args):
    layer = getattr(fastgrad, kind)(*args)
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(1.0)


# ------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("kind", SETTINGS)
@robust(8)
@given(data=st.data())
def test_settings_of_optimizers(kind, data):
    settings = {name: data.draw(numbers) for name in SETTINGS[kind]}
    bounded = ("momentum", "decay_rate", "beta1", "beta2")

    def expected():
        return {
            name: number(value, minimum=0, below=1 if name in bounded else np.inf)
            for name, value in settings.items()
        }

    def same(result, wanted):
        assert {name: getattr(result, name) for name in wanted} == wanted

    make = getattr(fastgrad, kind)
    judge(lambda: make(**settings), settings, expected, list(settings), same=same)


@pytest.mark.parametrize("kind", SETTINGS)
@robust(12)
@given(data=st.data())
def test_steps_of_optimizers(kind, data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), (), (2, 1, 2)]))
    value = data.draw(
        st.one_of(
            arrays(shape, specials=False),
            st.builds(
                lambda seed, layout: laid_out(np.random.default_rng(seed).random(shape), layout),
                seeds,
                st.sampled_from(["C", "F", "strided", "reversed", "unaligned"]),
            ),
        )
    )
    grads = [data.draw(arrays(shape, specials=False)) for _ in range(2)]
    optimizer = getattr(fastgrad, kind)(lr=0.1)
    params = {"W": value.copy() if type(value) is np.ndarray and value.flags.carray else value}
    settings = {name: getattr(optimizer, name) for name in SETTINGS[kind]}

    def acceptable(gradient):
        if isinstance(value, np.ma.MaskedArray):
            raise Refused
        if isinstance(value, np.ndarray):
            if value.dtype not in (np.float32, np.float64) or not value.flags.writeable:
                raise Refused
            if not value.dtype.isnative:
                raise Refused
        else:
            number(value)
        g = real(gradient)
        if g.shape != np.shape(value):
            raise Refused
        return g

    reference, expected = Optimizer(kind, **settings), {"W": copy.deepcopy(value)}
    for gradient in grads:
        held = params["W"]
        before = np.array(held, copy=True) if isinstance(held, np.ndarray) else held
        state = {name: repr(getattr(optimizer, name)) for name in optimizer.state_names}
        try:
            g = wide(acceptable(gradient))
        except Refused:
            with pytest.raises((TypeError, ValueError), match=r"`(params|grads)"):
                optimizer.update(params, {"W": gradient})
            assert params["W"] is held
            np.testing.assert_equal(held, before)
            assert state == {name: repr(getattr(optimizer, name)) for name in optimizer.state_names}
            return
        optimizer.update(params, {"W": gradient})
        with np.errstate(all="ignore"):
            reference.update(expected, {"W": g})
            p = expected["W"]
            eps = eps_of(np.asarray(before)) if isinstance(before, np.ndarray) else 2.3e-16
            if isinstance(value, np.float32):
                eps = eps_of(np.zeros(1, np.float32))
            scale = 64 * (np.abs(p) + 1 + np.abs(np.nan_to_num(g)))
        if np.isfinite(wide(p)).all() and np.abs(g).max(initial=0) < 1e6:
            close(wide(params["W"]), p, scale, eps=eps)
        if isinstance(held, np.ndarray):
            assert params["W"] is held


# -------------------------------------------------------------------------------- gradients

FUNCTIONS = {
    "sum of squares": lambda x: np.sum(x**2),
    "as float": lambda x: float(np.sum(np.sin(x))),
    "one element": lambda x: np.sum(x, keepdims=True),
    "integer": lambda x: int(x.size),
    "bool": lambda x: True,
    "NaN": lambda x: float("nan"),
}
BAD_FUNCTIONS = {
    "None": lambda x: None,
    "text": lambda x: "1.0",
    "complex": lambda x: 1j,
    "array": lambda x: np.zeros(2),
    "ragged": lambda x: [[1], [1, 2]],
    "nothing": lambda x: np.zeros(0),
    "not callable": 3.0,
    "no function": None,
}


def step(h, x):
    """Return the step or the steps as numbers. The reference of `h`."""
    if isinstance(h, str):
        if h != "auto":
            raise Refused
        return np.full(x.shape, 1e-4)
    if np.ndim(h) == 0:
        if number(h) <= 0:
            raise Refused
        return np.full(x.shape, number(h))
    steps = real(h)
    if steps.shape != x.shape or not (np.isfinite(steps) & (steps > 0)).all():
        raise Refused
    return steps


def plain_gradient(f, x, h):
    x = x.astype(np.float64)
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h[i]
        down[i] -= h[i]
        out[i] = (np.float64(np.squeeze(f(up))) - np.float64(np.squeeze(f(down)))) / (2 * h[i])
    return out


@robust(40)
@given(data=st.data())
def test_numerical_gradient(data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), (), (2, 1, 2)]))
    x = data.draw(arrays(shape, high=3.0, specials=False))
    h = data.draw(st.one_of(st.just(1e-4), numbers, arrays(shape)))
    name = data.draw(st.sampled_from([*list(FUNCTIONS) * 3, *BAD_FUNCTIONS]))
    f = {**FUNCTIONS, **BAD_FUNCTIONS}[name]

    def expected():
        array = real(x)
        steps = step(h, array)
        if name in BAD_FUNCTIONS and (array.size or not callable(f)):
            raise Refused
        return array, steps

    def same(result, wanted):
        array, steps = wanted
        assert result.shape == array.shape
        assert result.dtype == array.dtype
        # Where rounding is small beside the step, and the step small beside x.
        sound = (steps > 1e-5) & (steps < 1) & (np.abs(array) < 1e3)
        if array.dtype == np.float64 and sound.all():
            plain = plain_gradient(f, array, steps)
            close(result, plain, 1e3 * (1 + np.abs(wide(array))) ** 2 / 1e-5)

    def call():
        with np.errstate(all="ignore"):  # warnings of f itself, at x + h
            return fastgrad.numerical_gradient(f, x, h)

    judge(call, x, expected, ["x", "h", "f"], same=same)


@robust(20)
@given(data=st.data())
def test_numerical_diff(data):
    shape = data.draw(st.sampled_from([(3,), (2, 3), (0, 2), ()]))
    x = data.draw(arrays(shape, high=3.0, specials=False))
    h = data.draw(st.one_of(st.just(1e-4), numbers))

    def expected():
        array = real(x)
        return wide(array), step(h, array)

    def same(result, wanted):
        array, steps = wanted
        if real(x).dtype == np.float64 and ((steps > 1e-5) & (steps < 1)).all():
            with np.errstate(all="ignore"):
                plain = (np.sin(array + steps) - np.sin(array - steps)) / (2 * steps)
            if np.abs(array).max(initial=0) < 1e3:
                close(result, plain, 1e9)

    call = fastgrad.numerical_diff

    def f(x):
        with np.errstate(all="ignore"):
            return np.sin(x)

    judge(lambda: call(f, x, h), x, expected, ["x", "h"], same=same)


@robust(20)
@given(data=st.data(), lr=numbers)
def test_gradient_descent(data, lr):
    x = data.draw(arrays((3,), specials=False))
    steps = data.draw(st.sampled_from([0, 1, 3, -1, 2.0, None, True, np.int64(2), "3"]))

    def expected():
        array = real(x)
        rate = number(lr)
        if isinstance(steps, bool | float | str) or steps is None or steps < 0:
            raise Refused
        point = wide(array)
        for _ in range(steps):
            point = point - rate * 2 * point
        return point

    def same(result, wanted):
        if real(x).dtype == np.float64 and np.abs(wanted).max(initial=0) < 1e3:
            scale = np.abs(wide(real(x))).max(initial=0) + np.abs(wanted).max(initial=0) + 1
            close(result, wanted, scale * 1e9)

    def f(x):
        with np.errstate(all="ignore"):
            return np.sum(x**2)

    def descend():
        with np.errstate(all="ignore"):  # a descent that diverges warns as NumPy does
            return fastgrad.gradient_descent(f, x, lr, steps)

    judge(
        descend,
        x, expected, ["init_x", "lr", "step_num"], same=same,
    )  # fmt: skip


@robust(20)
@given(data=st.data())
def test_check_gradient(data):
    x = data.draw(arrays((3,), specials=False))
    claimed = data.draw(arrays((3,)).filter(lambda value: not callable(value)))

    def f(x):
        with np.errstate(all="ignore"):
            return np.sum(x**2)

    h = data.draw(st.one_of(st.just(1e-4), numbers))

    def expected():
        array, gradient = real(x), real(claimed)
        step(h, array)
        if gradient.shape != array.shape:
            raise Refused
        return array, gradient

    def same(result, wanted):
        array, gradient = wanted
        if eps_of(array, np.zeros(1)) < 1e-15 and np.abs(array).max(initial=0) < 1e3:
            right = np.allclose(gradient, 2 * array, rtol=1e-5, atol=1e-5)
            wrong = not np.allclose(gradient, 2 * array, rtol=0.1, atol=0.1)
            if h == 1e-4 and right and array.dtype == np.float64:
                assert result.ok
            if h == 1e-4 and wrong:
                assert not result.ok
        assert isinstance(str(result), str)

    judge(
        lambda: fastgrad.check_gradient(f, claimed, x, h),
        (x, claimed), expected, ["x", "h", "grad"], same=same,
    )  # fmt: skip


# --------------------------------------------------------------------------------- networks

D, H, C = 3, 4, 2


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
        a = scores(params, rows, net._activation)
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
                exact = mean_loss(seen, ones, net._delta)
                if not np.isnan(p).any(axis=1).any() or not hard:
                    scale = 1e3 * (1 + np.abs(np.nan_to_num(weights)).sum()) * room.max()
                    close(np.asarray(loss), exact, scale / max(net._delta, 1e-3), eps=eps)
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
        plain = reference_gradient(params, rows, weights, net._activation, net._delta)
        eps = np.finfo(net.dtype).eps
        broken = not np.isfinite(scores(params, rows, net._activation)).all()
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
                if h in (1e-4, 1e-5) and net._activation == "sigmoid":
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
            loss = reference_loss(params, rows, weights, net._activation, net._delta)
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


# --------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("name", ["normalize", "flatten", "one_hot_label"])
@pytest.mark.parametrize("value", [None, 2, "yes", [True], 0.5])
def test_flags_of_load_mnist(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        fastgrad.load_mnist(**{name: value})


IMAGES, FILTERS, BIASES = np.ones((2, 3, 5, 4)), np.ones((4, 3, 2, 2)), np.ones(4)
#: Calls that are right, by the name of each argument.
RIGHT = {
    "convolution_forward": {"x": IMAGES, "W": FILTERS, "b": BIASES, "stride": 1, "pad": 0},
    "convolution_backward": {"dout": np.ones((2, 4, 4, 3)), "x": IMAGES, "W": FILTERS},
    "max_pooling_forward": {"x": IMAGES, "pool_h": 2, "pool_w": 2, "stride": 1, "pad": 0},
    "im2col": {"input_data": IMAGES, "filter_h": 2, "filter_w": 2, "stride": 1, "pad": 0},
    "Convolution": {"W": FILTERS, "b": BIASES, "stride": 1, "pad": 0},
    "Pooling": {"pool_h": 2, "pool_w": 2, "stride": 1, "pad": 0},
    "check_backward": {"forward": lambda x: 2 * x, "backward": lambda d: 2 * d, "x": BIASES},
}


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, args in RIGHT.items() for argument in args]
)
def test_wrong_arguments_are_named(name, argument):
    call = getattr(fastgrad, name)
    if name == "Convolution":  # it holds references, as the book's, and looks at them when needed

        def call(**args):
            return fastgrad.Convolution(**args).forward(IMAGES)

    call(**RIGHT[name])
    for wrong in (None, "x", 1j, object(), [[1.0], [1.0, 2.0]]):
        with pytest.raises((TypeError, ValueError), match=f"`{argument}"):
            call(**{**RIGHT[name], argument: wrong})


def test_wrong_arguments_of_what_goes_back_over_windows():
    _, arg_max = fastgrad.max_pooling_forward(IMAGES, 2, 2)
    dout = np.ones(arg_max.shape)
    fastgrad.max_pooling_backward(dout, arg_max, IMAGES.shape)
    columns = fastgrad.im2col(IMAGES, 2, 2)
    fastgrad.col2im(columns, IMAGES.shape, 2, 2)
    for wrong in (None, "x", 1j):
        with pytest.raises((TypeError, ValueError), match="`dout`"):
            fastgrad.max_pooling_backward(wrong, arg_max, IMAGES.shape)
        with pytest.raises((TypeError, ValueError), match="`col`"):
            fastgrad.col2im(wrong, IMAGES.shape, 2, 2)


@pytest.mark.parametrize("call", [fastgrad.numerical_jacobian, fastgrad.numerical_hessian])
def test_wrong_arguments_of_derivatives_of_arrays(call):
    for wrong in ("x", None, [[1.0], [1.0, 2.0]], 1j):
        with pytest.raises((TypeError, ValueError), match="`x"):
            call(np.sum, wrong)
    for wrong in (None, 3, "f"):
        with pytest.raises(TypeError, match="`f` must be callable"):
            call(wrong, np.ones(2))
    with pytest.raises(TypeError, match="`args` must be a tuple"):
        call(np.sum, np.ones(2), args=1)


def test_every_public_callable_is_covered():
    here = inspect.getsource(inspect.getmodule(test_every_public_callable_is_covered))
    here += " ".join(SETTINGS)  # the optimizers, by name
    records = {"GradientCheck", "GradientCheckWarning", "History"}  # results, not entrances
    missing = [name for name in fastgrad.__all__ if name not in records and name not in here]
    assert not missing
