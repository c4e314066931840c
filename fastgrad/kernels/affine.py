r"""The affine map x W + b and its backward pass, on one register-tiled matrix product.

A tile is a few entries of the product, ROWS high and some columns wide. Its sums stay in registers
while one row of the right factor after another is multiplied in: at each step, ROWS numbers of the
left factor, spread over a register each, meet neighbours of the right factor. All three products of
an affine layer have this form:

- forward ``x @ W``: neighbours are the units in a row of W;
- ``dW = x.T @ dout``: neighbours are the units in a row of dout;
- ``dx = dout @ W.T``: neighbours are pixels, so W is transposed first, which costs a tenth of the
  product.

Measured at (100, 784) x (784, 50) on one Zen 4 core, this reaches 114 GFLOP/s in float32 and 57 in
float64, of about 118 and 59 that the core can do; a fifth of it goes into the columns that round 50
up to 64.
"""

# Helpers take scalars of either dtype and Numba overloads carry no annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, prange, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic, overload

from fastgrad.kernels.compile import kernel, parallel_kernel

#: Height of a tile; the loops below are written out for four rows.
ROWS = 4
#: Widths of a tile: two AVX-512 registers of float32 (four of float64), and one (two).
WIDE = 32
NARROW = 16
#: Multiplications that are worth a second thread.
PARALLEL_WORK = 250_000


def tile_sums(like, size):
    """Return uninitialised scratch of the dtype of `like`; in compiled code, on the stack.

    Nothing else can refer to it there, and the compiler knows. So it holds the sums in registers
    over a whole loop, where an array from the heap would go through memory at every step (2.7 times
    slower). It is gone when the function that made it returns. `size` must be a constant.
    """
    return np.empty(size, like.dtype)


@intrinsic
def _stack_pointer(typing_context, like, size):
    """Reserve `size` numbers of the dtype of `like` on the stack, aligned to a cache line."""
    if not isinstance(size, types.IntegerLiteral):
        return None
    count = size.literal_value

    def codegen(context, builder, signature, args):
        number = context.get_data_type(like.dtype)
        memory = cgutils.alloca_once(builder, ir.ArrayType(number, count))
        memory.align = 64
        return builder.bitcast(memory, ir.PointerType(number))

    return types.CPointer(like.dtype)(like, size), codegen


def _tile_sums_on_stack(like, size):
    if not isinstance(size, types.IntegerLiteral):
        return None
    count = size.literal_value
    return lambda like, size: carray(_stack_pointer(like, count), (count,))  # type: ignore[call-arg]


overload(tile_sums, prefer_literal=True, inline="always")(_tile_sums_on_stack)


def _tiled_product(columns: int) -> Any:
    """Make the kernel that computes a part of a product in tiles of that many columns."""
    size = ROWS * columns

    def tiled_product(a, b, offset, out, first_row, last_row, first_column, last_column):
        n_terms = a.shape[1]
        sums = tile_sums(a, size)
        width = min(columns, out.shape[1])
        for left in range(first_column, last_column, columns):
            # At the edge a tile reaches back over its neighbour and computes the same once more.
            # max(0, ...) tells the compiler that an index does not count from the end.
            c = max(0, min(left, b.shape[1] - columns))
            for top in range(first_row, last_row, ROWS):
                r0 = max(0, top)
                r1 = max(0, min(top + 1, last_row - 1))
                r2 = max(0, min(top + 2, last_row - 1))
                r3 = max(0, min(top + 3, last_row - 1))
                for j in range(size):
                    sums[j] = 0
                for k in range(n_terms):
                    a0 = a[r0, k]
                    a1 = a[r1, k]
                    a2 = a[r2, k]
                    a3 = a[r3, k]
                    for j in range(columns):
                        neighbour = b[k, c + j]
                        sums[j] += a0 * neighbour
                        sums[columns + j] += a1 * neighbour
                        sums[2 * columns + j] += a2 * neighbour
                        sums[3 * columns + j] += a3 * neighbour
                for j in range(width):
                    out[r0, c + j] = sums[j] + offset[c + j]
                    out[r1, c + j] = sums[columns + j] + offset[c + j]
                    out[r2, c + j] = sums[2 * columns + j] + offset[c + j]
                    out[r3, c + j] = sums[3 * columns + j] + offset[c + j]

    return kernel(tiled_product)


_product_wide = _tiled_product(WIDE)
_product_narrow = _tiled_product(NARROW)


