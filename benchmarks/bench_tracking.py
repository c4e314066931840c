"""Figures that do not depend on the machine's speed: ratios, errors, counts, and sizes."""

import functools
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from . import textbook
from .common import BATCH, CLASSES, DTYPES, HIDDEN, INPUTS, LAYOUTS, arrange, find, images, ratio
from .common import network as make_network
from .common import random as random_array

#: As in the book, so that both sides do whole iterations of training.
RATE = 0.1


class SpeedUpOverNumPy:
    """How many times as long the same takes in NumPy, written with care (`textbook`)."""

    params = (DTYPES,)
    param_names = ("dtype",)
    unit = "x"

    def setup(self, dtype):
        self.x, self.t = images(1000, dtype)
        self.batch, self.labels = self.x[:BATCH].copy(), self.t[:BATCH].copy()
        self.net = make_network(HIDDEN, dtype)
        self.weights = textbook.initial_params(INPUTS, HIDDEN, CLASSES, dtype)
        # The dense products are compared on data without zeros.
        self.W, self.b = random_array(dtype, INPUTS, HIDDEN), random_array(dtype, HIDDEN)
        self.dense = random_array(dtype, BATCH, INPUTS)
        self.dout = random_array(dtype, BATCH, HIDDEN)

    def track_iteration(self, dtype):
        """Run 100 iterations of `fit` against as many of the textbook."""
        steps = 100
        rng = np.random.default_rng(0)

        def loop():
            for _ in range(steps):
                index = rng.integers(len(self.x), size=BATCH)
                x, t = self.x.take(index, axis=0), self.t[index]
                textbook.training_step(self.weights, x, t, RATE)

        def fit():
            self.net.fit(
                self.x, self.t, iterations=steps, batch_size=BATCH, learning_rate=RATE, rng=0
            )

        return ratio(loop, fit)

    def track_gradient(self, dtype):
        return ratio(
            lambda: textbook.gradient(self.weights, self.batch, self.labels),
            lambda: self.net.gradient(self.batch, self.labels),
        )

    def track_affine_forward(self, dtype):
        ours = find("fastgrad", "affine_forward")
        return ratio(lambda: self.dense @ self.W + self.b, lambda: ours(self.dense, self.W, self.b))

    def track_affine_backward(self, dtype):
        ours = find("fastgrad", "affine_backward")
        return ratio(
            lambda: (self.dout @ self.W.T, self.dense.T @ self.dout, self.dout.sum(axis=0)),
            lambda: ours(self.dout, self.dense, self.W),
        )


class SpeedUpOverTheTextbookLoop:
    """How many times as long the book's loop over parameters takes for a numerical gradient.

    The loop is timed on 4 of the 39,760 parameters, of which each costs the same.
    """

    params = (DTYPES,)
    param_names = ("dtype",)
    unit = "x"

    def setup(self, dtype):
        self.x, self.t = images(BATCH, dtype)
        self.net = make_network(HIDDEN, dtype)
        self.weights = textbook.initial_params(INPUTS, HIDDEN, CLASSES, dtype)
        self.net.numerical_gradient(self.x, self.t)

    def track_numerical_gradient(self, dtype):
        positions = textbook.random_positions(self.weights, 4)
        part = len(positions) / sum(array.size for array in self.weights.values())
        found = ratio(
            lambda: textbook.numerical_gradient(self.weights, self.x, self.t, positions),
            lambda: self.net.numerical_gradient(self.x, self.t),
        )
        return found / part


@functools.cache
def reference():
    """Return what `reference/make.py` computed to 50 digits."""
    text = (Path(__file__).parent / "reference/gradients.json").read_text(encoding="utf-8")
    return json.loads(text)


class Error:
    """The largest deviation from the 50-digit reference, as a part of an array's largest entry.

    Over both activations, with and without delta, on soft targets.
    """

    params = (["numerical_gradient", "gradient"], DTYPES)
    param_names = ("method", "dtype")
    unit = "relative error"

    def setup(self, method, dtype):
        self.cases = []
        for case in reference():
            arrays = {name: np.array(a, dtype) for name, a in case["arrays"].items()}
            x, t = arrays.pop("x"), arrays.pop("t")
            net = find("fastgrad", "TwoLayerNet")(
                *arrays["W1"].shape,
                arrays["b2"].size,
                activation=case["activation"],
                delta=case["delta"],
                dtype=dtype,
            )
            net.params.update(arrays)
            exact = {name: np.array(text, float) for name, text in case[method].items()}
            self.cases.append((getattr(net, method), x, t, exact))

    def track_error(self, method, dtype):
        return max(
            float(np.abs(found[name].ravel() - values).max() / np.abs(values).max())
            for function, x, t, exact in self.cases
            for found in [function(x, t)]
            for name, values in exact.items()
        )


class Signatures:
    """How many versions of kernels are compiled for float64, whatever the memory layout."""

    unit = "signatures"

    def setup(self):
        self.functions = find(
            "fastgrad", "affine_forward", "affine_backward", "softmax_cross_entropy", "sigmoid"
        )
        self.net = make_network(HIDDEN, "float64")

    def track_compiled(self):
        affine_forward, affine_backward, softmax_cross_entropy, sigmoid = self.functions
        x, t = images(BATCH, "float64")
        dout = random_array("float64", BATCH, HIDDEN)
        for layout in LAYOUTS:
            x = arrange(x, layout)
            W, b, d = (arrange(array, layout) for array in (self.net.params["W1"], dout[0], dout))
            affine_forward(x, W, b)
            affine_backward(d, x, W)
            softmax_cross_entropy(d, arrange(t, layout))
            sigmoid(d)
            self.net.gradient(x, arrange(t, layout))
            self.net.numerical_gradient(x, arrange(t, layout))
        return sum(len(kernel.signatures) for kernel in compiled_kernels())


def compiled_kernels():
    """Return the dispatchers in the modules that hold kernels, each once."""
    import pkgutil

    from numba.core.dispatcher import Dispatcher

    modules = [
        importlib.import_module(info.name)
        for room in ("kernels", "runtime")
        for info in pkgutil.walk_packages(_folders(f"fastgrad.{room}"), f"fastgrad.{room}.")
    ]
    members = [member for module in modules for member in vars(module).values()]
    return {id(member): member for member in members if isinstance(member, Dispatcher)}.values()


def _folders(package):
    """Return where a package lies; nowhere at a commit that does not have it."""
    spec = importlib.util.find_spec(package)
    return spec.submodule_search_locations if spec else []


class Size:
    unit = "bytes"

    def setup(self):
        find("fastgrad", "TwoLayerNet")

    def track_wheel(self):
        """Compress the package's files, as its wheel holds them."""
        folder = Path(find("fastgrad", "__file__")).parent
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(folder))
        return len(wheel.getvalue())
