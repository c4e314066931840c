r"""The affine map x W + b and its backward pass, on the register tile of `fastgrad.runtime.simd`.

A tile adds up a few entries of a product in registers while it goes along the terms of the sums: at
each term four numbers of the left factor, spread over a register each, meet neighbours of the right
factor. All three products of an affine layer have this form:

- forward ``x @ W``: neighbours are the units in a row of W;
- ``dW = x.T @ dout``: neighbours are the units in a row of dout;
- ``dx = dout @ W.T``: neighbours are pixels, so W is transposed first, a panel of pixels at a time,
  which L1 holds while it is used.
"""

from __future__ import annotations

import numpy as np

from fastgrad.runtime.compile import allocating_helper, helper, kernel
from fastgrad.runtime.programs import chunk_range
from fastgrad.runtime.simd import TILE_ROWS, add_tile

#: Terms of all sums that are added at most before the next ones: so many rows of the right factor
#: stay in L1 while row after row of the product is added to. Sums are cut into even lengths, since
#: a few terms left over cost more than their multiplications.
TERMS = 84
#: Pixels in a panel of the transposed weights: whole tiles in both dtypes.
PANEL = 48
#: Multiplications that are worth a second thread.
PARALLEL_WORK = 250_000


@helper
def affine_rows(x, W, b, out, first, last):
    """Compute rows first .. last - 1 of ``x @ W + b``.

    Parameters
    ----------
    x : ndarray, shape (N, D or more)
        Of any real dtype.
    W : ndarray, shape (D, H or more)
    b : ndarray of W's dtype, shape (H,)
    out : ndarray of W's dtype, shape (N, H or more)
        Out. Contiguous along rows.
    first, last : int
    """
    n_terms = W.shape[0]
    for n in range(first, last):
        for j in range(b.size):
            out[n, j] = b[j]
    terms = n_terms // (n_terms // TERMS + 1) + 1
    for begin in range(0, n_terms, terms):
        end = min(begin + terms, n_terms)
        for n in range(first, last, TILE_ROWS):
            add_tile(x, n, last, W, begin, end, b.size, out)


@helper
def weight_rows(x, dout, width, dW, first, last):
    """Compute rows first .. last - 1 of ``dW = x.T @ dout``, of so many columns."""
    for i in range(first, last):
        for j in range(width):
            dW[i, j] = 0
    n_samples, by_entry = dout.shape[0], x.T
    terms = n_samples // (n_samples // TERMS + 1) + 1
    for begin in range(0, n_samples, terms):
        end = min(begin + terms, n_samples)
        for i in range(first, last, TILE_ROWS):
            add_tile(by_entry, i, last, dout, begin, end, width, dW)


@helper
def sum_rows(dout, db):
    """Add up the rows of ``dout``, which may be longer, into ``db``."""
    for j in range(db.size):
        db[j] = 0
    for n in range(dout.shape[0]):
        for j in range(db.size):
            db[j] += dout[n, j]


@allocating_helper
def input_columns(dout, W, dx, first, last):
    """Compute columns first .. last - 1 of ``dx = dout @ W.T``."""
    n_samples, n_units = dout.shape
    panel, zeros = np.empty((n_units, PANEL), W.dtype), np.zeros(PANEL, W.dtype)
    for left in range(first, last, PANEL):
        width = min(PANEL, last - left)
        for i in range(width):
            for j in range(n_units):
                panel[j, i] = W[left + i, j]
        affine_rows(dout, panel, zeros[:width], dx[:, left : left + width], 0, n_samples)


@kernel
def affine_forward(x, W, b, out, chunk, chunks):
    """Compute a chunk of ``out = x @ W + b``, by samples; see `affine_rows`."""
    first, last = chunk_range(x.shape[0], chunk, chunks)
    affine_rows(x, W, b, out, first, last)


@kernel
def affine_backward(dout, x, W, dx, dW, db, chunk, chunks):
    """Compute a chunk of the gradients of the affine map, by pixels, which no other chunk needs.

    Parameters
    ----------
    dout : ndarray, shape (N, H)
        Gradient of the loss with respect to the map's result.
    x : ndarray of dout's dtype, shape (N, D)
    W : ndarray of dout's dtype, shape (D, H)
    dx, dW, db : ndarray of dout's dtype, shapes (N, D), (D, H) and (H,)
        Out: the gradients with respect to x, W and b.
    chunk, chunks : int
    """
    first, last = chunk_range(x.shape[1], chunk, chunks)
    input_columns(dout, W, dx, first, last)
    weight_rows(x, dout, db.size, dW, first, last)
    if chunk == 0:
        sum_rows(dout, db)
