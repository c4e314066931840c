"""The micro-kernels against their plain twins: every width, every dtype, and nothing beside it."""

import inspect
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from fences import fenced

from fastgrad.runtime import simd
from fastgrad.runtime.compile import COMPILED

#: Every remainder of every pass, in both dtypes and with both sizes of vectors.
WIDTHS = range(1, 301) if COMPILED else [1, 4, 9]
#: The same of a tile, whose passes are three vectors at most: 48 numbers.
TILE_WIDTHS = range(1, 131) if COMPILED else [1, 4, 9]
TOLERANCE = {"f": 1e-4, "d": 1e-12}
FACTORS = pytest.mark.parametrize("factors", ["B", "f", "d"])
DTYPES = pytest.mark.parametrize("dtype", ["f", "d"])


@pytest.fixture(params=[32, 64])
def kernels(request, monkeypatch):
    """The micro-kernels that compute rows, compiled for vectors of 32 and of 64 bytes.

    LLVM cuts a vector that the processor does not have into smaller ones.
    """
    monkeypatch.setattr(simd, "VECTOR_BYTES", request.param)
    compiled = numba.njit(error_model="numpy")

    @compiled
    def masked_axpy(bits, begin, factors, column, rows, width, out, o):
        simd.masked_axpy(bits, begin, factors, column, rows, width, out, o)

    @compiled
    def masked_gemv(
        bits, sample, own, chunk, begin, end, data, first, rows, width, out, n, copy, shift
    ):
        simd.masked_gemv(
            bits, sample, own, chunk, begin, end, data, first, rows, width, out, n, copy, shift
        )

    @compiled
    def add_tile(a, first, last, b, begin, end, width, out):
        simd.add_tile(a, first, last, b, begin, end, width, out)

    return SimpleNamespace(masked_axpy=masked_axpy, masked_gemv=masked_gemv, add_tile=add_tile)


@numba.njit(error_model="numpy")
def call_nonzero_bits(x, n, first):
    return simd.nonzero_bits(x, n, first)


@numba.njit(error_model="numpy")
def call_on_bits(bits):
    return simd.lowest_bit(bits), simd.count_bits(bits)


@numba.njit(error_model="numpy")
def call_prefetch(array, row, begin, end):
    simd.prefetch(array, row, begin, end)


def draw(shape, dtype, rng):
    """Return numbers, few of them zero."""
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256, shape).astype(dtype)


def draw_bits(rng, share):
    return np.uint64(sum(1 << int(i) for i in np.flatnonzero(rng.random(64) < share)))


def close(got, want, dtype, terms):
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * terms)


@FACTORS
@DTYPES
def test_masked_axpy(kernels, dtype, factors):
    rng = np.random.default_rng([ord(dtype), ord(factors)])
    for width in WIDTHS:
        for share in (0.0, 0.1, 1.0):
            bits, begin, column = draw_bits(rng, share), int(rng.integers(3)), 1
            x = draw((66, 6), factors, rng)[:, ::2]
            # Longer rows than are computed: as arrays with padding have them.
            rows, out = draw((66, width + 3), dtype, rng), draw((4, width + 2), dtype, rng)
            want = out.copy()
            inspect.unwrap(simd.masked_axpy)(
                bits, begin, x.astype(dtype), column, rows, width, want, 2
            )
            kernels.masked_axpy(bits, begin, x, column, rows, width, out, 2)
            close(out, want, dtype, 64 * (256 if factors == "B" else 1))


@DTYPES
def test_masked_gemv(kernels, dtype):
    rng = np.random.default_rng(ord(dtype))
    for width in WIDTHS:
        marks = np.array([[draw_bits(rng, share) for _ in range(3)] for share in (0.0, 0.2, 1.0)])
        own = np.array([[draw_bits(rng, share) for _ in range(3)] for share in (0.5, 1.0)])
        rows, values = draw((192, width + 1), dtype, rng), draw(400, dtype, rng)
        for sample, chunk, begin, end in [
            (0, 0, 0, 3),
            (1, 0, 0, 3),
            (2, 1, 1, 3),
            (1, 1, 2, 3),
            (2, 0, 1, 1),
        ]:
            got = np.full((2, 3, width + 2), 7, dtype), np.full((3, 200), 7, dtype)
            want = tuple(array.copy() for array in got)
            where = sample, own, chunk, begin, end, values, 5, rows, width
            inspect.unwrap(simd.masked_gemv)(marks, *where, want[0], 2, want[1], 8)
            kernels.masked_gemv(marks, *where, got[0], 2, got[1], 8)
            close(got[0], want[0], dtype, 192)
            np.testing.assert_array_equal(got[1], want[1])


