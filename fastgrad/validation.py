"""Input validation: one canonical form of array for the kernels, one wording for every error.

Kernels check nothing, so everything that reaches one passes through here first and leaves as a
C-contiguous array of the dtype asked for.

Every function takes a value and the name that messages call it by, and returns the value in its
canonical form. It raises a `TypeError` for another kind of value, such as numbers that are not
real, and a `ValueError` for a shape that does not fit or a value out of range. Messages name the
argument, what it must be, and what it was.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
IntArray = NDArray[np.int64]
BitArray = NDArray[np.uint64]

#: The two dtypes that the kernels are compiled for.
FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_FLOAT32, _FLOAT64 = FLOAT_DTYPES
_INT64 = np.dtype(np.int64)
#: Those of samples.
_SAMPLE_DTYPES = (*FLOAT_DTYPES, np.dtype(np.uint8))

#: Zero without dimensions, by the character of its dtype: NumPy takes half a microsecond less for
#: it than for a Python number.
ZERO = {dtype.char: np.zeros((), dtype) for dtype in FLOAT_DTYPES}

#: What `targets` returns for the form that does not apply.
_NO_LABELS = np.empty(0, np.int64)


@functools.lru_cache(maxsize=64)
def _no_soft_targets(classes: int, dtype: np.dtype[Any]) -> FloatArray:
    return np.empty((0, classes), dtype)


def no_targets(classes: int, dtype: np.dtype[Any]) -> tuple[IntArray, FloatArray]:
    """Return what `targets` would for no targets at all."""
    return _NO_LABELS, _no_soft_targets(classes, dtype)


def float_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return `dtype` as ``numpy.dtype`` if the kernels know it."""
    result: np.dtype[Any] | None
    try:
        result = np.dtype(dtype)
    except (TypeError, ValueError):
        result = np.dtype(object)
    if result not in FLOAT_DTYPES:
        raise TypeError(f"`{name}` must be float32 or float64. Got {dtype!r}.")
    return result


def real_array(
    value: Any,
    name: str,
    *,
    dtype: Any = None,
    shape: Sequence[int | str | None] | None = None,
    layout: str = "C",
) -> FloatArray:
    """Return `value` as a float32 or float64 array.

    Parameters
    ----------
    value : array_like
        Booleans, integers or real floating-point numbers.
    name : str
    dtype : dtype, optional
        float32 or float64. By default float32 stays float32 and all else becomes float64.
    shape : sequence, optional
        The required shape; a string stands for a free dimension and names it in messages.
    layout : {"C", "K"}, optional
        "C" for C-contiguous, "K" to keep the memory layout as it is.

    Returns
    -------
    ndarray
        Aligned and writeable. The same object when it has that form already, so a caller that
        writes into it copies it first.
    """
    if (
        type(value) is np.ndarray
        and (value.dtype is _FLOAT64 or value.dtype is _FLOAT32)
        and (dtype is None or dtype is value.dtype)
        and value.flags.carray
    ):  # the common case, for a fifth of a microsecond
        if shape is not None:
            require_shape(value, name, shape)
        return value
    array = _plain_array(value, name)
    if shape is not None:
        require_shape(array, name, shape)
    if dtype is None:
        dtype = array.dtype if array.dtype in FLOAT_DTYPES else np.float64
    array = np.asarray(array, dtype=dtype, order="C" if layout == "C" else "K")
    # Read-only or unaligned memory is another type to Numba and would compile every kernel anew.
    return array if array.flags.behaved else array.copy(order="C" if layout == "C" else "K")


