"""Reading a function before it is run: whether it does nothing but return a number.

A function may be evaluated fewer times than its author wrote, or at other points, only if nobody
can tell. Pictures of the state before and after miss a counter in an array or a private generator;
the code hides nothing. So the syntax tree of the function, and of every function of the reader's
that it calls, is interpreted with *values of which little is known*: which objects an expression
can be, and whether it was made inside the evaluation. All branches are read, but of two between
which a flag such as ``verbose`` decides, one.

What is harmless is listed: arithmetic, NumPy's functions, pure built-in ones, assignments to local
names, into arrays made inside, and of a fresh value to an attribute. All else is an *obstacle*.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import dataclasses
import functools
import inspect
import math
import reprlib
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastgrad.numdiff.reach import PLAIN, Reach, attributes_of, is_of, is_open
from fastgrad.numdiff.syntax import tree_of

__all__ = ["Reading", "read", "read_loop"]


class Reading(NamedTuple):
    """What a function does besides returning a number.

    Attributes
    ----------
    obstacle : str
        The first thing found that somebody could notice, such as ``"train.py:31 appends to
        history"``; empty if there is none.
    stores : bool
        Whether it puts fresh values into attributes, as layers do that remember their output.
        They are then as the loop leaves them only after an evaluation at the loop's last point.
    objects : sequence
        What it can reach by name, the nearest first: its closure, defaults, the globals that its
        code names, and their attributes and contents; arrays and numbers as often as they are met.
    records : sequence of (int, str)
        The attributes that it computes anew from what they were, as batch normalisation does with
        its running averages, if they are the only obstacle: where the object is among `objects`,
        and the name. See `fastgrad.numdiff.records`.
    """

    obstacle: str
    stores: bool
    objects: Sequence[Any] = ()
    records: Sequence[tuple[int, str]] = ()


#: Statements that are read, and readings that are remembered.
_STEPS, _MEMORY = 20_000, 64
_NOTHING: Any = object()

# --------------------------------------------------------------------------- what values can be


class _Value(NamedTuple):
    """What is known of an expression's value.

    Attributes
    ----------
    objects : dict
        The objects that it can be, by their ids; `_UNKNOWN` alone if it can be any.
    fresh : bool
        Whether it was made inside, or cannot be changed.
    flat : bool
        Whether it is an array or number: no container, whose items may be from outside.
    """

    objects: dict[int, Any]
    fresh: bool
    flat: bool

    def each(self) -> list[Any]:
        """Return the objects that it can be."""
        return list(self.objects.values())

    def only(self) -> Any:
        """Return the one object that it can be; `_UNKNOWN` if there are several."""
        return self.each()[0] if len(self.objects) == 1 else _UNKNOWN

    def unknown(self) -> _Value:
        """Return the same without the objects."""
        return self._replace(objects=_ANY)

    def view(self) -> _Value:
        """Return what is known of a view of an array, or of an item of a container."""
        return _Value(_ANY, self.fresh and self.flat, self.flat)

    def item(self, number: int = 0, count: int = -1) -> _Value:
        """Return what is known of an item, or of one of so many; that of an array is a view."""
        found: list[_Value] = []
        for one in self.each():
            items = _items(one) or [self.view()]
            found += [items[number]] if len(items) == count else items
        return _joined(*found)


def _items(container: Any) -> list[_Value] | None:
    """Return what is known of the items of a container; None if they are not known."""
    is_known = type(container) in _PLACES and len(container) <= _MEMORY
    return [_of(value) for value in container] if is_known else None


def _joined(*values: _Value) -> _Value:
    """Return what is known of a value that is one of several."""
    objects = {key: one for v in values for key, one in v.objects.items()}
    is_known = id(_UNKNOWN) not in objects and len(objects) <= _MEMORY
    return _Value(
        objects if is_known else _ANY,
        fresh=all(v.fresh for v in values),
        flat=all(v.flat for v in values),
    )


_UNKNOWN: Any = object()
_ANY = {id(_UNKNOWN): _UNKNOWN}
_NUMBER = _Value(_ANY, fresh=True, flat=True)
_CONTAINER = _Value(_ANY, fresh=True, flat=False)
_OUTSIDE = _Value(_ANY, fresh=False, flat=False)


def _of(value: Any) -> _Value:
    """Return the value of a known object from outside; one that is a value already is kept."""
    if isinstance(value, _Value):
        return value
    is_plain = type(value) in PLAIN
    return _Value({id(value): value}, is_plain, is_plain or type(value) is np.ndarray)


def _made(value: Any) -> _Value:
    """Return the value of an object that stands for one that the evaluation makes."""
    return _Value({id(value): value}, fresh=True, flat=False)


class _Args(NamedTuple):
    """The arguments of a call; unknown ones besides if any is starred."""

    positional: list[_Value]
    keywords: dict[str, _Value]
    starred: bool = False

    def all(self) -> list[_Value]:
        """Return the values of all arguments."""
        return [*self.positional, *self.keywords.values()]

    def after(self, /, *first: Any, **keywords: Any) -> _Args:
        """Return them after others, which may be values or known objects."""
        known = {name: _of(value) for name, value in keywords.items()}
        return self._replace(
            positional=[*map(_of, first), *self.positional], keywords=known | self.keywords
        )


class _Method(NamedTuple):
    """A method of something built in."""

    name: str
    receiver: _Value


class _Partial(NamedTuple):
    """What the evaluation makes by `functools.partial`."""

    func: _Value
    args: list[_Value]
    keywords: dict[str, _Value]


class _Instance(NamedTuple):
    """An object of a class of the reader's that the evaluation makes."""

    cls: type


