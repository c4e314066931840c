"""A function of a tree, with one number at a time perturbed: in Python, compiled, or by workers.

Exceptions, a Ctrl-C among them, leave the tree as it was.
"""

# Numba leaves the types of types untyped, and its dispatcher half typed.
# mypy: disable-error-code="no-untyped-call, attr-defined, call-overload, no-any-return"

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import pickle
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import is_jitted

from fastgrad.kernels import user_function
from fastgrad.numdiff.trees import Leaf, RestoredOnExit, Tree
from fastgrad.runtime.compile import code_address, users_overload
from fastgrad.runtime.programs import run
from fastgrad.validation import FloatArray, IntArray

Function = Callable[..., Any]

#: Ctrl-C is noticed between two compiled stretches of about this many seconds.
_STRETCH = 0.05

#: A loop that takes so many seconds is left for an evaluation of f at all points at once.
_MOMENT = 0.05

#: Blocks sent to each worker: one would do if all were equally fast and idle.
_BLOCKS_PER_WORKER = 4

#: What a function is where it is not defined.
_UNDEFINED = float("nan")


class WorkerTraceback(Exception):  # noqa: N818 - it is the cause of an error, not one itself
    """Where in a worker an exception came from: the cause of the exception that reaches you."""

    def __str__(self) -> str:
        """Return the traceback as the worker printed it."""
        return f"\n{self.args[0]}"


class Row(NamedTuple):
    """How an array that f returned is written as a row of real numbers.

    Attributes
    ----------
    shape : tuple of int
        The shape that f has to return at every point.
    is_complex : bool
        Whether each number is two, its real and its imaginary part.
    """

    shape: tuple[int, ...]
    is_complex: bool

    @classmethod
    def of(cls, value: Any) -> tuple[Row, FloatArray]:
        """Return the form of what f returned at x, and that as a row."""
        array = _numbers(value)
        row = cls(array.shape, array.dtype.kind == "c")
        return row, row(array)

    @property
    def size(self) -> int:
        """The number of real numbers."""
        return math.prod(self.shape) * (2 if self.is_complex else 1)

    def __call__(self, value: Any) -> FloatArray:
        """Return what f returned as a new array of real numbers, shape (size,)."""
        array = _numbers(value)
        if array.shape != self.shape:
            raise ValueError(
                f"`f` must return the same shape at every point. Got {array.shape}, and "
                f"{self.shape} at `x`."
            )
        if array.dtype.kind == "c" and not self.is_complex:
            raise ValueError(
                "`f` must return complex numbers at every point or at none. Got complex numbers, "
                "and real ones at `x`."
            )
        dtype = np.complex128 if self.is_complex else np.float64
        return np.array(array, dtype, order="C").reshape(-1).view(np.float64)


