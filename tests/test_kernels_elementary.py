"""exp and expm1 against mpmath over random bit patterns, and as vector code."""

import math
import platform
import re

import mpmath
import numba
import numpy as np
import pytest

from fastgrad.kernels import elementary
from fastgrad.runtime.compile import FASTMATH, kernel

COMPILED = not numba.config.DISABLE_JIT
FUNCTIONS = {
    "exp": (elementary.exp, mpmath.exp, np.exp),
    "expm1": (elementary.expm1, mpmath.expm1, np.expm1),
}
#: Beyond these every result is 0, -1 or infinite.
EDGES = {"f": (-104.5, 89.0), "d": (-746.5, 710.0)}


@kernel
def all_exp(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


@kernel
def all_expm1(x, out):
    for i in range(x.size):
        out[i] = elementary.expm1(x[i])


LOOPS = {"exp": all_exp, "expm1": all_expm1}


def compute(name, x):
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        LOOPS[name](x, out)
    return out


def random_bits(dtype, count, rng):
    """Return numbers of every exponent: subnormal, huge, NaN and infinite ones too."""
    integers = np.uint32 if dtype == "f" else np.uint64
    return rng.integers(np.iinfo(integers).max, size=count, dtype=integers).view(dtype)


def arguments(dtype, rng):
    """Return finite numbers over the whole range: by bits, evenly, and near multiples of log 2."""
    few = 1 if COMPILED else 10
    low, high = EDGES[dtype]
    k = rng.integers(int(low * 1.44), int(high * 1.44), 1000 // few)
    halves = (k + rng.choice([0, 0.5], k.size)) * math.log(2)
    spread = np.concatenate(
        [
            rng.uniform(low, high, 4000 // few),
            rng.uniform(-1, 1, 2000 // few),
            halves * (1 + rng.choice([-1, 0, 1], k.size) * np.finfo(dtype).eps),
            [0.0, -0.0, np.finfo(dtype).tiny, -np.finfo(dtype).smallest_subnormal, low, high],
        ]
    ).astype(dtype)
    x = np.concatenate([random_bits(dtype, 8000 // few, rng), spread])
    return x[np.isfinite(x) & (x >= low) & (x <= high)]


def ulps(got, exact):
    """Return the distance of a number from an mpmath number, in units of its last place."""
    largest = float(np.finfo(got.dtype).max)
    if exact > largest:
        return 0.0 if np.isinf(got) or got == largest else math.inf
    place = float(np.spacing(np.abs(got.dtype.type(float(exact)))))
    return float(abs(mpmath.mpf(float(got)) - exact) / place)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_units_in_the_last_place(name, dtype):
    x = arguments(dtype, np.random.default_rng(1))
    got = compute(name, x)
    assert got.dtype == dtype
    exact_function = FUNCTIONS[name][1]
    with mpmath.workdps(50):
        worst = max(
            (ulps(y, exact_function(mpmath.mpf(float(v)))), v) for v, y in zip(x, got, strict=True)
        )
    assert worst[0] <= 2, f"{name}({worst[1]!r}) is off by {worst[0]} units"


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_bit_pattern_is_as_in_numpy(name, dtype):
    x = random_bits(dtype, 100_000 if COMPILED else 1000, np.random.default_rng(2))
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, *EDGES[dtype]]
    x = np.concatenate([x, np.array(special, dtype)])
    with np.errstate(all="ignore"):
        want = FUNCTIONS[name][2](x)
    got = compute(name, x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(got, want, rtol=3 * eps, atol=2 * np.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_subnormal_results(name):
    for dtype, x in (("d", -740.0), ("f", -100.0)):
        got = compute(name, np.full(9, x, dtype))
        want = FUNCTIONS[name][2](np.full(9, x, dtype))
        np.testing.assert_allclose(got, want, atol=2 * np.finfo(dtype).smallest_subnormal)
        assert name == "expm1" or (got > 0).all()


@pytest.mark.skipif(COMPILED, reason="for compiled code only")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "number", [np.float32(0.3), np.float64(0.3), 0.3], ids=["float32", "float64", "float"]
)
def test_scalars_where_nothing_is_compiled(name, number):
    function, _, reference = FUNCTIONS[name]
    precision = 2 * float(np.finfo(np.asarray(number).dtype).eps)
    assert float(function(number)) == pytest.approx(float(reference(number)), rel=precision)


def test_constants_take_the_precision_of_their_neighbours():
    assert type(elementary.like(0.1, np.float32(1))) is np.float32
    assert type(elementary.like(0.1, np.float64(1))) is np.float64


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
@pytest.mark.skipif(numba.config.BOUNDSCHECK, reason="checks of bounds are branches")
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="registers have other names"
)
@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_become_vector_code(name, dtype):
    # Compiled here: code from the cache comes without its assembly.
    loop = numba.njit(LOOPS[name].py_func, fastmath=set(FASTMATH), error_model="numpy")
    compute_type = numba.float32 if dtype == "f" else numba.float64
    loop.compile((compute_type[::1], compute_type[::1]))
    assembly = loop.inspect_asm(loop.signatures[0])
    packed = "ps" if dtype == "f" else "pd"
    assert re.search(rf"v(fn?m\w+|mul|add){packed}\s.*[yz]mm", assembly)
    assert not re.search(r"call\w*\s+\*?\w*exp", assembly)