def is_canonical(value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Return whether `real_array` would return this very object, for a third of its time."""
    return (
        type(value) is np.ndarray
        and value.dtype is dtype
        and value.shape == shape
        and value.flags.carray
    )


def _plain_array(value: Any, name: str) -> NDArray[Any]:
    """Return `value` as a plain array of booleans, integers or real numbers, of any dtype."""
    must = f"`{name}` must be an array of real numbers."
    if isinstance(value, np.ma.MaskedArray):  # its mask would be lost without a word
        raise TypeError(f"{must} Got a masked array.")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{must} Got {_kind(value)}.") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{must} Got {_kind(value, array)}.")
    return array


def require_shape(array: NDArray[Any], name: str, shape: Sequence[int | str | None]) -> None:
    """Raise a ValueError unless `array` has the required shape (see `real_array`)."""
    if array.shape == shape:
        return
    fits = array.ndim == len(shape) and all(
        not isinstance(want, int) or have == want
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        wanted = f"({wanted},)" if len(shape) == 1 else f"({wanted})"
        raise ValueError(f"`{name}` must have shape {wanted}. Got {array.shape}.")


def samples(x: Any, name: str, width: int, dtype: Any) -> tuple[FloatArray, bool]:
    """Return samples as a 2-D array, and whether a single sample was given.

    Arrays of float32, float64 and uint8, as images are, stay as they are: the kernels convert an
    entry where they use it. All others become arrays of `dtype`.
    """
    is_read_as_it_is = type(x) is np.ndarray and x.dtype in _SAMPLE_DTYPES and x.flags.carray
    array = x if is_read_as_it_is else real_array(x, name, dtype=dtype)
    if array.ndim not in (1, 2) or array.shape[-1] != width:
        raise ValueError(f"`{name}` must have shape (N, {width}) or ({width},). Got {array.shape}.")
    if array.shape[0] == 0:
        raise ValueError(f"`{name}` must hold at least one sample. Got {array.shape}.")
    return (array, False) if array.ndim == 2 else (array.reshape(1, width), True)


def scores_and_targets(scores: Any, name: str, t: Any) -> tuple[FloatArray, IntArray, FloatArray]:
    """Return scores or probabilities as a 2-D array, and their targets in both forms.

    Parameters
    ----------
    scores : array_like, shape (N, C) or (C,)
    name : str
    t : array_like
        As `targets` takes them.

    Returns
    -------
    scores : ndarray, shape (N, C)
        float32 for float32 scores, else float64.
    labels, soft : ndarray
        As `targets` returns them.
    """
    if type(scores) is type(t) is np.ndarray:  # the common case, for half the time
        dtype, shape = scores.dtype, scores.shape
        if (
            (dtype is _FLOAT64 or dtype is _FLOAT32)
            and t.dtype is dtype
            and t.shape == shape
            and len(shape) == 2
            and 0 not in shape
            and scores.flags.carray
            and t.flags.carray
        ):
            return scores, _NO_LABELS, t
    array = real_array(scores, name)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"`{name}` must have shape (N, C) or (C,), neither of them 0. Got {np.shape(scores)}."
        )
    return array, *targets(t, "t", array.shape[0], array.shape[1], array.dtype)


def targets(t: Any, name: str, n: int, classes: int, dtype: Any) -> tuple[IntArray, FloatArray]:
    """Return targets as labels or as soft targets; the array that does not apply is empty.

    Parameters
    ----------
    t : array_like
        Labels of shape (n,) or (n, 1), of any integer type, or whole numbers in floats as
        `numpy.loadtxt` reads them; or one-hot or soft targets of shape
        (n, classes). For one sample also a plain integer, or targets of shape (classes,).
    name : str
    n, classes : int
        The number of samples and of classes.
    dtype : dtype
        The dtype of soft targets.

    Returns
    -------
    labels : ndarray of int64, shape (n,) or (0,)
    soft : ndarray, shape (n, classes) or (0, classes)
    """
    if type(t) is np.ndarray and t.flags.carray:  # the common cases need no closer look
        if t.dtype is dtype and t.shape == (n, classes):
            return _NO_LABELS, t
        if t.dtype is _INT64 and t.shape == (n,) and _in_range(t, classes):
            return t, _no_soft_targets(classes, dtype)
    array = _plain_array(t, name)
    integers = array.dtype.kind in "iu"
    if array.shape == (n, classes) and not (classes == 1 and integers):
        return _NO_LABELS, real_array(array, name, dtype=dtype)
    if n == 1 and array.shape == (classes,) and not (classes == 1 and integers):
        return _NO_LABELS, real_array(array[None], name, dtype=dtype)
    if array.shape not in ((n,), (n, 1)) and not (n == 1 and array.ndim == 0):
        raise ValueError(
            f"`{name}` must be labels of shape ({n},) or targets of shape ({n}, {classes}). "
            f"Got shape {array.shape}."
        )
    flat = array.reshape(n)
    whole = integers or (array.dtype.kind == "f" and bool(np.all(np.trunc(flat) == flat)))
    if not whole or not (integers or np.all(np.abs(flat) < 2**53)):
        raise TypeError(f"`{name}` must hold integer labels. Got {array.dtype}.")
    labels = np.ascontiguousarray(flat, dtype=np.int64)
    if not labels.flags.behaved:  # another type to Numba, as in `real_array`
        labels = labels.copy()
    if not _in_range(labels, classes):
        position = int(np.argmax(labels.view(np.uint64) >= classes))
        raise ValueError(
            f"`{name}` must hold labels from 0 to {classes - 1}. "
            f"Got {flat[position]} at position {position}."
        )
    return labels, _no_soft_targets(classes, dtype)


def _in_range(labels: IntArray, classes: int) -> bool:
    """Return whether all labels are from 0 to classes - 1."""
    if not labels.size:
        return True
    # `argmin` takes a fifth of the time that `min` does.
    least, most = labels.item(labels.argmin()), labels.item(labels.argmax())
    return least >= 0 and most < classes


def real_number(
    value: Any, name: str, *, minimum: float = -math.inf, dtype: np.dtype[Any] | None = None
) -> float:
    """Return `value` as a finite float that is at least `minimum`, as a dtype holds it."""
    if type(value) is not float and type(value) is not int:  # which need no closer look
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise TypeError(f"`{name}` must be a real number. Got {_kind(value)}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < minimum:
        at_least = "" if minimum == -math.inf else f", at least {minimum:g}"
        raise ValueError(f"`{name}` must be a finite number{at_least}. Got {value!s}.")
    if dtype is None or dtype is _FLOAT64:
        return number
    with np.errstate(over="ignore"):
        rounded = float(dtype.type(number))
    if math.isinf(rounded):
        raise ValueError(f"`{name}` must be a finite number in {dtype}. Got {value!s}.")
    return rounded


def step_size(value: Any, name: str = "h", dtype: np.dtype[Any] | None = None) -> float:
    """Return a step of finite differences: a finite number above zero."""
    number = real_number(value, name, dtype=dtype)
    if number <= 0:
        raise ValueError(f"`{name}` must be above 0. Got {value!s}.")
    return number


def whole_number(value: Any, name: str, *, minimum: int) -> int:
    """Return `value` as an int that is at least `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer. Got {_kind(value)}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}. Got {value!s}.")
    return int(value)


def as_generator(rng: Any, name: str = "rng") -> Any:
    """Return a source of randomness.

    Parameters
    ----------
    rng : None, int, numpy.random.Generator, BitGenerator, SeedSequence or RandomState
        A source, or what one can be made of. None stands for NumPy's global legacy generator.
    name : str, optional

    Returns
    -------
    numpy.random.Generator, or something with the legacy methods of ``numpy.random``
        So ``RandomState(0)`` gives the numbers that ``np.random.seed(0)`` would.
    """
    if rng is None or rng is np.random:
        return np.random
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    if isinstance(rng, np.random.SeedSequence | np.random.BitGenerator):
        return np.random.default_rng(rng)
    return np.random.default_rng(whole_number(rng, name, minimum=0))


def flag(value: Any, name: str) -> bool:
    """Return `value` as a bool; 0 and 1 count as such."""
    if value is True or value is False:  # which need no closer look
        return bool(value)
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise TypeError(f"`{name}` must be True or False. Got {_kind(value)}.")
    return bool(value)


def one_of(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}. Got {value!r}.")
    return value


def _kind(value: Any, array: NDArray[Any] | None = None) -> str:
    """Describe what a wrong argument was."""
    if array is not None and isinstance(value, np.ndarray | list | tuple):
        return f"{type(value).__name__} of dtype {array.dtype}"
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__
