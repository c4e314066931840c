"""The reader's own loops of numerical differentiation, whatever their names.

What a loop computes is what its author wrote; only the values of f come from elsewhere. A function
that may be such a loop asks `computed` first, see `fastgrad.book.loop_syntax`. Where f is slow
enough for it to matter, and the code of both shows that nobody could tell, the author's code runs
three times:

1. on a small array, with numbers made up for f: the points must not depend on the values, each must
   differ from x in one entry at most, every entry must get as many, and x must be restored;
2. on x itself, with f replaced by a function that notes the points;
3. on x again, with f replaced by a function that returns the values at these points.

In between, f is evaluated at all points at once, or is recognised as a compiled network's loss. So
the result has the type, the memory order and the rounding of the author's formula, whatever it is,
and x is what that formula leaves. Anything unexpected means that x is as it was, and that the
function goes on as if nothing had been asked.
"""

from __future__ import annotations

import ast
import collections
import functools
import inspect
import itertools
import linecache
import os
import re
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgrad.numdiff import reading
from fastgrad.numdiff.objective import one_number
from fastgrad.numdiff.records import FORGOTTEN, Records
from fastgrad.numdiff.trees import memory_order

__all__ = [
    "central_differences",
    "computed",
    "computed_part",
    "ended",
    "forget",
    "lines",
    "result",
]

#: Loops over fewer entries are left alone, and those that take less time, in seconds.
_FEW, _MOMENT = 8, 0.05
#: For how many seconds the time of an evaluation is believed, and that a loop is to be left.
_BELIEVED, _LEFT_FOR = 1.0, 60.0
#: How many entries are tried at once before all are: a sixteenth, within these bounds.
_TRIED = 32, 256
#: A line is written about a loop that is left alone if it took that many seconds altogether.
_LONG = 0.5
#: A small array has so many entries along its last axis and the others, by its number of axes.
_SMALL = {1: (5, 5), 2: (2, 3)}
#: A part of a function that has asked so often in vain does not ask again.
_PATIENCE = 1000
#: Calls of f for each entry of a small array before it is no differentiation.
_CALLS = 16
_EPS = float(np.finfo(np.float64).eps)
_NOT_RESTORED = "it does not restore x"
_NOT_ALIKE = "it does not always call f alike"
_ANOTHER_WAY = "it goes another way over large arrays"
#: What a function raises of itself; all else, such as a timeout of the reader's, goes through.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,  # where warnings are errors
    np.linalg.LinAlgError,
)

# --------------------------------------------------------------------------------- what is called


class _Left(Exception):  # noqa: N818 - no error
    """Why a loop is left as it is."""


class _Call(NamedTuple):
    """A call of a loop: a twin of its function, its arguments, and which are f and x.

    Attributes
    ----------
    loud : _Call
        The call that also reports its progress, if this one does not.
    """

    loop: Callable[..., Any]
    args: list[Any]
    keywords: dict[str, Any]
    f: int
    x: int
    loud: Any = None

    def with_(self, f: Callable[..., Any], x: NDArray[Any]) -> Any:
        """Call the loop with another function and another array."""
        args = list(self.args)
        args[self.f], args[self.x] = f, x
        return self.loop(*args, **self.keywords)


class _StandIn:
    """A function in the place of f: `computed` lets the loop run with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.function(*args, **keywords)


def _calls_of(frame: types.FrameType, name: str, quiet: str) -> Iterator[_Call]:
    """Yield the call that a frame is, once for each argument that can be x."""
    code, given = frame.f_code, frame.f_locals
    args, keywords = _arguments(frame)
    # The cells themselves are not to be had; a loop that assigns to them is none that is harmless.
    cells = tuple(
        types.CellType(given[n]) if n in given else types.CellType() for n in code.co_freevars
    )
    twin = types.FunctionType(code, frame.f_globals, code.co_name, None, cells)
    twin.__qualname__ = code.co_qualname
    f = code.co_varnames.index(name)
    calls = [_Call(twin, args, keywords, f, i) for i, value in enumerate(args) if _is_array(value)]
    yield from calls
    if quiet and _reports_progress(frame):
        for call in (c for c in calls if c.x < code.co_argcount):
            first = {name: args[f], code.co_varnames[call.x]: args[call.x]}
            yield _part_of(frame, code.co_firstlineno, quiet, first)._replace(loud=call)


def _calls_of_part(
    frame: types.FrameType, f: Any, x: Any, body: str, quiet: str
) -> Iterator[_Call]:
    """Yield the call of a part of the reader's function, and the one that is quiet."""
    first, line = {"_f": f, "_x": x}, frame.f_lineno
    call = _part_of(frame, line, body, first)
    yield call
    if quiet and _reports_progress(frame):
        yield _part_of(frame, line, quiet, first)._replace(loud=call)


