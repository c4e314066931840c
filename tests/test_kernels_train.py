"""Iterations of training against plain NumPy, and the data set in CSR that they read."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import SETTINGS, gradient, loss, random_params, rows, step
from strategies import network_samples, network_targets

import fastgrad
from fastgrad.networks import fit
from fastgrad.networks.engine import Engine
from fastgrad.runtime import threads
from fastgrad.runtime.compile import COMPILED

SIZES = (1, 2, 3, 5, 8, 9, 63, 64, 65, 128, 130) if COMPILED else (1, 2, 5, 8, 9, 65)
TOLERANCE = {"f": 2e-4, "d": 1e-9}


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def sparse(request, monkeypatch):
    """Have training take all data sets, or none, as sparse."""
    monkeypatch.setattr(fit, "SPARSE_BELOW", 2 if request.param else -1)
    return request.param


class Network:
    """What a training run needs of one."""

    def __init__(self, params):
        self.params, self.dtype = params, params["W1"].dtype

    def checked_params(self):
        return self.params


def train(params, x, labels, soft, batches, optimizer, *, activation="sigmoid", delta=1e-7,
          decay=0.0):  # fmt: skip
    """Run iterations; return the losses, the parameters, and the run for a look into it."""
    sizes = (x.shape[1], *(params[f"b{k + 1}"].size for k in range(len(params) // 2)))
    engine = Engine(sizes, activation, delta, params["W1"].dtype, decay)
    copies = {name: array.copy() for name, array in params.items()}
    data = fit.TrainingSet(x, labels, soft, batches.shape[1])
    run = fit._GradientRun(engine, optimizer, Network(copies), data)
    losses = np.full(len(batches), np.nan)
    run.advance(batches, losses)
    assert run.done == len(batches)
    return losses, run.params, run


@pytest.mark.parametrize("kind", SETTINGS)
def test_iterations_of_every_rule(kind, sparse, chunks):
    rng = np.random.default_rng([len(kind), sparse, chunks])
    cases = [(9, 7, 3), (17, 8, 9, 2), (5, 4), (1, 1, 1), (130, 9, 2)] if COMPILED else [(9, 3, 2)]
    for sizes in cases:
        count, n_batch, n = 5, 6, 11
        params = random_params(sizes, rng)
        x = network_samples(n, sizes[0], "d", rng, 0.6)
        labels, soft, t = network_targets(rng.choice(["labels", "soft"]), n, sizes[-1], "d", rng)
        batches = rng.integers(0, n, (count, n_batch))
        rates = rng.uniform(0.01, 0.1, count)
        a, b, decay = 0.9, 0.99, rng.choice([0.0, 0.01])
        optimizer = getattr(fastgrad, kind)()
        steps = [(float(rate), a, b) for rate in rates]
        optimizer.next_step = iter(steps).__next__

        losses, result, run = train(params, x, labels, soft, batches, optimizer, decay=decay)
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
            for remembered, want in zip(optimizer.state_names, state[name], strict=False):
                got = run.states[remembered][name]
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
        # What pads the rows of W1 is zero still: it takes part in every update.
        for padded in ("W1", "W1_first", "W1_second"):
            assert not run._program.names[padded][:, sizes[1] :].any()


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", ["B", "f", "d"])
def test_samples_of_every_dtype(kind, dtype, sparse, chunks):
    rng = np.random.default_rng([ord(kind), ord(dtype), sparse, chunks])
    sizes = (70, 18, 3) if COMPILED else (66, 3, 2)
    params = random_params(sizes, rng, dtype=dtype)
    x = rng.integers(1, 4, (9, sizes[0])) * (rng.random((9, sizes[0])) < 0.3)
    x = x.astype(kind) if kind == "B" else (x / 7).astype(kind)
    labels, soft, t = network_targets("labels", 9, sizes[-1], dtype, rng)
    batches = rng.integers(0, 9, (3, 65 if COMPILED else 4))  # more than bits fit into a number
    losses, result, _ = train(params, x, labels, soft, batches, fastgrad.SGD(0.05))
    params = {name: array.astype("d") for name, array in params.items()}
    for batch, got in zip(batches, losses, strict=True):
        wide = x[batch].astype("d")
        want = loss(params, wide, t[batch], "sigmoid", 1e-7)
        assert got == pytest.approx(want, rel=TOLERANCE[dtype])
        for name, array in gradient(params, wide, t[batch], "sigmoid", 1e-7).items():
            params[name] = params[name] - 0.05 * array
    for name, array in params.items():
        assert result[name].dtype == dtype
        np.testing.assert_allclose(
            result[name], array, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 100
        )


def test_a_batch_may_repeat_samples(sparse, chunks):
    rng = np.random.default_rng(0)
    params, x = random_params((8, 5, 3), rng), network_samples(4, 8, "d", rng, 0.5)
    labels, batch = np.array([0, 1, 2, 0]), np.array([[2, 2, 2, 1, 2]])
    _, after, _ = train(
        params, x, labels, np.empty((0, 3)), batch, fastgrad.SGD(1.0), activation="relu", delta=0.0
    )
    want = gradient(params, x[batch[0]], rows(labels[batch[0]], 3), "relu", 0.0)
    for name, array in want.items():
        np.testing.assert_allclose(params[name] - after[name], array, rtol=0, atol=1e-13)


def test_stretches_of_iterations_add_up_to_one(sparse, chunks):
    rng = np.random.default_rng(1)
    params, x = random_params((20, 5, 3), rng), network_samples(9, 20, "d", rng, 0.5)
    labels, batches = rng.integers(0, 3, 9), rng.integers(0, 9, (7, 4))
    whole, want, _ = train(params, x, labels, np.empty((0, 3)), batches, fastgrad.Adam())
    losses, result, run = train(params, x, labels, np.empty((0, 3)), batches[:2], fastgrad.Adam())
    for begin, end in ((2, 3), (3, 7)):
        more = np.empty(end - begin)
        run.advance(batches[begin:end], more)
        losses = np.append(losses, more)
    assert run.done == 7
    np.testing.assert_allclose(losses, whole, rtol=1e-12)
    for name, array in want.items():
        np.testing.assert_allclose(result[name], array, rtol=1e-12, atol=1e-14)


def is_marked(bits, n_entries):
    """Return bits, 64 a number, as booleans."""
    shifts = np.arange(64, dtype=np.uint64)
    return (
        (bits[..., None] >> shifts & np.uint64(1))
        .reshape(*bits.shape[:-1], -1)
        .astype(bool)[..., :n_entries]
    )


@given(
    shape=st.tuples(st.integers(1, 7), st.sampled_from(SIZES)),
    n_chunks=st.integers(1, 5),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["Bd", "fd", "dd", "df"]),  # of samples and network
)
def test_every_entry_is_marked_once_and_has_one_owner(shape, n_chunks, zeros, seed, dtype):
    n, width = shape
    x = 9 * network_samples(n, width, "d", np.random.default_rng(seed), zeros)
    x = np.abs(x).astype(dtype[0])
    threads.layer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SPARSE_BELOW", 2)
        data_set = fit.sparse_samples(x, n_chunks, np.dtype(dtype[1]))
    marked = is_marked(data_set["bits"], 64 * data_set["bits"].shape[1])
    np.testing.assert_array_equal(marked[:, :width], x != 0)
    assert not marked[:, width:].any()
    owned = is_marked(data_set["own"], 64 * data_set["own"].shape[1])
    assert (owned[:, :width].sum(axis=0) == 1).all()
    assert not owned[:, width:].any()
    bounds = data_set["bounds"]
    assert (bounds[0], bounds[-1], len(bounds)) == (0, width, n_chunks + 1)
    for chunk, (begin, end) in enumerate(itertools.pairwise(bounds)):
        np.testing.assert_array_equal(np.flatnonzero(owned[chunk]), np.arange(begin, end))
    assert data_set["data"].dtype == dtype[1]
    assert data_set["data"].size == np.count_nonzero(x)
    for sample, indptr in zip(x, data_set["indptr"], strict=True):
        entries = data_set["data"][indptr[0] : indptr[-1]]
        np.testing.assert_array_equal(entries, sample[sample != 0].astype(dtype[1]))
        np.testing.assert_array_equal(np.diff(indptr), owned[:, :width].astype(int) @ (sample != 0))


def test_rows_are_dealt_out_by_their_non_zero_entries():
    x = np.zeros((20, 800))
    x[:, 600:] = 1
    bounds = fit.sparse_samples(x, 4, np.dtype("d"))["bounds"]
    parts = [np.count_nonzero(x[:, a:b]) for a, b in itertools.pairwise(bounds)]
    assert max(parts) < 1.2 * np.mean(parts)


def test_dense_data_sets_are_not_packed():
    x = np.ones((20, 70))
    assert fit.sparse_samples(x, 2, np.dtype("d")) is None
    x[:, ::2] = x[:, ::3] = 0
    assert fit.sparse_samples(x, 2, np.dtype("d")) is not None


@pytest.mark.parametrize("width", [5, 64, 100])
def test_nan_and_infinity_are_marked(width):
    x = np.zeros((3, width))
    x[1, [1, -1]] = np.nan, -np.inf
    x[2] = -0.0
    data_set = fit.sparse_samples(x, 1, np.dtype("d"))
    np.testing.assert_array_equal(data_set["data"], [np.nan, -np.inf])
    np.testing.assert_array_equal(np.argwhere(is_marked(data_set["bits"], width)),
                                  [[1, 1], [1, width - 1]])  # fmt: skip
