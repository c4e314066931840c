"""The layers of *Deep Learning from Scratch*, chapters 5 and 6: ``forward`` and ``backward``."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastgrad.kernels import activations, losses, normalization
from fastgrad.nn import functions
from fastgrad.validation import (
    ZERO,
    FloatArray,
    flag,
    real_array,
    real_number,
    require_shape,
    scores_and_targets,
)

__all__ = [
    "AddLayer",
    "Affine",
    "BatchNormalization",
    "Dropout",
    "Layer",
    "MulLayer",
    "Relu",
    "Sigmoid",
    "SoftmaxWithLoss",
]

#: Added to a variance before its root is taken, as in the book (``10e-7``).
EPSILON = 1e-6


class Layer:
    """A layer: a forward pass, and a backward pass that takes a gradient back through it.

    `fastgrad.nn` lists the conventions that all layers share; a class says what is particular to
    it.
    """

    #: The attributes that are shown.
    _shown: ClassVar[tuple[str, ...]] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output, and keep what the backward pass needs.

        Parameters
        ----------
        x : array_like
            The input, of any shape unless the layer says otherwise. An arithmetic layer takes a
            second one, `y`; a loss takes the targets, `t`; a layer that does something else while
            training takes `train_flg`, a bool that is True by default.

        Returns
        -------
        ndarray
            Of the input's shape unless the layer says otherwise; float32 if all arrays are float32,
            else float64.

        Raises
        ------
        TypeError
            If an array does not hold real numbers, labels are not integers, or `train_flg` is not a
            bool.
        ValueError
            If shapes do not fit together, or a label is out of range.
        """
        raise NotImplementedError

    def backward(self, dout: Any) -> Any:
        """Compute the gradient with respect to the input of the last forward pass.

        Parameters
        ----------
        dout : array_like, shape of the output
            The gradient with respect to the output.

        Returns
        -------
        ndarray, shape of the input
            A pair of them if there were two inputs.

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        ValueError
            If its shape is not that of the output.
        RuntimeError
            If no forward pass came before.
        """
        raise NotImplementedError

    def _require_forward(self, kept: Any) -> None:
        """Raise if there is nothing to go back over."""
        if kept is None:
            name = type(self).__name__
            raise RuntimeError(f"{name}.backward needs a forward pass first. Call {name}.forward.")

    def __repr__(self) -> str:
        """Return the name of the layer, and its settings."""
        name = type(self).__name__.removeprefix("_").removeprefix("Bound")
        return f"{name}({', '.join(map(self._setting, self._shown))})"

    def _setting(self, name: str) -> str:
        value = getattr(self, name)
        return f"{name}: {value.shape}" if isinstance(value, np.ndarray) else f"{name}={value!r}"


class MulLayer(Layer):
    """Multiplication of two numbers or arrays (section 5.4.1 of the book).

    Attributes
    ----------
    x, y : number or ndarray
        The factors of the last forward pass; None before it.

    Examples
    --------
    >>> layer = MulLayer()
    >>> layer.forward(100, 2), layer.backward(1.5)
    (200, (3.0, 150.0))
    """

    def __init__(self) -> None:
        self.x: Any = None
        self.y: Any = None

    def forward(self, x: Any, y: Any) -> Any:
        """Return the product.

        `x` and `y` are numbers or arrays of the same shape.
        """
        self.x, self.y = _operands(x, y)
        return self.x * self.y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Return the gradients with respect to both factors."""
        self._require_forward(self.x)
        dout = _operand(dout, "dout")
        require_shape(np.asarray(dout), "dout", np.shape(self.x))
        return dout * self.y, dout * self.x


class AddLayer(Layer):
    """Addition of two numbers or arrays (section 5.4.2 of the book).

    Examples
    --------
    >>> layer = AddLayer()
    >>> layer.forward(200, 450), layer.backward(1.1)
    (650, (1.1, 1.1))
    """

    def forward(self, x: Any, y: Any) -> Any:
        """Return the sum.

        `x` and `y` are numbers or arrays of the same shape.
        """
        x, y = _operands(x, y)
        return x + y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Return the gradients with respect to both terms, which do not depend on them."""
        dout = _operand(dout, "dout")
        return dout * 1, dout * 1


