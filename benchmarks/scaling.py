"""Measure how fastgrad's time grows with threads, batch, hidden units and inputs.

Run ``python benchmarks/scaling.py`` (``--help`` lists the options). One size varies at a time
around 784-50-10 with batches of 100 MNIST images; all sizes are timed in turn, in many short
rounds. The exponent p of time ~ size^p is fitted to the medians by least squares on logarithms,
once over all sizes and once over the larger half, where the fixed cost of a call weighs less.
The count of operations has exponent 1 in batch, hidden units and inputs; against threads, -1.
"""

import argparse
import contextlib
import math
import statistics
import sys

import numpy as np

if __package__:  # imported as a part of the folder, by asv
    from . import measuring
else:
    import measuring

PACKAGES = ("fastgrad", "numpy", "numba", "tbb")
CLASSES = 10
SEED = 7
BASE = {"batch": 100, "hidden": 50, "input": 784}
SIZES = {
    "batch": (25, 50, 100, 200, 400, 800),
    "hidden": (25, 50, 100, 200, 400),
    "input": (196, 392, 784, 1568, 3136),
}
QUICK_SIZES = {"batch": (50, 100, 200), "hidden": (25, 50, 100), "input": (392, 784, 1568)}
OPERATIONS = {"threads": -1.0, "batch": 1.0, "hidden": 1.0, "input": 1.0}
EXPONENTS = ("exponent", "exponent_large")
WORKS = ("gradient", "numerical_gradient", "fit")

#: An exponent above the operation count's by more than this is pointed out.
MARGIN = 0.1


def widened(x, inputs):
    """Return images with `inputs` pixels: those of `x`, repeated or thinned out evenly.

    The share of zeros stays about that of MNIST.
    """
    pixels = x.shape[1]
    if inputs >= pixels:
        return np.ascontiguousarray(x[:, np.arange(inputs) % pixels])
    return np.ascontiguousarray(x[:, np.linspace(0, pixels - 1, inputs).astype(int)])


def build(x, t, batch, hidden, work, seconds):
    """Return a measurement: the seconds for one gradient, or for one more iteration of a fit."""
    import fastgrad

    net = fastgrad.TwoLayerNet(x.shape[1], hidden, CLASSES, dtype=x.dtype, rng=SEED)
    if work != "fit":
        return measuring.calls(
            getattr(net, work), x[:batch].copy(), t[:batch].copy(), seconds=seconds
        )

    def fit(iterations, rng):
        net.fit(x, t, iterations=iterations, batch_size=batch, learning_rate=0.01, rng=rng)

    once = measuring.Iteration(fit, 50)()
    return measuring.Iteration(fit, int(np.clip(4 * seconds / once, 8, 20_000)))


def exponent(sizes, times):
    """Return the exponent p of time ~ size^p by least squares on logarithms.

    None if there is no line to fit: one size, or a difference between two fits lost in noise.
    """
    if len(sizes) < 2 or min(times) <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def scale_sizes(data, axis, sizes, work, settings):
    """Return the times of one kind of work against one size."""
    x, t = data
    measures = {}
    for size in sizes:
        shape = BASE | {axis: size}
        measures[size] = build(
            widened(x, shape["input"]), t, shape["batch"], shape["hidden"], work, settings.stretch
        )
    return measuring.in_turn(measures, settings.rounds, patience=settings.patience)


def scale_threads(data, sizes, work, settings):
    """Return the times of one kind of work against the number of threads."""
    x, t = data
    measures = {
        threads: measuring.with_threads(
            build(x, t, BASE["batch"], BASE["hidden"], work, settings.stretch), threads
        )
        for threads in sizes
    }
    return measuring.in_turn(measures, settings.rounds, patience=settings.patience)


def row_of(axis, work, times):
    """Return the result for one curve: medians and fitted exponents."""
    sizes = list(times)
    medians = [statistics.median(values) for values in times.values()]
    result = {
        "axis": axis,
        "work": work,
        "sizes": sizes,
        "median_s": medians,
        "min_s": [min(values) for values in times.values()],
        "operations": OPERATIONS[axis],
    }
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    result["exponent"] = exponent(sizes, medians)
    result["exponent_large"] = exponent(sizes[half:], medians[half:])
    return result


