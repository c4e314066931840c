"""A Python function evaluated at many points at once.

The array whose entries are perturbed is replaced, wherever the function finds it, by a
`BatchedArray`; the function, which is the caller's own, then runs once for many points. Its first
values are compared with those of the function itself. Whatever cannot be carried, or does not
agree, raises `NotCarried`, and everything is as it was: the loop is then the way to go.
"""

from __future__ import annotations

import functools
import operator
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from fastgrad.numdiff.batched_array import Batch, BatchedArray, NotCarried, TooLarge
from fastgrad.numdiff.reach import attributes_of, names_in
from fastgrad.numdiff.reading import read
from fastgrad.numdiff.records import FORGOTTEN, Records
from fastgrad.numdiff.rewriting import Rewriting
from fastgrad.numdiff.trees import like_tuple, memory_order
from fastgrad.runtime.interrupt import raised_by_a_signal_handler
from fastgrad.validation import FloatArray, IntArray

__all__ = ["NotCarried", "evaluate"]

Array = NDArray[Any]
_Put = Callable[[Any], None]

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
            array, read_value, lambda: read_value((alone or f)(root, *args)), records
        )
        if last and not evaluation.forgets_records(entries[-last:], points[:, -last:]):
            raise NotCarried(reading.obstacle)
        places = _Places(f, root, args, array, reading.objects)
        count = len(entries) - last
        try:
            values = evaluation.values(places, entries[:count], points[:, :count], insist=insist)
            return values if numbers else values[..., 0]
        finally:
            places.restore()


