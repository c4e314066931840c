"""What a function of the reader's can reach, and what it leaves behind there."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Objects that are looked at.
_REACH = 300
#: Packages whose functions and classes hold nothing of the reader's.
_CLOSED = ("fastgrad", "numpy")
#: What a record may be appended to.
_GROWING: Any = list | set | deque


def reachable(f: Any) -> Iterator[Any]:
    """Yield what a function can reach by name, the nearest first.

    That is: functions, dicts (those of objects' attributes among them), lists, sets, arrays and
    whole numbers.
    """
    queue: deque[Any] = deque([f])
    seen: set[int] = set()
    while queue and len(seen) < _REACH:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            if _is_open(value):
                yield value
                queue.extend(_named(value))
        elif isinstance(value, types.MethodType):
            queue.extend((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            queue.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, np.ndarray | int | np.integer | dict | _GROWING):
            yield value
        elif not isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                yield attributes
                queue.extend(attributes.values())
            if _is_open(type(value)):
                queue.extend(_of_the_class(type(value), value))


def _is_open(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] not in _CLOSED


def _of_the_class(cls: type, value: Any) -> Iterator[Any]:
    """Yield the contents of an object's slots, and its methods, for the globals that they name."""
    for base in cls.__mro__:
        for member in vars(base).values():
            if isinstance(member, types.FunctionType):
                yield member
            elif isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set yet
                    yield member.__get__(value)


def _named(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's code names: its closure, its defaults, globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield function.__globals__[name]


class Record:
    """The plain values within a function's reach, and how much its lists, sets and dicts hold.

    A function that counts its calls, or notes its values, changes them whenever it is called. A
    layer that remembers its last output does not: it puts an array in the place of one like it.
    """

    def __init__(self, f: Any) -> None:
        self._places: list[tuple[Any, dict[Any, Any]]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._growing: list[tuple[Any, list[Any]]] = []
        for value in reachable(f):
            if isinstance(value, types.FunctionType):
                names = value.__globals__.keys() & set(value.__code__.co_names)
                self._places.append(
                    (value.__globals__, {name: value.__globals__[name] for name in names})
                )
                for cell in value.__closure__ or ():
                    with contextlib.suppress(ValueError):
                        self._places.append((cell, {None: cell.cell_contents}))
            elif isinstance(value, dict):
                self._dicts.append((value, dict(value)))
            elif isinstance(value, _GROWING):
                self._growing.append((value, list(value)))

    def picture(self) -> list[Any]:
        """Return what there is now, to be compared with what there is later."""
        now = [{key: _get(holder, key) for key in values} for holder, values in self._places]
        now += [dict(value) for value, _ in self._dicts]
        marks = [{key: _mark(value) for key, value in values.items()} for values in now]
        return [marks, [len(value) for value, _ in self._growing]]

    def put_back(self) -> None:
        """Undo what has changed the picture; not while other threads may be changing it.

        Daemon threads are left out: those of progress bars and libraries change nothing there.
        """
        others = set(threading.enumerate()) - {threading.current_thread()}
        if not all(thread.daemon for thread in others):
            return
        for value, copy in self._growing:
            if len(value) != len(copy):
                value.clear()
                (value.update if isinstance(value, set) else value.extend)(copy)
        for contents, before in self._dicts:
            for key in contents.keys() - before.keys():
                del contents[key]
        for holder, values in (*self._places, *self._dicts):
            for key, value in values.items():
                if _mark(_get(holder, key)) != _mark(value):
                    if isinstance(holder, types.CellType):
                        holder.cell_contents = value
                    else:
                        holder[key] = value


def _get(holder: Any, key: Any) -> Any:
    return holder.cell_contents if isinstance(holder, types.CellType) else holder.get(key)


def _mark(value: Any) -> Any:
    """Return a plain value in a form that equals itself, NaN too; of others what kind they are."""
    if isinstance(value, int | float | complex | str | np.generic):
        return type(value), repr(value)
    return type(value), np.shape(value) if isinstance(value, np.ndarray) else ()
