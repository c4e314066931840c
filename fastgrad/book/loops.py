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
import builtins
import collections
import functools
import inspect
import itertools
import linecache
import math
import os
import re
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgrad.numdiff import reading
from fastgrad.numdiff.objective import one_number
from fastgrad.numdiff.reach import names_in
from fastgrad.numdiff.records import FORGOTTEN, Records
from fastgrad.numdiff.trees import memory_order
from fastgrad.runtime.interrupt import raised_by_a_signal_handler

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
_DEPENDENT = "its points depend on the values of f"
_ANOTHER_WAY = "it goes another way over large arrays"
#: What a function raises of itself, warnings that are errors included. All else goes through.
_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError, Warning,
)  # fmt: skip

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

    loop: Any
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


class _StandIn(functools.partial[Any]):
    """A function in the place of f: `computed` lets the loop run with it."""


def _calls_of(
    frame: types.FrameType, name: str, args: list[Any], keywords: dict[str, Any]
) -> Iterator[_Call]:
    """Yield the call that a frame is, once for each argument that can be x."""
    code, given = frame.f_code, frame.f_locals
    # The cells themselves are not to be had; a loop that assigns to them is none that is harmless.
    cells = tuple(
        types.CellType(given[n]) if n in given else types.CellType() for n in code.co_freevars
    )
    twin = types.FunctionType(code, frame.f_globals, code.co_name, None, cells)
    twin.__qualname__ = code.co_qualname
    f = code.co_varnames.index(name)
    for x in (i for i, value in enumerate(args) if _is_array(value)):
        yield _Call(twin, args, keywords, f, x)


def _call_of_part(frame: types.FrameType, f: Any, x: Any, body: str) -> Iterator[_Call]:
    """Yield the call of a part of the reader's function, with ``_f`` and ``_x`` in its text."""
    code, names = frame.f_code, _names_in(body)
    given = {name: value for name, value in frame.f_locals.items() if name in names}
    part = _compiled_part(
        f"{code.co_filename}:{frame.f_lineno}", code.co_name, body, ("_f", "_x", *given)
    )
    yield _Call(types.FunctionType(part, frame.f_globals), [f, x], given, 0, 1)


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


_parameters = functools.lru_cache(256)(inspect.getargs)


def _arguments(frame: types.FrameType) -> tuple[list[Any], dict[str, Any]]:
    """Return what a function has been called with."""
    given, count = frame.f_locals, frame.f_code.co_argcount
    names, more, more_keywords = _parameters(frame.f_code)
    args = [*(given[name] for name in names[:count]), *(given[more] if more else ())]
    keywords = {name: given[name] for name in names[count:]}
    return args, keywords | (given[more_keywords] if more_keywords else {})


def _is_array(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.size >= _FEW
        and value.dtype in (np.float32, np.float64)
        and value.flags.writeable
    )


# -------------------------------------------------------------------------------- progress reports


def _nothing(*values: Any, **options: Any) -> None:
    return None


def _bar(iterable: Any, *args: Any, **options: Any) -> Any:
    return iterable


def _range(*limits: Any, **options: Any) -> Any:
    return range(*limits)


for _function in (_nothing, _bar, _range):
    _function.__module__ = ""  # so that they are read like the reader's functions
_BARS = {"tqdm": _bar, "trange": _range}


def _silent(value: Any) -> Any:
    """Return what does the same as `print` or a name of tqdm's without a report, or None."""
    if value is print:
        return _nothing
    is_module = isinstance(value, types.ModuleType)
    home = value.__name__ if is_module else getattr(value, "__module__", None)
    if str(home).partition(".")[0] != "tqdm":
        return None
    return types.SimpleNamespace(**_BARS) if is_module else _BARS.get(value.__name__)


