r"""The central difference of a two-layer network's loss over all its parameters.

A textbook loop evaluates the whole network twice for each parameter and subtracts two nearly equal
losses. These kernels evaluate, at the same two nudged points, the *change* of the loss, every step
of it as a small quantity with full relative precision. For one sample with hidden values
:math:`z = \varphi(a)`, probabilities :math:`p` and target class :math:`k`:

- a nudge of W1[i, j] moves the input of unit j by :math:`\varepsilon = \pm h x_i` and its value by
  :math:`\Delta z = z (1 - z) E / (1 + z E)` with :math:`E = \mathrm{e}^\varepsilon - 1` (sigmoid),
  or by :math:`\max(\varepsilon + \min(a, 0), -\max(a, 0))` (ReLU);
- the logits move by :math:`d_m = \Delta z\, W2_{jm}`; with :math:`S = \sum_m p_m (\mathrm{e}^{d_m}
  - 1)` and :math:`T = \mathrm{e}^{d_k} - 1 - S` the probability of the target becomes
  :math:`p_k (1 + T / (1 + S))`;
- the loss changes by :math:`-\log(1 + q T / (1 + S))` with :math:`q = p_k / (p_k + \delta)`, which
  is computed as :math:`-2\,\mathrm{artanh}(q T / (2 + 2 S + q T))`.

Nothing here is a derivative: both nudged losses are evaluated, the one at +h and the one at -h.

A soft target is a sum of hard ones: each pair of a sample and a class with a non-zero target is an
*item* with that target as its weight.

Two variants. `prepare` and `accumulate` serve two-layer networks and nudges that move every logit
by little: there T and S are short polynomials in :math:`\Delta z` whose coefficients are the same
for all pixels, so the inner loop depends neither on the number of classes nor on a library
function.
`general` calls the library functions and holds for every h and any number of layers.

Both start from what a forward pass of `fastgrad.kernels.iteration.iterate` leaves: samples as lists
of non-zero entries, units' values, slopes (or inputs, for ReLU) and probabilities, padded as there.
"""

from __future__ import annotations

import math

from numba import prange

from fastgrad.kernels.compile import inlined_kernel, parallel_kernel
from fastgrad.kernels.elementary import exp, expm1, like
from fastgrad.kernels.iteration import GROUP, ROW_BLOCK, SIGMOID, padded

#: Rows of coefficients an item has: two of the activation, U1..U5, V1..V4.
COEFFICIENTS = 11
#: `accumulate` needs all moves of logits below this: there T to the fifth power of the move, S to
#: the fourth and artanh to the fifth are exact to rounding in float64 (relative 1e-16).
LOGIT_MOVE_LIMIT = 1.5e-3
#: ... and the moves by the second layer's own nudges, h * z, below this (five terms of artanh).
VALUE_MOVE_LIMIT = 0.05


