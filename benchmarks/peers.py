"""Time fastgrad and its alternatives side by side on the same work.

Run ``python benchmarks/peers.py`` (``--help`` lists the options). Everything is measured in one
process and in turn, A B C A B C ..., in many short rounds:

- an iteration of training (gather of a random batch of MNIST, forward, loss, backward, update);
- one call of `gradient` from Python, and the dense affine products alone;
- the numerical gradient of all parameters;
- all threads against one;
- the peak memory of `fit` (in a process of its own).

Every candidate gets the same batches in the same dtype and must first reach the same weights and
the same loss as the textbook in float64; one that does not is named and not timed, and the script
ends with status 1. Alternatives that are not installed are named and skipped
(``pip install fastgrad[peers]`` brings them).
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import json
import subprocess
import sys

import numpy as np

if __package__:  # imported as a part of the folder, by asv
    from . import measuring, textbook
else:
    import measuring
    import textbook

PACKAGES = ("fastgrad", "numpy", "numba", "tbb", "scipy", "torch", "jax", "scikit-learn")
CLASSES = 10
SEED = 7
LEARNING_RATE = 0.1

#: Largest deviation from the textbook in float64, of the weights as a part of the distance that
#: they have moved and of the loss as a part of the loss.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


# --- one iteration of training ---------------------------------------------------------------


@dataclasses.dataclass
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

    @functools.cached_property
    def expected(self):
        """The weights that a stretch ends with, by the textbook in float64."""
        return self._trained(exact=False)

    @functools.cached_property
    def exactly(self):
        """The same along the loss's exact derivative, which the book's leaves a part of out."""
        return self._trained(exact=True)

    def _trained(self, *, exact):
        params = {key: value.astype(np.float64) for key, value in self.params.items()}
        for index in self.indices:
            x, t = self.x[index].astype(np.float64), self.t[index]
            textbook.training_step(params, x, t, LEARNING_RATE, exact=exact)
        return params

    @functools.cached_property
    def on_jax(self):
        """The data as arrays of JAX, shared by its candidates."""
        jnp = import_jax().numpy
        return jnp.asarray(self.x), jnp.asarray(self.t.astype(np.int32))


class Candidate:
    """A way to train. `run` takes the problem's stretch of steps from the weights it has."""

    name: str
    module: str
    #: Whether it follows the exact derivative of log(y + delta), as the textbook does not.
    exact = False

    def measurement(self):
        return measuring.stretch(self.run, self.problem.steps)


class Fastgrad(Candidate):
    """`TwoLayerNet.fit`: the seconds for one more iteration of a long fit.

    A fit also prepares once (it looks for zeros in the data, say), which is measured as the fit's
    start-up and reported beside. The draw of the batches counts here; the others get them drawn.
    """

    name = "fastgrad fit"
    module = "fastgrad"
    exact = True

    def __init__(self, problem):
        import fastgrad

        self.problem = problem
        self.net = fastgrad.TwoLayerNet(
            problem.x.shape[1], problem.hidden, CLASSES, dtype=problem.x.dtype
        )
        self.net.params.update(problem.fresh_params())

    def fit(self, iterations, rng):
        self.net.fit(
            self.problem.x,
            self.problem.t,
            iterations=iterations,
            batch_size=self.problem.batch,
            learning_rate=LEARNING_RATE,
            rng=rng,
        )

    def run(self):
        self.fit(self.problem.steps, measuring.Clock(SEED))

    def params(self):
        return self.net.params

    def measurement(self, taking=None):
        return measuring.Iteration(self.fit, 4 * self.problem.steps, SEED, taking=taking)


class NumPyLoop(Candidate):
    """The textbook's step in a Python loop."""

    name = "NumPy, textbook loop"
    module = "numpy"

    def __init__(self, problem):
        self.problem = problem
        self.weights = problem.fresh_params()

    def run(self):
        x, t = self.problem.x, self.problem.t
        for index in self.problem.indices:
            # `take` gathers rows faster than x[index]: 240 against 260 us for the iteration
            # with 50 units and 100 float32 samples.
            textbook.training_step(self.weights, x.take(index, axis=0), t[index], LEARNING_RATE)

    def params(self):
        return self.weights


