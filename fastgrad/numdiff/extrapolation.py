"""``h="auto"``: steps that look at the function, and extrapolation to a step of zero.

Each entry has a ladder of steps, each a fixed part of the one before, with a central difference on
each rung. Extrapolated to a step of zero (Romberg), three rungs or more give the derivative, and
the last correction an estimate of its error. The ladder grows by a shorter step where the function
bends too much, by a longer one where rounding is the larger error, and until neither helps.

C. J. F. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4 (1982);
J. N. Lyness and C. B. Moler, "Van der Monde systems and numerical differentiation", Numer. Math. 8
(1966).
"""

# The type of what arithmetic on arrays gives is left open by NumPy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgrad.numdiff.entries import Entries
from fastgrad.validation import FloatArray, IntArray

#: Each step is this part of the one before. A whole number would fall into step with a periodic
#: function: where sin(100 h) is 0 on one rung, it would be so on all.
_RATIO = 3.6

#: The first step is this times the root of |x|, between functions that scale with x and those
#: that do not.
_FIRST, _SMALLEST = 0.06, 1e-4

#: At most so many rungs, of two values each.
_RUNGS = 12

#: An error of this part of the slope is small enough; above that of the second one, a second try
#: is worth while.
_ENOUGH, _TOO_MUCH = 2e-12, 1e-10

#: So many times the last correction is an upper estimate of what is left: terms of different orders
#: may cancel each other in one of the two numbers that it is taken from.
_UPPER = 4

#: Slopes that differ by less than so many times their rounding may differ by noise.
_NOISE = 30

#: A jump of the slope that changes by less than this factor from one rung to the next is a kink's.
#: One of a smooth function falls by 3.6, one that is noise grows by as much.
_STEADY = 2.0

#: Slopes whose differences grow steadily, by a factor within these limits, go to infinity. Those of
#: noise grow by 3.6 on the whole, and not steadily.
_DIVERGES = (1.2, 3.2)

#: Rounding on one side: ``2 s(h/2) - s(h)`` has so many times the rounding of a central difference.
_ONE_SIDED_ROUNDING = 6.0

#: The least offset there is: it is widened to the next floating-point number.
_NEAREST = np.array([[1e-300], [-1e-300]])

Mask = NDArray[np.bool_]
Values = Callable[[IntArray, FloatArray], tuple[FloatArray, FloatArray]]


class Extrapolated(NamedTuple):
    """What extrapolation gave for each entry.

    Attributes
    ----------
    slope, error : ndarray, shape (M,)
        The derivative, and an upper estimate of its error.
    half_slope_jump : ndarray, shape (M,)
        Half the difference between the slopes to the right and to the left, over the shortest step
        where that is not noise: what stays of it there is a kink.
    kink : ndarray of bool, shape (M,)
        Whether there is one, at the point itself or next to it.
    """

    slope: FloatArray
    error: FloatArray
    half_slope_jump: FloatArray
    kink: Mask


def extrapolate(
    values: Values, center: FloatArray, here: FloatArray, eps: FloatArray, noise: float = 0.0
) -> Extrapolated:
    """Differentiate functions of one variable, each at a point.

    Parameters
    ----------
    values : callable
        ``values(which, offsets)`` evaluates some of the functions, `which` of shape (M,), beside
        their points, at offsets of shape (K, M). It returns the values, NaN where a function is not
        defined, and the points as they were rounded.
    center, here : ndarray, shape (M,)
        The points, and the values there.
    eps : ndarray, shape (M,)
        The machine epsilon of each.
    noise : float
        The noise of the values, if it is more than their rounding.

    Returns
    -------
    Extrapolated
    """
    everything = np.arange(center.size)
    with np.errstate(all="ignore"):
        ladders = _Ladders(values, center, here, eps, noise)
        ladders.restart(everything, _first_step(center))
        ladders.restart_where_undefined(everything)
        ladders.extend(ladders.restart_where_flat(everything))
        ladders.try_again(*ladders.near_zero())
        ladders.try_again(*ladders.in_noise())
        return ladders.result()


def extrapolated(entries: Entries, noise: float = 0.0) -> Extrapolated:
    """Differentiate by some entries, with steps that look at the function and its noise."""
    unit = np.max(entries.eps, initial=0) * np.max(np.abs(entries.here), initial=0)
    here = np.broadcast_to(entries.here, entries.center.shape)
    level = 2 * noise if noise > unit else 0.0
    found = extrapolate(entries.values, entries.center, here, entries.eps, level)
    undefined = np.flatnonzero(np.isnan(found.slope))
    if undefined.size:  # f may have raised there: let it do so again
        entries.values(undefined[:1], _NEAREST, tolerant=False)
    return found


