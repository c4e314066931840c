"""Micro-kernels in LLVM vector instructions: masked AXPY, masked GEMV, register tile; and bits.

The loop vectoriser keeps a row of accumulators in memory: it loads and stores it once a pass, and
each pass waits for the one before. Written as LLVM instructions, accumulators stay in registers for
the whole loop: products with the non-zero pixels take 0.6 to 0.8 of the time, dense products half.

A row that does not fill its last vector has it *overlap* the one before: that vector begins
earlier, and both compute the same numbers there. So no row needs padding, and nothing is read or
written outside of it, without masks, which are slow to store. A row shorter than a vector is two
overlapping vectors of half or a quarter of the size. Ten classes in float32 are such a row with
AVX-512: computed number by number, they made training 1.1 to 1.3 times as slow.

Every function has a twin in plain Python, which says what it computes, and which runs where kernels
are not compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types

from fastgrad.runtime.compile import cgutils, emitted


def _has_avx512():
    """Return whether Numba compiles for AVX-512, which NUMBA_CPU_FEATURES can change."""
    if numba.config.CPU_FEATURES is not None:
        return "+avx512f" in numba.config.CPU_FEATURES.split(",")
    return llvmlite.binding.get_host_cpu_features().get("avx512f", False)


#: Bytes of a vector register.
VECTOR_BYTES = 64 if _has_avx512() else 32
#: Rows of a register tile.
TILE_ROWS = 4
#: Bytes of a cache line.
LINE_BYTES = 64
#: Vectors of a row whose accumulators are held at the same time: in each pass the largest number
#: that still fits. Every pass goes over the bits anew. 13 vectors hold chapter 4's 50 units in
#: float64, 7 in float32; of 16 registers of AVX2 that leaves some for factors.
_ROW_VECTORS = (13, 12, 7, 4, 2, 1)
#: Bytes of a row that are added to in one pass over the bits. 64 rows of so many are 27 KB, which
#: L1 holds, or 53 KB with AVX-512, which it does not hold; passes of seven vectors, of which it
#: would, were no faster.
PASS_BYTES = _ROW_VECTORS[0] * VECTOR_BYTES
#: Vectors of a tile: twelve accumulators keep the multipliers busy while each waits for its last
#: sum.
_TILE_VECTORS = (3, 2, 1)
_INTEGER = ir.IntType(64)
_ZERO = ir.Constant(_INTEGER, 0)


def vector_sizes(itemsize):
    """Return the sizes in bytes, falling, of the vectors that micro-kernels compute rows with.

    A row takes the first size that it fills. One that fills none is computed number by number.

    Parameters
    ----------
    itemsize : int
        Bytes of a number.

    Returns
    -------
    list of int
    """
    sizes = (VECTOR_BYTES, VECTOR_BYTES // 2, VECTOR_BYTES // 4)
    return [size for size in sizes if size > itemsize]


class _Products(NamedTuple):
    """A sum of products of numbers with rows, for some rows of the result.

    Attributes
    ----------
    loop : callable
        Writes a loop over the terms of the sum, see `_Emitter`.
    factor : callable
        Returns the number for (target, index, count of terms before).
    line : callable
        Returns the address of the row for an index.
    targets : list
        The addresses of the rows of the result.
    adding : bool
        Whether to add to what stands there.
    """

    loop: Any
    factor: Any
    line: Any
    targets: Any
    adding: bool


class _Emitter:
    """Writes the LLVM instructions of one call of a micro-kernel.

    Addresses and lengths are integers of 64 bits, in bytes.
    """

    def __init__(self, call):
        self.context, self.builder, self.kinds, self.values = call
        self.whole = call.whole
        if "out" in self.kinds:
            self.number = self.context.get_data_type(self.kinds["out"].dtype)
            self.size = self.kinds["out"].dtype.bitwidth // 8

    def add(self, a, b):
        """Return a + b; b may be a constant."""
        return self.builder.add(a, _constant(b))

    def times(self, a, b):
        """Return a * b; b may be a constant."""
        return self.builder.mul(a, _constant(b))

    def moved(self, place, count, stride):
        """Return the address that lies so many strides behind another."""
        return self.add(place, self.times(count, stride))

    def least(self, a, b):
        """Return the smaller one of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def lowest_bit(self, bits):
        """Return the place of the lowest bit that is set."""
        return self.builder.cttz(bits, ir.Constant(ir.IntType(1), 1))

    def address(self, name, *indices):
        """Return the address of an array's element, and the array's strides.

        An index is the name of an argument, or an integer of 64 bits.
        """
        array = self.context.make_array(self.kinds[name])(
            self.context, self.builder, self.values[name]
        )
        strides = cgutils.unpack_tuple(self.builder, array.strides)
        place = self.builder.ptrtoint(array.data, _INTEGER)
        for index, stride in zip(indices, strides, strict=False):
            number = self.whole(index) if isinstance(index, str) else index
            place = self.moved(place, number, stride)
        return place, strides

    def lines(self, name, *indices):
        """Return a function that returns the address of a row, counted from an element on."""
        place, strides = self.address(name, *indices)
        return lambda index: self.moved(place, index, strides[0])

    def load(self, place, kind, align):
        loaded = self.builder.load(self.builder.inttoptr(place, kind.as_pointer()))
        loaded.align = align
        return loaded

    def store(self, number, place):
        pointer = self.builder.inttoptr(place, number.type.as_pointer())
        self.builder.store(number, pointer).align = self.size

    def number_at(self, place, name):
        """Load an element of an array as a number of the result's dtype."""
        kind = self.kinds[name].dtype
        loaded = self.load(place, self.context.get_data_type(kind), kind.bitwidth // 8)
        return self.context.cast(self.builder, loaded, kind, self.kinds["out"].dtype)

    # A loop, below, is a function of values that are carried from one pass to the next, and of a
    # body. The body gets the index, how many went before it, and the values, and returns the next
    # values; the loop returns the last ones.

    def counted(self, begin, end):
        """Return a loop over begin .. end - 1; the indices count themselves."""

        def loop(carried, body):
            return self.loop(
                begin, end, 1, carried, lambda index, carried: body(index, index, carried)
            )

        return loop

    def over_bits(self, bits, begin=_ZERO, count=_ZERO):
        """Return a loop over the places of the bits that are set, counted from ``begin`` on.

        It also carries, before all others, how many there were: ``count`` before it begins.
        """

        def loop(carried, body):
            def visit(bits, carried):
                count, *values = carried
                place = self.add(begin, self.lowest_bit(bits))
                return [self.add(count, 1), *body(place, count, values)]

            def following(bits):  # without its lowest bit
                return self.builder.and_(bits, self.add(bits, -1))

            return self.loop(bits, _ZERO, following, [count, *carried], visit)

        return loop

    def over_words(self, begin, end, word):
        """Return a loop over the bits that are set in word(begin) .. word(end - 1), 64 each."""

        def loop(carried, body):
            def visit(number, carried):
                inner = self.over_bits(word(number), self.times(number, 64), carried[0])
                return inner(carried[1:], body)

            return self.loop(begin, end, 1, [_ZERO, *carried], visit)

        return loop

    def loop(self, start, end, following, carried, body):
        """Write a loop over start, following(start), .., up to ``end``, which it may pass.

        ``following`` may be a number to add. The body gets the index and the values carried, and
        returns the next ones. Returns the last ones.
        """
        builder, is_sum = self.builder, isinstance(following, int)
        entry = builder.block
        head = builder.append_basic_block("loop.head")
        inside = builder.append_basic_block("loop.body")
        done = builder.append_basic_block("loop.done")
        builder.branch(head)

        builder.position_at_end(head)
        index = builder.phi(_INTEGER)
        values = [builder.phi(value.type) for value in carried]
        compare, sign = (builder.icmp_signed, "<") if is_sum else (builder.icmp_unsigned, "!=")
        builder.cbranch(compare(sign, index, end), inside, done)

        builder.position_at_end(inside)
        after = self.add(index, following) if is_sum else following(index)
        changed = [after, *body(index, values)]
        builder.branch(head)
        for phi, first, later in zip([index, *values], [start, *carried], changed, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, builder.block)

        builder.position_at_end(done)
        return values

    def passes(self, counts, products):
        """Write the passes over the columns, up to the argument ``width``.

        ``counts`` says how many vectors passes take: `_ROW_VECTORS` or `_TILE_VECTORS`.
        """
        width = self.times(self.whole("width"), self.size)
        self.row(vector_sizes(self.size), width, counts, products)

    def row(self, sizes, width, counts, products):
        """Write the passes over a row with vectors of the first of these sizes that it fills."""
        if not sizes:
            self.one_pass(_ZERO, width, 1, self.size, None, products)
            return
        size, *shorter = sizes
        last = self.add(width, -size)
        fills = self.builder.icmp_signed(">=", last, _ZERO)
        with self.builder.if_else(fills) as (then, otherwise):
            with then:
                begin, short = _ZERO, [(2, _constant(1))]
                ends = self.pass_ends(counts, width) if size == VECTOR_BYTES else short
                for count, end in ends:
                    self.one_pass(begin, end, count, size, last, products)
                    begin = end
            with otherwise:
                self.row(shorter, width, counts, products)

    def pass_ends(self, counts, width):
        """Return numbers of vectors, each with the column where the passes with so many end.

        The smaller ones come first: so the last vector and the one that it overlaps are in the same
        pass, and both add to the same numbers.
        """
        builder = self.builder
        rest = builder.udiv(self.add(width, VECTOR_BYTES - 1), _constant(VECTOR_BYTES))
        vectors = []
        for count in counts:  # as many passes with the first number as fit, and so on
            whole = self.times(builder.udiv(rest, _constant(count)), count)
            if count == 3:  # but 4 = 2 + 2, since one vector keeps the multipliers waiting
                is_one_left = builder.icmp_signed("==", self.add(whole, 1), rest)
                fewer = builder.select(is_one_left, self.add(whole, -3), whole)
                whole = builder.select(builder.icmp_signed(">", whole, _ZERO), fewer, whole)
            rest = builder.sub(rest, whole)
            vectors.append((count, whole))
        end, ends = _ZERO, []
        for count, number in reversed(vectors):
            end = self.moved(end, number, VECTOR_BYTES)
            ends.append((count, end))
        return ends

    def one_pass(self, begin, end, count, size, last, products):
        """Write the passes over the columns from begin to end, of ``count`` vectors each.

        A vector has ``size`` bytes, and the last begins at ``last`` at the latest. Without ``last``
        it is numbers instead.
        """
        builder, bits = self.builder, 8 * self.size
        lanes = size // self.size
        kind = self.number if last is None else ir.VectorType(self.number, lanes)
        name = f"f{bits}" if last is None else f"v{lanes}f{bits}"
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{name}"
        )
        zero = ir.Constant(kind, 0.0 if last is None else [0.0] * lanes)
        loop, factor, line, targets, adding = products

        def columns(column, _):
            offsets = [self.add(column, k * size) for k in range(count)]
            if last is not None:
                offsets[-1] = self.least(offsets[-1], last)
            places = [self.add(target, offset) for target in targets for offset in offsets]
            before = [self.load(place, kind, self.size) if adding else zero for place in places]

            def add_products(index, number, totals):
                start = line(index)
                terms = [self.load(self.add(start, offset), kind, self.size) for offset in offsets]
                scales = [
                    self.spread(factor(row, index, number), kind) for row in range(len(targets))
                ]
                pairs = [(scale, term) for scale in scales for term in terms]
                return [
                    builder.call(fused, [*pair, total])
                    for pair, total in zip(pairs, totals, strict=True)
                ]

            results = loop(before, add_products)[-len(before) :]
            for place, total in zip(places, results, strict=True):
                self.store(total, place)
            return []

        self.loop(begin, end, count * size, [], columns)

    def spread(self, scalar, kind):
        """Return a vector with the scalar in every lane, or the scalar where that is the kind."""
        if not isinstance(kind, ir.VectorType):
            return scalar
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(first, undefined, mask)


