"""The threading layer: which one runs, and how a parallel kernel is launched.

oneTBB is preferred, see `fastgrad.runtime.tbb`.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numba

#: workqueue aborts the process when two Python threads launch at once.
_workqueue_lock = threading.RLock()


_layer: str | None = None
_forked_after_launch = False


def layer() -> str:
    """Return the name of the threading layer, starting it if none runs yet.

    Returns
    -------
    str
        ``"tbb"``, ``"omp"`` or ``"workqueue"``.
    """
    global _layer
    if _layer is None:
        numba.get_num_threads()  # starts the layer
        _layer = numba.threading_layer()
    return _layer


def launch(kernel: Any, *args: Any) -> Any:
    """Call a parallel kernel in the way that the threading layer allows.

    Parameters
    ----------
    kernel : Numba dispatcher
        A function made by `fastgrad.runtime.compile.parallel_kernel`.
    *args : Any
        Its arguments.

    Returns
    -------
    Any
        What the kernel returns.

    Raises
    ------
    RuntimeError
        In a forked child, on a layer that a fork breaks (GNU OpenMP).
    """
    name = _layer or layer()
    if name == "tbb":
        return kernel(*args)
    if name == "workqueue":
        with _workqueue_lock:
            return kernel(*args)
    if _forked_after_launch:
        raise RuntimeError(
            "the OpenMP threading layer cannot be used in a forked process. Install tbb "
            "(pip install tbb), or start processes with multiprocessing's 'spawn' method."
        )
    return kernel(*args)


def chunks(work: float, enough: float) -> int:
    """Return the number of threads that an amount of work should be dealt out to.

    Parameters
    ----------
    work : float
        Amount of work, in any unit.
    enough : float
        The least amount, in the same unit, that pays for a launch on two threads.

    Returns
    -------
    int
        1 (call the serial kernel), or the user's number of threads.
    """
    if work < enough:
        return 1  # small calls need not even ask for the number
    count: int = numba.get_num_threads()
    # A launch takes some 8 microseconds, and 3 for every further thread (measured on 16 cores).
    if work < enough * (count + 6) / 8:
        return 1
    if (_layer or layer()) == "workqueue" and work < 30 * enough:
        return 1  # there it takes 90
    return count


def _after_fork_in_child() -> None:
    global _forked_after_launch, _workqueue_lock
    _forked_after_launch = _layer is not None
    _workqueue_lock = threading.RLock()  # the parent's holder does not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

# On a single core nobody but the thread that starts oneTBB can finish what it begins with. If that
# thread ends before the process does, the process waits for ever: so the main thread starts it.
if (
    hasattr(os, "sched_getaffinity")
    and len(os.sched_getaffinity(0)) == 1
    and threading.current_thread() is threading.main_thread()
):
    layer()
