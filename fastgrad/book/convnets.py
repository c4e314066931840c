"""The convolutional networks of chapters 7 and 8: ``SimpleConvNet`` and ``DeepConvNet``."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from fastgrad.book import layer_differences, pickles
from fastgrad.book.layers import SoftmaxWithLoss
from fastgrad.checking.result import GradientCheck
from fastgrad.networks.fit import random_state_kept
from fastgrad.networks.network import Network, has_own
from fastgrad.nn import convolution, layers, optimizers
from fastgrad.validation import FloatArray, real_array, whole_number

__all__ = ["BookDeepConvNet", "BookSimpleConvNet", "DeepConvNet", "SimpleConvNet"]


def _parameter(kind: str) -> Any:
    """Return an attribute of a layer that is a network's parameter, also after it is replaced."""

    def read(layer: Any) -> Any:
        return layer._network.params[f"{kind}{layer._number}"]

    def replace(layer: Any, value: Any) -> None:
        layer._network.params[f"{kind}{layer._number}"] = value

    return property(read, replace)


class _Bound:
    """A layer whose W and b are a network's parameters with a number."""

    W = _parameter("W")
    b = _parameter("b")

    def __init__(self, network: Any, number: int, *arguments: int) -> None:
        self._network, self._number = network, number
        super().__init__(self.W, self.b, *arguments)  # type: ignore[call-arg]


class _BoundAffine(_Bound, layers.Affine):
    """An affine layer of a network's parameters."""


class _BoundConvolution(_Bound, convolution.Convolution):
    """A convolution with a network's parameters."""


class _ConvolutionStage:
    """A convolution with the ReLU and the pooling that follow it, computed as one.

    What lies between them is never written to memory; the layers themselves are left as they are,
    but for ``dW`` and ``db`` of the convolution.
    """

    def __init__(self, layer: convolution.Convolution, by_images: bool) -> None:
        self.layer = layer
        #: Whether anybody asks for the gradient by the images.
        self.by_images = by_images
        self.rectify = False
        self.window = convolution.NO_WINDOW

    def takes(self, layer: Any) -> bool:
        """Return whether a layer has become a part of the stage."""
        if self.window[0]:
            return False
        if type(layer) is layers.Relu and not self.rectify:
            self.rectify = True
            return True
        if type(layer) is convolution.Pooling and layer.pad == 0:
            self.window = np.array([layer.pool_h, layer.pool_w, layer.stride])
            return True
        return False

    def forward(self, x: Any) -> FloatArray:
        """Return what the last layer of the stage would return."""
        layer = self.layer
        self.x, self.W, b = convolution.checked_arrays(x, layer.W, layer.b)
        self.out, self.arg_max = convolution.forward(
            self.x, self.W, b, layer.stride, layer.pad, self.rectify, self.window
        )
        return self.out

    def backward(self, dout: FloatArray) -> FloatArray | None:
        """Set ``dW`` and ``db`` of the convolution; return the gradient by x if asked for."""
        layer = self.layer
        dx, layer.dW, layer.db = convolution.backward(
            dout.reshape(self.out.shape), self.x, self.W, layer.stride, layer.pad, self.rectify,
            self.out, self.arg_max, by_images=self.by_images,
        )  # fmt: skip
        return dx


def _stages(network_layers: Iterable[Any]) -> list[Any]:
    """Return layers with convolutions and what follows them put together."""
    stages: list[Any] = []
    for layer in network_layers:
        if stages and isinstance(stages[-1], _ConvolutionStage) and stages[-1].takes(layer):
            continue
        is_ours = isinstance(layer, convolution.Convolution) and (
            type(layer).forward is convolution.Convolution.forward
            and type(layer).backward is convolution.Convolution.backward
        )
        stages.append(_ConvolutionStage(layer, bool(stages)) if is_ours else layer)
    return stages