def _quiet(call: _Call) -> Iterator[_Call]:
    """Yield the call that does not report its progress, if this one does."""
    loop = call.loop
    known = {**vars(builtins), **loop.__globals__}
    names = names_in(loop.__code__) & known.keys()
    spaces = {name: known[name] for name in names}, call.keywords
    silent, keywords = ({n: s for n, v in space.items() if (s := _silent(v))} for space in spaces)
    if silent or keywords:
        quiet = types.FunctionType(
            loop.__code__, {**loop.__globals__, **silent}, None, None, loop.__closure__
        )
        quiet.__qualname__ = loop.__qualname__
        yield call._replace(loop=quiet, keywords=call.keywords | keywords, loud=call)


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
        What f is called with first: x itself, perturbed in place; a perturbed copy; or neither, so
        that f finds x elsewhere.
    further : tuple
        What f is called with besides.
    keywords : dict
        Likewise, by name.
    is_central : bool
        Whether there are two values for each entry, and the result depends on their differences
        only.
    """

    before: int
    block: tuple[bool, ...]
    after: int
    order: Any
    passes: str
    further: tuple[Any, ...]
    keywords: dict[str, Any]
    is_central: bool

    def entries(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return for each call of f the entry that is elsewhere, counted along rows, or -1."""
        order = np.arange(math.prod(shape)).reshape(shape).ravel(self.order)
        visits = np.where(self.block, order[:, None], -1).ravel()
        return np.pad(visits, (self.before, self.after), constant_values=-1)


#: The book's own loop: x is perturbed in place, up and down, entry by entry.
_THE_BOOKS = _Rule(
    before=0, block=(True, True), after=0, order="C", passes="x", further=(), keywords={},
    is_central=True,
)  # fmt: skip


class _Evaluation(NamedTuple):
    """A call of f by a loop: which entry is elsewhere, or -1, and where; what f is called with."""

    entry: int
    point: Any
    passes: str
    further: tuple[Any, ...]
    keywords: dict[str, Any]

    def identity(self) -> Any:
        """Return what is equal if f is called with the same objects, which are still there."""
        keywords = ((name, id(value)) for name, value in self.keywords.items())
        return self.passes, *map(id, self.further), *keywords


def _probed(
    call: _Call, small: NDArray[Any], values: Callable[[int, int], Any]
) -> tuple[Any, list[_Evaluation]]:
    """Run a loop on a small array, with values made up by the number of the call and the entry."""
    x = small.copy("K")
    found: list[_Evaluation] = []
    outside = [*call.args, *call.keywords.values()]

    def noted(*args: Any, **keywords: Any) -> Any:
        point: Any = args[0] if args else None
        is_new = type(point) is np.ndarray and all(point is not other for other in outside)
        if is_new and point is not x and np.shares_memory(point, x):
            raise _Left("it calls f with a view of x")
        is_a_copy = is_new and point.shape == x.shape
        passes = "x" if point is x else "copy" if is_a_copy else "nothing"
        point, further = (x, args) if passes == "nothing" else (point, args[1:])
        if len(found) >= _CALLS * x.size or point.dtype != x.dtype:
            raise _Left("it is none of differentiation that is known")
        moved = _moved(point, small)
        if len(moved) > 1:
            raise _Left("it moves more than one entry at a time")
        entry = int(moved[0]) if len(moved) else -1
        found.append(_Evaluation(entry, point.flat[entry], passes, further, keywords))
        return values(len(found) - 1, entry)

    result = call.with_(_StandIn(noted), x)
    if len(_moved(x, small)) or not found:
        raise _Left(_NOT_RESTORED)
    return result, found


def _moved(point: NDArray[Any], kept: NDArray[Any]) -> NDArray[Any]:
    """Return the entries that are elsewhere; the rounding of ``x += h`` and ``x -= h`` is not."""
    distance = np.abs(point - kept).reshape(-1)
    rounding = 8 * np.finfo(kept.dtype).eps * (np.abs(kept).reshape(-1) + distance.max())
    return np.flatnonzero(distance > rounding)


