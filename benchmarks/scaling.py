"""Measure how fastgrad's time grows with threads, batch, hidden units and inputs.

Run ``python benchmarks/scaling.py`` (``--help`` lists the options). One size varies at a time
around 784-50-10 with batches of 100 MNIST images; all sizes are timed in turn. The exponent p of
time ~ size^p is fitted by least squares on logarithms, once over all sizes and once over the larger
half, where the fixed cost of a call weighs less. The count of operations has exponent 1 in batch,
hidden units and inputs; against threads, -1.
"""

import contextlib
import sys

import numpy as np

if __package__:  # imported as a part of the folder, by asv
    from . import measuring, reports
else:
    import measuring
    import reports

CLASSES = 10
SEED = 7
BASE = {"batch": 100, "hidden": 50, "input": 784}
SIZES = {
    "batch": (25, 50, 100, 200, 400, 800),
    "hidden": (25, 50, 100, 200, 400),
    "input": (196, 392, 784, 1568, 3136),
}
OPERATIONS = {"threads": -1.0, "batch": 1.0, "hidden": 1.0, "input": 1.0}
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


def build(x, t, batch, hidden, work):
    """Return a take of one gradient, or of one more iteration of a fit."""
    import fastgrad

    net = fastgrad.TwoLayerNet(x.shape[1], hidden, CLASSES, dtype=x.dtype, rng=SEED)
    if work != "fit":
        return measuring.calls(getattr(net, work), x[:batch].copy(), t[:batch].copy())

    def fit(iterations, rng):
        net.fit(x, t, iterations=iterations, batch_size=batch, learning_rate=0.01, rng=rng)

    # Of some 100 ms, in stretches of up to 25: how near virtual cores are to each other changes
    # within tenths of a second.
    once = measuring.Iteration(fit, 50)()
    return measuring.Iteration(fit, int(np.clip(0.1 / once, 8, 20_000)))


def times_against(axis, sizes, x, t, work, settings):
    """Return the shortest time of one kind of work for each of the sizes."""
    takes = {}
    for size in sizes:
        shape = BASE | ({} if axis == "threads" else {axis: size})
        take = build(widened(x, shape["input"]), t, shape["batch"], shape["hidden"], work)
        takes[size] = measuring.with_threads(take, size) if axis == "threads" else take
    times = measuring.in_turn(takes, settings.rounds, settings.turn)
    return {size: min(turns) for size, turns in times.items()}


def exponent(times):
    """Return the exponent p of time ~ size^p by least squares on logarithms, None for one size."""
    if len(times) < 2:
        return None
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def row_of(axis, work, times):
    """Return the result for one curve: times and fitted exponents."""
    half = len(times) // 2 if len(times) > 3 else 0
    return {
        "axis": axis,
        "work": work,
        "sizes": list(times),
        "shortest_s": list(times.values()),
        "operations": OPERATIONS[axis],
        "exponent": exponent(times),
        "exponent_large": exponent(dict(list(times.items())[half:])),
    }


def show(axis, rows):
    """Print the curves along one axis."""
    header = [axis, *(f"{size:,}" for size in rows[0]["sizes"]), "exponent", "larger half"]
    cells = []
    for row in rows:
        exponents = [row["exponent"], row["exponent_large"]]
        cells.append([row["work"], *map(reports.seconds, row["shortest_s"])])
        cells[-1] += ["–" if value is None else f"{value:.2f}" for value in exponents]
    fixed = ", ".join(f"{name} {size}" for name, size in BASE.items() if name != axis)
    print(f"### Time against {axis} ({fixed})\n\n{reports.table(header, cells)}\n")
    for row in rows:
        large, operations = row["exponent_large"], row["operations"]
        if large is not None and large > operations + MARGIN:
            print(
                f"{row['work']} grows faster than its operations: exponent "
                f"{large:.2f} against {operations:g}.\n"
            )
    sys.stdout.flush()


def draw(results, title, path):
    """Draw each axis as a panel, time against size, both logarithmic."""
    from matplotlib import pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in results))
    size = (3.4 * len(axes), 3.6)
    figure, panels = plt.subplots(1, len(axes), figsize=size, squeeze=False, layout="constrained")
    for panel, name in zip(panels.flat, axes, strict=True):
        for row in results:
            if row["axis"] == name:
                panel.loglog(row["sizes"], row["shortest_s"], marker="o", label=row["work"])
        panel.set_xlabel({"input": "inputs", "hidden": "hidden units"}.get(name, name))
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("seconds")
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(argv):
    """Return the options."""
    parser = reports.options(__doc__, rounds=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    axes = ("threads", *SIZES)
    parser.add_argument("--axis", nargs="+", choices=axes, default=axes)
    parser.add_argument("--images", type=int, default=10_000, help="to train on (%(default)s)")
    parser.add_argument("--png", metavar="FILE", help="draw the results here")
    return parser.parse_args(argv)


def main(argv=None):
    settings = parse(argv)
    measuring.limit_threads(settings.threads)
    facts = reports.machine()

    import fastgrad

    (x, t), _ = fastgrad.load_mnist()
    x, t = x[: settings.images].astype(settings.dtype, copy=False), t[: settings.images]
    results = []
    for axis in settings.axis:
        sizes = range(1, facts["threads"] + 1) if axis == "threads" else SIZES[axis]
        rows = [
            row_of(axis, work, times_against(axis, sizes, x, t, work, settings))
            for work in settings.work
        ]
        show(axis, rows)
        results += rows
    if settings.json:
        everything = {"machine": facts, "dtype": settings.dtype, "results": results}
        reports.write_json(settings.json, everything)
    if settings.png:
        draw(results, f"{facts['cpu']}, {settings.dtype}", settings.png)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
