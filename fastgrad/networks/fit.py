"""Mini-batch training: `fit`, and the `History` that it returns."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numba
import numpy as np
from numpy.typing import ArrayLike

from fastgrad.kernels import backward, bitmask, forward, train, updates
from fastgrad.kernels.bitmask import WORD, words
from fastgrad.networks import workspace
from fastgrad.networks.engine import SPARSE_BELOW, Engine
from fastgrad.networks.workspace import Workspace, aligned, layer, layer_backward, padded
from fastgrad.nn.optimizers import Optimizer
from fastgrad.runtime import compile_time
from fastgrad.runtime.interrupt import Deferred
from fastgrad.runtime.programs import ROW, Program
from fastgrad.tables import html_table
from fastgrad.validation import (
    FloatArray,
    IntArray,
    as_generator,
    flag,
    one_of,
    real_number,
    whole_number,
)

__all__ = ["COMPILED_RUNS", "History", "Run", "TrainingSet", "fit", "random_state_kept"]

#: Seconds that one stretch of compiled iterations should take: Ctrl-C waits for its end.
_STRETCH_SECONDS = 0.1


@dataclass
class History:
    """What happened during a training run.

    Attributes
    ----------
    loss : ndarray, shape (iterations,)
        The loss of every mini-batch before its update.
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

    def _repr_html_(self) -> str | None:
        """Return the accuracies by epoch as a table for a notebook, or None without any."""
        accuracies = zip(self.train_accuracy, self.test_accuracy, strict=True)
        rows = [
            (f"{epoch:g}", *(f"{accuracy:.2%}" for accuracy in pair))
            for epoch, pair in zip(self.epochs, accuracies, strict=True)
        ]
        return html_table(("epoch", "training", "test"), rows, repr(self)) if rows else None

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


def fit(
    network: Any,
    x: ArrayLike,
    t: ArrayLike,
    iterations: int,
    batch_size: int,
    learning_rate: float | None,
    method: str,
    optimizer: Any,
    validation: tuple[ArrayLike, ArrayLike] | None,
    progress: bool,
    rng: Any,
    callback: Callable[[int, float], object] | None,
) -> History:
    """Run the training loop of all networks: batches, progress, accuracies, callback and Ctrl-C.

    Arguments are those of `fastgrad.TwoLayerNet.fit`. Before a progress bar is shown, a copy of the
    network is trained a little, so that the bar's pace is that of training.
    """
    network._require_trainable(method)
    size = whole_number(batch_size, "batch_size", minimum=1)
    one_of(method, "method", tuple(COMPILED_RUNS))
    optimizer = chosen_optimizer(optimizer, learning_rate, network._default_optimizer())
    data, tests = network._training_data(x, t), None
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(f"`validation` must be a pair (x_test, t_test). Got {validation!r}.")
        try:
            tests = network._training_data(*validation)
        except (TypeError, ValueError) as error:
            raise type(error)(f"In `validation`: {error}") from error
    count = whole_number(iterations, "iterations", minimum=0)
    flag(progress, "progress")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be callable. Got {callback!r}.")
    draw = batch_source(rng)
    from tqdm.auto import tqdm

    if progress and not network._has_own_methods():
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
        tqdm(total=count, disable=not progress, unit="it", dynamic_ncols=True) as bar,
        network._begin_run(optimizer, method, data, size) as run,
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
    seconds = time.perf_counter() - begin - compiling.seconds
    in_training, in_test = np.array(accuracies).reshape(-1, 2).T
    reached = losses[: run.done]
    return History(reached, np.array(epochs), in_training, in_test, seconds, interrupt.asked)


