"""Sums of scaled rows, with the running sums held in vector registers; and bits.

The loop vectoriser keeps a row of running sums in memory: it loads and stores it once a pass, and
each pass waits for the one before. Spelled out as LLVM instructions the sums stay in registers for
the whole loop: products with the non-zero pixels take 0.6 to 0.8 of the time, dense products half.
They differ in where the factors and the rows come from.

Bits say which entries are not zero, 64 a number. A list of them would take three times as long to
make as it saves.

The functions also run as plain Python, where Numba is switched off.
"""

# What kernels call carries no annotations: its arguments are Numba types for one reader, values for
# the other.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastgrad.kernels.compile import emitted

_WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
#: Bytes of a vector register.
VECTOR_BYTES = 64 if _WIDE else 32
#: How many vectors of a row are summed at a time: the first number as long as there are that many,
#: then the next. Rows are whole AVX-512 registers. Four rows a time, whose sums fill half of the
#: registers:
_GROUP_VECTORS = (4, 2, 1) if _WIDE else (2,)
#: ... and one row a time. Every pass goes over the marks again, and waits for the sums of its last
#: step: with 50 hidden units one pass takes half the time of passes of two vectors.
_ROW_VECTORS = (14, 7, 4, 2, 1) if _WIDE else (14, 8, 4, 2)
#: Rows and vectors of a wide tile, and of a narrow one. Twelve sums keep the multipliers busy while
#: each waits for its last step, and leave room for the factors in the 16 registers of AVX2. Four
#: rows have four addresses; with six, of two vectors each, a step ran out of integer registers.
WIDE_ROWS, WIDE_VECTORS = 4, 3
NARROW_ROWS, NARROW_VECTORS = 12, 1
#: Bytes of a cache line.
LINE_BYTES = 64
_INTEGER = ir.IntType(64)
_ZERO = ir.Constant(_INTEGER, 0)


def _plain_nonzero_bits(x, n, first):
    """Return 64 bits, of which bit i says whether x[n, first + i] differs from zero.

    Parameters
    ----------
    x : ndarray, 2-D
        With at least 64 columns from ``first`` on.
    n, first : int

    Returns
    -------
    uint64
    """
    return np.uint64(sum(1 << i for i in range(64) if x[n, first + i] != 0))


def _plain_lowest_bit(bits):
    """Return the place of the lowest bit that is set.

    Parameters
    ----------
    bits : uint64
        Not 0.

    Returns
    -------
    int
    """
    return (int(bits) & -int(bits)).bit_length() - 1


def _plain_count_bits(bits):
    """Return how many bits are set.

    Parameters
    ----------
    bits : uint64

    Returns
    -------
    int
    """
    return int(bits).bit_count()


def _plain_prefetch(array, row, begin, end):
    """Have entries begin .. end - 1 of a row fetched from memory, for use a little later.

    Parameters
    ----------
    array : ndarray, 2-D
    row, begin, end : int
    """


def _plain_prefetch_entry(array, i):
    """Have one entry of a 1-D array fetched from memory, for use a little later."""


def _plain_multiply_marked(
    marks, r, value, at, own, q, begin, end, copy, gap, right, u, width, out, v, n
):
    """Compute out[v, n] = sum_i x[i] * right[u, i] over the marked i of a sample x.

    Parameters
    ----------
    marks, own : ndarray of uint64, 2-D
        Entry i is marked if it is in marks[r] and in own[q]: bit i % 64 of number i // 64.
    value : ndarray, 2-D
        The marked x[i] are value[0, at], value[0, at + 1], ..
    begin, end : int
        Which of the numbers in marks[r] and own[q] count.
    copy : ndarray, 2-D
        The marked x[i] are written to copy[n, gap + i].
    right, out : ndarray, 3-D
    r, at, q, gap, u, v, n : int
    width : int
        Columns to compute: whole registers.
    """
    places = [i for k in range(begin, end) for i in _places(marks[r, k] & own[q, k], 64 * k)]
    numbers = value[0, at : at + len(places)]
    copy[n, [gap + i for i in places]] = numbers
    out[v, n, :width] = numbers @ right[u, places, :width]


