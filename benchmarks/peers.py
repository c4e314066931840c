"""Time fastgrad and its alternatives side by side on the same work.

Run ``python benchmarks/peers.py`` (``--help`` lists the options). Everything is measured in one
process and in turn (`measuring`):

- an iteration of training (gather of a random batch of MNIST, forward, loss, backward, update);
- one call of `gradient` from Python;
- the numerical gradient of all parameters.

One thread against many is in `scaling`, the dense products and single functions in `functions`,
convolutional networks are in `convolution`.

Every candidate gets the same batches in the same dtype and must first reach the same weights and
the same loss as the textbook in float64; one that does not is named and not timed, and the script
ends with status 1. Alternatives that are not installed are named and skipped
(``pip install fastgrad[peers]`` brings them).
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable

import numpy as np

if __package__:  # imported as a part of the folder, by asv
    from . import measuring, reports, textbook
else:
    import measuring
    import reports
    import textbook

CLASSES = 10
SEED = 7
LEARNING_RATE = 0.1

#: Largest deviation from the textbook in float64, of the weights as a part of the distance that
#: they have moved and of the loss as a part of the loss.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


# --- one iteration of training ---------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Problem:
    """What a candidate trains on: data, starting weights, and the batches of one stretch."""

    x: np.ndarray
    t: np.ndarray
    hidden: int
    batch: int
    steps: int

    def __post_init__(self):
        # As a fit draws them that is timed.
        self.indices = measuring.Clock(SEED).integers(len(self.x), (self.steps, self.batch))
        self.params = textbook.initial_params(
            self.x.shape[1], self.hidden, CLASSES, self.x.dtype, seed=SEED
        )

    def fresh_params(self):
        return {key: value.copy() for key, value in self.params.items()}


@functools.lru_cache(maxsize=2)  # both kinds of one problem
def trained(problem, exact):
    """Return the weights that a problem's stretch ends with, by the textbook in float64.

    The book's gradient leaves a part of the loss's derivative out; `exact` does not.
    """
    params = {key: value.astype(np.float64) for key, value in problem.params.items()}
    for index in problem.indices:
        x, t = problem.x[index].astype(np.float64), problem.t[index]
        textbook.training_step(params, x, t, LEARNING_RATE, exact=exact)
    return params


@dataclasses.dataclass
class Candidate:
    """A way to train: `run` takes the problem's steps from the weights that `params` returns."""

    run: Callable
    params: Callable
    exact: bool = False
    take: Callable | None = None


def fastgrad_fit(problem):
    """`TwoLayerNet.fit`. It draws its batches itself, while the others get them drawn.

    What it prepares once, before the first iteration, is reported beside the iteration.
    """
    import fastgrad

    x = problem.x
    net = fastgrad.TwoLayerNet(x.shape[1], problem.hidden, CLASSES, dtype=x.dtype)
    net.params.update(problem.fresh_params())

    def fit(iterations, rng):
        net.fit(
            x,
            problem.t,
            iterations=iterations,
            batch_size=problem.batch,
            learning_rate=LEARNING_RATE,
            rng=rng,
        )

    return Candidate(
        run=lambda: fit(problem.steps, measuring.Clock(SEED)),
        params=lambda: net.params,
        exact=True,
        take=measuring.Iteration(fit, 4 * problem.steps, SEED),
    )


def numpy_loop(problem):
    """Take the textbook's steps in a Python loop."""
    weights = problem.fresh_params()

    def run():
        for index in problem.indices:
            # `take` gathers rows faster than x[index]: 240 against 260 us for the iteration
            # with 50 units and 100 float32 samples.
            x, t = problem.x.take(index, axis=0), problem.t[index]
            textbook.training_step(weights, x, t, LEARNING_RATE)

    return Candidate(run, lambda: weights)


