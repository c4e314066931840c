"""Convolution and max pooling: the functions and layers of chapter 7, compiled.

All functions share these conventions; a docstring says what is particular to its function.

- Images have shape (N, C, H, W): samples, channels, rows, columns.
- `stride` is how many pixels a filter or a window moves from one position to the next, `pad` how
  many rows and columns of zeros surround an image. A filter of FH rows then has
  OH = (H + 2 pad - FH) // stride + 1 positions from top to bottom, and OW likewise across.
- float32 and float16 arrays are computed in float32; with an array of any other dtype among the
  arguments it is float64. NaN propagates. Arguments are never changed.
- `TypeError` is raised if an array does not hold real numbers (`arg_max`: integers), or a size, a
  stride or a padding is not an integer; `ValueError` if shapes do not fit together, a filter or a
  window is larger than a padded image, or a number is out of range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad.kernels import convolution as kernels
from fastgrad.kernels import pooling
from fastgrad.nn.layers import Layer
from fastgrad.runtime import threads
from fastgrad.runtime.programs import run
from fastgrad.validation import FloatArray, real_array, require_shape, whole_number

__all__ = [
    "Convolution",
    "Pooling",
    "col2im",
    "convolution_backward",
    "convolution_forward",
    "im2col",
    "max_pooling_backward",
    "max_pooling_forward",
]

#: Multiplications of a convolution, and windows of a pooling, that are worth a second thread.
_PARALLEL_WORK, _PARALLEL_WINDOWS = 250_000, 20_000

_IMAGES = ("N", "C", "H", "W")
#: For `forward`: no pooling follows.
NO_WINDOW = np.array([0, 0, 1])
_NOWHERE = np.empty((0, 0, 0, 0), np.int32)


def convolution_forward(x: Any, W: Any, b: Any, stride: int = 1, pad: int = 0) -> FloatArray:
    r"""Compute the convolution of images with filters.

    Parameters
    ----------
    x : array_like, shape (N, C, H, W)
        Images.
    W : array_like, shape (F, C, FH, FW)
        Filters.
    b : array_like, shape (F,), or a number
        Biases.
    stride, pad : int, optional

    Returns
    -------
    ndarray, shape (N, F, OH, OW)

    Notes
    -----
    :math:`y_{nfpq} = b_f + \sum_{cij} W_{fcij} x_{n,c,\,sp+i,\,sq+j}` with stride s, and x padded;
    sections 7.2 and 7.4 of the book. The book's ``im2col`` copies the whole batch for it; here it
    is a few samples' worth at a time.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> convolution_forward(x, [[[[1.0, 0.0], [0.0, -1.0]]]], [0.5], stride=2)
    array([[[[-4.5, -4.5],
             [-4.5, -4.5]]]])
    """
    x, W, b = checked_arrays(x, W, b)
    return forward(x, W, b, *_stride_and_pad(stride, pad))[0]


def convolution_backward(
    dout: Any, x: Any, W: Any, stride: int = 1, pad: int = 0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Compute the gradients of `convolution_forward`.

    Parameters
    ----------
    dout : array_like, shape (N, F, OH, OW)
        Gradient of the loss with respect to the result of the convolution.
    x : array_like, shape (N, C, H, W)
    W : array_like, shape (F, C, FH, FW)
    stride, pad : int, optional
        What `convolution_forward` was given.

    Returns
    -------
    dx : ndarray, shape of x
    dW : ndarray, shape of W
    db : ndarray, shape (F,)
        Gradients with respect to the arguments.

    Notes
    -----
    With y and s as in `convolution_forward`:
    :math:`\partial L/\partial W_{fcij} = \sum_{npq} \partial L/\partial y_{nfpq}\,
    x_{n,c,\,sp+i,\,sq+j}`, and :math:`\partial L/\partial x` gets
    :math:`W_{fcij}\, \partial L/\partial y_{nfpq}` where x stands in that sum.

    Examples
    --------
    >>> x = np.arange(4.0).reshape(1, 1, 2, 2)
    >>> dx, dW, db = convolution_backward([[[[1.0, 2.0]]]], x, [[[[3.0], [4.0]]]])
    >>> dx.tolist(), dW.tolist(), db
    ([[[[3.0, 6.0], [4.0, 8.0]]]], [[[[2.0], [8.0]]]], array([3.]))
    """
    dtype = _dtype(dout, x, W)
    x, W = _images_and_filters(x, W, dtype)
    stride, pad = _stride_and_pad(stride, pad)
    shape = (len(x), len(W), *_output_size(x.shape[2:], W.shape[2:], stride, pad, "`W`"))
    dout = real_array(dout, "dout", dtype=dtype, shape=shape)
    dx, dW, db = backward(dout, x, W, stride, pad)
    assert dx is not None
    return dx, dW, db


