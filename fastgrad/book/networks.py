"""The book's networks as its modules hand them on, compiled where that gives the book's numbers.

Each is the book's class by its own formulas in NumPy. What takes time, `loss`, `accuracy`,
`gradient` and `numerical_gradient`, is computed by a compiled network as long as everything is as
in the book's scripts: float64 parameters of the shapes that they were made with, samples in rows,
one-hot targets or labels, layers and methods as they came. Everything else goes by the formulas,
and so prints what it prints in plain Python.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from fastgrad.book import layers
from fastgrad.book.functions import cross_entropy_error, sigmoid, sigmoid_grad, softmax
from fastgrad.kernels import central_difference_layers
from fastgrad.networks import fully_connected
from fastgrad.networks.engine import Engine
from fastgrad.networks.network import Network, has_own
from fastgrad.nn import layers as compiled_layers
from fastgrad.runtime import threads
from fastgrad.validation import FloatArray

__all__ = ["BookTwoLayerNet", "LayeredMultiLayerNet", "LayeredTwoLayerNet", "MultiLayerNetExtend"]


class _Book(fully_connected.FullyConnected):
    """What the book's networks have in common."""

    def _is_usual(self, x: Any, t: Any = None) -> bool:
        """Return whether the compiled network computes what the book's formulas compute."""
        params, shapes = self.params, self._shapes
        return (
            type(x) is np.ndarray
            and x.ndim == 2
            and x.shape[1] == self._sizes[0]
            and len(x) > 0
            and x.dtype.char in "dfB"
            and params.keys() == shapes.keys()
            and all(_is_usual_array(params[name], shapes[name]) for name in shapes)
            and (t is None or _is_usual_target(t, len(x), self._sizes[-1]))
            and not has_own(self, "predict", "loss")
        )

    def _share_of_hits(self, x: Any, y: Any, t: Any) -> Any:
        """Return the accuracy of scores against labels."""
        return np.sum(np.argmax(y, axis=1) == t) / float(x.shape[0])

    def _gradient(self, x: Any, t: Any, delta: float | None = 0.0) -> dict[str, FloatArray]:
        """Compute the gradient that has (y - t) / N at the last layer, as the book's.

        That is the derivative of the loss without the small number under its logarithm.
        """
        return super()._gradient(x, t, delta)

    def _central_differences(self, x: Any, t: Any, h: float) -> dict[str, FloatArray] | None:
        return super()._central_differences(x, t, h) if self._is_usual(x, t) else None


