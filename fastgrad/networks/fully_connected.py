"""The networks of *Deep Learning from Scratch*: two layers (chapter 4), or any number (chapter 6).

Parameters live in the dict ``params`` as plain arrays; whoever edits or replaces one there changes
the network. Everything computed goes through `fastgrad.networks.engine.Engine`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastgrad.checking.check import check_gradient
from fastgrad.checking.result import GradientCheck, compare_gradients
from fastgrad.data.archives import load_arrays, save_arrays
from fastgrad.kernels.activations import ACTIVATIONS
from fastgrad.networks.engine import Engine
from fastgrad.networks.fit import History, fit
from fastgrad.networks.workspace import aligned, parameter_shapes
from fastgrad.nn import functions
from fastgrad.numdiff.gradients import numerical_gradient
from fastgrad.validation import (
    FloatArray,
    IntArray,
    as_generator,
    float_dtype,
    is_canonical,
    no_targets,
    one_of,
    real_array,
    real_number,
    samples,
    step_size,
    targets,
    whole_number,
)

__all__ = ["MultiLayerNet", "TwoLayerNet"]

#: Samples that a pass over a large set takes at a time.
_BLOCK = 1000


class Network:
    """What the networks share. Not to be instantiated."""

    #: Whether `predict` returns class probabilities or the last layer's raw scores.
    _predicts_probabilities: ClassVar[bool] = True
    #: The activation where none is given.
    _default_activation: ClassVar[str] = "sigmoid"
    #: The number of affine layers; 0 where it may be any.
    _layer_count: ClassVar[int] = 0

    params: dict[str, Any]

    def _set_up(
        self, sizes: Sequence[int], activation: str, delta: float, dtype: DTypeLike, decay: float
    ) -> None:
        self._sizes = tuple(sizes)
        self._shapes = parameter_shapes(self._sizes)
        self._activation = one_of(activation, "activation", tuple(ACTIVATIONS))
        self._dtype = float_dtype(dtype)
        self._delta = real_number(delta, "delta", minimum=0, dtype=self._dtype)
        self._decay = real_number(decay, "weight_decay_lambda", minimum=0)
        #: Engines that no call is using: one a thread at most, so that calls may overlap.
        self._idle: list[Engine] = []

    def _draw(self, scales: Sequence[float], rng: Any) -> None:
        """Fill `params`: weights normal with these standard deviations, biases zero."""
        normal = normal_source(rng)
        self.params = {}
        for scale, (name, shape) in zip(np.repeat(scales, 2), self._shapes.items(), strict=True):
            self.params[name] = aligned(shape, self._dtype)
            if name.startswith("W"):
                self.params[name][...] = scale * normal(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def __repr__(self) -> str:
        """Return the sizes of the layers and what else the network is, in a line."""
        sizes = "-".join(map(str, self._sizes))
        decay = f", weight decay {self._decay:g}" if self._decay else ""
        total = sum(math.prod(shape) for shape in self._shapes.values())
        return (
            f"{type(self).__name__} {sizes}, {self._activation}, {self._dtype}{decay}: "
            f"{total:,} parameters"
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which the network computes."""
        return self._dtype

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Lend an engine that has taken over the parameters; for `fastgrad.networks.fit`."""
        engine = self._acquire()
        yield engine
        self._release(engine)

    # The calls below use these two themselves: a generator would take 2 of 130 microseconds. An
    # engine that an error left in an unknown state is not taken back.

    def _acquire(self) -> Engine:
        params = self.checked_params()
        try:
            engine = self._idle.pop()
        except IndexError:
            engine = Engine(self._sizes, self._activation, self._delta, self._dtype, self._decay)
        engine.load(params)
        return engine

    def _release(self, engine: Engine) -> None:
        engine.release()
        self._idle.append(engine)

    def checked_params(self) -> dict[str, FloatArray]:
        """Return the parameters as canonical arrays; for `fit`.

        Raises
        ------
        TypeError, ValueError
            If `params` does not fit.
        """
        shapes = self._shapes
        if not isinstance(self.params, dict) or self.params.keys() != shapes.keys():
            got = sorted(map(str, self.params)) if isinstance(self.params, dict) else self.params
            raise ValueError(f"`params` must be a dict with the keys {list(shapes)}. Got {got!r}.")
        found = {}
        for name, shape in shapes.items():
            array = self.params[name]
            if not is_canonical(array, self._dtype, shape):
                array = real_array(array, f"params[{name!r}]", dtype=self._dtype, shape=shape)
            found[name] = array
        return found

    def checked_batch(self, x: Any, t: Any) -> tuple[FloatArray, IntArray, FloatArray]:
        """Return samples, labels and soft targets as the engine wants them; for `fit`."""
        xs, _ = samples(x, "x", self._sizes[0], self._dtype)
        return (xs, *targets(t, "t", len(xs), self._sizes[-1], self._dtype))

    def predict(self, x: ArrayLike) -> FloatArray:
        """Compute class probabilities.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.

        Returns
        -------
        ndarray, shape (N, C) or (C,)
            Of the network's dtype.

        Raises
        ------
        TypeError, ValueError
            If `x` or `params` does not fit.
        """
        xs, single = samples(x, "x", self._sizes[0], self._dtype)
        result = np.empty((len(xs), self._sizes[-1]), self._dtype)
        first = 0
        engine = self._acquire()
        for block in _blocks(xs, *no_targets(self._sizes[-1], self._dtype)):
            space = engine.forward(*block)
            found = space.probabilities if self._predicts_probabilities else space.logits
            result[first : first + len(found)] = found
            first += len(found)
        self._release(engine)
        return result[0] if single else result

    def loss(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the loss −(1/N) Σₙ Σₖ tₙₖ log(yₙₖ + delta), plus weight decay where there is one.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        if has_own(self, "predict"):
            return self._loss_of(self.predict(x), t)
        xs, labels, soft = self.checked_batch(x, t)
        engine = self._acquire()
        total = 0.0
        for block in _blocks(xs, labels, soft):
            total += engine.loss(*block) * (len(block[0]) / len(xs))
        self._release(engine)
        return np.float64(total)

    def _loss_of(self, predictions: Any, t: Any) -> float:
        """Return the loss of what a user's own `predict` returns, penalty included."""
        if self._predicts_probabilities:
            loss = functions.cross_entropy_error(predictions, t)
        else:
            loss, _ = functions.softmax_cross_entropy(predictions, t, delta=self._delta)
        return np.float64(loss + self._weight_decay())

    def _weight_decay(self) -> float:
        """Return the penalty for large weights."""
        if not self._decay:
            return 0.0
        weights = (np.asarray(self.params[f"W{n}"]) for n in range(1, len(self._sizes)))
        return float(0.5 * self._decay * sum(np.sum(W**2) for W in weights))

    def accuracy(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the share of samples whose largest score is that of the target's class.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C), of which the largest counts.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        xs, labels, soft = self.checked_batch(x, t)
        wanted = labels if labels.size else soft.argmax(axis=1)
        return np.float64(np.mean(np.asarray(self.predict(xs)).argmax(axis=1) == wanted))

    def gradient(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the derivative of `loss` by every parameter, by backpropagation.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).

        Returns
        -------
        dict of ndarray
            Like `params`.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        xs, labels, soft = self.checked_batch(x, t)
        engine = self._acquire()
        found = self._mean_over_blocks(engine.gradient, xs, labels, soft)
        self._release(engine)
        return found

    def _mean_over_blocks(
        self,
        compute: Callable[..., tuple[float, dict[str, FloatArray]]],
        xs: FloatArray,
        labels: IntArray,
        soft: FloatArray,
    ) -> dict[str, FloatArray]:
        """Return the gradient over all samples, from those over blocks of them."""
        if len(xs) <= _BLOCK:
            return compute(xs, labels, soft)[1]
        total = {name: np.zeros(shape, self._dtype) for name, shape in self._shapes.items()}
        for block in _blocks(xs, labels, soft):
            _, part = compute(*block)
            for name, array in part.items():
                total[name] += array * self._dtype.type(len(block[0]) / len(xs))
        return total

    def numerical_gradient(
        self, x: ArrayLike, t: ArrayLike, h: float = 1e-4
    ) -> dict[str, FloatArray]:
        """Compute the central difference of `loss` by every parameter.

        The loss is evaluated at both nudged points of each parameter, as the textbook loop does,
        but as a change: no digits cancel, and only what the nudge can change is computed.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).
        h : float, optional
            The step, above 0.

        Returns
        -------
        dict of ndarray
            Like `params`. All NaN where the loss, or a parameter, is not finite; and NaN where an
            infinite entry of `x` takes part.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t`, `h` or `params` does not fit.

        Notes
        -----
        (L(w + h) − L(w − h)) / 2h, section 4.4 of the book; the arithmetic is described in
        `fastgrad.kernels.central_difference`. A subclass with a `predict` or `loss` of its own has
        that evaluated, twice for each parameter, as the book does.
        """
        h = step_size(h)
        if has_own(self, "predict", "loss"):
            return {name: self._difference(name, x, t, h) for name in self._shapes}
        xs, labels, soft = self.checked_batch(x, t)
        limits = np.finfo(self._dtype)
        if not limits.tiny <= h <= limits.max:
            raise ValueError(
                f"`h` must be from {limits.tiny:.3g} to {limits.max:.3g} in {self._dtype}. Got {h}."
            )
        engine = self._acquire()
        compute = functools.partial(engine.central_difference, h=h)
        found = self._mean_over_blocks(compute, xs, labels, soft)
        self._release(engine)
        return found

    def _difference(self, name: str, x: ArrayLike, t: ArrayLike, h: float) -> FloatArray:
        """Return the central difference of `loss` by one parameter, by evaluating it."""
        held = self.params[name]

        def loss(nudged: FloatArray) -> float:
            self.params[name] = nudged  # a copy, if what the user put there is no array to write in
            return self._training_loss(x, t)

        try:
            difference: FloatArray = numerical_gradient(loss, held, h)
            return difference
        finally:
            self.params[name] = held

    def _training_loss(self, x: ArrayLike, t: ArrayLike) -> float:
        """Return the loss that gradients are of."""
        return self.loss(x, t)

    def check_gradient(
        self, x: ArrayLike, t: ArrayLike, h: Any = 1e-4, **options: Any
    ) -> GradientCheck:
        """Compare `gradient` with `numerical_gradient`.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).
        h : float, dict like `params`, or "auto", optional
            The step, above 0.
        **options : Any
            Those of `fastgrad.check_gradient`: order, sample, directions, bounds, progress, rng,
            workers. With one of them, or with steps that are no single number, `loss` is evaluated
            at each point of the difference.

        Returns
        -------
        GradientCheck
            Errors of every parameter array, a verdict ``ok``, a table as ``str()``, and ``plot()``.
            Parameters within ±h of a kink of ReLU are counted, not judged.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t`, `h` or `params` does not fit.
        """
        if options or isinstance(h, dict) or (isinstance(h, str) and h == "auto"):
            return check_loss_gradient(self, self._training_loss, x, t, h, options)
        h = step_size(h)
        numerical = self.numerical_gradient(x, t, h)
        double = self.numerical_gradient(x, t, 2 * h)
        relu = self._activation == "relu"
        kinks = self._kinks(x, t, h) if relu else None
        precision = 64 * float(np.finfo(self._dtype).eps)
        noise = {}
        for name, array in numerical.items():
            largest = float(np.abs(array).max(initial=0))
            # Three times the truncation error, entry by entry. Where 2h reaches a kink that h does
            # not reach, the difference tells nothing about it.
            with np.errstate(invalid="ignore"):  # both may be infinite
                truncation = np.abs(array - double[name])
            if relu:
                np.minimum(truncation, h * h * largest, out=truncation)
            noise[name] = truncation + (precision * largest or precision)
        return compare_gradients(self.gradient(x, t), numerical, h=h, noise=noise, kinks=kinks)

    def _kinks(self, x: Any, t: Any, h: float) -> dict[str, Any]:
        """Mark the parameters whose nudge can carry some unit's input across zero."""
        xs, labels, soft = self.checked_batch(x, t)
        params = self.checked_params()
        hidden = range(1, len(self._sizes) - 1)
        marks = {name: np.zeros(shape, bool) for name, shape in self._shapes.items()}
        with self.engine() as engine:
            for n in range(len(xs)):
                space = engine.forward(xs[n : n + 1], labels[n : n + 1], soft[n : n + 1])
                # How far each unit's input may move before it, or a unit that it feeds, has a kink.
                room = [np.empty(0)] * len(self._sizes)
                for layer in reversed(hidden):
                    size = self._sizes[layer]
                    room[layer] = np.abs(space.inputs[layer - 1, 0, :size])
                    reach = np.eye(size)
                    for above in range(layer + 1, len(self._sizes) - 1):
                        reach = reach @ np.abs(params[f"W{above}"])
                        inputs = np.abs(space.inputs[above - 1, 0, : self._sizes[above]])
                        with np.errstate(divide="ignore", invalid="ignore"):
                            limits = np.where(reach > 0, inputs / reach, np.inf)
                        room[layer] = np.fmin(room[layer], limits.min(axis=1))
                for layer in hidden:
                    below = (
                        xs[n]
                        if layer == 1
                        else space.values[layer - 2, 0, : self._sizes[layer - 1]]
                    )
                    moves = h * np.abs(below)[:, None]
                    marks[f"W{layer}"] |= (moves >= room[layer]) & (moves > 0)
                    marks[f"b{layer}"] |= h >= room[layer]
        return marks

    def fit(
        self,
        x: ArrayLike,
        t: ArrayLike,
        *,
        iterations: int = 10_000,
        batch_size: int = 100,
        learning_rate: float | None = None,
        method: str = "gradient",
        optimizer: Any = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        progress: bool = False,
        rng: Any = None,
        callback: Callable[[int, float], object] | None = None,
    ) -> History:
        """Train on mini-batches drawn at random with replacement, as the book does.

        Parameters
        ----------
        x : array_like, shape (N, D)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).
        iterations : int, optional
            Number of mini-batches.
        batch_size : int, optional
            Samples in each of them.
        learning_rate : float, optional
            Of plain gradient descent, from 0 on, by default 0.1. An `optimizer` brings its own, so
            only one of the two can be given.
        method : {"gradient", "numerical_gradient"}, optional
            Backpropagation, or numerical gradients alone.
        optimizer : SGD, Momentum, Nesterov, AdaGrad, RMSprop or Adam, optional
            By default ``SGD(0.1)``. What it remembers goes on from, and into, the object.
        validation : (x_test, t_test), optional
            If given, the accuracies on both sets are evaluated once an epoch.
        progress : bool, optional
            Show a progress bar.
        rng : int, Generator, SeedSequence or RandomState of numpy.random, optional
            Source of the batches; by default NumPy's global legacy generator, as in the book.
        callback : callable, optional
            Called as ``callback(iteration, loss)`` after each iteration, with `params` up to date;
            training ends when it returns True. What it writes into them lasts only then, or when
            it raises: the next iteration starts from where the last one ended.

        Returns
        -------
        History
            The loss of every batch, accuracies, and the time taken. After Ctrl-C it is the history
            so far, ``interrupted`` is True, and `params` are those of its last iteration. They are
            so too when an exception ends training, a callback's for example.

        Raises
        ------
        TypeError, ValueError
            If an argument or `params` does not fit; nothing has been changed then. Also where a
            subclass has a `predict` or `loss` of its own, which the inherited `gradient` does not
            differentiate.

        Warns
        -----
        RuntimeWarning
            Once, when the loss is no longer finite.

        Notes
        -----
        Section 4.5 of the book. With the same seed and number of threads a run repeats bit for bit;
        other numbers of threads agree to rounding.

        A subclass with methods of its own is trained by these: by its `gradient` or, with
        ``method="numerical_gradient"``, by differences of its `predict` or `loss`.
        """
        if (
            method == "gradient"
            and has_own(self, "predict", "loss")
            and (not has_own(self, "gradient"))
        ):
            raise TypeError(
                f"`gradient` must be {type(self).__name__}'s own, as `predict` or `loss` is: the "
                'inherited one differentiates another loss. Or use method="numerical_gradient".'
            )
        return fit(
            self, x, t,
            iterations=iterations, batch_size=batch_size, learning_rate=learning_rate,
            method=method, optimizer=optimizer, validation=validation, progress=progress, rng=rng,
            callback=callback,
            by_methods=has_own(self, "predict", "loss", "gradient", "numerical_gradient"),
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save parameters and settings as an .npz file that `numpy.load` can read too.

        Parameters
        ----------
        path : path_like
            Where to; ``.npz`` is appended if missing. An existing file is replaced as a whole.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        OSError
            If it cannot be written; an existing file is unharmed then.
        TypeError, ValueError
            If `params` does not fit.
        """
        return save_arrays(
            path,
            self.checked_params(),
            format="fastgrad network",
            version=1,
            network=type(self).__name__,
            sizes=list(self._sizes),
            activation=self._activation,
            delta=self._delta,
            weight_decay_lambda=self._decay,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a network that `save` wrote.

        Parameters
        ----------
        path : path_like
            The file.

        Returns
        -------
        TwoLayerNet or MultiLayerNet
            Of the class on which `load` is called.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not a network of this class.

        Notes
        -----
        A file of ``numpy.savez(path, **net.params)`` has no settings: the network gets those that
        the class has by default, and the sizes of the arrays.
        """
        arrays, settings = load_arrays(path)
        settings = settings or cls._default_settings(arrays)
        if settings.get("format") != "fastgrad network" or settings.get("version") != 1:
            raise ValueError(f"{os.fspath(path)!r} must hold a fastgrad network of version 1.")
        if settings.get("network") != cls.__name__:
            raise ValueError(
                f"{os.fspath(path)!r} must hold a {cls.__name__}. Got {settings.get('network')!r}."
            )
        network = cls.__new__(cls)
        try:
            sizes = [whole_number(size, "sizes", minimum=1) for size in settings["sizes"]]
            network._set_up(
                sizes,
                settings["activation"],
                settings["delta"],
                arrays["W1"].dtype,
                settings["weight_decay_lambda"],
            )
            network.params = arrays
            network.checked_params()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)!r} does not describe a network: {error}") from error
        network._finish()
        return network

    @classmethod
    def _default_settings(cls, arrays: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a network of which only the parameters are known, or none."""
        weights = [arrays.get(f"W{n}", np.empty(0)) for n in range(1, len(arrays) // 2 + 1)]
        if not weights or any(W.ndim != 2 for W in weights):
            return {}
        if cls._layer_count and len(weights) != cls._layer_count:
            return {}
        return {
            "format": "fastgrad network",
            "version": 1,
            "network": cls.__name__,
            "sizes": [len(weights[0]), *(W.shape[1] for W in weights)],
            "activation": cls._default_activation,
            "delta": 1e-7,
            "weight_decay_lambda": 0.0,
        }

    def _finish(self) -> None:
        """Complete a loaded network; for subclasses."""


class TwoLayerNet(Network):
    """The two-layer network of chapter 4: affine, activation, affine, softmax.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Units of each layer.
    weight_init_std : float, optional
        Standard deviation of the initial weights.
    activation : {"sigmoid", "relu"}, optional
        Of the hidden layer.
    delta : float, optional
        Kept from the logarithm's zero: the loss is −(1/N) Σₙ Σₖ tₙₖ log(yₙₖ + delta). With 0 it is
        the plain cross entropy of log-softmax.
    dtype : {numpy.float64, numpy.float32}, optional
        In which parameters are kept and everything is computed.
    rng : int, Generator, SeedSequence or RandomState of numpy.random, optional
        Source of the initial weights; by default NumPy's global legacy generator, in the book's
        order, so that ``np.random.seed(0)`` gives the book's numbers.

    Attributes
    ----------
    params : dict of ndarray
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,). Edits and replaced arrays take effect.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    In a subclass with a `predict` of its own, `loss`, `accuracy` and `numerical_gradient` go by
    that, and with a `loss` of its own `numerical_gradient` does; they take as long as the book's
    then. `fit` goes by the subclass's own `gradient`, or by `numerical_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgrad import TwoLayerNet
    >>> net = TwoLayerNet(784, 50, 10, rng=0)
    >>> x, t = np.random.default_rng(0).random((3, 784)), [3, 1, 4]
    >>> net.predict(x).shape
    (3, 10)
    >>> backward, numerical = net.gradient(x, t), net.numerical_gradient(x, t)
    >>> bool(np.allclose(backward["W1"], numerical["W1"], rtol=1e-6, atol=1e-12))
    True
    """

    _layer_count = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        weight_init_std: float = 0.01,
        *,
        activation: str = "sigmoid",
        delta: float = 1e-7,
        dtype: DTypeLike = np.float64,
        rng: Any = None,
    ) -> None:
        sizes = [
            whole_number(input_size, "input_size", minimum=1),
            whole_number(hidden_size, "hidden_size", minimum=1),
            whole_number(output_size, "output_size", minimum=1),
        ]
        scale = real_number(weight_init_std, "weight_init_std", minimum=0)
        self._set_up(sizes, activation, delta, dtype, 0.0)
        self._draw([scale, scale], rng)


class MultiLayerNet(Network):
    """The fully connected network of chapter 6, with any number of hidden layers.

    Parameters
    ----------
    input_size : int
        Units of the input.
    hidden_size_list : sequence of int
        Units of each hidden layer.
    output_size : int
        Number of classes.
    activation : {"relu", "sigmoid"}, optional
        Of the hidden layers; in any case of letters.
    weight_init_std : {"relu", "he", "sigmoid", "xavier"} or float, optional
        Standard deviation of the initial weights: √(2/n) for "relu" and "he", √(1/n) for "sigmoid"
        and "xavier", n being the layer's number of inputs.
    weight_decay_lambda : float, optional
        λ of the weight decay ½ λ Σ W².
    delta : float, optional
        As for `TwoLayerNet`.
    dtype : {numpy.float64, numpy.float32}, optional
        In which parameters are kept and everything is computed.
    rng : int, Generator, SeedSequence or RandomState of numpy.random, optional
        Source of the initial weights; by default NumPy's global legacy generator.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    `predict` returns the raw scores of the last layer, as in the book. Initial values: X. Glorot
    and Y. Bengio (2010); K. He et al., arXiv:1502.01852; section 6.2 of the book.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgrad import MultiLayerNet
    >>> net = MultiLayerNet(784, [100, 100], 10, rng=0)
    >>> sorted(net.params)
    ['W1', 'W2', 'W3', 'b1', 'b2', 'b3']
    >>> net.predict(np.zeros(784)).shape
    (10,)
    """

    _predicts_probabilities = False
    _default_activation = "relu"

    def __init__(
        self,
        input_size: int,
        hidden_size_list: Sequence[int],
        output_size: int,
        activation: str = "relu",
        weight_init_std: str | float = "relu",
        weight_decay_lambda: float = 0,
        *,
        delta: float = 1e-7,
        dtype: DTypeLike = np.float64,
        rng: Any = None,
    ) -> None:
        if isinstance(hidden_size_list, str) or not hasattr(hidden_size_list, "__iter__"):
            raise TypeError(
                f"`hidden_size_list` must be a sequence of integers. Got {hidden_size_list!r}."
            )
        sizes = [
            whole_number(input_size, "input_size", minimum=1),
            *(whole_number(size, "hidden_size_list", minimum=1) for size in hidden_size_list),
            whole_number(output_size, "output_size", minimum=1),
        ]
        lower = activation.lower() if isinstance(activation, str) else activation
        self._set_up(sizes, lower, delta, dtype, weight_decay_lambda)
        self._draw([_initial_scale(weight_init_std, n_in) for n_in in sizes[:-1]], rng)


def _initial_scale(weight_init_std: Any, n_inputs: int) -> float:
    """Return the standard deviation of a layer's initial weights."""
    if isinstance(weight_init_std, str):
        name = one_of(
            weight_init_std.lower(), "weight_init_std", ("relu", "he", "sigmoid", "xavier")
        )
        return float(np.sqrt((2.0 if name in ("relu", "he") else 1.0) / n_inputs))
    return real_number(weight_init_std, "weight_init_std", minimum=0)


