"""Steps: large kernels that run on all threads, chunk by chunk, and meet at barriers.

Numba compiles what stands inside a ``prange`` five times over: as a function of its own, in two
wrappers, in the driver, and once more for the driver's machine code. For a training iteration that
took 33 s. So a large body is a *step kernel* instead, a serial function of ``(args, chunk, chunks,
number)`` that is compiled once, and the one ``prange`` that all of them have in common, in
`run_steps`, calls it through a function pointer.

A step is a few such kernels, which a thread runs one after the other for its chunk of the work.
Between two steps stands a barrier: the next one begins when all chunks of the one before are
finished. Threads spin there, which takes half a microsecond, where a launch takes 3 to 13. So a
whole training run is one launch of thousands of steps.

There may be fewer threads than chunks, since one of them may come late, or never. So each thread
runs its own chunk of a step first. When it has waited for a while, it steals those of others that
nobody has begun; a compare-and-swap decides which thread gets a chunk.

``args`` is an `Arguments`: compiled code reads its arrays and numbers as attributes, from packed
memory. Without compilation it is a plain object. ``number`` counts the repetitions of a program in
one launch.
"""

from __future__ import annotations

import functools
import platform
import zlib
from collections.abc import Callable, Iterable, Sequence
from ctypes import addressof, c_char
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model
from numpy.typing import NDArray

from fastgrad.runtime import threads
from fastgrad.runtime.compile import (
    COMPILED,
    AttributeTemplate,
    address,
    array_type,
    cgutils,
    emit_call,
    emitted,
    helper,
    parallel_kernel,
)

#: Numbers in a row that one thread writes while others watch it: two cache lines, since processors
#: fetch them in pairs.
ROW = 16
#: Columns of ``progress``: how many steps of a chunk are started, how many are finished, and
#: whether a kernel raised an exception.
STARTED, FINISHED, FAILED = 0, 8, 9
#: Spins after which a thread steals a chunk that nobody has begun, 2 to 4 microseconds; and spins
#: between two offers of its core to other threads, some 10 microseconds.
STEAL_AFTER, YIELD_AFTER = 100, 500


class Field(NamedTuple):
    """Where an array or a number of an `Arguments` lies, and what it is.

    Attributes
    ----------
    word : int
        Which of the memory's numbers of 64 bits: a number itself, or an array's address. The
        lengths of an array's axes follow.
    kind : Numba type
    dtype : dtype or type
        That of an array; ``float`` or ``int`` for a number.
    """

    word: int
    kind: Any
    dtype: Any


class Arguments:
    """Named arrays and numbers in memory, which step kernels read as attributes.

    The arrays given at first live as long as this object. Those that replace them are borrowed:
    whoever calls keeps them alive while steps run.

    Parameters
    ----------
    **values : ndarray, int or float
        Arrays are C-contiguous.

    Attributes
    ----------
    fields : dict of Field
    pointer : int
        Where the memory lies, which lives as long as this object.
    """

    def __init__(self, **values: Any) -> None:
        self.fields: dict[str, Field] = {}
        words = 0
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                field = Field(words, array_type(value.dtype, value.ndim), value.dtype)
                words += value.ndim
            elif isinstance(value, float):
                field = Field(words, types.float64, float)
            else:
                field = Field(words, types.int64, int)
            self.fields[name] = field
            words += 1
        memory = np.zeros(words, np.int64)
        self._first = values  # keeps the arrays alive
        self._integers, self._floats = memory.data, memory.view(np.float64).data
        self.pointer: Any = memory.ctypes.data if COMPILED else SimpleNamespace()
        self.set(**values)

    def set(self, **values: Any) -> None:
        """Replace values by others of the same types."""
        if not COMPILED:
            vars(self.pointer).update(values)
            return
        integers = self._integers
        for name, value in values.items():
            word, _, dtype = self.fields[name]
            if dtype is float:
                self._floats[word] = value
            elif dtype is int:
                integers[word] = value
            elif value.dtype == dtype and value.flags.carray:
                # A third of the time that `value.ctypes.data` takes.
                integers[word] = addressof(c_char.from_buffer(value)) if value.size else 0
                for axis, length in enumerate(value.shape, word + 1):
                    integers[axis] = length
            else:
                raise TypeError(f"`{name}` must be a plain array of {dtype}. Got {value.dtype}.")

    def kernel_address(self, body: Any) -> Any:
        """Return the address of a step kernel for these arguments, compiling it if need be."""
        if not COMPILED:
            return body
        # The type of `args` names only what the kernel reads, so that a kernel that does not read
        # the samples is compiled once for samples of every dtype.
        names = body.py_func.__code__.co_names
        kind = ArgumentsType({name: self.fields[name] for name in names if name in self.fields})
        return _addresses(body, kind)


