"""Mini-batch training: `fit`, and the `History` that it returns."""

from __future__ import annotations

import copy
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import compile_time
from fastgrad.arrays import FloatArray, IntArray, flag, one_of, real_number, whole_number
from fastgrad.engine import Engine, aligned
from fastgrad.kernels import updates
from fastgrad.optimizers import SGD, Optimizer

__all__ = ["History", "fit"]

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
        text = f"History: {len(self.loss):,} iterations"
        if self.loss.size:
            text += f", last loss {self.loss[-1]:.4g}"
        if self.train_accuracy.size and self.test_accuracy.size:
            train, test = self.train_accuracy[-1], self.test_accuracy[-1]
            text += f", accuracy {train:.2%} in training and {test:.2%} in test"
        return f"{text}, {self.seconds:.3g} s" + ", interrupted" * self.interrupted

    def plot(self) -> Any:
        """Draw loss and accuracies over time, as figures 4-11 and 4-12 of the book.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is not installed (extra ``plot``).
        """
        from fastgrad.plots import plot_history

        return plot_history(self)


class Trainable(Protocol):
    """What `fit` needs of a network; see `fastgrad.networks.Network`."""

    params: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def engine(self) -> Any: ...

    def checked_params(self) -> dict[str, FloatArray]: ...

    def checked_batch(self, x: Any, t: Any) -> tuple[FloatArray, IntArray, FloatArray]: ...

    def accuracy(self, x: ArrayLike, t: ArrayLike) -> float: ...