class Relu(Layer):
    """The rectified linear unit as a layer (section 5.5.1 of the book).

    Attributes
    ----------
    mask : ndarray of bool
        Where the input of the last forward pass was at most zero; None before it.

    Notes
    -----
    The book's ``backward`` writes into the caller's `dout`; this one does not.

    Examples
    --------
    >>> layer = Relu()
    >>> layer.forward([[1.0, -0.5], [-2.0, 3.0]])
    array([[1., 0.], [0., 3.]])
    >>> layer.backward([[10.0, 20.0], [30.0, 40.0]])
    array([[10., 0.], [ 0., 40.]])
    """

    def __init__(self) -> None:
        self.mask: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return `x` where it is above zero, else 0."""
        array = real_array(x, "x")
        zero = ZERO[array.dtype.char]
        self.mask = np.asarray(array <= zero)
        return np.asarray(np.maximum(array, zero))

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the input."""
        self._require_forward(self.mask)
        dout = real_array(dout, "dout", shape=self.mask.shape)
        dx = np.empty(dout.shape, dout.dtype)
        activations.relu_backward(dout.reshape(-1), self.mask.reshape(-1), dx.reshape(-1))
        return dx


class Sigmoid(Layer):
    """The sigmoid function as a layer (section 5.5.2 of the book).

    Attributes
    ----------
    out : ndarray
        The output of the last forward pass; None before it.

    Examples
    --------
    >>> layer = Sigmoid()
    >>> layer.forward([[0.0]]), layer.backward([[2.0]])
    (array([[0.5]]), array([[0.5]]))
    """

    def __init__(self) -> None:
        self.out: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return the sigmoid of `x`."""
        out: FloatArray = np.asarray(functions.sigmoid(x))
        self.out = out
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the input."""
        self._require_forward(self.out)
        dout = real_array(dout, "dout", shape=self.out.shape)
        out = self.out
        if dout.dtype is not out.dtype:
            dout, out = functions._same_dtype(dout, out)
        dx = np.empty(dout.shape, dout.dtype)
        activations.sigmoid_backward(dout.reshape(-1), out.reshape(-1), dx.reshape(-1))
        return dx


class Affine(Layer):
    """The affine map ``x @ W + b`` as a layer (section 5.6 of the book).

    Parameters
    ----------
    W : ndarray, shape (D, H)
    b : ndarray, shape (H,)

    Attributes
    ----------
    W, b, dW, db : ndarray
        The gradients are None before a backward pass.
    x : ndarray, shape (N, D)
        The input of the last forward pass, flattened; None before it.
    original_x_shape : tuple of int
        Its shape as it was given.

    Examples
    --------
    >>> layer = Affine(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 0.5]))
    >>> layer.forward([[1.0, 1.0]])
    array([[4.5, 6.5]])
    >>> layer.backward([[1.0, 0.0]]), layer.dW, layer.db
    (array([[1., 3.]]), array([[1., 0.], [1., 0.]]), array([1., 0.]))
    """

    _shown = ("W", "b")

    def __init__(self, W: Any, b: Any) -> None:
        self.W = W
        self.b = b
        self.x: Any = None
        self.original_x_shape: Any = None
        self.dW: Any = None
        self.db: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return ``x @ W + b``.

        `x` has shape (N, ...) or (D,); all axes but the first together have D entries. The output
        has shape (N, H) or (H,).
        """
        array = real_array(x, "x")
        out = functions.affine_forward(array, self.W, self.b)
        self.original_x_shape = array.shape
        self.x = array
        if array.ndim != 2:
            self.x = array.reshape(1 if array.ndim == 1 else array.shape[0], len(self.W))
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Set `dW` and `db`, and return the gradient with respect to the input."""
        self._require_forward(self.x)
        if len(self.original_x_shape) == 1:
            dx, self.dW, self.db = functions.affine_backward(dout, self.x[0], self.W)
        else:
            dx, self.dW, self.db = functions.affine_backward(dout, self.x, self.W)
        return dx.reshape(self.original_x_shape)


class SoftmaxWithLoss(Layer):
    """Softmax and cross entropy together as a network's last layer (section 5.6.3 of the book).

    Attributes
    ----------
    loss : float
        The mean loss of the last forward pass; None before it.
    y : ndarray, shape of the scores
        Probabilities.
    t : array_like
        The targets as they were given.

    Notes
    -----
    Where the book's class falls short: ``backward`` here multiplies by `dout` instead of ignoring
    it, is the exact derivative of ``forward`` (small number under the logarithm included), takes
    soft targets as they are and a single one-hot sample as one sample.

    Examples
    --------
    >>> layer = SoftmaxWithLoss()
    >>> round(float(layer.forward([[0.0, 0.0]], [1])), 6)
    0.693147
    >>> layer.backward().round(6)
    array([[ 0.5, -0.5]])
    """

    def __init__(self) -> None:
        self.loss: Any = None
        self.y: Any = None
        self.t: Any = None
        self._checked: Any = None

    def forward(self, x: Any, t: Any) -> Any:
        """Return the mean loss.

        `x` holds scores, shape (N, C) or (C,); `t` integer labels, shape (N,) or (N, 1), or one-hot
        or soft targets of the shape of `x`. The loss is a NumPy float32 if `x` is float32, else a
        float64.
        """
        scores, labels, soft = scores_and_targets(x, "x", t)
        self.loss, y = functions._softmax_cross_entropy(scores, labels, soft, functions.DELTA)
        self.y, self.t = y if scores is x else y.reshape(np.shape(x)), t
        self._checked = y, labels.copy(), soft  # the kernel indexes with labels
        return self.loss

    def backward(self, dout: float = 1) -> FloatArray:
        """Return the gradient of the mean loss, times `dout`, with respect to the scores.

        `dout` is the gradient with respect to the loss, a finite number.
        """
        self._require_forward(self._checked)
        dout = real_number(dout, "dout")
        y, labels, soft = self._checked
        da = np.empty(y.shape, y.dtype)
        losses.logit_gradients(y, labels, soft, functions.DELTA, dout / len(y), da, 0, len(y))
        return da if self.y is y else da.reshape(self.y.shape)


