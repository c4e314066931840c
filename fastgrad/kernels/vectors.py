"""Sums of scaled rows, with the running sums held in vector registers.

The loop vectoriser keeps a row of running sums in memory: it loads and stores it once a pass, and
each pass waits for the one before. Spelled out as LLVM instructions the sums stay in registers for
the whole loop: products with lists of non-zero pixels take 0.6 to 0.8 of the time, dense products
half. They differ in where the factors and the rows come from.

The functions also run as plain Python, where Numba is switched off.
"""

# A function and its Numba overload must have like signatures to the letter, annotations included,
# so these carry none.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

_WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
#: Bytes of a vector register.
VECTOR_BYTES = 64 if _WIDE else 32
#: How many vectors of a row are summed at a time: the first number as long as there are that many,
#: then the next. Rows are whole AVX-512 registers. Four rows a time, whose sums fill half of the
#: registers:
_GROUP_VECTORS = (4, 2, 1) if _WIDE else (2,)
#: ... and one row a time. Every pass reads the list again, and waits for the sums of its last step:
#: with 50 hidden units one pass takes half the time of passes of two vectors.
_ROW_VECTORS = (14, 7, 4, 2, 1) if _WIDE else (14, 8, 4, 2)
#: Rows and vectors of a wide tile, and of a narrow one. Twelve sums keep the multipliers busy while
#: each waits for its last step, and leave room for the factors in the 16 registers of AVX2.
WIDE_ROWS, WIDE_VECTORS = 6, 2
NARROW_ROWS, NARROW_VECTORS = 12, 1
_INTEGER = ir.IntType(64)
_ZERO = ir.Constant(_INTEGER, 0)


def sum_listed(begin, end, index, value, q, right, u, width, out, v, n):
    """Compute out[v, n] = sum_e value[q, e] * right[u, index[q, e]] for begin <= e < end.

    Parameters
    ----------
    begin, end : int
    index : ndarray of uint32, 2-D
    value : ndarray, 2-D
    q, u, v, n : int
    right : ndarray, 3-D
    width : int
        Columns to compute: whole registers.
    out : ndarray, 3-D
    """
    out[v, n, :width] = value[q, begin:end] @ right[u, index[q, begin:end], :width]


def multiply(left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n):
    """Compute out[v, n + s] = sum_i left[u, r, i] * right[w, at + i] for r = r1 .. r4, s = 0 .. 3.

    Parameters
    ----------
    left, right, out : ndarray, 3-D
    u, r1, r2, r3, r4, w, at, v, n : int
    depth : int
        Number of terms i.
    width : int
        Columns to compute: whole registers.
    """
    rows = np.array([r1, r2, r3, r4])
    out[v, n : n + 4, :width] = left[u, rows, :depth] @ right[w, at : at + depth, :width]


def multiply_transposed(left, u, rows, r, i, right, w, width, out, v, g):
    """Compute out[v, g + s] = sum_n left[u, rows[r, n], i + s] * right[w, n] for s = 0 .. 3.

    Parameters
    ----------
    left, right, out : ndarray, 3-D
    rows : ndarray of int64, 2-D
    u, r, i, w, v, g : int
    width : int
        Columns to compute: whole registers.
    """
    count = rows.shape[1]
    out[v, g : g + 4, :width] = left[u, rows[r], i : i + 4].T @ right[w, :count, :width]


