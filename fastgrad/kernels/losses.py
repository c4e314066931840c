r"""Softmax, cross entropy and squared error, and the gradient of softmax with cross entropy.

The public functions, the networks' passes and training all use these, on rows of a batch.

With probabilities y, targets t and N samples the loss is
:math:`-\frac1N \sum_n \sum_k t_{nk} \log(y_{nk} + \delta)`. Its derivative with respect to the
scores follows from :math:`\partial y_m / \partial a_k = y_m ([m = k] - y_k)`:

.. math:: \frac{\partial L}{\partial a_k} = \frac{y_k \sum_m t_m q_m - t_k q_k}{N},
          \qquad q_k = \frac{y_k}{y_k + \delta},

for targets of every kind. For :math:`\delta = 0` all q are 1, also where y is 0.

Targets come as labels or as soft targets, the array that does not apply having no rows, as
`fastgrad.validation.targets` returns them.
"""

from __future__ import annotations

import math

import numpy as np

from fastgrad.kernels.elementary import exp, like, relative_to
from fastgrad.runtime.compile import helper, kernel
from fastgrad.runtime.programs import chunk_range


@helper
def softmax_rows(a, y, first, last):
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


@kernel
def softmax(a, y, chunk, chunks):
    """Compute the softmax of a chunk of the rows."""
    first, last = chunk_range(a.shape[0], chunk, chunks)
    softmax_rows(a, y, first, last)


@helper
def cross_entropy_sum(a, y, labels, soft, delta, first, last):
    """Return the sum of -Σ t log(y + delta) over rows first .. last - 1.

    Without delta it is computed from the scores, and finite where probabilities vanish.

    Parameters
    ----------
    a : ndarray, shape (N, C)
        Scores; read only where delta is 0.
    y : ndarray of a's dtype, shape (N, C)
        Probabilities, the softmax of ``a`` where delta is 0.
    labels : ndarray of int64, shape (N,) or (0,)
    soft : ndarray of y's dtype, shape (N, C) or (0, C)
    delta : float
    first, last : int

    Returns
    -------
    float
        Added up in float64; 0 without targets.
    """
    n_classes, is_labelled = y.shape[1], labels.size > 0
    n_targets = 1 if is_labelled else n_classes if soft.shape[0] > 0 else 0
    total = 0.0
    for n in range(first, last):
        m, shift = 0, y.dtype.type(0)
        if delta == 0:
            # log(softmax(a))_k = a_k - a_m + log(y_m) for every m; the largest y_m is at least 1/C.
            for k in range(1, n_classes):
                if a[n, k] > a[n, m]:
                    m = k
            shift = np.log(y[n, m])
        for item in range(n_targets):
            k = labels[n] if is_labelled else item
            target, p = y.dtype.type(1) if is_labelled else soft[n, k], y[n, k]
            if delta == 0:
                if target != 0 or math.isnan(shift):
                    total += target * relative_to(-shift, a[n, k], a[n, m])
            # 0 log(p) is 0 for the p of a softmax. NaN and its like go on as in NumPy.
            elif target != 0 or not 0 <= p < math.inf:
                total -= target * np.log(p + like(delta, p))
    return total


@kernel
def cross_entropy(a, y, labels, soft, delta):
    """Return the mean of what `cross_entropy_sum` adds up."""
    return cross_entropy_sum(a, y, labels, soft, delta, 0, y.shape[0]) / y.shape[0]


@kernel
def logit_gradients(y, labels, soft, delta, rate, da, first, last):
    """Compute the gradient of the loss with respect to the scores of rows first .. last - 1.

    Nothing cancels, also for probabilities near 1: where 1 - p occurs it is the sum of the other
    probabilities.

    Parameters
    ----------
    y : ndarray, shape (N, C)
        Probabilities.
    labels, soft, delta
        As in `cross_entropy_sum`.
    rate : float
        What every sample's gradient is multiplied by.
    da : ndarray of y's dtype, shape (N, C)
        Out.
    first, last : int
    """
    n_classes = y.shape[1]
    number = y.dtype.type
    zero, one, scale, shift = number(0), number(1), number(rate), number(delta)
    if labels.size > 0:
        for n in range(first, last):
            label = labels[n]
            factor = scale
            if delta != 0:
                factor *= y[n, label] / (y[n, label] + shift)
            others = zero
            for k in range(n_classes):
                others += zero if k == label else y[n, k]
                da[n, k] = y[n, k] * factor
            da[n, label] = -others * factor
        return
    # u = t p / (p + delta), in one loop over all cells, because rows are too short for vectors.
    p, t, u = y[first:last].reshape(-1), soft[first:last].reshape(-1), da[first:last].reshape(-1)
    if delta != 0:
        for i in range(u.size):
            u[i] = t[i] * (p[i] / (p[i] + shift))
    else:
        for i in range(u.size):
            u[i] = t[i]
    # p_k Σ_m u_m - u_k is p_k (sum of the other u) - u_k (sum of the other p). A sum without its
    # largest term is that sum minus the term only for the smaller ones.
    for n in range(first, last):
        likely, heavy = 0, 0
        for k in range(n_classes):
            likely = k if y[n, k] > y[n, likely] else likely
            heavy = k if abs(da[n, k]) > abs(da[n, heavy]) else heavy
        other_p, other_u = zero, zero
        for k in range(n_classes):
            other_p += zero if k == likely else y[n, k]
            other_u += zero if k == heavy else da[n, k]
        largest_u = da[n, heavy]
        for k in range(n_classes):
            rest_p = other_p if k == likely else one - y[n, k]
            rest_u = other_u if k == heavy else other_u - da[n, k] + largest_u
            da[n, k] = (y[n, k] * rest_u - da[n, k] * rest_p) * scale


@kernel
def squared_error(y, t):
    """Return half the sum of the squared differences of two 1-D arrays."""
    total = y.dtype.type(0.0)
    for i in range(y.size):
        difference = y[i] - t[i]
        total += difference * difference
    return total * y.dtype.type(0.5)