class Dropout(Layer):
    """Dropout: random entries set to zero while training (section 6.4.3 of the book).

    Parameters
    ----------
    dropout_ratio : float, optional
        The probability with which an entry is set to zero, from 0 to 1.

    Attributes
    ----------
    dropout_ratio : float
    mask : ndarray of bool, shape of the input
        Which entries of the last forward pass were kept; None before one, and after one that was
        not for training.

    Notes
    -----
    N. Srivastava et al. (2014), Journal of Machine Learning Research 15. As in the book nothing is
    scaled up while training; the output is multiplied by 1 - `dropout_ratio` otherwise. The mask is
    drawn from NumPy's global legacy generator, so that ``np.random.seed`` gives the book's numbers.
    The book's ``backward`` after a pass that was not for training goes by an old mask.

    Examples
    --------
    >>> layer = Dropout(0.25)
    >>> np.random.seed(0)
    >>> layer.forward(np.ones((2, 3)))
    array([[1., 1., 1.], [1., 1., 1.]])
    >>> layer.forward(np.ones((2, 3)), train_flg=False)
    array([[0.75, 0.75, 0.75], [0.75, 0.75, 0.75]])
    """

    _shown = ("dropout_ratio",)

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        self.dropout_ratio = _share(dropout_ratio, "dropout_ratio")
        self.mask: Any = None
        #: What entries are multiplied by: the mask in the dtype of the input, or one number.
        self._scale: Any = None
        self._shape: Any = None

    def forward(self, x: Any, train_flg: bool = True) -> FloatArray:
        """Return `x` with random entries set to zero, or scaled.

        `train_flg` says whether this pass is for training.
        """
        array = real_array(x, "x")
        training = flag(train_flg, "train_flg")
        self.mask, self._scale = None, array.dtype.type(1 - self.dropout_ratio)
        if training:
            # The numbers of the book's ``np.random.rand``.
            self.mask = np.asarray(np.random.random_sample(array.shape) > self.dropout_ratio)  # noqa: NPY002
            self._scale = self.mask.astype(array.dtype)
        self._shape = array.shape
        return np.asarray(array * self._scale)

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the input."""
        self._require_forward(self._shape)
        return np.asarray(real_array(dout, "dout", shape=self._shape) * self._scale)


class BatchNormalization(Layer):
    """Batch normalisation: a unit's inputs with mean 0 and variance 1 (section 6.3 of the book).

    Parameters
    ----------
    gamma, beta : ndarray, shape (D,)
        Scale and shift of the normalised inputs.
    momentum : float, optional
        Of the moving averages, from 0 to 1.
    running_mean, running_var : array_like, shape (D,), optional
        Where the moving averages begin; by default from 0.

    Attributes
    ----------
    gamma, beta : ndarray, shape (D,)
    momentum : float
    running_mean, running_var : ndarray, shape (D,)
        Moving averages of batches' means and variances, for passes that are not for training. None
        before the first pass unless they were given.
    dgamma, dbeta : ndarray, shape (D,)
        Gradients of the last backward pass; None before it.

    Notes
    -----
    S. Ioffe and C. Szegedy (2015), arXiv:1502.03167: out = γ (x - mean) / √(variance + 1e-6) + β,
    with the biased variance over the batch. As in the book the input may have four dimensions, of
    which all but the first are taken as one. ``backward`` also fits a pass that was not for
    training, where the book's goes by the batch before.

    Examples
    --------
    >>> layer = BatchNormalization(np.ones(2), np.zeros(2))
    >>> layer.forward([[0.0, 10.0], [2.0, 30.0]]).round(4)
    array([[-1., -1.], [ 1.,  1.]])
    >>> layer.running_mean, layer.running_var
    (array([0.1, 2. ]), array([ 0.1, 10. ]))
    """

    _shown = ("gamma", "beta")

    def __init__(
        self,
        gamma: Any,
        beta: Any,
        momentum: float = 0.9,
        running_mean: Any = None,
        running_var: Any = None,
    ) -> None:
        self.gamma = gamma
        self.beta = beta
        self.momentum = _share(momentum, "momentum")
        self.running_mean = running_mean
        self.running_var = running_var
        self.dgamma: Any = None
        self.dbeta: Any = None
        #: What `backward` needs: the input's shape, normalised inputs, scale, divisors, whether
        #: mean and variance are the batch's.
        self._pass: Any = None

    def forward(self, x: Any, train_flg: bool = True) -> FloatArray:
        """Return the normalised input.

        `x` has shape (N, D), or (N, C, H, W) with C H W = D, and is not empty. A pass for training,
        with `train_flg`, goes by the batch's own mean and variance, which go into the moving
        averages. Otherwise these are used. The output is float32 if `x`, `gamma` and `beta` are,
        else float64.
        """
        array = real_array(x, "x")
        training = flag(train_flg, "train_flg")
        if array.ndim not in (2, 4) or not array.size:
            raise ValueError(
                f"`x` must have shape (N, D) or (N, C, H, W), none of them 0. Got {array.shape}."
            )
        width = array.size // array.shape[0]
        rows, gamma, beta = functions._same_dtype(
            array.reshape(-1, width),
            real_array(self.gamma, "gamma", shape=(width,)),
            real_array(self.beta, "beta", shape=(width,)),
        )
        running_mean = self._moving_average("running_mean", width)
        running_var = self._moving_average("running_var", width)
        if training:
            mean, variance = np.empty_like(gamma), np.empty_like(gamma)
            normalization.batch_moments(rows, mean, variance)
            self.running_mean = self.momentum * running_mean + (1 - self.momentum) * mean
            self.running_var = self.momentum * running_var + (1 - self.momentum) * variance
        else:
            mean, variance = running_mean.astype(rows.dtype), running_var.astype(rows.dtype)
            self.running_mean, self.running_var = running_mean, running_var
        std = np.sqrt(variance + rows.dtype.type(EPSILON))
        xn, out = np.empty_like(rows), np.empty_like(rows)
        normalization.normalize(rows, gamma, beta, mean, std, xn, out)
        self._pass = array.shape, xn, gamma.copy(), std, training
        return out.reshape(array.shape)

    def backward(self, dout: Any) -> FloatArray:
        """Set `dgamma` and `dbeta`, and return the gradient with respect to the input."""
        self._require_forward(self._pass)
        shape, xn, gamma, std, training = self._pass
        rows = real_array(dout, "dout", shape=shape).reshape(xn.shape)
        rows, xn, gamma, std = functions._same_dtype(rows, xn, gamma, std)
        dx, dgamma, dbeta = np.empty_like(rows), np.empty_like(std), np.empty_like(std)
        normalization.normalize_backward(rows, xn, gamma, std, training, dx, dgamma, dbeta)
        self.dgamma, self.dbeta = dgamma, dbeta
        return dx.reshape(shape)

    def at_test_time(self, width: int) -> tuple[FloatArray, FloatArray]:
        """Return the scale and the shift that the layer amounts to when it is not training.

        Parameters
        ----------
        width : int
            The number of inputs, D.

        Returns
        -------
        scale, shift : ndarray, shape (D,)
            The output is ``scale * x + shift``.
        """
        gamma = real_array(self.gamma, "gamma", shape=(width,))
        variance = self._moving_average("running_var", width)
        scale = gamma / np.sqrt(variance + EPSILON)
        mean = self._moving_average("running_mean", width)
        return scale, real_array(self.beta, "beta", shape=(width,)) - mean * scale

    def _moving_average(self, name: str, width: int) -> FloatArray:
        value = getattr(self, name)
        if value is None:
            return np.zeros(width)
        return real_array(value, name, shape=(width,))


def _share(value: Any, name: str) -> float:
    """Return `value` as a float from 0 to 1."""
    number = real_number(value, name, minimum=0)
    if number > 1:
        raise ValueError(f"`{name}` must be from 0 to 1. Got {value!s}.")
    return number


def _operands(x: Any, y: Any) -> tuple[Any, Any]:
    """Return the arguments of an arithmetic layer, checked."""
    x, y = _operand(x, "x"), _operand(y, "y")
    if np.shape(x) != np.shape(y):  # broadcast, a gradient would have the shape of neither
        raise ValueError(f"`y` must have the shape of `x`, {np.shape(x)}. Got {np.shape(y)}.")
    return x, y


def _operand(value: Any, name: str) -> Any:
    """Return a Python number as it is, anything else as real numbers in a NumPy array."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    array = real_array(value, name, layout="K")
    return array if array.ndim else array[()]
