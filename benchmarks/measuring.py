"""What the benchmark scripts share: timing in turn, statistics, tables, and the machine's name.

Timings of rivals mean something only side by side, on a machine that does nothing else. So they
run in turn, in many short rounds; a ratio is taken inside each round, then the median over rounds.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Read by the thread pools of BLAS, OpenMP and Numba when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)

#: Seconds of rest before a candidate's turn. The threads of BLAS and OpenMP spin on after their
#: last task, on the cores of whoever comes next: on 2 cores NumPy's iteration takes 370 us right
#: after PyTorch's, and after a rest 240 us, as in a process of its own.
PAUSE = 0.02

#: Seconds for which a candidate runs untimed at the start of its turn. Threads that were asleep
#: take time to spread over the cores: JAX's iteration takes 360 us after 14 ms of running, 240 us
#: after 60 ms and 225 us after 140 ms; our affine kernels, on a virtual machine, run at the speed
#: of one thread for the first 0.1 s or so.
SETTLE = 0.3

#: How much longer than ever before the same work may take on all cores at once, and a launch on all
#: of them, if they are to count as free. A virtual machine may run two cores on one of the real
#: machine's, or on its two halves, and others may use the other half of a core: work takes 1.4 to 2
#: times as long then. It may run them far from each other: a launch takes three times as long, and
#: an iteration of training 1.5 times. All this for tenths of a second, or for seconds.
FREE, NEAR = 1.25, 2.0

#: Seconds that a measurement may lose, on average, to waiting for free cores, and to being taken
#: again if they are not free any more when it ends.
PATIENCE = 1.0

#: How often, at least, and for how many seconds the same is timed at a turn. The shortest time
#: counts: what others do on the machine only ever adds to it. Many short takes find the moments
#: between: virtual cores change places every tenth of a second or so.
TAKES, TAKING = 5, 0.9

#: A share of a core taken by other processes above which results are marked as disturbed.
DISTURBED = 0.1


def allowed_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_of_each_core(processors):
    """Return the processors ordered so that the first ones are of different cores.

    The two hardware threads of a core are two processors, together hardly faster than one.
    """
    cores = {}
    for processor in sorted(processors):
        cores.setdefault(_siblings(processor), []).append(processor)
    turns = itertools.zip_longest(*cores.values())
    return [processor for turn in turns for processor in turn if processor is not None]


def _siblings(processor):
    """Return the name of a processor's core: the list of its hardware threads (Linux only)."""
    try:
        path = f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(processor)


def limit_threads(threads):
    """Run this script again, limited to `threads` cores, unless it is already.

    Every library starts its own pool of threads when it is loaded, so limits come before.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, str(min(threads, allowed_cores())))
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    if hasattr(os, "sched_setaffinity"):  # the one limit that XLA knows
        os.sched_setaffinity(0, one_of_each_core(os.sched_getaffinity(0))[:threads])
    command, environment = [sys.executable, *sys.orig_argv[1:]], os.environ | wanted
    if os.name == "posix":  # in place of this process: whoever ends it ends the measurement
        os.execve(sys.executable, command, environment)
    raise SystemExit(subprocess.call(command, env=environment))


def machine(packages):
    """Return a description of the machine and of the versions of `packages`."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": allowed_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def cpu_model():
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            entries = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.processor() or "unknown"
    fields = {key.strip(): value.strip() for key, value in entries.items()}
    name = fields.get("model name", platform.processor() or "unknown")
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']}"
        vectors = [v for v in ("avx512f", "avx2") if v in fields.get("flags", "").split()]
        name += f", {vectors[0]})" if vectors else ")"
    return name


