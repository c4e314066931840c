"""The compiled central difference against the same one in 50-digit arithmetic.

Errors are relative to the largest entry of their array. Both variants are tested on the same steps:
the one for two layers and h in series range, and the general one.
"""

import numpy as np
import pytest
from fences import fenced
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    exact_central_difference,
    from_python,
    gradient,
    numerical_gradient,
    probabilities,
    random_params,
    relative_errors,
    rows,
)

from fastgrad.kernels.central_difference import two_layers
from fastgrad.networks.engine import Engine
from fastgrad.runtime.compile import COMPILED

TOLERANCE = {"f": 1e-5, "d": 1e-13}
TARGETS = ("labels", "one-hot", "soft", "weights", "negative")


@pytest.fixture
def generally(monkeypatch):
    """Return a list that grows by an entry whenever the general variant runs."""
    ran = []
    evaluate = Engine._in_general

    def noted(*args):
        ran.append(True)
        return evaluate(*args)

    monkeypatch.setattr(Engine, "_in_general", noted)
    return ran


@pytest.fixture(params=["series", "general"])
def variant(request, monkeypatch, generally):
    """Force one of the two variants, and see to it that no other one ran."""
    if request.param == "general":
        monkeypatch.setattr(two_layers, "LOGIT_MOVE_LIMIT", -1.0)
    yield request.param
    assert bool(generally) == (request.param == "general")


def draw_targets(kind, n, classes, rng):
    if kind == "labels":
        return rng.integers(0, classes, n)
    if kind == "one-hot":
        return rows(rng.integers(0, classes, n), classes)
    if kind == "negative":
        return rng.standard_normal((n, classes))
    t = rng.random((n, classes))
    t[rng.random(t.shape) < 0.2] = 0
    return t / t.sum(axis=1, keepdims=True).clip(0.1) if kind == "soft" else 2 * t


def draw_samples(n, width, rng):
    x = rng.standard_normal((n, width))
    x[rng.random(x.shape) < 0.3] = 0
    return x