def _make_tile(height, vectors):
    """Make the product of a few rows of a matrix with a few vectors of columns of another."""

    def tile(a, first, last, b, begin, end, column, left, out):
        """Add a[r, begin:end] @ b[begin:end, column + j] to out[r, column + j] for all lanes j.

        Parameters
        ----------
        a, b, out : ndarray, 2-D
            ``b`` and ``out`` contiguous along rows.
        first, last : int
            The rows r are `height` ones from ``first`` on, as far as they are below ``last``.
        begin, end : int
        column, left : int
            Columns to the left of the second are left alone.
        """
        lanes = vectors * (VECTOR_BYTES // out.itemsize)
        rows, columns = slice(first, min(first + height, last)), slice(left, column + lanes)
        out[rows, columns] += a[rows, begin:end] @ b[begin:end, columns]

    @intrinsic
    def emit_tile(typing_context, a, first, last, b, begin, end, column, left, out):
        def generate(emit):
            bottom = emit.add(emit.whole("last"), ir.Constant(_INTEGER, -1))
            numbers = []
            for row in range(height):  # what would be below the last row is that row once more
                number = emit.add(emit.whole("first"), ir.Constant(_INTEGER, row))
                above = emit.builder.icmp_signed("<", number, bottom)
                numbers.append(emit.builder.select(above, number, bottom))
            rows, pitch = zip(*[emit.address("a", number) for number in numbers], strict=True)
            source, stride = emit.address("b")
            targets = [emit.address("out", number)[0] for number in numbers]

            def factor(row, step):
                return emit.add(rows[row], emit.builder.mul(step, pitch[0][1]))

            def line(step):
                return emit.add(source, emit.builder.mul(step, stride[0]))

            start = emit.times(emit.whole("column"), emit.size)
            skipped = emit.builder.sub(emit.whole("left"), emit.whole("column"))
            emit.sum_columns(
                vectors, start, emit.whole("begin"), emit.whole("end"), factor, line, targets,
                skipped,
            )  # fmt: skip

        scope = {
            "a": a, "first": first, "last": last, "b": b, "begin": begin, "end": end,
            "column": column, "left": left, "out": out,
        }  # fmt: skip
        return _typed(generate, b, scope)

    @overload(tile)
    def compile_tile(a, first, last, b, begin, end, column, left, out):
        return lambda a, first, last, b, begin, end, column, left, out: emit_tile(
            a, first, last, b, begin, end, column, left, out
        )

    return tile


wide_tile = _make_tile(WIDE_ROWS, WIDE_VECTORS)
narrow_tile = _make_tile(NARROW_ROWS, NARROW_VECTORS)


@overload(sum_listed)
def _compile_sum_listed(begin, end, index, value, q, right, u, width, out, v, n):
    return lambda begin, end, index, value, q, right, u, width, out, v, n: _sum_listed(
        begin, end, index, value, q, right, u, width, out, v, n
    )


@overload(multiply)
def _compile_multiply(left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n):
    return lambda left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n: _multiply(
        left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n
    )


@overload(multiply_transposed)
def _compile_multiply_transposed(left, u, rows, r, i, right, w, width, out, v, g):
    return lambda left, u, rows, r, i, right, w, width, out, v, g: _multiply_transposed(
        left, u, rows, r, i, right, w, width, out, v, g
    )


@intrinsic
def _sum_listed(typing_context, begin, end, index, value, q, right, u, width, out, v, n):
    def generate(emit):
        indices, _ = emit.address("index", "q")
        factors, _ = emit.address("value", "q")
        source, stride = emit.address("right", "u")
        target, _ = emit.address("out", "v", "n")

        def factor(row, step):
            return emit.add(factors, emit.times(step, emit.size))

        def line(step):
            place = emit.add(indices, emit.times(step, 4))
            entry = emit.builder.zext(emit.load(place, ir.IntType(32)), _INTEGER)
            return emit.add(source, emit.builder.mul(entry, stride[1]))

        emit.sums(_ROW_VECTORS, emit.whole("begin"), emit.whole("end"), factor, line, [target])

    return _typed(generate, right, locals())


@intrinsic
def _multiply(typing_context, left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n):
    def generate(emit):
        factors = [emit.address("left", "u", name)[0] for name in ("r1", "r2", "r3", "r4")]
        source, stride = emit.address("right", "w", "at")
        target, pitch = emit.address("out", "v", "n")

        def factor(row, step):
            return emit.add(factors[row], emit.times(step, emit.size))

        def line(step):
            return emit.add(source, emit.builder.mul(step, stride[1]))

        targets = [emit.add(target, emit.times(pitch[1], s)) for s in range(4)]
        emit.sums(_GROUP_VECTORS, _ZERO, emit.whole("depth"), factor, line, targets)

    return _typed(generate, right, locals())


@intrinsic
def _multiply_transposed(typing_context, left, u, rows, r, i, right, w, width, out, v, g):
    def generate(emit):
        chosen, _ = emit.address("rows", "r")
        factors, gap = emit.address("left", "u")
        factors = emit.add(factors, emit.times(emit.whole("i"), emit.size))
        source, stride = emit.address("right", "w")
        target, pitch = emit.address("out", "v", "g")

        def factor(row, step):
            entry = emit.load(emit.add(chosen, emit.times(step, 8)), _INTEGER)
            place = emit.add(factors, emit.builder.mul(entry, gap[1]))
            return emit.add(place, ir.Constant(_INTEGER, row * emit.size))

        def line(step):
            return emit.add(source, emit.builder.mul(step, stride[1]))

        targets = [emit.add(target, emit.times(pitch[1], s)) for s in range(4)]
        emit.sums(_GROUP_VECTORS, _ZERO, emit.length("rows", 1), factor, line, targets)

    return _typed(generate, right, locals())


def _typed(generate, right, scope):
    """Return the signature and the code generator of an intrinsic with these arguments."""
    names = [name for name in scope if name not in ("typing_context", "generate")]

    def code_generator(context, builder, signature, arguments):
        kinds = dict(zip(names, signature.args, strict=True))
        values = dict(zip(names, arguments, strict=True))
        generate(_Emitter(context, builder, kinds, values, right.dtype))
        return context.get_dummy_value()

    return types.void(*(scope[name] for name in names)), code_generator


class _Emitter:
    """Writes the LLVM instructions of a loop that sums scaled rows."""

    def __init__(self, context, builder, kinds, values, dtype):
        self.context, self.builder = context, builder
        self.kinds, self.values = kinds, values
        self.number = context.get_data_type(dtype)
        self.size = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        self.fused = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.v{self.lanes}f{dtype.bitwidth}",
        )

    def add(self, a, b):
        return self.builder.add(a, b)

    def times(self, a, constant):
        return self.builder.mul(a, ir.Constant(_INTEGER, constant))

    def whole(self, name):
        """Return an integer argument as 64 bits."""
        return self.context.cast(self.builder, self.values[name], self.kinds[name], types.int64)

    def length(self, name, axis):
        array = self.context.make_array(self.kinds[name])(
            self.context, self.builder, self.values[name]
        )
        return cgutils.unpack_tuple(self.builder, array.shape)[axis]

    def address(self, name, *indices):
        """Return the address of an array's element as an integer, and the array's strides.

        An index is the name of an argument, or an integer of 64 bits.
        """
        array = self.context.make_array(self.kinds[name])(
            self.context, self.builder, self.values[name]
        )
        strides = cgutils.unpack_tuple(self.builder, array.strides)
        place = self.builder.ptrtoint(array.data, _INTEGER)
        for index, stride in zip(indices, strides, strict=False):
            number = self.whole(index) if isinstance(index, str) else index
            place = self.add(place, self.builder.mul(number, stride))
        return place, strides

    def load(self, place, kind):
        loaded = self.builder.load(self.builder.inttoptr(place, kind.as_pointer()))
        loaded.align = 4 if kind == ir.IntType(32) else self.size if kind != _INTEGER else 8
        return loaded

    def spread(self, scalar, vector=None):
        """Return a vector with the scalar in every lane."""
        undefined = ir.Constant(vector or self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    def sums(self, counts, begin, end, factor, line, targets):
        """Write the loops over columns, ``counts`` vectors at a time, up to the argument ``width``.

        For each, sum over steps of factor(row, step) * line(step), for every target row.
        ``factor`` and ``line`` return addresses; a vector of a line, or of a target, lies as far
        behind its beginning as its column does.
        """
        builder = self.builder
        width = self.times(self.whole("width"), self.size)
        column = _ZERO
        for count in counts:
            entry = builder.block
            head = builder.append_basic_block("columns.head")
            body = builder.append_basic_block("columns.body")
            done = builder.append_basic_block("columns.done")
            builder.branch(head)

            builder.position_at_end(head)
            here = builder.phi(_INTEGER)
            following = self.add(here, ir.Constant(_INTEGER, count * VECTOR_BYTES))
            builder.cbranch(builder.icmp_signed("<=", following, width), body, done)

            builder.position_at_end(body)
            self.sum_columns(count, here, begin, end, factor, line, targets)
            here.add_incoming(column, entry)
            here.add_incoming(following, builder.block)
            builder.branch(head)

            builder.position_at_end(done)
            column = here

    def sum_columns(self, count, column, begin, end, factor, line, targets, skipped=None):
        """Write the loop over steps for ``count`` vectors from a column, given in bytes, on.

        The sums replace what is in the targets; or, with ``skipped``, are added to that, but for as
        many lanes on the left.
        """
        builder = self.builder
        entry = builder.block
        head = builder.append_basic_block("sums.head")
        body = builder.append_basic_block("sums.body")
        done = builder.append_basic_block("sums.done")
        offsets = [self.add(column, ir.Constant(_INTEGER, k * VECTOR_BYTES)) for k in range(count)]
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        before = [
            [zero if skipped is None else self.load(self.add(t, o), self.vector) for o in offsets]
            for t in targets
        ]
        builder.branch(head)

        builder.position_at_end(head)
        step = builder.phi(_INTEGER)
        totals = [[builder.phi(self.vector) for _ in offsets] for _ in targets]
        builder.cbranch(builder.icmp_signed("<", step, end), body, done)

        builder.position_at_end(body)
        start = line(step)
        terms = [self.load(self.add(start, offset), self.vector) for offset in offsets]
        added = []
        for row, sums in enumerate(totals):
            scale = self.spread(self.load(factor(row, step), self.number))
            added.append(
                [builder.call(self.fused, [scale, t, s]) for t, s in zip(terms, sums, strict=True)]
            )
        following = self.add(step, ir.Constant(_INTEGER, 1))
        builder.branch(head)
        step.add_incoming(begin, entry)
        step.add_incoming(following, body)
        for olds, sums, news in zip(before, totals, added, strict=True):
            for old, total, new in zip(olds, sums, news, strict=True):
                total.add_incoming(old, entry)
                total.add_incoming(new, body)

        builder.position_at_end(done)
        results = totals
        if skipped is not None:
            kept = [self.lanes_below(skipped, k * self.lanes) for k in range(count)]
            results = [
                [builder.select(*three) for three in zip(kept, olds, sums, strict=True)]
                for olds, sums in zip(before, totals, strict=True)
            ]
        for target, sums in zip(targets, results, strict=True):
            for offset, total in zip(offsets, sums, strict=True):
                place = builder.inttoptr(self.add(target, offset), self.vector.as_pointer())
                builder.store(total, place).align = self.size

    def lanes_below(self, limit, first):
        """Return a mask of the lanes, counted from ``first`` on, below a limit."""
        integers = ir.VectorType(_INTEGER, self.lanes)
        numbers = ir.Constant(integers, list(range(first, first + self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(limit, integers))
