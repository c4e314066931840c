"""A fully connected network on its compiled side: padded parameters, scratch, and kernel calls.

The networks keep their parameters as the user's plain arrays; the kernels of
`fastgrad.kernels.iteration` want them padded and in one piece. An `Engine` is the bridge for one
call at a time: load parameters, run, read results.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgrad import threads
from fastgrad.arrays import BitArray, FloatArray, IntArray
from fastgrad.kernels import activations, central_difference, iteration
from fastgrad.kernels.tasks import ROW, TOLD, Block, Program, part_address, run_steps
from fastgrad.threads import GIVE_WAY

#: Share of non-zero entries below which products over them alone beat dense products (measured: at
#: 0.5 both take the same time with 50 hidden units, at 0.2 the former take less than half).
SPARSE_BELOW = 0.4
#: How many samples of a batch, at least, are looked at to judge that. A data set is looked at more
#: closely.
LOOKS = 8


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
#: without a backward pass; a central difference; and one of a network with more or fewer layers.
PASS, NUDGES, GENERAL = Effort(11_000_000, 24), Effort(1_700_000, 4), Effort(2_500, 4)

_NO_LABELS = np.empty(0, np.int64)
_NO_MARKS = np.empty((0, 0, 0), np.uint64)
_NO_PLACES = np.empty((0, 0), np.int64)

# What tasks are told: `iteration.BATCH`, and so on.
_TAKE_OVER = Program((iteration.take_over,))
_COUNT, _LIST = Program((iteration.count_values,)), Program((iteration.list_values,))
_TRAIN = Program(
    (iteration.rows, 0, 0, 1), (iteration.forward_and_back,), (iteration.rows, 1, 1, 1)
)
_NUDGE_LITTLE = Program(
    (central_difference.prepare,), (central_difference.accumulate,), (central_difference.collect,)
)
_NUDGE_GENERALLY = Program((central_difference.list_entries,), (central_difference.general,))


class _Pass:
    """What is done with a batch: with rows, with marks, and with marks if they pay."""

    def __init__(self, *tasks: tuple[Any, ...]) -> None:
        self.of_rows = Program((iteration.take_over,), *tasks)
        self.of_marked = Program((iteration.take_over, 0, 0, 1), *tasks)
        self.if_marks_pay = Program((iteration.take_over, 0, 0, 1), *((*task, 1) for task in tasks))


_FORWARD = _Pass((iteration.forward, 0, 0, 0))
_GRADIENT = _Pass((iteration.forward_and_back, 0, 0, 0), (iteration.rows, 1, 1, 0))

#: The arrays of a state that belong to whoever calls, in the order that `iteration.begin` wants;
#: and `central_difference.nudge`.
_CALLERS = ("x", "W1", "labels", "soft", "result")
_NUDGERS = ("x", "W1", "labels", "result")

ACTIVATIONS = {"sigmoid": activations.SIGMOID, "relu": activations.RELU}


def aligned(shape: Sequence[int], dtype: DTypeLike, *, zero: bool = True) -> NDArray[Any]:
    """Return an array that begins at a cache line.

    NumPy aligns to 16 bytes, and then every 64-byte vector load touches two lines: products with
    non-zero entries took a third longer.
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