def _part_of(frame: types.FrameType, line: int, body: str, first: dict[str, Any]) -> _Call:
    """Return the call of a part of the reader's function, with f and x by their names in it."""
    code = frame.f_code
    used = _names_in(body) - first.keys()
    given = {name: value for name, value in frame.f_locals.items() if name in used}
    part = _compiled_part(f"{code.co_filename}:{line}", code.co_name, body, (*first, *given))
    return _Call(types.FunctionType(part, frame.f_globals), [*first.values()], given, 0, 1)


@functools.lru_cache(256)
def _names_in(body: str) -> frozenset[str]:
    tree = ast.parse(f"def _():\n{textwrap.indent(body, ' ')}")
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


@functools.lru_cache(256)
def _compiled_part(place: str, name: str, body: str, names: tuple[str, ...]) -> types.CodeType:
    """Return the code of a function that is a part of one of the reader's."""
    text = f"def {name}({', '.join(names)}):\n{textwrap.indent(body, ' ')}\n"
    file = f"{place}:{abs(hash(text))}"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # to be read
    constants = compile(text, file, "exec").co_consts
    return next(code for code in constants if isinstance(code, types.CodeType))


def _reports_progress(frame: types.FrameType) -> bool:
    """Return whether `print` and tqdm are what their names say."""
    names = {**frame.f_globals, **frame.f_locals}
    bars = [names[name] for name in ("tqdm", "trange") if name in names]
    homes = [str(getattr(bar, "__module__", None) or bar.__name__) for bar in bars]
    return "print" not in names and all(home.partition(".")[0] == "tqdm" for home in homes)


def _arguments(frame: types.FrameType) -> tuple[list[Any], dict[str, Any]]:
    """Return what a function has been called with."""
    code, given = frame.f_code, frame.f_locals
    count, more = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames
    args = [given[n] for n in names[:count]]
    keywords = {n: given[n] for n in names[count:more]}
    if code.co_flags & inspect.CO_VARARGS:
        args += given[names[more]]
        more += 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        keywords |= given[names[more]]
    return args, keywords


def _is_array(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.size >= _FEW
        and value.dtype in (np.float32, np.float64)
        and value.flags.writeable
    )


# ---------------------------------------------------------------------------------------- probing


class _Rule(NamedTuple):
    """How a loop goes over x.

    Attributes
    ----------
    before, after : int
        Calls of f at x itself before the first entry and after the last one.
    block : tuple of bool
        The calls for each entry in turn: whether that entry is elsewhere, or f is called at x.
    order : {"C", "F"}
        The order in which the entries are visited.
    passes : {"x", "copy", "nothing"}
        What f is called with first: x itself, nudged in place; a nudged copy; or neither, so that
        f finds x elsewhere.
    further : tuple
        What f is called with besides.
    keywords : dict
        Likewise, by name.
    is_central : bool
        Whether there are two values for each entry, and the result is linear in their differences
        and depends on nothing else.
    """

    before: int
    block: tuple[bool, ...]
    after: int
    order: Any
    passes: str
    further: tuple[Any, ...]
    keywords: dict[str, Any]
    is_central: bool

    def entries(self, shape: tuple[int, ...]) -> list[int]:
        """Return the entries in the order in which they are visited, counted along rows."""
        index = np.arange(int(np.prod(shape))).reshape(shape)
        found: list[int] = index.ravel(self.order).tolist()
        return found

    def calls(self, shape: tuple[int, ...]) -> Iterator[int]:
        """Yield for each call of f the entry that is nudged, or -1."""
        yield from itertools.repeat(-1, self.before)
        for entry in self.entries(shape):
            for is_nudged in self.block:
                yield entry if is_nudged else -1
        yield from itertools.repeat(-1, self.after)


#: The book's own loop: x is nudged in place, up and down, entry by entry.
_THE_BOOKS = _Rule(
    before=0, block=(True, True), after=0, order="C", passes="x", further=(), keywords={},
    is_central=True,
)  # fmt: skip


