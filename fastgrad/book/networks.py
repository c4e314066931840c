"""The book's networks of layer objects: chapter 5's ``TwoLayerNet`` and chapter 6's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import gradients, layers, networks
from fastgrad.arrays import FloatArray, IntArray, real_array, real_number, samples

__all__ = ["LayeredMultiLayerNet", "LayeredTwoLayerNet"]


class _Layered(networks.Network):
    """A network with the book's layer objects, compiled for as long as they are left as they are.

    ``layers`` holds `Affine` and activation layers that read the network's own parameters. As in
    the book `predict` runs them, and `loss` runs `predict` and the last layer. Gradients do not,
    unless a script has exchanged, added or removed a layer or overridden one of the two methods:
    then they do as the book's methods do, and are no faster.
    """

    _predicts_probabilities: ClassVar[bool] = False
    #: The name of the attribute with the last layer, and of the hidden activations.
    _last: ClassVar[str]
    _activation_name: ClassVar[str]

    layers: OrderedDict[str, Any]

    def _finish(self) -> None:
        self.layers = OrderedDict()
        activation = layers.Relu if self._activation == "relu" else layers.Sigmoid
        for number in range(1, len(self._sizes)):
            self.layers[f"Affine{number}"] = _BoundAffine(self, number)
            if number < len(self._sizes) - 1:
                self.layers[f"{self._activation_name}{number}"] = activation()
        setattr(self, self._last, layers.SoftmaxWithLoss())
        self._own_layers = self._all_layers()

    def _all_layers(self) -> list[Any]:
        return [*self.layers.values(), getattr(self, self._last)]

    @property
    def _exchanged(self) -> bool:
        return self._all_layers() != self._own_layers

    @property
    def _changed(self) -> bool:
        kind = type(self)
        overridden = kind.predict is not _Layered.predict or kind.loss is not _Layered.loss
        return overridden or self._exchanged

    def checked_batch(self, x: Any, t: Any) -> tuple[FloatArray, IntArray, FloatArray]:
        """Return samples, labels and soft targets; images of any shape are flattened."""
        return super().checked_batch(_flattened(x), t)

    def predict(self, x: ArrayLike) -> FloatArray:
        """Compute the raw scores of the last layer.

        Parameters
        ----------
        x : array_like, shape (N, ...) or (D,)
            Samples.

        Returns
        -------
        ndarray, shape (N, C) or (C,)

        Raises
        ------
        TypeError, ValueError
            If `x` or `params` does not fit.
        """
        if not self._exchanged:  # what other layers take is not known
            self.checked_params()
            rows, single = samples(_flattened(x), "x", self._sizes[0], self._dtype)
            x = rows[0] if single else rows
        for layer in self.layers.values():
            x = layer.forward(x)
        return np.asarray(x)

    def loss(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the loss, as `fastgrad.TwoLayerNet.loss` does."""
        loss = getattr(self, self._last).forward(self.predict(x), t)
        if not self._decay:
            return float(loss)
        weights = (np.asarray(self.params[f"W{n}"]) for n in range(1, len(self._sizes)))
        return float(loss + 0.5 * self._decay * sum(np.sum(W**2) for W in weights))

    def gradient(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the gradient of `loss` by backpropagation; the layers' dW and db are set too."""
        numbers = range(1, len(self._sizes))
        if not self._changed:
            grads = super().gradient(x, t)
            for n in numbers:
                affine = self.layers[f"Affine{n}"]
                affine.dW, affine.db = grads[f"W{n}"], grads[f"b{n}"]
            return grads
        self.loss(x, t)
        dout = getattr(self, self._last).backward(1)
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        grads = {}
        for n in numbers:
            affine = self.layers[f"Affine{n}"]
            grads[f"W{n}"] = affine.dW + self._decay * np.asarray(self.params[f"W{n}"])
            grads[f"b{n}"] = affine.db
        return grads

    def numerical_gradient(
        self, x: ArrayLike, t: ArrayLike, h: float = 1e-4
    ) -> dict[str, FloatArray]:
        """Compute the central difference of `loss` by every parameter."""
        if not self._changed:
            return super().numerical_gradient(x, t, h)
        return {name: self._difference(name, x, t, h) for name in self.params}

    def _difference(self, name: str, x: ArrayLike, t: ArrayLike, h: float) -> FloatArray:
        """Return the central difference by one parameter, with the layers as they are."""
        held = self.params[name]

        def loss(nudged: FloatArray) -> float:
            self.params[name] = nudged  # a copy, if what the user put there is no array to write in
            return self.loss(x, t)

        try:
            return gradients.numerical_gradient(loss, held, h)
        finally:
            self.params[name] = held

    def _kinks(self, x: Any, t: Any, h: float) -> dict[str, Any]:
        if not self._changed:
            return super()._kinks(x, t, h)
        # Where exchanged layers have their kinks is not known.
        return {name: np.zeros(np.shape(array), bool) for name, array in self.params.items()}

    def fit(self, *args: Any, **options: Any) -> Any:
        """Train, as `fastgrad.TwoLayerNet.fit` does; only with the layers that came with it."""
        if self._changed:
            raise ValueError("`layers` must be as they were made for `fit`. Got other layers.")
        return super().fit(*args, **options)


def _flattened(x: Any) -> Any:
    """Return images as rows, anything else as it is."""
    return real_array(x, "x").reshape(len(x), -1) if np.ndim(x) > 2 and len(x) else x


class _BoundAffine(layers.Affine):
    """An affine layer whose W and b are a network's parameters, also after these are replaced."""

    def __init__(self, network: networks.Network, number: int) -> None:
        self._network = network
        self._number = number
        super().__init__(self.W, self.b)

    @property
    def W(self) -> Any:  # noqa: N802
        """The network's weights."""
        return self._network.params[f"W{self._number}"]

    @W.setter
    def W(self, value: Any) -> None:  # noqa: N802
        self._network.params[f"W{self._number}"] = value

    @property
    def b(self) -> Any:
        """The network's biases."""
        return self._network.params[f"b{self._number}"]

    @b.setter
    def b(self, value: Any) -> None:
        self._network.params[f"b{self._number}"] = value


class LayeredTwoLayerNet(_Layered, networks.TwoLayerNet):
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
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,). Edits and replaced arrays take effect.
    layers : OrderedDict
        Affine1, Relu1 and Affine2. They read `params`. `predict` and `loss` run them, `gradient`
        only after one of them has been exchanged; it sets their dW and db either way.
    lastLayer : SoftmaxWithLoss

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Section 5.7.2 of the book.

    Examples
    --------
    >>> net = LayeredTwoLayerNet(784, 50, 10)
    >>> list(net.layers)
    ['Affine1', 'Relu1', 'Affine2']
    """

    _last = "lastLayer"
    _activation_name = "Relu"

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, weight_init_std: float = 0.01
    ) -> None:
        super().__init__(input_size, hidden_size, output_size, weight_init_std, activation="relu")
        self._finish()


class LayeredMultiLayerNet(_Layered, networks.MultiLayerNet):
    """The book's ``common.multi_layer_net.MultiLayerNet``, with ``layers`` and ``last_layer``.

    Parameters
    ----------
    input_size : int
    hidden_size_list : sequence of int
    output_size : int
    activation : {"relu", "sigmoid"}, optional
    weight_init_std : {"relu", "he", "sigmoid", "xavier"} or float, optional
    weight_decay_lambda : float, optional
        As for `fastgrad.MultiLayerNet`.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..
    layers : OrderedDict
        Affine1, Activation_function1, Affine2, .. They read `params`. `predict` and `loss` run
        them, `gradient` only after one of them has been exchanged; it sets their dW and db either
        way.
    last_layer : SoftmaxWithLoss

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Chapter 6 of the book.

    Examples
    --------
    >>> net = LayeredMultiLayerNet(784, [100], 10, weight_decay_lambda=0.1)
    >>> list(net.layers), net.hidden_layer_num
    (['Affine1', 'Activation_function1', 'Affine2'], 1)
    """

    _last = "last_layer"
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
            input_size,
            hidden_size_list,
            output_size,
            activation,
            weight_init_std,
            weight_decay_lambda,
        )
        self._finish()

    @property
    def input_size(self) -> int:
        """Units of the input."""
        return self._sizes[0]

    @property
    def output_size(self) -> int:
        """Number of classes."""
        return self._sizes[-1]

    @property
    def hidden_size_list(self) -> list[int]:
        """Units of each hidden layer."""
        return list(self._sizes[1:-1])

    @property
    def hidden_layer_num(self) -> int:
        """Number of hidden layers."""
        return len(self._sizes) - 2

    @property
    def weight_decay_lambda(self) -> float:
        """Strength of the weight decay."""
        return self._decay

    @weight_decay_lambda.setter
    def weight_decay_lambda(self, value: float) -> None:
        self._decay = real_number(value, "weight_decay_lambda", minimum=0)
        self._idle = []  # made for the old one