def _constant(number):
    """Return a Python integer as an LLVM value of 64 bits, and an LLVM value as it is."""
    return ir.Constant(_INTEGER, number) if isinstance(number, int) else number


def _micro_kernel(emit, result=None):
    """Return a decorator that replaces a plain function by a micro-kernel."""
    return emitted(lambda call: emit(_Emitter(call)), result)


def _emit_nonzero_bits(emit):
    place, _ = emit.address("x", "n", "first")
    kind = emit.kinds["x"].dtype
    number = emit.context.get_data_type(kind)
    entries = emit.load(place, ir.VectorType(number, 64), kind.bitwidth // 8)
    if isinstance(kind, types.Integer):
        differ = emit.builder.icmp_unsigned("!=", entries, ir.Constant(entries.type, [0] * 64))
    else:
        differ = emit.builder.fcmp_unordered("!=", entries, ir.Constant(entries.type, [0.0] * 64))
    return emit.builder.bitcast(differ, _INTEGER)


@_micro_kernel(_emit_nonzero_bits, types.uint64)
def nonzero_bits(x, n, first):
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


@_micro_kernel(lambda emit: emit.lowest_bit(emit.values["bits"]), types.intp)
def lowest_bit(bits):
    """Return the place of the lowest bit that is set, by the instruction ctz.

    Parameters
    ----------
    bits : uint64
        Not 0.

    Returns
    -------
    int
    """
    return (int(bits) & -int(bits)).bit_length() - 1


@_micro_kernel(lambda emit: emit.builder.ctpop(emit.values["bits"]), types.intp)
def count_bits(bits):
    """Return how many bits are set, by the instruction popcount.

    Parameters
    ----------
    bits : uint64

    Returns
    -------
    int
    """
    return int(bits).bit_count()


def _emit_prefetch(emit):
    first, last = (emit.address("array", "row", name)[0] for name in ("begin", "end"))
    number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        emit.builder.module,
        ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
        "llvm.prefetch.p0",
    )
    hints = [ir.Constant(number, hint) for hint in (0, 3, 1)]  # to read, often, data

    def fetch(place, _):
        emit.builder.call(function, [emit.builder.inttoptr(place, pointer), *hints])
        return []

    emit.loop(first, last, LINE_BYTES, [], fetch)


