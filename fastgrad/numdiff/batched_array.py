"""An array at many points at once: its value at x, and what differs from it at each point.

A `BatchedArray` stands in for an array while a function runs once for K points. It holds `base`,
the array at x, and `values`, the same array at the K points, which are counted by a last axis that
the function does not see. A perturbation of one entry changes only a part of most arrays, so
`values` covers a *box* of the array: for each axis `support` names the indices within it,

- ``None``: all;
- shape (R, 1): the same R indices at every point, as the samples in which a pixel is not zero;
- shape (R, K): R indices at each point, as the hidden unit that a weight belongs to (R = 1) or, in
  an axis that counts the pixels of all channels, those of the channel that a filter belongs to.

Outside of the box every point has the value of `base`. Operations of NumPy compute the box of their
result, and nothing else. What cannot be carried raises `NotCarried`.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import types
from bisect import bisect_right
from collections.abc import Callable, Container, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

__all__ = ["Batch", "BatchedArray", "NotCarried", "TooLarge", "unchanged"]

Array = NDArray[Any]
Support = tuple[Any, ...]

#: Bytes of results at x that are kept.
_KEPT = 16 << 20

#: The indices of a box that is empty.
_NONE = np.empty((0, 1), np.intp)

#: What an index of no arrays consists of.
_BASIC = int, np.integer, slice, types.EllipsisType, types.NoneType


class NotCarried(Exception):  # noqa: N818 - it is a reason to go another way, not an error
    """Why a function cannot be evaluated at all points at once."""


class TooLarge(NotCarried):
    """The arrays of so many points need too much memory; fewer points may do."""


class Batch:
    """What all arrays of a function have in common, and what its operations give at x.

    What they give at x is the same in every run, so the first one computes it. A result is known by
    the operation and by the very objects that went in.

    Parameters
    ----------
    budget : int
        The number of bytes that all values of a run together may take.

    Attributes
    ----------
    count : int
        The number of points of the run, K.
    nbytes : int
        The bytes that values have taken so far.
    refusal : NotCarried or None
        The first refusal, which the function may have caught.
    is_first : bool
        Whether no run has ended yet.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.is_first = True
        self._known: dict[Any, tuple[Any, Any]] = {}
        self._known_nbytes = 0

    def begin(self, count: int) -> None:
        """Begin a run, before which nothing has been spent or refused."""
        self.count = count
        self.nbytes = 0
        self.refusal: NotCarried | None = None

    def refuse(self, reason: str, kind: type[NotCarried] = NotCarried) -> NotCarried:
        """Return the exception to raise, which is that of the first refusal."""
        self.refusal = self.refusal or kind(reason)
        return self.refusal

    def spend(self, nbytes: int) -> None:
        """Count bytes that are about to be allocated."""
        self.nbytes += nbytes
        if self.nbytes > self.budget:
            raise self.refuse("its arrays at several points need too much memory", TooLarge)

    def at_x(self, function: Any, inputs: Sequence[Any], **kwargs: Any) -> Any:
        """Return what a function gives at x, which must not be written to."""
        bases = tuple(map(_base_of, inputs))
        key = (
            function,
            *(id(x) if isinstance(x, np.ndarray) else (type(x), x) for x in bases),
            *kwargs.items(),
        )
        is_lasting = all(x._is_shared for x in inputs if isinstance(x, BatchedArray))
        try:
            if is_lasting and key in self._known:
                return self._known[key][1]
        except TypeError:  # not hashable
            is_lasting = False
        result = function(*bases, **kwargs)
        if is_lasting and self.is_first and self._known_nbytes < _KEPT:
            # The inputs are kept too, so that no other object gets the number of one.
            self._known[key] = (bases, result)
            self._known_nbytes += getattr(result, "nbytes", 0)
        return result


