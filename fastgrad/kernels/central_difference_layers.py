r"""Central differences of a network whose hidden layers have batch normalisation.

A hidden layer is affine, batch normalisation, activation; the last one is affine, followed by
softmax and cross entropy. A perturbation of W[i, j], b[j], gamma[j] or beta[j] changes the
outputs of unit j alone, over the whole batch (its mean and variance change, and with them every
sample), and by them the inputs of the layer above, by :math:`\Delta z_n W_{jk}`. From there on
everything is evaluated again; what lies below is not. Where :math:`\Delta z` is 0 for all samples,
the loss is what it was.

Activities are kept as (units, N), so that a unit's are contiguous. `Layers` describes a network.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import prange

from fastgrad.kernels.activations import relu, sigmoid
from fastgrad.runtime.compile import helper, parallel_kernel


class Layers(NamedTuple):
    """A network, a batch, and the activities that belong to it.

    Attributes
    ----------
    params : ndarray, shape (P,)
        All parameters in one piece.
    at : ndarray of int64, shape (L, 4)
        Where W, b, gamma and beta of each layer begin in it.
    sizes : ndarray of int64, shape (L + 1,)
        Units of each layer, the input first.
    rectified : bool
        Whether hidden units are ReLU, not sigmoid.
    epsilon, delta : float
        Added to a variance, and to a probability under the logarithm.
    soft : ndarray, shape (C, N)
        Targets.
    x : ndarray, shape (D, N)
        Samples.
    a, z : ndarray, shape (L, H, N)
        Affine outputs of each layer, and what its units make of them. H is the size of the largest
        layer but the input.
    """

    params: Any
    at: Any
    sizes: Any
    rectified: Any
    epsilon: Any
    delta: Any
    soft: Any
    x: Any
    a: Any
    z: Any


@helper
def unit_outputs(net, gamma, beta, a, z):
    """Compute a hidden unit's outputs z over the batch from its affine outputs a."""
    n_samples = a.size
    mean = 0.0
    for n in range(n_samples):
        mean += a[n]
    mean /= n_samples
    variance = 0.0
    for n in range(n_samples):
        variance += (a[n] - mean) ** 2
    scale = gamma / math.sqrt(variance / n_samples + net.epsilon)
    for n in range(n_samples):
        normalized = (a[n] - mean) * scale + beta
        z[n] = relu(normalized) if net.rectified else sigmoid(normalized)


@helper
def all_outputs(net, layer, a, z):
    """Compute all hidden units' outputs of a layer."""
    gamma, beta = net.at[layer, 2], net.at[layer, 3]
    for j in range(net.sizes[layer + 1]):
        unit_outputs(net, net.params[gamma + j], net.params[beta + j], a[j], z[j])


@helper
def affine_outputs(net, layer, z, a):
    """Compute a layer's affine outputs a from the outputs z of the layer below."""
    n_outputs, at, bias = net.sizes[layer + 1], net.at[layer, 0], net.at[layer, 1]
    for k in range(n_outputs):
        a[k] = net.params[bias + k]
    for i in range(net.sizes[layer]):
        for k in range(n_outputs):
            weight = net.params[at + i * n_outputs + k]
            for n in range(z.shape[1]):
                a[k, n] += weight * z[i, n]


@helper
def mean_loss(net, logits):
    """Return the mean cross entropy of the softmax of logits, shape (C, N)."""
    n_classes, n_samples = net.soft.shape
    total = 0.0
    for n in range(n_samples):
        largest = logits[0, n]
        for k in range(1, n_classes):
            largest = max(largest, logits[k, n])
        partition = 0.0
        for k in range(n_classes):
            partition += math.exp(logits[k, n] - largest)
        for k in range(n_classes):
            if net.soft[k, n] != 0:
                p = math.exp(logits[k, n] - largest) / partition
                total -= net.soft[k, n] * math.log(p + net.delta)
    return total / n_samples