def binder(places: Sequence[tuple[Arguments, str]]) -> Callable[[Iterable[Any]], None]:
    """Return a function that replaces arrays of some `Arguments`, given in the order of `places`.

    It checks nothing, not even the dtype, and takes a third of the time of `Arguments.set`. Of
    their shapes only the first length may change.
    """
    words = [(args._integers, args.fields[name].word) for args, name in places]

    def point(arrays: Iterable[Any]) -> None:
        for (integers, word), array in zip(words, arrays, strict=True):
            integers[word + 1] = length = len(array)
            integers[word] = addressof(c_char.from_buffer(array)) if length else 0

    def replace(arrays: Iterable[Any]) -> None:
        for (args, name), array in zip(places, arrays, strict=True):
            args.set(**{name: array})

    return point if COMPILED else replace


@functools.cache
def _addresses(body: Any, kind: ArgumentsType) -> Any:
    return address(body, (kind, types.int64, types.int64, types.int64))


class Program(NamedTuple):
    """Steps for `launch`, from `program`.

    Attributes
    ----------
    kernels : ndarray, shape (kernels, 2)
        The address of each kernel, and that of its arguments.
    ends : ndarray of int64, shape (steps,)
        Where the kernels of each step end.
    """

    kernels: NDArray[Any]
    ends: NDArray[np.int64]


def program(*steps: Sequence[tuple[Any, Arguments]]) -> Program:
    """Return the program of some steps, each a sequence of kernels with their arguments."""
    kernels = [(body, args) for step in steps for body, args in step]
    table = np.zeros((len(kernels), 2), np.int64 if COMPILED else object)
    for row, (body, args) in zip(table, kernels, strict=True):
        row[:] = args.kernel_address(body), args.pointer
    return Program(table, np.cumsum([len(step) for step in steps]))


def progress_rows(chunks: int) -> NDArray[np.int64]:
    """Return what `launch` counts in, a row for each chunk."""
    return np.zeros((chunks, ROW), np.int64)


def launch(steps: Program, progress: NDArray[np.int64], first: int = 0, repeats: int = 1) -> None:
    """Run the steps of a program one after the other, each for all chunks of its work.

    Parameters
    ----------
    steps : Program
    progress : ndarray
        From `progress_rows`.
    first, repeats : int
        How often to run them all. Kernels get a number, which is ``first`` at first and goes
        up by 1 each time.

    Raises
    ------
    RuntimeError
        If a kernel raised an exception, which only the check of bounds can make it do.
    """
    if threads.launch(
        run_steps, _thread_address(), *steps, first, repeats, progress, threads.YIELD
    ):
        raise RuntimeError(
            "a compiled kernel raised an exception; NUMBA_DISABLE_JIT=1 shows which one"
        )


@functools.cache
def _thread_address() -> Any:
    number, vector, matrix = types.int64, array_type(np.int64, 1), array_type(np.int64, 2)
    return address(run_thread, (number, matrix, vector, number, number, matrix, number))


# What follows writes LLVM instructions, because Numba has no way to say it: attributes of memory at
# an address, calls through an address, and atomic operations on an array.

