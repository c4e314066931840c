"""A fully connected network on its compiled side: padded parameters, scratch, and kernel calls.

The networks keep their parameters as the user's plain arrays; the kernels of
`fastgrad.kernels.iteration` want them padded and in one piece. An `Engine` is the bridge for one
call at a time: load parameters, run, read results.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgrad.arrays import FloatArray, IntArray
from fastgrad.kernels import central_difference, iteration
from fastgrad.threads import launch

#: Share of non-zero entries below which lists of them beat dense products (measured: at 0.5 both
#: take the same time with 50 hidden units, at 0.2 lists take less than half).
SPARSE_BELOW = 0.4

ACTIVATIONS = {"sigmoid": iteration.SIGMOID, "relu": iteration.RELU}


def aligned(shape: Sequence[int], dtype: DTypeLike, *, zero: bool = True) -> NDArray[Any]:
    """Return an array that begins at a cache line.

    NumPy aligns to 16 bytes, and then every 64-byte vector load touches two lines: the list
    products took a third longer.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (np.zeros if zero else np.empty)(size + iteration.REGISTER_BYTES, np.uint8)
    offset = -raw.ctypes.data % iteration.REGISTER_BYTES
    return raw[offset : offset + size].view(dtype).reshape(shape)


def parameter_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, W1, b1, W2, b2, .., of a network with these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"W{layer}"] = (n_in, n_out)
        shapes[f"b{layer}"] = (n_out,)
    return shapes


@dataclass(frozen=True)
class Layout:
    """Where a network's parameters lie in the padded matrices (see the iteration kernels)."""

    sizes: IntArray
    widths: IntArray
    weights_at: IntArray
    transposed_at: IntArray
    weights_shape: tuple[int, int, int]
    transposed_shape: tuple[int, int, int]