def _words(n: int) -> int:
    """Return how many numbers hold marks for `n` entries."""
    return -(-n // iteration.WORD)


def _rows_apart(shares: int, columns: int, dtype: DTypeLike = np.int64) -> NDArray[Any]:
    """Return zeros with a row for each share to write to, in cache lines of its own."""
    return aligned((shares, -(-columns // ROW) * ROW), dtype)


class Samples(NamedTuple):
    """Samples in the form that the kernels want: with marks, or as padded rows.

    What does not apply is empty; see `fastgrad.kernels.iteration.State`.
    """

    marks: BitArray
    bounds: IntArray
    own: BitArray
    start: IntArray
    value: FloatArray
    dense: FloatArray


def may_be_sparse(x: FloatArray) -> bool:
    """Return whether marks may pay for these samples, at a glance at one or two of them."""
    seen = x[:: len(x) // 2 + 1]
    return bool(np.count_nonzero(seen != 0) < SPARSE_BELOW * seen.size)


def _room_for_marks(
    n: int, n_inputs: int, copies: int, shares: int, dtype: np.dtype[Any]
) -> Samples:
    """Return room for the marks of `n` samples."""
    words = _words(n_inputs)
    return Samples(
        aligned((copies, n, words), np.uint64, zero=False),
        _rows_apart(shares, shares + 1),
        _rows_apart(shares, words, np.uint64),
        _NO_PLACES,
        np.empty((0, 0), dtype),
        np.empty((1, 0, 0), dtype),
    )


class _Scratch:
    """Memory that calls use, one after another, for batches of a size dealt out to some shares."""

    def __init__(self, where: Layout, dtype: np.dtype[Any], n_batch: int, shares: int) -> None:
        rows = -(-n_batch // iteration.GROUP) * iteration.GROUP
        layers, widest, n_inputs = len(where.sizes), where.weights_shape[2], int(where.sizes[0])
        gap = iteration.GAP_BYTES // dtype.itemsize
        columns = (-(-n_inputs // gap) + shares) * gap
        self.n_batch, self.shares = n_batch, shares
        self.progress, self.now, self.found = (_rows_apart(shares, 1) for _ in range(3))
        self.values = aligned((layers, rows, widest), dtype)
        self.errors = aligned((layers, rows, widest), dtype)
        self.sample_loss = np.zeros(n_batch, dtype)
        self.order = np.arange(n_batch)[None]
        self.batch = _room_for_marks(n_batch, n_inputs, shares, shares, dtype)
        self.nudges: _NudgeTasks | None = None
        #: What the state of the tasks says of all this.
        self.fields: dict[str, Any] = {
            "found": self.found,
            "now": self.now,
            "order": self.order,
            "partial": aligned((shares, rows, widest), dtype),
            "values": self.values,
            "errors": self.errors,
            "scratch": aligned((1, rows, widest), dtype),
            "sample_loss": self.sample_loss,
            "gradients": aligned((shares, iteration.WORD, widest), dtype),
            "cost": _rows_apart(shares, -(-n_inputs // iteration.ROW_BLOCK) + 1),
            "copy": aligned((n_batch, columns), dtype, zero=False),
            "entry_marks": aligned((shares, _words(n_batch), iteration.WORD), np.uint64),
        }


@dataclass
class _NudgeTasks:
    """The tasks of a central difference over batches of a size."""

    block: Block
    places: tuple[Any, ...]
    found: IntArray
    #: How many labels, which h, and which limit the state holds.
    key: tuple[Any, ...] = ()


# An item is a pair of a sample and a class with a target (`fastgrad.kernels.central_difference`).
_ITEMS = ("item_start", "item_weight", "item_class")


@functools.lru_cache(maxsize=4)
def _label_items(n: int, dtype: np.dtype[Any]) -> tuple[IntArray, FloatArray, IntArray]:
    """Return where each sample's items start, and their weights, for a label a sample.

    And no classes: those are the labels.
    """
    return np.arange(n + 1), np.full(n, 1 / n, dtype), _NO_LABELS


def _soft_items(soft: FloatArray) -> tuple[IntArray, FloatArray, IntArray]:
    """Return the same for soft targets, with the items' classes."""
    n = len(soft)
    sample, klass = map(np.ascontiguousarray, np.nonzero(soft))
    starts = np.concatenate([[0], np.cumsum(np.bincount(sample, minlength=n))])
    return starts, soft[sample, klass] / n, klass


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
        #: Name, place in a flat array, and shape of every parameter.
        self._parts: list[tuple[str, slice, tuple[int, ...]]] = []
        self.n_parameters = 0
        for name, shape in parameter_shapes(sizes).items():
            first, self.n_parameters = self.n_parameters, self.n_parameters + math.prod(shape)
            self._parts.append((name, slice(first, self.n_parameters), shape))
        self._was_marked = True
        self._nothing = np.empty((0, 0), dtype)
        self._nowhere = np.empty((1, 0, 0), dtype)
        self._no_samples = np.empty((0, sizes[0]), dtype)
        self._no_weights = np.empty(0, dtype)
        #: Labels, soft targets, and result of a pass without any.
        self._no_targets = _NO_LABELS, self._nothing, self._no_weights
        #: The parameters given last, and whether the tasks have yet to take them over.
        self._W1, self._is_new = self._no_weights, False
        self._others = np.empty(self.n_parameters - sizes[0] * sizes[1], dtype)
        self._scratch = _Scratch(self.layout, dtype, 0, 1)
        self._scratch.found[:] = True
        #: All for batches of this size, by the number of shares.
        self._kept: dict[int, _Scratch] = {}
        #: What every state of a task says of the network.
        self._network: dict[str, Any] = {
            "sizes": self.layout.sizes,
            "widths": self.layout.widths,
            "weights_at": self.layout.weights_at,
            "transposed_at": self.layout.transposed_at,
            "activation": self.activation,
            "delta": float(delta),
            "weights": self.weights,
            "transposed": self.transposed,
        }
        self._part = part_address()
        self._loss = np.zeros(1)
        self._mean = 0.0
        self._done = np.zeros(1, np.int64)
        self._held: Samples | None = self._rows(self._no_samples)
        self._block = Block(
            iteration.State(
                **self._network,
                decay=float(decay),
                **self._scratch.fields,
                **self._held._asdict(),
                x=self._no_samples,
                W1=self._no_weights,
                others=self._others,
                labels=np.empty(0, np.int64),
                soft=self._nothing,
                batches=np.empty((0, 0), np.int64),
                stride=1,
                most=0,
                losses=self._loss,
                done=self._done,
                result=np.empty(0, dtype),
                rule=iteration.GRADIENT_ONLY,
                first=self._nowhere,
                second=self._nowhere,
                rates=np.empty(0),
                a=0.0,
                b=0.0,
            )
        )

        self._places = tuple(map(self._block.place_of, _CALLERS))

    # ------------------------------------------------------------------------- parameters

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

    def split(self, flat: FloatArray) -> dict[str, FloatArray]:
        """Return the parameters' shapes as views of one array, W1, b1, .., each row by row."""
        return {name: flat[part].reshape(shape) for name, part, shape in self._parts}

    def load(self, params: Mapping[str, FloatArray]) -> None:
        """Take over parameters, given in the order of `parameter_shapes`.

        That is done when the next batch comes, on all threads.
        """
        W1, *others = params.values()
        self._W1, self._is_new = W1.reshape(-1), True
        np.concatenate([a if a.ndim == 1 else a.reshape(-1) for a in others], out=self._others)

    @property
    def finite(self) -> bool:
        """Whether the parameters taken over last were."""
        return 0 not in self._scratch.found[:, 0].tolist()  # in a tenth of the time of `all`

    def settle(self) -> None:
        """Take over parameters now."""
        if self._is_new:
            self._take_over(self._no_samples, self._scratch.batch, 1, False, *self._no_targets)

    # ---------------------------------------------------------------------------- scratch

    def _share_out(self, n_batch: int, effort: Effort) -> None:
        """Have scratch for a batch of this size, dealt out to all threads if that pays."""
        work = self.n_parameters * self.dtype.itemsize * (n_batch + effort.overhead)
        self._make_scratch(n_batch, threads.shares(work, effort.enough))

    def _make_scratch(self, n_batch: int, shares: int) -> None:
        """Have scratch for a batch of this size and so many shares."""
        before = self._scratch
        if n_batch != before.n_batch:
            self._kept.clear()
        elif shares == before.shares:
            return
        scratch = self._kept.get(shares)
        if scratch is None:
            scratch = self._kept[shares] = _Scratch(self.layout, self.dtype, n_batch, shares)
        scratch.found[:, 0] = self.finite  # of parameters taken over before
        self._scratch = scratch
        self._block.update(**scratch.fields)
        self._hold(scratch.batch)

    def _run(self, program: Program, block: Block | None = None) -> None:
        """Run tasks on all threads, one after the other."""
        self._launch((block or self._block).steps(program))

    def _launch(self, steps: IntArray) -> None:
        scratch = self._scratch
        threads.launch(run_steps, self._part, steps, scratch.progress, scratch.now, GIVE_WAY)

    # ---------------------------------------------------------------------------- samples

    def data_set(self, x: FloatArray, *, sparse: bool | None = None) -> Samples:
        """Return samples to draw batches from, with marks if that pays (or as `sparse` says)."""
        n = len(x)
        self._make_scratch(1, numba.get_num_threads())
        self.settle()
        if sparse is None and not self.finite:
            sparse = False
        if sparse is not False:
            shares = self._scratch.shares
            samples = _room_for_marks(n, self.sizes[0], 1, shares, self.dtype)
            stride = n // (LOOKS + n // 256)
            if self._take_over(x, samples, stride, sparse, *self._no_targets):
                start = np.empty((n, shares + 1), np.int64)
                self._hold(samples._replace(start=start))
                self._run(_COUNT)
                counts = start[:, -1]
                start += (np.cumsum(counts) - counts)[:, None]
                value = np.empty((1, int(start[-1, -1])), self.dtype)
                samples = samples._replace(start=start, value=value)
                self._hold(samples)
                self._run(_LIST)
                return samples
        return self._rows(x)

    def release(self) -> None:
        """Let go of what was given: an idle engine keeps nobody's arrays alive."""
        self._block.forget(*_CALLERS)
        self._W1, self._is_new = self._no_weights, False
        if self._held is not self._scratch.batch:
            self._block.forget(*Samples._fields)
            self._held = None

    def _hold(self, samples: Samples) -> None:
        """Have the tasks read these samples."""
        if samples is not self._held:
            self._block.update(**samples._asdict())
            self._held = samples

    def _take_over(
        self,
        x: FloatArray,
        samples: Samples,
        stride: int,
        sparse: bool | None,
        labels: IntArray,
        soft: FloatArray,
        result: FloatArray,
        program: Program = _TAKE_OVER,
    ) -> bool:
        """Mark samples, and take over new parameters; return whether marks pay.

        Judged, and dealt out, by every stride-th of the samples, unless `sparse` says that they do
        or do not. The tasks of the program, and later ones, find the targets and the result.
        """
        stride = max(stride, 1)
        entries = -(-len(x) // stride) * x.shape[1]
        most = -1 if sparse is False else entries if sparse else int(SPARSE_BELOW * entries)
        block, scratch = self._block, self._scratch
        W1 = self._W1 if self._is_new else self._no_weights
        self._hold(samples)
        block.update(stride=stride, most=most)
        pays, self._mean = threads.launch(
            iteration.begin, self._part, block.steps(program), scratch.progress, scratch.now,
            GIVE_WAY, block.address, self._places, x, W1, labels, soft, result, scratch.found,
            scratch.sample_loss, most,
        )  # fmt: skip
        block.forget(*_CALLERS)  # whose places it has changed
        self._is_new = False
        return sparse is True or bool(pays)

    def _rows(self, x: FloatArray) -> Samples:
        """Return samples as padded rows."""
        n, n_inputs = x.shape
        dense = aligned((1, n, iteration.padded_width(n_inputs, x.itemsize)), x.dtype)
        dense[0, :, :n_inputs] = x
        dense[0, :, n_inputs] = 1
        bounds, own = self._scratch.batch.bounds, self._scratch.batch.own
        return Samples(_NO_MARKS, bounds, own, _NO_PLACES, self._nothing, dense)

    def _begin(
        self,
        x: FloatArray,
        labels: IntArray,
        soft: FloatArray,
        sparse: bool | None,
        aim: _Pass,
        result: FloatArray | None = None,
    ) -> None:
        """Take over a batch, and new parameters; then do what is the aim.

        There must be scratch for it. Marks leave out the products of zeros. Where a weight is NaN
        or infinite such a product is NaN, so then rows are taken unless marks are asked for; they
        are for a central difference.
        """
        given = labels, soft, self._no_weights if result is None else result
        self._block.update(batches=self._scratch.order)
        marked = False
        # To mark samples and then take them as rows costs a twentieth of a call. So after dense
        # samples there is a look first, which calls on sparse ones do without.
        if sparse or (sparse is None and (self._was_marked or may_be_sparse(x))):
            program = aim.of_marked if sparse else aim.if_marks_pay
            stride = len(x) // LOOKS
            batch = self._scratch.batch
            marked = self._take_over(x, batch, stride, sparse, *given, program)
        self._was_marked = marked
        if not marked:
            self._take_over(self._no_samples, self._rows(x), 1, False, *given, aim.of_rows)

    # ------------------------------------------------------------------------------- runs

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
        rates: FloatArray,
        a: float = 0.0,
        b: float = 0.0,
        losses: FloatArray | None = None,
        done: IntArray | None = None,
    ) -> FloatArray:
        """Run a training iteration for every row of `batches`; return the losses."""
        count, n_batch = batches.shape
        self.settle()
        self._make_scratch(n_batch, len(samples.bounds))
        losses = np.empty(count) if losses is None else losses
        self._hold(samples)
        block = self._block
        block.update(
            labels=labels, soft=soft, batches=batches, rule=rule, rates=rates,
            a=float(a), b=float(b), losses=losses, done=self._done if done is None else done,
            first=self._nowhere if first is None else first,
            second=self._nowhere if second is None else second,
        )  # fmt: skip
        products, passes, updates = block.steps(_TRAIN)
        steps = np.empty((2 * count + 1, products.size), products.dtype)
        steps[0], steps[1::2], steps[2::2] = products, passes, updates
        told = steps[:, -TOLD:]
        told[:, iteration.BATCH] = np.arange(len(steps)) // 2
        told[-1, iteration.IS_PRODUCT] = False  # there is no batch after the last
        self._launch(steps)
        return losses

    def forward(
        self, x: FloatArray, labels: IntArray, soft: FloatArray, *, sparse: bool | None = None
    ) -> float:
        """Run the forward pass over samples as one batch; return the loss."""
        self._share_out(len(x), PASS)
        self._begin(x, labels, soft, sparse, _FORWARD)
        return self._mean + self._penalty()

    def _penalty(self) -> float:
        """Return what weight decay adds to the loss, by the parameters taken over last."""
        if not self.decay:
            return 0.0
        where = self.layout
        penalty: float = iteration.penalty(where.sizes, where.weights_at, self.weights, self.decay)
        return penalty

    def backpropagate(
        self, x: FloatArray, labels: IntArray, soft: FloatArray, *, sparse: bool | None = None
    ) -> tuple[float, FloatArray]:
        """Return the loss over samples as one batch, and its gradient as `split` takes it.

        A loss of NaN makes every entry NaN, also where a product with a zero was left out.
        """
        gradient = np.empty(self.n_parameters, self.dtype)
        self._share_out(len(x), PASS)
        self._block.update(rule=iteration.GRADIENT_ONLY, losses=self._loss, done=self._done)
        self._begin(x, labels, soft, sparse, _GRADIENT, gradient)
        loss = float(self._loss[0])
        if math.isnan(loss):
            gradient.fill(np.nan)
        return loss, gradient

    @property
    def values(self) -> FloatArray:
        """Every layer's values of the last batch, padded, shape (layers, batch size, widest)."""
        return self._scratch.values

    @property
    def errors(self) -> FloatArray:
        """What the last pass left of the derivatives by them; the last layer's, see the tasks."""
        return self._scratch.errors

    @property
    def logits(self) -> FloatArray:
        """The last layer's values of the last batch, shape (batch size, C)."""
        result: FloatArray = self.values[-1, : self._scratch.n_batch, : self.sizes[-1]]
        return result

    @property
    def probabilities(self) -> FloatArray:
        """The class probabilities after `forward`, shape (batch size, C)."""
        result: FloatArray = self.errors[-1, : self._scratch.n_batch, : self.sizes[-1]]
        return result

    def central_difference(
        self, x: FloatArray, labels: IntArray, soft: FloatArray, h: float
    ) -> tuple[float, FloatArray]:
        """Return the loss over samples as one batch, and its central difference, for `split`.

        Evaluates the loss at both nudged points of every parameter, see
        `fastgrad.kernels.central_difference`. A loss that is not finite makes every entry NaN, as
        it would if the losses themselves were subtracted.
        """
        self._share_out(len(x), NUDGES if self._has_fast_nudges else GENERAL)
        result = np.empty(self.n_parameters, self.dtype)
        loss, done = self._nudge_little(x, labels, soft, h, result)
        if not done:
            loss = self._nudge_generally(x, labels, soft, h, result)
        if self.decay:
            self.settle()
            loss += self._penalty()
            # The penalty decay / 2 w**2 moves by decay / 2 (2 w h + h**2) and its mirror image:
            # their difference, divided by 2h, is decay * w.
            for name, array in self.split(result).items():
                if name.startswith("W"):
                    at = self.layout.weights_at[int(name[1:]) - 1]
                    W = self.weights[0, at : at + array.shape[0], : array.shape[1]]
                    array += self.dtype.type(self.decay) * W
        if not math.isfinite(loss):
            result.fill(np.nan)
        return loss, result

    @property
    def _has_fast_nudges(self) -> bool:
        """Whether `central_difference.accumulate` serves this network: it has two layers."""
        return len(self.sizes) == 3

    def _nudge_little(
        self, x: FloatArray, labels: IntArray, soft: FloatArray, h: float, result: FloatArray
    ) -> tuple[float, bool]:
        """Compute the central difference if the network and the moves allow; return whether."""
        if not self._has_fast_nudges:
            return math.nan, False
        scratch, nudges = self._scratch, self._nudges(labels, soft, h)
        block = nudges.block
        finite, little, loss = threads.launch(
            central_difference.nudge, self._part, block.steps(_NUDGE_LITTLE), scratch.progress,
            scratch.now, GIVE_WAY, block.address, nudges.places, x, self._W1, labels, result,
            nudges.found, scratch.sample_loss,
        )  # fmt: skip
        block.forget(*_NUDGERS)  # whose places it has changed
        return (loss, little) if finite else (math.nan, True)

    def _nudge_generally(
        self, x: FloatArray, labels: IntArray, soft: FloatArray, h: float, result: FloatArray
    ) -> float:
        """Compute it for any number of layers and moves of any size; return the loss."""
        self._begin(x, labels, soft, True, _FORWARD)
        loss = self._mean if self.finite else math.nan
        if math.isfinite(loss):
            gradient = aligned(self.layout.weights_shape, self.dtype)
            block = self._nudges(labels, soft, h).block
            block.update(x=x, labels=labels, gradient=gradient)
            self._run(_NUDGE_GENERALLY, block)
            block.forget(*_NUDGERS)
            self.unpack(gradient, self.split(result))
        return loss

    def _nudges(self, labels: IntArray, soft: FloatArray, h: float) -> _NudgeTasks:
        """Return the tasks of a central difference.

        Their state lacks the arrays in `_NUDGERS`.
        """
        nudges, n = self._scratch.nudges, self._scratch.n_batch
        key = (labels.size, h, central_difference.LOGIT_MOVE_LIMIT)
        if nudges and labels.size and key == nudges.key:
            return nudges
        items = _label_items(n, self.dtype) if labels.size else _soft_items(soft)
        changing: dict[str, Any] = dict(zip(_ITEMS, items, strict=True), h=h, logit_limit=key[-1])
        if nudges:
            nudges.block.update(**changing)
        else:
            nudges = self._scratch.nudges = self._make_nudges(changing)
        nudges.key = key
        return nudges

    def _make_nudges(self, changing: dict[str, Any]) -> _NudgeTasks:
        """Allocate their state for batches of a size."""
        scratch, network = self._scratch, self._network
        where, shares, n = self.layout, scratch.shares, scratch.n_batch
        classes, fast = self.sizes[-1], self._has_fast_nudges
        width = int(where.widths[1])
        rows = (shares, self.sizes[0] + 1 if fast else 0)
        value = np.empty((1, n * (self.sizes[0] + 1)), self.dtype)
        found = _rows_apart(shares, 1)
        block = Block(
            central_difference.Nudges(
                sizes=network["sizes"],
                widths=network["widths"],
                weights_at=network["weights_at"],
                activation=network["activation"],
                delta=network["delta"],
                weights=network["weights"],
                values=scratch.values,
                errors=scratch.errors,
                x=self._no_samples,
                W1=self._no_weights,
                others=self._others,
                second=aligned((shares, classes, width), self.dtype),
                start=np.empty(n, np.int64),
                stop=np.empty(n, np.int64),
                position=np.empty(value.shape, np.uint32),
                value=value,
                labels=_NO_LABELS,
                sample_loss=scratch.sample_loss,
                found=found,
                bits=value.view(f"u{self.dtype.itemsize}"),
                which=np.zeros((shares, central_difference.LISTS * rows[1]), np.uint64),
                table=np.zeros((shares, central_difference.HASH_SLOTS + 1, 2), np.uint64),
                distinct=np.zeros(rows, self.dtype),
                up=np.zeros(rows, self.dtype),
                down=np.zeros(rows, self.dtype),
                coefficients=aligned((shares, central_difference.COEFFICIENTS, width), self.dtype),
                marks=np.empty((n, _words(self.sizes[0])), np.uint64),
                touched=_rows_apart(shares, _words(self.sizes[0] + 1), np.uint64),
                jobs=_rows_apart(n, 1),
                unit_moves=aligned((shares, 2, width), self.dtype),
                changes=aligned((*rows, width), self.dtype),
                sums=aligned((*rows, width), self.dtype),
                columns=aligned((shares, classes, width), self.dtype),
                moves=aligned((shares, len(self.sizes), where.weights_shape[2]), self.dtype),
                gradient=self._nowhere,
                result=self._no_weights,
                **changing,
            )
        )
        return _NudgeTasks(block, tuple(map(block.place_of, _NUDGERS)), found)
