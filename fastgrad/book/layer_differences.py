r"""Central differences of a network of layers, from the changes that perturbations make.

A perturbed weight changes one channel of its layer's output: a filter's plane, or a unit. So the
layers below are not computed again, nor are the other channels; and what goes up through the layers
above is the *change* alone, with its full relative precision:

- a convolution or an affine map turns a change into a change, without biases;
- ReLU: :math:`\Delta z = \max(\Delta a + \min(a, 0), -\max(a, 0))`;
- max pooling: the largest of :math:`(z_i - \max z) + \Delta z_i` over a window;
- softmax and loss: with :math:`S = \sum_m p_m (\mathrm{e}^{d_m - d_k} - 1)` for changes d of the
  logits, the probability p of class k becomes p / (1 + S), and
  :math:`\Delta L = -\log(1 - q S / (1 + S))` with q = p / (p + delta).

This is the loss at both perturbed points, in better arithmetic than their difference, and no
derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad.networks import fully_connected
from fastgrad.nn import convolution, functions, layers
from fastgrad.validation import FloatArray, real_array, scores_and_targets

__all__ = ["LayerDifferences", "knows"]

#: Entries of an array of changes that are computed together.
_ENTRIES = 1 << 19


def knows(network_layers: Sequence[Any]) -> bool:
    """Return whether all layers are of the kinds that `LayerDifferences` can see through."""
    plain = (layers.Relu, convolution.Pooling, layers.Dropout)
    maps = {convolution.Convolution.forward, layers.Affine.forward}
    return all(
        type(layer) in plain or getattr(type(layer), "forward", None) in maps
        for layer in network_layers
    )


class LayerDifferences:
    """The forward pass of a network, kept for the central differences of its parameters.

    Parameters
    ----------
    network_layers : sequence of layers
        `Convolution`, `Relu`, `Pooling`, `Affine` and `Dropout`, as `knows` says.
    x : array_like, shape (N, C, H, W)
    t : array_like
        Labels, or one-hot or soft targets.

    Notes
    -----
    Dropout layers drop the entries that they have dropped in this forward pass.
    """

    def __init__(self, network_layers: Sequence[Any], x: Any, t: Any) -> None:
        self.layers = list(network_layers)
        self.inputs: list[FloatArray] = []
        values = real_array(x, "x", dtype=np.float64)
        for layer in self.layers:
            self.inputs.append(values)
            values = np.asarray(layer.forward(values), np.float64)
        logits, labels, soft = scores_and_targets(values, "x", t)
        self.t = labels if len(labels) else soft
        self.probabilities = functions.softmax(logits)
        n, classes = logits.shape
        #: Pairs of a class for each sample and its weight in the loss.
        self.targets = [(np.full(n, k), soft[:, k]) for k in range(classes) if len(soft)]
        if len(labels):
            self.targets = [(labels, np.ones(n))]

    def central_differences(self, h: float) -> Iterator[tuple[FloatArray, NDArray[np.bool_]]]:
        """Yield the central differences of the loss by each W and each b.

        Parameters
        ----------
        h : float
            The step.

        Yields
        ------
        difference : ndarray, shape of the parameter
        kinks : ndarray of bool, shape of the parameter
            Where a ReLU or a pooling switches between the parameter and its perturbed values.
        """
        for at, layer in enumerate(self.layers):
            if not hasattr(layer, "W"):
                continue
            compiled = self._two_affine_layers(at)
            if compiled is not None:
                x = self.inputs[at].reshape(len(self.t), -1)
                found = compiled.numerical_gradient(x, self.t, h)
                kinks = compiled._kinks(x, self.t, h)
                yield from ((found[name], kinks[name]) for name in compiled.params)
                return
            shape, is_affine = np.shape(layer.W), isinstance(layer, layers.Affine)
            n_channels = shape[1] if is_affine else shape[0]
            n_terms = int(np.prod(shape)) // n_channels
            slopes = np.empty((n_channels, n_terms + 1))  # the bias is one term more
            switches = np.zeros(slopes.shape, np.bool_)
            for begin, end, changes in self._changes(at, n_terms, h):
                for channel in range(n_channels):
                    losses, switched = self._loss_changes(at + 1, changes, channel)
                    upper, lower = np.split(losses, 2)
                    slopes[channel, begin:end] = (upper - lower) / (2 * h)
                    switches[channel, begin:end] = np.logical_or(*np.split(switched, 2))
            weights = [
                (rows[:, :-1].T if is_affine else rows[:, :-1]).reshape(shape)
                for rows in (slopes, switches)
            ]
            yield weights[0], weights[1]
            yield slopes[:, -1], switches[:, -1]

    def _two_affine_layers(self, at: int) -> fully_connected.TwoLayerNet | None:
        """Return what is left from a layer on as a compiled network, if it is one."""
        rest = self.layers[at:]
        kinds = [type(layer).forward for layer in rest]
        if kinds != [layers.Affine.forward, layers.Relu.forward, layers.Affine.forward]:
            return None
        sizes = (*np.shape(rest[0].W), np.shape(rest[2].W)[1])
        net = fully_connected.TwoLayerNet(*sizes, activation="relu", rng=0)
        arrays = (rest[0].W, rest[0].b, rest[2].W, rest[2].b)
        for name, array in zip(net.params, arrays, strict=True):
            net.params[name] = np.asarray(array, np.float64)
        return net

    def _changes(self, at: int, n_terms: int, h: float) -> Iterator[tuple[int, int, FloatArray]]:
        """Yield how a channel of a layer's output changes with its weights, and with its bias.

        The first half of the changes belongs to weights raised by h, the second to lowered ones.
        They are the same for each channel.
        """
        layer, x = self.layers[at], self.inputs[at]
        n = len(x)
        if isinstance(layer, layers.Affine):
            terms, shape = x.reshape(n, -1).T, (n, 1)
        else:
            _, _, height, width = np.shape(layer.W)
            rows = convolution.im2col(x, height, width, layer.stride, layer.pad)
            terms, shape = rows.T, (n, 1, *self.inputs[at + 1].shape[2:])
        count = max(1, _ENTRIES // max(1, terms[0].size))
        for begin in range(0, n_terms + 1, count):
            end = min(begin + count, n_terms + 1)
            part = np.ones((end - begin, *shape))
            whole = min(end, n_terms)
            part[: whole - begin] = terms[begin:whole].reshape(-1, *shape)
            part *= h
            yield begin, end, np.concatenate([part, -part])

    def _loss_changes(
        self, at: int, changes: FloatArray, channel: int
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return how the loss changes with one channel of a layer's input.

        Parameters
        ----------
        at : int
            Which layer.
        changes : ndarray, shape (V, N, 1) or (V, N, 1, H, W)
            V changes of the channel for each sample.
        channel : int

        Returns
        -------
        losses : ndarray, shape (V,)
        switched : ndarray of bool, shape (V,)
            Whether a ReLU or a pooling has switched.
        """
        switched = np.zeros(len(changes), np.bool_)
        chosen: Any = slice(channel, channel + 1)  # which channels change
        for layer, x in zip(self.layers[at:], self.inputs[at:], strict=True):
            if isinstance(layer, layers.Relu):
                a = x[:, chosen]
                switches = (a + changes > 0) != (a > 0)
                switched |= switches.any(axis=tuple(range(1, changes.ndim)))
                changes = np.maximum(changes + np.minimum(a, 0), -np.maximum(a, 0))
            elif isinstance(layer, layers.Dropout):
                kept = 1 - layer.dropout_ratio if layer.mask is None else layer.mask[:, chosen]
                changes = changes * kept
            elif isinstance(layer, convolution.Pooling):
                changes, switches = _pool_changes(layer, x[:, chosen], changes)
                switched |= switches
            else:
                changes = _mapped_changes(layer, changes, chosen)
                chosen = slice(None)
        p = self.probabilities
        d = np.zeros((len(changes), *p.shape))
        d[:, :, chosen] = changes
        samples = np.arange(len(p))
        losses = np.zeros(len(changes))
        for k, weight in self.targets:
            S = (p * np.expm1(d - d[:, samples, k][:, :, None])).sum(axis=2)
            q = p[samples, k] / (p[samples, k] + functions.DELTA)
            ratio = -np.expm1(-np.log1p(S))  # S / (1 + S)
            losses -= (weight * np.log1p(-q * ratio)).sum(axis=1)
        return losses / len(p), switched


