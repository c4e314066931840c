"""Functions that the book's modules have beside those of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad import functions, gradients
from fastgrad.arrays import FloatArray, real_array

__all__ = [
    "conv_output_size",
    "init_mnist",
    "numerical_gradient_2d",
    "shuffle_dataset",
    "smooth_curve",
    "softmax_loss",
]


def softmax_loss(X: Any, t: Any) -> Any:
    """Compute the mean cross entropy of ``softmax(X)`` against targets.

    Parameters
    ----------
    X : array_like, shape (N, C) or (C,)
        Scores.
    t : array_like
        Labels, or one-hot or soft targets.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> round(float(softmax_loss([0.0, 0.0], [0, 1])), 6)
    0.693147
    """
    return functions.cross_entropy_error(functions.softmax(X), t)


def numerical_gradient_2d(f: Callable[..., Any], X: Any) -> FloatArray:
    """Compute the gradient of f at each row of X, or at X if that is a single row.

    Parameters
    ----------
    f : callable
        Takes a row, returns a number.
    X : array_like, shape (N, D) or (D,)
        Nudged in place and restored, as by `fastgrad.numerical_gradient`.

    Returns
    -------
    ndarray, shape of X

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or f returns no number.

    Notes
    -----
    ``numerical_gradient_2d`` of the book's ``common.gradient``.

    Examples
    --------
    >>> numerical_gradient_2d(lambda x: np.sum(x**2), np.array([[1.0, 2.0], [3.0, 4.0]])).round(8)
    array([[2., 4.],
           [6., 8.]])
    """
    if np.ndim(X) < 2:
        gradient: FloatArray = gradients.numerical_gradient(f, X)
        return gradient
    X = real_array(X, "X", layout="K")
    return np.array([gradients.numerical_gradient(f, row) for row in X], X.dtype).reshape(X.shape)


def smooth_curve(x: Any) -> FloatArray:
    """Smooth a curve with a Kaiser window of 11 points and beta 2.

    Parameters
    ----------
    x : array_like, shape (N,)
        Such as the losses of a training run; at least 11 values, reflected at both ends.

    Returns
    -------
    ndarray, shape (N,)

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.
    ValueError
        If it is not one-dimensional, or too short.

    Examples
    --------
    >>> smooth_curve(np.ones(12)).round(12)
    array([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    curve, size = real_array(x, "x"), 11
    if curve.ndim != 1 or curve.size < size:
        raise ValueError(f"`x` must have shape (N,), N at least {size}. Got {curve.shape}.")
    window = np.kaiser(size, 2)
    # As the book does it: mirrored about the first value, and after the last one.
    half = size // 2
    padded = np.r_[curve[half:0:-1], curve, curve[-1 : -half - 1 : -1]]
    smooth: FloatArray = np.convolve(window / window.sum(), padded, mode="valid")
    return smooth


def shuffle_dataset(x: Any, t: Any) -> tuple[Any, Any]:
    """Return samples and targets in one random order, from NumPy's global legacy generator.

    Parameters
    ----------
    x : ndarray, shape (N, ...)
    t : ndarray, shape (N, ...)

    Returns
    -------
    x, t : ndarray
        Copies.

    Raises
    ------
    ValueError
        If there are not as many targets as samples.

    Examples
    --------
    >>> x, t = shuffle_dataset(np.arange(5), np.arange(5))
    >>> bool((x == t).all()), sorted(x.tolist())
    (True, [0, 1, 2, 3, 4])
    """
    x, t = np.asarray(x), np.asarray(t)
    if len(x) != len(t):
        raise ValueError(f"`t` must have as many entries as `x`, {len(x)}. Got {len(t)}.")
    order = np.random.permutation(len(x))  # noqa: NPY002 - the book's own numbers
    return x[order], t[order]


def init_mnist() -> None:
    """Do nothing: in the book this downloads MNIST, which is part of fastgrad."""


def conv_output_size(input_size: int, filter_size: int, stride: int = 1, pad: int = 0) -> float:
    """Return how many positions a filter has along an axis, by the book's formula.

    Parameters
    ----------
    input_size, filter_size : int
    stride, pad : int, optional

    Returns
    -------
    float
        Not a whole number where filters do not end at the edge.

    Examples
    --------
    >>> conv_output_size(28, 5)
    24.0
    """
    return (input_size + 2 * pad - filter_size) / stride + 1
