"""The module names of *Deep Learning from Scratch*, served by fastgrad.

A script or a notebook of the book's chapters 2 to 6 imports ``common.functions``,
``dataset.mnist`` or ``two_layer_net``. After `install` those names lead here, also where files of
these names lie about; `run_script` does that for one script. Everything else of the book
(``common.trainer``, say) still comes from the book's own folder, and a served module also hands on
the functions and classes that only the book's own file defines.

Examples
--------
>>> import fastgrad.book
>>> fastgrad.book.install()
>>> from common.functions import *
>>> softmax(np.array([0.3, 2.9, 4.0])).round(8)
array([0.01821127, 0.24519181, 0.73659691])
>>> fastgrad.book.uninstall()
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import time
import tokenize
import traceback
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import functions, gradients, layers, networks, optimizers
from fastgrad.arrays import FloatArray, IntArray, real_array, real_number, samples
from fastgrad.datasets import load_mnist

__all__ = [
    "SERVED",
    "LayeredMultiLayerNet",
    "LayeredTwoLayerNet",
    "install",
    "numerical_gradient_2d",
    "run_script",
    "shuffle_dataset",
    "smooth_curve",
    "softmax_loss",
    "uninstall",
]


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


def softmax_loss(X: Any, t: Any) -> Any:
    """Compute the mean cross entropy of ``softmax(X)`` against targets.

    Parameters
    ----------
    X : array_like, shape (N, C) or (C,)
        Scores.
    t : array_like
        Labels, or one-hot or soft targets.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> round(float(softmax_loss([0.0, 0.0], [0, 1])), 6)
    0.693147
    """
    return functions.cross_entropy_error(functions.softmax(X), t)


def numerical_gradient_2d(f: Callable[..., Any], X: Any) -> FloatArray:
    """Compute the gradient of f at each row of X, or at X if that is a single row.

    Parameters
    ----------
    f : callable
        Takes a row, returns a number.
    X : array_like, shape (N, D) or (D,)
        Nudged in place and restored, as by `fastgrad.numerical_gradient`.

    Returns
    -------
    ndarray, shape of X

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or f returns no number.

    Notes
    -----
    ``numerical_gradient_2d`` of the book's ``common.gradient``.

    Examples
    --------
    >>> numerical_gradient_2d(lambda x: np.sum(x**2), np.array([[1.0, 2.0], [3.0, 4.0]])).round(8)
    array([[2., 4.],
           [6., 8.]])
    """
    if np.ndim(X) < 2:
        return gradients.numerical_gradient(f, X)
    X = real_array(X, "X", layout="K")
    return np.array([gradients.numerical_gradient(f, row) for row in X], X.dtype).reshape(X.shape)


def smooth_curve(x: Any) -> FloatArray:
    """Smooth a curve with a Kaiser window of 11 points and beta 2.

    Parameters
    ----------
    x : array_like, shape (N,)
        Such as the losses of a training run; at least 11 values, reflected at both ends.

    Returns
    -------
    ndarray, shape (N,)

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.
    ValueError
        If it is not one-dimensional, or too short.

    Examples
    --------
    >>> smooth_curve(np.ones(12)).round(12)
    array([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    curve, size = real_array(x, "x"), 11
    if curve.ndim != 1 or curve.size < size:
        raise ValueError(f"`x` must have shape (N,), N at least {size}. Got {curve.shape}.")
    window = np.kaiser(size, 2)
    # As the book does it: mirrored about the first value, and after the last one.
    half = size // 2
    padded = np.r_[curve[half:0:-1], curve, curve[-1 : -half - 1 : -1]]
    smooth: FloatArray = np.convolve(window / window.sum(), padded, mode="valid")
    return smooth


def shuffle_dataset(x: Any, t: Any) -> tuple[Any, Any]:
    """Return samples and targets in one random order, from NumPy's global legacy generator.

    Parameters
    ----------
    x : ndarray, shape (N, ...)
    t : ndarray, shape (N, ...)

    Returns
    -------
    x, t : ndarray
        Copies.

    Raises
    ------
    ValueError
        If there are not as many targets as samples.

    Examples
    --------
    >>> x, t = shuffle_dataset(np.arange(5), np.arange(5))
    >>> bool((x == t).all()), sorted(x.tolist())
    (True, [0, 1, 2, 3, 4])
    """
    x, t = np.asarray(x), np.asarray(t)
    if len(x) != len(t):
        raise ValueError(f"`t` must have as many entries as `x`, {len(x)}. Got {len(t)}.")
    order = np.random.permutation(len(x))  # noqa: NPY002 - the book's own numbers
    return x[order], t[order]


def init_mnist() -> None:
    """Do nothing: in the book this downloads MNIST, which is part of fastgrad."""


def _names(module: types.ModuleType, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


# Star imports hand np on; scripts of the book rely on it.
_FUNCTIONS: dict[str, Any] = {
    "np": np,
    **_names(
        functions,
        (
            "identity_function",
            "step_function",
            "sigmoid",
            "sigmoid_grad",
            "relu",
            "relu_grad",
            "softmax",
            "sum_squared_error",
            "mean_squared_error",
            "cross_entropy_error",
        ),
    ),
    "softmax_loss": softmax_loss,
}
_GRADIENT: dict[str, Any] = {"np": np, "numerical_gradient": gradients.numerical_gradient}
_LAYERS = {**_FUNCTIONS, **_names(layers, ("Relu", "Sigmoid", "Affine", "SoftmaxWithLoss"))}
_LAYERED = {**_LAYERS, **_GRADIENT, "OrderedDict": OrderedDict}

#: The names that each module hands on.
_CONTENTS: dict[str, Mapping[str, Any]] = {
    "common.functions": _FUNCTIONS,
    "common.gradient": {
        **_GRADIENT,
        "numerical_gradient_2d": numerical_gradient_2d,
        "_numerical_gradient_1d": gradients.numerical_gradient,
        "_numerical_gradient_no_batch": gradients.numerical_gradient,
    },
    "common.layers": _LAYERS,
    "common.multi_layer_net": {**_LAYERED, "MultiLayerNet": LayeredMultiLayerNet},
    "common.optimizer": {"np": np, **_names(optimizers, optimizers.__all__)},
    "common.util": {"np": np, "smooth_curve": smooth_curve, "shuffle_dataset": shuffle_dataset},
    "dataset.mnist": {
        "np": np,
        "load_mnist": load_mnist,
        "init_mnist": init_mnist,
        "download_mnist": init_mnist,
    },
    "two_layer_net": {},
}
_TWO_LAYER_NETS: dict[int, Mapping[str, Any]] = {
    4: {**_FUNCTIONS, **_GRADIENT, "TwoLayerNet": networks.TwoLayerNet},
    5: {**_LAYERED, "TwoLayerNet": LayeredTwoLayerNet},
}

#: The modules that fastgrad serves.
SERVED = tuple(_CONTENTS)

#: Modules of the book that hold on to what they imported from served ones.
_DEPENDENT = ("common.trainer", "common.multi_layer_net_extend")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and makes the served modules.

    Parameters
    ----------
    keep : frozenset of str
        Served names to leave to the book's own files.
    script : Path, optional
        The script that is run.
    """

    def __init__(self, keep: frozenset[str], script: Path | None = None) -> None:
        self.keep = keep
        self.script = script
        #: What has been imported, with a remark in brackets where there is one.
        self.served: list[str] = []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a served module, or the book's package around it."""
        package = fullname.partition(".")[0]
        if fullname in _CONTENTS and fullname not in self.keep:
            return importlib.machinery.ModuleSpec(fullname, self, origin="fastgrad")
        if package not in ("common", "dataset"):
            return None
        if fullname == package:
            if importlib.machinery.PathFinder.find_spec(package) is not None:
                return None  # the book's own package; the modules in it pass by here again
            return importlib.machinery.ModuleSpec(
                fullname, self, origin="fastgrad", is_package=True
            )
        return self._own(fullname, path)

    def _own(
        self, fullname: str, path: Sequence[str] | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the book's own file: on the path, or in the folder that the script's lies in."""
        package, _, name = fullname.rpartition(".")
        if not package:
            return importlib.machinery.PathFinder.find_spec(name)
        if not path:
            places = list(sys.path)
            if self.script is not None:
                places.append(str(self.script.parent.parent))
            path = [os.path.join(place, package) for place in places]
        return importlib.machinery.PathFinder.find_spec(fullname, path)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Leave the making of the module object to Python."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill a served module."""
        name = module.__name__
        if name not in _CONTENTS:
            module.__doc__ = f"The book's package {name}, found without its folder."
            return
        remark = ""
        parent = sys.modules.get(name.rpartition(".")[0])
        own = self._own(name, getattr(parent, "__path__", None))
        contents = _CONTENTS[name]
        if name == "two_layer_net":
            chapter = self._chapter(own)
            contents = _TWO_LAYER_NETS[chapter]
            remark = f" (chapter {chapter}'s)"
        module.__doc__ = f"{name} of the book, served by fastgrad."
        if own is not None and own.origin is not None:
            self._add_own(module, own.origin, contents)
        module.__dict__.update(contents)
        self.served.append(name + remark)

    def _add_own(self, module: types.ModuleType, file: str, contents: Mapping[str, Any]) -> None:
        """Run the book's own file in the module if it defines what fastgrad does not.

        The layers of chapters 7 and 8 and ``im2col`` come in this way, and whatever else a reader
        has added. Ours then takes the place of what they share.
        """
        try:
            tree = ast.parse(_source(file), file)
            defined = {
                node.name
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            }
            if defined - set(contents):
                module.__file__ = file
                exec(compile(tree, file, "exec", dont_inherit=True), module.__dict__)
        except Exception as error:  # noqa: BLE001 - whatever a file of the reader's may raise
            warnings.warn(
                f"{module.__name__} hands on fastgrad's names only: {file} failed with "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _chapter(self, own: importlib.machinery.ModuleSpec | None) -> int:
        """Tell chapter 5's ``two_layer_net`` from chapter 4's.

        By the file that is shadowed; without one by the name of the folder, or by whether the
        script uses layers.
        """
        if own is not None and own.origin is not None:
            return 5 if _mentions_layers(Path(own.origin)) else 4
        folder = self.script.parent if self.script is not None else Path.cwd()
        match = re.search(r"ch(?:ap(?:ter)?)?[-_ ]?0?([45])(?!\d)", folder.name.lower())
        if match:
            return int(match[1])
        return 5 if self.script is not None and _mentions_layers(self.script) else 4


def _source(file: str | Path) -> str:
    """Return a script's text, in the encoding that it declares."""
    with tokenize.open(file) as stream:
        return stream.read()


def _mentions_layers(file: Path) -> bool:
    """Return whether code uses chapter 5's names."""
    try:
        tree = ast.parse(_source(file))
    except (OSError, SyntaxError, ValueError):
        return False
    names = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree)}
    return not names.isdisjoint({"layers", "lastLayer", "last_layer", "OrderedDict"})


_installed: _Finder | None = None


def install(keep: Sequence[str] = ()) -> None:
    """Serve the book's module names in this process, from the next ``import`` on.

    For notebooks; `run_script` does it for a script. Modules of these names that have been
    imported already are forgotten, names taken from them are not: begin with it.

    Parameters
    ----------
    keep : sequence of str, optional
        Names, such as ``"common.layers"`` or ``"common"``, that stay the book's own.

    Raises
    ------
    ValueError
        If fastgrad does not serve a name of `keep` anyway.

    Examples
    --------
    >>> install()
    >>> from common.gradient import numerical_gradient
    >>> numerical_gradient(lambda x: x[0]**2 + x[1]**2, np.array([3.0, 4.0])).round(8)
    array([6., 8.])
    >>> uninstall()
    """
    global _installed
    finder = _Finder(_kept(keep))
    uninstall()
    _forget()
    _installed = finder
    sys.meta_path.insert(0, finder)


def uninstall() -> None:
    """Undo `install`: the next ``import`` finds the book's own files again, if there are any.

    Examples
    --------
    >>> install()
    >>> uninstall()
    >>> import common.functions
    Traceback (most recent call last):
    ModuleNotFoundError: No module named 'common'
    """
    global _installed
    if _installed is not None:
        sys.meta_path.remove(_installed)
        _installed = None
        _forget()


def _kept(keep: Sequence[str]) -> frozenset[str]:
    """Return the served names that `keep` names, itself or by their package."""
    names = [keep] if isinstance(keep, str) else list(keep)
    kept: set[str] = set()
    for name in names:
        found = {served for served in SERVED if served == name or served.startswith(f"{name}.")}
        if not found:
            raise ValueError(f"`keep` must name modules among {', '.join(SERVED)}. Got {name!r}.")
        kept |= found
    return frozenset(kept)


def _forget() -> None:
    """Drop the served modules, and what depends on them, from the modules known to Python."""
    for name in (*SERVED, *_DEPENDENT, "common", "dataset"):
        module = sys.modules.get(name)
        if module is None:
            continue
        made_here = isinstance(getattr(module.__spec__, "loader", None), _Finder)
        if name in ("common", "dataset") and not made_here:
            continue  # somebody's own package; only its served modules go
        del sys.modules[name]
        package, _, attribute = name.rpartition(".")
        if getattr(sys.modules.get(package), attribute, None) is module:
            delattr(sys.modules[package], attribute)


def run_script(
    path: str | os.PathLike[str], args: Sequence[str] = (), keep: Sequence[str] = ()
) -> int:
    """Run a script of the book with its modules served by fastgrad.

    It runs as ``python SCRIPT ARGS`` would in its own folder: as ``__main__``, with that folder as
    the current one and first on the path. ``np.int`` and ``np.float``, which the book uses, are
    lent to it where NumPy no longer has them. At the end the modules served and the time taken are
    written to stderr.

    Parameters
    ----------
    path : path_like
        The script.
    args : sequence of str, optional
        What it finds in ``sys.argv[1:]``.
    keep : sequence of str, optional
        Names, such as ``"two_layer_net"``, that stay the book's own.

    Returns
    -------
    int
        The exit status: that of the script; 1 after an exception, whose traceback has been
        printed; 130 after Ctrl-C.

    Raises
    ------
    OSError
        If the script cannot be read.
    ValueError
        If fastgrad does not serve a name of `keep` anyway.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> script = Path(folder.name, "hello.py")
    >>> _ = script.write_text("from common.functions import *; print(relu(np.arange(-1, 2)))")
    >>> run_script(script)
    [0. 0. 1.]
    0
    >>> folder.cleanup()
    """
    finder = _Finder(_kept(keep), Path(path).absolute())
    with open(path, "rb") as stream:
        source = stream.read()
    with _as_main(finder, args) as main:
        begin = time.perf_counter()
        status = _execute(source, str(finder.script), main)
        seconds = time.perf_counter() - begin
    _report(finder.served, seconds)
    return status


def _execute(source: bytes, file: str, main: types.ModuleType) -> int:
    """Run code in a module; return the exit status."""
    try:
        exec(compile(source, file, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as request:
        if request.code is None or isinstance(request.code, int):
            return request.code or 0
        print(request.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        _print_traceback(error)
        return 130
    except BaseException as error:  # noqa: BLE001 - whatever the script raises
        _print_traceback(error)
        return 1
    return 0


def _print_traceback(error: BaseException) -> None:
    """Print an exception as Python would have, without the frame that ran the script."""
    sys.stdout.flush()
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    traceback.print_exception(type(error), error.with_traceback(frames), frames)


def _report(served: Sequence[str], seconds: float) -> None:
    """Say on stderr what was served and how long the script took."""
    sys.stdout.flush()
    names = ", ".join(served) if served else "no module"
    print(f"\nfastgrad served {names}.\nThe script took {seconds:.2f} s.", file=sys.stderr)


@contextmanager
def _as_main(finder: _Finder, args: Sequence[str]) -> Iterator[types.ModuleType]:
    """Make a module for a script to run in, and the surroundings that it expects.

    Afterwards everything is as before, so that scripts can follow each other, and a notebook's own
    modules of the book's names are back.
    """
    assert finder.script is not None
    script, here = str(finder.script), str(finder.script.parent)
    main = types.ModuleType("__main__")
    main.__file__ = script
    main.__dict__["__builtins__"] = __builtins__
    known = set(sys.modules)
    before = sys.modules["__main__"], sys.argv, sys.path
    path = list(sys.path)
    if path and path[0] in ("", _current_folder()):  # `python -m` put it there, not the script
        del path[0]
    set_aside = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_book(name)}
    # Names that the book uses, gone since NumPy 1.24.
    lent = [name for name in ("int", "float") if not hasattr(np, name)]
    with _in_folder(here), warnings.catch_warnings():
        # plt.show() where there is no display.
        warnings.filterwarnings("ignore", ".*non-interactive.*cannot be shown", UserWarning)
        if _installed is not None:
            sys.meta_path.remove(_installed)
        sys.meta_path.insert(0, finder)
        sys.modules["__main__"] = main
        sys.argv = [script, *args]
        sys.path = [here, *path]
        for name in lent:
            setattr(np, name, getattr(builtins, name))
        try:
            yield main
        finally:
            for name in lent:
                delattr(np, name)
            sys.modules["__main__"], sys.argv, sys.path = before
            sys.meta_path.remove(finder)
            if _installed is not None:
                sys.meta_path.insert(0, _installed)
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__file__", None) or ""
                if _is_book(name) or (name not in known and os.path.dirname(file) == here):
                    del sys.modules[name]
            sys.modules.update(set_aside)


def _current_folder() -> str | None:
    """Return the current folder, or None if it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Make a folder the current one for a while."""
    before = _current_folder() or folder  # into a deleted one there is no way back
    os.chdir(folder)
    _forget_relative_places()
    try:
        yield
    finally:
        os.chdir(before)
        _forget_relative_places()


def _is_book(name: str) -> bool:
    """Return whether a module goes by a name of the book's."""
    return name.partition(".")[0] in ("common", "dataset", "two_layer_net")


def _forget_relative_places() -> None:
    """Make Python look again for what ``..`` is; it remembers the folder of the first time."""
    for place in list(sys.path_importer_cache):
        if not os.path.isabs(place):
            del sys.path_importer_cache[place]
