"""What ``fastgrad run`` does. It imports neither NumPy nor Numba: the script may need neither."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading

from fastgrad.book import script

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Run a script of the book.

    Parameters
    ----------
    options : Namespace
        The arguments of the command line.

    Returns
    -------
    int
        The script's exit status.

    Raises
    ------
    OSError, ValueError
        If the script cannot be read, or an option does not fit.
    """
    before = threading.enumerate()
    serve = dict(options.serve)
    status = script.run_script(
        options.script, options.args, options.keep, serve=serve, compare=options.compare
    )
    if script.outliving(before):
        # Ctrl-C has ended the waiting for these threads, which Python would begin once more.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
    return status
