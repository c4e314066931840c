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

from fastgrad.runtime.compile import c_callable, cgutils, emit_call, emitted, helper, kernel
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
                status = _call(evaluator, blocks, thread, 0, values, k, i)
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

    is_array = isinstance(result, types.Array)

    def evaluate(block, value):
        address, x, further = load(block)
        raised, answer = call(address, (x, *further))
        if raised:
            return RAISED
        if is_array:
            if answer.size != 1:
                return NOT_ONE_NUMBER
            value[0] = answer.flat[0]
        else:
            value[0] = answer
        return DONE

    return c_callable(_EVALUATOR)(evaluate)


# What follows writes LLVM instructions, because Numba has no way to say it: a call through an
# address, and a tuple of arrays that outlives the call that it was an argument of.


def _emit_call(call):
    block = call.builder.bitcast(call.item("blocks", "thread", "word"), cgutils.voidptr_t)
    value = call.item("values", "k", "i")
    kind = ir.FunctionType(ir.IntType(32), [block.type, value.type])
    function = call.builder.inttoptr(call.values["evaluator"], kind.as_pointer())
    return call.builder.call(function, [block, value])


@emitted(_emit_call, types.int32)
def _call(evaluator, blocks, thread, word, values, k, i):
    """Call the evaluator on what `blocks` holds from a word on; the result goes to ``values``."""


def _emit_store(call):
    kind = call.kinds["value"]
    model = call.context.data_model_manager[kind]
    value = _borrowed(call.context, call.builder, kind, call.values["value"])
    place = call.item("block", "word")
    target = call.builder.bitcast(place, model.get_data_type().as_pointer())
    call.builder.store(model.as_data(call.builder, value), target, align=8)


@emitted(_emit_store)
def _store(block, word, value):
    """Store a value as it lies in memory, its arrays as borrowed ones."""


@kernel
def _pack(block, value):
    """Write `value` into `block`."""
    _store(block, 0, value)


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

    def emit(call):
        model = call.context.data_model_manager[type_]
        source = call.builder.bitcast(call.values["place"], model.get_data_type().as_pointer())
        return model.from_data(call.builder, call.builder.load(source, align=8))

    return emitted(emit, type_)(lambda place: None)


def _caller(argument_types: tuple[types.Type, ...], result_type: types.Type) -> Any:
    """Return an intrinsic that calls a function by its address: (whether it raised, result)."""
    both = types.Tuple([types.boolean, result_type])

    def emit(call):
        given = cgutils.unpack_tuple(call.builder, call.values["arguments"])
        status, result = emit_call(
            call.context, call.builder, call.values["place"], argument_types, given, result_type
        )
        return call.context.make_tuple(call.builder, both, [status.is_error, result])

    return emitted(emit, both)(lambda place, arguments: None)