def _rule_of(call: _Call) -> _Rule:
    """Find out how a loop goes over its array; `_Left` if it is no differentiation."""
    x = call.args[call.x]
    last, others = _SMALL.get(x.ndim, (2, 2))
    small = x[tuple(slice(0, last if a == x.ndim - 1 else others) for a in range(x.ndim))]
    one, other = np.random.default_rng(0).standard_normal((2, _CALLS * small.size))
    with np.errstate(all="ignore"):  # of made-up numbers, nobody is to be told
        result, first = _probed(call, small, lambda number, _: one[number])
        _, second = _probed(call, small, lambda number, _: other[number])
        # The values of each entry have the same differences, and other means.
        shifted, third = _probed(call, small, lambda number, entry: one[number] + other[entry])
    if not [e[:2] for e in first] == [e[:2] for e in second] == [e[:2] for e in third]:
        raise _Left(_DEPENDENT)
    if len({evaluation.identity() for evaluation in (*first, *second, *third)}) > 1:
        raise _Left("it does not always call f alike")
    entries = [evaluation.entry for evaluation in first]
    visited = list(dict.fromkeys(entry for entry in entries if entry >= 0))
    index = np.arange(small.size).reshape(small.shape)
    order: Any = next((o for o in ("C", "F") if visited == index.ravel(o).tolist()), "")
    if not order:
        raise _Left("it does not visit every entry in turn")
    for before in range(entries.index(visited[0]) + 1):
        length, after = divmod(len(entries) - before, small.size)
        block = tuple(entry >= 0 for entry in entries[before : before + length])
        is_central = block == (True, True) and _agree(result, shifted)
        rule = _Rule(before, block, after, order, *first[0][2:], is_central)
        if rule.entries(small.shape).tolist() == entries:
            return rule
    raise _Left("it does not treat all entries alike")


def _agree(one: Any, other: Any) -> bool:
    """Return whether two results of a loop are the same but for rounding."""
    if type(one) is tuple:  # what a part of a function leaves in its names
        return all(map(_agree, one, other))
    if not (isinstance(one, np.ndarray) and one.dtype.kind == "f"):
        return one is other
    tolerance = 1e-3 if one.dtype == np.float32 else 1e-9
    return bool(np.abs(one - other).max() <= tolerance * np.abs(one).max() < np.inf)


# ------------------------------------------------------------------------------------ dispatching

#: What is said of a loop and a function at the end: by its title and the way in which it was
#: computed the calls, the time that they took, and that of the loop.
_records: dict[Any, dict[tuple[str, str], tuple[int, float, float]]] = {}
#: How long an evaluation took, and when; or why a loop is left as it is.
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
    frame = _caller()
    args, keywords = _arguments(frame)
    return _answer(
        frame, frame.f_code, frame.f_locals.get(name), [*args, *keywords.values()],
        _calls_of(frame, name, args, keywords),
    )  # fmt: skip


def computed_part(function: str, array: str, body: str) -> bool:
    """Compute what a loop within the function that asks leaves in its names.

    Parameters
    ----------
    function, array : str
        What is differentiated, and where, such as ``"self.loss"`` and ``"self.params[key]"``.
    body : str
        The loop and the statements that prepare it, with ``_f`` and ``_x`` in the places of both.

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
    except (_Left, AttributeError, LookupError, TypeError):
        f, x = None, None
    if _running.loops:
        _, key, title, _ = _running.loops[-1]
        if title == _title(frame.f_code, f) and key[0] is not frame.f_code:
            f = None  # the loop around this one is left as it is, and will say why
    is_computed = _answer(frame, body, f, [x], _call_of_part(frame, f, x, body))
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


def _caller() -> Any:
    """Return the frame of the reader's function that asks."""
    frame: Any = inspect.currentframe()
    return frame.f_back.f_back


