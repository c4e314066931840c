"""The iteration of training, as two stages that take turns.

By rows, each thread for the rows of the weights that it owns
    The gradient of the last batch, the update, and, for samples with zeros, the products of the
    same rows of W1 with the next batch. So a row of W1, which is nearly everything, stays in the
    cache of one core for the whole training: before that, W1 crossed between the cores in every
    iteration.
By samples, each thread for its own
    Forward and backward pass, of which most is `fastgrad.kernels.forward`.

Kernels get the number of the next batch: before batch 0 there is nothing to update, and after
the last one nothing to multiply. A data set with zeros comes as CSR; of another one each batch is
gathered.

The arguments of the rows
-------------------------
bits, indptr, data
    The data set as CSR, see `fastgrad.kernels.bitmask`.
bounds : ndarray of int64, shape (chunks + 1,)
    Chunk c owns the rows bounds[c] .. bounds[c + 1] - 1 of W1, which hold about equally many
    non-zero entries: an image's border is empty.
own : ndarray of uint64, shape (chunks, words)
    The same as bits.
batches : ndarray of int64, shape (iterations, N)
    Which samples an iteration takes.
W, b, dW, db
    Parameters, in place, and their gradient. See `fastgrad.kernels.forward`.
W_first, W_second, b_first, b_second : ndarray
    Optimizer state, of the parameters' shapes, or empty.
errors : ndarray, shape (N, P)
    The derivatives of the loss by the first layer's inputs.
partial : ndarray, shape (chunks, N, P)
    Out: what each chunk's rows add to the first layer's inputs.
copy : ndarray, shape (N, columns)
    Scratch: the batch's entries where they are not zero. Those of chunk c stand c times two cache
    lines further to the right, so that no two threads write to one cache line.
block : ndarray, shape (chunks, 64, P)
transposed_bits : ndarray of uint64, shape (chunks, N / 64 or more, 64)
    Scratch: the gradient by 64 rows, and the bitmask by entry.
rule : int
    The address of a rule of `fastgrad.kernels.updates`.
rates : ndarray of float64, shape (iterations,)
    The learning rate of each iteration.
coefficients : ndarray of float64, shape (2,)
    The rule's a and b.
decay : float
    Weight decay: adds ``decay / 2 * sum(W**2)`` to the loss, biases excepted.
squares : ndarray of float64, shape (2, chunks, cache lines)
    Out, with weight decay, in column 0: the sum of the squares of a chunk's weights. Even and odd
    iterations take turns, since a thread may write while another still reads.
"""

from __future__ import annotations

from fastgrad.kernels.affine import sum_rows
from fastgrad.kernels.bitmask import NO_BITS, WORD, transpose_bits
from fastgrad.runtime.compile import chunk_kernel, helper
from fastgrad.runtime.programs import ROW, call_pointer, chunk_range
from fastgrad.runtime.simd import masked_axpy, masked_gemv, prefetch

#: How many samples ahead of the one at work are fetched from memory.
AHEAD = 2


@helper
def update_rows(rule, W, dW, first, second, begin, end, rate, coefficients, decay):
    """Update rows begin .. end - 1 of a matrix W, whose gradient is dW; weight decay adds to it."""
    w, g = W[begin:end].reshape(-1), dW.reshape(-1)
    if decay != 0:
        factor = w.dtype.type(decay)
        for k in range(w.size):
            g[k] += factor * w[k]
    v1, v2 = first[begin:end].reshape(-1), second[begin:end].reshape(-1)
    call_pointer(rule, (w, g, v1, v2, rate, coefficients[0], coefficients[1]))


@helper
def sum_of_squares(W, begin, end):
    """Return the sum of the squares of some rows, in double precision."""
    total = 0.0
    flat = W[begin:end].reshape(-1)
    for k in range(flat.size):
        w = float(flat[k])
        total += w * w
    return total


@chunk_kernel
def update_layer(args, chunk, chunks, iteration):
    """Update a chunk of the rows of a layer, and the bias."""
    W, b, dW, db, squares = args.W, args.b, args.dW, args.db, args.squares
    rule, rates, coefficients, decay = args.rule, args.rates, args.coefficients, args.decay
    W_first, W_second, b_first, b_second = args.W_first, args.W_second, args.b_first, args.b_second
    begin, end = chunk_range(W.shape[0], chunk, chunks)
    if iteration > 0:
        rate = rates[iteration - 1]
        update_rows(
            rule, W, dW[begin:end], W_first, W_second, begin, end, rate, coefficients, decay
        )
        if chunk == chunks - 1:
            call_pointer(rule, (b, db, b_first, b_second, rate, coefficients[0], coefficients[1]))
    if decay != 0:
        squares[iteration % 2, chunk, 0] = sum_of_squares(W, begin, end)


