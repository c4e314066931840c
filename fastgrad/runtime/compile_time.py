"""When kernels are being compiled: for how long, and what is written about it.

A call that takes a millisecond takes seconds where its kernels are not in the cache yet. So that
nobody wonders, a line on stderr says so when compiling begins: in a terminal or a notebook always,
elsewhere where progress was asked for. A process writes each such line once.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from fastgrad.runtime import interrupt
from fastgrad.runtime.compile import cache_folder, follow_compilations

__all__ = ["Watch", "announced", "say"]

#: What this process has announced.
_written: set[str] = set()


def say(what: str = "", seconds: float = 0.0) -> None:
    """Write on stderr that kernels are being compiled, unless this process has said so before.

    Parameters
    ----------
    what : str, optional
        What the kernels are for.
    seconds : float, optional
        How long compiling takes on two cores, about; 0 if that is not known.
    """
    line = f"fastgrad: compiling kernels{what and ' for '}{what}"
    if seconds:
        line += f", about {seconds:.0f} s"
    if cache_folder() is None:
        line += ",\nin each process anew, as no folder can be written that would keep them"
    else:
        line += " (kept for later)"
    repeated = what in _written if what else bool(_written)
    if sys.stderr is not None and not repeated:
        _written.add(what)
        print(line, file=sys.stderr, flush=True)


def _say_if_somebody_waits() -> None:
    if hasattr(sys, "ps1") or (sys.stderr is not None and sys.stderr.isatty()):
        say()


class _State(threading.local):
    """What a thread compiles."""

    def __init__(self) -> None:
        #: How deep in compilations within compilations it is, counted from a kernel of ours.
        self.depth = 0
        self.since = 0.0
        #: Seconds spent.
        self.seconds = 0.0
        #: Whether compiling has been announced in the innermost `Watch`.
        self.announced = False
        self.tell: Callable[[], object] = _say_if_somebody_waits


_state = _State()


def _begin(ours: bool) -> None:
    if _state.depth == 0:
        if not ours:
            return
        interrupt.hold()
        _state.since = time.perf_counter()
        if not _state.announced:
            _state.announced = True
            _state.tell()
    _state.depth += 1


def _end() -> None:
    if _state.depth == 0:  # of a function of the user's own
        return
    _state.depth -= 1
    if _state.depth == 0:
        _state.seconds += time.perf_counter() - _state.since
        interrupt.release()


follow_compilations(_begin, _end)


class Watch:
    """Counts the seconds that this thread spends compiling kernels in a ``with`` block.

    Parameters
    ----------
    tell : callable, optional
        Called without arguments when the block's first compiling begins.
        By default a line is written where somebody seems to wait for it.

    Examples
    --------
    >>> with Watch() as compiling:
    ...     pass
    >>> compiling.seconds
    0.0
    """

    def __init__(self, tell: Callable[[], object] | None = None) -> None:
        self._tell = tell

    @property
    def seconds(self) -> float:
        """Seconds of compiling since the block was entered."""
        return _state.seconds - self._before

    def __enter__(self) -> Self:
        """Begin."""
        self._before = _state.seconds
        self._outer = _state.tell, _state.announced
        if self._tell is not None:
            _state.tell, _state.announced = self._tell, False
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        _state.tell, _state.announced = self._outer


def announced(what: str) -> Watch:
    """Return a watch that says what it is compiling for, wherever it runs."""
    return Watch(functools.partial(say, what))