class _Local(NamedTuple):
    """A function that the evaluation defines."""

    node: Any
    frame: _Frame


class _Frame:
    """The names of a call that is being read, or of a comprehension."""

    def __init__(self, function: Any, parent: _Frame | None = None) -> None:
        self.function, self.parent = function, parent
        self.line = 0
        self.returned: list[_Value] = []
        self.exits: list[Any] = []


def _either(one: Any, other: Any) -> Any:
    """Join what is known on two paths; a name may be missing on one of them."""
    if one is None or other is None:
        return other if one is None else one
    names = {key: v for key, v in (one | other).items() if isinstance(key[0], _Frame)}
    return names | {key: _joined(one[key], other[key]) for key in one.keys() & other.keys()}


# ------------------------------------------------------------------------------ what is harmless


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(*functions: Any) -> dict[int, Any]:
    """Return functions by their ids, as a reader's object may have any notion of equality."""
    return {id(function): function for function in functions}


#: Functions, built-in or of `math`, that return numbers, an argument or one of its items, or a
#: container; the last take items later.
_COUNT = _table(abs, all, any, bool, bytes, complex, divmod, float, int, isinstance, issubclass,
                len, pow, repr, round, slice, str,
                *(value for value in vars(math).values() if callable(value)))  # fmt: skip
_CHOOSE = _table(max, min, sum)
_EAGER = _COUNT | _CHOOSE | _table(OrderedDict, dict, frozenset, list, set, sorted, tuple)
_COPY = _table(copy.copy, copy.deepcopy)
_CONTAIN = _EAGER | _table(enumerate, range, reversed, zip)
#: NumPy's functions that change something, use files, or call back.
_NOT_PURE = _words("""
    apply_along_axis apply_over_axes array2string array_repr array_str busday_count busday_offset
    copyto fill_diagonal from_dlpack frombuffer fromfile fromfunction fromiter frompyfunc fromregex
    fromstring genfromtxt info is_busday load loadtxt mask_indices mintypecode nested_iters
    piecewise place printoptions put put_along_axis putmask rot90 save savetxt savez
    savez_compressed set_printoptions setbufsize seterr seterrcall show_config show_runtime test""")
_NUMPYS = _table(*(
    value
    for space in (np, np.linalg, np.fft)
    for name, value in list(vars(space).items())  # modules that are not loaded yet stay so
    if name in space.__all__ and name not in _NOT_PURE and hasattr(value, "__name__")
    if not isinstance(value, type | types.ModuleType)
))  # fmt: skip
#: Those that may return a view of an argument, or the argument itself; and such methods.
_VIEWS = _words("""
    around array_split asanyarray asarray asarray_chkfinite ascontiguousarray asfortranarray
    asmatrix atleast_1d atleast_2d atleast_3d bmat broadcast_arrays broadcast_to conj conjugate
    diag diagonal diff dsplit einsum expand_dims fft2 fftn flip fliplr flipud histogram
    histogram2d histogram_bin_edges histogramdd hsplit ifft2 ifftn imag ix_ matrix_power
    matrix_transpose moveaxis permute_dims polyder polyint ravel real real_if_close require
    reshape rollaxis round split squeeze swapaxes transpose trim_zeros unstack view vsplit""")
_ITERATORS = _table(np.ndenumerate, np.ndindex, np.nditer)
#: Methods of arrays, numbers, strings and containers that change what they belong to, and others.
_CHANGING_METHODS = _words("""
    add append appendleft clear extend fill insert itemset iternext partition pop popitem popleft
    put remove resize reverse setdefault sort update""")
_METHODS = _CHANGING_METHODS | _words("""
    all any argmax argmin argsort astype clip conj copy count cumprod cumsum diagonal dot endswith
    flatten format get index is_integer item items join keys lower max mean min nonzero prod ravel
    repeat reshape round split squeeze startswith std strip sum swapaxes take tolist trace transpose
    upper values var view""")
_VIEW_ATTRIBUTES = _words("T flat imag real")
_ATTRIBUTES = _words("dtype finished itemsize iterindex multi_index nbytes ndim shape size")
#: Special methods that no operator calls; that may return what is from outside, while what other
#: operators return is taken to be new; and that make an object's attributes unreadable.
_NO_OPERATORS = _words("__init__ __call__ __init_subclass__ __class_getitem__ __annotate__")
_LOOK_INTO = _words("""
    __getitem__ __iter__ __array__ __missing__ __setitem__ __delitem__ __str__ __repr__ __format__
    """)
