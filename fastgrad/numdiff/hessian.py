"""Numerical Hessians: second derivatives by an extrapolated central formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.numdiff import arguments
from fastgrad.numdiff.objective import Objective, one_number
from fastgrad.numdiff.trees import is_tree
from fastgrad.validation import FloatArray

__all__ = ["numerical_hessian"]

#: Steps, each half of the one before, and the largest of them as a part of an entry's size. The
#: rounding error of a second difference is eps / h², its truncation error h²; extrapolation makes
#: that h⁴, h⁶, .., so that steps of some hundredths give nine digits.
_STEPS, _LARGEST = 8, 0.25


def numerical_hessian(
    f: Callable[..., Any], x: Any, *, args: tuple[Any, ...] = (), error: bool = False
) -> Any:
    """Compute the second derivatives of a function of an array.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, one real number.
    x : array_like
        Where to differentiate; any shape, float32 or float64. Moved in place and restored exactly,
        as by `numerical_gradient`.
    args : tuple
        Further arguments of f.
    error : bool
        Whether to return an estimate of the error as well.

    Returns
    -------
    hessian : ndarray, shape ``x.shape + x.shape``
        Symmetric: entry ``[i, j]`` is the derivative by ``x[i]`` and ``x[j]``.
    error : ndarray, of the same shape
        Only with ``error=True``: an upper estimate of the absolute error of each entry.

    Raises
    ------
    TypeError
        If x is a tree, or holds no real numbers, or f returns something else than a real number.
    ValueError
        If f returns more than one number.
    Exception
        Whatever f raises.

    Notes
    -----
    With the steps h of one entry and k of another,
    ``(f(+h, +k) + f(-h, -k) + 2 f - f(+h) - f(-h) - f(+k) - f(-k)) / (2 h k)``, and for one entry
    ``(f(+h) - 2 f + f(-h)) / h**2`` (M. Abramowitz and I. A. Stegun, 25.3.27 and 25.3.23), over
    eight steps, each half of the one before, extrapolated to a step of zero as C. J. F. Ridders did
    (1982): of all extrapolations the one is taken that agrees best with those before it. f is
    evaluated 8 n (n + 1) + 1 times for n entries.

    Examples
    --------
    >>> import numpy as np
    >>> numerical_hessian(lambda x: x[0] ** 2 * x[1], [2.0, 3.0]).round(6)
    array([[6., 4.],
           [4., 0.]])
    """
    if is_tree(x):
        raise TypeError(
            "`x` must be an array. Got a tree; join its arrays, and let f take them apart."
        )
    tree = arguments.tree_of(x, "x")
    objective = Objective(f, tree, args)
    leaf = tree.leaves[0]
    center, size = objective.center, objective.size
    steps = (
        _LARGEST * np.where(center == 0, 1.0, np.abs(center)) * 0.5 ** np.arange(_STEPS)[:, None]
    )
    upper, lower = (objective.nudged(objective.entries, sign * steps) for sign in (1.0, -1.0))
    up, down = upper - center, center - lower  # as they were rounded

    with tree.mounted(), np.errstate(all="ignore"):

        def value(*moved: tuple[int, float]) -> float:
            point = center.copy()
            for entry, number in moved:
                point[entry] = number
            leaf.array[...] = leaf.shaped(point)
            if leaf.is_number:
                leaf.put(float(leaf.array))
            return one_number(f(tree.root, *objective.args))

        here = value()
        alone = np.array(
            [[[value((i, side[k, i])) for i in range(size)] for k in range(_STEPS)]
             for side in (upper, lower)]
        ).reshape(2, _STEPS, size)  # fmt: skip
        hessian, errors = np.empty((2, size, size))
        rounding = np.finfo(leaf.array.dtype).eps * np.abs(alone).max(initial=abs(here))
        for i, j in itertools.combinations_with_replacement(range(size), 2):
            width = (up[:, i] + down[:, i]) / 2 * (up[:, j] + down[:, j]) / 2
            if i == j:
                second = (alone[0, :, i] - 2 * here + alone[1, :, i]) / width
            else:
                both = [
                    value((i, upper[k, i]), (j, upper[k, j]))
                    + value((i, lower[k, i]), (j, lower[k, j]))
                    for k in range(_STEPS)
                ]
                sides = alone[:, :, [i, j]].sum(axis=(0, 2))
                second = (np.array(both) + 2 * here - sides) / (2 * width)
            hessian[i, j], errors[i, j] = _extrapolated(second, 4 * rounding / width)
            hessian[j, i], errors[j, i] = hessian[i, j], errors[i, j]
    shape = 2 * leaf.array.shape
    found = [_as_shaped(leaf, table).reshape(shape)[()] for table in (hessian, errors)]
    found = [part.astype(leaf.array.dtype) for part in found]
    return tuple(found) if error else found[0]


def _as_shaped(leaf: Any, table: FloatArray) -> FloatArray:
    """Return a table whose rows and columns go by memory order as one by x's axes."""
    rows = np.array([leaf.shaped(row).reshape(-1) for row in table]).reshape(table.shape)
    return np.array([leaf.shaped(row).reshape(-1) for row in rows.T]).reshape(table.shape).T


def _extrapolated(values: FloatArray, rounding: FloatArray) -> tuple[float, float]:
    """Extrapolate differences over halved steps to a step of zero; return an error, too."""
    best, least = float(values[-1]), np.inf
    column, noise = values, rounding
    for power in range(1, len(values)):
        factor = 4.0**power
        finer = column[1:] + (column[1:] - column[:-1]) / (factor - 1)
        noise = noise[1:] + (noise[1:] + noise[:-1]) / (factor - 1)
        errors = np.maximum(np.abs(finer - column[1:]), np.abs(finer - column[:-1])) + noise
        if np.isfinite(errors).any():
            k = int(np.nanargmin(errors))
            if errors[k] < least:
                best, least = float(finer[k]), float(errors[k])
        column = finer
    return best, least
