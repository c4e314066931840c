"""What a network's kernels read and write, by name, and the programs that are made of them.

A `Workspace` names each array once. A kernel finds an argument by its own name for it, ``x`` say;
what every layer has is numbered: what the second layer's kernels call ``W`` is ``W2`` here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgrad.kernels import backward, forward
from fastgrad.kernels.bitmask import WORD, words
from fastgrad.kernels.central_difference import any_depth, two_layers
from fastgrad.runtime.programs import ROW, Program
from fastgrad.runtime.simd import LINE_BYTES

#: The kernels of a stage, each with the names of arguments that it calls otherwise.
Stage = list[tuple[Any, dict[str, str]]]


def aligned(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin at a cache line.

    NumPy aligns to 16 bytes, and then every other vector load touches two lines: products with
    non-zero entries took a third longer.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    offset = -raw.ctypes.data % LINE_BYTES
    return raw[offset : offset + size].view(dtype).reshape(shape)


def padded(size: int, dtype: DTypeLike) -> int:
    """Return the length of a row of whole cache lines that holds at least `size` numbers."""
    itemsize = np.dtype(dtype).itemsize
    return -(-size * itemsize // LINE_BYTES) * LINE_BYTES // itemsize


def rows_apart(chunks: int, columns: int, dtype: DTypeLike = np.int64) -> NDArray[Any]:
    """Return zeros with a row for each chunk to write to, in cache lines of its own."""
    return aligned((chunks, -(-columns // ROW) * ROW), dtype)


class Architecture(NamedTuple):
    """What the kernels know of a network before they read its parameters.

    Attributes
    ----------
    sizes : tuple of int
        Units of every layer, the input first.
    activation : int
        ``SIGMOID`` or ``RELU`` of `fastgrad.kernels.activations`.
    delta : float
    dtype : dtype
        Of the parameters.
    """

    sizes: tuple[int, ...]
    activation: int
    delta: float
    dtype: np.dtype[Any]


def parameter_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, W1, b1, W2, b2, .., of a network with these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"W{layer}"] = (n_in, n_out)
        shapes[f"b{layer}"] = (n_out,)
    return shapes


class Workspace:
    """The arrays of a network's kernels, for batches of one size and dtype, and their programs.

    Parameters
    ----------
    net : Architecture
    n : int
        Samples.
    chunks : int
        In how many chunks the work is divided.
    dtype : dtype
        Of the samples.

    Attributes
    ----------
    depth : int
        Layers.
    width : int
        The length of a row of hidden units, in whole cache lines.
    names : dict of str to ndarray, int or float
        What kernels read. Samples, targets, parameters and gradients are empty arrays of the right
        dtypes, in whose place the programs are given others.
    inputs, values : ndarray, shape (hidden layers, N, width)
    logits, probabilities : ndarray, shape (N, C)
    """

    def __init__(self, net: Architecture, n: int, chunks: int, dtype: np.dtype[Any]) -> None:
        sizes, number = net.sizes, net.dtype
        self.net, self.chunks, self.depth = net, chunks, len(sizes) - 1
        self.width = padded(max(sizes[1:-1], default=0) + 1, number)
        self.inputs, self.values, slopes, errors = (
            aligned((self.depth - 1, n, self.width), number) for _ in range(4)
        )
        self.logits, self.probabilities, logit_errors = (
            aligned((n, sizes[-1]), number) for _ in range(3)
        )
        self.names: dict[str, Any] = {
            "x": np.empty((0, sizes[0]), dtype),
            "labels": np.empty(0, np.int64),
            "soft": np.empty((0, sizes[-1]), number),
            "activation": net.activation,
            "delta": net.delta,
            "inputs": self.inputs,
            "values": self.values,
            "slopes": slopes,
            "logits": self.logits,
            "probabilities": self.probabilities,
            "sums": rows_apart(chunks, 1, np.float64),
            "bits": aligned((n, words(sizes[0])), np.uint64),
            "transposed_bits": aligned((chunks, words(n), WORD), np.uint64),
            "order": np.arange(n),
            "finite": rows_apart(chunks, 1),
        }
        for name, shape in parameter_shapes(sizes).items():
            self.names[name] = self.names[f"d{name}"] = np.empty((0, *shape[1:]), number)
        for k, size in enumerate(sizes[1:-1], start=1):
            hidden = {"out": self.inputs, "values": self.values, "slopes": slopes, "errors": errors}
            self.names |= {f"{name}{k}": array[k - 1] for name, array in hidden.items()}
            self.names[f"zeros{k}"] = np.zeros(size, number)
            self.names[f"transposed{k + 1}"] = aligned((sizes[k + 1], self.width), number)
        self.names |= {f"out{self.depth}": self.logits, f"errors{self.depth}": logit_errors}
        self._programs: dict[Any, Program] = {}

    def program(self, make: Callable[..., Program], *options: Any) -> Program:
        """Return one of the programs below, made, and compiled, when it is first asked for."""
        program = self._programs.get((make, options))
        if program is None:
            program = self._programs[make, options] = make(self, *options)
        return program

    @property
    def is_finite(self) -> bool:
        """Whether the weights that `affine_sparse` has read last are."""
        return 0 not in self.names["finite"][:, 0].tolist()  # in a tenth of the time of `all`


def layer(k: int) -> dict[str, str]:
    """Return the names of what layer k has of its own, counted from 1."""
    own = ("W", "b", "dW", "db", "out", "values", "slopes", "errors")
    names = {name: f"{name}{k}" for name in own}
    return names if k == 1 else {**names, "x": f"values{k - 1}"}


def layer_backward(k: int) -> dict[str, str]:
    """Return the names for the backward pass through layer k, an affine map of its errors."""
    names = {"x": f"errors{k}", "weights": f"W{k}", "W": f"transposed{k}", "b": f"zeros{k - 1}"}
    return {**names, "out": f"errors{k - 1}", "slopes": f"slopes{k - 1}"}


def forward_stage(depth: int, first: Any) -> Stage:
    """Return the kernels from the samples to the loss, the first layer's being `first`."""
    kernels: Stage = [(first, layer(1))]
    for k in range(2, depth + 1):
        kernels += [(forward.activate, layer(k - 1)), (forward.affine_dense, layer(k))]
    return [*kernels, (forward.softmax_loss, {})]