def max_pooling_forward(
    x: Any, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0
) -> tuple[FloatArray, NDArray[np.int32]]:
    r"""Take the largest entry of each window of images.

    Parameters
    ----------
    x : array_like, shape (N, C, H, W)
        Images.
    pool_h, pool_w : int
        Height and width of a window.
    stride, pad : int, optional

    Returns
    -------
    out : ndarray, shape (N, C, OH, OW)
    arg_max : ndarray of int32, shape of out
        Where the first of the largest entries stands in its channel: row * W + column, or -1 in the
        padding. A NaN counts as the largest.

    Notes
    -----
    Section 7.3 of the book. Its class forgets `pad` in the size of the result.

    Examples
    --------
    >>> out, arg_max = max_pooling_forward(np.arange(16.0).reshape(1, 1, 4, 4), 2, 2)
    >>> out.tolist(), arg_max.tolist()
    ([[[[5.0, 7.0], [13.0, 15.0]]]], [[[[5, 7], [13, 15]]]])
    """
    x = real_array(x, "x", dtype=_dtype(x), shape=_IMAGES)
    window = _window(pool_h, pool_w, "pool")
    stride, pad = _stride_and_pad(stride, pad)
    rows, columns = _output_size(x.shape[2:], window, stride, pad, "the window")
    n, channels, _, width = x.shape
    padded = _padded(x, pad)
    out = np.empty((n * channels, rows * columns), x.dtype)
    arg_max = np.empty(out.shape, np.int32)
    run(
        pooling.max_pooling_forward,
        threads.chunks(out.size, _PARALLEL_WINDOWS),
        padded.reshape(n * channels, padded[0, 0].size if x.size else 0),
        padded.shape[3],
        np.array([*window, stride]),
        columns,
        out,
        arg_max,
    )
    if pad:
        row, column = np.divmod(arg_max, np.int32(padded.shape[3]))
        row, column = row - pad, column - pad
        inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < width)
        arg_max = np.where(inside, row * width + column, pooling.NOWHERE).astype(np.int32)
    shape = (n, channels, rows, columns)
    return out.reshape(shape), arg_max.reshape(shape)


def max_pooling_backward(dout: Any, arg_max: Any, x_shape: tuple[int, ...]) -> FloatArray:
    """Compute the gradient of `max_pooling_forward` with respect to the images.

    Parameters
    ----------
    dout : array_like, shape (N, C, OH, OW)
        Gradient of the loss with respect to the largest entries.
    arg_max : ndarray of int, shape of dout
        From `max_pooling_forward`.
    x_shape : tuple of int
        The shape (N, C, H, W) of the images.

    Returns
    -------
    ndarray, shape x_shape
        Each entry of `dout` has been added to the entry that was the largest.

    Examples
    --------
    >>> max_pooling_backward([[[[3.0]]]], np.array([[[[2]]]]), (1, 1, 2, 2))
    array([[[[0., 0.],
             [3., 0.]]]])
    """
    dout = real_array(dout, "dout", dtype=_dtype(dout), shape=_IMAGES)
    if len(x_shape) != 4 or tuple(x_shape[:2]) != dout.shape[:2]:
        raise ValueError(
            f"`x_shape` must begin with {dout.shape[:2]} and have 4 entries. Got {x_shape}."
        )
    arg_max = np.asarray(arg_max)
    if arg_max.dtype.kind not in "iu":
        raise TypeError(f"`arg_max` must hold integers. Got {arg_max.dtype}.")
    require_shape(arg_max, "arg_max", dout.shape)
    size = int(x_shape[2]) * int(x_shape[3])
    if arg_max.size and not -1 <= arg_max.min() <= arg_max.max() < size:
        raise ValueError(
            f"`arg_max` must hold numbers from -1 to {size - 1}. "
            f"Got {arg_max.min()} to {arg_max.max()}."
        )
    return _unpool(dout, np.ascontiguousarray(arg_max, np.int32), tuple(x_shape))


