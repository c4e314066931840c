"""The reader's own loops of numerical differentiation, whatever their names.

What a loop computes is what its author wrote; only the values of f come from elsewhere. A function
that may be such a loop asks `computed` first, see `fastgrad.book.loop_syntax`. Where f is slow
enough for it to matter, and the code of both shows that nobody could tell, the author's code runs
three times:

1. on a small array, with numbers made up for f: the points must not depend on the values, each must
   differ from x in one entry at most, every entry must get as many, and x must be restored;
2. on a copy of x, with f replaced by a function that notes the points;
3. on that copy again, with f replaced by a function that returns the values at these points.

In between, f is evaluated at all points at once, or is recognised as a compiled network's loss. So
the result has the type, the memory order and the rounding of the author's formula, whatever it is.
Anything unexpected means that the function goes on as if nothing had been asked.
"""

from __future__ import annotations

import inspect
import itertools
import os
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

__all__ = ["central_differences", "computed", "ended", "forget", "lines", "result"]

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
#: Calls of f for each entry of a small array before it is no differentiation.
_CALLS = 16
_NOT_RESTORED = "it does not restore x to the last bit"
#: What a function raises of itself; all else, such as a timeout of the reader's, goes through.
_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    Warning,  # where warnings are errors
    np.linalg.LinAlgError,
)

# --------------------------------------------------------------------------------- what is called


class _Left(Exception):  # noqa: N818 - no error
    """Why a loop is left as it is."""


class _Call(NamedTuple):
    """A call of a loop: a twin of its function, its arguments, and which are f and x."""

    loop: types.FunctionType
    args: list[Any]
    keywords: dict[str, Any]
    f: int
    x: int

    def with_(self, f: Callable[..., Any], x: NDArray[Any]) -> Any:
        """Call the loop with another function and another array."""
        args = list(self.args)
        args[self.f], args[self.x] = f, x
        return self.loop(*args, **self.keywords)


class _StandIn:
    """A function in the place of f: `computed` lets the loop run with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _call_of(frame: types.FrameType, name: str) -> Iterator[_Call]:
    """Yield the call that a frame is, once for each argument that can be x."""
    code, given = frame.f_code, frame.f_locals
    count, more = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames
    args = [given[n] for n in names[:count]]
    keywords = {n: given[n] for n in names[count:more]}
    if code.co_flags & 4:
        args += given[names[more]]
        more += 1
    if code.co_flags & 8:
        keywords |= given[names[more]]
    # The cells themselves are not to be had; a loop that assigns to them is none that is harmless.
    cells = tuple(
        types.CellType(given[n]) if n in given else types.CellType() for n in code.co_freevars
    )
    twin = types.FunctionType(code, frame.f_globals, code.co_name, None, cells)
    twin.__qualname__ = code.co_qualname
    for i, value in enumerate(args):
        if _is_array(value):
            yield _Call(twin, args, keywords, names.index(name), i)


def _is_array(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.size >= _FEW
        and value.dtype in (np.float32, np.float64)
        and value.flags.c_contiguous
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
        What f is called with: x itself, nudged in place; a nudged copy; or nothing.
    further : tuple
        What f is called with besides.
    is_linear : bool
        Whether the result is linear in the values, and none for equal ones.
    """

    before: int
    block: tuple[bool, ...]
    after: int
    order: Any
    passes: str
    further: tuple[Any, ...]
    is_linear: bool

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
    before=0, block=(True, True), after=0, order="C", passes="x", further=(), is_linear=True
)


class _Probe:
    """One run of a loop on a small array, with made-up values."""

    def __init__(self, call: _Call, x: NDArray[Any], values: Callable[[int], Any]) -> None:
        self.x, self.values = x, values
        self.kept = x.copy()
        self.entries: list[int] = []
        self.points: list[Any] = []
        self.seen: set[tuple[str, tuple[int, ...]]] = set()
        self.further: tuple[Any, ...] = ()
        self.result = call.with_(_StandIn(self._noted), x)
        if x.tobytes() != self.kept.tobytes():
            raise _Left(_NOT_RESTORED)

    def _noted(self, *args: Any) -> Any:
        point, self.further = (args[0], args[1:]) if args else (self.x, ())
        if type(point) is not np.ndarray or point.shape != self.x.shape:
            raise _Left("it calls f with something else than x")
        if point is not self.x and np.shares_memory(point, self.x):
            raise _Left("it calls f with a view of x")
        if len(self.points) >= _CALLS * self.x.size or point.dtype != self.x.dtype:
            raise _Left("it is none of differentiation that is known")
        passes = "nothing" if not args else "x" if point is self.x else "copy"
        self.seen.add((passes, tuple(map(id, self.further))))
        changed = np.flatnonzero((point != self.kept).reshape(-1))
        if len(changed) > 1:
            raise _Left("it moves more than one entry at a time")
        self.entries.append(int(changed[0]) if len(changed) else -1)
        self.points.append(point.flat[changed[0]] if len(changed) else None)
        return self.values(len(self.points) - 1)


