"""Passes and gradients of a batch against plain NumPy: every shape that padding could get wrong."""

import numba
import numpy as np
import pytest
from reference import (
    forward,
    gradient,
    loss,
    probabilities,
    random_params,
    rows,
)
from strategies import network_samples, network_targets

from fastgrad.networks import engine as engine_module
from fastgrad.networks import workspace
from fastgrad.networks.engine import Engine
from fastgrad.runtime import threads
from fastgrad.runtime.compile import COMPILED

#: Around the widths of a vector register, a group of samples and a block of rows.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65) if COMPILED else (1, 2, 4, 5, 8, 9)
TOLERANCE = {"f": 2e-4, "d": 1e-11}


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def sparse(request, monkeypatch):
    """Have the engine take all samples, or none, as sparse."""
    monkeypatch.setattr(engine_module, "is_sparse", lambda x: request.param)
    return request.param


def draw_network(rng):
    depth = int(rng.integers(1, 5))
    sizes = tuple(int(size) for size in rng.choice(SIZES, depth + 1))
    return sizes, "sigmoid" if rng.random() < 0.5 else "relu"


def close(got, want, dtype):
    """Compare arrays, relative to the largest entry."""
    scale = max(np.abs(want).max(initial=0), 1e-30)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=TOLERANCE[dtype])