def _answer(
    frame: types.FrameType,
    loop: types.CodeType | str,
    f: Any,
    given: list[Any],
    calls: Iterator[_Call],
) -> bool:
    """Compute the result of a loop, or note why it is left as it is."""
    given = [value for value in given if isinstance(value, np.ndarray)]
    if type(f) is _StandIn or not given or not callable(f):
        _running.loops.append(_NO_LOOP)
        return False
    arrays = [value for value in given if _is_array(value)]
    key = loop, _code_of(f), tuple(array.shape for array in arrays)
    title = _title(frame.f_code, f)
    why = "its array is small, or not of float32 or float64"
    if arrays:
        why = _compute(calls, key, max(array.size for array in arrays), title)
    if why:
        _running.loops.append((time.perf_counter(), key, title, why))
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
    key: Any = central_differences, _code_of(f)
    start = time.perf_counter()
    try:
        loop = _Loop(_Call(central_differences, [f, x, h], {}, 0, 1), _THE_BOOKS)
        points = np.stack([x.reshape(-1) + h, x.reshape(-1) - h], axis=1)
        # A network that is known is not evaluated at x: it is checked where x is moved.
        known = _recognition is not None and _recognition.knows(f)
        with loop.records:
            found = _recognised(loop, h) if known else None
            if found is None:
                here, pace = loop.timed()
                if 2 * x.size * pace < _MOMENT:
                    raise _Left("")
                found = None if known else _recognised(loop, h, one_number(here))
            out = np.empty_like(x)
            if found is not None:
                out[...], pace, way = found[0], found[2], f"by the compiled kernels, {found[1]}"
            else:
                upper, lower = _at_once(loop, points, pace).T
                out[...], way = ((upper - lower) / (2 * h)).reshape(x.shape), "all points at once"
            _at_last(loop, points.ravel())
    except (_Left, *_ERRORS) as error:
        _running.loops.append((start, key, _name(f), _why(error)))
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
    found = []
    records = [record for ways in list(_records.values()) for record in list(ways.items())]
    for (title, way), (calls, took, loop) in records:
        text, times = f"{title} {way}", loop / max(took, 1e-9)
        if way.startswith("left"):
            if took < _LONG:
                continue
        elif times < 1:
            text += ", no faster than the loop"
        else:
            text += f", {times:,.{1 if times < 10 else 0}f} times faster"
        text += f" ({calls:,} calls)" if calls > 1 else ""
        found += textwrap.wrap(text, 80, subsequent_indent="  ", break_on_hyphens=False)
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
    """Count a call that took a time, and would have taken another one in its loop."""
    with _lock:
        ways = _records.setdefault(key[:2], {})
        calls, total, loops = ways.get((title, way), (0, 0.0, 0.0))
        ways[title, way] = calls + 1, total + took, loops + loop


def _code_of(f: Any) -> Any:
    """Return what a function is known by."""
    return getattr(getattr(f, "__func__", f), "__code__", type(f))


def _title(code: types.CodeType, f: Any) -> str:
    of = str(getattr(f, "__qualname__", type(f).__name__)).replace(".<locals>", "")
    of = of.replace("<lambda>", "a lambda").rpartition(".")[2]
    return f"{os.path.basename(code.co_filename)}: {code.co_name} of {of}:"


def _name(f: Any) -> str:
    """Return what to call a function whose gradient the book's loop computes."""
    name = str(getattr(f, "__qualname__", type(f).__name__)).partition(".<locals>")[0]
    return f"numerical_gradient in {name}:".replace("in <lambda>", "of a lambda")


def _why(error: Exception) -> str:
    """Return why a loop is left; what a signal handler has raised, such as a timeout, goes on."""
    if raised_by_a_signal_handler(error):
        raise error
    # The text of a part of a function has no lines in the reader's file.
    return re.sub(r"(:\d+)(:\d+){2} ", r"\1 ", str(error).rstrip("."))


# -------------------------------------------------------------------------------------- computing