def _rule_of(call: _Call) -> _Rule:
    """Find out how a loop goes over its array; `_Left` if it is no differentiation."""
    x = call.args[call.x]
    last, others = _SMALL.get(x.ndim, (2, 2))
    small = x[tuple(slice(0, last if a == x.ndim - 1 else others) for a in range(x.ndim))]
    rng = np.random.default_rng(0)
    script = rng.standard_normal((2, _CALLS * small.size))
    scripts = [*script, script.sum(axis=0), np.ones(script.shape[1])]
    probes = [_Probe(call, small.copy(), lambda i, s=s: s[i]) for s in scripts]  # type: ignore[misc]
    first = probes[0]
    if any(p.entries != first.entries or p.points != first.points for p in probes):
        raise _Left("its points depend on the values of f")
    if any(p.seen != first.seen for p in probes) or len(first.seen) != 1:
        raise _Left("it does not always call f alike")
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
        rule = _Rule(
            before, block, after, named, next(iter(first.seen))[0], first.further,
            _are_linear([p.result for p in probes]),
        )  # fmt: skip
        if list(rule.calls(small.shape)) == first.entries:
            return rule
    raise _Left("it does not treat all entries alike")


def _are_linear(results: list[Any]) -> bool:
    """Return whether results for a script, another, their sum, and equal numbers say so."""
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
_lock = threading.Lock()
_recognition: Any = None


class _Running(threading.local):
    """Of one thread: the loops that run, and the result that is to be fetched."""

    def __init__(self) -> None:
        #: When each began, what it is, its f, and why it is left as it is.
        self.loops: list[tuple[float, Any, Any, str]] = []
        self.result: Any = None


_running = _Running()
_NO_LOOP = 0.0, None, None, ""


def computed(name: str) -> bool:
    """Compute the result of the function that asks, if that is faster and nobody could tell.

    Parameters
    ----------
    name : str
        Its parameter that is the function to be differentiated.

    Returns
    -------
    bool
        Whether `result` returns it. If not, the function goes on, and calls `ended` at its end.
    """
    here = inspect.currentframe()
    frame = here and here.f_back
    assert frame is not None
    given = frame.f_locals
    f = given.get(name)
    shapes = tuple(value.shape for value in given.values() if _is_array(value))
    arrays = [value for value in given.values() if isinstance(value, np.ndarray)]
    if type(f) is _StandIn or not arrays or not callable(f):
        _running.loops.append(_NO_LOOP)
        return False
    key = frame.f_code, getattr(getattr(f, "__func__", f), "__code__", type(f)), shapes
    why = "its array is small, not contiguous, or not of float32 or float64"
    if shapes:
        why = _compute(frame, name, f, key)
    if why:
        _running.loops.append((time.perf_counter(), key, f, why))
    return not why


def result() -> Any:
    """Return what `computed` has computed for this thread."""
    found, _running.result = _running.result, None
    return found


def ended() -> None:
    """Note how long a loop took that was left as it is."""
    if not _running.loops:
        return
    began, key, f, why = _running.loops.pop()
    if why and (took := time.perf_counter() - began) >= _MOMENT:
        title = _name(f) if key[0] is central_differences else _title(key[0], f)
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
        read = reading.read(f, x)
        if read.obstacle:
            raise _Left(read.obstacle)
        began = time.perf_counter()
        here = one_number(f(x))
        pace = time.perf_counter() - began
        # Of a network that is known, the small arrays are computed with the large ones.
        is_cheap = 2 * x.size * pace < _MOMENT
        if is_cheap and (_recognition is None or not _recognition.knows(f)):
            raise _Left("")
        out = np.empty_like(x)
        found = _recognised(f, x, h, here)
        if found is None and is_cheap:
            raise _Left("")
        if found is not None:
            out[...], way = found[0], f"by the compiled kernels, {found[1]}"
        else:
            flat = x.reshape(-1)
            points = np.stack([flat + h, flat - h])
            upper, lower = _at_once(f, x, _THE_BOOKS, points, pace)
            out[...], way = ((upper - lower) / (2 * h)).reshape(x.shape), "all points at once"
        if read.stores:
            _at_last(f, x, _THE_BOOKS, np.stack([x.ravel() - h]))
    except (_Left, *_ERRORS) as reason:
        why = str(reason).rstrip(".")
        _running.loops.append((start, key, f, why))
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


