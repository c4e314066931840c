"""The compile policy: every kernel of the package is compiled by one of five decorators.

`kernel`
    A serial loop or a helper that others inline.
`inlined_kernel`
    A part of a larger kernel, pasted into it before anything is compiled: it costs no compilation
    of its own, and shares what LLVM knows about the larger one's arrays.
`parallel_kernel`
    A driver that spreads work over threads with ``prange``.
`task_kernel`
    One thread's share of a large piece of work, which `fastgrad.kernels.tasks` runs on all threads.
    Its arrays do not overlap, and LLVM is told so: else it has to check before each loop.
`exact_kernel`
    A helper whose rounding errors are part of the algorithm (argument reduction, two-term
    constants): the compiler may fuse a multiply and an add, but never reorder.

A bridge to a user's function is made at run time by `c_callable`, and what Numba has no word for is
written as LLVM instructions and turned into a function by `emitted`.

All share ``error_model="numpy"`` (a division checks nothing, so it vectorises), ``nogil`` (Python
threads run side by side) and an on-disk cache that is never fatal and never stale.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import intrinsic

#: Fast-math flags of all but `exact_kernel`. Without ``nnan`` and ``ninf``: a NaN must reach the
#: caller.
FASTMATH = frozenset({"contract", "reassoc", "nsz", "arcp"})

#: Fast-math flags of `exact_kernel`.
EXACT_FASTMATH = frozenset({"contract"})


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel."""
    return _compile(function, parallel=False, fastmath=FASTMATH)


def inlined_kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel as a part of every kernel that calls it."""
    return _compile(function, parallel=False, fastmath=FASTMATH, inline="always")


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel whose ``prange`` loops run on several threads."""
    return _compile(function, parallel=True, fastmath=FASTMATH)


def task_kernel(function: Callable[..., Any]) -> Any:
    """Compile a task's body, a serial kernel of (share, state), for `fastgrad.kernels.tasks`."""
    # It is called by its address. An entry from Python, with a copy of the body, costs another
    # tenth of the time to compile.
    compiled = _compile(function, parallel=False, fastmath=FASTMATH, no_cpython_wrapper=True)
    if isinstance(compiled, numba.core.dispatcher.Dispatcher):
        compiled._compile_for_args = _refuse_call  # what Numba does there is jump to address 0
        # Numba sets this flag itself on what stands inside a ``prange``, and offers no option.
        compiled._compiler._customize_flags = _without_aliases
    return compiled


def _refuse_call(*args: Any, **kwargs: Any) -> Any:
    raise TypeError("A task cannot be called from Python: see fastgrad.kernels.tasks.run_steps.")


def _without_aliases(flags: Any) -> Any:
    flags.noalias = True
    return flags


def exact_kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel whose operations keep their order."""
    return _compile(function, parallel=False, fastmath=EXACT_FASTMATH)


def c_callable(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that kernels call by its address; in memory, without fast-math."""
    decorate: Callable[[Callable[..., Any]], Any] = numba.cfunc(signature)
    return decorate


def emitted(plain: Callable[..., Any], emit: Callable[..., Any]) -> Any:
    """Return an intrinsic, or the same in plain Python where Numba is switched off.

    Kernels call the intrinsic itself. With ``numba.extending.overload`` between them it would come
    in a function of its own, which takes a tenth of a second more to compile.
    """
    return plain if numba.config.DISABLE_JIT else intrinsic(emit)


def _compile(
    function: Callable[..., Any],
    *,
    parallel: bool,
    fastmath: frozenset[str],
    **options: Any,
) -> Any:
    compiled = numba.njit(
        function,
        parallel=parallel,
        fastmath=set(fastmath),
        **options,
        error_model="numpy",
        nogil=True,
        no_cfunc_wrapper=True,  # nobody calls through it
    )
    if isinstance(compiled, numba.core.dispatcher.Dispatcher):  # a function under NUMBA_DISABLE_JIT
        _attach_cache(compiled)
    return compiled


def _attach_cache(dispatcher: Any) -> None:
    """Give a kernel its on-disk cache, or none where no folder can be written."""
    try:
        dispatcher._cache = _KernelCache(dispatcher.py_func)
    except (RuntimeError, OSError):
        # Numba found no writable folder (read-only install, no home): compile in memory.
        return


class _KernelCache(FunctionCache):
    """Numba's function cache, with the two faults mended that matter to a package.

    Numba stamps an entry with the source of the kernel's own file, so an edit to a helper in
    another file goes unnoticed (numba#1833): here the stamp covers every kernel source of the
    package. And a damaged entry or a full disk raises in Numba: here it counts as a miss.
    """

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=sources_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - whatever a damaged file does to pickle or LLVM
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # noqa: BLE001 - full disk, folder gone, index damaged
            self._discard_index()

    def _discard_index(self) -> None:
        # A damaged index would be a miss in every process to come; without it the next one saves.
        try:
            os.unlink(self._cache_file._index_path)
        except OSError:
            return


@functools.cache
def sources_stamp() -> str:
    """Return a hash over the names and the text of every kernel source of the package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the folder that compiled kernels are kept in, or None if none can be written."""
    try:
        return Path(_KernelCache(kernel).cache_path)
    except (RuntimeError, OSError):
        return None


def follow_compilations(begin: Callable[[bool], None], end: Callable[[], None]) -> None:
    """Have two functions called around every compilation by Numba, in the thread that compiles.

    `begin` is told whether it is a kernel of this package. Compiling one compiles what it calls,
    so pairs of calls are nested.
    """
    from numba.core import event  # described in its developers' manual

    class Follower(event.Listener):  # type: ignore[misc, unused-ignore]
        def on_start(self, event: Any) -> None:
            begin(event.data["dispatcher"].py_func.__module__.startswith("fastgrad."))

        def on_end(self, event: Any) -> None:
            end()

    event.register("numba:compile", Follower())
