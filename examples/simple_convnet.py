"""A convolutional network on MNIST (*Deep Learning from Scratch*, chapter 7).

`SimpleConvNet` of section 7.5 is trained with Adam. The picture shows its 30 filters before and
after training (figure 7-24), the accuracies, and the test images that it gets wrong, with its
answers.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastgrad import load_mnist
from fastgrad.book import SimpleConvNet


def show(panel, images, title, columns, captions=None):
    """Draw small images side by side."""
    panel.suptitle(title)
    rows = -(-len(images) // columns)
    for number, axes in enumerate(panel.subplots(rows, columns).flat):
        axes.set_axis_off()
        if number < len(images):
            axes.imshow(images[number], cmap="gray_r")
            if captions is not None:
                axes.set_title(captions[number], fontsize=9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="pictures/simple_convnet.png", metavar="FILE.png")
    parser.add_argument("--quick", action="store_true", help="20 iterations, not 3,000")
    options = parser.parse_args()

    (x_train, t_train), (x_test, t_test) = load_mnist(flatten=False)
    if options.quick:
        x_train, t_train, x_test, t_test = x_train[:500], t_train[:500], x_test[:200], t_test[:200]
    np.random.seed(0)  # noqa: NPY002 - which the network draws from
    net = SimpleConvNet()
    before = net.params["W1"].copy()
    history = net.fit(
        x_train, t_train, iterations=20 if options.quick else 3000, validation=(x_test, t_test)
    )
    answers = np.concatenate([net.predict(x).argmax(axis=1) for x in np.split(x_test, 20)])
    wrong = np.flatnonzero(answers != t_test)
    print(f"{len(history.loss)} iterations in {history.seconds:.1f} s")
    print(f"test accuracy {1 - len(wrong) / len(t_test):.2%}, {len(wrong)} images are wrong")

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subfigures(2, 2)
    show(panels[0, 0], before[:, 0], "Filters before training", 8)
    show(panels[0, 1], net.params["W1"][:, 0], "Filters after training", 8)
    axes = panels[1, 0].subplots()
    axes.plot(history.epochs, history.train_accuracy, "o-", label="training")
    axes.plot(history.epochs, history.test_accuracy, "s--", label="test")
    axes.set(xlabel="epoch", ylabel="accuracy of 1,000 images", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    some = wrong[:20]
    captions = [f"{t}, not {answer}" for t, answer in zip(t_test[some], answers[some], strict=True)]
    show(panels[1, 1], x_test[some, 0], "Wrong answers", 5, captions)
    Path(options.output).parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=100)
    print("drawn:", options.output)


if __name__ == "__main__":
    main()
