r"""The central difference for a network of any depth and for any h.

As `fastgrad.kernels.central_difference.two_layers` this evaluates the change of the loss at both
perturbed points of every parameter, but with library functions instead of short polynomials. A
perturbation of one weight moves the input of one unit; the moves of all units above it are found
layer by layer, each by the exact change of its activation function. All weights in a row of a
matrix are perturbed together, so that the products with the layers above are products of matrices.

The kernel follows a forward pass of `fastgrad.kernels.forward`. Its arguments:

sizes : ndarray of int64, shape (layers + 1,)
    Units of each layer, the input first.
parameters : ndarray, 1-D
    W1, b1, W2, b2, .., each row by row.
x
    The samples.
inputs, values, slopes : ndarray, shape (hidden layers, N, P)
    Of the hidden units.
logits, probabilities, labels, soft, activation, delta
    See `fastgrad.kernels.forward`.
h : ndarray of float64, shape (1,)
moves : ndarray, shape (chunks, 2, 2 P, P)
    Scratch.
zeros : ndarray, shape (P,)
result : ndarray, shape (parameters,)
    In and out: zeros become the central difference.
"""

from __future__ import annotations

import math

from fastgrad.kernels.activations import unit_change
from fastgrad.kernels.affine import affine_rows
from fastgrad.kernels.central_difference.two_layers import target_weight
from fastgrad.kernels.elementary import exp, expm1, like, relative_to
from fastgrad.runtime.compile import chunk_kernel, helper


@helper
def loss_change(moves, logits, probabilities, label, delta):
    """Return the change of one sample's loss for a label when the logits move, by any amount.

    With moves d relative to the label's own, S = sum_m p_m (e**d_m - 1): the label's probability
    becomes p / (1 + S).

    Parameters
    ----------
    moves, logits, probabilities : ndarray, shape (C or more,), (C,) and (C,)
    label : int
    delta : float
    """
    one = like(1, delta)
    zero = like(0, delta)
    own = moves[label]
    # The label's own term is 0. It must not be computed: the compiler may fuse the product that a
    # move was with the subtraction, and leave the rounding error of the product.
    S = zero
    for m in range(logits.size):
        if m != label:
            S += probabilities[m] * expm1(moves[m] - own)
    p = probabilities[label]
    # 1 + S holds all its digits, and nothing has overflowed.
    if like(-0.5, delta) < S and like(1e30, delta) > S:
        if delta == zero:
            return one * math.log1p(S)
        part = p / (p + delta) * (S / (one + S))
        if part < like(0.5, delta):
            return -one * math.log1p(-part)
        return -one * math.log((p / (one + S) + delta) / (p + delta))
    # Far moves: the change is not small, so both losses may be computed and subtracted; relative to
    # the largest logit, because huge logits have no digits left for the moves.
    top = 0
    for m in range(1, logits.size):
        if logits[m] > logits[top]:
            top = m
    lead, highest = moves[top], logits[top]
    ahead = zero if top == label else lead - own
    peak = zero
    for m in range(logits.size):
        if m != top:
            peak = max(peak, relative_to(moves[m] - lead, highest, logits[m]))
    before = one
    after = exp(-peak)
    for m in range(logits.size):
        if m != top:
            before += exp(logits[m] - highest)
            after += exp(relative_to(moves[m] - lead, highest, logits[m]) - peak)
    if delta == zero:
        return (ahead + peak) + one * math.log(after / before)
    p = exp(logits[label] - highest) / before
    moved = exp(relative_to(-ahead, highest, logits[label]) - peak) / after
    part = (moved - p) / (p + delta)
    if part > like(-0.5, delta):
        return -one * math.log1p(part)
    return -one * math.log((moved + delta) / (p + delta))


@chunk_kernel
def perturb_rows(args, chunk, chunks, iteration):
    """Add up the central difference over all samples; chunks own rows of every layer in turn."""
    sizes, parameters, x, result = args.sizes, args.parameters, args.x, args.result
    inputs, values, slopes, activation = args.inputs, args.values, args.slopes, args.activation
    logits, probabilities = args.logits, args.probabilities
    labels, soft, zeros = args.labels, args.soft, args.zeros
    moves, moves_above = args.moves[chunk, 0], args.moves[chunk, 1]
    last = sizes.size - 1
    dtype = parameters.dtype.type
    zero, h, delta, scale = dtype(0), dtype(args.h[0]), dtype(args.delta), dtype(0.5 / args.h[0])
    for n in range(x.shape[0]):
        first = 0
        for layer in range(last):
            n_in, n_out = sizes[layer], sizes[layer + 1]
            for i in range(chunk, n_in + 1, chunks):
                v = dtype(1)
                if i < n_in:
                    v = dtype(x[n, i]) if layer == 0 else values[layer - 1, n, i]
                if v == zero:  # a perturbation changes nothing
                    continue
                # Rows 2 j and 2 j + 1: the moves when weight j of row i moves by h and by -h.
                above = first + (n_in + 1) * n_out
                for j in range(n_out):
                    for side in range(2):
                        move = h * v if side == 0 else -h * v
                        row = moves[2 * j + side]
                        if layer + 1 == last:
                            for k in range(n_out):
                                row[k] = zero
                            row[j] = move
                        else:
                            change = unit_change(
                                activation, inputs[layer, n, j], values[layer, n, j],
                                slopes[layer, n, j], move,
                            )  # fmt: skip
                            width = sizes[layer + 2]
                            for k in range(width):
                                row[k] = change * parameters[above + j * width + k]
                above += n_out * sizes[min(layer + 2, last)] + sizes[min(layer + 2, last)]
                for q in range(layer + 1, last - 1):
                    width, wider = sizes[q + 1], sizes[q + 2]
                    for r in range(2 * n_out):
                        for k in range(width):
                            moves[r, k] = unit_change(
                                activation, inputs[q, n, k], values[q, n, k], slopes[q, n, k],
                                moves[r, k],
                            )  # fmt: skip
                    W = parameters[above : above + width * wider].reshape((width, wider))
                    affine_rows(moves, W, zeros[:wider], moves_above, 0, 2 * n_out)
                    moves, moves_above = moves_above, moves
                    above += (width + 1) * wider
                for j in range(n_out):
                    difference = zero
                    for item in range(1 if labels.size > 0 else logits.shape[1]):
                        label = labels[n] if labels.size > 0 else item
                        weight = target_weight(labels, soft, n, label, x.shape[0])
                        if weight == zero:
                            continue
                        up = loss_change(moves[2 * j], logits[n], probabilities[n], label, delta)
                        down = loss_change(
                            moves[2 * j + 1], logits[n], probabilities[n], label, delta
                        )
                        difference += weight * (up - down)
                    result[first + i * n_out + j] += difference * scale
            first += (n_in + 1) * n_out
