"""The gradient checker: what it lets pass, what it rejects, and what it says."""

from __future__ import annotations

import warnings
import zlib

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

import fastgrad
from fastgrad.checking.check import check_backward, check_gradient
from fastgrad.checking.result import GradientCheck, GradientCheckWarning, compare_gradients
from fastgrad.numdiff.gradients import gradient_descent, numerical_gradient

mpl.use("Agg")


def logistic_loss(w, x, t):
    return float(np.mean(np.log1p(np.exp(-t * (x @ w)))))


def logistic_gradient(w, x, t):
    return x.T @ (-t / (1 + np.exp(t * (x @ w)))) / len(t)


def regression(seed, size=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=size), (rng.normal(size=(60, size)), np.sign(rng.normal(size=60)))


def hidden_layer(w, x):
    return float(np.sum(np.maximum(x @ w, 0) ** 2 + np.tanh(x @ w)))


def hidden_layer_gradient(w, x):
    a = x @ w
    return x.T @ (2 * np.maximum(a, 0) + 1 / np.cosh(a) ** 2)


class TestVerdict:
    @pytest.mark.parametrize("seed", range(30))
    def test_right_gradients_pass(self, seed):
        w, args = regression(seed)
        check = check_gradient(logistic_loss, logistic_gradient, w, args=args)
        assert check.ok
        assert check.resolved
        assert check
        assert check.arrays["x"].max_abs_error < 1e-8

    @pytest.mark.parametrize("h", [1e-3, 1e-4, 1e-5, 1e-6, "auto"])
    def test_right_gradients_pass_for_any_good_step(self, h):
        rng = np.random.default_rng(0)
        w, x = rng.normal(size=(30, 20)), rng.normal(size=(8, 30))
        check = check_gradient(hidden_layer, hidden_layer_gradient, w, h, args=(x,))
        assert check.ok
        assert check.resolved

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("factor", [1.001, 0.999, 2.0, -1.0, 0.0])
    def test_mistakes_in_the_whole_array_fail(self, seed, factor):
        w, args = regression(seed)
        wrong = factor * logistic_gradient(w, *args)
        check = check_gradient(logistic_loss, wrong, w, args=args)
        assert not check.ok
        assert not check
        if factor == 1.001:
            assert check.arrays["x"].max_rel_error == pytest.approx(1e-3, rel=0.02)

    @given(st.integers(0, 39), st.sampled_from([1.001, 0.999]), st.integers(0, 5))
    def test_a_mistake_in_one_entry_fails_and_is_found(self, place, factor, seed):
        w, args = regression(seed)
        wrong = logistic_gradient(w, *args)
        wrong[place] *= factor
        check = check_gradient(logistic_loss, wrong, w, args=args)
        assert check.arrays["x"].verdict == "wrong"
        assert check.arrays["x"].index == (place,)
        assert check.arrays["x"].analytic == wrong[place]
        assert check.arrays["x"].numerical == pytest.approx(wrong[place] / factor, rel=1e-5)

    def test_small_entries_are_judged_as_well(self):
        scales = 10.0 ** -np.arange(8)
        check = check_gradient(lambda x: np.sum(scales * np.sin(x)), scales, np.zeros(8))
        assert check.ok
        wrong = scales.copy()
        wrong[6] *= 1.001
        assert not check_gradient(lambda x: np.sum(scales * np.sin(x)), wrong, np.zeros(8))

    def test_a_noisy_function_is_not_wrong(self):
        # 1e6 is added and taken away: the values carry a hundred thousand times their own rounding.
        def f(x):
            return (1e6 + np.sum(x**3)) - 1e6

        x = np.linspace(0.5, 2, 200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientCheckWarning)
            for h in (1e-3, 1e-4, 1e-5, 1e-6):
                assert check_gradient(f, 3 * x**2, x, h).ok
        assert not check_gradient(f, 3.003 * x**2, x, 1e-3).ok

    def test_nan_is_wrong(self):
        check = check_gradient(lambda x: np.sum(x**2), [2.0, np.nan], [1.0, 1.0])
        assert not check.ok
        assert check.arrays["x"].index == (1,)
        with pytest.warns(GradientCheckWarning, match="not finite"):
            assert not check_gradient(lambda x: np.nan * np.sum(x), [1.0, 1.0], [1.0, 1.0]).ok

    def test_gradient_of_zero(self):
        assert check_gradient(lambda x: 3.0, np.zeros(2), np.ones(2)).ok
        assert not check_gradient(lambda x: 3.0, np.full(2, 1e-3), np.ones(2)).ok

    def test_at_a_minimum(self):
        assert check_gradient(lambda x: np.sum(x**2), np.zeros(2), np.zeros(2)).ok

    def test_compiled_function_and_callable_gradient(self):
        @njit
        def f(x, a):
            return np.sum(a * x**3)

        a = np.arange(1.0, 7.0).reshape(2, 3)
        x = np.asfortranarray(np.ones((2, 3)))
        assert check_gradient(f, lambda x, a: 3 * a * x**2, x, args=(a,)).ok
        assert not check_gradient(f, lambda x, a: 3.003 * a * x**2, x, args=(a,)).ok

    def test_no_dimensions_and_no_entries(self):
        assert check_gradient(lambda x: float(x) ** 2, 6.0, 3.0).ok
        assert not check_gradient(lambda x: float(x) ** 2, 6.006, 3.0).ok
        assert check_gradient(np.sum, np.empty(0), np.empty(0)).ok

    def test_x_is_restored(self):
        x = np.array([0.1, 0.2])
        check_gradient(lambda x: np.sum(x**2), 2 * x, x)
        np.testing.assert_array_equal(x, [0.1, 0.2])

    @pytest.mark.parametrize(
        ("grad", "error", "message"),
        [
            (np.ones(3), ValueError, r"`grad` must have shape \(2,\)\. Got \(3,\)\."),
            (lambda x: np.ones((2, 1)), ValueError, r"`grad` must have shape \(2,\)"),
            ("up", TypeError, "`grad` must be an array of real numbers"),
        ],
    )
    def test_wrong_arguments(self, grad, error, message):
        with pytest.raises(error, match=message):
            check_gradient(np.sum, grad, np.ones(2))