def _is_usual_array(array: Any, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter is as it was made."""
    return (
        type(array) is np.ndarray
        and array.dtype == np.float64
        and array.shape == shape
        and bool(array.flags.carray)
    )


def _is_usual_target(t: Any, n: int, classes: int) -> bool:
    """Return whether targets are labels, or one-hot."""
    if type(t) is not np.ndarray or t.dtype.kind not in "iuf":
        return False
    if t.shape == (n,):
        return bool(t.dtype.kind != "f" and classes > 1 and t.min() >= 0 and t.max() < classes)
    if t.shape != (n, classes):
        return False
    return bool(((t == 0) | (t == 1)).all() and (t.sum(axis=1) == 1).all())


class BookTwoLayerNet(_Book, fully_connected.TwoLayerNet):
    """Chapter 4's ``TwoLayerNet``: sigmoid, and probabilities from `predict`.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Units of each layer.
    weight_init_std : float, optional
        Standard deviation of the initial weights, drawn from NumPy's global legacy generator.

    Attributes
    ----------
    params : dict of ndarray
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,). Edits and replaced arrays take effect.

    Notes
    -----
    Section 4.5.1 of the book.

    Examples
    --------
    >>> BookTwoLayerNet(4, 3, 2).predict(np.zeros((1, 4))).shape
    (1, 2)
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, weight_init_std: float = 0.01
    ) -> None:
        super().__init__(input_size, hidden_size, output_size, weight_init_std)

    def _forward(self, x: Any) -> tuple[Any, Any, Any]:
        """Return what a pass leaves: the hidden layer's inputs and outputs, and probabilities."""
        a1 = np.dot(x, self.params["W1"]) + self.params["b1"]
        z1 = sigmoid(a1)
        return a1, z1, softmax(np.dot(z1, self.params["W2"]) + self.params["b2"])

    def predict(self, x: Any) -> Any:
        """Return the probabilities of the classes."""
        return super().predict(x) if self._is_usual(x) else self._forward(x)[2]

    def loss(self, x: Any, t: Any) -> Any:
        """Return the mean cross entropy."""
        if self._is_usual(x, t):
            return super().loss(x, t)
        return cross_entropy_error(self.predict(x), t)

    def accuracy(self, x: Any, t: Any) -> Any:
        """Return the share of samples whose class is found; targets are one-hot."""
        return self._share_of_hits(x, self.predict(x), np.argmax(t, axis=1))

    def gradient(self, x: Any, t: Any) -> dict[str, Any]:
        """Compute the gradient by backpropagation; targets are one-hot, as in the book."""
        if np.ndim(t) == 2 and self._is_usual(x, t):
            grads = self._gradient(x, t)
            return {name: grads[name] for name in ("W2", "b2", "W1", "b1")}  # the book's order
        a1, z1, y = self._forward(x)
        dy = (y - t) / x.shape[0]
        da1 = sigmoid_grad(a1) * np.dot(dy, self.params["W2"].T)
        return {
            "W2": np.dot(z1.T, dy),
            "b2": np.sum(dy, axis=0),
            "W1": np.dot(x.T, da1),
            "b1": np.sum(da1, axis=0),
        }


def _visible(name: str) -> Any:
    """Return a property with which a script sees layers: from when it asks for them on they run."""

    def read(network: Any) -> Any:
        network._show()
        return getattr(network, name)

    def replace(network: Any, value: Any) -> None:
        network._show()
        setattr(network, name, value)

    return property(read, replace)


