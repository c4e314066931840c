"""The book's functions by the book's own formulas, in NumPy, as its modules hand them on.

The library's functions of the same names are compiled and mend what the book's get wrong: overflow
warnings, soft targets, labels of shape (N, 1), the slope of ReLU at 0. A script of a reader's is to
print what it prints in plain Python, so here integers stay integers and warnings are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "conv_output_size",
    "cross_entropy_error",
    "download_mnist",
    "identity_function",
    "img_dim",
    "img_size",
    "init_mnist",
    "mean_squared_error",
    "relu",
    "relu_grad",
    "shuffle_dataset",
    "sigmoid",
    "sigmoid_grad",
    "smooth_curve",
    "softmax",
    "softmax_loss",
    "step_function",
    "sum_squared_error",
    "test_num",
    "train_num",
]

#: Images of MNIST, and their size.
train_num, test_num = 60_000, 10_000
img_dim, img_size = (1, 28, 28), 784


def identity_function(x: Any) -> Any:
    """Return `x` itself."""
    return x


def step_function(x: Any) -> Any:
    """Return 1 where `x` is above zero, else 0, as integers."""
    return np.array(x > 0, dtype=int)


def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def sigmoid_grad(x: Any) -> Any:
    """Compute the derivative of the sigmoid function."""
    y = sigmoid(x)
    return (1.0 - y) * y


def relu(x: Any) -> Any:
    """Return `x` where it is above zero, else 0."""
    return np.maximum(0, x)


def relu_grad(x: Any) -> Any:
    """Return 1 where `x` is at least zero, else 0, in the dtype of `x`."""
    grad = np.zeros_like(x)
    grad[x >= 0] = 1
    return grad


def softmax(x: Any) -> Any:
    """Compute the softmax function over the last axis."""
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def sum_squared_error(y: Any, t: Any) -> Any:
    """Compute half the sum of squared errors."""
    return 0.5 * np.sum((y - t) ** 2)


mean_squared_error = sum_squared_error


def cross_entropy_error(y: Any, t: Any) -> Any:
    """Compute the mean cross entropy of probabilities.

    Parameters
    ----------
    y : ndarray, shape (N, C) or (C,)
        Probabilities; one row is a batch of one.
    t : ndarray
        Labels (N,), or targets of the shape of y, of which only the largest counts.

    Returns
    -------
    float

    Notes
    -----
    Section 4.2.4 of the book.

    Examples
    --------
    >>> round(float(cross_entropy_error(np.array([0.1, 0.6, 0.3]), np.array([0, 1, 0]))), 6)
    0.510825
    """
    if y.ndim == 1:
        t, y = t.reshape(1, t.size), y.reshape(1, y.size)
    if t.size == y.size:
        t = t.argmax(axis=1)
    batch_size = y.shape[0]
    return -np.sum(np.log(y[np.arange(batch_size), t] + 1e-7)) / batch_size


def softmax_loss(X: Any, t: Any) -> Any:
    """Compute the mean cross entropy of ``softmax(X)``.

    Parameters
    ----------
    X : ndarray, shape (N, C) or (C,)
        Scores.
    t : ndarray
        As for `cross_entropy_error`.

    Returns
    -------
    float

    Examples
    --------
    >>> round(float(softmax_loss(np.zeros(2), np.array([0, 1]))), 6)
    0.693147
    """
    return cross_entropy_error(softmax(X), t)


def smooth_curve(x: Any) -> Any:
    """Smooth a curve with a Kaiser window of 11 points and beta 2.

    Parameters
    ----------
    x : array_like, shape (N,)
        Such as the losses of a training run; reflected at both ends.

    Returns
    -------
    ndarray, shape (N,)

    Examples
    --------
    >>> smooth_curve(np.ones(12)).round(12)
    array([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    size = 11
    padded = np.r_[x[size - 1 : 0 : -1], x, x[-1:-size:-1]]
    window = np.kaiser(size, 2)
    smooth = np.convolve(window / window.sum(), padded, mode="valid")
    return smooth[5 : len(smooth) - 5]


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

    Examples
    --------
    >>> x, t = shuffle_dataset(np.arange(5), np.arange(5))
    >>> bool((x == t).all()), sorted(x.tolist())
    (True, [0, 1, 2, 3, 4])
    """
    order = np.random.permutation(x.shape[0])  # noqa: NPY002 - the book's own numbers
    return x[order], t[order]


def init_mnist() -> None:
    """Do nothing: in the book this downloads MNIST, which is part of fastgrad."""


download_mnist = init_mnist


def conv_output_size(input_size: int, filter_size: int, stride: int = 1, pad: int = 0) -> float:
    """Return how many positions a filter has along an axis.

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
