"""Tasks: large kernels that run on all threads, share by share, known by their address only.

Numba compiles what stands inside a ``prange`` five times over: as a function of its own, in two
wrappers, in the driver, and once more for the driver's machine code. For a training iteration that
took 33 s. So a large body is a serial kernel of ``(share, s)`` instead
(`fastgrad.kernels.compile.task_kernel`), compiled once, and the one ``prange`` that all of them
have in common, in `run_steps`, calls it by its address.

``s`` is the task's state: a pointer to memory that holds arrays and numbers, which compiled code
reads as attributes. A `Block` owns that memory. While a task runs nothing in it changes, and LLVM
is told so: an attribute may be used in the innermost loop. Without compilation, under
``NUMBA_DISABLE_JIT``, a state is a plain object, and an address the thing itself.

Tasks that follow one another, the thousands of a training run for example, are the steps of a
single launch. A step begins when all shares of the one before are finished; threads that wait
for that watch a counter, which costs half a microsecond, where a launch costs 3 to 13. Nobody may
rely on as many threads as there are shares: one of them may come late, or never. So a share belongs
to whoever claims it first. Every thread begins with its own, and takes others that nobody has begun
when it would have to wait; a thread alone does all of them.
"""

# A function and its Numba overload must have like signatures to the letter, annotations included,
# so some carry none.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, attr-defined"

from __future__ import annotations

import functools
import platform
import zlib
from ctypes import addressof, c_char
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model
from numpy.typing import NDArray

from fastgrad.kernels.compile import emitted, kernel, parallel_kernel

#: Numbers in a row of what one thread writes while others watch it: two cache lines, since
#: processors fetch them in pairs.
ROW = 16
#: Where a row of ``progress`` says how many steps of its share are claimed, and how many finished.
CLAIMED, FINISHED = 0, 8
#: Numbers that a step tells its task.
TOLD = 4
#: Looks at the progress of others after which a thread takes what they have not begun, 2 to 4
#: microseconds; and between two offers of its core to other threads, 10 or so.
PATIENCE, LOOKS = 100, 500


class Program:
    """Tasks that run one after the other. To be made once: a block remembers its steps.

    Parameters
    ----------
    *tasks : tuple
        A task, and the numbers it is told, `TOLD` at most; zeros follow them.
    """

    def __init__(self, *tasks: tuple[Any, ...]) -> None:
        self.tasks = tasks


class Block:
    """Arrays and numbers in memory, where tasks find them.

    Parameters
    ----------
    state : NamedTuple
        Of integers, floats and C-contiguous arrays.

    Attributes
    ----------
    address : int
        Where the memory lies. It lives as long as the block, and keeps the arrays alive.
    """

    def __init__(self, state: Any) -> None:
        self._values = state._asdict()
        self._type = StateType(type(state).__name__, self._values)
        memory = np.zeros(self._type.words, np.int64)
        self._integers = memory.data
        self._floats = memory.view(np.float64).data
        self._steps: dict[Program, NDArray[Any]] = {}
        self.address = memory.ctypes.data if COMPILED else SimpleNamespace()
        for name, value in self._values.items():
            self._write(name, value)

    def update(self, **values: Any) -> None:
        """Replace values by others of the same types."""
        known = self._values
        for name, value in values.items():
            if value is not known[name]:
                known[name] = value
                self._write(name, value)

    def forget(self, *names: str) -> None:
        """Keep these arrays alive no longer. No task may read them before they are written."""
        for name in names:
            self._values[name] = None

    def _write(self, name: str, value: Any) -> None:
        if not COMPILED:
            setattr(self.address, name, value)
            return
        dtype, at = self._type.places[name]
        if dtype is float:
            self._floats[at] = value
        elif dtype is int:
            self._integers[at] = value
        elif value.dtype == dtype and value.flags.carray:
            # A third of the time that `value.ctypes.data` takes.
            self._integers[at] = addressof(c_char.from_buffer(value)) if value.size else 0
            for length in value.shape:
                at += 1
                self._integers[at] = length
        else:
            raise TypeError(f"`{name}` must be a plain array of {dtype}. Got {value.dtype}.")

    def place_of(self, name: str) -> Any:
        """Return where `put_array` finds the place of an array of this state."""
        return self._type.places[name][1] if COMPILED else name

    def address_of(self, body: Any) -> Any:
        """Return the address of a task's code for this state, compiling it if need be."""
        if not COMPILED:
            return body
        found = _known.get((body, self._type.name))
        if found is None:
            found = _known[body, self._type.name] = address(body, (types.int64, self._type))
        return found

    def steps(self, program: Program) -> NDArray[Any]:
        """Return a program's steps for `run_steps`, with this state.

        Returns
        -------
        ndarray, shape (tasks, 2 + TOLD)
            A task's address, the state's, and what the task is told.
        """
        found = self._steps.get(program)
        if found is None:
            found = np.zeros((len(program.tasks), 2 + TOLD), np.int64 if COMPILED else object)
            for row, (task, *told) in zip(found, program.tasks, strict=True):
                row[: 2 + len(told)] = self.address_of(task), self.address, *told
            self._steps[program] = found
        return found


