"""The networks against plain NumPy, and against 50-digit central differences."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from typing import ClassVar

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    exact_central_difference,
    forward,
    gradient,
    loss,
    probabilities,
    random_params,
    relative_errors,
    rows,
)

import fastgrad
from fastgrad import GradientCheck, MultiLayerNet, TwoLayerNet
from fastgrad.networks import engine

KINDS = {"two": (6, 5, 4), "one": (6, 4), "three": (6, 5, 3, 4), "four": (6, 3, 5, 3, 4)}


def build(sizes, params, activation="sigmoid", delta=1e-7, dtype=np.float64, decay=0.0):
    """Return a network of these sizes with these parameters."""
    if len(sizes) == 3 and not decay:
        net = TwoLayerNet(*sizes, activation=activation, delta=delta, dtype=dtype, rng=0)
    else:
        net = MultiLayerNet(
            sizes[0], sizes[1:-1], sizes[-1], activation, "relu", decay,
            delta=delta, dtype=dtype, rng=0,
        )  # fmt: skip
    net.params = {name: array.astype(dtype) for name, array in params.items()}
    return net


def example(sizes=(6, 5, 4), n=5, seed=0, **options):
    rng = np.random.default_rng(seed)
    params = random_params(sizes, rng)
    x = rng.standard_normal((n, sizes[0]))
    x[rng.random(x.shape) < 0.3] = 0
    return build(sizes, params, **options), params, x, rng.integers(0, sizes[-1], n)


@pytest.fixture
def thread_count():
    """Give the test leave to change the number of threads."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