def torch_eager(problem):
    """PyTorch as its tutorials write it: `nn.Sequential`, `cross_entropy`, `optim.SGD`."""
    torch = import_torch()
    x, t, *indices = map(torch.from_numpy, (problem.x, problem.t, *problem.indices))
    first = torch.nn.Linear(x.shape[1], problem.hidden, dtype=x.dtype)
    second = torch.nn.Linear(problem.hidden, CLASSES, dtype=x.dtype)
    layers = {"1": first, "2": second}
    with torch.no_grad():
        for k, layer in layers.items():
            layer.weight.copy_(torch.from_numpy(problem.params["W" + k].T))
            layer.bias.copy_(torch.from_numpy(problem.params["b" + k]))
    model = torch.nn.Sequential(first, torch.nn.Sigmoid(), second)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def run():
        for index in indices:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[index]), t[index]).backward()
            optimizer.step()

    def params():
        weights = {"W" + k: layer.weight.detach().numpy().T for k, layer in layers.items()}
        return weights | {"b" + k: layer.bias.detach().numpy() for k, layer in layers.items()}

    return Candidate(run, params)


def torch_lean(problem):
    """PyTorch eager with the overhead of modules and optimizers taken out by hand."""
    torch = import_torch()
    x, t, *indices = map(torch.from_numpy, (problem.x, problem.t, *problem.indices))
    weights = {k: torch.from_numpy(v).requires_grad_() for k, v in problem.fresh_params().items()}

    def run():
        W1, b1, W2, b2 = arrays = list(weights.values())
        for index in indices:
            z = torch.sigmoid(torch.addmm(b1, x.index_select(0, index), W1))
            a = torch.addmm(b2, z, W2)
            loss = torch.nn.functional.cross_entropy(a, t.index_select(0, index))
            grads = torch.autograd.grad(loss, arrays)
            with torch.no_grad():
                torch._foreach_add_(arrays, grads, alpha=-LEARNING_RATE)

    return Candidate(run, lambda: {key: array.detach().numpy() for key, array in weights.items()})


def jax_stepwise(problem, *, scan=False):
    """JAX, one jitted step a call: gather, value and gradient, update; weights donated."""
    jax = import_jax()
    jnp = jax.numpy
    x, t = jnp.asarray(problem.x), jnp.asarray(problem.t.astype(np.int32))
    indices = jnp.asarray(problem.indices.astype(np.int32))
    weights = {key: jnp.array(value) for key, value in problem.params.items()}

    def step(weights, x, t, index):
        value, grads = jax.value_and_grad(jax_loss)(weights, x[index], t[index])
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, grads), value

    def many(weights, x, t, indices):
        return jax.lax.scan(lambda w, index: step(w, x, t, index), weights, indices)

    compiled = jax.jit(many if scan else step, donate_argnums=0)
    calls = [indices] if scan else list(indices)

    def run():
        nonlocal weights
        for index in calls:
            weights, value = compiled(weights, x, t, index)
        value.block_until_ready()

    return Candidate(run, lambda: {key: np.asarray(value) for key, value in weights.items()})


def sklearn_mlp(problem):
    """scikit-learn's `MLPClassifier`: one `partial_fit` over the stretch, cut into its batches.

    One call for all steps, so that the checks of its inputs are paid once. It keeps the dtype of
    the data.
    """
    from sklearn.neural_network import MLPClassifier

    order = problem.indices.ravel()
    model = MLPClassifier(
        hidden_layer_sizes=(problem.hidden,),
        activation="logistic",
        solver="sgd",
        alpha=0.0,
        batch_size=problem.batch,
        learning_rate_init=LEARNING_RATE,
        momentum=0.0,
        nesterovs_momentum=False,
        shuffle=False,
    )

    def run():
        model.partial_fit(problem.x.take(order, axis=0), problem.t[order], classes=range(CLASSES))

    def params():
        (W1, W2), (b1, b2) = model.coefs_, model.intercepts_
        return {"W1": W1, "b1": b1, "W2": W2, "b2": b2}

    run()  # allocates the weights
    for key, array in params().items():
        array[...] = problem.params[key]
    return Candidate(run, params)


#: By name: the module that a candidate needs, and what builds it. The others' times are given as
#: multiples of the first one's.
CANDIDATES = {
    "fastgrad fit": ("fastgrad", fastgrad_fit),
    "NumPy, textbook loop": ("numpy", numpy_loop),
    "PyTorch eager": ("torch", torch_eager),
    "PyTorch eager, no modules": ("torch", torch_lean),
    "JAX, jitted step": ("jax", jax_stepwise),
    "JAX, lax.scan": ("jax", functools.partial(jax_stepwise, scan=True)),
    "scikit-learn MLPClassifier": ("sklearn", sklearn_mlp),
}


