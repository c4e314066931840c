"""The on-disk cache of compiled code: unwritable, full, shared, of another version.

A process that cannot use its cache compiles in memory; none runs code of other sources. Damaged
files: see test_compile.py.
"""

import os
import resource
import shutil
import subprocess
import sys

import pytest
from processes import ROOT, answer, environment_of, run

#: One small kernel; prints its value, and whether it came from the cache.
ONE_KERNEL = """
import fastgrad
from fastgrad.kernels import activations
value = fastgrad.sigmoid_grad([0.0, 1.0]).tolist()
hits = sum(activations.activate.stats.cache_hits.values())
print(value[0], f"{value[1]:.6f}", "cached" if hits else "compiled")
"""
RIGHT = "0.25 0.196612"


@pytest.fixture
def installed(tmp_path):
    """Return a folder with a copy of the package in it, as pip would leave one."""
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc", "*.gz")
    shutil.copytree(ROOT / "fastgrad", tmp_path / "site" / "fastgrad", ignore=ignored)
    return tmp_path / "site"


def no_folder(place):
    """Put a file where a folder would be made: even root cannot write into it."""
    place.write_text("")
    return place


def test_read_only_install_without_a_home(installed, tmp_path):
    for folder in (installed / "fastgrad").rglob("*/"):
        no_folder(folder / "__pycache__")
    nowhere = str(no_folder(tmp_path / "nowhere") / "home")
    process = run(
        ONE_KERNEL, "-B", root=installed, NUMBA_CACHE_DIR=None, HOME=nowhere,
        XDG_CACHE_HOME=nowhere,
    )  # fmt: skip
    assert answer(process) == f"{RIGHT} compiled"
    assert not process.stderr


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    folder = no_folder(tmp_path / "file") / "cache"
    process = run(ONE_KERNEL, NUMBA_CACHE_DIR=str(folder), HOME=str(tmp_path / "home"))
    assert answer(process).startswith(RIGHT)


def test_a_full_disk(tmp_path):
    """No file can grow beyond 4 KiB: what the system says then is what a full disk says."""
    process = subprocess.run(
        [sys.executable, "-B", "-c", ONE_KERNEL],
        env=environment_of(NUMBA_CACHE_DIR=str(tmp_path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert answer(process) == f"{RIGHT} compiled"
    assert answer(run(ONE_KERNEL, NUMBA_CACHE_DIR=str(tmp_path))) == f"{RIGHT} compiled"


def test_processes_that_fill_it_at_once(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_KERNEL], env=environment_of(NUMBA_CACHE_DIR=str(tmp_path)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.startswith(RIGHT)
    # Whatever they did to each other's files, the next process mends it.
    assert answer(run(ONE_KERNEL, NUMBA_CACHE_DIR=str(tmp_path))).startswith(RIGHT)
    assert answer(run(ONE_KERNEL, NUMBA_CACHE_DIR=str(tmp_path))) == f"{RIGHT} cached"


def test_the_cache_is_used_until_sources_change_in_the_same_place(installed, tmp_path):
    """A helper in another file changes, with the time of change and the size kept."""

    def run_it():
        # -B: Python's own .pyc files go by time and size, and would bring the old source back.
        process = run(ONE_KERNEL, "-B", root=installed, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
        return answer(process)

    assert run_it() == f"{RIGHT} compiled"
    assert run_it() == f"{RIGHT} cached"
    helper = installed / "fastgrad" / "kernels" / "elementary.py"
    before, text = helper.stat(), helper.read_text()
    changed = text.replace("p = (1 / 2 + r ", "p = (1 / 3 + r ")
    assert changed != text
    helper.write_text(changed)
    os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
    value, compiled = run_it().split()[1:]
    assert compiled == "compiled"
    assert value != RIGHT.split()[1]


FUNCTIONS_OF_THE_USER = """
import sys
import numpy as np
from numba import njit, prange
from fastgrad.numdiff import objective
from fastgrad.numdiff.gradients import numerical_gradient

@njit(cache=True)
def plain(x):
    return np.sum(x**3)

@njit(cache=True, parallel=True)
def threaded(x):
    total = 0.0
    for i in prange(x.size):
        total += x[i] ** 3
    return total

@njit(cache=True)
def calls_threaded(x):
    return threaded(x)

x = np.linspace(-1, 1, 9)
for f in (plain, threaded, calls_threaded):
    np.testing.assert_allclose(numerical_gradient(f, x), 3 * x**2, atol=1e-7)
    assert (objective._compiled(f, x, ()) is None) == (f is not plain)
print(sum(sum(f.stats.cache_hits.values()) for f in (plain, calls_threaded)))
"""


def test_functions_of_the_user_from_a_cache(tmp_path):
    (tmp_path / "cached.py").write_text(FUNCTIONS_OF_THE_USER)
    for hits in ("0", "2"):
        assert answer(run("import cached", "-W", "error", cwd=tmp_path)) == hits


def test_functions_of_the_user_without_compilation():
    code = """
import numpy as np
from numba import njit
from fastgrad.numdiff.gradients import numerical_gradient
f = njit(lambda x, a: a * np.sum(x**3))
found = numerical_gradient(f, np.arange(3.0), args=(2.0,), workers=map)
np.testing.assert_allclose(found, [0, 6, 24], atol=1e-7)
"""
    answer(run(code, NUMBA_DISABLE_JIT="1"))


def test_processes_save_one_after_the_other(tmp_path):
    inside = tmp_path / "inside"
    code = (
        "import pathlib, sys, time\n"
        "from fastgrad.runtime import compile\n"
        "inside = pathlib.Path(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    with compile._one_process_at_a_time(inside.with_name('lock')):\n"
        "        inside.touch(exist_ok=False)\n"
        "        time.sleep(0.002)\n"
        "        inside.unlink()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, inside]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
