"""Forward and backward pass of a fully connected network, layer by layer and sample by sample.

Each thread takes its own samples through all layers, from the pixels to the loss and back, on the
arrays as the user has them. So threads wait for each other only once, before the backward pass,
which needs all rows of the transposed weights. `fastgrad.kernels.backward` goes by rows of the
weights instead.

The arguments of a layer
------------------------
x : ndarray, shape (N, D or more)
    What comes in: samples of any real dtype, or the values of the layer below.
W, b : ndarray, shapes (D, H or more) and (H,)
out : ndarray, shape (N, H or more)
    What comes out: the inputs of the units, or the logits.
values, slopes : ndarray, shape (N, H or more)
    Of hidden units: the activation function of ``out``, and its derivative.
activation : int
    ``SIGMOID`` or ``RELU`` of `fastgrad.kernels.activations`.
bits : ndarray of uint64, shape (N, words)
    Which entries of the samples are not zero; of the first layer.
finite : ndarray of int64, shape (chunks, cache lines)
    Column 0: whether a chunk of the weights is finite; of the first layer.

The arguments of a layer's backward pass
----------------------------------------
x : ndarray, shape (N, H or more)
    What comes in from above: the derivatives of the loss by ``out``.
W : ndarray, shape (H, D)
    The weights, transposed.
weights : ndarray, shape (D, H)
    The weights as they are.
b : ndarray, shape (D,)
    Zeros.
out : ndarray, shape (N, D or more)
    The derivatives of the loss by the inputs of the units below.
slopes : ndarray, shape (N, D or more)
    Of the units below.

The arguments of the loss
-------------------------
logits, probabilities, errors : ndarray, shape (N, C)
    The last layer's inputs, their softmax, and the derivatives of the loss by them.
labels : ndarray of int64, shape (N,) or (0,)
soft : ndarray, shape (N, C) or (0, C)
    The targets, in one of two forms, or none.
delta : float
    The loss is ``-sum(t * log(p + delta))``, averaged over the batch.
sums : ndarray of float64, shape (chunks, cache lines)
    Column 0: the sum of the losses of a chunk's samples.
"""

from __future__ import annotations

import numpy as np

from fastgrad.kernels.activations import activate_rows
from fastgrad.kernels.affine import affine_rows
from fastgrad.kernels.bitmask import WORD, build_bitmask
from fastgrad.kernels.elementary import are_finite
from fastgrad.kernels.losses import cross_entropy_sum, logit_gradients, softmax_rows
from fastgrad.runtime.compile import chunk_kernel
from fastgrad.runtime.programs import chunk_range
from fastgrad.runtime.simd import PASS_BYTES, masked_axpy

#: Samples that go through 64 rows of W together: L1 holds the rows, L2 the samples.
GROUP = 64


@chunk_kernel
def affine_sparse(args, chunk, chunks, iteration):
    """Compute the first layer for a chunk of the samples, leaving out what is multiplied by zero.

    Where a weight is not finite that would be NaN, so ``finite`` says whether all are.
    """
    x, W, b, out, bits, finite = args.x, args.W, args.b, args.out, args.bits, args.finite
    by_entry, columns = x.T, PASS_BYTES // W.itemsize
    begin, end = chunk_range(x.shape[0], chunk, chunks)
    for first in range(begin, end, GROUP):
        last = min(first + GROUP, end)
        build_bitmask(x, bits, first, last)
        for n in range(first, last):
            for j in range(b.size):
                out[n, j] = b[j]
        for word in range(bits.shape[1]):
            # In columns that one pass covers: so L1 holds the rows, however long they are.
            for left in range(0, b.size, columns):
                right = min(left + columns, b.size)
                weights, sums = W[:, left:right], out[:, left:right]
                for n in range(first, last):
                    masked_axpy(
                        bits[n, word], word * WORD, by_entry, n, weights, right - left, sums, n
                    )
    begin, end = chunk_range(W.size, chunk, chunks)
    finite[chunk, 0] = are_finite(W.reshape(-1)[begin:end])


@chunk_kernel
def affine_dense(args, chunk, chunks, iteration):
    """Compute ``out = x @ W + b`` for a chunk of the samples."""
    begin, end = chunk_range(args.x.shape[0], chunk, chunks)
    affine_rows(args.x, args.W, args.b, args.out, begin, end)


@chunk_kernel
def activate(args, chunk, chunks, iteration):
    """Compute the values and slopes of the hidden units for a chunk of the samples."""
    out, values, slopes, activation = args.out, args.values, args.slopes, args.activation
    begin, end = chunk_range(out.shape[0], chunk, chunks)
    activate_rows(activation, out, values, slopes, begin, end)


@chunk_kernel
def softmax_loss(args, chunk, chunks, iteration):
    """Compute probabilities and losses for a chunk of the samples."""
    logits, probabilities, labels, soft = args.logits, args.probabilities, args.labels, args.soft
    delta, sums = args.delta, args.sums
    begin, end = chunk_range(logits.shape[0], chunk, chunks)
    softmax_rows(logits, probabilities, begin, end)
    sums[chunk, 0] = cross_entropy_sum(logits, probabilities, labels, soft, delta, begin, end)


@chunk_kernel
def softmax_loss_backward(args, chunk, chunks, iteration):
    """Compute the derivatives of the loss by the logits for a chunk of the samples."""
    probabilities, labels, soft = args.probabilities, args.labels, args.soft
    errors, delta = args.errors, args.delta
    begin, end = chunk_range(errors.shape[0], chunk, chunks)
    rate = 1 / errors.shape[0]
    logit_gradients(probabilities, labels, soft, delta, rate, errors, begin, end)


@chunk_kernel
def transpose(args, chunk, chunks, iteration):
    """Transpose a chunk of the rows of a layer's weights."""
    weights, W = args.weights, args.W
    begin, end = chunk_range(weights.shape[0], chunk, chunks)
    for i in range(begin, end):
        for j in range(weights.shape[1]):
            W[j, i] = weights[i, j]


@chunk_kernel
def multiply_slopes(args, chunk, chunks, iteration):
    """Multiply what came back through a layer by the slopes of the units below."""
    out, slopes = args.out, args.slopes
    errors, factors = out.reshape(-1), slopes.reshape(-1)
    begin, end = chunk_range(out.shape[0], chunk, chunks)
    # Unsigned: no index counts from the end, so the loop becomes vector code.
    for k in range(np.uint64(begin * out.shape[1]), np.uint64(end * out.shape[1])):
        errors[k] *= factors[k]