class TestInitialValues:
    def test_the_books_numbers(self):
        np.random.seed(0)
        net = TwoLayerNet(7, 5, 3)
        np.random.seed(0)
        np.testing.assert_array_equal(net.params["W1"], 0.01 * np.random.randn(7, 5))
        np.testing.assert_array_equal(net.params["W2"], 0.01 * np.random.randn(5, 3))
        assert list(net.params) == ["W1", "b1", "W2", "b2"]
        assert not net.params["b1"].any()
        assert not net.params["b2"].any()

    @pytest.mark.parametrize(
        ("name", "factor"), [("relu", 2), ("He", 2), ("sigmoid", 1), ("XAVIER", 1), (0.3, None)]
    )
    def test_scales_of_many_layers(self, name, factor):
        np.random.seed(1)
        net = MultiLayerNet(7, [5, 4], 3, weight_init_std=name)
        np.random.seed(1)
        for layer, (n_in, n_out) in enumerate([(7, 5), (5, 4), (4, 3)], start=1):
            scale = 0.3 if factor is None else np.sqrt(factor / n_in)
            np.testing.assert_allclose(
                net.params[f"W{layer}"], scale * np.random.randn(n_in, n_out), rtol=1e-15
            )

    @pytest.mark.parametrize("rng", [5, "generator"])
    def test_streams_of_their_own(self, rng):
        def make():
            return TwoLayerNet(4, 3, 2, rng=np.random.default_rng(5) if rng == "generator" else rng)

        np.random.seed(0)
        state = np.random.get_state()[1].copy()
        first, second = make(), make()
        np.testing.assert_array_equal(first.params["W1"], second.params["W1"])
        np.testing.assert_array_equal(state, np.random.get_state()[1])
        np.testing.assert_array_equal(
            first.params["W1"], 0.01 * np.random.default_rng(5).standard_normal((4, 3))
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_against_numpy(kind, activation, dtype, threads, thread_count):
    thread_count(min(threads, numba.config.NUMBA_NUM_THREADS))
    sizes, tolerance = KINDS[kind], 1e-4 if dtype == "f" else 1e-12
    for n, delta, decay in [(1, 1e-7, 0.0), (7, 0.0, 0.1), (100, 0.1, 0.0)]:
        net, params, x, t = example(
            sizes, n, activation=activation, delta=delta, dtype=dtype, decay=decay
        )
        params = {name: array.astype(float) for name, array in net.params.items()}
        soft = np.random.default_rng(n).random((n, sizes[-1]))
        p, values = probabilities(params, x, activation), forward(params, x, activation)[1][-1]
        is_two = isinstance(net, TwoLayerNet)
        np.testing.assert_allclose(
            net.predict(x), p if is_two else values, rtol=tolerance, atol=tolerance
        )
        assert net.predict(x).dtype == dtype
        assert net.accuracy(x, t) == np.mean(p.argmax(axis=1) == t)
        assert net.accuracy(x, soft) == np.mean(p.argmax(axis=1) == soft.argmax(axis=1))
        for target in (t, rows(t, sizes[-1]), soft):
            wide = rows(target, sizes[-1])
            want = loss(params, x, wide, activation, delta, decay)
            assert net.loss(x, target) == pytest.approx(want, rel=tolerance)
            errors = relative_errors(
                net.gradient(x, target), gradient(params, x, wide, activation, delta, decay)
            )
            assert max(errors.values()) < tolerance
        assert all(array.dtype == dtype for array in net.gradient(x, t).values())


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("delta", [1e-7, 0.0])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_numerical_gradients_against_fifty_digits(kind, activation, delta, dtype):
    sizes = KINDS[kind]
    for h in (1e-2, 1e-4, 1e-6):
        net, _, x, t = example(sizes, 4, activation=activation, delta=delta, dtype=dtype)
        x = x.astype(dtype)
        want = exact_central_difference(
            net.params, x, rows(t, sizes[-1]), activation,
            float(np.dtype(dtype).type(delta)), float(np.dtype(dtype).type(h)),
        )  # fmt: skip
        got = net.numerical_gradient(x, t, h)
        errors = relative_errors(got, want)
        assert max(errors.values()) <= (1e-5 if dtype == "f" else 1e-13), errors
        assert all(array.dtype == dtype for array in got.values())


@pytest.mark.parametrize("delta", [1e-7, 0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_to_the_truncation_error(kind, delta):
    net, _, x, t = example(KINDS[kind], 6, delta=delta, seed=2, decay=0.05)
    soft = np.random.default_rng(1).random((6, 4)) * 2
    for target in (t, rows(t, 4), soft):
        backward = net.gradient(x, target)
        errors = [
            max(relative_errors(net.numerical_gradient(x, target, h), backward).values())
            for h in (1e-1, 1e-2, 1e-3)
        ]
        assert errors[0] < 0.01
        assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)
        assert errors[2] == pytest.approx(errors[1] / 100, rel=0.05)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("n", [1000, 1001, 2503])
def test_large_sets_go_block_by_block(n, zeros):
    net, params, x, t = example(n=n)
    x[np.random.default_rng(1).random(x.shape) < zeros] = 0
    assert net.loss(x, t) == pytest.approx(loss(params, x, rows(t, 4), "sigmoid", 1e-7), rel=1e-12)
    np.testing.assert_allclose(net.predict(x), probabilities(params, x, "sigmoid"), rtol=1e-12)
    want = gradient(params, x, rows(t, 4), "sigmoid", 1e-7)
    assert max(relative_errors(net.gradient(x, t), want).values()) < 1e-12
    assert max(relative_errors(net.numerical_gradient(x, t, 1e-6), want).values()) < 1e-10
    decayed = build((6, 5, 4), params, decay=0.1)
    want = gradient(params, x, rows(t, 4), "sigmoid", 1e-7, 0.1)
    assert max(relative_errors(decayed.gradient(x, t), want).values()) < 1e-12
    assert max(relative_errors(decayed.numerical_gradient(x, t, 1e-6), want).values()) < 1e-10
    want = loss(params, x, rows(t, 4), "sigmoid", 1e-7, 0.1)
    assert decayed.loss(x, t) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_calls_in_any_order(seed, thread_count, monkeypatch):
    # An engine remembers much from call to call: scratch, parameters, whether there were zeros.
    rng = np.random.default_rng(seed)
    sizes = [(70, 6, 3), (70, 6, 5, 3), (70, 3)][seed % 3]
    activation = ("sigmoid", "relu")[seed % 2]
    net = build(sizes, random_params(sizes, rng), activation)
    most_threads = numba.config.NUMBA_NUM_THREADS
    finite = {name: array.copy() for name, array in net.params.items()}
    for _ in range(30):
        n = int(rng.choice([1, 5, 8, 40, 1000, 1300]))
        x = rng.standard_normal((n, 70)) * (rng.random((n, 70)) >= rng.choice([0.0, 0.9, 1.0]))
        t = rng.integers(0, 3, n) if rng.random() < 0.5 else rng.random((n, 3))
        wide = rows(t, 3)
        name = rng.choice(list(finite))
        for kind in ("PASS", "SERIES", "GENERAL"):
            effort = engine.ParallelCost(int(rng.choice([1, 100_000, 10**15])), 0)
            monkeypatch.setattr(engine, kind, effort)
        change = rng.choice(["nothing", "entry", "array", "spoilt", "mended", "threads"])
        if change == "entry":
            net.params[name].flat[-1] = finite[name].flat[-1] = rng.standard_normal()
        elif change == "array":
            finite[name] = finite[name][::-1].copy()
            net.params[name] = finite[name].copy()
        elif change == "spoilt":
            net.params[name].flat[rng.integers(net.params[name].size)] = np.nan
        elif change == "threads":
            thread_count(int(rng.integers(1, most_threads + 1)))
        elif change == "mended":
            net.params = {key: array.copy() for key, array in finite.items()}
        is_finite = all(np.isfinite(array).all() for array in net.params.values())
        call = rng.choice(["predict", "loss", "gradient", "numerical_gradient", "fit"])
        if call == "predict":
            scores = forward(net.params, x, activation)[1][-1]
            is_two = isinstance(net, TwoLayerNet)
            want = probabilities(net.params, x, activation) if is_two else scores
            np.testing.assert_allclose(net.predict(x), want, rtol=1e-9, atol=1e-14)
        elif call == "loss":
            want = loss(net.params, x, wide, activation, 1e-7)
            assert net.loss(x, t) == pytest.approx(want, rel=1e-10, nan_ok=True)
        elif call == "fit" and is_finite:
            kept = {key: array.copy() for key, array in net.params.items()}
            want = gradient(kept, x[:1], wide[:1], activation, 1e-7)
            net.fit(x[:1], t[:1], iterations=1, batch_size=n)  # whatever is drawn
            for key, array in net.params.items():
                np.testing.assert_allclose(
                    array, kept[key] - 0.1 * want[key], rtol=1e-9, atol=1e-12
                )
            finite = {key: array.copy() for key, array in net.params.items()}
        elif is_finite or call == "gradient":
            numerical = is_finite and call == "numerical_gradient" and n < 1000
            got = net.numerical_gradient(x, t, 1e-6) if numerical else net.gradient(x, t)
            want = gradient(net.params, x, wide, activation, 1e-7)
            for key, array in got.items():
                # A loss of NaN makes every entry NaN.
                expected = want[key] if is_finite else np.full_like(array, np.nan)
                tolerance = 1e-7 if numerical else 1e-9
                np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance / 1e3)


@given(
    sizes=st.lists(
        st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65]), min_size=2, max_size=5
    ),
    n=st.integers(1, 9),
    zeros=st.sampled_from([0.0, 0.8, 1.0]),
    activation=st.sampled_from(["sigmoid", "relu"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_odd_shapes(sizes, n, zeros, activation, seed):
    rng = np.random.default_rng(seed)
    params = random_params(sizes, rng)
    net = build(sizes, params, activation)
    x, t = rng.standard_normal((n, sizes[0])), rng.integers(0, sizes[-1], n)
    x[rng.random(x.shape) < zeros] = 0
    wide = rows(t, sizes[-1])
    assert net.loss(x, t) == pytest.approx(loss(params, x, wide, activation, 1e-7), rel=1e-10)
    want = gradient(params, x, wide, activation, 1e-7)
    for name, array in net.gradient(x, t).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-9, atol=1e-13)


class TestInputs:
    def test_one_sample(self):
        net, _, x, t = example()
        assert net.predict(x[0]).shape == (4,)
        np.testing.assert_allclose(net.predict(x[0]), net.predict(x)[0], rtol=1e-14)
        for target in (t[0], int(t[0]), t[:1], rows(t, 4)[0], rows(t, 4)[:1]):
            assert net.loss(x[0], target) == pytest.approx(net.loss(x[:1], t[:1]), rel=1e-14)
            got = net.gradient(x[0], target)
            np.testing.assert_allclose(got["W1"], net.gradient(x[:1], t[:1])["W1"], rtol=1e-12)

    def test_layouts_and_dtypes(self):
        net, _, x, t = example()
        want = net.gradient(x, t)
        strided = np.zeros((10, 12))
        strided[::2, ::2] = x
        frozen = x.copy()
        frozen.flags.writeable = False
        for form in (np.asfortranarray(x), strided[::2, ::2], frozen, x.tolist(), x[::-1][::-1]):
            for name, array in net.gradient(form, t).items():
                np.testing.assert_array_equal(array, want[name])
            assert net.loss(form, t) == net.loss(x, t)
        for dtype in (np.uint8, np.int16, np.int64, bool, np.float32, np.float16):
            whole = (np.abs(x) > 0.5).astype(dtype)
            assert net.loss(whole, t) == net.loss(whole.astype(float), t)
        for dtype in (np.uint8, np.int8, np.uint64, np.int32):
            assert net.loss(x, t.astype(dtype)) == net.loss(x, t)
        assert net.loss(x, t[:, None]) == net.loss(x, t)
        assert net.loss(x, t.tolist()) == net.loss(x, t)

    def test_layouts_of_parameters(self):
        net, params, x, t = example()
        want = net.gradient(x, t)
        frozen = np.asfortranarray(params["W1"])
        frozen.flags.writeable = False
        net.params["W1"] = frozen
        net.params["b2"] = np.repeat(params["b2"], 2)[::2]
        for name, array in net.gradient(x, t).items():
            np.testing.assert_array_equal(array, want[name])

    def test_results_are_new_arrays(self):
        net, _, x, t = example()
        first = net.numerical_gradient(x, t)
        kept = {name: array.copy() for name, array in first.items()}
        predicted = net.predict(x)
        kept_prediction = predicted.copy()
        net.numerical_gradient(x[::-1], t, h=1e-2)
        net.gradient(x * 2, t)
        net.predict(x * 2)
        np.testing.assert_array_equal(predicted, kept_prediction)
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            assert not np.shares_memory(array, net.numerical_gradient(x, t)[name])
            assert not np.shares_memory(array, net.params[name])


class TestParameters:
    def test_edits_and_new_arrays_take_effect(self):
        net, params, x, t = example()
        net.loss(x, t)
        net.params["W1"][0, 0] += 1.5
        params["W1"][0, 0] += 1.5
        assert net.loss(x, t) == pytest.approx(loss(params, x, rows(t, 4), "sigmoid", 1e-7))
        net.params["b2"] = params["b2"] = params["b2"] + np.arange(4)
        assert net.loss(x, t) == pytest.approx(loss(params, x, rows(t, 4), "sigmoid", 1e-7))
        net.params["W2"] = params["W2"].astype(np.float32)
        params["W2"] = params["W2"].astype(np.float32).astype(float)
        assert net.loss(x, t) == pytest.approx(loss(params, x, rows(t, 4), "sigmoid", 1e-7))

    @pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "text", "complex", "list"])
    def test_what_does_not_fit_is_named(self, spoil):
        net, _, x, t = example()
        if spoil == "missing":
            del net.params["b1"]
        elif spoil == "extra":
            net.params["W3"] = np.zeros((4, 4))
        elif spoil == "shape":
            net.params["W1"] = np.zeros((5, 6))
        elif spoil == "text":
            net.params["W1"] = "W1"
        elif spoil == "complex":
            net.params["W1"] = net.params["W1"] * 1j
        else:
            net.params = list(net.params.values())
        before = copy.deepcopy(net.params)
        for call in (net.loss, net.gradient, net.numerical_gradient, net.accuracy, net.fit):
            with pytest.raises((ValueError, TypeError), match="params"):
                call(x, t)
        with pytest.raises((ValueError, TypeError), match="params"):
            net.predict(x)
        assert str(before) == str(net.params)

    def test_copies_are_independent(self):
        net, _, x, t = example()
        want = net.loss(x, t)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert twin.loss(x, t) == want
            twin.params["W1"][:] = 0
            assert net.loss(x, t) == want
        shallow = copy.copy(net)
        assert shallow.params is net.params
        assert shallow.loss(x, t) == want


