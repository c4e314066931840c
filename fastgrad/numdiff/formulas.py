"""Finite differences with given steps: formulas of three orders, and how far to trust them."""

# The type of what arithmetic on arrays gives is left open by NumPy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad.numdiff.entries import Entries
from fastgrad.validation import FloatArray, IntArray

#: Central differences of each order: the slope between x - k h and x + k h has weight w[k].
CENTRAL: dict[int, dict[int, float]] = {
    2: {1: 1.0},
    4: {1: 4 / 3, 2: -1 / 3},
    6: {1: 3 / 2, 2: -3 / 5, 3: 1 / 10},
}

#: One-sided differences of each order: the slope between x and x + k h has weight w[k]. They are
#: the slopes extrapolated to k = 0 by a polynomial, which makes the weights binomial coefficients.
ONE_SIDED: dict[int, dict[int, float]] = {
    order: {k: -float((-1) ** k * math.comb(order, k)) for k in range(1, order + 1)}
    for order in CENTRAL
}

#: Half slope jumps that disagree by more than this part of what the slopes do are a kink's.
_KINK = 0.3

#: Differences of one-sided slopes that grow by less, with twice the step, are not a smooth one's.
_DOUBLES = 1.5


@dataclass
class Differences:
    """A function's values around some of its entries, and what follows from them.

    Attributes
    ----------
    multiples : tuple of int
        Central points are ``x + k h`` and ``x - k h`` for each k of these.
    one_sided : tuple of int
        Those of entries near a bound are ``x + k h``, or ``x - k h``, for each k of these. Empty if
        there are no such entries.
    points, values : ndarray, shape (K, M)
        The points in turn, as they were rounded, and the function's values there.
    center : ndarray, shape (M,)
    here : float, or ndarray of shape (M,)
        The value at x.
    side : ndarray of int, shape (M,)
        0 for central points, else 1 or -1.

    Notes
    -----
    The slopes of a smooth function between x - t and x + t are f' and a multiple of t**2, the
    *half slope jumps*, half the difference between the slopes to its right and to its left, a
    multiple of t; with terms of higher order. A kink at the distance d on one side adds the same to
    both, a multiple of 1 - d / t for t > d. That is how it is told from curvature.
    """

    multiples: tuple[int, ...]
    one_sided: tuple[int, ...]
    points: FloatArray
    values: FloatArray
    center: FloatArray
    here: float | FloatArray
    side: IntArray

    @functools.cached_property
    def slopes(self) -> dict[int, FloatArray]:
        """The slope between the two points of each multiple."""
        slopes = (self.values[0::2] - self.values[1::2]) / (self.points[0::2] - self.points[1::2])
        return dict(zip(self.multiples, slopes, strict=True))

    @functools.cached_property
    def second(self) -> FloatArray:
        """The second difference ``f(x + k h) + f(x - k h) - 2 f(x)`` of each multiple."""
        return self.values[0::2] + self.values[1::2] - 2 * self.here

    @functools.cached_property
    def half_slope_jumps(self) -> dict[int, FloatArray]:
        """Half the difference between the slopes to the right and to the left."""
        jumps = self.second / (self.points[0::2] - self.points[1::2])
        return dict(zip(self.multiples, jumps, strict=True))

    @functools.cached_property
    def one_sided_slopes(self) -> FloatArray:
        """The slope between x and each point."""
        return (self.values - self.here) / (self.points - self.center)

    def gradient(self, order: int) -> FloatArray:
        """Return the difference of an order.

        Where a kink lies within an order's points, it is that of the largest order below.
        """
        found = self.slopes[1]
        if order > 2:
            chosen = self._orders(order)
            for higher in range(4, order + 1, 2):
                formula = _weighted(CENTRAL[higher], self.slopes)
                found = np.where(chosen >= higher, formula, found)
        if self.one_sided:
            found = np.where(self.side == 0, found, _weighted(ONE_SIDED[order], self._beside()))
        return found

    def error(self, order: int, noise: FloatArray) -> FloatArray:
        """Return an upper estimate of the error of `gradient`.

        Parameters
        ----------
        order : int
        noise : ndarray, shape (M,)
            The error to expect of the function's values.
        """
        noise = noise / np.abs(self.points[0] - self.center)  # of a slope over one step
        chosen = self._orders(order)
        found = estimate = np.full(noise.shape, np.inf)
        below = self.slopes[1]
        for p in range(2, order + 1, 2):
            fine, coarse = (_weighted(CENTRAL[p], self.slopes, times) for times in (1, 2))
            own = _richardson(np.abs(fine - coarse), noise * _amplification(CENTRAL[p]), p)
            for low, high in ((1, 2), (2, 4), (3, 6))[: p // 2]:
                slope, jump = self._disagreement(low, high)
                kink = jump > _KINK * slope + 4 * noise
                own = np.where(kink, np.maximum(own, 2 * np.maximum(slope, jump) + noise), own)
            estimate = np.fmin(own, np.abs(fine - below) + estimate)
            found = np.where(chosen >= p, estimate, found)
            below = fine
        if self.one_sided:
            weights, slopes = ONE_SIDED[order], self._beside()
            rounding = noise * _amplification(weights)
            apart = np.abs(_weighted(weights, slopes) - _weighted(weights, slopes, 2))
            # The slopes' differences of a smooth function double with the step. Where they do not,
            # f bends too much for these steps to tell how wrong they are.
            near, far = np.abs(slopes[2] - slopes[1]), np.abs(slopes[4] - slopes[2])
            apart = np.where(far < _DOUBLES * near - 8 * rounding, np.inf, 2 * apart)
            found = np.where(self.side == 0, found, rounding + apart)
        return found

    def _orders(self, order: int) -> IntArray:
        """Return for each entry the largest order whose points have no kink between them."""
        chosen = np.full(self.center.shape, 2)
        if order > 2:
            slope, jump = self._disagreement(1, 2)
            chosen[jump <= _KINK * slope] = 4
        if order > 4:  # both continued from the first two multiples
            s1, s2, s3 = (self.slopes[k] for k in (1, 2, 3))
            j1, j2, j3 = (self.half_slope_jumps[k] for k in (1, 2, 3))
            slope = np.abs(s3 - s1 - (s2 - s1) * 8 / 3)
            jump = np.abs(j3 - 4 * j2 + 5 * j1)
            chosen[(jump <= _KINK * slope) & (chosen == 4)] = 6
        return chosen

    def _disagreement(self, low: int, high: int) -> tuple[FloatArray, FloatArray]:
        """Return how far the slopes, and half their jumps, of two multiples disagree."""
        slopes, jumps = self.slopes, self.half_slope_jumps
        return np.abs(slopes[high] - slopes[low]), np.abs(jumps[high] - high / low * jumps[low])

    def _beside(self) -> dict[int, FloatArray]:
        """Return the slope between x and the one-sided point of each multiple."""
        return dict(zip(self.one_sided, self.one_sided_slopes, strict=True))

    def unit(self, eps: FloatArray) -> FloatArray:
        """Return a unit in the last place of the largest value met at each entry."""
        return eps * np.max(np.abs(self.values), axis=0)

    def residuals(self) -> FloatArray:
        """Return what no smooth curve explains of each entry's values.

        The sums f(x + k h) + f(x - k h) are a polynomial in k**2 as far as f is smooth, and the
        highest divided difference of all of them is what is left; scaled so that noise of
        deviation s in every value gives it the deviation s.
        """
        nodes = [0, *(k * k for k in self.multiples)]
        weights = [1 / math.prod(a - b for b in nodes if b != a) for a in nodes]
        sums = self.values[0::2] + self.values[1::2]
        rest = sum(w * s for w, s in zip(weights[1:], sums, strict=True))
        scale = math.sqrt(4 * weights[0] ** 2 + 2 * sum(w * w for w in weights[1:]))
        return (rest + 2 * self.here * weights[0]) / scale


def evaluate_around(entries: Entries, steps: FloatArray, order: int, *, twice: bool) -> Differences:
    """Evaluate a function around some of its entries.

    Entries too near to a bound for central points get points on one side of x, and smaller steps
    where these do not fit either. With `twice` there is also what the formula needs for steps twice
    as large. The order 2 alone does not need the function's value at x.
    """
    multiples, one_sided = _multiples(order, twice=twice)
    center = entries.center
    side = np.zeros(center.shape, np.int64)
    offsets = _offsets(multiples) * steps
    if entries.bounds is None:
        one_sided = ()
    else:
        low, high = entries.bounds
        reach = steps * multiples[-1]
        outside = (center + reach > high) | (center - reach < low)
        upwards = high - center >= center - low
        side[outside] = np.where(upwards, 1, -1)[outside]
        room = np.where(upwards, high - center, center - low) / one_sided[-1]
        away = np.array(one_sided, float)[:, None] * (side * np.minimum(steps, room))
        offsets = np.where(side == 0, offsets, away)
        one_sided = one_sided if outside.any() else ()
    values, points = entries.values(slice(None), offsets, tolerant=False)
    return Differences(multiples, one_sided, points, values, center, entries.here, side)


@functools.cache
def _multiples(order: int, *, twice: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the multiples of h of central points, and as many of one-sided points."""
    central, one_sided = set(CENTRAL[order]), set(ONE_SIDED[order])
    if twice:
        central |= {2 * k for k in central}
        one_sided |= {2 * k for k in one_sided}
    spare = (k for k in range(1, 2 * order) if k not in one_sided)
    missing = itertools.islice(spare, 2 * len(central) - len(one_sided))
    return tuple(sorted(central)), tuple(sorted([*one_sided, *missing]))


@functools.cache
def _offsets(multiples: tuple[int, ...]) -> FloatArray:
    """Return the offsets of central points for a step of 1, as a column."""
    return np.array([[sign * float(k)] for k in multiples for sign in (1, -1)])


def _amplification(weights: dict[int, float]) -> float:
    """Return how many times the error of a slope over one step a formula may have."""
    return sum(abs(w) / k for k, w in weights.items())


def _weighted(weights: dict[int, float], slopes: dict[int, FloatArray], times: int = 1) -> Any:
    """Return the difference of a formula with a multiple of the step."""
    return functools.reduce(np.add, (w * slopes[k * times] for k, w in weights.items()))


def _richardson(disagreement: FloatArray, noise: FloatArray, order: int) -> FloatArray:
    """Estimate the error of a difference at h from how far that at 2 h is from it.

    What may be rounding in the disagreement counts in full; the rest is truncation, of which the
    difference at h has the (2**order - 1)th part, doubled for the orders above.
    """
    rounding = np.minimum(disagreement, 30 * noise)
    return noise + rounding + 2 * (disagreement - rounding) / (2**order - 1)
