"""A Python function evaluated at many points at once.

The array whose entries are perturbed is replaced, wherever the function finds it, by a
`BatchedArray`; the function, which is the caller's own, then runs once for many points. Its first
values are compared with those of the function itself. Whatever cannot be carried, or does not
agree, raises `NotCarried`, and everything is as it was: the loop is then the way to go.
"""

from __future__ import annotations

import functools
import math
import operator
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from fastgrad.numdiff.batched_array import Batch, BatchedArray, NotCarried, TooLarge
from fastgrad.numdiff.reach import children
from fastgrad.numdiff.reading import read
from fastgrad.numdiff.records import FORGOTTEN, Records
from fastgrad.numdiff.rewriting import Rewriting
from fastgrad.numdiff.trees import like_tuple, memory_order
from fastgrad.runtime.interrupt import raised_by_a_signal_handler
from fastgrad.validation import FloatArray, IntArray

__all__ = ["NotCarried", "evaluate"]

Array = NDArray[Any]

#: Bytes of all arrays of one evaluation: what is aimed at, and what is the limit.
_WANTED, _LIMIT = 24 << 20, 32 << 20
#: A little less than the largest block that glibc learns from.
_KEPT = 31 << 20

#: The most points that are evaluated together, and how many times more than the time before.
_MOST, _GROWTH = 2048, 32

#: From so many points on, those of one row of a matrix are evaluated together and alone.
_ROW = 32

#: A function of so many seconds has arrays of about one byte; a first batch is as large as that.
_SECONDS_A_BYTE = 1e-9

#: What part of the time comparing with f itself takes, after the first batches.
_COMPARING = 1 / 32