@_micro_kernel(_emit_prefetch)
def prefetch(array, row, begin, end):
    """Fetch entries begin .. end - 1 of a row from memory, for use a little later.

    Parameters
    ----------
    array : ndarray, 2-D
    row, begin, end : int
    """


def _emit_masked_axpy(emit):
    factors, (stride, _) = emit.address("factors", "begin", "column")

    def factor(_, index, count):
        return emit.number_at(emit.moved(factors, index, stride), "factors")

    loop = emit.over_bits(emit.values["bits"])
    lines = emit.lines("rows", "begin")
    target, _ = emit.address("out", "row")
    emit.passes(_ROW_VECTORS, _Products(loop, factor, lines, [target], adding=True))


@_micro_kernel(_emit_masked_axpy)
def masked_axpy(bits, begin, factors, column, rows, width, out, row):
    """Masked AXPY: out[row] += factors[n, column] * rows[n] for n = begin + i, every bit i set.

    Parameters
    ----------
    bits : uint64
    begin : int
    factors : ndarray, 2-D
        Of any real dtype and layout.
    column : int
    rows, out : ndarray, 2-D
        C-contiguous.
    width : int
        How many columns of ``rows`` and ``out`` to compute.
    row : int
    """
    for n in _places(bits, begin):
        out[row, :width] += out.dtype.type(factors[n, column]) * rows[n, :width]


