"""The table of rules that judges every entry of a gradient, once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgrad.validation import FloatArray

#: Two gradients may differ by this part. A mistake of 0.1% is four times as large, the truncation
#: error of a well-chosen step far smaller.
TOLERANCE = 2.5e-4

#: The mistake that a check must be able to see in an entry, for the entry to count as judged.
MISTAKE = 1e-3

#: At an extremum f rises, or falls, to both sides. A gradient is zero there if it is this part of
#: the slopes to the sides, which are then what shows that a mistake would have been seen.
_EXTREMUM = 1e-10

#: A gradient is zero to rounding if a perturbation of the entry's own size changes f by no more
#: than this many times the noise of f. Backpropagation adds up several terms of that size.
_ZERO = 4.0

#: The numerical gradient has to show that, too, with an error of no more than so many times it.
_ZERO_ERROR = 64.0

#: A slope so many times its error is there, and no rounding.
SEEN = 8.0

#: What is known of an entry, and for those not judged why.
RIGHT, WRONG, KINK, NOISE, NOT_FINITE, NOT_DRAWN = range(6)
REASONS = {KINK: "kink", NOISE: "noise", NOT_FINITE: "not finite", NOT_DRAWN: "not drawn"}

Codes = NDArray[np.int8]


@dataclass
class Evidence:
    """What is known of some entries.

    Attributes
    ----------
    numerical, error : ndarray, shape (M,)
        The numerical gradient, and how far it may be from the true one.
    low, high : ndarray, shape (M,)
        The least and the largest slope beside x.
    kink : ndarray of bool, shape (M,)
        Where f has a kink at x, or too near to it to be told apart.
    rounding : ndarray, shape (M,)
        The slope that changes f by its noise when the entry is perturbed by its own size; 0 where
        the gradient to check is no rounding error beside its largest entry.
    """

    numerical: FloatArray
    error: FloatArray
    low: FloatArray
    high: FloatArray
    kink: NDArray[np.bool_]
    rounding: FloatArray

    @property
    def steepest(self) -> FloatArray:
        """The largest slope beside x, without its sign."""
        return np.fmax(np.abs(self.low), np.abs(self.high))

    @classmethod
    def plain(cls, numerical: FloatArray, error: FloatArray) -> Evidence:
        """Return evidence of which no more is known than a numerical gradient and its error."""
        no = np.zeros(numerical.shape)
        return cls(numerical, error, numerical, numerical, no > 0, no)


def judge(analytic: FloatArray, seen: Evidence, eps: float) -> Codes:
    """Return the code of each entry of a gradient to check: that of the first rule that applies.

    `eps` is the machine epsilon of the two gradients, which are themselves rounded.
    """
    a, n = analytic.astype(np.float64), seen.numerical.astype(np.float64)
    with np.errstate(all="ignore"):
        largest = np.maximum(np.abs(a), np.abs(n))
        allowed = seen.error + (TOLERANCE + 2 * eps) * largest
        agree = np.abs(a - n) <= allowed
        # At a kink every gradient between the slopes to both sides is right.
        margin = seen.error + TOLERANCE * seen.steepest
        between = (a >= seen.low - margin) & (a <= seen.high + margin)
        scale = np.where(np.abs(a) <= _EXTREMUM * seen.steepest, seen.steepest, largest)
        # Where x is small beside the noise of f, a slope may be that small and still be seen.
        slope_seen = ~agree & (np.abs(n) > SEEN * seen.error)
        zero = (
            (largest <= _ZERO * seen.rounding)
            & (seen.error <= _ZERO_ERROR * _ZERO * seen.rounding)
            & ~slope_seen
        )
        rules = [
            (~np.isfinite(a), WRONG),
            (~np.isfinite(n), NOT_FINITE),
            (seen.kink, np.where(between, KINK, WRONG)),
            (zero | (largest == 0), RIGHT),
            (~agree, WRONG),
            (MISTAKE * scale > allowed, RIGHT),
        ]
    conditions, codes = zip(*rules, strict=True)
    result: Codes = np.select(conditions, codes, NOISE).astype(np.int8)
    return result
