"""The layers of *Deep Learning from Scratch*, chapter 5: ``forward`` and ``backward``.

A layer keeps what its backward pass needs from the forward pass before it; a ``backward`` without
one raises a RuntimeError. Arguments are never changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad import functions
from fastgrad.arrays import (
    FloatArray,
    real_array,
    real_number,
    require_shape,
    scores_and_targets,
)
from fastgrad.kernels import activations
from fastgrad.kernels import softmax_cross_entropy as losses

__all__ = ["AddLayer", "Affine", "MulLayer", "Relu", "Sigmoid", "SoftmaxWithLoss"]


class MulLayer:
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

        Parameters
        ----------
        x, y : number or array_like
            Of the same shape.

        Returns
        -------
        number or ndarray

        Raises
        ------
        TypeError
            If an argument does not hold real numbers.
        ValueError
            If the shapes differ.
        """
        self.x, self.y = _operands(x, y)
        return self.x * self.y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Return the gradients with respect to both factors.

        Parameters
        ----------
        dout : number or array_like, shape of the product
            Gradient with respect to the product.

        Returns
        -------
        dx, dy : number or ndarray

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        ValueError
            If its shape is not that of the product.
        RuntimeError
            If no forward pass came before.
        """
        if self.x is None:
            raise _backward_too_early(self)
        dout = _operand(dout, "dout")
        require_shape(np.asarray(dout), "dout", np.shape(self.x))
        return dout * self.y, dout * self.x


class AddLayer:
    """Addition of two numbers or arrays (section 5.4.2 of the book).

    Examples
    --------
    >>> layer = AddLayer()
    >>> layer.forward(200, 450), layer.backward(1.1)
    (650, (1.1, 1.1))
    """

    def forward(self, x: Any, y: Any) -> Any:
        """Return the sum.

        Parameters
        ----------
        x, y : number or array_like
            Of the same shape.

        Returns
        -------
        number or ndarray

        Raises
        ------
        TypeError
            If an argument does not hold real numbers.
        ValueError
            If the shapes differ.
        """
        x, y = _operands(x, y)
        return x + y

    def backward(self, dout: Any) -> tuple[Any, Any]:
        """Return the gradients with respect to both terms, which do not depend on them.

        Parameters
        ----------
        dout : number or array_like
            Gradient with respect to the sum.

        Returns
        -------
        dx, dy : number or ndarray

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        """
        dout = _operand(dout, "dout")
        return dout * 1, dout * 1


class Relu:
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
        """Return `x` where it is above zero, else 0.

        Parameters
        ----------
        x : array_like, any shape

        Returns
        -------
        ndarray, shape of x

        Raises
        ------
        TypeError
            If `x` does not hold real numbers.
        """
        array = real_array(x, "x")
        out = np.empty(array.shape, array.dtype)
        mask = np.empty(array.shape, np.bool_)
        activations.relu_forward(array.reshape(-1), out.reshape(-1), mask.reshape(-1))
        self.mask = mask
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the input.

        Parameters
        ----------
        dout : array_like, shape of the input
            Gradient with respect to the output.

        Returns
        -------
        ndarray, shape of the input

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        ValueError
            If its shape is not that of the input.
        RuntimeError
            If no forward pass came before.
        """
        if self.mask is None:
            raise _backward_too_early(self)
        dout = real_array(dout, "dout", shape=self.mask.shape)
        dx = np.empty(dout.shape, dout.dtype)
        activations.relu_backward(dout.reshape(-1), self.mask.reshape(-1), dx.reshape(-1))
        return dx