@functools.lru_cache(maxsize=64)
def layout(sizes: tuple[int, ...], dtype: np.dtype[Any]) -> Layout:
    """Return the layout of a network."""
    widths = [iteration.padded_width(size, dtype.itemsize) for size in sizes]
    group = iteration.GROUP
    rows = [-(-(size + 1) // group) * group for size in sizes[:-1]]
    back = [0] + [-(-size // group) * group for size in sizes[2:]]
    widest = max(widths[1:])
    return Layout(
        np.array(sizes),
        np.array(widths),
        np.cumsum([0, *rows[:-1]]),
        np.cumsum([0, *back[:-1]]),
        (1, sum(rows), widest),
        (1, sum(back), widest),
    )


class Samples:
    """Samples in the form the kernels want: padded rows, or lists of non-zero entries.

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Samples of the network's dtype.
    sparse : bool, optional
        Whether to make lists; by default that is decided by the share of non-zero entries.
    compact : bool, optional
        Whether lists follow each other without gaps: for a data set that stays. A batch takes less
        time with room for every entry.
    """

    def __init__(self, x: FloatArray, *, sparse: bool | None = None, compact: bool = False) -> None:
        n, n_inputs = x.shape
        self.sparse = is_sparse(x) if sparse is None else sparse
        self.count = n
        self.n_inputs = n_inputs
        self.shares = numba.get_num_threads()
        self.dense = np.empty((1, 0, 0), x.dtype)
        self.start = np.zeros((0, self.shares + 1), np.int64)
        size = 0
        if self.sparse:
            self.start = np.zeros((n, self.shares + 1), np.int64)
            if compact:
                lengths = np.empty(n, np.int64)
                launch(iteration.list_lengths, x, lengths)
            else:
                lengths = np.full(n, n_inputs + 1)
            np.cumsum(lengths[:-1], out=self.start[1:, 0])
            size = int(lengths.sum()) + 1  # a zero is written before it is overwritten
        else:
            width = iteration.padded_width(n_inputs, x.itemsize)
            self.dense = aligned((1, n, width), x.dtype)
            self.dense[0, :, n_inputs] = 1
        self.index = np.empty((1, size), np.uint32)
        self.value = np.empty((1, size), x.dtype)
        self.fill(x)

    def fill(self, x: FloatArray) -> None:
        """Take over samples of the same shape."""
        if self.sparse:
            launch(iteration.group_nonzeros, x, self.start, self.index, self.value)
        else:
            self.dense[0, :, : self.n_inputs] = x

    def fits(self, x: FloatArray, sparse: bool) -> bool:
        """Return whether `fill` can take over these samples."""
        return (
            x.shape == (self.count, self.n_inputs)
            and sparse == self.sparse
            and self.shares == numba.get_num_threads()
        )


def is_sparse(x: FloatArray) -> bool:
    """Return whether lists of non-zero entries pay, judged by sixteen of the samples."""
    seen = x[:: max(1, len(x) // 16)]
    return bool(np.count_nonzero(seen != 0) < SPARSE_BELOW * seen.size)


class Engine:
    """Padded parameters of one network, and scratch for one call at a time.

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
        self.sizes = sizes
        self.dtype = dtype
        self.layout = layout(sizes, dtype)
        self.activation = ACTIVATIONS[activation]
        self.delta = delta
        self.decay = decay
        self.weights = aligned(self.layout.weights_shape, dtype)
        self.transposed = aligned(self.layout.transposed_shape, dtype)
        self.gradient = aligned(self.layout.weights_shape, dtype)
        self._scratch_key: tuple[int, ...] = ()
        self._nudge_key: tuple[int, ...] = ()
        self._samples: Samples | None = None
        self.finite = True
        self.n_batch = 0

    def pack(self, arrays: Mapping[str, FloatArray], packed: FloatArray) -> None:
        """Copy arrays W1, b1, .. into a padded matrix."""
        for layer, at in enumerate(self.layout.weights_at, start=1):
            n_in, n_out = self.sizes[layer - 1 : layer + 1]
            packed[0, at : at + n_in, :n_out] = arrays[f"W{layer}"]
            packed[0, at + n_in, :n_out] = arrays[f"b{layer}"]

    def unpack(self, packed: FloatArray, into: Mapping[str, FloatArray]) -> None:
        """Copy a padded matrix into arrays W1, b1, .."""
        for layer, at in enumerate(self.layout.weights_at, start=1):
            n_in, n_out = self.sizes[layer - 1 : layer + 1]
            into[f"W{layer}"][...] = packed[0, at : at + n_in, :n_out]
            into[f"b{layer}"][...] = packed[0, at + n_in, :n_out]

    def load(self, params: Mapping[str, FloatArray]) -> None:
        """Take over parameters."""
        self.pack(params, self.weights)
        self.refresh()

    def refresh(self) -> None:
        """Bring the transposed weights in step with the weights."""
        where = self.layout
        self.finite = iteration.transpose(
            where.sizes, where.weights_at, where.transposed_at, self.weights, self.transposed
        )

    def samples(self, x: FloatArray, *, sparse: bool | None = None) -> Samples:
        """Return a batch in the kernels' form, in the memory of the last one where that fits.

        Lists leave out the products of zeros. Where a weight is NaN or infinite such a product is
        NaN, so then rows are taken unless lists are asked for.
        """
        sparse = (self.finite and is_sparse(x)) if sparse is None else sparse
        if self._samples is not None and self._samples.fits(x, sparse):
            self._samples.fill(x)
        else:
            self._samples = Samples(x, sparse=sparse)
        return self._samples

    def _make_scratch(self, n_batch: int, sparse: bool) -> None:
        """Allocate what a batch of this size needs, unless the last call's still fits."""
        shares = numba.get_num_threads()
        if self._scratch_key == (n_batch, shares, sparse):
            return
        rows = -(-n_batch // iteration.GROUP) * iteration.GROUP
        layers, widest = len(self.sizes), self.layout.weights_shape[2]
        self.order = np.arange(n_batch)[None]
        self.values = aligned((layers, rows, widest), self.dtype)
        self.errors = aligned((layers, rows, widest), self.dtype)
        self.back = aligned((1, rows, widest), self.dtype)
        self.sample_loss = np.zeros(n_batch, self.dtype)
        self.gradients = aligned((shares, iteration.ROW_BLOCK, widest), self.dtype)
        entries = self.sizes[0] + 1 if sparse else 0
        self.list_lengths = np.empty((shares, self.sizes[0] + iteration.ROW_BLOCK), np.uint32)
        self.list_samples = np.empty((entries, n_batch), np.uint32)
        self.list_factors = np.empty((entries, n_batch), self.dtype)
        self._scratch_key = (n_batch, shares, sparse)

    def run(
        self,
        samples: Samples,
        batches: IntArray,
        labels: IntArray,
        soft: FloatArray,
        *,
        rule: int,
        first: FloatArray | None = None,
        second: FloatArray | None = None,
        rates: FloatArray | None = None,
        a: float = 0.0,
        b: float = 0.0,
        losses: FloatArray | None = None,
        done: IntArray | None = None,
    ) -> FloatArray:
        """Run `fastgrad.kernels.iteration.iterate`; return the losses."""
        count, self.n_batch = batches.shape
        self._make_scratch(self.n_batch, samples.sparse)
        where = self.layout
        nothing = np.empty((1, 0, 0), self.dtype)
        losses = np.empty(count) if losses is None else losses
        launch(
            iteration.iterate,
            samples.dense, samples.start, samples.index, samples.value, batches, self.order,
            labels, soft,
            where.sizes, where.widths, where.weights_at, where.transposed_at,
            self.activation, self.delta,
            self.weights, self.transposed, self.values, self.errors, self.back, self.sample_loss,
            self.gradients, self.list_lengths, self.list_samples, self.list_factors,
            rule, nothing if first is None else first, nothing if second is None else second,
            np.zeros(count) if rates is None else rates, a, b, self.decay, losses,
            np.zeros(1, np.int64) if done is None else done,
        )  # fmt: skip
        return losses

    def forward(self, samples: Samples, labels: IntArray, soft: FloatArray) -> float:
        """Run the forward pass over all samples as one batch; return the loss."""
        self.n_batch = samples.count
        self._make_scratch(self.n_batch, samples.sparse)
        where = self.layout
        launch(
            iteration.forward,
            samples.dense, samples.start, samples.index, samples.value, self.order, labels, soft,
            where.sizes, where.widths, where.weights_at, self.activation, self.delta,
            self.weights, self.values, self.errors, self.sample_loss,
        )  # fmt: skip
        loss = float(self.sample_loss.mean(dtype=np.float64))
        if self.decay:
            for at, n in zip(where.weights_at, self.sizes[:-1], strict=True):
                squares = np.square(self.weights[0, at : at + n], dtype=np.float64)
                loss += 0.5 * self.decay * float(squares.sum())
        return loss

    def backpropagate(self, samples: Samples, labels: IntArray, soft: FloatArray) -> float:
        """Leave the gradient of the loss over all samples in ``gradient``; return the loss.

        A loss of NaN makes every entry NaN, also where a product with a zero was left out.
        """
        batch = np.arange(samples.count)[None]
        rule = iteration.GRADIENT_ONLY
        loss = float(self.run(samples, batch, labels, soft, rule=rule, first=self.gradient)[0])
        if np.isnan(loss):
            self.gradient.fill(np.nan)
        return loss

    @property
    def logits(self) -> FloatArray:
        """The last layer's values of the last batch, shape (batch size, C)."""
        result: FloatArray = self.values[-1, : self.n_batch, : self.sizes[-1]]
        return result

    @property
    def probabilities(self) -> FloatArray:
        """The class probabilities after `forward`, shape (batch size, C)."""
        result: FloatArray = self.errors[-1, : self.n_batch, : self.sizes[-1]]
        return result

    def central_difference(
        self, samples: Samples, labels: IntArray, soft: FloatArray, h: float
    ) -> float:
        """Leave the central difference of the loss in ``gradient``; return the loss.

        Evaluates the loss at both nudged points of every parameter, see
        `fastgrad.kernels.central_difference`. A loss that is not finite makes every entry NaN, as
        it would if the losses themselves were subtracted. ``samples`` must be lists.
        """
        loss = self.forward(samples, labels, soft) if self.finite else np.nan
        if not np.isfinite(loss):
            self.gradient.fill(np.nan)
            return loss
        item_start, item_sample, item_class, item_weight = self._items(samples, labels, soft)
        where = self.layout
        number = self.dtype.type
        step, delta = number(h), number(self.delta)
        if len(self.sizes) == 3:
            moves = self._prepare(samples, item_start, item_class, step, delta)
            if moves is not None:
                launch(
                    central_difference.accumulate,
                    item_sample, item_class, item_weight, where.sizes, where.widths,
                    where.weights_at, self.activation, step, delta,
                    samples.start, samples.index, *moves[:4], self.errors, moves[4],
                    aligned((self.sizes[2], int(where.widths[1])), self.dtype), self.gradient,
                )  # fmt: skip
                return self._with_decay(loss, h)
        shape = (numba.get_num_threads(), len(self.sizes), where.weights_shape[2])
        launch(
            central_difference.general,
            item_start, item_class, item_weight, where.sizes, where.widths, where.weights_at,
            self.activation, step, delta, samples.start, samples.index, samples.value,
            self.weights, self.values, self.errors, aligned(shape, self.dtype), self.gradient,
        )  # fmt: skip
        return self._with_decay(loss, h)

    def _with_decay(self, loss: float, h: float) -> float:
        # The penalty decay / 2 w**2 moves by decay / 2 (2 w h + h**2) and its mirror image: their
        # difference, divided by 2h, is decay * w.
        if self.decay:
            for layer, at in enumerate(self.layout.weights_at):
                rows = slice(at, at + self.sizes[layer])
                self.gradient[0, rows] += self.dtype.type(self.decay) * self.weights[0, rows]
        return loss

    def _items(
        self, samples: Samples, labels: IntArray, soft: FloatArray
    ) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
        """Return the pairs of a sample and a class with a target, grouped by sample."""
        n = samples.count
        if labels.size:
            weight = np.full(n, 1 / n, self.dtype)
            return np.arange(n + 1), np.arange(n), labels, weight
        sample, klass = map(np.ascontiguousarray, np.nonzero(soft))
        counts = np.bincount(sample, minlength=n)
        return np.concatenate([[0], np.cumsum(counts)]), sample, klass, soft[sample, klass] / n

    def _prepare(
        self, samples: Samples, item_start: IntArray, item_class: IntArray, step: Any, delta: Any
    ) -> tuple[FloatArray, ...] | None:
        """Return what the fast kernel needs, or None if the step is too large for it."""
        where = self.layout
        n, width = samples.count, int(where.widths[1])
        key = (n, samples.value.size, item_class.size)
        if key != self._nudge_key:
            shape = (item_class.size, central_difference.COEFFICIENTS, width)
            self._entry_moves = np.empty((2, 1, samples.value.size), self.dtype)
            self._value_moves = aligned((2, n, width), self.dtype)
            self._coefficients = aligned(shape, self.dtype)
            self._largest = np.empty((n, 2), self.dtype)
            self._nudge_key = key
        up, down = self._entry_moves
        value_up, value_down = self._value_moves
        coefficients, largest = self._coefficients, self._largest
        launch(
            central_difference.prepare,
            samples.start, samples.value, item_start, item_class,
            where.sizes, where.widths, where.transposed_at, self.activation, step, delta,
            self.transposed, self.values, self.errors, up, down, value_up, value_down, coefficients,
            largest,
        )  # fmt: skip
        move, value_move = (float(m) for m in largest.max(axis=0))
        slope = 0.25 if self.activation == iteration.SIGMOID else 1.0
        W2 = self.weights[0, where.weights_at[1] :, : self.sizes[2]]
        logit_move = slope * move * float(np.abs(W2[: self.sizes[1]]).max())
        fits = (
            move <= 1
            and logit_move <= central_difference.LOGIT_MOVE_LIMIT
            and value_move <= central_difference.VALUE_MOVE_LIMIT
        )
        return (up, down, value_up, value_down, coefficients) if fits else None
