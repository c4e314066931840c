"""What the asv benchmarks share: guards for old commits, data, and a clock for many calls."""

import contextlib
import functools
import importlib
import os
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from . import measuring

INPUTS, HIDDEN, CLASSES, BATCH = 784, 50, 10, 100
DTYPES = ["float32", "float64"]
LAYOUTS = ["contiguous", "fortran", "strided", "read-only"]
#: Rounds of a ratio, and the seconds of a turn: BLAS's threads stop spinning, and ours wake, in it.
RATIO_ROUNDS, RATIO_TURN = 24, 0.06


def _warm_up():
    """Import the package, and have Numba load what it needs to compile.

    asv starts a process for every benchmark and parameter, forked off one that has imported the
    suite; so this is done only once, and without starting threads, which a fork would lose.
    """
    with contextlib.suppress(Exception):  # an old commit's benchmarks skip themselves
        importlib.import_module("fastgrad")
        importlib.import_module("numba").njit(lambda: None)()


_warm_up()


#: Where modules lay at older commits, the last place first.
FORMER_PLACES = {
    "fastgrad.runtime.compile": ("fastgrad.kernels.compile",),
    "fastgrad.kernels.user_function": (
        "fastgrad.kernels.functions",
        "fastgrad.kernels.differences",
    ),
}


def find(module, *names):
    """Return members of a module; skip the benchmark at a commit that does not have them.

    To be called in `setup`: asv skips a benchmark whose setup raises NotImplementedError.
    """
    reason = None
    for place in (module, *FORMER_PLACES.get(module, ())):
        try:
            found = importlib.import_module(place)
            members = [getattr(found, name) for name in names]
        except (ImportError, AttributeError) as error:
            reason = error
        else:
            return members[0] if len(members) == 1 else members
    raise NotImplementedError(f"this commit is older: {reason}")


@functools.cache
def images(count, dtype):
    """Return the first images of MNIST and their labels.

    Unpacking MNIST takes most of a second; so the first process leaves what it needed beside the
    cache of compiled kernels, for the next.
    """
    load = find("fastgrad", "load_mnist")
    kept = Path(os.environ.get("NUMBA_CACHE_DIR", tempfile.gettempdir()), f"mnist-{count}.npz")
    try:
        with np.load(kept) as file:
            x, t = file["x"], file["t"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        (x, t), _ = load()
        x, t = x[:count], t[:count]
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, x=x, t=t)
    return x.astype(dtype), t.astype(np.int64)


@functools.cache
def random(dtype, *shape):
    """Return normal random numbers, the same for the same shape."""
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def arrange(array, layout):
    """Return a copy of `array` in another memory layout."""
    if layout == "fortran":
        return np.array(array, order="F")
    if layout == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    array = np.array(array, order="C")
    array.flags.writeable = layout != "read-only"
    return array


def network(hidden, dtype, **options):
    """Return a two-layer network for MNIST."""
    return find("fastgrad", "TwoLayerNet")(INPUTS, hidden, CLASSES, dtype=dtype, rng=0, **options)


def ratio(theirs, ours):
    """Return how many times as long `theirs` takes as `ours`.

    Both run in each of many short rounds, so that they meet the same disturbances. What counts
    is the geometric mean of the ratios inside a round, without the outermost eighths. On a shared
    virtual machine its standard deviation was 4 to 5%, that of the ratio of medians, or of lowest
    tenths, 6 to 7%.
    """
    takes = {
        "theirs": measuring.calls(theirs, seconds=0.004),
        "ours": measuring.calls(ours, seconds=0.004),
    }
    times = measuring.in_turn(takes, RATIO_ROUNDS, RATIO_TURN)
    ratios = np.sort(np.log(np.divide(times["theirs"], times["ours"])))
    outermost = len(ratios) // 8
    return float(np.exp(ratios[outermost:-outermost].mean()))


class PerCall:
    """Base of benchmarks that time `calls` calls in a row and report one.

    asv runs `setup` again before each call that it times (asv_runner before 0.3: before each
    sample), which leaves a call of microseconds alone with the clock's own time. So a benchmark
    loops over ``range(self.calls)``, and the clock runs slower by as much.
    """

    number = 1
    rounds = 2
    repeat = (3, 10, 2.0)
    calls = 1

    def timer(self):
        return time.perf_counter() / self.calls
