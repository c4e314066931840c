"""How many times faster a script has become: its own way beside ours.

Scripts differ in what they do for how long, but they print as they go on. So a script is run in its
own way for a few seconds, and the time that its lines of output took is compared.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Timing", "lines_timed", "run_own_way", "time_limit", "verdict"]

#: How a script is run in its own way: plain Python, whose clock starts when NumPy is there.
_OWN_WAY = """
import os, runpy, sys
import numpy
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(script)
os.write(1, b"begin\\n")
runpy.run_path(script, run_name="__main__")
"""


class Timing(NamedTuple):
    """A run of a script.

    Attributes
    ----------
    lines : list of float
        When each line of output came, in seconds.
    seconds : float
        How long it ran.
    status : int or None
        Its exit status; None if it was stopped before its end.
    """

    lines: list[float]
    seconds: float
    status: int | None


def time_limit(seconds: Any) -> float:
    """Return how long the script's own way may take, checked.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is not above 0.
    """
    from fastgrad.arrays import step_size  # which needs NumPy

    return step_size(seconds, "compare")


@contextlib.contextmanager
def lines_timed(wanted: bool) -> Iterator[list[float]]:
    """Note down when each line is written to stdout, if that is wanted."""
    times: list[float] = []
    if not wanted:
        yield times
        return
    with contextlib.redirect_stdout(_Clocked(sys.stdout, times)):
        yield times


class _Clocked:
    """A stream that notes down when lines end."""

    def __init__(self, stream: Any, times: list[float]) -> None:
        self._stream = stream
        self._times = times

    def write(self, text: str) -> int:
        self._times.extend([time.perf_counter()] * text.count("\n"))
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_own_way(script: Path, args: Sequence[str], limit: float) -> Timing:
    """Run a script in plain Python, without windows, for `limit` seconds.

    Its output is not shown.
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", _OWN_WAY, str(script), *args],
        env={**os.environ, "MPLBACKEND": "Agg"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    times: list[float] = []

    def listen() -> None:
        assert process.stdout is not None
        for _ in process.stdout:
            times.append(time.perf_counter())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    started = time.perf_counter()
    try:
        while not times and process.poll() is None:
            time.sleep(0.01)
        begin = times[0] if times else started
        status: int | None
        try:
            status = process.wait(max(begin + limit - time.perf_counter(), 0))
        except subprocess.TimeoutExpired:
            status = None
        ended = time.perf_counter()
    finally:
        process.kill()
        process.wait()
        listener.join(timeout=5)
        if process.stdout is not None:
            process.stdout.close()
    return Timing([at - begin for at in times[1:] if at <= ended], ended - begin, status)


def verdict(own: Timing, ours: Timing) -> str:
    """Say how many times faster, or slower, the script was here."""
    if own.status not in (None, 0):
        failed = f"In its own way the script failed, with exit status {own.status}"
        return f"{failed}. It gets no input there." if ours.status == 0 else f"{failed}."
    if own.status == 0:
        how = f"{own.seconds:.2f} s"
        return f"In its own way it takes {how}: {_factor(own.seconds / ours.seconds)}."
    common = min(len(own.lines), len(ours.lines))
    if common:
        took, takes = (max(run.lines[common - 1], 1e-6) for run in (own, ours))
        what = "line of output comes" if common == 1 else f"{common} lines of output come"
        return (
            f"In its own way the first {what} after {took:.2f} s, here after {takes:.2f} s: "
            f"{_factor(took / takes)}."
        )
    if own.seconds > ours.seconds:
        return (
            f"In its own way it has printed nothing after {own.seconds:.0f} s: more than "
            f"{_factor(own.seconds / ours.seconds)}."
        )
    return f"In its own way it has printed nothing after {own.seconds:.0f} s."


def _factor(factor: float) -> str:
    """Return a factor as a few words."""
    word = "faster" if factor >= 1 else "slower"
    factor = max(factor, 1 / factor)
    return f"{factor:.2g} times {word} here" if factor < 100 else f"{factor:,.0f} times {word} here"