class BatchedArray(NDArrayOperatorsMixin):
    """An array at K points (see the module).

    Parameters
    ----------
    base : ndarray
        The array at x.
    values : ndarray, shape of the box, and K
        The array at the points, within the box.
    support : tuple
        The indices of the box, by axis.
    batch : Batch
    """

    def __init__(self, base: Any, values: Array, support: Support, batch: Batch) -> None:
        self._base: Array = np.asarray(base)
        self._values = values
        # An axis of length 1 is covered whatever its indices.
        self._support = tuple(
            None if index is not None and (size == 1 or len(index) == size) else index
            for index, size in zip(support, self._base.shape, strict=True)
        )
        self._batch = batch
        #: Whether memory may be that of other arrays, so that it must be copied to be written to.
        self._is_shared = True

    # ------------------------------------------------------------------------ as an array

    shape = property(operator.attrgetter("_base.shape"))
    ndim = property(operator.attrgetter("_base.ndim"))
    size = property(operator.attrgetter("_base.size"))
    dtype = property(operator.attrgetter("_base.dtype"))
    nbytes = property(operator.attrgetter("_base.nbytes"))

    @property
    def T(self) -> Any:  # noqa: N802 - NumPy's name
        """The transpose."""
        return self.transpose()

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self._base)

    def __iter__(self) -> Any:
        """Go along the first axis."""
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        """Return the truth if it is the same at all points."""
        truth = bool(self._base)
        if (self._values.astype(bool) != truth).any():
            raise self._batch.refuse("a condition differs between points")
        return truth

    def _no_number(self, *_: Any, **__: Any) -> Any:
        raise self._batch.refuse("it converts what depends on `x` to a plain number or array")

    __float__ = __int__ = __index__ = __complex__ = __array__ = _no_number
    tolist = tobytes = _no_number

    def __repr__(self) -> str:
        """Return the array at x."""
        return f"BatchedArray({self._base!r}, points={self._batch.count})"

    def __getattr__(self, name: str) -> Any:
        """Return a method that is a function of NumPy too, as ``a.sum()`` and ``np.sum(a)``."""
        function: Any = getattr(np, name, None)
        if function in FUNCTIONS:
            return functools.partial(function, self)
        if hasattr(np.ndarray, name) and not name.startswith("__"):
            raise self._batch.refuse(f"the attribute `{name}` cannot be carried")
        raise AttributeError(name)

    def __pow__(self, exponent: Any) -> Any:
        """Raise to a power: a square is a product, as it is in NumPy's operator."""
        is_square = type(exponent) in (int, float) and exponent == 2 and self.dtype.kind == "f"
        return np.square(self) if is_square else np.power(self, exponent)

    def item(self) -> Any:
        """Return the only entry, at all points."""
        return self.reshape(())

    # ------------------------------------------------------------------------ NumPy's protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Evaluate a ufunc within the box of its result."""
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        carried: Any = functools.partial(elementwise, ufunc)
        if method == "reduce" and ufunc in _REDUCTIONS:
            carried, kwargs = FUNCTIONS[_REDUCTIONS[ufunc]], {"axis": 0, **kwargs}
        elif method != "__call__":
            raise self._batch.refuse(f"`np.{name}` cannot be carried")
        elif ufunc is np.matmul:
            carried = matmul
        elif ufunc.signature or ufunc.nout != 1 or kwargs.keys() - {"out", "dtype", "casting"}:
            raise self._batch.refuse(f"`np.{name}` cannot be carried in this form")
        (out,) = kwargs.pop("out", (None,))
        return self._evaluated(name, getattr(ufunc, method), carried, inputs, kwargs, out)

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Evaluate a function of NumPy that is known here, or of what is the same at all points."""
        name, out = function.__name__, kwargs.pop("out", None)
        if function in FUNCTIONS:
            return self._evaluated(name, function, FUNCTIONS[function], args, kwargs, out)
        refusal = f"`np.{name}` cannot be carried"
        plain = [x._agreed(refusal) if isinstance(x, BatchedArray) else x for x in args]
        if all(map(operator.is_, plain, args)):
            raise self._batch.refuse(refusal)
        return function(*plain, **kwargs)

    def _evaluated(
        self, name: str, function: Any, carried: Any, args: Any, kwargs: dict[str, Any], out: Any
    ) -> Any:
        """Evaluate what stands for a function, and write the result into `out` if there is one."""
        if out is not None and not any(isinstance(x, BatchedArray | list | tuple) for x in args):
            carried = function
        try:
            result = carried(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            raise self._batch.refuse(f"`np.{name}` cannot be carried in this form") from error
        if out is None:
            return result
        # a += b of a plain a: Python binds the name to what is returned.
        if not (out is args[0] or isinstance(out, BatchedArray)) or out.shape != result.shape:
            raise self._batch.refuse(f"`np.{name}` writes into an array, `out`")
        result = result.astype(out.dtype)
        return out._become(result) if isinstance(out, BatchedArray) else result

    # ------------------------------------------------------------------------ boxes

    def _become(self, other: Any) -> BatchedArray:
        """Take the content of another array, as an operation in place does."""
        if not isinstance(other, BatchedArray):
            other = unchanged(np.array(other), self._batch)
        self._base, self._values, self._support = other._base, other._values, other._support
        self._is_shared = other._is_shared
        return self

    def _agreed(self, refusal: str) -> Array:
        """Return the array at x, if it is the same at all points."""
        if (self._values != at(self._base, self._support)).any():
            raise self._batch.refuse(f"{refusal}: it differs between points")
        return self._base

    def _widen(self, axes: Container[int]) -> None:
        """Make the box cover the given axes: what is asked for once is so again."""
        support = tuple(None if a in axes else index for a, index in enumerate(self._support))
        self._values, self._support = within(self, support, self.ndim), support

    # ------------------------------------------------------------------------ indexing

    def __getitem__(self, key: Any) -> Any:
        """Return entries at all points."""
        key = _plain_key(key)
        base = self._base[key]
        self._is_shared = True
        parts = _basic_parts(key, self.ndim)
        into: list[Any] = []
        support: list[Any] = []
        axes = zip(self._support, self.shape, strict=True)
        for part in parts or ():
            index, size = (None, 0) if part is None else next(axes)
            if index is not None:
                index, is_inside = _within_part(index, part, size)
                if not is_inside.any():
                    return base
                if not is_inside.all() or (np.diff(index, axis=0) < 0).any():
                    parts = None
            into.append(part if index is None else slice(None) if isinstance(part, slice) else 0)
            if part is None or isinstance(part, slice):
                support.append(index)
        if parts is None:
            return picked(self, _numbers(self.shape)[key], base)
        values = self._values[(*into, slice(None))]
        return wrapped(base, values, tuple(support), self._batch)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set entries at all points."""
        is_mask = isinstance(key, BatchedArray) and key.dtype == bool and key.shape == self.shape
        if is_mask and np.ndim(value) == 0:
            self._become(where(key, value, self).astype(self.dtype))
            return
        key = _plain_key(key)
        if self._is_shared:
            self._batch.spend(self._values.nbytes)
            self._base, self._values = self._base.copy(), self._values.copy()
            self._is_shared = False
        self._base[key] = _base_of(value)
        if not _is_changed(self) and not _is_changed(value):
            return
        shape = self._base[key].shape
        support: list[Any] = [None] * self.ndim
        of_value: list[Any] = []
        into = _basic_parts(key, self.ndim)
        if into is None or None in into:
            into = [*key] if any(part is Ellipsis for part in key) else [*key, ...]
            of_value = [None] * len(shape)
        else:
            kept = [a for a, part in enumerate(into) if isinstance(part, slice)]
            for a, index in zip(kept, common_support([value], shape), strict=True):
                mine = self._support[a] if _is_changed(self) else _NONE
                places = range(self.shape[a])[into[a]]
                if len(places) == self.shape[a] and places.step > 0:
                    index = support[a] = _union(mine, index)
                elif mine is _NONE and index is not None and places.step > 0:
                    support[a] = places.start + places.step * index
                else:
                    index = None
                of_value.append(index)
                if support[a] is not None:
                    into[a] = slice(None)
        # The base already has the new values: they are written over below.
        self._values, self._support = within(self, tuple(support), self.ndim), tuple(support)
        self._values[(*into, slice(None))] = _operand(
            value, tuple(of_value), len(shape), self._batch
        )

    # ------------------------------------------------------------------------ methods

    def transpose(self, *axes: Any) -> Any:
        """Permute the axes."""
        return _permuted(np.ndarray.transpose)(self, *axes)

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """Give the array another shape."""
        if order != "C":
            return moved(np.ndarray.reshape)(self, *shape, order=order)
        base = self._batch.at_x(np.ndarray.reshape, (self, *shape))
        support = _reshaped_support(self, base.shape)
        values = self._values.reshape(*_lengths(base.shape, support), self._batch.count)
        self._is_shared = True
        return wrapped(base, values, support, self._batch)

    def flatten(self, order: str = "C") -> Any:
        """Return a copy with one axis."""
        return self.reshape(-1, order=order).copy()

    def astype(self, dtype: Any, *_: Any, **__: Any) -> Any:
        """Return a copy of another dtype."""
        if dtype == self.dtype:
            return self.copy()
        self._batch.spend(self._values.nbytes)
        base, values = self._base.astype(dtype), self._values.astype(dtype)
        return wrapped(base, values, self._support, self._batch)

    def copy(self, *_: Any, **__: Any) -> BatchedArray:
        """Return a copy, which is made when one of the two is written to."""
        self._is_shared = True
        return BatchedArray(self._base, self._values, self._support, self._batch)

    __copy__ = __deepcopy__ = copy

    def fill(self, value: Any) -> None:
        """Set all entries."""
        self[...] = value

    def sort(self, axis: int = -1) -> None:
        """Sort along an axis, in place."""
        self._become(np.sort(self, axis))