class TorchEager(Candidate):
    """PyTorch as its tutorials write it: `nn.Sequential`, `cross_entropy`, `optim.SGD`."""

    name = "PyTorch eager"
    module = "torch"

    def __init__(self, problem):
        torch = import_torch()
        self.problem = problem
        self.x, self.t = torch.from_numpy(problem.x), torch.from_numpy(problem.t)
        self.indices = [torch.from_numpy(index) for index in problem.indices]
        first = torch.nn.Linear(problem.x.shape[1], problem.hidden, dtype=self.x.dtype)
        second = torch.nn.Linear(problem.hidden, CLASSES, dtype=self.x.dtype)
        with torch.no_grad():
            for layer, k in ((first, "1"), (second, "2")):
                layer.weight.copy_(torch.from_numpy(problem.params["W" + k].T))
                layer.bias.copy_(torch.from_numpy(problem.params["b" + k]))
        self.layers = {"1": first, "2": second}
        self.model = torch.nn.Sequential(first, torch.nn.Sigmoid(), second)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.loss = torch.nn.functional.cross_entropy

    def run(self):
        for index in self.indices:
            self.optimizer.zero_grad()
            value = self.loss(self.model(self.x[index]), self.t[index])
            value.backward()
            self.optimizer.step()

    def params(self):
        found = {}
        for k, layer in self.layers.items():
            found["W" + k] = layer.weight.detach().numpy().T
            found["b" + k] = layer.bias.detach().numpy()
        return found


class TorchLean(Candidate):
    """PyTorch eager with the overhead of modules and optimizers taken out by hand."""

    name = "PyTorch eager, no modules"
    module = "torch"

    def __init__(self, problem):
        self.torch = torch = import_torch()
        self.problem = problem
        self.x, self.t = torch.from_numpy(problem.x), torch.from_numpy(problem.t)
        self.indices = [torch.from_numpy(index) for index in problem.indices]
        self.weights = {
            key: torch.from_numpy(value).requires_grad_()
            for key, value in problem.fresh_params().items()
        }

    def run(self):
        torch, weights = self.torch, list(self.weights.values())
        W1, b1, W2, b2 = weights
        for index in self.indices:
            z = torch.sigmoid(torch.addmm(b1, self.x.index_select(0, index), W1))
            value = torch.nn.functional.cross_entropy(
                torch.addmm(b2, z, W2), self.t.index_select(0, index)
            )
            grads = torch.autograd.grad(value, weights)
            with torch.no_grad():
                torch._foreach_add_(weights, grads, alpha=-LEARNING_RATE)

    def params(self):
        return {key: value.detach().numpy() for key, value in self.weights.items()}


class JaxStep(Candidate):
    """JAX, one jitted step a call: gather, value and gradient, update; weights donated."""

    name = "JAX, jitted step"
    module = "jax"

    def __init__(self, problem):
        jax = import_jax()
        self.problem = problem
        self.x, self.t = problem.on_jax
        self.weights = {k: jax.numpy.array(v) for k, v in problem.params.items()}
        self.indices = [jax.numpy.asarray(i) for i in problem.indices.astype(np.int32)]
        self.step = jax.jit(jax_step, donate_argnums=0)

    def run(self):
        for index in self.indices:
            self.weights, value = self.step(self.weights, self.x, self.t, index)
        value.block_until_ready()

    def params(self):
        return {key: np.asarray(value) for key, value in self.weights.items()}


class JaxScan(JaxStep):
    """JAX, the whole stretch inside one jit: `lax.scan` over the steps."""

    name = "JAX, lax.scan"

    def __init__(self, problem):
        super().__init__(problem)
        jax = import_jax()
        self.stretch = jax.numpy.asarray(problem.indices.astype(np.int32))

        def scan(weights, x, t, indices):
            return jax.lax.scan(lambda w, index: jax_step(w, x, t, index), weights, indices)

        self.scan = jax.jit(scan, donate_argnums=0)

    def run(self):
        self.weights, values = self.scan(self.weights, self.x, self.t, self.stretch)
        values.block_until_ready()


