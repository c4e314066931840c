"""The functions of *Deep Learning from Scratch*, chapters 3 to 5, compiled.

All functions share these conventions; a docstring says what is particular to its function.

- Arguments are numbers, lists and arrays of any real dtype and memory layout. They are never
  changed.
- The result is float32 if all arrays but the targets are float32, else float64; without dimensions
  it is a NumPy number. NaN propagates, and no input raises an overflow warning.
- Targets are integer labels of shape (N,) or (N, 1), or one-hot or soft targets of the shape of the
  scores; one row of scores, of shape (C,), is a batch of one.
- `TypeError` is raised for what holds no real numbers, and for labels that are no integers;
  `ValueError` for shapes that do not fit together, an empty batch, a label out of range, and a
  negative `delta`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastgrad.kernels import activations, affine, losses
from fastgrad.runtime import threads
from fastgrad.runtime.programs import run
from fastgrad.validation import (
    ZERO,
    FloatArray,
    IntArray,
    real_array,
    real_number,
    scores_and_targets,
)

__all__ = [
    "affine_backward",
    "affine_forward",
    "cross_entropy_error",
    "identity_function",
    "mean_squared_error",
    "relu",
    "relu_grad",
    "sigmoid",
    "sigmoid_grad",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "step_function",
    "sum_squared_error",
]

#: Added to probabilities under a logarithm; the book's number.
DELTA = 1e-7

#: Values of an activation or a softmax that are worth a second thread.
_PARALLEL_VALUES = 32_768

#: Up to so many numbers NumPy's maximum takes less time than the call of a kernel.
_FEW = 2_000

_T = TypeVar("_T")


def identity_function(x: _T) -> _T:
    """Return `x` itself.

    Parameters
    ----------
    x : object

    Returns
    -------
    object
        The same object.

    Examples
    --------
    >>> identity_function(3.0)
    3.0
    """
    return x


def step_function(x: Any) -> Any:
    """Compute the step function: 1 where `x` is above zero, else 0.

    Parameters
    ----------
    x : array_like, any shape

    Returns
    -------
    ndarray of int, shape of x
        A NumPy integer for a single number.

    Examples
    --------
    >>> step_function([-1.0, 0.0, 2.0])
    array([0, 0, 1])
    """
    array = real_array(x, "x", layout="K")
    return _scalar_or_array(np.greater(array, ZERO[array.dtype.char]).astype(np.int_))


def sigmoid(x: Any) -> Any:
    r"""Compute the sigmoid function.

    Parameters
    ----------
    x : array_like, any shape

    Returns
    -------
    ndarray, shape of x

    Notes
    -----
    :math:`\sigma(x) = 1 / (1 + \mathrm{e}^{-x})`, section 3.2.4 of the book. For negative x it is
    computed as :math:`\mathrm{e}^x / (1 + \mathrm{e}^x)`, so nothing overflows; the book's code
    warns below -709. Integers are converted first; in the book's code the negation of an unsigned
    integer wraps around.

    Examples
    --------
    >>> sigmoid([-1000.0, 0.0, 1.0])
    array([0.        , 0.5       , 0.73105858])
    """
    return _activation(activations.SIGMOID, x)


def sigmoid_grad(x: Any) -> Any:
    r"""Compute the derivative of the sigmoid function.

    Parameters
    ----------
    x : array_like, any shape

    Returns
    -------
    ndarray, shape of x

    Notes
    -----
    :math:`\sigma'(x) = \sigma(x)(1 - \sigma(x))`, section 5.5.2 of the book, computed as
    :math:`\mathrm{e}^{-|x|} / (1 + \mathrm{e}^{-|x|})^2`, which keeps its digits for large x.

    Examples
    --------
    >>> float(sigmoid_grad(0.0))
    0.25
    """
    return _activation(activations.SIGMOID_GRAD, x)


def relu(x: Any) -> Any:
    """Compute the rectified linear unit: `x` where it is above zero, else 0.

    Parameters
    ----------
    x : array_like, any shape

    Returns
    -------
    ndarray, shape of x

    Examples
    --------
    >>> relu([-1.0, 0.0, 2.0])
    array([0., 0., 2.])
    """
    array = real_array(x, "x")
    if array.size <= _FEW:
        return np.maximum(array, ZERO[array.dtype.char])
    return _activation(activations.RELU, array)


def relu_grad(x: Any) -> Any:
    """Compute the derivative of the rectified linear unit.

    Parameters
    ----------
    x : array_like, any shape

    Returns
    -------
    ndarray, shape of x
        1 where `x` is above zero, else 0.

    Notes
    -----
    At 0, where the function has no derivative, this returns 0 as the layer `Relu` does. The book's
    function returns 1 there, against its own layer.

    Examples
    --------
    >>> relu_grad([-1.0, 0.0, 2.0])
    array([0., 0., 1.])
    """
    return _activation(activations.RELU_GRAD, x)


def softmax(x: Any) -> Any:
    r"""Compute the softmax function over the last axis.

    Parameters
    ----------
    x : array_like, shape (..., C)
        Scores.

    Returns
    -------
    ndarray, shape (..., C)
        Probabilities.

    Notes
    -----
    :math:`y_k = \mathrm{e}^{x_k - m} / \sum_j \mathrm{e}^{x_j - m}` with :math:`m = \max_j x_j`,
    which keeps it from overflowing; section 3.5.2 of the book.

    Examples
    --------
    >>> softmax([0.3, 2.9, 4.0])
    array([0.01821127, 0.24519181, 0.73659691])
    """
    array = real_array(x, "x")
    y = np.empty(array.shape, array.dtype)
    if array.size:
        rows = (-1, array.shape[-1] if array.ndim else 1)
        _softmax_into(array.reshape(rows), y.reshape(rows))
    return _scalar_or_array(y)


def sum_squared_error(y: Any, t: Any) -> Any:
    r"""Compute half the sum of squared errors.

    Parameters
    ----------
    y : array_like, any shape
        What the network says.
    t : array_like, shape of y
        What it should say.

    Returns
    -------
    float

    Notes
    -----
    :math:`\frac12 \sum_k (y_k - t_k)^2`, section 4.2.1 of the book; summed over a batch, not
    averaged. `mean_squared_error` is the same function under the name of the book's first edition.

    Examples
    --------
    >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
    >>> t = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    >>> round(float(sum_squared_error(y, t)), 12)
    0.0975
    """
    y, t = _same_dtype(real_array(y, "y"), real_array(t, "t"))
    if y.shape != t.shape:
        raise ValueError(f"`t` must have the shape of `y`, {y.shape}. Got {t.shape}.")
    return y.dtype.type(losses.squared_error(y.reshape(-1), t.reshape(-1)))


mean_squared_error = sum_squared_error


def cross_entropy_error(y: Any, t: Any) -> Any:
    r"""Compute the mean cross entropy of probabilities.

    Parameters
    ----------
    y : array_like, shape (N, C) or (C,)
        Probabilities.
    t : array_like
        Targets.

    Returns
    -------
    float

    Notes
    -----
    :math:`-\frac1N \sum_n \sum_k t_{nk} \log(y_{nk} + 10^{-7})`, section 4.2.4 of the book. Because
    of the small number under the logarithm a perfect prediction has a loss slightly below zero.
    Other than in the book's code, soft targets are used as they are, not turned into labels, and
    labels of shape (N, 1) are labels.

    Examples
    --------
    >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
    >>> round(float(cross_entropy_error(y, 2)), 12)
    0.510825457099
    """
    y, labels, soft = scores_and_targets(y, "y", t)
    return y.dtype.type(losses.cross_entropy(y, y, labels, soft, DELTA))


def affine_forward(x: Any, W: Any, b: Any) -> FloatArray:
    """Compute the affine map ``x @ W + b``.

    Parameters
    ----------
    x : array_like, shape (N, D) or (D,)
        Samples. Of an array with more dimensions, all but the first are taken as one.
    W : array_like, shape (D, H)
    b : array_like, shape (H,)

    Returns
    -------
    ndarray, shape (N, H) or (H,)

    Examples
    --------
    >>> affine_forward([[1.0, 2.0]], [[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]], [0.5, 0.5, 0.5])
    array([[1.5, 2.5, 8.5]])
    """
    x, W, b = real_array(x, "x"), real_array(W, "W"), real_array(b, "b")
    if not x.dtype is W.dtype is b.dtype:
        x, W, b = _same_dtype(x, W, b)
    rows = _flattened(x, W)
    n_outputs = W.shape[1]
    if b.shape != (n_outputs,):
        raise ValueError(f"`b` must have shape ({n_outputs},). Got {b.shape}.")
    if rows.shape[0] == 1:  # a vector times a matrix, where BLAS has nothing to arrange
        product: FloatArray = rows.dot(W)
        product += b
        return product if x.ndim > 1 else product[0]
    out = np.empty((rows.shape[0], n_outputs), x.dtype)
    chunks = threads.chunks(out.size * W.shape[0], affine.PARALLEL_WORK)
    if chunks == 1:
        affine.affine_forward(rows, W, b, out, 0, 1)
    else:
        run(affine.affine_forward, chunks, rows, W, b, out)
    return out if x.ndim > 1 else out[0]


def affine_backward(dout: Any, x: Any, W: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the gradients of the affine map ``x @ W + b``.

    Parameters
    ----------
    dout : array_like, shape (N, H) or (H,)
        Gradient of the loss with respect to the result of the map.
    x : array_like, shape (N, D) or (D,)
        Samples, as `affine_forward` takes them.
    W : array_like, shape (D, H)

    Returns
    -------
    dx : ndarray, shape of x
        ``dout @ W.T``.
    dW : ndarray, shape (D, H)
        ``x.T @ dout``.
    db : ndarray, shape (H,)
        The sum of `dout` over samples.

    Notes
    -----
    Section 5.6.2 of the book.

    Examples
    --------
    >>> dx, dW, db = affine_backward([[1.0, 2.0]], [[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
    >>> dx, dW, db
    (array([[1., 2.]]), array([[3., 6.], [4., 8.]]), array([1., 2.]))
    """
    dout, x, W = real_array(dout, "dout"), real_array(x, "x"), real_array(W, "W")
    if not dout.dtype is x.dtype is W.dtype:
        dout, x, W = _same_dtype(dout, x, W)
    rows = _flattened(x, W)
    n_outputs = W.shape[1]
    expected = (rows.shape[0], n_outputs) if x.ndim > 1 else (n_outputs,)
    if dout.shape != expected:
        raise ValueError(f"`dout` must have shape {expected}. Got {dout.shape}.")
    dout = dout.reshape(rows.shape[0], n_outputs)
    dx, dW, db = np.empty_like(rows), np.empty_like(W), np.empty(n_outputs, W.dtype)
    chunks = threads.chunks(dout.size * W.shape[0], affine.PARALLEL_WORK)
    if chunks == 1:
        affine.affine_backward(dout, rows, W, dx, dW, db, 0, 1)
    else:
        run(affine.affine_backward, chunks, dout, rows, W, dx, dW, db)
    return dx.reshape(x.shape), dW, db


