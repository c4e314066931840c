"""When kernels are being compiled: for how long, and who is told.

A call that takes a millisecond takes seconds where its kernels are not in the cache yet. So that
nobody wonders, a line on stderr says so when compiling begins: in a terminal or a notebook always,
elsewhere where progress was asked for. Nothing is known before: what begins to compile, says so.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from fastgrad.kernels.compile import cache_folder, follow_compilations

__all__ = ["Watch", "announced", "say"]

#: Seconds without compiling after which it is announced again.
_PAUSE = 1.0


def say(dtype: object = "") -> None:
    """Say on stderr that kernels are being compiled."""
    what = f"kernels for {dtype}" if dtype else "kernels"
    often = "once"
    if cache_folder() is None:
        often = "in each process anew, for want of a folder to keep them in"
    if sys.stderr is not None:
        print(f"fastgrad: compiling {what}, {often}", file=sys.stderr, flush=True)


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
        self.ended = -math.inf
        self.tell: Callable[[], object] = _say_if_somebody_waits


_state = _State()


def _begin(ours: bool) -> None:
    if _state.depth == 0:
        if not ours:
            return
        _state.since = time.perf_counter()
        if _state.since - _state.ended > _PAUSE:
            _state.tell()
    _state.depth += 1


def _end() -> None:
    if _state.depth == 0:  # of a function of the user's own
        return
    _state.depth -= 1
    if _state.depth == 0:
        _state.ended = time.perf_counter()
        _state.seconds += _state.ended - _state.since


follow_compilations(_begin, _end)


class Watch:
    """Counts the seconds that this thread spends compiling kernels in a ``with`` block.

    Parameters
    ----------
    tell : callable, optional
        Called without arguments when the block's first compiling begins, and again after a pause.
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
        self._told_before = _state.tell
        if self._tell is not None:
            _state.tell = self._tell
            _state.ended = -math.inf  # what was said before was said elsewhere
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        _state.tell = self._told_before


def announced(dtype: object) -> Watch:
    """Return a watch that says what it is compiling for, wherever it runs."""
    return Watch(functools.partial(say, dtype))