class TestPrecision:
    def test_float32_takes_longer_steps(self):
        x = np.linspace(1, 2, 5, dtype=np.float32)
        assert check_gradient(lambda x: np.sum(np.log(x)), 1 / x, x)
        wrong = check_gradient(lambda x: np.sum(np.log(x)), np.float32(1.002) / x, x)
        assert wrong.arrays["x"].verdict == "wrong"

    def test_float32_warns_of_what_no_step_shows(self):
        x = np.linspace(1, 2, 5, dtype=np.float32)
        with pytest.warns(GradientCheckWarning, match=r"0\.1%.*in float32.*use float64"):
            check = check_gradient(lambda x: np.float32(3000) + np.sum(np.sin(x)), np.cos(x), x)
        assert check.arrays["x"].verdict == "unresolved"
        assert not check.resolved

    def test_float32_finds_a_gross_mistake(self):
        x = np.linspace(1, 2, 5, dtype=np.float32)
        assert not check_gradient(lambda x: np.sum(np.log(x)), 2 / x, x).ok

    @pytest.mark.parametrize("h", [1e-13, 0.5])
    def test_a_step_that_is_too_small_or_too_large_is_replaced(self, h):
        assert check_gradient(lambda x: 1 + np.sum(np.exp(x)), np.ones(2), np.zeros(2), h)
        assert not check_gradient(lambda x: np.sum(np.exp(x)), np.full(2, 1.001), np.zeros(2), h)