def doubled(params):
    return {name: array.astype(float) for name, array in params.items()}


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
def test_loss_values_and_gradient(kind, sparse, dtype, chunks):
    rng = np.random.default_rng([chunks, sparse, ord(dtype), len(kind)])
    for _ in range(40 if COMPILED else 2):
        sizes, activation = draw_network(rng)
        delta, decay = rng.choice([0.0, 1e-7, 0.1]), rng.choice([0.0, 0.3])
        n = int(rng.integers(1, 14 if COMPILED else 6))
        params = random_params(sizes, rng, dtype=dtype, scale=rng.choice([0.1, 1, 4]))
        x = network_samples(n, sizes[0], dtype, rng, rng.choice([0, 0.7, 1]))
        labels, soft, t = network_targets(kind, n, sizes[-1], dtype, rng)
        wide, wide_x = doubled(params), x.astype(float)

        engine = Engine(sizes, activation, delta, np.dtype(dtype), decay)
        engine.load(params)
        space = engine.forward(x, labels, soft)
        got = engine.loss(x, labels, soft)
        want = loss(wide, wide_x, t, activation, delta, decay)
        assert got == pytest.approx(want, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        close(space.logits, forward(wide, wide_x, activation)[1][-1], dtype)
        close(space.probabilities, probabilities(wide, wide_x, activation), dtype)

        got, result = engine.gradient(x, labels, soft)
        assert got == pytest.approx(want, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        expected = gradient(wide, wide_x, t, activation, delta, decay)
        assert list(result) == list(params)
        for name, array in expected.items():
            assert result[name].dtype == dtype
            close(result[name], array, dtype)


def test_without_targets_the_loss_is_that_of_none(sparse):
    rng = np.random.default_rng(2)
    params = random_params((5, 4, 3), rng)
    x = network_samples(6, 5, "d", rng, 0.5)
    engine = Engine((5, 4, 3), "sigmoid", 1e-7, np.dtype("d"))
    engine.load(params)
    none = np.empty(0, np.int64), np.empty((0, 3))
    got, space = engine.loss(x, *none), engine.forward(x, *none)
    assert got == 0
    close(space.probabilities, probabilities(params, x, "sigmoid"), "d")


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", ["B", "f", "d"])
@np.errstate(over="ignore", invalid="ignore")  # for kernels that are not compiled
def test_samples_of_every_dtype_give_what_converted_ones_give(kind, dtype, sparse):
    rng = np.random.default_rng(6)
    for sizes in [(130, 7, 3), (65, 3)] if COMPILED else [(66, 3, 2)]:
        params = random_params(sizes, rng, dtype=dtype)
        x = rng.integers(1, 256, (9, sizes[0])) * (rng.random((9, sizes[0])) < 0.3)
        x = x.astype("B") if kind == "B" else (x / 255).astype(kind)
        converted = x.astype(dtype)
        labels, soft = rng.integers(0, sizes[-1], 9), np.empty((0, sizes[-1]), dtype)
        results = []
        for samples in (x, converted):
            engine = Engine(sizes, "sigmoid", 1e-7, np.dtype(dtype))
            engine.load(params)
            space = engine.forward(samples, labels, soft)
            value = engine.loss(samples, labels, soft)
            results.append(
                [value, space.logits.copy(), engine.gradient(samples, labels, soft),
                 engine.central_difference(samples, labels, soft, 1e-4),
                 engine.central_difference(samples, labels, soft, 0.5)]
            )  # fmt: skip
        got, want = results
        tolerance = {"f": 1e-5, "d": 1e-13}[dtype]
        assert got[0] == pytest.approx(want[0], rel=tolerance)
        np.testing.assert_allclose(got[1], want[1], rtol=tolerance, atol=tolerance)
        for (value, arrays), (wanted, others) in zip(got[2:], want[2:], strict=True):
            assert value == pytest.approx(wanted, rel=tolerance)
            for name, array in arrays.items():
                largest = np.abs(others[name]).max()
                np.testing.assert_allclose(
                    array, others[name], rtol=0, atol=10 * tolerance * largest
                )


@np.errstate(over="ignore", invalid="ignore")  # for kernels that are not compiled
def test_passes_and_perturbations_on_different_numbers_of_threads_in_turn(monkeypatch):
    rng, sizes = np.random.default_rng(4), (70, 6, 3)
    x, labels = network_samples(12, 70, "d", rng, 0.7), rng.integers(0, 3, 12)
    finite = random_params(sizes, rng)
    broken = {**finite, "b2": np.full(3, np.nan)}
    engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
    spaces, held = set(), None
    for _ in range(40):
        number = int(rng.integers(1, 4))
        monkeypatch.setattr(threads, "chunks", lambda *_, number=number: number)
        if held is None or rng.random() < 0.6:
            held = broken if rng.random() < 0.3 else finite
            engine.load(held)
        call, rest = [("gradient", ()), ("central_difference", (1e-5,))][rng.integers(2)]
        _, result = getattr(engine, call)(x, labels, np.empty((0, 3)), *rest)
        spaces.update(map(id, engine.spaces.values()))
        want = gradient(held, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in result.items():
            expected = want[name] if held is finite else np.full_like(array, np.nan)
            np.testing.assert_allclose(array, expected, rtol=1e-7, atol=1e-10)
    assert len(spaces) == 3  # one for each number of threads, and each of them kept
    for n in range(1, 11):
        engine.forward(x[:n], labels[:n], np.empty((0, 3)))
    assert [n for n, *_ in engine.spaces] == list(range(11 - engine_module.MAX_WORKSPACES, 11))


def test_dense_and_sparse_batches_in_turn(chunks):
    rng = np.random.default_rng(4)
    params = random_params((70, 6, 3), rng)
    engine = Engine((70, 6, 3), "sigmoid", 1e-7, np.dtype("d"))
    for zeros in (0.0, 0.9, 0.0, 0.0, 0.9, 0.9):
        x, labels = network_samples(9, 70, "d", rng, zeros), rng.integers(0, 3, 9)
        engine.load(params)
        _, result = engine.gradient(x, labels, np.empty((0, 3)))
        want = gradient(params, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in result.items():
            close(array, want[name], "d")
        engine.release()


def test_whether_samples_are_sparse_is_judged_by_two_of_them():
    dense, zeros = np.ones(100), np.zeros(100)
    assert engine_module.is_sparse(np.array([zeros, zeros, zeros]))
    assert not engine_module.is_sparse(np.array([dense, dense, dense]))
    assert not engine_module.is_sparse(np.array([dense, zeros, zeros]))
    half = np.where(np.arange(100) < 39, 1, 0)
    for dtype in "Bfd":
        assert engine_module.is_sparse(np.array([half] * 4, dtype))
        assert not engine_module.is_sparse(np.array([half] * 4, dtype) + 1)
    assert engine_module.is_sparse(zeros[None])


class Idle:
    """A program that does nothing, and finds everything in series range."""

    def __init__(self, chunks, names, *stages):
        self.names = {**names, "state": np.ones((chunks, 2), int)}

    def bind(self, **arrays):
        pass

    def launch(self):
        pass


@pytest.mark.parametrize(
    ("sizes", "dtype", "call", "threads_of"),
    [
        ((784, 50, 10), "f", "forward", {1: 1, 20: 1, 60: 2, 100: 2}),
        ((784, 50, 10), "d", "gradient", {1: 1, 10: 1, 20: 2, 100: 2}),
        ((784, 50, 10), "f", "central_difference", {1: 1, 5: 1, 10: 2, 100: 2}),
        ((4, 3, 2, 2), "d", "central_difference", {1: 1, 2: 1, 10: 2, 100: 2}),
    ],
)
def test_a_small_batch_is_for_one_thread(
    sizes, dtype, call, threads_of, parallel_costs, monkeypatch
):
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_layer", "tbb")
    for name, cost in parallel_costs.items():
        monkeypatch.setattr(engine_module, name, cost)
    # Nothing is compiled, and nothing runs.
    monkeypatch.setattr(workspace, "Program", Idle)
    monkeypatch.setattr(workspace.Workspace, "is_finite", True)
    engine = Engine(sizes, "sigmoid", 1e-7, np.dtype(dtype))
    engine.load(random_params(sizes, np.random.default_rng(0), dtype=dtype))
    found, rest = {}, [1e-4] if call == "central_difference" else []
    for n in threads_of:
        x, labels = np.ones((n, sizes[0]), dtype), np.zeros(n, np.int64)
        getattr(engine, call)(x, labels, np.empty((0, sizes[-1]), dtype), *rest)
        *_, space = engine.spaces.values()
        found[n] = space.chunks
    assert found == threads_of


def test_a_batch_of_more_samples_than_bits_fit_into_a_number(sparse, chunks):
    rng = np.random.default_rng(3)
    for n in (63, 64, 65, 130) if COMPILED else (65,):
        sizes = (70, 6, 3)
        params, x = random_params(sizes, rng), network_samples(n, 70, "d", rng, 0.8)
        labels = rng.integers(0, 3, n)
        engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
        engine.load(params)
        _, result = engine.gradient(x, labels, np.empty((0, 3)))
        want = gradient(params, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in result.items():
            close(array, want[name], "d")


@np.errstate(all="ignore")
def test_weights_that_are_not_finite_are_noticed(sparse, chunks):
    params = random_params((3, 4, 2), np.random.default_rng(0))
    engine = Engine((3, 4, 2), "sigmoid", 0.0, np.dtype("d"))
    batch = np.zeros((3, 3)), np.zeros(3, np.int64), np.empty((0, 2))
    engine.load(params)
    value, result = engine.gradient(*batch)
    assert np.isfinite(value)
    assert all(np.isfinite(array).all() for array in result.values())
    for name in params:
        for bad in (np.nan, np.inf, -np.inf):
            for place in (0, -1):
                broken = {key: array.copy() for key, array in params.items()}
                broken[name].flat[place] = bad
                engine.load(broken)
                # Zero times infinity: what is left out of a product of sparse samples is not.
                want = loss(broken, batch[0], rows(batch[1], 2), "sigmoid", 0.0)
                value = engine.loss(*batch)
                assert value == pytest.approx(want, nan_ok=True), (name, bad)
                value, result = engine.gradient(*batch)
                assert value == pytest.approx(want, nan_ok=True)
                if np.isnan(want):
                    assert all(np.isnan(array).all() for array in result.values())
                for h in (1e-4, 0.5):
                    _, result = engine.central_difference(*batch, h)
                    assert all(np.isnan(array).all() for array in result.values())
                    assert list(result) == list(params)


@np.errstate(all="ignore")
def test_samples_that_are_not_finite_spoil_what_numpy_spoils(sparse):
    rng = np.random.default_rng(1)
    params = random_params((70, 4, 2), rng)
    engine = Engine((70, 4, 2), "sigmoid", 0.0, np.dtype("d"))
    engine.load(params)
    for bad in (np.nan, np.inf):
        x = network_samples(4, 70, "d", rng, 0.8)
        x[2, 66] = bad
        space = engine.forward(x, np.zeros(4, np.int64), np.empty((0, 2)))
        want = forward(params, x, "sigmoid")[1][-1]
        np.testing.assert_allclose(space.logits, want, rtol=1e-10, atol=1e-12)