#: The addresses of tasks, by body and by the name of the state's type.
_known: dict[tuple[Any, str], int] = {}


def address(function: Any, signature: tuple[types.Type, ...]) -> Any:
    """Return where a kernel's code for these argument types lies, compiling it if need be.

    Without compilation that is the kernel itself.
    """
    if not isinstance(function, Dispatcher):
        return function
    function.compile(signature)
    overload = function.overloads[signature]
    return overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)


# What follows speaks to LLVM, because Numba has no word for it: a call through an address, and
# attributes of what a pointer leads to.


class StateType(types.Type):
    """The Numba type of a pointer to a state.

    Parameters
    ----------
    name : str
        What the state is called.
    values : dict
        Values of the state, by name. An array takes as many words of 8 bytes as it has dimensions,
        and one for its address; a number takes one.
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.fields: dict[str, tuple[types.Type, int]] = {}
        self.places: dict[str, tuple[Any, int]] = {}
        self.words = 0
        for field, value in values.items():
            if isinstance(value, np.ndarray):
                kind = types.Array(numba.from_dtype(value.dtype), value.ndim, "C")
                self.places[field] = value.dtype, self.words
            else:
                kind = types.float64 if isinstance(value, float) else types.int64
                self.places[field] = float if isinstance(value, float) else int, self.words
            self.fields[field] = kind, self.words
            self.words += 1 + getattr(kind, "ndim", 0)
        described = ", ".join(f"{field}: {kind}" for field, (kind, _) in self.fields.items())
        super().__init__(name=f"{name}({zlib.crc32(described.encode()):08x})")


@register_model(StateType)
class _StateModel(models.PrimitiveModel):
    def __init__(self, manager, type_):
        super().__init__(manager, type_, ir.IntType(8).as_pointer())


@infer_getattr
class _StateAttributes(AttributeTemplate):
    key = StateType

    def generic_resolve(self, type_, name):
        return type_.fields[name][0] if name in type_.fields else None


@lower_getattr_generic(StateType)
def _load_field(context, builder, type_, value, name):
    kind, at = type_.fields[name]
    integer = ir.IntType(64)
    words = builder.bitcast(value, integer.as_pointer())

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
    n_items = shape[0]
    for length in shape[1:]:
        n_items = builder.mul(n_items, length)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    array.nitems = n_items
    array.itemsize = ir.Constant(integer, size)
    array.data = load(at, array.data.type)
    array.shape = cgutils.pack_array(builder, shape)
    array.strides = cgutils.pack_array(builder, strides)
    return array._getvalue()


def _plain_call(body, share, state):
    """Call a task's body by its address."""
    body(share, state)


