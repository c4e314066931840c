"""Ctrl-C: it is never lost, and it stops a computation only where nothing is left half done.

Python raises `KeyboardInterrupt` wherever the main thread happens to be. Raised inside a callback
from C, as LLVM makes them while it compiles, the exception is printed and forgotten. So the request
is noted instead, and raised when the compilation in hand has ended.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

__all__ = ["Deferred", "hold", "kept", "raised_by_a_signal_handler", "release"]


class _Request:
    """What the signal handler has noted."""

    #: Whether Ctrl-C was pressed.
    asked = False
    #: Whether an interrupt must wait now, and whether one does.
    held = False
    waiting = False


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def hold() -> None:
    """Note that an interrupt of the main thread must wait, for example for the compiler."""
    if _is_main_thread():
        _Request.held = True


def release() -> None:
    """End `hold`; raise `KeyboardInterrupt` if Ctrl-C was pressed meanwhile."""
    if _is_main_thread() and _Request.held:
        _Request.held = False
        if _Request.waiting:
            _Request.waiting = False
            raise KeyboardInterrupt


def raised_by_a_signal_handler(error: BaseException) -> bool:
    """Return whether an exception comes from a handler of the user's, such as a time limit."""
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _note_and_raise(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT: raise `KeyboardInterrupt` now, or, during `hold`, when that ends."""
    _Request.asked = True
    if _Request.held and not _Request.waiting:
        _Request.waiting = True
    else:
        signal.default_int_handler(number, frame)


@contextmanager
def kept(*, may_be_caught: bool = False) -> Iterator[None]:
    """Make sure that a Ctrl-C in a ``with`` block ends it with `KeyboardInterrupt`.

    Parameters
    ----------
    may_be_caught : bool, optional
        Whether code in the block may deal with the exception and go on, as a user's script may.
        Otherwise an exception that somebody has swallowed, or turned into another one, is raised
        again at the end.

    Notes
    -----
    A handler of the user's own is left alone. Threads other than the main one get no signals.
    """
    if not _is_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _Request.asked = _Request.held = _Request.waiting = False
    signal.signal(signal.SIGINT, _note_and_raise)
    try:
        yield
        if not may_be_caught and _Request.asked:  # somebody has swallowed the exception
            raise KeyboardInterrupt
    except Exception:
        if not may_be_caught and _Request.asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _Request.asked = _Request.held = _Request.waiting = False


class Deferred:
    """Turns the first Ctrl-C in a ``with`` block into a request, to which a loop can respond.

    So no iteration is torn apart. A second Ctrl-C raises `KeyboardInterrupt` at once. A handler of
    the user's own is left alone, and so are threads other than the main one.

    Attributes
    ----------
    asked : bool
        Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: object = None

    def __enter__(self) -> Self:
        """Begin."""
        if _is_main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before in (signal.default_int_handler, _note_and_raise):
                self._before = before
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the handler back that there was."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