@helper
def forward(net):
    """Fill a and z of all layers, and return the loss."""
    last = net.at.shape[0] - 1
    affine_outputs(net, 0, net.x, net.a[0])
    for layer in range(last):
        all_outputs(net, layer, net.a[layer], net.z[layer])
        affine_outputs(net, layer + 1, net.z[layer], net.a[layer + 1])
    return mean_loss(net, net.a[last])


@helper
def loss_from(net, layer, unit, outputs, loss, scratch):
    """Return the loss with other outputs (N,) of one unit; `loss` if they are no others."""
    last = net.at.shape[0] - 1
    a, z = scratch[0], scratch[1]
    if layer == last:
        for k in range(net.sizes[last + 1]):
            for n in range(outputs.size):
                a[k, n] = outputs[n] if k == unit else net.a[last, k, n]
        return mean_loss(net, a)
    changed = False
    for n in range(outputs.size):
        if outputs[n] != net.z[layer, unit, n]:
            changed = True
    if not changed:
        return loss
    n_outputs = net.sizes[layer + 2]
    at = net.at[layer + 1, 0] + unit * n_outputs
    for k in range(n_outputs):
        weight = net.params[at + k]
        for n in range(outputs.size):
            a[k, n] = net.a[layer + 1, k, n] + weight * (outputs[n] - net.z[layer, unit, n])
    for above in range(layer + 1, last):
        all_outputs(net, above, a, z)
        affine_outputs(net, above + 1, z, a)
    return mean_loss(net, a)


@helper
def unit_slopes(net, layer, unit, h, loss, scratch, grads):
    """Write the central differences by all parameters of one unit."""
    n_samples, n_outputs = net.x.shape[1], net.sizes[layer + 1]
    hidden = layer < net.at.shape[0] - 1
    at, bias = net.at[layer, 0], net.at[layer, 1]
    gamma, beta = net.at[layer, 2], net.at[layer, 3]
    inputs = net.x if layer == 0 else net.z[layer - 1]
    moved, outputs = scratch[2, 0], scratch[2, 1]
    n_inputs = net.sizes[layer]
    for i in range(n_inputs + 1):  # the bias last
        place = at + i * n_outputs + unit if i < n_inputs else bias + unit
        grads[place] = 0.0
        if i < n_inputs and not inputs[i].any():
            continue
        for side in (1, -1):
            for n in range(n_samples):
                input_ = inputs[i, n] if i < n_inputs else 1.0
                moved[n] = net.a[layer, unit, n] + side * h * input_
            if hidden:
                scale, shift = net.params[gamma + unit], net.params[beta + unit]
                unit_outputs(net, scale, shift, moved, outputs)
            new = outputs if hidden else moved
            grads[place] += side * loss_from(net, layer, unit, new, loss, scratch)
        grads[place] /= 2 * h
    for which in range(2 if hidden else 0):
        place = (gamma if which == 0 else beta) + unit
        grads[place] = 0.0
        for side in (1, -1):
            scale = net.params[gamma + unit] + (side * h if which == 0 else 0.0)
            shift = net.params[beta + unit] + (side * h if which == 1 else 0.0)
            unit_outputs(net, scale, shift, net.a[layer, unit], outputs)
            grads[place] += side * loss_from(net, layer, unit, outputs, loss, scratch)
        grads[place] /= 2 * h


@parallel_kernel
def central_difference(net, h, chunks, scratch, grads):
    """Write the central differences by all parameters.

    Parameters
    ----------
    net : Layers
    h : float
        The step.
    chunks : int
        Into how many chunks the units are divided, one by one.
    scratch : ndarray, shape (chunks, 3, max(H, 2), N)
    grads : ndarray, shape (P,)
        Out.
    """
    loss = forward(net)
    n_layers = net.at.shape[0]
    for chunk in prange(chunks):
        number = 0
        for layer in range(n_layers):
            for unit in range(net.sizes[layer + 1]):
                if number % chunks == chunk:
                    unit_slopes(net, layer, unit, h, loss, scratch[chunk], grads)
                number += 1
