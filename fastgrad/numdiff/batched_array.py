"""An array at many points at once: its value at x, and what differs from it at each point.

A `BatchedArray` stands in for an array while a function runs once for K points. It holds `base`,
the array at x, and `values`, the same array at the K points, which are counted by a last axis that
the function does not see. A nudge of one entry changes only a part of most arrays, so `values`
covers a *box* of the array: for each axis `support` names the indices within it,

- ``None``: all;
- shape (R, 1): the same R indices at every point, as the samples in which a pixel is not zero;
- shape (1, K): one index at each point, as the hidden unit that a weight belongs to.

Outside of the box every point has the value of `base`. Operations of NumPy compute the box of their
result, and nothing else. What cannot be carried raises `NotCarried`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

__all__ = ["Bases", "Batch", "BatchedArray", "NotCarried", "TooLarge"]

Array = NDArray[Any]
Support = tuple[Any, ...]

#: Bytes of results at x that are kept.
_KEPT = 16 << 20

#: The indices of a box that is empty.
_NONE = np.empty((0, 1), np.intp)


class NotCarried(Exception):  # noqa: N818 - it is a reason to go another way, not an error
    """Why a function cannot be evaluated at all points at once."""


class TooLarge(NotCarried):
    """The arrays of so many points need too much memory; fewer points may do."""


class Bases:
    """What operations give at x: it is the same in every run, so the first one computes it.

    A result is known by the operation and by the very objects that went in.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Any]] = {}
        self._nbytes = 0
        self.is_first = True

    def compute(self, function: Any, inputs: tuple[Any, ...], **kwargs: Any) -> Any:
        """Return ``function(*inputs, **kwargs)``, computed once; it must not be written to."""
        key = (
            function,
            *(id(x) if isinstance(x, np.ndarray) else (type(x), x) for x in inputs),
            *kwargs.items(),
        )
        try:
            found = self._known.get(key)
        except TypeError:  # not hashable
            return function(*inputs, **kwargs)
        if found is not None:
            return found[1]
        result = function(*inputs, **kwargs)
        if self.is_first and self._nbytes < _KEPT:
            # The inputs are kept too, so that no other object gets the number of one.
            self._known[key] = (inputs, result)
            self._nbytes += getattr(result, "nbytes", 0)
        return result


