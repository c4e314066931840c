"""Mini-batch training: `fit`, and the `History` that it returns."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numba
import numpy as np
from numpy.typing import ArrayLike

from fastgrad.kernels import backward, bitmask, forward, train, updates
from fastgrad.kernels.bitmask import WORD, words
from fastgrad.networks.engine import SPARSE_BELOW, Engine
from fastgrad.networks.workspace import Workspace, aligned, padded, rows_apart
from fastgrad.nn.optimizers import Optimizer
from fastgrad.runtime import compile_time
from fastgrad.runtime.interrupt import Deferred
from fastgrad.runtime.steps import ROW, Arguments, launch, program, progress_rows
from fastgrad.validation import (
    BitArray,
    FloatArray,
    IntArray,
    as_generator,
    flag,
    one_of,
    real_number,
    whole_number,
)

__all__ = ["History", "LayerRun", "compiled_run", "fit", "random_state_kept"]

#: Seconds that one stretch of compiled iterations should take: Ctrl-C waits for its end.
_STRETCH_SECONDS = 0.1


@dataclass
class History:
    """What happened during a training run.

    Attributes
    ----------
    loss : ndarray, shape (iterations,)
        The loss of every mini-batch before its step.
    epochs : ndarray
        When accuracies were evaluated, in epochs.
    train_accuracy, test_accuracy : ndarray
        Accuracies at those times, from 0 to 1; empty without validation data.
    seconds : float
        Time taken, in seconds, without that of compiling kernels.
    interrupted : bool
        Whether Ctrl-C ended the run early.
    """

    loss: FloatArray
    epochs: FloatArray = field(default_factory=lambda: np.empty(0))
    train_accuracy: FloatArray = field(default_factory=lambda: np.empty(0))
    test_accuracy: FloatArray = field(default_factory=lambda: np.empty(0))
    seconds: float = 0.0
    interrupted: bool = False

    def __repr__(self) -> str:
        """Return the figures in a line."""
        count = len(self.loss)
        text = f"History: {count:,} iteration{'s' * (count != 1)}"
        if self.loss.size:
            text += f", last loss {self.loss[-1]:.4g}"
        if self.train_accuracy.size and self.test_accuracy.size:
            train, test = self.train_accuracy[-1], self.test_accuracy[-1]
            text += f", accuracy {train:.2%} in training and {test:.2%} in test"
        return f"{text}, {self.seconds:.3g} s" + ", interrupted" * self.interrupted

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw loss and accuracies over time, as figures 4-11 and 4-12 of the book.

        Parameters
        ----------
        path : path_like, optional
            A picture to write, ``.png``, ``.svg`` or ``.pdf`` say.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is not installed (extra ``plot``).
        OSError
            If the picture cannot be written.
        """
        from fastgrad.drawing import plot_history

        figure = plot_history(self)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


class Trainable(Protocol):
    """What a run needs of a network; see `fastgrad.networks.network.Network`."""

    params: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def checked_params(self) -> dict[str, FloatArray]: ...


def chosen_optimizer(optimizer: Any, learning_rate: Any, default: Optimizer) -> Optimizer:
    """Return the optimizer of a run: the one given, or the default with a learning rate.

    Raises
    ------
    TypeError
        If `optimizer` is none of fastgrad's, or both arguments are given.
    ValueError
        If `learning_rate` is not a finite number from 0 on.
    """
    if optimizer is None:
        if learning_rate is not None:
            default.lr = real_number(learning_rate, "learning_rate", minimum=0)
        return default
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be an optimizer of fastgrad. Got {optimizer!r}.")
    if learning_rate is not None:
        raise TypeError(
            f"`learning_rate` must be left out beside an `optimizer`, which has its own: "
            f"{optimizer!r}. Got {learning_rate!r}."
        )
    return optimizer


def pair(validation: Any) -> tuple[Any, Any]:
    """Return validation data, checked to be a pair."""
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise TypeError(f"`validation` must be a pair (x_test, t_test). Got {validation!r}.")
    return validation[0], validation[1]


class Advancing(Protocol):
    """A training run, as `run_training` sees it."""

    @property
    def done(self) -> int: ...

    def advance(self, batches: IntArray, losses: FloatArray) -> None: ...

    def write_back(self) -> None: ...


