r"""Activation functions: values, derivatives, and changes when an input moves by any amount.

Each formula stands once, as a function of a scalar; `activate` maps one over a 1-D array. The
derivatives of the sigmoid use e = exp(-|x|), which never overflows: σ(x) = 1 / (1 + e) for x >= 0
and e / (1 + e) below, and σ'(x) = e / (1 + e)², which keeps its digits where 1 - σ(x) loses them.
"""

from __future__ import annotations

import numpy as np

from fastgrad.kernels.elementary import exp, expm1, like
from fastgrad.runtime.compile import helper, kernel
from fastgrad.runtime.programs import chunk_range

SIGMOID, SIGMOID_GRAD, RELU, RELU_GRAD = range(4)
#: Those that a network can have, by name.
ACTIVATIONS = {"sigmoid": SIGMOID, "relu": RELU}


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
def activate(which, x, out, chunk, chunks):
    """Map an activation function or its derivative over a chunk of some numbers.

    Parameters
    ----------
    which : int
        ``SIGMOID``, ``SIGMOID_GRAD``, ``RELU`` or ``RELU_GRAD``.
    x : ndarray, shape (M,)
    out : ndarray of x's dtype, shape (M,)
        Out.
    chunk, chunks : int
    """
    begin, end = chunk_range(x.size, chunk, chunks)
    x, out = x[begin:end], out[begin:end]
    for i in range(x.size):
        if which == SIGMOID:
            out[i] = sigmoid(x[i])
        elif which == SIGMOID_GRAD:
            out[i] = sigmoid_and_slope(x[i])[1]
        elif which == RELU:
            out[i] = relu(x[i])
        else:
            out[i] = relu_grad(x[i])


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


# How a unit's value changes when its input moves: `unit_change` for one move, and what follows for
# moves by m and by -m of many units, which share what depends on m alone.


@helper
def unit_change(activation, a, z, slope, move):
    """Return the change of one unit's value when its input moves, by any amount.

    For the sigmoid z (1 - z) (e**m - 1) / ((1 - z) + z e**m), with every term a sum of positive
    ones.

    Parameters
    ----------
    activation : int
    a, z, slope : float
        The unit's input and value, and the derivative z (1 - z).
    move : float
    """
    one = like(1, z)
    zero = like(0, z)
    if activation == SIGMOID:
        if slope == zero:  # it underflows, so far out is the unit
            inner = a + move
            power = exp(-abs(inner))
            return (power if inner < zero else one) / (one + power) - z
        rest = one - z if z < like(0.5, z) else slope / z
        shrink = exp(-abs(move))
        change = -slope * expm1(-abs(move))
        return change / (z + rest * shrink) if move > zero else -change / (rest + z * shrink)
    change = move + (a - z)
    return -z if change < -z else change


@helper
def steepest(activation, number):
    """Return the largest slope that an activation function has, as a number of that type."""
    return like(0.25, number) if activation == SIGMOID else like(1, number)


@helper
def scaled_move(activation, move):
    """Return what `opposite_changes` takes for a move m: exp(m) - 1 (sigmoid) or m (ReLU)."""
    return expm1(move) if activation == SIGMOID else move


@helper
def change_coefficients(activation, a, z, slope):
    """Return what `opposite_changes` takes of a unit with input a, value z and a slope.

    z, 1 - z and z (1 - z) for the sigmoid, and for the ReLU the two bounds of a move, first and
    last.
    """
    if activation == SIGMOID:
        return z, like(1, z) - z, slope
    return a - z, like(1, z) - z, -z


@helper
def opposite_changes(activation, move, c1, c2, c3):
    """Return the changes of a unit's value when its input moves by m and by -m."""
    if activation == SIGMOID:
        # exp(-m) - 1 = -E / (1 + E): so one division serves both moves.
        a1 = like(1, move) + c1 * move
        a2 = like(1, move) + c2 * move
        r = c3 * move / (a1 * a2)
        return r * a2, -r * a1
    return max(c1 + move, c3), max(c1 - move, c3)


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