@FACTORS
@DTYPES
def test_register_tile(kernels, dtype, factors):
    rng = np.random.default_rng([ord(dtype), ord(factors)])
    for width in TILE_WIDTHS:
        factor, b = draw((9, 5), factors, rng), draw((5, width + 3), dtype, rng)
        before = draw((9, width + 2), dtype, rng)
        for n_rows, first in [(1, 0), (3, 0), (4, 0), (7, 4), (9, 2)]:
            # Also along columns, as the gradient by the weights reads samples.
            a = np.asarray(factor[:n_rows], order="F" if width % 2 else "C")
            for begin, end in [(0, 5), (3, 4), (2, 2)]:
                out, want = before[:n_rows].copy(), before[:n_rows].copy()
                rest = first, n_rows, b, begin, end, width
                inspect.unwrap(simd.add_tile)(a.astype(dtype), *rest, want)
                kernels.add_tile(a, *rest, out)
                close(out, want, dtype, 5 * (256 if factors == "B" else 1))


@pytest.mark.parametrize("kind", ["B", "f", "d"])
def test_bits_of_what_is_not_zero(kind):
    rng = np.random.default_rng(ord(kind))
    for share in (0.0, 0.2, 0.9, 1.0) * 3:
        x = draw((3, 131), kind, rng)
        x[rng.random(x.shape) > share] = 0
        x[1, [64, 127]] = 1
        if kind != "B":
            tiny = np.finfo(kind).smallest_subnormal
            x[1, 3:11] = 0.0, -0.0, np.nan, -np.nan, np.inf, tiny, 0, -1
        for first in (0, 3, 64, 67):
            want = inspect.unwrap(simd.nonzero_bits)(x, 1, first)
            assert int(call_nonzero_bits(x, 1, first)) == int(want)
            assert int(want) == sum(1 << i for i in range(64) if x[1, first + i] != 0)


def test_places_and_counts_of_bits():
    rng = np.random.default_rng(0)
    for bits in [1, 2**63, 2**64 - 1, 2**32, *(int(draw_bits(rng, 0.1)) | 16 for _ in range(50))]:
        lowest, count = call_on_bits(np.uint64(bits))
        assert (
            lowest
            == inspect.unwrap(simd.lowest_bit)(np.uint64(bits))
            == f"{bits:b}"[::-1].index("1")
        )
        assert count == inspect.unwrap(simd.count_bits)(np.uint64(bits)) == f"{bits:b}".count("1")
    assert call_on_bits(np.uint64(0))[1] == 0


def test_prefetching_changes_nothing():
    array = np.arange(300.0).reshape(3, 100)
    for begin, end in [(0, 100), (5, 6), (7, 7), (90, 40)]:
        call_prefetch(array, 2, begin, end)
    np.testing.assert_array_equal(array, np.arange(300.0).reshape(3, 100))
    with fenced(array) as copies:
        for (copy,) in copies:
            for row in (0, 2):
                call_prefetch(copy, row, 0, 100)


def test_nothing_outside_of_the_arrays_is_touched(kernels):
    for width in [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 50, 53, 65]:
        rng = np.random.default_rng(width)
        for dtype in "fd" if COMPILED else "d":
            marks, own = np.full((2, 1, 2), 2**64 - 1, np.uint64)
            # As many rows as there are bits, no more.
            x, rows = draw((3, 128), dtype, rng), draw((128, width), dtype, rng)
            y, one = np.zeros((3, width), dtype), np.zeros((1, 1, width), dtype)
            values, scattered = draw(128, dtype, rng), np.zeros((1, 128), dtype)
            with fenced(marks, own, x, rows, y, y, one, values, scattered) as copies:
                for bits, owned, factors, b, axpy, tile, gemv, packed, copy in copies:
                    for word in range(2):
                        kernels.masked_axpy(
                            bits[0, word], 64 * word, factors.T, 2, b, width, axpy, 2
                        )
                        assert call_nonzero_bits(factors, 2, 64 * word) == marks[0, 0]
                    kernels.add_tile(factors, 0, 3, b, 0, 128, width, tile)
                    kernels.masked_gemv(
                        bits, 0, owned, 0, 0, 2, packed, 0, b, width, gemv, 0, copy, 0
                    )
                    close(axpy[2], x[2] @ rows, dtype, 128)
                    close(tile, x @ rows, dtype, 128)
                    close(gemv[0, 0], values @ rows, dtype, 128)
                    np.testing.assert_array_equal(copy[0], values)


@pytest.mark.parametrize(("widest", "sizes"), [(32, [32, 16, 8]), (64, [64, 32, 16])])
def test_a_row_takes_the_first_size_of_vectors_that_it_fills(monkeypatch, widest, sizes):
    monkeypatch.setattr(simd, "VECTOR_BYTES", widest)
    assert simd.vector_sizes(4) == sizes
    assert simd.vector_sizes(8) == [size for size in sizes if size > 8]


def test_vectors_are_those_that_numba_compiles_for(monkeypatch):
    for features, expected in [("+avx2,-avx512f", False), ("+avx2,+avx512f", True), ("", False)]:
        monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
        assert simd._has_avx512() is expected