class SklearnMLP(Candidate):
    """scikit-learn's `MLPClassifier`: one `partial_fit` over the stretch, cut into its batches.

    One call for all steps, so that the checks of its inputs are paid once. It keeps the dtype of
    the data.
    """

    name = "scikit-learn MLPClassifier"
    module = "sklearn"

    def __init__(self, problem):
        from sklearn.neural_network import MLPClassifier

        self.problem = problem
        self.order = problem.indices.ravel()
        self.model = MLPClassifier(
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
        self.run()  # allocates the weights
        for k in (0, 1):
            self.model.coefs_[k][...] = problem.params[f"W{k + 1}"]
            self.model.intercepts_[k][...] = problem.params[f"b{k + 1}"]

    def run(self):
        x, t = self.problem.x, self.problem.t
        self.model.partial_fit(x.take(self.order, axis=0), t[self.order], classes=range(CLASSES))

    def params(self):
        (W1, W2), (b1, b2) = self.model.coefs_, self.model.intercepts_
        return {"W1": W1, "b1": b1, "W2": W2, "b2": b2}


CANDIDATES = (Fastgrad, NumPyLoop, TorchEager, TorchLean, JaxStep, JaxScan, SklearnMLP)


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


def jax_scores(params, x):
    """Return the input of the softmax."""
    jax = import_jax()
    return jax.nn.sigmoid(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]


def jax_loss(params, x, t):
    """Return the loss for labels `t`, as JAX's users write it."""
    jax = import_jax()
    logs = jax.nn.log_softmax(jax_scores(params, x))
    return -jax.numpy.take_along_axis(logs, t[:, None], axis=1).mean()


def jax_book_loss(params, x, t):
    """Return the loss for labels `t` as the book defines it, which the textbook's loop nudges."""
    jax = import_jax()
    y = jax.nn.softmax(jax_scores(params, x))
    y = jax.numpy.take_along_axis(y, t[:, None], axis=1)
    return -jax.numpy.log(y + textbook.DELTA).mean()


def jax_step(params, x, t, index):
    """Return the weights after one step, and the loss before it."""
    jax = import_jax()
    value, grads = jax.value_and_grad(jax_loss)(params, x[index], t[index])
    return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, grads), value


def deviation(candidate):
    """Return how far a candidate's stretch ends from the textbook's: loss, and weights."""
    problem = candidate.problem
    candidate.run()
    found = {key: np.asarray(value, np.float64) for key, value in candidate.params().items()}
    expected = problem.exactly if candidate.exact else problem.expected
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
    problem = Problem(x, t, hidden, batch, 4)
    once = measuring.stretch(NumPyLoop(problem).run, problem.steps)()
    return int(np.clip(seconds / once, 4, 400))


def compare_training(report, data, settings, *, hidden, batch, dtype):
    """Time an iteration of every candidate on one shape of network and batch."""
    x, t = data[dtype]
    problem = Problem(x, t, hidden, batch, steps_for(x, t, hidden, batch, settings.stretch))
    case = {"group": "training", "hidden": hidden, "batch": batch, "dtype": dtype}
    candidates = {}
    for kind in CANDIDATES:
        if kind.module not in settings.modules:
            continue
        try:
            candidate = kind(problem)
        except ImportError as error:
            report.skip(kind.name, str(error))
            continue
        loss, weights = deviation(candidate)
        if max(loss, weights) > TOLERANCE[dtype]:
            report.refuse(kind.name, case, f"loss off by {loss:.1e}, weights by {weights:.1e}")
            continue
        candidates[kind.name] = candidate
    measures = {name: candidate.measurement() for name, candidate in candidates.items()}
    times = measuring.in_turn(measures, settings.rounds, patience=settings.patience)
    rows = measuring.summary(times, next(iter(times)))
    for row in rows:
        startups = getattr(measures[row["name"]], "startups", None)
        if startups:
            row["startup_s"] = float(np.median(startups))
    report.add(f"Training iteration, 784-{hidden}-10, batch {batch}, {dtype}", case, rows)


# --- single calls ----------------------------------------------------------------------------