def _first_step(center: FloatArray) -> FloatArray:
    size = np.abs(center)
    return np.maximum(_FIRST * np.sqrt(np.maximum(size, _SMALLEST)), 1e-6 * size)


class _Ladders:
    """The rungs of all entries, the longest step first; rows that are not in use are NaN."""

    def __init__(
        self, values: Values, center: FloatArray, here: FloatArray, eps: FloatArray, noise: float
    ) -> None:
        size = center.size
        self.values, self.center, self.here, self.eps = values, center, here, eps
        # The noise of the values beside x, and of the value at x, which only the jumps have.
        self.noise = np.full((2, size), noise)
        self.first, self.side = np.zeros((2, size))
        self.largest = np.zeros(size)  # value met over the first step
        self.measured = np.full((4, 2 * _RUNGS + 3, size), np.nan)
        self.slopes, self.jumps, self.rounding, self.rounding_of_jumps = self.measured
        # Which rows are in use: rung 0 is in the middle.
        self.top, self.bottom, self.failures = np.zeros((3, size), np.int64)
        self.flat_error = np.full(size, np.nan)
        self.slope, self.error = np.full(size, np.nan), np.full(size, np.inf)

    def restart(self, which: IntArray, first: FloatArray) -> None:
        """Put up the first three rungs."""
        if which.size == 0:
            return
        self.measured[..., which] = np.nan
        self.first[which] = first
        self.top[which], self.bottom[which] = _RUNGS, _RUNGS + 2
        self._climb(which, np.broadcast_to(np.arange(3)[:, None] + _RUNGS, (3, which.size)))

    def _steps(self, rows: IntArray, which: IntArray) -> FloatArray:
        return self.first[which] * _RATIO ** (float(_RUNGS) - rows)

    def _climb(self, which: IntArray, rows: IntArray) -> None:
        """Evaluate the functions on some rungs of theirs, the rows of shape (R, M)."""
        if which.size == 0:
            return
        x, f, side = self.center[which], self.here[which], self.side[which]
        h = self._steps(rows, which)
        central = side == 0
        offsets = np.array([h, np.where(central, -h, h / 2)]) * np.where(central, 1, side)
        found, points = self.values(which, offsets.reshape(-1, which.size))
        above, below = np.where(np.isfinite(found), found, np.nan).reshape(offsets.shape)
        upper, lower = points.reshape(offsets.shape)
        right, left = (above - f) / (upper - x), (below - f) / (lower - x)
        slopes = np.where(central, (above - below) / (upper - lower), 2 * left - right)
        jumps = (right - left) / np.where(central, 2, 1)
        # f is rounded, and so is x where f takes it in.
        largest = np.maximum(np.maximum(np.abs(above), np.abs(below)), np.abs(f))
        rounding = self.eps[which] / 2 * (largest + np.abs(x * slopes))
        # What is noisier than that is so, most often, because it is computed in float32: then the
        # noise grows with the values.
        noise, noise_here = self.noise[:, which]
        begun = rows[0] == _RUNGS
        self.largest[which[begun]] = largest[0, begun]
        grown = np.fmax(largest / self.largest[which], 1)
        rounding = np.maximum(rounding, noise * grown) / h
        rounding = np.where(central, rounding, _ONE_SIDED_ROUNDING * rounding)
        rounding_of_jumps = np.maximum(rounding, noise_here / h)
        self.measured[:, rows, which] = slopes, jumps, rounding, rounding_of_jumps

    def restart_where_undefined(self, which: IntArray) -> None:
        """Take shorter steps where f is not defined; if that does not help, go to one side.

        The edge of a domain is most often at 0, so steps shorter than x stay clear of it.
        """
        undefined = which[np.isnan(self.slopes[self.bottom[which], which])]
        near = undefined[self.center[undefined] != 0]
        self.restart(near, np.abs(self.center[near]) / _RATIO)
        for side in (1.0, -1.0):
            undefined = undefined[np.isnan(self.slopes[self.bottom[undefined], undefined])]
            self.side[undefined] = side
            self.restart(undefined, _first_step(self.center[undefined]))

    def restart_where_flat(self, which: IntArray) -> IntArray:
        """Take a far longer step where f did not change at all, to see whether it depends on x.

        Returns
        -------
        ndarray of int
            Those of `which` where it does, or might do.
        """
        flat = self._flat(which)
        size = np.abs(self.center[flat])
        small = (size > 0) & (size < self.first[flat])  # f may depend on x on the scale of x
        self.restart(flat[small], size[small] / _RATIO)
        flat = self._flat(flat)
        rounding = self.eps[flat] * np.abs(self.here[flat])
        self.flat_error[flat] = rounding / _first_step(self.center[flat])
        far = 20 * np.maximum(np.abs(self.center[flat]), 1.0)
        found, _ = self.values(flat, np.array([far, -far])) if flat.size else (far[None], far)
        constant = (found == self.here[flat]).all(axis=0)
        self.restart(flat[~constant], far[~constant])
        self.flat_error[flat[constant]] = rounding[constant]
        return np.setdiff1d(which, flat[constant])

    def _flat(self, which: IntArray) -> IntArray:
        rows = self.top[which] + np.arange(3)[:, None]
        return which[self._is_flat(rows, which).all(axis=0)]

    def near_zero(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return steps shorter than x where f bends on that scale, or nothing was found.

        Poles and kinks are most often at 0, and parameters of 1e-9 are so in their unit.

        Returns
        -------
        which : ndarray of int, shape (M,)
        first : ndarray, shape (M,)
        noise : ndarray, shape (2, M)
        """
        shortest = self._steps(self.bottom, np.arange(self.center.size))
        few = shortest * _RATIO**3 > np.abs(self.center)  # rungs on that scale
        beyond = few & (self.center != 0) & (self.side == 0)
        which = np.flatnonzero(beyond & ~np.isfinite(self.flat_error))
        first, noise = np.abs(self.center[which]) / _RATIO, self.noise[:, which]
        if which.size == 0:
            return which, first, noise
        found, (upper, lower) = self.values(which, np.array([first, -first]))
        slope = (found[0] - found[1]) / (upper - lower)
        scale = np.maximum(np.max(np.abs(found), axis=0), np.abs(self.here[which]))
        rounding = np.maximum(self.eps[which] * scale, noise[0]) / first
        error = self.error[which]
        other = np.abs(slope - self.slope[which]) > error + _NOISE * rounding
        better = (error > np.abs(slope)) & (np.abs(slope) > _NOISE * rounding)
        again = other | better | ~np.isfinite(error)
        return which[again], first[again], noise[:, again]

    def in_noise(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return the quietest steps where nothing was found, with the noise that they show.

        The differences between the slopes of a smooth function shrink with the step until they are
        noise, and grow from there on: it is what the first ones after the smallest show. Those of
        a function with kinks or peaks close to x shrink again, and the smallest are the last.
        """
        lost = ~np.isfinite(self.error) | self._is_flat(self.bottom, np.arange(self.center.size))
        which = np.flatnonzero(lost & ~np.isfinite(self.flat_error))
        rows = self._quietest(which)
        loud = (self.bottom[which] > rows + 2) & ~self._diverges(which)
        loud &= ~(np.isfinite(self.error[which]) & self._is_steady(rows + 1, which))
        loud &= self.slopes[rows + 3, which] != self.slopes[rows + 2, which]
        which, rows = which[loud], rows[loud]
        steps = self._steps(rows, which)
        slopes = self.slopes[rows + np.arange(4)[:, None], which]
        jumps = np.abs(self.jumps[rows + np.arange(3)[:, None], which])
        shown = np.abs(slopes[3] - slopes[2]) * steps / _RATIO**3
        beside = np.fmax(self.noise[0, which], shown)
        # A jump that grows as steps shrink is noise of f(x); a kink's stays, a smooth one's falls.
        grown = np.where(jumps[2] > _STEADY * jumps[0], jumps[2] * steps / _RATIO**2, 0.0)
        return which, steps, np.array([beside, np.fmax(beside, grown)])

    def try_again(self, which: IntArray, first: FloatArray, noise: FloatArray) -> None:
        """Put up other ladders; go back to the former ones where these show nothing."""
        if which.size == 0:
            return
        state = (self.first, self.top, self.bottom, self.largest, self.measured, self.slope,
                 self.error, self.noise)  # fmt: skip
        former = [array[..., which].copy() for array in state]
        jump = np.abs(self.jumps[self.bottom[which], which])
        self.noise[:, which] = noise
        self.failures[which] = 0
        self.restart(which, first)
        self.extend(which)
        # An error as large as a kink that was seen is no progress.
        lost = ~(self.error[which] < np.where(jump > 0, jump, np.inf))
        for array, values in zip(state, former, strict=True):
            array[..., which[lost]] = values[..., lost]

    def _quietest(self, which: IntArray) -> IntArray:
        """Return the first of the three rungs in a row whose slopes differ least."""
        flat = self._is_flat(np.arange(len(self.slopes))[:, None], which)
        told = np.where(flat, np.nan, self.slopes[:, which])
        apart = np.abs(np.diff(told, axis=0))
        pairs = np.maximum(apart[:-1], apart[1:])
        quietest = np.argmin(np.where(np.isfinite(pairs), pairs, np.inf), axis=0)
        unknown = ~np.isfinite(pairs).any(axis=0)
        return np.where(unknown, self.bottom[which] - 2, quietest)

    def _is_flat(self, rows: IntArray, which: IntArray) -> Mask:
        """Return whether f is on a rung what it is at x."""
        return (self.slopes[rows, which] == 0) & (self.jumps[rows, which] == 0)

    def _is_steady(self, rows: IntArray, which: IntArray) -> Mask:
        """Return whether the jump on a rung is about that on the rung before, as at a kink."""
        jump, before = (np.abs(self.jumps[rows - k, which]) for k in (0, 1))
        return (jump * _STEADY > before) & (jump < _STEADY * before)

    def _diverges(self, which: IntArray) -> Mask:
        """Return whether the slopes go to infinity, as those of a root at 0."""
        apart = np.diff(self.slopes[self.bottom[which] - np.arange(5)[:, None], which], axis=0)
        growth = apart[:-1] / apart[1:]
        return ((growth > _DIVERGES[0]) & (growth < _DIVERGES[1])).all(axis=0)

    def extend(self, active: IntArray) -> None:
        """Add rungs until they help no more."""
        while active.size:
            active, longer = self.select(active)
            self.top[active] -= longer
            self.bottom[active] += ~longer
            self._climb(active, np.where(longer, self.top[active], self.bottom[active])[None, :])

    def select(self, active: IntArray) -> tuple[IntArray, Mask]:
        """Extrapolate; return which ladders are to grow, and whether by a longer step."""
        count = int((self.bottom[active] - self.top[active]).max()) + 1
        rows = self.bottom[active] + np.arange(1 - count, 1)[:, None]
        slopes, jumps, rounding, rounding_of_jumps = self.measured[:, rows, active]
        apart = slopes[1:] - slopes[:-1]
        noisy = np.abs(apart) <= _NOISE * rounding[1:]
        regular, settled = _regular(apart, np.abs(jumps), rounding, rounding_of_jumps, noisy)
        best, error, correction, first, last = _romberg(
            slopes, rounding, regular, settled, np.where(self.side[active] == 0, 2, 1)
        )

        columns, lost = np.arange(active.size), ~np.isfinite(error)
        self.failures[active] += ~lost & (error > 0.5 * self.error[active])
        self.slope[active], self.error[active] = best, error
        # Longer steps help against rounding, if the extrapolation reaches to the longest one so
        # far, and f does not grow faster than the steps.
        height = (self.bottom - self.top)[active]
        top = count - 1 - height
        falls = rounding[top, columns] < rounding[top + 1, columns]
        can_grow = (first == top) & falls
        by_rounding = correction < 1.5 * rounding[last, columns]
        unseen = noisy & (np.abs(jumps[1:]) <= _NOISE * rounding_of_jumps[1:])
        only_noise = (unseen | np.isnan(apart)).all(axis=0) & np.isfinite(slopes[top, columns])
        longer = np.where(lost, only_noise, by_rounding & can_grow)
        tries = np.where(error > _TOO_MUCH * np.abs(best), 2, 1)
        enough = (error <= _ENOUGH * np.abs(best)) | (by_rounding & ~can_grow)
        done = ~lost & (enough | (self.failures[active] >= tries)) | (height >= _RUNGS - 1)
        return active[~done], longer[~done]

    def result(self) -> Extrapolated:
        """Return the derivatives; where no ladder was regular, what the shortest steps show."""
        columns, lost = np.arange(self.center.size), ~np.isfinite(self.error)
        bottom = self.bottom.copy()
        bottom[lost] = self._quietest(np.flatnonzero(lost)) + 2
        jump, before = self.jumps[bottom, columns], self.jumps[bottom - 1, columns]
        apart = np.abs(self.slopes[bottom, columns] - self.slopes[bottom - 1, columns])
        noise = 2 * self.rounding_of_jumps[bottom, columns]
        diverges = lost & self._diverges(columns)
        kink = lost & ~diverges & self._is_steady(bottom, columns) & (np.abs(jump) > 8 * noise)
        slope = np.where(lost, self.slopes[bottom, columns], self.slope)
        widest = 2 * np.maximum(np.abs(jump), np.abs(before)) + 2 * apart
        error = np.where(diverges, np.inf, np.where(lost, widest, self.error))
        # What no step shows may be a bounded function of a few times the noise, such as that of
        # 1e-20 sin(x) beside 1e-5, whose differences over long steps tell nothing.
        hidden = np.abs(slope) < 4 * error
        below = np.maximum(self.eps * np.abs(self.here) / 2, self.noise[0])
        below = 4 * below / np.maximum(np.abs(self.center), 1.0)
        error = np.where(hidden, np.maximum(error, below), error)
        # Flat beside x: the slope is 0 to rounding, whatever else far steps seem to show.
        flat = np.isfinite(self.flat_error) & (lost | (np.abs(slope) > 2 * self.flat_error))
        slope[flat], error[flat], kink[flat] = 0.0, self.flat_error[flat], False
        return Extrapolated(slope, error, jump, kink)


def _regular(
    apart: FloatArray, jumps: FloatArray, rounding: FloatArray, rounding_of_jumps: FloatArray,
    noisy: Mask,
) -> tuple[Mask, Mask]:  # fmt: skip
    """Return which three rungs in a row are those of a smooth function, and of which all below are.

    There the slopes' differences shrink with the square of the step, by 13, and the jumps with the
    step, by 3.6, or faster. Further down both may be noise.
    """
    errors = rounding[1:-1] + rounding[2:]
    smaller = np.abs(apart[1:]) <= np.abs(apart[:-1]) / 6 + 2 * errors
    flatter = jumps[1:] <= 0.4 * jumps[:-1] + 4 * rounding_of_jumps[1:]
    regular = smaller & flatter[1:] & flatter[:-1] & np.isfinite(apart[:-1] + apart[1:])
    fine = regular | (noisy[1:] & noisy[:-1])
    settled = np.logical_and.accumulate(fine[::-1], axis=0)[::-1]
    return regular, settled


def _romberg(
    slopes: FloatArray, rounding: FloatArray, regular: Mask, settled: Mask, power: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray, IntArray]:
    """Return the best extrapolation of regular rungs, and an upper estimate of its error.

    Parameters
    ----------
    slopes, rounding : ndarray, shape (K, M)
    regular, settled : ndarray of bool, shape (K - 2, M)
        As `_regular` returns them.
    power : ndarray of int, shape (M,)
        The errors are a series in the powers ``2, 2 + power, 2 + 2 power, ..`` of the step.

    Returns
    -------
    best, error : ndarray, shape (M,)
        The estimate is infinite where no three rungs are regular.
    correction : ndarray, shape (M,)
        The part of the error that is not rounding.
    first, last : ndarray of int, shape (M,)
        The rungs extrapolated from.
    """
    count, size = slopes.shape
    # By the column of the Romberg table, and by the last rung that each extrapolation is from.
    values, corrections = np.full((2, count - 2, count, size), np.nan)
    weights = _RATIO ** (2.0 + np.arange(count - 1)[:, None] * power) - 1
    table, usable = slopes, settled
    for column in range(1, count):
        finer = table[1:]
        table = finer + (finer - table[:-1]) / weights[column - 1]
        if column > 1:
            # Each three rungs in a row of those from the first to the last are regular.
            usable = usable[: len(table)] & regular[column - 2 :]
            values[column - 2, column:] = np.where(usable, table, np.nan)
            corrections[column - 2, column:] = np.abs(table - finer)
    by_rounding = 2 * rounding
    by_rounding[1:] += 0.1 * rounding[:-1]
    errors = _UPPER * corrections + by_rounding
    # By its last rung, each extrapolation sees the derivative within limits. Long steps may agree
    # with one another by chance: the shorter ones know better.
    low, high = np.full((2, count, size), np.nan)
    low[:-1] = np.fmax.accumulate(np.fmax.reduce(values - errors)[:0:-1])[::-1]
    high[:-1] = np.fmin.accumulate(np.fmin.reduce(values + errors)[:0:-1])[::-1]
    errors = np.fmax(errors, np.fmax(low - values, values - high))
    errors = np.where(np.isfinite(values + errors), errors, np.inf).reshape(-1, size)

    columns = np.arange(size)
    chosen = errors.argmin(axis=0)
    best, correction = (a.reshape(-1, size)[chosen, columns] for a in (values, corrections))
    column, last = np.divmod(chosen, count)
    return best, errors[chosen, columns], correction, last - column - 2, last
