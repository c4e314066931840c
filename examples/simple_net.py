"""The gradient of the simplest network (*Deep Learning from Scratch*, section 4.4.2)."""

import numpy as np

from fastgrad import cross_entropy_error, numerical_gradient, softmax


class SimpleNet:
    """Two inputs, three classes, no hidden layer."""

    def __init__(self, W):
        self.W = W

    def predict(self, x):
        """Return the scores of the classes."""
        return np.dot(x, self.W)

    def loss(self, x, t):
        """Return the cross entropy of their softmax."""
        return cross_entropy_error(softmax(self.predict(x)), t)


def main():
    # The numbers printed in the book.
    W = [[0.20416663, -0.26468752, 0.93918521], [-0.96143561, -0.73607466, 0.3411377]]
    net = SimpleNet(np.array(W))
    x, t = np.array([0.6, 0.9]), np.array([0, 0, 1])
    print("prediction:", net.predict(x))
    print(f"loss: {net.loss(x, t):.8f}")

    # f ignores its argument: numerical_gradient nudges net.W itself, and puts it back.
    gradient = numerical_gradient(lambda W: net.loss(x, t), net.W)
    print(f"gradient:\n{gradient}")

    net.W -= 1.0 * gradient
    print(f"loss after one step against it: {net.loss(x, t):.8f}")


if __name__ == "__main__":
    main()