class _Layered(_Book):
    """A network with the book's layer objects, compiled for as long as they are left as they are.

    As in the book the layers hold the arrays that were in ``params`` when they were made, and
    `predict` runs them. `loss` and `gradient` do so only from when a script has first asked for
    them: until then an iteration takes two thirds of the time. Then they first run on the last
    batch, with the parameters as they are by then, so that they hold what a pass leaves in them.
    """

    _predicts_probabilities: ClassVar[bool] = False
    #: The name of the hidden activations.
    _activation_name: ClassVar[str]

    layers: Any = _visible("_layers")
    last_layer: Any = _visible("_last_layer")
    _last_layer: Any

    def _finish(self) -> None:
        self._layers: OrderedDict[str, Any] = OrderedDict()
        for number in range(1, len(self._sizes)):
            affine = layers.Affine(self.params[f"W{number}"], self.params[f"b{number}"])
            self._layers[f"Affine{number}"] = affine
            if number < len(self._sizes) - 1:
                self._add_hidden_layers(number)
        self._last_layer = layers.SoftmaxWithLoss()
        self._own_layers = [*self._layers.values(), self._last_layer]
        #: What these layers hold, looked up once: every call asks.
        self._held = list(self._held_by_layers())
        self._shapes = {name: self.params[name].shape for _, _, name in self._held}
        #: Whether a script has asked for the layers, and may see what a pass leaves in them.
        self._shown = False
        #: Samples and targets of a pass that the layers have not seen.
        self._batch: tuple[Any, Any] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set attributes, and those that older pickles do not have."""
        super().__setstate__(state)
        if "_layers" in state:
            self._held = list(self._held_by_layers())

    def _show(self) -> None:
        self._shown = True
        if self._batch is not None:
            batch, self._batch = self._batch, None
            Network._loss(self, *batch)

    def _add_hidden_layers(self, number: int) -> None:
        """Add what follows an affine layer that is not the last one."""
        activation = layers.Relu if self._activation == "relu" else layers.Sigmoid
        self._layers[f"{self._activation_name}{number}"] = activation()

    def _parts(self) -> tuple[list[Any], Any]:
        return list(self._layers.values()), self._last_layer

    def _is_usual(self, x: Any, t: Any = None) -> bool:
        return (
            super()._is_usual(x, t)
            and self._layers_are_own()
            and all(self.params[name] is getattr(layer, kind) for layer, kind, name in self._held)
        )

    def _layers_are_own(self) -> bool:
        return [*self._layers.values(), self._last_layer] == self._own_layers

    def predict(self, x: Any) -> Any:
        """Return the raw scores of the last layer."""
        self._batch = None
        return Network._scores(self, x)  # by the layers

    def loss(self, x: Any, t: Any) -> Any:
        """Return the mean cross entropy, with weight decay."""
        if self._shown or not self._is_usual(x, t):
            return self._loss_of(self.predict(x), t)
        loss = super().loss(x, t)
        self._batch = x, t
        return loss

    def _loss_of(self, scores: Any, t: Any) -> Any:
        return Network._loss_of(self, scores, t)  # by the last layer

    def accuracy(self, x: Any, t: Any) -> Any:
        """Return the share of samples whose class is found."""
        y = self._scores(x) if not self._shown and self._is_usual(x) else self.predict(x)
        return self._share_of_hits(x, y, t if t.ndim == 1 else np.argmax(t, axis=1))

    def gradient(self, x: Any, t: Any) -> dict[str, Any]:
        """Compute the gradient of `loss` by backpropagation; the layers' dW and db are set too."""
        if self._shown or not self._is_usual(x, t):
            return Network._gradient(self, x, t)  # by the layers
        grads = self._gradient(x, t)
        self._batch = x, t
        for layer, kind, name in self._held:
            decayed = kind == "W" and self._decay
            setattr(layer, f"d{kind}", grads[name] - decayed * layer.W if decayed else grads[name])
        return grads

    def _require_trainable(self, method: str) -> None:
        if not self._layers_are_own():
            raise ValueError("`layers` must be as they were made for `fit`. Got other layers.")
        super()._require_trainable(method)


class LayeredTwoLayerNet(_Layered, fully_connected.TwoLayerNet):
    """Chapter 5's ``TwoLayerNet``: ReLU, raw scores from `predict`, ``layers`` and ``lastLayer``.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Units of each layer.
    weight_init_std : float, optional
        Standard deviation of the initial weights, drawn from NumPy's global legacy generator.

    Attributes
    ----------
    params : dict of ndarray
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,).
    layers : OrderedDict
        Affine1, Relu1 and Affine2.
    lastLayer : SoftmaxWithLoss

    Notes
    -----
    Section 5.7.2 of the book.

    Examples
    --------
    >>> net = LayeredTwoLayerNet(784, 50, 10)
    >>> list(net.layers)
    ['Affine1', 'Relu1', 'Affine2']
    """

    _activation_name = "Relu"
    lastLayer = _visible("_last_layer")  # noqa: N815 - the book's name

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, weight_init_std: float = 0.01
    ) -> None:
        super().__init__(input_size, hidden_size, output_size, weight_init_std, activation="relu")