def im2col(
    input_data: Any, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> FloatArray:
    """Write what a filter meets at each position of images into a row.

    Parameters
    ----------
    input_data : array_like, shape (N, C, H, W)
    filter_h, filter_w : int
        Height and width of a filter.
    stride, pad : int, optional

    Returns
    -------
    ndarray, shape (N * OH * OW, C * filter_h * filter_w)

    Notes
    -----
    Section 7.4.3 of the book. `convolution_forward` itself does without it.

    Examples
    --------
    >>> im2col(np.arange(6.0).reshape(1, 1, 2, 3), 2, 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.]])
    """
    x = real_array(input_data, "input_data", dtype=_dtype(input_data), shape=_IMAGES)
    window = _window(filter_h, filter_w, "filter")
    stride, pad = _stride_and_pad(stride, pad)
    rows, columns = _output_size(x.shape[2:], window, stride, pad, "the filter", "input_data")
    padded = _padded(x, pad)
    seen = np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))
    seen = seen[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)
    return seen.reshape(len(x) * rows * columns, x.shape[1] * window[0] * window[1])


def col2im(
    col: Any,
    input_shape: tuple[int, int, int, int],
    filter_h: int,
    filter_w: int,
    stride: int = 1,
    pad: int = 0,
) -> FloatArray:
    """Add up rows as `im2col` writes them, each number where it was taken from.

    Parameters
    ----------
    col : array_like, shape (N * OH * OW, C * filter_h * filter_w)
    input_shape : tuple of int
        The shape (N, C, H, W) of the images.
    filter_h, filter_w, stride, pad : int
        What `im2col` was given.

    Returns
    -------
    ndarray, shape input_shape

    Examples
    --------
    >>> col2im([[1.0, 2.0], [3.0, 4.0]], (1, 1, 1, 3), 1, 2)
    array([[[[1., 5., 4.]]]])
    """
    n, channels, height, width = input_shape
    window = _window(filter_h, filter_w, "filter")
    stride, pad = _stride_and_pad(stride, pad)
    rows, columns = _output_size((height, width), window, stride, pad, "the filter", "input_shape")
    col = real_array(col, "col", dtype=_dtype(col))
    require_shape(col, "col", (n * rows * columns, channels * window[0] * window[1]))
    parts = col.reshape(n, rows, columns, channels, *window).transpose(0, 3, 4, 5, 1, 2)
    padded = np.zeros((n, channels, height + 2 * pad, width + 2 * pad), col.dtype)
    for i in range(window[0]):
        for j in range(window[1]):
            bottom, right = i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1
            padded[:, :, i:bottom:stride, j:right:stride] += parts[:, :, i, j]
    return padded[:, :, pad : pad + height, pad : pad + width]


class Convolution(Layer):
    """A convolution as a layer (section 7.4.4 of the book).

    Parameters
    ----------
    W : ndarray, shape (F, C, FH, FW)
        Filters.
    b : ndarray, shape (F,), or a number
        Biases.
    stride, pad : int, optional

    Attributes
    ----------
    W, b, stride, pad
        As given.
    dW, db : ndarray
        Of the shapes of W and (F,); None before a backward pass.
    x : ndarray, shape (N, C, H, W)
        The input of the last forward pass; None before it.

    Examples
    --------
    >>> layer = Convolution(np.ones((1, 1, 2, 2)), np.zeros(1))
    >>> layer.forward(np.arange(6.0).reshape(1, 1, 2, 3))
    array([[[[ 8., 12.]]]])
    >>> _ = layer.backward([[[[1.0, 1.0]]]])
    >>> layer.dW.tolist(), layer.db
    ([[[[1.0, 3.0], [7.0, 9.0]]]], array([2.]))
    """

    _shown = ("W", "b", "stride", "pad")

    def __init__(self, W: Any, b: Any, stride: int = 1, pad: int = 0) -> None:
        self.W = W
        self.b = b
        self.stride, self.pad = _stride_and_pad(stride, pad)
        self.x: Any = None
        self.dW: Any = None
        self.db: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return the convolution of images, as `convolution_forward` does.

        `x` has shape (N, C, H, W), the output (N, F, OH, OW).
        """
        out = convolution_forward(x, self.W, self.b, self.stride, self.pad)
        self.x = x
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Set `dW` and `db`, and return the gradient with respect to the images."""
        self._require_forward(self.x)
        dx, self.dW, self.db = convolution_backward(dout, self.x, self.W, self.stride, self.pad)
        return dx