class TestKinks:
    @staticmethod
    def relu_sum(x):
        return float(np.sum(np.maximum(x, 0)))

    @pytest.mark.parametrize("place", np.linspace(-0.999e-4, 0.999e-4, 22))
    def test_a_kink_within_the_step_is_kept_clear_of(self, place):
        x = np.array([1.0, place, -1.0])
        right = np.array([1.0, float(place > 0), 0.0])
        check = check_gradient(self.relu_sum, right, x)
        assert check.ok
        assert check.arrays["x"].judged == 3
        assert not check_gradient(self.relu_sum, right + np.array([0, 0.002, 0]), x).ok

    @pytest.mark.parametrize("place", [0.0, 1e-20])
    @pytest.mark.parametrize("side", [0.0, 0.5, 1.0])
    def test_a_kink_at_x_is_not_judged(self, place, side):
        check = check_gradient(self.relu_sum, [1.0, side, 0.0], [1.0, place, -1.0])
        assert check.ok
        assert check.arrays["x"].not_judged == {"kink": 1}

    @pytest.mark.parametrize("place", [-3e-4, -1.01e-4, 1.01e-4, 3e-4])
    def test_kink_outside_of_the_step(self, place):
        x = np.array([1.0, place, -1.0])
        check = check_gradient(self.relu_sum, (x > 0) * 1.0, x)
        assert check.ok
        assert check.arrays["x"].kinks == 0
        assert not check_gradient(self.relu_sum, (x > 0) + np.array([0, 0.001, 0]), x).ok

    @pytest.mark.parametrize("seed", [1, 6, 7])
    def test_ties_whose_kink_is_small_beside_the_rounding(self, seed):
        rng = np.random.default_rng(seed)
        x = np.round(rng.normal(size=(6, 4)), 1).astype(np.float32)
        x[::2, 1] = x[::2, 0]
        weights = rng.normal(size=6)
        grads = (np.argmax(x, axis=1)[:, None] == np.arange(4)) * weights[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientCheckWarning)
            check = check_gradient(lambda x: np.sum(weights * x.max(axis=1)), grads, x, 1e-5)
        assert check.arrays["x"].wrong == 0

    def test_it_is_said(self):
        text = str(check_gradient(self.relu_sum, [1.0, 0.0], [1.0, 0.0]))
        assert "1 not judged, for a kink lies within ±h" in text

    @pytest.mark.parametrize("claimed", [-0.1, 1.1, 7.0])
    def test_nonsense_at_a_kink_fails(self, claimed):
        assert not check_gradient(self.relu_sum, [1.0, claimed], [1.0, 3e-5]).ok

    def test_a_mistake_elsewhere_fails(self):
        assert not check_gradient(self.relu_sum, [1.001, 0.0], [1.0, 0.0]).ok

    def test_nothing_but_kinks(self):
        with pytest.warns(GradientCheckWarning, match="kink"):
            check = check_gradient(self.relu_sum, [0.0, 0.0], [0.0, 0.0])
        assert not check.ok
        assert not check.resolved

    def test_smooth_functions_have_none(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            w, x = rng.normal(size=(6, 5)), rng.normal(size=(4, 6))
            check = check_gradient(
                lambda w, x=x: float(np.sum(np.tanh(x @ w))),
                x.T @ (1 / np.cosh(x @ w) ** 2),
                w,
            )
            assert check.arrays["x"].kinks == 0


class TestCompareGradients:
    rng = np.random.default_rng(0)
    true = {"W1": rng.normal(size=(5, 4)), "b1": rng.normal(size=4)}  # noqa: RUF012

    def compare(self, analytic, **arguments):
        return compare_gradients(analytic, self.true, **{"h": 1e-4, "noise": 1e-13, **arguments})

    def test_equal(self):
        check = self.compare(self.true)
        assert isinstance(check, GradientCheck)
        assert check.ok
        assert list(check.arrays) == ["W1", "b1"]
        assert check.arrays["W1"].max_abs_error == 0

    @pytest.mark.parametrize("name", ["W1", "b1"])
    def test_a_mistake_in_one_array(self, name):
        check = self.compare({**self.true, name: 1.001 * self.true[name]})
        assert not check.ok
        assert [array.verdict for array in check.arrays.values()].count("wrong") == 1
        assert check.arrays[name].verdict == "wrong"

    def test_truncation_is_allowed_for(self):
        off = self.true["b1"] + 0.5e-8 * np.max(np.abs(self.true["b1"]))
        assert self.compare({**self.true, "b1": off}).ok

    def test_noise_for_each_array_and_entry(self):
        off = self.true["b1"].copy()
        off[2] += 0.1
        noise = np.full(4, 1e-12)
        assert not self.compare({**self.true, "b1": off}, noise={"W1": 1e-12, "b1": noise}).ok
        noise[2] = 0.2
        assert self.compare({**self.true, "b1": off}, noise={"W1": 1e-12, "b1": noise}).ok

    def test_kinks_are_not_judged(self):
        off = self.true["b1"].copy()
        off[2] += 0.1
        kinks = {name: np.zeros(array.shape, bool) for name, array in self.true.items()}
        kinks["b1"][2] = True
        check = self.compare({**self.true, "b1": off}, kinks=kinks)
        assert check.ok
        assert check.arrays["b1"].kinks == 1
        assert check.arrays["b1"].max_abs_error == 0

    def test_zero_everywhere(self):
        zero = {"W": np.zeros((3, 2))}
        assert compare_gradients(zero, zero, h=1e-4, noise=0.0).ok
        with pytest.warns(GradientCheckWarning):
            compare_gradients({"W": [1e-9]}, {"W": [0.0]}, h=1e-4, noise=1e-8)

    def test_wrong_keys_and_shapes(self):
        with pytest.raises(ValueError, match=r"`analytic` must have the keys \['W1', 'b1'\]"):
            self.compare({"W1": self.true["W1"]})
        with pytest.raises(ValueError, match=r"`analytic\['b1'\]` must have shape \(4,\)"):
            self.compare({**self.true, "b1": np.ones(5)})

    def test_inputs_are_copied(self):
        analytic = {name: array.copy() for name, array in self.true.items()}
        check = self.compare(analytic)
        analytic["b1"][:] = 0
        np.testing.assert_array_equal(check.analytic["b1"], self.true["b1"])


class TestReport:
    def test_table(self):
        check = check_gradient(
            lambda x: float(np.sum(x**2)), np.array([[2.0, 4.1]]), np.array([[1.0, 2.0]])
        )
        head, row, summary = str(check).splitlines()
        assert head.split()[:3] == ["array", "worst", "at"]
        for part in ("x", "(0, 1)", "4.1", "wrong: 1 of 2"):
            assert part in row
        assert summary == "h = 0.0001: WRONG"

    def test_array_of_steps(self):
        check = check_gradient(np.sum, np.ones(2), np.zeros(2), [1e-4, 1e-3])
        assert "h from 0.0001 to 0.001: no mistake found" in str(check)

    def test_plot(self, tmp_path):
        rng = np.random.default_rng(0)
        true = {"W1": rng.normal(size=(5, 4)), "b1": rng.normal(size=4), "empty": np.empty(0)}
        off = {name: array + 1e-9 * rng.normal(size=array.shape) for name, array in true.items()}
        figure = compare_gradients(off, true, h=1e-4, noise=1e-12).plot()
        figure.savefig(tmp_path / "check.png")
        images = [axes.images[0] for axes in figure.axes if axes.images]
        assert [image.get_array().shape for image in images] == [(5, 4), (1, 4)]
        np.testing.assert_allclose(images[0].get_array(), np.abs(off["W1"] - true["W1"]))
        titles = [axes.get_title() for axes in figure.axes]
        assert "W1: |analytic − numerical|" in titles
        assert (tmp_path / "check.png").stat().st_size > 10_000

    def test_plot_of_nothing(self):
        assert compare_gradients({}, {}, h=1e-4, noise=0.0).plot().axes == []


def test_of_nothing_with_steps_for_each_element():
    nothing = np.ones((0, 3))
    check = check_gradient(np.sum, nothing, nothing, nothing)
    assert check
    assert "no mistake found" in str(check)


class TestNothingIsPassedUnseen:
    rng = np.random.default_rng(3)
    x = rng.normal(size=20)

    @pytest.mark.parametrize("factor", [1, 3])
    def test_dropout(self, factor):
        def f(x):
            return float(np.sum((x * (self.rng.random(20) > 0.5)) ** 2))

        check = check_gradient(f, 2 * factor * self.x, self.x)
        assert check.arrays["x"].verdict == "not deterministic"
        assert not check
        assert check.arrays["x"].kinks == 0
        assert "f is not deterministic: two calls at the same point gave" in str(check)
        assert "switch dropout" in check.report()

    def test_a_mask_that_seldom_changes(self):
        f = lambda x: float(np.sum(x**2) * (2.0 if self.rng.random() < 0.4 else 1.0))  # noqa: E731
        assert not check_gradient(f, 2 * self.x, self.x).ok

    def test_noise_is_named_as_noise(self):
        def rough(x):
            return float(np.sum(x**2) + 1e-9 * (zlib.crc32(x.tobytes()) % 1000 / 1000))

        check = check_gradient(rough, 2 * self.x, self.x)
        assert 1e-10 < check.noise < 1e-9
        array = check.arrays["x"]
        assert array.kinks == 0
        assert array.verdict == "ok"
        assert 1e-6 < array.noise < 1e-4
        noisy = check_gradient(
            lambda x: np.sum(x**2) + 1e-9 * self.rng.normal(), 2 * self.x, self.x
        )
        assert noisy.arrays["x"].kinks == 0
        assert noisy.arrays["x"].verdict == "not deterministic"

    def test_small_entries_beside_large_ones(self):
        check = check_gradient(lambda v: np.sum(v**2), [2e8, 6.0], np.array([1e8, 1.0]))
        array = check.arrays["x"]
        assert array.wrong + array.not_judged.get("noise", 0) == 1
        assert check.ok == (array.wrong == 0)

    def test_what_noise_hides_is_counted_with_its_size(self):
        x = np.array([1e8, 1.0])
        check = check_gradient(lambda v: v[0] ** 2 + np.sin(v[1]), [2e8, np.cos(1)], x)
        assert check.ok
        assert "1 of 2 entries could not be judged beside the noise of f, about 1" in str(check)

    def test_all_wrong_entries_are_counted(self):
        x = np.linspace(1, 2, 320)
        check = check_gradient(lambda v: np.sum(v**2), 6 * x, x)
        assert check.arrays["x"].wrong == 320
        assert "wrong: 320 of 320" in str(check)
        assert "3 times the numerical one" in check.report()

    def test_a_bias_before_batch_normalisation(self):
        batch = self.rng.normal(size=(10, 3))
        params = {"W": self.rng.normal(size=(3, 4)), "b": self.rng.normal(size=4)}

        def loss(p):
            z = batch @ p["W"] + p["b"]
            z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-6)
            return float(np.mean(np.tanh(z) @ np.arange(4.0)))

        grads = numerical_gradient(loss, params, 1e-3, order=6)
        grads["b"] = 1e-18 * self.rng.normal(size=4)
        assert check_gradient(loss, grads, params)
        assert check_gradient(loss, {**grads, "b": np.zeros(4)}, params)
        grads["b"][1] = 1e-3
        check = check_gradient(loss, grads, params)
        assert check.arrays["b"].wrong == 1

    def test_dead_entries_are_right(self):
        x = np.array([1.0, 5.0, 3.0])
        check = check_gradient(lambda x: 7 + x[0] ** 2, [2.0, 0.0, 0.0], x)
        assert check.arrays["x"].judged == 3
        assert check_gradient(lambda x: 7 + x[0] ** 2, [2.0, 0.0, 1e-8], x).arrays["x"].wrong == 1

    def test_nothing_is_finite_beside_x(self):
        with pytest.warns(GradientCheckWarning, match="bounds"):
            check = check_gradient(lambda x: 3.0 if x[0] == 2 else np.nan, [1e5], [2.0])
        assert not check
        assert check.arrays["x"].not_judged == {"not finite": 1}

    def test_a_failing_assertion_shows_the_table(self):
        check = check_gradient(lambda x: np.sum(x**2), 2.002 * self.x, self.x)
        assert repr(check) == str(check)
        with pytest.raises(AssertionError, match=r"(?s)wrong: 20 of 20.*1\.001 times"):
            check.raise_if_wrong()
        check_gradient(lambda x: np.sum(x**2), 2 * self.x, self.x).raise_if_wrong()