if COMPILED:

    class ArgumentsType(types.Type):
        """The Numba type of the address of an `Arguments`, with the fields that a kernel reads."""

        def __init__(self, fields: dict[str, Field]) -> None:
            self.fields = fields
            described = (f"{name}: {field.kind} @{field.word}" for name, field in fields.items())
            super().__init__(name=f"Arguments({', '.join(described)})")

        @property
        def mangling_args(self) -> tuple[str, tuple[Any, ...]]:
            """A short name for symbols; the cache tells types apart by the long one."""
            return "Arguments", (zlib.crc32(self.name.encode()),)

    @register_model(ArgumentsType)
    class _ArgumentsModel(models.PrimitiveModel):
        def __init__(self, manager, type_):
            super().__init__(manager, type_, ir.IntType(64))

    @infer_getattr
    class _ArgumentsAttributes(AttributeTemplate):
        key = ArgumentsType

        def generic_resolve(self, type_, name):
            return type_.fields[name].kind if name in type_.fields else None

    @lower_getattr_generic(ArgumentsType)
    def _load_field(context, builder, type_, value, name):
        at, kind, _ = type_.fields[name]
        integer = ir.IntType(64)
        words = builder.inttoptr(value, integer.as_pointer())

        def load(word, element):
            place = builder.gep(words, [ir.Constant(integer, word)])
            loaded = builder.load(builder.bitcast(place, element.as_pointer()))
            loaded.align = 8
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return loaded

        if not isinstance(kind, types.Array):
            return load(at, context.get_value_type(kind))
        # As Numba lays an array out, without an owner: nobody counts references to it.
        array = context.make_array(kind)(context, builder)
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        shape = [load(at + 1 + axis, integer) for axis in range(kind.ndim)]
        strides = [ir.Constant(integer, size)]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        n_items = functools.reduce(builder.mul, shape)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        array.nitems = n_items
        array.itemsize = ir.Constant(integer, size)
        array.data = load(at, array.data.type)
        array.shape = cgutils.pack_array(builder, shape)
        array.strides = cgutils.pack_array(builder, strides)
        return array._getvalue()


def _plain_call(function, arguments):
    """Call a kernel by its address; return whether it raised an exception.

    Parameters
    ----------
    function : int
        From `fastgrad.runtime.compile.address`.
    arguments : tuple
        Integers of 64 bits, and arrays of the layout that the kernel was compiled for.
    """
    function(*arguments)
    return False


def _emit_call(call):
    context, builder, given = call.context, call.builder, call.kinds["arguments"].types
    taken = tuple(types.int64 if isinstance(kind, types.Integer) else kind for kind in given)
    values = cgutils.unpack_tuple(builder, call.values["arguments"])
    values = [context.cast(builder, *three) for three in zip(values, given, taken, strict=True)]
    place = call.values["function"]
    status, _ = emit_call(context, builder, place, taken, values, types.none)
    return status.is_error


def _plain_load(counters, row, column):
    """Return a counter, and have everything visible that was written before it was stored."""
    return counters[row, column]


def _plain_store(counters, row, column, value):
    """Store a counter, after everything that was written before."""
    counters[row, column] = value


def _plain_compare_and_swap(counters, row, column, expected, value):
    """Replace a counter if it is as expected; return whether it was."""
    if counters[row, column] != expected:
        return False
    counters[row, column] = value
    return True


def _counter(call):
    """Return a pointer to an element of a 2-D array."""
    context, builder, kind = call.context, call.builder, call.kinds["counters"]
    array = context.make_array(kind)(context, builder, call.values["counters"])
    indices = [call.whole("row"), call.whole("column")]
    return cgutils.get_item_pointer(context, builder, kind, array, indices)


def _emit_load(call):
    return call.builder.load_atomic(_counter(call), "acquire", 8)


def _emit_store(call):
    call.builder.store_atomic(call.whole("value"), _counter(call), "release", 8)


def _emit_compare_and_swap(call):
    expected, value = call.whole("expected"), call.whole("value")
    result = call.builder.cmpxchg(_counter(call), expected, value, "acq_rel", "monotonic")
    return call.builder.extract_value(result, 1)


