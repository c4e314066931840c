"""Evaluate any function at many points around x: in a loop, on all threads, or in other processes.

`nudge` says where, and one of `_evaluate_python`, `_evaluate_compiled` and `_evaluate_workers` does
it. What is made of the values is the business of `fastgrad.gradients`.
"""

# Numba leaves the types of types untyped, and its dispatcher half typed.
# mypy: disable-error-code="no-untyped-call, attr-defined, call-overload, no-any-return"

from __future__ import annotations

import functools
import itertools
import os
import pickle
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.core.dispatcher import Dispatcher

from fastgrad import threads
from fastgrad.arrays import FloatArray
from fastgrad.kernels import differences

Function = Callable[..., Any]

#: Ctrl-C is noticed between two compiled stretches of about this many seconds.
_STRETCH = 0.05

#: Blocks sent to each worker: one would do if all were equally fast and idle.
_BLOCKS_PER_WORKER = 4


class WorkerTraceback(Exception):  # noqa: N818 - it is the cause of an error, not one itself
    """Where in a worker an exception came from: the cause of the exception that reaches you."""

    def __str__(self) -> str:
        """Return the traceback as the worker printed it."""
        return f"\n{self.args[0]}"


class Values(NamedTuple):
    """A function's values around x; the first axis runs over (x + k h, x - k h) for each k."""

    center: FloatArray
    points: FloatArray
    values: FloatArray

    def width(self) -> FloatArray:
        """Return the distance between the two points of each multiple of h, in float64."""
        return np.subtract(self.points[0::2], self.points[1::2], dtype=np.float64)

    def slopes(self) -> FloatArray:
        """Return the slope between the two points of each multiple of h."""
        return (self.values[0::2] - self.values[1::2]) / self.width()

    def noise(self, dtype: np.dtype[Any]) -> FloatArray:
        """Return two units in the last place of the largest value met at each element."""
        return 2 * np.finfo(dtype).eps * np.max(np.abs(self.values), axis=0)


def evaluate(
    f: Function,
    x: FloatArray,
    steps: Any,
    multiples: tuple[int, ...],
    args: Any,
    workers: Callable[..., Iterable[Any]] | None,
) -> Values:
    """Evaluate f with one element of x at a time nudged by the multiples of its step."""
    if not callable(f):
        raise TypeError(f"`f` must be callable. Got {f!r}.")
    if workers is not None and not callable(workers):
        raise TypeError(f"`workers` must be a map-like callable. Got {workers!r}.")
    args = further_arguments(args)
    if isinstance(f, Dispatcher):
        x = np.asarray(x, order="C")  # every other layout would be compiled anew
    points = nudge(x, steps, multiples)
    axes = _memory_order(x)
    order = (0, *(axis + 1 for axis in axes))
    columns = points.transpose(order).reshape(len(points), -1)
    if workers is None:
        flat = _evaluate_block(f, x, axes, args, columns, 0)
    else:
        flat = _evaluate_workers(f, x, axes, args, columns, workers)
    values = flat.reshape([points.shape[axis] for axis in order])
    values = values.transpose([order.index(axis) for axis in range(points.ndim)])
    return Values(x, points, values)


def _memory_order(x: FloatArray) -> tuple[int, ...]:
    """Return the axes of x from the slowest to the fastest: the order of the book's loop."""
    if x.flags.c_contiguous:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def nudge(x: FloatArray, steps: Any, multiples: tuple[int, ...]) -> FloatArray:
    """Return x + k h and x - k h for each k, in turn, as they are rounded to x's dtype."""
    signed = np.array([sign * k for k in multiples for sign in (1, -1)], x.dtype)
    signed = signed.reshape(-1, *[1] * x.ndim)
    with np.errstate(all="ignore"):
        points: FloatArray = x + signed * steps
        lost = points == x
        if lost.any():
            points[lost] = np.nextafter(x, np.copysign(np.inf, signed, dtype=x.dtype))[lost]
    return points


def _evaluate_block(
    f: Function,
    x: FloatArray,
    axes: tuple[int, ...],
    args: tuple[Any, ...],
    points: FloatArray,
    first: int,
) -> FloatArray:
    """Evaluate f with element `first` + i of x, counted along `axes`, at ``points[:, i]``."""
    compiled = _compiled(f, x, args) if x.ndim else None
    if compiled is None:
        return _evaluate_python(f, x, axes, args, points, first)
    return _evaluate_compiled(compiled, f, x, args, points, first)