class TestSuspects:
    rng = np.random.default_rng(5)
    W = rng.normal(size=(6, 6))
    right = rng.normal(size=(6, 6))

    def report(self, wrong):
        right, W = self.right, self.W
        return check_gradient(
            lambda x: float(np.sum(right * x) + np.sum(W * 0)), wrong, W
        ).report()  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda g, W: 100 * g, "100 times the numerical one: a missing mean over the batch"),
            (lambda g, W: g / 100, "1/100 of the numerical one"),
            (lambda g, W: -g, "opposite sign"),
            (lambda g, W: 2 * g, "a missing ½"),
            (lambda g, W: g / 2, "a ½ too much"),
            (lambda g, W: 1.001 * g, "1.001 times the numerical one: a constant factor"),
            (lambda g, W: g.T, "transpose"),
            (lambda g, W: g - 0.1 * W, "0.1 times the parameter is missing"),
            (lambda g, W: g + 0.1 * W, "0.1 times the parameter is too much"),
            (lambda g, W: np.roll(g, 1, 0), "shifted by one row"),
            (lambda g, W: 0 * g, "zero throughout"),
            (lambda g, W: g + np.eye(6)[2][:, None], "All wrong entries are in row 2"),
            (lambda g, W: g + np.eye(6)[2], "All wrong entries are in column 2"),
            (lambda g, W: g + np.outer(np.eye(6)[1], np.eye(6)[2]), "Only this entry"),
            (lambda g, W: g / np.inf * np.nan, "not finite"),
        ],
    )
    def test_patterns(self, change, words):
        assert words in self.report(change(self.right, self.W))

    def test_no_pattern(self):
        report = self.report(self.rng.normal(size=(6, 6)))
        assert len(report.splitlines()) == 1
        assert self.report(self.right) == "No mistake found."