def _compute(frame: types.FrameType, name: str, f: Any, key: Any) -> str:
    """Compute the result and return "", or return why the loop is left as it is."""
    pace = _paces.get(key)
    start = time.perf_counter()
    if pace is not None and start - pace[1] < (_LEFT_FOR if pace[2] else _BELIEVED):
        largest = max(v.size for v in frame.f_locals.values() if _is_array(v))
        if pace[2] or 2 * pace[0] * largest < _MOMENT:
            return pace[2] or "it takes no time"
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return "a debugger or a profiler is watching"
    try:
        call, rule, is_stored = _understood(frame, name, f)
    except (_Left, *_ERRORS) as reason:
        why = str(reason) if isinstance(reason, _Left) else "it is not understood"
        _paces[key] = 0.0, time.perf_counter(), why
        return why
    x = call.args[call.x]
    try:
        began = time.perf_counter()
        here = _at_x(f, x, rule)
        seconds = time.perf_counter() - began
        calls = rule.before + rule.after + len(rule.block) * x.size
        if seconds * calls >= _MOMENT:  # the first evaluation may have been a slow one
            began = time.perf_counter()
            here = _at_x(f, x, rule)
            seconds = time.perf_counter() - began
        _paces[key] = seconds, began, ""
        loop = seconds * calls
        if loop < _MOMENT:
            return "it takes no time"
        way = _by(call, rule, here, is_stored, loop)
    except (_Left, *_ERRORS) as reason:
        why = str(reason).rstrip(".") or type(reason).__name__
        _paces[key] = 0.0, time.perf_counter(), why
        return why
    _note(key, _title(frame.f_code, f), way, time.perf_counter() - start, loop)
    return ""


def _understood(frame: types.FrameType, name: str, f: Any) -> tuple[_Call, _Rule, bool]:
    """Return the call, its rule, and whether f stores anything, after reading both."""
    failure = _Left("it is not understood")
    for call in _call_of(frame, name):
        try:
            if obstacle := reading.read_loop(call.loop, call.args, call.keywords, call.f, call.x):
                raise _Left(obstacle)
            rule = _rule_of(call)
        except _Left as reason:
            failure = reason
            continue
        args = () if rule.passes == "nothing" else (call.args[call.x], *rule.further)
        read = reading.read(f, *args)
        if read.obstacle:
            raise _Left(read.obstacle)
        return call, rule, read.stores
    raise failure


def _at_x(f: Any, x: NDArray[Any], rule: _Rule) -> Any:
    """Evaluate f as the loop does."""
    if rule.passes == "nothing":
        return f()
    return f(x.copy() if rule.passes == "copy" else x, *rule.further)


def _by(call: _Call, rule: _Rule, here: Any, is_stored: bool, seconds: float) -> str:
    """Compute the result of a loop that would take so long, and return in which way."""
    f, x = call.args[call.f], call.args[call.x]
    like = _like(here)
    points = _points(call, rule)
    pace = seconds / (rule.before + rule.after + len(rule.block) * x.size)
    # It takes a moment until the kernels are there.
    is_worth_it = seconds >= _LONG or _recognition is not None
    found = _compiled(f, x, rule, points, here) if is_worth_it else None
    if found is not None:
        slopes, network = found
        values = slopes.reshape(-1) * (points[0] - points[1]) / 2
        values, way = np.stack([values, -values]), f"by the compiled kernels, {network}"
    else:
        values, way = _at_once(f, x, rule, points, pace), "all points at once"
    _running.result = _replayed(call, rule, points, values, here, like)
    if is_stored:
        _at_last(f, x, rule, points)
    return way


def _like(here: Any) -> Callable[[Any], Any]:
    """Return what makes a value as f returns it."""
    if type(here) in (float, np.float64, np.float32):
        return type(here)
    if type(here) is np.ndarray and here.size == 1 and here.dtype.kind == "f":
        return lambda value: np.full_like(here, value)
    raise _Left("f does not return one real number")