# ------------------------------------------------------------------------------------ boxes


def _is_changed(array: Any) -> bool:
    return isinstance(array, BatchedArray) and array._values.size > 0


def wrapped(base: Any, values: Array, support: Support, batch: Batch) -> Any:
    """Return a new array at all points, or a plain one if no point changes it."""
    return BatchedArray(base, values, support, batch) if values.size else base


def unchanged(base: Array, batch: Batch) -> BatchedArray:
    """Return a new plain array as one that can take values which differ between points."""
    support: Support = (_NONE,) * base.ndim
    result = BatchedArray(base, _box(base, support, batch), support, batch)
    result._is_shared = False
    return result


def _same(one: Any, other: Any) -> bool:
    """Return whether two boxes have the same indices along an axis."""
    return one is other or np.array_equal(one, other)


def _union(one: Any, other: Any) -> Any:
    """Return indices along an axis that cover those of two boxes."""
    if other is _NONE or _same(one, other):
        return one
    if one is _NONE:
        return other
    if one is None or other is None or max(one.shape[1], other.shape[1]) > 1:
        return None
    return np.union1d(one, other)[:, None]


def _aligned(support: Support, ndim: int) -> Support:
    return (None,) * (ndim - len(support)) + support


def _lengths(shape: tuple[int, ...], support: Support) -> tuple[int, ...]:
    """Return the shape of the box of an array; axes of length 1 are left to be broadcast."""
    pairs = zip(shape, support, strict=True)
    return tuple(size if index is None or size == 1 else len(index) for size, index in pairs)