@chunk_kernel
def update_sparse(args, chunk, chunks, iteration):
    """Update the rows of W1 that a chunk owns, and multiply them with the next batch."""
    bits, indptr, data, batches = args.bits, args.indptr, args.data, args.batches
    bounds, own, errors, copy = args.bounds, args.own, args.errors, args.copy
    block, transposed_bits, partial = args.block[chunk], args.transposed_bits[chunk], args.partial
    W, b, db, W_first, W_second = args.W, args.b, args.db, args.W_first, args.W_second
    rule, rates, coefficients, decay = args.rule, args.rates, args.coefficients, args.decay
    n_batch, width = batches.shape[1], b.size
    shift = chunk * (8 * ROW // copy.itemsize)
    begin, end = bounds[chunk], bounds[chunk + 1]
    first_word, last_word = begin // WORD, (end + WORD - 1) // WORD
    if iteration > 0:
        rate = rates[iteration - 1]
        rows = batches[iteration - 1]
        for word in range(first_word, last_word):
            first, last = max(begin, word * WORD), min(end, (word + 1) * WORD)
            transpose_bits(bits, rows, word, transposed_bits)
            block[: last - first] = 0
            # 64 samples at a time, whose errors L1 holds.
            for group in range(transposed_bits.shape[0]):
                for i in range(first, last):
                    bits_of_row = transposed_bits[group, i % WORD]
                    if bits_of_row != NO_BITS:
                        masked_axpy(
                            bits_of_row, group * WORD, copy, shift + i, errors, width, block,
                            i - first,
                        )  # fmt: skip
            update_rows(
                rule, W, block[: last - first], W_first, W_second, first, last, rate,
                coefficients, decay,
            )  # fmt: skip
        if chunk == chunks - 1:
            sum_rows(errors, db)
            call_pointer(
                rule,
                (b, db, args.b_first, args.b_second, rate, coefficients[0], coefficients[1]),
            )
    if decay != 0:
        args.squares[iteration % 2, chunk, 0] = sum_of_squares(W, begin, end)
    if iteration < batches.shape[0]:
        values = data.reshape((1, data.size))
        for n in range(n_batch):
            sample = batches[iteration, n]
            later = batches[iteration, min(n + 2 * AHEAD, n_batch - 1)]
            prefetch(indptr, later, chunk, chunk + 2)
            prefetch(bits, later, first_word, last_word)
            soon = batches[iteration, min(n + AHEAD, n_batch - 1)]
            prefetch(values, 0, indptr[soon, chunk], indptr[soon, chunk + 1])
            masked_gemv(
                bits, sample, own, chunk, first_word, last_word, data, indptr[sample, chunk],
                W, width, partial, n, copy, shift,
            )  # fmt: skip


# The kernels by samples. Their further arguments:
#
# all_labels, all_soft, all_x
#     Targets and samples of the data set.
# labels, soft, x
#     Those of the batch.
# out
#     The first layer's inputs.
#
# And those of `record_loss`:
#
# sums
#     See `fastgrad.kernels.forward`.
# all_squares
#     The squares of all layers, one after the other.
# losses, done
#     Out: the loss of each iteration of a launch, and in done[0] the count of all iterations.


@helper
def gather_targets(all_labels, all_soft, rows, labels, soft, begin, end):
    """Copy the targets of samples begin .. end - 1 of a batch."""
    for n in range(begin, end):
        if labels.size > 0:
            labels[n] = all_labels[rows[n]]
        else:
            for k in range(soft.shape[1]):
                soft[n, k] = all_soft[rows[n], k]


@chunk_kernel
def gather_sparse(args, chunk, chunks, iteration):
    """Add up the first layer's inputs for a chunk of the batch, and copy the targets."""
    batches, partial, b, out = args.batches, args.partial, args.b, args.out
    begin, end = chunk_range(batches.shape[1], chunk, chunks)
    gather_targets(
        args.all_labels, args.all_soft, batches[iteration], args.labels, args.soft, begin, end
    )
    for n in range(begin, end):
        for j in range(b.size):
            out[n, j] = b[j]
        for owner in range(chunks):
            for j in range(b.size):
                out[n, j] += partial[owner, n, j]


@chunk_kernel
def gather_dense(args, chunk, chunks, iteration):
    """Copy a chunk of the batch's samples and targets."""
    batches, all_x, x = args.batches, args.all_x, args.x
    begin, end = chunk_range(batches.shape[1], chunk, chunks)
    gather_targets(
        args.all_labels, args.all_soft, batches[iteration], args.labels, args.soft, begin, end
    )
    for n in range(begin, end):
        row = batches[iteration, n]
        for i in range(x.shape[1]):
            x[n, i] = all_x[row, i]


@chunk_kernel
def record_loss(args, chunk, chunks, iteration):
    """Write down the loss of the last batch, before its update, and count the iteration."""
    if chunk > 0 or iteration == 0:
        return
    sums, all_squares, decay = args.sums, args.all_squares, args.decay
    total, penalty = 0.0, 0.0
    for other in range(chunks):
        total += sums[other, 0]
        for layer in range(all_squares.shape[0] if decay != 0 else 0):
            penalty += all_squares[layer, (iteration - 1) % 2, other, 0]
    args.losses[iteration - 1] = total / args.batches.shape[1] + 0.5 * decay * penalty
    args.done[0] += 1
