"""Compiled iterations against plain NumPy: every shape that padding could get wrong."""

import itertools

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    SETTINGS,
    forward,
    gradient,
    loss,
    probabilities,
    random_params,
    rows,
    step,
)

from fastgrad import engine as engine_module
from fastgrad import threads
from fastgrad.engine import Engine
from fastgrad.kernels import central_difference, iteration, updates

COMPILED = not numba.config.DISABLE_JIT

#: Around the widths of a vector register, a group of samples and a block of rows.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65) if COMPILED else (1, 2, 4, 5, 8, 9)
TOLERANCE = {"f": 2e-4, "d": 1e-11}


def draw_network(rng):
    depth = int(rng.integers(1, 5))
    sizes = tuple(int(size) for size in rng.choice(SIZES, depth + 1))
    return sizes, "sigmoid" if rng.random() < 0.5 else "relu"


def draw_samples(n, width, dtype, rng, zeros):
    x = rng.standard_normal((n, width))
    x[rng.random(x.shape) < zeros] = 0
    return x.astype(dtype)


def draw_targets(kind, n, classes, dtype, rng):
    """Return labels and soft targets as the engine wants them, and the same as rows."""
    labels = rng.integers(0, classes, n)
    if kind == "labels":
        return labels, np.empty((0, classes), dtype), rows(labels, classes)
    soft = rows(labels, classes) if kind == "one-hot" else rng.random((n, classes)) * 2
    soft = soft.astype(dtype)
    return np.empty(0, np.int64), soft, soft.astype(float)