class Batch:
    """What the arrays of one run of the function have in common.

    Parameters
    ----------
    count : int
        The number of points, K.
    budget : int
        The number of bytes that all values together may take.
    bases : Bases
        What is known from other runs.

    Attributes
    ----------
    nbytes : int
        The bytes that values have taken so far.
    refusal : NotCarried or None
        The first refusal, which the function may have caught.
    """

    def __init__(self, count: int, budget: int, bases: Bases) -> None:
        self.count = count
        self.budget = budget
        self.bases = bases
        self.nbytes = 0
        self.refusal: NotCarried | None = None

    def refuse(self, reason: str) -> NotCarried:
        """Return the exception to raise, and remember it."""
        return self._remember(NotCarried(reason))

    def spend(self, nbytes: int) -> None:
        """Count bytes that are about to be allocated."""
        self.nbytes += nbytes
        if self.nbytes > self.budget:
            raise self._remember(TooLarge("its arrays at several points need too much memory"))

    def _remember(self, refusal: NotCarried) -> NotCarried:
        self.refusal = self.refusal or refusal
        return refusal


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
    is_fixed : bool
        Whether it must not be written to, as what the points belong to.
    """

    def __init__(
        self, base: Any, values: Array, support: Support, batch: Batch, *, is_fixed: bool = False
    ) -> None:
        self._base: Array = np.asarray(base)
        self._values = values
        # An axis of length 1 is covered whatever its indices.
        self._support = tuple(
            None if index is not None and len(index) == size else index
            for index, size in zip(support, self._base.shape, strict=True)
        )
        self._batch = batch
        self._is_fixed = is_fixed
        #: Whether memory may be that of other arrays, so that it must be copied to be written to.
        self._is_shared = True

    # ------------------------------------------------------------------------ as an array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape at each point."""
        return self._base.shape

    @property
    def ndim(self) -> int:
        """The number of axes at each point."""
        return self._base.ndim

    @property
    def size(self) -> int:
        """The number of entries at each point."""
        return self._base.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""
        return self._base.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the array at one point."""
        return self._base.nbytes

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

    __str__ = __repr__

    def item(self) -> Any:
        """Return the only entry, at all points."""
        self._base.item()
        return self.reshape(())

    # ------------------------------------------------------------------------ NumPy's protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Evaluate a ufunc within the box of its result."""
        out = kwargs.pop("out", (None,))[0]
        if method == "__call__" and ufunc is np.matmul:
            result = matmul(*inputs, **kwargs)
        elif method == "__call__":
            result = self._elementwise(ufunc, inputs, kwargs)
        elif method == "reduce" and ufunc in _REDUCTIONS:
            result = _REDUCTIONS[ufunc](*inputs, **kwargs)
        else:
            raise self._batch.refuse(f"`np.{ufunc.__name__}.{method}` cannot be carried")
        if out is None:
            return result
        if out is not inputs[0]:
            raise self._batch.refuse(f"`np.{ufunc.__name__}` writes into an array, `out`")
        if out.dtype != result.dtype or out.shape != result.shape:
            result = result.astype(out.dtype) if out.shape == result.shape else self._no_number()
        # a += b of a plain a: Python binds the name to what is returned.
        return out._become(result) if isinstance(out, BatchedArray) else result

    def _elementwise(self, ufunc: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if ufunc.signature is not None or ufunc.nout != 1 or set(kwargs) - {"dtype", "casting"}:
            raise self._batch.refuse(f"`np.{ufunc.__name__}` cannot be carried in this form")
        return elementwise(ufunc, inputs, kwargs)

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Evaluate a function of NumPy that is known here."""
        carried = FUNCTIONS.get(function)
        if carried is None:
            raise self._batch.refuse(f"`np.{function.__name__}` cannot be carried")
        return carried(*args, **kwargs)

    # ------------------------------------------------------------------------ boxes

    def _become(self, other: Any) -> BatchedArray:
        """Take the content of another array, as an operation in place does."""
        if self._is_fixed:
            raise self._batch.refuse("it writes to `x`")
        if not isinstance(other, BatchedArray):
            other = unchanged(other, self._batch)
        self._base, self._values, self._support = other._base, other._values, other._support
        self._is_shared = other._is_shared
        return self

    def _is_changed(self) -> bool:
        return self._values.size > 0

    def _view(self, base: Any, values: Array, support: Support) -> Any:
        """Return an array that may share memory with this one."""
        self._is_shared = True
        return wrapped(base, values, support, self._batch)

    def _at_x(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a function of the base and of plain arguments."""
        return at_x(self._batch, function, (self, *args), **kwargs)

    def _full(self, *axes: int) -> BatchedArray:
        """Return the array with a box that covers the given axes, or all."""
        chosen = axes or range(self.ndim)
        if all(self._support[a] is None for a in chosen):
            return self
        support = tuple(None if a in chosen else index for a, index in enumerate(self._support))
        return BatchedArray(self._base, within(self, support, self.ndim), support, self._batch)

    # ------------------------------------------------------------------------ indexing

    def __getitem__(self, key: Any) -> Any:
        """Return entries at all points."""
        base = self._base[_plain_key(self, key)]
        return self._view(base, *_taken(self, _expanded_key(self, key)))

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set entries at all points."""
        if self._is_fixed:
            raise self._batch.refuse("it writes to `x`")
        if isinstance(key, BatchedArray):
            if key.dtype != bool or key.shape != self.shape or np.ndim(value) > 0:
                raise self._batch.refuse("an index depends on `x`")
            self._become(where(key, value, self).astype(self.dtype))
            return
        if self._is_shared:
            self._become(self.copy())
        parts = _expanded_key(self, key)
        changed = value if isinstance(value, BatchedArray) and value._is_changed() else None
        self._base[key] = value._base if isinstance(value, BatchedArray) else value
        if changed is None and not self._is_changed():
            return
        basic = all(isinstance(part, slice | int | np.integer) for part in parts)
        support: list[Any] = [None] * self.ndim
        value_ndim = changed.ndim if changed is not None else np.ndim(value)
        if basic:
            kept = [a for a, part in enumerate(parts) if isinstance(part, slice)]
            places = {a: i - len(kept) + value_ndim for i, a in enumerate(kept)}
            for a, i in places.items():
                if parts[a] != slice(None):
                    continue
                other: Any = _NONE
                if changed is not None:
                    other = None
                    if i >= 0 and changed.shape[i] == self.shape[a]:
                        other = changed._support[i]
                mine = self._support[a] if self._is_changed() else _NONE
                support[a] = (
                    other if mine is _NONE else mine if other is _NONE else _union(mine, other)
                )
        target = tuple(support)
        if not self._is_changed() or not _same(target, self._support):
            # The base already has the new values: they are written over below.
            self._values = within(self, target, self.ndim)
            self._support = target
        into = tuple(
            slice(None) if index is not None else part
            for index, part in zip(target, parts, strict=True)
        )
        if basic:
            of_value = tuple(
                index for index, part in zip(target, parts, strict=True) if isinstance(part, slice)
            )
            self._values[into] = _operand(value, of_value, len(of_value), self._batch)
        else:
            dense = self._base[key].ndim
            self._values[into] = _operand(value, (None,) * dense, dense, self._batch)

    # ------------------------------------------------------------------------ methods

    def transpose(self, *axes: Any) -> Any:
        """Permute the axes."""
        if len(axes) == 1 and not isinstance(axes[0], int | np.integer):
            axes = axes[0] or ()
        order = [operator.index(a) % self.ndim for a in axes] or list(range(self.ndim))[::-1]
        return self._view(
            self._at_x(np.transpose, tuple(order)),
            self._values.transpose(*order, self.ndim),
            tuple(self._support[a] for a in order),
        )

    def swapaxes(self, a: int, b: int) -> Any:
        """Exchange two axes."""
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.transpose(order)

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """Give the array another shape."""
        if order != "C":
            raise self._batch.refuse("an order of memory other than C cannot be carried")
        if len(shape) == 1 and not isinstance(shape[0], int | np.integer):
            shape = tuple(shape[0])
        if shape == self.shape:
            return self._view(self._base, self._values, self._support)
        base = self._at_x(np.reshape, shape)
        array, support = _reshaped_support(self, base.shape)
        box = tuple(
            size if index is None else len(index)
            for size, index in zip(base.shape, support, strict=True)
        )
        return self._view(base, array._values.reshape(*box, self._batch.count), support)

    def ravel(self, order: str = "C") -> Any:
        """Return the array with one axis."""
        return self.reshape(-1, order=order)

    def flatten(self, order: str = "C") -> Any:
        """Return a copy with one axis."""
        return self.reshape(-1, order=order).copy()

    def squeeze(self, axis: Any = None) -> Any:
        """Remove axes of length 1."""
        base = self._base.squeeze(axis)
        return self.reshape(base.shape)

    def astype(self, dtype: Any, *_: Any, **__: Any) -> Any:
        """Return a copy of another dtype."""
        self._batch.spend(self._values.nbytes)
        base, values = self._base.astype(dtype), self._values.astype(dtype)
        return wrapped(base, values, self._support, self._batch)

    def copy(self, *_: Any, **__: Any) -> BatchedArray:
        """Return a copy."""
        self._batch.spend(self._values.nbytes)
        result = BatchedArray(self._base.copy(), self._values.copy(), self._support, self._batch)
        result._is_shared = False
        return result

    __copy__ = __deepcopy__ = copy

    def fill(self, value: Any) -> None:
        """Set all entries."""
        self[...] = value

    def take(self, indices: Any, axis: int | None = None) -> Any:
        """Return entries along an axis."""
        array = self.reshape(-1) if axis is None else self
        return array[(slice(None),) * ((axis or 0) % array.ndim) + (np.asarray(indices),)]

    def dot(self, other: Any) -> Any:
        """Return the product of arrays."""
        return dot(self, other)

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        """Add entries."""
        return total(self, axis, dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return means."""
        return mean(self, axis, keepdims=keepdims)

    def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        """Return variances."""
        return variance(self, axis, ddof=ddof, keepdims=keepdims)

    def std(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        """Return standard deviations."""
        return np.sqrt(variance(self, axis, ddof=ddof, keepdims=keepdims))

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return the largest entries."""
        return _reduced(np.max, self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return the smallest entries."""
        return _reduced(np.min, self, axis, keepdims)

    def prod(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return products."""
        return _reduced(np.prod, self, axis, keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return whether there is one that is true."""
        return _reduced(np.any, self, axis, keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return whether all are true."""
        return _reduced(np.all, self, axis, keepdims)

    def argmax(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return where the largest entries are."""
        return _reduced(np.argmax, self, axis, keepdims)

    def argmin(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Return where the smallest entries are."""
        return _reduced(np.argmin, self, axis, keepdims)

    def cumsum(self, axis: int | None = None) -> Any:
        """Return the sums of all entries up to each."""
        return _along(np.cumsum, self, axis)

    def clip(self, low: Any = None, high: Any = None) -> Any:
        """Return entries within bounds."""
        return clip(self, low, high)


# ------------------------------------------------------------------------------------ boxes


def wrapped(base: Any, values: Array, support: Support, batch: Batch) -> Any:
    """Return a new array at all points, or a plain one if no point changes it."""
    return BatchedArray(base, values, support, batch) if values.size else base


def unchanged(base: Array, batch: Batch) -> BatchedArray:
    """Return a new plain array as one that can take values which differ between points."""
    support: Support = (_NONE,) * base.ndim
    values = np.empty((*(0,) * base.ndim, batch.count), base.dtype)
    if base.ndim == 0:  # has no box that is empty
        values[...] = base
    result = BatchedArray(base, values, support, batch)
    result._is_shared = False
    return result


def _same(one: Support, other: Support) -> bool:
    """Return whether two boxes have the same indices."""
    return all(
        a is b or (a is not None and b is not None and a.shape == b.shape and (a == b).all())
        for a, b in zip(one, other, strict=True)
    )


def _union(one: Any, other: Any) -> Any:
    """Return indices along an axis that cover those of two boxes."""
    if one is other:
        return one
    if one is None or other is None:
        return None
    if one.shape == other.shape and (one == other).all():
        return one
    if one.shape[1] == other.shape[1] == 1:
        return np.union1d(one, other)[:, None]
    return None


def _aligned(support: Support, ndim: int) -> Support:
    return (None,) * (ndim - len(support)) + support


def common_support(arrays: Sequence[Any], shape: tuple[int, ...]) -> Support:
    """Return the smallest box that covers those of all arrays, broadcast to a shape."""
    result: list[Any] | None = None
    for array in arrays:
        if not isinstance(array, BatchedArray) or not array._is_changed():
            continue
        sizes = (1,) * (len(shape) - array.ndim) + array.shape
        support = [
            index if size == whole else None
            for index, size, whole in zip(
                _aligned(array._support, len(shape)), sizes, shape, strict=True
            )
        ]
        result = support if result is None else list(map(_union, result, support))
    return (_NONE,) * len(shape) if result is None else tuple(result)


def at(array: Array, support: Support) -> Array:
    """Return the entries of a plain array within a box, and a last axis of length 1 or K.

    Axes of length 1 are broadcast.
    """
    each = []
    for a, index in enumerate(support):
        if index is None or array.shape[a] == 1:
            continue
        if index.shape[1] > 1:
            each.append(a)
        else:
            array = array.take(index[:, 0], axis=a)
    if not each:
        column: Array = array[..., None]
        return column
    if len(each) == 1:
        a = each[0]
        if array.ndim == 1:
            row: Array = array.take(support[a][0])[None, :]
            return row
        array = np.moveaxis(array.take(support[a][0], axis=a), a, -1)
    else:
        array = np.moveaxis(array, each, range(len(each)))
        array = np.moveaxis(array[tuple(support[a][0] for a in each)], 0, -1)
    box: Array = np.expand_dims(np.ascontiguousarray(array), tuple(each))
    return box


def within(array: BatchedArray, support: Support, ndim: int) -> Array:
    """Return the values of an array in a larger box; further axes come first."""
    own = _aligned(array._support, ndim)
    extra = (1,) * (ndim - array.ndim)
    values = array._values.reshape(*extra, *array._values.shape)
    sizes = (*extra, *array.shape)
    differ = [
        a for a in range(ndim)
        if sizes[a] > 1 and own[a] is not support[a] and not (
            own[a] is not None and support[a] is not None and own[a].shape == support[a].shape
            and (own[a] == support[a]).all()
        )
    ]  # fmt: skip
    if not differ and values.size:
        return values
    count = array._batch.count
    box = tuple(
        1 if size == 1 else size if index is None else len(index)
        for size, index in zip(sizes, support, strict=True)
    )
    array._batch.spend(math.prod(box) * count * values.itemsize)
    result = np.empty((*box, count), values.dtype)
    result[...] = at(array._base.reshape(sizes), support)
    if values.size == 0:
        return result
    index: list[Any] = [slice(None)] * ndim
    for a in differ:
        index[a] = own[a] if support[a] is None else np.searchsorted(support[a][:, 0], own[a])
    if len(differ) == 1 and index[differ[0]].shape[1] == 1:
        index[differ[0]] = index[differ[0]][:, 0]
        result[tuple(index)] = values
        return result
    mesh = []
    for a in range(ndim):
        part = index[a] if a in differ else np.arange(box[a])[:, None]
        shape = [1] * (ndim + 1)
        shape[a], shape[-1] = part.shape
        mesh.append(part.reshape(shape))
    result[(*mesh, np.arange(count))] = values
    return result


def _operand(array: Any, support: Support, ndim: int, batch: Batch) -> Any:
    """Return an operand within the box of the result."""
    if isinstance(array, BatchedArray):
        if array._is_changed():
            sizes = (1,) * (ndim - array.ndim) + array.shape
            return within(
                array,
                tuple(
                    None if size == 1 else index for size, index in zip(sizes, support, strict=True)
                ),
                ndim,
            )
        array = array._base
    if np.ndim(array) == 0:
        return array
    plain = np.asarray(array)
    return at(plain.reshape((1,) * (ndim - plain.ndim) + plain.shape), support)


def _batch_of(arrays: Sequence[Any]) -> Batch:
    return next(array._batch for array in arrays if isinstance(array, BatchedArray))


def _base_of(array: Any) -> Any:
    return array._base if isinstance(array, BatchedArray) else array


def at_x(batch: Batch, function: Any, inputs: Sequence[Any], **kwargs: Any) -> Any:
    """Return what a function gives at x, from an earlier run if that is known."""
    bases = tuple(map(_base_of, inputs))
    if any(isinstance(x, BatchedArray) and not x._is_shared for x in inputs):
        return function(*bases, **kwargs)  # it may be written to
    return batch.bases.compute(function, bases, **kwargs)


def elementwise(function: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Evaluate a function of single entries within the smallest box that changes."""
    batch = _batch_of(inputs)
    base = at_x(batch, function, inputs, **kwargs)
    if len(inputs) == 1 or all(np.ndim(x) == 0 for x in inputs if not isinstance(x, BatchedArray)):
        array, *others = (x for x in inputs if isinstance(x, BatchedArray))
        if not others and array._is_changed():
            batch.spend(array._values.nbytes)
            operands = (x._values if x is array else x for x in inputs)
            return wrapped(base, function(*operands, **kwargs), array._support, batch)
    base = np.asarray(base)
    support = common_support(inputs, base.shape)
    if any(index is _NONE for index in support):
        return base[()]
    box = [
        size if index is None else len(index)
        for size, index in zip(base.shape, support, strict=True)
    ]
    batch.spend(math.prod(box) * batch.count * base.itemsize)
    values = function(*(_operand(array, support, base.ndim, batch) for array in inputs), **kwargs)
    if values.shape != (*box, batch.count):
        values = np.broadcast_to(values, (*box, batch.count))
    return wrapped(base, values, support, batch)


# ------------------------------------------------------------------------------------ indexing


def _plain_key(array: BatchedArray, key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, BatchedArray) for part in parts):
        raise array._batch.refuse("an index depends on `x`")
    return key


def _expanded_key(array: BatchedArray, key: Any) -> list[Any]:
    """Return an index for each axis, masks as numbers; new axes stay in between."""
    parts = list(key) if isinstance(key, tuple) else [key]
    result: list[Any] = []
    for part in parts:
        if part is None or part is Ellipsis or isinstance(part, slice):
            result.append(part)
        elif isinstance(part, bool | np.bool_):
            raise array._batch.refuse("an index of this kind cannot be carried")
        elif isinstance(part, int | np.integer):
            result.append(int(part))
        else:
            numbers = np.asarray(part)
            if numbers.dtype == bool:
                result.extend(numbers.nonzero())
            else:
                result.append(numbers.astype(np.intp) if numbers.size == 0 else numbers)
    used = sum(part is not None and part is not Ellipsis for part in result)
    rest = [slice(None)] * (array.ndim - used)
    if not any(part is Ellipsis for part in result):
        return result + rest
    where_rest = next(i for i, part in enumerate(result) if part is Ellipsis)
    return result[:where_rest] + rest + result[where_rest + 1 :]


def _taken(array: BatchedArray, parts: list[Any]) -> tuple[Array, Support]:
    """Return values and box of ``array[parts]``."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if arrays:
        return _gathered(array, parts)
    values, axis = array._values, 0
    support: list[Any] = []
    key: list[Any] = []
    for part in parts:
        if part is None:
            key.append(None)
            support.append(None)
            continue
        size, index = array.shape[axis], array._support[axis]
        axis += 1
        if index is None:
            key.append(part)
            if isinstance(part, slice):
                support.append(None)
            continue
        numbers = np.asarray(np.arange(size)[part])
        if index.shape[1] == 1:
            rows = index[:, 0]
            if isinstance(part, slice):
                place = np.full(size, -1)
                place[rows] = np.arange(len(rows))
                place = place[numbers]
                inside = (place >= 0).nonzero()[0]
                key.append(place[inside])
                support.append(inside[:, None])
            else:
                found = (rows == numbers).nonzero()[0]
                if len(found) == 0:
                    return np.empty(0), (_NONE,) * _ndim_after(parts)
                key.append(int(found[0]))
            continue
        # One index at each point: where it is cut off, the point has the base's value.
        place = np.full(size, -1)
        place[numbers] = np.arange(np.size(numbers)).reshape(numbers.shape)
        place = place[index[0]]
        lost = place < 0
        if lost.all():
            return np.empty(0), (_NONE,) * _ndim_after(parts)
        if lost.any():
            rest = list(array._support)
            rest[axis - 1] = np.where(lost, np.ravel(numbers)[0], index[0])[None, :]
            kept = np.where(lost, at(array._base, tuple(rest)), values)
            values = kept
        if isinstance(part, slice):
            key.append(slice(None))
            support.append(np.where(lost, 0, place)[None, :])
        else:
            key.append(0)
    for place_in_key, part in enumerate(key):
        if isinstance(part, np.ndarray):
            # Axes that vanish or appear are not yet counted: take one axis after the other.
            before = sum(other is not None for other in key[:place_in_key])
            values = values.take(part, axis=before)
            key[place_in_key] = slice(None)
    return values[(*key, slice(None))], tuple(support)


def _ndim_after(parts: list[Any]) -> int:
    return sum(part is None or isinstance(part, slice) for part in parts)


def _gathered(array: BatchedArray, parts: list[Any]) -> tuple[Array, Support]:
    """Return values and box where some indices are arrays."""
    if any(part is None for part in parts):
        raise array._batch.refuse("an index of this kind cannot be carried")
    hit = [a for a, part in enumerate(parts) if not isinstance(part, slice)]
    each = []
    for a, (index, part) in enumerate(zip(array._support, parts, strict=True)):
        is_cut = part != slice(None) if isinstance(part, slice) else None
        if index is not None and (index.shape[1] > 1 if is_cut is None else is_cut):
            each.append(a)
    if each:
        array = array._full(*each)
    picks = np.broadcast_arrays(*(np.asarray(parts[a]) for a in hit))
    adjacent = hit == list(range(hit[0], hit[-1] + 1))
    if picks[0].ndim != 1 or not adjacent:
        array = array._full(*hit)
        key = tuple(parts)
        values = array._values[(*key, slice(None))]
        first = hit[0] if adjacent else 0
        kept = [array._support[a] for a in range(array.ndim) if a not in hit]
        support = (*kept[:first], *(None,) * picks[0].ndim, *kept[first:])
        if not adjacent and picks[0].ndim == 0:
            support = tuple(kept)
        return values, support
    places, inside = [], np.ones(picks[0].shape, bool)
    for a, pick in zip(hit, picks, strict=True):
        size, index = array.shape[a], array._support[a]
        pick = np.where(pick < 0, pick + size, pick)
        if index is not None:
            place = np.full(size, -1)
            place[index[:, 0]] = np.arange(len(index))
            pick = place[pick]
            inside &= pick >= 0
        places.append(pick)
    chosen = inside.nonzero()[0]
    first = hit[0]
    key_parts: list[Any] = [
        part if array._support[a] is None else slice(None) for a, part in enumerate(parts)
    ]
    for a, place in zip(hit, places, strict=True):
        key_parts[a] = place[chosen]
    values = array._values[(*key_parts, slice(None))]
    kept = [array._support[a] for a in range(array.ndim) if a not in hit]
    rows = None if len(chosen) == len(inside) else chosen[:, None]
    return values, (*kept[:first], rows, *kept[first:])


def _reshaped_support(array: BatchedArray, shape: tuple[int, ...]) -> tuple[BatchedArray, Support]:
    """Return the box after a reshape, and the array with a box that a reshape can carry."""
    if not array._is_changed():
        return array, (_NONE,) * len(shape)
    support: list[Any] = [None] * len(shape)
    full: list[int] = []
    old, new = 0, 0
    while old < array.ndim or new < len(shape):
        olds, news = [old], [new]
        a = array.shape[old] if old < array.ndim else 1
        b = shape[new] if new < len(shape) else 1
        if old >= array.ndim:
            olds = []
        if new >= len(shape):
            news = []
        old, new = old + 1, new + 1
        while a != b:
            if a < b:
                a *= array.shape[old]
                olds.append(old)
                old += 1
            else:
                b *= shape[new]
                news.append(new)
                new += 1
        indices = [array._support[i] for i in olds if array.shape[i] > 1]
        sizes = [array.shape[i] for i in olds if array.shape[i] > 1]
        new_axes = [i for i in news if shape[i] > 1]
        if all(index is None for index in indices) or not new_axes:
            continue
        flat = _flat_index(indices, sizes)
        if flat is None or (len(new_axes) > 1 and len(flat) > 1):
            full.extend(olds)
            continue
        parts = np.unravel_index(flat, [shape[i] for i in new_axes])
        for i, part in zip(new_axes, parts, strict=True):
            support[i] = np.asarray(part)
    return (array._full(*full) if full else array), tuple(support)


def _flat_index(indices: list[Any], sizes: list[int]) -> Any:
    """Return the indices of several axes that become one; None if they are no box."""
    if any(index is None for index in indices):
        return None
    if any(len(index) > 1 for index in indices) and any(index.shape[1] > 1 for index in indices):
        return None
    flat = np.zeros((1, 1), np.intp)
    for index, size in zip(indices, sizes, strict=True):
        flat = (
            flat * size + index
            if index.shape[1] > 1 or len(index) == 1
            else (flat.reshape(-1, 1) * size + index.reshape(1, -1)).reshape(-1, 1)
        )
    return flat


# ------------------------------------------------------------------------------------ reductions


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(operator.index(a) % ndim for a in axes)


def _without(array: Any, axes: tuple[int, ...], keepdims: Any) -> Any:
    """Drop reduced axes, which have length 1."""
    if keepdims:
        return array
    if not isinstance(array, BatchedArray):
        return np.squeeze(array, axes)[()]
    support = tuple(index for a, index in enumerate(array._support) if a not in axes)
    return array._view(array._at_x(np.squeeze, axes), array._values.squeeze(axes), support)


def total(
    array: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False
) -> Any:
    """Add entries: the old sum plus what changed."""
    batch = array._batch
    if out is not None:
        raise batch.refuse("`np.sum` writes into an array, `out`")
    axes = _axes(axis, array.ndim)
    base = array._at_x(np.sum, axes, dtype=dtype, keepdims=True)
    if not array._is_changed():
        return _without(base, axes, keepdims)
    support = tuple(None if a in axes else index for a, index in enumerate(array._support))
    if all(array._support[a] is None for a in axes):
        values = array._values.sum(axes, dtype=dtype, keepdims=True)
    else:
        if not np.isfinite(base).all():
            raise batch.refuse("a sum is infinite or not a number")
        batch.spend(array._values.nbytes)
        old = at(array._base, array._support)
        if dtype is not None or base.dtype != array.dtype:
            old = old.astype(base.dtype)
        change = (array._values - old).sum(axes, keepdims=True)
        values = at(base, support) + change
    return _without(wrapped(base, values, support, batch), axes, keepdims)


def mean(
    array: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False
) -> Any:
    """Return means."""
    axes = _axes(axis, array.ndim)
    count = math.prod(array.shape[a] for a in axes)
    if dtype is None and array.dtype.kind in "biu":
        dtype = np.float64
    result = total(array, axes, dtype, out, keepdims)
    return result / result.dtype.type(count)


def variance(
    array: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0,
    keepdims: Any = False,
) -> Any:  # fmt: skip
    """Return variances."""
    axes = _axes(axis, array.ndim)
    centered = array - mean(array, axes, dtype, out, keepdims=True)
    count = math.prod(array.shape[a] for a in axes) - ddof
    result = total(centered * centered, axes, keepdims=keepdims)
    return result / result.dtype.type(count)


def _reduced(function: Any, array: Any, axis: Any, keepdims: Any = False) -> Any:
    """Reduce axes that the box covers after it has been made to cover them."""
    if axis is None and function in (np.argmax, np.argmin) and array.ndim != 1:
        array, axis = array.reshape(-1), 0
    axes = _axes(axis, array.ndim)
    argument = axes[0] if function in (np.argmax, np.argmin) else axes
    base = array._at_x(function, axis=argument, keepdims=True)
    full = array._full(*axes) if axes else array
    values = function(full._values, axis=argument, keepdims=True)
    support = tuple(None if a in axes else index for a, index in enumerate(full._support))
    return _without(wrapped(base, values, support, array._batch), axes, keepdims)


def _reduction(function: Any) -> Callable[..., Any]:
    def reduced(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
        if out is not None:
            raise a._batch.refuse(f"`np.{function.__name__}` writes into an array, `out`")
        return _reduced(function, a, axis, keepdims)

    return reduced


def _along(function: Any, array: Any, axis: int | None) -> Any:
    """Apply a function that keeps the shape along one axis."""
    if axis is None:
        array, axis = array.reshape(-1), 0
    axis = operator.index(axis) % array.ndim
    full = array._full(axis)
    array._batch.spend(full._values.nbytes)
    base, values = function(array._base, axis=axis), function(full._values, axis=axis)
    return wrapped(base, values, full._support, array._batch)


# ------------------------------------------------------------------------------------ products


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Return ``np.dot``."""
    if out is not None:
        raise _batch_of((a, b)).refuse("`np.dot` writes into an array, `out`")
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return np.multiply(a, b)
    if np.ndim(b) > 2:
        raise _batch_of((a, b)).refuse("`np.dot` of more than two axes cannot be carried")
    return matmul(a, b)


def matmul(a: Any, b: Any) -> Any:
    """Return ``a @ b``."""
    a, b = (x if isinstance(x, BatchedArray) else np.asarray(x) for x in (a, b))
    if b.ndim > 2 or (a.ndim > 2 and b.ndim == 0):
        return _stacked_matmul(a, b)
    if a.ndim == b.ndim == 2:
        return _product(a, b)
    rows = a.shape[:-1]
    columns = b.shape[1:]
    left = a.reshape(-1, a.shape[-1])
    right = b.reshape(b.shape[0], -1)
    product = _product(left, right)
    return product.reshape(*rows, *columns) if rows + columns else product.reshape(())[()]


def _stacked_matmul(a: Any, b: Any) -> Any:
    """Multiply stacks of matrices, each at all points."""
    if a.ndim == 1 or b.ndim == 1:
        raise _batch_of((a, b)).refuse("a product of a stack and a vector cannot be carried")
    batch = _batch_of((a, b))
    base = _base_of(a) @ _base_of(b)
    stacks = [
        np.moveaxis(_operand(x, (None,) * base.ndim, base.ndim, batch), -1, 0) for x in (a, b)
    ]
    batch.spend(base.nbytes * batch.count)
    values = np.ascontiguousarray(np.moveaxis(stacks[0] @ stacks[1], 0, -1))
    return wrapped(base, values, (None,) * base.ndim, batch)


def _product(a: Any, b: Any) -> Any:
    """Multiply two matrices."""
    a_changed, b_changed = (isinstance(x, BatchedArray) and x._is_changed() for x in (a, b))
    if a_changed and b_changed:
        return _stacked_matmul(a, b)
    batch = _batch_of((a, b))
    base = at_x(batch, np.matmul, (a, b))
    if not a_changed and not b_changed:
        return base
    values, support = (
        _product_left(a, _base_of(b), base) if a_changed else _product_right(_base_of(a), b, base)
    )
    return wrapped(base, values, support, batch)


def _product_left(a: BatchedArray, b: Array, base: Array) -> tuple[Array, Support]:
    """Multiply a matrix at all points by a plain one."""
    batch, (rows, terms) = a._batch, a._support
    n = a._values.shape[0]
    batch.spend(n * b.shape[1] * batch.count * base.itemsize)
    support = (rows, None)
    if terms is None:
        return np.matmul(b.T, a._values), support
    change = _change(a, base)
    if terms.shape[1] > 1:
        values = change * np.ascontiguousarray(b[terms[0]].T)
    elif len(terms) == 1:
        values = change * b[terms[0, 0]][:, None]
    else:
        values = np.matmul(b[terms[:, 0]].T, change)
    values += at(base, support)
    return values, support


def _product_right(a: Array, b: BatchedArray, base: Array) -> tuple[Array, Support]:
    """Multiply a plain matrix by one at all points."""
    batch, (terms, columns) = b._batch, b._support
    _, p, count = b._values.shape
    if terms is None:
        batch.spend(len(a) * p * count * base.itemsize)
        values = a @ b._values.reshape(b._values.shape[0], -1)
        return values.reshape(len(a), p, count), (None, columns)
    factors = a[:, terms[0] if terms.shape[1] > 1 else terms[:, 0]]
    chosen = np.flatnonzero(factors.any(axis=1))
    rows = None
    if len(chosen) < len(a):
        rows, factors = chosen[:, None], factors[chosen]
    support = (rows, columns)
    batch.spend(len(factors) * p * count * base.itemsize)
    change = _change(b, base)
    if terms.shape[1] > 1:
        values = factors[:, None, :] * change
    elif len(terms) == 1:
        values = factors[:, :, None] * change
    else:
        values = (factors @ change.reshape(len(change), -1)).reshape(-1, p, count)
    values += at(base, support)
    return values, support


def _change(array: BatchedArray, product: Array) -> Array:
    """Return how an array differs from its base, as a factor of a product."""
    if not np.isfinite(product).all():
        raise array._batch.refuse("a product is infinite or not a number")
    array._batch.spend(array._values.nbytes)
    old = at(array._base, array._support)
    if product.dtype != array.dtype:
        return array._values.astype(product.dtype) - old
    return array._values - old


# ------------------------------------------------------------------------------------ functions


def where(condition: Any, x: Any, y: Any) -> Any:
    """Return ``np.where``."""
    return elementwise(np.where, (condition, x, y), {})


def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **kwargs: Any) -> Any:
    """Return ``np.clip``."""
    low, high = kwargs.pop("min", a_min), kwargs.pop("max", a_max)
    if out is not None or kwargs:
        raise _batch_of((a, low, high)).refuse("`np.clip` cannot be carried in this form")
    result = a if low is None else np.maximum(a, low)
    return result if high is None else np.minimum(result, high)


def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """Return ``np.concatenate``."""
    batch = _batch_of(arrays)
    if axis is None:
        arrays, axis = [np.ravel(x) for x in arrays], 0
    base = np.concatenate([_base_of(x) for x in arrays], axis)
    axis %= base.ndim
    result = unchanged(base, batch)
    begin = 0
    for x in arrays:
        end = begin + np.shape(x)[axis]
        if isinstance(x, BatchedArray):
            result[(slice(None),) * axis + (slice(begin, end),)] = x
        begin = end
    return result


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Return ``np.stack``."""
    return concatenate([np.expand_dims(x, axis) for x in arrays], axis)


def vstack(arrays: Sequence[Any]) -> Any:
    """Return ``np.vstack``."""
    return concatenate([x.reshape(1, -1) if np.ndim(x) < 2 else x for x in arrays], 0)


def hstack(arrays: Sequence[Any]) -> Any:
    """Return ``np.hstack``."""
    flat = [x.reshape(-1) if np.ndim(x) == 0 else x for x in arrays]
    return concatenate(flat, 0 if np.ndim(flat[0]) == 1 else 1)


def expand_dims(a: Any, axis: Any) -> Any:
    """Return ``np.expand_dims``."""
    return a.reshape(np.expand_dims(a._base, axis).shape)


def moveaxis(a: Any, source: Any, destination: Any) -> Any:
    """Return ``np.moveaxis``."""
    sources, destinations = _axes(source, a.ndim), _axes(destination, a.ndim)
    places = [n for n in range(a.ndim) if n not in sources]
    for to, of in sorted(zip(destinations, sources, strict=True)):
        places.insert(to, of)
    return a.transpose(places)


def pad(array: Any, pad_width: Any, mode: Any = "constant", constant_values: Any = 0) -> Any:
    """Return ``np.pad`` with constants."""
    if mode != "constant":
        raise array._batch.refuse(f"`np.pad` with mode {mode!r} cannot be carried")
    result = unchanged(
        np.pad(array._base, pad_width, mode, constant_values=constant_values), array._batch
    )
    widths = np.broadcast_to(pad_width, (array.ndim, 2)).tolist()
    parts = (slice(a, a + size) for (a, _), size in zip(widths, array.shape, strict=True))
    result[tuple(parts)] = array
    return result


def einsum(subscripts: str, *operands: Any, **kwargs: Any) -> Any:
    """Return ``np.einsum`` of letters, with one more for the points."""
    batch = _batch_of(operands)
    if not isinstance(subscripts, str) or "." in subscripts or set(kwargs) - {"optimize"}:
        raise batch.refuse("`np.einsum` cannot be carried in this form")
    subscripts = subscripts.replace(" ", "")
    inputs, arrow, output = subscripts.partition("->")
    letters = inputs.split(",")
    if not arrow:
        output = "".join(sorted(x for x in set(inputs) - {","} if inputs.count(x) == 1))
    hidden = next(x for x in "zyxwvutsrqponmlkjihgfedcba" if x not in subscripts)
    base = np.einsum(subscripts, *map(_base_of, operands), **kwargs)
    batch.spend(np.asarray(base).nbytes * batch.count)
    changed = [isinstance(x, BatchedArray) and x._is_changed() for x in operands]
    terms = ",".join(
        part + hidden * is_changed for part, is_changed in zip(letters, changed, strict=True)
    )
    values = np.einsum(
        f"{terms}->{output}{hidden}",
        *(x._full()._values if is_changed else _base_of(x)
          for x, is_changed in zip(operands, changed, strict=True)),
        optimize=True,
    )  # fmt: skip
    return wrapped(base, np.ascontiguousarray(values), (None,) * np.ndim(base), batch)


def outer(a: Any, b: Any) -> Any:
    """Return ``np.outer``."""
    return np.ravel(a)[:, None] * np.ravel(b)[None, :]


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Return ``np.linalg.norm``, the root of the sum of squares."""
    if ord not in (None, 2, "fro") or (ord == 2 and x.ndim > 1 and not isinstance(axis, int)):
        raise x._batch.refuse("`np.linalg.norm` cannot be carried in this form")
    return np.sqrt(total(x * x, axis, keepdims=keepdims))


def _like(function: Any) -> Callable[..., Any]:
    def created(a: Any, *args: Any, **kwargs: Any) -> Any:
        return unchanged(function(a._base, *args, **kwargs), a._batch)

    return created


def _by_method(name: str) -> Callable[..., Any]:
    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(a, name)(*args, **kwargs)

    return call


def _of_base(function: Any) -> Callable[..., Any]:
    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        return function(a._base, *args, **kwargs)

    return call


#: What stands for a function of NumPy.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.dot: dot, np.sum: total, np.mean: mean, np.var: variance, np.where: where, np.clip: clip,
    np.std: lambda *args, **kwargs: np.sqrt(variance(*args, **kwargs)),
    np.average: lambda a, axis=None: mean(a, axis),
    np.concatenate: concatenate, np.stack: stack, np.vstack: vstack, np.hstack: hstack,
    np.expand_dims: expand_dims, np.moveaxis: moveaxis, np.pad: pad, np.einsum: einsum,
    np.outer: outer, np.linalg.norm: norm,
    np.inner: lambda a, b: matmul(a, b) if np.ndim(b) == 1 else matmul(a, b.T),
    np.vdot: lambda a, b: matmul(np.ravel(a), np.ravel(b)),
    np.square: lambda a: a * a,
    np.shape: lambda a: a.shape, np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
    np.zeros_like: _like(np.zeros_like), np.ones_like: _like(np.ones_like),
    np.empty_like: _like(np.empty_like), np.full_like: _like(np.full_like),
    np.copy: lambda a, **_: a.copy(), np.iscomplexobj: _of_base(np.iscomplexobj),
    np.isrealobj: _of_base(np.isrealobj), np.result_type: lambda *a: np.result_type(
        *map(_base_of, a)
    ),
    np.atleast_1d: lambda a: a if a.ndim else a.reshape(1),
    np.atleast_2d: lambda a: a if a.ndim > 1 else a.reshape(1, -1),
    np.broadcast_to: lambda a, shape: a + np.zeros(shape, a.dtype),
    np.nan_to_num: lambda a, **kwargs: elementwise(np.nan_to_num, (a,), kwargs),
    **{function: _reduction(function)
       for function in (np.max, np.min, np.prod, np.any, np.all, np.argmax, np.argmin)},
    **{function: _by_method(name) for function, name in {
        np.reshape: "reshape", np.transpose: "transpose", np.swapaxes: "swapaxes",
        np.ravel: "ravel", np.squeeze: "squeeze", np.take: "take", np.cumsum: "cumsum",
    }.items()},
}  # fmt: skip

_REDUCTIONS: dict[Any, Callable[..., Any]] = {
    np.add: lambda a, axis=0, dtype=None, keepdims=False, **_: total(
        a, axis, dtype, keepdims=keepdims
    ),
    **{ufunc: (lambda a, axis=0, keepdims=False, function=function, **_: _reduced(
        function, a, axis, keepdims))
       for ufunc, function in {
           np.maximum: np.max, np.minimum: np.min, np.multiply: np.prod,
           np.logical_or: np.any, np.logical_and: np.all,
       }.items()},
}  # fmt: skip
