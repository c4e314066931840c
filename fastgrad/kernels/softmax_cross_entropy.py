r"""Softmax, cross entropy and squared error, and the gradient of softmax with cross entropy.

With probabilities y, targets t and N samples the loss is
:math:`-\frac1N \sum_n \sum_k t_{nk} \log(y_{nk} + \delta)`. Its derivative with respect to the
scores follows from :math:`\partial y_m / \partial a_k = y_m ([m = k] - y_k)`:

.. math:: \frac{\partial L}{\partial a_k} = \frac{y_k \sum_m t_m q_m - t_k q_k}{N},
          \qquad q_k = \frac{y_k}{y_k + \delta},

for targets of every kind. For :math:`\delta = 0` all q are 1, also where y is 0.

Targets come as labels or as soft targets, the array that does not apply having no rows, as
`fastgrad.arrays.targets` returns them.
"""

# Helpers take scalars of either dtype and Numba overloads carry no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from fastgrad.kernels.compile import kernel, parallel_kernel
from fastgrad.kernels.elementary import exp, like, relative_to


@kernel
def softmax_rows(a: Any, y: Any, first: int, last: int) -> None:
    """Compute the softmax of rows first .. last - 1.

    Parameters
    ----------
    a : ndarray, shape (N, C)
        Scores.
    y : ndarray of a's dtype, shape (N, C)
        Out: probabilities.
    first, last : int
    """
    n_classes = a.shape[1]
    for n in range(first, last):
        largest = a[n, 0]
        for k in range(1, n_classes):
            largest = max(largest, a[n, k])
        for k in range(n_classes):
            y[n, k] = a[n, k] - largest
    # One loop over all classes of all rows: a row is too short for vector code.
    flat = y[first:last].reshape(-1)
    for i in range(flat.size):
        flat[i] = exp(flat[i])
    for n in range(first, last):
        total = y[n, 0]
        for k in range(1, n_classes):
            total += y[n, k]
        for k in range(n_classes):
            y[n, k] /= total


@parallel_kernel
def softmax_parallel(a: Any, y: Any, shares: int) -> None:
    """Compute the softmax of every row, on `shares` threads."""
    for share in prange(shares):
        softmax_rows(a, y, share * a.shape[0] // shares, (share + 1) * a.shape[0] // shares)


@kernel
def cross_entropy(y: Any, labels: Any, soft: Any, delta: float) -> float:
    """Compute the mean of -Σ t log(y + delta) over samples.

    Parameters
    ----------
    y : ndarray, shape (N, C)
        Probabilities.
    labels : ndarray of int64, shape (N,) or (0,)
    soft : ndarray of y's dtype, shape (N, C) or (0, C)
    delta : float

    Returns
    -------
    float
        Added up in float64.
    """
    n_samples, n_classes = y.shape
    total = 0.0
    if labels.size == n_samples:
        for n in range(n_samples):
            total -= np.log(y[n, labels[n]] + like(delta, y[n, 0]))
    else:
        for n in range(n_samples):
            for k in range(n_classes):
                p = y[n, k]
                # 0 log(p) is 0 for the p of a softmax. NaN and its like go on as in NumPy.
                if soft[n, k] != 0 or not 0 <= p < math.inf:
                    total -= soft[n, k] * np.log(p + like(delta, p))
    return total / n_samples


@kernel
def log_softmax_loss(a: Any, y: Any, labels: Any, soft: Any) -> float:
    """Compute the mean of -Σ t log(softmax(a)) over samples, finite where probabilities vanish.

    Parameters
    ----------
    a : ndarray, shape (N, C)
        Scores.
    y : ndarray of a's dtype, shape (N, C)
        Their probabilities.
    labels, soft
        As in `cross_entropy`.

    Returns
    -------
    float
        Added up in float64.
    """
    n_samples, n_classes = a.shape
    total = 0.0
    for n in range(n_samples):
        # log(softmax(a))_k = a_k - a_m + log(y_m) for every m; the largest y_m is at least 1 / C.
        m = 0
        for k in range(1, n_classes):
            if a[n, k] > a[n, m]:
                m = k
        shift = np.log(y[n, m])
        if labels.size == n_samples:
            total += relative_to(-shift, a[n, labels[n]], a[n, m])
        else:
            for k in range(n_classes):
                if soft[n, k] != 0 or math.isnan(shift):
                    total += soft[n, k] * relative_to(-shift, a[n, k], a[n, m])
    return total / n_samples


@kernel
def softmax_cross_entropy_backward(
    y: Any, labels: Any, soft: Any, delta: float, dout: float, da: Any
) -> None:
    """Compute the gradient of the mean loss with respect to the scores, times `dout`.

    Parameters
    ----------
    y : ndarray, shape (N, C)
        Probabilities.
    labels, soft, delta
        As in `cross_entropy`.
    dout : float
        Gradient with respect to the loss.
    da : ndarray of y's dtype, shape (N, C)
        Out.
    """
    n_samples, n_classes = y.shape
    number = y.dtype.type
    one = number(1.0)
    shift = number(delta)
    rate = number(dout / n_samples)
    if labels.size == n_samples:
        for n in range(n_samples):
            label = labels[n]
            factor = rate
            if delta != 0:
                factor *= y[n, label] / (y[n, label] + shift)
            for k in range(n_classes):
                da[n, k] = y[n, k] * factor
            da[n, label] = (y[n, label] - one) * factor
        return
    # In one loop over all cells, because rows are too short to be worth vector instructions.
    p, t, u = y.flat, soft.flat, da.flat  # `reshape` takes as long as eight rows
    if delta != 0:
        for i in range(da.size):
            u[i] = t[i] * rate * (p[i] / (p[i] + shift))
    else:
        for i in range(da.size):
            u[i] = t[i] * rate
    for n in range(n_samples):
        mixed = number(0.0)
        for k in range(n_classes):
            mixed += da[n, k]
        for k in range(n_classes):
            da[n, k] = y[n, k] * mixed - da[n, k]


@kernel
def squared_error(y: Any, t: Any) -> Any:
    """Return half the sum of the squared differences of two 1-D arrays."""
    total = y.dtype.type(0.0)
    for i in range(y.size):
        difference = y[i] - t[i]
        total += difference * difference
    return total * y.dtype.type(0.5)