class Run:
    """A training run by a network's own methods, which update its parameters where they are.

    Parameters
    ----------
    network : Network
    optimizer : Optimizer
    data : tuple
        Samples and targets.
    method : str, optional
        The method that gives the gradient.
    """

    def __init__(
        self, network: Any, optimizer: Optimizer, data: Any, method: str = "gradient"
    ) -> None:
        self.network, self.optimizer, self.data, self.method = network, optimizer, data, method
        self._done = np.zeros(1, np.int64)

    @property
    def done(self) -> int:
        """The number of iterations behind."""
        return int(self._done[0])

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        """Run one iteration for every row of `batches`, and count it."""
        x, t = self.data
        for i, batch in enumerate(batches):
            losses[i], grads = self.network._loss_and_gradient(self.method, x[batch], t[batch])
            self.optimizer.update(self.network.params, grads)
            self._done[0] += 1

    def write_back(self) -> None:
        """Make the user's parameters and optimizer state those of the run."""

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the run."""


class TrainingSet(NamedTuple):
    """What a run trains on.

    Kernels index with the labels, and a callback may write into the user's: so these are copies.
    """

    x: Any
    labels: IntArray
    soft: FloatArray
    batch_size: int


class _CompiledRun(Run):
    """A run by an engine, with copies of the parameters and of the optimizer state."""

    #: What was reached: the parameters, and the optimizer's state for each of them, by its name.
    params: dict[str, FloatArray]
    states: dict[str, dict[str, FloatArray]]

    def __init__(
        self, engine: Engine, optimizer: Optimizer, network: Any, data: TrainingSet
    ) -> None:
        super().__init__(network, optimizer, data)
        self.engine = engine
        self._updates_before = getattr(optimizer, "iter", 0)
        #: How many iterations the user's parameters have seen.
        self._written = 0
        self.params = network.checked_params()
        self.states = {
            name: {key: optimizer.recalled(name, key, a) for key, a in self.params.items()}
            for name in optimizer.state_names
        }
        self._copy()

    def _copy(self) -> None:
        """Put copies in the place of the user's parameters and optimizer state."""
        raise NotImplementedError

    def write_back(self) -> None:
        """Make the user's parameters and optimizer state those of the run."""
        params, dtype = self.network.params, self.network.dtype
        self.network.checked_params()  # a callback may have changed them
        for key, array in self.params.items():
            params[key] = _writeable(params[key], array.shape, dtype)
            params[key][...] = array
        for name in self.optimizer.state_names:
            if getattr(self.optimizer, name) is None:
                setattr(self.optimizer, name, {})
            state = getattr(self.optimizer, name)
            for key, array in self.states[name].items():
                state[key] = _writeable(state.get(key), array.shape, dtype)
                state[key][...] = array
        self._written = self.done

    def __exit__(self, *exception: object) -> None:
        """Write back what was reached, also when an exception ends the run."""
        if exception[0] is not None and hasattr(self.optimizer, "iter"):
            self.optimizer.iter = self._updates_before + self.done  # not those that were not made
        if self.done > self._written:  # else a callback may have put other parameters in place
            self.write_back()
        self.engine.__exit__(*exception)


class _NumericalRun(_CompiledRun):
    """Training by central differences."""

    def _copy(self) -> None:
        self.params, self.states = copy.deepcopy((self.params, self.states))
        self.engine.load(self.params)

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        nothing = np.empty(0, self.engine.dtype)
        for i, batch in enumerate(batches):
            x, labels, soft, _ = self.data
            labels, soft = (each[batch] if len(each) else each for each in (labels, soft))
            losses[i], found = self.engine.central_difference(x[batch], labels, soft, 1e-4)
            rates = self.optimizer.next_step()
            for key, array in self.params.items():
                states = [state[key] for state in self.states.values()]
                flat = [each.reshape(-1) for each in (array, found[key], *states)]
                self.optimizer.rule(*[*flat, nothing, nothing][:4], *rates)
            self._done[0] += 1


def sparse_samples(x: Any, chunks: int, dtype: np.dtype[Any]) -> dict[str, Any] | None:
    """Return samples as CSR for the kernels of `fastgrad.kernels.train`, by name, if that pays.

    That is judged by some of them.
    """
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
    names = {"x": x, "bits": bits, "own": own, "indptr": indptr}
    Program(chunks, names, [(bitmask.build_bitmasks, {}), (bitmask.count_entries, {})]).launch()
    total = indptr[:, -1]
    indptr += (np.cumsum(total) - total)[:, None]
    names["data"] = np.empty(int(indptr[-1, -1]), dtype)
    Program(chunks, names, [(bitmask.pack_entries, {})]).launch()
    del names["x"]
    return {**names, "bounds": bounds}


