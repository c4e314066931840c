"""Scratch memory of a network's kernels, and the programs that run on it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgrad.kernels import backward, forward
from fastgrad.kernels.bitmask import WORD, words
from fastgrad.kernels.central_difference import any_depth, two_layers
from fastgrad.runtime.steps import ROW, Arguments, Program, binder, launch, program, progress_rows
from fastgrad.validation import FloatArray

#: Bytes that arrays, and rows of scratch, are aligned to: a cache line.
LINE_BYTES = 64


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
    decay : float
        Weight decay.
    dtype : dtype
        Of the parameters.
    """

    sizes: tuple[int, ...]
    activation: int
    delta: float
    decay: float
    dtype: np.dtype[Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, W1, b1, W2, b2, .."""
        return parameter_shapes(self.sizes)


def parameter_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, W1, b1, W2, b2, .., of a network with these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"W{layer}"] = (n_in, n_out)
        shapes[f"b{layer}"] = (n_out,)
    return shapes


class Workspace:
    """Scratch and programs for batches of one size and dtype, divided into some chunks.

    Parameters
    ----------
    net : Architecture
    n : int
        Samples.
    chunks : int
    dtype : dtype
        Of the samples.

    Attributes
    ----------
    layers, back : list of Arguments
        Of the layers, and of the way back through all but the first: see
        `fastgrad.kernels.forward`.
    loss : Arguments
    inputs, values, slopes, errors : ndarray, shape (hidden layers, N, width)
    logits, probabilities, logit_errors : ndarray, shape (N, C)
    """

    def __init__(self, net: Architecture, n: int, chunks: int, dtype: np.dtype[Any]) -> None:
        sizes, number = net.sizes, net.dtype
        hidden, n_classes = sizes[1:-1], sizes[-1]
        self.net, self.chunks = net, chunks
        #: In the place of the parameters, until some are bound.
        self.placeholders = [np.empty(shape, number) for shape in net.shapes().values()]
        self.width = padded(max(hidden, default=0) + 1, number)
        self.progress = progress_rows(chunks)
        self.x = np.empty((n, sizes[0]), dtype)  # in place of the samples to come
        self.labels, self.soft = np.empty(0, np.int64), np.empty((0, n_classes), number)
        self.bits = aligned((n, words(sizes[0])), np.uint64)
        self.inputs, self.values, self.slopes, self.errors = (
            aligned((len(hidden), n, self.width), number) for _ in range(4)
        )
        self.logits, self.probabilities, self.logit_errors = (
            aligned((n, n_classes), number) for _ in range(3)
        )
        #: W2, W3, .. transposed.
        self.transposed = [aligned((size, self.width), number) for size in sizes[2:]]
        self.zeros = aligned((self.width,), number)
        self.sums, self.finite = rows_apart(chunks, 1, np.float64), rows_apart(chunks, 1)
        self.state = rows_apart(chunks, 2)
        self.order = np.arange(n)
        self.transposed_bits = aligned((chunks, words(n), WORD), np.uint64)
        self.loss = Arguments(
            logits=self.logits,
            probabilities=self.probabilities,
            errors=self.logit_errors,
            labels=self.labels,
            soft=self.soft,
            delta=net.delta,
            sums=self.sums,
        )
        self.layers = [self._layer(k) for k in range(len(sizes) - 1)]
        self.back = [self._backward_layer(k) for k in range(1, len(sizes) - 1)]
        self._bind = binder(
            [(self.layers[0], "x"), (self.loss, "labels"), (self.loss, "soft")]
            + [(layer, name) for layer in self.layers for name in "Wb"]
            + [(layer, "weights") for layer in self.back]
        )
        #: Has the kernels write the gradient, W1, b1, W2, .., into other arrays.
        self.bind_result = binder([(layer, d) for layer in self.layers for d in ("dW", "db")])

    def _layer(self, k: int) -> Arguments:
        W, b = self.placeholders[2 * k : 2 * k + 2]
        is_last = k == len(self.inputs)
        return Arguments(
            x=self.values[k - 1] if k else self.x,
            W=W,
            b=b,
            out=self.logits if is_last else self.inputs[k],
            values=self.logits if is_last else self.values[k],  # the last has none
            slopes=self.logits if is_last else self.slopes[k],
            errors=self.logit_errors if is_last else self.errors[k],
            activation=self.net.activation,
            dW=W,
            db=b,
            bits=self.bits,
            finite=self.finite,
            order=self.order,
            transposed_bits=self.transposed_bits,
        )

    def _backward_layer(self, k: int) -> Arguments:
        return Arguments(
            # These first, as in a layer: so `affine_dense` is compiled once for both.
            x=self.logit_errors if k == len(self.inputs) else self.errors[k],
            W=self.transposed[k - 1],
            b=self.zeros[: self.net.sizes[k]],
            out=self.errors[k - 1],
            weights=self.placeholders[2 * k],
            slopes=self.slopes[k - 1],
        )

    def bind(self, params: Sequence[FloatArray], x: Any, labels: Any, soft: Any) -> None:
        """Have the kernels read these parameters, samples and targets."""
        self._bind([x, labels, soft, *params, *params[2::2]])

    def launch(self, steps: Program) -> None:
        """Run a program."""
        launch(steps, self.progress)

    @property
    def is_finite(self) -> bool:
        """Whether the weights that `affine_sparse` has read last are."""
        return 0 not in self.finite[:, 0].tolist()  # in a tenth of the time of `all`

    # What a program needs is compiled when it is made: when it is first asked for.

    def forward(self, first: Any, transpose: bool = False) -> list[tuple[Any, Arguments]]:
        """Return the kernels of the forward pass, from the samples to the loss."""
        kernels = [(forward.transpose, layer) for layer in self.back if transpose]
        kernels.append((first, self.layers[0]))
        for below, layer in itertools.pairwise(self.layers):
            kernels += [(forward.activate, below), (forward.affine_dense, layer)]
        return [*kernels, (forward.softmax_loss, self.loss)]

    def backward(self) -> list[tuple[Any, Arguments]]:
        """Return the kernels of the backward pass, from the loss to the first layer's inputs."""
        kernels = [(forward.softmax_loss_backward, self.loss)]
        for layer in reversed(self.back):
            kernels += [(forward.affine_dense, layer), (forward.multiply_slopes, layer)]
        return kernels

    @functools.cached_property
    def forward_sparse(self) -> Program:
        """The forward pass, leaving out the zeros of the samples."""
        return program(self.forward(forward.affine_sparse))

    @functools.cached_property
    def forward_dense(self) -> Program:
        """The forward pass."""
        return program(self.forward(forward.affine_dense))

    @functools.cached_property
    def gradient_sparse(self) -> Program:
        """Forward pass, backward pass and gradient, leaving out the zeros of the samples."""
        return self._gradient(forward.affine_sparse, backward.weights_sparse)

    @functools.cached_property
    def gradient_dense(self) -> Program:
        """Forward pass, backward pass and gradient."""
        return self._gradient(forward.affine_dense, backward.weights_dense)

    def _gradient(self, first: Any, first_weights: Any) -> Program:
        weights = [(backward.weights_dense, layer) for layer in self.layers[1:]]
        return program(
            self.forward(first, transpose=True),
            self.backward(),
            [(first_weights, self.layers[0]), *weights],
        )

    @functools.cached_property
    def series(self) -> tuple[Arguments, Program]:
        """The central difference of a network of two layers, and the arguments of its own steps."""
        cd, number = two_layers, self.net.dtype
        rows, width = (self.chunks, self.x.shape[1] + 1), self.width
        W1, b1, W2, b2 = self.placeholders
        entries = np.zeros(rows, number)
        args = Arguments(
            x=self.x,
            bits=self.bits,
            b1=b1,
            W2=W2,
            b2=b2,
            second=self.transposed[0],
            inputs=self.inputs[0],
            values=self.values[0],
            slopes=self.slopes[0],
            probabilities=self.probabilities,
            labels=self.labels,
            soft=self.soft,
            activation=self.net.activation,
            delta=self.net.delta,
            h=0.0,
            logit_limit=0.0,
            state=self.state,
            used=rows_apart(self.chunks, words(rows[1]), np.uint64),
            positions=np.zeros(rows, np.uint32),
            entries=entries,
            entry_bits=entries.view(f"u{number.itemsize}"),
            unique=np.zeros(rows, number),
            inverse=np.zeros(rows, np.uint32),
            table=np.zeros((self.chunks, cd.HASH_SLOTS + 1, 2), np.uint64),
            coefficients=aligned((self.chunks, cd.COEFFICIENTS, width), number),
            moves=aligned((self.chunks, 2, width), number),
            changes=aligned((*rows, width), number),
            sums=aligned((*rows, width), number),
            columns=aligned((self.chunks, self.net.sizes[2], width), number),
            dW1=W1,
            db1=b1,
            dW2=W2,
            db2=b2,
        )
        own = [(cd.perturb_second_layer, args), (cd.perturb_first_layer, args)]
        steps = program(
            self.forward(forward.affine_sparse, transpose=True), own, [(cd.collect, args)]
        )
        return args, steps

    @functools.cached_property
    def general(self) -> tuple[Arguments, Program]:
        """The central difference of any network, and its arguments; after a forward pass."""
        number = self.net.dtype
        flat = np.empty(sum(array.size for array in self.placeholders), number)
        width = padded(max(self.net.sizes[1:]), number)
        args = Arguments(
            sizes=np.array(self.net.sizes),
            parameters=flat,
            x=self.x,
            inputs=self.inputs,
            values=self.values,
            slopes=self.slopes,
            logits=self.logits,
            probabilities=self.probabilities,
            labels=self.labels,
            soft=self.soft,
            activation=self.net.activation,
            delta=self.net.delta,
            h=0.0,
            moves=np.zeros((self.chunks, 2, 2 * width, width), number),
            zeros=np.zeros(width, number),
            result=flat,
        )
        return args, program([(any_depth.perturb_rows, args)])
