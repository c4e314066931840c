"""The book's functions: values, dtypes, layouts, and what they refuse."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastgrad.nn import functions as F  # noqa: N812


def plain_sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def plain_softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


ELEMENTWISE = {
    F.sigmoid: plain_sigmoid,
    F.sigmoid_grad: lambda x: plain_sigmoid(x) * plain_sigmoid(-x),
    F.relu: lambda x: np.maximum(x, 0),
    F.relu_grad: lambda x: (x > 0).astype(np.asarray(x).dtype),
}
ALL_ELEMENTWISE = [*ELEMENTWISE, F.step_function]


def in_layout(array, layout):
    """Return an array of the same values in another layout of memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed":
        return array[..., ::-1].copy()[..., ::-1]
    if layout == "unaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
        memory[:] = array.reshape(-1)
        return memory.reshape(array.shape)
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    if layout == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    return array


LAYOUTS = ["C", "F", "strided", "reversed", "unaligned", "read-only", "big-endian"]


@pytest.mark.parametrize("function", ELEMENTWISE)
@settings(max_examples=40)
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
    dtype=st.sampled_from(["f", "d", "i", "b", "?"]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_elementwise(function, shape, dtype, layout, seed):
    values = 3 * np.random.default_rng(seed).standard_normal(shape)
    x = in_layout(values.astype(dtype), layout)
    before = x.copy()
    result_dtype = np.float32 if x.dtype == np.float32 else np.float64
    got = function(x)
    assert got.dtype == result_dtype
    assert got.shape == shape
    expected = ELEMENTWISE[function](np.asarray(x, np.float64))
    np.testing.assert_allclose(got, expected, rtol=1e-12 if got.dtype == "d" else 1e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("function", ALL_ELEMENTWISE)
def test_elementwise_on_more_values_than_one_thread_gets(function):
    x = np.random.default_rng(0).standard_normal((300, 300))
    expected = np.array([function(row) for row in x])
    np.testing.assert_allclose(function(x), expected, rtol=1e-15)


@pytest.mark.parametrize("function", ALL_ELEMENTWISE)
@pytest.mark.parametrize("x", [2, 2.0, np.float64(2), np.array(2.0), True, np.uint8(2)], ids=repr)
def test_a_number_gives_a_number(function, x):
    got = function(x)
    assert isinstance(got, np.integer if function is F.step_function else np.float64)
    assert got == function([float(x)])[0]
    assert isinstance(function(np.float32(2)), np.integer | np.float32)


@pytest.mark.parametrize("function", [*ALL_ELEMENTWISE, F.softmax])
@pytest.mark.parametrize("x", ["a", None, [1j], [[1, 2], [3]], {}, np.array(["a"])], ids=repr)
def test_what_is_not_real_numbers_is_refused(function, x):
    with pytest.raises(TypeError, match=r"^`x` must be an array of real numbers. Got "):
        function(x)


def test_identity_function_returns_the_same_object():
    x = object()
    assert F.identity_function(x) is x


def test_step_function():
    got = F.step_function(np.array([[-1.0, 0.0], [np.nan, 1e-300]]))
    assert got.dtype == np.int_
    np.testing.assert_array_equal(got, [[0, 0], [0, 1]])


def test_sigmoid_neither_wraps_nor_overflows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(F.sigmoid([-1e4, 1e4]), [0, 1])
    expected = 1 / (1 + np.exp(-200.0))
    assert F.sigmoid(np.array([200], np.uint8))[0] == pytest.approx(expected, rel=1e-15)


def test_slope_of_relu_at_zero_is_that_of_the_layer():
    assert F.relu_grad(0.0) == 0


@pytest.mark.parametrize("function", [F.sigmoid, F.sigmoid_grad, F.relu])
def test_nan_stays_nan(function):
    assert np.isnan(function([0.0, np.nan])).tolist() == [False, True]


@settings(max_examples=60)
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6),
    dtype=st.sampled_from("fd"),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax(shape, dtype, layout, seed):
    values = (5 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    got = F.softmax(in_layout(values, layout))
    if layout != "big-endian":
        assert got.dtype == dtype
    np.testing.assert_allclose(got, plain_softmax(values), rtol=1e-12 if dtype == "d" else 1e-5)


def test_softmax_of_the_book_and_of_large_scores():
    np.testing.assert_allclose(
        F.softmax([1010, 1000, 990]), [9.99954600e-01, 4.53978686e-05, 2.06106005e-09], rtol=1e-8
    )
    assert F.softmax(3.0) == 1
    assert F.softmax(np.empty((0, 10))).shape == (0, 10)
    assert F.softmax(np.empty((3, 0))).shape == (3, 0)
    x = np.random.default_rng(0).standard_normal((9000, 10))
    np.testing.assert_allclose(F.softmax(x), plain_softmax(x), rtol=1e-13)


@settings(max_examples=40)
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    dtypes=st.tuples(st.sampled_from("fdi"), st.sampled_from("fdi")),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_squared_error(shape, dtypes, seed):
    rng = np.random.default_rng(seed)
    y, t = ((9 * rng.standard_normal(shape)).astype(dtype) for dtype in dtypes)
    got = F.sum_squared_error(y, t)
    assert type(got) is (np.float32 if dtypes == ("f", "f") else np.float64)
    expected = 0.5 * np.sum((np.float64(y) - np.float64(t)) ** 2)
    assert got == pytest.approx(expected, rel=1e-5 if dtypes == ("f", "f") else 1e-12)


def test_mean_squared_error_is_another_name():
    assert F.mean_squared_error is F.sum_squared_error
    with pytest.raises(ValueError, match=r"^`t` must have the shape of `y`, \(2,\). Got \(3,\).$"):
        F.sum_squared_error([1, 2], [1, 2, 3])


BOOK_Y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]


@pytest.mark.parametrize("t", [2, [2], [[2]], np.eye(10)[2], np.eye(10, dtype=int)[[2]]])
def test_cross_entropy_error_of_the_book(t):
    assert F.cross_entropy_error(BOOK_Y, t) == pytest.approx(0.510825457099338, rel=1e-14)
    assert F.cross_entropy_error([BOOK_Y], t) == pytest.approx(0.510825457099338, rel=1e-14)


def test_cross_entropy_error_takes_targets_as_they_are():
    rng = np.random.default_rng(0)
    y = plain_softmax(rng.standard_normal((5, 4)))
    soft = rng.random((5, 4))
    expected = -np.sum(soft * np.log(y + 1e-7)) / 5
    assert F.cross_entropy_error(y, soft) == pytest.approx(expected, rel=1e-13)
    labels = np.array([0, 1, 2, 3, 3])
    one_hot = F.cross_entropy_error(y, np.eye(4)[labels])
    for t in (labels, labels.astype(np.uint8), labels[:, None], labels.tolist()):
        assert F.cross_entropy_error(y, t) == pytest.approx(one_hot, rel=1e-14)
    assert type(F.cross_entropy_error(y.astype(np.float32), labels)) is np.float32
    assert F.cross_entropy_error([[1, 0]], [0]) == pytest.approx(-1e-7, rel=1e-6)


SCORED = [
    (F.cross_entropy_error, "y"),
    (F.softmax_cross_entropy, "a"),
    (F.softmax_cross_entropy_backward, "y"),
]


@pytest.mark.parametrize(("function", "name"), SCORED)
@pytest.mark.parametrize(
    ("scores", "t", "error", "message"),
    [
        ("a", 0, TypeError, "`{}` must be an array of real numbers. Got 'a'."),
        (np.zeros((2, 3, 4)), [0, 0], ValueError, "`{}` must have shape .* Got .2, 3, 4.."),
        (np.zeros((0, 3)), [], ValueError, "`{}` must have shape .* Got .0, 3.."),
        (3.0, 0, ValueError, "`{}` must have shape .* Got ..."),
        (np.zeros((2, 3)), [0, 3], ValueError, "`t` must hold labels from 0 to 2. Got 3 at po.* 1"),
        (np.zeros((2, 3)), [-1, 0], ValueError, "`t` must hold labels from 0 to 2. Got -1 at po"),
        (np.zeros((2, 3)), [0.0, 0.5], TypeError, "`t` must hold integer labels. Got float64."),
        (np.zeros((2, 3)), [0, 1, 2], ValueError, "`t` must be labels of shape .2,. or"),
        (np.zeros((2, 3)), np.zeros((3, 2)), ValueError, "`t` must be labels of shape .2,. or"),
        (np.zeros((2, 3)), "01", TypeError, "`t` must be an array of real numbers"),
    ],
)
def test_scores_and_targets_that_do_not_fit(function, name, scores, t, error, message):
    with pytest.raises(error, match=message.format(name)):
        function(scores, t)


@pytest.mark.parametrize("function", [F.softmax_cross_entropy, F.softmax_cross_entropy_backward])
@pytest.mark.parametrize(
    ("delta", "error"), [(-1e-7, ValueError), (np.nan, ValueError), ("0", TypeError)]
)
def test_delta_is_checked(function, delta, error):
    with pytest.raises(error, match="`delta` must be a "):
        function([[0.5, 0.5]], [0], delta=delta)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("delta", [0, 1e-7])
def test_softmax_cross_entropy(dtype, delta):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((6, 5)).astype(dtype)
    labels = rng.integers(0, 5, 6)
    loss, y = F.softmax_cross_entropy(in_layout(a, "F"), labels, delta)
    assert type(loss) is dtype
    assert y.dtype == dtype
    np.testing.assert_allclose(y, plain_softmax(a), rtol=1e-6)
    expected = -np.mean(np.log(y[np.arange(6), labels] + delta))
    assert loss == pytest.approx(expected, rel=1e-6 if dtype is np.float32 else 1e-14)
    da = F.softmax_cross_entropy_backward(y, labels, delta)
    assert da.dtype == dtype
    np.testing.assert_allclose(da, (y - np.eye(5)[labels]) / 6, atol=1e-6)


def test_softmax_cross_entropy_of_one_sample():
    loss, y = F.softmax_cross_entropy([1.0, 2.0], 1)
    assert y.shape == (2,)
    batch_loss, batch_y = F.softmax_cross_entropy([[1.0, 2.0]], [1])
    assert loss == batch_loss
    np.testing.assert_array_equal(y, batch_y[0])
    assert F.softmax_cross_entropy_backward(y, [0, 1]).shape == (2,)


def test_loss_without_delta_is_finite_where_a_probability_vanishes():
    loss, y = F.softmax_cross_entropy([[0.0, 2000.0]], [0], delta=0)
    assert y[0, 0] == 0
    assert loss == 2000


AFFINE_SHAPES = {
    "n": st.integers(0, 9),
    "d": st.integers(0, 40),
    "h": st.integers(0, 40),
    "layouts": st.tuples(*[st.sampled_from(["C", "F", "unaligned", "read-only"])] * 3),
    "dtypes": st.tuples(*[st.sampled_from("fdi")] * 3),
    "seed": st.integers(0, 2**32 - 1),
}


@settings(max_examples=60)
@given(**AFFINE_SHAPES)
def test_affine(n, d, h, layouts, dtypes, seed):
    rng = np.random.default_rng(seed)
    shapes = (n, d), (d, h), (n, h)
    x, W, dout = (
        in_layout((2 * rng.standard_normal(shape)).astype(dtype), layout)
        for shape, dtype, layout in zip(shapes, dtypes, layouts, strict=True)
    )
    b = rng.standard_normal(h).astype("f")
    single = dtypes == ("f", "f", "f")
    close = {"rtol": 0, "atol": 1e-4 if single else 1e-12}
    out = F.affine_forward(x, W, b)
    assert out.dtype == (np.float32 if dtypes[:2] == ("f", "f") else np.float64)
    x, W, dout = (array.astype("f" if single else "d") for array in (x, W, dout))
    tolerance = 1e-4 if out.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(out, x.astype("d") @ W + b, rtol=0, atol=tolerance)
    dx, dW, db = F.affine_backward(dout, x, W)
    np.testing.assert_allclose(dx, dout @ W.T, **close)
    np.testing.assert_allclose(dW, x.T @ dout, **close)
    np.testing.assert_allclose(db, dout.sum(axis=0), **close)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_affine_of_a_batch_that_goes_to_all_threads(dtype):
    rng = np.random.default_rng(0)
    x, W, dout = (rng.standard_normal(s).astype(dtype) for s in ((101, 784), (784, 50), (101, 50)))
    b = np.arange(50, dtype=dtype)
    close = {"rtol": 0, "atol": 1e-3 if dtype is np.float32 else 1e-11}
    np.testing.assert_allclose(F.affine_forward(x, W, b), x @ W + b, **close)
    dx, dW, db = F.affine_backward(dout, x, W)
    np.testing.assert_allclose(dx, dout @ W.T, **close)
    np.testing.assert_allclose(dW, x.T @ dout, **close)
    np.testing.assert_allclose(db, dout.sum(axis=0), **close)


def test_affine_of_one_sample_and_of_images():
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((12, 5)), rng.standard_normal(5)
    images = rng.standard_normal((4, 3, 2, 2))
    rows = images.reshape(4, 12)
    np.testing.assert_array_equal(F.affine_forward(images, W, b), F.affine_forward(rows, W, b))
    np.testing.assert_allclose(F.affine_forward(rows[0], W, b), rows[0] @ W + b, rtol=1e-13)
    dout = rng.standard_normal((4, 5))
    dx, dW, _ = F.affine_backward(dout, images, W)
    assert dx.shape == images.shape
    np.testing.assert_allclose(dW, rows.T @ dout, rtol=1e-12)
    dx, dW, db = F.affine_backward(dout[0], rows[0], W)
    assert (dx.shape, dW.shape, db.shape) == ((12,), (12, 5), (5,))


def test_affine_backward_is_the_derivative_of_affine_forward():
    rng = np.random.default_rng(0)
    parts = {"x": rng.standard_normal((3, 4)), "W": rng.standard_normal((4, 2))}
    parts["b"] = rng.standard_normal(2)
    dout = rng.standard_normal((3, 2))
    gradients = F.affine_backward(dout, parts["x"], parts["W"])
    for (name, array), gradient in zip(parts.items(), gradients, strict=True):
        for i in np.ndindex(array.shape):
            nudge = np.zeros_like(array)
            nudge[i] = 0.5  # the map is linear in each part: no truncation error
            up = F.affine_forward(**{**parts, name: array + nudge})
            down = F.affine_forward(**{**parts, name: array - nudge})
            assert gradient[i] == pytest.approx(np.sum(dout * (up - down)), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "W", "b", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3), np.zeros(1), r"`W` must have shape \(D, H\). Got \(3,\)."),
        (np.zeros((2, 3)), np.zeros((4, 2)), np.zeros(2), r"`x` must have shape \(N, 4\) or"),
        (np.zeros(()), np.zeros((4, 2)), np.zeros(2), r"`x` must have shape \(N, 4\) or"),
        (np.zeros((2, 3, 2)), np.zeros((4, 2)), np.zeros(2), r"`x` must have shape \(N, 4\) or"),
        (np.zeros((2, 4)), np.zeros((4, 2)), np.zeros(3), r"`b` must have shape \(2,\). Got \(3,"),
    ],
)
def test_affine_shapes_that_do_not_fit(x, W, b, message):
    with pytest.raises(ValueError, match=message):
        F.affine_forward(x, W, b)


