r"""The central difference of a two-layer network's loss over all its parameters.

A textbook loop evaluates the whole network twice for each parameter and subtracts two nearly equal
losses. These kernels evaluate, at the same two perturbed points, the *change* of the loss, every
part of it as a small quantity with full relative precision. For one sample with hidden values
:math:`z = \varphi(a)`, probabilities :math:`p` and target class :math:`k`:

- a perturbation of W1[i, j] moves the input of unit j by :math:`\varepsilon = \pm h x_i` and its
  value by :math:`\Delta z = z (1 - z) E / (1 + z E)` with
  :math:`E = \mathrm{e}^\varepsilon - 1` (sigmoid), or by
  :math:`\max(\varepsilon + \min(a, 0), -\max(a, 0))` (ReLU);
- the logits move by :math:`d_m = \Delta z\, W2_{jm}`; with :math:`S = \sum_m p_m (\mathrm{e}^{d_m
  - d_k} - 1)`, where the term of k itself is 0, the probability of the target becomes
  :math:`p_k / (1 + S)`;
- the loss changes by :math:`-\log\frac{p_k / (1 + S) + \delta}{p_k + \delta}`, which is, with
  :math:`q = p_k / (p_k + \delta)`, the same as :math:`\log(1 + S) - \log(1 + (1 - q) S)`.

Nothing here is a derivative: both perturbed losses are evaluated, the one at +h and the one at -h.

A soft target is a sum of hard ones, each class with its target as its weight; so is its series.

This file is for networks of two layers and for h in *series range*, where no perturbation moves a
logit by more than `LOGIT_MOVE_LIMIT`. There S, and with it the change of the loss, is a short power
series in :math:`\Delta z`, exact to rounding, whose coefficients are the same for all pixels: the
inner loop depends neither on the number of classes nor on a library function.
`fastgrad.kernels.central_difference.any_depth` is for all others.

The kernels follow a forward pass of `fastgrad.kernels.forward`, and each thread goes on with its
own samples. Their arguments:

x, bits
    The samples, and which of their entries are not zero.
b1, W2, b2
    Parameters. `affine_sparse` has checked W1.
second : ndarray, shape (C, P)
    W2 transposed; P is H + 1 in whole cache lines, also below.
inputs, values, slopes : ndarray, shape (N, P)
    Of the hidden units.
probabilities, labels, soft, activation, delta
    See `fastgrad.kernels.forward`.
h : ndarray of float64, shape (1,)
logit_limit : float
    How far a logit may move: `LOGIT_MOVE_LIMIT`.
state : ndarray of int64, shape (chunks, cache lines)
    Out: in column `FINITE` whether the parameters are, and in `IN_RANGE` whether all perturbations
    of a chunk's samples are in series range.
used : ndarray of uint64, shape (chunks, words)
    Which entries are not zero in some of a chunk's samples: the rows of its ``differences``.
positions : ndarray of uint32, shape (chunks, D + 1)
    Scratch: where the non-zero entries of a sample are; D stands for the constant 1 of the bias.
entries : ndarray, shape (chunks, D + 1)
entry_bits : ndarray of unsigned integers, as ``entries``
    Scratch: what stands there; the same memory.
unique : ndarray, shape (chunks, D + 1)
    Scratch: the unique values x among them, and then exp(h x) - 1 (sigmoid) or h x (ReLU).
inverse : ndarray of uint32, shape (chunks, D + 1)
    Scratch: for each non-zero entry the number of its value among the unique ones.
table : ndarray of uint64, shape (chunks, HASH_SLOTS + 1, 2)
    Scratch of `unique_values`, zero at first.
coefficients : ndarray, shape (chunks, COEFFICIENTS, P)
moves : ndarray, shape (chunks, 2, P)
    Scratch: sinh(h z) and cosh(h z) - 1 of the hidden values z.
changes : ndarray, shape (chunks, D + 1, P)
    Scratch: changes of the loss of a sample, by unique value.
differences : ndarray, shape (chunks, D + 1, P)
    Differences of the changes at +h and -h, by entry.
columns : ndarray, shape (chunks, C, P)
    The same for the second layer, by class and unit.
dW1, db1, dW2, db2 : ndarray
    Out: the central difference.
"""

