"""Convolution and max pooling against plain loops: functions, layers and kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad
from fastgrad import Convolution, Pooling
from fastgrad.nn import convolution

ROUNDING = {np.float64: 1e-12, np.float32: 1e-5}


def padded(x, pad):
    return np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))


def positions(x, window, stride, pad):
    """Yield (row, column, top, left) for every place of a window."""
    rows = (x.shape[2] + 2 * pad - window[0]) // stride + 1
    columns = (x.shape[3] + 2 * pad - window[1]) // stride + 1
    return [(p, q, p * stride, q * stride) for p in range(rows) for q in range(columns)]


def convolve(x, W, b, stride, pad):
    """Compute a convolution and the sums of its terms' magnitudes, position by position."""
    places, image = positions(x, W.shape[2:], stride, pad), padded(x, pad)
    out = np.zeros((len(x), len(W), places[-1][0] + 1, places[-1][1] + 1))
    scale = np.zeros_like(out)
    for p, q, top, left in places:
        seen = image[:, None, :, top : top + W.shape[2], left : left + W.shape[3]]
        out[:, :, p, q] = (seen * W).sum((2, 3, 4)) + b
        scale[:, :, p, q] = np.abs(seen * W).sum((2, 3, 4)) + np.abs(b)
    return out, scale


def convolve_backward(dout, x, W, stride, pad):
    """Compute the gradients of a convolution position by position."""
    image, W = padded(x, pad), np.asarray(W, np.float64)
    dimage, dW = np.zeros_like(image), np.zeros_like(W)
    for p, q, top, left in positions(x, W.shape[2:], stride, pad):
        for n in range(len(x)):
            seen = np.s_[n, :, top : top + W.shape[2], left : left + W.shape[3]]
            for f in range(len(W)):
                dW[f] += dout[n, f, p, q] * image[seen]
                dimage[seen] += dout[n, f, p, q] * W[f]
    height, width = x.shape[2:]
    dx = dimage[:, :, pad : pad + height, pad : pad + width]
    return dx, dW, np.asarray(dout, np.float64).sum((0, 2, 3))


def pool(x, window, stride, pad):
    """Return largest entries, and where NumPy's argmax finds them: row, column."""
    places = positions(x, window, stride, pad)
    out = np.zeros((*x.shape[:2], places[-1][0] + 1, places[-1][1] + 1))
    where = np.zeros((*out.shape, 2), int)
    for p, q, top, left in places:
        seen = padded(x, pad)[:, :, top : top + window[0], left : left + window[1]]
        seen = seen.reshape(*x.shape[:2], -1)
        at = seen.argmax(-1)
        out[:, :, p, q] = np.take_along_axis(seen, at[..., None], -1)[..., 0]
        where[:, :, p, q, 0] = top - pad + at // window[1]
        where[:, :, p, q, 1] = left - pad + at % window[1]
    return out, where


def arranged(array, layout):
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        return np.repeat(array, 2, -1)[..., ::2]
    if layout == "read-only":
        array.flags.writeable = False
    return array


@st.composite
def cases(draw):
    """Draw sizes, layouts and a seed for images and filters that fit."""
    pad, stride = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    window = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = tuple(draw(st.integers(max(1, w - 2 * pad), 9)) for w in window)
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 3)), *size
    layouts = st.sampled_from(["C", "F", "strided", "read-only"])
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    seed = draw(st.integers(0, 2**32 - 1))
    return shape, window, stride, pad, dtype, draw(layouts), draw(layouts), seed


@settings(max_examples=60)
@given(cases(), st.integers(1, 6))
def test_convolution_against_loops(case, n_filters):
    shape, window, stride, pad, dtype, *layouts, seed = case
    rng = np.random.default_rng(seed)
    x = arranged(rng.standard_normal(shape).astype(dtype), layouts[0])
    W = arranged(rng.standard_normal((n_filters, shape[1], *window)).astype(dtype), layouts[1])
    b = rng.standard_normal(n_filters).astype(dtype)
    out = fastgrad.convolution_forward(x, W, b, stride, pad)
    expected, scale = convolve(x, W, b, stride, pad)
    assert out.dtype == dtype
    assert np.all(np.abs(out - expected) <= ROUNDING[dtype] * scale)
    dout = rng.standard_normal(out.shape).astype(dtype)
    got = fastgrad.convolution_backward(dout, x, W, stride, pad)
    for one, other in zip(got, convolve_backward(dout, x, W, stride, pad), strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING[dtype] * dout.size)