def _points(call: _Call, rule: _Rule) -> NDArray[Any]:
    """Return the values that the entries take: one row for each call with a nudged entry."""
    x = call.args[call.x]
    copy = x.copy()
    calls = rule.calls(x.shape)
    found: list[Any] = []

    def noted(point: Any = copy, *_: Any) -> float:
        entry = next(calls, None)
        if entry is None or point.shape != x.shape or (rule.passes == "copy") == (point is copy):
            raise _Left("it goes another way over large arrays")
        if entry >= 0:
            found.append(point.item(entry))
        return 0.0

    call.with_(_StandIn(noted), copy)
    if copy.tobytes() != x.tobytes():
        raise _Left(_NOT_RESTORED)
    if next(calls, None) is not None:
        raise _Left("it goes another way over large arrays")
    table = np.array(found, x.dtype).reshape(x.size, sum(rule.block)).T
    points = np.empty_like(table)
    points[:, rule.entries(x.shape)] = table
    return points


def _compiled(f: Any, x: NDArray[Any], rule: _Rule, points: NDArray[Any], here: Any) -> Any:
    """Return the slopes of a recognised network's loss, and what it is, or None."""
    if rule.block != (True, True) or rule.passes != "x" or not rule.is_linear or rule.further:
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
    return _recognised(f, x, h, float(here))


def _recognised(f: Any, x: NDArray[Any], h: float, here: float) -> Any:
    """Return the central differences of a recognised network's loss, and what it is, or None."""
    if x.dtype != np.float64:
        return None
    from fastgrad.book import recognition  # which needs Numba

    global _recognition
    with _lock:
        if _recognition is None:
            _recognition = recognition.Recognition()
    try:
        return _recognition.gradient(f, x, h, here)
    except recognition.NotRecognised:
        return None


def _at_once(
    f: Any, x: NDArray[Any], rule: _Rule, points: NDArray[Any], pace: float
) -> NDArray[Any]:
    """Return the values of f, evaluated at many points at once; `_Left` if that is no faster."""
    from fastgrad.numdiff import batched  # which a script of cheap loops does not need

    array = x.copy() if rule.passes == "copy" else x
    function = f if rule.passes != "nothing" else _without_arguments(f)
    entries = np.arange(x.size, dtype=np.int64)
    values = np.empty(points.shape)
    few, many = _TRIED
    tried = min(x.size, max(few, min(many, x.size // 16)))
    try:
        before = 0.0  # what a call takes for one entry: the most of it is needed for any number
        for part in (slice(0, 1), slice(1, tried), slice(tried, x.size)):
            if part.start == x.size:
                break
            began = time.perf_counter()
            values[:, part] = batched.evaluate(
                function, array, array, entries[part], points[:, part].astype(np.float64),
                rule.further,
            )  # fmt: skip
            took = time.perf_counter() - began
            if part.start == 1 and took - before > pace * tried * len(points) and tried < x.size:
                raise _Left("all points at once would not be faster")
            before = took
    except batched.NotCarried as reason:
        raise _Left(str(reason)) from reason
    return values


def _without_arguments(f: Any) -> Callable[..., Any]:
    """Return a function of one argument that calls f, and is read as one of the reader's."""

    def called(_: Any) -> Any:
        return f()

    called.__module__ = str(getattr(f, "__module__", "__main__"))
    return called


def _replayed(
    call: _Call, rule: _Rule, points: NDArray[Any], values: NDArray[Any], here: Any, like: Any
) -> Any:
    """Run the loop on a copy of x with the values that were computed; return what it returns."""
    x = call.args[call.x]
    copy = x.copy()
    calls = rule.calls(x.shape)
    turns = rule.entries(x.shape)
    expected = iter(points[:, turns].T.ravel().tolist())
    given = iter(values[:, turns].T.ravel().tolist())

    def returned(point: Any = copy, *_: Any) -> Any:
        entry = next(calls)
        if entry < 0:
            return here
        if point.item(entry) != next(expected):
            raise _Left("its points depend on the values of f")
        return like(next(given))

    found = call.with_(_StandIn(returned), copy)
    if copy.tobytes() != x.tobytes():
        raise _Left(_NOT_RESTORED)
    return found if found is not copy else x


def _at_last(f: Any, x: NDArray[Any], rule: _Rule, points: NDArray[Any]) -> None:
    """Evaluate f where the loop does so last, for what layers remember."""
    if rule.after or not rule.block[-1]:
        _at_x(f, x, rule)
        return
    entry = rule.entries(x.shape)[-1]
    kept = x.flat[entry]
    try:
        x.flat[entry] = points[-1, entry]
        _at_x(f, x, rule)
    finally:
        x.flat[entry] = kept
