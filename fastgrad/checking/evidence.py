"""What a check finds out about each entry of a gradient: differences first, then extrapolation."""

from __future__ import annotations

import math

import numpy as np

from fastgrad.checking.verdicts import SEEN, TOLERANCE, Codes, Evidence, judge
from fastgrad.numdiff.entries import Entries
from fastgrad.numdiff.extrapolation import Extrapolated, extrapolated
from fastgrad.numdiff.formulas import evaluate_around
from fastgrad.numdiff.noise import Noise, scatter
from fastgrad.validation import FloatArray, IntArray

#: The error of an extrapolated slope exceeds its estimate in one entry of a hundred, by a factor
#: of 3 at most. A verdict allows for twice that: in float32 more entries are lost in noise.
_SAFETY = 6.0

#: An entry may be zero to rounding if it is so many machine epsilons of the gradient's largest.
_ROUNDED = 512.0

#: The terms that backpropagation adds up to zero may be so many times as large as f.
_TERMS = 4096.0

#: An error measured is a deviation, of which a slope may be off by a few.
_DEVIATIONS = 4.0


def gather(entries: Entries, analytic: FloatArray, noise: Noise) -> tuple[Evidence, Codes]:
    """Compute the numerical gradient by M entries, and judge the analytic one, of shape (M,).

    The codes, of the same shape, are numbered by `fastgrad.checking.verdicts`.
    """
    eps = entries.objective.largest_eps
    entries.here = noise.here
    with np.errstate(all="ignore"):
        if entries.steps is None:
            seen = _by_extrapolation(entries, noise)
        else:
            seen = _by_differences(entries, entries.steps, noise)
            apart, size = np.abs(analytic - seen.numerical), np.abs(seen.numerical)
            clear = seen.error <= TOLERANCE * size
            clear &= apart <= seen.error + TOLERANCE * size
            again = np.flatnonzero(~clear)
            if again.size and not noise.repeats:
                _look_again(entries, noise, seen, again)
        if not math.isfinite(noise.here):
            seen.numerical[:] = np.nan
        sizes = np.abs(analytic)
        largest = np.max(sizes, initial=0.0, where=np.isfinite(sizes))
        # A gradient below the last place of f is zero to rounding. One that is rounding altogether,
        # but larger, is that of its terms.
        if largest > eps * abs(noise.here):
            terms = _TERMS * seen.rounding
            lost = (largest <= terms) & (np.abs(seen.numerical) <= SEEN * seen.error)
            seen.error = np.where(lost, np.fmax(seen.error, terms), seen.error)
            seen.rounding[sizes > _ROUNDED * eps * largest] = 0.0
    return seen, judge(analytic, seen, eps)


def _by_differences(entries: Entries, steps: FloatArray, noise: Noise) -> Evidence:
    """Use differences of which the last points lie at x ± h, and those halfway to them."""
    order = entries.order
    around = evaluate_around(entries, steps / order, order, twice=True)
    # One unit is a bound, what was measured a standard deviation.
    unit, level = around.unit(entries.eps), scatter(noise, around)
    error = around.error(order, np.maximum(1.5 * unit, _DEVIATIONS * level))
    sides = around.one_sided_slopes
    finite = np.isfinite(around.values).all(axis=0)
    seen = Evidence.plain(np.where(finite, around.gradient(order), np.nan), error)
    seen.low, seen.high = np.min(sides, axis=0), np.max(sides, axis=0)
    return seen


def _look_again(entries: Entries, noise: Noise, seen: Evidence, again: IntArray) -> None:
    """Replace what differences showed by what extrapolation shows."""
    found = _by_extrapolation(entries.subset(again), noise)
    # Slopes to both sides are those over the longer steps, but for a kink.
    low, high = seen.low[again], seen.high[again]
    wider = ~found.kink & np.isfinite(low) & np.isfinite(high)
    found.low, found.high = np.where(wider, low, found.low), np.where(wider, high, found.high)
    for name, array in vars(found).items():
        getattr(seen, name)[again] = array


def _by_extrapolation(entries: Entries, noise: Noise) -> Evidence:
    seen = of_slopes(extrapolated(entries, noise.level))
    level = max(noise.level, entries.objective.largest_eps * abs(noise.here) / 2)
    seen.rounding = level / np.maximum(np.abs(entries.center), 1.0)
    return seen


def of_slopes(found: Extrapolated) -> Evidence:
    """Return what extrapolated slopes show."""
    apart = np.abs(found.half_slope_jump)
    # At a kink the difference is halfway between the slopes to both sides, all else is rounding.
    seen = Evidence.plain(found.slope, np.where(found.kink, 1e-3 * apart, _SAFETY * found.error))
    seen.low, seen.high, seen.kink = found.slope - apart, found.slope + apart, found.kink
    return seen
