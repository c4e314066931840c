"""The book's ``common.gradient``: numerical gradients, in the fastest way there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.book import loops
from fastgrad.numdiff import gradients

__all__ = ["numerical_gradient", "numerical_gradient_2d"]


def numerical_gradient(f: Callable[[Any], Any], x: Any, h: Any = 1e-4, **options: Any) -> Any:
    """Compute the gradient of f by central differences.

    Parameters
    ----------
    f : callable
        Takes x, returns a number.
    x : ndarray
        Where to differentiate. Perturbed in place and restored. In an array of integers the
        perturbed entries are rounded towards zero, as in the book.
    h : float, optional
        The step.
    **options
        As for `fastgrad.numerical_gradient`.

    Returns
    -------
    ndarray, shape and dtype of x

    Raises
    ------
    TypeError, ValueError, Exception
        As `fastgrad.numerical_gradient` does.

    Examples
    --------
    >>> numerical_gradient(lambda x: x[0]**2 + x[1]**2, np.array([3.0, 4.0])).round(8)
    array([6., 8.])
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "biu":
        grad = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            held = x[index]
            x[index] = held + h
            upper = f(x)
            x[index] = held - h
            grad[index] = (upper - f(x)) / (2 * h)
            x[index] = held
        return grad
    is_usual = type(x) is np.ndarray and x.dtype in (np.float32, np.float64)
    if not (is_usual and x.flags.c_contiguous and type(h) is float and not options):
        return gradients.numerical_gradient(f, x, h, **options)
    found = loops.central_differences(f, x, h)
    if found is not None:
        return found
    try:
        return gradients.numerical_gradient(f, x, h, batched=False)
    finally:
        loops.ended()


def numerical_gradient_2d(f: Callable[..., Any], X: Any) -> Any:
    """Compute the gradient of f at each row of X, or at X if that is a single row.

    Parameters
    ----------
    f : callable
        Takes a row, returns a number.
    X : ndarray, shape (N, D) or (D,)
        Perturbed in place and restored.

    Returns
    -------
    ndarray, shape of X

    Raises
    ------
    TypeError, ValueError
        As `fastgrad.numerical_gradient` does.

    Examples
    --------
    >>> numerical_gradient_2d(lambda x: np.sum(x**2), np.array([[1.0, 2.0], [3.0, 4.0]])).round(8)
    array([[2., 4.],
           [6., 8.]])
    """
    if X.ndim == 1:
        return gradients.numerical_gradient(f, X)
    return np.array([gradients.numerical_gradient(f, row) for row in X], X.dtype).reshape(X.shape)


#: Names of the book's older printings.
_numerical_gradient_1d = gradients.numerical_gradient
_numerical_gradient_no_batch = numerical_gradient
