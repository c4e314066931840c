"""The compile policy: every kernel of the package is compiled by one of the decorators below.

All share ``error_model="numpy"`` (a division checks nothing, so it vectorises), ``nogil`` (Python
threads run side by side) and an on-disk cache that is never fatal and never stale.

What takes time to compile is left out: an entry from Python, with a copy of the body, where nobody
needs one, and the counting of references to arrays, which all belong to the caller. Together that
is a fifth of the time of a first numerical gradient.

This file is also the one place for names of Numba that its documentation does not promise: see
`PRIVATE_NAMES`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, is_jitted

#: The folders of the package that have kernels in them. An edit there compiles all of them anew.
KERNEL_FOLDERS = ("kernels", "runtime")

#: Fast-math flags of all but `exact_helper`. Without ``nnan`` and ``ninf``: a NaN must reach the
#: caller.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

#: Fast-math flags of `exact_helper`.
EXACT_FASTMATH = {"contract"}

#: What the package uses of Numba beyond its documented interface, as "module:name". If a name is
#: missing, the package still works. Without one for the cache, kernels are compiled anew in every
#: process; without that for counting references, compiling takes longer; without one for events,
#: `follow_compilations` does nothing; and without one for function pointers, all kernels run as
#: plain Python functions, slowly and with the same results.
PRIVATE_NAMES = {
    "cache": (
        "numba.core.caching:FunctionCache",
        "numba.core.caching:IndexDataCacheFile",
        "numba.core.caching:FunctionCache._load_overload",
        "numba.core.runtime:rtsys.initialize",
    ),
    "counting": ("numba.core.options:DefaultOptions._nrt",),
    "events": ("numba.core.event:Listener", "numba.core.event:register"),
    "pointers": (
        "numba.core:cgutils",
        "numba.core.typing.templates:AttributeTemplate",
        "numba:types.ExternalFunction",
        "numba.np.arrayobj:populate_array",
        "numba.core.codegen:JITCodeLibrary.get_pointer_to_function",
        "numba.core.funcdesc:FunctionDescriptor.llvm_func_name",
        "numba.core.callconv:CPUCallConv.get_function_type",
        "numba.core.callconv:CPUCallConv.call_function",
        "numba.core.base:BaseContext.make_array",
        "numba.core.base:BaseContext.get_dummy_value",
    ),
}


def private_name(text: str) -> Any:
    """Return what a "module:name" of Numba stands for, or None if it is missing."""
    module, name = text.split(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


# The files that write LLVM instructions use the first four.
_pointers = [private_name(name) for name in PRIVATE_NAMES["pointers"]]
cgutils, AttributeTemplate, ExternalFunction, populate_array = _pointers[:4]
_cache_names = [private_name(name) for name in PRIVATE_NAMES["cache"]]
_FunctionCache, _IndexDataCacheFile, _, _start_runtime = _cache_names

#: Whether kernels are compiled; otherwise they are plain Python functions.
COMPILED = None not in _pointers and not numba.config.DISABLE_JIT


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel, which Python or other kernels call."""
    return _compile(function)


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel that Python calls and whose ``prange`` loops run on several threads."""
    return _compile(function, counts_references=True, parallel=True)


def chunk_kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel of ``(args, chunk, chunks, iteration)``, for a chunk of the work.

    `fastgrad.runtime.programs` runs it on all threads, and calls it by its address.
    """
    return helper(function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile a serial function that only kernels call."""
    return _compile(function, no_cpython_wrapper=True)


def exact_helper(function: Callable[..., Any]) -> Any:
    """Compile a helper whose rounding errors are part of the algorithm.

    The compiler may fuse a multiplication and an addition, but not change the order of operations.
    """
    return _compile(function, no_cpython_wrapper=True, fastmath=EXACT_FASTMATH)


def allocating_helper(function: Callable[..., Any]) -> Any:
    """Compile a helper that creates arrays, as an assignment of an array to a slice also may."""
    return _compile(function, no_cpython_wrapper=True, counts_references=True)


def c_callable(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that kernels call by its address; in memory, without fast-math."""
    decorate: Callable[[Callable[..., Any]], Any] = numba.cfunc(signature)
    return decorate


class Call(NamedTuple):
    """A call of an intrinsic that is being compiled: what its instructions are written with.

    Attributes
    ----------
    context, builder
        Of Numba and of llvmlite.
    kinds : dict
        The Numba type of each argument, by name.
    values : dict
        The LLVM value of each argument.
    """

    context: Any
    builder: Any
    kinds: dict[str, Any]
    values: dict[str, Any]

    def whole(self, name: str) -> Any:
        """Return an integer argument as 64 bits."""
        return self.context.cast(self.builder, self.values[name], self.kinds[name], types.int64)

    def item(self, name: str, *indices: str) -> Any:
        """Return a pointer to an array's element, at integer arguments."""
        kind, places = self.kinds[name], [self.whole(index) for index in indices]
        array = self.context.make_array(kind)(self.context, self.builder, self.values[name])
        return cgutils.get_item_pointer(self.context, self.builder, kind, array, places)


def emitted(emit: Callable[[Call], Any], result: Any = None) -> Callable[..., Any]:
    """Return a decorator: it replaces a plain function by LLVM instructions for the same.

    Kernels call the intrinsic itself. With ``numba.extending.overload`` it would be wrapped in a
    function of its own, which takes a tenth of a second more to compile. Where nothing is compiled
    the plain function runs.

    Parameters
    ----------
    emit : callable
        Writes the instructions, and returns the resulting LLVM value.
    result : Numba type, optional
        Of the result, if there is one.
    """

    def decorate(plain: Callable[..., Any]) -> Any:
        if not COMPILED:
            return plain
        names = inspect.signature(plain).parameters

        @functools.wraps(plain)
        def typed(typing_context: Any, *kinds: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                by_name = (dict(zip(names, each, strict=True)) for each in (signature.args, values))
                value = emit(Call(context, builder, *by_name))
                return context.get_dummy_value() if result is None else value

            return (result or types.void)(*kinds), generate

        # Numba reads the parameters from the signature.
        first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        vars(typed)["__signature__"] = inspect.Signature([first, *names.values()])
        return intrinsic(typed)

    return decorate


def address(function: Any, signature: tuple[Any, ...]) -> Any:
    """Return where a kernel's code for these argument types lies, compiling it if need be.

    Without compilation that is the kernel itself.
    """
    if not is_jitted(function):
        return function
    function.compile(signature)
    return code_address(function.overloads[signature])


def code_address(overload: Any) -> int:
    """Return where the code of a compiled function lies, for Numba's own calling convention."""
    place: int = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    return place


def emit_call(
    context: Any, builder: Any, place: Any, kinds: tuple[Any, ...], values: Any, result: Any
) -> Any:
    """Write a call of the code at a `code_address`; return Numba's status, and the result.

    The code was compiled for arguments of these `kinds`, and a result of that one.
    """
    convention = context.call_conv
    function_type = convention.get_function_type(result, kinds)
    function = builder.inttoptr(place, function_type.as_pointer())
    return convention.call_function(builder, function, result, kinds, values)


def array_type(dtype: Any, n_dimensions: int) -> types.Array:
    """Return the Numba type of C-contiguous arrays of a dtype."""
    return types.Array(numba.from_dtype(np.dtype(dtype)), n_dimensions, "C")


def users_overload(function: Any, signature: tuple[Any, ...]) -> Any:
    """Compile a user's function for these argument types; None if it is to be called from Python.

    That is one that runs threads of its own (nested launches abort on some threading layers), one
    whose arguments do not stand one to one for its parameters, and each where Numba has changed.
    """
    if not COMPILED or not is_jitted(function) or function.targetoptions.get("forceobj"):
        return None
    try:
        _, folded = function._compiler.fold_argument_types(signature, {})
        if tuple(folded) != signature:
            return None
        if signature not in function.overloads:
            if not function._can_compile:
                return None
            function.compile(signature)
        overload = function.overloads[signature]
        # A function that was loaded from a cache starts its threads when that is called.
        return None if overload.reload_init else overload
    except AttributeError:
        return None


#: What `_KernelCache` raises where Numba finds no folder that it can write to (a read-only install,
#: no home), or where Numba's cache has changed. Kernels are then compiled in memory.
_NO_CACHE = (RuntimeError, OSError, AttributeError, TypeError)


def _compile(
    function: Callable[..., Any], *, counts_references: bool = False, **options: Any
) -> Any:
    """Compile a function with the options that all kernels share and with some of its own.

    Without an entry from Python a call from there would end the process, so it is made to raise a
    `TypeError` instead.
    """
    if not COMPILED:
        return function
    if None not in map(private_name, PRIVATE_NAMES["counting"]):
        # Always given: otherwise a function takes the option over from the first that calls it.
        options["_nrt"] = counts_references
    options = {
        "fastmath": FASTMATH,
        "error_model": "numpy",
        "nogil": True,
        "no_cfunc_wrapper": True,  # nobody calls through it
        **options,
    }
    compiled: Any = numba.njit(function, **options)
    with contextlib.suppress(*_NO_CACHE):
        compiled._cache = _KernelCache(function)
    if "no_cpython_wrapper" in options:
        with contextlib.suppress(TypeError):  # without it only the message is lost
            dispatcher: Any = type(compiled)
            compiled.__class__ = _helper_class(dispatcher)
    return compiled


@functools.cache
def _helper_class(dispatcher: Any) -> Any:
    def refuse(self: Any, *args: Any) -> None:
        raise TypeError(f"`{self.__name__}` is for compiled code; Python cannot call it.")

    return type("Helper", (dispatcher,), {"__call__": refuse})


class _KernelCache(object if None in _cache_names else _FunctionCache):  # type: ignore[misc]
    """Numba's function cache, with the faults mended that matter to a package.

    Numba stamps an entry with the source of the kernel's own file, so an edit to a helper in
    another file goes unnoticed (numba#1833): here the stamp covers every kernel source of the
    package. A damaged entry, one that another process has overwritten, or a full disk raises in
    Numba: here it counts as a miss. And of two processes that save at the same time one would lose
    its entry: here one waits for the other.
    """

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = _IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=sources_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba would import all that it can compile, and SciPy where that is installed: a third of
        # the time to a first result. Code that is loaded needs the counting of references alone.
        try:
            _start_runtime(target_context)
            loaded = self._load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - whatever a damaged file does to pickle or LLVM
            return None
        # Two processes that save at the same time may give one file to two overloads.
        wanted = getattr(sig, "args", sig)
        if loaded is not None and tuple(loaded.signature.args) != tuple(wanted):
            return None
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            with _one_process_at_a_time(Path(self._cache_path, "lock")):
                super().save_overload(sig, data)
        except Exception:  # noqa: BLE001 - full disk, folder gone, index damaged
            # A damaged index would be a miss in every process to come. Without it the next saves.
            with contextlib.suppress(OSError):
                os.unlink(self._cache_file._index_path)


@contextlib.contextmanager
def _one_process_at_a_time(file: Path) -> Iterator[None]:
    """Wait until no other process is inside, where the system and the folder have locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield


@functools.cache
def sources_stamp() -> str:
    """Return a hash over the names and the text of every kernel source of the package."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for folder in KERNEL_FOLDERS:
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the folder that compiled kernels are kept in, or None if none can be written."""
    try:
        return Path(_KernelCache(kernel).cache_path)
    except _NO_CACHE:
        return None


def follow_compilations(begin: Callable[[bool], None], end: Callable[[], None]) -> None:
    """Have two functions called around every compilation by Numba, in the thread that compiles.

    `begin` is told whether it is a kernel of this package. Compiling one compiles what it calls,
    so pairs of calls are nested.
    """
    listener, register = map(private_name, PRIVATE_NAMES["events"])
    if listener is None or register is None:
        return

    class Follower(listener):  # type: ignore[misc, valid-type]
        def on_start(self, event: Any) -> None:
            begin(event.data["dispatcher"].py_func.__module__.startswith("fastgrad."))

        def on_end(self, event: Any) -> None:
            end()

    register("numba:compile", Follower())
