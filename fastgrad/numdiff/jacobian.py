"""Numerical Jacobians: the derivatives of a function whose result is an array.

Each output of f, by each entry of x, is a function of one variable of its own. `_Outputs` presents
all of them as the entries of an objective, so that the formulas, the extrapolation and the error
estimates of `fastgrad.numerical_gradient` apply as they are; f itself is evaluated once at each
point, for all outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastgrad.numdiff import arguments
from fastgrad.numdiff.extrapolation import extrapolate
from fastgrad.numdiff.formulas import evaluate_around
from fastgrad.numdiff.objective import Objective
from fastgrad.numdiff.trees import Tree
from fastgrad.validation import FloatArray, IntArray, flag

__all__ = ["numerical_jacobian"]


def numerical_jacobian(
    f: Callable[..., Any],
    x: Any,
    h: Any = 1e-4,
    *,
    args: tuple[Any, ...] = (),
    workers: Callable[..., Iterable[Any]] | None = None,
    order: int = 2,
    error: bool = False,
    sample: int | None = None,
    bounds: tuple[Any, Any] | None = None,
    progress: bool = False,
    rng: Any = None,
) -> Any:
    """Compute the Jacobian of a function whose result is an array, by central differences.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, an array of real or complex numbers, always of the same shape.
    x : array_like, or a tree of arrays and numbers
        Where to differentiate: real numbers, nudged in place as by `numerical_gradient`.
    h : float, array_like of x's shape, tree like x, or "auto", default 1e-4
        The step; see `numerical_gradient`. With "auto" every output has steps of its own, and f is
        evaluated once where several of them meet.
    args, workers, order, error, sample, bounds, progress, rng
        As for `numerical_gradient`.

    Returns
    -------
    jacobian : ndarray, shape ``f(x).shape + x.shape``; or a tree like x of such arrays
        Entry ``[i, j]`` is the derivative of ``f(x)[i]`` by ``x[j]``; complex where f is.
    error : ndarray or tree, of the same form
        Only with ``error=True``: an upper estimate of the absolute error of each entry.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or f returns something else than numbers.
    ValueError
        If `order` or a step is out of range, f changes its argument, or the shape of its result.
    Exception
        Whatever f raises.

    Examples
    --------
    >>> import numpy as np
    >>> numerical_jacobian(lambda x: np.array([x[0] * x[1], x[0] ** 2]), [2.0, 3.0]).round(8)
    array([[3., 2.],
           [4., 0.]])
    >>> found = numerical_jacobian(lambda w: np.exp(1j * w), np.pi, "auto")
    >>> bool(abs(found + 1j) < 1e-12)
    True
    """
    order = arguments.order_of(order)
    tree = arguments.tree_of(x, "x")
    outputs: Any = _Outputs(f, tree, args, workers, progress=flag(progress, "progress"))
    try:
        entries = arguments.sampled_entries(outputs.objective, sample, rng)
        limits = arguments.limits_of(bounds, outputs.objective, entries)
        every = outputs.each(entries)
        here = outputs.here[every % outputs.count]
        low_high = None if limits is None else tuple(map(outputs.spread, limits))
        with np.errstate(all="ignore"):
            if arguments.is_auto(h):
                found = extrapolate(
                    outputs.beside(every, low_high), outputs.center[every], here,
                    outputs.eps_of(every),
                )  # fmt: skip
                slope, estimate = found.slope, found.error
            else:
                steps = arguments.steps_of(h, outputs.objective, entries)
                around = evaluate_around(
                    outputs, every, outputs.spread(steps) if steps.ndim else steps, order,
                    twice=error, here=here, bounds=low_high,
                )  # fmt: skip
                slope = around.gradient(order)
                estimate = (
                    around.error(order, 2 * around.unit(outputs.eps_of(every)))
                    if error else slope
                )  # fmt: skip
        jacobian = outputs.result(entries, slope)
        return (jacobian, outputs.result(entries, estimate, error=True)) if error else jacobian
    finally:
        outputs.objective.close()


class _Outputs:
    """The outputs of a function as the entries of an objective.

    Entry ``e count + p`` is output p by entry e of x.

    Attributes
    ----------
    objective : Objective
        Its values are not used: evaluating it records the outputs.
    count : int
        Of outputs; a complex number counts as two.
    here : ndarray, shape (count,)
        The outputs at x.
    center : ndarray
        As of an `Objective`.
    """

    def __init__(
        self, f: Callable[..., Any], x: Tree, args: Any, workers: Any = None, *, progress: bool
    ) -> None:
        self._f, self._workers, self._args = f, workers, args
        # What is checked of f and the further arguments is checked here.
        Objective(f, x, args, workers)
        self.objective = Objective(self._record, x, args, progress=progress, batched=False)
        self._rows: list[FloatArray] = []
        self._known: dict[tuple[int, float], FloatArray] = {}
        self._form: tuple[tuple[int, ...], bool] | None = None
        self._tolerant = False
        with x.mounted() as root:
            self._record(root, *args)
        self.here = self._rows.pop()
        self.count = self.here.size
        self.center = np.repeat(self.objective.center, self.count)

    # ------------------------------------------------------------- what the formulas ask for

    def eps_of(self, every: IntArray) -> FloatArray:
        """Return the machine epsilon of each entry."""
        return self.objective.eps_of(every // max(self.count, 1))

    def nudged(self, every: IntArray, offsets: FloatArray) -> FloatArray:
        """Return entries plus offsets, as `Objective.nudged` does."""
        return self.objective.nudged(every // max(self.count, 1), offsets)

    def at(self, every: IntArray, points: FloatArray, *, tolerant: bool = False) -> FloatArray:
        """Evaluate the outputs with one entry at a time elsewhere; each point once."""
        if every.size == 0:
            return np.empty(points.shape)
        entries = np.broadcast_to(every // self.count, points.shape).reshape(-1)
        pairs, place = np.unique(
            np.stack([entries.astype(np.float64), points.reshape(-1)]), axis=1, return_inverse=True
        )
        keys = [(int(entry), point) for entry, point in pairs.T.tolist()]
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        rows = self._evaluated(pairs[0, missing].astype(np.int64), pairs[1, missing], tolerant)
        self._known.update(zip((keys[i] for i in missing), rows, strict=True))
        table = np.array([self._known[key] for key in keys])
        outputs = np.broadcast_to(every % self.count, points.shape)
        values: FloatArray = table[place.reshape(points.shape), outputs]
        return values

    def beside(self, every: IntArray, bounds: Any) -> Callable[..., tuple[FloatArray, FloatArray]]:
        """Return what `extrapolate` evaluates the outputs with; NaN out of bounds."""

        def values(which: IntArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
            points = self.nudged(every[which], offsets)
            inside = points
            if bounds is not None:
                inside = np.clip(points, bounds[0][which], bounds[1][which])
            found = self.at(every[which], inside, tolerant=True)
            return np.where(inside == points, found, np.nan), points

        return values

    # ---------------------------------------------------------------------------- evaluating

    def _evaluated(self, entries: IntArray, points: FloatArray, tolerant: bool) -> list[FloatArray]:
        """Evaluate f at points, each of one entry; return a row of outputs for each."""
        if self._workers is not None and len(entries):
            task = _Task(self._f, self.objective.x, self._args, tolerant)
            return list(
                self._workers(task, list(zip(entries.tolist(), points.tolist(), strict=True)))
            )
        self._tolerant, self._rows = tolerant, []
        self.objective.at(entries, points[None, :])
        return self._rows

    def _record(self, root: Any, *args: Any) -> float:
        """Evaluate f, and keep its outputs as a row of real numbers."""
        try:
            found = self._f(root, *args)
        except (ArithmeticError, ValueError):
            if not self._tolerant:
                raise
            self._rows.append(np.full(self.count, math.nan))
            return 0.0
        array = np.asarray(found)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"`f` must return an array of numbers. Got {found!r:.60}.")
        form = array.shape, array.dtype.kind == "c"
        if self._form is None:
            self._form = form
        elif form != self._form and not (self._form[1] and form[0] == self._form[0]):
            raise TypeError(
                f"`f` must return arrays of one shape and kind. Got {form[0]} after "
                f"{self._form[0]}{', complex after real' if form[1] > self._form[1] else ''}."
            )
        row = array.reshape(-1)
        if self._form[1]:
            row = np.concatenate([row.real, row.imag])
        self._rows.append(row.astype(np.float64))
        return 0.0

    # -------------------------------------------------------------------------------- shapes

    def each(self, entries: IntArray) -> IntArray:
        """Return the entries of all outputs by some entries of x."""
        every: IntArray = (entries[:, None] * self.count + np.arange(self.count)).reshape(-1)
        return every

    def spread(self, values: ArrayLike) -> FloatArray:
        """Return numbers of entries of x as numbers of all outputs by them."""
        return np.repeat(np.asarray(values, np.float64), self.count)

    def result(self, entries: IntArray, values: FloatArray, *, error: bool = False) -> Any:
        """Return numbers of all outputs by some entries as a tree of Jacobians; the others NaN."""
        assert self._form is not None
        shape, is_complex = self._form
        table = np.full((self.objective.size, self.count), math.nan)
        table[entries] = values.reshape(len(entries), self.count)
        found = []
        leaves = self.objective.x.leaves
        for leaf, start, stop in zip(
            leaves, self.objective.begins, self.objective.begins[1:], strict=False
        ):
            rows = [leaf.shaped(row) for row in table[start:stop].T]
            part = np.array(rows).reshape((self.count, *leaf.array.shape))
            if is_complex:
                real, imaginary = np.split(part, 2)
                part = np.hypot(real, imaginary) if error else real + 1j * imaginary
            part = part.reshape((*shape, *leaf.array.shape))
            if leaf.array.dtype == np.float32:
                part = part.astype(np.complex64 if np.iscomplexobj(part) else np.float32)
            found.append(part[()])
        return self.objective.x.rebuilt(found)


class _Task:
    """Evaluates f in a worker, with one entry of a copy of x elsewhere."""

    def __init__(
        self, f: Callable[..., Any], x: Tree, args: tuple[Any, ...], tolerant: bool
    ) -> None:
        self.f, self.args, self.tolerant = f, args, tolerant
        self.x = x.copied().root

    def __call__(self, point: tuple[int, float]) -> FloatArray:
        outputs = _Outputs(self.f, Tree(self.x, "x"), self.args, progress=False)
        entry, value = point
        return outputs._evaluated(np.array([entry]), np.array([value]), self.tolerant)[0]
