"""How many times faster a script has become: its own way beside ours.

Scripts differ in what they do for how long, but they print as they go on. So a script is run in its
own way for a few seconds, and the time that its lines of output took is compared.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Runs that differ by fewer seconds show no more than the chance of the moment.
_LEAST_DIFFERENCE = 0.1


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
    error : str
        The last line that it wrote to stderr, if that was noted.
    """

    lines: list[float]
    seconds: float
    status: int | None
    error: str = ""


def time_limit(seconds: Any) -> float:
    """Return how long the script's own way may take, checked.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is not above 0.
    """
    from fastgrad.validation import step_size  # which needs NumPy

    return step_size(seconds, "compare")


class TimedLines:
    """A stream that notes down when lines end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.times: list[float] = []

    def write(self, text: str) -> int:
        """Write text."""
        self.times.extend([time.perf_counter()] * text.count("\n"))
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has besides."""
        return getattr(self._stream, name)


def run_own_way(script: Path, args: Sequence[str], limit: float) -> Timing:
    """Run a script in plain Python, without windows, for `limit` seconds.

    Its output is not shown.
    """
    times: list[float] = []
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-u", "-c", _OWN_WAY, str(script), *args],
            env={**os.environ, "MPLBACKEND": "Agg"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        output = process.stdout
        assert output is not None

        def listen() -> None:
            for _ in output:
                times.append(time.perf_counter() - begin)

        listener = threading.Thread(target=listen, daemon=True)
        try:
            output.readline()  # NumPy is there
            begin = time.perf_counter()
            listener.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit)
            seconds, status = time.perf_counter() - begin, process.returncode
        finally:
            process.kill()
        listener.join(timeout=5)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    error = lines[-1].strip() if lines else ""
    return Timing([at for at in times if at <= seconds], seconds, status, error)


def verdict(own: Timing, ours: Timing, *, used: bool = True) -> str:
    """Say how many times faster, or slower, the script was here.

    No factor is given where it would mean nothing: where the script `used` nothing of fastgrad, or
    the two runs hardly differ.
    """
    if own.status not in (None, 0):
        failed = f"In its own way the script failed, with exit status {own.status}"
        why = f": {own.error}" if own.error else "."
        return failed + why + ("\nIt gets no input there." if "EOFError" in own.error else "")
    if not used:
        return "The script used nothing of fastgrad, so there is nothing to compare."
    if own.status == 0:
        factor = _factor(own.seconds, ours.seconds)
        return f"In its own way it takes {own.seconds:.2f} s{factor}."
    common = min(len(own.lines), len(ours.lines))
    if common:
        took, takes = (max(run.lines[common - 1], 1e-6) for run in (own, ours))
        what = "line of output comes" if common == 1 else f"{common} lines of output come"
        return (
            f"In its own way the first {what} after {took:.2f} s, here after {takes:.2f} s"
            f"{_factor(took, takes)}."
        )
    if own.seconds > ours.seconds:
        factor = _factor(own.seconds, ours.seconds).replace(": ", ": more than ")
        return f"In its own way it has printed nothing after {own.seconds:.0f} s{factor}."
    return f"In its own way it has printed nothing after {own.seconds:.0f} s."


def _factor(own: float, ours: float) -> str:
    """Return a factor as a few words after a colon, or nothing if it would mean nothing."""
    if abs(own - ours) < _LEAST_DIFFERENCE:
        return ""
    word = "faster" if own >= ours else "slower"
    factor = max(own, ours) / max(min(own, ours), 1e-6)
    shown = f"{factor:.2g}" if factor < 100 else f"{factor:,.0f}"
    return f": {shown} times {word} here"