class Sigmoid:
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
        """Return the sigmoid of `x`.

        Parameters
        ----------
        x : array_like, any shape

        Returns
        -------
        ndarray, shape of x

        Raises
        ------
        TypeError
            If `x` does not hold real numbers.
        """
        out: FloatArray = np.asarray(functions.sigmoid(x))
        self.out = out
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Return the gradient with respect to the input.

        Parameters
        ----------
        dout : array_like, shape of the input
            Gradient with respect to the output.

        Returns
        -------
        ndarray, shape of the input

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        ValueError
            If its shape is not that of the input.
        RuntimeError
            If no forward pass came before.
        """
        if self.out is None:
            raise _backward_too_early(self)
        dout = real_array(dout, "dout", shape=self.out.shape)
        dout, out = functions._same_dtype(dout, self.out)
        dx = np.empty(dout.shape, dout.dtype)
        activations.sigmoid_backward(dout.reshape(-1), out.reshape(-1), dx.reshape(-1))
        return dx


class Affine:
    """The affine map ``x @ W + b`` as a layer (section 5.6 of the book).

    Parameters
    ----------
    W : ndarray, shape (D, H)
    b : ndarray, shape (H,)
        Held by reference: an optimizer that updates them in place updates the layer.

    Attributes
    ----------
    W, b : ndarray
    dW, db : ndarray
        Gradients of the last backward pass, shapes (D, H) and (H,); None before it.
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

    def __init__(self, W: Any, b: Any) -> None:
        self.W = W
        self.b = b
        self.x: Any = None
        self.original_x_shape: Any = None
        self.dW: Any = None
        self.db: Any = None

    def forward(self, x: Any) -> FloatArray:
        """Return ``x @ W + b``.

        Parameters
        ----------
        x : array_like, shape (N, ...) or (D,)
            All axes but the first together have D entries.

        Returns
        -------
        ndarray, shape (N, H) or (H,)

        Raises
        ------
        TypeError
            If an array does not hold real numbers.
        ValueError
            If shapes do not fit together.
        """
        array = real_array(x, "x")
        out = functions.affine_forward(array, self.W, self.b)
        self.original_x_shape = array.shape
        self.x = array.reshape(1 if array.ndim == 1 else array.shape[0], len(self.W))
        return out

    def backward(self, dout: Any) -> FloatArray:
        """Set `dW` and `db`, and return the gradient with respect to the input.

        Parameters
        ----------
        dout : array_like, shape of the output
            Gradient with respect to the output.

        Returns
        -------
        ndarray, shape of the input

        Raises
        ------
        TypeError
            If `dout` does not hold real numbers.
        ValueError
            If its shape is not that of the output.
        RuntimeError
            If no forward pass came before.
        """
        if self.x is None:
            raise _backward_too_early(self)
        if len(self.original_x_shape) == 1:
            dx, self.dW, self.db = functions.affine_backward(dout, self.x[0], self.W)
        else:
            dx, self.dW, self.db = functions.affine_backward(dout, self.x, self.W)
        return dx.reshape(self.original_x_shape)


class SoftmaxWithLoss:
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

        Parameters
        ----------
        x : array_like, shape (N, C) or (C,)
            Scores.
        t : array_like
            Integer labels, shape (N,) or (N, 1); or one-hot or soft targets, shape of x.

        Returns
        -------
        float
            A NumPy float32 if `x` is float32, else a float64.

        Raises
        ------
        TypeError
            If `x` does not hold real numbers, or labels are not integers.
        ValueError
            If a shape does not fit, the batch is empty, or a label is out of range.
        """
        scores, labels, soft = scores_and_targets(x, "x", t)
        self.loss, y = functions._softmax_cross_entropy(scores, labels, soft, functions.DELTA)
        self.y, self.t = y if scores is x else y.reshape(np.shape(x)), t
        self._checked = y, labels.copy(), soft  # the kernel indexes with labels
        return self.loss

    def backward(self, dout: float = 1) -> FloatArray:
        """Return the gradient of the mean loss, times `dout`, with respect to the scores.

        Parameters
        ----------
        dout : float, optional
            Gradient with respect to the loss.

        Returns
        -------
        ndarray, shape of the scores

        Raises
        ------
        TypeError
            If `dout` is not a real number.
        ValueError
            If it is not finite.
        RuntimeError
            If no forward pass came before.
        """
        if self._checked is None:
            raise _backward_too_early(self)
        dout = real_number(dout, "dout")
        y, labels, soft = self._checked
        da = np.empty(y.shape, y.dtype)
        losses.softmax_cross_entropy_backward(y, labels, soft, functions.DELTA, dout, da)
        return da if self.y is y else da.reshape(self.y.shape)


def _backward_too_early(layer: object) -> RuntimeError:
    """Return the error for a backward pass that has nothing to go back over."""
    name = type(layer).__name__
    return RuntimeError(f"{name}.backward needs a forward pass first. Call {name}.forward.")


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
