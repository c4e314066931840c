"""The exercise of chapter 4 as a reader types it (*Deep Learning from Scratch*, section 4.5).

Nothing in the class is fastgrad's, and nothing has to be changed: its numerical gradient is
recognised, verified in every call, and computed by compiled code.
"""

import time

import numpy as np

from fastgrad import book

book.install()  # what `python -m fastgrad run SCRIPT` does for a script

from common.functions import cross_entropy_error, sigmoid, softmax  # noqa: E402
from common.gradient import numerical_gradient  # noqa: E402


class TwoLayerNet:
    """Two layers, as the book has them."""

    def __init__(self, input_size, hidden_size, output_size, weight_init_std=0.01):
        self.params = {}
        self.params["W1"] = weight_init_std * np.random.randn(input_size, hidden_size)  # noqa: NPY002
        self.params["b1"] = np.zeros(hidden_size)
        self.params["W2"] = weight_init_std * np.random.randn(hidden_size, output_size)  # noqa: NPY002
        self.params["b2"] = np.zeros(output_size)

    def predict(self, x):
        """Return the probabilities of the classes."""
        z = sigmoid(np.dot(x, self.params["W1"]) + self.params["b1"])
        return softmax(np.dot(z, self.params["W2"]) + self.params["b2"])

    def loss(self, x, t):
        """Return the mean cross entropy."""
        return cross_entropy_error(self.predict(x), t)

    def numerical_gradient(self, x, t):
        """Return the central differences by every parameter."""
        loss_W = lambda W: self.loss(x, t)  # noqa: E731 - as in the book
        return {name: numerical_gradient(loss_W, self.params[name]) for name in self.params}


def main():
    net = TwoLayerNet(input_size=784, hidden_size=100, output_size=10)
    x = np.random.rand(100, 784)  # noqa: NPY002
    t = np.random.rand(100, 10)  # noqa: NPY002

    begin = time.perf_counter()
    grads = net.numerical_gradient(x, t)  # 159,020 evaluations of the loss in the book
    print(grads["W1"].shape, f"after {time.perf_counter() - begin:.2f} s")
    print(book.report())


if __name__ == "__main__":
    main()
    book.uninstall()