def describe(facts):
    """Return `machine`'s description as lines of text."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads used, "
        f"{facts['system']}\n{versions}"
    )


class Neighbours:
    """The processor time that other processes take from now on (Linux only)."""

    def __init__(self):
        self.start = time.perf_counter(), self._others()

    def share(self):
        """Return how many cores other processes kept busy; None where it is not known."""
        began, before = self.start
        now, after = time.perf_counter(), self._others()
        if before is None or after is None:
            return None
        return max(0.0, (after - before) / (now - began))

    def warning(self):
        """Return a sentence if others disturbed the measurements, else nothing."""
        share = self.share()
        if share is None or share < DISTURBED:
            return ""
        return (
            f"DISTURBED: other processes kept {share:.1f} cores busy meanwhile. Where threads "
            "spin while they\nwait for one another, that makes them many times slower: measure "
            "again.\n"
        )

    @staticmethod
    def _others():
        try:
            with open("/proc/stat", encoding="ascii") as file:
                user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


@functools.cache
def _compiled_probes():
    """Compile a loop that keeps a core busy for half a millisecond or so, and an empty launch."""
    import numba

    if is_installed("fastgrad"):
        importlib.import_module("fastgrad")  # it loads the threading layer that it uses

    @numba.njit(nogil=True, fastmath={"contract"})
    def multiply(sums):
        for _ in range(70_000):
            for i in range(sums.size):
                sums[i] = sums[i] * sums.dtype.type(0.999) + sums.dtype.type(0.5)

    @numba.njit(parallel=True)
    def launch(places):
        for share in numba.prange(places.shape[0]):
            places[share, 0] = share

    def work(barrier=None):
        sums = np.zeros(96, np.float32)
        if barrier is not None:
            barrier.wait()
        start = time.perf_counter()
        multiply(sums)
        return time.perf_counter() - start

    def meet(cores):
        places = np.zeros((cores, 16))
        start = time.perf_counter()
        for _ in range(20):
            launch(places)
        return time.perf_counter() - start

    work()
    return work, meet


def _probe(cores):
    """Return the seconds that work takes on one core, the same on all at once, and launches."""
    work, meet = _compiled_probes()
    barrier = threading.Barrier(cores)
    with ThreadPoolExecutor(cores) as pool:
        together = min(max(pool.map(work, [barrier] * cores)) for _ in range(3))
    alone = min(work() for _ in range(3))
    return alone, together, min(meet(cores) for _ in range(5))


#: The shortest work, and the shortest launches, of this process, in seconds, by number of cores.
_shortest = {}


def cores_are_free(cores):
    """Return whether the cores do the same work, all at once, as fast as they ever did before."""
    alone, together, launches = _probe(cores)
    best_work, best_launches = _shortest.get(cores, (math.inf, math.inf))
    best_work, best_launches = min(best_work, alone, together), min(best_launches, launches)
    _shortest[cores] = best_work, best_launches
    return together < FREE * best_work and launches < NEAR * best_launches


def wait_for_cores(cores, patience):
    """Keep all cores busy until they are free, or for so many seconds."""
    end = time.perf_counter() + patience
    while not cores_are_free(cores) and time.perf_counter() < end:
        pass


def settle(run, seconds=None):
    """Call `run` once, and again until a candidate has settled, by default for `SETTLE`."""
    end = time.perf_counter() + (SETTLE if seconds is None else seconds)
    run()
    while time.perf_counter() < end:
        run()


def stretch(run, units=1, *, repeats=1, settling=None, taking=None):
    """Return a measurement: settle, then time `repeats` runs of `units` units each.

    That again and again, for `taking` seconds, by default `TAKING`; the shortest time counts.

    The measurement is a function without arguments that returns the seconds for one unit.
    """

    def seconds():
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start

    def measure():
        settle(run, settling)
        return min(_takes(seconds, taking)) / (units * repeats)

    return measure


def _takes(take, seconds=None):
    """Return what `take` returns, time after time."""
    end = time.perf_counter() + (TAKING if seconds is None else seconds)
    values = [take() for _ in range(TAKES)]
    while time.perf_counter() < end:
        values.append(take())
    return values


def calls(function, *args, seconds=0.01, settling=None, taking=None):
    """Return a measurement of one call, repeated to fill about `seconds`; else as `stretch`."""
    function(*args)
    start = time.perf_counter()
    function(*args)
    once = max(time.perf_counter() - start, 1e-7)
    repeats = max(1, min(100_000, int(seconds / once)))
    return stretch(lambda: function(*args), repeats=repeats, settling=settling, taking=taking)


class Clock(np.random.Generator):
    """A generator that a fit draws its batches from, and that looks at the clock when it does.

    A fit draws the batches of many iterations at a time, so that its stretches can be timed one by
    one. They are the batches of the book: what ``np.random.choice`` draws after a seed.

    Attributes
    ----------
    draws : list of tuple
        When numbers were drawn, and for how many iterations.
    """

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))  # which nothing is drawn from
        self.book = np.random.RandomState(seed)
        self.draws = []

    def integers(self, n, size):
        self.draws.append((time.perf_counter(), size[0]))
        return self.book.choice(n, size).astype(np.int64, copy=False)


class Iteration:
    """Measurement of one iteration of a fit, without what comes before the first one.

    A fit draws the batches of one, two, four, .. iterations at a time, up to a tenth of a second.
    Stretches half as long as the longest, or longer, are timed one by one.

    Parameters
    ----------
    fit : callable
        Trains for a number of iterations, with a generator.
    iterations : int
    seed : int
    taking : float, optional
        As for `stretch`.

    Attributes
    ----------
    startups : list of float
        The shortest time that the start took, in seconds, of each measurement.
    """

    def __init__(self, fit, iterations, seed=0, *, taking=None):
        self.fit, self.iterations, self.seed = fit, iterations, seed
        self.taking = taking
        self.startups = []

    def __call__(self):
        settle(self._take)
        startups, times = zip(*_takes(self._take, self.taking), strict=True)
        self.startups.append(min(startups))
        return min(times)

    def _take(self):
        clock = Clock(self.seed)
        begin = time.perf_counter()
        self.fit(self.iterations, clock)
        times, counts = map(list, zip(*clock.draws, strict=True))
        times.append(time.perf_counter())
        stretches = zip(counts, itertools.pairwise(times), strict=True)
        shortest = min(
            (stop - start) / count for count, (start, stop) in stretches if 2 * count >= max(counts)
        )
        return times[0] - begin, shortest


def with_threads(measure, threads):
    """Return the measurement taken with `threads` of Numba's threads."""
    import numba

    def measure_limited():
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return measure()
        finally:
            numba.set_num_threads(before)

    return measure_limited


