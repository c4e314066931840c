"""What the gradient checker and ``h="auto"`` promise, measured: ``python benchmarks/checking.py``.

Random models with planted mistakes, right ones with noise, kinks and every scale, and the
accuracy of extrapolated derivatives. ``--size 0.1`` does a tenth of it; a test does less still.
"""

from __future__ import annotations

import argparse
import time
import warnings
import zlib
from typing import Any

import numpy as np

if __package__:  # imported as a part of the folder, by asv
    from .checking_models import MODELS, relu_network, single_precision
else:
    from checking_models import MODELS, relu_network, single_precision

from fastgrad import GradientCheckWarning, check_gradient, numerical_gradient

EPS = np.finfo(np.float64).eps


# ------------------------------------------------------------------------------- random models


class Model:
    """A network of random sizes with a random activation, weight decay, and its backward pass."""

    ACTIVATIONS = {  # noqa: RUF012
        "tanh": (np.tanh, lambda a, z: 1 - z**2),
        "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda a, z: z * (1 - z)),
        "softplus": (lambda a: np.logaddexp(0, a), lambda a, z: 1 / (1 + np.exp(-a))),
        "relu": (lambda a: np.maximum(a, 0), lambda a, z: (a > 0).astype(a.dtype)),
        "maxpool": (None, None),
        "abs": (np.abs, lambda a, z: np.sign(a)),
    }

    def __init__(self, rng: np.random.Generator, kind: str, dtype: Any = np.float64) -> None:
        self.kind = kind
        self.samples = int(rng.integers(2, 8))
        inputs, hidden, outputs = (int(n) for n in rng.integers(2, 7, 3))
        hidden += hidden % 2  # pairs for pooling
        self.scale = 1.0
        self.decay = float(rng.choice([0.0, 0.1]))
        self.x = rng.normal(size=(self.samples, inputs)).astype(dtype)
        if rng.random() < 0.3:
            self.x[:, 0] = 0  # an input that nothing depends on
        self.t = rng.normal(size=(self.samples, outputs)).astype(dtype)
        width = hidden // 2 if kind == "maxpool" else hidden
        self.params = {
            "W1": rng.normal(size=(inputs, hidden)).astype(dtype),
            "b1": (rng.normal(size=hidden) * 0.1).astype(dtype),
            "W2": rng.normal(size=(width, outputs)).astype(dtype),
            "b2": rng.normal(size=outputs).astype(dtype),
        }

    def _hidden(self, p: dict[str, Any]) -> tuple[Any, Any]:
        a = self.x @ p["W1"] + p["b1"]
        if self.kind == "maxpool":
            return a, a.reshape(len(a), -1, 2).max(axis=2)
        return a, self.ACTIVATIONS[self.kind][0](a)

    def loss(self, p: dict[str, Any]) -> float:
        _, z = self._hidden(p)
        y = z @ p["W2"] + p["b2"]
        decay = 0.5 * self.decay * sum(np.sum(p[name] ** 2) for name in ("W1", "W2"))
        return float(self.scale * (np.mean(np.sum((y - self.t) ** 2, axis=1)) + decay))

    def gradient(self, p: dict[str, Any], decay: bool = True) -> dict[str, Any]:
        a, z = self._hidden(p)
        dy = 2 * (z @ p["W2"] + p["b2"] - self.t) / self.samples
        dz = dy @ p["W2"].T
        if self.kind == "maxpool":
            pairs = a.reshape(len(a), -1, 2)
            first = np.argmax(pairs, axis=2)[..., None] == np.arange(2)
            da = (first * dz[..., None]).reshape(a.shape)
        else:
            da = dz * self.ACTIVATIONS[self.kind][1](a, z)
        grads = {"W1": self.x.T @ da, "b1": da.sum(0), "W2": z.T @ dy, "b2": dy.sum(0)}
        if decay:
            for name in ("W1", "W2"):
                grads[name] = grads[name] + self.decay * p[name]
        return {name: self.scale * grad for name, grad in grads.items()}


def quiet_check(*args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientCheckWarning)
        with np.errstate(all="ignore"):
            return check_gradient(*args, **options)


# ------------------------------------------------------------------------------------- campaigns