def backward_stage(depth: int) -> Stage:
    """Return the kernels from the loss to the first layer's inputs."""
    kernels: Stage = [(forward.softmax_loss_backward, layer(depth))]
    for k in range(depth, 1, -1):
        names = layer_backward(k)
        kernels += [(forward.affine_dense, names), (forward.multiply_slopes, names)]
    return kernels


def transposes(depth: int) -> Stage:
    """Return the kernels that transpose the weights for the backward pass."""
    return [(forward.transpose, layer_backward(k)) for k in range(2, depth + 1)]


# The programs. Those for sparse samples leave out products with zeros.


def forward_pass(space: Workspace, sparse: bool) -> Program:
    """Return the program that computes the loss."""
    first = forward.affine_sparse if sparse else forward.affine_dense
    return Program(space.chunks, space.names, forward_stage(space.depth, first))


def gradient(space: Workspace, sparse: bool) -> Program:
    """Return the program that computes the loss, and its gradient by backpropagation."""
    first = forward.affine_sparse if sparse else forward.affine_dense
    first_weights = backward.weights_sparse if sparse else backward.weights_dense
    return Program(
        space.chunks,
        space.names,
        transposes(space.depth) + forward_stage(space.depth, first),
        backward_stage(space.depth),
        [(first_weights, layer(1))]
        + [(backward.weights_dense, layer(k)) for k in range(2, space.depth + 1)],
    )


def series(space: Workspace) -> Program:
    """Return the program for the loss and central difference of two layers, h in series range."""
    number, rows, width = space.net.dtype, (space.chunks, space.net.sizes[0] + 1), space.width
    entries = np.zeros(rows, number)
    names = {
        "h": np.zeros(1),
        "logit_limit": two_layers.LOGIT_MOVE_LIMIT,
        "state": rows_apart(space.chunks, 2),
        "used": rows_apart(space.chunks, words(rows[1]), np.uint64),
        "positions": np.zeros(rows, np.uint32),
        "entries": entries,
        "entry_bits": entries.view(f"u{number.itemsize}"),
        "unique": np.zeros(rows, number),
        "inverse": np.zeros(rows, np.uint32),
        "table": np.zeros((space.chunks, two_layers.HASH_SLOTS + 1, 2), np.uint64),
        "coefficients": aligned((space.chunks, two_layers.COEFFICIENTS, width), number),
        "moves": aligned((space.chunks, 2, width), number),
        "changes": aligned((*rows, width), number),
        "differences": aligned((*rows, width), number),
        "columns": aligned((space.chunks, space.net.sizes[2], width), number),
    }
    own = {**layer(1), "inputs": "out1", "second": "transposed2"}
    return Program(
        space.chunks,
        space.names | names,
        transposes(2) + forward_stage(2, forward.affine_sparse),
        [(two_layers.perturb_second_layer, own), (two_layers.perturb_first_layer, own)],
        [(two_layers.collect, own)],
    )


def general(space: Workspace) -> Program:
    """Return the program for the central difference of any depth and h, after a forward pass."""
    number, width = space.net.dtype, padded(max(space.net.sizes[1:]), space.net.dtype)
    names = {
        "h": np.zeros(1),
        "sizes": np.array(space.net.sizes),
        "parameters": np.empty(0, number),
        "moves": np.zeros((space.chunks, 2, 2 * width, width), number),
        "zeros": np.zeros(width, number),
        "result": np.empty(0, number),
    }
    return Program(space.chunks, space.names | names, [(any_depth.perturb_rows, {})])