class TestBadInput:
    CASES: ClassVar = [
        ("`x` must have shape", lambda x, t: (x[:, 1:], t)),
        ("`x` must have shape", lambda x, t: (x[None], t)),
        ("`x` must hold at least one", lambda x, t: (x[:0], t[:0])),
        ("`x` must be an array of real", lambda x, t: (x * 1j, t)),
        ("`x` must be an array of real", lambda x, t: ("x", t)),
        ("`x` must be an array of real", lambda x, t: (None, t)),
        ("`x` must be an array of real", lambda x, t: ([[1.0], [1.0, 2.0]], t)),
        ("`t` must be labels of shape", lambda x, t: (x, t[1:])),
        ("`t` must be labels of shape", lambda x, t: (x, np.zeros((5, 3)))),
        (
            "`t` must hold labels from 0 to 3. Got 4 at position 2",
            lambda x, t: (x, [0, 1, 4, 0, 0]),
        ),
        ("`t` must hold labels from 0 to 3. Got -1 at", lambda x, t: (x, [0, 1, -1, 0, 0])),
        ("`t` must hold integer labels", lambda x, t: (x, t + 0.5)),
        ("`t` must hold integer labels", lambda x, t: (x, [0, 1, np.nan, 0, 0])),
        ("`t` must be an array of real", lambda x, t: (x, ["a"] * 5)),
    ]

    @pytest.mark.parametrize("method", ["loss", "accuracy", "gradient", "numerical_gradient",
                                        "check_gradient", "fit"])  # fmt: skip
    @pytest.mark.parametrize("case", range(len(CASES)))
    def test_samples_and_targets(self, method, case):
        message, spoil = self.CASES[case]
        net, params, x, t = example()
        x_before, t_before = x.copy(), t.copy()
        with pytest.raises((ValueError, TypeError)) as caught:
            getattr(net, method)(*spoil(x, t))
        assert message in str(caught.value)
        for name, array in params.items():
            np.testing.assert_array_equal(net.params[name], array)
        np.testing.assert_array_equal(x, x_before)
        np.testing.assert_array_equal(t, t_before)
        assert np.isfinite(net.loss(x, t))  # and it still works

    @pytest.mark.parametrize("h", [0, -1e-4, np.nan, np.inf, "1", None, True, [1e-4], 1e-320])
    def test_steps(self, h):
        net, _, x, t = example()
        for call in (net.numerical_gradient, net.check_gradient):
            with pytest.raises((ValueError, TypeError), match="`h` must be"):
                call(x, t, h)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input_size": 0}, "input_size"),
            ({"hidden_size": -1}, "hidden_size"),
            ({"output_size": 2.0}, "output_size"),
            ({"hidden_size": True}, "hidden_size"),
            ({"weight_init_std": np.nan}, "weight_init_std"),
            ({"weight_init_std": -1}, "weight_init_std"),
            ({"activation": "tanh"}, "activation"),
            ({"activation": None}, "activation"),
            ({"delta": -1e-9}, "delta"),
            ({"delta": "0"}, "delta"),
            ({"dtype": np.float16}, "dtype"),
            ({"dtype": "x"}, "dtype"),
            ({"rng": -1}, "rng"),
            ({"rng": "seed"}, "rng"),
        ],
        ids=lambda value: None if isinstance(value, str) else str(value),
    )
    def test_settings(self, arguments, message):
        with pytest.raises((ValueError, TypeError), match=f"`{message}` must be"):
            TwoLayerNet(**{"input_size": 4, "hidden_size": 3, "output_size": 2, **arguments})

    @pytest.mark.parametrize("sizes", [3, "34", [3, 0], [3.0], [[3]], None, [None]], ids=str)
    def test_lists_of_hidden_sizes(self, sizes):
        with pytest.raises((ValueError, TypeError), match="`hidden_size_list` must be"):
            MultiLayerNet(4, sizes, 2)

    @pytest.mark.parametrize("scale", ["tanh", None, np.inf, -0.1])
    def test_names_of_scales(self, scale):
        with pytest.raises((ValueError, TypeError), match="`weight_init_std` must be"):
            MultiLayerNet(4, [3], 2, weight_init_std=scale)


