"""What a function can reach by name: its closure, defaults and globals, and what these hold.

Nothing of the reader's is run for it: attributes are taken from where Python keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["PLAIN", "Reach", "attributes_of", "is_of", "is_open", "names_in"]

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
            identity, details, parts = _taken_apart(value, cls)
            self.objects.append(value)
            self.kept.append(identity)
            self.fingerprint += id(identity), details, len(parts)
            queue.extend(parts)
            if len(self.objects) > _MOST:
                self.obstacle = "it can reach more objects than can be looked at"


def _taken_apart(value: Any, cls: type) -> tuple[Any, Any, Sequence[Any]]:
    """Return what to know an object by, details that can be compared, and what it leads to."""
    if cls is types.FunctionType:
        return value.__code__, None, list(_named(value)) if is_open(value) else []
    if cls in _LEAD_TO:
        return cls, None, [getattr(value, name) for name in _LEAD_TO[cls]]
    if isinstance(value, type):
        members = [member for base in value.__mro__ if is_open(base)
                   for member in vars(base).items() if member[0] not in _NO_MEMBERS]  # fmt: skip
        return value, tuple(name for name, _ in members), [member for _, member in members]
    is_container, is_known, is_the_readers, _ = _layout(cls)
    if not (is_container or is_known):  # a module, or a function of a library's
        return value if callable(value) or cls is types.ModuleType else cls, None, ()
    details: list[Any] = []
    parts: list[Any] = []
    if is_container:
        contents = [*value, *value.values()] if isinstance(value, dict) else list(value)
        kinds = set(map(type, contents))
        if kinds <= PLAIN and kinds.isdisjoint({bool, type(None)}):  # which flags can be
            details.append(frozenset(map(id, kinds)))
        else:
            parts += contents
    if is_known:
        attributes = attributes_of(value)
        details += attributes
        parts += attributes.values()
        if is_the_readers:
            parts.append(cls)
    return cls, tuple(details), parts


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


def _named(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's code names: its closure, its defaults, globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = names_in(function.__code__)
    spaces, seen = [function.__globals__], set()
    for space in spaces:  # and `np.linalg.norm`, with its parts
        for name in [name for name in names if name in space]:
            value = space[name]
            if isinstance(value, types.ModuleType) and value not in seen:
                seen.add(value)
                spaces.append(vars(value))
            yield value