def compare_gradient(report, data, settings, *, dtype):
    """Time one call of `gradient` against the same in NumPy."""
    import fastgrad

    x, t = (array[:100].copy() for array in data[dtype])
    params = textbook.initial_params(x.shape[1], 50, CLASSES, x.dtype, seed=SEED)
    net = fastgrad.TwoLayerNet(x.shape[1], 50, CLASSES, dtype=x.dtype)
    net.params.update({key: value.copy() for key, value in params.items()})
    case = {"group": "gradient", "hidden": 50, "batch": 100, "dtype": dtype}
    exact = textbook.gradient(params, x, t, exact=True)[1]
    if not same_arrays(net.gradient(x, t), exact, TOLERANCE[dtype]):
        report.refuse("fastgrad gradient", case, "differs from the NumPy expression")
        return
    times = measuring.in_turn(
        {
            "fastgrad gradient": measuring.calls(net.gradient, x, t),
            "NumPy expression": measuring.calls(textbook.gradient, params, x, t),
        },
        settings.rounds,
        patience=settings.patience,
    )
    report.add(
        f"One gradient from Python, 784-50-10, batch 100, {dtype}",
        case,
        measuring.summary(times, "fastgrad gradient"),
    )


def numpy_affine_forward(x, W, b):
    """Return x W + b."""
    out = x @ W
    out += b
    return out


def numpy_affine_backward(dout, x, W):
    """Return the gradients of `affine_forward` for x, W and b."""
    return dout @ W.T, x.T @ dout, dout.sum(axis=0)


def compare_affine(report, data, settings, *, dtype, hidden=50, batch=100):
    """Time the dense affine layer against NumPy's matrix products, on data without zeros."""
    import fastgrad

    rng = np.random.default_rng(SEED)
    inputs = data[dtype][0].shape[1]
    x, W, b, dout = (
        rng.uniform(0.1, 1.0, shape).astype(dtype)
        for shape in ((batch, inputs), (inputs, hidden), (hidden,), (batch, hidden))
    )
    product = 2 * batch * inputs * hidden  # multiplications and additions
    pairs = {
        "forward": (fastgrad.affine_forward, numpy_affine_forward, (x, W, b), product),
        "backward": (fastgrad.affine_backward, numpy_affine_backward, (dout, x, W), 2 * product),
    }
    for name, (ours, theirs, args, flops) in pairs.items():
        case = {"group": f"affine {name}", "hidden": hidden, "batch": batch, "dtype": dtype}
        found, expected = ours(*args), theirs(*args)
        if name == "forward":
            found, expected = (found,), (expected,)
        if not same_arrays(dict(enumerate(found)), dict(enumerate(expected)), TOLERANCE[dtype]):
            report.refuse(f"fastgrad affine_{name}", case, "differs from NumPy")
            continue
        times = measuring.in_turn(
            {
                f"fastgrad affine_{name}": measuring.calls(ours, *args),
                "NumPy @": measuring.calls(theirs, *args),
            },
            settings.rounds,
            patience=settings.patience,
        )
        rows = measuring.summary(times, f"fastgrad affine_{name}")
        for row in rows:
            row["gflops"] = flops / row["median_s"] / 1e9
        report.add(
            f"Dense affine {name}, ({batch}, {inputs}) by ({inputs}, {hidden}), {dtype}",
            case,
            rows,
        )


def same_arrays(found, expected, tolerance):
    """Return whether arrays agree, relative to the largest entry of each."""
    return all(
        np.shape(found[key]) == value.shape
        and np.abs(found[key] - value).max() <= tolerance * np.abs(value).max()
        for key, value in expected.items()
    )


# --- threads ---------------------------------------------------------------------------------


def compare_threads(report, data, settings):
    """Time `fit` and `numerical_gradient` with all threads and with one.

    In twice the rounds and five times as long at a turn, both dtypes in one go, and in takes of a
    few milliseconds: nothing else depends so much on the state of the cores. A good one may last
    that long, and a bad one for minutes. `fit`, which spends most of a turn on its start, three
    times as long again.
    """
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    if most < 2:
        report.skip("threads against one", "this process has one core")
        return
    taking, take = 5 * measuring.TAKING, settings.stretch / 16
    measures = {}
    for dtype, (x, t) in data.items():
        steps = steps_for(x, t, 50, 100, 4 * take)  # the textbook's, four times as slow
        net = Fastgrad(Problem(x, t, 50, 100, 4)).net
        numerical = measuring.calls(
            net.numerical_gradient, x[:100].copy(), t[:100], seconds=take, taking=taking
        )
        for n in (most, 1):
            # A network for each number of threads: their weights stay alike.
            fit = Fastgrad(Problem(x, t, 50, 100, steps)).measurement(3 * taking)
            measures["fit", dtype, n] = measuring.with_threads(fit, n)
            measures["numerical_gradient", dtype, n] = measuring.with_threads(numerical, n)
    times = measuring.in_turn(measures, 2 * settings.rounds, patience=settings.patience)
    for dtype in data:
        for group in ("fit", "numerical_gradient"):
            named = {f"{group}, threads {n}": times[group, dtype, n] for n in (most, 1)}
            report.add(
                f"Threads, {group}, 784-50-10, batch 100, {dtype}",
                {"group": f"threads {group}", "hidden": 50, "batch": 100, "dtype": dtype},
                measuring.summary(named, f"{group}, threads {most}"),
            )


