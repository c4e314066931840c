"""Driver for a user's compiled function: its values at many perturbed points, on all threads.

One driver, compiled once and cached on disk, serves every function: it knows the function by its
address only. Between the two stands an *evaluator*, compiled once for each combination of argument
types, that turns addresses back into arrays and calls the function. A new function of known types
therefore costs no compilation here at all.

An exception on another thread would vanish, so the evaluator hands back a status instead, and the
caller evaluates the failing point once more from Python.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastgrad.runtime.compile import c_callable, cgutils, emit_call, helper, kernel
from fastgrad.runtime.programs import chunk_range
from fastgrad.validation import IntArray

#: What an evaluator returns.
DONE, RAISED, NOT_ONE_NUMBER = 0, 1, 2

#: A block that `pack` wrote, and where the value goes.
_EVALUATOR = types.int32(types.voidptr, types.CPointer(types.float64))


@helper
def evaluate_perturbed(
    evaluator, blocks, copies, places, points, values, failed, start, stop, tolerant, thread,
    threads,
):  # fmt: skip
    """Evaluate a function with one number of its argument replaced at a time.

    Parameters
    ----------
    evaluator : int
        The address of an evaluator (see `evaluator`).
    blocks : ndarray of int64, shape (threads, words)
        What `pack` wrote for each thread: the function, its argument in a row of `copies`, and
        further arguments.
    copies : ndarray, shape (threads, size)
        The argument's numbers for each thread; unchanged afterwards if the function leaves them
        alone.
    places : ndarray of int64, shape (M,)
        Which column of `copies` is perturbed.
    points : ndarray of float64, shape (K, M)
        Column ``i`` holds the values that the number at ``places[i]`` takes in turn.
    values : ndarray of float64, shape (K, M)
        Receives the function's values for the columns from `start` to `stop`.
    failed : ndarray of int64, shape (threads,)
        In: -1. Out: for each thread where in `points` its evaluator first returned something else
        than `DONE`, in the order of evaluation, ``i * K + k``. A thread that failed does no more
        work.
    start, stop : int
        Which columns to do.
    tolerant : int
        Whether an exception counts as the value NaN instead.
    thread, threads : int
    """
    first, last = chunk_range(stop - start, thread, threads)
    for i in range(start + first, start + last):
        kept = copies[thread, places[i]]
        for k in range(points.shape[0]):
            if failed[thread] < 0:
                copies[thread, places[i]] = points[k, i]
                status = _call(evaluator, blocks, thread, values, k, i)
                if status == RAISED and tolerant:
                    values[k, i] = np.nan
                elif status != DONE:
                    failed[thread] = i * points.shape[0] + k
        copies[thread, places[i]] = kept


def pack(address: int, x: Any, args: tuple[Any, ...]) -> IntArray:
    """Write a function's address, its argument and further arguments into one block.

    The block borrows the memory of the arrays: keep them alive as long as it is used.

    Returns
    -------
    ndarray of int64
    """
    block = np.empty(8 + _words((x, args)), np.int64)
    _pack(block, (address, x, args))
    return block


def _words(values: tuple[Any, ...]) -> int:
    """Return how many 8-byte words are enough to hold values."""
    return sum(
        _words(value) if isinstance(value, tuple) else 5 + 2 * np.ndim(value) for value in values
    )


@functools.cache
def evaluator(x: types.Type, args: types.BaseTuple, result: types.Type) -> Any:
    """Compile the bridge from the driver to every function of the given types.

    Parameters
    ----------
    x : numba.types.Type
        The type of the function's first argument: an array, or a tuple of arrays.
    args : numba.types.BaseTuple
        The types of its further arguments.
    result : numba.types.Type
        What it returns: a real number or an array.

    Returns
    -------
    numba.core.ccallback.CFunc
        Its ``address`` is what `evaluate_perturbed` takes.
    """
    load = _loader(types.Tuple([types.int64, x, args]))
    call = _caller((x, *args.types), result)

    def number(block, value):
        address, x, further = load(block)
        raised, answer = call(address, (x, *further))
        if raised:
            return RAISED
        value[0] = answer
        return DONE

    def array(block, value):
        address, x, further = load(block)
        raised, answer = call(address, (x, *further))
        if raised:
            return RAISED
        if answer.size != 1:
            return NOT_ONE_NUMBER
        value[0] = answer.flat[0]
        return DONE

    return c_callable(_EVALUATOR)(array if isinstance(result, types.Array) else number)


# What follows writes LLVM instructions, because Numba has no way to say it: a call through an
# address, and a tuple of arrays that outlives the call that it was an argument of.


@intrinsic
def _call(typingctx, evaluator, blocks, thread, values, k, i):
    """Call the evaluator on row `thread` of `blocks`, with the result in ``values[k, i]``."""

    def generate(context, builder, signature, arguments):
        evaluator, blocks, thread, values, k, i = arguments
        bytes_ = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.IntType(32), [bytes_, ir.DoubleType().as_pointer()])

        def pointer(position, array, *indices):
            type_ = signature.args[position]
            proxy = context.make_array(type_)(context, builder, array)
            return cgutils.get_item_pointer(context, builder, type_, proxy, indices)

        zero = context.get_constant(types.intp, 0)
        return builder.call(
            builder.inttoptr(evaluator, function_type.as_pointer()),
            [
                builder.bitcast(pointer(1, blocks, thread, zero), bytes_),
                pointer(3, values, k, i),
            ],
        )

    return types.int32(evaluator, blocks, thread, values, k, i), generate


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
    """Return a value whose arrays have no owner: nobody counts references to them any more."""
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
    """Return an intrinsic that reads what `_store` wrote at an address, as one type."""

    @intrinsic
    def load(typingctx, address):
        def generate(context, builder, signature, arguments):
            model = context.data_model_manager[type_]
            source = builder.bitcast(arguments[0], model.get_data_type().as_pointer())
            return model.from_data(builder, builder.load(source, align=8))

        return type_(address), generate

    return load


def _caller(argument_types: tuple[types.Type, ...], result_type: types.Type) -> Any:
    """Return an intrinsic that calls a function by its address: (whether it raised, result)."""

    @intrinsic
    def call(typingctx, address, arguments):
        def generate(context, builder, signature, values):
            place, given = values[0], cgutils.unpack_tuple(builder, values[1])
            status, result = emit_call(context, builder, place, argument_types, given, result_type)
            return context.make_tuple(builder, signature.return_type, [status.is_error, result])

        return types.Tuple([types.boolean, result_type])(address, arguments), generate

    return call