def test_f_that_reads_another_array():
    W = np.array([[1, 2], [3, 4]])
    with pytest.warns(UserWarning, match="does it read another array"):
        numerical_gradient(lambda _: np.sum(W**2.0), W)
    x = np.ones(2)
    with pytest.warns(UserWarning, match="does it read another array"):
        gradient_descent(lambda _: np.sum(x**2), x)


def test_an_overview_of_many_arrays(tmp_path):
    params = {f"layers[{i}].W": np.full((3, 2), float(i + 1)) for i in range(20)}
    grads = {name: 2 * array for name, array in params.items()}
    grads["layers[7].W"][1, 1] = 1.0
    figure = check_gradient(
        lambda p: sum(float(np.sum(array**2)) for array in p.values()), grads, params
    ).plot()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"['{name}']" for name in params
    ]
    assert "wrong: 1 of 6" in {text.get_text() for text in axes.texts}
    figure.savefig(tmp_path / "check.png")


class TestDirections:
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(40, 30)), "b": rng.normal(size=30)}  # noqa: RUF012
    x = rng.normal(size=(5, 40))

    def f(self, p):
        return float(np.sum(np.tanh(self.x @ p["W"] + p["b"]) ** 2))

    def grad(self, p):
        z = np.tanh(self.x @ p["W"] + p["b"])
        dz = 2 * z * (1 - z**2)
        return {"W": self.x.T @ dz, "b": dz.sum(axis=0)}

    def test_all_entries_at_once(self):
        calls = 0

        def counted(p):
            nonlocal calls
            calls += 1
            return self.f(p)

        check = check_gradient(counted, self.grad, self.params, directions=3, rng=0)
        assert check
        assert list(check.arrays) == ["W along 3 directions", "b along 3 directions"]
        assert calls < 150
        right = self.grad(self.params)
        for name in ("W", "b"):
            wrong = {**right, name: 1.001 * right[name]}
            check = check_gradient(self.f, wrong, self.params, directions=3, rng=0)
            verdicts = [array.verdict for array in check.arrays.values()]
            assert verdicts.count("wrong") == 1
            assert check.arrays[f"{name} along 3 directions"].wrong

    def test_a_sample(self):
        check = check_gradient(self.f, self.grad, self.params, sample=20, directions=2, rng=1)
        assert check
        assert check.arrays["W"].judged == 20
        assert check.arrays["W"].not_judged == {"not drawn": 1180}
        assert "1190 of 1234 entries not drawn" in str(check)
        again = check_gradient(self.f, self.grad, self.params, sample=20, directions=2, rng=1)
        np.testing.assert_array_equal(check.numerical["W"], again.numerical["W"])
        assert str(again) == str(check)

    def test_gradients_by_sample_and_by_directions(self):
        right = self.grad(self.params)
        found = numerical_gradient(self.f, self.params, sample=7, rng=3)
        known = np.isfinite(found["W"])
        assert np.count_nonzero(known) == 7
        np.testing.assert_allclose(found["W"][known], right["W"][known], atol=1e-7)
        found, error = numerical_gradient(self.f, self.params, directions=200, rng=3, error=True)
        assert np.corrcoef(found["b"], right["b"])[0, 1] > 0.9
        assert np.mean(np.abs(found["b"] - right["b"]) <= error["b"]) > 0.9

    def test_progress_and_workers(self, capsys):
        check = check_gradient(self.f, self.grad, self.params, workers=map, progress=True, sample=5)
        assert check
        assert "evaluations" in capsys.readouterr().err


