r"""The affine map x W + b and its backward pass, on one register-tiled matrix product.

A tile is a few entries of the product, four rows high and three vectors wide. Its sums stay in
registers while one row of the right factor after another is multiplied in: at each step, four
numbers of the left factor, spread over a register each, meet neighbours of the right factor. All
three products of an affine layer have this form:

- forward ``x @ W``: neighbours are the units in a row of W;
- ``dW = x.T @ dout``: neighbours are the units in a row of dout;
- ``dx = dout @ W.T``: neighbours are pixels, so W is transposed first, a panel of pixels at a time,
  which the first cache holds while it is used; that costs a tenth of the product.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import prange, types

from fastgrad.kernels.compile import inlined_kernel, kernel, parallel_kernel, task_kernel
from fastgrad.kernels.tasks import address, call_with
from fastgrad.kernels.vectors import (
    NARROW_ROWS,
    VECTOR_BYTES,
    WIDE_ROWS,
    WIDE_VECTORS,
    narrow_edge,
    transpose_block,
    wide_edge,
    wide_tiles,
)

#: Terms of all sums that are added before the next ones, if a row of the right factor is short, of
#: so many bytes at most, and if it is longer: those rows stay in the first cache while row after
#: row of the product is added to. With twice as many a product takes up to 1.3 times as long.
SHORT_ROW, SHORT_ROW_TERMS, LONG_ROW_TERMS = 224, 112, 56
#: Multiplications that are worth a second thread.
PARALLEL_WORK = 250_000


@inlined_kernel
def few_columns(n_terms: int, n_columns: int, lanes: int) -> int:
    """Return how many columns are left to plain sums beside the tiles.

    A tile for a column or two would mostly compute what nobody wants.
    """
    rest = n_columns % lanes
    return rest if 2 * rest <= lanes and n_columns > rest and n_terms >= 64 else 0


@kernel
def multiply(a: Any, b: Any, out: Any, first: int, last: int, n_columns: int) -> None:
    """Compute rows first .. last - 1 of a product, ``out = a @ b``.

    Parameters
    ----------
    a : ndarray, shape (M, K)
        C- or F-contiguous.
    b : ndarray of a's dtype, shape (K, P)
        With at least as many columns as a vector has lanes, see `widen`.
    out : ndarray of a's dtype, shape (M, P)
        Out.
    first, last : int
    n_columns : int
        How many of the columns to compute: P, or a multiple of a vector's width.
    """
    lanes = VECTOR_BYTES // out.itemsize
    width = WIDE_VECTORS * lanes
    n_terms = b.shape[0]
    whole = n_columns // width * width
    rest = n_columns - whole
    # One more wide tile at the edge, which reaches back, unless narrow ones do with less.
    wide = whole > 0 and rest > (WIDE_VECTORS - 1) * lanes
    is_short = b.shape[1] * b.itemsize <= SHORT_ROW
    block = SHORT_ROW_TERMS if is_short else LONG_ROW_TERMS
    if n_terms == 0:
        out[first:last, :n_columns] = 0
    for begin in range(0, n_terms, block):
        end = min(begin + block, n_terms)
        for r in range(first, last, WIDE_ROWS):
            wide_tiles(a, r, last, b, begin, end, whole, out)
            if wide:
                wide_edge(a, r, last, b, begin, end, n_columns - width, whole, out)
        if rest and not wide:
            for r in range(first, last, NARROW_ROWS):
                for left in range(whole, n_columns, lanes):
                    column = min(left, n_columns - lanes)
                    narrow_edge(a, r, last, b, begin, end, column, left, out)


@inlined_kernel
def widen(b: Any) -> Any:
    """Return `b` with columns of zeros added where it has fewer than a vector has lanes."""
    lanes = VECTOR_BYTES // b.itemsize
    if b.shape[1] >= lanes:
        return b
    wide = np.zeros((b.shape[0], lanes), b.dtype)
    for k in range(b.shape[0]):
        for j in range(b.shape[1]):
            wide[k, j] = b[k, j]
    return wide


@inlined_kernel
def room_for(out: Any) -> Any:
    """Return `out`, or scratch with as many columns as `widen` makes, for `take_columns`."""
    lanes = VECTOR_BYTES // out.itemsize
    if out.shape[1] >= lanes:
        return out
    return np.empty((out.shape[0], lanes), out.dtype)


@inlined_kernel
def take_columns(room: Any, out: Any, first: int, last: int) -> None:
    """Copy rows from what `room_for` returned, if that was scratch."""
    if room.shape[1] != out.shape[1]:
        for n in range(first, last):
            for j in range(out.shape[1]):
                out[n, j] = room[n, j]


@inlined_kernel
def forward_rows(x: Any, W: Any, b: Any, room: Any, out: Any, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the affine map."""
    n_terms, n_columns = W.shape
    few = few_columns(n_terms, n_columns, VECTOR_BYTES // W.itemsize)
    multiply(x, W, room, first, last, n_columns - few)
    if few:  # sums along rows of x
        turned = W[:, n_columns - few :].T.copy()
        zero = out.dtype.type(0)
        for n in range(first, last):
            for c in range(few):
                total = zero
                for k in range(n_terms):
                    total += x[n, k] * turned[c, k]
                room[n, n_columns - few + c] = total
    take_columns(room, out, first, last)
    for n in range(first, last):
        for j in range(b.size):
            out[n, j] += b[j]


@inlined_kernel
def part(size: int, unit: int, share: int, shares: int) -> Any:
    """Return where a share of `size` things begins and ends, in whole units but for the last.

    If units do not divide evenly the first shares have one more: the first thread launches the
    others, and begins some microseconds before them.
    """
    units = (size + unit - 1) // unit
    begin = (share * units + shares - 1) // shares
    end = ((share + 1) * units + shares - 1) // shares
    return min(size, begin * unit), min(size, end * unit)


@task_kernel
def forward_share(x: Any, W: Any, b: Any, out: Any, share: int, shares: int) -> None:
    """Compute a share of what `affine_forward` does."""
    wide, room = widen(W), room_for(out)
    first, last = part(x.shape[0], WIDE_ROWS, share, shares)
    forward_rows(x, wide, b, room, out, first, last)


@kernel
def affine_forward(body: Any, x: Any, W: Any, b: Any, out: Any) -> None:
    """Compute the affine map ``out = x @ W + b``.

    Parameters
    ----------
    body : int
        From `forward_body`. What is called by its address is compiled only once, for this kernel
        and the parallel one: see `fastgrad.kernels.tasks`.
    x : ndarray, shape (N, D)
    W : ndarray of x's dtype, shape (D, H)
    b : ndarray of x's dtype, shape (H,)
    out : ndarray of x's dtype, shape (N, H)
        Out.
    """
    call_with(body, (x, W, b, out, 0, 1))


@parallel_kernel
def affine_forward_parallel(body: Any, x: Any, W: Any, b: Any, out: Any, shares: int) -> None:
    """Compute the affine map as `affine_forward` does, on `shares` threads."""
    for share in prange(shares):
        call_with(body, (x, W, b, out, share, shares))


@functools.cache
def forward_body(dtype: Any) -> Any:
    """Return the address of `forward_share` for arrays of a dtype."""
    matrix, vector = (types.Array(numba.from_dtype(np.dtype(dtype)), n, "C") for n in (2, 1))
    return address(forward_share, (matrix, matrix, vector, matrix, types.int64, types.int64))


@inlined_kernel
def weight_rows(x: Any, dout: Any, dW: Any, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of ``dW = x.T @ dout``."""
    n_samples, n_columns = dout.shape
    few = few_columns(n_samples, n_columns, VECTOR_BYTES // x.itemsize)
    wide, room = widen(dout), room_for(dW)
    multiply(x.T, wide, room, first, last, n_columns - few)
    take_columns(room, dW, first, last)
    if few:  # sums of rows of x; an index that may be negative would not be a vector's
        total = np.empty(last - first, x.dtype)
        begin = np.uint64(first)
        for c in range(n_columns - few, n_columns):
            total[:] = 0
            for n in range(0, n_samples - 3, 4):
                d0, d1, d2, d3 = dout[n, c], dout[n + 1, c], dout[n + 2, c], dout[n + 3, c]
                for i in range(np.uint64(total.size)):
                    total[i] += (
                        d0 * x[n, begin + i]
                        + d1 * x[n + 1, begin + i]
                        + d2 * x[n + 2, begin + i]
                        + d3 * x[n + 3, begin + i]
                    )
            for n in range(n_samples // 4 * 4, n_samples):
                for i in range(np.uint64(total.size)):
                    total[i] += dout[n, c] * x[n, begin + i]
            for i in range(np.uint64(total.size)):
                dW[begin + i, c] = total[i]


@inlined_kernel
def fill_panel(W: Any, first: int, panel: Any) -> None:
    """Copy rows of `W` to the columns of a panel; what is below the last row is zero."""
    n_inputs, n_units = W.shape
    lanes = VECTOR_BYTES // W.itemsize
    if n_inputs >= panel.shape[1] and n_units >= lanes:
        rows = W[first : first + panel.shape[1]]
        for i in range(0, panel.shape[1], lanes):
            for j in range(0, n_units, lanes):  # at the edge they reach back
                transpose_block(rows, i, min(j, n_units - lanes), panel)
        return
    panel[:] = 0
    for i in range(min(panel.shape[1], n_inputs - first)):
        for j in range(n_units):
            panel[j, i] = W[first + i, j]


@inlined_kernel
def input_columns(dout: Any, W: Any, dx: Any, rows: Any, columns: Any) -> None:
    """Compute ``dx = dout @ W.T`` for some rows and columns, each given as the first and the last.

    Columns reach back to whole panels, so one thread has at least a panel of them, or all.
    """
    n_inputs, n_units = W.shape
    width = WIDE_VECTORS * (VECTOR_BYTES // W.itemsize)
    first, last = rows
    panel = np.empty((n_units, width), W.dtype)
    room = dx if n_inputs >= width else np.empty((dout.shape[0], width), W.dtype)
    for left in range(columns[0], columns[1], width):
        column = max(0, min(left, columns[1] - width))
        fill_panel(W, column, panel)
        multiply(dout, panel, room[:, column:], first, last, width)
    take_columns(room, dx, first, last)


@inlined_kernel
def sum_rows(dout: Any, db: Any) -> None:
    """Add up the rows of `dout` into `db`."""
    db[:] = 0
    for n in range(dout.shape[0]):
        for j in range(db.size):
            db[j] += dout[n, j]


@task_kernel
def backward_share(
    dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any, share: int, shares: int
) -> None:
    """Compute a share of what `affine_backward` does."""
    n_samples, n_inputs = x.shape
    width = WIDE_VECTORS * (VECTOR_BYTES // W.itemsize)
    if n_inputs >= 2 * shares * width:  # each thread reads and writes its own pixels alone
        pixels = part(n_inputs, width, share, shares)
        input_columns(dout, W, dx, (0, n_samples), pixels)
    else:
        pixels = part(n_inputs, 1, share, shares)
        input_columns(dout, W, dx, part(n_samples, WIDE_ROWS, share, shares), (0, n_inputs))
    weight_rows(x, dout, dW, pixels[0], pixels[1])
    if share == 0:
        sum_rows(dout, db)


@kernel
def affine_backward(body: Any, dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any) -> None:
    """Compute the gradients of the affine map.

    Parameters
    ----------
    body : int
        From `backward_body`.
    dout : ndarray, shape (N, H)
        Gradient of the loss with respect to the map's result.
    x : ndarray of dout's dtype, shape (N, D)
    W : ndarray of dout's dtype, shape (D, H)
    dx, dW, db : ndarray of dout's dtype, shapes (N, D), (D, H) and (H,)
        Out: the gradients with respect to x, W and b.
    """
    call_with(body, (dout, x, W, dx, dW, db, 0, 1))


@parallel_kernel
def affine_backward_parallel(
    body: Any, dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any, shares: int
) -> None:
    """Compute the gradients as `affine_backward` does, on `shares` threads."""
    for share in prange(shares):
        call_with(body, (dout, x, W, dx, dW, db, share, shares))


@functools.cache
def backward_body(dtype: Any) -> Any:
    """Return the address of `backward_share` for arrays of a dtype."""
    matrix, vector = (types.Array(numba.from_dtype(np.dtype(dtype)), n, "C") for n in (2, 1))
    return address(backward_share, (*[matrix] * 5, vector, types.int64, types.int64))
