"""Reading a function before it is run: whether it does nothing but return a number.

A function may be evaluated fewer times than its author wrote, or at other points, only if nobody
can tell. Pictures of the state before and after miss a counter in an array or a private generator;
the code hides nothing. So the syntax tree of the function, and of every function of the reader's
that it calls, is interpreted with *values of which little is known*: which objects an expression
can be, and whether it was made inside the evaluation. All branches are read.

What is harmless is listed: arithmetic, NumPy's functions, pure built-in ones, assignments to local
names, into arrays made inside, and of a fresh value to an attribute. All else is an *obstacle*.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import linecache
import math
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Reading", "reachable", "read", "read_loop"]


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
    """

    obstacle: str
    stores: bool


#: Objects that are looked at, statements that are read, and readings that are remembered.
_REACH, _STEPS, _MEMORY = 20_000, 20_000, 64
#: What cannot be changed, and holds nothing.
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(Ellipsis), slice})
#: What `np.seterr` can be told to do at each error, so that one can count how many there are.
_REPORTED = frozenset({"call", "print", "log"})
_CONTAINERS: Any = dict | list | tuple | set | frozenset | deque

# ------------------------------------------------------------------------------ what is in reach


def reachable(f: Any, *args: Any) -> Iterator[Any]:
    """Yield what a function can reach by name, the nearest first.

    That is: its closure, defaults, the globals that its code names, and their attributes and
    contents; arrays and numbers as often as they are met, all else once.
    """
    return iter(_Reach(f, args).objects)


class _Reach:
    """The objects that a function can reach, and a fingerprint of their types and code."""

    def __init__(self, f: Any, args: Iterable[Any] = ()) -> None:
        self.objects: list[Any] = []
        #: Equal for two functions that read alike. What it names by id is kept alive by `kept`.
        self.fingerprint: list[Any] = []
        self.kept: list[Any] = []
        self.is_complete = True
        self._numbers: dict[int, int] = {}
        self._queue: deque[Any] = deque((f, *args))
        while self._queue:
            if len(self.objects) > _REACH:
                self.is_complete = False
                break
            self._visit(self._queue.popleft())

    def _visit(self, value: Any) -> None:
        cls = type(value)
        if cls is np.ndarray or cls in _PLAIN or isinstance(value, np.generic):
            self.objects.append(value)
            self.fingerprint.append(id(cls))
            return
        number = self._numbers.setdefault(id(value), len(self.objects))
        if number < len(self.objects):
            self.fingerprint.append(number)
            return
        self.objects.append(value)
        if isinstance(value, types.FunctionType):
            self._note(value.__code__)
            if _is_open(value):
                self._queue.extend(_named(value))
        elif isinstance(value, types.MethodType):
            self._note(cls)
            self._queue.extend((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            self._note(cls)
            self._queue.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, property):
            self._note(cls)
            self._queue.extend((value.fget, value.fset))
        elif isinstance(value, staticmethod | classmethod):
            self._note(cls)
            self._queue.append(value.__func__)
        elif isinstance(value, type):
            self._note(value)
            for base in value.__mro__:
                if _is_open(base):
                    self.fingerprint.append(tuple(vars(base)))
                    self._queue.extend(
                        v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__")
                    )
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType | np.ufunc):
            self._note(value)
        else:
            self._visit_an_instance(value, cls)

    def _visit_an_instance(self, value: Any, cls: type) -> None:
        self._note(cls)
        if isinstance(value, _CONTAINERS):
            contents = [*value, *value.values()] if isinstance(value, dict) else list(value)
            kinds = set(map(type, contents))
            if kinds <= _PLAIN:
                self.fingerprint.append(frozenset(map(id, kinds)))
            else:
                self.fingerprint.append(len(contents))
                self._queue.extend(contents)
        if not _is_open(cls) and not _is_of(cls, "fastgrad") and cls is not types.SimpleNamespace:
            return
        attributes = _attributes(value)
        self.fingerprint.append(tuple(attributes))
        self._queue.extend(attributes.values())
        if _is_open(cls):
            self._queue.append(cls)

    def _note(self, value: Any) -> None:
        self.fingerprint.append(id(value))
        self.kept.append(value)


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots too, without running any code of its class."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError):
        found = {}
    for base in type(value).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError, TypeError):  # not set yet
                    found[name] = member.__get__(value)
    return found


def _is_of(value: Any, *packages: str) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in packages


#: Modules of ours with the book's formulas in plain NumPy, which are read as the reader's are.
_FORMULAS = frozenset({"fastgrad.book.functions", "fastgrad.book.layers"})