# --- the numerical gradient ------------------------------------------------------------------


def compare_numerical(report, data, settings, *, dtype, hidden=50, batch=100, h=1e-4):
    """Time the numerical gradient of all parameters.

    The alternatives are timed on a random sample of the parameters, of which each costs the
    same, and their times multiplied up. Their float32 is not timed: a difference of two rounded
    losses leaves no correct digit of most entries.
    """
    import fastgrad

    x, t = (array[:batch].copy() for array in data[dtype])
    params = textbook.initial_params(x.shape[1], hidden, CLASSES, x.dtype, seed=SEED)
    total = sum(value.size for value in params.values())
    case = {"group": "numerical gradient", "hidden": hidden, "batch": batch, "dtype": dtype}
    net = fastgrad.TwoLayerNet(x.shape[1], hidden, CLASSES, dtype=x.dtype)
    net.params.update({key: value.copy() for key, value in params.items()})

    positions = textbook.random_positions(params, settings.sample, seed=SEED)
    _, exact = textbook.gradient(as_float64(params), x.astype(np.float64), t, exact=True)
    exact = pick(exact, positions)
    candidates = {"fastgrad numerical_gradient": (lambda: net.numerical_gradient(x, t, h), None)}
    if dtype == "float64":
        for make in (textbook_numerical, scipy_numerical, jax_numerical):
            name, module, build = make(params, x, t, positions, h)
            if module in settings.modules:
                candidates[name] = (build(), positions)

    measures, scale, errors = {}, {}, {}
    for name, (function, sampled) in candidates.items():
        result = function()
        found = pick(result, positions) if sampled is None else np.asarray(result)
        error = float(np.nan_to_num(np.abs(found - exact).max() / np.abs(exact).max(), nan=np.inf))
        if error > 1e-4:
            report.refuse(name, case, f"off by {error:.1e} of the largest entry")
            continue
        measures[name] = measuring.calls(function, seconds=settings.stretch)
        scale[name] = 1.0 if sampled is None else total / len(sampled)
        errors[name] = error
    times = measuring.in_turn(measures, settings.rounds, patience=settings.patience)
    rows = measuring.summary(times, next(iter(times)), scale=scale)
    for row in rows:
        row["error"] = errors[row["name"]]
        if scale[row["name"]] != 1.0:
            row["measured_parameters"] = len(positions)
            row["parameters"] = total
    report.add(
        f"Numerical gradient of {total:,} parameters, 784-{hidden}-10, batch {batch}, {dtype}",
        case,
        rows,
    )


def as_float64(params):
    """Return parameters as float64."""
    return {key: value.astype(np.float64) for key, value in params.items()}


def pick(grads, positions):
    """Return the entries of gradients at some positions."""
    return np.array([grads[name].reshape(-1)[i] for name, i in positions])


def textbook_numerical(params, x, t, positions, h):
    """Return name, module and builder of the book's loop."""
    own = {key: value.copy() for key, value in params.items()}
    return (
        "textbook loop",
        "numpy",
        lambda: lambda: textbook.numerical_gradient(own, x, t, positions, h),
    )


