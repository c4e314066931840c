r"""The affine map x W + b and its backward pass, on one register-tiled matrix product.

A tile is a few entries of the product, six rows high and two vectors wide. Its sums stay in
registers while one row of the right factor after another is multiplied in: at each step, six
numbers of the left factor, spread over a register each, meet neighbours of the right factor. All
three products of an affine layer have this form:

- forward ``x @ W``: neighbours are the units in a row of W;
- ``dW = x.T @ dout``: neighbours are the units in a row of dout;
- ``dx = dout @ W.T``: neighbours are pixels, so W is transposed first, which costs a tenth of the
  product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from fastgrad.kernels.compile import kernel, parallel_kernel
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

#: Bytes of the right factor that one block of terms may have, for the second cache to hold.
BLOCK_BYTES = 2**17
#: Multiplications that are worth a second thread.
PARALLEL_WORK = 250_000


@kernel
def add_columns(a: Any, b: Any, out: Any, column: int, first: int, last: int) -> None:
    """Do as `add_product` does for the columns from `column` on, each as a sum along rows of a."""
    n_terms = b.shape[0]
    turned = b[:, column:].T.copy()
    zero = out.dtype.type(0)
    for r in range(first, last):
        for c in range(turned.shape[0]):
            total = zero
            for k in range(n_terms):
                total += a[r, k] * turned[c, k]
            out[r, column + c] += total


@kernel
def add_product(a: Any, b: Any, out: Any, first: int, last: int) -> None:
    """Add rows first .. last - 1 of a product, ``out += a @ b``.

    Parameters
    ----------
    a : ndarray, shape (M, K)
        C- or F-contiguous.
    b : ndarray of a's dtype, shape (K, P)
        With at least as many columns as a vector has lanes, see `widen`.
    out : ndarray of a's dtype, shape (M, P)
        In and out.
    first, last : int
    """
    lanes = VECTOR_BYTES // out.itemsize
    width = WIDE_VECTORS * lanes
    n_terms, n_columns = b.shape
    whole = n_columns // width * width
    rest = n_columns - whole
    wide = whole > 0 and rest > lanes  # one more wide tile at the edge, which reaches back
    # A tile for a column or two would mostly compute what nobody wants.
    few = 0 < 2 * rest <= lanes and n_terms >= 64 and a.strides[1] == a.itemsize
    if few:
        add_columns(a, b, out, whole, first, last)
    # All tiles use the same rows of the right factor before any uses the next ones.
    block = max(64, BLOCK_BYTES // (n_columns * b.itemsize))
    for begin in range(0, n_terms, block):
        end = min(begin + block, n_terms)
        for r in range(first, last, WIDE_ROWS):
            wide_tiles(a, r, last, b, begin, end, whole, out)
            if wide:
                wide_edge(a, r, last, b, begin, end, n_columns - width, whole, out)
        if not wide and not few:
            for r in range(first, last, NARROW_ROWS):
                for left in range(whole, n_columns, lanes):
                    column = min(left, n_columns - lanes)
                    narrow_edge(a, r, last, b, begin, end, column, left, out)


@kernel
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


@kernel
def room_for(out: Any) -> Any:
    """Return `out`, or scratch with as many columns as `widen` makes, for `take_columns`."""
    lanes = VECTOR_BYTES // out.itemsize
    if out.shape[1] >= lanes:
        return out
    return np.empty((out.shape[0], lanes), out.dtype)


@kernel
def take_columns(room: Any, out: Any, first: int, last: int) -> None:
    """Copy rows from what `room_for` returned, if that was scratch."""
    if room.shape[1] != out.shape[1]:
        for n in range(first, last):
            for j in range(out.shape[1]):
                out[n, j] = room[n, j]


@kernel
def forward_rows(x: Any, W: Any, b: Any, room: Any, out: Any, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the affine map."""
    for n in range(first, last):
        for j in range(b.size):
            room[n, j] = b[j]
        for j in range(b.size, room.shape[1]):
            room[n, j] = 0
    add_product(x, W, room, first, last)
    take_columns(room, out, first, last)


@kernel
def product_rows(a: Any, b: Any, room: Any, out: Any, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of a product, ``out = a @ b``."""
    for n in range(first, last):
        for j in range(room.shape[1]):
            room[n, j] = 0
    add_product(a, b, room, first, last)
    take_columns(room, out, first, last)


@kernel
def transpose_columns(W: Any, transposed: Any, first: int, last: int) -> None:
    """Copy rows first .. last - 1 of `W` to columns of `transposed`."""
    lanes = VECTOR_BYTES // W.itemsize
    n_columns = W.shape[1]
    if last - first >= lanes and n_columns >= lanes:
        for i in range(first, last, lanes):
            for j in range(0, n_columns, lanes):  # at the edges they reach back
                transpose_block(W, min(i, last - lanes), min(j, n_columns - lanes), transposed)
        return
    for i in range(first, last):
        for j in range(n_columns):
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
    forward_rows(x, widen(W), b, room_for(out), out, 0, x.shape[0])


@parallel_kernel
def affine_forward_parallel(x: Any, W: Any, b: Any, out: Any, shares: int) -> None:
    """Compute the affine map as `affine_forward` does, on `shares` threads."""
    wide, room = widen(W), room_for(out)
    bands = (x.shape[0] + NARROW_ROWS - 1) // NARROW_ROWS
    for share in prange(shares):
        first = share * bands // shares * NARROW_ROWS
        last = min(x.shape[0], (share + 1) * bands // shares * NARROW_ROWS)
        forward_rows(x, wide, b, room, out, first, last)


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
    transposed = np.empty((dout.shape[1], n_inputs), x.dtype)
    transpose_columns(W, transposed, 0, n_inputs)
    sum_rows(dout, db)
    room_W, room_x = room_for(dW), room_for(dx)
    product_rows(x.T, widen(dout), room_W, dW, 0, n_inputs)
    product_rows(dout, widen(transposed), room_x, dx, 0, n_samples)


@parallel_kernel
def affine_backward_parallel(
    dout: Any, x: Any, W: Any, dx: Any, dW: Any, db: Any, shares: int
) -> None:
    """Compute the gradients as `affine_backward` does, on `shares` threads."""
    n_samples, n_inputs = x.shape
    transposed = np.empty((dout.shape[1], n_inputs), x.dtype)
    wide_dout = widen(dout)
    room_W, room_x = room_for(dW), room_for(dx)
    sum_rows(dout, db)
    bands = (n_inputs + NARROW_ROWS - 1) // NARROW_ROWS
    for share in prange(shares):
        first = share * bands // shares * NARROW_ROWS
        last = min(n_inputs, (share + 1) * bands // shares * NARROW_ROWS)
        transpose_columns(W, transposed, first, last)
        product_rows(x.T, wide_dout, room_W, dW, first, last)
    wide_transposed = widen(transposed)
    bands = (n_samples + NARROW_ROWS - 1) // NARROW_ROWS
    for share in prange(shares):
        first = share * bands // shares * NARROW_ROWS
        last = min(n_samples, (share + 1) * bands // shares * NARROW_ROWS)
        product_rows(dout, wide_transposed, room_x, dx, first, last)