def softmax_cross_entropy(a: Any, t: Any, delta: float = DELTA) -> tuple[Any, FloatArray]:
    r"""Compute the mean cross entropy of the softmax of scores.

    Parameters
    ----------
    a : array_like, shape (N, C) or (C,)
        Scores.
    t : array_like
        Targets.
    delta : float, optional
        Added to probabilities under the logarithm. 0 gives the plain loss, computed from the scores
        so that it is finite where a probability vanishes.

    Returns
    -------
    loss : float
    y : ndarray, shape of a
        Probabilities.

    Notes
    -----
    :math:`-\frac1N \sum_n \sum_k t_{nk} \log(y_{nk} + \delta)` with y = `softmax` (a), section
    5.6.3 of the book.

    Examples
    --------
    >>> loss, y = softmax_cross_entropy([[0.0, 0.0], [1000.0, 0.0]], [0, 1], delta=0)
    >>> round(float(loss), 6), y.tolist()
    (500.346574, [[0.5, 0.5], [1.0, 0.0]])
    """
    scores, labels, soft = scores_and_targets(a, "a", t)
    if delta is not DELTA:
        delta = real_number(delta, "delta", minimum=0, dtype=scores.dtype)
    loss, y = _softmax_cross_entropy(scores, labels, soft, delta)
    return loss, y.reshape(np.shape(a))