def _mapped_changes(layer: Any, changes: FloatArray, chosen: slice) -> FloatArray:
    """Return the changes behind a convolution or an affine map."""
    count, n = changes.shape[:2]
    W = np.asarray(layer.W, np.float64)
    if isinstance(layer, convolution.Convolution):
        images = changes.reshape(count * n, *changes.shape[2:])
        out = convolution.convolution_forward(images, W[:, chosen], 0, layer.stride, layer.pad)
    else:
        if changes.ndim == 5:  # a channel is a number of rows of W
            pixels = changes.shape[3] * changes.shape[4]
            W = W.reshape(-1, pixels, W.shape[1])[chosen].reshape(-1, W.shape[1])
        else:
            W = W[chosen]
        zeros = np.zeros(W.shape[1])
        out = functions.affine_forward(changes.reshape(count * n, -1), W, zeros)
    return out.reshape(count, n, *out.shape[1:])


def _pool_changes(
    layer: convolution.Pooling, x: FloatArray, changes: FloatArray
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the changes behind a max pooling, and which of them let another entry win."""
    edges = ((layer.pad, layer.pad), (layer.pad, layer.pad))
    x = np.pad(x, ((0, 0), (0, 0), *edges))
    changes = np.pad(changes, ((0, 0), (0, 0), (0, 0), *edges))
    largest, _ = convolution.max_pooling_forward(x, layer.pool_h, layer.pool_w, layer.stride)
    rows, columns = largest.shape[2:]
    result = np.full((*changes.shape[:3], rows, columns), -np.inf)
    stays = np.zeros(result.shape, np.bool_)
    for i in range(layer.pool_h):
        for j in range(layer.pool_w):
            seen = np.s_[
                ...,
                i : i + layer.stride * (rows - 1) + 1 : layer.stride,
                j : j + layer.stride * (columns - 1) + 1 : layer.stride,
            ]
            below = x[seen] - largest
            change = below + changes[seen]
            # The winner is still among the largest, or has been overtaken.
            stays = np.where(
                change > result, below == 0, stays | ((change == result) & (below == 0))
            )
            result = np.maximum(result, change)
    return result, np.logical_not(stays.all(axis=(1, 2, 3, 4)))
