r"""The central difference of a two-layer network's loss over all its parameters.

A textbook loop evaluates the whole network twice for each parameter and subtracts two nearly equal
losses. These kernels evaluate, at the same two nudged points, the *change* of the loss, every step
of it as a small quantity with full relative precision. For one sample with hidden values
:math:`z = \varphi(a)`, probabilities :math:`p` and target class :math:`k`:

- a nudge of W1[i, j] moves the input of unit j by :math:`\varepsilon = \pm h x_i` and its value by
  :math:`\Delta z = z (1 - z) E / (1 + z E)` with :math:`E = \mathrm{e}^\varepsilon - 1` (sigmoid),
  or by :math:`\max(\varepsilon + \min(a, 0), -\max(a, 0))` (ReLU);
- the logits move by :math:`d_m = \Delta z\, W2_{jm}`; with :math:`S = \sum_m p_m (\mathrm{e}^{d_m
  - d_k} - 1)`, where the term of k itself is 0, the probability of the target becomes
  :math:`p_k / (1 + S)`;
- the loss changes by :math:`-\log\frac{p_k / (1 + S) + \delta}{p_k + \delta}`, which is, with
  :math:`q = p_k / (p_k + \delta)`, computed as :math:`2\,\mathrm{artanh}\frac{q S}{2 + (2 - q) S}`.

Nothing here is a derivative: both nudged losses are evaluated, the one at +h and the one at -h.

A soft target is a sum of hard ones: each pair of a sample and a class with a non-zero target is an
*item* with that target as its weight.

Two variants, both of them tasks (`fastgrad.kernels.tasks`) that list the non-zero entries of each
sample, for what is computed of an entry needs a place:

- `prepare`, `accumulate` and `collect` serve two-layer networks and nudges that move every logit by
  little: there S is a short polynomial in :math:`\Delta z` whose coefficients are the same for all
  pixels, so the inner loop depends neither on the number of classes nor on a library function. They
  run the forward pass themselves, sample by sample: what one thread has written another would have
  to fetch.
- `general` calls the library functions and holds for every h and any number of layers. It starts
  from what `forward` of `fastgrad.kernels.iteration` leaves: units' values, slopes (or inputs, for
  ReLU) and probabilities, padded as there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgrad.arrays import BitArray, FloatArray, IntArray
from fastgrad.kernels.activations import SIGMOID
from fastgrad.kernels.compile import inlined_kernel, kernel, task_kernel
from fastgrad.kernels.elementary import exp, expm1, like, relative_to
from fastgrad.kernels.iteration import (
    GROUP,
    NO_BITS,
    ONE_BIT,
    WORD,
    activate,
    bits_of,
    cross_entropy,
    softmax,
)
from fastgrad.kernels.tasks import (
    CLAIMED,
    FINISHED,
    claim,
    finish,
    is_finished,
    pause,
    put_array,
    run_steps,
)
from fastgrad.kernels.vectors import lowest_bit, multiply_transposed_marked

#: Rows of coefficients an item has: two of the activation, five of S.
COEFFICIENTS = 7
#: `accumulate` needs all moves of logits below this: there S and artanh to the fifth power are
#: exact to rounding in float64 (relative 1e-16).
LOGIT_MOVE_LIMIT = 1.5e-3
#: ... and the moves by the second layer's own nudges, h * z, below this (five terms of artanh).
VALUE_MOVE_LIMIT = 0.05

#: Where a row of ``found`` says whether parameters are finite, and whether moves are little.
FINITE, LITTLE = 0, 1

#: A row of ``jobs`` is what `tasks.claim` and `tasks.finish` take for the progress of a share; its
#: only step is this. Besides it says who has computed a sample's changes, and where, of what is
#: theirs, ``changes`` and ``which`` begin.
ONLY = 0
BY, AT, LISTED = 1, 2, 3
#: Looks at a job of another thread after which one does it oneself, 20 microseconds or so.
PATIENCE = 1000
#: How many lists of a sample ``which`` has room for.
LISTS = 4

#: Slots of the table in `distinct_entries`, and how a value finds its slot (Fibonacci hashing:
#: D. E. Knuth, *The Art of Computer Programming* 3, section 6.4).
HASH_SLOTS = 1024
HASH_FACTOR, HASH_SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(54)


class Nudges(NamedTuple):
    """What the tasks of this file read and write.

    Parameters
    ----------
    sizes, widths, weights_at, activation, delta, weights, values, errors
        Layout, parameters and state of a forward pass, see `fastgrad.kernels.iteration.State`.
    x : ndarray, shape (N, D)
        The samples.
    W1 : ndarray, shape (D H,)
        The first layer's weights as the user has them, row by row.
    others : ndarray, shape (H + H C + C,)
        The other parameters of a two-layer network, row by row.
    second : ndarray, shape (shares, C, P)
        The second layer's weights and biases, transposed, for each share to read.
    start, stop : ndarray of int64, shape (N,)
        Where each sample's list begins and ends.
    position : ndarray of uint32, shape (1, N (D + 1))
        Places in the sample; D stands for the constant 1, which comes last.
        Unsigned, because Numba lets a signed index count from the end, at the cost of a comparison.
    value : ndarray, shape (1, N (D + 1))
        What stands there.
    labels : ndarray of int64, shape (N,) or (0,)
        The class of each sample, which is then the only item of its number.
    item_start : ndarray of int64, shape (N + 1,)
        The items of sample n are item_start[n] .. item_start[n + 1] - 1.
    item_class : ndarray of int64, shape (M,) or (0,)
        Its class, if there are no labels.
    item_weight : ndarray, shape (M,)
        Its target divided by N.
    h : float
    logit_limit : float
        How far a logit may move: `LOGIT_MOVE_LIMIT`.
    sample_loss : ndarray, shape (N,)
        Out: what each sample adds to the loss.
    found : ndarray of int64, shape (shares, tasks.ROW)
        Out: whether a share has met finite parameters, and small moves, only.
    bits : ndarray of unsigned integers, as ``value``
        The same memory.
    which : ndarray of uint64, shape (shares, LISTS (D + 1))
        For entries of a sample, the number of its value among the distinct ones.
    table : ndarray of uint64, shape (shares, HASH_SLOTS + 1, 2)
    distinct, up, down : ndarray, shape (shares, D + 1)
        Scratch: a sample's distinct values x; exp(+-h x) - 1 (sigmoid) or +-h x (ReLU).
    coefficients : ndarray, shape (shares, COEFFICIENTS, P)
        Scratch: of an item.
    marks : ndarray of uint64, shape (N, D / 64 or more)
        Which entries of a sample are not zero.
    touched : ndarray of uint64, shape (shares, D / 64 or more)
        Which entries are not zero in some of a share's own samples: the rows of its sums.
    jobs : ndarray of int64, shape (N, tasks.ROW)
        What threads take from each other: samples.
    unit_moves : ndarray, shape (shares, 2, P)
        Scratch: the moves of the hidden units' values; exp(+-h z) - 1 for the values z.
    changes, sums : ndarray, shape (shares, D + 1, P)
        Changes of the loss, by distinct value and by entry.
    columns : ndarray, shape (shares, C, P)
        The same for a share's own samples, by class and unit.
    moves : ndarray, shape (shares, layers + 1, widest)
    gradient : ndarray, laid out as ``weights``
        Running sums of `general`, zero at first.
    result : ndarray, shape (parameters,)
        The gradient: W1, b1, W2, b2, .., each row by row.
    """

    sizes: IntArray
    widths: IntArray
    weights_at: IntArray
    activation: int
    delta: float
    weights: FloatArray
    values: FloatArray
    errors: FloatArray
    x: FloatArray
    W1: FloatArray
    others: FloatArray
    second: FloatArray
    start: IntArray
    stop: IntArray
    position: NDArray[Any]
    value: FloatArray
    labels: IntArray
    item_start: IntArray
    item_class: IntArray
    item_weight: FloatArray
    h: float
    logit_limit: float
    sample_loss: FloatArray
    found: IntArray
    bits: NDArray[Any]
    which: BitArray
    table: BitArray
    distinct: FloatArray
    up: FloatArray
    down: FloatArray
    coefficients: FloatArray
    marks: BitArray
    touched: BitArray
    jobs: IntArray
    unit_moves: FloatArray
    changes: FloatArray
    sums: FloatArray
    columns: FloatArray
    moves: FloatArray
    gradient: FloatArray
    result: FloatArray


@inlined_kernel
def class_of(s, item):
    """Return the class of an item."""
    return s.labels[item] if s.labels.size > 0 else s.item_class[item]


@inlined_kernel
def list_sample(s, share, n):
    """List and mark the non-zero entries of a sample; the constant 1 comes after them."""
    n_inputs = s.x.shape[1]
    place = n * (n_inputs + 1)
    s.start[n] = place
    for word in range((n_inputs + WORD - 1) // WORD):
        bits = bits_of(s.x, n, word)
        s.marks[n, word] = bits
        s.touched[share, word] |= bits
        while bits != NO_BITS:
            i = word * WORD + lowest_bit(bits)
            s.position[0, place] = i
            s.value[0, place] = s.x[n, i]
            place += 1
            bits &= bits - ONE_BIT
    s.position[0, place] = n_inputs
    s.value[0, place] = 1
    s.stop[n] = place + 1


@task_kernel
def list_entries(share, s):
    """List the non-zero entries of a share of the samples, for `general`."""
    shares = s.found.shape[0]
    n_samples = s.x.shape[0]
    for n in range(n_samples * share // shares, n_samples * (share + 1) // shares):
        list_sample(s, share, n)


@inlined_kernel
def take_second_layer(s, share):
    """Bring the second layer into the form that a share reads."""
    n_hidden, n_classes = s.sizes[1], s.sizes[2]
    for j in range(n_hidden + 1):
        at = n_hidden + j * n_classes
        for k in range(n_classes):
            s.second[share, k, j] = s.others[at + k]


@inlined_kernel
def is_finite(s, share):
    """Return whether all parameters are finite that a share looks at."""
    shares = s.found.shape[0]
    zero = s.values.dtype.type(0)
    size = s.W1.size
    check = zero  # becomes NaN, once and for all, by what is not finite
    for k in range(np.uint64(size * share // shares), np.uint64(size * (share + 1) // shares)):
        check += s.W1[k] * zero
    for k in range(np.uint64(s.others.size)):
        check += s.others[k] * zero
    return check == zero


@inlined_kernel
def first_layer(s, begin, end):
    """Compute the hidden units' inputs for samples begin .. end - 1, which are marked."""
    values = s.values
    n_hidden, width = s.sizes[1], s.widths[1]
    zero = values.dtype.type(0)
    W1 = s.W1.reshape((1, s.sizes[0], n_hidden))
    for n in range(begin, end):
        for j in range(width):
            values[1, n, j] = s.others[j] if j < n_hidden else zero
    # Rows are read in whole registers: a little of the next ones, too, which `activate` overwrites.
    # The last rows have too little behind them.
    n_whole = (W1.size - width) // n_hidden + 1
    # 64 rows at a time, which the first cache holds.
    for word in range((s.x.shape[1] + WORD - 1) // WORD):
        at = word * WORD
        for n in range(begin, end):
            bits = s.marks[n, word]
            if at + WORD <= n_whole:
                multiply_transposed_marked(bits, at, s.x.T, n, W1, 0, width, values, 1, n)
                continue
            while bits != NO_BITS:
                i = at + lowest_bit(bits)
                for j in range(n_hidden):
                    values[1, n, j] += s.x[n, i] * W1[0, i, j]
                bits &= bits - ONE_BIT


@inlined_kernel
def upper_layers(s, share, n):
    """Run the rest of the forward pass for a sample, and compute its loss."""
    values, errors, second = s.values, s.errors, s.second
    n_classes = s.sizes[2]
    width = needed_columns(s)
    activate(s.activation, s.sizes[1], width, values, errors, 1, n)
    number = values.dtype.type
    for k in range(n_classes):
        logit = number(0)
        for j in range(width):
            logit += values[1, n, j] * second[share, k, j]
        values[2, n, k] = logit
    largest, total = softmax(n_classes, s.widths[2], values, errors, 2, n)
    loss = number(0)
    for item in range(s.item_start[n], s.item_start[n + 1]):
        k = class_of(s, item)
        loss += s.item_weight[item] * cross_entropy(
            values[2, n, k], errors[2, n, k], largest, total, s.delta
        )
    s.sample_loss[n] = loss


@task_kernel
def prepare(share, s):
    """List the entries of a share of the samples, and run the forward pass for them."""
    shares = s.found.shape[0]
    n_samples = s.x.shape[0]
    begin, end = n_samples * share // shares, n_samples * (share + 1) // shares
    take_second_layer(s, share)
    s.found[share, FINITE] = is_finite(s, share)
    for word in range(s.touched.shape[1]):
        s.touched[share, word] = NO_BITS
    s.touched[share, s.sizes[0] // WORD] = ONE_BIT << np.uint64(s.sizes[0] % WORD)
    for n in range(begin, end):
        list_sample(s, share, n)
    first_layer(s, begin, end)
    for n in range(begin, end):
        upper_layers(s, share, n)
        s.jobs[n, CLAIMED] = 0
        s.jobs[n, FINISHED] = 0


@inlined_kernel
def needed_columns(s):
    """Return how many columns units and the constant 1 take, in whole registers of 32 bytes."""
    lanes = 32 // s.values.itemsize
    return (s.sizes[1] + lanes) // lanes * lanes


@inlined_kernel
def input_move_limit(s, share):
    """Return how far a unit's input may move so that no logit moves beyond its limit."""
    weight = s.second.dtype.type(0)
    for k in range(s.sizes[2]):
        for j in range(s.sizes[1]):
            weight = max(weight, abs(s.second[share, k, j]))
    reach = (0.25 if s.activation == SIGMOID else 1.0) * weight
    limit = s.logit_limit
    if reach > 0 and reach > limit:
        limit /= reach
    return s.second.dtype.type(min(1.0, limit))


@inlined_kernel
def distinct_entries(s, share, n, listed):
    """Give the distinct values among a sample's entries numbers; return how many there are.

    The sample's entries have the numbers ``which[share, listed]`` and after, in their order, and
    ``distinct[share, number]`` is the value. A table finds the number of a value that was met
    before. It needs no clearing: what it holds is counted on from sample to sample.
    Where two values share a slot, the later one gets a number again: a detour, not an error.
    """
    one = np.uint64(1)
    first = s.table[share, HASH_SLOTS, 0]
    next_one = first
    begin = np.uint64(s.start[n])
    end = np.uint64(s.stop[n])
    place = np.uint64(listed)
    for e in range(begin, end):
        bits = np.uint64(s.bits[0, e])
        slot = (bits * HASH_FACTOR) >> HASH_SHIFT
        label = s.table[share, slot, 1]
        # Without a branch: nobody could foretell it, and every wrong guess costs 20 cycles.
        is_known = (s.table[share, slot, 0] == bits) & (first <= label)
        label = label if is_known else next_one
        next_one = next_one if is_known else next_one + one
        s.table[share, slot, 0] = bits
        s.table[share, slot, 1] = label
        s.which[share, place] = label - first
        place += one
    # Not above, where the table would have to wait for it: 1.04 times the speed.
    place = np.uint64(listed)
    for e in range(begin, end):
        s.distinct[share, s.which[share, place]] = s.value[0, e]
        place += one
    s.table[share, HASH_SLOTS, 0] = next_one
    return next_one - first


@inlined_kernel
def target_share(s, n, target):
    """Return q: which part of p + delta, for the target of an item, is the probability p."""
    p = s.errors[2, n, target]
    delta = like(s.delta, p)
    return p / (p + delta) if delta > 0 else like(1, p)


@inlined_kernel
def move_inputs(s, share, count, limit):
    """Move a unit's input for each of a sample's distinct values; return whether one is too far."""
    number = s.values.dtype.type
    h = number(s.h)
    one = number(1)
    too_far = 0
    if s.activation == SIGMOID:
        for value in range(count):
            move = h * s.distinct[share, value]
            too_far |= abs(move) > limit
            E = expm1(move)
            s.up[share, value] = E
            s.down[share, value] = -E / (one + E)
    else:
        for value in range(count):
            move = h * s.distinct[share, value]
            too_far |= abs(move) > limit
            s.up[share, value] = move
            s.down[share, value] = -move
    return too_far != 0


@inlined_kernel
def find_coefficients(s, share, n, target):
    """Compute the coefficients of a sample's item, for every hidden unit."""
    coefficients, second, values, errors = s.coefficients, s.second, s.values, s.errors
    width = needed_columns(s)
    number = values.dtype.type
    zero = number(0)
    for j in range(width):
        z = values[1, n, j]
        kept = errors[1, n, j]  # the slope, or the input for ReLU
        coefficients[share, 0, j] = z if s.activation == SIGMOID else kept - z
        coefficients[share, 1, j] = max(kept, zero) if s.activation == SIGMOID else -z
    for r in range(2, COEFFICIENTS):
        for j in range(width):
            coefficients[share, r, j] = zero
    for m in range(s.sizes[2]):
        p = errors[2, n, m]
        for j in range(width):
            # How far a logit moves, relative to the target's, for a move of 1.
            e = second[share, m, j] - second[share, target, j]
            e1 = p * e
            e2 = e1 * e
            e3 = e2 * e
            e4 = e3 * e
            e5 = e4 * e
            coefficients[share, 2, j] += e1
            coefficients[share, 3, j] += e2
            coefficients[share, 4, j] += e3
            coefficients[share, 5, j] += e4
            coefficients[share, 6, j] += e5
    for j in range(width):
        coefficients[share, 3, j] *= number(1 / 2)
        coefficients[share, 4, j] *= number(1 / 6)
        coefficients[share, 5, j] *= number(1 / 24)
        coefficients[share, 6, j] *= number(1 / 120)


@inlined_kernel
def changes_of_sample(s, share, n, at, listed, limit):
    """Compute the changes of the loss at +h and -h for each of a sample's distinct values.

    They are written to the rows of ``changes`` from ``at`` on, and the entries' numbers to
    ``which`` from ``listed`` on. Return how many there are: none if one moves by too much.
    """
    count = distinct_entries(s, share, n, listed)
    if move_inputs(s, share, count, limit):
        return np.uint64(0)
    at = np.uint64(at)
    coefficients, changes, moves = s.coefficients, s.changes, s.unit_moves
    width = needed_columns(s)
    is_double = changes.itemsize == 8
    number = changes.dtype.type
    zero = number(0)
    one = number(1)
    two = number(2)
    third = number(1 / 3)
    fifth = number(1 / 5)
    first_item, end = s.item_start[n], s.item_start[n + 1]
    if first_item == end:
        changes[share, at : at + count] = zero
    for item in range(first_item, end):
        is_further = item > first_item
        weight = s.item_weight[item]
        target = class_of(s, item)
        find_coefficients(s, share, n, target)
        q = target_share(s, n, target)
        rest = two - q
        for value in range(count):
            E1 = s.up[share, value]
            E2 = s.down[share, value]
            if s.activation == SIGMOID:
                for j in range(width):
                    z = coefficients[share, 0, j]
                    a1 = one + z * E1
                    a2 = one + z * E2
                    r = coefficients[share, 1, j] / (a1 * a2)
                    moves[share, 0, j] = E1 * a2 * r
                    moves[share, 1, j] = E2 * a1 * r
            else:
                for j in range(width):
                    low = coefficients[share, 1, j]
                    moves[share, 0, j] = max(coefficients[share, 0, j] + E1, low)
                    moves[share, 1, j] = max(coefficients[share, 0, j] + E2, low)
            # Over hidden units, contiguous, without a branch or a call: 34 multiplications and
            # additions and two divisions for the two losses of one value and unit. In float32
            # the highest terms would be lost in rounding, and 28 do.
            for j in range(width):
                d1 = moves[share, 0, j]
                d2 = moves[share, 1, j]
                c1 = coefficients[share, 2, j]
                c2 = coefficients[share, 3, j]
                c3 = coefficients[share, 4, j]
                c4 = coefficients[share, 5, j]
                c5 = coefficients[share, 6, j]
                top1 = c3 + d1 * (c4 + d1 * c5) if is_double else c3
                top2 = c3 + d2 * (c4 + d2 * c5) if is_double else c3
                S1 = d1 * (c1 + d1 * (c2 + d1 * top1))
                S2 = d2 * (c1 + d2 * (c2 + d2 * top2))
                m1 = two + rest * S1
                m2 = two + rest * S2
                # One division for both.
                r = q / (m1 * m2)
                s1 = S1 * m2 * r
                s2 = S2 * m1 * r
                q1 = s1 * s1
                q2 = s2 * s2
                top1 = third + q1 * fifth if is_double else third
                top2 = third + q2 * fifth if is_double else third
                change = weight * (s1 * (one + q1 * top1) - s2 * (one + q2 * top2))
                changes[share, at + value, j] = (
                    change + changes[share, at + value, j] if is_further else change
                )
    return count


@inlined_kernel
def is_touched(s, share, i):
    """Return whether entry i is not zero in some of a share's own samples, or is the constant."""
    return (s.touched[share, i // WORD] >> np.uint64(i % WORD)) & ONE_BIT != NO_BITS


@inlined_kernel
def has_room(s, n, free, listed):
    """Return whether a sample of another share surely fits behind what is there."""
    n_entries = s.stop[n] - s.start[n]
    return free + n_entries <= s.changes.shape[1] and listed + n_entries <= s.which.shape[1]


@inlined_kernel
def arrives(s, job):
    """Wait a while for a job that another thread has begun; return whether it gets finished."""
    for _ in range(PATIENCE):
        if is_finished(s.jobs, job, ONLY):
            return True
        pause()
    return False


@task_kernel
def accumulate(share, s):
    """Add up the changes of the loss at +h and -h of a share of the samples, for all parameters.

    Pixels have few distinct values, a gray image some seventy among 150, and entries of one sample
    with the same value move a unit's input, and so the loss, by the same amount: that is computed
    once and added to all their rows.

    Threads are seldom equally fast: cores differ, or have other work. So a thread that is done with
    its own samples computes the changes of others' from the last one back, and leaves it to their
    owner to add them: the order of additions, and every bit, is the same whoever was fast. An owner
    who would have to wait long for such a sample computes it once more.

    Where a nudge moves a logit by more than a little, that ends, and ``found`` says so.
    """
    changes, sums, jobs = s.changes, s.sums, s.jobs
    width = needed_columns(s)
    shares = s.found.shape[0]
    n_samples = s.x.shape[0]
    first = n_samples * share // shares
    n_own = n_samples * (share + 1) // shares - first
    zero = sums.dtype.type(0)
    limit = input_move_limit(s, share)
    # First, because nobody else can do that: at the end all have something to take from each other.
    s.found[share, LITTLE] = not second_layer(s, share, first, first + n_own)
    for i in range(s.sizes[0] + 1):
        if is_touched(s, share, i):
            for j in range(width):
                sums[share, i, j] = zero
    # Where, of what is this share's own, begins what nobody else is going to read.
    free, listed = np.int64(0), np.int64(0)
    for turn in range(n_samples):
        is_own = turn < n_own
        n = first + turn if is_own else (first + n_own - 1 - turn) % n_samples
        if not is_own and not has_room(s, n, free, listed):
            break
        by = share
        compute = claim(jobs, n, ONLY)
        if is_own and not compute:
            compute = not arrives(s, n)
            by = share if compute else jobs[n, BY]
        if compute:
            count = changes_of_sample(s, share, n, free, listed, limit)
            if count == 0:
                s.found[share, LITTLE] = 0
        if is_own:
            if s.found[by, LITTLE] == 0:
                s.found[share, LITTLE] = 0
                break
            at = np.uint64(0 if compute else jobs[n, AT])
            place = np.uint64(0 if compute else jobs[n, LISTED])
            for e in range(np.uint64(s.start[n]), np.uint64(s.stop[n])):
                i = s.position[0, e]
                value = at + s.which[by, place]
                place += np.uint64(1)
                for j in range(width):
                    sums[share, i, j] += changes[by, value, j]
        elif compute:
            jobs[n, BY] = share
            jobs[n, AT] = free
            jobs[n, LISTED] = listed
            free += np.int64(count)
            listed += s.stop[n] - s.start[n]
            finish(jobs, n, ONLY)
            if count == 0:
                break


@inlined_kernel
def second_layer(s, share, first, last):
    """Add up the changes of the loss of samples first .. last - 1, for W2 and b2.

    A nudge of W2[j, k] moves one logit, by +-h z[j]. Return whether one goes too far.
    """
    columns, moves, errors = s.columns, s.unit_moves, s.errors
    n_classes = s.sizes[2]
    width = needed_columns(s)
    number = columns.dtype.type
    h = number(s.h)
    zero = number(0)
    one = number(1)
    two = number(2)
    third = number(1 / 3)
    fifth = number(1 / 5)
    seventh = number(1 / 7)
    ninth = number(1 / 9)
    too_far = 0
    for k in range(n_classes):
        for j in range(width):
            columns[share, k, j] = zero
    for n in range(first, last):
        for j in range(width):
            move = h * s.values[1, n, j]
            too_far |= move > VALUE_MOVE_LIMIT  # values are not negative
            E = expm1(move)
            moves[share, 0, j] = E
            moves[share, 1, j] = -E / (one + E)
        for item in range(s.item_start[n], s.item_start[n + 1]):
            target = class_of(s, item)
            weight = s.item_weight[item]
            part = target_share(s, n, target)
            for k in range(n_classes):
                p = errors[2, n, k]
                q = part
                if k == target:
                    others = zero
                    for m in range(n_classes):
                        if m != k:
                            others += errors[2, n, m]
                    q *= others
                else:
                    q *= -p
                p += p + q
                for j in range(width):
                    m1 = two + p * moves[share, 0, j]
                    m2 = two + p * moves[share, 1, j]
                    r = q / (m1 * m2)
                    s1 = moves[share, 0, j] * m2 * r
                    s2 = moves[share, 1, j] * m1 * r
                    q1 = s1 * s1
                    q2 = s2 * s2
                    c1 = one + q1 * (third + q1 * (fifth + q1 * (seventh + q1 * ninth)))
                    c2 = one + q2 * (third + q2 * (fifth + q2 * (seventh + q2 * ninth)))
                    columns[share, k, j] += weight * (s2 * c2 - s1 * c1)
    return too_far != 0


@task_kernel
def collect(share, s):
    """Add up what `accumulate` left, for a share of the rows of both layers."""
    shares = s.found.shape[0]
    for other in range(shares):
        if s.found[other, LITTLE] == 0:
            return
    n_rows = s.sizes[0] + 1
    n_hidden = s.sizes[1]
    # log(1 + u) is 2 artanh(..): the 2 cancels the one of 1 / 2h. The number of samples is in the
    # weights of the items.
    number = s.values.dtype.type
    scale = number(1) / number(s.h)
    # Nothing is written to the sums: lines that another thread then had to fetch back. Nor are rows
    # read that are zero: two fifths of them with 50 images a share, and more with fewer.
    for i in range(n_rows * share // shares, n_rows * (share + 1) // shares):
        at = np.uint64(i * n_hidden)  # vectorised only if Numba need not think of negative indices
        for j in range(np.uint64(n_hidden)):
            s.result[at + j] = 0
        for other in range(shares):
            if is_touched(s, other, i):
                for j in range(np.uint64(n_hidden)):
                    s.result[at + j] += s.sums[other, i, j] * scale
    n_classes = s.sizes[2]
    for j in range((n_hidden + 1) * share // shares, (n_hidden + 1) * (share + 1) // shares):
        for k in range(n_classes):
            total = number(0)
            for other in range(shares):
                total += s.columns[other, k, j]
            s.result[n_rows * n_hidden + j * n_classes + k] = total * scale


@inlined_kernel
def unit_change(activation, z, kept, move):
    """Return the change of one unit's value when its input moves, for moves of any size.

    ``kept`` is what the forward pass left: the slope z (1 - z), or the input for ReLU. For the
    sigmoid z (1 - z) (e**m - 1) / ((1 - z) + z e**m), with every term a sum of positive ones.
    """
    one = like(1, z)
    zero = like(0, z)
    if activation == SIGMOID:
        if kept <= zero:
            # So far out that the slope underflows: minus the size of the input is what was kept.
            inner = (kept if z < like(0.5, z) else -kept) + move
            power = exp(-abs(inner))
            return (power if inner < zero else one) / (one + power) - z
        rest = one - z if z < like(0.5, z) else kept / z
        shrink = exp(-abs(move))
        change = -kept * expm1(-abs(move))
        return change / (z + rest * shrink) if move > zero else -change / (rest + z * shrink)
    change = move + (kept - z)
    return -z if change < -z else change


@inlined_kernel
def loss_change(moves, share, logits, probabilities, last, n, n_classes, label, delta):
    """Return the change of one sample's loss for a label when the logits move, by any amount.

    With moves d relative to the label's own, S = sum_m p_m (e**d_m - 1): the label's probability
    becomes p / (1 + S).
    """
    one = like(1, delta)
    zero = like(0, delta)
    own = moves[share, last, label]
    S = zero
    for m in range(n_classes):
        S += probabilities[last, n, m] * expm1(moves[share, last, m] - own)
    # 1 + S holds all its digits, and nothing has overflowed.
    if like(-0.5, delta) < S and like(1e30, delta) > S:
        if delta == zero:
            return one * math.log1p(S)
        p = probabilities[last, n, label]
        part = p / (p + delta) * (S / (one + S))
        if part < like(0.5, delta):
            return -one * math.log1p(-part)
        return -one * math.log((p / (one + S) + delta) / (p + delta))
    # Far moves: the change is not small, so both losses may be computed and subtracted; relative to
    # the largest logit, because huge logits have no digits left for the moves.
    top = 0
    for m in range(1, n_classes):
        if logits[last, n, m] > logits[last, n, top]:
            top = m
    lead = moves[share, last, top]
    highest = logits[last, n, top]
    peak = zero
    for m in range(n_classes):
        d = relative_to(moves[share, last, m] - lead, highest, logits[last, n, m])
        peak = max(peak, d)
    before = zero
    after = zero
    for m in range(n_classes):
        d = relative_to(moves[share, last, m] - lead, highest, logits[last, n, m])
        before += exp(logits[last, n, m] - highest)
        after += exp(d - peak)
    if delta == zero:
        return (lead - own + peak) + one * math.log(after / before)
    p = exp(logits[last, n, label] - highest) / before
    moved = exp(relative_to(own - lead, highest, logits[last, n, label]) - peak) / after
    part = (moved - p) / (p + delta)
    if part > like(-0.5, delta):
        return -one * math.log1p(part)
    return -one * math.log((moved + delta) / (p + delta))


@task_kernel
def general(share, s):
    """Compute the central difference for a network of any depth and steps of any size.

    The shares own the rows of every layer in turn.
    """
    shares = s.found.shape[0]
    last = s.sizes.size - 1
    number = s.values.dtype.type
    h = number(s.h)
    delta = number(s.delta)
    zero = number(0)
    scale = number(0.5) / h
    for n in range(s.item_start.size - 1):
        for layer in range(last):
            begin = s.start[n] if layer == 0 else 0
            end = s.stop[n] if layer == 0 else s.sizes[layer] + 1
            for e in range(begin, end):
                i = int(s.position[0, e]) if layer == 0 else e
                x = s.value[0, e] if layer == 0 else s.values[layer, n, e]
                if i % shares != share or x == zero:  # not its own, or changes nothing
                    continue
                row = s.weights_at[layer] + i
                for j in range(s.sizes[layer + 1]):
                    difference = zero
                    for side in range(2):
                        move = h * x if side == 0 else -h * x
                        after = layer + 1
                        if after == last:
                            for k in range(s.widths[last]):
                                s.moves[share, last, k] = zero
                            s.moves[share, last, j] = move
                        else:
                            change = unit_change(
                                s.activation, s.values[after, n, j], s.errors[after, n, j], move
                            )
                            r = s.weights_at[after] + j
                            for k in range(s.widths[after + 1]):
                                s.moves[share, after + 1, k] = change * s.weights[0, r, k]
                            for q in range(after + 1, last):
                                for k in range(s.sizes[q]):
                                    s.moves[share, q, k] = unit_change(
                                        s.activation, s.values[q, n, k], s.errors[q, n, k],
                                        s.moves[share, q, k],
                                    )  # fmt: skip
                                for k in range(s.sizes[q], s.widths[q]):
                                    s.moves[share, q, k] = zero
                                for k in range(s.widths[q + 1]):
                                    s.moves[share, q + 1, k] = zero
                                for m in range(0, s.sizes[q], GROUP):
                                    c1 = s.moves[share, q, m]
                                    c2 = s.moves[share, q, m + 1]
                                    c3 = s.moves[share, q, m + 2]
                                    c4 = s.moves[share, q, m + 3]
                                    r = s.weights_at[q] + m
                                    for k in range(s.widths[q + 1]):
                                        s.moves[share, q + 1, k] += (
                                            c1 * s.weights[0, r, k]
                                            + c2 * s.weights[0, r + 1, k]
                                            + c3 * s.weights[0, r + 2, k]
                                            + c4 * s.weights[0, r + 3, k]
                                        )
                        total = zero
                        for item in range(s.item_start[n], s.item_start[n + 1]):
                            total += s.item_weight[item] * loss_change(
                                s.moves, share, s.values, s.errors, last, n, s.sizes[last],
                                class_of(s, item), delta,
                            )  # fmt: skip
                        difference += total if side == 0 else -total
                    s.gradient[0, row, j] += difference * scale


@kernel
def nudge(
    part, steps, progress, now, give_way, state, places, x, W1, labels, result, found, sample_loss
):
    """Put the arrays given for a call into a state, and run `prepare`, `accumulate` and `collect`.

    Parameters
    ----------
    part, steps, progress, now, give_way
        See `fastgrad.kernels.tasks.run_steps`.
    state : int
        Address of the state.
    places : tuple of int
        Where the state keeps the next four.
    x, W1, labels, result, found, sample_loss
        Of the state.

    Returns
    -------
    finite : bool
        Whether all parameters are.
    little : bool
        Whether there is a result, for all moves were little.
    loss : float
    """
    put_array(state, places[0], x)
    put_array(state, places[1], W1)
    put_array(state, places[2], labels)
    put_array(state, places[3], result)
    run_steps(part, steps, progress, now, give_way)
    finite, little = True, True
    for share in range(found.shape[0]):
        finite &= found[share, FINITE] != 0
        little &= found[share, LITTLE] != 0
    loss = 0.0
    for n in range(sample_loss.size):
        loss += sample_loss[n]
    return finite, little, loss