def _compute(calls: Iterator[_Call], key: Any, largest: int, title: str) -> str:
    """Compute the result and return "", or return why the loop is left as it is."""
    start = time.perf_counter()
    pace, when, why = _paces.get(key, (0.0, -math.inf, ""))
    if start - when < (_LEFT_FOR if why else _BELIEVED) and (why or 2 * pace * largest < _MOMENT):
        return why or "it takes no time"
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return "a debugger or a profiler is watching"
    try:
        loop = _understood(list(calls))
        with loop.records:
            for _ in range(2):  # the first evaluation may have been a slow one
                here, seconds = loop.timed()
                _paces[key] = seconds, time.perf_counter(), ""
                if seconds * len(loop.entries) < _MOMENT:
                    return "it takes no time"
            way = _by(loop, here, seconds)
    except (_Left, *_ERRORS) as error:
        why = _why(error) or type(error).__name__
        _paces[key] = 0.0, time.perf_counter(), why
        return why
    took = time.perf_counter() - start
    _note(key, title, way, took, seconds * len(loop.entries))
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
        is_long_enough = self.records and len(self.entries) > 4 * FORGOTTEN
        if self.reading.obstacle and not is_long_enough:
            raise _Left(self.reading.obstacle)

    @functools.cached_property
    def entries(self) -> NDArray[Any]:
        """For each call of f, the entry that is elsewhere, or -1."""
        return self.rule.entries(self.x.shape)

    @property
    def order(self) -> NDArray[Any]:
        """The entries in the order in which they are visited."""
        return self.entries[self.entries >= 0][:: sum(self.rule.block)]

    def at_x(self) -> Any:
        """Evaluate f as the loop does."""
        return self.f(self.x.copy() if self.rule.passes == "copy" else self.x, *self.further)

    def timed(self) -> tuple[Any, float]:
        """Evaluate f as the loop does; return its value, and how long that took."""
        began = time.perf_counter()
        value = self.at_x()
        return value, time.perf_counter() - began

    def run(self, call: _Call, values: Iterator[Any]) -> tuple[Any, list[Any]]:
        """Run the loop with values for f; return its result, and where the entry is at each call.

        That of the last entry stands for x itself.
        """
        x, passes, entries = self.x, self.rule.passes, iter(self.entries.tolist())
        points: list[Any] = []

        def returned(*args: Any, **_: Any) -> Any:
            entry = next(entries, None)
            point = x if passes == "nothing" else args[0]
            if entry is None or point.shape != x.shape or (point is x) == (passes == "copy"):
                raise _Left(_ANOTHER_WAY)
            points.append(point.item(entry))
            return next(values)

        result = call.with_(_StandIn(returned), x)
        if len(points) < len(self.entries):
            raise _Left(_ANOTHER_WAY)
        return result, points


def _without_x(f: Callable[..., Any], *args: Any, **keywords: Any) -> Callable[[Any], Any]:
    """Return a function of x of one that finds x elsewhere, read as one of the reader's."""
    bound = functools.partial(f, *args, **keywords)

    def called(_: Any) -> Any:
        return bound()

    called.__module__ = str(getattr(f, "__module__", "__main__"))
    return called


def _understood(calls: list[_Call]) -> _Loop:
    """Return the loop, after reading it and its function."""
    failure = "it is not understood"
    for call in itertools.chain(calls, itertools.chain.from_iterable(map(_quiet, calls))):
        try:
            if obstacle := reading.read_loop(call.loop, call.args, call.keywords, call.f, call.x):
                raise _Left(obstacle)
            rule = _rule_of(call)
        except _Left as reason:
            failure = str(reason)
        except _ERRORS as error:  # of made-up values
            _why(error)
        else:
            return _Loop(call, rule)
    raise _Left(failure)


