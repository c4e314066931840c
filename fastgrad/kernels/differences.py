"""Evaluate a user's compiled function at many nudged points, on all threads.

One driver, compiled once and cached on disk, serves every function: it knows the function by its
address only. Between the two stands an *evaluator*, compiled once for each combination of argument
types, that turns addresses back into arrays and calls the function. A new function of known types
therefore costs no compilation here at all.

An exception inside ``prange`` would vanish, so the evaluator hands back a status instead, and the
caller evaluates the failing point once more from Python.
"""

# Numba's type hints do not know intrinsics, and leave most of the code generator untyped.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, attr-defined"

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastgrad.arrays import FloatArray, IntArray
from fastgrad.kernels.compile import c_callable, kernel, parallel_kernel

#: What an evaluator answers.
DONE, RAISED, NOT_ONE_NUMBER = 0, 1, 2

#: x as bytes, the packed address, shape and further arguments, where the value goes.
_EVALUATOR = types.int32(types.voidptr, types.voidptr, types.CPointer(types.float64))


@parallel_kernel
def evaluate_nudged(evaluator, state, copies, points, values, failed, first, start, stop):
    """Evaluate a function with one element of its argument replaced at a time.

    Parameters
    ----------
    evaluator : int
        The address of an evaluator (see `evaluator`).
    state : ndarray of int64
        What `pack` wrote for it.
    copies : ndarray, shape (threads, size)
        A copy of the argument for each thread; unchanged afterwards if the function leaves its
        argument alone.
    points : ndarray, shape (K, M)
        Column ``i`` holds the values that element ``first + i`` takes in turn.
    values : ndarray of float64, shape (K, M)
        Receives the function's values for the columns from `start` to `stop`.
    failed : ndarray of int64, shape (threads,)
        Holds -1, and receives for each thread the place in `points` where its evaluator answered
        something else than `DONE`, in the order of evaluation, ``i * K + k``. A thread that failed
        does no more work.
    first, start, stop : int
        Where the columns begin in the argument, and which of them to do.
    """
    threads = copies.shape[0]
    for thread in prange(threads):
        begin = start + (stop - start) * thread // threads
        end = start + (stop - start) * (thread + 1) // threads
        for i in range(begin, end):
            kept = copies[thread, first + i]
            for k in range(points.shape[0]):
                if failed[thread] < 0:
                    copies[thread, first + i] = points[k, i]
                    if _call(evaluator, state, copies, thread, values, k, i) != DONE:
                        failed[thread] = i * points.shape[0] + k
            copies[thread, first + i] = kept


def pack(address: int, shape: tuple[int, ...], args: tuple[Any, ...]) -> IntArray:
    """Write a function's address, the shape of x and the further arguments into one block.

    The block borrows the memory of the arrays in `args`: keep them alive as long as it is used.

    Returns
    -------
    ndarray of int64
    """
    value = (address, shape, args)
    block = np.empty(8 + len(shape) + _words(args), np.int64)
    _pack(block, value)
    return block


def _words(args: tuple[Any, ...]) -> int:
    """Count the 8-byte words that hold `args`, or a few more."""
    return sum(_words(arg) if isinstance(arg, tuple) else 5 + 2 * np.ndim(arg) for arg in args)


@functools.cache
def evaluator(x: types.Array, args: types.BaseTuple, result: types.Type) -> Any:
    """Compile the bridge from the driver to every function of the given types.

    Parameters
    ----------
    x : numba.types.Array
        The type of the function's first argument, C-contiguous.
    args : numba.types.BaseTuple
        The types of its further arguments.
    result : numba.types.Type
        What it returns: a real number or an array.

    Returns
    -------
    numba.core.ccallback.CFunc
        Its ``address`` is what `evaluate_nudged` takes.
    """
    load = _loader(types.Tuple([types.int64, types.UniTuple(types.int64, x.ndim), args]))
    call = _caller((x, *args.types), result)
    dtype = numba.np.numpy_support.as_dtype(x.dtype)

    def number(pointer, state, value):
        address, shape, further = load(state)
        raised, answer = call(address, (carray(pointer, shape, dtype), *further))
        if raised:
            return RAISED
        value[0] = answer
        return DONE

    def array(pointer, state, value):
        address, shape, further = load(state)
        raised, answer = call(address, (carray(pointer, shape, dtype), *further))
        if raised:
            return RAISED
        if answer.size != 1:
            return NOT_ONE_NUMBER
        value[0] = answer.flat[0]
        return DONE

    return c_callable(_EVALUATOR)(array if isinstance(result, types.Array) else number)