class TestNotFinite:
    @pytest.mark.parametrize("zeros", [False, True], ids=["dense", "sparse"])
    @pytest.mark.parametrize("activation", ["sigmoid", "relu"])
    def test_nan_in_a_sample(self, activation, zeros):
        sizes = (12, 5, 4)
        rng = np.random.default_rng(0)
        params = random_params(sizes, rng)
        net = build(sizes, params, activation)
        x, t = rng.standard_normal((6, 12)), rng.integers(0, 4, 6)
        if zeros:
            x[:, 2:] = 0
        x[3, 1] = np.nan
        with np.errstate(invalid="ignore"):
            want = probabilities(params, x, activation)
        np.testing.assert_array_equal(np.isnan(net.predict(x)), np.isnan(want))
        assert np.isnan(want[3]).all()
        assert np.isnan(net.loss(x, t))
        for name, array in net.gradient(x, t).items():
            expected = gradient(params, x, rows(t, 4), activation, 1e-7)[name]
            assert np.isnan(array[np.isnan(expected)]).all()
            assert np.isnan(array).any()
        for array in net.numerical_gradient(x, t).values():
            assert np.isnan(array).all()
        assert net.accuracy(np.nan_to_num(x), t) >= 0

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
    def test_parameters(self, name, value):
        net, params, x, t = example()
        x[:, 0] = 0  # whose weights meet zeros only
        net.params[name].flat[0] = params[name].flat[0] = value
        with np.errstate(all="ignore"):
            want = loss(params, x, rows(t, 4), "sigmoid", 1e-7)
        got = net.loss(x, t)
        assert np.isnan(got) if np.isnan(want) else got == pytest.approx(want)
        if np.isnan(value):
            assert np.isnan(net.predict(x)).any()
            assert all(np.isnan(array).any() for array in net.gradient(x, t).values())
            assert all(np.isnan(array).all() for array in net.numerical_gradient(x, t).values())

    @pytest.mark.parametrize("zeros", [0.0, 0.9])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
    @pytest.mark.parametrize("activation", ["sigmoid", "relu"])
    def test_gradients_are_nan_where_numpy_has_it(self, activation, name, value, zeros):
        sizes = (150, 5, 4)
        net, params, x, t = example(sizes, 9, activation=activation)
        x[np.random.default_rng(0).random(x.shape) < zeros] = 0
        x[:, 70] = 0  # whose weights meet zeros only
        flat = params[name].reshape(-1)
        place = 70 * sizes[1] if name == "W1" else flat.size // 2
        flat[place] = value
        net.params[name].reshape(-1)[place] = value
        with np.errstate(all="ignore"):
            want = gradient(params, x, rows(t, 4), activation, 1e-7)
        got = net.gradient(x, t)
        for key, array in want.items():
            array = array if np.isfinite(net.loss(x, t)) else np.full_like(array, np.nan)
            np.testing.assert_allclose(got[key], array, rtol=1e-9, atol=1e-12, err_msg=key)