def _emit_call(typing_context, body, share, state):
    def generate(context, builder, signature, arguments):
        convention = context.call_conv
        argument_types = types.int64, types.voidptr
        function_type = convention.get_function_type(types.none, argument_types)
        address, number, place = arguments
        convention.call_function(
            builder,
            builder.inttoptr(address, function_type.as_pointer()),
            types.none,
            argument_types,
            [
                context.cast(builder, number, signature.args[1], types.int64),
                builder.inttoptr(place, ir.IntType(8).as_pointer()),
            ],
        )
        return context.get_dummy_value()

    return types.void(body, share, state), generate


def _plain_call_with(function, arguments):
    """Call a kernel by its address, from `address`, with these arguments.

    Integers are 64 bits, arrays of the layout that the kernel was compiled for.
    """
    function(*arguments)


def _emit_call_with(typing_context, function, arguments):
    given = arguments.types
    taken = tuple(types.int64 if isinstance(kind, types.Integer) else kind for kind in given)

    def generate(context, builder, signature, values):
        place, packed = values
        unpacked = cgutils.unpack_tuple(builder, packed)
        convention = context.call_conv
        function_type = convention.get_function_type(types.none, taken)
        convention.call_function(
            builder,
            builder.inttoptr(place, function_type.as_pointer()),
            types.none,
            taken,
            [context.cast(builder, *three) for three in zip(unpacked, given, taken, strict=True)],
        )
        return context.get_dummy_value()

    return types.void(function, arguments), generate


def _plain_put(state, place, array):
    """Write where an array lies, and its shape, into a state.

    `Block.update` does so too, but takes ten times as long.

    Parameters
    ----------
    state : int
        `Block.address`.
    place : int
        From `Block.place_of`.
    array : ndarray
        C-contiguous. Whoever calls keeps it alive.
    """
    setattr(state, place, array)


def _emit_put(typing_context, state, place, array):
    def generate(context, builder, signature, arguments):
        address, place, value = arguments
        contents = context.make_array(signature.args[2])(context, builder, value)
        start = builder.inttoptr(address, ir.IntType(64).as_pointer())
        where = builder.ptrtoint(contents.data, ir.IntType(64))
        for k, word in enumerate([where, *cgutils.unpack_tuple(builder, contents.shape)]):
            at = builder.add(place, ir.Constant(ir.IntType(64), k))
            builder.store(word, builder.gep(start, [at]))
        return context.get_dummy_value()

    return types.void(state, place, array), generate


def _plain_claim(progress, share, step):
    """Claim a share of a step; return whether nobody else has.

    Parameters
    ----------
    progress : ndarray of int64, shape (shares, ROW)
    share, step : int
    """
    if progress[share, CLAIMED] != step:
        return False
    progress[share, CLAIMED] = step + 1
    return True


def _counter(context, builder, signature, arguments, at):
    """Return a pointer to a number in a row of ``progress``."""
    contents = context.make_array(signature.args[0])(context, builder, arguments[0])
    row = builder.mul(arguments[1], ir.Constant(ir.IntType(64), ROW))
    return builder.gep(contents.data, [builder.add(row, ir.Constant(row.type, at))])


def _emit_claim(typing_context, progress, share, step):
    def generate(context, builder, signature, arguments):
        at = _counter(context, builder, signature, arguments, CLAIMED)
        step = arguments[2]
        # A look comes first: to exchange takes the cache line from whoever has it, even in vain.
        free = builder.icmp_signed("==", builder.load_atomic(at, "monotonic", 8), step)
        result = cgutils.alloca_once_value(builder, free)
        with builder.if_then(free):
            after = builder.add(step, ir.Constant(step.type, 1))
            exchanged = builder.cmpxchg(at, step, after, "acq_rel", "monotonic")
            builder.store(builder.extract_value(exchanged, 1), result)
        return builder.load(result)

    return types.boolean(progress, types.int64, types.int64), generate


def _plain_finish(progress, share, step):
    """Say that a share of a step is finished, and all it wrote is there to read."""
    progress[share, FINISHED] = step + 1


