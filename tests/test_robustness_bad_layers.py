"""Odd and bad arguments of functions, layers and optimizers: NumPy's answer, or an error.

Hypothesis draws each case, and a plain NumPy reference says both what comes out and what is
refused, by an error that names the argument. `strategies.NIGHTLY` draws twenty times as many.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import SETTINGS, Optimizer
from strategies import (
    ELEMENTWISE,
    Refused,
    are_labels,
    arrays,
    close,
    eps_of,
    judge,
    laid_out,
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

pytestmark = pytest.mark.filterwarnings(
    "ignore:the loss is not finite:RuntimeWarning",
    "ignore:the numerical gradient of:fastgrad.GradientCheckWarning",
    "ignore:f does not depend on:UserWarning",  # an integer result may be the same everywhere
)

seeds = st.integers(0, 2**32 - 1)


# -------------------------------------------------------------------------------- functions


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


def test_every_public_callable_is_covered():
    files = Path(__file__).parent.glob("test_robustness_bad_*.py")
    here = "".join(file.read_text(encoding="utf-8") for file in files)
    here += " ".join([*SETTINGS, *ELEMENTWISE])  # which are tested by name
    records = {"GradientCheck", "GradientCheckWarning", "History"}  # results, not entrances
    missing = [name for name in fastgrad.__all__ if name not in records and name not in here]
    assert not missing
