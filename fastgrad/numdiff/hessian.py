"""Second derivatives of a function of an array by extrapolated central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad.numdiff.arguments import array_of
from fastgrad.numdiff.entries import warn_of_copy
from fastgrad.numdiff.objective import Function, Objective, one_number
from fastgrad.numdiff.trees import RestoredOnExit
from fastgrad.validation import FloatArray, IntArray, flag

__all__ = ["numerical_hessian"]

#: The longest step is this times the root of |x|; where x is small, that of the second number.
_FIRST, _SMALLEST = 0.3, 1e-2

#: Each step is half the one before; at most so many of them.
_RUNGS = 14

#: An error of this part of the second derivative is small enough.
_ENOUGH = 1e-11


def numerical_hessian(
    f: Function, x: Any, *, args: tuple[Any, ...] = (), error: bool = False
) -> Any:
    r"""Compute the matrix of second derivatives of a function by central differences.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one number, real or complex.
    x : array_like
        Where to differentiate, real; any shape. A float64 array is perturbed in place and restored
        exactly, whatever happens; anything else is converted first, and f sees the converted array.
    args : tuple
        Further arguments of f.
    error : bool
        Whether to return an estimate of the error as well.

    Returns
    -------
    hessian : ndarray of float64, or complex128 if f(x) is complex, shape x.shape + x.shape
        Symmetric, even if complex: ``hessian[i, j] == hessian[j, i]`` for all indices of x.
    error : ndarray of float64, of the same shape
        Only with ``error=True``: an estimate of the absolute error of each element.

    Warns
    -----
    UserWarning
        If f gives the same values everywhere although x was converted: f reads another array then.

    Raises
    ------
    TypeError
        If an argument has the wrong type, x is a tree, or f returns something else than a number.
    ValueError
        If f returns more than one number, changes x, or is real at x and complex elsewhere.
    Exception
        Whatever f raises.

    Notes
    -----
    The second derivative by x_i alone is ``(f(x + h) - 2 f(x) + f(x - h)) / h**2``. That by x_i and
    x_j takes two further evaluations, with both entries moved by +h and both by -h: the second
    difference there, less those of the two entries alone, is ``2 h_i h_j`` times the mixed
    derivative. Both have errors in even powers of h, which are extrapolated to a step of zero over
    steps that are halved until the estimate of the error is small or no longer falls. Smooth
    functions have some ten correct digits, with 4 to 11 n**2 evaluations for n entries.

    Examples
    --------
    >>> import numpy as np
    >>> numerical_hessian(lambda x: x[0] ** 2 * x[1], np.array([3.0, 4.0])).round(8)
    array([[8., 6.],
           [6., 0.]])
    """
    error = flag(error, "error")
    is_short = isinstance(x, np.ndarray) and x.dtype == np.float32
    # Second differences need all digits.
    tree = array_of(x.astype(np.float64) if is_short else x, "x")
    with np.errstate(all="ignore"):
        second = _Second(Objective(f, tree, args))
        hessian, estimate = _extrapolated(second)
    if (is_short or tree.converted) and second.size and not second.varies:
        warn_of_copy(stacklevel=3)
    shape = tree.leaves[0].array.shape * 2
    hessian, estimate = hessian.reshape(shape), estimate.reshape(shape)
    return (hessian, estimate) if error else hessian


class _Second:
    """Second differences of a function of an array, whose entries are counted in C order."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.tree = objective, objective.x
        self.center = self.tree.leaves[0].array.reshape(-1).copy()
        self.size = self.center.size
        self.first = _FIRST * np.sqrt(np.maximum(np.abs(self.center), _SMALLEST))
        self.first = np.maximum(self.first, 1e-4 * np.abs(self.center))
        self.here = objective.value(_number)
        self.dtype = type(self.here)
        self.largest = abs(self.here)
        self.varies = False

    def over(self, rung: int, i: IntArray, j: IntArray) -> tuple[NDArray[Any], FloatArray]:
        """Return the derivatives by pairs of entries over one step, and their rounding."""
        upper = self.center + self.first / 2**rung
        h = upper - self.center  # as it was rounded
        alone = np.union1d(i, j)
        mixed = i != j
        moved = [*alone[:, None].tolist(), *np.transpose([i[mixed], j[mixed]]).tolist()]
        sums = self._values(moved, h) + self._values(moved, -h) - 2 * self.here
        second = np.zeros(self.size, self.dtype)
        second[alone] = sums[: alone.size]
        slopes, area = second[i] / h[i] ** 2, h[i] * h[j]
        both = sums[alone.size :] - second[i[mixed]] - second[j[mixed]]
        slopes[mixed] = both / (2 * area[mixed])
        return slopes, 4 * np.finfo(np.float64).eps * self.largest / area

    def _values(self, moved: list[list[int]], offsets: FloatArray) -> NDArray[Any]:
        """Evaluate f with some entries at a time moved; NaN where it is not defined."""
        values = np.empty(len(moved), self.dtype)
        with RestoredOnExit(self.tree, is_read_only=True) as root:
            array = self.tree.leaves[0].array
            for k, entries in enumerate(moved):
                array.flat[entries] = self.center[entries] + offsets[entries]
                try:
                    number = _number(self.objective.f(root, *self.objective.args))
                except ArithmeticError:
                    number = np.nan
                if isinstance(number, complex) and self.dtype is not complex:
                    raise ValueError("`f` must return complex numbers at every point or at none. "
                                     f"Got {number}, and {self.here} at `x`.")  # fmt: skip
                values[k] = number
                array.flat[entries] = self.center[entries]
        self.varies = self.varies or bool((values != self.here).any())
        finite = np.abs(values[np.isfinite(values)])
        self.largest = max(self.largest, float(finite.max(initial=0)))
        return values


def _number(value: Any) -> float | complex:
    """Return what f returned as a number."""
    if np.iscomplexobj(value) and np.size(value) == 1:
        return complex(np.asarray(value).item())
    return one_number(value)


def _extrapolated(second: _Second) -> tuple[NDArray[Any], FloatArray]:
    """Extrapolate the derivatives by all pairs of entries; return them, and their errors."""
    i, j = np.triu_indices(second.size)
    best, error = np.full(i.size, np.nan, second.dtype), np.full(i.size, np.inf)
    row = np.empty((0, i.size), second.dtype)  # the last one of each pair's Romberg table
    active = np.arange(i.size)
    for rung in range(_RUNGS if second.size else 0):
        slope, rounding = second.over(rung, i[active], j[active])
        new = np.full((rung + 1, i.size), np.nan, second.dtype)
        new[0, active] = slope
        if rung == 0:
            best = slope
        for column in range(1, rung + 1):
            correction = (new[column - 1] - row[column - 1]) / (4.0**column - 1)
            new[column] = new[column - 1] + correction
            # What two neighbours say differs by more than the error of the better one.
            apart = np.maximum(
                np.abs(new[column] - new[column - 1]), np.abs(new[column] - row[column - 1])
            )
            estimate = apart[active] + rounding
            better = estimate < error[active]
            chosen = active[better]
            best[chosen], error[chosen] = new[column, chosen], estimate[better]
        row = new
        # Shorter steps are left out where rounding alone is more than the error so far.
        settled = (error[active] <= _ENOUGH * np.abs(best[active])) | (rounding > error[active])
        active = active[~settled]
        if active.size == 0:
            break
    errors = np.empty((second.size, second.size))
    hessian = errors.astype(second.dtype)
    hessian[i, j] = hessian[j, i] = best
    errors[i, j] = errors[j, i] = error
    return hessian, errors