def planted_mistakes(count: int, seed: int = 0) -> dict[str, Any]:
    """Plant every mistake in random models; count those passed, and suspects named wrongly."""
    rng = np.random.default_rng(seed)
    done = passed = named = nameable = 0
    missed = []
    for number in range(count):
        model = Model(rng, str(rng.choice(["tanh", "sigmoid", "softplus", "relu", "maxpool"])))
        model.decay = 0.1
        p = model.params
        right = model.gradient(p)
        stale = model.gradient({k: v + 0.1 * rng.normal(size=v.shape) for k, v in p.items()})
        for mistake, (name, wrong, words) in _mistakes(rng, model, right, stale).items():
            if np.array_equal(wrong, right[name]):
                continue
            check = quiet_check(model.loss, {**right, name: wrong}, p)
            done += 1
            array = check.arrays[name]
            changed = np.abs(wrong - right[name]) > 1e-3 * np.maximum(
                np.abs(wrong), np.abs(right[name])
            ) * (1 - 1e-9)
            unseen = (check.codes[name] == 0) & changed
            if array.wrong == 0 and unseen.any():
                passed += 1
                missed.append((number, model.kind, mistake))
            if words and array.wrong:
                nameable += 1
                named += any(word in check.report() for word in words)
    return {"planted": done, "passed": passed, "missed": missed[:10],
            "suspects named": f"{named} of {nameable}"}  # fmt: skip