def common_support(arrays: Sequence[Any], shape: tuple[int, ...]) -> Support:
    """Return the smallest box that covers those of all arrays, broadcast to a shape."""
    changed: list[BatchedArray] = [array for array in arrays if _is_changed(array)]
    if len(changed) == 1 and changed[0].shape == shape:
        return changed[0]._support
    result: Support = (_NONE,) * len(shape)
    for array in changed:
        sizes = (1,) * (len(shape) - array.ndim) + array.shape
        each = zip(result, _aligned(array._support, len(shape)), sizes, shape, strict=True)
        result = tuple(
            _union(covered, index if size == whole else None)
            for covered, index, size, whole in each
        )
    return result


def at(array: Array, support: Support) -> Array:
    """Return the entries of a plain array within a box, and a last axis of length 1 or K.

    Axes of length 1 are broadcast.
    """
    axes = [a for a, index in enumerate(support) if index is not None and array.shape[a] > 1]
    box = array[..., None]
    for a in sorted(axes, key=lambda a: support[a].shape[1]):
        index = support[a]
        if index.shape[1] == 1:
            box = box.take(index[:, 0], axis=a)
        else:
            points = np.arange(box.shape[-1])
            box = box.swapaxes(-2, a)[..., index, points].swapaxes(-2, a)
    return box


def within(array: BatchedArray, support: Support, ndim: int) -> Array:
    """Return the values of an array in a larger box; further axes come first."""
    if support is array._support:
        return array._values
    extra = (1,) * (ndim - array.ndim)
    own, sizes = _aligned(array._support, ndim), extra + array.shape
    base = array._base.reshape(sizes)
    values = array._values.reshape(*extra, *array._values.shape)
    if values.size == 0:
        return _box(base, support, array._batch)
    for a in range(ndim):
        if sizes[a] == 1 or _same(own[a], support[a]):
            continue
        index, own = own[a], (*own[:a], support[a], *own[a + 1 :])
        if support[a] is not None:
            index = np.searchsorted(support[a][:, 0], index)
        smaller, values = values, _box(base, own, array._batch)
        if index.shape[1] == 1:
            values.swapaxes(0, a)[index[:, 0]] = smaller.swapaxes(0, a)
        else:
            points = np.arange(values.shape[-1])
            values.swapaxes(-2, a)[..., index, points] = smaller.swapaxes(-2, a)
    return values


def _box(base: Array, support: Support, batch: Batch) -> Array:
    """Return what an array is in a box before anything changes it."""
    box = _lengths(base.shape, support)
    batch.spend(math.prod(box) * batch.count * base.itemsize)
    result = np.empty((*box, batch.count), base.dtype)
    result[...] = at(base, support)
    return result


def _operand(array: Any, support: Support, ndim: int, batch: Batch) -> Any:
    """Return an operand within the box of the result."""
    if _is_changed(array):
        return within(array, support, ndim)
    plain = np.asarray(_base_of(array))
    if plain.ndim == 0:
        return _base_of(array)
    return at(plain.reshape((1,) * (ndim - plain.ndim) + plain.shape), support)


def _batch_of(arrays: Sequence[Any]) -> Batch:
    return next(array._batch for array in arrays if isinstance(array, BatchedArray))


def _base_of(array: Any) -> Any:
    return array._base if isinstance(array, BatchedArray) else array


