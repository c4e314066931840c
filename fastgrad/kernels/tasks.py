"""Tasks: large kernels that run on all threads, share by share, known by their address only.

Numba compiles what stands inside a ``prange`` five times over: as a function of its own, in two
wrappers, in the driver, and once more for the driver's machine code. For a training iteration that
took 33 s. So a large body is a serial kernel of ``(share, s)`` instead
(`fastgrad.kernels.compile.task_kernel`), compiled once, and the one ``prange`` that all of them
have in common, in `run_shares`, calls it by its address.

``s`` is the task's state: a pointer to memory that holds arrays and numbers, which compiled code
reads as attributes. A `Block` owns that memory. While a task runs nothing in it changes, and LLVM
is told so: an attribute may be used in the innermost loop. Without compilation, under
``NUMBA_DISABLE_JIT``, a state is a plain object, and an address the thing itself.
"""

# A function and its Numba overload must have like signatures to the letter, annotations included,
# so some carry none.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, attr-defined"

from __future__ import annotations

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

from fastgrad.kernels.compile import emitted, parallel_kernel


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
        self._compiled = isinstance(run_shares, Dispatcher)
        self.address = memory.ctypes.data if self._compiled else SimpleNamespace()
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
        if not self._compiled:
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
        return self._type.places[name][1] if self._compiled else name

    def address_of(self, body: Any) -> Any:
        """Return the address of a task's code for this state, compiling it if need be."""
        if not self._compiled:
            return body
        found = _known.get((body, self._type.name))
        if found is None:
            found = _known[body, self._type.name] = address(body, (types.int64, self._type))
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


call_body = emitted(_plain_call, _emit_call)
call_with = emitted(_plain_call_with, _emit_call_with)
put_array = emitted(_plain_put, _emit_put)


@parallel_kernel
def run_shares(body, state, shares):
    """Run a task for the shares 0 .. shares - 1.

    Parameters
    ----------
    body : int
        The task's address, from `Block.address_of`.
    state : int
        `Block.address` of its state.
    shares : int
    """
    for share in prange(shares):
        call_body(body, share, state)
