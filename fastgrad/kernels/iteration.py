r"""Whole training iterations of a fully connected network, compiled.

`forward` runs one forward pass, one call of `iterate` many iterations. Each of those has two
launches: one over samples (gather, forward pass, loss, error signals) and one over rows of weights
(gradient and update), so that no two threads write the same cell. Nothing is allocated inside.

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

Samples come in one of two forms, both made once: as padded rows, or as lists of their non-zero
entries (`group_nonzeros`), which on MNIST saves four fifths of the work.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from fastgrad.kernels.compile import inlined_kernel, kernel, parallel_kernel
from fastgrad.kernels.elementary import exp, relative_to
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
from fastgrad.kernels.vectors import multiply, multiply_transposed, sum_listed

#: `iterate` writes the gradient into ``first`` instead of taking a step.
GRADIENT_ONLY = -1

SIGMOID, RELU = 0, 1

#: Rows of weights that go to a thread as one block.
ROW_BLOCK = 8
#: Samples, and rows of a matrix, that dense products take together.
GROUP = 4
#: Bytes a row is padded to: one AVX-512 register.
REGISTER_BYTES = 64


@kernel
def padded(size, group):
    """Return `size` rounded up to a multiple of `group`."""
    return (size + group - 1) // group * group


def padded_width(size: int, itemsize: int) -> int:
    """Return the width of a row of `size` entries: room for a group at the constant 1."""
    lanes = REGISTER_BYTES // itemsize
    return -(-(size + GROUP) // lanes) * lanes


@parallel_kernel
def list_lengths(x, lengths):
    """Count the entries of the list that `group_nonzeros` makes of every row of ``x``."""
    for n in prange(x.shape[0]):
        count = 1
        for i in range(x.shape[1]):
            count += x[n, i] != 0
        lengths[n] = count


@parallel_kernel
def group_nonzeros(x, start, index, value):
    """List the non-zero entries of every sample, and its constant 1, share by share.

    Share s of all the work owns the blocks s, s + shares, .. of ROW_BLOCK entries: dealing blocks
    out in turn balances the shares on images, whose border is empty. The constant 1 belongs to the
    last share.

    Parameters
    ----------
    x : ndarray, shape (N, D)
    start : ndarray of int64, shape (N, shares + 1)
        In: ``start[n, 0]``, where sample n's list begins. Out: where each share's part begins, and
        where the last one ends.
    index : ndarray of uint32, shape (1, M)
        Out: entries' positions in the sample; D stands for the constant 1. Unsigned, because Numba
        lets a signed index count from the end, at the cost of a comparison.
    value : ndarray, shape (1, M)
        Out: their values. M leaves room for every list.
    """
    n_inputs = x.shape[1]
    shares = start.shape[1] - 1
    for n in prange(x.shape[0]):
        place = start[n, 0]
        for share in range(shares):
            for first in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
                # Half of the blocks of an image are empty. A NaN is not equal to zero.
                if first + ROW_BLOCK <= n_inputs and (
                    (abs(x[n, first]) + abs(x[n, first + 1]))
                    + (abs(x[n, first + 2]) + abs(x[n, first + 3]))
                    + (abs(x[n, first + 4]) + abs(x[n, first + 5]))
                    + (abs(x[n, first + 6]) + abs(x[n, first + 7]))
                    == 0
                ):
                    continue
                for i in range(first, min(first + ROW_BLOCK, n_inputs)):
                    # Without a branch: a zero is overwritten by what comes next.
                    index[0, place] = i
                    value[0, place] = x[n, i]
                    place += x[n, i] != 0
            start[n, share + 1] = place
        index[0, place] = n_inputs
        value[0, place] = 1
        start[n, shares] = place + 1


@kernel
def transpose(sizes, weights_at, transposed_at, weights, transposed):
    """Copy every layer but the first, transposed; return whether all weights are finite."""
    finite = True
    for i in range(weights.shape[1]):
        for j in range(weights.shape[2]):
            finite &= abs(weights[0, i, j]) < np.inf
    for layer in range(1, sizes.size - 1):
        for i in range(sizes[layer]):
            for k in range(sizes[layer + 1]):
                transposed[0, transposed_at[layer] + k, i] = weights[0, weights_at[layer] + i, k]
    return finite


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
def label_loss(label, delta, logits, probabilities, layer, n, largest, total):
    """Return a sample's loss for a label."""
    number = logits.dtype.type
    if delta == 0:
        return relative_to(number(math.log(total)), logits[layer, n, label], largest)
    return -number(math.log(probabilities[layer, n, label] + number(delta)))