def fit(
    network: Any,
    x: ArrayLike,
    t: ArrayLike,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float | None,
    method: str,
    optimizer: Any,
    validation: tuple[ArrayLike, ArrayLike] | None,
    progress: bool,
    rng: Any,
    callback: Callable[[int, float], object] | None,
    default: Optimizer,
    check: Callable[[Any, Any], tuple[Any, Any]],
    begin_run: Callable[[Optimizer, str, tuple[Any, Any], int], AbstractContextManager[Advancing]],
    compile_ahead: bool,
) -> History:
    """Run the training loop of all networks: batches, progress, accuracies, callback and Ctrl-C.

    Parameters
    ----------
    network : Network
    x, t, iterations, .., callback
        As for `fastgrad.TwoLayerNet.fit`.
    default : Optimizer
        Where none is given.
    check : callable
        Returns samples and targets as arrays, or raises.
    begin_run : callable
        Returns a context manager of the run that is to be advanced.
    compile_ahead : bool
        Whether to train a copy of the network a little before a progress bar is shown, so that the
        bar's pace is that of training.

    Returns
    -------
    History
    """
    size = whole_number(batch_size, "batch_size", minimum=1)
    one_of(method, "method", ("gradient", "numerical_gradient"))
    optimizer = chosen_optimizer(optimizer, learning_rate, default)
    data = check(x, t)
    tests = None if validation is None else check(*pair(validation))
    count = whole_number(iterations, "iterations", minimum=0)
    flag(progress, "progress")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be callable. Got {callback!r}.")
    draw = batch_source(rng)
    if progress and compile_ahead:
        copied, its_optimizer = copy.deepcopy((network, optimizer))
        few = 2 if method == "numerical_gradient" else 100
        batch = data[0][:few], data[1][:few]
        with (
            Deferred() as interrupt,
            compile_time.announced(f"training in {network.dtype}"),
            random_state_kept(),  # from which dropout layers draw
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)
            copied.fit(
                *batch, iterations=1, batch_size=len(batch[0]), method=method,
                optimizer=its_optimizer, validation=batch, rng=0,
            )  # fmt: skip
        if interrupt.asked:
            return History(np.empty(0), interrupted=True)
    losses = np.empty(count)
    epochs: list[float] = []
    accuracies: list[tuple[float, float]] = []
    per_epoch = max(len(data[0]) // size, 1)
    stretch = 1
    begin = time.perf_counter()
    with (
        compile_time.Watch() as compiling,
        Deferred() as interrupt,
        progress_bar(count, progress) as bar,
        begin_run(optimizer, method, data, size) as run,
    ):
        finite = True
        while run.done < count and not interrupt.asked:
            # Up to the next evaluation: after the first iteration of every epoch, as in the book.
            limit = count
            if tests is not None:
                limit = min(count, (run.done + per_epoch - 1) // per_epoch * per_epoch + 1)
            stop = min(run.done + stretch, limit)
            since = time.perf_counter()
            batches = draw(len(data[0]), (stop - run.done, size))
            run.advance(batches, losses[run.done : stop])
            took = time.perf_counter() - since
            if callback is None:
                pace = _STRETCH_SECONDS * batches.shape[0] / max(took, 1e-9)
                stretch = int(min(max(pace, 1), 2 * stretch))
            bar.update(stop - bar.n)
            bar.set_postfix(loss=f"{losses[run.done - 1]:.4f}", refresh=False)
            if finite and not np.isfinite(losses[run.done - 1]):
                finite = False
                run.write_back()
                warnings.warn(
                    f"the loss is not finite at iteration {run.done}; the learning rate "
                    f"{optimizer.lr:g} may be too large.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            if tests is not None and (run.done - 1) % per_epoch == 0:
                run.write_back()
                epochs.append((run.done - 1) / per_epoch)
                accuracies.append((network.accuracy(*data), network.accuracy(*tests)))
                bar.set_postfix(loss=f"{losses[run.done - 1]:.4f}", test=f"{accuracies[-1][1]:.4f}")
            if callback is not None:
                run.write_back()
                if callback(run.done - 1, float(losses[run.done - 1])) is True:
                    break
    in_training, in_test = np.array(accuracies).reshape(-1, 2).T
    return History(
        losses[: run.done],
        np.array(epochs),
        in_training,
        in_test,
        time.perf_counter() - begin - compiling.seconds,
        interrupt.asked,
    )


class LayerRun:
    """Training by a network's own methods, for networks that are not compiled as a whole.

    Parameters
    ----------
    network : Network
        Its `params` are updated.
    optimizer : Optimizer
    compute : callable
        Returns the loss of a batch (x, t), and its gradient.
    x, t : ndarray
    """

    def __init__(
        self,
        network: Any,
        optimizer: Optimizer,
        compute: Callable[[Any, Any], tuple[float, dict[str, FloatArray]]],
        x: Any,
        t: Any,
    ) -> None:
        self.network, self.optimizer, self.compute = network, optimizer, compute
        self.data = x, t
        self.done = 0

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        """Run one iteration for every row of `batches`, and count it."""
        x, t = self.data
        for i, batch in enumerate(batches):
            losses[i], grads = self.compute(x[batch], t[batch])
            self.optimizer.update(self.network.params, grads)
            self.done += 1

    def write_back(self) -> None:
        """Do nothing: the parameters are the network's own."""


class TrainingSet(NamedTuple):
    """What a run trains on.

    Kernels index with the labels, and a callback may write into the user's: so these are copies.
    """

    x: Any
    labels: IntArray
    soft: FloatArray
    batch_size: int


class _Run:
    """The moving part of a training run: parameters and optimizer state in compiled form."""

    def __init__(
        self, engine: Engine, optimizer: Optimizer, network: Trainable, data: TrainingSet
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self._done = np.zeros(1, np.int64)
        self._steps_before = getattr(optimizer, "iter", 0)
        #: How many iterations the user's parameters have seen.
        self._written = 0
        params = network.checked_params()
        self._set_up(engine, params, data)

    def _set_up(self, engine: Engine, params: dict[str, FloatArray], data: TrainingSet) -> None:
        raise NotImplementedError

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        """Run one iteration for every row of `batches`, and count it."""
        raise NotImplementedError

    def parameters(self) -> dict[str, FloatArray]:
        """Return the parameters that were reached."""
        raise NotImplementedError

    def state(self, name: str) -> dict[str, FloatArray]:
        """Return the optimizer state of a name, for every parameter."""
        raise NotImplementedError

    @property
    def done(self) -> int:
        """The number of iterations behind."""
        return int(self._done[0])

    def write_back(self) -> None:
        """Make the user's parameters and optimizer state those of the run."""
        params, dtype = self.network.params, self.network.dtype
        self.network.checked_params()  # a callback may have changed them
        for key, array in self.parameters().items():
            params[key] = _writeable(params[key], array.shape, dtype)
            params[key][...] = array
        for name in self.optimizer.state_names:
            if getattr(self.optimizer, name) is None:
                setattr(self.optimizer, name, {})
            state = getattr(self.optimizer, name)
            for key, array in self.state(name).items():
                state[key] = _writeable(state.get(key), array.shape, dtype)
                state[key][...] = array
        self._written = self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Write back what was reached, also when an exception ends the run."""
        if exception[0] is not None and hasattr(self.optimizer, "iter"):
            self.optimizer.iter = self._steps_before + self.done  # not steps that were not taken
        if self.done > self._written:  # else a callback may have put other parameters in place
            self.write_back()


class _NumericalRun(_Run):
    """Training by central differences, on parameters in one flat array."""

    def _set_up(self, engine: Engine, params: dict[str, FloatArray], data: TrainingSet) -> None:
        self.engine, self.data = engine, data
        self.flat = np.concatenate([array.reshape(-1) for array in params.values()])
        self.states = {
            name: np.concatenate(
                [self.optimizer.recalled(name, key, a).reshape(-1) for key, a in params.items()]
            )
            for name in self.optimizer.state_names
        }
        engine.load(self.parameters())

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        nothing = np.empty(0, self.engine.dtype)
        first, second = [*self.states.values(), nothing, nothing][:2]
        for i, batch in enumerate(batches):
            x, labels, soft, _ = self.data
            labels, soft = (each[batch] if len(each) else each for each in (labels, soft))
            losses[i], found = self.engine.central_difference(x[batch], labels, soft, 1e-4)
            gradient = np.concatenate([array.reshape(-1) for array in found.values()])
            self.optimizer.rule(self.flat, gradient, first, second, *self.optimizer.next_step())
            self._done[0] += 1

    def parameters(self) -> dict[str, FloatArray]:
        return self.engine.split(self.flat)

    def state(self, name: str) -> dict[str, FloatArray]:
        return self.engine.split(self.states[name])


class SparseSamples(NamedTuple):
    """Samples with zeros as CSR, dealt out to chunks; see `fastgrad.kernels.train`."""

    bits: BitArray
    bounds: IntArray
    own: BitArray
    indptr: IntArray
    data: FloatArray


def _data_set(x: Any, chunks: int, dtype: np.dtype[Any]) -> SparseSamples | None:
    """Return samples as CSR if that pays, judged by some of them."""
    n, n_inputs = x.shape
    seen = x[:: max(n // (8 + n // 256), 1)]
    counts = np.count_nonzero(seen, axis=0)
    if counts.sum() >= SPARSE_BELOW * seen.size:
        return None
    # Rows of W1 go to the chunks in blocks of 8, so that each gets about as many entries; a row
    # costs something even where all samples are zero.
    costs = np.cumsum(np.append(0, np.add.reduceat(counts, np.arange(0, n_inputs, 8)) + 1))
    blocks = np.searchsorted(costs * chunks, costs[-1] * np.arange(chunks + 1))
    bounds = np.minimum(8 * blocks, n_inputs)
    is_own = np.zeros((chunks, words(n_inputs) * WORD), bool)
    for chunk in range(chunks):
        is_own[chunk, bounds[chunk] : bounds[chunk + 1]] = True
    own = np.packbits(is_own, axis=1, bitorder="little").view(np.uint64)
    bits = aligned((n, words(n_inputs)), np.uint64)
    indptr = np.empty((n, chunks + 1), np.int64)
    progress = progress_rows(chunks)
    args = Arguments(x=x, bits=bits, own=own, indptr=indptr, data=np.empty(0, dtype))
    launch(program([(bitmask.build_bitmasks, args), (bitmask.count_entries, args)]), progress)
    total = indptr[:, -1]
    indptr += (np.cumsum(total) - total)[:, None]
    data = np.empty(int(indptr[-1, -1]), dtype)
    args.set(data=data)
    launch(program([(bitmask.pack_entries, args)]), progress)
    return SparseSamples(bits, bounds, own, indptr, data)


class _GradientRun(_Run):
    """Training by backpropagation: see `fastgrad.kernels.train`."""

    def _set_up(self, engine: Engine, params: dict[str, FloatArray], data: TrainingSet) -> None:
        optimizer, (x, labels, soft, batch_size) = self.optimizer, data
        dtype, sizes, chunks = engine.dtype, engine.sizes, numba.get_num_threads()
        data_set = _data_set(x, chunks, dtype) if np.isfinite(params["W1"]).all() else None
        space = self._space = Workspace(engine.net, batch_size, chunks, dtype)
        # Rows of W1 are padded where threads read and write them all the time.
        self._row = padded(sizes[1], dtype) if data_set else sizes[1]
        self._params = self._copies(params)
        self._states = {
            name: self._copies({key: optimizer.recalled(name, key, a) for key, a in params.items()})
            for name in optimizer.state_names
        }
        no_state = {key: np.empty((0, *a.shape[1:]), dtype) for key, a in self._params.items()}
        no_batches = np.empty((0, batch_size), np.int64)
        shared: dict[str, Any] = {
            "batches": no_batches,
            "rule": updates.pointer(optimizer.rule, dtype),
            "rates": np.empty(0),
            "coefficients": np.zeros(2),
            "decay": float(engine.decay),
            "squares": rows_apart(2 * chunks, len(space.layers), np.float64).reshape(2, chunks, -1),
        }
        first, second = [*self._states.values(), no_state, no_state][:2]
        sparse = self._sparse(data_set) if data_set else {}
        self._updates = []
        for k, layer in enumerate(space.layers):
            W, b = f"W{k + 1}", f"b{k + 1}"
            args: dict[str, Any] = {"W": self._params[W], "b": self._params[b]}
            args |= {f"d{key}": np.zeros_like(array) for key, array in args.items()}
            if k or not data_set:
                layer.set(**args)
            args |= {"W_first": first[W], "W_second": second[W]}
            args |= {"b_first": first[b], "b_second": second[b], "layer": k}
            args["transposed"] = space.transposed[k - 1] if k else space.zeros[None]
            args["errors"] = space.errors[0] if space.back else space.logit_errors
            args |= sparse if k == 0 else {}
            self._updates.append(Arguments(**args, **shared))
        targets = {
            "labels": np.zeros(batch_size if labels.size else 0, np.int64),
            "soft": np.zeros((0 if labels.size else batch_size, sizes[-1]), dtype),
        }
        space.loss.set(**targets)
        self._gather = Arguments(
            **targets,
            all_labels=labels,
            all_soft=soft,
            batches=no_batches,
            x=x,
            batch=space.x,
            b=self._params["b1"],
            out=space.inputs[0] if space.back else space.logits,
            partial=sparse.get("partial", np.empty((0, 0, 0), dtype)),
        )
        space.layers[0].set(x=space.x)
        self._losses = Arguments(
            batches=no_batches,
            decay=shared["decay"],
            squares=shared["squares"],
            layers=len(space.layers),
            sums=space.sums,
            losses=np.empty(0),
            done=self._done,
        )
        rows: list[tuple[Any, Arguments]] = [(train.record_loss, self._losses)]
        samples = space.forward(forward.affine_dense)
        for k, (layer, update) in enumerate(zip(space.layers, self._updates, strict=True)):
            if k == 0 and data_set:
                rows.append((train.update_sparse, update))
                samples[0] = train.gather_sparse, self._gather
            else:
                rows += [(backward.weights_dense, layer), (train.update_layer, update)]
        if not data_set:
            samples.insert(0, (train.gather_dense, self._gather))
        self._iterations = program(rows, samples + space.backward())
        self._last = program(rows)

    def _sparse(self, data_set: SparseSamples) -> dict[str, Any]:
        """Return the arguments of the first layer that only samples with zeros need."""
        n, chunks, dtype = len(self._space.order), self._space.chunks, self._space.logits.dtype
        gap = ROW * 8 // dtype.itemsize
        columns = (-(-self._space.x.shape[1] // gap) + chunks) * gap
        return {
            **data_set._asdict(),
            "partial": aligned((chunks, n, self._row), dtype),
            "copy": aligned((n, columns), dtype),
            "block": aligned((chunks, WORD, self._row), dtype),
            "transposed_bits": self._space.transposed_bits,
        }

    def _copies(self, arrays: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Return copies at cache lines, of W1 with padded rows."""
        copies = {}
        for key, array in arrays.items():
            shape = (len(array), self._row) if key == "W1" else array.shape
            copies[key] = aligned(shape, array.dtype)
            copies[key][..., : array.shape[-1]] = array
        return copies

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        steps = [self.optimizer.next_step() for _ in batches]
        rates = np.array([rate for rate, _, _ in steps])
        coefficients = np.array(steps[0][1:])
        for update in self._updates:
            update.set(batches=batches, rates=rates, coefficients=coefficients)
        self._gather.set(batches=batches)
        self._losses.set(batches=batches, losses=losses)
        space = self._space
        launch(self._iterations, space.progress, repeats=len(batches))
        launch(self._last, space.progress, first=len(batches))

    def parameters(self) -> dict[str, FloatArray]:
        return self._trimmed(self._params)

    def state(self, name: str) -> dict[str, FloatArray]:
        return self._trimmed(self._states[name])

    def _trimmed(self, copies: dict[str, FloatArray]) -> dict[str, FloatArray]:
        width = self._space.net.sizes[1]
        return {key: a[:, :width] if key == "W1" else a for key, a in copies.items()}


def compiled_run(
    engine: Engine,
    optimizer: Optimizer,
    method: str,
    network: Trainable,
    x: Any,
    labels: IntArray,
    soft: FloatArray,
    batch_size: int,
) -> AbstractContextManager[Advancing]:
    """Return a training run of a fully connected network by an engine of its own."""
    data = TrainingSet(x, labels.copy(), soft.copy(), batch_size)
    kind = _GradientRun if method == "gradient" else _NumericalRun
    return kind(engine, optimizer, network, data)


def _writeable(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    """Return an array if values of a shape and dtype can be written into it, else a new one."""
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits and array.flags.writeable else np.empty(shape, dtype)


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Any]:
    """Show a progress bar of iterations."""
    from tqdm.auto import tqdm

    with tqdm(total=total, disable=not show, unit="it", dynamic_ncols=True) as bar:
        yield bar


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the state of NumPy's global generator back at the end."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def batch_source(rng: Any) -> Callable[[int, tuple[int, int]], IntArray]:
    """Return a function that draws indices below n, in a given shape, with replacement.

    Raises
    ------
    TypeError, ValueError
        As for `fastgrad.validation.as_generator`.
    """
    generator = as_generator(rng)
    if isinstance(generator, np.random.Generator):
        return lambda n, shape: generator.integers(n, size=shape)
    # One call for many batches gives the same numbers as a call for each.
    return lambda n, shape: generator.choice(n, shape).astype(np.int64, copy=False)