@functools.cache
def import_torch():
    """Return torch, limited to the threads of this process."""
    import torch

    torch.set_num_threads(measuring.allowed_cores())
    return torch


@functools.cache
def import_jax():
    """Return jax, on the CPU and with float64 switched on (float32 arrays stay float32)."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def jax_loss(params, x, t, delta=0.0):
    """Return the loss for labels `t`, as JAX's users write it or, with delta, as the book does."""
    jax = import_jax()
    a = jax.nn.sigmoid(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]
    logs = jax.numpy.log(jax.nn.softmax(a) + delta) if delta else jax.nn.log_softmax(a)
    return -jax.numpy.take_along_axis(logs, t[:, None], axis=1).mean()


def deviation(problem, candidate):
    """Return how far a candidate's stretch ends from the textbook's: loss, and weights."""
    candidate.run()
    found = {key: np.asarray(value, np.float64) for key, value in candidate.params().items()}
    expected = trained(problem, candidate.exact)
    x, t = problem.x[problem.indices[0]].astype(np.float64), problem.t[problem.indices[0]]
    wanted = textbook.loss(expected, x, t)
    loss = abs(textbook.loss(found, x, t) - wanted) / wanted
    weights = max(
        np.abs(found[key] - value).max() / np.abs(value - problem.params[key]).max()
        for key, value in expected.items()
    )
    # A NaN compares false with everything; as infinity it is refused.
    return [float(np.nan_to_num(value, nan=np.inf)) for value in (loss, weights)]


def steps_for(x, t, hidden, batch, seconds):
    """Return the number of textbook steps that take about `seconds`."""
    loop = numpy_loop(Problem(x, t, hidden, batch, 4))
    loop.run()
    return int(np.clip(4 * seconds / measuring.stretch(loop.run)(), 4, 400))


def compare_training(report, x, t, settings, *, hidden, batch):
    """Time an iteration of every candidate on one shape of network and batch."""
    problem = Problem(x, t, hidden, batch, steps_for(x, t, hidden, batch, settings.stretch))
    case = {"group": "training", "hidden": hidden, "batch": batch, "dtype": x.dtype.name}
    takes = {}
    for name, (module, build) in CANDIDATES.items():
        if module not in settings.modules:
            continue
        candidate = build(problem)
        loss, weights = deviation(problem, candidate)
        if max(loss, weights) > TOLERANCE[x.dtype.name]:
            report.refuse(name, case, f"loss off by {loss:.1e}, weights by {weights:.1e}")
            continue
        takes[name] = candidate.take or measuring.stretch(candidate.run, problem.steps)
    report.time(f"Training iteration, 784-{hidden}-10, batch {batch}", case, takes)
    for name, take in takes.items():
        if hasattr(take, "startup"):
            print(f"{name}: {reports.seconds(take.startup)} before its first iteration.\n")


# --- single calls ----------------------------------------------------------------------------


def network_of(params):
    """Return a fastgrad network with copies of these parameters."""
    import fastgrad

    (inputs, hidden), dtype = params["W1"].shape, params["W1"].dtype
    net = fastgrad.TwoLayerNet(inputs, hidden, CLASSES, dtype=dtype)
    net.params.update({key: value.copy() for key, value in params.items()})
    return net


def compare_gradient(report, x, t):
    """Time one call of `gradient` against the same in NumPy."""
    x, t = x[:100].copy(), t[:100].copy()
    params = textbook.initial_params(x.shape[1], 50, CLASSES, x.dtype, seed=SEED)
    net = network_of(params)
    case = {"group": "gradient", "hidden": 50, "batch": 100, "dtype": x.dtype.name}
    exact = textbook.gradient(params, x, t, exact=True)[1]
    if not same_arrays(net.gradient(x, t), exact, TOLERANCE[x.dtype.name]):
        report.refuse("fastgrad gradient", case, "differs from the NumPy expression")
        return
    takes = {
        "fastgrad gradient": measuring.calls(net.gradient, x, t),
        "NumPy expression": measuring.calls(textbook.gradient, params, x, t),
    }
    report.time("One gradient from Python, 784-50-10, batch 100", case, takes)


def same_arrays(found, expected, tolerance):
    """Return whether arrays agree, relative to the largest entry of each."""
    return all(
        np.shape(found[key]) == value.shape
        and np.abs(found[key] - value).max() <= tolerance * np.abs(value).max()
        for key, value in expected.items()
    )