def test_affine_backward_refuses_another_batch():
    with pytest.raises(ValueError, match=r"`dout` must have shape \(2, 3\). Got \(1, 3\)."):
        F.affine_backward(np.zeros((1, 3)), np.zeros((2, 4)), np.zeros((4, 3)))
    with pytest.raises(TypeError, match="`dout` must be an array of real numbers"):
        F.affine_backward("dout", np.zeros((2, 4)), np.zeros((4, 3)))


def test_delta_is_one_of_the_dtype():
    scores = np.array([[200, -200]], np.float32)
    loss, y = F.softmax_cross_entropy(scores, [1], 1e-50)  # 0 in float32
    assert loss == 400
    np.testing.assert_array_equal(F.softmax_cross_entropy_backward(y, [1], 1e-50), [[1, -1]])
    for function in (F.softmax_cross_entropy, F.softmax_cross_entropy_backward):
        with pytest.raises(ValueError, match=r"`delta` must be a finite number in float32\. Got"):
            function(y, [1], 1e300)


@pytest.mark.parametrize("dtypes", ["ff", "fd", "dd"])
def test_samples_with_many_zeros(dtypes):
    rng = np.random.default_rng(0)
    x = (rng.random((40, 600)) * (rng.random((40, 600)) < 0.15)).astype(dtypes[0])
    W, b = (rng.standard_normal(n).astype(dtypes[1]) for n in ((600, 7), 7))
    rounding = {"rtol": 2e-4, "atol": 2e-4} if dtypes[1] == "f" else {"rtol": 1e-12, "atol": 1e-12}
    out = F.affine_forward(x, W, b)
    assert out.dtype == dtypes[1]
    np.testing.assert_allclose(out, np.float64(x) @ W + b, **rounding)


def test_zeros_are_not_left_out_where_that_shows():
    x = np.zeros((40, 600))
    W, b = np.ones((600, 7)), np.zeros(7)
    for value in (np.nan, np.inf):
        W[3, 2] = value
        np.testing.assert_array_equal(
            np.isnan(F.affine_forward(x, W, b)), [[j == 2 for j in range(7)]] * 40
        )