def _evaluate_python(
    f: Function,
    x: FloatArray,
    axes: tuple[int, ...],
    args: tuple[Any, ...],
    points: FloatArray,
    first: int,
) -> FloatArray:
    """Evaluate f in a loop, with x nudged in place."""
    original = x.copy(order="K")
    live = x.transpose(axes).flat
    kept = original.transpose(axes).flat
    values: list[float] = []
    try:
        for i, nudged in enumerate(points.T.tolist(), start=first):
            for number in nudged:
                live[i] = number
                value = f(x, *args)
                values.append(value if isinstance(value, float) else one_number(value))
            live[i] = kept[i]
        if x.tobytes() != original.tobytes():
            raise ValueError("`f` must not change `x`.")
    except BaseException:
        # All of x: an interrupt may come between any two statements above.
        np.copyto(x, original)
        raise
    return np.array(values, np.float64).reshape(points.T.shape).T


def one_number(value: Any) -> float:
    """Return what f returned as a float."""
    if isinstance(value, float):  # NumPy's float64 too
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`f` must return one real number. Got {value!r:.60}.")
    if array.size != 1:
        raise ValueError(f"`f` must return one real number. Got an array of shape {array.shape}.")
    return float(array.item())


def further_arguments(args: Any) -> tuple[Any, ...]:
    """Return `args` if it is a tuple, as it must be."""
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple. Got {type(args).__name__}.")
    return args


# ------------------------------------------------------------------------ compiled functions


class _Compiled(NamedTuple):
    """A function compiled for given types: where it is, and the bridge to it."""

    signature: tuple[types.Type, ...]
    overload: Any
    address: int
    evaluator: Any


#: What has been compiled, by function, and by the dtype and the number of dimensions of x and the
#: types of further arguments.
_known: weakref.WeakKeyDictionary[Any, dict[Any, _Compiled | None]] = weakref.WeakKeyDictionary()


def _compiled(f: Any, x: FloatArray, args: tuple[Any, ...]) -> _Compiled | None:
    """Compile f for these arguments; None if it is to be called from Python.

    That is a Python function, one that runs threads of its own (nested launches abort on some
    threading layers), and one whose arguments do not stand one to one for its parameters.
    """
    if not isinstance(f, Dispatcher) or f.targetoptions.get("forceobj"):
        return None
    further = tuple(_argument_type(arg) for arg in args)
    known = _known.setdefault(f, {})
    key = (x.dtype, x.ndim, further)
    compiled = known.get(key)
    # A function that was recompiled lies somewhere else.
    if compiled is None or f.overloads.get(compiled.signature) is not compiled.overload:
        compiled = known[key] = _compile(f, x, further)
    return compiled


def _compile(f: Any, x: FloatArray, further: tuple[types.Type, ...]) -> _Compiled | None:
    x_type = types.Array(numba.typeof(x).dtype, x.ndim, "C")
    signature = (x_type, *further)
    _, folded = f._compiler.fold_argument_types(signature, {})
    if tuple(folded) != signature:
        return None
    if signature not in f.overloads:
        if not f._can_compile:
            return None
        f.compile(signature)
    overload = f.overloads[signature]
    result = overload.signature.return_type
    number = result.dtype if isinstance(result, types.Array) else result
    if not isinstance(number, types.Integer | types.Float | types.Boolean):
        raise TypeError(f"`f` must return one real number. Got {result}.")
    if overload.reload_init:  # what starts the threads of a function loaded from a cache
        return None
    address = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    bridge = differences.evaluator(x_type, types.Tuple(further), result)
    return _Compiled(signature, overload, address, bridge)


def _argument_type(arg: Any) -> types.Type:
    """Return the type of a further argument of a compiled function."""
    if isinstance(arg, tuple):
        return types.Tuple([_argument_type(element) for element in arg])
    if isinstance(arg, np.ndarray | np.number | np.bool_ | bool | int | float | complex):
        return numba.typeof(arg)
    raise TypeError(
        "`args` must hold numbers, arrays and tuples of them for a compiled function. "
        f"Got {type(arg).__name__}."
    )


