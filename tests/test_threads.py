"""The threading layers: which one runs, and that each gives right results under stress."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from fastgrad.runtime import tbb, threads

TESTS = Path(__file__).parent


def installed(distribution):
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def layers():
    """Return the layers that Numba can load here."""
    yield "workqueue"
    if importlib.util.find_spec("numba.np.ufunc.omppool"):
        yield "omp"
    if installed("tbb"):
        yield "tbb"


LAYERS = list(layers())


def run(code, layer=None, **environment):
    environment = {
        **{key: value for key, value in os.environ.items() if "THREAD" not in key},
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "NUMBA_NUM_THREADS": "2",
        **environment,
    }
    if layer:
        environment["NUMBA_THREADING_LAYER"] = layer
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env=environment, timeout=300,
    )  # fmt: skip


WORK = """
import sys, threading
import numba
import numpy as np
from reference import gradient, random_params, relative_errors, rows
import fastgrad
from fastgrad.networks import engine; from fastgrad.runtime import threads

# However little: on all threads.
engine.PASS = engine.SERIES = engine.GENERAL = engine.ParallelCost(1, 0)
sizes = (40, 9, 4)
rng = np.random.default_rng(0)
params = random_params(sizes, rng)
x, t = rng.standard_normal((30, 40)), rng.integers(0, 4, 30)
x[rng.random(x.shape) < 0.7] = 0
want = gradient(params, x, rows(t, 4), "sigmoid", 1e-7)
wrong = []

def work():
    net = fastgrad.TwoLayerNet(*sizes, rng=0)
    net.params = {name: array.copy() for name, array in params.items()}
    for _ in range(20):
        if max(relative_errors(net.gradient(x, t), want).values()) > 1e-12:
            wrong.append("gradient")
        if max(relative_errors(net.numerical_gradient(x, t, 1e-5), want).values()) > 1e-8:
            wrong.append("numerical_gradient")
        x @ np.ones((40, 50))
    curve = net.fit(x, t, iterations=50, batch_size=10, rng=0).loss
    curves.append(curve)

curves = []
"""


def test_tbb_is_found_without_any_setting():
    if not installed("tbb"):
        pytest.skip("there is no wheel of tbb for this machine")
    done = run("from fastgrad.runtime import threads; print(threads.layer())")
    assert done.stdout.split() == ["tbb"], done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_right_in_one_thread(layer):
    done = run(WORK + "work(); print(threads.layer(), len(wrong))", layer)
    assert done.stdout.split() == [layer, "0"], done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_eight_python_threads_at_once(layer):
    code = """
all_at_once = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in all_at_once]
[thread.join() for thread in all_at_once]
assert len(curves) == 8
for curve in curves:
    np.testing.assert_allclose(curve, curves[0], rtol=1e-12)
print(threads.layer(), len(wrong))
"""
    done = run(WORK + code, layer)
    assert done.stdout.split() == [layer, "0"], done.stderr


FORK = """
import os
work()
child = os.fork()
if child == 0:
    try:
        work()
        code = 1 if wrong else 0
    except RuntimeError as error:
        code = 2 if "spawn" in str(error) else 3
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("layer", LAYERS)
def test_a_fork_computes_or_says_why_not(layer):
    done = run(WORK + FORK, layer)
    # GNU OpenMP would kill the child at its first kernel; it gets an exception instead.
    assert done.stdout.split() == ["2" if layer == "omp" else "0"], done.stderr


def test_the_number_of_threads_is_the_users():
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert threads.chunks(10**9, 1) == 1
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)
    assert threads.chunks(10**9, 1) == before
    assert threads.chunks(10, 100) == 1


@pytest.mark.parametrize(("count", "enough"), [(2, 100), (10, 200), (50, 700)])
def test_many_threads_want_more_work(count, enough, monkeypatch):
    monkeypatch.setattr(threads, "_layer", "tbb")
    monkeypatch.setattr(numba, "get_num_threads", lambda: count)
    assert threads.chunks(enough - 1, 100) == 1
    assert threads.chunks(enough, 100) == count


def test_small_work_stays_serial_on_workqueue():
    code = "from fastgrad.runtime.threads import chunks; print(chunks(29, 1), chunks(30, 1))"
    assert run(code, "workqueue").stdout.split() == ["1", "2"]
    for layer in set(LAYERS) - {"workqueue"}:
        assert run(code, layer).stdout.split() == ["2", "2"]


class TestLoadingTbb:
    @pytest.mark.skipif("tbb" not in LAYERS, reason="is not installed")
    def test_when_the_package_is_imported(self):
        """For who launches something of their own first."""
        code = "import fastgrad, numba; numba.get_num_threads(); print(numba.threading_layer())"
        assert run(code).stdout == "tbb\n"

    def test_without_the_distribution(self, monkeypatch):
        def files(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "files", files)
        assert not tbb.load_tbb()

    @pytest.mark.parametrize("files", [None, []], ids=str)
    def test_without_a_list_of_files(self, monkeypatch, files):
        monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
        assert not tbb.load_tbb()

    def test_with_a_library_that_cannot_be_loaded(self, monkeypatch, tmp_path):
        broken = tmp_path / tbb._TBB_LIBRARY
        broken.write_bytes(b"not a library")

        class File:
            name = tbb._TBB_LIBRARY

            def locate(self):
                return broken

        monkeypatch.setattr(importlib.metadata, "files", lambda name: [File()])
        assert not tbb.load_tbb()


def test_other_settings_of_numba_stand():
    done = run(
        "import numba, fastgrad; from fastgrad.runtime import threads; threads.layer()\n"
        "print(numba.get_num_threads(), numba.config.THREADING_LAYER)",
        "workqueue",
        NUMBA_NUM_THREADS="3",
    )
    assert done.stdout.split() == ["3", "workqueue"], done.stderr
