"""The book's networks of layer objects: chapter 5's ``TwoLayerNet`` and chapter 6's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import functions, layers, networks, threads
from fastgrad.arrays import (
    FloatArray,
    IntArray,
    flag,
    real_array,
    real_number,
    samples,
    step_size,
)
from fastgrad.kernels import central_difference_layers

__all__ = ["LayeredMultiLayerNet", "LayeredTwoLayerNet", "MultiLayerNetExtend"]


class _Layered(networks.Network):
    """A network with the book's layer objects, compiled for as long as they are left as they are.

    ``layers`` holds `Affine` and activation layers that read the network's own parameters. As in
    the book `predict` runs them. `loss` does so only from when a script has first asked for them;
    then they first run on the last batch, with the parameters as they are by then, so that they
    hold what a pass leaves in them.
    Gradients do not run them, unless a script has exchanged, added or removed a layer or overridden
    `predict` or `loss`: then all methods do as the book's do, and are no faster.
    """

    _predicts_probabilities: ClassVar[bool] = False
    #: The name of the hidden activations.
    _activation_name: ClassVar[str]

    def _finish(self) -> None:
        self._layers: OrderedDict[str, Any] = OrderedDict()
        for number in range(1, len(self._sizes)):
            self._layers[f"Affine{number}"] = BoundAffine(self, number)
            if number < len(self._sizes) - 1:
                self._add_hidden_layers(number)
        self._last_layer: Any = layers.SoftmaxWithLoss()
        self._own_layers = self._all_layers()
        #: Whether a script has asked for the layers, and may look at what a pass leaves in them.
        self._shown = False
        #: Samples and targets of a pass that the layers have not seen.
        self._batch: tuple[Any, Any] | None = None

    @property
    def layers(self) -> OrderedDict[str, Any]:
        """The layers, but for the last one."""
        self._show()
        return self._layers

    @layers.setter
    def layers(self, value: OrderedDict[str, Any]) -> None:
        self._show()
        self._layers = value

    @property
    def last_layer(self) -> Any:
        """The layer of the loss."""
        self._show()
        return self._last_layer

    @last_layer.setter
    def last_layer(self, layer: Any) -> None:
        self._show()
        self._last_layer = layer

    def _show(self) -> None:
        self._shown = True
        self._catch_up()

    def _catch_up(self) -> None:
        """Have the layers run on the last batch, if they have not seen it."""
        if self._batch is not None:
            batch, self._batch = self._batch, None
            self._loss_of_layers(*batch)

    def _add_hidden_layers(self, number: int) -> None:
        """Add what follows an affine layer that is not the last one."""
        activation = layers.Relu if self._activation == "relu" else layers.Sigmoid
        self._layers[f"{self._activation_name}{number}"] = activation()

    def _all_layers(self) -> list[Any]:
        return [*self._layers.values(), self._last_layer]

    @property
    def _exchanged(self) -> bool:
        return self._all_layers() != self._own_layers

    @property
    def _changed(self) -> bool:
        return networks.has_own(self, "predict", "loss") or self._exchanged

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
        self._catch_up()
        if not self._exchanged:  # what other layers take is not known
            self.checked_params()
            rows, single = samples(_flattened(x), "x", self._sizes[0], self._dtype)
            x = rows[0] if single else rows
        for layer in self._layers.values():
            x = layer.forward(x)
        return np.asarray(x)

    def loss(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the loss, as `fastgrad.TwoLayerNet.loss` does."""
        if self._shown or self._changed:
            return self._loss_of_layers(x, t)
        loss = super().loss(x, t)
        self._batch = x, t
        return loss

    def _loss_of_layers(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the loss as the book does, by running the layers."""
        return np.float64(self._last_layer.forward(self.predict(x), t) + self._weight_decay())

    def accuracy(self, x: ArrayLike, t: ArrayLike) -> float:
        """Compute the share of samples whose largest score is that of the target's class.

        Parameters
        ----------
        x : array_like, shape (N, ...) or (D,)
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
        if self._changed:
            return super().accuracy(x, t)
        xs, labels, soft = self.checked_batch(x, t)
        wanted = labels if labels.size else soft.argmax(axis=1)
        return float(np.mean(self._scores(xs).argmax(axis=1) == wanted))

    def _scores(self, x: Any) -> FloatArray:
        """Return what `predict` does, without running the layers."""
        return super().predict(x)

    def gradient(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the gradient of `loss` by backpropagation; the layers' dW and db are set too."""
        if self._changed:
            return self._backpropagate(x, t)
        grads = super().gradient(x, t)
        if not self._shown:
            self._batch = x, t
        for n in range(1, len(self._sizes)):
            affine = self._layers[f"Affine{n}"]
            affine.dW, affine.db = grads[f"W{n}"], grads[f"b{n}"]
        return grads

    def _backpropagate(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the gradient as the book does, by running the layers forward and backward."""
        self._training_loss(x, t)
        dout = self._last_layer.backward(1)
        bottom, *above = self._layers.values()
        for layer in reversed(above):
            dout = layer.backward(dout)
        if type(bottom) is BoundAffine:  # nobody asks for the gradient by the samples
            bottom.dW, bottom.db = functions.affine_weights_backward(dout, bottom.x)
        else:
            bottom.backward(dout)
        grads = {}
        for n in range(1, len(self._sizes)):
            affine = self._layers[f"Affine{n}"]
            grads[f"W{n}"] = affine.dW
            if self._decay:
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


class Parameter:
    """An attribute of a layer that is a network's parameter, also after that is replaced."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return layer._network.params[self._prefix + layer._number]

    def __set__(self, layer: Any, value: Any) -> None:
        layer._network.params[self._prefix + layer._number] = value


class BoundAffine(layers.Affine):
    """An affine layer whose W and b are a network's parameters."""

    W = Parameter("W")
    b = Parameter("b")

    def __init__(self, network: Any, number: int) -> None:
        self._network, self._number = network, str(number)
        super().__init__(self.W, self.b)


class _BoundNormalization(layers.BatchNormalization):
    """Batch normalisation whose gamma and beta are a network's parameters."""

    gamma = Parameter("gamma")
    beta = Parameter("beta")

    def __init__(self, network: networks.Network, number: int) -> None:
        self._network, self._number = network, str(number)
        super().__init__(self.gamma, self.beta)


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
        Affine1, Relu1 and Affine2. They read `params`, and hold what the last pass left in them.
        `gradient` runs them only after one of them has been exchanged; it sets their dW and db
        either way.
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

    _activation_name = "Relu"
    lastLayer = _Layered.last_layer  # noqa: N815 - the book's name

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
        Affine1, Activation_function1, Affine2, .. They read `params`, and hold what the last pass
        left in them. `gradient` runs them only after one of them has been exchanged; it sets their
        dW and db either way.
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


class MultiLayerNetExtend(LayeredMultiLayerNet):
    """The book's ``MultiLayerNetExtend``: with batch normalisation, dropout, or both.

    Parameters
    ----------
    input_size : int
    hidden_size_list : sequence of int
    output_size : int
    activation : {"relu", "sigmoid"}, optional
    weight_init_std : {"relu", "he", "sigmoid", "xavier"} or float, optional
    weight_decay_lambda : float, optional
        As for `fastgrad.MultiLayerNet`.
    use_dropout : bool, optional
        Whether a `fastgrad.Dropout` layer follows each hidden activation.
    dropout_ration : float, optional
        Its ratio; spelled as in the book.
    use_batchnorm : bool, optional
        Whether a `fastgrad.BatchNormalization` layer precedes each hidden activation.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, W2, b2, ..; gamma1, beta1, .. with batch normalisation.
    layers : OrderedDict
        Affine1, BatchNorm1, Activation_function1, Dropout1, Affine2, .. They read `params`.
    last_layer : SoftmaxWithLoss

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Chapter 6 of the book. Gradients are those of a training pass; `predict`, `loss` and `accuracy`
    are for testing unless ``train_flg`` says otherwise. At test time batch normalisation and
    dropout only shift and scale, so they are multiplied into the weights of a plain compiled
    network.

    Where the book's class falls short: its ``numerical_gradient`` draws new dropout masks in each
    evaluation of the loss, so that it is a gradient of nothing; here they are drawn once, as
    `gradient` draws them. Nor do thousands of evaluations pass for batches here: the moving
    averages stay as they are.

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
        self.use_dropout = flag(use_dropout, "use_dropout")
        self.use_batchnorm = flag(use_batchnorm, "use_batchnorm")
        self._ratio = layers.Dropout(dropout_ration).dropout_ratio
        super().__init__(
            input_size,
            hidden_size_list,
            output_size,
            activation,
            weight_init_std,
            weight_decay_lambda,
        )
        #: Without batch normalisation, dropout and weight decay: what is left of it at test time.
        self._plain = networks.MultiLayerNet(
            input_size, self.hidden_size_list, output_size, self._activation, 0, rng=0
        )

    @property
    def _extended(self) -> bool:
        return self.use_dropout or self.use_batchnorm

    def _add_hidden_layers(self, number: int) -> None:
        if self.use_batchnorm:
            units = self._sizes[number]
            for name, values in (("gamma", np.ones(units)), ("beta", np.zeros(units))):
                self.params[f"{name}{number}"] = values
                self._shapes[f"{name}{number}"] = values.shape
            self._layers[f"BatchNorm{number}"] = _BoundNormalization(self, number)
        super()._add_hidden_layers(number)
        if self.use_dropout:
            self._layers[f"Dropout{number}"] = layers.Dropout(self._ratio)

    def predict(self, x: ArrayLike, train_flg: bool = False) -> FloatArray:
        """Compute the raw scores of the last layer.

        Parameters
        ----------
        x : array_like, shape (N, ...) or (D,)
            Samples.
        train_flg : bool, optional
            Whether this pass is for training.

        Returns
        -------
        ndarray, shape (N, C) or (C,)

        Raises
        ------
        TypeError, ValueError
            If `x` or `params` does not fit.
        """
        training = flag(train_flg, "train_flg")
        if not self._extended:
            return super().predict(x)
        if not training and not self._exchanged:
            return self._scores(x)
        single = False
        if not self._exchanged:
            self.checked_params()
            x, single = samples(_flattened(x), "x", self._sizes[0], None)
        for name, layer in self._layers.items():
            if "Dropout" in name or "BatchNorm" in name:
                x = layer.forward(x, training)
            else:
                x = layer.forward(x)
        return np.asarray(x)[0] if single else np.asarray(x)

    def loss(self, x: ArrayLike, t: ArrayLike, train_flg: bool = False) -> float:
        """Compute the loss, with weight decay.

        Parameters
        ----------
        x : array_like, shape (N, ...) or (D,)
            Samples.
        t : array_like
            Labels (N,), or one-hot or soft targets (N, C).
        train_flg : bool, optional
            Whether this pass is for training.

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If `x`, `t` or `params` does not fit.
        """
        training = flag(train_flg, "train_flg")
        if not self._extended:
            return super().loss(x, t)
        if not training and not self._changed:
            return self._at_test_time().loss(_flattened(x), t) + self._weight_decay()
        scores = self.predict(x, training)
        return float(self._last_layer.forward(scores, t) + self._weight_decay())

    def _training_loss(self, x: ArrayLike, t: ArrayLike) -> float:
        return self.loss(x, t, train_flg=True)

    def _scores(self, x: Any) -> FloatArray:
        if not self._extended:
            return super()._scores(x)
        return self._at_test_time().predict(_flattened(x))

    def _at_test_time(self) -> networks.MultiLayerNet:
        """Return the plain network that this one is at test time."""
        params = self.checked_params()
        for n in range(1, len(self._sizes)):
            W, b = params[f"W{n}"], params[f"b{n}"]
            if self.use_dropout and n > 1:
                W = W * (1 - self._layers[f"Dropout{n - 1}"].dropout_ratio)
            if self.use_batchnorm and n < len(self._sizes) - 1:
                scale, shift = self._layers[f"BatchNorm{n}"].at_test_time(len(b))
                W, b = W * scale, b * scale + shift
            self._plain.params[f"W{n}"], self._plain.params[f"b{n}"] = W, b
        return self._plain

    def gradient(self, x: ArrayLike, t: ArrayLike) -> dict[str, FloatArray]:
        """Compute the gradient of a training pass's loss by backpropagation."""
        if not self._extended:
            return super().gradient(x, t)
        grads = self._backpropagate(x, t)
        if self.use_batchnorm:
            for n in range(1, len(self._sizes) - 1):
                layer = self._layers[f"BatchNorm{n}"]
                grads[f"gamma{n}"], grads[f"beta{n}"] = layer.dgamma, layer.dbeta
        return grads

    def numerical_gradient(
        self, x: ArrayLike, t: ArrayLike, h: float = 1e-4
    ) -> dict[str, FloatArray]:
        """Compute the central difference of a training pass's loss by every parameter.

        Only what a nudge can change is evaluated, see `fastgrad.kernels.central_difference_layers`.
        """
        if not self._extended or self._changed:
            return super().numerical_gradient(x, t, h)
        h = step_size(h)
        xs, labels, soft = self.checked_batch(x, t)
        if labels.size:
            soft = np.eye(self._sizes[-1])[labels]
        flat, at, names = self._in_one_piece()
        n_layers, width = len(at), max(self._sizes[1:])
        kept = np.ones((n_layers - 1, width, len(xs)))
        if self.use_dropout:  # as the layers draw them
            for n, size in enumerate(self._sizes[1:-1]):
                ratio = self._layers[f"Dropout{n + 1}"].dropout_ratio
                kept[n, :size] = (np.random.rand(len(xs), size) > ratio).T  # noqa: NPY002
        activities = np.zeros((2, n_layers, width, len(xs)))
        net = central_difference_layers.Layers(
            flat, at, np.array(self._sizes), self.use_batchnorm, self._activation == "relu",
            layers.EPSILON, self._delta, kept, np.ascontiguousarray(soft.T),
            np.ascontiguousarray(xs.T, self._dtype), *activities,
        )  # fmt: skip
        chunks = threads.chunks(flat.size, 1)
        scratch = np.zeros((chunks, 3, max(width, 2), len(xs)))
        grads = np.empty_like(flat)
        threads.launch(central_difference_layers.central_difference, net, h, chunks, scratch, grads)
        found = {}
        for name, start in names.items():
            part = grads[start : start + np.size(self.params[name])]
            found[name] = part.reshape(self._shapes[name])
            if name.startswith("W") and self._decay:  # ½λ((W + h)² - (W - h)²) / 2h
                found[name] = found[name] + self._decay * np.asarray(self.params[name])
        return {name: found[name] for name in self.params}

    def _in_one_piece(self) -> tuple[FloatArray, IntArray, dict[str, int]]:
        """Return all parameters, where those of each layer begin, and where each one does."""
        params = self.checked_params()
        at = np.zeros((len(self._sizes) - 1, 4), np.int64)
        names, start, parts = {}, 0, []
        for layer in range(len(at)):
            for kind, prefix in enumerate(("W", "b", "gamma", "beta")):
                name = f"{prefix}{layer + 1}"
                at[layer, kind] = start if name in params or prefix in "Wb" else 0
                if name in params:
                    names[name] = start
                    parts.append(params[name].reshape(-1))
                    start += parts[-1].size
        return np.concatenate(parts), at, names

    def fit(self, *args: Any, **options: Any) -> Any:
        """Train, as `fastgrad.MultiLayerNet.fit` does; without batch normalisation and dropout."""
        self._refuse_if_extended("fit")
        return super().fit(*args, **options)

    def check_gradient(self, *args: Any, **options: Any) -> Any:
        """Compare gradients, as `fastgrad.MultiLayerNet.check_gradient` does; as `fit`."""
        self._refuse_if_extended("check_gradient")
        return super().check_gradient(*args, **options)

    def save(self, *args: Any, **options: Any) -> Any:
        """Save the network, as `fastgrad.MultiLayerNet.save` does; as `fit`."""
        self._refuse_if_extended("save")
        return super().save(*args, **options)

    def _refuse_if_extended(self, method: str) -> None:
        if self._extended:
            raise ValueError(
                f"`{method}` must be called on a network without batch normalisation and dropout."
            )