@inlined_kernel
def soft_loss(soft, row, delta, logits, probabilities, layer, n, largest, total):
    """Return a sample's loss for soft targets; a target of 0 adds exactly nothing."""
    number = logits.dtype.type
    loss = number(0)
    for k in range(soft.shape[1]):
        t = soft[row, k]
        if t != 0:
            loss += t * label_loss(k, delta, logits, probabilities, layer, n, largest, total)
    return loss


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
def forward_group(
    n, dense, start, index, value, batches, b, labels, soft,
    sizes, widths, weights_at, activation, delta, weights, values, errors, sample_loss,
):  # fmt: skip
    """Run the forward pass and the loss for samples n .. n + 4 of batch b."""
    last = sizes.size - 1
    n_batch = batches.shape[1]
    if index.size > 0:
        for s in range(n, n + GROUP):
            row = batches[b, min(s, n_batch - 1)]
            begin = start[row, 0]
            end = start[row, start.shape[1] - 1]
            sum_listed(begin, end, index, value, 0, weights, 0, widths[1], values, 1, s)
    else:
        multiply(
            dense, 0, batches[b, n], batches[b, min(n + 1, n_batch - 1)],
            batches[b, min(n + 2, n_batch - 1)], batches[b, min(n + 3, n_batch - 1)],
            sizes[0] + 1, weights, 0, 0, widths[1], values, 1, n,
        )  # fmt: skip
    for layer in range(1, last):
        for s in range(n, n + GROUP):
            activate(activation, sizes[layer], widths[layer], values, errors, layer, s)
        multiply(
            values, layer, n, n + 1, n + 2, n + 3, sizes[layer] + 1,
            weights, 0, weights_at[layer], widths[layer + 1], values, layer + 1, n,
        )  # fmt: skip
    for s in range(n, min(n + GROUP, n_batch)):
        largest, total = softmax(sizes[last], widths[last], values, errors, last, s)
        row = batches[b, s]
        if labels.size > 0:
            sample_loss[s] = label_loss(labels[row], delta, values, errors, last, s, largest, total)
        elif soft.shape[0] > 0:
            sample_loss[s] = soft_loss(soft, row, delta, values, errors, last, s, largest, total)


@inlined_kernel
def back_group(
    n, batches, b, labels, soft, sizes, widths, transposed_at, activation, delta,
    transposed, errors, scratch,
):  # fmt: skip
    """Turn what `forward_group` left in ``errors`` into error signals, layer by layer."""
    last = sizes.size - 1
    n_batch = batches.shape[1]
    zero = errors.dtype.type(0)
    scale = errors.dtype.type(1 / n_batch)
    for s in range(n, n + GROUP):
        if s >= n_batch:
            for k in range(widths[last]):
                errors[last, s, k] = zero
        elif labels.size > 0:
            label_error(labels[batches[b, s]], delta, widths[last], errors, last, s, scale)
        else:
            soft_error(soft, batches[b, s], delta, errors, last, s, scale)
    for back in range(1, last):
        layer = last - back
        width = widths[layer]
        multiply(
            errors, layer + 1, n, n + 1, n + 2, n + 3, sizes[layer + 1],
            transposed, 0, transposed_at[layer], width, scratch, 0, n,
        )  # fmt: skip
        for s in range(n, n + GROUP):
            if activation == SIGMOID:
                for j in range(width):
                    slope = errors[layer, s, j]
                    errors[layer, s, j] = (zero if slope < zero else slope) * scratch[0, s, j]
            else:
                for j in range(width):
                    errors[layer, s, j] = scratch[0, s, j] if errors[layer, s, j] > zero else zero