class LayeredMultiLayerNet(_Layered, fully_connected.MultiLayerNet):
    """The book's ``common.multi_layer_net.MultiLayerNet``, with ``layers`` and ``last_layer``.

    Parameters
    ----------
    input_size, hidden_size_list, output_size, activation, weight_init_std, weight_decay_lambda
        As for `fastgrad.MultiLayerNet`.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..
    layers : OrderedDict
        Affine1, Activation_function1, Affine2, ..
    last_layer : SoftmaxWithLoss
    input_size, output_size, hidden_layer_num : int
    hidden_size_list : list of int
    weight_decay_lambda : float
        Changes of it take effect.

    Notes
    -----
    Chapter 6 of the book.

    Examples
    --------
    >>> net = LayeredMultiLayerNet(784, [100], 10, weight_decay_lambda=0.1)
    >>> list(net.layers), net.hidden_layer_num
    (['Affine1', 'Activation_function1', 'Affine2'], 1)
    """

    _activation_name = "Activation_function"

    def __init__(
        self,
        input_size: int,
        hidden_size_list: Sequence[int],
        output_size: int,
        activation: str = "relu",
        weight_init_std: str | float = "relu",
        weight_decay_lambda: float = 0,
    ) -> None:
        super().__init__(
            input_size, hidden_size_list, output_size, activation, weight_init_std,
            weight_decay_lambda,
        )  # fmt: skip

    def _finish(self) -> None:
        self.input_size, *self.hidden_size_list, self.output_size = self._sizes
        self.hidden_layer_num = len(self.hidden_size_list)
        super()._finish()

    @property
    def weight_decay_lambda(self) -> float:
        """Strength of the weight decay."""
        return self._decay

    @weight_decay_lambda.setter
    def weight_decay_lambda(self, value: float) -> None:
        self._decay = value