class Pooling(Layer):
    """Max pooling as a layer (section 7.4.5 of the book).

    Parameters
    ----------
    pool_h, pool_w : int
        Height and width of a window.
    stride, pad : int, optional

    Attributes
    ----------
    pool_h, pool_w, stride, pad : int
    x : ndarray, shape (N, C, H, W)
        The input of the last forward pass; None before it.
    arg_max : ndarray of int32, shape (N, C, OH, OW)
        As `max_pooling_forward` returns it; None before the first forward pass.

    Examples
    --------
    >>> layer = Pooling(2, 2)
    >>> layer.forward(np.arange(16.0).reshape(1, 1, 4, 4)).tolist()
    [[[[5.0, 7.0], [13.0, 15.0]]]]
    >>> layer.backward(np.ones((1, 1, 2, 2)))[0, 0, 1]
    array([0., 1., 0., 1.])
    """

    _shown = ("pool_h", "pool_w", "stride", "pad")

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.pool_h, self.pool_w = _window(pool_h, pool_w, "pool")
        self.stride, self.pad = _stride_and_pad(stride, pad)
        self.x: Any = None
        self.arg_max: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return the largest entries, as `max_pooling_forward` does.

        `x` has shape (N, C, H, W), the output (N, C, OH, OW).
        """
        out, self.arg_max = max_pooling_forward(x, self.pool_h, self.pool_w, self.stride, self.pad)
        self.x = x
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the images."""
        self._require_forward(self.x)
        dout = real_array(dout, "dout", dtype=_dtype(dout), shape=self.arg_max.shape)
        return _unpool(dout, self.arg_max, np.shape(self.x))


