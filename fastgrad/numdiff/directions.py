"""Derivatives along random directions: for arrays of more entries than one can go through."""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastgrad.numdiff.extrapolation import Extrapolated, extrapolate
from fastgrad.numdiff.noise import Noise
from fastgrad.numdiff.objective import Objective
from fastgrad.validation import FloatArray, IntArray

__all__ = ["along_directions"]


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
    list of (ndarray of shape (K, n), Extrapolated)
        For each array the directions, unit vectors of ±1/√n in the order of its entries, and the
        derivatives along them.
    """
    found, begins, eps = [], objective.x.begins, objective.largest_eps
    for begin, end in itertools.pairwise(begins):
        part = slice(begin, end)
        signs = _directions(count, end - begin, rng)

        def values(
            which: IntArray, offsets: FloatArray, part: slice = part, signs: FloatArray = signs
        ) -> tuple[FloatArray, FloatArray]:
            found = np.empty(offsets.shape)
            for column, i in enumerate(which):
                direction = np.zeros(objective.size)
                direction[part] = signs[i]
                found[:, column] = objective.evaluate_line(direction, offsets[:, column])
            return found, offsets

        moved = eps * float(np.linalg.norm(np.nan_to_num(gradient[part] * objective.center[part])))
        center, here = np.zeros(len(signs)), np.full(len(signs), noise.here)
        level = max(2 * noise.level, moved)
        found.append((signs, extrapolate(values, center, here, np.full(len(signs), eps), level)))
    return found


def _directions(count: int, size: int, rng: np.random.Generator) -> FloatArray:
    """Draw directions that all differ, in more than their sign: fewer if there are no more."""
    if size > 16:
        signs = rng.choice([-1.0, 1.0], (count, size))
    else:
        possible = 2 ** max(size - 1, 0)
        numbers = rng.choice(possible, min(count, possible), replace=False)
        signs = 1.0 - 2.0 * (numbers[:, None] >> np.arange(size) & 1)
    drawn: FloatArray = signs / math.sqrt(max(size, 1))
    return drawn