@parallel_kernel
def prepare(
    start, value, item_start, item_class, sizes, widths, transposed_at, activation, h, delta,
    transposed, values, errors, up, down, value_up, value_down, coefficients, largest,
):  # fmt: skip
    """Compute the moves of every entry and the coefficients of every item.

    Parameters
    ----------
    start, value : ndarray
        Samples as lists (see `fastgrad.kernels.iteration.group_nonzeros`).
    item_start : ndarray of int64, shape (N + 1,)
        The items of sample n are item_start[n] .. item_start[n + 1].
    item_class : ndarray of int64, shape (M,)
        The class of each item; its weight, in `accumulate`, is the target divided by N.
    sizes, widths, transposed_at, activation, transposed, values, errors
        Layout, parameters and state of a forward pass, as in `fastgrad.kernels.iteration.iterate`.
    h, delta : scalar of the network's dtype
    up, down : ndarray, as ``value``
        Out: for every entry exp(+-h x) - 1 (sigmoid) or +-h x (ReLU).
    value_up, value_down : ndarray, shape (N, P)
        Out: exp(+-h z) - 1 for the hidden values z and the constant 1 after them.
    coefficients : ndarray, shape (M, COEFFICIENTS, P)
        Out.
    largest : ndarray, shape (N, 2)
        Out: the largest sizes of h x and of h z of each sample.
    """
    n_samples = item_start.size - 1
    n_hidden = sizes[1]
    n_classes = sizes[2]
    width = widths[1]
    back = transposed_at[1]
    one = like(1, h)
    zero = like(0, h)
    for n in prange(n_samples):
        far = zero
        if activation == SIGMOID:
            for e in range(start[n, 0], start[n, start.shape[1] - 1]):
                move = h * value[0, e]
                far = max(far, abs(move))
                E = expm1(move)
                up[0, e] = E
                down[0, e] = -E / (one + E)
        else:
            for e in range(start[n, 0], start[n, start.shape[1] - 1]):
                move = h * value[0, e]
                far = max(far, abs(move))
                up[0, e] = move
                down[0, e] = -move
        largest[n, 0] = far
        far = zero
        for j in range(width):
            move = h * values[1, n, j]
            far = max(far, abs(move))
            E = expm1(move)
            value_up[n, j] = E
            value_down[n, j] = -E / (one + E)
        largest[n, 1] = far

        for item in range(item_start[n], item_start[n + 1]):
            if activation == SIGMOID:
                for j in range(width):
                    slope = errors[1, n, j]
                    coefficients[item, 0, j] = values[1, n, j]
                    coefficients[item, 1, j] = zero if slope < zero else slope
            else:
                for j in range(width):
                    coefficients[item, 0, j] = errors[1, n, j] - values[1, n, j]
                    coefficients[item, 1, j] = -values[1, n, j]
            # The unit that is always 1 belongs to the second layer's bias.
            for j in range(n_hidden, width):
                coefficients[item, 0, j] = zero
                coefficients[item, 1, j] = zero
            for r in range(2, COEFFICIENTS):
                for j in range(width):
                    coefficients[item, r, j] = zero
            k = item_class[item]
            q = one
            if delta > 0:
                q = errors[2, n, k] / (errors[2, n, k] + delta)
            for m in range(n_classes):
                p = errors[2, n, m]
                pq = p * q
                twice = p + p
                for j in range(width):
                    # The coefficients of T are differences of powers, taken so that no digit is
                    # lost when the target's probability is near 1.
                    w = transposed[0, back + m, j]
                    v = transposed[0, back + k, j]
                    u1 = pq * (v - w)
                    w2 = w * w
                    v2 = v * v
                    u2 = u1 * (v + w) * like(1 / 2, h)
                    u3 = u1 * (v2 + v * w + w2) * like(1 / 6, h)
                    u4 = u1 * (v + w) * (v2 + w2) * like(1 / 24, h)
                    u5 = v2 * v2 + v2 * v * w + v2 * w2 + v * w * w2 + w2 * w2
                    coefficients[item, 2, j] += u1
                    coefficients[item, 3, j] += u2
                    coefficients[item, 4, j] += u3
                    coefficients[item, 5, j] += u4
                    coefficients[item, 6, j] += u1 * u5 * like(1 / 120, h)
                    coefficients[item, 7, j] += u1 + twice * w
                    coefficients[item, 8, j] += u2 + p * w2
                    coefficients[item, 9, j] += u3 + twice * w2 * w * like(1 / 6, h)
                    coefficients[item, 10, j] += u4 + twice * w2 * w2 * like(1 / 24, h)


@inlined_kernel
def add_change(d1, d2, weight, coefficients, item, gradient, i, j):
    """Add the change of the loss at both nudges, given the unit's two moves."""
    U1 = coefficients[item, 2, j]
    U2 = coefficients[item, 3, j]
    U3 = coefficients[item, 4, j]
    U4 = coefficients[item, 5, j]
    U5 = coefficients[item, 6, j]
    V1 = coefficients[item, 7, j]
    V2 = coefficients[item, 8, j]
    V3 = coefficients[item, 9, j]
    V4 = coefficients[item, 10, j]
    n1 = d1 * (U1 + d1 * (U2 + d1 * (U3 + d1 * (U4 + d1 * U5))))
    n2 = d2 * (U1 + d2 * (U2 + d2 * (U3 + d2 * (U4 + d2 * U5))))
    v1 = like(2, d1) + d1 * (V1 + d1 * (V2 + d1 * (V3 + d1 * V4)))
    v2 = like(2, d1) + d2 * (V1 + d2 * (V2 + d2 * (V3 + d2 * V4)))
    # One division for both.
    r = like(1, d1) / (v1 * v2)
    s1 = n1 * v2 * r
    s2 = n2 * v1 * r
    q1 = s1 * s1
    q2 = s2 * s2
    a1 = s1 * (like(1, d1) + q1 * (like(1 / 3, d1) + q1 * like(1 / 5, d1)))
    a2 = s2 * (like(1, d1) + q2 * (like(1 / 3, d1) + q2 * like(1 / 5, d1)))
    gradient[0, i, j] += weight * (a2 - a1)