def _plain_multiply_transposed_marked(bits, begin, left, i, right, w, width, out, v, g):
    """Add left[begin + n, i] * right[w, begin + n] to out[v, g] for every bit n that is set.

    Parameters
    ----------
    bits : uint64
    left : ndarray, 2-D
    right, out : ndarray, 3-D
        Rows of ``right`` may be narrower than ``width`` if others follow: it reads on there.
    begin, i, w, v, g : int
    width : int
        Columns to compute: whole registers.
    """
    rows, flat = right.shape[2], right[w].reshape(-1)
    for n in _places(bits, begin):
        out[v, g, :width] += left[n, i] * flat[n * rows : n * rows + width]


def _places(bits, begin):
    return [begin + i for i in range(64) if int(bits) >> i & 1]


def _plain_multiply(left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n):
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


def _plain_multiply_transposed(left, u, rows, r, i, right, w, width, out, v, g):
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


def _plain_transpose_block(a, i, j, out):
    """Copy a square of a's entries from a[i, j] on, a vector wide, to out[j, i] and so on.

    Parameters
    ----------
    a, out : ndarray, 2-D
    i, j : int
    """
    n = VECTOR_BYTES // a.itemsize
    out[j : j + n, i : i + n] = a[i : i + n, j : j + n].T


def _make_tiles(height, vectors):
    """Make the product of a few rows of a matrix with a few vectors of columns of another.

    Tile after tile from the first column on.
    """

    def tiles(a, first, last, b, begin, end, stop, out):
        """Compute a[r, begin:end] @ b[begin:end, :stop] into out[r, :stop].

        Parameters
        ----------
        a, b, out : ndarray, 2-D
            ``b`` and ``out`` contiguous along rows.
        first, last : int
            The rows r are `height` ones from ``first`` on, as far as they are below ``last``.
        begin, end : int
            The first terms, from 0 on, replace what is in ``out``; further ones are added to it.
        stop : int
            A multiple of a tile's width.
        """
        rows = slice(first, min(first + height, last))
        product = a[rows, begin:end] @ b[begin:end, :stop]
        out[rows, :stop] = product if begin == 0 else out[rows, :stop] + product

    def emit_tiles(typing_context, a, first, last, b, begin, end, stop, out):
        def generate(emit):
            stop = emit.times(emit.whole("stop"), emit.size)

            def write(factor, targets):
                def body(column, _):
                    _write_tile(emit, vectors, column, factor, targets)
                    return []

                emit.loop(
                    _ZERO,
                    [],
                    lambda column: emit.builder.icmp_signed("<", column, stop),
                    lambda column: emit.add(column, ir.Constant(_INTEGER, vectors * VECTOR_BYTES)),
                    body,
                )

            _with_rows(emit, height, write, turned=True)

        scope = {
            "a": a, "first": first, "last": last, "b": b, "begin": begin, "end": end,
            "stop": stop, "out": out,
        }  # fmt: skip
        return _typed(generate, b, scope)

    return emitted(tiles, emit_tiles)