class _Probe:
    """One run of a loop on a small array, with made-up values."""

    def __init__(self, call: _Call, x: NDArray[Any], values: Callable[[int], Any]) -> None:
        self.x, self.values = x, values
        self.kept = x.copy()
        self.outside = [*call.args, *call.keywords.values()]
        self.entries: list[int] = []
        self.points: list[Any] = []
        #: What f is called with, at every call alike.
        self.passes: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self.result = call.with_(_StandIn(self._noted), x)
        if len(_moved(x, self.kept)) or self.passes is None:
            raise _Left(_NOT_RESTORED)

    def _noted(self, *args: Any, **keywords: Any) -> Any:
        point, passes, further = self.x, "nothing", args
        if args and args[0] is self.x:
            passes, further = "x", args[1:]
        elif args and self._is_a_copy(args[0]):
            point, passes, further = args[0], "copy", args[1:]
        if self.passes is None:
            self.passes = passes, further, keywords
        elif _identity(passes, further, keywords) != _identity(*self.passes):
            raise _Left(_NOT_ALIKE)
        if len(self.points) >= _CALLS * self.x.size or point.dtype != self.x.dtype:
            raise _Left("it is none of differentiation that is known")
        moved = _moved(point, self.kept)
        if len(moved) > 1:
            raise _Left("it moves more than one entry at a time")
        self.entries.append(int(moved[0]) if len(moved) else -1)
        self.points.append(point.flat[moved[0]] if len(moved) else None)
        return self.values(len(self.points) - 1)

    def _is_a_copy(self, value: Any) -> bool:
        if type(value) is not np.ndarray or any(value is other for other in self.outside):
            return False
        if np.shares_memory(value, self.x):
            raise _Left("it calls f with a view of x")
        return bool(value.shape == self.x.shape)


def _moved(point: NDArray[Any], kept: NDArray[Any]) -> NDArray[Any]:
    """Return the entries that are elsewhere; the rounding of ``x += h`` and ``x -= h`` is not."""
    distance = np.abs(point - kept).reshape(-1)
    rounding = 8 * np.finfo(kept.dtype).eps * (np.abs(kept).reshape(-1) + distance.max())
    return np.flatnonzero(distance > rounding)