def scipy_numerical(params, x, t, positions, h):
    """Return name, module and builder of SciPy's three-point differences.

    `approx_derivative` sees a function of the sampled parameters alone, which spares it the
    copies of a vector of all parameters.
    """

    def build():
        from scipy.optimize._numdiff import approx_derivative

        flat = {key: value.copy() for key, value in params.items()}
        cells = [(flat[name].reshape(-1), i) for name, i in positions]
        start = np.array([array[i] for array, i in cells])

        def loss(values):
            for (array, i), value in zip(cells, values, strict=True):
                array[i] = value
            return textbook.loss(flat, x, t)

        return lambda: approx_derivative(loss, start, method="3-point", abs_step=h)

    return "SciPy approx_derivative, 3-point", "scipy", build


def jax_numerical(params, x, t, positions, h, block=32):
    """Return name, module and builder of JAX's differences, `vmap` over blocks of parameters."""

    def build():
        jax = import_jax()
        from jax.flatten_util import ravel_pytree

        flat, unravel = ravel_pytree(params)  # keys in sorted order
        offsets, end = {}, 0
        for key in sorted(params):
            offsets[key], end = end, end + params[key].size
        where = np.array([offsets[name] + i for name, i in positions], np.int32)
        blocks = [jax.numpy.asarray(b) for b in np.split(where, range(block, len(where), block))]
        on_device = (jax.numpy.asarray(x), jax.numpy.asarray(t.astype(np.int32)))

        def one(i, flat, x, t):
            above = jax_book_loss(unravel(flat.at[i].add(h)), x, t)
            below = jax_book_loss(unravel(flat.at[i].add(-h)), x, t)
            return (above - below) / (2 * h)

        many = jax.jit(jax.vmap(one, in_axes=(0, None, None, None)))
        return lambda: np.concatenate([np.asarray(many(b, flat, *on_device)) for b in blocks])

    return "JAX, vmap over parameters", "jax", build


# --- memory ----------------------------------------------------------------------------------