class MultiLayerNetExtend(LayeredMultiLayerNet):
    """The book's ``MultiLayerNetExtend``: with batch normalisation, dropout, or both.

    Parameters
    ----------
    input_size, hidden_size_list, output_size, activation, weight_init_std, weight_decay_lambda
        As for `fastgrad.MultiLayerNet`.
    use_dropout : bool, optional
        Whether a dropout layer follows each hidden activation.
    dropout_ration : float, optional
        Its ratio; spelled as in the book.
    use_batchnorm : bool, optional
        Whether batch normalisation precedes each hidden activation.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..; gamma1, beta1, .. with batch normalisation.
    layers : OrderedDict
        Affine1, BatchNorm1, Activation_function1, Dropout1, Affine2, ..
    last_layer : SoftmaxWithLoss

    Notes
    -----
    Chapter 6 of the book. Gradients are those of a training pass; `predict`, `loss` and `accuracy`
    are for testing unless ``train_flg`` says otherwise. At test time batch normalisation and
    dropout only shift and scale, so they are multiplied into the weights of a plain compiled
    network. With batch normalisation and without dropout the numerical gradient is compiled. It
    leaves the moving averages as they are; the book's evaluations of the loss pass for batches.

    Examples
    --------
    >>> net = MultiLayerNetExtend(784, [100], 10, use_batchnorm=True, use_dropout=True)
    >>> list(net.layers)
    ['Affine1', 'BatchNorm1', 'Activation_function1', 'Dropout1', 'Affine2']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size_list: Sequence[int],
        output_size: int,
        activation: str = "relu",
        weight_init_std: str | float = "relu",
        weight_decay_lambda: float = 0,
        use_dropout: bool = False,
        dropout_ration: float = 0.5,
        use_batchnorm: bool = False,
    ) -> None:
        self.use_dropout = use_dropout
        self.use_batchnorm = use_batchnorm
        self._ratio = dropout_ration
        super().__init__(
            input_size, hidden_size_list, output_size, activation, weight_init_std,
            weight_decay_lambda,
        )  # fmt: skip

    @property
    def _extended(self) -> bool:
        return bool(self.use_dropout or self.use_batchnorm)

    def _add_hidden_layers(self, number: int) -> None:
        if self.use_batchnorm:
            units = self._sizes[number]
            gamma, beta = np.ones(units), np.zeros(units)
            self.params[f"gamma{number}"], self.params[f"beta{number}"] = gamma, beta
            batch_norm = compiled_layers.BatchNormalization(gamma, beta)
            self._layers[f"BatchNorm{number}"] = batch_norm
        super()._add_hidden_layers(number)
        if self.use_dropout:
            self._layers[f"Dropout{number}"] = layers.Dropout(self._ratio)

    def engine(self) -> Engine:
        """Return an engine of the plain network, which this one must be."""
        if self._extended:
            raise ValueError("The network must be without batch normalisation and dropout.")
        return super().engine()

    def _run(self, layers: Iterable[Any], x: Any, training: bool) -> Any:
        for name, layer in self._layers.items():
            if "Dropout" in name or "BatchNorm" in name:
                x = layer.forward(x, training)
            else:
                x = layer.forward(x)
        return x

    def predict(self, x: Any, train_flg: bool = False) -> Any:
        """Return the raw scores of the last layer, of a pass for training or for testing."""
        self._batch = None
        if self._extended and not (train_flg or self._shown) and self._is_usual(x):
            return self._scores(x)
        return self._run(self._parts()[0], x, bool(train_flg))

    def loss(self, x: Any, t: Any, train_flg: bool = False) -> Any:
        """Return the mean cross entropy, with weight decay."""
        if not self._extended:
            return super().loss(x, t)
        return self._loss_of(self.predict(x, train_flg), t)

    def _objective(self) -> Any:
        return functools.partial(self.loss, train_flg=True)

    def _scores(self, x: Any, params: dict[str, FloatArray] | None = None) -> FloatArray:
        given, params = self.checked_params(), {}
        for n in range(1, len(self._sizes)):
            W, b = given[f"W{n}"], given[f"b{n}"]
            if self.use_dropout and n > 1:
                W = W * (1 - self._layers[f"Dropout{n - 1}"].dropout_ratio)
            if self.use_batchnorm and n < len(self._sizes) - 1:
                scale, shift = self._layers[f"BatchNorm{n}"].at_test_time(len(b))
                W, b = W * scale, b * scale + shift
            params[f"W{n}"], params[f"b{n}"] = W, b
        return super()._scores(x, params)

    def gradient(self, x: Any, t: Any) -> dict[str, Any]:
        """Compute the gradient of a training pass's loss by backpropagation."""
        return Network._gradient(self, x, t) if self._extended else super().gradient(x, t)

    def _central_differences(self, x: Any, t: Any, h: float) -> dict[str, FloatArray] | None:
        """Compute what a perturbation can change: `fastgrad.kernels.central_difference_layers`."""
        if not self._extended:
            return super()._central_differences(x, t, h)
        if self.use_dropout or not self._is_usual(x, t):
            return None
        xs, labels, soft = self.checked_batch(x, t)
        if labels.size:
            soft = np.eye(self._sizes[-1])[labels]
        params = self.checked_params()
        flat = np.concatenate([array.reshape(-1) for array in params.values()])
        *starts, _ = bounds = np.cumsum([0, *(array.size for array in params.values())])
        start = dict(zip(params, starts, strict=True))
        at = np.array([
            [start.get(f"{kind}{n}", 0) for kind in ("W", "b", "gamma", "beta")]
            for n in range(1, len(self._sizes))
        ])  # fmt: skip
        n_layers, width = len(at), max(self._sizes[1:])
        activities = np.zeros((2, n_layers, width, len(xs)))
        net = central_difference_layers.Layers(
            flat, at, np.array(self._sizes), self._activation == "relu", compiled_layers.EPSILON,
            self._delta, np.ascontiguousarray(soft.T), np.ascontiguousarray(xs.T, self._dtype),
            *activities,
        )  # fmt: skip
        chunks = threads.chunks(flat.size, 1)
        scratch = np.zeros((chunks, 3, max(width, 2), len(xs)))
        grads = np.empty_like(flat)
        threads.launch(central_difference_layers.central_difference, net, h, chunks, scratch, grads)
        found = {}
        for (name, array), part in zip(params.items(), np.split(grads, bounds[1:-1]), strict=True):
            found[name] = part.reshape(array.shape)
            if name.startswith("W") and self._decay:  # ½λ((W + h)² - (W - h)²) / 2h
                found[name] = found[name] + self._decay * array
        return found
