"""How noisy a function is: the one place where its rounding error is measured."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastgrad.numdiff.formulas import Differences
from fastgrad.numdiff.objective import Objective
from fastgrad.validation import FloatArray

#: Calls at the same point. One mask of dropout in two may be equal to the last.
REPEATS = 8

#: Values at the same point that differ by this many units in the last place differ by rounding,
#: as those of a sum do that several threads add up.
_ROUNDING_UNITS = 4

#: Residuals above so many times the noise are something else: curvature, or kinks.
_NOISIEST = 30

#: Points of the difference table, and steps tried, in units in the last place of each entry.
_POINTS = 9
_SPACINGS = (2.0**6, 2.0**14, 2.0**22, 2.0**30, 2.0**36)

#: Further steps, over which a function bends. There only values that come in steps show noise.
_FAR = (2.0**42, 2.0**46, 2.0**49)


class Noise(NamedTuple):
    """The noise of a function.

    Attributes
    ----------
    here : float
        Its value at x.
    level : float
        The standard deviation of its values; at least half a unit in the last place.
    repeats : tuple of float
        Two values at the same point, the most different ones; empty if they agree to rounding.
    """

    here: float
    level: float
    repeats: tuple[float, ...]


def noise_of(objective: Objective, here: float, *, repeats: int = REPEATS) -> Noise:
    """Measure the noise of a function around the present point.

    Parameters
    ----------
    objective : Objective
    here : float
        Its value there.
    repeats : int
        How often it is known at that point, once included.

    Notes
    -----
    Called again at the same point, a deterministic function gives the same number. Along a short
    line its values are those of a polynomial of low degree, and the differences of fourth order
    show what is not: J. J. Moré and S. M. Wild, "Estimating computational noise", SIAM J. Sci.
    Comput. 33 (2011). Where most values are equal, as those of a function are that computes in
    float32 inside, the line is too short to tell, and a longer one is taken.
    """
    again = [here, *(objective.value() for _ in range(repeats - 1))]
    unit = objective.largest_eps * abs(here) / 2
    deviation = float(np.std(again)) if np.isfinite(again).all() else 0.0
    differ = max(again) - min(again)
    level = max(unit, deviation)
    if math.isfinite(here) and objective.size:
        level = max(level, _difference_table(objective))
    random = differ > 2 * _ROUNDING_UNITS * unit
    return Noise(here, level, (min(again), max(again)) if random else ())


def scatter(noise: Noise, differences: Differences) -> float:
    """Measure the noise of a function on the scale of the steps taken.

    That is the median over the entries of what no smooth curve explains. Where it is far more than
    the noise at x it may still be noise of a kind that a short line does not show, such as that of
    ``1e-9 * sin(1e9 * x)``, or every entry may have a kink. Kinks and curvature make the second
    difference at twice the distance at least twice as large; noise knows nothing of distances.
    """
    residuals = np.abs(differences.residuals()[differences.side == 0])
    residuals = residuals[np.isfinite(residuals)]
    if residuals.size == 0:
        return noise.level
    found = float(np.quantile(residuals, 0.5, method="lower")) / 0.67
    if found <= _NOISIEST * noise.level:
        return max(found, noise.level)
    half = differences.multiples.index(differences.multiples[-1] // 2)
    near, far = differences.second[half], differences.second[-1]
    grows = (np.sign(near) * far >= 2 * np.abs(near) - 4 * noise.level)[differences.side == 0]
    if residuals.size >= 8 and np.count_nonzero(grows) < grows.size / 2:
        return found
    return _NOISIEST * noise.level


def _difference_table(objective: Objective) -> float:
    """Return the standard deviation of the noise by Moré and Wild's difference table."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], objective.size)
    if objective.inward is not None:
        signs = objective.inward
    unit = objective.eps * signs * np.maximum(np.abs(objective.center), 1e-3)
    direction = np.where(np.isfinite(unit), unit, 0.0)
    for spacing in (*_SPACINGS, *_FAR):
        # From x on to one side: x itself may lie on a kink.
        values = objective.evaluate_line(direction, spacing * np.arange(_POINTS))
        if not np.isfinite(values).all():
            return 0.0
        if np.count_nonzero(np.diff(values)) <= _POINTS // 2:
            continue
        if spacing in _FAR:
            return _step_of(values) / math.sqrt(12)
        found = _deviation(values)
        if found > _NOISIEST * np.max(objective.eps) * np.max(np.abs(values)):
            # Closest to x a removable pole, as of (exp(x) - 1) / x, is noisier than further away.
            further = objective.evaluate_line(direction, _SPACINGS[-1] * np.arange(_POINTS))
            if np.isfinite(further).all() and _deviation(further) < found / _NOISIEST:
                return _deviation(further)
        return found
    return 0.0


def _step_of(values: FloatArray) -> float:
    """Return the step that all values are whole multiples of apart: their rounding, if no more."""
    rounding = 8 * np.finfo(np.float64).eps * float(np.max(np.abs(values)))
    step = 0.0
    for apart in np.abs(np.diff(values)).tolist():
        while apart > rounding:  # Euclid's algorithm
            rest = math.fmod(step, apart)
            step, apart = apart, min(rest, apart - rest)
    return step


def _deviation(values: FloatArray) -> float:
    """Return the deviation of noise whose differences of fourth and fifth order are the values'."""
    scales = {order: math.factorial(order) ** 2 / math.factorial(2 * order) for order in (4, 5)}
    with np.errstate(over="ignore"):  # the squares of values above 1e154
        squares = {order: float(np.mean(np.diff(values, order) ** 2)) for order in scales}
    return math.sqrt(max(scale * squares[order] for order, scale in scales.items()))