def compare_memory(report, *, dtype):
    """Measure the peak memory of `fit` on the 60,000 images, in a fresh process."""
    if not sys.platform.startswith("linux"):
        report.skip("peak memory", "is read from /proc, which this system does not have")
        return
    done = subprocess.run(
        [sys.executable, __file__, "--probe-memory", dtype],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        report.skip("peak memory", f"the process ended with status {done.returncode}")
        return
    found = json.loads(done.stdout)
    limit = found["data"] + found["copy"]
    report.add_memory(dtype, found | {"ratio": found["peak"] / limit})


def probe_memory(dtype):
    """Print the memory that `fit` takes on MNIST as `load_mnist` gives it, in bytes."""
    import fastgrad

    (x, t), _ = fastgrad.load_mnist()
    net = fastgrad.TwoLayerNet(x.shape[1], 50, CLASSES, dtype=dtype)
    net.fit(x[:1000], t[:1000], iterations=2)  # compiles, or loads what was compiled
    gc.collect()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak starts anew
    before = process_bytes("VmRSS")
    net.fit(x, t, iterations=200)
    data = x.nbytes + t.nbytes
    copy = 0 if x.dtype == np.dtype(dtype) else x.size * np.dtype(dtype).itemsize
    peak = process_bytes("VmHWM") - before + data
    print(json.dumps({"data": data, "copy": copy, "peak": peak}))


def process_bytes(field):
    """Return a size from the status of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise LookupError(field)


# --- report ----------------------------------------------------------------------------------


class Report:
    """Results as they come: printed at once, kept for JSON and the picture."""

    def __init__(self, facts):
        self.facts = facts
        self.results = []
        self.memory = {}
        self.skipped = {}
        self.refused = []

    def skip(self, name, reason):
        if name not in self.skipped:
            self.skipped[name] = reason
            print(f"Skipped: {name}: {reason}\n", flush=True)

    def refuse(self, name, case, reason):
        self.refused.append({"name": name, "case": case, "reason": reason})
        print(f"Refused to time: {name}, {case}: {reason}\n", flush=True)

    def add(self, title, case, rows):
        self.results += [case | {"title": title} | row for row in rows]
        reference = rows[0]["name"]
        header = ["", "median", "best", f"× {reference}"]
        extra = {
            "gflops": ("GFLOP/s", lambda row: measuring.factor(row["gflops"])),
            "error": ("error", lambda row: f"{row['error']:.0e}"),
        }
        shown = [column for key, column in extra.items() if key in rows[0]]
        header += [name for name, _ in shown]
        cells = []
        for row in rows:
            about = "~" if "parameters" in row else ""
            times = [about + measuring.seconds(row[key]) for key in ("median_s", "min_s")]
            cells.append(
                [
                    row["name"],
                    *times,
                    measuring.factor(row["ratio"]),
                    *(show(row) for _, show in shown),
                ]
            )
        print(f"### {title}\n\n{measuring.table(header, cells)}")
        for row in rows:
            if "startup_s" in row:
                print(
                    f"\n{row['name']}: {measuring.seconds(row['startup_s'])} to start, "
                    f"{measuring.seconds(row['median_s'] + row['startup_s'] / 10_000)} an "
                    "iteration when spread over 10,000."
                )
        measured = next((row for row in rows if "parameters" in row), None)
        if measured:
            print(
                f"\n~ extrapolated from {measured['measured_parameters']} of "
                f"{measured['parameters']:,} parameters, drawn at random. Error: largest "
                "deviation from the exact gradient, as a part of its largest entry."
            )
        print(flush=True)

    def add_memory(self, dtype, found):
        self.memory[dtype] = found
        sizes = {key: f"{found[key] / 2**20:.0f} MiB" for key in ("data", "copy", "peak")}
        print(
            f"### Peak memory of fit, 60,000 images, {dtype}\n\n"
            f"data {sizes['data']}, working copy {sizes['copy']}, peak {sizes['peak']}: "
            f"{found['ratio']:.2f} times data and copy\n",
            flush=True,
        )

    def headlines(self):
        """Return pairs of a claim and its figure."""
        lines = []
        cases = {}
        for row in self.results:
            cases.setdefault(row["title"], []).append(row)
        for title, rows in cases.items():
            ours, others = rows[0], rows[1:]
            if not ours["name"].startswith("fastgrad") and not ours["group"].startswith("threads"):
                continue
            if ours["group"] == "training" and others:
                fastest = min(others, key=lambda row: row["ratio"])
                lines.append((title, f"{measuring.factor(fastest['ratio'])} × {fastest['name']}"))
                eager = [row for row in others if row["name"] == TorchEager.name]
                lines += [
                    (title, f"{measuring.factor(row['ratio'])} × {row['name']}") for row in eager
                ]
            else:
                lines += [
                    (title, f"{measuring.factor(row['ratio'])} × {row['name']}") for row in others
                ]
        lines += [
            (f"Peak memory of fit, {dtype}", f"{found['ratio']:.2f} × data and working copy")
            for dtype, found in self.memory.items()
        ]
        return lines

    def as_json(self):
        return {
            "machine": self.facts,
            "results": self.results,
            "memory": self.memory,
            "skipped": self.skipped,
            "refused": self.refused,
        }


def draw(report, path):
    """Draw the times as bars: one panel for each training case, one for numerical gradients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {}
    for row in report.results:
        if row["group"] in ("training", "numerical gradient"):
            panels.setdefault(row["title"], []).append(row)
    # A lone bar compares nothing.
    panels = {title: rows for title, rows in panels.items() if len(rows) > 1}
    columns = 1 if len(panels) == 1 else 2
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        height,
        columns,
        figsize=((6.4 if columns > 1 else 7.6) * columns, 2.5 * height + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        axis.set_visible(True)
        numerical = rows[0]["group"] == "numerical gradient"
        unit, size = ("s", 1.0) if numerical else ("µs", 1e-6)
        values = [row["median_s"] / size for row in rows]
        ours = [row["name"].startswith("fastgrad") for row in rows]
        bars = axis.barh(
            [row["name"] for row in rows],
            values,
            color=["#c44e52" if mine else "#8c9bb0" for mine in ours],
        )
        axis.bar_label(
            bars,
            [
                f" {measuring.seconds(row['median_s'])}"
                + ("" if k == 0 else f"  (× {measuring.factor(row['ratio'])})")
                for k, row in enumerate(rows)
            ],
            fontsize=8,
        )
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(f"{unit}, median{', logarithmic' if numerical else ''}", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        if numerical:
            axis.set_xscale("log")
            axis.set_xlim(min(values) / 3, max(values) * 100)
        else:
            axis.set_xlim(0, max(values) * 1.4)
    facts = report.facts
    figure.suptitle(f"{facts['cpu']}, {facts['threads']} threads", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --- command line ----------------------------------------------------------------------------

GROUPS = ("training", "gradient", "affine", "numerical", "threads", "memory")


def parse(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(
        description="Time fastgrad and its alternatives side by side on the same work."
    )
    parser.add_argument("--hidden", type=int, nargs="+", help="hidden units (50 200)")
    parser.add_argument("--batch", type=int, nargs="+", help="samples in a batch (100 1000)")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE), help="(both)"
    )
    parser.add_argument("--rounds", type=int, help="measurements of each candidate (15)")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (2)")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["numpy", "torch", "jax", "sklearn", "scipy"],
        metavar="MODULE",
        help="alternatives to time (numpy torch jax sklearn scipy)",
    )
    parser.add_argument("--images", type=int, help="images to train on (60000)")
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="what to measure (all)"
    )
    measuring.add_patience(parser)
    measuring.add_taking(parser)
    parser.add_argument("--json", metavar="FILE", help="write all results here")
    parser.add_argument("--png", metavar="FILE", help="draw the results here")
    parser.add_argument("--quick", action="store_true", help="one shape, 10,000 images, 3 rounds")
    parser.add_argument("--probe-memory", metavar="DTYPE", help=argparse.SUPPRESS)
    settings = parser.parse_args(argv)
    measuring.TAKING = settings.taking
    settings.hidden = settings.hidden or ([50] if settings.quick else [50, 200])
    settings.batch = settings.batch or ([100] if settings.quick else [100, 1000])
    settings.images = settings.images or (10_000 if settings.quick else 60_000)
    settings.rounds = settings.rounds or (3 if settings.quick else 15)
    settings.stretch = 0.015 if settings.quick else 0.04
    settings.sample = 64 if settings.quick else 192
    return settings


def available(asked):
    """Return the modules that can be timed, and why those that were asked for besides cannot."""
    known = {kind.module for kind in CANDIDATES} | {"scipy"}
    found, skipped = {"fastgrad"}, {}
    for module in asked:
        if module not in known:
            skipped[module] = "is not known"
        elif not measuring.is_installed(module):
            skipped[module] = "is not installed"
        else:
            found.add(module)
    return found, skipped


def main(argv=None):
    settings = parse(argv)
    if settings.probe_memory:
        probe_memory(settings.probe_memory)
        return 0
    measuring.limit_threads(settings.threads)
    neighbours = measuring.Neighbours()
    report = Report(measuring.machine(PACKAGES))
    print(measuring.describe(report.facts) + "\n", flush=True)

    settings.modules, skipped = available(settings.peers)
    for module, reason in skipped.items():
        report.skip(module, reason)

    import fastgrad

    (x, t), _ = fastgrad.load_mnist()
    x, t = x[: settings.images], t[: settings.images].astype(np.int64)
    data = {dtype: (x.astype(dtype, copy=False), t) for dtype in settings.dtype}

    for dtype in settings.dtype if "training" in settings.only else ():
        for hidden in settings.hidden:
            for batch in settings.batch:
                compare_training(report, data, settings, hidden=hidden, batch=batch, dtype=dtype)
                gc.collect()
    single = {
        "gradient": compare_gradient,
        "affine": compare_affine,
        "numerical": compare_numerical,
    }
    for dtype in settings.dtype:
        for group, compare in single.items():
            if group in settings.only:
                compare(report, data, settings, dtype=dtype)
    if "threads" in settings.only:
        compare_threads(report, data, settings)
    for dtype in settings.dtype if "memory" in settings.only else ():
        compare_memory(report, dtype=dtype)

    lines = report.headlines()
    if lines:
        print("### In short: the time of others as a multiple of fastgrad's\n")
        print(measuring.table(("what", "figure"), lines) + "\n", flush=True)
    print(neighbours.warning(), end="")
    report.facts["other_processes"] = neighbours.share()
    if settings.json:
        measuring.write_json(settings.json, report.as_json())
    if settings.png:
        if measuring.is_installed("matplotlib"):
            draw(report, settings.png)
        else:
            report.skip("picture", "matplotlib is not installed")
    return 1 if report.refused else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
