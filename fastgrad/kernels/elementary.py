"""Elementary functions as scalar code that LLVM can vectorise.

Numba has no vector mathematics library to call by default, so ``math.exp`` in a loop stays a
scalar call of 5-10 ns. `exp` and `expm1` are straight-line arithmetic instead, and a loop over
them becomes vector code: 1 ns a value in float64 and 0.4 in float32 on a core with AVX-512.

Both reduce the argument as W. J. Cody and W. Waite do (*Software Manual for the Elementary
Functions*, 1980, chapter 6): with x = k log 2 + r and |r| <= 0.35,

    exp(x) = 2**k * exp(r),    exp(x) - 1 = 2**k * (exp(r) - 1) + (2**k - 1).
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fastgrad.runtime.compile import exact_helper, helper

_LOG2_E = 1.4426950408889634
_LOG2_E_32 = np.float32(_LOG2_E)
#: log 2 as a sum: the head has enough trailing zero bits for k * head to be exact.
_LN2_HEAD, _LN2_TAIL = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LN2_HEAD_32, _LN2_TAIL_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
#: Adding and subtracting it rounds to an integer, which then stands in the low bits.
_ROUND, _ROUND_32 = np.float64(1.5 * 2**52), np.float32(1.5 * 2**23)


def like(constant, x):
    """Return `constant` in the precision of the scalar `x`.

    A literal is a float64 to Numba and would promote float32 arithmetic. What comes out of here is
    still a constant to the compiler.
    """
    return np.float32(constant) if isinstance(x, np.float32) else np.float64(constant)


@overload(like)
def _compile_like(constant, x):
    if x == types.float32:
        return lambda constant, x: np.float32(constant)
    return lambda constant, x: np.float64(constant)


@exact_helper
def _reduce(x, least, least32):
    """Return exp(r) - 1, the two factors of 2**k, which reach to subnormal results, and 1.

    In the precision of x, which is clamped to where the result is 0, -1 or infinite anyway; the
    comparisons are written so that a NaN passes.
    """
    if isinstance(x, np.float32):
        one, lowest, highest = np.float32(1), np.float32(least32), np.float32(89)
        x = lowest if x < lowest else x
        x = highest if x > highest else x
        shifted = x * _LOG2_E_32 + _ROUND_32
        k = shifted - _ROUND_32
        r = (x - k * _LN2_HEAD_32) - k * _LN2_TAIL_32
        # Taylor; the first term left out, r**8 / 8!, is below 6e-9. In pairs (G. Estrin's scheme)
        # instead of one term after the other, each of which would wait for the one before.
        r2 = r * r
        p = one / np.float32(2) + r * (one / np.float32(6))
        p += r2 * (one / np.float32(24) + r * (one / np.float32(120)))
        p += (r2 * r2) * (one / np.float32(720) + r * (one / np.float32(5040)))
        n = np.float32(shifted).view(np.int32) - np.float32(_ROUND_32).view(np.int32)
        half = n >> np.int32(1)
        low = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
        high = np.int32((n - half + np.int32(127)) << np.int32(23)).view(np.float32)
        return r + r2 * p, low, high, one
    x = np.float64(x)
    x = least if x < least else x
    x = 710.0 if x > 710.0 else x
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HEAD) - k * _LN2_TAIL
    r2 = r * r
    r4 = r2 * r2
    # The first term left out, r**14 / 14!, is below 5e-18.
    p = (1 / 2 + r * (1 / 6)) + r2 * (1 / 24 + r * (1 / 120))
    p4 = (1 / 720 + r * (1 / 5040)) + r2 * (1 / 40320 + r * (1 / 362880))
    p8 = (1 / 3628800 + r * (1 / 39916800)) + r2 * (1 / 479001600 + r * (1 / 6227020800))
    n = np.float64(shifted).view(np.int64) - np.float64(_ROUND).view(np.int64)
    half = n >> 1
    low = np.int64((half + 1023) << 52).view(np.float64)
    high = np.int64((n - half + 1023) << 52).view(np.float64)
    return r + r2 * (p + r4 * (p4 + r4 * p8)), low, high, 1.0


@exact_helper
def exp(x):
    """Compute exp(x) of a float32 or float64 scalar, in its own precision.

    Off by at most 2 units in the last place over the whole range, subnormal results included; NaN
    and infinities as in NumPy.
    """
    p, low, high, one = _reduce(x, -746.0, -104.0)
    return (p + one) * low * high


@exact_helper
def expm1(x):
    """Compute exp(x) - 1 of a float32 or float64 scalar, in its own precision.

    Off by at most 2 units in the last place, for x near 0 too; NaN and infinities as in NumPy.
    """
    p, low, high, one = _reduce(x, -50.0, -20.0)
    return (p * low + (low - one / high)) * high


@exact_helper
def relative_to(a, b, c):
    """Compute a - (b - c) in this order: with huge b and c, (a + c) - b would lose a."""
    return a - (b - c)


@helper
def are_finite(numbers):
    """Return whether all numbers of a 1-D array are finite."""
    zero = numbers.dtype.type(0)
    total = zero  # becomes NaN, once and for all, by one that is not: a loop without a branch
    for k in range(numbers.size):
        total += numbers[k] * zero
    return total == zero