class Objective:
    """A function of the entries of a tree, which are counted leaf by leaf in memory order.

    Parameters
    ----------
    f : callable
        ``f(x.root, *args)``, one real number.
    x : Tree
    args : tuple
    workers : callable or None
        A map-like callable that evaluates f elsewhere.
    progress : bool
        Whether to show a progress bar.
    batched : bool or "auto"
        Whether a Python f is evaluated at all points at once: where it can be and the loop would
        take longer than a moment ("auto"), always, or never.

    Attributes
    ----------
    center : ndarray of float64, shape (size,)
        The entries as they are.
    size : int
        The number of entries.
    entries : ndarray of int64
        The numbers of all entries.
    inward : ndarray, shape (size,), or None
        The sign of the direction in which each entry has more room, if there are bounds.
    """

    def __init__(
        self,
        f: Function,
        x: Tree,
        args: Any,
        workers: Callable[..., Iterable[Any]] | None = None,
        *,
        progress: bool = False,
        batched: Any = "auto",
    ) -> None:
        if not callable(f):
            raise TypeError(f"`f` must be callable. Got {f!r}.")
        if not isinstance(args, tuple):
            raise TypeError(f"`args` must be a tuple. Got {type(args).__name__}.")
        if workers is not None and not callable(workers):
            raise TypeError(f"`workers` must be a map-like callable. Got {workers!r}.")
        if not (batched is True or batched is False or batched == "auto"):
            raise ValueError(f'`batched` must be "auto", True or False. Got {batched!r}.')
        if batched is True and workers is not None:
            raise ValueError("`batched` must not be True where `workers` evaluate f.")
        self.f, self.x, self.args = f, x, args
        self._workers, self._batched = workers, batched
        self._bar = _progress_bar() if progress else None
        self.update()
        self.size = self.center.size
        self.entries = np.arange(self.size)
        self.inward: FloatArray | None = None
        self._has_singles = any(leaf.array.dtype == np.float32 for leaf in x.leaves)

    @functools.cached_property
    def eps(self) -> FloatArray:
        """The machine epsilon of each entry's dtype, shape (size,)."""
        eps = [np.finfo(leaf.array.dtype).eps for leaf in self.x.leaves]
        return np.repeat(np.array(eps, np.float64), np.diff(self.x.begins))

    @property
    def largest_eps(self) -> float:
        """The machine epsilon of the shortest dtype; 0 if there are no entries."""
        return float(np.max(self.eps, initial=0))

    def update(self) -> None:
        """Take note that the leaves' arrays have changed."""
        self.center = self.x.flattened()

    def value(self, read: Callable[[Any], Any] | None = None) -> Any:
        """Return f(x), a float unless it is to be read in another way."""
        with RestoredOnExit(self.x) as root:  # f may work in place
            return (read or one_number)(self.f(root, *self.args))

    def rounded(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Return points as the dtype of each entry holds them; the last axis runs over entries."""
        return self._by_dtype(entries, points, lambda numbers: numbers)

    def perturbed(self, entries: IntArray, offsets: FloatArray) -> FloatArray:
        """Return entries plus offsets, shape (K, M) or (K, 1), rounded; no offset gets lost."""
        center = self.center[entries]
        with np.errstate(all="ignore"):
            points = self.rounded(entries, center + offsets)
            lost = points == center
            if np.count_nonzero(lost):  # which takes a tenth of the time of `any`
                towards = np.copysign(np.inf, offsets)
                nearest = self._by_dtype(
                    entries, center, lambda start: np.nextafter(start, towards, dtype=start.dtype)
                )
                points = np.where(lost, nearest, points)
        return points

    def _by_dtype(
        self, entries: IntArray, values: FloatArray, operation: Callable[[FloatArray], FloatArray]
    ) -> FloatArray:
        """Return what an operation makes of values in the dtype of each entry."""
        found = operation(values)
        if not self._has_singles:
            return found
        with np.errstate(over="ignore"):
            narrow = operation(values.astype(np.float32))
        return np.where(self.eps[entries] == np.finfo(np.float32).eps, narrow, found)

    def evaluate_entries(
        self,
        entries: IntArray,
        points: FloatArray,
        *,
        tolerant: bool = False,
        row: Row | None = None,
    ) -> FloatArray:
        """Evaluate f with one entry at a time elsewhere.

        Parameters
        ----------
        entries : ndarray of int64, shape (M,)
            Which entries to move, in ascending order.
        points : ndarray, shape (K, M)
            Column i holds the values that entry ``entries[i]`` takes in turn.
        tolerant : bool
            Whether arithmetic errors that f raises count as NaN: far from x a function need not be
            defined.
        row : Row, optional
            How to read an array that f returns; by default f returns one number.

        Returns
        -------
        ndarray of float64, shape (K, M) or (K, M, row.size)
        """
        if self._workers is not None:
            return self._evaluate_in_workers(entries, points, tolerant, row)
        found = None
        if row is None and is_jitted(self.f) and _is_arrays(self.x.root):
            found = self._evaluate_compiled(entries, points, tolerant)
        if found is None:
            found = self._evaluate_python(entries, points, tolerant, row)
        return found

    def _evaluate_python(
        self, entries: IntArray, points: FloatArray, tolerant: bool, row: Row | None = None
    ) -> FloatArray:
        """Evaluate f in a loop, with x perturbed in place, or at many points at once."""
        shape = () if row is None else (row.size,)
        is_quiet = tolerant or row is not None
        with (
            RestoredOnExit(self.x, is_read_only=True),
            np.errstate(all="ignore" if is_quiet else None),
        ):
            f = functools.partial(_tolerated, self.f) if tolerant else self.f
            found = itertools.chain.from_iterable(self._values(f, entries, points, row))
            values = np.fromiter(found, np.dtype((np.float64, shape)), points.size)
        return values.reshape(*points.T.shape, *shape).swapaxes(0, 1)

    def _values(
        self, f: Function, entries: IntArray, points: FloatArray, row: Row | None
    ) -> Iterator[Iterable[Any]]:
        """Yield the values of f, entry by entry, or those of many entries together."""
        read, as_it_is = (one_number, float) if row is None else (row, ())
        args = self.args
        until = {"auto": time.perf_counter() + _MOMENT, True: 0.0, False: math.inf}[self._batched]
        for leaf, places, part in self.x.split(entries):
            live, root = leaf.array.transpose(leaf.axes).flat, self.x.root
            numbers, columns, done = places.tolist(), points.T[part].tolist(), 0
            is_in_turn, is_number, before = leaf.is_number, leaf.is_number, 0.0
            while done < len(numbers):
                now = time.perf_counter()
                # The first entry may have taken longer than others.
                if done == 2 and until < math.inf and (now - before) * len(numbers) > _MOMENT:
                    until = now
                before = now
                if not is_in_turn and now >= until:
                    rest = slice(part.start + done, part.stop)
                    found = self._evaluate_batched(leaf, places[done:], points[:, rest], f, row)
                    until = until if found.size else math.inf
                    # The last entry is left to the loop, for what f stores.
                    found = found[:, : len(numbers) - done - 1].swapaxes(0, 1)
                    done, is_in_turn = done + len(found), True
                    found = found.reshape(-1, *found.shape[2:])
                    self._show(len(found))
                    yield found
                i = numbers[done]
                kept, values = live[i], []
                for number in columns[done]:
                    live[i] = number
                    if is_number:
                        root = self.x.put(leaf, number)
                    value = f(root, *args)
                    if not isinstance(value, as_it_is) and value is not _UNDEFINED:
                        value = read(value)
                    values.append(value)
                live[i] = kept
                if self._bar is not None:
                    self._bar.update(len(values))
                yield values
                done += 1
            if is_number:
                self.x.put(leaf, float(leaf.array))

    def _evaluate_batched(
        self, leaf: Leaf, entries: IntArray, points: FloatArray, f: Function, row: Row | None
    ) -> FloatArray:
        """Evaluate f at many points at once, for as many entries as that is faster for."""
        from fastgrad.numdiff import batched  # whose import would take a hundredth of a second

        is_asked = self._batched is True
        try:
            return batched.evaluate(
                self.f, self.x.root, leaf.array, entries, points, self.args,
                insist=is_asked, alone=f, numbers=row and row.__call__,
            )  # fmt: skip
        except batched.NotCarried as reason:
            if is_asked:
                raise ValueError(
                    f"`f` cannot be evaluated at all points at once: {reason}. "
                    'Use `batched="auto"`.'
                ) from reason
        return np.empty((len(points), 0))

    def _evaluate_compiled(
        self, entries: IntArray, points: FloatArray, tolerant: bool
    ) -> FloatArray | None:
        """Evaluate f on all threads, each on a copy of its own, in stretches that let Ctrl-C in.

        None means that f is to be called from Python.
        """
        values, leaves = np.empty(points.shape), self.x.leaves
        count = min(numba.get_num_threads(), max(1, len(entries)))
        rows = [_row_for_each_thread(leaf.array, count) for leaf in leaves]
        trees = [
            self.x.rebuilt(
                row[: leaf.array.size].reshape(leaf.array.shape)
                for leaf, row in zip(leaves, by_leaf, strict=True)
            )
            for by_leaf in zip(*rows, strict=True)
        ]
        compiled = _compiled(self.f, trees[0], self.args)
        if compiled is None:
            return None
        blocks = np.stack([user_function.pack(compiled.address, tree, self.args) for tree in trees])
        kept = [row[0].tobytes() for row in rows]
        for leaf, numbers, part in self.x.split(entries):
            in_c_order = np.arange(leaf.array.size).reshape(leaf.array.shape)
            places = in_c_order.transpose(leaf.axes).reshape(-1)[numbers]
            moved = np.ascontiguousarray(points[:, part])
            found = np.empty(moved.shape)
            failed = np.full(count, -1)
            start, stop, size = 0, min(count, len(places)), len(places)
            while start < size:
                began = time.perf_counter()
                run(
                    user_function.evaluate_perturbed, count, compiled.evaluator.address, blocks,
                    rows[leaves.index(leaf)], places, moved, found, failed, start, stop,
                    int(tolerant),
                )  # fmt: skip
                if failed.max() >= 0:
                    i, k = divmod(int(failed[failed >= 0].min()), len(points))
                    point = moved[k : k + 1, i : i + 1]
                    # Python meets the thread's exception again, which thus reaches the caller.
                    self._evaluate_python(entries[part][i : i + 1], point, tolerant)
                    raise RuntimeError(
                        f"`f` raised an exception with element {numbers[i]} of `{leaf.path}` at "
                        f"{point.item()}, but not when it was called there again."
                    )
                self._show((stop - start) * len(points))
                rate = (stop - start) / max(time.perf_counter() - began, 1e-9)
                start, stop = stop, min(size, stop + max(count, int(rate * _STRETCH)))
            values[:, part] = found
        if any(row.tobytes() != count * original for row, original in zip(rows, kept, strict=True)):
            raise ValueError("`f` must not change `x`.")
        return values

    def _evaluate_in_workers(
        self, entries: IntArray, points: FloatArray, tolerant: bool, row: Row | None
    ) -> FloatArray:
        """Evaluate f in blocks of entries, through a map-like callable."""
        assert self._workers is not None
        if not entries.size:
            return np.empty((*points.shape, *(() if row is None else (row.size,))))
        count = min(_BLOCKS_PER_WORKER * _worker_count(self._workers), entries.size)
        parts = zip(
            np.array_split(entries, count), np.array_split(points, count, axis=1), strict=True
        )
        # Arrays go as they lie in memory, because pickling would turn every other layout into C
        # order; the rounding of a sum depends on it.
        axes = [leaf.axes for leaf in self.x.leaves]
        root = self.x.rebuilt(leaf.array.transpose(leaf.axes) for leaf in self.x.leaves)
        work = functools.partial(_work, self.f, root, axes, self.args, tolerant, row)
        blocks = []
        for block in _results(self._workers(work, list(parts))):
            if isinstance(block, _Failure):
                raise block.exception()
            if not isinstance(block, np.ndarray):
                raise TypeError(
                    "`workers` must be a map that gives results, such as the map of an executor. "
                    f"It gave {type(block).__name__}."
                )
            blocks.append(block)
            self._show(block.shape[0] * block.shape[1])
        if len(blocks) != count:
            raise ValueError(
                f"`workers` must give a result for each of {count} blocks of points. "
                f"It gave {len(blocks)}."
            )
        return np.concatenate(blocks, axis=1)

    def evaluate_line(self, direction: FloatArray, steps: FloatArray) -> FloatArray:
        """Evaluate f with all entries moved at once.

        Parameters
        ----------
        direction : ndarray, shape (size,)
            How far each entry moves for a step of 1.
        steps : ndarray, shape (K,)

        Returns
        -------
        ndarray of float64, shape (K,)
        """
        values = np.empty(len(steps))
        with RestoredOnExit(self.x), np.errstate(all="ignore"):
            for k, step in enumerate(steps):
                parts = self.x.shaped(self.center + step * direction)
                for leaf, part in zip(self.x.leaves, parts, strict=True):
                    leaf.array[...] = part
                    if leaf.is_number:
                        self.x.put(leaf, float(leaf.array))
                values[k] = one_number(_tolerated(self.f, self.x.root, *self.args))
                self._show(1)
        return values

    def _show(self, count: int) -> None:
        """Show that `count` evaluations more are done, if there is a progress bar."""
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """Take the progress bar down."""
        if self._bar is not None:
            self._bar.close()


def _progress_bar() -> Any:
    from tqdm import tqdm

    return tqdm(unit=" evaluations", dynamic_ncols=True)


def _numbers(value: Any) -> Any:
    """Return what f returned as an array of real or complex numbers."""
    array = _converted(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"`f` must return an array of numbers. Got {value!r:.60}.")
    return array


def _converted(value: Any) -> Any:
    """Return what f returned as an array, one of objects if it is a ragged list."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _tolerated(f: Function, *args: Any) -> Any:
    """Return a value of f, or NaN where it raises an arithmetic error."""
    try:
        return f(*args)
    except (ArithmeticError, ValueError):
        return _UNDEFINED


def one_number(value: Any) -> float:
    """Return what f returned as a float."""
    if isinstance(value, float):  # NumPy's float64 too
        return value
    array = _converted(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`f` must return one real number. Got {value!r:.60}.")
    if array.size != 1:
        raise ValueError(
            f"`f` must return one real number. Got an array of shape {array.shape}. For a number "
            "that depends on all of it take np.sum(f(x) * v) with a random v; for a layer with a "
            "backward pass there is `check_backward`."
        )
    return float(array.item())


# ------------------------------------------------------------------------ compiled functions


class _Compiled(NamedTuple):
    """A function compiled for given types: where it is, and the bridge to it."""

    overload: Any
    address: int
    evaluator: Any


#: What has been compiled, by function, and by the types of x and of further arguments.
_known: weakref.WeakKeyDictionary[Any, dict[Any, _Compiled]] = weakref.WeakKeyDictionary()


def _is_arrays(tree: Any) -> bool:
    """Return whether a tree is an array, or tuples of arrays, as a compiled function may have."""
    if isinstance(tree, tuple):
        return len(tree) > 0 and all(map(_is_arrays, tree))
    return isinstance(tree, np.ndarray) and tree.ndim > 0


def _compiled(f: Any, x: Any, args: tuple[Any, ...]) -> _Compiled | None:
    """Compile f for these arguments; None if it is to be called from Python."""
    signature = (numba.typeof(x), *map(_argument_type, args))
    known = _known.setdefault(f, {})
    compiled = known.get(signature)
    # A function that was recompiled lies somewhere else.
    if compiled is not None and f.overloads.get(signature) is compiled.overload:
        return compiled
    overload = users_overload(f, signature)
    if overload is None:
        return None
    result = overload.signature.return_type
    number = result.dtype if isinstance(result, types.Array) else result
    if not isinstance(number, types.Integer | types.Float | types.Boolean):
        raise TypeError(f"`f` must return one real number. Got {result}.")
    bridge = user_function.evaluator(signature[0], types.Tuple(signature[1:]), result)
    compiled = known[signature] = _Compiled(overload, code_address(overload), bridge)
    return compiled


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


def _row_for_each_thread(array: FloatArray, count: int) -> FloatArray:
    """Return a row of an array's numbers in C order for each thread, with a margin between them."""
    line = 128 // array.itemsize  # two cache lines, which processors fetch in pairs
    rows = np.zeros((count, line * (array.size // line + 1)), array.dtype)
    rows[:, : array.size] = array.reshape(-1)
    return rows


# ------------------------------------------------------------------------------------ workers


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker: exceptions, each the cause of the one before."""

    chain: list[BaseException]
    text: str

    def exception(self) -> BaseException:
        """Return the first exception, with all causes and the worker's traceback as the last."""
        for error, cause in itertools.pairwise([*self.chain, WorkerTraceback(self.text)]):
            error.__cause__ = cause
        return self.chain[0]


def _work(
    f: Function, root: Any, axes: list[tuple[int, ...]], args: tuple[Any, ...], tolerant: bool,
    row: Row | None, part: tuple[IntArray, FloatArray],
) -> FloatArray | _Failure:  # fmt: skip
    """Evaluate one block, in the worker, on a copy of the tree, whose arrays are in C order."""
    try:
        sent = Tree(root, "x")
        arrays = [
            leaf.array.copy().transpose(np.argsort(order))
            for leaf, order in zip(sent.leaves, axes, strict=True)
        ]
        objective = Objective(f, Tree(sent.rebuilt(arrays), "x"), args, batched=False)
        return objective.evaluate_entries(*part, tolerant=tolerant, row=row)
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        # Pools differ in what they hand on: causes get lost, and an exception that cannot be
        # unpickled leaves multiprocessing's Pool waiting for ever.
        chain = list(_causes(error))
        try:
            data = pickle.dumps(chain)
        except Exception:  # noqa: BLE001 - the pool may know better, as Dask does
            raise error from error.__cause__
        try:
            pickle.loads(data)
        except Exception:  # noqa: BLE001 - an __init__ of another signature, most often
            chain = [RuntimeError(f"{type(error).__name__}: {error}")]
        return _Failure(chain, traceback.format_exc())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _results(given: Any) -> Iterable[Any]:
    """Return what a map-like callable gave, once it is certain that this can be iterated over."""
    if not isinstance(given, Iterable):
        raise TypeError(
            "`workers` must be a map-like callable, which gives an iterable of results. "
            f"It gave {given!r}."
        )
    return given


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