def _emit_finish(typing_context, progress, share, step):
    def generate(context, builder, signature, arguments):
        at = _counter(context, builder, signature, arguments, FINISHED)
        after = builder.add(arguments[2], ir.Constant(arguments[2].type, 1))
        builder.store_atomic(after, at, "release", 8)
        return context.get_dummy_value()

    return types.void(progress, types.int64, types.int64), generate


def _plain_is_finished(progress, share, step):
    """Return whether a share of a step is finished."""
    return progress[share, FINISHED] > step


def _emit_is_finished(typing_context, progress, share, step):
    def generate(context, builder, signature, arguments):
        at = _counter(context, builder, signature, arguments, FINISHED)
        return builder.icmp_signed(">", builder.load_atomic(at, "acquire", 8), arguments[2])

    return types.boolean(progress, types.int64, types.int64), generate


def _plain_pause():
    """Wait for some 20 nanoseconds, and leave the core's resources to its other thread."""


def _emit_pause(typing_context):
    def generate(context, builder, signature, arguments):
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), nothing), [])
        elif machine in ("aarch64", "arm64"):
            hint = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            call = builder.module.declare_intrinsic("llvm.aarch64.hint", (), hint)
            builder.call(call, [ir.Constant(ir.IntType(32), 1)])  # "yield"
        return context.get_dummy_value()

    return types.void(), generate


def _plain_call_out(function):
    """Call a function of the operating system by its address, without arguments."""


def _emit_call_out(typing_context, function):
    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


call_body = emitted(_plain_call, _emit_call)
call_with = emitted(_plain_call_with, _emit_call_with)
put_array = emitted(_plain_put, _emit_put)
claim = emitted(_plain_claim, _emit_claim)
finish = emitted(_plain_finish, _emit_finish)
is_finished = emitted(_plain_is_finished, _emit_is_finished)
pause = emitted(_plain_pause, _emit_pause)
call_out = emitted(_plain_call_out, _emit_call_out)


@kernel
def take_part(member, steps, progress, now, give_way):
    """Do one member's part of all steps: its own share of each, and those that nobody begins."""
    shares = progress.shape[0]
    for step in range(steps.shape[0]):
        for k in range(shares):
            share = (member + k) % shares
            looks = PATIENCE if k == 0 else 0
            while not is_finished(progress, share, step):
                if looks >= PATIENCE and claim(progress, share, step):
                    for number in range(TOLD):
                        now[share, number] = steps[step, 2 + number]
                    call_body(steps[step, 0], share, steps[step, 1])
                    finish(progress, share, step)
                looks += 1
                if looks % LOOKS == 0:
                    call_out(give_way)
                pause()


@functools.cache
def part_address() -> Any:
    """Return the address of `take_part`."""
    matrix = types.Array(types.int64, 2, "C")
    return address(take_part, (types.int64, matrix, matrix, matrix, types.int64))


@parallel_kernel
def run_steps(part, steps, progress, now, give_way):
    """Run tasks one after the other, each for all shares of its work.

    Parameters
    ----------
    part : int
        `part_address`. Numba would compile three more copies of what it finds there.
    steps : ndarray of int64, shape (steps, 2 + TOLD)
        From `Block.steps`.
    progress : ndarray of int64, shape (shares, ROW)
        How far each share is. Cleared first.
    now : ndarray of int64, shape (shares, ROW)
        Out: what a step tells its task, a row for each share.
    give_way : int
        The address of a function that offers the core to other threads,
        `fastgrad.threads.GIVE_WAY`.
    """
    shares = progress.shape[0]
    for share in range(shares):
        progress[share, CLAIMED] = 0
        progress[share, FINISHED] = 0
    if shares == 1:  # nobody to wake, and nothing of the threading layer
        call_with(part, (0, steps, progress, now, give_way))
        return
    for member in prange(shares):
        call_with(part, (member, steps, progress, now, give_way))


#: Whether kernels are compiled, or plain Python.
COMPILED = isinstance(run_steps, Dispatcher)
