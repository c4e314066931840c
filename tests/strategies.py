"""Odd and bad arguments for the tests of robustness, and how an answer to them is judged.

A test draws arguments, asks a plain NumPy reference what ought to come out, and hands both to
`judge`. The reference raises `Refused` where the argument is not a documented one.
"""

from __future__ import annotations

import copy
import numbers as numbers_abc
import os
import re
import warnings
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: Twenty times the cases, random ones, and 1,000 calls where CI makes a few.
NIGHTLY = os.environ.get("FASTGRAD_NIGHTLY") == "1"

REAL = ["float64", "float64", "float64", "float32", "float32", "float16", "longdouble", ">f8",
        "int8", "int64", "uint8", "uint64", "bool"]  # fmt: skip
NOT_REAL = ["complex128", "object", "<U3", "datetime64[s]", "V8"]
LAYOUTS = ["C", "C", "F", "strided", "reversed", "read-only", "broadcast", "unaligned", "list",
           "subclass", "masked"]  # fmt: skip

#: What is not an array of numbers at all.
NONSENSE = [None, "text", "auto", b"12", {}, {1.0}, object(), [[1.0], [1.0, 2.0]], 1 + 2j, [None],
            float, lambda x: x, [[[]]]]  # fmt: skip


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """The reference does not take this argument."""


class Subclass(np.ndarray[Any, Any]):
    """An array whose product is a matrix product, as that of numpy.matrix."""

    def __mul__(self, other):
        return self.__matmul__(other)


