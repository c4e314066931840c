"""A Python function evaluated at many points at once.

The array whose entries are nudged is replaced, wherever the function finds it, by a `BatchedArray`;
the function, which is the caller's own, then runs once for many points. Its first values are
compared with those of the function itself. Whatever cannot be carried, or does not agree, raises
`NotCarried`, and everything is as it was: the loop is then the way to go.
"""

from __future__ import annotations

import functools
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad.arrays import FloatArray, IntArray
from fastgrad.numdiff.batched_array import Batch, BatchedArray, NotCarried, TooLarge

__all__ = ["NotCarried", "evaluate"]

Array = NDArray[Any]

#: Bytes of all arrays of one evaluation: what fits the second-level cache, and what is the limit.
_WANTED, _LIMIT = 4 << 20, 32 << 20

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
    return _Evaluation(f, root, array, args, insist=insist).at(entries, points)


class _Evaluation:
    """A function, and the array whose entries are nudged."""

    def __init__(
        self, f: Callable[..., Any], root: Any, array: Array, args: tuple[Any, ...], *, insist: bool
    ) -> None:
        self.f, self.root, self.array, self.args = f, root, array, args
        self.insist = insist
        began = time.perf_counter()
        self.here = _number(f(root, *args))
        self.seconds = time.perf_counter() - began
        if not np.isfinite(self.here):
            raise NotCarried("f(x) is not a finite number")
        self.eps = float(np.finfo(array.dtype).eps)
        self.compared = False

    def at(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Evaluate f at all points, in batches of about the size of a cache."""
        places = self._places(entries)
        values = np.empty(points.shape)
        count = min(_MOST, 4 * _ROW)
        start, size = 0, len(entries)
        original = self.array.tobytes()
        while start < size:
            stop = _stop(places, start, max(1, count // max(1, len(points))), len(points))
            part = slice(start, stop)
            batch = Batch((stop - start) * len(points), _LIMIT)
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
            start = stop
            count = int(min(_MOST, max(1, _WANTED * batch.count // max(1, batch.nbytes))))
        return values

    def _places(self, entries: IntArray) -> list[IntArray]:
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
            with _replaced(self.f, self.root, self.args, self.array, stand_in) as (f, root, args):
                with np.errstate(**_quiet()):
                    result = f(root, *args)
        except NotCarried:
            raise
        except Exception as error:
            raise NotCarried(f"{type(error).__name__}: {error}") from error
        if batch.refusal is not None:
            raise batch.refusal
        if not isinstance(result, BatchedArray):
            base, values = _number(result), np.full(batch.count, _number(result))
        else:
            if result.size != 1:
                raise NotCarried("f does not return one number")
            base = float(result._base.item())
            full = result._full()._values.reshape(-1)
            values = full.astype(np.float64)
        if not self._agrees(base, self.here):
            raise NotCarried("f(x) does not agree with the value that was carried")
        return values.reshape(-1, k).T

    def _agrees(self, one: float, other: float) -> bool:
        if np.isnan(one) or np.isnan(other):
            return bool(np.isnan(one) and np.isnan(other))
        return one == other or abs(one - other) <= 256 * self.eps * max(abs(one), abs(self.here))

    def _by_loop_if_not_finite(
        self, found: FloatArray, entries: IntArray, points: FloatArray
    ) -> FloatArray:
        """Evaluate f itself where it is infinite or not a number: differences do not carry these."""
        rows, columns = np.nonzero(~np.isfinite(found))
        if len(rows) > max(4, found.size // 16):
            raise NotCarried("f is infinite or not a number at many points")
        found = found.copy()
        for row, column in zip(rows, columns, strict=True):
            found[row, column] = self._looped(int(entries[column]), points[row, column])
        return found

    def _compare(self, found: FloatArray, entries: IntArray, points: FloatArray) -> None:
        """Compare values with those of f itself: where f changes most, and, once, at more points."""
        change = np.abs(found - self.here).reshape(-1)
        chosen = [int(np.argmax(change))]
        if not self.compared:
            chosen += [0, change.size // 2, change.size - 1]
        elif self.compared:
            return
        self.compared = bool(change.any())
        for flat in sorted(set(chosen)):
            row, column = divmod(flat, len(entries))
            value = self._looped(int(entries[column]), points[row, column])
            if not self._agrees(float(found[row, column]), value):
                raise NotCarried("the value at a point does not agree with the one that was carried")

    def _looped(self, entry: int, point: float) -> float:
        """Evaluate f itself at one point."""
        index = tuple(int(place[0]) for place in self._places(np.array([entry])))
        kept = self.array[index]
        try:
            self.array[index] = point
            return _number(self.f(self.root, *self.args))
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
    return {
        name: "ignore" if how == "warn" else how for name, how in np.geterr().items()
    }


# ------------------------------------------------------------------------------------ replacing


@contextmanager
def _replaced(
    f: Any, root: Any, args: tuple[Any, ...], array: Array, stand_in: BatchedArray
) -> Iterator[tuple[Any, Any, Any]]:
    """Put another object in an array's place wherever a function finds it, for a while."""
    search = _Search(array, stand_in)
    start = [f, root, args]
    try:
        for i, value in enumerate(start):
            search.visit(value, functools.partial(start.__setitem__, i))
        search.run()
        yield start[0], start[1], start[2]
    finally:
        search.undo()


class _Search:
    """A walk over what a function can reach."""

    def __init__(self, array: Array, stand_in: BatchedArray) -> None:
        self.array, self.stand_in = array, stand_in
        self.seen: set[int] = set()
        self.waiting: list[tuple[Any, Callable[[Any], None]]] = []
        self.undone: list[Callable[[], None]] = []
        self.names: set[str] = set()

    def visit(self, value: Any, put: Callable[[Any], None]) -> None:
        """Look at a value later; `put` replaces it where it stands."""
        self.waiting.append((value, put))

    def undo(self) -> None:
        """Put everything back."""
        while self.undone:
            self.undone[-1]()
            self.undone.pop()

    def run(self) -> None:
        """Walk until nothing is left."""
        while self.waiting:
            value, put = self.waiting.pop()
            if value is self.array:
                put(self.stand_in)
                continue
            if isinstance(value, np.ndarray):
                if np.may_share_memory(value, self.array) and np.shares_memory(value, self.array):
                    raise NotCarried("f reads a view of the array")
                continue
            if id(value) in self.seen or isinstance(value, _PLAIN):
                continue
            self.seen.add(id(value))
            if len(self.seen) > _REACH:
                raise NotCarried("f can reach too many objects")
            self._children(value, put)

    def _put_item(self, container: Any, key: Any) -> Callable[[Any], None]:
        def put(new: Any) -> None:
            old = container[key]
            self.undone.append(lambda: container.__setitem__(key, old))
            container[key] = new

        return put

    def _put_attribute(self, owner: Any, name: str) -> Callable[[Any], None]:
        def put(new: Any) -> None:
            old = getattr(owner, name)
            self.undone.append(lambda: object.__setattr__(owner, name, old))
            object.__setattr__(owner, name, new)

        return put

    def _put_in_tuple(self, value: Any, i: int, put: Callable[[Any], None]) -> Any:
        def put_element(new: Any) -> None:
            elements = list(value)
            elements[i] = new
            put(type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements))

        return put_element

    def _children(self, value: Any, put: Callable[[Any], None]) -> None:
        if isinstance(value, dict):
            for key, child in list(value.items()):
                self.visit(child, self._put_item(value, key))
        elif isinstance(value, list):
            for i, child in enumerate(value):
                self.visit(child, self._put_item(value, i))
        elif isinstance(value, tuple):
            for i, child in enumerate(value):
                self.visit(child, self._put_in_tuple(value, i, put))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.visit(value.__self__, _cannot_put)
            self.visit(value.__func__, _cannot_put)
        elif isinstance(value, functools.partial):
            self.visit(value.func, _cannot_put)
            self.visit(value.args, _cannot_put)
            self.visit(value.keywords, _cannot_put)
        elif isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                for name in self.names & set(vars(value)):
                    self.visit(vars(value)[name], self._put_item(vars(value), name))
        elif isinstance(value, type):
            if not _is_library(value.__module__):
                for base in value.__mro__[:-1]:
                    for child in vars(base).values():
                        self.visit(_unwrapped(child), _cannot_put)
        else:
            self.visit(type(value), _cannot_put)
            for name, child in list(getattr(value, "__dict__", {}).items()):
                self.visit(child, self._put_attribute(value, name))
            for name in _slots(type(value)):
                if hasattr(value, name):
                    self.visit(getattr(value, name), self._put_attribute(value, name))

    def _function(self, function: types.FunctionType) -> None:
        if _is_library(function.__globals__.get("__name__", "")):
            return
        for cell in function.__closure__ or ():
            try:
                child = cell.cell_contents
            except ValueError:  # not yet bound
                continue
            self.visit(child, self._put_attribute(cell, "cell_contents"))
        self.visit(function.__defaults__, _cannot_put)
        self.visit(function.__kwdefaults__, _cannot_put)
        names = _names(function.__code__)
        self.names |= names
        for name in names & function.__globals__.keys():
            self.visit(function.__globals__[name], self._put_item(function.__globals__, name))


#: Types of values that hold nothing else.
_PLAIN = (int, float, complex, str, bytes, np.generic, np.ufunc, types.BuiltinFunctionType,
          type(None), np.dtype, BatchedArray)  # fmt: skip


def _cannot_put(_: Any) -> None:
    raise NotCarried("f finds the array where it cannot be replaced")


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
    """Return whether a module is of Python, NumPy or this package: it holds no array of f's."""
    top = (module or "").partition(".")[0]
    return top in sys.stdlib_module_names - {"__main__"} or top in {"numpy", "scipy", "fastgrad"}