def softmax_cross_entropy_backward(y: Any, t: Any, delta: float = DELTA) -> FloatArray:
    r"""Compute the gradient of `softmax_cross_entropy` with respect to the scores.

    Parameters
    ----------
    y : array_like, shape (N, C) or (C,)
        The probabilities that `softmax_cross_entropy` returned.
    t : array_like
        The targets that it was given.
    delta : float, optional
        The delta that it was given.

    Returns
    -------
    ndarray, shape of y

    Notes
    -----
    The exact derivative of the loss, delta included, for every kind of target:
    :math:`(y_k \sum_m t_m q_m - t_k q_k) / N` with :math:`q_k = y_k / (y_k + \delta)`. With delta
    0 and targets that sum to one this is the book's :math:`(y - t) / N` (appendix A).

    Examples
    --------
    >>> softmax_cross_entropy_backward([[0.25, 0.75]], [1], delta=0)
    array([[ 0.25, -0.25]])
    """
    rows, labels, soft = scores_and_targets(y, "y", t)
    if delta is not DELTA:
        delta = real_number(delta, "delta", minimum=0, dtype=rows.dtype)
    da = np.empty(rows.shape, rows.dtype)
    losses.logit_gradients(rows, labels, soft, delta, 1 / len(rows), da, 0, len(rows))
    return da if rows is y else da.reshape(np.shape(y))


