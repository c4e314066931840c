"""The peak memory of a process that trains, or takes a numerical gradient, on MNIST."""

import numpy as np

from .common import BATCH, CLASSES, DTYPES, HIDDEN, INPUTS, find, network, random


class PeakMemory:
    """The whole process counts, with Python, Numba and the compiled kernels."""

    params = (DTYPES,)
    param_names = ("dtype",)

    def setup(self, dtype):
        self.net = network(HIDDEN, dtype)

    def peakmem_numerical_gradient(self, dtype):
        x = np.maximum(random(dtype, BATCH, INPUTS), 0)  # without what loading MNIST takes
        self.net.numerical_gradient(x, np.arange(BATCH) % CLASSES)

    def peakmem_load_mnist(self, dtype):  # the part of the next one that is not training
        find("fastgrad", "load_mnist")()

    def peakmem_fit(self, dtype):
        (x, t), _ = find("fastgrad", "load_mnist")()
        self.net.fit(x, t, iterations=100, rng=0)