def close(got, want, dtype):
    """Compare arrays, relative to the largest entry."""
    scale = max(np.abs(want).max(initial=0), 1e-30)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("sparse", [False, True], ids=["rows", "marks"])
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
def test_loss_values_and_gradient(kind, sparse, dtype, shares):
    rng = np.random.default_rng([shares, sparse, ord(dtype), len(kind)])
    for _ in range(40 if COMPILED else 2):
        sizes, activation = draw_network(rng)
        delta, decay = rng.choice([0.0, 1e-7, 0.1]), rng.choice([0.0, 0.3])
        n = int(rng.integers(1, 14 if COMPILED else 6))
        params = random_params(sizes, rng, dtype=dtype, scale=rng.choice([0.1, 1, 4]))
        x = draw_samples(n, sizes[0], dtype, rng, rng.choice([0, 0.7, 1]))
        labels, soft, t = draw_targets(kind, n, sizes[-1], dtype, rng)
        wide = {name: array.astype(float) for name, array in params.items()}
        wide_x = x.astype(float)

        engine = Engine(sizes, activation, delta, np.dtype(dtype), decay)
        engine.load(params)
        got = engine.forward(x, labels, soft, sparse=sparse)
        want = loss(wide, wide_x, t, activation, delta, decay)
        assert got == pytest.approx(want, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        close(engine.logits, forward(wide, wide_x, activation)[1][-1], dtype)
        close(engine.probabilities, probabilities(wide, wide_x, activation), dtype)

        engine.load(params)
        got, flat = engine.backpropagate(x, labels, soft, sparse=sparse)
        assert got == pytest.approx(want, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        result = engine.split(flat)
        for name, array in gradient(wide, wide_x, t, activation, delta, decay).items():
            close(result[name], array, dtype)


@pytest.mark.parametrize("sparse", [False, True], ids=["rows", "marks"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_iterations_of_every_rule(kind, sparse, shares):
    rule = getattr(updates, kind.upper())
    rng = np.random.default_rng([rule, sparse, shares])
    for sizes in [(9, 7, 3), (17, 8, 9, 2), (5, 4), (1, 1, 1)] if COMPILED else [(9, 3, 2)]:
        count, n_batch, n = 5, 6, 11
        params = random_params(sizes, rng)
        x = draw_samples(n, sizes[0], "d", rng, 0.6)
        labels, soft, t = draw_targets("labels", n, sizes[-1], "d", rng)
        batches = rng.integers(0, n, (count, n_batch))
        rates = rng.uniform(0.01, 0.1, count)
        a, b, decay = 0.9, 0.99, 0.01

        engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"), decay)
        engine.load(params)
        memory = np.zeros((2, *engine.weights.shape))
        done = np.full(1, 7)
        losses = engine.run(
            engine.data_set(x, sparse=sparse), batches, labels, soft,
            rule=rule, first=memory[0], second=memory[1], rates=rates, a=a, b=b, done=done,
        )  # fmt: skip
        assert done[0] == 7 + count
        result = {name: np.empty_like(array) for name, array in params.items()}
        engine.unpack(engine.weights, result)

        state = {name: np.zeros((2, *array.shape)) for name, array in params.items()}
        for batch, rate, got in zip(batches, rates, losses, strict=True):
            want = loss(params, x[batch], t[batch], "sigmoid", 1e-7, decay)
            assert got == pytest.approx(want, rel=1e-12)
            grads = gradient(params, x[batch], t[batch], "sigmoid", 1e-7, decay)
            for name, array in params.items():
                params[name], *state[name] = step(
                    kind, array, grads[name], *state[name], rate, a, b
                )
        for name, array in params.items():
            np.testing.assert_allclose(result[name], array, rtol=1e-9, atol=1e-11)
        # What pads the matrices is zero still: it takes part in every product.
        padded = np.ones(engine.weights.shape, bool)
        for layer, at in enumerate(engine.layout.weights_at):
            padded[0, at : at + sizes[layer] + 1, : sizes[layer + 1]] = False
        assert not engine.weights[padded].any()


def test_a_batch_may_repeat_samples(shares):
    rng = np.random.default_rng(0)
    sizes = (8, 5, 3)
    params, x = random_params(sizes, rng), draw_samples(4, 8, "d", rng, 0.5)
    labels = np.array([0, 1, 2, 0])
    for sparse in (False, True):
        engine = Engine(sizes, "relu", 0.0, np.dtype("d"))
        engine.load(params)
        batch = np.array([[2, 2, 2, 1, 2]])
        engine.run(
            engine.data_set(x, sparse=sparse), batch, labels, np.empty((0, 3)),
            rule=updates.SGD, rates=np.ones(1),
        )  # fmt: skip
        after = {name: np.empty_like(array) for name, array in params.items()}
        engine.unpack(engine.weights, after)
        result = {name: params[name] - after[name] for name in params}
        want = gradient(params, x[batch[0]], rows(labels[batch[0]], 3), "relu", 0.0)
        for name, array in want.items():
            close(result[name], array, "d")


def is_marked(marks, n_entries):
    """Return bits, 64 a number, as booleans."""
    shifts = np.arange(64, dtype=np.uint64)
    return (
        (marks[..., None] >> shifts & np.uint64(1))
        .reshape(*marks.shape[:-1], -1)
        .astype(bool)[..., :n_entries]
    )


@given(
    shape=st.tuples(st.integers(1, 7), st.sampled_from([*SIZES, 128, 130])),
    shares=st.integers(1, 5),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from("fd"),
)
def test_every_entry_is_marked_once_and_has_one_owner(shape, shares, zeros, seed, dtype):
    n, width = shape
    x = draw_samples(n, width, dtype, np.random.default_rng(seed), zeros)
    threads.layer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba, "get_num_threads", lambda: shares)
        engine = Engine((width, 2), "relu", 0.0, np.dtype(dtype))
        samples = engine.data_set(x, sparse=True)
    assert len(samples.marks) == 1
    marked = is_marked(samples.marks[0], 64 * samples.marks.shape[2])
    np.testing.assert_array_equal(marked[:, :width], x != 0)
    assert not marked[:, width:].any()
    owned = is_marked(samples.own, width)
    assert (owned.sum(axis=0) == 1).all()
    for share, bounds in enumerate(samples.bounds[:, : shares + 1]):
        assert bounds[0] == 0
        assert bounds[-1] == width
        np.testing.assert_array_equal(np.flatnonzero(owned[share]), np.arange(*bounds[share:][:2]))
    for sample, start in zip(x, samples.start, strict=True):
        np.testing.assert_array_equal(samples.value[0, start[0] : start[-1]], sample[sample != 0])
        np.testing.assert_array_equal(np.diff(start), owned.astype(int) @ (sample != 0))


def test_rows_are_dealt_out_by_their_non_zero_entries():
    x = np.zeros((20, 800))
    x[:, 600:] = 1
    threads.layer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba, "get_num_threads", lambda: 4)
        bounds = Engine((800, 2), "relu", 0.0, np.dtype("d")).data_set(x).bounds[0, :5]
    parts = [np.count_nonzero(x[:, a:b]) for a, b in itertools.pairwise(bounds)]
    assert max(parts) < 1.2 * np.mean(parts)


@np.errstate(over="ignore")  # for kernels that are not compiled
def test_passes_and_nudges_on_different_numbers_of_threads_in_turn(monkeypatch):
    rng, sizes = np.random.default_rng(4), (70, 6, 3)
    x, labels = draw_samples(12, 70, "d", rng, 0.7), rng.integers(0, 3, 12)
    finite = random_params(sizes, rng)
    broken = {**finite, "b2": np.full(3, np.nan)}
    engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
    scratches, held = set(), None
    for _ in range(40):
        monkeypatch.setattr(threads, "shares", lambda *_: int(rng.integers(1, 4)))
        if held is None or rng.random() < 0.6:  # else the engine has them, broken ones too
            held = broken if rng.random() < 0.3 else finite
            engine.load(held)
        call, rest = [("backpropagate", ()), ("central_difference", (1e-5,))][rng.integers(2)]
        _, flat = getattr(engine, call)(x, labels, np.empty((0, 3)), *rest)
        scratches.add(id(engine._scratch))
        want = gradient(held, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in engine.split(flat).items():
            expected = want[name] if held is finite else np.full_like(array, np.nan)
            np.testing.assert_allclose(array, expected, rtol=1e-7, atol=1e-10)
    assert len(scratches) == 3  # kept, as long as batches have the same size


def test_dense_and_sparse_batches_in_turn(shares):
    rng = np.random.default_rng(4)
    params = random_params((70, 6, 3), rng)
    engine = Engine((70, 6, 3), "sigmoid", 1e-7, np.dtype("d"))
    for zeros in (0.0, 0.9, 0.0, 0.0, 0.9, 0.9):
        x, labels = draw_samples(9, 70, "d", rng, zeros), rng.integers(0, 3, 9)
        engine.load(params)
        _, flat = engine.backpropagate(x, labels, np.empty((0, 3)))
        want = gradient(params, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in engine.split(flat).items():
            close(array, want[name], "d")
        engine.release()


def test_nan_and_infinity_are_marked():
    x = np.array([[0.0, np.nan, 0.0, -np.inf, -0.0]])
    samples = Engine((5, 2), "relu", 0.0, np.dtype("d")).data_set(x, sparse=True)
    np.testing.assert_array_equal(samples.value, [[np.nan, -np.inf]])


@pytest.mark.parametrize(
    ("sizes", "dtype", "call", "threads_of"),
    [
        ((784, 50, 10), "f", "forward", {1: 1, 20: 1, 60: 2, 100: 2}),
        ((784, 50, 10), "d", "backpropagate", {1: 1, 10: 1, 20: 2, 100: 2}),
        ((784, 50, 10), "f", "central_difference", {1: 1, 5: 1, 10: 2, 100: 2}),
        ((4, 3, 2, 2), "d", "central_difference", {1: 1, 2: 1, 10: 2, 100: 2}),
    ],
)
def test_a_small_batch_is_for_one_thread(sizes, dtype, call, threads_of, efforts, monkeypatch):
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    for name, effort in efforts.items():
        monkeypatch.setattr(engine_module, name, effort)
    engine = Engine(sizes, "sigmoid", 1e-7, np.dtype(dtype))
    outcome = {iteration.begin: (False, 0.0), central_difference.nudge: (True, True, 0.0)}
    monkeypatch.setattr(threads, "launch", lambda kernel, *_: outcome.get(kernel))
    monkeypatch.setattr(threads, "_layer", "tbb")
    found, rest = {}, [1e-4] if call == "central_difference" else []
    for n in threads_of:
        x, labels = np.ones((n, sizes[0]), dtype), np.zeros(n, np.int64)
        getattr(engine, call)(x, labels, np.empty((0, sizes[-1]), dtype), *rest)
        found[n] = engine._scratch.shares
    assert found == threads_of


def test_a_batch_of_more_samples_than_marks_fit_into_a_number(shares):
    rng = np.random.default_rng(3)
    for n in (63, 64, 65, 130) if COMPILED else (65,):
        sizes = (70, 6, 3)
        params, x = random_params(sizes, rng), draw_samples(n, 70, "d", rng, 0.8)
        labels = rng.integers(0, 3, n)
        engine = Engine(sizes, "sigmoid", 1e-7, np.dtype("d"))
        engine.load(params)
        _, flat = engine.backpropagate(x, labels, np.empty((0, 3)), sparse=True)
        want = gradient(params, x, rows(labels, 3), "sigmoid", 1e-7)
        for name, array in engine.split(flat).items():
            close(array, want[name], "d")


@pytest.mark.parametrize("sparse", [False, True], ids=["rows", "marks"])
def test_weights_that_are_not_finite_are_noticed(sparse):
    params = random_params((3, 4, 2), np.random.default_rng(0))
    engine = Engine((3, 4, 2), "sigmoid", 0.0, np.dtype("d"))
    batch = np.zeros((1, 3)), np.zeros(1, np.int64), np.empty((0, 2))
    engine.load(params)
    engine.forward(*batch, sparse=sparse)
    assert engine.finite
    np.testing.assert_array_equal(engine.transposed[0, :2, :4], params["W2"].T)
    for name in params:
        for bad in (np.nan, np.inf, -np.inf):
            broken = {key: array.copy() for key, array in params.items()}
            broken[name].flat[-1] = bad
            engine.load(broken)
            with np.errstate(invalid="ignore"):  # for kernels that are not compiled
                engine.forward(*batch, sparse=sparse)
            assert not engine.finite


@pytest.mark.parametrize("layers", range(2, 5))
def test_rows_of_a_matrix_leave_room_for_groups(layers):
    # The bias is a row of its own, and a product takes GROUP rows at a time.
    for size in SIZES:
        engine = Engine((size,) * layers, "relu", 0.0, np.dtype("f"))
        where = engine.layout
        ends = [*where.weights_at[1:], engine.weights.shape[1]]
        for at, end in zip(where.weights_at, ends, strict=True):
            assert end - at >= size + 1
            assert (end - at) % iteration.GROUP == 0
        assert (where.widths >= size + 1).all()
        assert engine.weights.ctypes.data % iteration.REGISTER_BYTES == 0