# --- the numerical gradient ------------------------------------------------------------------


def compare_numerical(report, x, t, settings, *, hidden=50, batch=100, h=1e-4):
    """Time the numerical gradient of all parameters.

    The alternatives are timed on a random sample of the parameters, of which each costs the
    same, and their times multiplied up. Their float32 is not timed: a difference of two rounded
    losses leaves no correct digit of most entries.
    """
    x, t, dtype = x[:batch].copy(), t[:batch].copy(), x.dtype.name
    params = textbook.initial_params(x.shape[1], hidden, CLASSES, x.dtype, seed=SEED)
    net = network_of(params)
    total = sum(value.size for value in params.values())
    case = {"group": "numerical gradient", "hidden": hidden, "batch": batch, "dtype": dtype}
    positions = textbook.random_positions(params, settings.sample, seed=SEED)
    in_float64 = {key: value.astype(np.float64) for key, value in params.items()}
    exact = pick(textbook.gradient(in_float64, x.astype(np.float64), t, exact=True)[1], positions)

    ours = "fastgrad numerical_gradient"
    functions = {ours: lambda: net.numerical_gradient(x, t, h)}
    if dtype == "float64":
        for name, (module, build) in NUMERICAL.items():
            if module in settings.modules:
                functions[name] = build(params, x, t, positions, h)
    takes, scale, errors = {}, {}, {}
    for name, function in functions.items():
        result = function()
        found = pick(result, positions) if name == ours else np.asarray(result)
        error = float(np.nan_to_num(np.abs(found - exact).max() / np.abs(exact).max(), nan=np.inf))
        if error > 1e-4:
            report.refuse(name, case, f"off by {error:.1e} of the largest entry")
            continue
        takes[name] = measuring.calls(function, seconds=settings.stretch)
        scale[name] = 1.0 if name == ours else total / len(positions)
        errors[name] = error
    title = f"Numerical gradient of {total:,} parameters, 784-{hidden}-10, batch {batch}"
    report.time(title, case, takes, scale=scale, errors=errors)
    print(
        f"The others' times are extrapolated from {len(positions)} parameters, drawn at random. "
        "Error: largest deviation\nfrom the exact gradient, as a part of its largest entry.\n"
    )


def pick(grads, positions):
    """Return the entries of gradients at some positions."""
    return np.array([grads[name].reshape(-1)[i] for name, i in positions])


def textbook_numerical(params, x, t, positions, h):
    """Return the book's loop."""
    own = {key: value.copy() for key, value in params.items()}
    return lambda: textbook.numerical_gradient(own, x, t, positions, h)


def scipy_numerical(params, x, t, positions, h):
    """Return SciPy's three-point differences.

    `approx_derivative` sees a function of the sampled parameters alone, which spares it the
    copies of a vector of all parameters.
    """
    from scipy.optimize._numdiff import approx_derivative

    own = {key: value.copy() for key, value in params.items()}
    cells = [(own[name].reshape(-1), i) for name, i in positions]
    start = np.array([array[i] for array, i in cells])

    def loss(values):
        for (array, i), value in zip(cells, values, strict=True):
            array[i] = value
        return textbook.loss(own, x, t)

    return lambda: approx_derivative(loss, start, method="3-point", abs_step=h)


def jax_numerical(params, x, t, positions, h, block=32):
    """Return JAX's differences, `vmap` over blocks of parameters."""
    jax = import_jax()
    from jax.flatten_util import ravel_pytree

    flat, unravel = ravel_pytree(params)  # keys in sorted order
    sizes = [params[key].size for key in sorted(params)]
    offsets = dict(zip(sorted(params), np.cumsum([0, *sizes]), strict=False))
    where = np.array([offsets[name] + i for name, i in positions], np.int32)
    blocks = [jax.numpy.asarray(b) for b in np.split(where, range(block, len(where), block))]
    on_device = (jax.numpy.asarray(x), jax.numpy.asarray(t.astype(np.int32)))

    def one(i, flat, x, t):
        above = jax_loss(unravel(flat.at[i].add(h)), x, t, textbook.DELTA)
        below = jax_loss(unravel(flat.at[i].add(-h)), x, t, textbook.DELTA)
        return (above - below) / (2 * h)

    many = jax.jit(jax.vmap(one, in_axes=(0, None, None, None)))
    return lambda: np.concatenate([np.asarray(many(b, flat, *on_device)) for b in blocks])


