"""Train on MNIST (*Deep Learning from Scratch*, section 4.5, figures 4-11 and 4-12).

With ``--method numerical_gradient`` every step takes a numerical gradient of all 39,760 parameters,
the exercise that is out of reach for the textbook loop.
"""

import argparse
from pathlib import Path

from fastgrad import TwoLayerNet, load_mnist


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/train_mnist.png", metavar="FILE.png")
    parser.add_argument("--method", choices=("gradient", "numerical_gradient"), default="gradient")
    parser.add_argument("--quick", action="store_true", help="600 iterations, not 10,000")
    options = parser.parse_args()

    (x_train, t_train), (x_test, t_test) = load_mnist()
    net = TwoLayerNet(784, 50, 10, rng=0)
    history = net.fit(
        x_train,
        t_train,
        iterations=600 if options.quick else 10_000,
        method=options.method,
        validation=(x_test, t_test),
        progress=True,
        rng=0,
    )
    print(f"{len(history.loss):,} iterations in {history.seconds:.1f} s")
    print(f"accuracy on training images {net.accuracy(x_train, t_train):.2%}")
    print(f"accuracy on test images     {net.accuracy(x_test, t_test):.2%}")
    Path(options.output).parent.mkdir(exist_ok=True)
    history.plot(options.output)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
