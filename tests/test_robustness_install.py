"""The wheel: into a path with spaces and non-ASCII characters, strict Pythons, not from a zip."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from processes import answer, run
from strategies import NIGHTLY

ROOT = Path(__file__).parent.parent

EXERCISE = """
import sys
sys.path.insert(0, {where!r})
import numpy as np
import fastgrad
assert fastgrad.__file__.startswith({where!r}), fastgrad.__file__
(x, t), _ = fastgrad.load_mnist()
value = fastgrad.sigmoid([0.0, 2.0])
assert abs(value[1] - 0.8807970779778823) < 1e-15
try:
    fastgrad.sigmoid("text")
except TypeError as error:
    assert "`x`" in str(error)
else:
    raise SystemExit("not refused")
if {train}:
    net = fastgrad.TwoLayerNet(784, 5, 10, rng=0)
    history = net.fit(x[:100], t[:100], iterations=3, batch_size=10, rng=0)
    net.save({where!r} + "/net.npz")
    again = fastgrad.TwoLayerNet.load({where!r} + "/net.npz")
    np.testing.assert_array_equal(net.predict(x[:5]), again.predict(x[:5]))
print("done", sys.flags.optimize, sys.flags.isolated)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources."""
    builder = pytest.importorskip("hatchling.build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
        else:
            (source / name).write_text(name)
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    shutil.copytree(ROOT / "fastgrad", source / "fastgrad", ignore=ignored)
    before = os.getcwd()
    os.chdir(source)
    try:
        return out / builder.build_wheel(str(out))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Unpack it where a path has spaces and letters of other alphabets, as an installer would."""
    folder = tmp_path_factory.mktemp("site") / "ein Pfäd mit 深層 학습 & 'quotes'"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} <= {"fastgrad"} | {
        name for name in {name.split("/")[0] for name in names} if name.endswith(".dist-info")
    }
    assert "fastgrad/py.typed" in names
    assert sum(name.endswith("ubyte.gz") for name in names) == 4
    assert not [name for name in names if name.endswith((".nbi", ".nbc", ".pyc"))]


@pytest.mark.parametrize(
    "options", [["-O"], ["-I", "-OO"], ["-W", "error"]], ids=["-O", "-I -OO", "-W error"]
)
def test_strict_pythons_in_an_odd_path(site, options, tmp_path):
    code = EXERCISE.format(where=str(site), train=NIGHTLY)
    environment = {} if "-I" in options else {"NUMBA_CACHE_DIR": str(site / "mit Cäche")}
    out = answer(run(code, *options, root=tmp_path, **environment))
    assert out.startswith("done")


def test_its_own_cache_lies_beside_the_sources(site, tmp_path):
    code = EXERCISE.format(where=str(site), train=False)
    answer(run(code, root=tmp_path, NUMBA_CACHE_DIR=None))
    assert list((site / "fastgrad" / "kernels" / "__pycache__").glob("*.nbi"))


def test_a_zip_is_refused(wheel, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import fastgrad"
    process = run(code, root=tmp_path)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: fastgrad must be installed into a folder. It cannot run from a zip archive."
    )
