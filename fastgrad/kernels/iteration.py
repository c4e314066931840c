r"""Whole training iterations of a fully connected network, compiled.

An iteration is two tasks (`fastgrad.kernels.tasks`), so that no two threads write the same cell:

`rows`
    Over rows of weights: gradient and step for the last batch, and, for samples given as lists, the
    products of the same rows with the next batch. So a row of the first layer, which is nearly
    everything, stays in the cache of one core for the whole training.
`forward_and_back`
    Over samples: all the rest, from the sum of those products to the error signals.

`iterate` runs them in turn. A single call on a batch starts with `take_over` instead, and a forward
pass alone ends with `forward`. Nothing is allocated inside.

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

Samples come in one of two forms: as padded rows, or as lists of their non-zero entries, which on
MNIST saves four fifths of the work. A list has a part for each share: share s of all the work owns
the blocks s, s + shares, .. of ROW_BLOCK entries. Dealing blocks out in turn balances the shares on
images, whose border is empty.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastgrad.arrays import FloatArray, IntArray
from fastgrad.kernels.compile import inlined_kernel, kernel, task_kernel
from fastgrad.kernels.elementary import exp, relative_to
from fastgrad.kernels.tasks import run_shares
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

#: `rows` writes the gradient into ``result`` instead of taking a step.
GRADIENT_ONLY = -1

SIGMOID, RELU = 0, 1

#: Rows of weights that go to a thread as one block.
ROW_BLOCK = 8
#: Samples, and rows of a matrix, that dense products take together.
GROUP = 4
#: Bytes a row is padded to: one AVX-512 register.
REGISTER_BYTES = 64


class State(NamedTuple):
    """What the tasks of this file read and write.

    Parameters
    ----------
    sizes, widths : ndarray of int64, shape (layers + 1,)
        Units and padded width of each layer, the input first.
    weights_at, transposed_at : ndarray of int64, shape (layers,)
        The first row of each layer's matrix in ``weights`` and ``transposed``.
    activation : int
        ``SIGMOID`` or ``RELU``, of the hidden layers.
    delta : float
        The loss is ``-sum(t * log(p + delta))``, averaged over the batch.
    decay : float
        Weight decay: adds ``decay / 2 * sum(W**2)`` to the loss, biases excepted.
    weights, transposed : ndarray, shape (1, rows, widest)
        Parameters.
    x : ndarray, shape (N, D) or (0, 0)
        Samples to be listed.
    W1 : ndarray, shape (D, H) or (0, 0)
        Weights to be taken over.
    finite : ndarray of bool, shape (shares,)
        Whether those are.
    start, stop : ndarray of int64, shape (N, shares)
        Where the parts of each sample's list begin and end.
    position : ndarray of uint32, shape (1, M)
        Places in the sample; D stands for the constant 1, which belongs to the last share. M is
        0 for samples as rows. Unsigned, because Numba lets a signed index count from the end, at
        the cost of a comparison.
    value : ndarray, shape (1, M)
        What stands there.
    dense : ndarray, shape (1, N, D + 1 or more) or (1, 0, 0)
        Samples as rows, with a 1 appended.
    labels : ndarray of int64, shape (N,) or (0,)
    soft : ndarray, shape (N, C) or (0, C)
        The targets, in one of two forms, or none.
    batches : ndarray of int64, shape (iterations, batch size)
        Which samples an iteration takes.
    order : ndarray of int64, shape (1, batch size)
        0, 1, 2, ..
    now : ndarray of int64, shape (3,)
        Which batch `forward` takes; whether `rows` takes a step for the one before; and whether it
        multiplies with this one.
    partial : ndarray, shape (shares, batch size, widest)
        The first layer's inputs as each share's rows make them up.
    values, errors : ndarray, shape (layers + 1, batch size, widest)
        Units' values (the last layer's logits) and error signals. Layer 0 is unused.
    scratch : ndarray, shape (1, batch size, widest)
    sample_loss : ndarray, shape (batch size,)
    gradients : ndarray, shape (shares, ROW_BLOCK, widest)
    lengths : ndarray of uint32, shape (shares, D + ROW_BLOCK)
        A row a share: in one row for all, whose blocks are half a cache line, two threads took
        twice the time of one.
    list_samples, list_factors : ndarray, shape (D + 1, batch size), the first of uint32
        The batch's lists by entry.
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
    x: FloatArray
    W1: FloatArray
    finite: FloatArray
    start: IntArray
    stop: IntArray
    position: FloatArray
    value: FloatArray
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
    gradients: FloatArray
    lengths: IntArray
    list_samples: IntArray
    list_factors: FloatArray
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
def list_part(x, n, share, shares, place, position, value):
    """List a share's part of sample n from `place` on; return where it ends."""
    n_inputs = x.shape[1]
    for first in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
        if first + ROW_BLOCK <= n_inputs:  # half of the blocks of an image are empty
            total = x.dtype.type(0)
            for i in range(ROW_BLOCK):
                total += abs(x[n, first + i])
            if total == 0:  # which a NaN is not
                continue
        for i in range(first, min(first + ROW_BLOCK, n_inputs)):
            # Without a branch: a zero is overwritten by what comes next.
            position[0, place] = i
            value[0, place] = x[n, i]
            place += x[n, i] != 0
    if share == shares - 1:
        position[0, place] = n_inputs
        value[0, place] = 1
        place += 1
    return place


