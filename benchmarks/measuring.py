"""How the benchmark scripts take times: in turn, again and again, and the shortest counts.

Candidates take turns in a random order, and each times its work as often as its turn lasts. What
counts is the shortest time of all turns, because everything else that happens on the machine only
ever adds to it. Beside it stands the spread: how far the turns lie above it, by their median. A
spread of more than a few percent means that the machine was busy: measure again.
"""

import itertools
import os
import random
import statistics
import subprocess
import sys
import time

import numpy as np

#: Read by the thread pools of BLAS, OpenMP and Numba when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def allowed_cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(threads):
    """Run this script again, limited to `threads` cores, unless it is already.

    Every library starts its own pool of threads when it is loaded, so limits come before.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, str(min(threads, allowed_cores())))
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    if hasattr(os, "sched_setaffinity"):  # the one limit that XLA knows
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    command, environment = [sys.executable, *sys.orig_argv[1:]], os.environ | wanted
    if os.name == "posix":  # in place of this process: whoever ends it ends the measurement
        os.execve(sys.executable, command, environment)
    raise SystemExit(subprocess.call(command, env=environment))


def stretch(run, units=1):
    """Return a take: a function that calls `run` and returns the seconds for one of its units."""

    def take():
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / units

    return take


def calls(function, *args, seconds=0.01):
    """Return a take of one call, repeated to fill about `seconds`."""
    function(*args)  # compiles
    once = max(stretch(lambda: function(*args))(), 1e-7)
    repeats = max(1, min(100_000, int(seconds / once)))

    def run():
        for _ in range(repeats):
            function(*args)

    return stretch(run, repeats)


class Clock(np.random.Generator):
    """A generator for `fit` that notes when batches are drawn, in `draws`, and for how many steps.

    A fit draws the batches of many iterations at a time, so that its stretches can be timed one by
    one. They are the batches of the book: what ``np.random.choice`` draws after a seed.
    """

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))  # which nothing is drawn from
        self.book = np.random.RandomState(seed)
        self.draws = []

    def integers(self, n, size):
        self.draws.append((time.perf_counter(), size[0]))
        return self.book.choice(n, size).astype(np.int64, copy=False)


class Iteration:
    """A take of one iteration of ``fit(iterations, rng)``, without what comes before the first.

    A fit draws the batches of one, two, four, .. iterations at a time, up to a tenth of a second.
    Stretches half as long as the longest, or longer, are timed one by one; the shortest counts.
    `startup` is the shortest time before the first iteration, in seconds.
    """

    def __init__(self, fit, iterations, seed=0):
        self.fit, self.iterations, self.seed = fit, iterations, seed
        self.startup = float("inf")

    def __call__(self):
        clock = Clock(self.seed)
        begin = time.perf_counter()
        self.fit(self.iterations, clock)
        times, counts = map(list, zip(*clock.draws, strict=True))
        times.append(time.perf_counter())
        self.startup = min(self.startup, times[0] - begin)
        stretches = zip(counts, itertools.pairwise(times), strict=True)
        return min((b - a) / count for count, (a, b) in stretches if 2 * count >= max(counts))


def with_threads(take, threads):
    """Return the take with `threads` of Numba's threads."""
    import numba

    def limited():
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return take()
        finally:
            numba.set_num_threads(before)

    return limited


def in_turn(takes, rounds, turn):
    """Give every candidate a turn of `turn` seconds in each round, in an order drawn anew.

    Returns
    -------
    dict
        For each name in `takes` the shortest take of every turn, in seconds.
    """
    times = {name: [] for name in takes}
    for k in range(rounds):
        for name in random.Random(k).sample(list(takes), len(takes)):
            end = time.perf_counter() + turn
            shortest = takes[name]()
            while time.perf_counter() < end:
                shortest = min(shortest, takes[name]())
            times[name].append(shortest)
    return times


def summary(times, scale=None):
    """Return a row for each candidate: shortest time, spread, and the ratio to the first one's.

    `scale` has factors for candidates that were measured on a part of the work.
    """
    rows = []
    for name, turns in times.items():
        shortest = min(turns) * (scale or {}).get(name, 1.0)
        rows.append(
            {
                "name": name,
                "shortest_s": shortest,
                "spread": statistics.median(turns) / min(turns) - 1,
                "ratio": shortest / rows[0]["shortest_s"] if rows else 1.0,
            }
        )
    return rows