def elementwise(function: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Evaluate a function of single entries within the smallest box that changes."""
    batch = _batch_of(inputs)
    base = np.asarray(batch.at_x(function, inputs, **kwargs))
    support = common_support(inputs, base.shape)
    batch.spend(math.prod(_lengths(base.shape, support)) * batch.count * base.itemsize)
    values = function(*(_operand(array, support, base.ndim, batch) for array in inputs), **kwargs)
    return wrapped(base, values, support, batch)


# ------------------------------------------------------------------------------------ indexing


def _plain_key(key: Any) -> tuple[Any, ...]:
    """Return an index without arrays at all points, which must agree."""
    return tuple(
        part._agreed("an index depends on `x`") if isinstance(part, BatchedArray) else part
        for part in (key if isinstance(key, tuple) else (key,))
    )


def _basic_parts(key: tuple[Any, ...], ndim: int) -> list[Any] | None:
    """Return an index for each axis, new ones in between; None if some are arrays."""
    if not all(isinstance(part, _BASIC) and not isinstance(part, bool) for part in key):
        return None
    used = sum(part is not None and part is not Ellipsis for part in key)
    rest = key.index(Ellipsis) if Ellipsis in key else len(key)
    return [*key[:rest], *[slice(None)] * (ndim - used), *key[rest + 1 :]]


def _within_part(index: Array, part: Any, size: int) -> tuple[Array, Array]:
    """Return where the indices of a box are within a slice or a number, and which are in it."""
    one = part if isinstance(part, slice) else slice(part, part + 1 or None)
    places = range(size)[one]
    inner, rest = np.divmod(index - places.start, places.step)
    return inner, (rest == 0) & (inner >= 0) & (inner < len(places))


def _reshaped_support(array: BatchedArray, shape: tuple[int, ...]) -> Support:
    """Return the box after a reshape; the array's becomes one that a reshape can carry."""
    if not _is_changed(array):
        return (_NONE,) * len(shape)
    support: list[Any] = [None] * len(shape)
    ends = [list(accumulate(lengths, operator.mul)) for lengths in (array.shape, shape)]
    olds = news = range(0)
    # Axes, old and new, of which there are as many entries.
    for end in sorted(set(ends[0]).intersection(ends[1])):
        olds, news = (
            range(axes.stop, bisect_right(of_axes, end))
            for axes, of_axes in zip((olds, news), ends, strict=True)
        )
        indices = array._support[olds.start : olds.stop]
        if all(index is None for index in indices):
            continue
        flat = _flat_index(indices, array.shape[olds.start : olds.stop])
        split = _split_index(flat, shape[news.start : news.stop])
        if split is None:
            array._widen(olds)
        else:
            support[news.start : news.stop] = split
    return tuple(support)


def _flat_index(support: Support, shape: tuple[int, ...]) -> Array:
    """Return the indices of a box when its axes become one."""
    flat = np.zeros((1, 1), np.intp)
    for index, size in zip(support, shape, strict=True):
        each = np.arange(size)[:, None] if index is None else index
        merged = flat[:, None] * size + each
        flat = merged.reshape(-1, merged.shape[-1])
    return flat


def _columns(flat: Array) -> tuple[Array, Array]:
    """Return the columns of indices that differ from the one before, and which each point has."""
    is_new = np.append(True, (flat[:, 1:] != flat[:, :-1]).any(axis=0))
    return flat[:, is_new], np.cumsum(is_new) - 1


def _split_index(flat: Array, shape: tuple[int, ...]) -> Support | None:
    """Return the box of ascending indices when one axis becomes several; None if they are none."""
    if len(shape) < 2:
        return (flat,) * len(shape)
    flat, of_point = _columns(flat)
    # What a box's first point has along an axis tells which of its rows begin another index.
    rows = [part[np.unique(part[:, 0], return_index=True)[1]]
            for part in np.unravel_index(flat, shape)]  # fmt: skip
    merged = _flat_index(tuple(rows), shape)
    if merged.shape != flat.shape or (merged != flat).any():
        return None
    return tuple(
        index[:, :1] if (index == index[:, :1]).all() else index[:, of_point] for index in rows
    )


# ------------------------------------------------------------------------------------ moving


def _numbers(shape: tuple[int, ...]) -> Array:
    """Return the numbers of the entries of an array, from 1."""
    return np.arange(1, math.prod(shape) + 1).reshape(shape)


def moved(function: Any) -> Callable[..., Any]:
    """Return what stands for a function that only moves entries.

    What it does with the numbers of the entries tells where each of them goes. Entries of the
    result that come from nowhere, as those that `np.tril` sets, have the number 0.
    """

    def call(array: BatchedArray, *args: Any, **kwargs: Any) -> Any:
        bases = function(array._base, *args, **kwargs)
        numbers = function(_numbers(array.shape), *args, **kwargs)
        if isinstance(bases, list | tuple):
            return [picked(array, *each) for each in zip(numbers, bases, strict=True)]
        return picked(array, numbers, bases)

    return call


def joined(function: Any) -> Callable[..., Any]:
    """Return what stands for a function that puts the entries of several arrays into one."""

    def call(arrays: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        bases = [np.asarray(_base_of(array)) for array in arrays]
        result = unchanged(function(bases, *args, **kwargs), _batch_of(arrays))
        for array, own in zip(arrays, bases, strict=True):
            if _is_changed(array):
                inside = function([np.full(x.shape, x is own) for x in bases], *args, **kwargs)
                part = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(inside))
                result[part] = array.reshape(result._base[part].shape)
        return result

    return call


def pad(array: Any, pad_width: Any, mode: Any = "constant", **kwargs: Any) -> Any:
    """Return ``np.pad``."""
    if mode != "constant":
        return moved(np.pad)(array, pad_width, mode, **kwargs)
    result = unchanged(np.pad(array._base, pad_width, **kwargs), array._batch)
    before = np.broadcast_to(pad_width, (array.ndim, 2))[:, 0].tolist()
    result[tuple(map(slice, before, map(operator.add, before, array.shape)))] = array
    return result


def picked(array: BatchedArray, numbers: Array, base: Array) -> Any:
    """Return an array of the entries of these numbers, and of those of the base for 0."""
    if not _is_changed(array):
        return base
    array._widen([a for a, index in enumerate(array._support)
                  if index is not None and index.shape[1] > 1])  # fmt: skip
    batch, count = array._batch, array._batch.count
    flat = _flat_index(array._support, array.shape)[:, 0]
    source = np.zeros(array.size + 1, np.intp)
    source[flat + 1] = np.arange(1, len(flat) + 1)
    source = source[numbers]
    # The smallest box around what comes from the box of the array.
    axes = [np.unique(index) for index in np.argwhere(source).T]
    source = np.asarray(source[np.ix_(*axes)])
    batch.spend(source.size * count * array.dtype.itemsize)
    values = array._values.reshape(len(flat), count)[source - 1]
    if not source.all():
        own = np.asarray(base)[np.ix_(*axes)]
        values = np.where((source > 0)[..., None], values, own[..., None])
    return wrapped(base, values, tuple(index[:, None] for index in axes), batch)


def _permuted(function: Any) -> Callable[..., Any]:
    """Return what stands for a function that permutes axes."""

    def call(array: BatchedArray, *args: Any) -> Any:
        # An array whose lengths are the numbers of its axes shows how.
        order = function(np.empty(range(array.ndim)), *args).shape
        base = array._batch.at_x(np.transpose, (array, order))
        values = array._values.transpose(*order, array.ndim)
        array._is_shared = True
        return wrapped(base, values, tuple(array._support[a] for a in order), array._batch)

    return call


# ------------------------------------------------------------------------------------ reductions


def _along(function: Any, default: int | None = None) -> Callable[..., Any]:
    """Return what stands for a function along one axis, or some, of which it needs all entries.

    A sum needs only those that change: it is the old sum plus their changes.
    """
    is_along_one = function in (np.argmax, np.argmin, np.cumsum, np.cumprod, np.sort, np.argsort)

    def along(array: Any, axis: Any = default, dtype: Any = None, **kwargs: Any) -> Any:
        if dtype is not None:
            kwargs["dtype"] = dtype
        if any(isinstance(value, np.ndarray | BatchedArray) for value in kwargs.values()):
            raise TypeError("a keyword is an array")
        if axis is None and is_along_one:
            array, axis = array.reshape(-1), 0
        axes = range(array.ndim) if axis is None else normalize_axis_tuple(axis, array.ndim)
        argument = axes[0] if len(axes) == 1 else tuple(axes)
        base = array._batch.at_x(function, (array,), axis=argument, **kwargs)
        if not _is_changed(array):
            return base
        keepdims = np.ndim(base) == array.ndim
        support = tuple(
            None if a in axes else index
            for a, index in enumerate(array._support) if keepdims or a not in axes
        )  # fmt: skip
        if function is np.sum and any(array._support[a] is not None for a in axes):
            change = _change(array, base, "a sum")
            values = change.sum(argument, keepdims=keepdims) + at(base, support)
        else:
            array._widen(axes)
            values = function(array._values, axis=argument, **kwargs)
        array._batch.spend(values.nbytes)
        return wrapped(base, values, support, array._batch)

    return along


def _change(array: BatchedArray, result: Any, what: str) -> Array:
    """Return how an array differs from its base, as a term of a result."""
    if not np.isfinite(result).all():
        raise array._batch.refuse(f"{what} is infinite or not a number")
    array._batch.spend(array._values.nbytes)
    dtype = np.result_type(array.dtype, result.dtype)
    change: Array = np.subtract(array._values, at(array._base, array._support), dtype=dtype)
    return change


def mean(array: Any, axis: Any = None, dtype: Any = None, *, keepdims: Any = False) -> Any:
    """Return means."""
    result = np.sum(array, axis, dtype, keepdims=keepdims)
    return result / (array.size // result.size)


# ------------------------------------------------------------------------------------ products


def dot(a: Any, b: Any) -> Any:
    """Return ``np.dot``."""
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return np.multiply(a, b)
    if np.ndim(b) > 2:
        raise _batch_of((a, b)).refuse("`np.dot` of more than two axes cannot be carried")
    return matmul(a, b)


def matmul(a: Any, b: Any) -> Any:
    """Return ``a @ b``."""
    a, b = (x if isinstance(x, BatchedArray) else np.asarray(x) for x in (a, b))
    if b.ndim > 2:
        return _stacked_matmul(a, b)
    if a.ndim == b.ndim == 2:
        return _product(a, b)
    shape = a.shape[:-1] + b.shape[1:]
    product = _product(a.reshape(-1, a.shape[-1]), b.reshape(len(b), -1)).reshape(shape)
    return product if shape else product[()]


def _stacked_matmul(a: Any, b: Any) -> Any:
    """Multiply stacks of matrices, each at all points."""
    batch = _batch_of((a, b))
    if a.ndim == 1 or b.ndim == 1:
        raise batch.refuse("a product of a stack and a vector cannot be carried")
    base = _base_of(a) @ _base_of(b)
    batch.spend(base.nbytes * batch.count)
    stacks = (_operand(x, (None,) * x.ndim, x.ndim, batch) for x in (a, b))
    values = np.ascontiguousarray(np.matmul(*stacks, axes=[(-3, -2)] * 3))
    return wrapped(base, values, (None,) * base.ndim, batch)


def _product(a: Any, b: Any) -> Any:
    """Multiply two matrices: the old product plus that of what changed."""
    if _is_changed(a) and _is_changed(b):
        return _stacked_matmul(a, b)
    batch = _batch_of((a, b))
    base = batch.at_x(np.matmul, (a, b))
    if not (_is_changed(a) or _is_changed(b)):
        return base
    # The product with a change of b is the transpose of one that begins with it.
    changed, order = (a, (0, 1, 2)) if _is_changed(a) else (b, (1, 0, 2))
    plain = _base_of(b) if changed is a else _base_of(a).T
    support = tuple(changed._support[a] for a in order[:2])
    is_whole = support[1] is None
    values = changed._values if is_whole else _change(changed, base, "a product")
    values, support = _multiplied(values.transpose(order), support, plain, batch)
    values, support = values.transpose(order), tuple(support[a] for a in order[:2])
    if not is_whole:
        values += at(base, support)
    return wrapped(base, values, support, batch)


def _multiplied(a: Array, support: Support, b: Array, batch: Batch) -> tuple[Array, Support]:
    """Multiply the values in a box, and zeros outside of it, by a plain matrix."""
    rows, terms = support
    n, count = len(a), batch.count
    if terms is not None and len(terms) == 1:
        # The columns of the product in which there is something, as the samples with such a pixel.
        factors = b[terms[0]]
        chosen = np.flatnonzero(factors.any(axis=0))
        if len(chosen) < b.shape[1]:
            factors = factors[:, chosen]
        batch.spend(n * len(chosen) * count * a.itemsize)
        return a * np.ascontiguousarray(factors.T), (rows, chosen[:, None])
    batch.spend(n * b.shape[1] * count * a.itemsize)
    if terms is None:
        return np.matmul(b.T, a), support
    values = np.empty((n, b.shape[1], count), np.result_type(a, b))
    # The points of one channel have the same terms.
    each, of_point = _columns(terms)
    edges = [*np.searchsorted(of_point, range(each.shape[1])), count]
    for used, start, stop in zip(each.T, edges, edges[1:], strict=False):
        np.matmul(b[used].T, a[..., start:stop], out=values[..., start:stop])
    return values, (rows, None)


def einsum(subscripts: str, *operands: Any, **kwargs: Any) -> Any:
    """Return ``np.einsum`` of letters, with the points in front."""
    batch = _batch_of(operands)
    if not isinstance(subscripts, str) or "." in subscripts or set(kwargs) - {"optimize"}:
        raise batch.refuse("`np.einsum` cannot be carried in this form")
    base = np.asarray(np.einsum(subscripts, *map(_base_of, operands), **kwargs))
    if not any(map(_is_changed, operands)):
        return base[()]
    batch.spend(base.nbytes * batch.count)
    for x in filter(_is_changed, operands):
        x._widen(range(x.ndim))
    values = np.einsum(
        re.sub("^|,|->", r"\g<0>...", subscripts),
        *(np.moveaxis(x._values, -1, 0) if _is_changed(x) else _base_of(x) for x in operands),
        optimize=True,
    )
    values = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    return wrapped(base, values, (None,) * base.ndim, batch)


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """Return ``np.tensordot``."""
    n, m = np.ndim(a), np.ndim(b)
    pairs = (range(n - axes, n), range(axes)) if isinstance(axes, int) else axes
    letters = [chr(ord("a") + i) for i in range(n + m)]
    for i, j in zip(*(np.ravel(x) for x in pairs), strict=True):
        letters[n + j % m] = letters[i % n]
    return einsum("".join(letters[:n]) + "," + "".join(letters[n:]), a, b)


# ------------------------------------------------------------------------------------ functions


def where(condition: Any, *choices: Any) -> Any:
    """Return ``np.where``."""
    if not choices:
        return np.where(condition._agreed("a condition"))
    return elementwise(np.where, condition, *choices)


def clip(a: Any, a_min: Any = None, a_max: Any = None, **bounds: Any) -> Any:
    """Return ``np.clip``."""
    low, high = bounds.pop("min", a_min), bounds.pop("max", a_max)
    return elementwise(np.clip, a, low, high, **bounds)


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Return ``np.linalg.norm``, the root of the sum of squares."""
    if ord not in (None, 2, "fro") or (ord == 2 and x.ndim > 1 and not isinstance(axis, int)):
        raise x._batch.refuse("`np.linalg.norm` cannot be carried in this form")
    return np.sqrt(np.sum(x * x, axis, keepdims=keepdims))


def _of_bases(function: Any) -> Callable[..., Any]:
    """Return what stands for a function of shapes and dtypes alone."""
    return lambda *args, **kwargs: function(*map(_base_of, args), **kwargs)


def _like(function: Any) -> Callable[..., Any]:
    return lambda a, *args, **kwargs: unchanged(function(a._base, *args, **kwargs), a._batch)


def _reshaped(function: Any) -> Callable[..., Any]:
    return lambda a, *args, **kwargs: a.reshape(function(a._base, *args, **kwargs).shape)


#: What stands for a function of NumPy.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.dot: dot, np.mean: mean, np.where: where, np.clip: clip, np.einsum: einsum, np.pad: pad,
    np.tensordot: tensordot, np.linalg.norm: norm, np.average: lambda a, axis=None: mean(a, axis),
    np.trace: lambda a, *args: np.sum(np.diagonal(a, *args), axis=-1),
    np.diff: lambda a, n=1, axis=-1, **kwargs: _along(np.diff)(a, axis, n=n, **kwargs),
    np.outer: lambda a, b: np.ravel(a)[:, None] * np.ravel(b)[None, :],
    np.inner: lambda a, b: matmul(a, b) if np.ndim(b) == 1 else matmul(a, b.T),
    np.vdot: lambda a, b: matmul(np.ravel(a), np.ravel(b)),
    np.reshape: lambda a, shape, order="C": a.reshape(shape, order=order),
    np.ravel: lambda a, order="C": a.reshape(-1, order=order),
    np.copy: lambda a, **_: a.copy(), np.round: functools.partial(elementwise, np.round),
    np.nan_to_num: functools.partial(elementwise, np.nan_to_num),
    np.append: lambda a, values, axis=None: np.concatenate(
        [np.ravel(a), np.ravel(values)] if axis is None else [a, values], axis or 0
    ),
}  # fmt: skip

#: Functions of NumPy by kind: what makes that which stands for one of them.
_KINDS: dict[Callable[[Any], Callable[..., Any]], str] = {
    _of_bases: "shape ndim size iscomplexobj isrealobj result_type",
    _like: "zeros_like ones_like empty_like full_like",
    _along: """sum var std max min prod any all argmax argmin ptp median nansum nanmean
               nanmax nanmin count_nonzero cumsum cumprod""",
    functools.partial(_along, default=-1): "sort argsort",
    _permuted: "transpose swapaxes moveaxis",
    _reshaped: "squeeze expand_dims atleast_1d atleast_2d",
    moved: """roll flip fliplr flipud rot90 take repeat tile broadcast_to delete diag diagonal
              tril triu split array_split hsplit vsplit""",
    joined: "concatenate stack vstack hstack column_stack",
}
for _kind, _names in _KINDS.items():
    for _function in operator.attrgetter(*_names.split())(np):
        FUNCTIONS[_function] = _kind(_function)

#: The functions of NumPy that are reductions of ufuncs.
_REDUCTIONS = {
    np.add: np.sum, np.maximum: np.max, np.minimum: np.min, np.multiply: np.prod,
    np.logical_or: np.any, np.logical_and: np.all,
}  # fmt: skip