class _Evaluation:
    """A function, and the array whose entries are perturbed.

    `looped` evaluates the function as it is, and `numbers` reads what it returns.
    """

    def __init__(
        self,
        array: Array,
        numbers: Callable[[Any], FloatArray],
        looped: Callable[[], FloatArray],
        records: Records,
    ) -> None:
        self.array, self.numbers, self.looped, self.records = array, numbers, looped, records
        self.began = time.perf_counter()
        self.value = looped()
        self.seconds = self.comparing = time.perf_counter() - self.began
        if not np.isfinite(self.value).all():
            raise NotCarried("f(x) is not finite")
        self.eps = float(np.finfo(array.dtype).eps)
        self.compared = False
        self.rng = np.random.default_rng(0)
        self.axes = memory_order(array)
        self.live = array.transpose(self.axes).flat

    def values(
        self, places: _Places, entries: IntArray, points: FloatArray, *, insist: bool
    ) -> FloatArray:
        """Evaluate f at all points, in batches."""
        # The C library keeps freed memory for the next arrays up to twice the largest block freed.
        # Otherwise every large array comes from the system anew, which takes a fifth of the time.
        np.empty(_KEPT, np.uint8)
        indices = self._indices(entries)
        values = np.empty((*points.shape, self.value.size))
        k, size, batch = max(1, len(points)), len(entries), Batch(_LIMIT)
        start, count = 0, k
        if insist:
            count = max(_ROW, min(_MOST, int(_WANTED * _SECONDS_A_BYTE / self.seconds)))
        original = self.array.tobytes()
        while start < size:
            stop = _stop(indices, start, max(1, count // k), k)
            part = slice(start, stop)
            batch.begin((stop - start) * k)
            began = time.perf_counter()
            try:
                found = self._run(
                    places, batch, [index[part] for index in indices], points[:, part]
                )
            except TooLarge:
                if stop - start == 1:
                    raise
                count = max(1, batch.count // 4)
                continue
            took = (time.perf_counter() - began) / batch.count
            found = self._by_loop_if_not_finite(found, entries[part], points[:, part])
            self._compare(found, entries[part], points[:, part])
            values[:, part] = found
            # The first batch computes besides what it has in common with all others.
            is_slow = took > self.seconds * (1 if start else _ROW)
            if is_slow and not insist:
                size = stop
            start, batch.is_first = stop, False
            fitting = _WANTED * batch.count // max(1, batch.nbytes)
            count = max(1, min(_MOST, _GROWTH * batch.count, fitting))
        if self.array.tobytes() != original:
            raise NotCarried("f changes `x`")
        return values[:, :size]

    def _indices(self, entries: IntArray) -> list[IntArray]:
        """Return the index along each axis of entries that are counted in memory order."""
        shape = self.array.transpose(self.axes).shape
        found = np.unravel_index(entries, shape) if shape else ()
        return [found[self.axes.index(a)] for a in range(self.array.ndim)]

    def _run(
        self, places: _Places, batch: Batch, indices: list[IntArray], points: FloatArray
    ) -> FloatArray:
        """Evaluate f once for all points of a batch."""
        k = len(points)
        support = tuple(
            index[:1, None] if (index == index[0]).all() else np.repeat(index, k)[None, :]
            for index in indices
        )
        values = np.ascontiguousarray(points.T).reshape(-1).astype(self.array.dtype)
        stand_in = BatchedArray(
            self.array, values.reshape(*(1,) * self.array.ndim, -1), support, batch, is_fixed=True
        )
        try:
            with places.taken_by(stand_in, batch) as (f, root, args), np.errstate(**_quiet()):
                result = f(root, *args)
            if batch.refusal is not None:
                raise batch.refusal
        except TooLarge:
            raise
        except Exception as error:
            if raised_by_a_signal_handler(error):
                raise
            if not batch.is_first or not places.rewriting.extend(error):
                if isinstance(error, NotCarried):
                    raise
                what = f"{type(error).__name__}: {error}".rstrip(".")
                raise NotCarried(what) from error
        else:
            return self._values(batch, result).reshape(-1, k, self.value.size).swapaxes(0, 1)
        finally:
            self.records.put_back()
        batch.begin(batch.count)
        return self._run(places, batch, indices, points)

    def _values(self, batch: Batch, result: Any) -> FloatArray:
        """Return the values of f at the points of a batch."""
        is_constant = not isinstance(result, BatchedArray)
        try:
            base = self.numbers(result if is_constant else result._base)
        except (TypeError, ValueError) as error:
            raise NotCarried("f does not return an array") from error
        if not self._agrees(base, self.value):
            raise NotCarried("f(x) does not agree with the value that was carried")
        if is_constant:
            return np.tile(base, (batch.count, 1))
        if result.dtype.kind not in "biuf":
            raise NotCarried("f does not return real numbers")
        result._widen()
        values: FloatArray = result._values.reshape(-1, batch.count).T.astype(np.float64)
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

    def _by_loop_if_not_finite(
        self, found: FloatArray, entries: IntArray, points: FloatArray
    ) -> FloatArray:
        """Evaluate f itself where it is not finite: differences do not carry infinities."""
        rows, columns = np.nonzero(~np.isfinite(found).all(axis=-1))
        if len(rows) > max(4, found[..., 0].size // 16):
            raise NotCarried("f is infinite or not a number at many points")
        found = found.copy()
        for row, column in zip(rows, columns, strict=True):
            found[row, column] = self._looped_at(int(entries[column]), points[row, column])
        return found

    def _compare(self, found: FloatArray, entries: IntArray, points: FloatArray) -> None:
        """Compare values with those of f itself: where f changes most, and elsewhere.

        Later batches are compared as long as that takes little of the time.
        """
        change = np.abs(found - self.value).max(axis=-1).reshape(-1)
        chosen = [int(np.argmax(change)), int(self.rng.integers(change.size))]
        if not self.compared:
            chosen += [0, change.size - 1]
        elif self.comparing > _COMPARING * (time.perf_counter() - self.began):
            return
        self.compared = self.compared or bool(change.any())
        began = time.perf_counter()
        for flat in set(chosen):
            row, column = divmod(flat, len(entries))
            value = self._looped_at(int(entries[column]), points[row, column])
            if not self._agrees(found[row, column], value):
                raise NotCarried(
                    "the value at a point does not agree with the one that was carried"
                )
        took = time.perf_counter() - began
        self.comparing += took
        self.seconds = min(self.seconds, took / len(set(chosen)))

    def forgets_records(self, entries: IntArray, points: FloatArray) -> bool:
        """Return whether f's records depend on no more than its evaluations at these points."""
        return self.records.are_forgotten([
            functools.partial(self._looped_at, entry, point)
            for entry, column in zip(entries.tolist(), points.T, strict=True)
            for point in column
        ])  # fmt: skip

    def _looped_at(self, entry: int, point: float) -> Array:
        """Evaluate f itself at one point."""
        kept = self.live[entry]
        try:
            self.live[entry] = point
            return self.looped()
        finally:
            self.live[entry] = kept


def _stop(places: list[IntArray], start: int, count: int, values: int) -> int:
    """Return where a batch ends: with the row, if that is long enough."""
    stop = start + count
    if len(places) > 1:
        leading = np.stack([place[start : stop + 1] for place in places[:-1]])
        other = (leading != leading[:, :1]).any(axis=0).nonzero()[0]
        if len(other) and other[0] * values >= _ROW:
            return start + int(other[0])
    size = len(places[0]) if places else 1
    return min(stop, size)


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
        self, f: Any, root: Any, args: tuple[Any, ...], array: Array, reached: Sequence[Any]
    ) -> None:
        self._array = array
        self._call = [f, root, args]
        objects = [self._call, *reached]
        functions = [o for o in objects if isinstance(o, types.FunctionType)]
        self.rewriting = Rewriting(functions)
        names = set().union(*(names_in(function.__code__) for function in functions))
        self._stored = [
            (container, container.copy()) for o in objects for container in _containers(o)
        ]
        self._slots: list[tuple[_Put, Any]] = []
        for value in objects:
            if isinstance(value, np.ndarray) and value.dtype.hasobject:
                raise NotCarried("f can reach an array of objects")
            for child, put in _children(value, names):
                if self._replaced(child, None) is child:
                    continue
                if put is None:
                    raise NotCarried("f finds the array where it cannot be replaced")
                self._slots.append((put, child))
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

    def restore(self) -> None:
        """Undo what the function has stored."""
        for container, content in self._stored:
            if isinstance(container, dict):
                for key in container.keys() - content.keys():
                    del container[key]
                container.update(content)
            else:
                container[:] = content


def _containers(value: Any) -> Iterator[Any]:
    """Yield the dicts and lists that an object is or has, in which the function may store."""
    if isinstance(value, dict | list):
        yield value
    if not isinstance(value, types.FunctionType | types.ModuleType | type):
        attributes = getattr(value, "__dict__", None)
        if attributes:
            yield attributes


def _children(value: Any, names: set[str]) -> Iterator[tuple[Any, _Put | None]]:
    """Yield what an object holds, and how to put something else there; None if that cannot be."""
    space: Any = {}
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not bound yet
                yield cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        yield value.__defaults__, functools.partial(setattr, value, "__defaults__")
        yield from _children(value.__kwdefaults__, names)
        space = value.__globals__
    elif isinstance(value, types.ModuleType):
        space = vars(value)
    elif isinstance(value, type):
        for base in value.__mro__:
            if "__module__" in vars(base):  # it is written in Python
                for name, child in vars(base).items():
                    yield child, functools.partial(setattr, base, name)
    elif isinstance(value, types.MethodType | types.BuiltinFunctionType):
        yield value.__self__, None
    elif isinstance(value, functools.partial):
        yield (*value.args, *value.keywords.values()), None
    elif isinstance(value, dict):
        for key, child in value.items():
            yield child, functools.partial(operator.setitem, value, key)
    elif isinstance(value, list | deque):
        for i, child in enumerate(value):
            yield child, functools.partial(operator.setitem, value, i)
    for name in names & space.keys():
        yield space[name], functools.partial(operator.setitem, space, name)
    if not isinstance(value, types.FunctionType | types.ModuleType | type):
        for name, child in attributes_of(value).items():
            yield child, functools.partial(object.__setattr__, value, name)


class _Stale(NDArrayOperatorsMixin):
    """What stands for a view of the array that the function has stored, and may store anew."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotCarried("it reads a view of the array")

    __array_ufunc__ = __array_function__ = __array__ = _refuse
    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __float__ = _refuse