# What follows speaks to LLVM, because Numba has no word for it: a call through an address, and a
# tuple of arrays that outlives the call it was handed to.


@intrinsic
def _call(typingctx, evaluator, state, copies, thread, values, k, i):
    """Call the evaluator on row `thread` of `copies`, with the result in ``values[k, i]``."""

    def generate(context, builder, signature, arguments):
        evaluator, state, copies, thread, values, k, i = arguments
        bytes_ = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(
            ir.IntType(32), [bytes_, bytes_, ir.DoubleType().as_pointer()]
        )

        def pointer(position, array, *indices):
            type_ = signature.args[position]
            proxy = context.make_array(type_)(context, builder, array)
            return cgutils.get_item_pointer(context, builder, type_, proxy, indices)

        zero = context.get_constant(types.intp, 0)
        return builder.call(
            builder.inttoptr(evaluator, function_type.as_pointer()),
            [
                builder.bitcast(pointer(2, copies, thread, zero), bytes_),
                builder.bitcast(pointer(1, state, zero), bytes_),
                pointer(4, values, k, i),
            ],
        )

    return types.int32(evaluator, state, copies, thread, values, k, i), generate


@kernel
def _pack(block, value):
    """Write `value` into `block`."""
    _store(block, value)


@intrinsic
def _store(typingctx, block, value):
    """Store a value as it lies in memory, its arrays as borrowed ones."""

    def generate(context, builder, signature, arguments):
        block_type, value_type = signature.args
        model = context.data_model_manager[value_type]
        data = context.make_array(block_type)(context, builder, arguments[0]).data
        value = _borrowed(context, builder, value_type, arguments[1])
        target = builder.bitcast(data, model.get_data_type().as_pointer())
        builder.store(model.as_data(builder, value), target, align=8)
        return context.get_dummy_value()

    return types.void(block, value), generate


def _borrowed(context: Any, builder: Any, type_: types.Type, value: Any) -> Any:
    """Cut the tie between arrays and their owners: nobody counts references to them any more."""
    if isinstance(type_, types.Array):
        array = context.make_array(type_)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(type_, types.BaseTuple):
        for i, element_type in enumerate(type_.types):
            element = _borrowed(context, builder, element_type, builder.extract_value(value, i))
            value = builder.insert_value(value, element, i)
    return value


def _loader(type_: types.Type) -> Any:
    """Make the counterpart of `_store` for one type."""

    @intrinsic
    def load(typingctx, address):
        def generate(context, builder, signature, arguments):
            model = context.data_model_manager[type_]
            source = builder.bitcast(arguments[0], model.get_data_type().as_pointer())
            return model.from_data(builder, builder.load(source, align=8))

        return type_(address), generate

    return load


def _caller(argument_types: tuple[types.Type, ...], result_type: types.Type) -> Any:
    """Make a call of a compiled function by its address; answers (whether it raised, result)."""

    @intrinsic
    def call(typingctx, address, arguments):
        def generate(context, builder, signature, values):
            convention = context.call_conv
            function_type = convention.get_function_type(result_type, argument_types)
            status, result = convention.call_function(
                builder,
                builder.inttoptr(values[0], function_type.as_pointer()),
                result_type,
                argument_types,
                cgutils.unpack_tuple(builder, values[1]),
            )
            return context.make_tuple(builder, signature.return_type, [status.is_error, result])

        return types.Tuple([types.boolean, result_type])(address, arguments), generate

    return call


def copies_for_threads(x: FloatArray, threads: int) -> FloatArray:
    """Copy x once for each thread, each copy on cache lines of its own.

    Returns
    -------
    ndarray, shape (threads, at least x.size)
    """
    line = 128 // x.itemsize  # two lines: processors fetch them in pairs
    copies = np.zeros((threads, line * math.ceil(x.size / line) + line), x.dtype)
    copies[:, : x.size] = x.reshape(-1)
    return copies
