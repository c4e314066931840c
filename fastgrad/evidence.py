"""What a check finds out about each entry of a gradient, before it judges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgrad import checking
from fastgrad.arrays import FloatArray, IntArray
from fastgrad.checking import Codes
from fastgrad.differences import Differences, evaluate_around
from fastgrad.evaluation import Objective
from fastgrad.extrapolation import Extrapolated, extrapolate
from fastgrad.noise import Noise, scatter

Bounds = tuple[FloatArray, FloatArray] | None

#: A gradient is zero to rounding if it is this part of the slopes to both sides.
_ZERO = 1e-10

#: Estimates of extrapolated slopes are above the error in all but a few in a thousand entries, and
#: less reliable in noise, of which float32 has more. So many times the estimate may be the error,
#: for a verdict.
_SAFETY, _SAFETY_IN_FLOAT32 = 30.0, 300.0

#: A gradient is zero to rounding if a nudge of the entry's own size would change f by less than
#: this part of its noise.
_TINY = 1 / 16

#: A slope is zero if a nudge of the entry's own size changes f by less than so many noises.
_FLAT = 256.0

#: How many times its own size an entry is moved, to see whether f depends on it at all.
_WIDE = 13.0


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
        Where f seems to have a kink within ±h.
    """

    numerical: FloatArray
    error: FloatArray
    low: FloatArray
    high: FloatArray
    kink: NDArray[np.bool_]

    @property
    def steepest(self) -> FloatArray:
        """The largest slope beside x, without its sign."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def gather(
    objective: Objective,
    entries: IntArray,
    analytic: FloatArray,
    noise: Noise,
    steps: FloatArray | None,
    order: int,
    bounds: Bounds,
) -> tuple[Evidence, Codes]:
    """Compute the numerical gradient by some entries and judge the analytic one.

    Parameters
    ----------
    objective : Objective
    entries : ndarray of int64, shape (M,)
    analytic : ndarray, shape (M,)
        The gradient to check.
    noise : Noise
    steps : ndarray or None
        The step of each entry, or None for extrapolation.
    order : {2, 4, 6}
    bounds : pair of ndarray of shape (M,), or None

    Returns
    -------
    evidence : Evidence
    codes : ndarray of int8, shape (M,)
        As `fastgrad.checking` numbers them.
    """
    with np.errstate(all="ignore"):
        if steps is None:
            seen = _by_extrapolation(objective, entries, noise, bounds)
        else:
            around = evaluate_around(
                objective, entries, steps / order, order, twice=True, here=noise.here,
                bounds=bounds,
            )  # fmt: skip
            seen = _by_differences(objective, entries, noise, around, order)
        codes = checking.judge(analytic, seen.numerical, seen.error)
        if not noise.repeats:
            _look_again(objective, entries, analytic, noise, bounds, seen, codes, steps is None)
            # At a kink every gradient between the slopes to both sides is right.
            margin = seen.error + checking.TOLERANCE * seen.steepest
            between = (analytic >= seen.low - margin) & (analytic <= seen.high + margin)
            codes[seen.kink & between] = checking.KINK
        if np.isfinite(noise.here):
            codes[np.isfinite(analytic) & ~np.isfinite(seen.numerical)] = checking.NOT_FINITE
    return seen, codes


def _by_differences(
    objective: Objective, entries: IntArray, noise: Noise, around: Differences, order: int
) -> Evidence:
    """Use differences of which the last points lie at x ± h."""
    numerical, fine = around.gradient(order, 2), around.gradient(order, 1)
    unit, level = rounding(objective, around, entries), scatter(noise, around)
    # One unit is a bound, what was measured a standard deviation.
    error = around.rounding(order, np.maximum(1.5 * unit, 4 * level))
    disagreement = np.abs(numerical - fine)
    sides = around.sides()
    seen = Evidence(numerical, error, np.min(sides, axis=0), np.max(sides, axis=0), error > 0)
    uneven, width = around.unevenness(), np.abs(around.width()[-1])
    noise_of_it = np.maximum(unit, level) / width
    seen.kink = (uneven > 40 * noise_of_it + 1e-3 * around.bend()) | (
        disagreement > error + checking.TOLERANCE / 2 * seen.steepest
    )
    # What may be a kink, or noise, counts as an error of the slope.
    error = error + np.where(seen.kink, 0.0, np.minimum(uneven, around.bend()))
    # Where the gradient is not judged as a kink but f has one, the plain bound applies.
    seen.error = error + np.minimum(2 * disagreement, checking.TOLERANCE * seen.steepest)
    return seen


def _by_extrapolation(
    objective: Objective, entries: IntArray, noise: Noise, bounds: Bounds
) -> Evidence:
    found = extrapolated(objective, entries, noise, bounds)
    apart = np.abs(found.bend)
    # At a kink the difference is halfway between the slopes to both sides, all else is rounding.
    eps = np.broadcast_to(objective.eps, (objective.size,))[entries]
    safety = np.where(eps > np.finfo(np.float64).eps, _SAFETY_IN_FLOAT32, _SAFETY)
    error = np.where(found.kink, 1e-3 * apart, safety * found.error)
    return Evidence(found.slope, error, found.slope - apart, found.slope + apart, found.kink)


def extrapolated(
    objective: Objective, entries: IntArray, noise: Noise, bounds: Bounds
) -> Extrapolated:
    """Differentiate by some entries, with steps that look at the function.

    Parameters
    ----------
    objective : Objective
    entries : ndarray of int64, shape (M,)
    noise : Noise
    bounds : pair of ndarray of shape (M,), or None

    Returns
    -------
    Extrapolated
    """
    center = objective.center[entries]
    eps = np.broadcast_to(objective.eps, (objective.size,))[entries]

    def values(which: IntArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
        points = objective.nudged(entries[which], offsets)
        inside = points
        if bounds is not None:
            inside = np.clip(points, bounds[0][which], bounds[1][which])
        found = objective.at(entries[which], inside, tolerant=True)
        return np.where(inside == points, found, np.nan), points

    unit = float(np.max(eps, initial=0)) * abs(noise.here)
    level = 2 * noise.level if noise.level > unit else 0.0
    with np.errstate(all="ignore"):
        found = extrapolate(values, center, np.full(center.shape, noise.here), eps, level)
    undefined = np.flatnonzero(np.isnan(found.slope))
    if undefined.size:  # f may have raised there: let it do so again
        objective.at(entries[undefined[:1]], objective.nudged(entries[undefined[:1]], _NEAREST))
    return found


#: The least offset there is: it is widened to the next floating-point number.
_NEAREST = np.array([[1e-300], [-1e-300]])


def along_directions(
    objective: Objective, count: int, rng: np.random.Generator, noise: Noise, gradient: FloatArray
) -> list[tuple[FloatArray, Extrapolated]]:
    """Differentiate along random directions of each array.

    Parameters
    ----------
    objective : Objective
    count : int
        How many directions.
    rng : numpy.random.Generator
    noise : Noise
    gradient : ndarray, shape (size,)
        The gradient, about: what the rounding of x does to f depends on it.

    Returns
    -------
    list of (ndarray of shape (count, n), Extrapolated)
        For each array the directions, unit vectors of ±1/√n in the order of its entries, and the
        derivatives along them.
    """
    found = []
    for number, size in enumerate(np.diff(objective.begins).tolist()):
        signs = rng.choice([-1.0, 1.0], (count, size)) / math.sqrt(max(size, 1))

        def values(
            which: IntArray, offsets: FloatArray, number: int = number, signs: FloatArray = signs
        ) -> tuple[FloatArray, FloatArray]:
            rows = [
                objective.along(
                    [
                        leaf.shaped(signs[i]) if j == number else np.zeros(leaf.array.shape)
                        for j, leaf in enumerate(objective.x.leaves)
                    ],
                    steps,
                )
                for i, steps in zip(which, offsets.T, strict=True)
            ]
            return np.array(rows).reshape(-1, 2).T, offsets

        part = slice(objective.begins[number], objective.begins[number + 1])
        eps = float(np.max(objective.eps, initial=0))
        moved = eps * float(np.linalg.norm(np.nan_to_num(gradient[part] * objective.center[part])))
        center, here = np.zeros(count), np.full(count, noise.here)
        level = max(2 * noise.level, moved)
        with np.errstate(all="ignore"):
            found.append((signs, extrapolate(values, center, here, np.full(count, eps), level)))
    return found


def _look_again(
    objective: Objective,
    entries: IntArray,
    analytic: FloatArray,
    noise: Noise,
    bounds: Bounds,
    seen: Evidence,
    codes: Codes,
    is_extrapolated: bool,
) -> None:
    """Judge once more what was lost in noise: entries that are zero, or small beside others."""
    # At an extremum f rises or falls to both sides, clearly enough for any slope to be seen.
    zero = (codes == checking.NOISE) & (np.abs(analytic) <= _ZERO * seen.steepest)
    codes[zero & (seen.error <= checking.MISTAKE * seen.steepest)] = checking.RIGHT
    _find_zeros(objective, entries, analytic, noise, bounds, seen, codes)
    # Where nothing in an array could be judged, another step is for the caller to choose.
    leaf = np.searchsorted(objective.begins[1:], entries, side="right")
    judged = np.bincount(leaf, codes <= checking.WRONG, len(objective.x.leaves))[leaf] > 0
    tiny = np.maximum(np.abs(analytic), np.abs(seen.numerical)) <= seen.error
    again = np.flatnonzero((codes == checking.NOISE) & (judged | tiny) & ~seen.kink)
    if again.size and not is_extrapolated:
        limits = None if bounds is None else (bounds[0][again], bounds[1][again])
        found = _by_extrapolation(objective, entries[again], noise, limits)
        better = ~found.kink & (found.error < seen.error[again])
        which = again[better]
        seen.numerical[which], seen.error[which] = found.numerical[better], found.error[better]
        codes[which] = checking.judge(analytic[which], found.numerical[better], found.error[better])
    # Flat within reach, as below a dead unit: zero to the noise of a nudge by its own size.
    size, level = _sizes(objective, entries, noise)
    bound = (
        np.maximum(np.abs(analytic) * _FLAT / _TINY, np.abs(seen.numerical) + seen.error / _SAFETY)
        * size
    )
    codes[(codes == checking.NOISE) & (bound <= _FLAT * level)] = checking.RIGHT


def _sizes(objective: Objective, entries: IntArray, noise: Noise) -> tuple[FloatArray, float]:
    """Return how far a nudge of an entry's own size goes, and how noisy f is."""
    unit = float(np.max(objective.eps, initial=0)) * abs(noise.here) / 2
    size: FloatArray = np.maximum(np.abs(objective.center[entries]), 1.0)
    return size, max(noise.level, unit)