@kernel
def product_rows(a: Any, b: Any, offset: Any, out: Any, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of a product plus a row, ``out = a @ b + offset``.

    Parameters
    ----------
    a : ndarray, shape (M, K)
        C- or F-contiguous.
    b : ndarray of a's dtype, shape (K, P)
        With at least NARROW columns, see `widen`; those beyond the P of `out` count for nothing.
    offset : ndarray of a's dtype, shape (P,)
    out : ndarray of a's dtype, shape (M, P)
        Out.
    first, last : int
    """
    n_columns = out.shape[1]
    wide = n_columns // WIDE * WIDE
    if b.shape[1] >= WIDE and n_columns - wide > NARROW:
        wide = n_columns
    _product_wide(a, b, offset, out, first, last, 0, wide)
    _product_narrow(a, b, offset, out, first, last, wide, n_columns)


@kernel
def widen(b: Any) -> Any:
    """Return `b` with columns of zeros added where it has fewer than a tile."""
    if b.shape[1] >= NARROW:
        return b
    wide = np.zeros((b.shape[0], NARROW), b.dtype)
    for k in range(b.shape[0]):
        for j in range(b.shape[1]):
            wide[k, j] = b[k, j]
    return wide


@kernel
def transpose_columns(W: Any, transposed: Any, first: int, last: int) -> None:
    """Copy rows first .. last - 1 of `W` to columns of `transposed`, in blocks of eight."""
    for block in range(first, last, 8):
        for j in range(W.shape[1]):
            for i in range(max(0, block), min(block + 8, last)):
                transposed[j, i] = W[i, j]


@kernel
def affine_forward(x: Any, W: Any, b: Any, out: Any) -> None:
    """Compute the affine map ``out = x @ W + b``.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    W : ndarray of x's dtype, shape (D, H)
    b : ndarray of x's dtype, shape (H,)
    out : ndarray of x's dtype, shape (N, H)
        Out.
    """
    product_rows(x, widen(W), b, out, 0, x.shape[0])


@parallel_kernel
def affine_forward_parallel(x: Any, W: Any, b: Any, out: Any, shares: int) -> None:
    """Compute the affine map as `affine_forward` does, on `shares` threads."""
    wide = widen(W)
    bands = (x.shape[0] + ROWS - 1) // ROWS
    for share in prange(shares):
        first = share * bands // shares * ROWS
        last = min(x.shape[0], (share + 1) * bands // shares * ROWS)
        product_rows(x, wide, b, out, first, last)


@kernel
def sum_rows(dout: Any, db: Any) -> None:
    """Add up the rows of `dout` into `db`."""
    db[:] = 0
    for n in range(dout.shape[0]):
        for j in range(db.size):
            db[j] += dout[n, j]


@kernel
def affine_backward(dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any) -> None:
    """Compute the gradients of the affine map.

    Parameters
    ----------
    dout : ndarray, shape (N, H)
        Gradient of the loss with respect to the map's result.
    x : ndarray of dout's dtype, shape (N, D)
    W : ndarray of dout's dtype, shape (D, H)
    dx, dW, db : ndarray of dout's dtype, shapes (N, D), (D, H) and (H,)
        Out: the gradients with respect to x, W and b.
    """
    n_samples, n_inputs = x.shape
    nothing = np.zeros(max(n_inputs, dout.shape[1]), x.dtype)
    transposed = np.empty((dout.shape[1], n_inputs), x.dtype)
    transpose_columns(W, transposed, 0, n_inputs)
    sum_rows(dout, db)
    product_rows(x.T, widen(dout), nothing, dW, 0, n_inputs)
    product_rows(dout, widen(transposed), nothing, dx, 0, n_samples)


@parallel_kernel
def affine_backward_parallel(
    dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any, shares: int
) -> None:
    """Compute the gradients as `affine_backward` does, on `shares` threads."""
    n_samples, n_inputs = x.shape
    nothing = np.zeros(max(n_inputs, dout.shape[1]), x.dtype)
    transposed = np.empty((dout.shape[1], n_inputs), x.dtype)
    wide_dout = widen(dout)
    sum_rows(dout, db)
    bands = (n_inputs + ROWS - 1) // ROWS
    for share in prange(shares):
        first = share * bands // shares * ROWS
        last = min(n_inputs, (share + 1) * bands // shares * ROWS)
        transpose_columns(W, transposed, first, last)
        product_rows(x.T, wide_dout, nothing, dW, first, last)
    wide_transposed = widen(transposed)
    bands = (n_samples + ROWS - 1) // ROWS
    for share in prange(shares):
        first = share * bands // shares * ROWS
        last = min(n_samples, (share + 1) * bands // shares * ROWS)
        product_rows(dout, wide_transposed, nothing, dx, first, last)