def show(axis, rows):
    """Print the curves along one axis."""
    header = [axis, *(f"{size:,}" for size in rows[0]["sizes"]), "exponent", "larger half"]
    cells = [
        [
            row["work"],
            *map(measuring.seconds, row["median_s"]),
            *("–" if row[key] is None else f"{row[key]:.2f}" for key in EXPONENTS),
        ]
        for row in rows
    ]
    fixed = ", ".join(f"{name} {size}" for name, size in BASE.items() if name != axis)
    print(f"### Time against {axis} ({fixed})\n\n{measuring.table(header, cells)}\n")
    for row in rows:
        if (row["exponent_large"] or row["operations"]) > row["operations"] + MARGIN:
            print(
                f"{row['work']} grows faster than its operations: exponent "
                f"{row['exponent_large']:.2f} against {row['operations']:g}.\n"
            )
    sys.stdout.flush()


def draw(results, title, path):
    """Draw each axis as a panel, time against size, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    axes_names = list(dict.fromkeys(row["axis"] for row in results))
    figure, panels = plt.subplots(
        1,
        len(axes_names),
        figsize=(3.4 * len(axes_names), 4.4),
        squeeze=False,
        layout="constrained",
    )
    for panel, name in zip(panels.flat, axes_names, strict=True):
        rows = [row for row in results if row["axis"] == name]
        sizes = rows[0]["sizes"]
        for row in rows:
            panel.plot(
                sizes,
                [1e6 * value for value in row["median_s"]],
                marker="o",
                markersize=4,
                label=row["work"] + ": {:.2f}".format(row["exponent_large"] or math.nan),
            )
        first = [1e6 * row["median_s"][-1] for row in rows]
        middle = math.exp(sum(map(math.log, first)) / len(first)) if min(first) > 0 else 1.0
        panel.plot(
            sizes,
            [middle * (size / sizes[-1]) ** rows[0]["operations"] for size in sizes],
            color="0.7",
            linestyle="--",
            zorder=0,
            label=f"operations: {rows[0]['operations']:g}",
        )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel({"input": "inputs", "hidden": "hidden units"}.get(name, name))
        panel.tick_params(axis="y", labelsize=8)
        panel.legend(
            fontsize=7,
            title="exponent, larger half",
            title_fontsize=7,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("µs, median")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(
        description="Measure how fastgrad's time grows with threads, batch, hidden units, inputs."
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument(
        "--axis", nargs="+", choices=("threads", *SIZES), default=["threads", *SIZES]
    )
    parser.add_argument("--threads", type=int, default=2, help="most cores to use (2)")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on (10000)")
    parser.add_argument("--rounds", type=int, help="measurements of each size (9)")
    measuring.add_patience(parser)
    measuring.add_taking(parser)
    parser.add_argument("--json", metavar="FILE", help="write all results here")
    parser.add_argument("--png", metavar="FILE", help="draw the results here")
    parser.add_argument("--quick", action="store_true", help="three sizes each, few rounds")
    settings = parser.parse_args(argv)
    measuring.TAKING = settings.taking
    settings.rounds = settings.rounds or (3 if settings.quick else 9)
    settings.stretch = 0.01 if settings.quick else 0.03
    return settings


def main(argv=None):
    settings = parse(argv)
    measuring.limit_threads(settings.threads)
    neighbours = measuring.Neighbours()
    facts = measuring.machine(PACKAGES)
    print(f"{measuring.describe(facts)}\n{settings.dtype}\n", flush=True)

    import fastgrad

    (x, t), _ = fastgrad.load_mnist()
    data = (
        x[: settings.images].astype(settings.dtype, copy=False),
        t[: settings.images].astype(np.int64),
    )
    results = []
    for axis in settings.axis:
        if axis == "threads":
            sizes = range(1, facts["threads"] + 1)
        else:
            sizes = (QUICK_SIZES if settings.quick else SIZES)[axis]
        rows = []
        for work in settings.work:
            if axis == "threads":
                times = scale_threads(data, sizes, work, settings)
            else:
                times = scale_sizes(data, axis, sizes, work, settings)
            rows.append(row_of(axis, work, times))
        show(axis, rows)
        results += rows
    print(neighbours.warning(), end="")
    facts["other_processes"] = neighbours.share()
    if settings.json:
        measuring.write_json(
            settings.json, {"machine": facts, "dtype": settings.dtype, "results": results}
        )
    if settings.png:
        title = f"{facts['cpu']}, up to {facts['threads']} threads, {settings.dtype}"
        draw(results, title, settings.png)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