def normal_source(rng: Any) -> Callable[[tuple[int, ...]], FloatArray]:
    """Return a function that draws standard normal arrays of a given shape.

    Raises
    ------
    TypeError, ValueError
        As for `fastgrad.validation.as_generator`.
    """
    generator = as_generator(rng)
    if isinstance(generator, np.random.Generator):
        return generator.standard_normal
    return lambda shape: np.asarray(generator.randn(*shape))


def check_loss_gradient(
    network: Any,
    loss: Callable[[Any, Any], float],
    x: ArrayLike,
    t: ArrayLike,
    h: Any,
    options: dict[str, Any],
) -> GradientCheck:
    """Check a network's gradient by evaluating its loss, with all options of `check_gradient`."""
    held = network.params

    def loss_at(params: dict[str, Any]) -> float:
        network.params = params
        try:
            return loss(x, t)
        finally:
            network.params = held

    return check_gradient(loss_at, network.gradient(x, t), held, h, **options)


def has_own(network: object, *names: str) -> bool:
    """Return whether some methods of a network are its user's own: a subclass's, or the object's.

    All others were written in this package, and know how to do without one another.
    """
    return any(
        name in vars(network)
        or not str(getattr(type(network), name).__module__).startswith("fastgrad.")
        for name in names
    )


def _blocks(
    xs: FloatArray, labels: IntArray, soft: FloatArray
) -> Iterator[tuple[FloatArray, IntArray, FloatArray]]:
    """Cut samples and targets into blocks of a size whose scratch stays in the cache."""
    if len(xs) <= _BLOCK:
        yield xs, labels, soft
        return
    for first in range(0, len(xs), _BLOCK):
        block = slice(first, first + _BLOCK)
        yield xs[block], labels[block], soft[block]