class _GradientRun(_CompiledRun):
    """Training by backpropagation: see `fastgrad.kernels.train`."""

    def _copy(self) -> None:
        engine, optimizer, (x, labels, soft, batch_size) = self.engine, self.optimizer, self.data
        dtype, sizes, chunks = engine.dtype, engine.sizes, numba.get_num_threads()
        sparse = sparse_samples(x, chunks, dtype) if np.isfinite(self.params["W1"]).all() else None
        space = Workspace(engine.net, batch_size, chunks, dtype)
        # Rows of W1 are padded where threads read and write them all the time.
        row = padded(sizes[1], dtype) if sparse else sizes[1]
        params, *states = (_copies(each, row) for each in (self.params, *self.states.values()))
        no_state = {key: np.empty((0, *a.shape[1:]), dtype) for key, a in params.items()}
        named = zip(("first", "second"), [*states, no_state, no_state], strict=False)
        squares = aligned((space.depth, 2, chunks, ROW), np.float64)
        self._coefficients = np.zeros(2)
        names = {
            **space.names,
            **params,
            **{f"{key}_{which}": a for which, state in named for key, a in state.items()},
            **{f"squares{k}": array for k, array in enumerate(squares, start=1)},
            "all_squares": squares,
            "labels": np.zeros(batch_size if labels.size else 0, np.int64),
            "soft": np.zeros((0 if labels.size else batch_size, sizes[-1]), dtype),
            "all_x": x,
            "all_labels": labels,
            "all_soft": soft,
            "batches": np.empty((0, batch_size), np.int64),
            "rule": updates.pointer(optimizer.rule, dtype),
            "rates": np.empty(0),
            "coefficients": self._coefficients,
            "decay": float(engine.decay),
            "losses": np.empty(0),
            "done": self._done,
        }
        dense = range(2 if sparse else 1, space.depth + 1)
        names |= {f"d{key}{k}": np.zeros_like(names[f"{key}{k}"]) for k in dense for key in "Wb"}
        rows: workspace.Stage = [(train.record_loss, {})]
        samples = workspace.forward_stage(space.depth, forward.affine_dense)
        if sparse:
            # Two cache lines between what threads write: see `fastgrad.kernels.train`.
            gap = ROW * 8 // dtype.itemsize
            columns = (-(-sizes[0] // gap) + chunks) * gap
            names |= sparse | {
                "db1": np.zeros(sizes[1], dtype),
                "partial": aligned((chunks, batch_size, row), dtype),
                "copy": aligned((batch_size, columns), dtype),
                "block": aligned((chunks, WORD, row), dtype),
            }
            rows.append((train.update_sparse, _updated(1)))
            samples[0] = train.gather_sparse, layer(1)
        else:
            names["x"] = aligned((batch_size, sizes[0]), dtype)
            samples.insert(0, (train.gather_dense, {}))
        for k in dense:
            rows += [(backward.weights_dense, layer(k)), (train.update_layer, _updated(k))]
            if k > 1:
                rows.append((forward.transpose, layer_backward(k)))
        backward_stage = workspace.backward_stage(space.depth)
        self._program = Program(chunks, names, rows, samples + backward_stage)

        self.params, *trimmed = (
            {k: a[..., : self.params[k].shape[-1]] for k, a in each.items()}
            for each in (params, *states)
        )
        self.states = dict(zip(self.states, trimmed, strict=True))

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        steps = [self.optimizer.next_step() for _ in batches]
        rates = np.array([rate for rate, _, _ in steps])
        self._coefficients[:] = steps[0][1:]
        self._program.bind(batches=batches, rates=rates, losses=losses)
        self._program.launch(repeats=len(batches))
        self._program.launch(first=len(batches), stages=1)  # the last update


def _copies(arrays: dict[str, FloatArray], row: int) -> dict[str, FloatArray]:
    """Return copies at cache lines, the rows of W1 of a length that may be greater."""
    copies = {}
    for key, array in arrays.items():
        copies[key] = aligned((len(array), row) if key == "W1" else array.shape, array.dtype)
        copies[key][..., : array.shape[-1]] = array
    return copies


def _updated(k: int) -> dict[str, str]:
    """Return the names of what an update of layer k reads."""
    state = {f"{key}_{which}": f"{key}{k}_{which}" for key in "Wb" for which in ("first", "second")}
    return {**layer(k), **state, "squares": f"squares{k}"}


#: The runs of a fully connected network by an engine of its own, by their methods.
COMPILED_RUNS = {"gradient": _GradientRun, "numerical_gradient": _NumericalRun}


def _writeable(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    """Return an array if values of a shape and dtype can be written into it, else a new one."""
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits and array.flags.writeable else np.empty(shape, dtype)


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
