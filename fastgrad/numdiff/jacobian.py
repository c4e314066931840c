"""Jacobians: derivatives of all numbers that a function returns, real or complex.

Each output is a function of its own of each entry. `_Outputs` evaluates f at each point once and
gives its values to all of them, so that the formulas for a function with one output serve.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fastgrad.numdiff.arguments import (
    Batched,
    Step,
    Workers,
    is_auto,
    limits_of,
    objective_of,
    order_of,
    sampled_entries,
    steps_of,
    tree_of,
    warn_of_copy,
)
from fastgrad.numdiff.extrapolation import extrapolated
from fastgrad.numdiff.formulas import Differences, evaluate_around
from fastgrad.numdiff.noise import Noise
from fastgrad.numdiff.objective import Function, Objective, Row
from fastgrad.validation import FloatArray, IntArray, flag

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
        Where to differentiate, real; nudged in place and restored, as by `numerical_gradient`.
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
    order, error = order_of(order), flag(error, "error")
    tree = tree_of(x, "x")
    with (
        objective_of(f, tree, args, workers, progress, batched) as objective,
        np.errstate(all="ignore"),
    ):
        entries = sampled_entries(objective, sample, rng)
        limits = limits_of(bounds, objective, entries)
        steps = None if is_auto(h) else steps_of(h, objective, entries)
        outputs = _Outputs(objective)
        numbers = outputs.of(entries)
        here = outputs.here(numbers)
        if limits is not None:
            limits = (outputs.repeated(limits[0]), outputs.repeated(limits[1]))
        if steps is None:
            found = extrapolated(outputs, numbers, Noise(here, 0.0, ()), limits)
            slope, estimate = found.slope, found.error
        else:
            steps = outputs.repeated(np.broadcast_to(steps, entries.shape))
            around = evaluate_around(
                outputs, numbers, steps, order, twice=error, here=here, bounds=limits
            )
            slope = estimate = around.gradient(order)
            if error:
                estimate = around.error(order, outputs.noise(numbers, around, slope))
    if tree.converted and slope.size and not slope.any():
        warn_of_copy(stacklevel=3)
    jacobian = outputs.result(numbers, slope)
    return (jacobian, outputs.result(numbers, estimate, errors=True)) if error else jacobian


class _Outputs:
    """All outputs of a function as functions of its entries: output k of entry i is one number.

    Output k of entry i has the number ``i * count + k``.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        with objective.x.restored_on_exit() as root:
            value = objective.f(root, *objective.args)
            self.row = Row.of(value)
            self.row_here = self.row(value)
        self.count = self.row_here.size
        self.center = self.repeated(objective.center)
        # Where in `_rows` the values of f are, by the entry moved and the bits of the point.
        self._known: dict[tuple[int, int], int] = {}
        self._rows = np.empty((0, self.count))

    def of(self, entries: IntArray) -> IntArray:
        """Return the numbers of all outputs of some entries."""
        numbers: IntArray = (entries[:, None] * self.count + np.arange(self.count)).reshape(-1)
        return numbers

    def repeated(self, values: Any) -> Any:
        """Return what holds for each entry for each output of it."""
        return np.repeat(values, self.count)

    def here(self, numbers: IntArray) -> FloatArray:
        """Return the values at x."""
        here: FloatArray = self.row_here[numbers % max(1, self.count)]
        return here

    def eps_of(self, numbers: IntArray) -> FloatArray:
        """Return the machine epsilon of each."""
        return self.objective.eps_of(numbers // max(1, self.count))

    def nudged(self, numbers: IntArray, offsets: FloatArray) -> FloatArray:
        """Return entries plus offsets, as `Objective.nudged`."""
        return self.objective.nudged(numbers // max(1, self.count), offsets)

    def evaluate_entries(
        self, numbers: IntArray, points: FloatArray, *, tolerant: bool = False
    ) -> FloatArray:
        """Return outputs with one entry at a time elsewhere; f is evaluated at new points only."""
        entries, outputs = np.divmod(numbers, max(1, self.count))
        bits = np.ascontiguousarray(points).view(np.int64).reshape(-1).tolist()
        keys = list(zip(np.tile(entries, len(points)).tolist(), bits, strict=True))
        new = sorted(set(keys) - self._known.keys())
        if new:
            moved, places = np.array(new).T
            rows = self.objective.evaluate_entries(
                moved, places[None, :].copy().view(np.float64), tolerant=tolerant, row=self.row
            )[0]
            self._known.update(zip(new, itertools.count(len(self._rows)), strict=False))
            self._rows = np.concatenate([self._rows, rows])
        where = np.array([self._known[key] for key in keys], np.int64).reshape(points.shape)
        found: FloatArray = self._rows[where, outputs]
        return found

    def noise(self, numbers: IntArray, around: Differences, slope: FloatArray) -> FloatArray:
        """Return the error to expect of each value: its rounding, or what no smooth curve shows."""
        # f is rounded, and so is x where f takes it in.
        largest = np.abs(around.values).max(axis=0) + np.abs(self.center[numbers] * slope)
        shown = np.where(around.side == 0, np.abs(around.residuals()), 0.0)
        median = np.median(shown.reshape(-1, max(1, self.count)), axis=0)
        level = np.resize(median / 0.67, numbers.shape)
        noise: FloatArray = np.maximum(2 * self.eps_of(numbers) * largest, 4 * level)
        return noise

    def result(self, numbers: IntArray, values: FloatArray, *, errors: bool = False) -> Any:
        """Return numbers as a tree of arrays of the outputs' and each leaf's shape."""
        objective = self.objective
        everything = np.full(objective.size * self.count, np.nan)
        everything[numbers] = values
        by_output = everything.reshape(objective.size, self.count).T
        if self.row.is_complex:
            real, imaginary = by_output[0::2], by_output[1::2]
            by_output = np.hypot(real, imaginary) if errors else real + 1j * imaginary
        arrays = []
        for leaf, (begin, end) in zip(
            objective.x.leaves, itertools.pairwise(objective.begins), strict=True
        ):
            shape = leaf.array.shape
            in_memory = by_output[:, begin:end].reshape(
                len(by_output), *(shape[axis] for axis in leaf.axes)
            )
            array = in_memory.transpose(0, *(1 + np.argsort(leaf.axes)))
            arrays.append(array.reshape(self.row.shape + shape))
        return objective.x.rebuilt(arrays)
