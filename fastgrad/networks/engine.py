"""A fully connected network on its compiled side: one method per kind of call.

The networks keep their parameters as the user's plain arrays, and the kernels read them, and the
samples, where they are. An `Engine` serves one call at a time: load parameters, run, read results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastgrad.kernels.activations import ACTIVATIONS
from fastgrad.networks import workspace
from fastgrad.networks.workspace import Architecture, Workspace, parameter_shapes
from fastgrad.runtime import threads
from fastgrad.runtime.programs import Program
from fastgrad.validation import FloatArray, IntArray

#: The fraction of non-zero entries below which products over them alone beat dense products.
#: Measured with 50 hidden units: at 0.5 both take the same time, at 0.2 the former less than half.
SPARSE_BELOW = 0.4
#: Workspaces that an engine keeps: those of mini-batches, of the blocks of a larger set and of the
#: rest of it, while training is watched.
MAX_WORKSPACES = 6


class ParallelCost(NamedTuple):
    """What a kind of call costs, in bytes of parameters times samples.

    Attributes
    ----------
    enough : int
        The least cost that is worth a second thread.
    overhead : int
        How many samples cost as much as what does not depend on the batch: reading parameters and
        writing gradients.
    """

    enough: int
    overhead: int


#: Measured on 16 cores, with networks and batches like those of chapter 4: a forward pass, with or
#: without a backward pass; a central difference of two layers; and one of more or fewer layers.
PASS, SERIES, GENERAL = (
    ParallelCost(11_000_000, 24),
    ParallelCost(1_700_000, 4),
    ParallelCost(2_500, 4),
)


def is_sparse(x: NDArray[Any]) -> bool:
    """Return whether it pays to leave out the zeros of samples, by a look at the first two."""
    first = x[:2]
    # As a plain number: a comparison of NumPy's takes twice as long as all the rest.
    return int(np.count_nonzero(first)) < SPARSE_BELOW * first.size


class Engine:
    """The compiled side of one network, for one call at a time: that is for a ``with``.

    At its end an engine lets go of the parameters, so that it keeps nobody's arrays alive, and is
    idle again. One that an exception left in an unknown state is lost.

    Parameters
    ----------
    sizes : tuple of int
        Units of every layer, the input first.
    activation : {"sigmoid", "relu"}
    delta : float
    dtype : dtype
    decay : float
        Weight decay.

    Attributes
    ----------
    spaces : dict of Workspace
        Those that are kept, the oldest first, by samples, chunks and dtype.
    idle : list of Engine or None
        Where to wait after a call. Known during a call alone, or it and the list were a cycle.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str,
        delta: float,
        dtype: np.dtype[Any],
        decay: float = 0.0,
    ) -> None:
        self.sizes, self.dtype, self.decay = sizes, dtype, decay
        self.net = Architecture(sizes, ACTIVATIONS[activation], float(delta), dtype)
        #: Name, place in a flat array, and shape of every parameter.
        self._parts: list[tuple[str, slice, tuple[int, ...]]] = []
        self.n_parameters = 0
        for name, shape in parameter_shapes(sizes).items():
            first, self.n_parameters = self.n_parameters, self.n_parameters + math.prod(shape)
            self._parts.append((name, slice(first, self.n_parameters), shape))
        self._params: Mapping[str, FloatArray] = {}
        self.spaces: dict[Any, Workspace] = {}
        self.idle: list[Engine] | None = None

    def split(self, flat: FloatArray) -> dict[str, FloatArray]:
        """Return the parameters' shapes as views of one array, W1, b1, .., each row by row."""
        return {name: flat[part].reshape(shape) for name, part, shape in self._parts}

    def load(self, params: Mapping[str, FloatArray]) -> None:
        """Have calls read these parameters, canonical arrays in the order of `parameter_shapes`."""
        self._params = params

    def release(self) -> None:
        """Let go of the parameters."""
        self._params = {}

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Be idle again, unless an exception ended the call."""
        idle, self.idle = self.idle, None
        if kind is None and idle is not None:
            self.release()
            idle.append(self)

    def workspace(self, n: int, dtype: np.dtype[Any], cost: ParallelCost) -> Workspace:
        """Return a workspace for a batch of this size and dtype, kept for the next ones alike."""
        work = self.n_parameters * self.dtype.itemsize * (n + cost.overhead)
        key = n, threads.chunks(work, cost.enough), dtype
        space = self.spaces.get(key)
        if space is None:
            if len(self.spaces) == MAX_WORKSPACES:
                del self.spaces[next(iter(self.spaces))]  # the oldest
            space = self.spaces[key] = Workspace(self.net, *key)
        return space

    def forward(
        self, x: Any, labels: IntArray, soft: FloatArray, cost: ParallelCost = PASS
    ) -> Workspace:
        """Run the forward pass over samples as one batch; return what it leaves."""
        return self._run(workspace.forward_pass, cost, x, labels, soft)

    def loss(self, x: Any, labels: IntArray, soft: FloatArray) -> float:
        """Return the loss over samples as one batch."""
        return self._loss(self.forward(x, labels, soft))

    def gradient(
        self, x: Any, labels: IntArray, soft: FloatArray
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the loss over samples as one batch, and its gradient.

        A loss of NaN makes every entry NaN, also where a product with a zero was left out.
        """
        flat = np.empty(self.n_parameters, self.dtype)
        result = self.split(flat)
        loss = self._loss(self._run(workspace.gradient, PASS, x, labels, soft, result))
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
        space = self.workspace(len(x), x.dtype, SERIES)
        program = space.program(workspace.series)
        program.names["h"][0] = h
        self._bind(program, x, labels, soft, result)
        program.launch()
        # Lists of a few numbers: `np.all` along an axis takes 3 of 18 microseconds.
        finite, in_range = map(all, zip(*program.names["state"][:, :2].tolist(), strict=True))
        if not finite or not space.is_finite:
            return math.nan, True
        return self._loss(space), in_range

    def _in_general(
        self, x: Any, labels: IntArray, soft: FloatArray, h: float, result: FloatArray
    ) -> float:
        """Compute it for any number of layers, and h of any size; return the loss."""
        space = self.forward(x, labels, soft, GENERAL)
        parameters = np.concatenate([array.reshape(-1) for array in self._params.values()])
        is_finite = np.count_nonzero(np.isfinite(parameters)) == parameters.size
        loss = self._loss(space) if is_finite else math.nan
        if math.isfinite(loss):
            result.fill(0)
            program = space.program(workspace.general)
            program.names["h"][0] = h
            program.bind(x=x, labels=labels, soft=soft, parameters=parameters, result=result)
            program.launch()
        return loss

    def _bind(
        self,
        program: Program,
        x: Any,
        labels: IntArray,
        soft: FloatArray,
        result: Mapping[str, FloatArray] = {},
    ) -> None:
        """Have a program read samples, targets and the parameters, and write a gradient."""
        gradients = {f"d{name}": array for name, array in result.items()}
        program.bind(x=x, labels=labels, soft=soft, **self._params, **gradients)

    def _run(
        self, make: Callable[[Workspace, bool], Program], cost: ParallelCost, x: Any, *arrays: Any
    ) -> Workspace:
        """Run one of two programs, that for sparse samples or the other one; see `_bind`."""
        space = self.workspace(len(x), x.dtype, cost)
        for sparse in (True, False) if is_sparse(x) else (False,):
            program = space.program(make, sparse)
            self._bind(program, x, *arrays)
            program.launch()
            # Else a product that was left out may have been infinity times zero.
            if sparse and space.is_finite:
                break
        return space

    def _loss(self, space: Workspace) -> float:
        """Return the mean of the samples' losses, and the penalty for large weights."""
        loss: float = sum(space.names["sums"][:, 0].tolist()) / len(space.logits)
        if self.decay:
            # `vdot` would start threads of its own, which are then in the way of ours.
            squares = sum(float(np.einsum("ij,ij", W, W)) for W in self._weights())
            loss += 0.5 * self.decay * squares
        return loss

    def _add_decay(self, result: dict[str, FloatArray]) -> None:
        """Add the derivative of the penalty to a gradient by all parameters."""
        if self.decay:
            for array, W in zip(list(result.values())[::2], self._weights(), strict=True):
                array += self.dtype.type(self.decay) * W

    def _weights(self) -> list[FloatArray]:
        return list(self._params.values())[::2]
