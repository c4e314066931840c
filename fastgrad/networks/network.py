"""What every network does: predict, loss, gradients, their comparison, training, files.

A `Network` is a dict of parameters, layers, and a last layer that is the loss. The methods here
run the layers, one after the other. A subclass says how its layers and parameters are made, and may
compute the same faster: its methods with an underscore give way then, the public ones stay.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from fastgrad.checking.check import check_gradient
from fastgrad.checking.result import GradientCheck, compare_gradients
from fastgrad.data.archives import load_arrays, save_arrays
from fastgrad.networks.fit import History, Run, fit
from fastgrad.nn.layers import Dropout
from fastgrad.nn.optimizers import SGD, Optimizer
from fastgrad.numdiff.gradients import numerical_gradient
from fastgrad.validation import FloatArray, step_size

__all__ = ["Network", "has_own"]

#: What a file of a network is marked with.
_FORMAT = {"format": "fastgrad network", "version": 1}


class Network:
    """A network of layers. Not to be instantiated.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..
    layers : dict or list of layers
    last_layer : layer
        The loss.
    """

    params: dict[str, Any]
    layers: Any
    last_layer: Any
    #: The strength of the weight decay.
    _decay: float = 0.0
    #: Makes the optimizer of `fit` where none is given.
    _default_optimizer: ClassVar[Callable[[], Optimizer]] = functools.partial(SGD, 0.1)

    def predict(self, x: ArrayLike) -> FloatArray:
        """Compute the scores of the classes.

        Parameters
        ----------
        x : array_like, shape (N, D) or (D,)
            Samples; for a convolutional network images, shape (N, C, H, W).

        Returns
        -------
        ndarray, shape (N, classes) or (classes,)
            The raw scores of the last layer; probabilities, if it is a `TwoLayerNet`.

        Raises
        ------
        TypeError, ValueError
            If `x` or `params` does not fit.
        """
        return self._scores(x)

    def loss(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the loss −(1/N) Σₙ Σₖ tₙₖ log(yₙₖ + delta), plus weight decay where there is one.

        Parameters
        ----------
        x : array_like
            Samples, as for `predict`.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, classes).

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        return self._loss(x, t)

    def accuracy(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the share of samples whose largest score is that of the target's class.

        Parameters
        ----------
        x, t : array_like
            As for `loss`; of soft targets the largest counts.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        samples, targets = self._training_data(x, t)
        wanted = targets if targets.ndim == 1 else targets.argmax(axis=1)
        return np.float64(np.mean(np.asarray(self.predict(samples)).argmax(axis=1) == wanted))

    def gradient(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the derivative of `loss` by every parameter, by backpropagation.

        Parameters
        ----------
        x, t : array_like
            As for `loss`.

        Returns
        -------
        dict of ndarray
            Like `params`.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        return self._gradient(x, t)

    def numerical_gradient(
        self, x: ArrayLike, t: ArrayLike, h: float = 1e-4
    ) -> dict[str, FloatArray]:
        """Compute the central difference of `loss` by every parameter.

        The loss is evaluated at both perturbed points of each parameter, as the textbook loop does,
        but as a change: no digits cancel, and only what the perturbation can change is computed.

        Parameters
        ----------
        x, t : array_like
            As for `loss`.
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
        `fastgrad.kernels.central_difference`. A subclass with a `predict` or `loss` of its own, or
        with layers that are not the book's, has its loss evaluated, twice for each parameter, as
        the book does.
        """
        h = step_size(h)
        found = None if has_own(self, "predict", "loss") else self._central_differences(x, t, h)
        if found is None:
            arrays = {name: self.params[name] for name in self._names()}
            found = numerical_gradient(self._loss_by_params(x, t), arrays, h)
        return found

    def check_gradient(
        self, x: ArrayLike, t: ArrayLike, h: Any = 1e-4, **options: Any
    ) -> GradientCheck:
        """Compare `gradient` with `numerical_gradient`.

        Parameters
        ----------
        x, t : array_like
            As for `loss`.
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
            Parameters within ±h of a kink, of ReLU or of a pooling, are counted, not judged.

        Raises
        ------
        TypeError, ValueError
            If `x`, `t`, `h` or `params` does not fit.
        """
        if options or isinstance(h, dict) or (isinstance(h, str) and h == "auto"):
            return self._check_by_losses(x, t, h, options)
        h = step_size(h)
        numerical, double, kinks = self._differences_and_kinks(x, t, h)
        analytic = self.gradient(x, t)
        noise = {}
        for name, array in numerical.items():
            largest = float(np.abs(array).max(initial=0))
            # Three times the truncation error, entry by entry. Where 2h reaches a kink that h does
            # not reach, the difference tells nothing about it.
            with np.errstate(invalid="ignore"):  # both may be infinite
                truncation = np.abs(array - double[name])
            if kinks is not None:
                np.minimum(truncation, h * h * largest, out=truncation)
            dtypes = (np.result_type(some[name], np.float32) for some in (analytic, numerical))
            precision = 64 * max(float(np.finfo(dtype).eps) for dtype in dtypes)
            noise[name] = truncation + (precision * largest or precision)
        return compare_gradients(analytic, numerical, h=h, noise=noise, kinks=kinks)

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
        x, t : array_like
            As for `loss`.
        iterations : int, optional
            Number of mini-batches.
        batch_size : int, optional
            Samples in each of them.
        learning_rate : float, optional
            Of the optimizer that is there by default, from 0 on. An `optimizer` brings its own, so
            only one of the two can be given.
        method : {"gradient", "numerical_gradient"}, optional
            Backpropagation, or numerical gradients alone.
        optimizer : SGD, Momentum, Nesterov, AdaGrad, RMSprop or Adam, optional
            By default ``SGD(0.1)``, and ``Adam()`` of a convolutional network. What it remembers
            goes on from, and into, the object.
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
        return fit(
            self, x, t, iterations, batch_size, learning_rate, method, optimizer, validation,
            progress, rng, callback,
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
        arrays = self._checked_arrays()
        return save_arrays(path, arrays, **_FORMAT, network=type(self).__name__, **self._settings())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a network that `save` wrote.

        Parameters
        ----------
        path : path_like
            The file.

        Returns
        -------
        Network
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
        if not settings and (default := cls._default_settings(arrays)) is not None:
            settings = {**_FORMAT, "network": cls.__name__, **default}
        if any(settings.get(key) != value for key, value in _FORMAT.items()):
            raise ValueError(f"{os.fspath(path)!r} must hold a fastgrad network of version 1.")
        if settings.get("network") != cls.__name__:
            raise ValueError(
                f"{os.fspath(path)!r} must hold a {cls.__name__}. Got {settings.get('network')!r}."
            )
        try:
            return cls._restored(arrays, settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)!r} does not describe a network: {error}") from error

    # What follows is computed by the layers, and gives way where a subclass knows better.

    def _parts(self) -> tuple[list[Any], Any]:
        """Return the layers, and the last one, that of the loss."""
        layers = self.layers
        return list(layers.values() if isinstance(layers, Mapping) else layers), self.last_layer

    def _scores(self, x: Any) -> FloatArray:
        scores: FloatArray = self._run(self._parts()[0], x, False)
        return scores

    def _run(self, layers: Iterable[Any], x: Any, training: bool) -> Any:
        """Return what the last of some layers returns, in a pass for training or for testing."""
        for layer in layers:
            x = layer.forward(x, training) if isinstance(layer, Dropout) else layer.forward(x)
        return x

    def _loss(self, x: Any, t: Any) -> float:
        return np.float64(self._loss_of(self.predict(x), t))

    def _loss_of(self, scores: Any, t: Any) -> Any:
        """Return the loss of scores, penalty included."""
        return self._parts()[1].forward(scores, t) + self._penalty()

    def _penalty(self) -> Any:
        """Return the penalty for large weights."""
        if not self._decay:
            return 0.0
        weights = (np.asarray(self.params[name]) for name in self._names() if name.startswith("W"))
        return sum(0.5 * self._decay * np.sum(W**2) for W in weights)

    def _gradient(self, x: Any, t: Any) -> dict[str, Any]:
        layers = self._training_pass(x, t)
        dout = self._parts()[1].backward()
        for layer in reversed(layers):
            dout = layer.backward(dout)
        return self._gradients()

    def _training_pass(self, x: Any, t: Any) -> list[Any]:
        """Run a training pass up to the loss; return the layers, to go back through."""
        self._objective()(x, t)
        return self._parts()[0]

    def _held_by_layers(self) -> Iterator[tuple[Any, str, str]]:
        """Yield the layers that hold parameters, with each one's attribute and name there."""
        number = 0
        for layer in self._parts()[0]:
            number += hasattr(layer, "dW")
            for kind in ("W", "b") if hasattr(layer, "dW") else ("gamma", "beta"):
                if hasattr(layer, f"d{kind}"):
                    yield layer, kind, f"{kind}{number}"

    def _gradients(self) -> dict[str, FloatArray]:
        """Return what the layers' backward passes have left, and the weight decay's part."""
        grads = {}
        for layer, kind, name in self._held_by_layers():
            grads[name] = getattr(layer, f"d{kind}")
            if self._decay and kind == "W":
                grads[name] = grads[name] + self._decay * layer.W
        return grads

    def _objective(self) -> Callable[[Any, Any], float]:
        """Return the loss that gradients are of, as a function of samples and targets."""
        return self.loss

    def _names(self) -> Iterable[str]:
        """Return the names of the parameters in the order in which gradients are returned."""
        return list(self.params)

    def _central_differences(self, x: Any, t: Any, h: float) -> dict[str, FloatArray] | None:
        """Return the central differences from changes alone; None if the loss must be evaluated."""
        return None

    def _loss_by_params(self, x: Any, t: Any) -> Callable[[dict[str, Any]], float]:
        """Return the loss that gradients are of, as a function of the parameters."""
        held, objective = self.params, self._objective()

        def loss(params: dict[str, Any]) -> float:
            self.params = params
            try:
                return objective(x, t)
            finally:
                self.params = held

        return loss

    def _differences_and_kinks(
        self, x: Any, t: Any, h: float
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray], dict[str, Any] | None]:
        """Return the differences with h and 2h, and where kinks are within h, if there are any."""
        return self.numerical_gradient(x, t, h), self.numerical_gradient(x, t, 2 * h), None

    def _check_by_losses(self, x: Any, t: Any, h: Any, options: dict[str, Any]) -> GradientCheck:
        """Check the gradient by evaluating the loss, with all options of `check_gradient`."""
        return check_gradient(
            self._loss_by_params(x, t), self.gradient(x, t), self.params, h, **options
        )

    def _require_trainable(self, method: str) -> None:
        """Raise if `fit` cannot train the network as it is."""

    def _training_data(self, x: Any, t: Any) -> tuple[Any, Any]:
        """Return samples and targets to train or to test with, checked."""
        raise NotImplementedError

    def _has_own_methods(self) -> bool:
        """Return whether training goes by methods that are the user's own."""
        return has_own(self, "predict", "loss", "gradient", "numerical_gradient")

    def _begin_run(
        self, optimizer: Optimizer, method: str, data: tuple[Any, Any], batch_size: int
    ) -> Run:
        """Return the training run that `fit` advances."""
        return Run(self, optimizer, data, method)

    def _loss_and_gradient(self, method: str, x: Any, t: Any) -> tuple[float, dict[str, Any]]:
        """Return what an iteration of training needs, by the methods of these names."""
        return self.loss(x, t), getattr(self, method)(x, t)

    def _checked_arrays(self) -> dict[str, FloatArray]:
        """Return the parameters as `save` writes them."""
        return {name: np.asarray(array) for name, array in self.params.items()}

    def _settings(self) -> dict[str, Any]:
        """Return what `save` writes besides the parameters."""
        raise NotImplementedError

    @classmethod
    def _default_settings(cls, arrays: dict[str, Any]) -> dict[str, Any] | None:
        """Return the settings of a network of which only the parameters are known."""
        raise NotImplementedError

    @classmethod
    def _restored(cls, arrays: dict[str, Any], settings: dict[str, Any]) -> Self:
        """Return the network that a file describes."""
        raise NotImplementedError


def has_own(network: object, *names: str) -> bool:
    """Return whether some methods of a network are its user's own: a subclass's, or the object's.

    All others were written in this package, and know how to do without one another.
    """
    own, owner = vars(network), type(network)
    for name in names:  # a generator for `any` would take twice the time
        if name in own or not str(getattr(owner, name).__module__).startswith("fastgrad."):
            return True
    return False