def _activation(which: int, x: Any) -> Any:
    """Map an activation function of the kernels over an array of any shape."""
    array = real_array(x, "x")
    out = np.empty(array.shape, array.dtype)
    chunks = threads.chunks(array.size, _PARALLEL_VALUES)
    if chunks == 1:
        activations.activate(which, array.reshape(-1), out.reshape(-1), 0, 1)
    else:
        run(activations.activate, chunks, which, array.reshape(-1), out.reshape(-1))
    return _scalar_or_array(out)


def _softmax_into(a: FloatArray, y: FloatArray) -> None:
    """Compute the softmax of the rows of a 2-D array with at least one column."""
    chunks = threads.chunks(a.size, _PARALLEL_VALUES)
    if chunks == 1:
        losses.softmax(a, y, 0, 1)
    else:
        run(losses.softmax, chunks, a, y)


def _softmax_cross_entropy(
    a: FloatArray, labels: IntArray, soft: FloatArray, delta: float
) -> tuple[Any, FloatArray]:
    """Compute loss and probabilities of checked arguments."""
    y = np.empty(a.shape, a.dtype)
    _softmax_into(a, y)
    return a.dtype.type(losses.cross_entropy(a, y, labels, soft, delta)), y


def _flattened(x: FloatArray, W: FloatArray) -> FloatArray:
    """Return samples as rows that fit the matrix `W`."""
    if x.ndim == 2 == W.ndim and x.shape[1] == W.shape[0]:
        return x
    if W.ndim != 2:
        raise ValueError(f"`W` must have shape (D, H). Got {W.shape}.")
    n_inputs = W.shape[0]
    if x.ndim == 1 and x.shape[0] == n_inputs:
        return x[None]
    if x.ndim > 2 and int(np.prod(x.shape[1:])) == n_inputs:
        return x.reshape(x.shape[0], n_inputs)
    raise ValueError(f"`x` must have shape (N, {n_inputs}) or ({n_inputs},). Got {x.shape}.")


def _same_dtype(*arrays: FloatArray) -> tuple[FloatArray, ...]:
    """Convert arrays to float64 unless all are float32."""
    dtype = arrays[0].dtype
    for array in arrays:
        if array.dtype != dtype:
            break
    else:
        return arrays
    return tuple(array.astype(np.float64, copy=False) for array in arrays)


def _scalar_or_array(array: NDArray[Any]) -> Any:
    """Return the number in an array without dimensions, any other array as it is."""
    return array if array.ndim else array[()]
