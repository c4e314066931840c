"""Jacobians: derivatives of all numbers that a function returns, real or complex.

Each output is a function of its own of each entry. `_Outputs` evaluates f at each point once and
gives its values to all of them, so that the formulas for a function with one output serve.
"""

# The type of what arithmetic on arrays gives is left open by NumPy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fastgrad.numdiff.arguments import Batched, Step, Workers, entries_of
from fastgrad.numdiff.entries import Entries
from fastgrad.numdiff.extrapolation import extrapolated
from fastgrad.numdiff.formulas import Differences, evaluate_around
from fastgrad.numdiff.objective import Function, Row
from fastgrad.validation import FloatArray, flag

__all__ = ["numerical_jacobian"]


def numerical_jacobian(
    f: Function,
    x: Any,
    h: Step = 1e-4,
    *,
    args: tuple[Any, ...] = (),
    workers: Workers | None = None,
    order: int = 2,
    error: bool = False,
    sample: int | None = None,
    bounds: tuple[Any, Any] | None = None,
    progress: bool = False,
    rng: Any = None,
    batched: Batched = "auto",
) -> Any:
    r"""Compute the derivatives of a function with an array as result by central differences.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, a number or an array of any shape, real or complex. It is evaluated once at
        each point for all its outputs. A compiled f is called from Python.
    x : array_like, or a tree of arrays and numbers
        Where to differentiate, real; perturbed in place and restored, as by `numerical_gradient`.
    h, args, workers, order, sample, bounds, progress, rng, batched
        As for `numerical_gradient`, but for its `directions`, which estimate a gradient. With
        "auto" each element has steps of its own, and the outputs share the evaluations at steps
        that they have in common.
    error : bool
        Whether to return an estimate of the error as well.

    Returns
    -------
    jacobian : ndarray, shape f(x).shape + x.shape; or a tree like x of such arrays
        Of dtype float64, or complex128 if f(x) is complex.
    error : ndarray of float64, or tree, of the same form
        Only with ``error=True``: an upper estimate of the absolute error of each element.

    Warns
    -----
    UserWarning
        If f gives the same values everywhere although x was converted: f reads another array then.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than numbers.
    ValueError
        If an argument is out of range, f changes x, or the shape of f(x) differs between points.
    Exception
        Whatever f raises.

    Examples
    --------
    >>> import numpy as np
    >>> numerical_jacobian(lambda x: np.array([x[0] * x[1], x[0]]), np.array([3.0, 4.0])).round(8)
    array([[4., 3.],
           [1., 0.]])
    """
    error = flag(error, "error")
    options = entries_of(
        f, x, h, args=args, workers=workers, order=order, sample=sample, bounds=bounds,
        progress=progress, rng=rng, batched=batched,
    )  # fmt: skip
    with options as entries, np.errstate(all="ignore"):
        outputs = _Outputs(entries)
        if outputs.steps is None:
            slope, estimate = extrapolated(outputs)[:2]
        else:
            around = evaluate_around(outputs, outputs.steps, order, twice=error)
            slope = estimate = around.gradient(order)
            if error:
                estimate = around.error(order, outputs.noise(around, slope))
    outputs.warn_if_constant(stacklevel=3)
    jacobian = outputs.result(slope)
    return (jacobian, outputs.result(estimate, errors=True)) if error else jacobian


class _Outputs(Entries):
    """All outputs of a function as functions of its entries; those of one entry in a row."""

    def __init__(self, entries: Entries) -> None:
        objective, bounds, steps = entries.objective, entries.bounds, entries.steps
        self.row, here = objective.value(Row.of)
        self.count = here.size
        if bounds is not None:
            bounds = np.repeat(bounds, self.count, axis=1)
        if steps is not None and steps.ndim:
            steps = np.repeat(steps, self.count)
        numbers = np.repeat(entries.numbers, self.count)
        super().__init__(objective, numbers, entries.order, steps, bounds)
        self.here = np.tile(here, entries.numbers.size)
        # Where in `_rows` the values of f are, by the entry moved and the bits of the point.
        self._known: dict[tuple[int, int], int] = {}
        self._rows = np.empty((0, self.count))

    def _evaluate(self, which: Any, points: FloatArray, *, tolerant: bool) -> FloatArray:
        """Return outputs with one entry at a time elsewhere; f is evaluated at new points only."""
        outputs = np.arange(self.numbers.size)[which] % max(1, self.count)
        bits = np.ascontiguousarray(points).view(np.int64).reshape(-1).tolist()
        moved = np.tile(self.numbers[which], len(points)).tolist()
        keys = list(zip(moved, bits, strict=True))
        new = sorted(set(keys) - self._known.keys())
        if new:
            moved, places = np.array(new).T
            rows = self.objective.evaluate_entries(
                moved, places[None, :].copy().view(np.float64), tolerant=tolerant, row=self.row
            )[0]
            self._known.update(zip(new, itertools.count(len(self._rows)), strict=False))
            self._rows = np.concatenate([self._rows, rows])
        where = np.array([self._known[key] for key in keys], np.int64).reshape(points.shape)
        return self._rows[where, outputs]

    def noise(self, around: Differences, slope: FloatArray) -> FloatArray:
        """Return the error to expect of each value: its rounding, or what no smooth curve shows."""
        # f is rounded, and so is x where f takes it in.
        largest = np.abs(around.values).max(axis=0) + np.abs(self.center * slope)
        shown = np.where(around.side == 0, np.abs(around.residuals()), 0.0)
        median = np.median(shown.reshape(-1, max(1, self.count)), axis=0)
        level = np.resize(median / 0.67, slope.shape)
        return np.maximum(2 * self.eps * largest, 4 * level)

    def result(self, values: FloatArray, *, errors: bool = False) -> Any:
        """Return numbers as a tree of arrays of the outputs' and each leaf's shape."""
        objective = self.objective
        by_entry = np.full((objective.size, self.count), np.nan)
        moved = self.numbers[:: max(1, self.count)]
        by_entry[moved] = values.reshape(len(moved), self.count)
        if self.row.is_complex:
            real, imaginary = by_entry[:, 0::2], by_entry[:, 1::2]
            by_entry = np.hypot(real, imaginary) if errors else real + 1j * imaginary
        arrays = []
        for leaf, part in zip(objective.x.leaves, objective.x.by_leaf(by_entry), strict=True):
            shape = leaf.array.shape
            in_memory = part.T.reshape(part.shape[1], *(shape[axis] for axis in leaf.axes))
            array = in_memory.transpose(0, *(1 + np.argsort(leaf.axes)))
            arrays.append(array.reshape(self.row.shape + shape))
        return objective.x.rebuilt(arrays)