_UNREADABLE = _words("__getattr__ __getattribute__ __setattr__ __delattr__ __del__")
#: Where the methods that a dataclass is given have their code, `__repr__` by version of Python.
_GENERATED = "<string>", dataclasses.__file__, reprlib.__file__
#: What is known of this package's own classes: they remember what they computed, and no more.
_OWN_CLASSES = _words("""
    Affine Sigmoid Relu SoftmaxWithLoss MulLayer AddLayer Convolution Pooling TwoLayerNet
    MultiLayerNet LayeredTwoLayerNet LayeredMultiLayerNet""")
#: Modules of ours whose functions return new arrays, all but the identity, and do nothing else.
_OWN_FUNCTIONS = frozenset({"fastgrad.nn.functions", "fastgrad.book.convolutions"})
_OWN_METHODS = _words("forward predict loss accuracy")
_DICTS = frozenset({dict, OrderedDict})
_PLACES = _DICTS | {list, tuple}
#: Iterating over these, and looking into them, changes nothing.
_USUAL = _PLACES | {np.ndarray, set, frozenset, deque, range}
_SLOT = types.MemberDescriptorType


@functools.lru_cache(512)
def _inputs(function: Any) -> int:
    """Return how many positional arguments a function of NumPy takes before ``out``."""
    if isinstance(function, np.ufunc):
        return function.nin
    with contextlib.suppress(TypeError, ValueError):  # which has no signature, or no ``out``
        parameters = inspect.signature(function).parameters.values()
        return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY].index("out")
    return {"dot": 2, "concatenate": 2, "concat": 2}.get(function.__name__, 99)


def _is_compiled(value: Any) -> bool:
    """Return whether a value is a ufunc that calls no Python function, as `np.frompyfunc`'s do."""
    return isinstance(value, np.ufunc) and not set("".join(value.types)) <= set("O->")


def _is_usual(value: Any) -> bool:
    """Return whether looking into an object is harmless; what the reader's classes do is read."""
    cls = type(value)
    if cls in _USUAL or cls in PLAIN or isinstance(value, type | tuple):
        return True
    return not hasattr(cls, "__next__") and (is_open(cls) or not hasattr(cls, "__iter__"))


def _bound(member: Any, holder: Any, cls: type) -> Any:
    """Return a method as it is got from an object or a class; other members as they are."""
    match member:
        case types.FunctionType() | staticmethod() | classmethod(__func__=types.FunctionType()):
            return member.__get__(holder, cls)
    return member


def _is_whole(parts: Sequence[ast.expr]) -> bool:
    """Return whether each part of a display or a target stands for one item."""
    return not any(isinstance(part, ast.Starred) for part in parts)


def _class_of(holder: Any) -> type:
    return holder.cls if isinstance(holder, _Instance) else type(holder)


# ---------------------------------------------------------------------------------- the reading


class _Obstacle(Exception):  # noqa: N818 - no error
    """Something that somebody could notice."""