@settings(max_examples=60)
@given(cases(), st.booleans())
def test_pooling_against_loops(case, has_nan):
    shape, window, stride, pad, dtype, *layouts, seed = case
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(dtype)  # with many equal ones
    if has_nan:
        x[rng.random(shape) < 0.2] = np.nan
    x = arranged(x, layouts[0])
    out, arg_max = fastgrad.max_pooling_forward(x, *window, stride, pad)
    expected, where = pool(x, window, stride, pad)
    np.testing.assert_array_equal(out, expected)
    row, column = where[..., 0], where[..., 1]
    inside = (row >= 0) & (row < shape[2]) & (column >= 0) & (column < shape[3])
    np.testing.assert_array_equal(arg_max, np.where(inside, row * shape[3] + column, -1))
    dout = arranged(rng.standard_normal(out.shape).astype(dtype), layouts[1])
    dx = np.zeros(shape)
    for n, c, p, q in np.argwhere(inside):
        dx[n, c, *where[n, c, p, q]] += dout[n, c, p, q]
    got = fastgrad.max_pooling_backward(dout, arg_max, shape)
    np.testing.assert_allclose(got, dx, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("window", [None, (2, 2, 2), (3, 2, 1)])
def test_relu_and_pooling_as_a_part_of_the_convolution(dtype, window):
    rng = np.random.default_rng(1)
    x, W, b = (rng.standard_normal(s).astype(dtype) for s in ((5, 2, 9, 8), (7, 2, 3, 3), 7))
    x[3, 0, 4, 4] = np.nan
    chosen = convolution.NO_WINDOW if window is None else np.array(window)
    out, arg_max = convolution.forward(x, W, b, 1, 1, True, chosen)
    layers = [Convolution(W, b, 1, 1), fastgrad.Relu()]
    layers += [] if window is None else [Pooling(*window)]
    expected = x
    for layer in layers:
        expected = layer.forward(expected)
    np.testing.assert_array_equal(out, expected)
    dout = rng.standard_normal(out.shape).astype(dtype)
    got = convolution.backward(dout, x, W, 1, 1, True, out, arg_max)
    for layer in reversed(layers):
        dout = layer.backward(dout)
    for one, other in zip(got, (dout, layers[0].dW, layers[0].db), strict=True):
        np.testing.assert_allclose(one, other, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * 100)
    assert (
        convolution.backward(expected, x, W, 1, 1, True, out, arg_max, by_images=False)[0] is None
    )


@pytest.mark.parametrize("n_samples", [1, 2, 3, 7])
@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_parts_for_threads_do_not_matter(monkeypatch, n_samples, chunks):
    rng = np.random.default_rng(2)
    x, W, b = (
        rng.standard_normal((n_samples, 2, 6, 6)),
        rng.standard_normal((3, 2, 3, 3)),
        [1, 2, 3],
    )
    out = fastgrad.convolution_forward(x, W, b)
    dout = rng.standard_normal(out.shape)
    expected = fastgrad.convolution_backward(dout, x, W)
    monkeypatch.setattr(convolution.threads, "chunks", lambda work, enough: chunks)
    np.testing.assert_allclose(fastgrad.convolution_forward(x, W, b), out, rtol=1e-14)
    for one, other in zip(fastgrad.convolution_backward(dout, x, W), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(cases())
def test_im2col_and_col2im(case):
    shape, window, stride, pad, dtype, layout, _, seed = case
    rng = np.random.default_rng(seed)
    x = arranged(rng.standard_normal(shape).astype(dtype), layout)
    col = fastgrad.im2col(x, *window, stride, pad)
    rows = [
        padded(x, pad)[n, :, top : top + window[0], left : left + window[1]].ravel()
        for n in range(shape[0])
        for _, _, top, left in positions(x, window, stride, pad)
    ]
    np.testing.assert_array_equal(col, rows)
    # col2im is the transpose of im2col: <col2im(c), x> = <c, im2col(x)>.
    c = rng.standard_normal(col.shape)
    image = fastgrad.col2im(c, shape, *window, stride, pad)
    assert image.shape == shape
    np.testing.assert_allclose((image * x).sum(), (c * col).sum(), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_single_precision():
    rng = np.random.default_rng(4)
    x, W, b = (rng.standard_normal(s).astype(np.float16) for s in ((2, 1, 5, 5), (3, 1, 2, 2), 3))
    out = fastgrad.convolution_forward(x, W, b)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, convolve(x, W, b.astype(float), 1, 0)[0], rtol=1e-4, atol=1e-5)
    assert fastgrad.convolution_forward(x, W.astype(float), b).dtype == np.float64
    assert fastgrad.max_pooling_forward(x, 2, 2)[0].dtype == np.float32


def test_layers_keep_what_scripts_look_at():
    x = np.random.default_rng(5).standard_normal((2, 1, 6, 6))
    layer = Convolution(np.ones((1, 1, 3, 3)), 0)  # a number, as the book's apply_filter has it
    out = layer.forward(x)
    np.testing.assert_allclose(out, convolve(x, layer.W, 0, 1, 0)[0], rtol=1e-12)
    assert layer.x is x
    assert layer.dW is layer.db is None
    assert layer.backward(np.ones_like(out)).shape == x.shape
    assert layer.dW.shape == layer.W.shape
    np.testing.assert_allclose(layer.db, [out.size])
    pooled = Pooling(2, 2, pad=1)
    assert pooled.forward(x).shape == (2, 1, 4, 4)
    assert pooled.backward(np.ones((2, 1, 4, 4))).shape == x.shape
    empty = fastgrad.convolution_forward(np.empty((0, 1, 3, 3)), layer.W, 0)
    assert empty.shape == (0, 1, 1, 1)


IMAGES, FILTERS = np.zeros((2, 1, 4, 4)), np.zeros((3, 1, 2, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastgrad.convolution_forward(IMAGES[0], FILTERS, 0), ValueError, "`x` must have"),
        (lambda: fastgrad.convolution_forward(IMAGES, FILTERS[0], 0), ValueError, "`W` must have"),
        (lambda: fastgrad.convolution_forward(IMAGES, FILTERS, [1]), ValueError, "`b` must have"),
        (lambda: fastgrad.convolution_forward(IMAGES, FILTERS, 0, 0), ValueError, "`stride` must"),
        (lambda: fastgrad.convolution_forward(IMAGES, FILTERS, 0, 1, 0.5), TypeError, "`pad` must"),
        (
            lambda: fastgrad.convolution_forward(IMAGES, np.zeros((1, 1, 5, 2)), 0),
            ValueError,
            r"`W` must fit .* Got \(5, 2\)",
        ),
        (
            lambda: fastgrad.convolution_forward(IMAGES, np.zeros((1, 2, 2, 2)), 0),
            ValueError,
            r"`x` must have shape \(N, 2, H, W\)",
        ),
        (
            lambda: fastgrad.convolution_backward(IMAGES, IMAGES, FILTERS),
            ValueError,
            r"`dout` must have shape \(2, 3, 3, 3\)",
        ),
        (lambda: fastgrad.convolution_forward("x", FILTERS, 0), TypeError, "`x` must be"),
        (lambda: fastgrad.max_pooling_forward(IMAGES, 5, 1), ValueError, "the window must fit"),
        (lambda: fastgrad.max_pooling_forward(IMAGES, 0, 1), ValueError, "`pool_h` must be"),
        (
            lambda: fastgrad.max_pooling_backward(IMAGES, np.full((2, 1, 4, 4), 4), (2, 1, 2, 2)),
            ValueError,
            "`arg_max` must hold numbers from -1 to 3",
        ),
        (
            lambda: fastgrad.max_pooling_backward(IMAGES, IMAGES, (2, 1, 4, 4)),
            TypeError,
            "`arg_max` must hold integers",
        ),
        (
            lambda: fastgrad.max_pooling_backward(IMAGES, IMAGES, (3, 1, 4, 4)),
            ValueError,
            "`x_shape` must",
        ),
        (lambda: fastgrad.im2col(IMAGES, 2, 7), ValueError, "the filter must fit"),
        (lambda: fastgrad.col2im(np.zeros((3, 4)), (1, 1, 3, 3), 2, 2), ValueError, "`col` must"),
        (
            lambda: Convolution(FILTERS, 0).backward(IMAGES),
            RuntimeError,
            "Call Convolution.forward",
        ),
        (lambda: Pooling(2, 2).backward(IMAGES), RuntimeError, "Call Pooling.forward"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