def in_turn(measurements, rounds, *, pause=None, cores=None, patience=None):
    """Take all measurements in each of many rounds, in an order drawn anew for each round.

    Before each it waits until the cores are free, and if they are not any more afterwards the
    measurement is taken again, as long as patience lasts.

    Parameters
    ----------
    measurements : dict of str to callable
        Each returns a number of seconds.
    rounds : int
    pause : float, optional
        Seconds of rest before each measurement, by default `PAUSE`.
    cores : int, optional
        How many cores have to be free, by default those allowed.
    patience : float, optional
        By default `PATIENCE`.

    Returns
    -------
    dict of str to list of float
        Seconds, one entry a round, in the order of `measurements`.
    """
    names = list(measurements)
    times = {name: [] for name in names}
    pause = PAUSE if pause is None else pause
    cores = allowed_cores() if cores is None else cores
    left = (PATIENCE if patience is None else patience) * rounds * len(names)
    for k in range(rounds):
        for name in random.Random(k).sample(names, len(names)):
            value, lost = _on_free_cores(measurements[name], pause, cores, left)
            times[name].append(value)
            left -= lost
    return times


def _on_free_cores(measure, pause, cores, patience):
    """Return a measurement, and the seconds lost before it."""
    start = time.perf_counter()
    while True:
        time.sleep(pause)
        wait_for_cores(cores, start + patience - time.perf_counter())
        begin = time.perf_counter()
        value = measure()
        time.sleep(pause)
        if time.perf_counter() - start > patience or cores_are_free(cores):
            return value, begin - start


def add_patience(parser):
    """Give a script the option ``--patience``, for `in_turn`."""
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="what a measurement may wait for free cores, on average (%(default)s)",
    )


def add_taking(parser):
    """Give a script the option ``--taking``, for `TAKING`."""
    parser.add_argument(
        "--taking",
        type=float,
        default=TAKING,
        metavar="SECONDS",
        help="how long each is timed at a turn, again and again (%(default)s)",
    )


def summary(times, reference, *, scale=None):
    """Return a row for each candidate: median, minimum, and how many times slower it is.

    Parameters
    ----------
    times : dict of str to list of float
        From `in_turn`.
    reference : str
        The candidate that the others are divided by.
    scale : dict of str to float, optional
        Factors for candidates that were measured on a part of the work.
    """
    rows = []
    for name, values in times.items():
        part = (scale or {}).get(name, 1.0)
        base = (scale or {}).get(reference, 1.0)
        ratios = [
            part * value / (base * other)
            for value, other in zip(values, times[reference], strict=True)
        ]
        rows.append(
            {
                "name": name,
                "median_s": part * statistics.median(values),
                "min_s": part * min(values),
                "ratio": statistics.median(ratios),
                "rounds": len(values),
            }
        )
    return rows


def seconds(value):
    """Return a time with three digits and a unit that suits it."""
    if not value > 0:
        return f"{value:.3g} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size:
            return f"{factor(value / size)} {unit}"
    return f"{factor(value / 1e-9)} ns"


def factor(value):
    """Return a number with about three digits."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def table(header, rows):
    """Return a Markdown table, its columns aligned for reading as plain text."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(header))]

    def line(row):
        first, *rest = row
        parts = [first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]
        return "| " + " | ".join(parts) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def is_installed(module):
    """Return whether a top-level module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def write_json(path, data):
    """Write `data` as JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
