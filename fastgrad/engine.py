"""A fully connected network on its compiled side: workspaces, and one method per kind of call.

The networks keep their parameters as the user's plain arrays, and the kernels read them, and the
samples, where they are. An `Engine` serves one call at a time: load parameters, run, read results.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgrad import threads
from fastgrad.arrays import FloatArray, IntArray
from fastgrad.kernels import (
    activations,
    central_difference,
    central_difference_general,
    forward,
    gradient,
)
from fastgrad.kernels.bitmask import WORD, words
from fastgrad.kernels.runtime import ROW, Arguments, Program, launch, program, progress_rows

#: Share of non-zero entries below which products over them alone beat dense products (measured: at
#: 0.5 both take the same time with 50 hidden units, at 0.2 the former take less than half).
SPARSE_BELOW = 0.4
#: Bytes that arrays, and rows of scratch, are aligned to: a cache line.
LINE_BYTES = 64

ACTIVATIONS = {"sigmoid": activations.SIGMOID, "relu": activations.RELU}


class Effort(NamedTuple):
    """What a kind of call costs, in bytes of parameters times samples.

    Attributes
    ----------
    enough : int
        How much pays for a launch on two threads.
    overhead : int
        The cost that does not depend on the batch, for parameters are read and gradients are
        written, in samples.
    """

    enough: int
    overhead: int


#: Measured on 16 cores, with networks and batches like those of chapter 4: a forward pass, with or
#: without a backward pass; a central difference of two layers; and one of more or fewer layers.
PASS, SERIES, GENERAL = Effort(11_000_000, 24), Effort(1_700_000, 4), Effort(2_500, 4)


def aligned(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin at a cache line.

    NumPy aligns to 16 bytes, and then every 64-byte vector load touches two lines: products with
    non-zero entries took a third longer.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    offset = -raw.ctypes.data % LINE_BYTES
    return raw[offset : offset + size].view(dtype).reshape(shape)


def padded(size: int, dtype: DTypeLike) -> int:
    """Return the length of a row of whole cache lines with room for `size` numbers."""
    itemsize = np.dtype(dtype).itemsize
    return -(-size * itemsize // LINE_BYTES) * LINE_BYTES // itemsize


def rows_apart(chunks: int, columns: int, dtype: DTypeLike = np.int64) -> NDArray[Any]:
    """Return zeros with a row for each chunk to write to, in cache lines of its own."""
    return aligned((chunks, -(-columns // ROW) * ROW), dtype)


def parameter_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, W1, b1, W2, b2, .., of a network with these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"W{layer}"] = (n_in, n_out)
        shapes[f"b{layer}"] = (n_out,)
    return shapes


def is_sparse(x: NDArray[Any]) -> bool:
    """Return whether it pays to leave out the zeros of samples, by a look at one or two of them."""
    count = np.count_nonzero(x[0]) + np.count_nonzero(x[len(x) // 2])
    return bool(count < 2 * SPARSE_BELOW * x.shape[1])


class Workspace:
    """Scratch and programs for batches of one size and dtype, dealt out to some chunks.

    Attributes
    ----------
    layers, back : list of Arguments
        Of the layers, and of the way back through all but the first: see
        `fastgrad.kernels.forward`.
    loss : Arguments
    inputs, values, slopes, errors : ndarray, shape (hidden layers, N, width)
    logits, probabilities, logit_errors : ndarray, shape (N, C)
    """

    def __init__(self, engine: Engine, n: int, chunks: int, dtype: np.dtype[Any]) -> None:
        sizes, number = engine.sizes, engine.dtype
        hidden, n_classes = sizes[1:-1], sizes[-1]
        self.engine, self.chunks = engine, chunks
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
        self.turned = aligned((chunks, words(n), WORD), np.uint64)
        self.loss = Arguments(
            logits=self.logits,
            probabilities=self.probabilities,
            errors=self.logit_errors,
            labels=self.labels,
            soft=self.soft,
            delta=engine.delta,
            sums=self.sums,
        )
        self.layers = [self._layer(k) for k in range(len(sizes) - 1)]
        self.back = [self._way_back(k) for k in range(1, len(sizes) - 1)]
        self._point_x = self.layers[0].pointing("x")
        self._point_params = [layer.pointing(name) for layer in self.layers for name in "Wb"]
        self._point_back = [layer.pointing("weights") for layer in self.back]
        self._point_result = [
            layer.pointing(name) for layer in self.layers for name in ("dW", "db")
        ]

    def _layer(self, k: int) -> Arguments:
        W, b = self.engine.placeholders[2 * k : 2 * k + 2]
        is_last = k == len(self.inputs)
        return Arguments(
            x=self.values[k - 1] if k else self.x,
            W=W,
            b=b,
            out=self.logits if is_last else self.inputs[k],
            values=self.logits if is_last else self.values[k],  # the last has none
            slopes=self.logits if is_last else self.slopes[k],
            errors=self.logit_errors if is_last else self.errors[k],
            activation=self.engine.activation,
            dW=W,
            db=b,
            bits=self.bits,
            finite=self.finite,
            order=self.order,
            turned=self.turned,
        )

    def _way_back(self, k: int) -> Arguments:
        return Arguments(
            # These first, as in a layer: so `affine_dense` is compiled once for both.
            x=self.logit_errors if k == len(self.inputs) else self.errors[k],
            W=self.transposed[k - 1],
            b=self.zeros[: self.engine.sizes[k]],
            out=self.errors[k - 1],
            weights=self.engine.placeholders[2 * k],
            slopes=self.slopes[k - 1],
        )

    def point(self, params: Sequence[FloatArray], x: Any, labels: Any, soft: Any) -> None:
        """Have the kernels read these parameters, samples and targets."""
        self._point_x(x)
        for point, array in zip(self._point_params, params, strict=True):
            point(array)
        for point, array in zip(self._point_back, params[2::2], strict=True):
            point(array)
        self.loss.set(labels=labels, soft=soft)

    def point_result(self, arrays: Iterable[FloatArray]) -> None:
        """Have the kernels write the gradient, W1, b1, W2, .., into these arrays."""
        for point, array in zip(self._point_result, arrays, strict=True):
            point(array)

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
        return self._gradient(forward.affine_sparse, gradient.weights_sparse)

    @functools.cached_property
    def gradient_dense(self) -> Program:
        """Forward pass, backward pass and gradient."""
        return self._gradient(forward.affine_dense, gradient.weights_dense)

    def _gradient(self, first: Any, first_weights: Any) -> Program:
        weights = [(gradient.weights_dense, layer) for layer in self.layers[1:]]
        return program(
            self.forward(first, transpose=True),
            self.backward(),
            [(first_weights, self.layers[0]), *weights],
        )

    @functools.cached_property
    def series(self) -> tuple[Arguments, Program]:
        """The central difference of a network of two layers, and the arguments of its own steps."""
        cd, number = central_difference, self.engine.dtype
        rows, width = (self.chunks, self.x.shape[1] + 1), self.width
        W1, b1, W2, b2 = self.engine.placeholders
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
            activation=self.engine.activation,
            delta=self.engine.delta,
            h=0.0,
            logit_limit=0.0,
            state=self.state,
            used=rows_apart(self.chunks, words(rows[1]), np.uint64),
            positions=np.zeros(rows, np.uint32),
            entries=entries,
            entry_bits=entries.view(f"u{number.itemsize}"),
            unique=np.zeros(rows, number),
            up=np.zeros(rows, number),
            down=np.zeros(rows, number),
            inverse=np.zeros(rows, np.uint32),
            table=np.zeros((self.chunks, cd.HASH_SLOTS + 1, 2), np.uint64),
            coefficients=aligned((self.chunks, cd.COEFFICIENTS, width), number),
            moves=aligned((self.chunks, 2, width), number),
            changes=aligned((*rows, width), number),
            sums=aligned((*rows, width), number),
            columns=aligned((self.chunks, self.engine.sizes[2], width), number),
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
        number, flat = self.engine.dtype, np.empty(self.engine.n_parameters, self.engine.dtype)
        width = padded(max(self.engine.sizes[1:]), number)
        args = Arguments(
            sizes=np.array(self.engine.sizes),
            parameters=flat,
            x=self.x,
            inputs=self.inputs,
            values=self.values,
            slopes=self.slopes,
            logits=self.logits,
            probabilities=self.probabilities,
            labels=self.labels,
            soft=self.soft,
            activation=self.engine.activation,
            delta=self.engine.delta,
            h=0.0,
            moves=np.zeros((self.chunks, 2, 2 * width, width), number),
            zeros=np.zeros(width, number),
            result=flat,
        )
        return args, program([(central_difference_general.perturb_rows, args)])


class Engine:
    """The compiled side of one network, for one call at a time.

    Parameters
    ----------
    sizes : tuple of int
        Units of every layer, the input first.
    activation : {"sigmoid", "relu"}
    delta : float
    dtype : dtype
    decay : float
        Weight decay.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str,
        delta: float,
        dtype: np.dtype[Any],
        decay: float = 0.0,
    ) -> None:
        self.sizes, self.dtype = sizes, dtype
        self.activation = ACTIVATIONS[activation]
        self.delta, self.decay = float(delta), decay
        shapes = parameter_shapes(sizes)
        self.placeholders = [np.empty(shape, dtype) for shape in shapes.values()]
        #: Name, place in a flat array, and shape of every parameter.
        self._parts: list[tuple[str, slice, tuple[int, ...]]] = []
        self.n_parameters = 0
        for name, shape in shapes.items():
            first, self.n_parameters = self.n_parameters, self.n_parameters + math.prod(shape)
            self._parts.append((name, slice(first, self.n_parameters), shape))
        self._params: list[FloatArray] = []
        self._spaces: dict[Any, Workspace] = {}

    def split(self, flat: FloatArray) -> dict[str, FloatArray]:
        """Return the parameters' shapes as views of one array, W1, b1, .., each row by row."""
        return {name: flat[part].reshape(shape) for name, part, shape in self._parts}

    def load(self, params: Mapping[str, FloatArray]) -> None:
        """Have calls read these parameters, canonical arrays in the order of `parameter_shapes`."""
        self._params = list(params.values())

    def release(self) -> None:
        """Let go of the parameters: an idle engine keeps nobody's arrays alive."""
        self._params = []

    def workspace(self, n: int, dtype: np.dtype[Any], effort: Effort) -> Workspace:
        """Return a workspace for a batch of this size and dtype, kept for the next one alike."""
        work = self.n_parameters * self.dtype.itemsize * (n + effort.overhead)
        key = n, threads.chunks(work, effort.enough), dtype
        space = self._spaces.get(key)
        if space is None:
            if n not in (kept[0] for kept in self._spaces):
                self._spaces.clear()
            space = self._spaces[key] = Workspace(self, *key)
        return space

    def forward(self, x: Any, labels: IntArray, soft: FloatArray) -> tuple[float, Workspace]:
        """Run the forward pass over samples as one batch; return the loss, and all the rest."""
        space = self._pointed(x, labels, soft, PASS)
        self._run(space, is_sparse(x), "forward")
        return self._loss(space), space

    def gradient(
        self, x: Any, labels: IntArray, soft: FloatArray
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the loss over samples as one batch, and its gradient.

        A loss of NaN makes every entry NaN, also where a product with a zero was left out.
        """
        space = self._pointed(x, labels, soft, PASS)
        flat = np.empty(self.n_parameters, self.dtype)
        result = self.split(flat)
        space.point_result(result.values())
        self._run(space, is_sparse(x), "gradient")
        loss = self._loss(space)
        self._add_decay(result)
        if math.isnan(loss):
            flat.fill(np.nan)
        return loss, result

    def central_difference(
        self, x: Any, labels: IntArray, soft: FloatArray, h: float
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the loss over samples as one batch, and its central difference.

        Evaluates the loss at both perturbed points of every parameter, see
        `fastgrad.kernels.central_difference`. A loss or a parameter that is not finite makes every
        entry NaN, as it would if the losses themselves were subtracted.
        """
        flat = np.empty(self.n_parameters, self.dtype)
        result = self.split(flat)
        loss, in_range = math.nan, False
        if len(self.sizes) == 3:
            loss, in_range = self._in_series(x, labels, soft, h, result)
        if not in_range:
            loss = self._in_general(x, labels, soft, h, flat)
        # The penalty decay / 2 w**2 moves by decay / 2 (2 w h + h**2) and its mirror image: their
        # difference, divided by 2h, is decay * w.
        self._add_decay(result)
        if not math.isfinite(loss):
            flat.fill(np.nan)
        return loss, result

    def _in_series(
        self, x: Any, labels: IntArray, soft: FloatArray, h: float, result: dict[str, FloatArray]
    ) -> tuple[float, bool]:
        """Compute it for two layers; return the loss, and whether h was in series range."""
        space = self._pointed(x, labels, soft, SERIES)
        args, steps = space.series
        _, b1, W2, b2 = self._params
        limit = central_difference.LOGIT_MOVE_LIMIT
        args.set(x=x, labels=labels, soft=soft, b1=b1, W2=W2, b2=b2, h=h, logit_limit=limit)
        args.set(**{f"d{name}": array for name, array in result.items()})
        space.launch(steps)
        finite, in_range = np.all(space.state[:, :2], axis=0)
        if not finite or not space.is_finite:
            return math.nan, True
        return self._loss(space), bool(in_range)

    def _in_general(
        self, x: Any, labels: IntArray, soft: FloatArray, h: float, result: FloatArray
    ) -> float:
        """Compute it for any number of layers, and h of any size; return the loss."""
        space = self._pointed(x, labels, soft, GENERAL)
        self._run(space, False, "forward")
        parameters = np.concatenate([array.reshape(-1) for array in self._params])
        loss = self._loss(space) if np.isfinite(parameters).all() else math.nan
        if math.isfinite(loss):
            result.fill(0)
            args, steps = space.general
            args.set(x=x, labels=labels, soft=soft, parameters=parameters, h=h, result=result)
            space.launch(steps)
        return loss

    def _pointed(self, x: Any, labels: IntArray, soft: FloatArray, effort: Effort) -> Workspace:
        """Return a workspace whose kernels read the parameters, and these samples and targets."""
        space = self.workspace(len(x), x.dtype, effort)
        space.point(self._params, x, labels, soft)
        return space

    def _run(self, space: Workspace, sparse: bool, aim: str) -> None:
        """Run one of the programs ``forward`` and ``gradient``."""
        if sparse:
            space.launch(getattr(space, f"{aim}_sparse"))
            if space.is_finite:
                return
        # Otherwise a product that was left out may have been infinity times zero.
        space.launch(getattr(space, f"{aim}_dense"))

    def _loss(self, space: Workspace) -> float:
        """Return the mean of the samples' losses, and the penalty for large weights."""
        loss: float = sum(space.sums[:, 0].tolist()) / len(space.order)
        if self.decay:
            loss += 0.5 * self.decay * sum(float(np.vdot(W, W)) for W in self._params[::2])
        return loss

    def _add_decay(self, result: dict[str, FloatArray]) -> None:
        """Add the derivative of the penalty to a gradient by all parameters."""
        if self.decay:
            for array, W in zip(list(result.values())[::2], self._params[::2], strict=True):
                array += self.dtype.type(self.decay) * W