def _find_zeros(
    objective: Objective,
    entries: IntArray,
    analytic: FloatArray,
    noise: Noise,
    bounds: Bounds,
    seen: Evidence,
    codes: Codes,
) -> None:
    """Mark entries as right that f does not depend on, if the gradient is zero there.

    A nudge by many times the entry's own size then changes f by no more than its noise.
    """
    size, level = _sizes(objective, entries, noise)
    tried = np.flatnonzero((codes == checking.NOISE) & (np.abs(analytic) * size <= _TINY * level))
    if tried.size == 0:
        return
    offsets = _WIDE * size[tried] * np.array([[1.0], [-1.0]])
    points = objective.nudged(entries[tried], offsets)
    if bounds is not None:
        points = np.clip(points, bounds[0][tried], bounds[1][tried])
    values = objective.at(entries[tried], points, tolerant=True)
    unchanged = (np.abs(values - noise.here) <= 8 * level).all(axis=0)
    zero = tried[unchanged & (points[0] > points[1])]
    codes[zero] = checking.RIGHT
    seen.error[zero] = 8 * level / (_WIDE * size[zero])


def rounding(objective: Objective, around: Differences, entries: IntArray) -> FloatArray:
    """Return a unit in the last place of the largest value met at each entry."""
    eps = np.broadcast_to(objective.eps, (objective.size,))[entries]
    units: FloatArray = eps * np.max(np.abs(around.values), axis=0)
    return units