NUMERICAL = {
    "textbook loop": ("numpy", textbook_numerical),
    "SciPy approx_derivative, 3-point": ("scipy", scipy_numerical),
    "JAX, vmap over parameters": ("jax", jax_numerical),
}


# --- report ----------------------------------------------------------------------------------


class Report:
    """Times candidates, prints each result as it comes, and keeps it for JSON."""

    def __init__(self, settings):
        self.settings = settings
        self.results, self.skipped, self.refused = [], {}, []

    def skip(self, name, reason):
        if name not in self.skipped:
            self.skipped[name] = reason
            print(f"Skipped: {name}: {reason}\n", flush=True)

    def refuse(self, name, case, reason):
        self.refused.append({"name": name, "case": case, "reason": reason})
        print(f"Refused to time: {name}, {case}: {reason}\n", flush=True)

    def time(self, title, case, takes, *, scale=None, errors=None):
        """Take times in turn and print them, beside the candidates' errors if there are any."""
        times = measuring.in_turn(takes, self.settings.rounds, self.settings.turn)
        rows = measuring.summary(times, scale)
        header = ["", "shortest", "spread", f"× {rows[0]['name']}"] + ["error"] * bool(errors)
        cells = []
        for row in rows:
            shortest, ratio = reports.seconds(row["shortest_s"]), reports.factor(row["ratio"])
            cells.append([row["name"], shortest, f"{row['spread']:.0%}", ratio])
            if errors:
                row["error"] = errors[row["name"]]
                cells[-1].append(f"{row['error']:.0e}")
        self.results += [case | {"title": title} | row for row in rows]
        print(f"### {title}, {case['dtype']}\n\n{reports.table(header, cells)}\n", flush=True)


# --- command line ----------------------------------------------------------------------------

GROUPS = ("training", "gradient", "numerical")
PEERS = ("numpy", "torch", "jax", "sklearn", "scipy")


def parse(argv):
    """Return the options."""
    parser = reports.options(__doc__, rounds=10)
    parser.add_argument("--hidden", type=int, nargs="+", default=[50, 200], help="(50 200)")
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 1000], help="(100 1000)")
    both = list(TOLERANCE)
    parser.add_argument("--dtype", nargs="+", choices=both, default=both, help="(both)")
    parser.add_argument("--peers", nargs="*", default=PEERS, help=f"({' '.join(PEERS)})")
    parser.add_argument("--images", type=int, default=60_000, help="to train on (%(default)s)")
    parser.add_argument("--no-zeros", action="store_true", help="make every pixel 0.1 brighter")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="(all)")
    settings = parser.parse_args(argv)
    #: Seconds of a take, and parameters of which the alternatives' differences are timed.
    settings.stretch, settings.sample = 0.04, 192
    return settings


def available(asked):
    """Return the modules that can be timed, and why those that were asked for besides cannot."""
    found, skipped = {"fastgrad"}, {}
    for module in asked:
        if module not in PEERS:
            skipped[module] = "is not known"
        elif not reports.is_installed(module):
            skipped[module] = "is not installed"
        else:
            found.add(module)
    return found, skipped


def main(argv=None):
    settings = parse(argv)
    measuring.limit_threads(settings.threads)
    facts, report = reports.machine(), Report(settings)
    settings.modules, skipped = available(settings.peers)
    for module, reason in skipped.items():
        report.skip(module, reason)

    import fastgrad

    (images, labels), _ = fastgrad.load_mnist()
    images = images[: settings.images] + np.float32(0.1 if settings.no_zeros else 0)
    t = labels[: settings.images].astype(np.int64)
    for dtype in settings.dtype:
        x = images.astype(dtype, copy=False)
        if "training" in settings.only:
            for hidden in settings.hidden:
                for batch in settings.batch:
                    compare_training(report, x, t, settings, hidden=hidden, batch=batch)
        if "gradient" in settings.only:
            compare_gradient(report, x, t)
        if "numerical" in settings.only:
            compare_numerical(report, x, t, settings)
    if settings.json:
        kept = ("results", "skipped", "refused")
        everything = {"machine": facts} | {name: getattr(report, name) for name in kept}
        reports.write_json(settings.json, everything)
    return 1 if report.refused else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
