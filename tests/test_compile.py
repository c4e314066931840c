"""The cache of compiled kernels: used, never stale, never fatal."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from processes import ROOT, answer
from processes import run as run_python
from reference import from_python

import fastgrad
from fastgrad.kernels import bitmask
from fastgrad.runtime import compile as policy

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")

#: Of the package, and of the modules of the tests.
PATH = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
HELPER = """
from fastgrad.runtime.compile import kernel

@kernel
def scaled(x):
    return {factor} * x
"""
CALLER = """
from fastgrad.runtime.compile import kernel
from fastgrad.kernels.helper import scaled

@kernel
def scaled_and_raised(x):
    return scaled(x) + 1
"""
RUN = """
from fastgrad.kernels.caller import scaled_and_raised as f
print(f(10.0), sum(f.stats.cache_hits.values()), sum(f.stats.cache_misses.values()))
"""
#: What may happen to a file, by name; its content before, and after.
DAMAGES = {
    "gone": lambda content: None,
    "emptied": lambda content: b"",
    "foreign": lambda content: b"garbage",
    "halved": lambda content: content[: len(content) // 2],
    "flipped": lambda content: bytes([content[0] ^ 255]) + content[1:],
    "pickled": lambda content: b"\x80\x04" + bytes(range(256)) * (len(content) // 256),
}


@pytest.fixture
def package(tmp_path):
    """Return a folder with a copy of the package that holds two small kernels more."""
    copy = tmp_path / "copy" / "fastgrad"
    shutil.copytree(
        Path(fastgrad.__file__).parent, copy, ignore=shutil.ignore_patterns("*.gz", "__pycache__")
    )
    (copy / "kernels" / "helper.py").write_text(HELPER.format(factor=2))
    (copy / "kernels" / "caller.py").write_text(CALLER)
    return copy.parent


@pytest.fixture
def run(package, tmp_path):
    """Return a function that calls the kernel in a new process: result, cache hits, misses."""

    def call(code=RUN, **environment):
        environment = {
            **os.environ,
            "PYTHONPATH": str(package),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        value, hits, misses = done.stdout.split()
        return float(value), int(hits), int(misses)

    return call


def cached(tmp_path, suffix, name="scaled_and_raised"):
    return sorted((tmp_path / "cache").rglob(f"*{name}*{suffix}"))


def test_the_second_process_loads_until_a_kernel_changes(run, package):
    """A helper in another file is edited; a file comes; it goes. Edits elsewhere cost nothing."""
    kernels = package / "fastgrad" / "kernels"
    assert run() == (21, 0, 1)
    with open(package / "fastgrad" / "tables.py", "a") as file:
        file.write("\n# edited\n")
    assert run() == (21, 1, 0)
    (kernels / "another.py").write_text("")
    assert run() == (21, 0, 1)
    (kernels / "another.py").unlink()
    assert run() == (21, 0, 1)
    (kernels / "helper.py").write_text(HELPER.format(factor=3))
    assert run() == (31, 0, 1)


def test_a_damaged_file_is_a_miss_that_mends_itself(run, package, tmp_path):
    """A kernel for each damage of either kind of file, so that processes are few."""
    cases = list(itertools.product(DAMAGES, ["nbi", "nbc"]))
    names = ["_".join(case) for case in cases]
    caller = package / "fastgrad" / "kernels" / "caller.py"
    header, body = CALLER.split("@kernel")
    kernels = ["@kernel" + body.replace("scaled_and_raised", name) for name in names]
    caller.write_text(header + "".join(kernels))
    code = f"""
