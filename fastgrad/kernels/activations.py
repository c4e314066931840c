r"""Activation functions and their derivatives, forward and backward.

Each formula stands once, as a function of a scalar; `activate` and `activate_parallel` map one over
a 1-D array. The derivatives of the sigmoid use e = exp(-|x|), which never overflows:
σ(x) = 1 / (1 + e) for x >= 0 and e / (1 + e) below, and σ'(x) = e / (1 + e)², which keeps its
digits where 1 - σ(x) loses them.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastgrad.kernels.elementary import exp, like
from fastgrad.runtime.compile import helper, kernel, parallel_kernel

SIGMOID, SIGMOID_GRAD, RELU, RELU_GRAD = range(4)


@helper
def sigmoid_and_slope(x):
    """Return 1 / (1 + exp(-x)) of a scalar, and its derivative."""
    one = like(1.0, x)
    e = exp(-abs(x))
    part = one / (one + e)
    return (part if x >= like(0.0, x) else e * part), e * part * part


@helper
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) of a scalar."""
    return sigmoid_and_slope(x)[0]


@helper
def relu(x):
    """Return max(x, 0) of a scalar; NaN stays NaN."""
    zero = like(0.0, x)
    return zero if x <= zero else x


@helper
def relu_grad(x):
    """Return 1 where x > 0 and 0 elsewhere."""
    return like(1.0, x) if x > like(0.0, x) else like(0.0, x)


@kernel
def activate(which, x, out):
    """Map an activation function or its derivative over a stretch of numbers.

    Parameters
    ----------
    which : int
        ``SIGMOID``, ``SIGMOID_GRAD``, ``RELU`` or ``RELU_GRAD``.
    x : ndarray, shape (M,)
    out : ndarray of x's dtype, shape (M,)
        Out.
    """
    if which == SIGMOID:
        for i in range(x.size):
            out[i] = sigmoid(x[i])
    elif which == SIGMOID_GRAD:
        for i in range(x.size):
            out[i] = sigmoid_and_slope(x[i])[1]
    elif which == RELU:
        for i in range(x.size):
            out[i] = relu(x[i])
    else:
        for i in range(x.size):
            out[i] = relu_grad(x[i])


@parallel_kernel
def activate_parallel(which, x, out, chunks):
    """Map an activation function as `activate` does, on `chunks` threads."""
    for chunk in prange(chunks):
        first = chunk * x.size // chunks
        last = (chunk + 1) * x.size // chunks
        activate(which, x[first:last], out[first:last])


@helper
def activate_rows(which, x, values, slopes, first, last):
    """Compute an activation function and its derivative for rows first .. last - 1.

    Parameters
    ----------
    which : int
        ``SIGMOID`` or ``RELU``.
    x : ndarray, 2-D
        C-contiguous, as the others are: one loop goes over all rows.
    values, slopes : ndarray of x's dtype and shape
        Out.
    first, last : int
    """
    inner, outer, slope = x.reshape(-1), values.reshape(-1), slopes.reshape(-1)
    begin, end = np.uint64(first * x.shape[1]), np.uint64(last * x.shape[1])
    if which == SIGMOID:
        for i in range(begin, end):
            outer[i], slope[i] = sigmoid_and_slope(inner[i])
    else:
        for i in range(begin, end):
            outer[i], slope[i] = relu(inner[i]), relu_grad(inner[i])


@kernel
def relu_backward(dout, mask, dx):
    """Pass a gradient back through the ReLU: 0 where `mask` is set, `dout` elsewhere."""
    for i in range(dout.size):
        dx[i] = like(0.0, dout[i]) if mask[i] else dout[i]


@kernel
def sigmoid_backward(dout, out, dx):
    """Pass a gradient back through the sigmoid with values `out`: dout (1 - out) out."""
    for i in range(dout.size):
        dx[i] = dout[i] * (like(1.0, out[i]) - out[i]) * out[i]