def _mistakes(rng: Any, model: Model, right: Any, stale: Any) -> dict[str, Any]:
    name = str(rng.choice(["W1", "W2", "b1", "b2"]))
    weights = str(rng.choice(["W1", "W2"]))
    one = right[weights].copy()
    place = tuple(int(rng.integers(n)) for n in one.shape)
    one[place] *= 1.01
    small = right["W1"].copy()
    small.flat[np.argsort(np.abs(small), axis=None)[: max(1, small.size // 4)]] *= 1.5
    n = model.samples
    return {
        "0.1% too large": (name, 1.001 * right[name], ["1.001"]),
        "sign": (name, -right[name], ["sign"]),
        "one entry": (weights, one, ["Only this entry"]),
        "missing mean": (name, n * right[name], [f"{n} times", "missing ½"]),
        "missing decay": (weights, model.gradient(model.params, False)[weights], ["weight decay"]),
        "row off by one": (weights, np.roll(right[weights], 1, 0), ["off by one"]),
        "stale": (name, stale[name], None),
        "small entries": ("W1", small, None),
        "transposed": _transposed(right),
    }


def _transposed(right: Any) -> Any:
    for name in ("W1", "W2"):
        if right[name].shape[0] == right[name].shape[1]:
            return name, right[name].T.copy(), ["transpose"]
    return "W1", right["W1"], None


def flat(tree: Any) -> Any:
    """Return the numbers of an array, or of a dict of arrays."""
    return np.concatenate([np.ravel(tree[k]) for k in tree]) if isinstance(tree, dict) else (
        np.ravel(tree)
    )  # fmt: skip


def bounds_of(model: Any) -> Any:
    """Return the bounds that a user gives."""
    return (0, np.inf) if model.__name__ in ("edges", "barrier") else None


def right_models(count: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Check right gradients of twenty kinds of models with exact gradients."""
    checks = entries = evaluations = 0
    wrong, unresolved = [], []
    for number in range(count):
        model = MODELS[number % len(MODELS)]
        rng = np.random.default_rng((seed, number))
        f, grads, x = model(rng)
        calls = [0]

        def counted(x: Any, f: Any = f, calls: Any = calls) -> Any:
            calls[0] += 1
            return f(x)

        bounds = bounds_of(model) if number % 2 else None
        check = quiet_check(counted, grads, x, bounds=bounds, **options)
        verdicts = [array.verdict for array in check.arrays.values()]
        checks, entries = checks + 1, entries + flat(grads).size
        evaluations += calls[0]
        if "wrong" in verdicts:
            wrong.append((number, model.__name__))
        elif "unresolved" in verdicts:
            unresolved.append((number, model.__name__))
    return {"right gradients": checks, "called wrong": len(wrong), "unresolved": len(unresolved),
            "evaluations an entry": evaluations / entries,
            "which": wrong[:9], "which unresolved": unresolved[:9]}  # fmt: skip


def wrong_models(count: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Plant mistakes of 0.1% and more in the twenty kinds of models.

    Planted in an entry that the check does not judge, a mistake cannot be seen; it must not pass in
    one that it calls right.
    """
    planted = 0
    passed = []
    for number in range(count):
        model = MODELS[number % len(MODELS)]
        rng = np.random.default_rng((seed, number))
        f, grads, x = model(rng)
        tree = grads if isinstance(grads, dict) else {"x": grads}
        name = str(rng.choice([k for k in tree if np.abs(tree[k]).max() > 1e-12]))
        size = np.abs(tree[name])
        largest = np.unravel_index(np.argmax(size), size.shape)
        one = tree[name].copy()
        one[largest] *= 1 + 10 ** rng.uniform(-3, 0) * rng.choice([-1, 1])
        any_one = tree[name].copy()
        any_one[tuple(rng.integers(size.shape))] *= 1.01
        for kind, wrong in {"whole": 1.0011 * tree[name], "sign": -tree[name], "zero": 0 * one,
                            "largest": one, "any": any_one}.items():  # fmt: skip
            claimed = {**tree, name: wrong}
            check = quiet_check(f, claimed if isinstance(grads, dict) else wrong, x,
                                bounds=bounds_of(model), **options)  # fmt: skip
            key = next(k for k in check.arrays if k.endswith(name))
            bad = np.abs(wrong - tree[name]) > 1e-3 * size
            planted += 1
            if check.arrays[key].wrong == 0 and (check.codes[key][bad] == 0).any():
                passed.append((number, model.__name__, kind))
    return {"planted": planted, "passed": len(passed), "which": passed[:9]}


def auto_on_models(count: int, seed: int = 0) -> dict[str, Any]:
    """Compare ``h="auto"`` with exact gradients: accuracy, evaluations, estimates."""
    relative, above, evaluations = [], [], 0
    far = []
    for number in range(count):
        model = MODELS[number % len(MODELS)]
        f, grads, x = model(np.random.default_rng((seed, number)))
        calls = [0]

        def counted(x: Any, f: Any = f, calls: Any = calls) -> Any:
            calls[0] += 1
            return f(x)

        with np.errstate(all="ignore"):
            found, error = numerical_gradient(
                counted, x, "auto", error=True, bounds=bounds_of(model)
            )
        right, found, error = flat(grads), flat(found), flat(error)
        evaluations += calls[0]
        off = np.abs(found - right)
        relative.append(np.max(off) / np.max(np.abs(right)))
        above += (off / np.where(error > 0, error, 1e-300)).tolist()
        if relative[-1] > 1e-6:
            far.append((number, model.__name__, float(relative[-1])))
    excess = np.array(above)
    return {"models": count, "largest error beside the largest entry above 1e-6": far,
            "median": float(np.median(relative)), "evaluations an entry": evaluations / excess.size,
            "above the estimate": f"{np.mean(excess > 1):.2%}",
            "by more than a factor of 3": int(np.sum(excess > 3))}  # fmt: skip


def float32_models(count: int, seed: int = 0) -> dict[str, Any]:
    """Check right gradients of models in float32, with the default step."""
    passed = wrong = 0
    for number in range(count):
        f, grads, x = single_precision(np.random.default_rng((seed, number)))
        check = quiet_check(f, grads, x)
        passed += check.ok
        wrong += any(array.wrong for array in check.arrays.values())
    return {"models": count, "passed": passed, "called wrong": wrong}


def relu_seeds(count: int = 60) -> dict[str, Any]:
    """Check ReLU networks at h = 1e-2, where most entries have kinks within the step."""
    wrong = 0
    for seed in range(count):
        f, grads, x = relu_network(np.random.default_rng(seed))
        wrong += any(array.wrong for array in quiet_check(f, grads, x, 1e-2).arrays.values())
    return {"seeds": count, "called wrong": wrong}


def suspects(count: int, seed: int = 0) -> dict[str, Any]:
    """Count suspects named where none fits, and fitting ones that are not named."""
    rng = np.random.default_rng(seed)
    false = missed = fitting = 0
    false_ones, missed_ones = [], []
    for number in range(count):
        shape = tuple(int(n) for n in rng.integers(2, 9, rng.integers(1, 3)))
        x, right = rng.normal(size=shape), rng.normal(size=shape)
        noise = rng.normal(size=shape) * (rng.random(shape) < rng.uniform(0.3, 1))
        f = lambda x, right=right: float(np.sum(right * x))  # noqa: E731
        if np.count_nonzero(noise) > 1:
            lines = quiet_check(f, right + noise, x).report().splitlines()
            false += len(lines) > 1
            if len(lines) > 1:
                false_ones.append((number, shape, lines[1][:60]))
        n = int(rng.integers(3, 200))
        planted = {"opposite sign": -right, "missing ½": 2 * right, "½ too much": right / 2,
                   f" {n} times": n * right, f"1/{n} ": right / n,
                   "is missing: the gradient of the weight decay": right - 0.1 * x}  # fmt: skip
        if right.size > 3:
            planted["constant factor"] = 1.37 * right
        if right.shape[0] > 3:
            planted["shifted"] = np.roll(right, 1, 0)
        if right.ndim == 2 and right.shape[0] == right.shape[1]:
            planted["transpose"] = right.T.copy()
        for words, wrong in planted.items():
            if wrong.size < 4:
                continue
            fitting += 1
            if words not in quiet_check(f, wrong, x).report():
                missed += 1
                missed_ones.append((number, shape, words))
    return {"named where none fits": f"{false} of {count}", "which": false_ones[:6],
            "not named": f"{missed} of {fitting}", "which not": missed_ones[:6]}  # fmt: skip


def one_in_thirty_thousand(count: int, seed: int = 0) -> dict[str, Any]:
    """Plant one wrong entry in an array of 30,000."""
    rng = np.random.default_rng(seed)
    passed = 0
    for _ in range(count):
        w = rng.normal(size=30_000)
        wrong = np.cos(w)
        wrong[rng.integers(w.size)] *= 1.01
        check = quiet_check(lambda w: float(np.sum(np.sin(w))), wrong, w)
        passed += check.arrays["x"].wrong != 1
    return {"planted": count, "passed": passed}


def right_gradients(count: int, seed: int = 0) -> dict[str, Any]:
    """Check right gradients of every kind of model; none may be called wrong."""
    wrong, judged, total, examples = 0, 0, 0, []
    for number in range(count):
        kind, f, grads, x, h, order, size = right_case(number, seed)
        check = quiet_check(f, grads, x, h, order=order)
        for array in check.arrays.values():
            total += 1
            judged += array.judged > 0
            if array.wrong:
                wrong += 1
                examples.append((number, kind, h, order))
        eps = np.finfo(x["W1"].dtype).eps if kind == "random" else EPS
        if kind == "random" and check.ok and size > 64 * eps * abs(f(x)):
            examples.append((number, "random passed", size / abs(f(x))))
    return {"arrays": total, "called wrong": wrong, "judged": judged, "examples": examples[:10]}


KINDS = ["tanh", "sigmoid", "softplus", "relu", "maxpool", "abs", "noise", "scales", "random",
         "ties"]  # fmt: skip


def right_case(number: int, seed: int = 0) -> tuple[str, Any, Any, Any, Any, int, float]:
    """Return a kind of model, its loss, its gradient, a point, a step, an order, and the noise.

    Each case has a generator of its own: it is the same however many calls another's check took.
    """
    rng = np.random.default_rng((seed, number))
    kind = KINDS[number % len(KINDS)]
    dtype = np.float32 if rng.random() < 0.25 else np.float64
    h = float(rng.choice([1e-3, 1e-4, 1e-5])) if rng.random() < 0.8 else "auto"
    order = int(rng.choice([2, 2, 4, 6]))
    if kind == "ties":  # max pooling over windows with equal entries; the first one wins
        x = np.round(rng.normal(size=(6, 4)), 1).astype(dtype)
        x[::2, 1] = x[::2, 0]
        weights = rng.normal(size=6)
        grads = (np.argmax(x, axis=1)[:, None] == np.arange(4)) * weights[:, None]
        return kind, lambda x: float(np.sum(weights * x.max(axis=1))), grads, x, h, order, 0.0
    if kind == "scales":
        scales = 10.0 ** rng.uniform(-12, 12, 12)
        x = rng.normal(size=12)
        grads = scales * np.cos(x)
        return kind, lambda x: float(np.sum(scales * np.sin(x))), grads, x, h, order, 0.0
    model = Model(rng, kind if kind in Model.ACTIVATIONS else "tanh", dtype)
    model.scale = 10.0 ** rng.uniform(-6, 6)
    size = 10.0 ** rng.uniform(-12, -4) * model.scale
    noisy = {
        "noise": lambda p: model.loss(p) + size * _hash_noise(p),
        "random": lambda p: model.loss(p) + size * rng.normal(),
    }
    f = noisy.get(kind, model.loss)
    return kind, f, model.gradient(model.params), model.params, h, order, size


def _hash_noise(p: dict[str, Any]) -> float:
    return (zlib.crc32(b"".join(array.tobytes() for array in p.values())) % 20011) / 10005.5 - 1


def unseen(count: int, seed: int = 0) -> dict[str, Any]:
    """Check what h cannot show: random functions, mistakes below a tiny step, kinks everywhere."""
    rng = np.random.default_rng(seed)
    passed = 0
    for _ in range(count):
        x = rng.normal(size=12)
        keep = rng.uniform(0.2, 0.9)
        passed += quiet_check(
            lambda x, keep=keep: float(np.sum((x * (rng.random(12) < keep)) ** 2)), 2 * x, x
        ).ok
        narrow = rng.uniform(1, 2, 5).astype(np.float32)
        wrong = np.float32(1.002) / narrow
        passed += quiet_check(lambda x: np.sum(np.log(x)), wrong, narrow, 1e-5).ok
        passed += quiet_check(lambda x: np.sum(np.abs(x)), np.zeros(3), np.zeros(3)).ok
        passed += quiet_check(lambda x: 1 + np.sum(np.sin(x)), 1.001 * np.cos(x), x, 1e-14).ok
    return {"checks": 4 * count, "passed": passed}


# --------------------------------------------------------------------------------- extrapolation


def functions() -> dict[str, Any]:
    """Return functions in NumPy and in mpmath."""
    import mpmath

    return {
        "exp": (np.exp, mpmath.exp),
        "sin": (np.sin, mpmath.sin),
        "log": (np.log, mpmath.log),
        "sqrt": (np.sqrt, mpmath.sqrt),
        "1/x": (lambda x: 1 / x, lambda x: 1 / x),
        "x^5": (lambda x: x**5, lambda x: x**5),
        "tanh": (np.tanh, mpmath.tanh),
        "atan": (np.arctan, mpmath.atan),
        "sin 100x": (lambda x: np.sin(100 * x), lambda x: mpmath.sin(100 * x)),
        "Runge": (lambda x: 1 / (1 + 25 * x * x), lambda x: 1 / (1 + 25 * x * x)),
        "exp -x": (lambda x: np.exp(-x), lambda x: mpmath.exp(-x)),
        "exp -x^2": (lambda x: np.exp(-x * x), lambda x: mpmath.exp(-x * x)),
        "x sin x": (lambda x: x * np.sin(x), lambda x: x * mpmath.sin(x)),
        "x log x": (lambda x: x * np.log(x), lambda x: x * mpmath.log(x)),
        "x^1.5": (lambda x: x**1.5, lambda x: x ** mpmath.mpf(1.5)),
        "1/sqrt x": (lambda x: 1 / np.sqrt(x), lambda x: 1 / mpmath.sqrt(x)),
        "sin sqrt x": (lambda x: np.sin(np.sqrt(x)), lambda x: mpmath.sin(mpmath.sqrt(x))),
        "sin 1/x": (lambda x: np.sin(1 / x), lambda x: mpmath.sin(1 / x)),
        "cos log x": (lambda x: np.cos(np.log(x)), lambda x: mpmath.cos(mpmath.log(x))),
        "sin x / x": (lambda x: np.sin(x) / x, lambda x: mpmath.sin(x) / x),
        "exp sin x": (lambda x: np.exp(np.sin(x)), lambda x: mpmath.exp(mpmath.sin(x))),
        "asinh": (np.arcsinh, mpmath.asinh),
        "log(1 + x)": (np.log1p, mpmath.log1p),
        "cos 3x + x": (lambda x: np.cos(3 * x) + x, lambda x: mpmath.cos(3 * x) + x),
    }


def elementary(count: int, seed: int = 0) -> dict[str, Any]:
    """Differentiate functions at `count` points each; the truth is mpmath's, with 50 digits.

    Allowed is a relative error of 1e-10, or ten times what rounding leaves: an ulp of f and of x
    over the scale on which f bends.
    """
    import mpmath

    from fastgrad.numdiff.extrapolation import extrapolate

    rng = np.random.default_rng(seed)
    points = 10.0 ** np.arange(-3, 5) if seed == 0 else 10.0 ** rng.uniform(-3, 4, count)
    good = total = above = nan = 0
    worst, evaluations, failures = 0.0, [], []
    for name, (f, exact) in functions().items():
        with np.errstate(all="ignore"):
            here = f(points)
            keep = np.isfinite(here) & (np.abs(here) < 1e250) & (np.abs(here) > 1e-250)
            x, here = points[keep], here[keep]
            counts = np.zeros(x.size, int)

            def values(which: Any, offsets: Any, f=f, x=x, counts=counts) -> Any:
                counts[which] += len(offsets)
                return f(x[which] + offsets), x[which] + offsets

            found = extrapolate(values, x, here, np.full(x.size, EPS))
        with mpmath.workdps(50):
            first, second = (
                np.array([float(mpmath.diff(exact, mpmath.mpf(v), n, h=mpmath.mpf(h))) for v in x])
                for n, h in ((1, "1e-20"), (2, "1e-14"))
            )
        error = np.abs(found.slope - first)
        with np.errstate(all="ignore"):
            bend = np.fmin(np.abs(first / second), np.maximum(np.abs(x), 1))
            rounding = EPS * (np.abs(here) + np.abs(x * first)) / bend
        allowed = np.fmax(1e-10 * np.abs(first), 10 * rounding)
        good += np.count_nonzero(error <= allowed)
        total += x.size
        above += np.count_nonzero(~(error <= found.error))
        nan += np.count_nonzero(np.isnan(found.slope))
        sane = rounding < 1e-10 * np.abs(first)
        worst = max(worst, float(np.max(error[sane] / np.abs(first[sane]), initial=0)))
        evaluations += counts.tolist()
        failures += [(name, float(v)) for v in x[~(error <= allowed)]]
    return {"pairs": total, "within": f"{good / total:.1%}", "worst": worst, "NaN": nan,
            "above the estimate": f"{above / total:.2%}", "not within": failures,
            "evaluations": float(np.mean(evaluations)), "most": max(evaluations)}  # fmt: skip


def estimates(count: int, seed: int = 0) -> dict[str, Any]:
    """Compare the estimates of ``error=True`` with the errors, for given steps."""
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {}
    for order in (2, 4, 6, "auto"):
        total = above = far = 0
        largest = 0.0
        for _ in range(count):
            for kind in ("tanh", "softplus", "relu"):
                model = Model(rng, kind)
                h = "auto" if order == "auto" else float(rng.choice([1e-2, 1e-3, 1e-4]))
                options = {} if order == "auto" else {"order": order}
                found, error = numerical_gradient(
                    model.loss, model.params, h, error=True, **options
                )
                right = model.gradient(model.params)
                for name in right:
                    off = np.abs(found[name] - right[name])
                    total += off.size
                    above += np.count_nonzero(off > error[name])
                    far += np.count_nonzero(off > 3 * error[name])
                    largest = max(largest, float(np.max(off) / np.max(np.abs(right[name]))))
        result[f"order {order}"] = (
            f"{total} entries, above {above / total:.2%}, by a factor of 3: {far}, "
            f"largest relative error {largest:.1e}"
        )
    return result


def times(rounds: int = 5) -> dict[str, Any]:
    """Measure what trees and checks cost beside calling the function."""

    def best(run: Any) -> float:
        spent = []
        for _ in range(rounds):
            begin = time.perf_counter()
            run()
            spent.append(time.perf_counter() - begin)
        return min(spent)

    rng = np.random.default_rng(0)
    flat = rng.normal(size=2000)
    tree = {f"layer{i}": part for i, part in enumerate(np.split(flat.copy(), 100))}
    cheap = 0.5
    of_flat = best(lambda: numerical_gradient(lambda _: cheap, flat))
    of_tree = best(lambda: numerical_gradient(lambda _: cheap, tree))
    small = flat[:20]
    some = best(lambda: [np.tanh(small).sum() for _ in range(4000)]) / 4000
    of_flat_some = best(lambda: numerical_gradient(lambda _: np.tanh(small).sum(), flat))
    of_tree_some = best(lambda: numerical_gradient(lambda _: np.tanh(small).sum(), tree))
    calls = best(lambda: [(lambda _: cheap)(flat) for _ in range(8000)])
    checked = best(lambda: quiet_check(lambda x: float(x[0]) * 2, np.eye(1, 2000)[0] * 2, flat))
    linear = best(lambda: [(lambda x: float(x[0]) * 2)(flat) for _ in range(8000)])
    busy = best(lambda: quiet_check(lambda x: float(x @ flat), 2 * flat * 0 + flat, flat.copy()))
    calls_busy = best(lambda: [(lambda x: float(x @ flat))(flat) for _ in range(8000)])
    return {
        "tree of 100 arrays / one array, f for free": of_tree / of_flat,
        f"the same, f of {some * 1e6:.1f} µs": of_tree_some / of_flat_some,
        "numerical gradient, µs an evaluation": (of_flat - calls / 2) / 4000 * 1e6,
        "check of a cheap f, µs an evaluation over its calls": (checked - linear) / 8000 * 1e6,
        "check of x @ w, µs an evaluation over its calls": (busy - calls_busy) / 8000 * 1e6,
    }


def against_numdifftools() -> dict[str, Any]:
    """Compare with numdifftools' gradient, for a compiled function of 1,000 variables."""
    import numdifftools
    from numba import njit

    @njit
    def f(x: Any) -> float:
        total = 0.0
        for i in range(x.size - 1):
            total += 100.0 * (x[i + 1] - x[i] * x[i]) ** 2 + (1.0 - x[i]) ** 2
        return total

    x = np.random.default_rng(0).normal(size=1000)
    numerical_gradient(f, x, "auto")
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        numerical_gradient(f, x, "auto")
        spent.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    numdifftools.Gradient(f)(x)
    theirs = time.perf_counter() - begin
    return {"fastgrad": min(spent), "numdifftools": theirs, "ratio": theirs / min(spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1.0, help="part of the full size")
    parser.add_argument("--only", nargs="*", help="names of campaigns")
    options = parser.parse_args()
    size = options.size
    campaigns = {
        "planted": lambda: planted_mistakes(round(200 * size)),
        "one_entry": lambda: one_in_thirty_thousand(max(1, round(3 * size))),
        "right_models": lambda: right_models(round(1050 * size)),
        "right_models_auto": lambda: right_models(round(525 * size), h="auto"),
        "wrong_models": lambda: wrong_models(round(231 * size)),
        "auto_on_models": lambda: auto_on_models(round(525 * size)),
        "float32": lambda: float32_models(round(26 * max(size, 1))),
        "relu_seeds": relu_seeds,
        "suspects": lambda: suspects(round(240 * size)),
        "right": lambda: right_gradients(round(2000 * size)),
        "unseen": lambda: unseen(round(200 * size)),
        "elementary": lambda: elementary(8),
        "elementary_random": lambda: elementary(round(40 * size), 1),
        "estimates": lambda: estimates(round(60 * size)),
        "times": times,
        "numdifftools": against_numdifftools,
    }
    for name, run in campaigns.items():
        if options.only and name not in options.only:
            continue
        try:
            result = run()
        except ImportError as error:
            result = {"left out": str(error)}
        print(name)
        for key, value in result.items():
            print(f"    {key}: {value}")


if __name__ == "__main__":
    main()