from fastgrad.kernels import caller
kernels = [getattr(caller, name) for name in {names}]
(value,) = {{kernel(10.0) for kernel in kernels}}
hits, misses = (
    sum(sum(getattr(kernel.stats, which).values()) for kernel in kernels)
    for which in ("cache_hits", "cache_misses")
)
print(value, hits, misses)
"""
    assert run(code) == (21, 0, len(names))
    assert run(code) == (21, len(names), 0)
    for name, (damage, suffix) in zip(names, cases, strict=True):
        (path,) = cached(tmp_path, suffix, name)
        content = DAMAGES[damage](path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    assert run(code)[:2] == (21, 0)
    assert run(code)[0] == 21  # at the latest now there are sound ones again
    assert run(code) == (21, len(names), 0)


def test_nowhere_to_write(run, package, tmp_path):
    # A file in a folder's place refuses even root: no given folder, none beside the source, none
    # in the home.
    blocked = tmp_path / "file"
    blocked.write_text("")
    (package / "fastgrad" / "kernels" / "__pycache__").write_text("")
    nowhere = {
        name: str(blocked / "folder")
        for name in ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "IPYTHONDIR")
    }
    code = RUN.replace("sum(f.stats.cache_hits.values())", "0")
    for _ in range(2):
        assert run(code, **nowhere)[:2] == (21, 0)


def test_a_folder_that_goes_after_the_import(run):
    code = RUN.replace(
        "print(",
        "import os, shutil; folder = os.environ['NUMBA_CACHE_DIR']\n"
        "shutil.rmtree(folder); open(folder, 'w').close()\n"
        "print(",
    )
    assert run(code) == (21, 0, 1)


def test_nan_is_not_optimised_away():
    assert not {"nnan", "ninf", "fast"} & (policy.FASTMATH | policy.EXACT_FASTMATH)
    assert "reassoc" not in policy.EXACT_FASTMATH


@pytest.mark.parametrize(
    "name",
    ["kernel", "parallel_kernel", "chunk_kernel", "helper", "exact_helper", "allocating_helper"],
)
def test_options(name):
    options = getattr(policy, name)(_twice).targetoptions
    assert options["nogil"]
    assert options["error_model"] == "numpy"
    assert bool(options.get("parallel")) == (name == "parallel_kernel")
    assert options["no_cfunc_wrapper"]
    assert bool(options.get("no_cpython_wrapper")) == (
        not name.endswith("kernel") or "chunk" in name
    )
    assert options.get("_nrt", True) == (name in ("parallel_kernel", "allocating_helper"))
    exact = name == "exact_helper"
    assert set(options["fastmath"]) == (policy.EXACT_FASTMATH if exact else policy.FASTMATH)


def _twice(x):
    return 2 * x


@pytest.mark.parametrize("args", [0, SimpleNamespace(bits=np.zeros((2, 2), "u8"))])
def test_a_chunk_kernel_called_from_python_is_refused(args):
    with pytest.raises(TypeError, match="`count_entries` is for compiled code"):
        bitmask.count_entries(args, 0, 1, 0)


def test_a_helper_called_from_python_is_refused():
    twice = policy.helper(_twice)
    assert from_python(twice)(3) == 6
    with pytest.raises(TypeError, match="`_twice` is for compiled code"):
        twice(3)


PRIVATE_NAMES = [name for names in policy.PRIVATE_NAMES.values() for name in names]


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_private_names_of_numba_are_there(name):
    assert policy.private_name(name) is not None


@pytest.mark.parametrize("name", ["numba.core.nowhere:Thing", "numba.core:nothing", "numba:a.b"])
def test_private_names_that_are_not_there(name):
    assert policy.private_name(name) is None


#: Has each of the names given missing in turn: the package is imported anew and must compute.
WITHOUT = """
import operator, sys
import numpy as np
from reference import gradient, random_params, relative_errors, rows

rng = np.random.default_rng(0)
sizes, x, t = (5, 4, 3), rng.random((3, 5)) * (rng.random((3, 5)) < 0.3), np.array([0, 2, 1])
params = random_params(sizes, rng)
want = gradient(params, x, rows(t, 3), "sigmoid", 1e-7)
find = operator.attrgetter
for missing in NAMES:
    def without(name):
        if name == missing.split(":")[1]:
            raise AttributeError(name)
        return find(name)

    for name in [name for name in sys.modules if name.split(".")[0] == "fastgrad"]:
        del sys.modules[name]
    operator.attrgetter = without  # Numba itself goes on with what it has
    import fastgrad.api  # and with it all kernels
    from fastgrad.runtime import compile as policy
    operator.attrgetter = find
    assert policy.private_name(missing) is not None  # it is there again
    assert abs(fastgrad.sigmoid_grad(0.0) - 0.25) < 1e-15
    if "caching" in missing:  # which has nothing to do with what is computed
        print(missing, policy.COMPILED)
        continue
    net = fastgrad.TwoLayerNet(*sizes)
    net.params = {name: array.copy() for name, array in params.items()}
    with np.errstate(over="ignore"):
        assert max(relative_errors(net.gradient(x, t), want).values()) < 1e-12
        assert max(relative_errors(net.numerical_gradient(x, t), want).values()) < 1e-6
        before = net.loss(x, t)
        net.fit(x, t, iterations=3, batch_size=3, rng=0)
        assert net.loss(x, t) < before
        assert abs(fastgrad.numerical_diff(lambda x: x * x, 1.5) - 3) < 1e-6
    print(missing, policy.COMPILED)
"""


def test_without_a_name_for_function_pointers_all_is_python():
    names = policy.PRIVATE_NAMES["pointers"]
    code = WITHOUT.replace("NAMES", repr(names))
    assert answer(run_python(code, PYTHONPATH=PATH)).splitlines() == [f"{n} False" for n in names]


def test_without_the_option_of_counting_kernels_are_the_same():
    names = policy.PRIVATE_NAMES["counting"]
    code = WITHOUT.replace("NAMES", repr(names)) + (
        "    from fastgrad.kernels import bitmask\n"
        "    assert '_nrt' not in bitmask.build_bitmask.targetoptions\n"
    )
    process = run_python(code, PYTHONPATH=PATH, NUMBA_OPT="0")
    assert answer(process).splitlines() == [f"{name} True" for name in names]


def test_without_a_name_for_the_cache_kernels_are_compiled_anew(tmp_path):
    names = policy.PRIVATE_NAMES["cache"]
    code = WITHOUT.replace("NAMES", repr(names))
    process = run_python(code, PYTHONPATH=PATH, NUMBA_OPT="0", NUMBA_CACHE_DIR=str(tmp_path))
    assert answer(process).splitlines() == [f"{name} True" for name in names]
    assert not list(tmp_path.rglob("*.nbi"))