class _Reader:
    """Reads a function and what it calls."""

    def __init__(self, reach: Reach) -> None:
        self._steps = 0
        self._frames: list[_Frame] = []
        self._callee = ""
        #: What names hold, by frame, and attributes that have certainly been written, by object;
        #: None where control never comes.
        self._state: Any = {}
        #: The same where the loop that is being read is left, or begins again.
        self._jumps: list[Any] = []
        #: Attributes that are read before they are written, and where attributes are written.
        self._read_first: set[Any] = set()
        self.writes: dict[Any, str] = {}
        self._instances: list[Any] = []
        self._reached = set(map(id, reach.objects))
        objects = [v for v in reach.objects if type(v) not in PLAIN and type(v) not in _USUAL]
        classes = [v if isinstance(v, type) else type(v) for v in objects]
        self._classes = [cls for cls in dict.fromkeys(classes) if is_open(cls)]
        self._methods = {name for cls in self._classes for name in dir(cls)}
        self._unusual = [type(v).__name__ for v in objects if not _is_usual(v)]
        #: What an object that is not known can be, besides something built in.
        self._holders = [v for v in objects if not isinstance(v, type | types.FunctionType)]
        self._holders += map(_Instance, self._classes)

    def obstacle(self, f: Any, args: _Args) -> str:
        """Return the first obstacle in a call of f; an empty text if there is none."""
        try:
            self._read(f, args)
        except _Obstacle as found:
            return str(found)
        except RecursionError:
            return "it is nested too deeply to be read"
        return ""

    def _read(self, f: Any, args: _Args) -> None:
        """Read f and, as any operator may call them, the special methods within reach."""
        self.apply(f, args)
        for cls in self._classes:
            for name, method in inspect.getmembers_static(cls):
                if not (name.startswith("__") and isinstance(method, types.FunctionType)):
                    continue
                if name in _UNREADABLE:
                    self._stop(f"{cls.__name__} has a {name} of its own")
                is_made = (
                    dataclasses.is_dataclass(cls) and method.__code__.co_filename in _GENERATED
                )
                if name not in _NO_OPERATORS and is_open(method) and not is_made:
                    result = self._enter(method, _Args([], {}, starred=True))
                    if not (result.fresh or name in _LOOK_INTO):
                        self._stop(f"{name} of {cls.__name__} may return what is not new")

    def records(self) -> list[tuple[Any, str]]:
        """Return the attributes that are both read before they are written, and written."""
        return [key for key in self.writes if {key, (None, key[1])} & self._read_first]

    def _stop(self, what: str) -> NoReturn:
        raise _Obstacle(f"{self._place()} {what}" if self._frames else what)

    def _place(self) -> str:
        frame = self._frames[-1]
        return f"{Path(frame.function.__code__.co_filename).name}:{frame.line}"

    def _paths(self, *paths: Callable[[], Any]) -> list[Any]:
        """Read paths one of which is taken, and keep of what is known the part that all share."""
        before, found, ends = self._state, [], []
        for path in paths:
            self._state = dict(before)
            found.append(path())
            ends.append(self._state)
        self._state = functools.reduce(_either, ends)
        return found

    def _repeat(self, turn: Callable[[], Any]) -> None:
        """Read what is done any number of times, until nothing more becomes unknown."""
        outer = self._jumps
        for _ in range(6):
            before, self._jumps = self._state, []
            self._paths(lambda: None, turn)
            self._state = functools.reduce(_either, self._jumps, self._state)
            in_use = [k for k in self._state if type(k[0]) is int or k[0] in self._frames]
            if all(self._state[k] == before.get(k) for k in in_use):
                self._jumps = outer
                return
        self._stop("has a loop that is not understood")

    # --- calls

    def apply(self, f: Any, args: _Args) -> _Value:
        """Read a call of an object, or of one of several."""
        if isinstance(f, _Value):
            calls = [functools.partial(self.apply, one, args) for one in f.each()]
            return _joined(*self._paths(*calls))
        if isinstance(f, types.MethodType):
            return self.apply(f.__func__, args.after(f.__self__))
        if isinstance(f, functools.partial | _Partial):
            return self.apply(f.func, args.after(*f.args, **f.keywords))
        if isinstance(f, _Local) or (isinstance(f, types.FunctionType) and is_open(f)):
            return self._enter(f, args)
        call = inspect.getattr_static(type(f), "__call__", None)
        if isinstance(call, types.FunctionType) and is_open(type(f)):
            return self._enter(call, args.after(f))
        if isinstance(f, type) and is_open(f):
            return self._make(f, args)
        if f is functools.partial and args.positional and not args.starred:
            return _made(_Partial(args.positional[0], args.positional[1:], args.keywords))
        if f is _UNKNOWN:
            self._stop(f"calls {self._callee}")
        self._iterate(*args.positional)
        for key in args.keywords.get("key", _of(None)).each():
            if key is _UNKNOWN:
                self._stop(f"calls {self._callee} with an unknown key")
            if key is not None:
                self.apply(key, _Args([_OUTSIDE], {}))
        if isinstance(f, _Method):
            return self._method(f, args)
        if id(f) in _NUMPYS or _is_compiled(f):
            return self._numpys(f, args)
        if id(f) in _ITERATORS:
            found = _joined(*(args.positional or args.all())).view()
            return found._replace(flat=found.fresh)
        if id(f) in _CHOOSE:
            return _joined(_NUMBER, *args.all(), *(v.item() for v in args.all()))
        if id(f) in _COPY and len(args.all()) == 1 and args.all()[0].flat:
            return _NUMBER
        if id(f) in _CONTAIN:
            return _NUMBER if id(f) in _COUNT else _CONTAINER
        if isinstance(f, type) and issubclass(f, np.generic | np.dtype | BaseException):
            return _NUMBER
        if f is type and len(args.positional) == 1:
            return _OUTSIDE
        if isinstance(f, types.FunctionType) and f.__module__ in _OWN_FUNCTIONS:
            fresh = f.__name__ != "identity_function" or all(v.fresh for v in args.all())
            return _Value(_ANY, fresh, flat=True)
        name = getattr(f, "__qualname__", type(f).__qualname__)
        self._stop(f"calls {self._callee or name}")

    def _enter(self, f: Any, args: _Args) -> _Value:
        """Read the body of a function of the reader's."""
        is_local = isinstance(f, _Local)
        node = f.node if is_local else tree_of(f.__code__)
        if node is None:
            self._stop(f"calls {f.__qualname__}, whose source is not to be had")
        if len(self._frames) > 40:
            self._stop("calls itself")
        frame = _Frame(f.frame.function, f.frame) if is_local else _Frame(f)
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        known: dict[str, Any] = {}
        if not (args.starred or is_local):
            known.update(zip(reversed(names), reversed(f.__defaults__ or ()), strict=False))
            known.update(f.__kwdefaults__ or {})
        known.update(zip(names, args.positional, strict=False))
        known.update(args.keywords)
        for name in (*names, *(a.arg for a in node.args.kwonlyargs)):
            self._state[frame, name] = _of(known[name]) if name in known else _OUTSIDE
        for rest in filter(None, (node.args.vararg, node.args.kwarg)):
            self._state[frame, rest.arg] = _CONTAINER
        if node.args.vararg is not None and not args.starred:
            self._state[frame, node.args.vararg.arg] = _made(tuple(args.positional[len(names) :]))
        before = dict(self._state)
        self._frames.append(frame)
        is_lambda = isinstance(node, ast.Lambda)
        end = ast.Return(node.body if is_lambda else None, lineno=node.lineno)
        self._statements([end] if is_lambda else [*node.body, end])
        # Nothing comes to what follows where all paths raise.
        self._state = functools.reduce(_either, frame.exits, None) or before
        self._frames.pop()
        return _joined(*frame.returned) if frame.returned else _NUMBER

    def _make(self, cls: type, args: _Args) -> _Value:
        """Read the making of an object of a class of the reader's."""
        if type(cls) is not type or inspect.getattr_static(cls, "__new__") is not object.__new__:
            self._stop(f"makes a {cls.__name__}")
        self._instances.append(_Instance(cls))  # its id is to remain its own
        made = _made(self._instances[-1])
        init = inspect.getattr_static(cls, "__init__")
        if isinstance(init, types.FunctionType):
            self._enter(init, args.after(made))
        return made

    def _numpys(self, f: Any, args: _Args) -> _Value:
        """Read a call of a function of NumPy, or of the method of that name."""
        if not all(v.flat for v in args.all()) and f.__name__ in self._methods:
            self._stop(f"may call {f.__name__} of one of your classes")
        out, most = args.keywords.get("out", _NUMBER), _inputs(f)
        changes = len(args.positional) > most or (args.starred and most < 99)
        if f is np.pad:  # which may call back
            changes |= not all(type(one) in PLAIN for v in args.all()[2:] for one in v.each())
        changes |= f is np.nan_to_num and len(args.all()) > 1
        changes |= not args.keywords.keys().isdisjoint({"**", "overwrite_input"})
        if changes or not (out.fresh and out.flat):
            self._stop(f"writes into an argument of {self._callee}")
        if (f.__name__ in _VIEWS and not isinstance(f, np.ufunc)) or "copy" in args.keywords:
            return _joined(*args.all()).view()._replace(flat=True)
        return _NUMBER

    def _method(self, method: _Method, args: _Args) -> _Value:
        """Read a call of a method of something built in."""
        name, receiver = method
        if name in _OWN_METHODS:
            self.writes.setdefault((None, f".{name}"), self._place())
            return _OUTSIDE
        if name in _CHANGING_METHODS:
            if not receiver.fresh:
                changed = self._callee.rpartition(".")[0] or self._callee
                verb = "appends to" if name in ("append", "extend", "insert") else "changes"
                self._stop(f"{verb} {changed}")
            return _OUTSIDE
        if name in ("get", "items", "keys", "values"):
            known = receiver.only()
            if type(known) not in _DICTS or len(known) > _MEMORY or name in ("get", "keys"):
                return _OUTSIDE
            return _made(tuple(known.values() if name == "values" else map(_made, known.items())))
        if name == "tolist" or (name == "copy" and not receiver.flat):
            return _CONTAINER
        function = getattr(np, name, None)
        if id(function) in _NUMPYS and name != "split":
            self._numpys(function, args.after(receiver))
        if name in _VIEWS or "copy" in args.keywords:
            return receiver.view()
        return _NUMBER

    def _iterate(self, *values: _Value) -> None:
        """Stop at what changes when it is iterated over."""
        for value in values:
            for one in value.each():
                if one is not _UNKNOWN and not _is_usual(one):
                    self._stop(f"takes items from a {type(one).__name__}")
                if one is _UNKNOWN and not (value.fresh or value.flat) and self._unusual:
                    self._stop(f"may take items from a {self._unusual[0]}")

    # --- attributes

    def _attribute(self, value: _Value, name: str) -> _Value:
        if name in ("__class__", "__name__"):  # a class, or what it is called
            return _OUTSIDE
        if name.startswith("__") and name.endswith("__"):
            self._stop(f"uses {name}")
        return _joined(*(self._attribute_of(one, value, name) for one in value.each()))

    def _attribute_of_any(self, value: _Value, name: str) -> _Value:
        """Return an attribute of an object that is not known."""
        self._read_first.add((None, name))
        found, is_method = [], False
        for holder in self._holders:
            member = inspect.getattr_static(_class_of(holder), name, _NOTHING)
            if member is not _NOTHING or name in attributes_of(holder):
                found.append(self._attribute_of(holder, _of(holder), name))
                is_method = is_method or isinstance(member, types.FunctionType)
        if name in _METHODS or not is_method:
            found.append(self._built_in(value, name))
        return _joined(*found)

    def _built_in(self, value: _Value, name: str) -> _Value:
        """Return an attribute of an array, a number, or a container."""
        if name in _VIEW_ATTRIBUTES:
            return value.unknown()
        if name in _METHODS:
            return _made(_Method(name, value))
        return _NUMBER if name in _ATTRIBUTES else _OUTSIDE

    def _attribute_of(self, holder: Any, value: _Value, name: str) -> _Value:
        """Return an attribute of an object."""
        cls = _class_of(holder)
        if value.flat or cls in PLAIN or cls in _USUAL:
            return self._built_in(value, name)
        if holder is _UNKNOWN:
            return self._attribute_of_any(value, name)
        if isinstance(holder, types.ModuleType):
            found = vars(holder).get(name, _NOTHING)
            if holder.__name__.partition(".")[0] in ("numpy", "math") and found is not _NOTHING:
                return _of(found)
            # Of a module that something holds, what is in it is not looked at beforehand.
            if id(found) in self._reached:
                return _NUMBER if type(found) in PLAIN else _of(found)
        elif isinstance(holder, np.ufunc):
            if name in ("reduce", "outer", "accumulate") and _is_compiled(holder):
                return _of(np.sum)
        elif isinstance(holder, type):
            member = inspect.getattr_static(holder, name, _NOTHING)
            if is_open(holder) and member is not _NOTHING:
                return _of(_bound(member, None, holder))
        elif cls.__name__ in _OWN_CLASSES and is_of(cls, "fastgrad"):
            if name in _OWN_METHODS:
                return _made(_Method(name, _of(holder)))
            known = attributes_of(holder)
            if name in ("W", "b", "params", "layers") and name in known:
                return _of(known[name])
        elif is_open(cls) or cls is types.SimpleNamespace:
            return self._attribute_of_instance(holder, cls, name)
        self._stop(f"uses {name} of a {cls.__name__}")

    def _attribute_of_instance(self, holder: Any, cls: type, name: str) -> _Value:
        key = id(holder), name
        if key in self._state:
            found: _Value = self._state[key]
            return found
        is_made = isinstance(holder, _Instance)
        attributes = {} if is_made else attributes_of(holder)
        if not is_made:
            self._read_first.add(key)
        member = inspect.getattr_static(cls, name, _NOTHING)
        if name in attributes and (type(member) is _SLOT or not hasattr(type(member), "__set__")):
            return _of(attributes[name])
        if isinstance(member, property) and isinstance(member.fget, types.FunctionType):
            return self._enter(member.fget, _Args([_of(holder)], {}))
        if member is _NOTHING and is_made:
            return _OUTSIDE  # what `__init__` was given
        if member is _NOTHING or isinstance(member, types.MethodDescriptorType):
            # Of a container. Else it is an error, unless it is set on the way.
            return self._built_in(_of(holder), name)
        bound = _bound(member, holder, cls)
        if bound is member and hasattr(type(member), "__get__"):
            self._stop(f"uses {name} of a {cls.__name__}")
        return _of(bound)

    def _store(self, target: ast.Attribute, stored: _Value) -> None:
        """Read the assignment of a value to an attribute."""
        holders = self._value(target.value)
        for holder in holders.each():
            cls = _class_of(holder)
            member = inspect.getattr_static(cls, target.attr, None)
            is_known = is_open(cls) or cls is types.SimpleNamespace
            is_made = isinstance(holder, _Instance) and holders.fresh
            if is_made and target.attr not in self._methods:
                continue
            has_setter = hasattr(type(member), "__set__") and type(member) is not _SLOT
            if not is_known or has_setter or isinstance(holder, type):
                self._stop(f"changes {ast.unparse(target)}")
            key = id(holder), target.attr
            self.writes.setdefault(key, self._place())
            if len(holders.objects) == 1:
                self._state[key] = stored

    # --- statements

    def _statements(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if self._state is None:
                return
            self._steps += 1
            if self._steps > _STEPS:
                self._stop("does more than is read")
            self._frames[-1].line = node.lineno
            self._statement(node)

    def _statement(self, node: ast.stmt) -> None:
        frame = self._frames[-1]
        match node:
            case ast.Pass() | ast.AnnAssign(value=None):
                pass
            case ast.Expr() | ast.Assert():
                self._parts(node)
            case ast.Return():
                frame.returned.append(self._value(node.value or ast.Constant(None)))
                frame.exits.append(self._state)
                self._state = None
            case ast.Raise():
                self._parts(node)
                self._state = None
            case ast.Break() | ast.Continue():
                self._jumps.append(self._state)
                self._state = None
            case ast.Assign(targets=[ast.Tuple() as names], value=ast.Tuple(elts=parts)) if (
                _is_whole(parts)
            ):
                self._assign(names, _made(tuple(map(self._value, parts))))
            case ast.Assign(value=source) | ast.AnnAssign(value=ast.expr() as source):
                value = self._value(source)
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._assign(target, value)
            case ast.AugAssign():
                self._augment(node.target, node.value)
            case ast.FunctionDef(decorator_list=[]):
                self._state[frame, node.name] = _made(_Local(node, frame))
            case ast.If():
                truth = self._truth(node.test)
                bodies = [node.body] * (truth is not False) + [node.orelse] * (truth is not True)
                self._paths(*(functools.partial(self._statements, body) for body in bodies))
            case ast.While(test=begin) | ast.For(iter=begin):
                self._repeat(functools.partial(self._turn, node, begin))
                self._paths(lambda: None, functools.partial(self._statements, node.orelse))
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case _:
                self._stop(f"has a {type(node).__name__.lower()} statement")

    def _turn(self, node: Any, begin: ast.expr) -> None:
        """Read the body of a loop once, after its condition or what it goes over."""
        if isinstance(node, ast.For):
            self._take(node.target, begin)
        else:
            self._value(begin)
        self._statements(node.body)

    def _truth(self, test: ast.expr) -> bool | None:
        """Return whether a condition holds if a flag decides, such as ``if verbose``."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            truth = self._truth(test.operand)
            return None if truth is None else not truth
        known = self._value(test).only()
        return bool(known) if type(known) in (bool, type(None)) else None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Read an import of NumPy or of `math`, which both are there already."""
        for alias in node.names:
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            root = module.partition(".")[0]
            value = sys.modules.get(module if alias.asname else root)
            if isinstance(node, ast.ImportFrom):
                value = getattr(sys.modules.get(module), alias.name, None)
            if value is None or root not in ("numpy", "math"):
                self._stop("has an import statement")
            name = alias.asname or alias.name.partition(".")[0]
            self._state[self._frames[-1], name] = _of(value)

    def _augment(self, target: Any, value: ast.expr) -> None:
        """Read ``target += value``."""
        self._value(value)
        place = target if isinstance(target, ast.Name) else target.value
        before = self._value(place)
        if isinstance(target, ast.Name) and before.fresh:
            self._assign(target, before.unknown())
        elif isinstance(target, ast.Subscript) and before.fresh and before.flat:
            self._parts(target)
        else:
            in_place = " in place" if isinstance(target, ast.Name) else ""
            self._stop(f"changes {ast.unparse(target)}{in_place}")

    def _assign(self, target: ast.expr, value: _Value) -> None:
        match target:
            case ast.Name():
                self._state[self._frames[-1], target.id] = value
            case ast.Tuple() | ast.List():
                self._iterate(value)
                count = len(target.elts) if _is_whole(target.elts) else -1
                for number, part in enumerate(target.elts):
                    self._assign(part, value.item(number, count))
            case ast.Starred():
                self._assign(target.value, _CONTAINER)
            case ast.Attribute():
                self._store(target, value)
            case ast.Subscript():
                self._value(target.slice)
                if not self._value(target.value).fresh:
                    self._stop(f"changes {ast.unparse(target.value)}")

    # --- expressions

    def _value(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant():
                return _of(node.value)
            case ast.Name():
                return self._name(node.id)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=[])):
                return self._super(node.attr)
            case ast.Attribute():
                return self._attribute(self._value(node.value), node.attr)
            case ast.Call():
                return self._call(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.BinOp():
                flat = [self._value(node.left).flat, self._value(node.right).flat]
                # A list may be added to a list, or multiplied by a number.
                lists = {ast.Add: 2, ast.Mult: 1}.get(type(node.op), 3)
                return _CONTAINER if flat.count(False) >= lists else _NUMBER
            case ast.BoolOp(values=[first, *rest]):
                return _joined(*self._some([first], rest))
            case ast.Compare(left=left, comparators=[right, *rest]):
                self._some([left, right], rest)
                return _NUMBER
            case ast.IfExp(test=test, body=one, orelse=other):
                self._value(test)
                return _joined(*self._paths(lambda: self._value(one), lambda: self._value(other)))
            case ast.UnaryOp() | ast.JoinedStr() | ast.FormattedValue() | ast.Slice():
                self._parts(node)
                return _NUMBER
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict():
                self._parts(node)
                return _CONTAINER
            case ast.ListComp() | ast.SetComp() | ast.DictComp():
                return self._comprehension(node)
            case ast.Lambda():
                return _made(_Local(node, self._frames[-1]))
        self._stop(f"has an expression of the kind {type(node).__name__}")

    def _parts(self, node: ast.AST) -> None:
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.Starred):
                self._iterate(self._value(part.value))
            elif isinstance(part, ast.expr):
                self._value(part)

    def _some(self, must: Sequence[ast.expr], may: Sequence[ast.expr]) -> list[_Value]:
        """Read operands of which only the first are certainly evaluated."""
        found = [self._value(node) for node in must]
        rest: list[_Value] = self._paths(list, lambda: [self._value(n) for n in may])[1]
        return found + rest

    def _comprehension(self, node: Any) -> _Value:
        frame = _Frame(self._frames[-1].function, self._frames[-1])
        frame.line = node.lineno
        self._frames.append(frame)
        self._repeat(functools.partial(self._element, node))
        self._frames.pop()
        return _CONTAINER

    def _element(self, node: Any) -> None:
        """Read what a comprehension does for one item."""
        for part in node.generators:
            self._take(part.target, part.iter)
            for test in part.ifs:
                self._value(test)
        self._parts(node)

    def _take(self, target: ast.expr, source: ast.expr) -> None:
        """Read the assignment of an item."""
        value = self._value(source)
        self._iterate(value)
        self._assign(target, value.item())

    def _name(self, name: str) -> _Value:
        frame: _Frame | None = self._frames[-1]
        function = self._frames[-1].function
        while frame is not None:
            if (frame, name) in self._state:
                found: _Value = self._state[frame, name]
                return found
            frame = frame.parent
        code = function.__code__
        if name not in (*code.co_varnames, *code.co_cellvars):
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
            with contextlib.suppress(ValueError):  # not bound yet
                cells = {name: cells[name].cell_contents} if name in cells else {}
                for space in (cells, function.__globals__, vars(builtins)):
                    if name in space:
                        return _of(space[name])
        return _OUTSIDE  # it is an error, unless it is set on another path

    def _call(self, node: ast.Call) -> _Value:
        f = self._value(node.func)
        args, starred = [], any(k.arg is None for k in node.keywords)
        is_eager = _EAGER.keys() >= f.objects.keys()
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                value = self._value(arg.value)
                self._iterate(value)
                rest = _items(value.only()) if value.fresh and not starred else None
                starred = rest is None
                args += rest or []
            elif isinstance(arg, ast.GeneratorExp) and is_eager:
                args.append(self._comprehension(arg))  # whose items are taken before all else
            else:
                args += [self._value(arg)][: not starred]
        keywords = {k.arg or "**": self._value(k.value) for k in node.keywords}
        self._frames[-1].line = node.lineno
        self._callee = ast.unparse(node.func)
        return self.apply(f, _Args(args, keywords, starred))

    def _super(self, name: str) -> _Value:
        """Return a method of the classes above that of the function that is being read."""
        cls = self._name("__class__").only()
        this = self._name(self._frames[-1].function.__code__.co_varnames[0])
        if this.objects == _ANY:
            return _OUTSIDE
        found = []
        for holder in this.each():
            order = _class_of(holder).__mro__
            above = order[order.index(cls) + 1 :] if cls in order else ()
            member = next((vars(c)[name] for c in above if name in vars(c)), None)
            if not isinstance(member, types.FunctionType):
                self._stop(f"uses super().{name}")
            found.append(_of(types.MethodType(member, holder)))
        return _joined(*found)

    def _subscript(self, node: ast.Subscript) -> _Value:
        holder = self._value(node.value)
        self._value(node.slice)
        self._iterate(holder)
        known = holder.only()
        key = node.slice
        if isinstance(key, ast.Constant) and type(known) in _PLACES:
            with contextlib.suppress(KeyError, IndexError, TypeError):
                return _of(known[key.value])
        if type(known) in _DICTS and 0 < len(known) <= _MEMORY:
            return _joined(*map(_of, known.values()))
        is_one = isinstance(key, ast.Name | ast.BinOp | ast.UnaryOp)
        return holder.item() if is_one else holder.unknown().item()