def _by(loop: _Loop, here: Any, seconds: float) -> str:
    """Compute the result of a loop whose f takes so long, and return in which way."""
    like = _like(here)
    kept = loop.x.copy()
    is_moved = loop.entries >= 0
    try:
        with np.errstate(all="ignore"):
            _, places = loop.run(loop.call, itertools.repeat(like(0.0)))
        loop.x[...] = kept
        points = np.array(places, kept.dtype)[is_moved].reshape(kept.size, -1)
        if (points == kept.reshape(-1)[loop.order, np.newaxis]).any():
            raise _Left(_ANOTHER_WAY)
        # It takes a moment until the kernels are there.
        is_worth_it = seconds * len(places) >= _LONG or _recognition is not None
        found = _compiled(loop, points, here) if is_worth_it else None
        if found is not None:
            slopes, network, _ = found
            changes = slopes.reshape(-1)[loop.order] * (points[:, 0] - points[:, 1]) / 2
            values = float(here) + np.stack([changes, -changes], axis=1)
            way = f"by the compiled kernels, {network}"
        else:
            values, way = _at_once(loop, points, seconds), "all points at once"
        every = np.full(len(places), float(one_number(here)))
        every[is_moved] = values.ravel()
        returned = list(map(like, every.tolist()))
        result, again = loop.run(loop.call, iter(returned))
        if again != places:
            raise _Left(_DEPENDENT)
        if loop.x.tobytes() != kept.tobytes():
            _check_rounding(loop, kept, float(here))
        _at_last(loop, places)
        if loop.call.loud is not None:  # now that nothing can go wrong any more
            loop.x[...] = kept
            result, _ = loop.run(loop.call.loud, iter(returned))
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


def _compiled(loop: _Loop, points: NDArray[Any], here: Any) -> Any:
    """Return the slopes of a recognised network's loss, and what it is, or None."""
    rule, x = loop.rule, loop.x
    # Only the difference of two values is known, which is enough if nothing else comes of them.
    is_enough = rule.is_central and not loop.further and loop.call.loud is None
    if not (is_enough and rule.passes != "copy" and x.flags.c_contiguous):
        return None
    center = x.reshape(-1)[loop.order, np.newaxis]
    first, second = points[np.argmin(np.abs(center))]
    h = float(f"{abs(first - second) / 2:.10g}")
    steps = np.copysign(h, first - second) * np.array([1, -1])
    rounding = 4 * np.finfo(x.dtype).eps * (np.abs(center) + h)
    if h <= 0 or not (np.abs(points - center - steps) <= rounding).all():
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
    turns = np.argsort(loop.order)[entries.reshape(x.shape).transpose(memory_order(x)).ravel()]
    values = np.empty(points.shape)
    few, many = _TRIED
    tried = min(x.size, max(few, min(many, x.size // 16)))
    try:
        before = 0.0  # what a call takes for one entry: the most of it is needed for any number
        for part in (slice(0, 1), slice(1, tried), slice(tried, x.size)):
            if part.start == x.size:
                break
            began = time.perf_counter()
            there = points[turns[part]].T.astype(np.float64)
            values[turns[part]] = batched.evaluate(
                loop.f, x, x, entries[part], there, loop.further, leaves_records=True
            ).T
            took = time.perf_counter() - began
            if part.start == 1 and took - before > pace * points[:tried].size and tried < x.size:
                raise _Left("all points at once would not be faster")
            before = took
    except batched.NotCarried as reason:
        raise _Left(str(reason)) from reason
    return values


def _at_last(loop: _Loop, points: Sequence[Any] | NDArray[Any]) -> None:
    """Evaluate f where the loop does so last, for what it stores and what it records."""
    if not (loop.records or loop.reading.stores):
        return

    def evaluate(entry: int, point: Any) -> Any:
        kept = loop.x.flat[entry]
        try:
            loop.x.flat[entry] = point
            return one_number(loop.at_x())
        finally:
            loop.x.flat[entry] = kept

    turns = zip(loop.entries[-FORGOTTEN:].tolist(), points[-FORGOTTEN:], strict=True)
    evaluations = [functools.partial(evaluate, *turn) for turn in turns]
    if not loop.records:
        evaluations[-1]()
    elif loop.records.are_forgotten(evaluations):
        loop.records.keep()
    else:
        raise _Left(loop.reading.obstacle)
