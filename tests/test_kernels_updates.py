"""The update rules against their formulas in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SETTINGS, step

from fastgrad.kernels import updates
from fastgrad.runtime.programs import run

RULES = {kind: getattr(updates, kind.lower()) for kind in SETTINGS}


def in_parallel(rule, p, *arguments):
    run(updates.update, 3, updates.pointer(rule, p.dtype), p, *arguments)


#: Ways to run a step, each called alike.
PASSES = {
    "serial": lambda rule, *arguments: rule(*arguments),
    "parallel": in_parallel,
}


@pytest.mark.parametrize("how", PASSES)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25)
@given(size=st.integers(0, 40), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from("fd"))
def test_steps_follow_the_formulas(how, rule, size, seed, dtype):
    rng = np.random.default_rng(seed)
    p, g, first, second = rng.standard_normal((4, size)).astype(dtype)
    if rule in ("AdaGrad", "RMSprop"):
        first = np.abs(first)
    second = np.abs(second)
    lr, a, b = rng.uniform(0.001, 0.9, 3)
    arguments = [array.astype(np.float64) for array in (p, g, first, second)]
    expected = step(rule, *arguments, lr, a, b)
    PASSES[how](RULES[rule], p, g, first, second, lr, a, b)
    tolerance = 1e-12 if dtype == "d" else 2e-5
    for got, want in zip((p, first, second), expected, strict=True):
        assert got.dtype == dtype
        # The terms of a sum are of size 1, so that is what rounding is relative to.
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(g, arguments[1])


@pytest.mark.parametrize("rule", RULES)
def test_memory_that_a_rule_does_not_use_may_be_empty(rule):
    p, g, first, second = np.ones(5), np.ones(5), np.ones(5), np.ones(5)
    expected = step(rule, p, g, first, second, 0.1, 0.5, 0.25)
    nothing = np.empty(0)
    RULES[rule](
        p, g, nothing if rule == "SGD" else first,
        second if rule == "Adam" else nothing, 0.1, 0.5, 0.25,
    )  # fmt: skip
    np.testing.assert_allclose(p, expected[0], rtol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000, 10_000])
def test_rate_of_adam(steps):
    expected = 0.001 * np.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    assert updates.adam_rate(0.001, 0.9, 0.999, steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_nan_reaches_the_parameter(rule):
    p, g, first, second = np.ones(9), np.ones(9), np.ones(9), np.ones(9)
    g[4] = np.nan
    RULES[rule](p, g, first, second, 0.1, 0.5, 0.25)
    assert np.flatnonzero(np.isnan(p)).tolist() == [4]