@task_kernel
def count_entries(share, s):
    """Count the entries of every sample's list, with the constant 1, into ``stop``."""
    shares = s.start.shape[1]
    n_samples = s.x.shape[0]
    for n in range(n_samples * share // shares, n_samples * (share + 1) // shares):
        count = 1
        for i in range(s.x.shape[1]):
            count += s.x[n, i] != 0
        s.stop[n, 0] = count


@task_kernel
def list_entries(share, s):
    """Make every sample's list, from where ``start`` says that its first part begins."""
    shares = s.start.shape[1]
    n_samples = s.x.shape[0]
    for n in range(n_samples * share // shares, n_samples * (share + 1) // shares):
        place = s.start[n, 0]
        for part in range(shares):
            s.start[n, part] = place
            place = list_part(s.x, n, part, shares, place, s.position, s.value)
            s.stop[n, part] = place


@task_kernel
def take_over(share, s):
    """Bring a share of the first layer into the padded form, and multiply a batch with it.

    The batch is all of ``x``. Its lists lie in pieces of equal length, one for each part of each
    sample, so that every share can write its own.
    """
    shares = s.partial.shape[0]
    n_inputs = s.sizes[0]
    zero = s.weights.dtype.type(0)
    if s.W1.shape[0] > 0:
        check = zero
        for block in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
            for i in range(block, min(block + ROW_BLOCK, n_inputs)):
                for j in range(s.W1.shape[1]):
                    w = s.W1[i, j]
                    s.weights[0, i, j] = w
                    check += w * zero  # NaN, once and for all, if a weight is not finite
        s.finite[share] = check == zero
    if s.position.size > 0:
        room = s.position.shape[1] // (s.x.shape[0] * shares)
        for n in range(s.x.shape[0]):
            begin = (n * shares + share) * room
            end = list_part(s.x, n, share, shares, begin, s.position, s.value)
            s.start[n, share] = begin
            s.stop[n, share] = end
            sum_listed(
                begin, end, s.position, s.value, 0, s.weights, 0, s.widths[1], s.partial, share, n
            )


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
def forward_group(s, n):
    """Run the forward pass and the loss for samples n .. n + 4 of the batch."""
    sizes, widths, weights, batches = s.sizes, s.widths, s.weights, s.batches
    partial, values, errors = s.partial, s.values, s.errors
    last = sizes.size - 1
    batch = s.now[0]
    n_batch = batches.shape[1]
    if s.position.size > 0:
        for q in range(n, n + GROUP):
            source = min(q, n_batch - 1)
            for j in range(widths[1]):
                values[1, q, j] = partial[0, source, j]
            for share in range(1, partial.shape[0]):
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
            if s.delta == 0:
                loss += t * relative_to(number(math.log(total)), values[last, q, k], largest)
            else:
                loss -= t * number(math.log(errors[last, q, k] + number(s.delta)))
        s.sample_loss[q] = loss


@inlined_kernel
def back_group(s, n):
    """Turn what `forward_group` left in ``errors`` into error signals, layer by layer."""
    widths, batches, errors, scratch = s.widths, s.batches, s.errors, s.scratch
    last = s.sizes.size - 1
    batch = s.now[0]
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
    shares = s.partial.shape[0]
    groups = (s.batches.shape[1] + GROUP - 1) // GROUP
    for group in range(groups * share // shares, groups * (share + 1) // shares):
        forward_group(s, group * GROUP)


@task_kernel
def forward_and_back(share, s):
    """Run forward and backward pass for a share of the batch's samples."""
    shares = s.partial.shape[0]
    groups = (s.batches.shape[1] + GROUP - 1) // GROUP
    for group in range(groups * share // shares, groups * (share + 1) // shares):
        forward_group(s, group * GROUP)
        back_group(s, group * GROUP)


@inlined_kernel
def lists_by_entry(s, share, batch):
    """Turn a share's part of a batch's lists by sample into lists by entry.

    One pass, with room for the whole batch in every list: counting first, to pack them, took half
    as long again.
    """
    shares = s.start.shape[1]
    n_inputs = s.sizes[0]
    for block in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
        for i in range(block, min(block + ROW_BLOCK, n_inputs)):
            s.lengths[share, i] = 0
    s.lengths[share, n_inputs] = 0
    for n in range(s.batches.shape[1]):
        row = s.batches[batch, n]
        for e in range(s.start[row, share], s.stop[row, share]):
            i = s.position[0, e]
            place = s.lengths[share, i]
            s.lengths[share, i] = place + 1
            s.list_samples[i, place] = n
            s.list_factors[i, place] = s.value[0, e]


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


@task_kernel
def rows(share, s):
    """Do all that an iteration does row by row of the weights, for one share of the rows."""
    shares = s.partial.shape[0]
    if s.now[1]:
        batch = s.now[0] - 1
        is_list = s.position.size > 0
        if is_list:
            lists_by_entry(s, share, batch)
        decay_rate = s.weights.dtype.type(s.decay)
        result_at = 0
        for layer in range(s.sizes.size - 1):
            size = s.sizes[layer]
            width = s.widths[layer + 1]
            n_blocks = (size + ROW_BLOCK - 1) // ROW_BLOCK
            # The bias is one more block, of the last share.
            for block in range(share, n_blocks + shares, shares):
                i1 = block * ROW_BLOCK
                i2 = min(i1 + ROW_BLOCK, size)
                if block >= n_blocks:
                    if share < shares - 1:
                        continue
                    i1 = size
                    i2 = size + 1
                if layer == 0 and is_list:
                    for i in range(i1, i2):
                        sum_listed(
                            0, s.lengths[share, i], s.list_samples, s.list_factors, i,
                            s.errors, 1, width, s.gradients, share, i - i1,
                        )  # fmt: skip
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
                        at = result_at + i * s.sizes[layer + 1]
                        for j in range(s.sizes[layer + 1]):
                            s.result[at + j] = s.gradients[share, i - i1, j]
                        continue
                    step_row(
                        s.rule, s.weights, row, width, s.gradients, share, i - i1,
                        s.first, s.second, s.rates[batch], s.a, s.b,
                    )  # fmt: skip
                    if layer > 0 and i < size:
                        for k in range(s.sizes[layer + 1]):
                            s.transposed[0, s.transposed_at[layer] + k, i] = s.weights[0, row, k]
            result_at += (size + 1) * s.sizes[layer + 1]
    if s.now[2] and s.position.size > 0:
        for n in range(s.batches.shape[1]):
            sample = s.batches[s.now[0], n]
            sum_listed(
                s.start[sample, share], s.stop[sample, share], s.position, s.value, 0,
                s.weights, 0, s.widths[1], s.partial, share, n,
            )  # fmt: skip


@kernel
def iterate(
    rows_body, samples_body, state, shares, now,
    sample_loss, sizes, weights_at, weights, decay, losses, done,
):  # fmt: skip
    """Run one training iteration for every batch of a state.

    Parameters
    ----------
    rows_body, samples_body, state : int
        Addresses of the tasks `rows` and `forward_and_back` and of their state, see
        `fastgrad.kernels.tasks`.
    shares : int
    now, sample_loss, sizes, weights_at, weights, decay
        Of the state.
    losses : ndarray of float64, shape (iterations,)
        Out: the loss of each batch before its step.
    done : ndarray of int64, shape (1,)
        In and out: is counted up after each iteration.
    """
    now[0] = 0
    now[1] = 0
    now[2] = 1
    run_shares(rows_body, state, shares)
    for iteration in range(losses.size):
        run_shares(samples_body, state, shares)
        loss = 0.0
        for n in range(sample_loss.size):
            loss += sample_loss[n]
        losses[iteration] = loss / sample_loss.size + penalty(sizes, weights_at, weights, decay)
        now[0] = iteration + 1
        now[1] = 1
        now[2] = iteration + 1 < losses.size
        run_shares(rows_body, state, shares)
        done[0] += 1


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
