"""What a new process waits for: the import, and the first call without and with a warm cache."""

import os
import textwrap

from .common import find

#: A folder of its own for compiled kernels, gone with the process.
EMPTY_CACHE = """
    import atexit, os, shutil, tempfile
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], True)
"""

NETWORK = """
    import fastgrad, numpy
    x = numpy.random.default_rng(0).random((100, 784))
    t = numpy.arange(100) % 10
    net = fastgrad.TwoLayerNet(784, 50, 10, rng=0)
"""


def code(*parts):
    """Join pieces of Python."""
    return "".join(map(textwrap.dedent, parts))


class Import:
    rounds = 1
    repeat = (2, 10, 5.0)

    def setup(self):
        find("fastgrad", "TwoLayerNet")

    def timeraw_import(self):
        return "from fastgrad import TwoLayerNet"

    timeraw_import.number = 1
    # What it measures is what `import fastgrad` alone was, when that imported everything.
    timeraw_import.version = "e593ea55e1edd54a86439d32abe0f8aa094f4437720c295dddb9de99c070e972"


class Run:
    """A script that needs nothing, an empty one, by ``fastgrad run`` and by Python itself."""

    rounds = 1
    repeat = (2, 10, 5.0)
    number = 1
    params = (["fastgrad", "python"],)
    param_names = ("by",)
    calls = {  # noqa: RUF012 - asv hands every process a class of its own
        "fastgrad": "from fastgrad.__main__ import main; main(['run', os.devnull])",
        "python": "import runpy; runpy.run_path(os.devnull, run_name='__main__')",
    }

    def setup(self, by):
        find("fastgrad.book", "run_script")

    def timeraw_run(self, by):
        return f"import os; {self.calls[by]}"


class FirstCall:
    """The first call of a method in a new process.

    Measured once, and in one of the two series: with an empty cache the first call compiles for
    many seconds, on one thread in any case.
    """

    rounds = 1
    repeat = 1
    number = 1
    warmup_time = 0
    params = (["sigmoid", "numerical_gradient"], ["empty", "warm"])
    param_names = ("call", "cache")
    calls = {  # noqa: RUF012 - asv hands every process a class of its own
        "sigmoid": "fastgrad.sigmoid(x)",
        "numerical_gradient": "net.numerical_gradient(x, t)",
    }

    def setup(self, call, cache):
        find("fastgrad", "TwoLayerNet")
        if os.environ.get("NUMBA_NUM_THREADS", "1") != "1":
            raise NotImplementedError("measured with one thread")
        if cache == "warm":  # fill it in this process, for the next
            exec(code(NETWORK, self.calls[call]), {})

    def timeraw_call(self, call, cache):
        return self.calls[call], code(EMPTY_CACHE if cache == "empty" else "", NETWORK)