def forward(
    x: FloatArray,
    W: FloatArray,
    b: FloatArray,
    stride: int,
    pad: int,
    rectify: bool = False,
    window: NDArray[np.int64] = NO_WINDOW,
) -> tuple[FloatArray, NDArray[np.int32]]:
    """Compute a convolution, and a ReLU and a max pooling of it if asked for, of checked arrays.

    `rectify` asks for the ReLU, `window` (height, width, stride) for the pooling.
    """
    rows, columns = _output_size(x.shape[2:], W.shape[2:], stride, pad, "`W`")
    work = len(x) * rows * columns * W.size
    if window[0]:
        rows, columns = ((np.array([rows, columns]) - window[:2]) // window[2] + 1).tolist()
    out = np.empty((len(x), len(W), rows, columns), x.dtype)
    arg_max = np.empty(out.shape, np.int32) if window[0] else _NOWHERE
    samples, filters = _parts(len(x), len(W), work)
    run(
        kernels.convolution_forward, samples * filters, x, W, b, stride, pad, int(rectify),
        window, out, arg_max, filters,
    )  # fmt: skip
    return out, arg_max


def backward(
    dout: FloatArray,
    x: FloatArray,
    W: FloatArray,
    stride: int,
    pad: int,
    rectify: bool = False,
    out: FloatArray | None = None,
    arg_max: NDArray[np.int32] = _NOWHERE,
    *,
    by_images: bool = True,
) -> tuple[FloatArray | None, FloatArray, FloatArray]:
    """Compute the gradients of `forward`; that by the images only if asked for, else None."""
    rows, columns = _output_size(x.shape[2:], W.shape[2:], stride, pad, "`W`")
    samples, filters = _parts(len(x), len(W), len(x) * rows * columns * W.size)
    dx = np.empty((filters, len(x) if by_images else 0, *x.shape[1:]), x.dtype)
    dW, db = np.zeros((samples, *W.shape), x.dtype), np.zeros((samples, len(W)), x.dtype)
    before = np.empty((0, 0, 0, 0), x.dtype) if out is None else out
    run(
        kernels.convolution_backward, samples * filters, dout, x, W, stride, pad, int(rectify),
        before, arg_max, dx, dW, db, filters,
    )  # fmt: skip
    return _sum(dx) if by_images else None, _sum(dW), _sum(db)


def _parts(n_samples: int, n_filters: int, work: float) -> tuple[int, int]:
    """Return into how many parts the samples are divided, and, if they are few, the filters."""
    chunks = threads.chunks(work, _PARALLEL_WORK)
    samples = max(1, min(n_samples, chunks))
    return samples, max(1, min(n_filters, chunks // samples))


def _sum(parts: FloatArray) -> FloatArray:
    """Add up what threads have computed."""
    total: FloatArray = parts[0] if len(parts) == 1 else parts.sum(axis=0)
    return total


def _unpool(dout: FloatArray, arg_max: NDArray[np.int32], shape: tuple[int, ...]) -> FloatArray:
    dx = np.zeros(shape, dout.dtype)
    n_planes, n_windows = shape[0] * shape[1], dout.shape[2] * dout.shape[3]
    run(
        pooling.max_pooling_backward,
        threads.chunks(dout.size, _PARALLEL_WINDOWS),
        dout.reshape(n_planes, n_windows),
        arg_max.reshape(n_planes, n_windows),
        dx.reshape(n_planes, shape[2] * shape[3]),
    )
    return dx


def _dtype(*values: Any) -> type[np.floating[Any]]:
    """Return the dtype to compute in."""
    kinds = [getattr(value, "dtype", None) for value in values]
    return np.float32 if all(kind in (np.float16, np.float32) for kind in kinds) else np.float64


def _images_and_filters(x: Any, W: Any, dtype: Any) -> tuple[FloatArray, FloatArray]:
    W = real_array(W, "W", dtype=dtype, shape=("F", "C", "FH", "FW"))
    if 0 in W.shape:
        raise ValueError(f"`W` must hold at least one filter of one pixel. Got {W.shape}.")
    return real_array(x, "x", dtype=dtype, shape=("N", W.shape[1], "H", "W")), W


def checked_arrays(x: Any, W: Any, b: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return images, filters and biases as `forward` takes them, or raise as the functions do."""
    b = real_array(b, "b") if not hasattr(b, "dtype") else b
    dtype = _dtype(x, W, *([b] if np.ndim(b) else []))
    x, W = _images_and_filters(x, W, dtype)
    b = real_array(b, "b", dtype=dtype)
    if b.ndim == 0:
        b = np.full(len(W), b)
    require_shape(b, "b", (len(W),))
    return x, W, b


def _padded(x: FloatArray, pad: int) -> FloatArray:
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) if pad else x


def _window(height: Any, width: Any, name: str) -> tuple[int, int]:
    return (
        whole_number(height, f"{name}_h", minimum=1),
        whole_number(width, f"{name}_w", minimum=1),
    )


def _stride_and_pad(stride: Any, pad: Any) -> tuple[int, int]:
    return whole_number(stride, "stride", minimum=1), whole_number(pad, "pad", minimum=0)


def _output_size(
    size: tuple[int, ...],
    window: tuple[int, ...],
    stride: int,
    pad: int,
    name: str,
    images: str = "x",
) -> tuple[int, int]:
    """Return how many positions a window has, down and across."""
    height, width = size[0] + 2 * pad, size[1] + 2 * pad
    if window[0] > height or window[1] > width:
        raise ValueError(
            f"{name} must fit into padded images of `{images}`, ({height}, {width}). "
            f"Got {tuple(window)}."
        )
    return (height - window[0]) // stride + 1, (width - window[1]) // stride + 1