from __future__ import annotations

import numpy as np

from fastgrad.kernels.activations import (
    change_coefficients,
    opposite_changes,
    scaled_move,
    steepest,
)
from fastgrad.kernels.bitmask import NO_BITS, ONE_BIT, WORD, is_set
from fastgrad.kernels.elementary import are_finite, expm1, like
from fastgrad.runtime.compile import chunk_kernel, helper
from fastgrad.runtime.programs import chunk_range
from fastgrad.runtime.simd import lowest_bit

#: Rows of ``coefficients``: see `add_coefficients` and `find_changes`.
COEFFICIENTS = 10
#: All moves of logits must be below this: there a series to the fifth power is exact to rounding in
#: float64 (relative 1e-16).
LOGIT_MOVE_LIMIT = 1.5e-3
#: ... and the moves by the second layer's own perturbations, h * z, below this (six terms of
#: artanh).
VALUE_MOVE_LIMIT = 0.05

#: Columns of ``state``.
FINITE, IN_RANGE = 0, 1

#: Slots of the table in `unique_values`, and how a value finds its slot (Fibonacci hashing:
#: D. E. Knuth, *The Art of Computer Programming* 3, section 6.4).
HASH_SLOTS = 1024
HASH_FACTOR, HASH_SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(54)


@helper
def unique_values(values, bits, table, unique, inverse):
    """Find the unique values among a sample's entries; return how many there are.

    A hash table holds the number of each value that was met before. It is not cleared between
    samples: the numbers go on from sample to sample, and a smaller one is an old one. Where two
    values fall into the same slot, a value that comes back gets a second number. That costs time,
    and is no error.

    Parameters
    ----------
    values : ndarray, shape (M,)
    bits : ndarray of unsigned integers, shape (M,)
        The same memory.
    table : ndarray of uint64, shape (HASH_SLOTS + 1, 2)
    unique : ndarray, shape (M or more,)
        Out.
    inverse : ndarray of uint32, shape (M or more,)
        Out: values[e] is unique[inverse[e]].
    """
    one = np.uint64(1)
    first = table[HASH_SLOTS, 0]
    following = first
    for e in range(values.size):
        key = np.uint64(bits[e])
        slot = (key * HASH_FACTOR) >> HASH_SHIFT
        label = table[slot, 1]
        # Without a branch, which no processor could predict: a wrong prediction costs 20 cycles.
        is_known = (table[slot, 0] == key) & (first <= label)
        label = label if is_known else following
        following = following if is_known else following + one
        table[slot, 0] = key
        table[slot, 1] = label
        inverse[e] = label - first
    # Not above, where the table would have to wait for it: 1.04 times the speed.
    for e in range(values.size):
        unique[inverse[e]] = values[e]
    table[HASH_SLOTS, 0] = following
    return np.int64(following - first)


@helper
def relative_probability(p, delta):
    """Return q = p / (p + delta) for the probability p of a sample's target."""
    shift = like(delta, p)
    return p / (p + shift) if shift > 0 else like(1, p)


@helper
def target_weight(labels, soft, n, k, n_samples):
    """Return the target of a sample and a class, divided by the number of samples."""
    if labels.size > 0:
        return soft.dtype.type(1 / n_samples)
    return soft[n, k] * soft.dtype.type(1 / n_samples)


