r"""Whole training iterations of a fully connected network, compiled.

An iteration is two tasks (`fastgrad.kernels.tasks`), so that no two threads write the same cell:

`rows`
    Over rows of weights: gradient and step for the last batch, and, for marked samples, the
    products of the same rows with the next batch. So a row of the first layer, which is nearly
    everything, stays in the cache of one core for the whole training.
`forward_and_back`
    Over samples: all the rest, from the sum of those products to the error signals.

A training run is these two in turn. A single call on a batch starts with `take_over` instead, which
does the first products as well, and a forward pass alone ends with `forward`. Nothing is allocated
inside.

Layout
------
A network with ``sizes`` = (D, H, .., C) holds its parameters in one matrix, layer below layer: the
D rows of W1 and its bias as one more, then W2 and its bias, and so on. Only the first
``widths[layer]`` columns belong to a layer; the unit after a layer's last is always 1 and carries
the next layer's bias. A second matrix holds the layers transposed for the way back, kept in step by
whoever updates a row.

Everything is padded with zeros, so that no loop has a remainder: rows of a matrix to whole groups
of GROUP, columns to whole vector registers (`padded_width`), the batch to whole groups of samples
(repeating its last sample, whose error signal is then set to zero).

Samples come in one of two forms: as padded rows, or as they are with marks, bits that say where a
sample is not zero, which on MNIST saves four fifths of the work. Marks by sample serve the way
forward, and the same bits transposed, marks by entry, the way back.

Every share owns a range of the rows of each matrix. For marked samples the ranges of the first
layer hold about equally many non-zero entries: an image's border is empty.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastgrad.arrays import BitArray, FloatArray, IntArray
from fastgrad.kernels.activations import SIGMOID
from fastgrad.kernels.compile import inlined_kernel, kernel, task_kernel
from fastgrad.kernels.elementary import exp, like, relative_to
from fastgrad.kernels.tasks import ROW, put_array, run_steps
from fastgrad.kernels.updates import (
    ADAGRAD,
    ADAM,
    EPSILON,
    MOMENTUM,
    NESTEROV,
    RMSPROP,
    SGD,
    adagrad_step,
    adam_step,
    momentum_step,
    nesterov_step,
    rmsprop_step,
    sgd_step,
)
from fastgrad.kernels.vectors import (
    count_bits,
    lowest_bit,
    multiply,
    multiply_marked,
    multiply_transposed,
    multiply_transposed_marked,
    nonzero_bits,
    prefetch,
    prefetch_entry,
)

#: `rows` writes the gradient into ``result`` instead of taking a step.
GRADIENT_ONLY = -1

#: Where ``now`` says which batch a task takes; whether `rows` takes a step for the one before;
#: whether it, or `take_over`, multiplies with this one; and whether the task is left out unless
#: `marks_pay`.
BATCH, IS_STEP, IS_PRODUCT, IF_MARKS_PAY = range(4)

#: Rows of weights are dealt out by so many at a time.
ROW_BLOCK = 8
#: How many samples ahead of the one at work are fetched from memory.
AHEAD = 2
#: Entries that one number marks.
WORD = 64
NO_BITS, ONE_BIT, ALL_BITS = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)
#: The marks of a block of rows.
BLOCK_BITS = np.uint64(2**ROW_BLOCK - 1)
#: Samples, and rows of a matrix, that dense products take together.
GROUP = 4
#: Bytes a row is padded to: one AVX-512 register.
REGISTER_BYTES = 64
#: Between what two shares own in a row that both write: as much as between rows of their own.
GAP_BYTES = 8 * ROW


class State(NamedTuple):
    """What the tasks of this file read and write.

    Parameters
    ----------
    sizes, widths : ndarray of int64, shape (layers + 1,)
        Units and padded width of each layer, the input first.
    weights_at, transposed_at : ndarray of int64, shape (layers,)
        The first row of each layer's matrix in ``weights`` and ``transposed``.
    activation : int
        Of the hidden layers: ``SIGMOID`` or ``RELU`` of `fastgrad.kernels.activations`.
    delta : float
        The loss is ``-sum(t * log(p + delta))``, averaged over the batch.
    decay : float
        Weight decay: adds ``decay / 2 * sum(W**2)`` to the loss, biases excepted.
    weights, transposed : ndarray, shape (1, rows, widest)
        Parameters.
    W1 : ndarray, shape (D H,) or (0,)
        Weights to be taken over, row by row, if there are such.
    others : ndarray, shape (parameters - D H,)
        All other parameters, to be taken over with them: b1, W2, b2, ..
    found : ndarray of int64, shape (shares, 16)
        What `take_over` found: whether the parameters are finite, and how many entries are not zero
        in the samples that were looked at.
    x : ndarray, shape (N, D) or (0, 0)
        Samples to be taken over.
    marks : ndarray of uint64, shape (1 or shares, N, D / 64) or (0, 0, 0)
        Bit i % 64 of number i // 64 says whether entry i of a sample is not 0. Of a single batch
        each share has marks of its own, which hold the entries that it owns: if two threads wrote
        to one cache line, it would go to and fro between them.
    bounds : ndarray of int64, shape (shares, shares + 1 or more)
        For marked samples: share s owns the rows bounds[:, s] .. bounds[:, s + 1] - 1 of the first
        layer. Each share reads its own copy.
    own : ndarray of uint64, shape (shares, D / 64 or more)
        The same as bits.
    start : ndarray of int64, shape (N, shares + 1) or (0, 0)
        Where each share's part of a sample's non-zero entries begins in ``value``, and where the
        last one ends.
    value : ndarray, shape (1, M)
        The non-zero entries of a data set, sample by sample, a fifth of what would come from memory
        otherwise. Those of a single batch are taken from ``x``.
    stride : int
        Every stride-th sample is looked at to deal the rows out.
    most : int
        Marks pay if those samples have no more entries that are not zero.
    cost : ndarray of int64, shape (shares, D / ROW_BLOCK + 1 or more)
        What the rows before each block cost: the non-zero entries of those samples, and 1 a block.
    dense : ndarray, shape (1, N, D + 1 or more) or (1, 0, 0)
        Samples as padded rows, with a 1 appended.
    labels : ndarray of int64, shape (N,) or (0,)
    soft : ndarray, shape (N, C) or (0, C)
        The targets, in one of two forms, or none.
    batches : ndarray of int64, shape (iterations, batch size)
        Which samples an iteration takes.
    order : ndarray of int64, shape (1, batch size)
        0, 1, 2, ..
    now : ndarray of int64, shape (shares, 16)
        What a step tells its task: see `BATCH` and so on.
    partial : ndarray, shape (shares, batch size, widest)
        The first layer's inputs as each share's rows make them up.
    values, errors : ndarray, shape (layers + 1, batch size, widest)
        Units' values (the last layer's logits) and error signals. Layer 0 is unused.
    scratch : ndarray, shape (1, batch size, widest)
    sample_loss : ndarray, shape (batch size,)
    losses : ndarray of float64, shape (iterations,)
        Out: the loss of each batch before its step.
    done : ndarray of int64, shape (1,)
        In and out: is counted up after each iteration.
    gradients : ndarray, shape (shares, 64, widest)
    copy : ndarray, shape (batch size, D and gaps)
        The batch's entries from ``value``, where they are marked: entry i, which share s owns, in
        column `gap_before` (s) + i.
    entry_marks : ndarray of uint64, shape (shares, batch size / 64, 64)
        Marks by entry: bit n of [:, g, i] says whether sample 64 g + n of the batch is not 0 at
        entry i of some 64.
    result : ndarray, shape (parameters,)
        The gradient: W1, b1, W2, b2, .., each row by row.
    rule : int
        A rule of `fastgrad.kernels.updates`, or ``GRADIENT_ONLY``.
    first, second : ndarray
        The rule's memory, laid out as ``weights``; rows of width 0 where there is none.
    rates : ndarray of float64, shape (iterations,)
        The learning rate of each iteration.
    a, b : float
        The rule's coefficients.
    """

    sizes: IntArray
    widths: IntArray
    weights_at: IntArray
    transposed_at: IntArray
    activation: int
    delta: float
    decay: float
    weights: FloatArray
    transposed: FloatArray
    W1: FloatArray
    others: FloatArray
    found: IntArray
    x: FloatArray
    marks: BitArray
    bounds: IntArray
    own: BitArray
    start: IntArray
    value: FloatArray
    stride: int
    most: int
    cost: IntArray
    dense: FloatArray
    labels: IntArray
    soft: FloatArray
    batches: IntArray
    order: IntArray
    now: IntArray
    partial: FloatArray
    values: FloatArray
    errors: FloatArray
    scratch: FloatArray
    sample_loss: FloatArray
    losses: FloatArray
    done: IntArray
    gradients: FloatArray
    copy: FloatArray
    entry_marks: BitArray
    result: FloatArray
    rule: int
    first: FloatArray
    second: FloatArray
    rates: FloatArray
    a: float
    b: float


def padded_width(size: int, itemsize: int) -> int:
    """Return the width of a row of `size` entries: room for a group at the constant 1."""
    lanes = REGISTER_BYTES // itemsize
    return -(-(size + GROUP) // lanes) * lanes


@inlined_kernel
def first_row(s, layer, share, number):
    """Return the first row of a layer that a share owns, `number`, as another share reads it.

    The bias is the last row of the last share.
    """
    shares = s.partial.shape[0]
    size = s.sizes[layer]
    if number == shares:
        return size + 1
    if layer == 0 and s.marks.shape[0] > 0:
        return s.bounds[share, number]
    return (size + ROW_BLOCK - 1) // ROW_BLOCK * number // shares * ROW_BLOCK


@inlined_kernel
def bits_between(begin, end):
    """Return 64 bits, of which begin .. end - 1 are set, as far as there are such."""
    begin = max(begin, 0)
    end = min(end, WORD)
    if begin >= end:
        return NO_BITS
    return (ALL_BITS << np.uint64(begin)) & (ALL_BITS >> np.uint64(WORD - end))


@inlined_kernel
def bits_of(x, n, word):
    """Return 64 marks of a sample: which of the entries from 64 ``word`` on are not 0."""
    first = word * WORD
    if first + WORD <= x.shape[1]:
        return nonzero_bits(x, n, first)
    bits = NO_BITS
    for i in range(first, x.shape[1]):
        bits |= np.uint64(x[n, i] != x.dtype.type(0)) << np.uint64(i - first)
    return bits


@inlined_kernel
def row_blocks(s):
    """Return how many blocks of rows the first layer has."""
    return (s.sizes[0] + ROW_BLOCK - 1) // ROW_BLOCK


@inlined_kernel
def marks_of(s, share):
    """Return which of the copies of ``marks`` a share reads and writes."""
    return min(share, s.marks.shape[0] - 1)


@inlined_kernel
def gap_before(s, share):
    """Return by how many columns the entries of a share are moved in ``copy``.

    So that no two threads write to one cache line, or to two that are fetched as a pair.
    """
    return share * (GAP_BYTES // s.copy.itemsize)


@inlined_kernel
def marks_pay(found, most):
    """Return whether `take_over` found finite parameters, and samples with zeros enough."""
    finite = True
    for share in range(found.shape[0]):
        finite &= found[share, 0] != 0
    return finite and found[0, 1] <= most


@inlined_kernel
def is_left_out(s, share):
    """Return whether a task has nothing to do, because marks do not pay."""
    return s.now[share, IF_MARKS_PAY] != 0 and not marks_pay(s.found, s.most)


@inlined_kernel
def mark(s, share, first, last):
    """Mark samples: what concerns rows first .. last - 1, or, of a data set, a share of them."""
    shares = s.partial.shape[0]
    copy = marks_of(s, share)
    begin, end = 0, s.x.shape[0]
    left, right = first // WORD, (last + WORD - 1) // WORD
    if s.marks.shape[0] < shares:
        begin, end = end * share // shares, end * (share + 1) // shares
        left, right = 0, s.marks.shape[2]
    for n in range(begin, end):
        for word in range(left, right):
            s.marks[copy, n, word] = bits_of(s.x, n, word)


@inlined_kernel
def deal_out(s, share):
    """Divide the first layer's rows among the shares, judged by some of the samples."""
    cost = s.cost
    shares = s.partial.shape[0]
    blocks = row_blocks(s)
    in_word = WORD // ROW_BLOCK
    for block in range(blocks + 1):
        cost[share, block] = 1  # rows cost something even where all samples are zero
    cost[share, 0] = 0
    for n in range(0, s.x.shape[0], s.stride):
        for word in range(s.marks.shape[2]):
            bits = bits_of(s.x, n, word)
            for block in range(word * in_word + 1, min(word * in_word + in_word, blocks) + 1):
                cost[share, block] += count_bits(bits & BLOCK_BITS)
                bits >>= np.uint64(ROW_BLOCK)
    for block in range(blocks):
        cost[share, block + 1] += cost[share, block]
    s.found[share, 1] = cost[share, blocks] - blocks
    block = 0
    for number in range(shares + 1):
        while cost[share, block] * shares < cost[share, blocks] * number:
            block += 1
        s.bounds[share, number] = min(block * ROW_BLOCK, s.sizes[0])
    for word in range(s.own.shape[1]):
        at = word * WORD
        s.own[share, word] = bits_between(
            s.bounds[share, share] - at, s.bounds[share, share + 1] - at
        )