def robust(cases: int) -> settings:
    """Return the settings of a test with that many cases in CI, and twenty times that nightly."""
    return settings(
        max_examples=cases * 20 if NIGHTLY else cases,
        derandomize=not NIGHTLY,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a seed does not shrink
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def arrays(draw, shape=None, *, wild=0.2, real=0.9, high=2.0, specials=True):
    """Draw something array-like of a shape, or of any shape, with a share of `wild` of oddities.

    Numbers are mostly from -high to high, sometimes NaN, infinite, denormal, or so large that only
    a product of two still fits.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if rng.random() < wild / 4:
        return draw(st.sampled_from(NONSENSE))
    if shape is None or rng.random() < wild / 2:
        shape = tuple(rng.integers(0, 5, rng.integers(0, 5)))
    dtype = np.dtype(rng.choice(REAL if rng.random() < real else NOT_REAL))
    layout = rng.choice(LAYOUTS) if rng.random() < max(wild, 0.5) else "C"
    values = rng.uniform(-high, high, shape)
    if specials and rng.random() < wild:
        large = 1e18 if dtype == np.float32 else 1e150
        odd = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-310, large, -large], shape)
        values = np.where(rng.random(shape) < 0.2, odd, values)
    if dtype.kind in "iu":
        low, top = np.iinfo(dtype).min, np.iinfo(dtype).max
        values = rng.integers(low, top, shape, dtype=dtype, endpoint=True)
    elif dtype.kind == "V":
        values = np.zeros(shape, dtype)
    elif dtype.kind == "M":
        values = np.zeros(shape, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow in float16, for one
        return laid_out(np.asarray(values).astype(dtype), layout)


def laid_out(array, layout):
    """Return the same numbers in another layout."""
    match layout:
        case "F":
            return np.asfortranarray(array)
        case "strided":
            wide = np.zeros([2 * n for n in array.shape], array.dtype)
            wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
            return wide[tuple(slice(None, None, 2) for _ in array.shape)]
        case "reversed":
            backward = tuple(slice(None, None, -1) for _ in array.shape)
            return array[backward].copy()[backward] if array.ndim else array
        case "read-only":
            array = array.copy()
            array.flags.writeable = False
            return array
        case "broadcast":
            return np.broadcast_to(array.flat[0], array.shape) if array.size else array
        case "unaligned":
            raw = np.empty(array.nbytes + 1, np.uint8)
            if array.dtype.hasobject or not array.size:
                return array
            view = raw[1:].view(array.dtype).reshape(array.shape)
            view[...] = array
            return view
        case "list":
            return array.tolist()
        case "subclass":
            return array.view(Subclass)
        case "masked":
            return masked(array) if array.size and array.ndim else array
    return array


def masked(array):
    """Return the array with a mask over all of it."""
    return np.ma.masked_array(array, np.ones(array.shape, bool), fill_value=array.flat[0])


@st.composite
def targets(draw, n, classes, wild=0.2):
    """Draw labels or targets for n samples, with a share of `wild` of bad ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if rng.random() < wild:
        kind = rng.choice(["any", "out of range", "float labels", "bool", "huge", "negative"])
        labels = rng.integers(0, classes, n)
        match kind:
            case "any":
                return draw(arrays(wild=1.0))
            case "out of range":
                return labels + classes
            case "float labels":
                return labels.astype(float)
            case "bool":
                return labels.astype(bool)
            case "huge":
                return np.full(n, 2**64 - 1, np.uint64)
            case "negative":
                return -1 - labels
    match rng.choice(["labels", "column", "one-hot", "soft"]):
        case "labels":
            labels = rng.integers(0, classes, n).astype(rng.choice(["i8", "u1", "u8", "i2"]))
            return laid_out(labels, rng.choice(["C", "list", "strided", "read-only"]))
        case "column":
            return rng.integers(0, classes, (n, 1))
        case "one-hot":
            one_hot = np.eye(classes)[rng.integers(0, classes, n)]
            return laid_out(one_hot.astype(rng.choice(["f8", "f4", "i8", "u1"])), "F")
    return draw(arrays((n, classes), wild=wild, high=1.0))


def network_samples(n, width, dtype, rng, zeros):
    """Return normal samples, a share of whose entries is zero."""
    x = rng.standard_normal((n, width))
    x[rng.random(x.shape) < zeros] = 0
    return x.astype(dtype)


def network_targets(kind, n, classes, dtype, rng):
    """Return labels and soft targets as the engine wants them, and the same as rows."""
    labels = rng.integers(0, classes, n)
    if kind == "labels":
        return labels, np.empty((0, classes), dtype), np.eye(classes)[labels]
    soft = np.eye(classes)[labels] if kind == "one-hot" else rng.random((n, classes)) * 2
    soft = soft.astype(dtype)
    return np.empty(0, np.int64), soft, soft.astype(float)


#: Numbers for settings such as a learning rate or a step.
ODD_NUMBERS = [
    0, -1, 1, 0.5, 1e-4, 1e-3, 1e300, 1e-320, 5e-324, -0.0, float("nan"), float("inf"),
    -float("inf"), True, None, "auto", "1", 1 + 0j, [1.0], 10**400, np.float32(0.25), np.int8(3),
    np.array(0.5), np.array([0.5]), np.longdouble(0.5), np.uint64(2**64 - 1),
]  # fmt: skip
numbers = st.one_of(st.sampled_from(ODD_NUMBERS), st.floats(1e-6, 0.5))


def real(value):
    """Return what a function takes `value` for: float32 or float64. The reference of `arrays`."""
    if isinstance(value, np.ma.MaskedArray):
        raise Refused
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        raise Refused from None
    if array.dtype.kind not in "biuf":
        raise Refused
    array = np.asarray(array)
    return array if array.dtype == np.float32 else array.astype(np.float64)


def target_matrix(t, n, classes):
    """Return targets as a matrix of weights. The reference of `targets`."""
    if isinstance(t, np.ma.MaskedArray):
        raise Refused
    try:
        array = np.asarray(t)
    except (ValueError, TypeError):
        raise Refused from None
    if array.dtype.kind not in "biuf":
        raise Refused
    integers = array.dtype.kind in "iu"
    labels = array.shape in ((n,), (n, 1)) or (n == 1 and array.ndim == 0)
    if array.shape == (n, classes) and not (classes == 1 and integers):
        return array.astype(np.float64)
    if n == 1 and array.shape == (classes,) and not (classes == 1 and integers):
        return array.astype(np.float64)[None]
    with np.errstate(invalid="ignore"):
        whole = integers or (array.dtype.kind == "f" and bool(np.all(array % 1 == 0)))
    if not (labels and whole):
        raise Refused
    flat = [int(label) for label in array.ravel()]
    if any(not 0 <= label < classes for label in flat):
        raise Refused
    return np.eye(classes)[flat]


def number(value, *, minimum=-np.inf, below=np.inf):
    """Return a setting as a float. The reference of `numbers`."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers_abc.Real):
        raise Refused
    try:
        value = float(value)
    except OverflowError:
        raise Refused from None
    if not np.isfinite(value) or value < minimum or value >= below:
        raise Refused
    return value


def judge(call, arguments, expected, names, *, same=None, errors=(ValueError, TypeError)):
    """Call a function and compare with what is expected.

    Parameters
    ----------
    call : callable
        Of no arguments; uses `arguments`.
    arguments : object
        What must not change.
    expected : callable
        Returns the result, or raises `Refused` if the call must raise.
    names : sequence of str
        One of them must be named in the message.
    same : callable
        ``same(result, expected)`` asserts that they are equal enough.
    """
    before = fingerprint(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        try:
            with np.errstate(all="ignore"):
                wanted = expected()
        except Refused:
            wanted = Refused
        try:
            result = call()
        except errors as error:
            refusal = error
        else:
            refusal = None
    if refusal is None:
        assert wanted is not Refused, f"took a bad argument, and returned {result!r:.300}"
        if same is not None:
            with np.errstate(all="ignore"):
                same(result, wanted)
    else:
        if wanted is not Refused:
            raise AssertionError("refused a good argument") from refusal
        named = "`(" + "|".join(map(re.escape, names)) + r")\b[^`]*`"
        assert re.search(named, str(refusal)), f"names no argument: {refusal}"
    assert fingerprint(arguments) == before, "an argument was changed"


def fingerprint(value):
    """Return something that is equal for equal arguments only, NaN and layout included."""
    if isinstance(value, np.ndarray):
        data = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return value.shape, value.dtype.str, value.strides, value.flags.writeable, data
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(fingerprint, value))
    if isinstance(value, list):
        return repr(copy.copy(value))
    return repr(value)


def close(actual, expected, scale, eps=None):
    """Assert that numbers agree: NaN with NaN, infinities alike, others within eps * scale."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    eps = np.finfo(actual.dtype).eps if eps is None else eps
    tiny = np.finfo(actual.dtype).tiny
    limit = float(np.finfo(actual.dtype).max)
    with np.errstate(all="ignore"):
        # What does not fit into the dtype is infinite there.
        expected = np.where(np.abs(expected) > limit, np.copysign(np.inf, expected), expected)
        actual = actual.astype(np.float64)
        wrong = ~(
            (np.isnan(actual) & np.isnan(expected))
            | (actual == expected)
            | (np.abs(actual - expected) <= eps * np.asarray(scale, np.float64) + tiny)
        )
    if wrong.any():
        where = tuple(int(axis[0]) for axis in np.nonzero(wrong)) if wrong.ndim else ()
        raise AssertionError(f"at {where}: {actual[where]!r} instead of {expected[where]!r}")


# ------------------------------------------------------- what NumPy computes, for several files


def wide(array):
    """Return float64 for the reference to compute in."""
    return np.asarray(array, np.float64)


def eps_of(*given):
    """Return the epsilon in which a function of these arguments computes."""
    return np.finfo(np.float32 if all(a.dtype == np.float32 for a in given) else np.float64).eps


ELEMENTWISE = {
    "step_function": lambda x: wide(x > 0),
    "sigmoid": lambda x: np.where(x >= 0, 1 / (1 + np.exp(-x)), np.exp(x) / (1 + np.exp(x))),
    "sigmoid_grad": lambda x: np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu_grad": lambda x: wide(x > 0),
}


def softmax(x):
    if x.ndim == 0:
        return np.where(np.isfinite(x), 1.0, np.nan)
    if x.size == 0:
        return x
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def are_labels(t, n, classes):
    """Return whether good targets are labels."""
    array = np.asarray(t)
    if array.shape == (n, classes) or (n == 1 and array.shape == (classes,)):
        return classes == 1 and array.dtype.kind in "iu"
    return True


def mean_loss(y, weights, delta):
    """Return the loss as NumPy has it; an entry without weight counts nothing if it can be one of
    a softmax, where the logarithm may be minus infinity.
    """
    logs = np.log(y + delta)
    terms = np.where((weights == 0) & (logs < np.inf), 0, weights * logs)
    return -terms.sum() / len(y)
