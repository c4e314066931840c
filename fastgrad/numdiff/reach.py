"""What a function can reach by name: its closure, defaults and globals, and what these hold.

Nothing of the reader's is run for it: attributes are taken from where Python keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["PLAIN", "Reach", "attributes_of", "children", "is_of", "is_open", "names_in"]

#: What `children` yields.
Child = tuple[Any, Any, Any]

#: Objects that are looked at.
_MOST = 20_000
#: What cannot be changed, and holds nothing.
PLAIN = frozenset({
    int, float, complex, bool, str, bytes, slice, type(None), type(Ellipsis),
    *np.sctypeDict.values(),
}) - {np.void, np.object_}  # fmt: skip
_CONTAINERS: Any = dict | list | tuple | set | frozenset | deque


class Reach:
    """The objects that a function can reach, and a fingerprint of their types and code.

    Parameters
    ----------
    f : callable
    args : iterable
        What it is going to be called with.

    Attributes
    ----------
    objects : list
        The nearest first; arrays and numbers as often as they are met, all else once.
    fingerprint : list
        Equal for two functions that read alike. What it names by id is kept alive by `kept`.
    obstacle : str
        Why not all could be looked at; empty if they were.
    """

    def __init__(self, f: Any, args: Iterable[Any]) -> None:
        self.objects: list[Any] = []
        self.fingerprint: list[Any] = []
        self.kept: list[Any] = []
        self.obstacle = ""
        numbers: dict[int, int] = {}
        queue: deque[Any] = deque((f, *args))
        while queue and not self.obstacle:
            value = queue.popleft()
            cls = type(value)
            if cls is np.ndarray or cls in PLAIN:
                # Of two branches between which a flag decides, one is read.
                self.fingerprint.append(str(value) if cls is bool else id(cls))
                self.objects.append(value)
                if cls is np.ndarray and value.dtype.hasobject:
                    self.obstacle = "it can reach an array of objects"
                continue
            number = numbers.setdefault(id(value), len(self.objects))
            if number < len(self.objects):
                self.fingerprint.append(number)
                continue
            identity = _identity(value, cls)
            self.objects.append(value)
            self.kept.append(identity)
            self.fingerprint.append(id(identity))
            for name, child, _ in children(value):
                self.fingerprint.append(name)
                queue.append(child)
            if len(self.objects) > _MOST:
                self.obstacle = "it can reach more objects than can be looked at"


def _identity(value: Any, cls: Any) -> Any:
    """Return what to know an object by: its code, itself, or its class."""
    if cls is types.FunctionType:
        return value.__code__
    is_looked_into = cls in _LEAD_TO or any(_layout(cls)[:2])
    is_itself = isinstance(value, type | types.ModuleType)
    return value if is_itself or (callable(value) and not is_looked_into) else cls


def children(value: Any) -> Iterator[Child]:
    """Yield what an object leads to: a name, the child, and what puts another in its place.

    That is a function and all of its arguments but the last; None if it cannot be.
    """
    cls: Any = type(value)
    if cls is types.FunctionType:
        if is_open(value):
            yield from _named(value)
    elif cls is types.BuiltinFunctionType:
        yield "", value.__self__, None
    elif cls in _LEAD_TO:
        for name in _LEAD_TO[cls]:
            yield name, getattr(value, name), None
    elif isinstance(value, type):
        for base in filter(is_open, value.__mro__):
            for name, member in vars(base).items():
                if name not in _NO_MEMBERS:
                    yield name, member, (setattr, base, name)
    else:
        is_container, is_known, is_the_readers, _ = _layout(cls)
        if is_container:
            yield from _contents(value)
        if is_known:
            for name, child in attributes_of(value).items():
                yield name, child, (object.__setattr__, value, name)
        if is_the_readers:
            yield "", cls, None


def _contents(container: Any) -> Iterator[Child]:
    """Yield what a container holds; of plain values only their types, but which flags can be."""
    is_dict = isinstance(container, dict)
    kinds = {*map(type, container), *(map(type, container.values()) if is_dict else ())}
    if kinds <= PLAIN and kinds.isdisjoint({bool, type(None)}):
        yield frozenset(map(id, kinds)), None, None
        return
    for key, child in list(container.items() if is_dict else enumerate(container)):
        if is_dict:
            yield "", key, None
        yield "", child, (operator.setitem, container, key)


@functools.lru_cache(1024)
def _layout(cls: Any) -> tuple[bool, bool, bool, list[tuple[str, Any]]]:
    """Return whether a class is a container, has attributes to look at, is open; and its slots."""
    is_known = is_open(cls) or is_of(cls, "fastgrad") or cls is types.SimpleNamespace
    members = [member for base in cls.__mro__ for member in vars(base).items()]
    slots = [m for m in members if isinstance(m[1], types.MemberDescriptorType)]
    return issubclass(cls, _CONTAINERS), is_known, is_open(cls), slots


#: Where objects lead that hold others.
_LEAD_TO = {
    types.MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    property: ("fget", "fset"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}
_NO_MEMBERS = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"})


def attributes_of(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots too, without running any code of its class."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError):
        found = {}
    for name, slot in _layout(type(value))[3]:  # type: ignore[arg-type]
        with contextlib.suppress(AttributeError, TypeError):  # not set yet
            found[name] = slot.__get__(value)
    return found


def is_of(value: Any, package: str) -> bool:
    """Return whether a function or class is defined in a package."""
    return str(getattr(value, "__module__", "")).partition(".")[0] == package


#: Modules of ours with the book's formulas in plain NumPy, which are read as the reader's are.
_FORMULAS = frozenset({"fastgrad.book.functions", "fastgrad.book.layers"})


@functools.cache
def _is_the_readers(module: str) -> bool:
    """Return whether a module is neither the standard library's, nor installed, nor ours."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("fastgrad", "numpy"):
        return module in _FORMULAS
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not any(folder in file for folder in ("site-packages", "dist-packages"))


def is_open(value: Any) -> bool:
    """Return whether the code of a function or class is the reader's."""
    return _is_the_readers(str(getattr(value, "__module__", None) or ""))


@functools.lru_cache(1024)
def names_in(code: types.CodeType) -> Any:
    """Return all names in a function's code and in those inside it, those of locals last."""
    inner = [names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, [code.co_name])
    return dict.fromkeys(itertools.chain(own[0], *inner, *own[1:])).keys()


def _named(function: types.FunctionType) -> Iterator[Child]:
    """Yield what a function's code names: its closure, its defaults, globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield "", cell.cell_contents, (setattr, cell, "cell_contents")
    yield "", function.__defaults__, (setattr, function, "__defaults__")
    yield "", function.__kwdefaults__, None
    names = names_in(function.__code__)
    spaces, seen = [function.__globals__], set()
    for space in spaces:  # and `np.linalg.norm`, with its parts
        for name in [name for name in names if name in space]:
            value = space[name]
            if isinstance(value, types.ModuleType) and value not in seen:
                seen.add(value)
                spaces.append(vars(value))
            yield "", value, (operator.setitem, space, name)