@parallel_kernel
def accumulate(
    item_sample, item_class, item_weight, sizes, widths, weights_at, activation, h, delta,
    start, index, up, down, value_up, value_down, errors, coefficients, sums, gradient,
):  # fmt: skip
    """Add up the changes of the loss at +h and -h over all items, for every parameter.

    ``item_sample``, ``item_class`` and ``item_weight``, shape (M,), describe the items; what
    `prepare` wrote comes in, ``sums`` (C, P) is scratch. Out: ``gradient``, laid out as the weights
    are. Every share owns the rows of its entries and the columns of its classes.
    """
    n_inputs = sizes[0]
    n_hidden = sizes[1]
    n_classes = sizes[2]
    width = widths[1]
    shares = start.shape[1] - 1
    n_items = item_sample.size
    one = like(1, h)
    two = like(2, h)
    zero = like(0, h)
    # log(1 + u) is 2 artanh(..): the 2 cancels the one of 1 / 2h. The number of samples is in the
    # weights.
    scale = one / h
    for share in prange(shares):
        for block in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
            for i in range(block, min(block + ROW_BLOCK, n_inputs)):
                for j in range(width):
                    gradient[0, i, j] = zero
        if share == shares - 1:
            for j in range(width):
                gradient[0, n_inputs, j] = zero
        # The inner loops run over hidden units, contiguous, without a branch or a call: 41
        # multiply-adds and two divisions for the two losses of one entry and unit.
        if activation == SIGMOID:
            for item in range(n_items):
                n = item_sample[item]
                weight = item_weight[item]
                for e in range(start[n, share], start[n, share + 1]):
                    i = index[0, e]
                    E1 = up[0, e]
                    E2 = down[0, e]
                    for j in range(width):
                        z = coefficients[item, 0, j]
                        a1 = one + z * E1
                        a2 = one + z * E2
                        r = coefficients[item, 1, j] / (a1 * a2)
                        add_change(
                            E1 * a2 * r, E2 * a1 * r, weight, coefficients, item, gradient, i, j
                        )
        else:
            for item in range(n_items):
                n = item_sample[item]
                weight = item_weight[item]
                for e in range(start[n, share], start[n, share + 1]):
                    i = index[0, e]
                    E1 = up[0, e]
                    E2 = down[0, e]
                    for j in range(width):
                        low = coefficients[item, 1, j]
                        d1 = coefficients[item, 0, j] + E1
                        d2 = coefficients[item, 0, j] + E2
                        d1 = low if d1 < low else d1
                        d2 = low if d2 < low else d2
                        add_change(d1, d2, weight, coefficients, item, gradient, i, j)
        for block in range(share * ROW_BLOCK, n_inputs, shares * ROW_BLOCK):
            for i in range(block, min(block + ROW_BLOCK, n_inputs)):
                for j in range(width):
                    gradient[0, i, j] *= scale
        if share == shares - 1:
            for j in range(width):
                gradient[0, n_inputs, j] *= scale

        # The second layer: a nudge of W2[j, k] moves one logit, by +-h z[j].
        for k in range(share, n_classes, shares):
            for j in range(width):
                sums[k, j] = zero
            for item in range(n_items):
                n = item_sample[item]
                target = item_class[item]
                p = errors[2, n, k]
                q = one
                if delta > 0:
                    q = errors[2, n, target] / (errors[2, n, target] + delta)
                if k == target:
                    others = zero
                    for m in range(n_classes):
                        if m != k:
                            others += errors[2, n, m]
                    q *= others
                else:
                    q *= -p
                p += p + q
                weight = item_weight[item]
                for j in range(width):
                    n1 = q * value_up[n, j]
                    n2 = q * value_down[n, j]
                    v1 = two + p * value_up[n, j]
                    v2 = two + p * value_down[n, j]
                    r = one / (v1 * v2)
                    s1 = n1 * v2 * r
                    s2 = n2 * v1 * r
                    q1 = s1 * s1
                    q2 = s2 * s2
                    c1 = like(1 / 5, h) + q1 * (like(1 / 7, h) + q1 * like(1 / 9, h))
                    c2 = like(1 / 5, h) + q2 * (like(1 / 7, h) + q2 * like(1 / 9, h))
                    c1 = one + q1 * (like(1 / 3, h) + q1 * c1)
                    c2 = one + q2 * (like(1 / 3, h) + q2 * c2)
                    sums[k, j] += weight * (s2 * c2 - s1 * c1)
            for j in range(n_hidden + 1):
                gradient[0, weights_at[1] + j, k] = sums[k, j] * scale


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
    # Far moves: the change is not small, so both losses may be computed and subtracted.
    top = logits[last, n, 0]
    peak = logits[last, n, 0] + moves[share, last, 0] - own
    for m in range(n_classes):
        top = max(top, logits[last, n, m])
        peak = max(peak, logits[last, n, m] + moves[share, last, m] - own)
    before = zero
    after = zero
    for m in range(n_classes):
        before += exp(logits[last, n, m] - top)
        after += exp(logits[last, n, m] + moves[share, last, m] - own - peak)
    if delta == zero:
        return (peak - top) + one * math.log(after / before)
    p = exp(logits[last, n, label] - top) / before
    moved = exp(logits[last, n, label] - peak) / after
    part = (moved - p) / (p + delta)
    if part > like(-0.5, delta):
        return -one * math.log1p(part)
    return -one * math.log((moved + delta) / (p + delta))