@helper
def add_coefficients(p, second, target, q, weight, width, out):
    """Add up the change of the loss for one target, as a series in a hidden unit's move.

    Parameters
    ----------
    p : ndarray, shape (C,)
        Probabilities.
    second : ndarray, shape (C, P)
    target : int
    q, weight : float
        From `relative_probability` and `target_weight`.
    width : int
    out : ndarray, shape (COEFFICIENTS, P)
        In and out: rows 0 to 4, of the powers 1 to 5. Rows 5 to 9 are scratch.
    """
    number = p.dtype.type
    one, two, three, four = number(1), number(2), number(3), number(4)
    for r in range(5, 10):
        for j in range(width):
            out[r, j] = 0
    # S as a series: its coefficients are the moments of how far a logit moves, relative to the
    # target's, for a move of 1, divided by factorials.
    for m in range(p.size):
        for j in range(width):
            e = second[m, j] - second[target, j]
            e1 = p[m] * e
            e2 = e1 * e * number(1 / 2)
            e3 = e2 * e * number(1 / 3)
            e4 = e3 * e * number(1 / 4)
            out[5, j] += e1
            out[6, j] += e2
            out[7, j] += e3
            out[8, j] += e4
            out[9, j] += e4 * e * number(1 / 5)
    # The change of the loss is b1 S + b2 S² + ..; with b_k = -(-1)^k / k (1 - (1 - q)^k), in a form
    # where nothing cancels.
    r = one - q
    b1 = weight * q
    b2 = -b1 * (one + r) * number(1 / 2)
    b3 = b1 * (one + r * (one + r)) * number(1 / 3)
    b4 = -b1 * (one + r * (one + r * (one + r))) * number(1 / 4)
    b5 = b1 * (one + r * (one + r * (one + r * (one + r)))) * number(1 / 5)
    for j in range(width):
        c1, c2, c3, c4, c5 = out[5, j], out[6, j], out[7, j], out[8, j], out[9, j]
        s2 = c1 * c1
        s3 = s2 * c1
        out[0, j] += b1 * c1
        out[1, j] += b1 * c2 + b2 * s2
        out[2, j] += b1 * c3 + b2 * two * c1 * c2 + b3 * s3
        out[3, j] += b1 * c4 + b2 * (two * c1 * c3 + c2 * c2) + b3 * three * s2 * c2 + b4 * s2 * s2
        out[4, j] += (
            b1 * c5
            + b2 * two * (c1 * c4 + c2 * c3)
            + b3 * three * (s2 * c3 + c1 * c2 * c2)
            + b4 * four * s3 * c2
            + b5 * s2 * s3
        )


@helper
def find_changes(activation, unique, coefficients, width, changes):
    """Compute the changes of the loss at +h and -h for each of a sample's unique values.

    Parameters
    ----------
    activation : int
    unique : ndarray, shape (unique values,)
        How far each moves the input of a unit by +h, as `scaled_move` returns it.
    coefficients : ndarray, shape (COEFFICIENTS, P)
        Rows 0 to 4 from `add_coefficients`, 5 to 7 of the unit itself from `change_coefficients`.
    width : int
    changes : ndarray, shape (unique values or more, P)
        Out: their differences.
    """
    is_double = changes.itemsize == 8
    for value in range(unique.size):
        move = unique[value]
        # Over hidden units, contiguous, without a branch or a call: 17 multiplications and
        # additions and one division for the two losses of one value and unit. In float32 the
        # highest terms would be lost in rounding.
        for j in range(width):
            d1, d2 = opposite_changes(
                activation, move, coefficients[5, j], coefficients[6, j], coefficients[7, j]
            )
            c1, c2, c3 = coefficients[0, j], coefficients[1, j], coefficients[2, j]
            c4, c5 = coefficients[3, j], coefficients[4, j]
            top1 = c3 + d1 * (c4 + d1 * c5) if is_double else c3
            top2 = c3 + d2 * (c4 + d2 * c5) if is_double else c3
            changes[value, j] = d1 * (c1 + d1 * (c2 + d1 * top1)) - d2 * (
                c1 + d2 * (c2 + d2 * top2)
            )


