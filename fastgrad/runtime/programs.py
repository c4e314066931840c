"""Programs: large kernels that run on all threads, chunk by chunk, and meet at barriers.

Numba compiles what stands inside a ``prange`` five times over: as a function of its own, in two
wrappers, in the driver, and once more for the driver's machine code. For a training iteration that
took 33 s. So a large body is a *chunk kernel* instead, a serial function of ``(args, chunk, chunks,
iteration)`` that is compiled once, and the one ``prange`` that all of them have in common, in
`run_stages`, calls it through a function pointer. A kernel that stands alone, of ``(.., chunk,
chunks)``, is run in the same way by `run`.

A *stage* is a few such kernels, which a thread runs one after the other for its chunk of the work.
Between two stages stands a barrier: the next one begins when all chunks of the one before are
finished. Threads spin there, which takes half a microsecond, where a launch takes 3 to 13. So a
whole training run is one launch of thousands of stages.

There may be fewer threads than chunks, since one of them may come late, or never. So each thread
runs its own chunk of a stage first. When it has waited for a while, it steals those of others that
nobody has begun; a compare-and-swap decides which thread gets a chunk.

A `Program` is some stages, together with the memory that their kernels read their arguments from:
``args.x`` is what the program has under the name x. In compiled code ``args`` is an address, and
without compilation a plain object.
"""

from __future__ import annotations

import functools
import itertools
import platform
import sys
import zlib
from collections.abc import Mapping, Sequence
from ctypes import addressof, c_char
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model

from fastgrad.runtime import threads
from fastgrad.runtime.compile import (
    COMPILED,
    AttributeTemplate,
    ExternalFunction,
    address,
    array_type,
    cgutils,
    emit_call,
    emitted,
    helper,
    parallel_kernel,
    populate_array,
)
from fastgrad.runtime.simd import LINE_BYTES

#: Numbers in a row that one thread writes while others watch it: two cache lines, since processors
#: fetch them in pairs.
ROW = 2 * LINE_BYTES // 8
#: Columns of ``progress``: how many stages of a chunk are started, how many are finished, and
#: whether a kernel raised an exception.
STARTED, FINISHED, FAILED = 0, 8, 9
#: Spins after which a thread steals a chunk that nobody has begun, 2 to 4 microseconds; and spins
#: between two offers of its core to other threads, some 10 microseconds.
STEAL_AFTER, YIELD_AFTER = 100, 500


class Program:
    """Stages of kernels, and the memory that they read their arguments from.

    Each kernel has a block of this memory with the arguments that it reads, and no others: so a
    kernel that does not read the samples is compiled once for samples of every dtype.

    Parameters
    ----------
    chunks : int
        In how many chunks the work is divided.
    names : mapping of str to ndarray, int or float
        What kernels read. Arrays are C-contiguous; they live as long as the program does.
    *stages : sequence of (kernel, mapping of str to str)
        The kernels of each stage. The mapping says which of the `names` stands for an argument,
        where that is not the argument's own name.

    Attributes
    ----------
    names
        See above.
    kernels : ndarray, shape (kernels, 2)
        The address of each kernel, and that of its arguments.
    ends : ndarray of int64, shape (stages,)
        Where the kernels of each stage end.
    progress : ndarray of int64, shape (chunks, ROW)
        What a launch counts in.
    places : dict of str to list
        Where the memory has each name: words, or without compilation objects and attributes.
    """

    def __init__(
        self,
        chunks: int,
        names: Mapping[str, Any],
        *stages: Sequence[tuple[Any, Mapping[str, str]]],
    ) -> None:
        bound = [each for stage in stages for each in stage]
        self.names = names
        self.kernels = np.zeros((len(bound), 2), np.int64 if COMPILED else object)
        self.ends = np.array(list(itertools.accumulate(map(len, stages))), np.int64)
        self.progress = np.zeros((chunks, ROW), np.int64)
        self.places: dict[str, list[Any]] = {}
        words: list[int] = []
        for row, (kernel, renamed) in zip(self.kernels, bound, strict=True):
            read = {own: renamed.get(own, own) for own in attributes(kernel)}
            args = {own: names[name] for own, name in read.items() if name in names}
            if COMPILED:
                layouts = tuple([(own, _layout(value)) for own, value in args.items()])
                row[:] = _kernel_address(kernel, layouts), len(words)
            else:
                row[:] = kernel, SimpleNamespace(**args)
            for own, value in args.items():
                place = len(words) if COMPILED else (row[1], own)
                self.places.setdefault(read[own], []).append(place)
                words += _words(value)
        if COMPILED:
            self._memory = np.array(words, np.int64)
            self.kernels[:, 1] = self._memory.ctypes.data + 8 * self.kernels[:, 1]
            self._words = self._memory.data  # one is written in a tenth of the array's time

    def bind(self, **arrays: Any) -> None:
        """Have the kernels read other arrays, which whoever calls keeps alive.

        They have the dtypes of those before, and their shapes but for the first length. Nothing of
        that is checked.
        """
        if not COMPILED:
            for name, array in arrays.items():
                for args, own in self.places[name]:
                    setattr(args, own, array)
            return
        words, places, from_buffer = self._words, self.places, c_char.from_buffer
        for name, array in arrays.items():
            length = len(array)
            # A third of the time that `array.ctypes.data` takes.
            start = addressof(from_buffer(array)) if length else 0
            for word in places[name]:
                words[word] = start
                words[word + 1] = length

    def launch(self, first: int = 0, repeats: int = 1, stages: int | None = None) -> None:
        """Run the stages one after the other, each for all chunks of its work.

        Parameters
        ----------
        first, repeats : int
            How often to run them all. Kernels get the number of the iteration, which is ``first``
            at first and goes up by 1 each time.
        stages : int, optional
            How many stages to run; by default all.

        Raises
        ------
        RuntimeError
            If a kernel raised an exception, which only the check of bounds can make it do.
        """
        ends = self.ends if stages is None else self.ends[:stages]
        thread = _thread_address()
        if threads.launch(run_stages, thread, self.kernels, ends, first, repeats, self.progress):
            raise RuntimeError(
                "a compiled kernel raised an exception; NUMBA_DISABLE_JIT=1 shows which one"
            )