def _make_edge(height, vectors):
    """Make a product as `_make_tiles` does, for one tile that reaches back over its neighbour."""

    def edge(a, first, last, b, begin, end, column, left, out):
        """Do as `tiles` does for the tile from ``column`` on, but for columns from ``left`` on."""
        stop = column + vectors * (VECTOR_BYTES // out.itemsize)
        rows, columns = slice(first, min(first + height, last)), slice(left, stop)
        product = a[rows, begin:end] @ b[begin:end, columns]
        out[rows, columns] = product if begin == 0 else out[rows, columns] + product

    def emit_edge(typing_context, a, first, last, b, begin, end, column, left, out):
        def generate(emit):
            start = emit.times(emit.whole("column"), emit.size)
            skipped = emit.builder.sub(emit.whole("left"), emit.whole("column"))

            def write(factor, targets):
                _write_tile(emit, vectors, start, factor, targets, skipped)

            _with_rows(emit, height, write)

        scope = {
            "a": a, "first": first, "last": last, "b": b, "begin": begin, "end": end,
            "column": column, "left": left, "out": out,
        }  # fmt: skip
        return _typed(generate, b, scope)

    return emitted(edge, emit_edge)


def _with_rows(emit, height, write, *, turned=False):
    """Call ``write(factor, targets)``, which writes tiles, for the rows from ``first`` on.

    If ``turned``, there is a way of its own for a matrix that is contiguous along its columns: the
    rows of a tile are neighbours then, and one address serves them all. With six, loops run out of
    registers and take 1.2 times as long.
    """

    def factors(places, offsets, step_bytes):
        def factor(row, step, _):
            place = emit.add(places[row], emit.builder.mul(step, step_bytes))
            return emit.load(emit.add(place, offsets[row]), emit.number)

        return factor

    def neighbours():
        place, strides = emit.address("a", "first")
        offsets = [ir.Constant(_INTEGER, row * emit.size) for row in range(height)]
        target, pitch = emit.address("out", "first")
        targets = [emit.add(target, emit.times(pitch[0], row)) for row in range(height)]
        write(factors([place] * height, offsets, strides[1]), targets)

    def any_rows():
        """Write for rows of which those below the last are that row once more."""
        bottom = emit.add(emit.whole("last"), ir.Constant(_INTEGER, -1))
        numbers = [
            emit.add(emit.whole("first"), ir.Constant(_INTEGER, row)) for row in range(height)
        ]
        above = [emit.builder.icmp_signed("<", number, bottom) for number in numbers]
        numbers = [
            emit.builder.select(is_above, number, bottom)
            for is_above, number in zip(above, numbers, strict=True)
        ]
        places, strides = zip(*[emit.address("a", number) for number in numbers], strict=True)
        targets = [emit.address("out", number)[0] for number in numbers]
        step_bytes = strides[0][1]
        if emit.kinds["a"].layout == "C":
            step_bytes = ir.Constant(_INTEGER, emit.size)
        write(factors(places, [_ZERO] * height, step_bytes), targets)

    if emit.kinds["a"].layout != "F" or not turned:
        any_rows()
        return
    after = emit.add(emit.whole("first"), ir.Constant(_INTEGER, height))
    inside = emit.builder.icmp_signed("<=", after, emit.whole("last"))
    with emit.builder.if_else(inside) as (then, otherwise):
        with then:
            neighbours()
        with otherwise:
            any_rows()


def _write_tile(emit, vectors, column, factor, targets, skipped=None):
    source, stride = emit.address("b")
    begin = emit.whole("begin")
    emit.sum_columns(
        vectors,
        column,
        emit.counted(begin, emit.whole("end")),
        factor,
        lambda step: emit.add(source, emit.builder.mul(step, stride[0])),
        targets,
        adding=emit.builder.icmp_signed("!=", begin, _ZERO),
        skipped=skipped,
    )


wide_tiles = _make_tiles(WIDE_ROWS, WIDE_VECTORS)
wide_edge = _make_edge(WIDE_ROWS, WIDE_VECTORS)
narrow_edge = _make_edge(NARROW_ROWS, NARROW_VECTORS)


def _transpose_block(typing_context, a, i, j, out):
    def generate(emit):
        def rows(name, row, column):
            place, strides = emit.address(name, row, column)
            return [emit.add(place, emit.times(strides[0], k)) for k in range(emit.lanes)]

        vectors = [emit.load(place, emit.vector) for place in rows("a", "i", "j")]
        half = 1
        while half < emit.lanes:  # squares of twice the size: two of their quarters swap places
            for k in range(emit.lanes):
                if k & half:
                    continue
                upper, lower = vectors[k], vectors[k + half]
                lanes = range(emit.lanes)
                vectors[k] = emit.pick(
                    upper, lower, [m - half + emit.lanes if m & half else m for m in lanes]
                )
                vectors[k + half] = emit.pick(
                    upper, lower, [m + emit.lanes if m & half else m + half for m in lanes]
                )
            half *= 2
        for place, vector in zip(rows("out", "j", "i"), vectors, strict=True):
            emit.store(vector, place)

    return _typed(generate, a, {"a": a, "i": i, "j": j, "out": out})


def _nonzero_bits(typing_context, x, n, first):
    def code_generator(context, builder, signature, arguments):
        kinds = dict(zip(("x", "n", "first"), signature.args, strict=True))
        values = dict(zip(kinds, arguments, strict=True))
        emit = _Emitter(context, builder, kinds, values, x.dtype)
        place, _ = emit.address("x", "n", "first")
        entries = emit.load(place, ir.VectorType(emit.number, 64))
        zeros = ir.Constant(entries.type, [0.0] * 64)
        return builder.bitcast(builder.fcmp_unordered("!=", entries, zeros), _INTEGER)

    return types.uint64(x, n, first), code_generator


def _lowest_bit(typing_context, bits):
    def code_generator(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), code_generator


def _count_bits(typing_context, bits):
    def code_generator(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.intp(types.uint64), code_generator


def _prefetch(typing_context, array, row, begin, end):
    def generate(emit):
        first, last = (emit.address("array", "row", name)[0] for name in ("begin", "end"))

        def body(place, _):
            emit.prefetch(place)
            return []

        emit.loop(
            first,
            [],
            lambda place: emit.builder.icmp_unsigned("<", place, last),
            lambda place: emit.add(place, ir.Constant(_INTEGER, LINE_BYTES)),
            body,
        )

    return _typed(generate, array, locals())


def _prefetch_entry(typing_context, array, i):
    def generate(emit):
        emit.prefetch(emit.address("array", "i")[0])

    return _typed(generate, array, locals())


def _multiply_marked(
    typing_context, marks, r, value, at, own, q, begin, end, copy, gap, right, u, width, out, v, n
):
    def generate(emit):
        words, _ = emit.address("marks", "r")
        owned, _ = emit.address("own", "q")
        numbers, _ = emit.address("value", _ZERO, "at")
        room, _ = emit.address("copy", "n", "gap")
        source, stride = emit.address("right", "u")
        target, _ = emit.address("out", "v", "n")

        def word(step):
            offset = emit.times(step, 8)
            return emit.builder.and_(
                *[emit.load(emit.add(place, offset), _INTEGER) for place in (words, owned)]
            )

        def factor(_, place, count):
            number = emit.load(emit.add(numbers, emit.times(count, emit.size)), emit.number)
            emit.store(number, emit.add(room, emit.times(place, emit.size)))
            return number

        def line(place):
            return emit.add(source, emit.builder.mul(place, stride[1]))

        loop = emit.marked_words(emit.whole("begin"), emit.whole("end"), word)
        emit.sums(_ROW_VECTORS, loop, factor, line, [target])

    return _typed(generate, right, locals())


def _multiply_transposed_marked(typing_context, bits, begin, left, i, right, w, width, out, v, g):
    def generate(emit):
        factors, gap = emit.address("left", "begin", "i")
        source, stride = emit.address("right", "w", "begin")
        target, _ = emit.address("out", "v", "g")

        def factor(_, place, count):
            return emit.load(emit.add(factors, emit.builder.mul(place, gap[0])), emit.number)

        def line(place):
            return emit.add(source, emit.builder.mul(place, stride[1]))

        loop = emit.marked(emit.values["bits"])
        emit.sums(_ROW_VECTORS, loop, factor, line, [target], adding=True)

    return _typed(generate, right, locals())


def _multiply(typing_context, left, u, r1, r2, r3, r4, depth, right, w, at, width, out, v, n):
    def generate(emit):
        factors = [emit.address("left", "u", name)[0] for name in ("r1", "r2", "r3", "r4")]
        source, stride = emit.address("right", "w", "at")
        target, pitch = emit.address("out", "v", "n")

        def factor(row, step, _):
            return emit.load(emit.add(factors[row], emit.times(step, emit.size)), emit.number)

        def line(step):
            return emit.add(source, emit.builder.mul(step, stride[1]))

        targets = [emit.add(target, emit.times(pitch[1], s)) for s in range(4)]
        loop = emit.counted(_ZERO, emit.whole("depth"))
        emit.sums(_GROUP_VECTORS, loop, factor, line, targets)

    return _typed(generate, right, locals())


def _multiply_transposed(typing_context, left, u, rows, r, i, right, w, width, out, v, g):
    def generate(emit):
        chosen, _ = emit.address("rows", "r")
        factors, gap = emit.address("left", "u")
        factors = emit.add(factors, emit.times(emit.whole("i"), emit.size))
        source, stride = emit.address("right", "w")
        target, pitch = emit.address("out", "v", "g")

        def factor(row, step, _):
            entry = emit.load(emit.add(chosen, emit.times(step, 8)), _INTEGER)
            place = emit.add(factors, emit.builder.mul(entry, gap[1]))
            place = emit.add(place, ir.Constant(_INTEGER, row * emit.size))
            return emit.load(place, emit.number)

        def line(step):
            return emit.add(source, emit.builder.mul(step, stride[1]))

        targets = [emit.add(target, emit.times(pitch[1], s)) for s in range(4)]
        loop = emit.counted(_ZERO, emit.length("rows", 1))
        emit.sums(_GROUP_VECTORS, loop, factor, line, targets)

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
        loaded.align = 8 if kind == _INTEGER else self.size
        return loaded

    def prefetch(self, place):
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        fetch = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
            "llvm.prefetch.p0",
        )
        hints = [ir.Constant(number, hint) for hint in (0, 3, 1)]  # to read, often, data
        self.builder.call(fetch, [self.builder.inttoptr(place, pointer), *hints])

    def spread(self, scalar, vector=None):
        """Return a vector with the scalar in every lane."""
        undefined = ir.Constant(vector or self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    def store(self, number, place):
        pointer = self.builder.inttoptr(place, number.type.as_pointer())
        self.builder.store(number, pointer).align = self.size

    def pick(self, a, b, lanes):
        """Return a vector of these lanes of two, the second one's counted on."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    # A loop, below, is a function of values that are carried from step to step, and of a body. The
    # body gets the step, how many went before it, and the values, and returns the next values; the
    # loop returns the last ones.

    def counted(self, begin, end):
        """Return a loop over begin .. end - 1; the steps count themselves."""

        def loop(carried, body):
            return self.loop(
                begin,
                carried,
                lambda step: self.builder.icmp_signed("<", step, end),
                lambda step: self.add(step, ir.Constant(_INTEGER, 1)),
                lambda step, carried: body(step, step, carried),
            )[1:]

        return loop

    def marked(self, bits, begin=_ZERO, count=_ZERO):
        """Return a loop over the places of the bits that are set, counted from ``begin`` on."""
        builder, one = self.builder, ir.Constant(_INTEGER, 1)

        def loop(carried, body):
            def step(bits, carried):
                place = self.add(begin, builder.cttz(bits, ir.Constant(ir.IntType(1), 1)))
                count, *values = carried
                return [self.add(count, one), *body(place, count, values)]

            return self.loop(
                bits,
                [count, *carried],
                lambda bits: builder.icmp_unsigned("!=", bits, _ZERO),
                lambda bits: builder.and_(bits, builder.sub(bits, one)),
                step,
            )[1:]

        return loop

    def marked_words(self, begin, end, word):
        """Return a loop over the bits that are set in word(begin) .. word(end - 1), 64 each."""

        def loop(carried, body):
            def step(number, _, carried):
                inner = self.marked(word(number), self.times(number, 64), carried[0])
                return inner(carried[1:], body)

            return self.counted(begin, end)([_ZERO, *carried], step)[1:]

        return loop

    def loop(self, start, carried, go_on, following, body):
        """Write a loop over start, following(start), .., as long as ``go_on`` says.

        Returns the step that it ended at, and the last values.
        """
        builder = self.builder
        entry = builder.block
        head = builder.append_basic_block("loop.head")
        inside = builder.append_basic_block("loop.body")
        done = builder.append_basic_block("loop.done")
        builder.branch(head)

        builder.position_at_end(head)
        step = builder.phi(_INTEGER)
        values = [builder.phi(value.type) for value in carried]
        builder.cbranch(go_on(step), inside, done)

        builder.position_at_end(inside)
        changed = [following(step), *body(step, values)]
        builder.branch(head)
        for phi, first, later in zip([step, *values], [start, *carried], changed, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, builder.block)

        builder.position_at_end(done)
        return [step, *values]

    def sums(self, counts, loop, factor, line, targets, *, adding=False):
        """Write the loops over columns, ``counts`` vectors at a time, up to the argument ``width``.

        For each, sum over steps of factor(row, step, number) * line(step), for every target row.
        ``line`` returns an address, as the targets are; a vector lies as far behind it as its
        column does.
        """
        width = self.times(self.whole("width"), self.size)
        column = _ZERO
        for count in counts:
            size = ir.Constant(_INTEGER, count * VECTOR_BYTES)

            def columns(column, _, count=count):
                self.sum_columns(count, column, loop, factor, line, targets, adding=adding)
                return []

            column, *_ = self.loop(
                column,
                [],
                lambda here, size=size: self.builder.icmp_signed("<=", self.add(here, size), width),
                lambda here, size=size: self.add(here, size),
                columns,
            )

    def sum_columns(
        self, count, column, loop, factor, line, targets, *, adding=False, skipped=None
    ):
        """Write the loop over steps for ``count`` vectors from a column, given in bytes, on.

        The sums replace what is in the targets, or are added to that, which a bit may decide at run
        time; except for ``skipped`` lanes on the left, which stay.
        """
        builder = self.builder
        fused = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.v{self.lanes}f{8 * self.size}",
        )
        offsets = [self.add(column, ir.Constant(_INTEGER, k * VECTOR_BYTES)) for k in range(count)]
        places = [self.add(target, offset) for target in targets for offset in offsets]
        before = self.first_sums(places, adding)

        def add_products(step, number, totals):
            start = line(step)
            terms = [self.load(self.add(start, offset), self.vector) for offset in offsets]
            scales = [self.spread(factor(row, step, number)) for row in range(len(targets))]
            pairs = [(scale, term) for scale in scales for term in terms]
            return [
                builder.call(fused, [*pair, total])
                for pair, total in zip(pairs, totals, strict=True)
            ]

        results = loop(before, add_products)[-len(before) :]
        if skipped is not None:
            kept = [self.lanes_below(skipped, k * self.lanes) for k in range(count)]
            results = [
                builder.select(is_kept, self.load(place, self.vector), result)
                for is_kept, place, result in zip(kept * len(targets), places, results, strict=True)
            ]
        for place, total in zip(places, results, strict=True):
            self.store(total, place)

    def first_sums(self, places, adding):
        """Return what sums start from: zeros, or what is at these places."""
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        if adding is True:
            return [self.load(place, self.vector) for place in places]
        if adding is False:
            return [zero] * len(places)
        before = self.builder.block
        with self.builder.if_then(adding):  # nothing waits for what is not in the caches
            loaded = [self.load(place, self.vector) for place in places]
            inside = self.builder.block
        sums = [self.builder.phi(self.vector) for _ in places]
        for phi, number in zip(sums, loaded, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(number, inside)
        return sums

    def lanes_below(self, limit, first):
        """Return a mask of the lanes, counted from ``first`` on, below a limit."""
        integers = ir.VectorType(_INTEGER, self.lanes)
        numbers = ir.Constant(integers, list(range(first, first + self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(limit, integers))


lowest_bit = emitted(_plain_lowest_bit, _lowest_bit)
count_bits = emitted(_plain_count_bits, _count_bits)
nonzero_bits = emitted(_plain_nonzero_bits, _nonzero_bits)
prefetch = emitted(_plain_prefetch, _prefetch)
prefetch_entry = emitted(_plain_prefetch_entry, _prefetch_entry)
multiply = emitted(_plain_multiply, _multiply)
multiply_transposed = emitted(_plain_multiply_transposed, _multiply_transposed)
multiply_marked = emitted(_plain_multiply_marked, _multiply_marked)
multiply_transposed_marked = emitted(_plain_multiply_transposed_marked, _multiply_transposed_marked)
transpose_block = emitted(_plain_transpose_block, _transpose_block)