def _identity(passes: str, further: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return what is equal if f is called with the same objects, which are still there."""
    return passes, [*map(id, further)], {name: id(value) for name, value in keywords.items()}


def _rule_of(call: _Call) -> _Rule:
    """Find out how a loop goes over its array; `_Left` if it is no differentiation."""
    x = call.args[call.x]
    last, others = _SMALL.get(x.ndim, (2, 2))
    small = x[tuple(slice(0, last if a == x.ndim - 1 else others) for a in range(x.ndim))]
    rng = np.random.default_rng(0)
    script = rng.standard_normal((2, _CALLS * small.size))
    scripts = [*script, script.sum(axis=0), np.ones(script.shape[1])]
    with np.errstate(all="ignore"):  # of made-up numbers, nobody is to be told
        probes = [_Probe(call, small.copy("K"), lambda i, s=s: s[i]) for s in scripts]  # type: ignore[misc]
    first = probes[0]
    if any(p.entries != first.entries or p.points != first.points for p in probes):
        raise _Left("its points depend on the values of f")
    assert first.passes is not None
    if any(_identity(*p.passes) != _identity(*first.passes) for p in probes if p.passes):
        raise _Left(_NOT_ALIKE)
    visited = [entry for entry in first.entries if entry >= 0]
    order = list(dict.fromkeys(visited))
    index = np.arange(small.size).reshape(small.shape)
    named: Any = next((o for o in ("C", "F") if order == index.ravel(o).tolist()), "")
    if not named:
        raise _Left("it does not visit every entry in turn")
    for before in range(first.entries.index(visited[0]) + 1):
        body = len(first.entries) - before - (len(first.entries) - before) % small.size
        length = body // small.size
        block = tuple(entry >= 0 for entry in first.entries[before : before + length])
        after = len(first.entries) - before - body
        rule = _Rule(before, block, after, named, *first.passes, is_central=False)
        if list(rule.calls(small.shape)) == first.entries:
            if block != (True, True):
                return rule
            # The two values of an entry are equal, those of different entries and at x are not.
            given = {e: i for i, e in enumerate(first.entries) if e >= 0}
            equal = [script[0][given.get(e, i)] for i, e in enumerate(first.entries)]
            with np.errstate(all="ignore"):
                none = _Probe(call, small.copy("K"), equal.__getitem__).result
            is_central = _are_linear([*(p.result for p in probes[:3]), none])
            return rule._replace(is_central=is_central)
    raise _Left("it does not treat all entries alike")


def _are_linear(results: list[Any]) -> bool:
    """Return whether results for a script, another, their sum, and equal pairs say so."""
    if all(type(r) is tuple for r in results):  # what a part of a function leaves in its names
        columns = [list(column) for column in zip(*results, strict=True)]
        return all(_are_linear(c) or all(v is c[0] for v in c) for c in columns)
    if not all(isinstance(r, np.ndarray) and r.dtype.kind == "f" for r in results):
        return False
    one, other, both, none = results
    scale = np.abs(one).max() + np.abs(other).max()
    tolerance = 1e-3 if one.dtype == np.float32 else 1e-9
    return bool(
        np.isfinite(scale)
        and np.abs(one + other - both).max() <= tolerance * scale
        and np.abs(none).max() <= tolerance * scale
    )


# ------------------------------------------------------------------------------------ dispatching


class _Record:
    """What is said of a loop and a function at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.ways: dict[str, list[float]] = {}

    def add(self, way: str, took: float, loop: float) -> None:
        """Count a call that took a time, and would have taken another one."""
        total = self.ways.setdefault(way, [0, 0.0, 0.0])
        for i, value in enumerate((1, took, loop)):
            total[i] += value

    def lines(self) -> list[str]:
        """Return a line for each way, or more where it is long."""
        found = []
        for way, (calls, took, loop) in self.ways.items():
            if way.startswith("left"):
                if took < _LONG:
                    continue
                text = f"{self.title} {way}"
            else:
                times = loop / max(took, 1e-9)
                text = f"{self.title} {way}, {times:,.{1 if times < 10 else 0}f} times faster"
                if times < 1:
                    text = f"{self.title} {way}, no faster than the loop"
            text += f" ({calls:,.0f} calls)" if calls > 1 else ""
            found += textwrap.wrap(text, 80, subsequent_indent="  ", break_on_hyphens=False)
        return found


#: What is remembered: of loops what is to be said, and how long an evaluation took, and when.
_records: dict[Any, _Record] = {}
_paces: dict[Any, tuple[float, float, str]] = {}
#: How often in a row a part of a function has asked in vain. Asking takes tens of microseconds.
_in_vain: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()
_recognition: Any = None


class _Running(threading.local):
    """Of one thread: the loops that run, and the result that is to be fetched."""

    def __init__(self) -> None:
        #: When each began, what it is, what to call it, and why it is left as it is.
        self.loops: list[tuple[float, Any, str, str]] = []
        self.result: Any = None


_running = _Running()
_NO_LOOP = 0.0, None, "", ""


def computed(name: str, quiet: str = "") -> bool:
    """Compute the result of the function that asks, if that is faster and nobody could tell.

    Parameters
    ----------
    name : str
        Its parameter that is the function to be differentiated.
    quiet : str, optional
        Its body without reports of its progress, if there are any.

    Returns
    -------
    bool
        Whether `result` returns it. If not, the function goes on, and calls `ended` at its end.
    """
    frame = _caller()
    args, keywords = _arguments(frame)
    arrays = [value for value in (*args, *keywords.values()) if isinstance(value, np.ndarray)]
    return _answer(
        frame, frame.f_code, frame.f_locals.get(name), arrays, _calls_of(frame, name, quiet)
    )


def computed_part(function: str, array: str, body: str, quiet: str) -> bool:
    """Compute what a loop within the function that asks leaves in its names.

    Parameters
    ----------
    function, array : str
        What is differentiated, and where, such as ``"self.loss"`` and ``"self.params[key]"``.
    body : str
        The loop and the statements that prepare it, with ``_f`` and ``_x`` in the places of both.
    quiet : str
        The same without reports of its progress, if there are any.

    Returns
    -------
    bool
        Whether `result` returns what it leaves. If not, the loop runs, and `ended` is called.
    """
    if _in_vain[body] >= _PATIENCE:
        _running.loops.append(_NO_LOOP)
        return False
    frame = _caller()
    try:
        f, x = (_looked_up(_expression(text), frame) for text in (function, array))
    except (_Left, *_ERRORS):
        f, x = None, None
    if _running.loops:
        _, key, title, _ = _running.loops[-1]
        if title == _title(frame.f_code, f) and key[0] is not frame.f_code:
            f = None  # the loop around this one is left as it is, and will say why
    arrays = [x] if isinstance(x, np.ndarray) else []
    is_computed = _answer(frame, body, f, arrays, _calls_of_part(frame, f, x, body, quiet))
    _in_vain[body] = 0 if is_computed else _in_vain[body] + 1
    return is_computed


@functools.lru_cache(256)
def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _looked_up(node: ast.expr, frame: types.FrameType) -> Any:
    """Evaluate a name, an attribute or an item, without running any code of the reader's."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return (frame.f_locals if node.id in frame.f_locals else frame.f_globals)[node.id]
    if isinstance(node, ast.Attribute):
        holder = _looked_up(node.value, frame)
        found = inspect.getattr_static(holder, node.attr)
        is_method = isinstance(found, types.FunctionType | staticmethod | classmethod)
        if is_method or not hasattr(type(found), "__get__"):
            return getattr(holder, node.attr)
    if isinstance(node, ast.Subscript):
        holder = _looked_up(node.value, frame)
        if type(holder) in (dict, list, tuple, collections.OrderedDict):
            return holder[_looked_up(node.slice, frame)]
    raise _Left("it is not understood")


def _caller() -> types.FrameType:
    """Return the frame of the reader's function that asks."""
    here = inspect.currentframe()
    frame = here and here.f_back and here.f_back.f_back
    assert frame is not None
    return frame


def _answer(
    frame: types.FrameType,
    loop: types.CodeType | str,
    f: Any,
    arrays: list[NDArray[Any]],
    calls: Iterator[_Call],
) -> bool:
    """Compute the result of a loop, or note why it is left as it is."""
    if type(f) is _StandIn or not arrays or not callable(f):
        _running.loops.append(_NO_LOOP)
        return False
    shapes = tuple(value.shape for value in arrays if _is_array(value))
    key = loop, getattr(getattr(f, "__func__", f), "__code__", type(f)), shapes
    why = "its array is small, or not of float32 or float64"
    if shapes:
        largest = max(value.size for value in arrays if _is_array(value))
        why = _compute(calls, f, key, largest, _title(frame.f_code, f))
    if why:
        _running.loops.append((time.perf_counter(), key, _title(frame.f_code, f), why))
    return not why


def result() -> Any:
    """Return what `computed` has computed for this thread."""
    found, _running.result = _running.result, None
    return found


def ended() -> None:
    """Note how long a loop took that was left as it is."""
    if not _running.loops:
        return
    began, key, title, why = _running.loops.pop()
    if why and (took := time.perf_counter() - began) >= _MOMENT:
        _note(key, title, f"left to your loop: {why}", took, took)


def central_differences(f: Any, x: NDArray[Any], h: float) -> Any:
    """Compute the gradient of f at x by central differences, in the fastest way there is.

    It is for the book's own loop, whose rule is known.

    Parameters
    ----------
    f : callable
        Takes x, returns a number.
    x : ndarray of float32 or float64
        Moved in place and restored.
    h : float

    Returns
    -------
    ndarray of x's shape and dtype, or None
        None if f has to be evaluated in a loop; `ended` has to be called at its end.
    """
    key: Any = (central_differences, getattr(getattr(f, "__func__", f), "__code__", type(f)))
    start = time.perf_counter()
    try:
        loop = _Loop(_Call(central_differences, [f, x, h], {}, 0, 1), _THE_BOOKS)
        points = np.stack([x.reshape(-1) + h, x.reshape(-1) - h])
        # A network that is known is not evaluated at x: it is checked where x is moved.
        known = _recognition is not None and _recognition.knows(f)
        with loop.records:
            found = _recognised(loop, h) if known else None
            if found is None:
                began = time.perf_counter()
                here = one_number(f(x))
                pace = time.perf_counter() - began
                if 2 * x.size * pace < _MOMENT:
                    raise _Left("")
                found = None if known else _recognised(loop, h, here)
            out = np.empty_like(x)
            if found is not None:
                out[...], pace, way = found[0], found[2], f"by the compiled kernels, {found[1]}"
            else:
                upper, lower = _at_once(loop, points, pace)
                out[...], way = ((upper - lower) / (2 * h)).reshape(x.shape), "all points at once"
            _at_last(loop, points)
    except (_Left, *_ERRORS) as reason:
        why = str(reason).rstrip(".")
        _running.loops.append((start, key, _name(f), why))
        return None
    _note(key, _name(f), way, time.perf_counter() - start, 2 * x.size * pace)
    return out


def lines() -> list[str]:
    """Return what was computed how, and what was left to its loop and why.

    Returns
    -------
    list of str
        At most 80 characters each; none of loops that took no time.
    """
    with _lock:
        found = [line for record in _records.values() for line in record.lines()]
    return list(dict.fromkeys(found))


def forget() -> None:
    """Forget what was computed, before another script runs."""
    global _recognition
    with _lock:
        _records.clear()
        _paces.clear()
        _in_vain.clear()
        _recognition = None


def _note(key: Any, title: str, way: str, took: float, loop: float) -> None:
    with _lock:
        _records.setdefault(key[:2], _Record(title)).add(way, took, loop)


def _title(code: types.CodeType, f: Any) -> str:
    of = str(getattr(f, "__qualname__", type(f).__name__)).replace(".<locals>", "")
    of = of.replace("<lambda>", "a lambda").rpartition(".")[2]
    return f"{os.path.basename(code.co_filename)}: {code.co_name} of {of}:"


def _name(f: Any) -> str:
    """Return what to call a function whose gradient the book's loop computes."""
    name = str(getattr(f, "__qualname__", type(f).__name__)).partition(".<locals>")[0]
    return f"numerical_gradient in {name}:".replace("in <lambda>", "of a lambda")


def _compute(calls: Iterator[_Call], f: Any, key: Any, largest: int, title: str) -> str:
    """Compute the result and return "", or return why the loop is left as it is."""
    pace = _paces.get(key)
    start = time.perf_counter()
    is_known = pace is not None and start - pace[1] < (_LEFT_FOR if pace[2] else _BELIEVED)
    if pace is not None and is_known and (pace[2] or 2 * pace[0] * largest < _MOMENT):
        return pace[2] or "it takes no time"
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return "a debugger or a profiler is watching"
    try:
        loop = _understood(calls, f)
        with loop.records:
            began = time.perf_counter()
            here = loop.at_x()
            seconds = time.perf_counter() - began
            if seconds * loop.size >= _MOMENT:  # the first evaluation may have been a slow one
                began = time.perf_counter()
                here = loop.at_x()
                seconds = time.perf_counter() - began
            _paces[key] = seconds, began, ""
            if seconds * loop.size < _MOMENT:
                return "it takes no time"
            way = _by(loop, here, seconds)
    except (_Left, *_ERRORS) as reason:
        why = re.sub(r"(:\d+)(:\d+){2} ", r"\1 ", str(reason).rstrip(".")) or type(reason).__name__
        _paces[key] = 0.0, time.perf_counter(), why
        return why
    _note(key, title, way, time.perf_counter() - start, seconds * loop.size)
    return ""


class _Loop:
    """A call of a loop that is understood, and its function."""

    def __init__(self, call: _Call, rule: _Rule) -> None:
        self.call, self.rule, self.x = call, rule, call.args[call.x]
        self.f, self.further = call.args[call.f], rule.further
        if rule.passes == "nothing":
            self.f, self.further = _without_x(self.f, *rule.further, **rule.keywords), ()
        elif rule.keywords:
            self.f = functools.partial(self.f, **rule.keywords)
        self.reading = reading.read(self.f, self.x, *self.further)
        self.records = Records(self.reading)
        #: How many times it calls f.
        self.size = rule.before + rule.after + len(rule.block) * self.x.size
        is_long_enough = self.records and self.size > 4 * FORGOTTEN
        if self.reading.obstacle and not is_long_enough:
            raise _Left(self.reading.obstacle)

    def at_x(self) -> Any:
        """Evaluate f as the loop does."""
        return self.f(self.x.copy() if self.rule.passes == "copy" else self.x, *self.further)

    def run(self, call: _Call, value: Callable[[int, Any], Any]) -> Any:
        """Run the loop with values for f by the entry that is nudged and by where it is."""
        x, passes, calls = self.x, self.rule.passes, self.rule.calls(self.x.shape)

        def returned(*args: Any, **_: Any) -> Any:
            entry = next(calls, None)
            point = x if passes == "nothing" else args[0]
            if entry is None or point.shape != x.shape or (point is x) == (passes == "copy"):
                raise _Left(_ANOTHER_WAY)
            return value(entry, point.item(entry) if entry >= 0 else None)

        found = call.with_(_StandIn(returned), x)
        if next(calls, None) is not None:
            raise _Left(_ANOTHER_WAY)
        return found


def _without_x(f: Callable[..., Any], *args: Any, **keywords: Any) -> Callable[[Any], Any]:
    """Return a function of x of one that finds x elsewhere, read as one of the reader's."""
    bound = functools.partial(f, *args, **keywords)

    def called(_: Any) -> Any:
        return bound()

    called.__module__ = str(getattr(f, "__module__", "__main__"))
    return called


def _understood(calls: Iterator[_Call], f: Any) -> _Loop:
    """Return the loop, after reading it and its function."""
    failure = _Left("it is not understood")
    for call in calls:
        try:
            if obstacle := reading.read_loop(call.loop, call.args, call.keywords, call.f, call.x):
                raise _Left(obstacle)
            rule = _rule_of(call)
        except _Left as reason:
            failure = reason
            continue
        except _ERRORS:
            continue
        return _Loop(call, rule)
    raise failure


def _by(loop: _Loop, here: Any, seconds: float) -> str:
    """Compute the result of a loop whose f takes so long, and return in which way."""
    like = _like(here)
    kept = loop.x.copy()
    try:
        points = _points(loop, like)
        loop.x[...] = kept
        # It takes a moment until the kernels are there.
        is_worth_it = seconds * loop.size >= _LONG or _recognition is not None
        found = _compiled(loop, points, here) if is_worth_it else None
        if found is not None:
            slopes, network, _ = found
            changes = slopes.reshape(-1) * (points[0] - points[1]) / 2
            values = float(here) + np.stack([changes, -changes])
            way = f"by the compiled kernels, {network}"
        else:
            values, way = _at_once(loop, points, seconds), "all points at once"
        result = _replayed(loop, loop.call, points, values, here, like)
        if loop.x.tobytes() != kept.tobytes():
            _check_rounding(loop, kept, float(here))
        _at_last(loop, points)
        if loop.call.loud is not None:  # now that nothing can go wrong any more
            loop.x[...] = kept
            result = _replayed(loop, loop.call.loud, points, values, here, like)
    except BaseException:
        loop.x[...] = kept
        raise
    _running.result = result
    return way


def _check_rounding(loop: _Loop, kept: NDArray[Any], here: float) -> None:
    """Check that f does not notice the rounding that ``x += h`` and ``x -= h`` have left in x."""
    after = loop.x.copy()
    if len(_moved(after, kept)):
        raise _Left(_NOT_RESTORED)
    for restored in (after.size // 2, after.size):
        loop.x.flat[restored:] = kept.flat[restored:]
        if abs(float(one_number(loop.at_x())) - here) > 64 * _EPS * abs(here):
            raise _Left(_NOT_RESTORED)
        loop.x[...] = after


def _like(here: Any) -> Callable[[Any], Any]:
    """Return what makes a value as f returns it."""
    if type(here) in (float, np.float64, np.float32):
        return type(here)
    if type(here) is np.ndarray and here.size == 1 and here.dtype.kind == "f":
        return lambda value: np.full_like(here, value)
    raise _Left("f does not return one real number")


def _points(loop: _Loop, like: Callable[[Any], Any]) -> NDArray[Any]:
    """Return the values that the entries take: one row for each call with a nudged entry."""
    found: list[Any] = []
    kept = loop.x.ravel().tolist()

    def noted(entry: int, at: Any) -> Any:
        if entry >= 0:
            found.append(at)
            if at == kept[entry]:
                raise _Left(_ANOTHER_WAY)
        return like(0.0)

    with np.errstate(all="ignore"):
        loop.run(loop.call, noted)
    table = np.array(found, loop.x.dtype).reshape(loop.x.size, sum(loop.rule.block)).T
    points = np.empty_like(table)
    points[:, loop.rule.entries(loop.x.shape)] = table
    return points


def _compiled(loop: _Loop, points: NDArray[Any], here: Any) -> Any:
    """Return the slopes of a recognised network's loss, and what it is, or None."""
    rule, x = loop.rule, loop.x
    # Only the difference of two values is known, which is enough if nothing else comes of them.
    is_enough = rule.is_central and not loop.further and loop.call.loud is None
    if not (is_enough and rule.passes != "copy" and x.flags.c_contiguous):
        return None
    nearest = int(np.argmin(np.abs(x)))
    h = float(f"{abs(float(points[0].flat[nearest] - points[1].flat[nearest])) / 2:.10g}")
    flat = x.reshape(-1)
    rounding = 4 * np.finfo(x.dtype).eps * (np.abs(flat) + h)
    sign = 1 if points[0, 0] > points[1, 0] else -1
    if h <= 0 or not all(
        (np.abs(points[i] - flat - side * h) <= rounding).all()
        for i, side in enumerate((sign, -sign))
    ):
        return None
    return _recognised(loop, h, float(here))


def _recognised(loop: _Loop, h: float, here: float | None = None) -> Any:
    """Return the gradient of a recognised network's loss, what it is, and its pace, or None."""
    x = loop.x
    if x.dtype != np.float64 or loop.records:  # no network that is known keeps records
        return None
    from fastgrad.book import recognition  # which needs Numba

    global _recognition
    with _lock:
        if _recognition is None:
            _recognition = recognition.Recognition()
    try:
        return _recognition.gradient(loop.f, x, h, loop.reading.objects, here)
    except recognition.NotRecognised:
        return None


def _at_once(loop: _Loop, points: NDArray[Any], pace: float) -> NDArray[Any]:
    """Return the values of f, evaluated at many points at once; `_Left` if that is no faster."""
    from fastgrad.numdiff import batched  # which a script of cheap loops does not need

    x = loop.x.copy() if loop.rule.passes == "copy" else loop.x
    entries = np.arange(x.size, dtype=np.int64)
    turns = entries.reshape(x.shape).transpose(memory_order(x)).ravel()
    values = np.empty(points.shape)
    few, many = _TRIED
    tried = min(x.size, max(few, min(many, x.size // 16)))
    try:
        before = 0.0  # what a call takes for one entry: the most of it is needed for any number
        for part in (slice(0, 1), slice(1, tried), slice(tried, x.size)):
            if part.start == x.size:
                break
            began = time.perf_counter()
            there = points[:, turns[part]].astype(np.float64)
            values[:, turns[part]] = batched.evaluate(
                loop.f, x, x, entries[part], there, loop.further, leaves_records=True
            )  # fmt: skip
            took = time.perf_counter() - began
            if part.start == 1 and took - before > pace * tried * len(points) and tried < x.size:
                raise _Left("all points at once would not be faster")
            before = took
    except batched.NotCarried as reason:
        raise _Left(str(reason)) from reason
    return values


def _replayed(
    loop: _Loop, call: _Call, points: NDArray[Any], values: NDArray[Any], here: Any, like: Any
) -> Any:
    """Run the loop with the values that were computed; return what it returns."""
    turns = loop.rule.entries(loop.x.shape)
    expected = iter(points[:, turns].T.ravel().tolist())
    given = iter(values[:, turns].T.ravel().tolist())

    def returned(entry: int, at: Any) -> Any:
        if entry < 0:
            return here
        if at != next(expected):
            raise _Left("its points depend on the values of f")
        return like(next(given))

    return loop.run(call, returned)


def _at_last(loop: _Loop, points: NDArray[Any]) -> None:
    """Evaluate f where the loop does so last, for what it stores and what it records."""
    visits = [(-1, 0)] * loop.rule.before
    for entry in loop.rule.entries(loop.x.shape)[-FORGOTTEN:]:
        rows = itertools.count()
        visits += [(entry, next(rows)) if is_nudged else (-1, 0) for is_nudged in loop.rule.block]
    visits += [(-1, 0)] * loop.rule.after

    def evaluate(entry: int, row: int) -> Any:
        if entry < 0:
            return one_number(loop.at_x())
        kept = loop.x.flat[entry]
        try:
            loop.x.flat[entry] = points[row, entry]
            return one_number(loop.at_x())
        finally:
            loop.x.flat[entry] = kept

    if loop.records:
        last = [functools.partial(evaluate, *visit) for visit in visits[-FORGOTTEN:]]
        if not loop.records.are_forgotten(last):
            raise _Left(loop.reading.obstacle)
        loop.records.keep()
    elif loop.reading.stores:
        evaluate(*visits[-1])