def run(kernel: Any, chunks: int, *arguments: Any) -> None:
    """Run a kernel of ``(*arguments, chunk, chunks)`` once for every chunk of its work.

    Its arrays are C-contiguous, its numbers of Python's types int and float.
    """
    place = _body_address(kernel, tuple([_layout(value) for value in arguments]))
    threads.launch(run_chunks, place, chunks, *arguments)


@functools.cache
def attributes(kernel: Any) -> tuple[str, ...]:
    """Return the names of the attributes that a kernel reads, those of ``args`` among them."""
    names: tuple[str, ...] = getattr(kernel, "py_func", kernel).__code__.co_names
    return names


def _layout(value: Any) -> tuple[Any, int]:
    """Return the dtype and the number of axes of an argument."""
    if isinstance(value, np.ndarray):
        return value.dtype.char, value.ndim
    return "d" if isinstance(value, float) else "q", 0


def _kind(layout: tuple[Any, int]) -> Any:
    """Return the Numba type of an argument."""
    dtype, n_axes = layout
    numbers = {"d": types.float64, "q": types.int64}
    return array_type(dtype, n_axes) if n_axes else numbers[dtype]


def _words(value: Any) -> list[int]:
    """Return an argument as words of 64 bits."""
    if isinstance(value, np.ndarray):
        return [value.ctypes.data, *value.shape]
    return [int(np.float64(value).view(np.int64)) if isinstance(value, float) else value]


@functools.cache
def _kernel_address(kernel: Any, layouts: tuple[tuple[str, tuple[Any, int]], ...]) -> Any:
    kinds = {name: _kind(layout) for name, layout in layouts}
    return address(kernel, (ArgumentsType(kinds), *[types.int64] * 3))


@functools.cache
def _body_address(kernel: Any, layouts: tuple[tuple[Any, int], ...]) -> Any:
    return address(kernel, (*map(_kind, layouts), types.int64, types.int64))


@functools.cache
def _thread_address() -> Any:
    number, vector, matrix = types.int64, array_type(np.int64, 1), array_type(np.int64, 2)
    return address(run_thread, (number, matrix, vector, number, number, matrix))


# What follows writes LLVM instructions, because Numba has no way to say it: attributes of memory at
# an address, calls through an address, and atomic operations on an array.