def fit(
    network: Trainable,
    x: ArrayLike,
    t: ArrayLike,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    method: str,
    optimizer: Any,
    validation: tuple[ArrayLike, ArrayLike] | None,
    progress: bool,
    rng: Any,
    callback: Callable[[int, float], object] | None,
) -> History:
    """Train a network; the arguments are those of `fastgrad.TwoLayerNet.fit`."""
    count = whole_number(iterations, "iterations", minimum=0)
    size = whole_number(batch_size, "batch_size", minimum=1)
    rate = real_number(learning_rate, "learning_rate")
    one_of(method, "method", ("gradient", "numerical_gradient"))
    flag(progress, "progress")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be callable. Got {callback!r}.")
    if optimizer is None:
        optimizer = SGD(rate)
    elif not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be an optimizer of fastgrad. Got {optimizer!r}.")
    draw = batch_source(rng)
    xs, labels, soft = network.checked_batch(x, t)
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(f"`validation` must be a pair (x_test, t_test). Got {validation!r}.")
        test_x, test_labels, test_soft = network.checked_batch(*validation)
        test_t = test_labels if test_labels.size else test_soft
    known_t = labels if labels.size else soft

    if progress and _compile_ahead(network, xs, known_t, method, optimizer):
        return History(np.empty(0), interrupted=True)
    losses = np.empty(count)
    epochs: list[float] = []
    accuracies: list[tuple[float, float]] = []
    per_epoch = max(len(xs) // size, 1)
    stretch = 1
    begin = time.perf_counter()
    with (
        compile_time.Watch() as compiling,
        _Interrupt() as interrupt,
        network.engine() as engine,
        progress_bar(count, progress) as bar,
        _Run(engine, optimizer, network, xs, labels, soft, method) as run,
    ):
        finite = True
        while run.done < count and not interrupt.asked:
            # Up to the next evaluation: after the first iteration of every epoch, as in the book.
            limit = count
            if validation is not None:
                limit = min(count, (run.done + per_epoch - 1) // per_epoch * per_epoch + 1)
            stop = min(run.done + stretch, limit)
            since = time.perf_counter()
            batches = draw(len(xs), (stop - run.done, size))
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
            if validation is not None and (run.done - 1) % per_epoch == 0:
                run.write_back()
                epochs.append((run.done - 1) / per_epoch)
                accuracies.append((network.accuracy(xs, known_t), network.accuracy(test_x, test_t)))
                bar.set_postfix(loss=f"{losses[run.done - 1]:.4f}", test=f"{accuracies[-1][1]:.4f}")
            if callback is not None:
                run.write_back()
                if callback(run.done - 1, float(losses[run.done - 1])) is True:
                    break
    train, test = np.array(accuracies).reshape(-1, 2).T
    return History(
        losses[: run.done],
        np.array(epochs),
        train,
        test,
        time.perf_counter() - begin - compiling.seconds,
        interrupt.asked,
    )


def _compile_ahead(network: Trainable, x: Any, t: Any, method: str, optimizer: Optimizer) -> bool:
    """Compile what a run needs by a small one on copies; return whether Ctrl-C was pressed.

    So a progress bar starts after that, and knows how long an iteration takes.
    """
    network, optimizer = copy.deepcopy((network, optimizer))
    x, t = x[:100], t[:100]
    with compile_time.announced(network.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        history = fit(
            network, x, t, iterations=1, batch_size=len(x), learning_rate=0.0, method=method,
            optimizer=optimizer, validation=(x, t), progress=False, rng=0, callback=None,
        )  # fmt: skip
    return history.interrupted


class _Run:
    """The moving part of a training run: padded parameters and what the optimizer remembers."""

    def __init__(
        self,
        engine: Engine,
        optimizer: Optimizer,
        network: Trainable,
        xs: FloatArray,
        labels: IntArray,
        soft: FloatArray,
        method: str,
    ) -> None:
        self.engine = engine
        self.optimizer = optimizer
        self.network = network
        # Kernels index with labels, and a callback may write into the user's.
        self.xs, self.labels, self.soft = xs, labels.copy(), soft.copy()
        self.numerical = method == "numerical_gradient"
        self.samples = None if self.numerical else engine.data_set(xs)
        engine.settle()
        self.memory = [aligned(engine.weights.shape, engine.dtype) for _ in optimizer._memory]
        params = network.checked_params()
        for name, packed in zip(optimizer._memory, self.memory, strict=True):
            if getattr(optimizer, name) is not None:  # else zeros, as it is
                known = {key: optimizer._recalled(name, key, a, "C") for key, a in params.items()}
                engine.pack(known, packed)
        self._steps_before = getattr(optimizer, "iter", 0)
        #: How many iterations the user's parameters have seen.
        self._written = 0
        nothing = np.empty((1, 0, 0), engine.dtype)
        self.first, self.second = [*self.memory, nothing, nothing][:2]
        if self.numerical:
            self.gradient = aligned(engine.weights.shape, engine.dtype)
            self.params = {key: array.copy() for key, array in params.items()}
        self._done = np.zeros(1, np.int64)

    @property
    def done(self) -> int:
        """The number of iterations behind."""
        return int(self._done[0])

    def advance(self, batches: IntArray, losses: FloatArray) -> None:
        """Run one iteration for every row of `batches`."""
        if self.numerical:
            for i, batch in enumerate(batches):
                losses[i] = self._step_numerically(batch)
                self._done[0] += 1
            return
        assert self.samples is not None
        steps = [self.optimizer._begin_step() for _ in batches]
        rates = np.array([lr for lr, _, _ in steps])
        _, a, b = steps[0]
        self.engine.run(
            self.samples,
            batches,
            self.labels,
            self.soft,
            rule=self.optimizer._rule,
            first=self.first,
            second=self.second,
            rates=rates,
            a=a,
            b=b,
            losses=losses,
            done=self._done,
        )

    def _step_numerically(self, batch: IntArray) -> float:
        engine = self.engine
        labels = self.labels[batch] if self.labels.size else self.labels
        soft = self.soft if self.labels.size else self.soft[batch]
        loss, flat = engine.central_difference(self.xs[batch], labels, soft, 1e-4)
        engine.pack(engine.split(flat), self.gradient)
        lr, a, b = self.optimizer._begin_step()
        padded = [
            array.reshape(-1) for array in (engine.weights, self.gradient, self.first, self.second)
        ]
        updates.update(self.optimizer._rule, *padded, lr, a, b)
        engine.unpack(engine.weights, self.params)
        engine.load(self.params)
        return loss

    def write_back(self) -> None:
        """Make the user's parameters, and what the optimizer remembers, those of the engine."""
        engine, params = self.engine, self.network.params
        self.network.checked_params()  # a callback may have changed them
        for key, array in params.items():
            params[key] = _room(array, np.shape(array), engine.dtype)
        engine.unpack(engine.weights, params)
        for name, packed in zip(self.optimizer._memory, self.memory, strict=True):
            if getattr(self.optimizer, name) is None:
                setattr(self.optimizer, name, {})
            remembered = getattr(self.optimizer, name)
            for key, array in params.items():
                remembered[key] = _room(remembered.get(key), array.shape, engine.dtype)
            engine.unpack(packed, remembered)
        self._written = self.done

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exception: object) -> None:
        """Write back what was reached, also when an exception ends the run."""
        if exception[0] is not None and hasattr(self.optimizer, "iter"):
            self.optimizer.iter = self._steps_before + self.done  # not steps that were not taken
        if self.done > self._written:  # else a callback may have put other parameters in place
            self.write_back()


def _room(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    """Return an array if values of a shape and dtype can be written into it, else a new one."""
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits and array.flags.writeable else np.empty(shape, dtype)


class _Interrupt:
    """Turns the first Ctrl-C into a request; so nothing is torn out of the middle of an iteration.

    A second Ctrl-C raises `KeyboardInterrupt` at once. A handler of the user's own is left alone,
    and so are threads other than the main one, which get no signals.
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> _Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Any]:
    """Show a progress bar of iterations."""
    from tqdm.auto import tqdm

    with tqdm(total=total, disable=not show, unit="it", dynamic_ncols=True) as bar:
        yield bar


def batch_source(rng: Any) -> Callable[[int, tuple[int, int]], IntArray]:
    """Return a function that draws indices below n, in a given shape, with replacement.

    Raises
    ------
    TypeError, ValueError
        If `rng` is neither None, an integer from 0 on, nor a ``numpy.random.Generator``.
    """
    if rng is None:
        # One call for many batches gives the same numbers as a call for each.
        return lambda n, shape: np.random.choice(n, shape).astype(np.int64, copy=False)  # noqa: NPY002
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng(whole_number(rng, "rng", minimum=0))
    return lambda n, shape: rng.integers(n, size=shape)
