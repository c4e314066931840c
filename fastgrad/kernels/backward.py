"""The gradient by the weights of a layer, row by row.

Each thread owns rows of the weights, so that no two write the same entry. The arguments are those
of a layer, see `fastgrad.kernels.forward`, and these:

order : ndarray of int64, shape (N,)
    0, 1, 2, ..
transposed_bits : ndarray of uint64, shape (chunks, N / 64 or more, 64)
    Scratch: the bitmask by entry.
errors : ndarray, shape (N, H or more)
    The derivatives of the loss by ``out``.
dW, db : ndarray, shapes (D, H) and (H,)
    Out.
"""

from __future__ import annotations

from fastgrad.kernels.affine import sum_rows, weight_rows
from fastgrad.kernels.bitmask import NO_BITS, WORD, transpose_bits
from fastgrad.kernels.elementary import are_finite
from fastgrad.runtime.compile import chunk_kernel
from fastgrad.runtime.programs import chunk_range
from fastgrad.runtime.simd import PASS_BYTES, masked_axpy


@chunk_kernel
def weights_sparse(args, chunk, chunks, iteration):
    """Compute a chunk of the gradient by the first layer's weights, for samples with zeros.

    What was left out, zero times an error that is not finite, would be NaN; ``finite`` says so.
    """
    x, bits, order, all_bits = args.x, args.bits, args.order, args.transposed_bits
    errors, dW, db, finite = args.errors, args.dW, args.db, args.finite
    transposed_bits, width, columns = all_bits[chunk], db.size, PASS_BYTES // dW.itemsize
    begin, end = chunk_range(dW.shape[0], chunk, chunks)
    for word in range(begin // WORD, (end + WORD - 1) // WORD):
        first, last = max(begin, word * WORD), min(end, (word + 1) * WORD)
        transpose_bits(bits, order, word, transposed_bits)
        for i in range(first, last):
            for j in range(width):
                dW[i, j] = 0
        # 64 samples at a time, in columns that one pass covers: so L1 holds their errors.
        for group in range(transposed_bits.shape[0]):
            for left in range(0, width, columns):
                right = min(left + columns, width)
                part, sums = errors[:, left:right], dW[:, left:right]
                for i in range(first, last):
                    bits_of_row = transposed_bits[group, i % WORD]
                    if bits_of_row != NO_BITS:
                        masked_axpy(bits_of_row, group * WORD, x, i, part, right - left, sums, i)
    if chunk == 0:
        sum_rows(errors, db)
        finite[0, 0] &= are_finite(db)


@chunk_kernel
def weights_dense(args, chunk, chunks, iteration):
    """Compute a chunk of the gradient by a layer's weights, ``dW = x.T @ errors``."""
    x, errors, dW, db = args.x, args.errors, args.dW, args.db
    begin, end = chunk_range(dW.shape[0], chunk, chunks)
    weight_rows(x, errors, db.size, dW, begin, end)
    if chunk == chunks - 1:
        sum_rows(errors, db)
