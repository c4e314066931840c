"""Processes: Python ones of their own, for what must not happen inside this one; and this one."""

import os
import subprocess
import sys
from pathlib import Path

#: The folder that `fastgrad` is imported from.
ROOT = Path(__import__("fastgrad").__file__).parent.parent


def run(code, *options, root=ROOT, timeout=240, cwd=None, **environment):
    """Run code in a fresh Python and return the completed process.

    Environment variables given as None are taken away. A process that hangs fails the test.
    """
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=environment_of(root, **environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd or root,  # `-c` imports from there first
        check=False,
    )


def environment_of(root=ROOT, **changes):
    """Return this process's environment with the package importable, and changed."""
    environment = {**os.environ, "PYTHONPATH": str(root), **changes}
    return {name: value for name, value in environment.items() if value is not None}


def answer(process):
    """Return what a process printed, and fail with what it said unless it ended well."""
    assert process.returncode == 0, (
        f"exit status {process.returncode}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    )
    return process.stdout.strip()


def open_files():
    """Return how many files this process has open, or 0 where no one can tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
