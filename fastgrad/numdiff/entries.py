"""A function of many numbers as functions of one number each."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from fastgrad.numdiff.objective import Objective
from fastgrad.validation import FloatArray, IntArray


class Entries:
    """A function with one entry of x at a time elsewhere.

    Parameters
    ----------
    objective : Objective
    numbers : ndarray of int64, shape (M,)
        Which entries, in ascending order.
    order : {2, 4, 6}
        The order of the formula.
    steps : ndarray, shape (M,) or (), or None
        The step of each entry, or None for extrapolation.
    bounds : ndarray, shape (2, M), optional
        Where the function is defined: the lower and the upper bounds.

    Attributes
    ----------
    center : ndarray, shape (M,)
        The entries as they are.
    here : float, or ndarray of shape (M,)
        The value at x; NaN until somebody sets it.
    is_constant : bool
        Whether x is a copy of what the caller has, and all values of f so far are the same, at
        points that are not lost in rounding beside x.
    """

    def __init__(
        self,
        objective: Objective,
        numbers: IntArray,
        order: int = 2,
        steps: FloatArray | None = None,
        bounds: FloatArray | None = None,
    ) -> None:
        self.objective, self.numbers, self.order = objective, numbers, order
        self.steps, self.bounds = steps, bounds
        self.center: FloatArray = objective.center[numbers]
        self.here: Any = math.nan
        self.is_constant: bool = objective.x.converted

    @property
    def eps(self) -> FloatArray:
        """The machine epsilon of each entry."""
        return self.objective.eps[self.numbers]

    def everywhere(self, values: Any, rest: float = np.nan) -> Any:
        """Return numbers of these entries as those of all; those of the others are `rest`."""
        if self.numbers is self.objective.entries:
            return values
        everything = np.full(self.objective.size, rest)
        everything[self.numbers] = values
        return everything

    def result(self, values: FloatArray) -> Any:
        """Return numbers of these entries as a tree like x; all others are NaN."""
        tree = self.objective.x
        parts = zip(tree.leaves, tree.shaped(self.everywhere(values)), strict=True)
        return tree.rebuilt(part.astype(leaf.array.dtype, copy=False) for leaf, part in parts)

    def subset(self, which: IntArray) -> Entries:
        """Return some of the entries, for extrapolation."""
        bounds = None if self.bounds is None else self.bounds[:, which]
        chosen = Entries(self.objective, self.numbers[which], bounds=bounds)
        chosen.here = self.here
        return chosen

    def values(
        self, which: Any, offsets: FloatArray, *, tolerant: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Evaluate f beside x.

        Parameters
        ----------
        which : index of shape (M,)
            Which of the entries to move, by their places in `numbers`.
        offsets : ndarray, shape (K, M) or (K, 1)
            How far each is moved in turn.
        tolerant : bool
            Whether the function is NaN beyond its bounds and where it raises an arithmetic error;
            else points go no further than the bounds.

        Returns
        -------
        values, points : ndarray, shape (K, M)
            The values, and the points as they were rounded.
        """
        points = inside = self.objective.perturbed(self.numbers[which], offsets)
        if self.bounds is not None:
            inside = np.clip(points, *self.bounds[:, which])
        found = self._evaluate(which, inside, tolerant=tolerant)
        if self.is_constant and found.size:
            known = np.broadcast_to(self.here, self.center.shape)[which]
            center = self.center[which]
            lost = np.abs(points - center) <= 1e-9 * np.abs(center)
            same = found == np.where(np.isnan(known), found.flat[0], known)
            self.is_constant = bool(same.all() and not lost.all())
        if not tolerant:
            return found, inside
        return np.where(inside == points, found, np.nan), points

    def _evaluate(self, which: Any, points: FloatArray, *, tolerant: bool) -> FloatArray:
        return self.objective.evaluate_entries(self.numbers[which], points, tolerant=tolerant)

    def warn_if_constant(self, stacklevel: int) -> None:
        """Warn if f gives the same values everywhere: it may read another array than the copy."""
        if self.is_constant and self.numbers.size:
            warn_of_copy(stacklevel + 1)


def warn_of_copy(stacklevel: int) -> None:
    """Warn that f gives the same values everywhere although x is not the caller's own array."""
    warnings.warn(
        "f does not depend on `x`, which was copied for it; does it read another array?",
        UserWarning,
        stacklevel=stacklevel,
    )