@inlined_kernel
def take_first_layer(s, first, last):
    """Bring rows first .. last - 1 of W1 into the padded form; return 0 if they are finite."""
    zero = s.weights.dtype.type(0)
    width = s.sizes[1]
    check = zero
    for k in range(np.uint64(first * width), np.uint64(last * width)):
        check += s.W1[k] * zero  # NaN, once and for all, if a weight is not finite
    for i in range(first, last):
        at = np.uint64(i * width)
        for j in range(np.uint64(width)):
            s.weights[0, i, j] = s.W1[at + j]
    return check


@inlined_kernel
def take_other_layers(s):
    """Bring all other parameters into the padded form; return 0 if they are finite."""
    zero = s.weights.dtype.type(0)
    check = zero
    for k in range(s.others.size):
        check += s.others[k] * zero
    at = 0
    for layer in range(s.sizes.size - 1):
        size = s.sizes[layer]
        width = s.sizes[layer + 1]
        row = s.weights_at[layer]
        if layer > 0:
            for i in range(size):
                for j in range(width):
                    s.weights[0, row + i, j] = s.others[at]
                    s.transposed[0, s.transposed_at[layer] + j, i] = s.others[at]
                    at += 1
        for j in range(width):
            s.weights[0, row + size, j] = s.others[at]
            at += 1
    return check