def evaluate(
    f: Callable[..., Any],
    root: Any,
    array: Array,
    entries: IntArray,
    points: FloatArray,
    args: tuple[Any, ...] = (),
    *,
    insist: bool = True,
    alone: Callable[..., float] | None = None,
    numbers: Callable[[Any], FloatArray] | None = None,
    leaves_records: bool = False,
) -> FloatArray:
    """Evaluate f with one entry of an array at a time elsewhere, at many points at once.

    Parameters
    ----------
    f : callable
        ``f(root, *args)``, one real number.
    root : object
        The array itself, or a container of it.
    array : ndarray of float32 or float64
        The live array, wherever f finds it.
    entries : ndarray of int64, shape (M,)
        Which entries to move, counted in memory order, ascending.
    points : ndarray, shape (K, M)
        Column i holds the values that entry ``entries[i]`` takes in turn.
    args : tuple
        Further arguments of f.
    insist : bool
        Whether to go on although the loop would be as fast.
    alone : callable, optional
        What evaluates f at a point where its value is not finite, instead of f.
    numbers : callable, optional
        For an f that returns an array: how to read it as n real numbers.
    leaves_records : bool
        Whether the caller makes the last evaluations, see `fastgrad.numdiff.records`.

    Returns
    -------
    ndarray of float64, shape (K, M) or (K, M, n), or fewer columns
        Only the first entries where a loop would be as fast, unless `insist`; and without the last
        ones if f keeps records, so that a loop over these leaves the records as it would do over
        all. What f stores besides is as some evaluation leaves it.

    Raises
    ------
    NotCarried
        If f cannot be evaluated in this way.
    """
    if array.dtype not in (np.float32, np.float64):
        raise NotCarried("the array must be of float32 or float64")
    reading = read(f, root, *args)
    last = 0
    if reading.records and not leaves_records:
        last = -(-FORGOTTEN // max(1, len(points)))
    if reading.obstacle and (not reading.records or len(entries) <= 4 * last):
        raise NotCarried(reading.obstacle)
    read_value = numbers or _number
    with Records(reading) as records:
        evaluation = _Evaluation(
            array, entries, points, read_value, lambda: read_value((alone or f)(root, *args))
        )
        size = (len(entries) - last) * len(points)
        if last and not records.are_forgotten(
            [functools.partial(evaluation.looped_at, i) for i in range(size, points.size)]
        ):
            raise NotCarried(reading.obstacle)
        places = _Places([f, root, args], array, reading.objects, records)
        try:
            values = evaluation.values(places, size, insist=insist)
            return values if numbers else values[..., 0]
        finally:
            places.restore()


class _Evaluation:
    """A function, and the points at which it is evaluated, one entry of the array after the other.

    `looped` evaluates the function as it is, and `numbers` reads what it returns.
    """

    def __init__(
        self,
        array: Array,
        entries: IntArray,
        points: FloatArray,
        numbers: Callable[[Any], FloatArray],
        looped: Callable[[], FloatArray],
    ) -> None:
        self.array, self.numbers, self.looped = array, numbers, looped
        # In memory order they were counted; now row by row, and once for each point.
        counted = np.arange(array.size).reshape(array.shape).transpose(memory_order(array))
        self.each = len(points)
        self.entries = np.repeat(counted.ravel()[entries], self.each)
        self.points = points.T.reshape(-1)
        self.began = time.perf_counter()
        self.value = looped()
        self.seconds = self.comparing = time.perf_counter() - self.began
        if not np.isfinite(self.value).all():
            raise NotCarried("f(x) is not finite")
        self.eps = float(np.finfo(array.dtype).eps)
        self.compared = False
        self.rng = np.random.default_rng(0)

    def values(self, places: _Places, size: int, *, insist: bool) -> FloatArray:
        """Evaluate f at so many points, in batches."""
        # The C library keeps freed memory for the next arrays up to twice the largest block freed.
        # Otherwise every large array comes from the system anew, which takes a fifth of the time.
        np.empty(_KEPT, np.uint8)
        rows = self.entries // math.prod(self.array.shape[-1:])
        values = np.empty((size, self.value.size))
        batch = Batch(_LIMIT)
        start, count = 0, self.each
        if insist:
            count = max(_ROW, min(_MOST, int(_WANTED * _SECONDS_A_BYTE / self.seconds)))
        while start < size:
            stop = min(start + max(self.each, count - count % self.each), size)
            others = np.flatnonzero(rows[start:stop] != rows[start])
            if len(others) and others[0] >= _ROW:
                stop = start + int(others[0])
            batch.begin(stop - start)
            began = time.perf_counter()
            try:
                values[start:stop] = self._run(places, batch, slice(start, stop))
            except TooLarge:
                if batch.count == self.each:
                    raise
                count = batch.count // 4
                continue
            took = (time.perf_counter() - began) / batch.count
            self._compare(values, start, stop)
            # The first batch computes besides what it has in common with all others.
            is_slow = took > self.seconds * (1 if start else _ROW)
            if is_slow and not insist:
                size = stop
            start, batch.is_first = stop, False
            fitting = _WANTED * batch.count // max(1, batch.nbytes)
            count = min(_MOST, _GROWTH * batch.count, fitting)
        return values[:size].reshape(-1, self.each, self.value.size).swapaxes(0, 1)

    def _run(self, places: _Places, batch: Batch, part: slice) -> FloatArray:
        """Evaluate f once for all points of a batch."""
        shape = self.array.shape
        support = tuple(
            index[:1, None] if (index == index[0]).all() else index[None, :]
            for index in (np.unravel_index(self.entries[part], shape) if shape else ())
        )
        values = self.points[part].astype(self.array.dtype).reshape(*(1,) * len(shape), -1)
        stand_in = BatchedArray(self.array, values, support, batch)
        try:
            with places.taken_by(stand_in, batch) as (f, root, args), np.errstate(**_quiet()):
                result = f(root, *args)
            if batch.refusal is not None:
                raise batch.refusal
            return self._values(batch, result)
        except Exception as error:
            if raised_by_a_signal_handler(error):
                raise
            may_help = batch.is_first and not isinstance(error, TooLarge)
            if not (may_help and places.rewriting.extend(error)):
                if isinstance(error, NotCarried):
                    raise
                what = f"{type(error).__name__}: {error}".rstrip(".")
                raise NotCarried(what) from error
        batch.begin(batch.count)
        return self._run(places, batch, part)

    def _values(self, batch: Batch, result: Any) -> FloatArray:
        """Return the values of f at the points of a batch."""
        is_constant = not isinstance(result, BatchedArray)
        base = self.numbers(result if is_constant else result._base)
        if not self._agrees(base, self.value):
            raise NotCarried("f(x) does not agree with the value that was carried")
        if is_constant:
            return base
        if result.dtype.kind not in "biuf":
            raise NotCarried("f does not return real numbers")
        result._widen(range(result.ndim))
        values: FloatArray = result._values.reshape(-1, batch.count).T
        return values

    def _agrees(self, one: Array, other: Array) -> bool:
        apart = np.where(np.isnan(one) & np.isnan(other), 0.0, np.abs(one - other))
        if (apart <= 256 * self.eps * np.maximum(np.abs(one), np.abs(self.value))).all():
            return True
        # Terms that cancel leave a value far below their own rounding errors.
        return bool((apart <= 8 * self._rounding).all())

    @functools.cached_property
    def _rounding(self) -> Array:
        """How far f is from a smooth curve over a few points that are next to x."""
        kept = self.array.copy()
        values = []
        try:
            for count in range(8):
                self.array[...] = kept * (1 + 64 * count * self.eps)
                values.append(self.looped())
        finally:
            self.array[...] = kept
        rounding: Array = np.max(np.abs(np.diff(values, 2, axis=0)), axis=0)
        return rounding

    def _compare(self, values: FloatArray, start: int, stop: int) -> None:
        """Compare values of a batch with those of f itself: where f changes most, and elsewhere.

        Later batches are compared as long as that takes little of the time. Where a value is not
        finite, that of f itself takes its place: differences do not carry infinities.
        """
        lost = np.flatnonzero(~np.isfinite(values[start:stop]).all(axis=-1))
        if len(lost) > max(4, (stop - start) // 16):
            raise NotCarried("f is infinite or not a number at many points")
        for number in (start + lost).tolist():
            values[number] = self.looped_at(number)
        change = np.abs(values[start:stop] - self.value).max(axis=-1)
        chosen = {int(np.argmax(change)), int(self.rng.integers(change.size))}
        began = time.perf_counter()
        if not self.compared:
            chosen |= {0, change.size - 1}
        elif self.comparing > _COMPARING * (began - self.began):
            return
        self.compared = self.compared or bool(change.any())
        for number in chosen:
            if not self._agrees(values[start + number], self.looped_at(start + number)):
                raise NotCarried(
                    "the value at a point does not agree with the one that was carried"
                )
        took = time.perf_counter() - began
        self.comparing += took
        self.seconds = min(self.seconds, took / len(chosen))

    def looped_at(self, number: int) -> FloatArray:
        """Evaluate f itself at one of the points."""
        entry = int(self.entries[number])
        kept = self.array.flat[entry]
        try:
            self.array.flat[entry] = self.points[number]
            return self.looped()
        finally:
            self.array.flat[entry] = kept


def _number(value: Any) -> FloatArray:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise NotCarried("f does not return one real number")
    return array.reshape(1).astype(np.float64)


def _quiet() -> dict[str, Any]:
    """Return how to treat floating-point errors: without warnings, which f gives by itself."""
    return {name: "ignore" if how == "warn" else how for name, how in np.geterr().items()}


# ------------------------------------------------------------------------------------ replacing


class _Places:
    """Where a function finds an array: its arguments, closures, attributes, dicts and lists.

    Attributes
    ----------
    rewriting : Rewriting
        Copies of the functions that were met on the way.

    Raises
    ------
    NotCarried
        If the function finds the array, or a view of it, where it cannot be replaced.
    """

    def __init__(
        self, call: list[Any], array: Array, reached: Sequence[Any], records: Records
    ) -> None:
        self._call, self._array, self._records = call, array, records
        functions = [o for o in reached if isinstance(o, types.FunctionType)]
        self.rewriting = Rewriting(functions)
        self._stored: list[tuple[Any, Any]] = [
            (store, store.copy())
            for o in reached if not isinstance(o, types.ModuleType)
            for store in (o, getattr(o, "__dict__", None)) if isinstance(store, dict | list)
        ]  # fmt: skip
        self._slots: list[tuple[Callable[[Any], None], Any]] = []
        for value in (call, *reached):
            for _, child, put in children(value):
                # A tuple is replaced as a whole, in what holds it.
                if isinstance(value, tuple) or self._replaced(child, None) is child:
                    continue
                if put is None:
                    raise NotCarried("f finds the array where it cannot be replaced")
                self._slots.append((functools.partial(*put), child))
        if not self._slots:
            raise NotCarried("f does not find the array where it could be replaced")

    def _replaced(self, value: Any, stand_in: Any) -> Any:
        """Return what stands for a value while the array is replaced."""
        if value is self._array:
            return stand_in
        if isinstance(value, np.ndarray) and np.may_share_memory(value, self._array):
            return _Stale()
        if isinstance(value, tuple):
            elements = [self._replaced(element, stand_in) for element in value]
            if not all(map(operator.is_, elements, value)):
                return like_tuple(value, elements)
        return value

    @contextmanager
    def taken_by(self, stand_in: BatchedArray, batch: Batch) -> Iterator[list[Any]]:
        """Put another object there, and the array back whatever happens; give f, root and args."""
        try:
            for put, child in self._slots:
                put(self._replaced(child, stand_in))
            with self.rewriting.in_place(batch):
                yield self._call
        finally:
            for put, child in self._slots:
                put(child)
            self._records.put_back()

    def restore(self) -> None:
        """Undo what the function has stored."""
        for container, content in self._stored:
            if isinstance(container, dict):
                for key in container.keys() - content.keys():
                    del container[key]
                container.update(content)
            else:
                container[:] = content


class _Stale(NDArrayOperatorsMixin):
    """What stands for a view of the array that the function has stored, and may store anew."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotCarried("it reads a view of the array")

    __array_ufunc__ = __array_function__ = __array__ = _refuse
    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __float__ = _refuse