@parallel_kernel
def general(
    item_start, item_class, item_weight, sizes, widths, weights_at, activation, h, delta,
    start, index, value, weights, values, errors, moves, gradient,
):  # fmt: skip
    """Compute the central difference for a network of any depth and steps of any size.

    Parameters are those of `prepare` and `accumulate`; ``moves`` (shares, layers + 1, widest) is
    scratch, and ``gradient``, laid out as ``weights``, is the result.
    """
    shares = moves.shape[0]
    last = sizes.size - 1
    zero = like(0, h)
    scale = like(0.5, h) / h
    for share in prange(shares):
        for layer in range(last):
            n_rows = sizes[layer] + 1
            for i in range(share, padded(n_rows, shares), shares):
                if i < n_rows:
                    for j in range(widths[layer + 1]):
                        gradient[0, weights_at[layer] + i, j] = zero
        for n in range(item_start.size - 1):
            for layer in range(last):
                begin = 0
                end = sizes[layer] + 1
                if layer == 0:
                    begin = start[n, 0]
                    end = start[n, start.shape[1] - 1]
                for e in range(begin, end):
                    if layer == 0:
                        i = int(index[0, e])
                        x = value[0, e]
                    else:
                        i = e
                        x = values[layer, n, e]
                    # Rows are dealt out in turn; an entry of zero changes nothing.
                    if i % shares != share or x == zero:
                        continue
                    row = weights_at[layer] + i
                    for j in range(sizes[layer + 1]):
                        difference = zero
                        for side in range(2):
                            move = h * x if side == 0 else -h * x
                            after = layer + 1
                            if after == last:
                                for k in range(widths[last]):
                                    moves[share, last, k] = zero
                                moves[share, last, j] = move
                            else:
                                change = unit_change(
                                    activation, values[after, n, j], errors[after, n, j], move
                                )
                                r = weights_at[after] + j
                                for k in range(widths[after + 1]):
                                    moves[share, after + 1, k] = change * weights[0, r, k]
                                for q in range(after + 1, last):
                                    for k in range(sizes[q]):
                                        moves[share, q, k] = unit_change(
                                            activation, values[q, n, k], errors[q, n, k],
                                            moves[share, q, k],
                                        )  # fmt: skip
                                    for k in range(sizes[q], widths[q]):
                                        moves[share, q, k] = zero
                                    for k in range(widths[q + 1]):
                                        moves[share, q + 1, k] = zero
                                    for m in range(0, padded(sizes[q], GROUP), GROUP):
                                        c1 = moves[share, q, m]
                                        c2 = moves[share, q, m + 1]
                                        c3 = moves[share, q, m + 2]
                                        c4 = moves[share, q, m + 3]
                                        r = weights_at[q] + m
                                        for k in range(widths[q + 1]):
                                            moves[share, q + 1, k] += (
                                                c1 * weights[0, r, k]
                                                + c2 * weights[0, r + 1, k]
                                                + c3 * weights[0, r + 2, k]
                                                + c4 * weights[0, r + 3, k]
                                            )
                            total = zero
                            for item in range(item_start[n], item_start[n + 1]):
                                total += item_weight[item] * loss_change(
                                    moves, share, values, errors, last, n, sizes[last],
                                    item_class[item], delta,
                                )  # fmt: skip
                            difference += total if side == 0 else -total
                        gradient[0, row, j] += difference * scale
