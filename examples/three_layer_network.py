"""A three-layer network by hand, then over MNIST (*Deep Learning from Scratch*, 3.4 and 3.6).

The book predicts MNIST with weights that it brings as a file. Here a network of the same shape,
784-50-100-10, is trained first, which takes seconds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import (
    Adam,
    MultiLayerNet,
    affine_forward,
    identity_function,
    load_mnist,
    sigmoid,
    softmax,
)


def forward(params, x, output_function):
    z1 = sigmoid(affine_forward(x, params["W1"], params["b1"]))
    z2 = sigmoid(affine_forward(z1, params["W2"], params["b2"]))
    return output_function(affine_forward(z2, params["W3"], params["b3"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/three_layer_network.png", metavar="FILE.png")
    parser.add_argument("--quick", action="store_true", help="hardly train the network")
    options = parser.parse_args()

    # Section 3.4.3: weights small enough to follow with pencil and paper.
    params = {
        "W1": np.array([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]),
        "b1": np.array([0.1, 0.2, 0.3]),
        "W2": np.array([[0.1, 0.4], [0.2, 0.5], [0.3, 0.6]]),
        "b2": np.array([0.1, 0.2]),
        "W3": np.array([[0.1, 0.3], [0.2, 0.4]]),
        "b3": np.array([0.1, 0.2]),
    }
    print("by hand:", forward(params, np.array([1.0, 0.5]), identity_function))

    # Section 3.6: the same over MNIST, one image at a time and in batches of 100.
    (x_train, t_train), (x_test, t_test) = load_mnist()
    net = MultiLayerNet(784, [50, 100], 10, activation="sigmoid", weight_init_std="xavier", rng=0)
    net.fit(x_train, t_train, iterations=50 if options.quick else 5000, optimizer=Adam(), rng=0)

    forward(net.params, x_test[:100], softmax)  # kernels are compiled at their first call
    begin = time.perf_counter()
    one_by_one = np.array([forward(net.params, x, softmax).argmax() for x in x_test])
    middle = time.perf_counter()
    batches = [
        forward(net.params, x_test[first : first + 100], softmax).argmax(axis=1)
        for first in range(0, len(x_test), 100)
    ]
    end = time.perf_counter()
    assert (one_by_one == np.concatenate(batches)).all()
    print(f"accuracy {np.mean(one_by_one == t_test):.2%}")
    print(f"one by one {middle - begin:.2f} s, in batches of 100 {end - middle:.2f} s")

    figure = Figure(figsize=(10, 2.1), layout="constrained")
    shown = forward(net.params, x_test[:8], softmax)
    for axes, image, probabilities in zip(figure.subplots(1, 8), x_test, shown, strict=False):
        axes.imshow(image.reshape(28, 28), cmap="gray_r")
        axes.set_title(f"{probabilities.argmax()} ({probabilities.max():.0%})")
        axes.set_axis_off()
    figure.suptitle("The first test images, and what the network takes them for")
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