# ------------------------------------------------------------------------------------- the front

_known: dict[Any, tuple[Reading, list[Any]]] = {}


def read(f: Any, *args: Any) -> Reading:
    """Read whether a function does nothing but return a number.

    Parameters
    ----------
    f : callable
        It is not called.
    *args
        What it is going to be called with.

    Returns
    -------
    Reading
        Remembered by the code and the types that f can reach, so that a function rebound since
        is noticed.

    Examples
    --------
    >>> history = []
    >>> read(lambda x: np.sum(x**2), np.zeros(3)).obstacle  # doctest: +SKIP
    ''
    >>> read(lambda x: history.append(x), np.zeros(3)).obstacle  # doctest: +SKIP
    'train.py:31 appends to history'
    """
    reach = Reach(f, args)
    if not {"call", "print", "log"}.isdisjoint(np.geterr().values()):
        return Reading("np.seterr has every floating-point error reported", stores=False)
    if reach.obstacle:
        return Reading(reach.obstacle, stores=False)
    key = tuple(reach.fingerprint)
    with contextlib.suppress(KeyError):
        return _known[key][0]._replace(objects=reach.objects)
    reader = _Reader(reach)
    obstacle = reader.obstacle(f, _Args([], {}).after(*args))
    records = [] if obstacle else reader.records()
    if records:
        obstacle = f"{reader.writes[records[0]]} keeps a record in {records[0][1]}"
        numbers = {id(value): number for number, value in enumerate(reach.objects)}
        records = [(numbers.get(holder, -1), name) for holder, name in records]
    is_known = all(number >= 0 for number, _ in records)
    reading = Reading(obstacle, bool(reader.writes), records=records if is_known else [])
    if len(_known) >= _MEMORY:
        _known.clear()
    _known[key] = reading, reach.kept
    return reading._replace(objects=reach.objects)


def read_loop(loop: Any, args: Sequence[Any], keywords: dict[str, Any], f: int, x: int) -> str:
    """Read whether a loop does nothing but evaluate a function at points, and combine the values.

    Parameters
    ----------
    loop : function
        It is not called.
    args, keywords
        What it is going to be called with.
    f : int
        Which positional argument is the function. What it does is not looked at.
    x : int
        Which one is the array that the loop may change, and restores.

    Returns
    -------
    str
        The first thing found that somebody could notice; empty if there is none.

    Examples
    --------
    >>> def slopes(f, x):
    ...     print(x)
    >>> read_loop(slopes, [np.sum, np.zeros(2)], {}, 0, 1)  # doctest: +SKIP
    'gradients.py:7 calls print'
    """
    reach = Reach(loop, [a for i, a in enumerate(args) if i != f])
    if reach.obstacle:
        return reach.obstacle
    values = list(args)
    values[f], values[x] = np.sum, _NUMBER
    reader = _Reader(reach)
    found = reader.obstacle(loop, _Args([], {}).after(*values, **keywords))
    return found or next(iter(reader.writes.values()), "")
