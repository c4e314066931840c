"""A function of a tree, with one number at a time perturbed: in Python, compiled, or by workers.

Exceptions, a Ctrl-C among them, leave the tree as it was.
"""

# Numba leaves the types of types untyped, and its dispatcher half typed.
# mypy: disable-error-code="no-untyped-call, attr-defined, call-overload, no-any-return"

from __future__ import annotations

import contextlib
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
from numpy.typing import NDArray

from fastgrad.kernels import user_function
from fastgrad.numdiff.trees import Leaf, Tree, rebuild
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
    def of(cls, value: Any) -> Row:
        """Return the form of what f returned at x."""
        array = _numbers(value)
        return cls(array.shape, array.dtype.kind == "c")

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
    begins : list of int
        Where each leaf's entries begin, and the last one's end.
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
        if workers is not None and not callable(workers):
            raise TypeError(f"`workers` must be a map-like callable. Got {workers!r}.")
        if not (batched is True or batched is False or batched == "auto"):
            raise ValueError(f'`batched` must be "auto", True or False. Got {batched!r}.')
        if batched is True and workers is not None:
            raise ValueError("`batched` must not be True where `workers` evaluate f.")
        self.f = f
        self.x = x
        self.args = further_arguments(args)
        self._batched = batched
        self._workers = workers
        self._bar = _progress_bar() if progress else None
        self.update()
        self.begins = _begins(x)
        self.size = self.begins[-1]
        self.entries = np.arange(self.size)
        self.inward: FloatArray | None = None
        self._has_singles = any(leaf.array.dtype == np.float32 for leaf in x.leaves)

    @functools.cached_property
    def eps(self) -> FloatArray:
        """The machine epsilon of each entry's dtype, shape (size,)."""
        eps = [np.full(leaf.array.size, np.finfo(leaf.array.dtype).eps) for leaf in self.x.leaves]
        return np.concatenate([np.empty(0), *eps], dtype=np.float64)

    def _is_single(self, entries: IntArray) -> NDArray[np.bool_]:
        single: NDArray[np.bool_] = self.eps[entries] == np.finfo(np.float32).eps
        return single

    def update(self) -> None:
        """Take note that the leaves' arrays have changed."""
        flat = [leaf.flat() for leaf in self.x.leaves] or [np.empty(0)]
        self.center = np.concatenate(flat, dtype=np.float64)

    def eps_of(self, entries: IntArray) -> FloatArray:
        """Return the machine epsilon of each of some entries."""
        return self.eps[entries]

    def value(self) -> float:
        """Return f(x)."""
        with self.x.restored_on_exit() as root:  # f may work in place
            return one_number(self.f(root, *self.args))

    def rounded(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Return points as the dtype of each entry holds them; the last axis runs over entries."""
        if not self._has_singles:
            return points
        with np.errstate(over="ignore"):
            narrow = points.astype(np.float32)
        chosen: FloatArray = np.where(self._is_single(entries), narrow, points)
        return chosen

    def perturbed(self, entries: IntArray, offsets: FloatArray) -> FloatArray:
        """Return entries plus offsets, shape (K, M) or (K, 1), rounded; no offset gets lost."""
        center = self.center[entries]
        with np.errstate(all="ignore"):
            points = self.rounded(entries, center + offsets)
            lost = points == center
            if lost.any():
                towards = np.copysign(np.inf, offsets)
                narrow = np.nextafter(center.astype(np.float32), towards.astype(np.float32))
                nearest = np.where(self._is_single(entries), narrow, np.nextafter(center, towards))
                points = np.where(lost, nearest, points)
        return points

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
        task = _Task(self.f, self.x, self.args, tolerant, row, self._batched, self._bar)
        if self._workers is not None:
            return self._evaluate_in_workers(task, entries, points)
        return task.evaluate(entries, points)

    def _evaluate_in_workers(
        self, task: _Task, entries: IntArray, points: FloatArray
    ) -> FloatArray:
        """Evaluate f in blocks of entries, through a map-like callable."""
        assert self._workers is not None
        count = _BLOCKS_PER_WORKER * _worker_count(self._workers)
        parts = [
            (entries[start:stop], points[:, start:stop])
            for start, stop in _blocks(len(entries), count)
        ]
        if not parts:
            return np.empty((*points.shape, *task.shape))
        sent = dataclasses.replace(task, x=_Parcel.of(self.x), batched=False, bar=None)
        work = functools.partial(_work, sent)
        blocks = []
        for block in self._workers(work, parts):
            if isinstance(block, _Failure):
                raise block.exception()
            if not isinstance(block, np.ndarray):
                raise TypeError(
                    "`workers` must be a map that gives results, such as the map of an executor. "
                    f"It gave {type(block).__name__}."
                )
            blocks.append(block)
            _show(self._bar, block.shape[0] * block.shape[1])
        return np.concatenate(blocks, axis=1)

    def evaluate_line(self, direction: list[FloatArray], steps: FloatArray) -> FloatArray:
        """Evaluate f with all entries moved at once.

        Parameters
        ----------
        direction : list of ndarray
            For each leaf how far its entries move for a step of 1.
        steps : ndarray, shape (K,)

        Returns
        -------
        ndarray of float64, shape (K,)
        """
        values = np.empty(len(steps))
        f = functools.partial(_tolerated, self.f)
        for k, step in enumerate(steps):
            with self.x.restored_on_exit(), np.errstate(all="ignore"):
                for leaf, part in zip(self.x.leaves, direction, strict=True):
                    leaf.array[...] = leaf.array + step * part
                    if leaf.is_number:
                        leaf.put(float(leaf.array))
                values[k] = one_number(f(self.x.root, *self.args))
            _show(self._bar, 1)
        return values

    def close(self) -> None:
        """Take the progress bar down."""
        if self._bar is not None:
            self._bar.close()

    def by_leaf(self, values: FloatArray) -> list[FloatArray]:
        """Cut values of all entries into one array for each leaf."""
        return [values[a:b] for a, b in itertools.pairwise(self.begins)]


def _progress_bar() -> Any:
    from tqdm import tqdm

    return tqdm(unit=" evaluations", dynamic_ncols=True)


def _show(bar: Any, count: int) -> None:
    """Show that `count` evaluations more are done, if there is a progress bar."""
    if bar is not None:
        bar.update(count)


def _begins(x: Tree) -> list[int]:
    """Return where each leaf's entries begin, and the last one's end."""
    return [0, *itertools.accumulate(leaf.array.size for leaf in x.leaves)]


def _blocks(size: int, count: int) -> list[tuple[int, int]]:
    """Return where each of `count` blocks begins and ends, or fewer: none is empty."""
    count = min(size, count)
    edges = [size * block // count for block in range(count + 1)] if count else []
    return list(itertools.pairwise(edges))


def _leaves_of(x: Tree, entries: IntArray) -> Iterator[tuple[Leaf, IntArray, slice]]:
    """Yield each leaf that has some of the entries, their numbers within it, and where they are."""
    if len(x.leaves) == 1:
        yield x.leaves[0], entries, slice(0, len(entries))
        return
    begins = _begins(x)
    places = np.searchsorted(entries, begins).tolist()
    for leaf, begin, first, last in zip(x.leaves, begins, places, places[1:], strict=False):
        if last > first:
            yield leaf, entries[first:last] - begin, slice(first, last)


@dataclasses.dataclass(frozen=True)
class _Task:
    """The evaluations of ``f(x.root, *args)``; for what the attributes mean see `Objective`."""

    f: Function
    x: Any
    args: tuple[Any, ...]
    tolerant: bool
    row: Row | None
    batched: Any
    bar: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is kept of one evaluation."""
        return () if self.row is None else (self.row.size,)

    def evaluate(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Evaluate f where it is fastest; see `Objective.evaluate_entries`."""
        if self.row is None and is_jitted(self.f) and _Copies.fit(self.x):
            copies = _Copies(self.x, min(numba.get_num_threads(), max(1, len(entries))))
            compiled = _compiled(self.f, copies.trees[0], self.args)
            if compiled is not None:
                return _evaluate_compiled(compiled, self, copies, entries, points)
        return self.evaluate_python(entries, points)

    def evaluate_python(self, entries: IntArray, points: FloatArray) -> FloatArray:
        """Evaluate f in a loop, with x perturbed in place, or at many points at once."""
        is_quiet = self.tolerant or self.row is not None
        dtype = np.dtype((np.float64, self.shape))
        restored = self.x.restored_on_exit()
        with restored, np.errstate(all="ignore") if is_quiet else contextlib.nullcontext():
            found = itertools.chain.from_iterable(self._values(entries, points))
            values = np.fromiter(found, dtype, points.size)
            if not restored.is_unchanged():
                raise ValueError("`f` must not change `x`.")
        return values.reshape(*points.T.shape, *self.shape).swapaxes(0, 1)

    def _values(self, entries: IntArray, points: FloatArray) -> Iterator[list[Any]]:
        """Yield the values of f, entry by entry, or those of many entries together."""
        f = functools.partial(_tolerated, self.f) if self.tolerant else self.f
        args, root, row = self.args, self.x.root, self.row
        read, as_it_is = (one_number, float) if row is None else (row, ())
        until = {"auto": time.perf_counter() + _MOMENT, True: 0.0, False: math.inf}[self.batched]
        for leaf, places, part in _leaves_of(self.x, entries):
            live, is_number = leaf.array.transpose(leaf.axes).flat, leaf.is_number
            numbers, columns, done = places.tolist(), points.T[part].tolist(), 0
            is_in_turn, before = is_number, 0.0
            while done < len(numbers):
                now = time.perf_counter()
                # The first entry may have taken longer than others.
                if done == 2 and until < math.inf and (now - before) * len(numbers) > _MOMENT:
                    until = now
                before = now
                if not is_in_turn and now >= until:
                    rest = slice(part.start + done, part.stop)
                    found = self._evaluate_batched(leaf, places[done:], points[:, rest], f)
                    until = until if found.size else math.inf
                    # The last entry is left to the loop, for what f stores.
                    found = found[:, : len(numbers) - done - 1]
                    _show(self.bar, found.shape[0] * found.shape[1])
                    yield list(found.swapaxes(0, 1).reshape(-1, *self.shape))
                    done, is_in_turn = done + found.shape[1], True
                i = numbers[done]
                kept, values = live[i], []
                for number in columns[done]:
                    live[i] = number
                    if is_number:
                        leaf.put(number)
                        root = self.x.root
                    value = f(root, *args)
                    if not isinstance(value, as_it_is) and value is not _UNDEFINED:
                        value = read(value)
                    values.append(value)
                live[i] = kept
                if is_number:
                    leaf.put(float(kept))
                    root = self.x.root
                if self.bar is not None:
                    self.bar.update(len(values))
                yield values
                done += 1

    def _evaluate_batched(
        self, leaf: Leaf, entries: IntArray, points: FloatArray, f: Function
    ) -> FloatArray:
        """Evaluate f at many points at once, for as many entries as that is faster for."""
        from fastgrad.numdiff import batched  # whose import would take a hundredth of a second

        is_asked = self.batched is True
        try:
            return batched.evaluate(
                self.f, self.x.root, leaf.array, entries, points, self.args,
                insist=is_asked, alone=f,
                numbers=None if self.row is None else self.row.__call__,
            )  # fmt: skip
        except batched.NotCarried as reason:
            if is_asked:
                raise ValueError(
                    f"`f` cannot be evaluated at all points at once: {reason}. "
                    'Use `batched="auto"`.'
                ) from reason
        return np.empty((len(points), 0, *self.shape))


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


def further_arguments(args: Any) -> tuple[Any, ...]:
    """Return `args` if it is a tuple, as it must be."""
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple. Got {type(args).__name__}.")
    return args


# ------------------------------------------------------------------------ compiled functions


class _Compiled(NamedTuple):
    """A function compiled for given types: where it is, and the bridge to it."""

    overload: Any
    address: int
    evaluator: Any


#: What has been compiled, by function, and by the types of x and of further arguments.
_known: weakref.WeakKeyDictionary[Any, dict[Any, _Compiled | None]] = weakref.WeakKeyDictionary()


def _compiled(f: Any, x: Any, args: tuple[Any, ...]) -> _Compiled | None:
    """Compile f for these arguments; None if it is to be called from Python."""
    if not is_jitted(f):
        return None
    signature = (numba.typeof(x), *(_argument_type(arg) for arg in args))
    known = _known.setdefault(f, {})
    compiled = known.get(signature)
    # A function that was recompiled lies somewhere else.
    if compiled is None or f.overloads.get(signature) is not compiled.overload:
        compiled = known[signature] = _compile(f, signature)
    return compiled


def _compile(f: Any, signature: tuple[types.Type, ...]) -> _Compiled | None:
    overload = users_overload(f, signature)
    if overload is None:
        return None
    result = overload.signature.return_type
    number = result.dtype if isinstance(result, types.Array) else result
    if not isinstance(number, types.Integer | types.Float | types.Boolean):
        raise TypeError(f"`f` must return one real number. Got {result}.")
    bridge = user_function.evaluator(signature[0], types.Tuple(signature[1:]), result)
    return _Compiled(overload, code_address(overload), bridge)


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


class _Copies:
    """The numbers of an array, or of tuples of arrays, once for each thread, C-contiguous.

    Attributes
    ----------
    trees : list
        The array, or the tuples, of each thread; views of its row of `rows`.
    rows : ndarray of uint8, shape (threads, bytes)
    """

    def __init__(self, x: Tree, count: int) -> None:
        # Two cache lines each, which processors fetch in pairs.
        sizes = [128 * (leaf.array.nbytes // 128 + 1) for leaf in x.leaves]
        begins = [0, *itertools.accumulate(sizes)]
        self.rows = np.zeros((count, begins[-1]), np.uint8)
        self._x = x
        self._begins = {leaf.path: begin for leaf, begin in zip(x.leaves, begins, strict=False)}
        self.trees = []
        for row in self.rows:
            arrays = []
            for leaf, begin in zip(x.leaves, begins, strict=False):
                part = row[begin : begin + leaf.array.nbytes].view(leaf.array.dtype)
                arrays.append(part.reshape(leaf.array.shape))
                arrays[-1][...] = leaf.array
            self.trees.append(rebuild(x.root, arrays))

    @staticmethod
    def fit(x: Tree) -> bool:
        """Return whether a compiled function can be given such a tree."""
        return (x.is_single or _is_tuples(x.root)) and all(
            leaf.array.ndim and not leaf.is_number for leaf in x.leaves
        )

    def places(self, entries: IntArray) -> Iterator[tuple[np.dtype[Any], slice, IntArray]]:
        """Yield a leaf's dtype, which of the entries are its, and their places in rows of it."""
        for leaf, numbers, part in _leaves_of(self._x, entries):
            in_c_order = np.arange(leaf.array.size).reshape(leaf.array.shape)
            in_memory_order = in_c_order.transpose(leaf.axes).reshape(-1)
            begin = self._begins[leaf.path] // leaf.array.itemsize
            yield leaf.array.dtype, part, in_memory_order[numbers] + begin


def _is_tuples(tree: Any) -> bool:
    return isinstance(tree, np.ndarray) or (
        isinstance(tree, tuple) and all(map(_is_tuples, tree)) and len(tree) > 0
    )


def _evaluate_compiled(
    compiled: _Compiled, task: _Task, copies: _Copies, entries: IntArray, points: FloatArray
) -> FloatArray:
    """Evaluate f on all threads, each on copies of its own, in stretches that let Ctrl-C in."""
    values = np.empty(points.shape)
    original = copies.rows[0].tobytes()
    count = len(copies.rows)
    blocks = np.stack(
        [user_function.pack(compiled.address, tree, task.args) for tree in copies.trees]
    )
    for dtype, part, places in copies.places(entries):
        moved = np.ascontiguousarray(points[:, part])
        found = np.empty(moved.shape)
        failed = np.full(count, -1)
        start, stop, size = 0, min(count, len(places)), len(places)
        while start < size:
            began = time.perf_counter()
            run(
                user_function.evaluate_perturbed, count, compiled.evaluator.address, blocks,
                copies.rows.view(dtype), places, moved, found, failed, start, stop,
                int(task.tolerant),
            )  # fmt: skip
            if failed.max() >= 0:
                i, k = divmod(int(failed[failed >= 0].min()), len(points))
                _raise_again(task, entries[part][i : i + 1], moved[k : k + 1, i : i + 1])
            _show(task.bar, (stop - start) * len(points))
            rate = (stop - start) / max(time.perf_counter() - began, 1e-9)
            start, stop = stop, min(size, stop + max(count, int(rate * _STRETCH)))
        values[:, part] = found
    if any(row.tobytes() != original for row in copies.rows):
        raise ValueError("`f` must not change `x`.")
    return values


def _raise_again(task: _Task, entry: IntArray, point: FloatArray) -> None:
    """Evaluate f where a thread met an exception, so that it reaches the caller."""
    task.evaluate_python(entry, point)
    leaf, place, _ = next(_leaves_of(task.x, entry))
    raise RuntimeError(
        f"`f` raised an exception with element {place.item()} of `{leaf.path}` at {point.item()}, "
        "but not when it was called there again."
    )


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


class _Parcel(NamedTuple):
    """A tree as it travels to a worker.

    Arrays go as they lie in memory, because pickling would turn every other layout into C order;
    the rounding of a sum depends on it.
    """

    root: Any
    axes: list[tuple[int, ...]]

    @classmethod
    def of(cls, x: Tree) -> _Parcel:
        arrays = [leaf.array.transpose(leaf.axes) for leaf in x.leaves]
        return cls(x.rebuilt(arrays), [leaf.axes for leaf in x.leaves])

    def tree(self) -> Tree:
        """Return a tree of copies."""
        sent = Tree(self.root, "x")
        arrays = [
            leaf.array.copy().transpose(np.argsort(axes))
            for leaf, axes in zip(sent.leaves, self.axes, strict=True)
        ]
        return Tree(sent.rebuilt(arrays), "x")


def _work(task: _Task, part: tuple[IntArray, FloatArray]) -> FloatArray | _Failure:
    """Evaluate one block, in the worker, on a copy of the tree that was sent as a `_Parcel`."""
    try:
        return dataclasses.replace(task, x=task.x.tree()).evaluate(*part)
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