class TestCheckGradient:
    @pytest.mark.parametrize("dtype", ["f", "d"])
    @pytest.mark.parametrize("activation", ["sigmoid", "relu"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_right_gradients_pass(self, kind, activation, dtype):
        net, _, x, t = example(KINDS[kind], 8, activation=activation, dtype=dtype, seed=4)
        check = net.check_gradient(x, t)
        assert isinstance(check, GradientCheck)
        assert check.ok, str(check)
        assert set(check.arrays) == set(net.params)

    @pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
    @pytest.mark.parametrize("activation", ["sigmoid", "relu"])
    def test_a_thousandth_is_caught(self, name, activation, monkeypatch):
        net, _, x, t = example((6, 5, 4), 8, activation=activation, seed=4)
        right = net.gradient
        for factor in (1.001, 0.999):

            def wrong(x, t, factor=factor):
                grads = right(x, t)
                grads[name] *= factor
                return grads

            monkeypatch.setattr(net, "gradient", wrong)
            check = net.check_gradient(x, t)
            assert not check.ok
            assert {key for key, array in check.arrays.items() if array.verdict == "wrong"} == {
                name
            }

    def test_one_wrong_entry_is_found(self, monkeypatch):
        net, _, x, t = example((6, 5, 4), 8, seed=4)
        right = net.gradient

        def wrong(x, t):
            grads = right(x, t)
            grads["W1"][2, 3] *= 1.001
            return grads

        monkeypatch.setattr(net, "gradient", wrong)
        check = net.check_gradient(x, t)
        assert not check.ok
        assert check.arrays["W1"].index == (2, 3)

    def test_the_books_gradient_does_not_differentiate_delta(self, monkeypatch):
        net, params, x, t = example((6, 5, 4), 8, seed=4, delta=0.1)
        assert net.check_gradient(x, t).ok
        monkeypatch.setattr(
            net, "gradient", lambda x, t: gradient(params, x, rows(t, 4), "sigmoid", 0.0)
        )
        assert not net.check_gradient(x, t).ok

    @pytest.mark.parametrize("sizes", [(2, 2, 2), (2, 2, 2, 2)], ids=str)
    def test_kinks_are_counted_and_not_judged(self, sizes):
        net, _, x, t = example(sizes, 3, activation="relu")
        unit = net.params["b1"]
        inputs = x @ net.params["W1"] + unit
        unit[0] -= inputs[1, 0] - 3e-5  # a third of a step from its kink
        check = net.check_gradient(x, t)
        assert check.ok, str(check)
        assert check.arrays["b1"].kinks >= 1
        unit[0] += 0.3
        assert net.check_gradient(x, t).arrays["b1"].kinks == 0


class TestFiles:
    @pytest.mark.parametrize("dtype", ["f", "d"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_saved_comes_back(self, kind, dtype, tmp_path):
        decay = 0.2 if kind != "two" else 0.0
        net, _, x, t = example(KINDS[kind], activation="relu", delta=0.25, dtype=dtype, decay=decay)
        path = net.save(tmp_path / "net")
        assert path == tmp_path / "net.npz"
        twin = type(net).load(path)
        assert twin.dtype == net.dtype
        assert list(twin.params) == list(net.params)
        for name, array in net.params.items():
            np.testing.assert_array_equal(twin.params[name], array)
        assert twin.loss(x, t) == net.loss(x, t)
        twin.fit(x, t, iterations=2, batch_size=3, rng=0)
        assert twin.loss(x, t) != net.loss(x, t)

    def test_another_class_is_refused(self, tmp_path):
        path = example()[0].save(tmp_path / "net.npz")
        with pytest.raises(ValueError, match="must hold a MultiLayerNet"):
            MultiLayerNet.load(path)

    def test_parameters_alone_get_the_settings_of_the_class(self, tmp_path):
        net = example()[0]
        np.savez(tmp_path / "net.npz", **net.params)
        loaded = TwoLayerNet.load(tmp_path / "net.npz")
        assert repr(loaded) == repr(TwoLayerNet(*net.params["W1"].shape, len(net.params["b2"])))
        for name, array in net.params.items():
            np.testing.assert_array_equal(loaded.params[name], array)

    def test_other_arrays_are_refused(self, tmp_path):
        np.savez(tmp_path / "net.npz", W1=np.zeros((3, 2)))
        with pytest.raises(ValueError, match=r"net\.npz"):
            TwoLayerNet.load(tmp_path / "net.npz")


def test_a_network_that_nobody_holds_is_gone_at_once():
    net = TwoLayerNet(4, 3, 2, rng=0)
    net.gradient(np.ones((2, 4)), [0, 1])
    (idle,) = net._idle.values()
    engine = weakref.ref(idle[0])
    gc.disable()
    try:
        del net, idle
        assert engine() is None
    finally:
        gc.enable()


def test_overlapping_calls_from_two_threads():
    # Each call has an engine of its own; the results are those of calls in turn.
    code = """
import threading
import numpy as np
from fastgrad import TwoLayerNet
net = TwoLayerNet(20, 9, 4, 1.0, rng=0)
rng = np.random.default_rng(0)
work = [(rng.standard_normal((5 + i, 20)), rng.integers(0, 4, 5 + i)) for i in range(4)]
want = [net.numerical_gradient(x, t)["W1"] for x, t in work]
wrong = []
def check(i):
    for _ in range(50):
        x, t = work[i]
        if not np.allclose(net.numerical_gradient(x, t)["W1"], want[i], rtol=1e-12, atol=1e-15):
            wrong.append(i)
threads = [threading.Thread(target=check, args=(i,)) for i in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong, wrong
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_delta_is_one_of_the_dtype():
    net = TwoLayerNet(2, 2, 2, delta=1e-50, dtype=np.float32, rng=0)  # 0 in float32
    net.params["W2"][:] = 0
    net.params["b2"][:] = [200, -200]
    assert net.loss([[0, 0]], [1]) == 400
    np.testing.assert_array_equal(net.gradient([[0, 0]], [1])["b2"], [1, -1])
    with pytest.raises(ValueError, match=r"`delta` must be a finite number in float32\. Got"):
        TwoLayerNet(2, 2, 2, delta=1e300, dtype=np.float32)


@pytest.mark.filterwarnings("ignore::fastgrad.GradientCheckWarning")
def test_a_kink_above_counts_also_beside_a_dead_unit():
    """The second unit of the second layer has the input 0, whatever happens below."""
    net = MultiLayerNet(2, [2, 2], 2)
    values = {
        "W1": np.eye(2), "b1": [1, 1], "W2": [[1, 0], [1, 0]], "b2": [-4 + 3e-5, 0],
        "W3": [[1, -1], [1, 2]], "b3": [0, 0],
    }  # fmt: skip
    for name, value in values.items():
        net.params[name][...] = value
    check = net.check_gradient([[1.0, 1.0]], [1])
    # Nothing is wrong; but of arrays that lie at a kink altogether nothing is known.
    assert {array.verdict for array in check.arrays.values()} == {"ok", "unresolved"}
    assert check.arrays["W1"].kinks > 0


def test_a_network_shows_itself_in_a_line():
    net = TwoLayerNet(784, 50, 10, dtype=np.float32)
    assert repr(net) == "TwoLayerNet 784-50-10, sigmoid, float32: 39,760 parameters"
    net.params = None  # a repr never fails
    assert "784-50-10" in repr(net)
    deep = MultiLayerNet(7, [5, 4], 3, weight_decay_lambda=0.1)
    assert repr(deep) == "MultiLayerNet 7-5-4-3, relu, float64, weight decay 0.1: 79 parameters"


class Rectified(TwoLayerNet):
    """A network with a forward pass of its own, as a reader of the book writes one."""

    def predict(self, x):
        hidden = fastgrad.relu(x @ self.params["W1"] + self.params["b1"])
        return fastgrad.softmax(hidden @ self.params["W2"] + self.params["b2"])


class Penalized(MultiLayerNet):
    def loss(self, x, t):
        return super().loss(x, t) + float(np.sum(self.params["W2"] ** 2))


def test_a_predict_or_loss_of_a_subclass_or_of_the_object_counts():
    rng = np.random.default_rng(0)
    x, t = rng.random((4, 6)), np.array([0, 1, 2, 0])
    tempered = MultiLayerNet(6, [5], 3, rng=1, weight_decay_lambda=0.5)
    tempered.predict = lambda x: MultiLayerNet.predict(tempered, x) / 2
    for net in (Rectified(6, 5, 3, 1.0, rng=1), Penalized(6, [5], 3, rng=1), tempered):
        numerical = net.numerical_gradient(x, t)
        for name, array in net.params.items():
            kept = array.copy()
            loop = fastgrad.numerical_gradient(lambda _, net=net: net.loss(x, t), array)
            np.testing.assert_allclose(numerical[name], loop, rtol=1e-6, atol=1e-8)
            np.testing.assert_array_equal(array, kept)
    rectified = Rectified(6, 5, 3, 1.0, rng=1)
    expected = fastgrad.cross_entropy_error(rectified.predict(x), t)
    assert rectified.loss(x, t) == pytest.approx(expected, rel=1e-12)
    assert rectified.accuracy(x, rectified.predict(x).argmax(axis=1)) == 1
    penalty = sum(0.25 * np.sum(tempered.params[name] ** 2) for name in ("W1", "W2"))
    expected, _ = fastgrad.softmax_cross_entropy(tempered.predict(x), t)
    assert tempered.loss(x, t) == pytest.approx(float(expected) + penalty, rel=1e-12)


def test_losses_and_accuracies_are_numbers_of_numpy():
    """As the book's: scripts round them by their methods."""
    net = TwoLayerNet(6, 5, 3, rng=1)
    x, t = np.ones((4, 6)), np.array([0, 1, 2, 0])
    assert net.loss(x, t).round(3) == round(float(net.loss(x, t)), 3)
    assert isinstance(net.loss(x, t), float)
    assert net.accuracy(x, t).item() in (0.25, 0.5)