def _emit_masked_gemv(emit):
    words, _ = emit.address("bits", "sample")
    owned, _ = emit.address("own", "chunk")
    entries, _ = emit.address("data", "first")
    copies, _ = emit.address("copy", "n", "shift")

    def word(number):
        places = (emit.moved(place, number, 8) for place in (words, owned))
        return emit.builder.and_(*(emit.load(place, _INTEGER, 8) for place in places))

    def factor(_, index, count):
        entry = emit.number_at(emit.moved(entries, count, emit.size), "data")
        emit.store(entry, emit.moved(copies, index, emit.size))
        return entry

    loop = emit.over_words(emit.whole("begin"), emit.whole("end"), word)
    target, _ = emit.address("out", "chunk", "n")
    emit.passes(_ROW_VECTORS, _Products(loop, factor, emit.lines("rows"), [target], adding=False))


@_micro_kernel(_emit_masked_gemv)
def masked_gemv(
    bits, sample, own, chunk, begin, end, data, first, rows, width, out, n, copy, shift
):
    """Masked GEMV: out[chunk, n] = x @ rows over the entries of a sample x that a chunk owns.

    Parameters
    ----------
    bits, own : ndarray of uint64, 2-D
        Entry i counts if it is set in bits[sample] and in own[chunk]: bit i % 64 of number i // 64.
    sample, chunk : int
    begin, end : int
        Which numbers of bits[sample] and own[chunk] to read.
    data : ndarray, 1-D
        The entries that count are data[first], data[first + 1], ..
    first : int
    rows : ndarray, 2-D
    width : int
        How many columns of ``rows`` and ``out`` to compute.
    out : ndarray, 3-D
    n : int
    copy : ndarray, 2-D
        Out: entry i that counts is written to copy[n, shift + i].
    shift : int
    """
    places = [
        i for k in range(begin, end) for i in _places(bits[sample, k] & own[chunk, k], 64 * k)
    ]
    entries = data[first : first + len(places)]
    copy[n, [shift + i for i in places]] = entries
    out[chunk, n, :width] = entries @ rows[places, :width]


