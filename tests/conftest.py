"""What must hold before the package is imported: a cache of its own, and Hypothesis's profile."""

import atexit
import os
import random
import shutil
import signal
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Compiled code of an older checkout must not pass for that of this one. Child processes inherit it.
if "NUMBA_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="fastgrad-tests-")
    os.environ["NUMBA_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

# Some tests send a Ctrl-C. It is ignored in what a shell starts in the background, and all below.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline and no limit of time: the first example compiles, and the machine may be busy.
settings.register_profile(
    "untimed", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("untimed"), derandomize=True)
settings.register_profile("nightly", settings.get_profile("untimed"), max_examples=2000)
settings.load_profile("nightly" if os.environ.get("FASTGRAD_NIGHTLY") == "1" else "ci")

# Scripts as the book's readers write them; --doctest-modules would import, that is run, them.
collect_ignore = ["book_scripts"]


#: Files whose tests start processes, train for long or compile in every run; all others are quick.
SLOW = {
    "test_archives.py",
    "test_asv_suite.py",
    "test_benchmark_scripts.py",
    "test_book.py",
    "test_cli.py",
    "test_compile.py",
    "test_examples.py",
    "test_kernels_simd.py",
    "test_plots.py",
    "test_policy.py",
    "test_readmes.py",
    "test_run_scripts.py",
    "test_threads.py",
    "test_training.py",
    "test_warmup.py",
    "test_workers.py",
}


def pytest_collection_modifyitems(items):
    """Mark what is quick, and begin with the warm-up: what it compiles, all other tests load."""
    for item in items:
        name = item.path.name
        if not (name in SLOW or name.startswith("test_robustness_")):
            item.add_marker("quick")
    items.sort(key=lambda item: item.path.name != "test_warmup.py")


@pytest.fixture(autouse=True, scope="session")
def parallel_costs():
    """Deal the least work out to all threads: that is where mistakes can be made.

    The value is what the engine goes by for its users, by name.
    """
    from fastgrad.networks import engine  # only now, after the cache's folder is settled

    known = {name: getattr(engine, name) for name in ("PASS", "SERIES", "GENERAL")}
    with pytest.MonkeyPatch.context() as patch:
        for name in known:
            patch.setattr(engine, name, engine.ParallelCost(1, 0))
        yield known


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Draw the same numbers in each run and in any order of tests, also where none gives a seed.

    An unseeded `numpy.random.default_rng` takes its entropy from `randbits`.
    """
    random.seed(0)
    np.random.seed(0)
    monkeypatch.setattr(np.random.bit_generator, "randbits", lambda bits: 0)


@pytest.fixture(params=[1, 2, 3])
def chunks(request, monkeypatch):
    """Deal all work out to that many chunks, however many threads there are."""
    import numba

    from fastgrad.runtime import threads

    threads.layer()  # starts with the true number
    monkeypatch.setattr(numba, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(threads, "chunks", lambda work, enough: request.param)
    return request.param