@task_kernel
def take_over(share, s):
    """Take over parameters and samples, as far as they concern a share of the first layer's rows.

    Deal the rows out, bring them into the padded form, and mark what the samples hold there. If
    marks pay, compute the products of the rows with a single batch.
    """
    deal_out(s, share)
    first = s.bounds[share, share]
    last = s.bounds[share, share + 1]
    mark(s, share, first, last)
    n_samples = s.x.shape[0]
    copy = marks_of(s, share)
    zero = s.weights.dtype.type(0)
    check = zero
    if s.W1.size > 0 and share == 0:
        check += take_other_layers(s)
    is_product = s.now[share, IS_PRODUCT] != 0 and s.found[share, 1] <= s.most
    if is_product:
        for n in range(n_samples):
            for j in range(s.widths[1]):
                s.partial[share, n, j] = zero
    # 64 rows at a time, which the first cache holds.
    turned = s.x.T
    for word in range(first // WORD, (last + WORD - 1) // WORD):
        at = word * WORD
        if s.W1.size > 0:
            check += take_first_layer(s, max(first, at), min(last, at + WORD))
        if is_product:
            for n in range(n_samples):
                multiply_transposed_marked(
                    s.marks[copy, n, word] & s.own[share, word], at, turned, n,
                    s.weights, 0, s.widths[1], s.partial, share, n,
                )  # fmt: skip
    if s.W1.size > 0:
        s.found[share, 0] = check == zero


@task_kernel
def count_values(share, s):
    """Count the non-zero entries of a share of the samples, part by part, into ``start``."""
    shares = s.partial.shape[0]
    n_samples = s.x.shape[0]
    for n in range(n_samples * share // shares, n_samples * (share + 1) // shares):
        s.start[n, 0] = 0
        for part in range(shares):
            count = s.start[n, part]
            for word in range(s.marks.shape[2]):
                count += count_bits(s.marks[0, n, word] & s.own[part, word])
            s.start[n, part + 1] = count


@task_kernel
def list_values(share, s):
    """Copy the non-zero entries of a share of the samples to where ``start`` says."""
    shares = s.partial.shape[0]
    n_samples = s.x.shape[0]
    for n in range(n_samples * share // shares, n_samples * (share + 1) // shares):
        place = s.start[n, 0]
        for word in range(s.marks.shape[2]):
            bits = s.marks[0, n, word]
            while bits != NO_BITS:
                s.value[0, place] = s.x[n, word * WORD + lowest_bit(bits)]
                place += 1
                bits &= bits - ONE_BIT


@inlined_kernel
def activate(activation, size, width, values, errors, layer, n):
    """Turn a layer's inputs into its values, and leave in ``errors`` what its slope needs.

    That is the input for ReLU, and for the sigmoid the slope itself, z (1 - z) without the
    cancellation; where it underflows, minus the size of the input.
    """
    zero = values.dtype.type(0)
    one = values.dtype.type(1)
    if activation == SIGMOID:
        for j in range(width):
            inner = values[layer, n, j]
            power = exp(-abs(inner))
            part = one / (one + power)
            values[layer, n, j] = power * part if inner < zero else part
            slope = power * part * part
            errors[layer, n, j] = -abs(inner) if slope == zero else slope
    else:
        for j in range(width):
            inner = values[layer, n, j]
            errors[layer, n, j] = inner
            values[layer, n, j] = zero if inner < zero else inner
    for j in range(size, width):
        values[layer, n, j] = zero
        errors[layer, n, j] = zero
    values[layer, n, size] = one


@inlined_kernel
def softmax(size, width, logits, probabilities, layer, n):
    """Compute one sample's probabilities; return the largest logit and the normalising sum."""
    largest = logits[layer, n, 0]
    for k in range(size):
        largest = max(largest, logits[layer, n, k])
    for k in range(width):
        probabilities[layer, n, k] = exp(logits[layer, n, k] - largest)
    for k in range(size, width):
        probabilities[layer, n, k] = 0
    total = probabilities.dtype.type(0)
    for k in range(width):
        total += probabilities[layer, n, k]
    for k in range(width):
        probabilities[layer, n, k] /= total
    return largest, total


@inlined_kernel
def cross_entropy(logit, probability, largest, total, delta):
    """Return the loss of a sample for a class, from what `softmax` left and returned."""
    if delta == 0:
        return relative_to(like(math.log(total), logit), logit, largest)
    return -like(math.log(probability + like(delta, logit)), logit)


@inlined_kernel
def label_error(label, delta, width, errors, layer, n, scale):
    """Turn a sample's probabilities into the derivative of its loss by the logits, times scale."""
    zero = errors.dtype.type(0)
    target = errors[layer, n, label]
    if delta != 0:
        scale *= target / (target + errors.dtype.type(delta))
    # 1 - p as the sum of the others: no digit is lost when p is near 1.
    errors[layer, n, label] = zero
    others = zero
    for k in range(width):
        others += errors[layer, n, k]
    for k in range(width):
        errors[layer, n, k] *= scale
    errors[layer, n, label] = -scale * others


@inlined_kernel
def soft_error(soft, row, delta, errors, layer, n, scale):
    """Do as `label_error` does, for soft targets: p_k sum_m u_m - u_k with u = t p / (p + delta).

    As p_k (sum of the other u) - u_k (sum of the other p), where nothing cancels for targets like
    one-hot ones or probabilities near 1: the sum without the largest term is taken apart.
    """
    zero = errors.dtype.type(0)
    shift = errors.dtype.type(delta)
    likely = 0
    weighty = 0
    most = zero
    for k in range(soft.shape[1]):
        p = errors[layer, n, k]
        u = abs(soft[row, k]) if delta == 0 else abs(soft[row, k]) * (p / (p + shift))
        if p > errors[layer, n, likely]:
            likely = k
        if u > most:
            weighty = k
            most = u
    other_p = zero
    other_u = zero
    own_u = zero
    for k in range(soft.shape[1]):
        p = errors[layer, n, k]
        u = soft[row, k] if delta == 0 else soft[row, k] * (p / (p + shift))
        other_p += zero if k == likely else p
        other_u += zero if k == weighty else u
        own_u += u if k == weighty else zero
    for k in range(soft.shape[1]):
        p = errors[layer, n, k]
        u = soft[row, k] if delta == 0 else soft[row, k] * (p / (p + shift))
        rest_p = other_p if k == likely else errors.dtype.type(1) - p
        rest_u = other_u if k == weighty else other_u - u + own_u
        errors[layer, n, k] = (p * rest_u - u * rest_p) * scale


@inlined_kernel
def forward_group(s, batch, n):
    """Run the forward pass and the loss for samples n .. n + 3 of a batch."""
    sizes, widths, weights, batches = s.sizes, s.widths, s.weights, s.batches
    partial, values, errors = s.partial, s.values, s.errors
    last = sizes.size - 1
    n_batch = batches.shape[1]
    if s.marks.shape[0] > 0:
        bias = np.uint64(sizes[0])
        for q in range(n, n + GROUP):
            source = min(q, n_batch - 1)
            for j in range(widths[1]):
                values[1, q, j] = weights[0, bias, j]
            for share in range(partial.shape[0]):
                for j in range(widths[1]):
                    values[1, q, j] += partial[share, source, j]
    else:
        multiply(
            s.dense, 0, batches[batch, n], batches[batch, min(n + 1, n_batch - 1)],
            batches[batch, min(n + 2, n_batch - 1)], batches[batch, min(n + 3, n_batch - 1)],
            sizes[0] + 1, weights, 0, 0, widths[1], values, 1, n,
        )  # fmt: skip
    for layer in range(1, last):
        for q in range(n, n + GROUP):
            activate(s.activation, sizes[layer], widths[layer], values, errors, layer, q)
        multiply(
            values, layer, n, n + 1, n + 2, n + 3, sizes[layer] + 1, weights, 0,
            s.weights_at[layer], widths[layer + 1], values, layer + 1, n,
        )  # fmt: skip
    number = values.dtype.type
    has_labels = s.labels.size > 0
    n_soft = s.soft.shape[1] if s.soft.shape[0] > 0 else 0
    for q in range(n, min(n + GROUP, n_batch)):
        largest, total = softmax(sizes[last], widths[last], values, errors, last, q)
        row = batches[batch, q]
        begin = s.labels[row] if has_labels else 0
        end = begin + 1 if has_labels else n_soft
        loss = number(0)
        for k in range(begin, end):
            t = number(1) if has_labels else s.soft[row, k]
            if t == 0:  # adds exactly nothing
                continue
            loss += t * cross_entropy(
                values[last, q, k], errors[last, q, k], largest, total, s.delta
            )
        s.sample_loss[q] = loss


@inlined_kernel
def back_group(s, batch, n):
    """Turn what `forward_group` left in ``errors`` into error signals, layer by layer."""
    widths, batches, errors, scratch = s.widths, s.batches, s.errors, s.scratch
    last = s.sizes.size - 1
    n_batch = batches.shape[1]
    zero = errors.dtype.type(0)
    scale = errors.dtype.type(1 / n_batch)
    for q in range(n, n + GROUP):
        if q >= n_batch:
            for k in range(widths[last]):
                errors[last, q, k] = zero
        elif s.labels.size > 0:
            label = s.labels[batches[batch, q]]
            label_error(label, s.delta, widths[last], errors, last, q, scale)
        else:
            soft_error(s.soft, batches[batch, q], s.delta, errors, last, q, scale)
    for back in range(1, last):
        layer = last - back
        width = widths[layer]
        multiply(
            errors, layer + 1, n, n + 1, n + 2, n + 3, s.sizes[layer + 1],
            s.transposed, 0, s.transposed_at[layer], width, scratch, 0, n,
        )  # fmt: skip
        for q in range(n, n + GROUP):
            if s.activation == SIGMOID:
                for j in range(width):
                    slope = errors[layer, q, j]
                    errors[layer, q, j] = (zero if slope < zero else slope) * scratch[0, q, j]
            else:
                for j in range(width):
                    error = scratch[0, q, j]
                    errors[layer, q, j] = error if errors[layer, q, j] > zero else zero


@task_kernel
def forward(share, s):
    """Run the forward pass for a share of the batch's samples.

    Afterwards ``errors`` holds slopes (sigmoid) or inputs (ReLU) of the hidden units, and
    probabilities. Without targets there is no loss.
    """
    if is_left_out(s, share):
        return
    shares = s.partial.shape[0]
    groups = (s.batches.shape[1] + GROUP - 1) // GROUP
    for group in range(groups * share // shares, groups * (share + 1) // shares):
        forward_group(s, s.now[share, BATCH], group * GROUP)


@task_kernel
def forward_and_back(share, s):
    """Run forward and backward pass for a share of the batch's samples."""
    if is_left_out(s, share):
        return
    batch = s.now[share, BATCH]
    shares = s.partial.shape[0]
    groups = (s.batches.shape[1] + GROUP - 1) // GROUP
    for group in range(groups * share // shares, groups * (share + 1) // shares):
        forward_group(s, batch, group * GROUP)
        back_group(s, batch, group * GROUP)
    if share == 0:  # `rows` adds the samples' losses, when all are there
        s.losses[batch] = penalty(s.sizes, s.weights_at, s.weights, s.decay)


@inlined_kernel
def copy_row(rows, u, n, flat, begin, count):
    """Copy the beginning of a row into an array of one dimension."""
    at = np.uint64(begin)  # vectorised only if Numba need not think of negative indices
    for j in range(np.uint64(count)):
        flat[at + j] = rows[u, n, j]


@inlined_kernel
def turn_marks(s, share, batch, word):
    """Turn a batch's marks by sample, of 64 entries, into marks by entry.

    64 x 64 bits at a time, halves of halves of them swapped (H. S. Warren, *Hacker's Delight*,
    section 7-3).
    """
    turned = s.entry_marks
    copy = marks_of(s, share)
    n_batch = s.batches.shape[1]
    for group in range(turned.shape[1]):
        count = min(WORD, n_batch - group * WORD)
        for n in range(count):
            sample = s.batches[batch, group * WORD + n]
            turned[share, group, n] = s.marks[copy, sample, word]
        for n in range(count, WORD):
            turned[share, group, n] = NO_BITS
        half = WORD // 2
        low = ALL_BITS >> np.uint64(half)
        while half > 0:
            shift = np.uint64(half)
            for begin in range(0, WORD, 2 * half):
                for k in range(begin, begin + half):
                    swap = turned[share, group, k] >> shift ^ turned[share, group, k + half]
                    swap &= low
                    turned[share, group, k] ^= swap << shift
                    turned[share, group, k + half] ^= swap
            half //= 2
            low ^= low << np.uint64(half)


@inlined_kernel
def marked_gradient(s, share, batch, first, last, width):
    """Compute the gradient of rows first .. last - 1 of the first layer, for marked samples.

    The rows are among 64 with marks in one number. 64 samples at a time, whose error signals the
    first cache holds.
    """
    n_inputs = s.sizes[0]
    gradients = s.gradients
    n_batch = s.batches.shape[1]
    zero = gradients.dtype.type(0)
    for g in range(last - first):
        for j in range(width):
            gradients[share, g, j] = zero
    if first < n_inputs:
        word = first // WORD
        begin = word * WORD
        end = min(last, n_inputs)
        turn_marks(s, share, batch, word)
        is_copied = s.start.shape[0] > 0
        samples = s.copy if is_copied else s.x
        gap = gap_before(s, share) if is_copied else 0
        for group in range(s.entry_marks.shape[1]):
            for i in range(first, end):
                bits = s.entry_marks[share, group, i - begin]
                if bits != NO_BITS:
                    multiply_transposed_marked(
                        bits, group * WORD, samples, gap + i, s.errors, 1, width,
                        gradients, share, i - first,
                    )  # fmt: skip
    if last > n_inputs:  # the bias
        for n in range(n_batch):
            for j in range(width):
                gradients[share, n_inputs - first, j] += s.errors[1, n, j]


@inlined_kernel
def fetch_targets(s, share, batch):
    """Have the targets that `forward_and_back` is going to need fetched from memory.

    They lie anywhere in a data set: waiting for them took 5 % of an iteration.
    """
    n_batch = s.batches.shape[1]
    shares = s.partial.shape[0]
    for n in range(n_batch * share // shares, n_batch * (share + 1) // shares):
        if s.labels.size > 0:
            prefetch_entry(s.labels, s.batches[batch, n])
        elif s.soft.shape[0] > 0:
            prefetch(s.soft, s.batches[batch, n], 0, s.soft.shape[1])


@inlined_kernel
def marked_product(s, share, batch):
    """Compute the products of a share of the first layer with a batch of a marked data set."""
    n_batch = s.batches.shape[1]
    marks = s.marks[0]
    begin = s.bounds[share, share] // WORD
    end = (s.bounds[share, share + 1] + WORD - 1) // WORD
    for n in range(n_batch):
        sample = s.batches[batch, n]
        later = s.batches[batch, min(n + 2 * AHEAD, n_batch - 1)]
        prefetch(s.start, later, share, share + 2)
        prefetch(marks, later, begin, end)
        soon = s.batches[batch, min(n + AHEAD, n_batch - 1)]
        prefetch(s.value, 0, s.start[soon, share], s.start[soon, share + 1])
        multiply_marked(
            marks, sample, s.value, s.start[sample, share], s.own, share, begin, end,
            s.copy, gap_before(s, share), s.weights, 0, s.widths[1], s.partial, share, n,
        )  # fmt: skip


@inlined_kernel
def step_row(rule, weights, row, width, gradients, share, g, first, second, lr, a, b):
    """Take one step of a rule on one row of weights: `updates.update`, on rows of matrices."""
    number = weights.dtype.type
    rate = number(lr)
    factor = number(a)
    rest = number(1.0 - a)
    rest_b = number(1.0 - b)
    one = number(1.0)
    epsilon = number(EPSILON)
    if rule == SGD:
        for j in range(width):
            weights[0, row, j] = sgd_step(weights[0, row, j], gradients[share, g, j], rate)
    elif rule == MOMENTUM:
        for j in range(width):
            weights[0, row, j], first[0, row, j] = momentum_step(
                weights[0, row, j], gradients[share, g, j], first[0, row, j], rate, factor
            )
    elif rule == NESTEROV:
        for j in range(width):
            weights[0, row, j], first[0, row, j] = nesterov_step(
                weights[0, row, j], gradients[share, g, j], first[0, row, j], rate, factor, one
            )
    elif rule == ADAGRAD:
        for j in range(width):
            weights[0, row, j], first[0, row, j] = adagrad_step(
                weights[0, row, j], gradients[share, g, j], first[0, row, j], rate, epsilon
            )
    elif rule == RMSPROP:
        for j in range(width):
            weights[0, row, j], first[0, row, j] = rmsprop_step(
                weights[0, row, j], gradients[share, g, j], first[0, row, j],
                rate, factor, rest, epsilon,
            )  # fmt: skip
    elif rule == ADAM:
        for j in range(width):
            weights[0, row, j], first[0, row, j], second[0, row, j] = adam_step(
                weights[0, row, j], gradients[share, g, j], first[0, row, j], second[0, row, j],
                rate, rest, rest_b, epsilon,
            )  # fmt: skip


@inlined_kernel
def mean(losses):
    """Return the mean of the samples' losses, added up in double precision; 0 of none."""
    total = 0.0
    for n in range(losses.size):
        total += losses[n]
    return total / max(losses.size, 1)


@task_kernel
def rows(share, s):
    """Do all that an iteration does row by row of the weights, for one share of the rows."""
    if is_left_out(s, share):
        return
    marked = s.marks.shape[0] > 0
    batch = s.now[share, BATCH] - 1
    decay_rate = s.weights.dtype.type(s.decay)
    result_at = 0
    for layer in range(s.sizes.size - 1):
        size = s.sizes[layer]
        width = s.widths[layer + 1]
        i1 = first_row(s, layer, share, share)
        end = first_row(s, layer, share, share + 1)
        while i1 < end:
            i2 = min(i1 // WORD * WORD + WORD, end)
            if s.now[share, IS_STEP]:
                if layer == 0 and marked:
                    marked_gradient(s, share, batch, i1, i2, width)
                elif layer == 0:
                    for i in range(i1, i2, GROUP):
                        multiply_transposed(
                            s.dense, 0, s.batches, batch, i, s.errors, 1, width,
                            s.gradients, share, i - i1,
                        )  # fmt: skip
                else:
                    for i in range(i1, i2, GROUP):
                        multiply_transposed(
                            s.values, layer, s.order, 0, i, s.errors, layer + 1, width,
                            s.gradients, share, i - i1,
                        )  # fmt: skip
                for i in range(i1, i2):
                    row = s.weights_at[layer] + i
                    if s.decay != 0 and i < size:
                        for j in range(width):
                            s.gradients[share, i - i1, j] += decay_rate * s.weights[0, row, j]
                    if s.rule == GRADIENT_ONLY:
                        copy_row(
                            s.gradients, share, i - i1, s.result,
                            result_at + i * s.sizes[layer + 1], s.sizes[layer + 1],
                        )  # fmt: skip
                        continue
                    step_row(
                        s.rule, s.weights, row, width, s.gradients, share, i - i1,
                        s.first, s.second, s.rates[batch], s.a, s.b,
                    )  # fmt: skip
                    if layer > 0 and i < size:
                        for k in range(s.sizes[layer + 1]):
                            s.transposed[0, s.transposed_at[layer] + k, i] = s.weights[0, row, k]
            i1 = i2
        result_at += (size + 1) * s.sizes[layer + 1]
    if s.now[share, IS_PRODUCT]:
        fetch_targets(s, share, batch + 1)
        if marked:
            marked_product(s, share, batch + 1)
    if s.now[share, IS_STEP] and share == 0:
        s.losses[batch] += mean(s.sample_loss)
        s.done[0] += 1


@kernel
def begin(
    part, steps, progress, now, give_way, state, places, x, W1, labels, soft, result, found,
    sample_loss, most,
):  # fmt: skip
    """Put the arrays given for a call into a state, and run steps; the first is `take_over`.

    Parameters
    ----------
    part, steps, progress, now, give_way
        See `fastgrad.kernels.tasks.run_steps`.
    state : int
        Address of the state.
    places : tuple of int
        Where the state keeps the next five.
    x, W1, labels, soft, result, found, sample_loss, most
        Of the state.

    Returns
    -------
    pays : bool
        Whether marks pay: the steps that depend on it have run.
    loss : float
        The mean of ``sample_loss``.
    """
    put_array(state, places[0], x)
    put_array(state, places[1], W1)
    put_array(state, places[2], labels)
    put_array(state, places[3], soft)
    put_array(state, places[4], result)
    run_steps(part, steps, progress, now, give_way)
    return marks_pay(found, most), mean(sample_loss)


@kernel
def penalty(sizes, weights_at, weights, decay):
    """Return what weight decay adds to the loss, in double precision."""
    if decay == 0:
        return 0.0
    squares = 0.0
    for layer in range(sizes.size - 1):
        for i in range(weights_at[layer], weights_at[layer] + sizes[layer]):
            for j in range(sizes[layer + 1]):
                w = np.float64(weights[0, i, j])
                squares += w * w
    return 0.5 * decay * squares