def _places(bits, begin):
    return [begin + i for i in range(64) if int(bits) >> i & 1]


def _emit_add_tile(emit):
    bottom = emit.add(emit.whole("last"), -1)
    # Rows below the last are that row once more.
    rows = [emit.least(emit.add(emit.whole("first"), r), bottom) for r in range(TILE_ROWS)]
    places, strides = zip(*[emit.address("a", row) for row in rows], strict=True)
    term_bytes = strides[0][1]
    if emit.kinds["a"].layout == "C":
        term_bytes = emit.kinds["a"].dtype.bitwidth // 8

    def factor(row, index, _):
        return emit.number_at(emit.moved(places[row], index, term_bytes), "a")

    loop = emit.counted(emit.whole("begin"), emit.whole("end"))
    targets = [emit.address("out", row)[0] for row in rows]
    emit.passes(_TILE_VECTORS, _Products(loop, factor, emit.lines("b"), targets, adding=True))


@_micro_kernel(_emit_add_tile)
def add_tile(a, first, last, b, begin, end, width, out):
    """Register tiles: add a[r, begin:end] @ b[begin:end] to out[r] for four rows r.

    Parameters
    ----------
    a : ndarray, 2-D
        Of any real dtype and layout.
    first, last : int
        The rows r are `TILE_ROWS` ones from ``first`` on, as far as they are below ``last``.
    b, out : ndarray, 2-D
        Contiguous along rows.
    begin, end : int
        The terms of the sums.
    width : int
        How many columns of ``b`` and ``out`` to compute.
    """
    rows = slice(first, min(first + TILE_ROWS, last))
    out[rows, :width] += a[rows, begin:end].astype(out.dtype) @ b[begin:end, :width]