class TestBackward:
    rng = np.random.default_rng(0)

    @pytest.mark.parametrize("make", [fastgrad.Relu, fastgrad.Sigmoid])
    def test_layers_without_parameters(self, make):
        layer = make()
        x = self.rng.normal(size=(3, 4))
        assert check_backward(layer.forward, layer.backward, x, rng=0)
        check = check_backward(layer.forward, lambda dout: 1.001 * layer.backward(dout), x, rng=0)
        assert check.arrays["x"].verdict == "wrong"

    def test_layers_with_parameters(self):
        layer = fastgrad.Affine(self.rng.normal(size=(4, 3)), self.rng.normal(size=3))
        before = layer.W.copy()

        def backward(dout, factor=1.0):
            dx = layer.backward(dout)
            return dx, {"W": factor * layer.dW, "b": layer.db}

        params = {"W": layer.W, "b": layer.b}
        x = self.rng.normal(size=(5, 4))
        assert check_backward(layer.forward, backward, x, params, rng=0)
        check = check_backward(layer.forward, lambda dout: backward(dout, 2.0), x, params, rng=0)
        assert [name for name, a in check.arrays.items() if a.wrong] == ["params.W"]
        np.testing.assert_array_equal(layer.W, before)
        with pytest.raises(TypeError, match="`backward` must return a pair"):
            check_backward(layer.forward, layer.backward, x, params)
        with pytest.raises(TypeError, match="`backward` must return the gradient by `x`"):
            check_backward(layer.forward, lambda dout: None, x)

    def test_two_inputs_and_a_loss(self):
        layer = fastgrad.MulLayer()
        inputs = (self.rng.normal(size=3), self.rng.normal(size=3))
        assert check_backward(lambda x: layer.forward(*x), layer.backward, inputs, rng=0)
        loss, t = fastgrad.SoftmaxWithLoss(), np.array([0, 3, 1])
        assert check_backward(
            lambda x: loss.forward(x, t), loss.backward, self.rng.normal(size=(3, 4)), rng=0
        )