@chunk_kernel
def perturb_first_layer(args, chunk, chunks, iteration):
    """Add up the changes of the loss by perturbed W1 and b1 over a chunk of the samples.

    Pixels have few unique values, a gray image some seventy among 150, and entries of one sample
    with the same value move a unit's input, and so the loss, by the same amount: that is computed
    once and added to all their rows.
    """
    x, bits, inputs, values, slopes = args.x, args.bits, args.inputs, args.values, args.slopes
    probabilities, labels, soft, second = args.probabilities, args.labels, args.soft, args.second
    activation, delta, logit_limit = args.activation, args.delta, args.logit_limit
    state, W2 = args.state, args.W2
    used, positions, entries = args.used[chunk], args.positions[chunk], args.entries[chunk]
    entry_bits, unique, inverse = args.entry_bits[chunk], args.unique[chunk], args.inverse[chunk]
    table, coefficients = args.table[chunk], args.coefficients[chunk]
    changes, differences = args.changes[chunk], args.differences[chunk]
    n_samples, n_inputs = x.shape
    width = differences.shape[1]
    dtype = differences.dtype.type
    zero, one, h = dtype(0), dtype(1), dtype(args.h[0])
    begin, end = chunk_range(n_samples, chunk, chunks)

    # How far a unit's input may move so that no logit moves beyond its limit.
    largest = zero
    for j in range(W2.shape[0]):
        for k in range(W2.shape[1]):
            largest = max(largest, abs(W2[j, k]))
    reach = steepest(activation, one) * largest
    limit = dtype(min(1.0, logit_limit / max(reach, one * 1e-30)))

    # Rows that stay zero are neither cleared nor, in `collect`, fetched from another core: two
    # fifths of them with 50 images a chunk, and more with fewer.
    for word in range(used.size):
        used[word] = NO_BITS
    used[n_inputs // WORD] = ONE_BIT << np.uint64(n_inputs % WORD)
    for n in range(begin, end):
        for word in range(bits.shape[1]):
            used[word] |= bits[n, word]
    for i in range(n_inputs + 1):
        if is_set(used, i):
            for j in range(width):
                differences[i, j] = zero

    for n in range(begin, end):
        count = 0
        for word in range(bits.shape[1]):
            left = bits[n, word]
            while left != NO_BITS:
                i = word * WORD + lowest_bit(left)
                positions[count] = i
                entries[count] = x[n, i]
                count += 1
                left &= left - ONE_BIT
        positions[count] = n_inputs
        entries[count] = one
        count += 1
        n_unique = unique_values(entries[:count], entry_bits[:count], table, unique, inverse)
        beyond = 0
        for value in range(n_unique):
            move = h * unique[value]
            beyond |= abs(move) > limit
            unique[value] = scaled_move(activation, move)
        if beyond != 0:
            state[chunk, IN_RANGE] = 0
            return
        for r in range(5):
            for j in range(width):
                coefficients[r, j] = zero
        for k in range(1 if labels.size > 0 else probabilities.shape[1]):
            target = labels[n] if labels.size > 0 else k
            weight = target_weight(labels, soft, n, target, n_samples)
            if weight != zero:
                q = relative_probability(probabilities[n, target], delta)
                add_coefficients(probabilities[n], second, target, q, weight, width, coefficients)
        for j in range(width):
            c1, c2, c3 = change_coefficients(activation, inputs[n, j], values[n, j], slopes[n, j])
            coefficients[5, j] = c1
            coefficients[6, j] = c2
            coefficients[7, j] = c3
        find_changes(activation, unique[:n_unique], coefficients, width, changes)
        for e in range(count):
            i = positions[e]
            value = inverse[e]
            for j in range(width):
                differences[i, j] += changes[value, j]


@chunk_kernel
def perturb_second_layer(args, chunk, chunks, iteration):
    """Add up the changes of the loss by perturbed W2 and b2 over a chunk of the samples.

    A perturbation of W2[j, k] moves one logit, by d = h z[j] and -d. With P = p_k the loss for
    another target changes by log(1 + S) - log(1 + (1 - q) S), S being P (exp(d) - 1) or
    P (exp(-d) - 1). The difference of both is 2 artanh(u) with
    u = q P sinh(d) / (1 + P ((2 - q) - 2 (1 - q) P) (cosh(d) - 1)). For the target itself P is the
    sum of the other probabilities, and the sign is the opposite.
    """
    values, probabilities, labels, soft = args.values, args.probabilities, args.labels, args.soft
    delta, state, W2 = args.delta, args.state, args.W2
    columns, moves = args.columns[chunk], args.moves[chunk]
    n_samples, n_classes = probabilities.shape
    width = columns.shape[1]
    dtype = columns.dtype.type
    h, half, one, two = dtype(args.h[0]), dtype(1 / 2), dtype(1), dtype(2)
    third, fifth, seventh = dtype(1 / 3), dtype(1 / 5), dtype(1 / 7)
    ninth, eleventh = dtype(1 / 9), dtype(1 / 11)
    finite = are_finite(args.b1) & are_finite(W2.reshape(-1)) & are_finite(args.b2)
    state[chunk, FINITE] = finite
    columns[:] = 0
    begin, end = chunk_range(n_samples, chunk, chunks)
    beyond = 0
    for n in range(begin, end):
        for j in range(width):
            move = h * (one if j >= W2.shape[0] else values[n, j])
            beyond |= move > VALUE_MOVE_LIMIT  # values are not negative
            E = expm1(move)
            even = half * E * E / (one + E)  # cosh - 1
            moves[0, j] = E - even  # sinh
            moves[1, j] = even
        for item in range(1 if labels.size > 0 else n_classes):
            target = labels[n] if labels.size > 0 else item
            weight = target_weight(labels, soft, n, target, n_samples)
            if weight == 0:
                continue
            q = relative_probability(probabilities[n, target], delta)
            for k in range(n_classes):
                p, twice = probabilities[n, k], two * weight
                if k == target:
                    p, twice = dtype(0), -twice
                    for m in range(n_classes):
                        p += dtype(0) if m == k else probabilities[n, m]
                factor = q * p
                curvature = p * ((two - q) - two * (one - q) * p)
                for j in range(width):
                    u = factor * moves[0, j] / (one + curvature * moves[1, j])
                    s = u * u
                    series = seventh + s * (ninth + s * eleventh)
                    series = one + s * (third + s * (fifth + s * series))
                    columns[k, j] += twice * u * series
    state[chunk, IN_RANGE] = beyond == 0


@chunk_kernel
def collect(args, chunk, chunks, iteration):
    """Add up what the chunks' samples left, for a chunk of the rows of both layers."""
    state, used, differences, columns = args.state, args.used, args.differences, args.columns
    dW1, db1, dW2, db2 = args.dW1, args.db1, args.dW2, args.db2
    for other in range(chunks):
        if state[other, IN_RANGE] == 0:
            return
    n_inputs, n_hidden = dW1.shape
    # The number of samples is in the weights of the targets.
    scale = dW1.dtype.type(0.5 / args.h[0])
    begin, end = chunk_range(n_inputs + 1, chunk, chunks)
    for i in range(begin, end):
        row = dW1[i] if i < n_inputs else db1
        for j in range(n_hidden):
            row[j] = 0
        for other in range(chunks):
            if is_set(used[other], i):
                for j in range(n_hidden):
                    row[j] += differences[other, i, j] * scale
    begin, end = chunk_range(n_hidden + 1, chunk, chunks)
    for j in range(begin, end):
        row = dW2[j] if j < n_hidden else db2
        for k in range(row.size):
            row[k] = 0
            for other in range(chunks):
                row[k] += columns[other, k, j] * scale