def compute(sizes, params, x, t, activation, delta, h, decay=0.0):
    """Return the kernels' central difference as a dict of arrays."""
    dtype = params["W1"].dtype
    engine = Engine(sizes, activation, delta, dtype, decay)
    engine.load(params)
    labels, soft = np.empty(0, np.int64), np.empty((0, sizes[-1]), dtype)
    if t.ndim == 1:
        labels = t
    else:
        soft = np.ascontiguousarray(t, dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # for kernels that are not compiled
        return engine.central_difference(x, labels, soft, h)[1]


def exact(sizes, params, x, t, activation, delta, h, decay=0.0, **options):
    """Return the same with 50 digits or more, from the numbers as they are rounded to the dtype."""
    dtype = params["W1"].dtype.type
    t = rows(t, sizes[-1]).astype(dtype)
    return exact_central_difference(
        params, x, t, activation, float(dtype(delta)), float(dtype(h)), float(decay), **options
    )


def assert_exact(sizes, params, x, t, *settings, tolerance=None, **options):
    got = compute(sizes, params, x, t, *settings)
    errors = relative_errors(got, exact(sizes, params, x, t, *settings, **options))
    assert max(errors.values()) <= (tolerance or TOLERANCE[params["W1"].dtype.char]), errors


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("h", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_two_layers(activation, kind, delta, h, dtype, monkeypatch):
    rng = np.random.default_rng(len(kind))
    sizes, n = (4, 5, 3), 3
    x = draw_samples(n, sizes[0], rng).astype(dtype)
    t = draw_targets(kind, n, sizes[-1], rng)
    # So small that even the largest step does not move a logit beyond the limit.
    params = random_params(sizes, rng, dtype=dtype)
    params["W2"] *= params["W2"].dtype.type(0.02 if h == 1e-2 else 1)
    x *= x.dtype.type(0.5)
    want = exact(sizes, params, x, t, activation, delta, h)
    for limit in (two_layers.LOGIT_MOVE_LIMIT, -1.0):
        monkeypatch.setattr(two_layers, "LOGIT_MOVE_LIMIT", limit)
        errors = relative_errors(compute(sizes, params, x, t, activation, delta, h), want)
        assert max(errors.values()) <= TOLERANCE[dtype], (limit, errors)


@pytest.mark.parametrize("h", [1e-6, 1e-4, 1e-2, 0.7, 5.0])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_both_variants_agree_wherever_the_series_runs(activation, h, monkeypatch):
    rng = np.random.default_rng(3)
    sizes, n = (9, 17, 5), 5 if COMPILED else 2
    x, t = draw_samples(n, sizes[0], rng), draw_targets("soft", n, sizes[-1], rng)
    for scale in (0.01, 1.0):
        params = random_params(sizes, rng, scale=scale)
        either = compute(sizes, params, x, t, activation, 1e-7, h)
        monkeypatch.setattr(two_layers, "LOGIT_MOVE_LIMIT", -1.0)
        general = compute(sizes, params, x, t, activation, 1e-7, h)
        monkeypatch.undo()
        assert max(relative_errors(either, general).values()) <= 1e-12


def test_variants_are_chosen_by_the_size_of_the_moves(generally):
    sizes = 3, 4, 2
    params, x, t = random_params(sizes, np.random.default_rng(0)), np.ones((2, 3)), np.zeros(2, int)
    chosen = []
    for factor, h in ((1, 1e-4), (1, 1.0), (1e4, 1e-4), (1, 1e-3)):
        generally.clear()
        compute(sizes, params, factor * x, t, "relu", 0.0, h)
        chosen.append(bool(generally))
    params["W2"] *= 100
    compute(sizes, params, x, t, "relu", 0.0, 1e-4)
    assert [*chosen, bool(generally)] == [False, True, True, False, True]


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("h", [1e-4, 0.7])
@pytest.mark.parametrize(
    "sizes", [(4, 3), (3, 4, 3, 2), (3, 5, 4, 5, 3), (2, 3, 2, 3, 2, 2)], ids=str
)
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_any_depth(activation, sizes, h, dtype, chunks):
    rng = np.random.default_rng(len(sizes))
    x, t = draw_samples(3, sizes[0], rng).astype(dtype), draw_targets("soft", 3, sizes[-1], rng)
    params = random_params(sizes, rng, scale=2, dtype=dtype)
    tolerance = {"f": 2e-5, "d": 1e-13}[dtype]
    assert_exact(sizes, params, x, t, activation, 1e-7, h, 0.1, tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("n_inputs", [63, 64, 65, 130])
@pytest.mark.parametrize("n_hidden", [1, 5, 50])
@np.errstate(over="ignore")  # for kernels that are not compiled
def test_more_inputs_than_bits_fit_into_a_number(n_hidden, n_inputs, dtype):
    rng = np.random.default_rng(n_inputs)
    sizes = (n_inputs, n_hidden, 3)
    x, t = draw_samples(3, n_inputs, rng).astype(dtype), rng.integers(0, 3, 3)
    x[:, -1] = 0.5, 0, -0.5  # the last row of W1, behind which there is nothing
    params = random_params(sizes, rng, dtype=dtype)
    got = compute(sizes, params, x, t, "sigmoid", 1e-7, 1e-4)
    double = {name: array.astype("d") for name, array in params.items()}
    want = gradient(double, x.astype("d"), rows(t, 3), "sigmoid", 1e-7)
    errors = relative_errors(got, want)
    assert max(errors.values()) <= {"f": 1e-5, "d": 1e-7}[dtype], errors


@pytest.mark.parametrize("sizes", [(130, 50, 3), (64, 1, 2), (70, 9, 2)])
@np.errstate(over="ignore")  # for kernels that are not compiled
def test_nothing_outside_of_the_arrays_is_touched(sizes, chunks):
    rng = np.random.default_rng(1)
    params, labels, soft = random_params(sizes, rng), np.array([0, 1]), np.empty((0, sizes[-1]))
    x = draw_samples(2, sizes[0], rng)
    want = gradient(params, x, rows(labels, sizes[-1]), "sigmoid", 1e-7)
    engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
    with fenced(x, *params.values(), *params.values()) as copies:
        for samples, *arrays in copies:
            engine.load(dict(zip(params, arrays[: len(params)], strict=True)))
            result = dict(zip(params, arrays[len(params) :], strict=True))
            for array in result.values():
                array[...] = np.nan  # it is written, not added to
            _, in_range = engine._in_series(samples, labels, soft, 1e-4, result)
            assert in_range
            assert max(relative_errors(result, want).values()) <= 1e-7
    flat = np.full(engine.n_parameters, np.nan)
    with fenced(x, flat) as copies:
        for samples, result in copies if COMPILED else copies[:1]:
            engine.load(params)
            engine._in_general(samples, labels, soft, 1e-4, result)
            assert max(relative_errors(engine.split(result), want).values()) <= 1e-7


@np.errstate(over="ignore", invalid="ignore")  # for kernels that are not compiled
def test_steps_in_and_out_of_series_range_in_turn(chunks):
    rng, sizes = np.random.default_rng(12), (70, 5, 3)
    engine = Engine(sizes, "relu", 1e-7, np.dtype("d"))
    soft = np.empty((0, sizes[-1]))
    # The last is in range but for one entry of one sample.
    for kind, h in [("many", 1e-4), ("many", 0.5), ("few", 1e-4), ("large", 1e-4)] * 2:
        params, labels = random_params(sizes, rng), rng.integers(0, 3, 7)
        x = draw_samples(7, sizes[0], rng)
        if kind != "many":
            x[rng.random(x.shape) < 0.95] = 0
        if kind == "large":
            x[5, 3] = 1e5
        engine.load(params)
        _, got = engine.central_difference(x, labels, soft, h)
        want = compute(sizes, params, x, labels, "relu", 1e-7, h)
        assert max(relative_errors(got, want).values()) <= 1e-13


@pytest.mark.parametrize("dtype", ["f", "d"])
def test_unique_values(dtype):
    rng = np.random.default_rng(0)
    slots = two_layers.HASH_SLOTS
    table = np.zeros((slots + 1, 2), np.uint64)
    pixels = (np.arange(1, 256) / 255).astype(dtype)  # of 0 nobody asks
    gray, far = rng.choice(pixels, 700), rng.standard_normal(3 * slots).astype(dtype)
    samples = [gray, gray[:9], gray[:1], far, np.array([0.5, 0.5, -0.5, 1], dtype), gray]
    if not COMPILED:
        samples[3] = far[: slots // 2]
    for values in samples:
        unique, inverse = np.full_like(values, np.nan), np.full(values.size, 2**32 - 1, np.uint32)
        with np.errstate(over="ignore"):  # for kernels that are not compiled
            count = from_python(two_layers.unique_values)(
                values, values.view(f"u{values.itemsize}"), table, unique, inverse
            )
        assert 0 < count <= values.size
        np.testing.assert_array_equal(unique[inverse], values)
        np.testing.assert_array_equal(np.unique(inverse), np.arange(count))
        assert np.isnan(unique[count:]).all()
        # Where two share a slot, one may be counted again and again, but not in an image.
        assert count <= 2 * np.unique(values).size


@pytest.mark.parametrize("n_hidden", [1, 4, 7, 8, 9, 16, 17] + [63, 64, 65] * COMPILED)
def test_hidden_sizes_around_registers(n_hidden, variant, chunks):
    rng = np.random.default_rng(n_hidden)
    for n_inputs, classes in [(1, 1), (3, 2), (9, 3)] if COMPILED else [(3, 2)]:
        sizes = (n_inputs, n_hidden, classes)
        x, t = draw_samples(2, n_inputs, rng), draw_targets("weights", 2, classes, rng)
        params = random_params(sizes, rng)
        # A few entries of each array, the edges among them.
        picks = {
            name: [tuple(0 for _ in array.shape), tuple(size - 1 for size in array.shape)]
            + [tuple(int(rng.integers(size)) for size in array.shape) for _ in range(4)]
            for name, array in params.items()
        }
        got = compute(sizes, params, x, t, "sigmoid", 1e-7, 1e-4)
        want = exact(sizes, params, x, t, "sigmoid", 1e-7, 1e-4, only=picks)
        whole = gradient(params, x, t, "sigmoid", 1e-7)
        for name, array in want.items():
            known = ~np.isnan(array)
            largest = np.abs(whole[name]).max()
            np.testing.assert_allclose(got[name][known], array[known], rtol=0, atol=1e-13 * largest)
            np.testing.assert_allclose(got[name], whole[name], rtol=0, atol=1e-7 * largest)


@pytest.mark.parametrize("h", [1e-8, 1e-4, 0.7, 3.0])
@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_confident_networks(kind, delta, h):
    # Logits tens apart: probabilities of 1 - 1e-20 and 1e-20, right and wrong ones.
    rng = np.random.default_rng(5)
    sizes = (4, 6, 3)
    x, t = draw_samples(4, sizes[0], rng), draw_targets(kind, 4, sizes[-1], rng)
    params = random_params(sizes, rng, scale=8)
    for activation in ("sigmoid", "relu"):
        assert_exact(sizes, params, x, t, activation, delta, h, digits=120)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("scale", [1e4, 1e6, 1e8])
@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 4, 4, 2)])
def test_logits_too_large_to_show_a_move(sizes, delta, scale, dtype):
    # Certain of every sample, and right about all but one: of the others nothing is left.
    rng = np.random.default_rng(3)
    params = random_params(sizes, rng, scale=2, dtype=dtype)
    params[f"W{len(sizes) - 1}"] *= np.dtype(dtype).type(scale)
    x = (1 + rng.random((4, 3))).astype(dtype)
    t = probabilities(params, x.astype("d"), "relu").argmax(axis=1)
    h = 1e-2 if dtype == "f" else 1e-4
    certain = compute(sizes, params, x, t, "relu", delta, h)
    assert all((array == 0).all() for array in certain.values())
    t[0] = 1 - t[0]
    assert_exact(sizes, params, x, t, "relu", delta, h, tolerance=1e-4 if dtype == "f" else 1e-12)


@pytest.mark.parametrize("size", [30.0, 300.0, 1000.0])
def test_saturated_units(size):
    # Slopes down to 1e-300, and beyond where float64 has no numbers left.
    rng = np.random.default_rng(6)
    sizes = (3, 2, 3)
    x, t = np.abs(draw_samples(2, 3, rng)) + 0.1, np.array([0, 2])
    params = random_params(sizes, rng)
    for sign in (1, -1):
        params["b1"][:] = sign * size
        for h in (1e-4, 0.5):
            got = compute(sizes, params, x, t, "sigmoid", 0.0, h)
            want = exact(sizes, params, x, t, "sigmoid", 0.0, h, digits=1000)
            for name, array in want.items():
                # What a sample adds has been multiplied by a slope that holds ~size digits of e.
                precision = 1e-13 + size * 4e-16
                largest = np.abs(array).max()
                tiny = 1e-300 if size < 1000 else 1e-290
                assert np.abs(got[name] - array).max() <= precision * largest + tiny


@pytest.mark.parametrize("h", [1e-6, 1e-4, 1e-2, 0.7])
def test_dead_units_and_kinks_of_relu(h, variant, monkeypatch):
    if variant == "series" and h > 1e-3:
        pytest.skip("a series is for small moves")
    rng = np.random.default_rng(7)
    sizes = (3, 5, 3)
    x, t = draw_samples(3, 3, rng), np.array([0, 1, 2])
    params = random_params(sizes, rng)
    x[0] = 0
    # Dead for good; exactly at the kink; less than a step from it, on either side.
    params["b1"][:] = [-50, 0, h / 3, -h / 3, 1]
    assert_exact(sizes, params, x, t, "relu", 1e-7, h)
    got = compute(sizes, params, x, t, "relu", 1e-7, h)
    assert not got["W1"][:, 0].any()
    assert got["b1"][0] == 0
    # Of sample 0 the units 1 and 3 are 0 and rise with their bias, on one side only.
    assert got["b1"][1] != 0


def test_samples_of_zeros_and_units_at_zero(variant):
    sizes = (4, 3, 2)
    params = random_params(sizes, np.random.default_rng(8))
    got = compute(sizes, params, np.zeros((2, 4)), np.array([0, 1]), "sigmoid", 1e-7, 1e-4)
    assert not got["W1"].any()
    assert got["b1"].all()
    params["W2"][:] = 0
    params["b2"][:] = 0
    assert_exact(sizes, params, np.ones((2, 4)), np.array([0, 1]), "sigmoid", 1e-7, 1e-4)


def test_a_single_class_has_no_gradient_without_delta(variant):
    params = random_params((3, 2, 1), np.random.default_rng(9))
    got = compute((3, 2, 1), params, np.ones((2, 3)), np.zeros(2, np.int64), "relu", 0.0, 1e-4)
    assert not any(array.any() for array in got.values())


def test_wrong_and_confident_at_a_large_step():
    # The others' probability goes down with the nudge; the label's own has underflowed to 0.
    params = {
        "W1": np.ones((1, 1)),
        "b1": np.zeros(1),
        "W2": np.array([[0.0, 900.0]]),
        "b2": np.zeros(2),
    }
    for delta in (0.0, 1e-7):
        for h in (1e-4, 0.9, 0.999):
            x, t = np.ones((1, 1)), np.zeros(1, np.int64)
            # Logits of 900 are themselves rounded to 1e-13.
            assert_exact((1, 1, 2), params, x, t, "relu", delta, h, tolerance=2e-12, digits=900)


@settings(max_examples=settings().max_examples // (1 if COMPILED else 10))
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    n=st.integers(1, 3),
    kind=st.sampled_from(TARGETS),
    activation=st.sampled_from(["sigmoid", "relu"]),
    delta=st.sampled_from([0.0, 1e-7, 0.1]),
    exponent=st.floats(-8, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_networks(sizes, n, kind, activation, delta, exponent, seed):
    rng = np.random.default_rng(seed)
    h = 10.0**exponent
    x, t = draw_samples(n, sizes[0], rng), draw_targets(kind, n, sizes[-1], rng)
    params = random_params(sizes, rng, scale=rng.choice([0.1, 1, 3]))
    got = compute(sizes, params, x, t, activation, delta, h)
    want = exact(sizes, params, x, t, activation, delta, h, digits=80)
    # Where samples or classes cancel, one term's rounding is what counts: the sum of their sizes.
    soft = rows(t, sizes[-1])
    terms = {name: np.zeros_like(array) for name, array in params.items()}
    for i in range(n):
        for k in np.flatnonzero(soft[i]):
            one = np.zeros((1, sizes[-1]))
            one[0, k] = soft[i, k] / n
            part = exact(sizes, params, x[i : i + 1], one, activation, delta, h, digits=80)
            for name in terms:
                terms[name] += np.abs(part[name])
    for name, array in want.items():
        error = np.abs(got[name] - array).max()
        assert error <= 1e-13 * terms[name].max() + 1e-300, name


def test_textbook_loop_agrees_as_far_as_its_digits_go():
    rng = np.random.default_rng(10)
    sizes = (5, 6, 3)
    x, t = draw_samples(4, 5, rng), draw_targets("labels", 4, 3, rng)
    params = random_params(sizes, rng)
    textbook = numerical_gradient(params, x, rows(t, 3), "sigmoid", 1e-7, 1e-4)
    got = compute(sizes, params, x, t, "sigmoid", 1e-7, 1e-4)
    assert max(relative_errors(textbook, got).values()) < 1e-9


def test_moves_of_infinite_size_give_no_silent_number():
    params = random_params((2, 3, 2), np.random.default_rng(11))
    params["W1"][0, 0] = np.nan
    got = compute(
        (2, 3, 2), params, np.array([[0.0, 1.0]]), np.zeros(1, np.int64), "relu", 0.0, 1e-4
    )
    assert all(np.isnan(array).all() for array in got.values())