@functools.cache
def _is_the_readers(module: str) -> bool:
    """Return whether a module is neither the standard library's, nor installed, nor ours."""
    if module in _FORMULAS:
        return True
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("fastgrad", "numpy"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not any(folder in file for folder in ("site-packages", "dist-packages"))


def _is_open(value: Any) -> bool:
    """Return whether the code of a function or class is the reader's."""
    return _is_the_readers(str(getattr(value, "__module__", None) or ""))


@functools.lru_cache(1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in a function's code, and in those inside it."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names(constant)))
    return tuple(names)


def _named(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's code names: its closure, its defaults, globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = _names(function.__code__)
    modules = []
    for name in names:
        value = function.__globals__.get(name, _NOTHING)
        if isinstance(value, types.ModuleType):
            modules.append(value)
        if value is not _NOTHING:
            yield value
    for module in modules:  # and `np.linalg.norm`, with its parts
        for name in names:
            value = vars(module).get(name, _NOTHING)
            if isinstance(value, types.ModuleType) and value not in modules:
                modules.append(value)
            if value is not _NOTHING:
                yield value


# --------------------------------------------------------------------------- what values can be

_NOTHING: Any = object()


class _Value:
    """What is known of an expression's value.

    Attributes
    ----------
    objects : tuple or None
        The objects that it can be; None if that is not known.
    fresh : bool
        Whether it was made inside, or cannot be changed.
    flat : bool
        Whether it is an array or number: no container, whose items may be from outside.
    """

    __slots__ = ("flat", "fresh", "objects")

    def __init__(self, objects: tuple[Any, ...] | None, fresh: bool, flat: bool) -> None:
        self.objects, self.fresh, self.flat = objects, fresh, flat

    def joined(self, other: _Value) -> _Value:
        """Return what is known of a value that is one of two."""
        objects = None
        if self.objects is not None and other.objects is not None:
            known = {id(value): value for value in (*self.objects, *other.objects)}
            objects = tuple(known.values()) if len(known) <= _MEMORY else None
        return _Value(objects, self.fresh and other.fresh, self.flat and other.flat)

    def item(self) -> _Value:
        """Return what is known of an item; that of an array is a view."""
        return _Value(None, self.fresh and self.flat, self.flat)

    def is_like(self, other: _Value) -> bool:
        """Return whether as much is known of the two."""
        known = [v.objects if v.objects is None else set(map(id, v.objects)) for v in (self, other)]
        return known[0] == known[1] and (self.fresh, self.flat) == (other.fresh, other.flat)


_NUMBER = _Value(None, fresh=True, flat=True)
_CONTAINER = _Value(None, fresh=True, flat=False)
_OUTSIDE = _Value(None, fresh=False, flat=False)


def _of(value: Any) -> _Value:
    """Return the value of a known object from outside."""
    is_plain = type(value) in _PLAIN or isinstance(value, np.generic)
    return _Value((value,), is_plain, is_plain or type(value) is np.ndarray)


class _Method(NamedTuple):
    """A method of something built in, or of something unknown."""

    name: str
    receiver: _Value


class _Instance(NamedTuple):
    """An object of a class of the reader's that the evaluation makes."""

    cls: type


class _Super(NamedTuple):
    """What ``super()`` returns."""

    cls: type
    receiver: Any


class _Local(NamedTuple):
    """A function that the evaluation defines."""

    node: Any
    frame: _Frame


# ------------------------------------------------------------------------------ what is harmless


def _words(text: str) -> list[str]:
    return text.split()


_BUILTINS: frozenset[Any] = frozenset(
    getattr(builtins, name)
    for name in _words(
        "abs all any bool bytes complex dict divmod enumerate float frozenset int isinstance "
        "issubclass len list max min pow range repr reversed round set slice sorted str sum tuple "
        "zip"
    )
)
_MAKE_NUMBERS = frozenset(
    {abs, all, any, bool, complex, float, int, isinstance, issubclass, len, pow, repr, round, str}
)
#: NumPy's functions that return something new, and those that may return a view.
_NEW = frozenset(
    getattr(np, name)
    for name in _words(
        "all allclose amax amin any append arange argmax argmin argsort around array array_equal "
        "average bincount clip concatenate copy corrcoef count_nonzero cov cross cumprod cumsum "
        "diff dot einsum empty empty_like eye flatnonzero full full_like hstack identity inner "
        "interp isclose iscomplexobj isnan isscalar kron linspace logspace max mean median "
        "meshgrid min nanmax nanmean nanmin nansum ndim nonzero ones ones_like outer pad "
        "percentile prod quantile repeat round shape size sort stack std sum take tensordot tile "
        "trace tri tril triu unique unravel_index vdot var vstack where zeros zeros_like"
    )
    if hasattr(np, name)
) | {np.linalg.norm, np.linalg.det, np.linalg.inv, np.linalg.solve}
_VIEWS = frozenset(
    getattr(np, name)
    for name in _words(
        "array_split asanyarray asarray ascontiguousarray asfortranarray atleast_1d atleast_2d "
        "atleast_3d broadcast_to diag diagonal expand_dims flip fliplr flipud hsplit imag moveaxis "
        "nan_to_num ravel real reshape rollaxis rot90 split squeeze swapaxes transpose vsplit"
    )
)
#: Methods of arrays, numbers, strings and containers: those that return something new, may return
#: a view or an item, and change what they belong to.
_NEW_METHODS = frozenset(
    _words(
        "all any argmax argmin argsort astype clip conj copy count cumprod cumsum dot flatten "
        "index item lower max mean min nonzero prod repeat round std sum take tolist trace upper "
        "var startswith endswith is_integer"
    )
)
_VIEW_METHODS = frozenset(
    _words("diagonal get items keys ravel reshape squeeze swapaxes transpose values view")
)
_CHANGING_METHODS = frozenset(
    _words(
        "add append appendleft clear extend fill insert itemset partition pop popitem popleft put "
        "remove resize reverse setdefault sort update"
    )
)
_ATTRIBUTES = frozenset(
    {"T", "dtype", "imag", "itemsize", "nbytes", "ndim", "real", "shape", "size"}
)
#: Special methods that no operator calls.
_NO_OPERATORS = frozenset(
    _words(
        "__init__ __call__ __enter__ __exit__ __getstate__ __setstate__ __reduce__ "
        "__init_subclass__ __class_getitem__ __annotate__ __annotate_func__ __deepcopy__ __copy__"
    )
)
#: What is known of this package's own classes: they remember what they computed, and no more.
_OWN_CLASSES = frozenset(
    _words(
        "Affine Sigmoid Relu SoftmaxWithLoss MulLayer AddLayer Convolution Pooling TwoLayerNet "
        "MultiLayerNet LayeredTwoLayerNet LayeredMultiLayerNet"
    )
)
_OWN_METHODS = frozenset({"forward", "predict", "loss", "accuracy"})


@functools.lru_cache(512)
def _inputs(function: Any) -> int:
    """Return how many positional arguments a function of NumPy takes before ``out``."""
    if isinstance(function, np.ufunc):
        return function.nin
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return 2 if function is np.dot else 99
    if "out" not in parameters or parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY:
        return 99
    return list(parameters).index("out")


# ------------------------------------------------------------------------------ finding the code


@functools.lru_cache(128)
def _functions_in(lines: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the syntax trees of all functions in a file."""
    tree = ast.parse("".join(lines))
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda))


@functools.lru_cache(1024)
def _node(code: types.CodeType) -> Any:
    """Return the syntax tree of a function; None if there is none, or it is another one's."""
    lines = linecache.getlines(code.co_filename)
    try:
        nodes = _functions_in(tuple(lines))
    except (SyntaxError, ValueError):
        return None
    places = [(p[0], p[2]) for p in code.co_positions() if None not in p and p[1:3] != (0, 0)]
    best = None
    for node in nodes:
        name = getattr(node, "name", "<lambda>")
        decorators = getattr(node, "decorator_list", [])
        first = min(n.lineno for n in (node, *decorators))
        if name != code.co_name or first != code.co_firstlineno:
            continue
        if name == "<lambda>":
            begin = node.body.lineno, node.body.col_offset
            end = node.body.end_lineno, node.body.end_col_offset
            inside = [place for place in places if place != (code.co_firstlineno, 0)]
            if not all(begin <= place <= end for place in inside):
                continue
        if best is None or ast.unparse(best).find(ast.unparse(node)) >= 0:
            best = node
    return best if best is not None and _belongs(best, code) else None


def _belongs(node: Any, code: types.CodeType) -> bool:
    """Return whether the names in a tree are those in the code; a file may have been edited."""
    there = set(_names(code)) | {"dot"}
    codes = [code]
    for inner in codes:
        there |= {*inner.co_varnames, *inner.co_freevars, *inner.co_cellvars, inner.co_name}
        codes += [c for c in inner.co_consts if isinstance(c, types.CodeType)]
    body = node.body if isinstance(node.body, list) else [node.body]
    named = {
        n.id if isinstance(n, ast.Name) else n.attr
        for statement in body
        for n in ast.walk(statement)
        if isinstance(n, ast.Name | ast.Attribute)
    }
    return all(
        name in there or name == "__debug__" or any(t.endswith(name) for t in there)
        for name in named
    )


# ---------------------------------------------------------------------------------- the reading


class _Obstacle(Exception):  # noqa: N818 - no error
    """Something that somebody could notice."""


class _Frame:
    """A call that is being read: its names, and the values that it may return."""

    def __init__(self, code: Any, function: Any, parent: _Frame | None = None) -> None:
        self.code, self.function, self.parent = code, function, parent
        self.names: dict[str, _Value] = {}
        self.returned: _Value | None = None
        self.exits: list[dict[Any, _Value]] = []
        self.line = 0

    def place(self) -> str:
        return f"{Path(self.code.co_filename).name}:{self.line}"


class _Reader:
    """Reads a function and what it calls."""

    def __init__(self, reach: _Reach) -> None:
        self._steps = 0
        self._frames: list[_Frame] = []
        #: Attributes that have certainly been written so far, and what they hold.
        self._written: dict[Any, _Value] = {}
        #: Attributes that are read before that, and where attributes are written.
        self._read_first: set[Any] = set()
        self.writes: dict[Any, str] = {}
        self._instances = [v for v in reach.objects if not isinstance(v, np.ndarray | type)]
        self._classes = [v for v in reach.objects if isinstance(v, type) and _is_open(v)]
        self._classes += [
            c for v in self._instances if (c := type(v)) not in self._classes and _is_open(c)
        ]
        self._has_defaults = any(isinstance(v, defaultdict) for v in self._instances)
        self._has_iterators = any(hasattr(type(v), "__next__") for v in self._instances)

    def read(self, f: Any, args: Sequence[_Value], keywords: dict[str, _Value]) -> None:
        """Read f and, as any operator may call them, the special methods within reach."""
        self._apply(f, list(args), keywords)
        for cls in self._classes:
            for base in cls.__mro__:
                for name, method in vars(base).items() if _is_open(base) else ():
                    if not (name.startswith("__") and isinstance(method, types.FunctionType)):
                        continue
                    if name in ("__getattr__", "__getattribute__", "__setattr__", "__del__"):
                        raise _Obstacle(f"{cls.__name__} has a {name} of its own")
                    if name not in _NO_OPERATORS:
                        self._function(method, [_OUTSIDE] * 9, {}, any_number=True)
        for (holder, name), place in self.writes.items():
            if {(holder, name), (None, name)} & self._read_first:
                raise _Obstacle(f"{place} keeps a record in {name}")

    def _stop(self, what: str) -> None:
        place = next((f.place() for f in reversed(self._frames)), "")
        raise _Obstacle(f"{place} {what}".strip())

    # --- calls

    def _apply(
        self, f: Any, args: list[_Value], keywords: dict[str, _Value], starred: bool = False
    ) -> _Value:
        """Read a call of a known object."""
        everything = [*args, *keywords.values()]
        if isinstance(f, types.MethodType):
            return self._apply(f.__func__, [_of(f.__self__), *args], keywords, starred)
        if isinstance(f, functools.partial):
            given = {k: _of(v) for k, v in f.keywords.items()}
            return self._apply(f.func, [*map(_of, f.args), *args], given | keywords, starred)
        if isinstance(f, _Method):
            return self._method(f, args, keywords, starred)
        if isinstance(f, _Local):
            return self._local(f, args, keywords, starred)
        if isinstance(f, types.FunctionType) and _is_open(f):
            return self._function(f, args, keywords, starred)
        if _is_numpys(f) or _is_compiled(f):
            return self._of_numpy(f, args, keywords, starred)
        if isinstance(f, type):
            return self._class(f, args, keywords, starred)
        if f in _BUILTINS if isinstance(f, types.BuiltinFunctionType) else False:
            return self._builtin(f, everything, keywords)
        if getattr(f, "__module__", None) == "math" and f is getattr(math, f.__name__, None):
            self._iterate(*everything)
            return _NUMBER
        if _is_of(f, "fastgrad") and str(f.__module__) == "fastgrad.nn.functions":
            fresh = f.__name__ != "identity_function" or all(v.fresh for v in everything)
            return _Value(None, fresh, flat=True)
        call = inspect.getattr_static(type(f), "__call__", None)
        if _is_open(type(f)) and isinstance(call, types.FunctionType):
            return self._function(call, [_of(f), *args], keywords, starred)
        self._stop(f"calls {getattr(f, '__name__', type(f).__name__)}")
        return _OUTSIDE

    def _function(
        self,
        f: types.FunctionType,
        args: list[_Value],
        keywords: dict[str, _Value],
        starred: bool = False,
        any_number: bool = False,
    ) -> _Value:
        """Read a call of a function of the reader's."""
        node = _node(f.__code__)
        if node is None:
            self._stop(f"calls {f.__qualname__}, whose source is not to be had")
        defaults = [_of(v) for v in f.__defaults__ or ()]
        named = {name: _of(value) for name, value in (f.__kwdefaults__ or {}).items()}
        frame = _Frame(f.__code__, f)
        self._bind(frame, node.args, args, keywords, defaults, named, starred or any_number)
        return self._body(frame, node)

    def _local(
        self, f: _Local, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        frame = _Frame(f.frame.code, f.frame.function, f.frame)
        defaults = [_OUTSIDE] * len(f.node.args.defaults)
        named = {a.arg: _OUTSIDE for a in f.node.args.kwonlyargs}
        self._bind(frame, f.node.args, args, keywords, defaults, named, starred)
        return self._body(frame, f.node)

    def _bind(
        self,
        frame: _Frame,
        wanted: ast.arguments,
        args: list[_Value],
        keywords: dict[str, _Value],
        defaults: list[_Value],
        named: dict[str, _Value],
        starred: bool,
    ) -> None:
        """Put the arguments of a call into the names of its frame."""
        names = [a.arg for a in (*wanted.posonlyargs, *wanted.args)]
        values = {}
        if not starred:
            values = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | named
        values.update(zip(names, args, strict=False))
        values.update(keywords)
        for name in (*names, *(a.arg for a in wanted.kwonlyargs)):
            frame.names[name] = values.get(name, _OUTSIDE)
        for rest in (wanted.vararg, wanted.kwarg):
            if rest is not None:
                frame.names[rest.arg] = _CONTAINER

    def _body(self, frame: _Frame, node: Any) -> _Value:
        if len(self._frames) > 40:
            self._stop("calls itself")
        self._frames.append(frame)
        frame.line = node.lineno
        if isinstance(node, ast.Lambda):
            result = self._value(node.body)
        else:
            ends = self._statements(node.body)
            result = frame.returned or _NUMBER
            exits = frame.exits if ends else [*frame.exits, self._written]
            if exits:
                self._written = functools.reduce(_both, exits)
        self._frames.pop()
        return result

    def _class(
        self, cls: type, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        """Read the making of an object."""
        everything = [*args, *keywords.values()]
        if issubclass(cls, np.generic | np.dtype) and not _is_open(cls):
            return _NUMBER
        if cls in _BUILTINS:
            return self._builtin(cls, everything, keywords)
        if cls is OrderedDict:
            self._iterate(*everything)
            return _CONTAINER
        if issubclass(cls, BaseException) and cls.__module__ == "builtins":
            return _CONTAINER
        if cls is type and len(args) == 1:
            return _OUTSIDE
        init = inspect.getattr_static(cls, "__init__", None)
        new = inspect.getattr_static(cls, "__new__", None)
        is_simple = type(cls) is type and new is inspect.getattr_static(object, "__new__")
        if not (_is_open(cls) and is_simple):
            self._stop(f"makes a {cls.__name__}")
        made = _Value((_Instance(cls),), fresh=True, flat=False)
        if isinstance(init, types.FunctionType):
            self._function(init, [made, *args], keywords, starred)
        return made

    def _builtin(self, f: Any, args: list[_Value], keywords: dict[str, _Value]) -> _Value:
        self._iterate(*args)
        for name, value in keywords.items():
            if name == "key" and value.objects is None:
                self._stop(f"calls {f.__name__} with an unknown key")
        self._call_back(args)
        if f in _MAKE_NUMBERS:
            return _NUMBER
        if f in (max, min, sum):
            return functools.reduce(_Value.joined, (v.item() for v in args), _NUMBER).joined(
                functools.reduce(_Value.joined, args, _NUMBER)
            )
        return _CONTAINER

    def _call_back(self, args: Iterable[_Value]) -> None:
        """Read the functions that are handed to a built-in one."""
        for value in args:
            for f in value.objects or ():
                if isinstance(f, types.FunctionType | types.MethodType | _Local):
                    self._apply(f, [_OUTSIDE] * 9, {}, starred=True)

    def _of_numpy(
        self, f: Any, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        self._iterate(*args)
        name = getattr(f, "__name__", "a function of NumPy")
        out = keywords.get("out")
        changes = out is not None and not (out.fresh and out.flat)
        if changes or len(args) > _inputs(f) or (starred and _inputs(f) < 99) or "**" in keywords:
            self._stop(f"writes into an argument of np.{name}")
        if isinstance(f, np.ufunc) or (isinstance(f, type) and issubclass(f, np.generic)):
            return _NUMBER
        if f in _VIEWS or (f is np.array and "copy" in keywords):
            return _Value(None, all(v.fresh and v.flat for v in args), flat=True)
        if f not in _NEW:
            self._stop(f"calls {'np.' if _is_of(f, 'numpy') else ''}{name}")
        return _NUMBER

    def _method(
        self, method: _Method, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        """Read a call of a method of something built in, or of something unknown."""
        name, receiver = method
        results = []
        if receiver.objects is None and not receiver.flat:
            calls = [
                functools.partial(
                    self._function, f, [_Value((holder,), False, False), *args], keywords, starred
                )
                for f, holder in self._methods(name)
            ]
            if calls:
                written = self._written
                results = [self._any_of(calls)]
                self._written = _both(written, self._written)
        if name in _OWN_METHODS:
            own = self._instances if receiver.objects is None else receiver.objects
            if any(map(_own_class, own)):
                self.writes.setdefault((None, f".{name}"), self._frames[-1].place())
                results.append(_OUTSIDE)
        out = keywords.get("out")
        most = 1 if name in ("dot", "max", "min", "argmax", "argmin", "all", "any") else 2
        is_reduction = name in _NEW_METHODS and not name.endswith("with")
        unclear = is_reduction and starred
        if (out is not None and not out.fresh) or (is_reduction and len(args) > most) or unclear:
            self._stop(f"writes into an argument of {name}")
        self._iterate(*args)
        self._call_back([*args, *keywords.values()])
        if name in _NEW_METHODS or (name in _VIEW_METHODS and name != "get"):
            is_new = name in _NEW_METHODS and "copy" not in keywords
            if name == "tolist" or (name == "copy" and not receiver.flat):
                results.append(_CONTAINER)
            elif name in ("items", "keys", "values"):
                results.append(_Value(None, fresh=False, flat=False))
            elif is_new:
                results.append(_NUMBER)
            else:
                results.append(_Value(None, receiver.fresh and receiver.flat, receiver.flat))
        elif name == "get":
            results.append(_OUTSIDE)
        elif name in _CHANGING_METHODS:
            if not receiver.fresh:
                self._stop(f"{_VERBS.get(name, 'changes')} {self._subject}")
            results.append(_OUTSIDE)
        elif not results:
            self._stop(f"calls {name}")
        return functools.reduce(_Value.joined, results)

    def _methods(self, name: str) -> Iterator[tuple[types.FunctionType, Any]]:
        """Yield the methods of a name within reach, each with every object that it may be of."""
        for cls in self._classes:
            member = inspect.getattr_static(cls, name, None)
            holders: list[Any] = [v for v in self._instances if type(v) is cls]
            if isinstance(member, types.FunctionType):
                if not _is_open(member):
                    self._stop(f"may call {name} of {cls.__name__}")
                for holder in holders or [_Instance(cls)]:
                    yield member, holder
            elif member is not None or isinstance(member, staticmethod | classmethod):
                self._stop(f"may call {name} of {cls.__name__}")
        for holder in self._instances:
            is_holder = _is_open(type(holder)) or type(holder) is types.SimpleNamespace
            if is_holder and callable(_attributes(holder).get(name)):
                self._stop(f"may call an attribute {name}")

    def _iterate(self, *values: _Value) -> None:
        """Stop at what changes when it is iterated over."""
        for value in values:
            known = value.objects
            if known is None and not value.fresh and not value.flat and self._has_iterators:
                self._stop("may take items from an iterator")
            for v in known or ():
                if hasattr(type(v), "__next__"):
                    self._stop("takes items from an iterator")

    # --- attributes

    def _attribute(self, value: _Value, name: str) -> _Value:
        if name.startswith("__") and name.endswith("__"):
            self._stop(f"uses {name}")
        if value.objects is None:
            return self._attribute_of_unknown(value, name)
        found = [self._attribute_of(v, value, name) for v in value.objects]
        return functools.reduce(_Value.joined, found)

    def _attribute_of_unknown(self, value: _Value, name: str) -> _Value:
        self._read_first.add((None, name))
        if not value.flat:
            for cls in self._classes:
                member = inspect.getattr_static(cls, name, None)
                if member is not None and not isinstance(
                    member, types.FunctionType | types.MemberDescriptorType | int | float | str
                ):
                    self._stop(f"may use {name} of {cls.__name__}")
            if not any(name in s for s in (_NEW_METHODS, _VIEW_METHODS, _CHANGING_METHODS)):
                methods = any(hasattr(cls, name) for cls in self._classes)
                if name not in _OWN_METHODS and not methods:
                    fresh = name in ("shape", "ndim", "size", "dtype")
                    return _NUMBER if fresh else _OUTSIDE
            return _Value((_Method(name, value),), fresh=False, flat=False)
        return self._attribute_of_array(value, name)

    def _attribute_of_array(self, value: _Value, name: str) -> _Value:
        if name in ("T", "real", "imag", "flat"):
            return _Value(None, value.fresh, value.flat)
        return _NUMBER if name in _ATTRIBUTES else _Value((_Method(name, value),), False, False)

    def _attribute_of(self, holder: Any, value: _Value, name: str) -> _Value:
        """Return an attribute of a known object."""
        cls = type(holder)
        if isinstance(holder, types.ModuleType):
            try:
                return _of(getattr(holder, name) if _is_numpys(holder) else vars(holder)[name])
            except (AttributeError, KeyError):
                self._stop(f"uses {name} of {holder.__name__}")
        if cls is np.ndarray or cls in _PLAIN or isinstance(holder, np.generic):
            return self._attribute_of_array(value, name)
        if isinstance(holder, np.ufunc):
            if name not in ("reduce", "outer", "accumulate") or not _is_compiled(holder):
                self._stop(f"calls np.{holder.__name__}.{name}")
            return _of(np.sum)
        if isinstance(holder, _Super):
            order = type(holder.receiver).__mro__
            for base in order[order.index(holder.cls) + 1 :]:
                if name in vars(base):
                    return self._member(vars(base)[name], holder.receiver, base, name)
        if isinstance(holder, _Instance):
            member = inspect.getattr_static(holder.cls, name, _NOTHING)
            return _OUTSIDE if member is _NOTHING else self._member(member, holder, cls, name)
        if isinstance(holder, type) and _is_open(holder):
            member = inspect.getattr_static(holder, name, _NOTHING)
            if isinstance(member, staticmethod):
                return _of(member.__func__)
            if isinstance(member, classmethod):
                return _of(types.MethodType(member.__func__, holder))
            if member is not _NOTHING:
                return _of(member)
        if _own_class(holder):
            if name in _OWN_METHODS:
                return _Value((_Method(name, _Value((holder,), False, False)),), False, False)
            if name in ("W", "b", "params", "layers"):
                return _of(_attributes(holder)[name])
        elif _is_open(cls) or cls is types.SimpleNamespace:
            return self._attribute_of_instance(holder, name)
        elif isinstance(holder, _CONTAINERS):
            return _Value((_Method(name, value),), False, False)
        self._stop(f"uses {name} of a {cls.__name__}")
        return _OUTSIDE

    def _attribute_of_instance(self, holder: Any, name: str) -> _Value:
        key = id(holder), name
        if key in self._written:
            return self._written[key]
        self._read_first.add(key)
        member = inspect.getattr_static(type(holder), name, _NOTHING)
        attributes = _attributes(holder)
        if name in attributes and not hasattr(type(member), "__set__"):
            return _of(attributes[name])
        if name in attributes and isinstance(member, types.MemberDescriptorType):
            return _of(attributes[name])
        if member is _NOTHING:
            if isinstance(holder, _CONTAINERS):
                return _Value((_Method(name, _of(holder)),), False, False)
            return _OUTSIDE  # it is an error, unless something sets it on the way
        return self._member(member, holder, type(holder), name)

    def _member(self, member: Any, holder: Any, cls: type, name: str) -> _Value:
        """Return what an attribute of a class is for an object."""
        if isinstance(member, types.FunctionType):
            return _of(_bound(member, holder))
        if isinstance(member, staticmethod):
            return _of(member.__func__)
        if isinstance(member, classmethod):
            return _of(_bound(member.__func__, getattr(holder, "cls", type(holder))))
        if isinstance(member, property) and isinstance(member.fget, types.FunctionType):
            return self._function(member.fget, [_Value((holder,), False, False)], {})
        if member is vars(object).get(name):
            return _of(_no_init)
        if hasattr(type(member), "__get__"):
            self._stop(f"uses {name} of {cls.__name__}")
        return _of(member)

    def _store(self, target: ast.Attribute, stored: _Value) -> None:
        """Read the assignment of a value to an attribute."""
        holders = self._value(target.value)
        for holder in holders.objects or (None,):
            if isinstance(holder, _Instance) and holders.fresh:
                continue
            cls = holder.cls if isinstance(holder, _Instance) else type(holder)
            member = inspect.getattr_static(cls, target.attr, None)
            is_plain = not hasattr(type(member), "__set__") or isinstance(
                member, types.MemberDescriptorType
            )
            is_known = holder is not None and (_is_open(cls) or cls is types.SimpleNamespace)
            if not (is_known and is_plain and not isinstance(holder, type)):
                self._stop(f"changes {ast.unparse(target)}")
            key = id(holder), target.attr
            self.writes.setdefault(key, self._frames[-1].place())
            if len(holders.objects or ()) == 1:
                self._written[key] = stored

    # --- statements; they return whether control never comes to what follows

    def _statements(self, body: Sequence[ast.stmt]) -> bool:
        for statement in body:
            self._steps += 1
            if self._steps > _STEPS:
                self._stop("does more than is read")
            self._frames[-1].line = statement.lineno
            method = getattr(self, f"_read_{type(statement).__name__}", None)
            if method is None:
                self._stop(f"has a {type(statement).__name__.lower()} statement")
            elif method(statement):
                return True
        return False

    def _read_Pass(self, _: ast.Pass) -> None:  # noqa: N802 - called by the names of nodes
        pass

    def _read_Break(self, _: ast.Break) -> None:  # noqa: N802
        pass

    _read_Continue = _read_Break  # noqa: N815

    def _read_Expr(self, node: ast.Expr) -> None:  # noqa: N802
        self._value(node.value)

    def _read_Return(self, node: ast.Return) -> bool:  # noqa: N802
        frame = self._frames[-1]
        value = _NUMBER if node.value is None else self._value(node.value)
        frame.returned = value if frame.returned is None else frame.returned.joined(value)
        frame.exits.append(dict(self._written))
        return True

    def _read_Raise(self, node: ast.Raise) -> bool:  # noqa: N802
        if node.exc is not None:
            self._value(node.exc)
        return True

    def _read_Assert(self, node: ast.Assert) -> None:  # noqa: N802
        self._value(node.test)

    def _read_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        value = self._value(node.value)
        for target in node.targets:
            self._assign(target, value, node.value)

    def _read_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802
        if node.value is not None:
            self._assign(node.target, self._value(node.value), node.value)

    def _read_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        self._value(node.value)
        target = node.target
        if isinstance(target, ast.Name):
            before = self._name(target.id)
            if not before.fresh:
                self._stop(f"changes {target.id} in place")
            self._frames[-1].names[target.id] = _Value(None, fresh=True, flat=before.flat)
            return
        holder = self._value(target.value)
        if isinstance(target, ast.Attribute) or not (holder.fresh and holder.flat):
            self._stop(f"changes {ast.unparse(target)}")

    def _read_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: N802
        if node.decorator_list:
            self._stop(f"decorates {node.name}")
        local = _Value((_Local(node, self._frames[-1]),), fresh=True, flat=False)
        self._frames[-1].names[node.name] = local

    def _read_If(self, node: ast.If) -> bool:  # noqa: N802
        self._value(node.test)
        return self._branches(node.body, node.orelse)

    def _read_While(self, node: ast.While) -> None:  # noqa: N802
        self._loop(node.body, lambda: self._value(node.test))
        self._branches(node.orelse, [])

    def _read_For(self, node: ast.For) -> None:  # noqa: N802
        source = self._value(node.iter)
        self._iterate(source)
        self._loop(node.body, lambda: self._assign(node.target, source.item()))
        self._branches(node.orelse, [])

    def _branches(self, *bodies: Sequence[ast.stmt]) -> bool:
        """Read what may follow, and keep of what is known the part that all agree on."""
        frame = self._frames[-1]
        names, written = dict(frame.names), dict(self._written)
        outcomes = []
        for body in bodies:
            frame.names, self._written = dict(names), dict(written)
            if not self._statements(body):
                outcomes.append((frame.names, self._written))
        if outcomes:
            frame.names = functools.reduce(_either, (o[0] for o in outcomes))
            self._written = functools.reduce(_both, (o[1] for o in outcomes))
        return not outcomes

    def _loop(self, body: Sequence[ast.stmt], begin: Callable[[], Any]) -> None:
        """Read a loop's body until nothing more becomes known to be unknown."""
        frame = self._frames[-1]
        for _ in range(6):
            names, written = dict(frame.names), dict(self._written)
            begin()
            self._branches(body, [])
            frame.names = _either(names, frame.names)
            self._written = _both(written, self._written)
            if frame.names.keys() == names.keys() and all(
                value.is_like(names[name]) for name, value in frame.names.items()
            ):
                return
        self._stop("has a loop that is not understood")

    def _assign(self, target: ast.expr, value: _Value, source: ast.expr | None = None) -> None:
        if isinstance(target, ast.Name):
            frame = self._frames[-1]
            if target.id in frame.code.co_freevars and frame.parent is None:
                self._stop(f"changes {target.id}")
            frame.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            self._iterate(value)
            for number, part in enumerate(target.elts):
                inner = value.item()
                if isinstance(source, ast.Tuple) and len(source.elts) == len(target.elts):
                    inner = self._value(source.elts[number])
                self._assign(part, inner)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, _CONTAINER)
        elif isinstance(target, ast.Attribute):
            self._store(target, value)
        elif isinstance(target, ast.Subscript):
            self._value(target.slice)
            if not self._value(target.value).fresh:
                self._stop(f"changes {ast.unparse(target.value)}")

    # --- expressions

    def _value(self, node: ast.expr) -> _Value:
        method = getattr(self, f"_value_{type(node).__name__}", None)
        if method is None:
            self._stop(f"has an expression of the kind {type(node).__name__}")
        value: _Value = method(node)  # type: ignore[misc]
        return value

    def _name(self, name: str) -> _Value:
        frame: _Frame | None = self._frames[-1]
        function = self._frames[-1].function
        while frame is not None:
            if name in frame.names:
                return frame.names[name]
            frame = frame.parent
        code = function.__code__
        if name in code.co_freevars:
            with contextlib.suppress(ValueError):
                return _of(function.__closure__[code.co_freevars.index(name)].cell_contents)
            return _OUTSIDE
        if name in function.__globals__:
            return _of(function.__globals__[name])
        if hasattr(builtins, name):
            return _of(getattr(builtins, name))
        return _OUTSIDE  # it is an error, unless it is set on another path

    def _value_Name(self, node: ast.Name) -> _Value:  # noqa: N802
        return self._name(node.id)

    def _value_Constant(self, node: ast.Constant) -> _Value:  # noqa: N802
        return _of(node.value)

    def _value_Attribute(self, node: ast.Attribute) -> _Value:  # noqa: N802
        return self._attribute(self._value(node.value), node.attr)

    def _value_Call(self, node: ast.Call) -> _Value:  # noqa: N802
        f = self._value(node.func)
        starred = False
        args = []
        for arg in node.args:
            value = self._value(arg.value if isinstance(arg, ast.Starred) else arg)
            if isinstance(arg, ast.Starred):
                self._iterate(value)
                starred = True
            elif starred and not value.fresh:
                self._stop("hands on arguments in a way that is not understood")
            if not starred:
                args.append(value)
        keywords = {k.arg or "**": self._value(k.value) for k in node.keywords}
        starred = starred or "**" in keywords
        self._frames[-1].line = node.lineno
        text = node.func
        self._subject = ast.unparse(text.value if isinstance(text, ast.Attribute) else text)
        if f.objects == (super,):
            return self._super(args)
        if f.objects is not None and f.objects and f.objects[0] in (hasattr, getattr):
            return self._by_name(f.objects[0], args, node)
        if f.objects is None:
            self._stop(f"calls {ast.unparse(node.func)}")
        return self._any_of(
            [
                functools.partial(self._apply, one, args, keywords, starred)
                for one in f.objects or ()
            ]
        )

    def _any_of(self, calls: Sequence[Callable[[], _Value]]) -> _Value:
        """Read calls one of which is made."""
        before, outcomes, found = self._written, [], []
        for call in calls:
            self._written = dict(before)
            found.append(call())
            outcomes.append(self._written)
        self._written = functools.reduce(_both, outcomes)
        return functools.reduce(_Value.joined, found)

    def _super(self, args: list[_Value]) -> _Value:
        frame = self._frames[-1]
        names = frame.code.co_varnames
        cls = self._name("__class__").objects
        holders = frame.names.get(names[0]) if names else None
        if args or cls is None or holders is None or holders.objects is None:
            self._stop("uses super in a way that is not understood")
            return _OUTSIDE
        return _Value(tuple(_Super(cls[0], holder) for holder in holders.objects), False, False)

    def _by_name(self, f: Any, args: list[_Value], node: ast.Call) -> _Value:
        """Read ``hasattr`` and ``getattr`` of a name that is written out."""
        name = node.args[1] if len(node.args) > 1 else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            self._stop(f"calls {f.__name__} of an unknown name")
            return _OUTSIDE
        value = self._attribute(args[0], name.value)
        return _NUMBER if f is hasattr else functools.reduce(_Value.joined, args[2:], value)

    def _value_BinOp(self, node: ast.BinOp) -> _Value:  # noqa: N802
        parts = self._value(node.left), self._value(node.right)
        is_array = [v.flat for v in parts]
        if isinstance(node.op, ast.Mult):  # a list may be multiplied by a number
            is_number = all(is_array) or any(_is_no_int(v) for v in parts)
        else:  # or added to a list
            is_number = any(is_array) or not isinstance(node.op, ast.Add)
        return _NUMBER if is_number else _CONTAINER

    def _parts(self, node: ast.expr) -> list[_Value]:
        return [self._value(n) for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]

    def _number_of_parts(self, node: ast.expr) -> _Value:
        self._parts(node)
        return _NUMBER

    _value_UnaryOp = _value_Compare = _value_JoinedStr = _number_of_parts  # noqa: N815
    _value_FormattedValue = _value_Slice = _number_of_parts  # noqa: N815

    def _value_BoolOp(self, node: ast.BoolOp) -> _Value:  # noqa: N802
        first = self._value(node.values[0])
        written = dict(self._written)
        rest = [self._value(part) for part in node.values[1:]]
        self._written = _both(written, self._written)
        return functools.reduce(_Value.joined, rest, first)

    def _value_IfExp(self, node: ast.IfExp) -> _Value:  # noqa: N802
        self._value(node.test)
        return self._any_of([functools.partial(self._value, n) for n in (node.body, node.orelse)])

    def _container(self, node: ast.expr) -> _Value:
        for n in ast.iter_child_nodes(node):
            if isinstance(n, ast.Starred):
                self._iterate(self._value(n.value))
            elif isinstance(n, ast.expr):
                self._value(n)
        return _CONTAINER

    _value_List = _value_Tuple = _value_Set = _value_Dict = _container  # noqa: N815

    def _value_Subscript(self, node: ast.Subscript) -> _Value:  # noqa: N802
        holder = self._value(node.value)
        self._value(node.slice)
        known = holder.objects
        for one in known or ():
            is_usual = type(one) in (np.ndarray, dict, list, tuple, OrderedDict, deque, str)
            if not (is_usual or _is_open(type(one)) or isinstance(one, np.generic)):
                self._stop(f"looks into a {type(one).__name__}")
        if known is None and not holder.fresh and self._has_defaults:
            self._stop("may look into a defaultdict")
        if known is not None and len(known) == 1 and isinstance(node.slice, ast.Constant):
            key: Any = node.slice.value
            if type(known[0]) not in (dict, list, tuple, OrderedDict):
                return holder.item()
            with contextlib.suppress(KeyError, IndexError, TypeError):
                return _of(known[0][key])
        return holder.item()

    def _value_Lambda(self, node: ast.Lambda) -> _Value:  # noqa: N802
        return _Value((_Local(node, self._frames[-1]),), fresh=True, flat=False)

    def _value_NamedExpr(self, node: ast.NamedExpr) -> _Value:  # noqa: N802
        value = self._value(node.value)
        self._assign(node.target, value)
        return value

    def _comprehension(self, node: Any) -> _Value:
        names, written = dict(self._frames[-1].names), dict(self._written)
        for _ in range(2):
            for part in node.generators:
                source = self._value(part.iter)
                self._iterate(source)
                self._assign(part.target, source.item())
                for test in part.ifs:
                    self._value(test)
            for name in ("key", "value", "elt"):
                if hasattr(node, name):
                    self._value(getattr(node, name))
        for name in self._frames[-1].names.keys() - names.keys():
            del self._frames[-1].names[name]
        self._frames[-1].names.update(names)
        self._written = _both(written, self._written)
        return _CONTAINER

    _value_ListComp = _value_SetComp = _value_DictComp = _comprehension  # noqa: N815
    _value_GeneratorExp = _comprehension  # noqa: N815


_VERBS = {
    "append": "appends to",
    "extend": "appends to",
    "insert": "appends to",
    "pop": "takes from",
}


def _no_init(*args: Any, **keywords: Any) -> None:
    """Stand for ``object.__init__``."""


def _bound(function: Any, holder: Any) -> Any:
    return functools.partial(function, holder)


def _is_no_int(value: _Value) -> bool:
    """Return whether a value is known to be an array or a fraction."""
    return (
        value.flat and bool(value.objects) and not any(type(v) is int for v in value.objects or ())
    )


def _own_class(value: Any) -> bool:
    cls = type(value)
    return cls.__name__ in _OWN_CLASSES and _is_of(cls, "fastgrad")


def _is_numpys(value: Any) -> bool:
    name = (
        value.__name__
        if isinstance(value, types.ModuleType)
        else getattr(value, "__module__", None)
    )
    return str(name).partition(".")[0] == "numpy"


def _is_compiled(value: Any) -> bool:
    """Return whether a value is a ufunc that calls no Python function, as `np.frompyfunc`'s do."""
    return isinstance(value, np.ufunc) and not set("".join(value.types)) <= set("O->")


def _either(one: dict[Any, _Value], other: dict[Any, _Value]) -> dict[Any, _Value]:
    """Join what is known on two paths; a name may be missing on one of them."""
    both = {k: v.joined(other[k]) for k, v in one.items() if k in other}
    return one | other | both


def _both(one: dict[Any, _Value], other: dict[Any, _Value]) -> dict[Any, _Value]:
    """Return what has been written on both paths."""
    return {k: v.joined(other[k]) for k, v in one.items() if k in other}


# ------------------------------------------------------------------------------------- the front

_known: OrderedDict[Any, tuple[Reading, list[Any]]] = OrderedDict()


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
    reach = _Reach(f, args)
    if not _REPORTED.isdisjoint(np.geterr().values()):
        return Reading("np.seterr has every floating-point error reported", stores=False)
    if not reach.is_complete:
        return Reading("it can reach more objects than can be looked at", stores=False)
    key = tuple(reach.fingerprint)
    if key in _known:
        with contextlib.suppress(KeyError):  # another thread may have dropped it
            return _known[key][0]
    reader = _Reader(reach)
    try:
        reader.read(f, [_of(value) for value in args], {})
        obstacle = ""
    except _Obstacle as found:
        obstacle = str(found)
    except RecursionError:
        obstacle = "it is nested too deeply to be read"
    reading = Reading(obstacle, bool(reader.writes))
    _known[key] = reading, reach.kept
    while len(_known) > _MEMORY:
        with contextlib.suppress(KeyError):
            _known.popitem(last=False)
    return reading


class _LoopReader(_Reader):
    """Reads a numerical differentiation, which may go over an array by NumPy's iterators."""

    def _of_numpy(
        self, f: Any, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        if f in (np.nditer, np.ndindex, np.ndenumerate):
            return _Value(None, all(v.fresh for v in args), flat=True)
        return super()._of_numpy(f, args, keywords, starred)

    def _attribute_of_array(self, value: _Value, name: str) -> _Value:
        if name in ("multi_index", "finished", "iterindex"):
            return _NUMBER
        return super()._attribute_of_array(value, name)

    def _method(
        self, method: _Method, args: list[_Value], keywords: dict[str, _Value], starred: bool
    ) -> _Value:
        if method.name == "iternext" and method.receiver.objects is None:
            return _NUMBER
        return super()._method(method, args, keywords, starred)

    def _read_If(self, node: ast.If) -> bool:  # noqa: N802
        """Read one branch only where an argument decides, such as ``if verbose``."""
        test, is_not = node.test, False
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, is_not = test.operand, True
        known = self._value(test).objects if isinstance(test, ast.Name) else None
        if known is None or len(known) != 1 or type(known[0]) not in (bool, type(None)):
            return super()._read_If(node)
        return self._statements(node.body if bool(known[0]) != is_not else node.orelse)


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
    reach = _Reach(loop, [a for i, a in enumerate(args) if i != f])
    if not reach.is_complete:
        return "it can reach more objects than can be looked at"
    values = [_of(value) for value in args]
    values[f], values[x] = _of(np.sum), _Value(None, fresh=True, flat=True)
    reader = _LoopReader(reach)
    try:
        reader.read(loop, values, {name: _of(value) for name, value in keywords.items()})
    except _Obstacle as found:
        return str(found)
    except RecursionError:
        return "it is nested too deeply to be read"
    return next(iter(reader.writes.values()), "")
