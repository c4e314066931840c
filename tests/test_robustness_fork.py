"""A fork after kernels have run: right results in the child, or a clear error, never a kill."""

import os
import sys

import pytest
from processes import answer, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SCRIPT = """
import concurrent.futures, multiprocessing, os, sys, traceback, warnings
import numpy as np
import fastgrad as fg
from fastgrad.networks import engine
from numba import njit

# However little: on all threads.
engine.PASS = engine.SERIES = engine.GENERAL = engine.ParallelCost(1, 0)
warnings.simplefilter("ignore", DeprecationWarning)  # Python's about forking with threads
x, t = np.random.default_rng(0).random((8, 6)), [0, 1, 2, 0, 1, 2, 0, 1]
net = fg.TwoLayerNet(6, 5, 3, rng=0)

@njit
def compiled(x):
    return np.sum(x**3)

def values(_=None):
    large = fg.sigmoid(np.linspace(-1, 1, 2_000_000))
    return [
        float(sum(a.sum() for a in net.numerical_gradient(x, t).values())),
        float(sum(a.sum() for a in net.gradient(x, t).values())),
        float(fg.numerical_gradient(compiled, x).sum()),
        float(large.sum()),
        float(fg.TwoLayerNet(6, 5, 3, rng=0).fit(x, t, iterations=3, batch_size=4, rng=0).loss[-1]),
    ]

def outcome(_=None):
    try:
        return [round(value, 9) for value in values()]
    except RuntimeError as error:
        return f"RuntimeError: {error}"

def forked(wanted):
    pid = os.fork()
    if pid == 0:
        got = outcome()
        os._exit(0 if got == wanted else 3 if "OpenMP" in str(got) else 4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

if __name__ == "__main__":
    wanted = outcome()
    print("layer", fg.runtime.threads.layer())
    print("fork", forked(wanted))
    for kind in ("fork", "spawn"):
        context = multiprocessing.get_context(kind)
        if kind == "fork":
            with context.Pool(2) as pool:
                print("pool fork", *(got == wanted or got for got in pool.map(outcome, "ab")))
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            print("executor", kind, *(got == wanted or got for got in pool.map(outcome, "ab")))
    print("parent", outcome() == wanted)
"""


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
def test_kernels_in_child_processes(layer, tmp_path):
    script = tmp_path / "script.py"  # a file, for spawn imports it again
    script.write_text(SCRIPT)
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, {str(script)!r}]))"
    lines = answer(run(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")).splitlines()
    refuses = layer == "omp" and sys.platform == "linux"
    assert lines[0] == f"layer {layer}"
    assert lines[1] == ("fork 3" if refuses else "fork 0")
    for line, start in zip(lines[2:4], ["pool fork", "executor fork"], strict=True):
        if refuses:
            assert line.startswith(f"{start} RuntimeError: the OpenMP threading layer cannot")
        else:
            assert line == f"{start} True True"
    assert lines[4:] == ["executor spawn True True", "parent True"]
