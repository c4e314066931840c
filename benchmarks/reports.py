"""What the benchmark scripts share besides timing: options, the machine's name, goals, tables."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from pathlib import Path

if __package__:  # imported as a part of the folder, by asv
    from . import measuring
else:
    import measuring

PACKAGES = ("fastgrad", "numpy", "numba", "tbb", "scipy", "torch", "jax", "scikit-learn")


def options(description, *, rounds):
    """Return a command line with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each (%(default)s)")
    # A turn of a tenth of a second is too short for threads that were asleep: JAX's iteration takes
    # 360 us after 14 ms of running, 240 us after 60 ms and 225 us after 140 ms. And the threads of
    # BLAS and OpenMP spin for a while after their last task, in the turn of whoever comes next.
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all results here")
    return parser


def is_installed(module):
    """Return whether a top-level module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def machine():
    """Print and return a description of the machine and of the packages that are installed."""
    installed = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    facts = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": measuring.allowed_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | versions,
    }
    print("{cpu}, {cores} cores, {threads} threads used, {system}".format(**facts))
    print(", ".join(map(" ".join, facts["versions"].items())) + "\n", flush=True)
    return facts


def cpu_model():
    """Return the name of the processor; on Linux with its family, model and widest vectors."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    facts = dict(re.findall(r"^(\S.*?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    parts = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    parts += [v for v in ("avx512f", "avx2") if v in facts.get("flags", "").split()][:1]
    return f"{facts.get('model name', platform.processor())} ({', '.join(parts)})"


class Goals:
    """Figures beside their goals, each printed as it comes."""

    def __init__(self, settings):
        self.settings = settings
        self.rows = []

    def add(self, what, value, goal, *, at_most=False, note=""):
        met = bool(value <= goal if at_most else value >= goal)
        self.rows.append({"what": what, "value": float(value), "goal": goal, "met": met})
        sign, verdict = "<=" if at_most else ">=", "ok" if met else "MISSED"
        print(f"{what:<66}{value:>8.3g} {sign} {goal:<8g}{verdict:<8}{note}", flush=True)

    def speed_up(self, what, ours, theirs, goal, *, part=1.0):
        """Time two takes in turn; theirs, on a part of the work, should take `goal` times ours."""
        takes = {"ours": ours, "theirs": theirs}
        times = measuring.in_turn(takes, self.settings.rounds, self.settings.turn)
        rows = measuring.summary(times, {"theirs": 1 / part})
        note = " / ".join(f"{seconds(row['shortest_s'])} (+{row['spread']:.0%})" for row in rows)
        self.add(what, rows[1]["ratio"], goal, note=note)

    def finish(self):
        """Write what ``--json`` asks for; return the exit status, 1 if a goal was missed."""
        if self.settings.json:
            write_json(self.settings.json, self.rows)
        return 0 if all(row["met"] for row in self.rows) else 1


def seconds(value):
    """Return a time with three digits and a unit that suits it."""
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
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first, *rest = widths
    cells.insert(1, [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in rest)])
    return "\n".join(
        "| " + " | ".join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]) + " |"
        for row in cells
    )


def write_json(path, data):
    """Write `data` as JSON."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