@parallel_kernel
def forward(
    dense, start, index, value, batches, labels, soft, sizes, widths, weights_at, activation, delta,
    weights, values, errors, sample_loss,
):  # fmt: skip
    """Run the forward pass over the first row of ``batches``.

    Parameters are those of `iterate`. Afterwards ``errors`` holds slopes (sigmoid) or inputs (ReLU)
    of the hidden units, and probabilities. Without targets there is no loss.
    """
    for group in prange((batches.shape[1] + GROUP - 1) // GROUP):
        forward_group(
            group * GROUP, dense, start, index, value, batches, 0, labels, soft, sizes, widths,
            weights_at, activation, delta, weights, values, errors, sample_loss,
        )  # fmt: skip


@inlined_kernel
def lists_by_entry(share, start, index, value, batches, b, lengths, samples, factors):
    """Turn a share's part of a batch's lists by sample into lists by entry.

    One pass, with room for the whole batch in every list: counting first, to pack them, took half
    as long again.
    """
    shares = start.shape[1] - 1
    n_inputs = lengths.shape[1] - ROW_BLOCK
    for block in range(share, padded(n_inputs, ROW_BLOCK) // ROW_BLOCK, shares):
        for i in range(block * ROW_BLOCK, min((block + 1) * ROW_BLOCK, n_inputs)):
            lengths[share, i] = 0
    if share == shares - 1:
        lengths[share, n_inputs] = 0
    for n in range(batches.shape[1]):
        row = batches[b, n]
        for e in range(start[row, share], start[row, share + 1]):
            i = index[0, e]
            place = lengths[share, i]
            lengths[share, i] = place + 1
            samples[i, place] = n
            factors[i, place] = value[0, e]


@inlined_kernel
def dense_gradient(share, i1, i2, left, u, rows, r, errors, layer, width, gradients):
    """Compute rows i1 .. i2 of gradient, sum_n left[u, rows[r, n], i] errors[layer, n]."""
    for i in range(i1, i2, GROUP):
        multiply_transposed(left, u, rows, r, i, errors, layer, width, gradients, share, i - i1)


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
    else:
        for j in range(width):
            first[0, row, j] = gradients[share, g, j]


@inlined_kernel
def gradient_and_step(
    share, shares, dense, start, index, value, batches, iteration, order,
    sizes, widths, weights_at, transposed_at,
    weights, transposed, values, errors, gradients, lengths, samples, factors,
    rule, first, second, rate, a, b, decay,
):  # fmt: skip
    """Do all that an iteration does row by row of the weights, for one share of the rows."""
    is_list = index.size > 0
    if is_list:
        lists_by_entry(share, start, index, value, batches, iteration, lengths, samples, factors)
    decay_rate = weights.dtype.type(decay)
    for layer in range(sizes.size - 1):
        size = sizes[layer]
        width = widths[layer + 1]
        n_blocks = padded(size, ROW_BLOCK) // ROW_BLOCK
        # The bias is one more block, of the last share.
        for block in range(share, n_blocks + shares, shares):
            i1 = block * ROW_BLOCK
            i2 = min(i1 + ROW_BLOCK, size)
            if block >= n_blocks:
                if share < shares - 1:
                    continue
                i1 = size
                i2 = size + 1
            if layer > 0:
                dense_gradient(
                    share, i1, i2, values, layer, order, 0, errors, layer + 1, width, gradients
                )
            elif not is_list:
                dense_gradient(
                    share, i1, i2, dense, 0, batches, iteration, errors, 1, width, gradients
                )
            else:
                for i in range(i1, i2):
                    sum_listed(
                        0, lengths[share, i], samples, factors, i, errors, 1, width,
                        gradients, share, i - i1,
                    )  # fmt: skip
            for i in range(i1, i2):
                row = weights_at[layer] + i
                if decay != 0 and i < size:
                    for j in range(width):
                        gradients[share, i - i1, j] += decay_rate * weights[0, row, j]
                step_row(
                    rule, weights, row, width, gradients, share, i - i1, first, second, rate, a, b
                )
                if rule != GRADIENT_ONLY and layer > 0 and i < size:
                    for k in range(sizes[layer + 1]):
                        transposed[0, transposed_at[layer] + k, i] = weights[0, row, k]


@parallel_kernel
def iterate(
    dense, start, index, value, batches, order, labels, soft,
    sizes, widths, weights_at, transposed_at, activation, delta,
    weights, transposed, values, errors, scratch, sample_loss,
    gradients, lengths, samples, factors,
    rule, first, second, rates, a, b, decay, losses, done,
):  # fmt: skip
    """Run one training iteration for every row of ``batches``.

    Parameters
    ----------
    dense : ndarray, shape (1, N, D + 1) or (1, 0, 0)
        Samples with a 1 appended, unless lists are given.
    start, index, value : ndarray
        Samples as lists (see `group_nonzeros`), else empty.
    batches : ndarray of int64, shape (iterations, batch size)
        Which samples an iteration takes.
    order : ndarray of int64, shape (1, batch size)
        0, 1, 2, ..
    labels : ndarray of int64, shape (N,) or (0,)
    soft : ndarray, shape (N, C) or (0, C)
        The targets, in one of two forms.
    sizes, widths : ndarray of int64, shape (layers + 1,)
        Units and padded width of each layer, the input first.
    weights_at, transposed_at : ndarray of int64, shape (layers,)
        The first row of each layer's matrix in ``weights`` and ``transposed``.
    activation : int
        ``SIGMOID`` or ``RELU``, of the hidden layers.
    delta : float
        The loss is ``-sum(t * log(p + delta))``, averaged over the batch.
    weights, transposed : ndarray, shape (1, rows, widest)
        Parameters. In and out.
    values, errors : ndarray, shape (layers + 1, batch size, widest)
        Out: units' values (the last layer's logits) and error signals. Layer 0 is unused.
    scratch : ndarray, shape (1, batch size, widest)
    sample_loss : ndarray, shape (batch size,)
        Out: the loss of each sample of the last batch.
    gradients : ndarray, shape (shares, ROW_BLOCK, widest)
        Scratch of each share.
    lengths : ndarray of uint32, shape (shares, D + ROW_BLOCK)
        Scratch. A row a share: in one row for all, whose blocks are half a cache line, two threads
        took twice the time of one.
    samples, factors : ndarray, shape (D + 1, batch size), samples of uint32
        Scratch: the batch's lists by entry.
    rule : int
        A rule of `fastgrad.kernels.updates`, or ``GRADIENT_ONLY``.
    first, second : ndarray
        The rule's memory, laid out as ``weights``; rows of width 0 where there is none.
    rates : ndarray of float64, shape (iterations,)
        The learning rate of each iteration.
    a, b : float
        The rule's coefficients.
    decay : float
        Weight decay: adds ``decay / 2 * sum(W**2)`` to the loss, biases excepted.
    losses : ndarray of float64, shape (iterations,)
        Out: the loss of each batch before its step.
    done : ndarray of int64, shape (1,)
        In and out: is counted up after each iteration.
    """
    n_batch = batches.shape[1]
    shares = gradients.shape[0]
    for iteration in range(batches.shape[0]):
        # Four samples a task: `multiply` takes four together.
        for group in prange((n_batch + GROUP - 1) // GROUP):
            forward_group(
                group * GROUP, dense, start, index, value, batches, iteration, labels, soft,
                sizes, widths, weights_at, activation, delta, weights, values, errors, sample_loss,
            )  # fmt: skip
            back_group(
                group * GROUP, batches, iteration, labels, soft, sizes, widths, transposed_at,
                activation, delta, transposed, errors, scratch,
            )  # fmt: skip
        losses[iteration] = mean_loss(sample_loss, sizes, weights_at, weights, decay)
        for share in prange(shares):
            gradient_and_step(
                share, shares, dense, start, index, value, batches, iteration, order,
                sizes, widths, weights_at, transposed_at,
                weights, transposed, values, errors, gradients, lengths, samples, factors,
                rule, first, second, rates[iteration], a, b, decay,
            )  # fmt: skip
        done[0] += 1


@kernel
def mean_loss(sample_loss, sizes, weights_at, weights, decay):
    """Return the mean loss of a batch plus the penalty of weight decay, in double precision."""
    loss = 0.0
    for n in range(sample_loss.size):
        loss += sample_loss[n]
    loss /= sample_loss.size
    if decay != 0:
        squares = 0.0
        for layer in range(sizes.size - 1):
            for i in range(weights_at[layer], weights_at[layer] + sizes[layer]):
                for j in range(sizes[layer + 1]):
                    w = np.float64(weights[0, i, j])
                    squares += w * w
        loss += 0.5 * decay * squares
    return loss