class _ConvolutionalNet(Network):
    """What the two networks have in common. Subclasses fill `params` and `layers`."""

    #: The arguments of the constructor.
    _arguments: dict[str, Any]
    #: After how many convolutions a pooling follows, and what must be left for it.
    _pool_every: ClassVar[int] = 1
    _least: ClassVar[str] = "2 x 2 pixels for the pooling"
    #: Whether there are dropout layers, and so a training pass of its own.
    _drops: ClassVar[bool] = False
    _default_optimizer = optimizers.Adam
    #: The layer of the loss.
    _loss_layer: ClassVar[Any] = layers.SoftmaxWithLoss

    def _draw(
        self, image_shape: Any, given: Mapping[str, Any], sizes: Sequence[int], std: float | None
    ) -> list[Any]:
        """Draw `params` as the book does, and return the layers up to the last pooling.

        Parameters
        ----------
        image_shape : tuple of int
        given : dict of dict
            Numbers of the convolutions, by the names of the arguments.
        sizes : sequence of int
            Units of the affine layers.
        std : float, optional
            Standard deviation of the weights; by default √(2 / fan-in).
        """
        params = {name: _convolution_param(param, name) for name, param in given.items()}
        images = _image_shape(image_shape)
        self._arguments = {"input_dim": images, **params}
        self._arguments |= {"hidden_size": sizes[0], "output_size": sizes[1]}
        channels, *sides = images
        shapes: list[tuple[int, ...]] = []
        for number, (name, param) in enumerate(params.items(), 1):
            filter_size, reach = param["filter_size"], 2 * param["pad"] - param["filter_size"]
            shapes.append((param["filter_num"], channels, filter_size, filter_size))
            channels, pooling = param["filter_num"], 1 if number % self._pool_every else 2
            sides = [((side + reach) // param["stride"] + 1) // pooling for side in sides]
            if min(sides) < 1:
                raise ValueError(f"`{name}` must leave {self._least}. Got {param}.")
        shapes += itertools.pairwise((channels * sides[0] * sides[1], *sizes))
        self.params = {}
        for number, shape in enumerate(shapes, 1):
            fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
            scale = np.sqrt(2 / fan_in) if std is None else std
            self.params[f"W{number}"] = scale * np.random.randn(*shape)  # noqa: NPY002
            self.params[f"b{number}"] = np.zeros(shape[0] if len(shape) == 4 else shape[1])
        self.last_layer = self._loss_layer()
        found: list[Any] = []
        for number, param in enumerate(params.values(), 1):
            found += [self._convolution(number, param["stride"], param["pad"]), layers.Relu()]
            if number % self._pool_every == 0:
                found.append(convolution.Pooling(2, 2, 2))
        return found

    def _convolution(self, number: int, stride: int, pad: int) -> Any:
        """Return a convolution of the parameters with a number."""
        return _BoundConvolution(self, number, stride, pad)

    def _affine(self, number: int) -> Any:
        """Return an affine layer of the parameters with a number."""
        return _BoundAffine(self, number)

    def __repr__(self) -> str:
        """Return the kinds of the layers and the number of parameters, in a line."""
        kinds = " ".join(type(layer).__name__.removeprefix("_Bound") for layer in self._parts()[0])
        total = sum(np.size(array) for array in self.params.values())
        return f"{type(self).__name__} {kinds}: {total:,} parameters"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which the network computes."""
        dtype: np.dtype[Any] = np.result_type(*map(np.asarray, self.params.values()))
        return dtype

    def predict(self, x: ArrayLike, train_flg: bool = False) -> FloatArray:
        """Compute the raw scores; with `train_flg` dropout layers drop entries."""
        return np.asarray(self._run(_stages(self._parts()[0]), x, train_flg))

    def _loss(self, x: Any, t: Any) -> float:
        scores = self.predict(x, True) if self._drops else self.predict(x)
        return np.float64(self._loss_of(scores, t))

    def accuracy(self, x: ArrayLike, t: ArrayLike, batch_size: int = 100) -> float:
        """Compute the share of images whose class is found, `batch_size` of them at a time.

        The book's method leaves out the images that do not fill a last batch, and divides by the
        number of all.
        """
        batch_size = whole_number(batch_size, "batch_size", minimum=1)
        images, targets = np.asarray(x), np.asarray(t)
        labels = targets.argmax(axis=1) if targets.ndim == 2 else targets
        if images.ndim != 4 or not len(images):
            raise ValueError(f"`x` must have shape (N, C, H, W), N above 0. Got {images.shape}.")
        if labels.shape != (len(images),):
            raise ValueError(
                f"`t` must be labels of shape ({len(images)},) or targets of shape "
                f"({len(images)}, classes). Got {targets.shape}."
            )
        right = 0
        for begin in range(0, len(images), batch_size):
            batch = slice(begin, begin + batch_size)
            right += int(np.sum(self.predict(images[batch]).argmax(axis=1) == labels[batch]))
        return np.float64(right / len(images))

    def _training_pass(self, x: Any, t: Any) -> list[Any]:
        stages = _stages(self._parts()[0])
        self.last_layer.forward(self._run(stages, x, True), t)
        return stages

    def _objective(self) -> Callable[[Any, Any], float]:
        state = np.random.get_state()  # noqa: NPY002

        def loss(x: Any, t: Any) -> float:
            np.random.set_state(state)  # noqa: NPY002 - the same entries dropped each time
            return self.loss(x, t)

        return loss

    def _by_layers(self, x: Any, t: Any, *steps: float) -> list[list[dict[str, Any]]]:
        """Return the central differences, and where kinks are within it, for each of some steps."""
        passed = layer_differences.LayerDifferences(self._parts()[0], x, t)
        return [
            [
                dict(zip(self.params, arrays, strict=True))
                for arrays in zip(*passed.central_differences(h), strict=True)
            ]
            for h in steps
        ]

    def _central_differences(self, x: Any, t: Any, h: float) -> dict[str, FloatArray] | None:
        if not layer_differences.knows(self._parts()[0]):
            return None
        ((slopes, _),) = self._by_layers(x, t, h)
        return {
            name: slopes[name].astype(np.result_type(np.asarray(array).dtype, np.float32))
            for name, array in self.params.items()
        }

    def _differences_and_kinks(
        self, x: Any, t: Any, h: float
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray], dict[str, Any] | None]:
        if not layer_differences.knows(self._parts()[0]):
            raise ValueError("`layers` must be of the book's kinds for `check_gradient`.")
        if has_own(self, "predict", "loss"):
            raise ValueError("`predict` and `loss` must be the book's for `check_gradient`.")
        with random_state_kept():  # so that `gradient` drops the same entries
            (once, kinks), (twice, _) = self._by_layers(x, t, h, 2 * h)
        return once, twice, kinks

    def _check_by_losses(self, x: Any, t: Any, h: Any, options: dict[str, Any]) -> GradientCheck:
        with random_state_kept():
            return super()._check_by_losses(x, t, h, options)

    def _training_data(self, x: Any, t: Any) -> tuple[Any, Any]:
        images, targets = np.asarray(x), np.asarray(t)
        if not len(images) or len(images) != len(targets):
            raise ValueError(
                f"`t` must have as many entries as `x`, above 0. Got {len(targets)}, {len(images)}."
            )
        return images, targets

    def _loss_and_gradient(self, method: str, x: Any, t: Any) -> tuple[float, dict[str, Any]]:
        if method != "gradient" or has_own(self, "predict", "loss", "gradient"):
            return super()._loss_and_gradient(method, x, t)
        grads = self.gradient(x, t)  # which computes the loss, too
        return float(self.last_layer.loss), grads

    def _settings(self) -> dict[str, Any]:
        return {"arguments": self._arguments}

    @classmethod
    def _default_settings(cls, arrays: dict[str, Any]) -> dict[str, Any]:
        return {"arguments": {}}

    @classmethod
    def _restored(cls, arrays: dict[str, Any], settings: dict[str, Any]) -> Self:
        with random_state_kept():  # from which the initial weights are drawn
            network = cls(**settings["arguments"])
        network._replace_params(arrays)
        return network

    def _replace_params(self, arrays: Mapping[str, Any]) -> None:
        """Take arrays for parameters, if their names and shapes are the same."""
        shapes, expected = (
            {name: np.shape(array) for name, array in some.items()}
            for some in (arrays, self.params)
        )
        if shapes != expected:
            raise ValueError(f"the file must hold {expected}. It holds {shapes}.")
        for name in self.params:
            self.params[name] = real_array(arrays[name], name)

    def save_params(self, file_name: str | os.PathLike[str] = "params.pkl") -> None:
        """Write `params` to a file that the book's ``load_params`` reads too.

        Parameters
        ----------
        file_name : path_like, optional

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        pickles.save(self.params, file_name)

    def load_params(self, file_name: str | os.PathLike[str] = "params.pkl") -> None:
        """Read `params` from a file of `save_params` or of the book's.

        Parameters
        ----------
        file_name : path_like, optional

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it holds anything but arrays of the names and shapes of `params`. Nothing but NumPy
            arrays and plain containers is ever loaded from it.
        """
        self._replace_params(pickles.load(file_name))


def _image_shape(value: Any) -> tuple[int, int, int]:
    """Return channels, height and width of images, checked."""
    numbers = tuple(value) if isinstance(value, Sequence) else ()
    if len(numbers) != 3 or not all(isinstance(n, int | np.integer) and n > 0 for n in numbers):
        raise ValueError(
            f"`input_dim` must be channels, height and width, whole numbers above 0. Got {value!r}."
        )
    return numbers[0], numbers[1], numbers[2]


def _convolution_param(value: Any, name: str) -> dict[str, int]:
    """Return the numbers of a convolution, checked."""
    least = {"filter_num": 1, "filter_size": 1, "pad": 0, "stride": 1}
    if not isinstance(value, Mapping) or set(value) != set(least):
        keys = ", ".join(least)
        raise ValueError(f"`{name}` must be a dict with the keys {keys}. Got {value!r}.")
    return {key: whole_number(value[key], f"{name}[{key!r}]", minimum=least[key]) for key in least}


class SimpleConvNet(_ConvolutionalNet):
    """Chapter 7's network: convolution, ReLU, pooling, affine, ReLU, affine, softmax.

    Parameters
    ----------
    input_dim : tuple of int, optional
        Channels, height and width of images.
    conv_param : dict, optional
        filter_num, filter_size, pad and stride of the convolution.
    hidden_size, output_size : int, optional
        Units of the affine layers.
    weight_init_std : float, optional
        Standard deviation of the initial weights, drawn from NumPy's global legacy generator.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1 of the convolution, W2, b2, W3, b3 of the affine layers. Edits and replaced arrays
        take effect.
    layers : OrderedDict
        Conv1, Relu1, Pool1, Affine1, Relu2 and Affine2. They read `params`. Exchanged layers take
        effect.
    last_layer : SoftmaxWithLoss

    Raises
    ------
    TypeError, ValueError
        If `input_dim` or `conv_param` does not fit, or the filters do not fit into the images.

    Notes
    -----
    Section 7.5 of the book. Convolution, ReLU and pooling are computed as one: between them nothing
    is written to memory, and the layers ``Relu1`` and ``Pool1`` keep nothing.

    Examples
    --------
    >>> net = SimpleConvNet()
    >>> {name: array.shape for name, array in net.params.items() if name.startswith("W")}
    {'W1': (30, 1, 5, 5), 'W2': (4320, 100), 'W3': (100, 10)}
    >>> net.predict(np.zeros((2, 1, 28, 28))).shape
    (2, 10)
    """

    layers: OrderedDict[str, Any]

    def __init__(
        self,
        input_dim: tuple[int, int, int] = (1, 28, 28),
        conv_param: Mapping[str, int] | None = None,
        hidden_size: int = 100,
        output_size: int = 10,
        weight_init_std: float = 0.01,
    ) -> None:
        default = {"filter_num": 30, "filter_size": 5, "pad": 0, "stride": 1}
        given, sizes = {"conv_param": conv_param or default}, (hidden_size, output_size)
        found = self._draw(input_dim, given, sizes, weight_init_std)
        found += [self._affine(2), layers.Relu(), self._affine(3)]
        names = ("Conv1", "Relu1", "Pool1", "Affine1", "Relu2", "Affine2")
        self.layers = OrderedDict(zip(names, found, strict=True))


_CONV_PARAMS = tuple(
    {"filter_num": number, "filter_size": 3, "pad": pad, "stride": 1}
    for number, pad in ((16, 1), (16, 1), (32, 1), (32, 2), (64, 1), (64, 1))
)


class DeepConvNet(_ConvolutionalNet):
    """Chapter 8's network, of six convolutions and two affine layers with dropout.

    Twice convolution and ReLU, then pooling; that three times; then affine, ReLU, dropout, affine,
    dropout, softmax.

    Parameters
    ----------
    input_dim : tuple of int, optional
        Channels, height and width of images.
    conv_param_1, conv_param_2, .., conv_param_6 : dict, optional
        filter_num, filter_size, pad and stride of each convolution.
    hidden_size, output_size : int, optional
        Units of the affine layers.

    Attributes
    ----------
    params : dict of ndarray
        W1, b1, .. W8, b8. Edits and replaced arrays take effect.
    layers : list
        The 20 layers. They read `params`. Exchanged layers take effect.
    last_layer : SoftmaxWithLoss

    Raises
    ------
    TypeError, ValueError
        If `input_dim` or a dict does not fit, or filters do not fit into what they get.

    Notes
    -----
    Section 8.1 of the book. Initial weights have the standard deviation √(2 / fan-in) of He et al.
    (2015), drawn from NumPy's global legacy generator. The book writes the fan-ins of the defaults
    down; here they follow from the arguments.

    Examples
    --------
    >>> net = DeepConvNet()
    >>> len(net.layers), net.params["W7"].shape
    (20, (1024, 50))
    >>> net.predict(np.zeros((2, 1, 28, 28))).shape
    (2, 10)
    """

    layers: list[Any]

    _pool_every, _least, _drops = 2, "a pixel", True

    def __init__(
        self,
        input_dim: tuple[int, int, int] = (1, 28, 28),
        conv_param_1: Mapping[str, int] = _CONV_PARAMS[0],
        conv_param_2: Mapping[str, int] = _CONV_PARAMS[1],
        conv_param_3: Mapping[str, int] = _CONV_PARAMS[2],
        conv_param_4: Mapping[str, int] = _CONV_PARAMS[3],
        conv_param_5: Mapping[str, int] = _CONV_PARAMS[4],
        conv_param_6: Mapping[str, int] = _CONV_PARAMS[5],
        hidden_size: int = 50,
        output_size: int = 10,
    ) -> None:
        given = conv_param_1, conv_param_2, conv_param_3, conv_param_4, conv_param_5, conv_param_6
        params = {f"conv_param_{number}": param for number, param in enumerate(given, 1)}
        self.layers = [
            *self._draw(input_dim, params, (hidden_size, output_size), None),
            *(self._affine(7), layers.Relu(), layers.Dropout(0.5)),
            *(self._affine(8), layers.Dropout(0.5)),
        ]


class _AsInTheBook(_ConvolutionalNet):
    """What the networks above do otherwise in the book, as its modules hand them on."""

    _loss_layer = SoftmaxWithLoss

    # The book's layers hold the arrays themselves: what is put in their place has no effect.

    def _convolution(self, number: int, stride: int, pad: int) -> Any:
        W, b = self.params[f"W{number}"], self.params[f"b{number}"]
        return convolution.Convolution(W, b, stride, pad)

    def _affine(self, number: int) -> Any:
        return layers.Affine(self.params[f"W{number}"], self.params[f"b{number}"])

    def accuracy(self, x: Any, t: Any, batch_size: int = 100) -> Any:
        """Return the share of images whose class is found, those beyond full batches left out."""
        labels = t if t.ndim == 1 else np.argmax(t, axis=1)
        hits = 0.0
        for begin in range(0, int(x.shape[0] / batch_size) * batch_size, batch_size):
            y = self.predict(x[begin : begin + batch_size])
            hits += np.sum(np.argmax(y, axis=1) == labels[begin : begin + batch_size])
        return hits / x.shape[0]

    def load_params(self, file_name: str | os.PathLike[str] = "params.pkl") -> None:
        """Read `params` from a file of `save_params`, and hand them to the layers."""
        super().load_params(file_name)
        for layer, kind, name in self._held_by_layers():
            setattr(layer, kind, self.params[name])


class BookSimpleConvNet(_AsInTheBook, SimpleConvNet):
    """`SimpleConvNet` with the book's numbers."""


class BookDeepConvNet(_AsInTheBook, DeepConvNet):
    """`DeepConvNet` with the book's numbers."""