def _plain_pause():
    """Wait for some 20 nanoseconds, and leave the core's resources to its other thread."""


def _emit_pause(call):
    machine, declare = platform.machine().lower(), call.builder.module.declare_intrinsic
    if machine in ("x86_64", "amd64"):
        nothing = ir.FunctionType(ir.VoidType(), [])
        call.builder.call(declare("llvm.x86.sse2.pause", (), nothing), [])
    elif machine in ("aarch64", "arm64"):
        hint = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
        number = ir.Constant(ir.IntType(32), 1)  # "yield"
        call.builder.call(declare("llvm.aarch64.hint", (), hint), [number])


def _plain_call_system(function):
    """Call a function of the operating system by its address, without arguments."""


def _emit_call_system(call):
    kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
    call.builder.call(call.builder.inttoptr(call.values["function"], kind), [])


call_pointer = emitted(_plain_call, _emit_call, types.boolean)
load = emitted(_plain_load, _emit_load, types.int64)
store = emitted(_plain_store, _emit_store)
compare_and_swap = emitted(_plain_compare_and_swap, _emit_compare_and_swap, types.boolean)
pause = emitted(_plain_pause, _emit_pause)
call_system = emitted(_plain_call_system, _emit_call_system)


@helper
def chunk_range(size, chunk, chunks):
    """Return where a chunk of `size` things begins and ends.

    Inside ``prange`` this is written out: a call takes a tenth of a second more to compile there.
    """
    return size * chunk // chunks, size * (chunk + 1) // chunks


@helper
def run_thread(thread, kernels, ends, first, repeats, progress, yield_core):
    """Run a thread's own chunk of every step, and chunks of others that nobody begins."""
    chunks = progress.shape[0]
    for count in range(repeats * ends.size):
        number, step = first + count // ends.size, count % ends.size
        for k in range(chunks):
            chunk = (thread + k) % chunks
            spins = STEAL_AFTER if k == 0 else 0
            while load(progress, chunk, FINISHED) <= count:
                # A load comes first: a swap takes the cache line from its owner even in vain.
                if (
                    spins >= STEAL_AFTER
                    and load(progress, chunk, STARTED) == count
                    and compare_and_swap(progress, chunk, STARTED, count, count + 1)
                ):
                    for row in range(ends[step - 1] if step > 0 else 0, ends[step]):
                        if call_pointer(kernels[row, 0], (kernels[row, 1], chunk, chunks, number)):
                            progress[chunk, FAILED] = 1
                    store(progress, chunk, FINISHED, count + 1)
                spins += 1
                if spins % YIELD_AFTER == 0:
                    call_system(yield_core)
                pause()


@parallel_kernel
def run_steps(thread_address, kernels, ends, first, repeats, progress, yield_core):
    """Run the steps of a program on all threads; return how many chunks saw an exception.

    Parameters
    ----------
    thread_address : int
        Of `run_thread`. Called by name, it would be compiled three more times.
    kernels, ends
        See `Program`.
    first, repeats : int
        See `launch`.
    progress : ndarray of int64, shape (chunks, ROW)
        How far each chunk is. Cleared first.
    yield_core : int
        The address of a function that offers the core to other threads,
        `fastgrad.runtime.threads.YIELD`.
    """
    chunks = progress.shape[0]
    for chunk in range(chunks):
        progress[chunk, STARTED] = 0
        progress[chunk, FINISHED] = 0
        progress[chunk, FAILED] = 0
    if chunks == 1:  # nobody to wake, and nothing of the threading layer
        call_pointer(thread_address, (0, kernels, ends, first, repeats, progress, yield_core))
    else:
        for thread in prange(chunks):
            call_pointer(
                thread_address, (thread, kernels, ends, first, repeats, progress, yield_core)
            )
    failed = 0
    for chunk in range(chunks):
        failed += progress[chunk, FAILED]
    return failed