if COMPILED:

    class ArgumentsType(types.Type):
        """The Numba type of the address of a kernel's arguments: their types, by name.

        A number is one word of 64 bits; an array is its address and the lengths of its axes.
        """

        def __init__(self, kinds: dict[str, Any]) -> None:
            self.kinds = kinds
            super().__init__(name=f"Arguments({', '.join(f'{n}: {k}' for n, k in kinds.items())})")

        def word(self, name: str) -> int:
            """Return which word an argument begins with."""
            before = list(self.kinds)[: list(self.kinds).index(name)]
            return sum(1 + getattr(self.kinds[other], "ndim", 0) for other in before)

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
            return type_.kinds.get(name)

    @lower_getattr_generic(ArgumentsType)
    def _load_field(context, builder, type_, value, name):
        first, kind = type_.word(name), type_.kinds[name]
        integer = ir.IntType(64)
        words = builder.inttoptr(value, integer.as_pointer())

        def load(word, element):
            place = builder.gep(words, [ir.Constant(integer, word)])
            loaded = builder.load(builder.bitcast(place, element.as_pointer()))
            loaded.align = 8
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return loaded

        if not isinstance(kind, types.Array):
            return load(first, context.get_value_type(kind))
        array = context.make_array(kind)(context, builder)
        itemsize = ir.Constant(integer, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        shape = [load(first + 1 + axis, integer) for axis in range(kind.ndim)]
        strides = [itemsize]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        data = load(first, array.data.type)
        # Without an owner: nobody counts references to it.
        return populate_array(array, data, shape, strides, itemsize, meminfo=None)._getvalue()


def _emit_call(call):
    context, builder, given = call.context, call.builder, call.kinds["arguments"].types
    taken = tuple(types.int64 if isinstance(kind, types.Integer) else kind for kind in given)
    values = cgutils.unpack_tuple(builder, call.values["arguments"])
    values = [context.cast(builder, *three) for three in zip(values, given, taken, strict=True)]
    place = call.values["function"]
    status, _ = emit_call(context, builder, place, taken, values, types.none)
    return status.is_error


@emitted(_emit_call, types.boolean)
def call_pointer(function, arguments):
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


def _counter(call):
    return call.item("counters", "row", "column")


@emitted(lambda call: call.builder.load_atomic(_counter(call), "acquire", 8), types.int64)
def load(counters, row, column):
    """Return a counter, and have everything visible that was written before it was stored."""
    return counters[row, column]


@emitted(lambda call: call.builder.store_atomic(call.whole("value"), _counter(call), "release", 8))
def store(counters, row, column, value):
    """Store a counter, after everything that was written before."""
    counters[row, column] = value


def _emit_compare_and_swap(call):
    expected, value = call.whole("expected"), call.whole("value")
    result = call.builder.cmpxchg(_counter(call), expected, value, "acq_rel", "monotonic")
    return call.builder.extract_value(result, 1)


@emitted(_emit_compare_and_swap, types.boolean)
def compare_and_swap(counters, row, column, expected, value):
    """Replace a counter if it is as expected; return whether it was."""
    if counters[row, column] != expected:
        return False
    counters[row, column] = value
    return True


def _emit_pause(call):
    machine, number = platform.machine().lower(), ir.IntType(32)
    if machine in ("x86_64", "amd64"):
        name, kinds, values = "llvm.x86.sse2.pause", [], []
    elif machine in ("aarch64", "arm64"):
        name, kinds, values = "llvm.aarch64.hint", [number], [number(1)]  # "yield"
    else:
        return
    kind = ir.FunctionType(ir.VoidType(), kinds)
    call.builder.call(cgutils.get_or_insert_function(call.builder.module, kind, name), values)


@emitted(_emit_pause)
def pause():
    """Wait for some 20 nanoseconds, and leave the core's resources to its other thread."""


#: Offers the core to other threads: a function of the operating system, called by its symbol.
yield_core: Any = lambda: None  # noqa: E731
if COMPILED:
    _name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
    yield_core = ExternalFunction(_name, types.int32())


@helper
def chunk_range(size, chunk, chunks):
    """Return where a chunk of `size` things begins and ends.

    Inside ``prange`` this is written out: a call takes a tenth of a second more to compile there.
    """
    return size * chunk // chunks, size * (chunk + 1) // chunks


@helper
def run_thread(thread, kernels, ends, first, repeats, progress):
    """Run a thread's own chunk of every stage, and chunks of others that nobody begins."""
    chunks = progress.shape[0]
    for count in range(repeats * ends.size):
        iteration, stage = first + count // ends.size, count % ends.size
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
                    for row in range(ends[stage - 1] if stage > 0 else 0, ends[stage]):
                        kernel, args = kernels[row, 0], kernels[row, 1]
                        if call_pointer(kernel, (args, chunk, chunks, iteration)):
                            progress[chunk, FAILED] = 1
                    store(progress, chunk, FINISHED, count + 1)
                spins += 1
                if spins % YIELD_AFTER == 0:
                    yield_core()
                pause()


@parallel_kernel
def run_stages(thread_address, kernels, ends, first, repeats, progress):
    """Run the stages of a program on all threads; return how many chunks saw an exception.

    Parameters
    ----------
    thread_address : int
        Of `run_thread`. Called by name, it would be compiled three more times.
    kernels, ends
        See `Program`.
    first, repeats : int
        See `Program.launch`.
    progress : ndarray of int64, shape (chunks, ROW)
        How far each chunk is. Cleared first.
    """
    chunks = progress.shape[0]
    for chunk in range(chunks):
        progress[chunk, STARTED] = 0
        progress[chunk, FINISHED] = 0
        progress[chunk, FAILED] = 0
    if chunks == 1:  # nobody to wake, and nothing of the threading layer
        call_pointer(thread_address, (0, kernels, ends, first, repeats, progress))
    else:
        for thread in prange(chunks):
            call_pointer(thread_address, (thread, kernels, ends, first, repeats, progress))
    failed = 0
    for chunk in range(chunks):
        failed += progress[chunk, FAILED]
    return failed


@parallel_kernel
def run_chunks(body, chunks, *arguments):
    """Call a body by its address for every chunk of its work."""
    for chunk in prange(chunks):
        call_pointer(body, (*arguments, chunk, chunks))
