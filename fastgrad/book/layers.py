"""The book's layers by its own formulas, in NumPy, as ``common.layers`` hands them on.

What the library's layers of the same names mend is left as the book has it: integers stay integers,
`Relu.backward` writes into its argument, and `SoftmaxWithLoss.backward` returns (y - t) / N.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad.book.functions import cross_entropy_error, sigmoid, softmax

__all__ = ["Affine", "Dropout", "Relu", "Sigmoid", "SoftmaxWithLoss"]


class Relu:
    """The rectified linear unit (section 5.5.1 of the book).

    Examples
    --------
    >>> Relu().forward(np.array([[1, -2]]))
    array([[1, 0]])
    """

    def __init__(self) -> None:
        self.mask: Any = None

    def forward(self, x: Any) -> Any:
        """Return `x` where it is above zero, else 0."""
        self.mask = x <= 0
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, dout: Any) -> Any:
        """Return the gradient by the input, in the place of `dout`."""
        dout[self.mask] = 0
        return dout


class Sigmoid:
    """The sigmoid function (section 5.5.2 of the book).

    Examples
    --------
    >>> Sigmoid().forward(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """

    def __init__(self) -> None:
        self.out: Any = None

    def forward(self, x: Any) -> Any:
        """Return the sigmoid of `x`."""
        self.out = sigmoid(x)
        return self.out

    def backward(self, dout: Any) -> Any:
        """Return the gradient by the input."""
        return dout * (1.0 - self.out) * self.out


class Affine:
    """The affine map ``x @ W + b`` (section 5.6 of the book).

    Parameters
    ----------
    W : ndarray, shape (D, H)
    b : ndarray, shape (H,)

    Examples
    --------
    >>> Affine(np.eye(2), np.zeros(2)).forward(np.array([[1.0, 2.0]]))
    array([[1., 2.]])
    """

    def __init__(self, W: Any, b: Any) -> None:
        self.W = W
        self.b = b
        self.x: Any = None
        self.original_x_shape: Any = None
        self.dW: Any = None
        self.db: Any = None

    def forward(self, x: Any) -> Any:
        """Return ``x @ W + b``; of more than two axes, all but the first are taken as one."""
        self.original_x_shape = x.shape
        self.x = x.reshape(x.shape[0], -1)
        return np.dot(self.x, self.W) + self.b

    def backward(self, dout: Any) -> Any:
        """Set `dW` and `db`, and return the gradient by the input."""
        dx = np.dot(dout, self.W.T)
        self.dW = np.dot(self.x.T, dout)
        self.db = np.sum(dout, axis=0)
        return dx.reshape(*self.original_x_shape)


class SoftmaxWithLoss:
    """Softmax and cross entropy as a network's last layer (section 5.6.3 of the book).

    Examples
    --------
    >>> layer = SoftmaxWithLoss()
    >>> round(float(layer.forward(np.zeros((1, 2)), np.array([1]))), 6)
    0.693147
    >>> layer.backward()
    array([[ 0.5, -0.5]])
    """

    def __init__(self) -> None:
        self.loss: Any = None
        self.y: Any = None
        self.t: Any = None

    def forward(self, x: Any, t: Any) -> Any:
        """Return the mean loss of scores."""
        self.t = t
        self.y = softmax(x)
        self.loss = cross_entropy_error(self.y, self.t)
        return self.loss

    def backward(self, dout: Any = 1) -> Any:
        """Return the gradient by the scores, (y - t) / N, whatever `dout` is."""
        batch_size = self.t.shape[0]
        if self.t.size == self.y.size:
            return (self.y - self.t) / batch_size
        dx = self.y.copy()
        dx[np.arange(batch_size), self.t] -= 1
        return dx / batch_size


class Dropout:
    """Dropout: random entries set to zero while training (section 6.4.3 of the book).

    Parameters
    ----------
    dropout_ratio : float, optional
        The probability with which an entry is set to zero.

    Examples
    --------
    >>> Dropout(0.25).forward(np.ones((1, 2)), train_flg=False)
    array([[0.75, 0.75]])
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        self.dropout_ratio = dropout_ratio
        self.mask: Any = None

    def forward(self, x: Any, train_flg: bool = True) -> Any:
        """Return `x` with random entries set to zero, or scaled."""
        if not train_flg:
            return x * (1.0 - self.dropout_ratio)
        self.mask = np.random.rand(*x.shape) > self.dropout_ratio  # noqa: NPY002 - the book's own
        return x * self.mask

    def backward(self, dout: Any) -> Any:
        """Return the gradient by the input of the last training pass."""
        return dout * self.mask