def _evaluate_compiled(
    compiled: _Compiled,
    f: Function,
    x: FloatArray,
    args: tuple[Any, ...],
    points: FloatArray,
    first: int,
) -> FloatArray:
    """Evaluate f on all threads, each on a copy of x, in stretches that let Ctrl-C in."""
    size = points.shape[1]
    points = np.ascontiguousarray(points)  # a slice, in a worker
    values = np.empty(points.shape)
    if size == 0:
        return values
    count = min(numba.get_num_threads(), size)
    copies = differences.copies_for_threads(x, count)
    failed = np.full(count, -1)
    state = differences.pack(compiled.address, x.shape, args)
    start, stop = 0, count
    while start < size:
        began = time.perf_counter()
        threads.launch(
            differences.evaluate_nudged, compiled.evaluator.address, state, copies, points, values,
            failed, first, start, stop,
        )  # fmt: skip
        if failed.max() >= 0:
            _raise_again(f, x, args, points, first, int(failed[failed >= 0].min()))
        rate = (stop - start) / max(time.perf_counter() - began, 1e-9)
        start, stop = stop, min(size, stop + max(count, int(rate * _STRETCH)))
    original = x.tobytes()
    if any(copy[: x.size].tobytes() != original for copy in copies):
        raise ValueError("`f` must not change `x`.")
    return values


def _raise_again(
    f: Function,
    x: FloatArray,
    args: tuple[Any, ...],
    points: FloatArray,
    first: int,
    place: int,
) -> None:
    """Evaluate f where a thread met an exception, so that it reaches the caller."""
    i, k = divmod(place, len(points))
    nudged = x.copy()
    nudged.flat[first + i] = points[k, i]
    one_number(f(nudged, *args))
    raise RuntimeError(
        f"`f` raised an exception with element {first + i} of `x` at {points[k, i]}, but not when "
        "it was called there again."
    )


# ------------------------------------------------------------------------------------ workers


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker: pickled exceptions, each the cause of the one before."""

    chain: list[bytes]
    text: str

    def exception(self) -> BaseException:
        """Return the first exception, with all causes and the worker's traceback as the last."""
        exceptions: list[BaseException] = [pickle.loads(data) for data in self.chain]
        for error, cause in itertools.pairwise([*exceptions, WorkerTraceback(self.text)]):
            error.__cause__ = cause
        return exceptions[0]


def _evaluate_workers(
    f: Function,
    x: FloatArray,
    axes: tuple[int, ...],
    args: tuple[Any, ...],
    points: FloatArray,
    workers: Callable[..., Iterable[Any]],
) -> FloatArray:
    """Evaluate f in blocks of elements, through a map-like callable."""
    size = points.shape[1]
    count = min(size, _BLOCKS_PER_WORKER * _worker_count(workers))
    edges = [size * block // max(count, 1) for block in range(count + 1)]
    tasks = [(start, points[:, start:stop]) for start, stop in itertools.pairwise(edges)]
    blocks = (
        list(workers(functools.partial(_work, f, x.transpose(axes), axes, args), tasks))
        if tasks
        else []
    )
    for block in blocks:
        if isinstance(block, _Failure):
            raise block.exception()
        if not isinstance(block, np.ndarray):
            raise TypeError(
                "`workers` must be a map that gives results, such as the map of an executor. "
                f"It gave {type(block).__name__}."
            )
    return np.concatenate([np.empty((len(points), 0)), *blocks], axis=1)


def _work(
    f: Function,
    x: FloatArray,
    axes: tuple[int, ...],
    args: tuple[Any, ...],
    task: tuple[int, FloatArray],
) -> FloatArray | _Failure:
    """Evaluate one block, in the worker.

    x comes as it lies in memory, because pickling would turn every other layout into that; the
    rounding of a sum depends on it.
    """
    start, points = task
    x = x.copy().transpose(sorted(range(x.ndim), key=axes.__getitem__))
    try:
        return _evaluate_block(f, x, axes, args, points, start)
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        # Pools differ in what they hand on: causes get lost, and an exception that cannot be
        # unpickled leaves multiprocessing's Pool waiting for ever.
        try:
            chain = [pickle.dumps(link) for link in _causes(error)]
        except Exception:  # noqa: BLE001 - the pool may know better, as Dask does
            raise error from error.__cause__
        text = traceback.format_exc()
        try:
            for data in chain:
                pickle.loads(data)
        except Exception:  # noqa: BLE001 - an __init__ of another signature, most often
            chain = [pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))]
        return _Failure(chain, text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _worker_count(workers: Callable[..., Any]) -> int:
    """Return how many workers a pool has, if it says so, or the number of processors here."""
    pool = getattr(workers, "__self__", None)
    client = getattr(pool, "_client", None)  # Dask
    if client is not None:
        return max(1, len(client.nthreads()))
    for name in ("_max_workers", "_processes"):  # concurrent.futures and joblib, multiprocessing
        count = getattr(pool, name, None)
        if isinstance(count, int):
            return max(1, count)
    return os.cpu_count() or 1
