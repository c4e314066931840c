"""A Python function evaluated at many points at once.

The array whose entries are nudged is replaced, wherever the function finds it, by a `BatchedArray`;
the function, which is the caller's own, then runs once for many points. Its first values are
compared with those of the function itself. Whatever cannot be carried, or does not agree, raises
`NotCarried`, and everything is as it was: the loop is then the way to go.
"""

from __future__ import annotations

import functools
import operator
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from fastgrad.numdiff.batched_array import Bases, Batch, BatchedArray, NotCarried, TooLarge
from fastgrad.numdiff.reading import read
from fastgrad.numdiff.rewriting import Rewriting
from fastgrad.validation import FloatArray, IntArray

__all__ = ["NotCarried", "evaluate"]

Array = NDArray[Any]
_Put = Callable[[Any], None]

#: Bytes of all arrays of one evaluation: what fits the second-level cache, and what is the limit.
_WANTED, _LIMIT = 8 << 20, 32 << 20

#: The most points that are evaluated together.
_MOST = 2048

#: From so many points on, those of one row of a matrix are evaluated together and alone.
_ROW = 32

#: Objects looked at for the array before the search is given up.
_REACH = 20_000


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

    Returns
    -------
    ndarray of float64, shape (K, M)

    Raises
    ------
    NotCarried
        If f cannot be evaluated in this way.
    """
    if array.dtype not in (np.float32, np.float64):
        raise NotCarried("the array must be of float32 or float64")
    reading = read(f, root, *args)
    if reading.obstacle:
        raise NotCarried(reading.obstacle)
    return _Evaluation(f, root, array, args, alone or f, insist=insist).at(entries, points)


class _Evaluation:
    """A function, and the array whose entries are nudged."""

    def __init__(
        self,
        f: Callable[..., Any],
        root: Any,
        array: Array,
        args: tuple[Any, ...],
        alone: Callable[..., Any],
        *,
        insist: bool,
    ) -> None:
        self.f, self.root, self.array, self.args, self.alone = f, root, array, args, alone
        self.insist = insist
        began = time.perf_counter()
        self.here = _number(alone(root, *args))
        self.seconds = time.perf_counter() - began
        if not np.isfinite(self.here):
            raise NotCarried("f(x) is not a finite number")
        self.eps = float(np.finfo(array.dtype).eps)
        self.compared = False
        self.places = _Places(f, root, args, array)
        self.rewriting = Rewriting(self.places.functions)

    def at(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Evaluate f at all points, in batches of about the size of a cache."""
        try:
            values = self._batches(entries, points)
        finally:
            stored = self.places.restore()
        if stored and values.size:  # as the loop would leave it
            self._looped(int(entries[-1]), points[-1, -1])
        return values

    def _batches(self, entries: IntArray, points: FloatArray) -> FloatArray:
        places = self._indices(entries)
        values = np.empty(points.shape)
        count = _ROW  # of the first batch, which tells how many fit
        start, size, bases = 0, len(entries), Bases()
        original = self.array.tobytes()
        while start < size:
            stop = _stop(places, start, max(1, count // max(1, len(points))), len(points))
            part = slice(start, stop)
            batch = Batch((stop - start) * len(points), _LIMIT, bases)
            began = time.perf_counter()
            try:
                found = self._run(batch, [place[part] for place in places], points[:, part])
            except TooLarge:
                if stop - start == 1:
                    raise
                count = max(1, (stop - start) * len(points) // 4)
                continue
            took = (time.perf_counter() - began) / batch.count
            found = self._by_loop_if_not_finite(found, entries[part], points[:, part])
            self._compare(found, entries[part], points[:, part])
            if self.array.tobytes() != original:
                raise NotCarried("f changes `x`")
            if start == 0 and not self.insist and took > self.seconds:
                raise NotCarried("it would not be faster than the loop")
            values[:, part] = found
            start, bases.is_first = stop, False
            # A run computes everything at x as well: enough points make that a small part of it.
            wanted = _WANTED if took * batch.count > 8 * self.seconds else 3 * _LIMIT // 4
            count = int(min(_MOST, max(1, wanted * batch.count // max(1, batch.nbytes))))
        return values

    def _indices(self, entries: IntArray) -> list[IntArray]:
        """Return the index along each axis of entries that are counted in memory order."""
        order = sorted(range(self.array.ndim), key=lambda a: -abs(self.array.strides[a]))
        if self.array.flags.c_contiguous:
            order = list(range(self.array.ndim))
        if not order:
            return []
        found = np.unravel_index(entries, [self.array.shape[a] for a in order])
        places: list[Any] = [None] * self.array.ndim
        for a, place in zip(order, found, strict=True):
            places[a] = place
        return places

    def _run(self, batch: Batch, places: list[IntArray], points: FloatArray) -> FloatArray:
        """Evaluate f once for all points of a batch."""
        k = len(points)
        support = tuple(
            place[:1, None] if (place == place[0]).all() else np.repeat(place, k)[None, :]
            for place in places
        )
        nudged = np.ascontiguousarray(points.T).reshape(-1).astype(self.array.dtype)
        stand_in = BatchedArray(
            self.array, nudged.reshape(*(1,) * self.array.ndim, -1), support, batch, is_fixed=True
        )
        try:
            with (
                self.places.taken_by(stand_in) as (f, root, args),
                self.rewriting.in_place(batch),
                np.errstate(**_quiet()),
            ):
                result = f(root, *args)
            if batch.refusal is not None:
                raise batch.refusal
        except TooLarge:
            raise
        except Exception as error:
            if not batch.bases.is_first or not self.rewriting.extend(error):
                if isinstance(error, NotCarried):
                    raise
                what = f"{type(error).__name__}: {error}".rstrip(".")
                raise NotCarried(what) from error
        else:
            return self._values(batch, result).reshape(-1, k).T
        batch.restart()
        return self._run(batch, places, points)

    def _values(self, batch: Batch, result: Any) -> FloatArray:
        """Return the values of f at the points of a batch."""
        if not isinstance(result, BatchedArray):
            base, values = _number(result), np.full(batch.count, _number(result))
        else:
            if result.size != 1 or result.dtype.kind not in "biuf":
                raise NotCarried("f does not return one real number")
            base = float(result._base.item())
            full = result._full()._values.reshape(-1)
            values = full.astype(np.float64)
        if not self._agrees(base, self.here):
            raise NotCarried("f(x) does not agree with the value that was carried")
        return values

    def _agrees(self, one: float, other: float) -> bool:
        if np.isnan(one) or np.isnan(other):
            return bool(np.isnan(one) and np.isnan(other))
        apart = abs(one - other)
        if apart <= 256 * self.eps * max(abs(one), abs(self.here)):
            return True
        # Terms that cancel leave a value far below their own rounding errors.
        return apart <= 8 * self._rounding

    @functools.cached_property
    def _rounding(self) -> float:
        """How far f is from a smooth curve over a few points that are next to x."""
        kept = self.array.copy()
        values = []
        try:
            for count in range(8):
                self.array[...] = kept * (1 + 64 * count * self.eps)
                values.append(_number(self.alone(self.root, *self.args)))
        finally:
            self.array[...] = kept
        return float(np.max(np.abs(np.diff(values, 2))))

    def _by_loop_if_not_finite(
        self, found: FloatArray, entries: IntArray, points: FloatArray
    ) -> FloatArray:
        """Evaluate f itself where it is not finite: differences do not carry infinities."""
        rows, columns = np.nonzero(~np.isfinite(found))
        if len(rows) > max(4, found.size // 16):
            raise NotCarried("f is infinite or not a number at many points")
        found = found.copy()
        for row, column in zip(rows, columns, strict=True):
            found[row, column] = self._looped(int(entries[column]), points[row, column])
        return found

    def _compare(self, found: FloatArray, entries: IntArray, points: FloatArray) -> None:
        """Compare values with those of f itself: where f changes most, and at a few more points."""
        change = np.abs(found - self.here).reshape(-1)
        chosen = [int(np.argmax(change))]
        if self.compared:
            return
        chosen += [0, change.size // 2, change.size - 1]
        self.compared = bool(change.any())
        for flat in sorted(set(chosen)):
            row, column = divmod(flat, len(entries))
            value = self._looped(int(entries[column]), points[row, column])
            if not self._agrees(float(found[row, column]), value):
                raise NotCarried(
                    "the value at a point does not agree with the one that was carried"
                )

    def _looped(self, entry: int, point: float) -> float:
        """Evaluate f itself at one point."""
        index = tuple(int(place[0]) for place in self._indices(np.array([entry])))
        kept = self.array[index]
        try:
            self.array[index] = point
            return _number(self.alone(self.root, *self.args))
        finally:
            self.array[index] = kept


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


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise NotCarried("f does not return one real number")
    return float(array.item())


def _quiet() -> dict[str, Any]:
    """Return how to treat floating-point errors: without warnings, which f gives by itself."""
    return {name: "ignore" if how == "warn" else how for name, how in np.geterr().items()}


# ------------------------------------------------------------------------------------ replacing


class _Places:
    """Where a function finds an array: its arguments, closures, attributes, dicts and lists.

    Attributes
    ----------
    functions : list of functions
        The caller's functions that were met on the way.

    Raises
    ------
    NotCarried
        If the array cannot be replaced there, or the function finds a view of it.
    """

    def __init__(self, f: Any, root: Any, args: tuple[Any, ...], array: Array) -> None:
        self.functions: list[types.FunctionType] = []
        self._array = array
        self._call = [f, root, args]
        self._puts: list[_Put] = []
        self._views: list[tuple[_Put, Array]] = []
        self._kept: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        self._names: set[str] = set()
        self._waiting: list[tuple[Any, _Put]] = [
            (value, functools.partial(self._call.__setitem__, i))
            for i, value in enumerate(self._call)
        ]
        self._walk()
        if not self._puts:
            raise NotCarried("f does not find the array where it could be replaced")

    @contextmanager
    def taken_by(self, stand_in: BatchedArray) -> Iterator[tuple[Any, Any, Any]]:
        """Put another object there, and the array back whatever happens."""
        try:
            for put in self._puts:
                put(stand_in)
            for put, _ in self._views:
                put(_Stale())
            yield self._call[0], self._call[1], self._call[2]
        finally:
            for put in self._puts:
                put(self._array)
            for put, view in self._views:
                put(view)

    def restore(self) -> bool:
        """Undo what the function has stored; return whether there was anything."""
        changed = False
        for container, content in self._kept:
            if len(container) == len(content) and all(
                map(operator.is_, _values(container), _values(content))
            ):
                continue
            changed = True
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        return changed

    def _walk(self) -> None:
        while self._waiting:
            value, put = self._waiting.pop()
            if value is self._array:
                if put is _cannot_put:
                    raise NotCarried("f finds the array where it cannot be replaced")
                self._puts.append(put)
                continue
            if isinstance(value, np.ndarray):
                if np.may_share_memory(value, self._array):
                    self._views.append((put, value))
                continue
            if id(value) in self._seen or isinstance(value, _PLAIN):
                continue
            self._seen.add(id(value))
            if len(self._seen) > _REACH:
                raise NotCarried("f can reach too many objects")
            self._children(value, put)

    def _visit(self, value: Any, put: _Put) -> None:
        self._waiting.append((value, put))

    def _children(self, value: Any, put: Callable[[Any], None]) -> None:
        if isinstance(value, dict | list):
            self._kept.append((value, value.copy()))
        if isinstance(value, dict):
            for key, child in list(value.items()):
                self._visit(child, functools.partial(operator.setitem, value, key))
        elif isinstance(value, list):
            for i, child in enumerate(value):
                self._visit(child, functools.partial(operator.setitem, value, i))
        elif isinstance(value, tuple):
            for i, child in enumerate(value):
                self._visit(child, _element_put(value, i, put))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__, _cannot_put)
            self._visit(value.__func__, _cannot_put)
        elif isinstance(value, functools.partial):
            self._visit(value.func, _cannot_put)
            self._visit(value.args, _cannot_put)
            self._visit(value.keywords, _cannot_put)
        elif isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                for name in self._names & set(vars(value)):
                    self._visit(vars(value)[name], functools.partial(setattr, value, name))
        elif isinstance(value, type):
            if not _is_library(value.__module__):
                for base in value.__mro__[:-1]:
                    for child in vars(base).values():
                        self._visit(_unwrapped(child), _cannot_put)
        elif not _is_library(type(value).__module__) or isinstance(value, types.SimpleNamespace):
            self._visit(type(value), _cannot_put)
            attributes = getattr(value, "__dict__", {})
            self._kept.append((attributes, attributes.copy()))
            for name, child in attributes.copy().items():
                self._visit(child, functools.partial(object.__setattr__, value, name))
            for name in _slots(type(value)):
                if hasattr(value, name):
                    put_slot = functools.partial(object.__setattr__, value, name)
                    self._visit(getattr(value, name), put_slot)

    def _function(self, function: types.FunctionType) -> None:
        if _is_library(function.__globals__.get("__name__", "")):
            return
        self.functions.append(function)
        for cell in function.__closure__ or ():
            try:
                child = cell.cell_contents
            except ValueError:  # not yet bound
                continue
            self._visit(child, functools.partial(setattr, cell, "cell_contents"))
        self._visit(function.__defaults__, _cannot_put)
        self._visit(function.__kwdefaults__, _cannot_put)
        names = _names(function.__code__)
        self._names |= names
        found = function.__globals__
        for name in names & found.keys():
            self._visit(found[name], functools.partial(operator.setitem, found, name))


class _Stale(NDArrayOperatorsMixin):
    """What stands for a view of the array that the function has stored, and may store anew."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotCarried("it reads a view of the array")

    __array_ufunc__ = __array_function__ = __array__ = _refuse
    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __float__ = _refuse


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


#: Types of values that hold nothing else.
_PLAIN = (int, float, complex, str, bytes, np.generic, np.ufunc, types.BuiltinFunctionType,
          type(None), np.dtype, BatchedArray)  # fmt: skip


_LIBRARIES = sys.stdlib_module_names | {"numpy", "scipy", "numba"}


def _cannot_put(_: Any) -> None:
    """Stand for a place that cannot be written to."""


def _element_put(value: tuple[Any, ...], i: int, put: _Put) -> _Put:
    """Return how to replace an element of a tuple: with the tuple, in its own place."""
    if put is _cannot_put:
        return _cannot_put

    def put_element(new: Any) -> None:
        if new is value[i]:
            put(value)
            return
        elements = [new if element is value[i] else element for element in value]
        put(type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements))

    return put_element


def _unwrapped(value: Any) -> Any:
    """Return the function of a class's attribute."""
    if isinstance(value, property):
        return value.fget
    return getattr(value, "__func__", value)


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        names = vars(base).get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def _names(code: types.CodeType) -> set[str]:
    """Return the names that code looks up, and those of functions within it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_library(module: str | None) -> bool:
    """Return whether a module is of Python or of a library: what is in it holds no array of f's."""
    return (module or "").partition(".")[0] in _LIBRARIES
