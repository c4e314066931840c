"""The benchmark scripts: their textbook is right, a wrong rival is refused, files come out."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastgrad

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the benchmarks are part of the repository, not of the package"
)


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the folder, imported as the scripts import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("textbook", "measuring", "peers", "scaling", "deep")
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    monkeypatch.setattr(modules.measuring, "SETTLE", 0.0)
    monkeypatch.setattr(modules.measuring, "TAKING", 0.0)
    monkeypatch.setattr(modules.measuring, "PAUSE", 0.0)
    monkeypatch.setattr(modules.measuring, "PATIENCE", 0.0)
    return modules


@pytest.fixture
def images():
    """A few made-up images, half of them zeros, and their labels."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(40, 12)) * (rng.uniform(size=(40, 12)) < 0.5)
    return x, rng.integers(0, 10, 40)


def settings(**others):
    """Options that make a measurement short."""
    default = {"rounds": 2, "patience": 0, "stretch": 1e-4, "modules": {"numpy"}}
    return SimpleNamespace(**(default | others))


def run_script(name, *options):
    """Run a script as its users do; return the finished process."""
    return subprocess.run(
        [sys.executable, str(FOLDER / name), *map(str, options)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        cwd=FOLDER.parent,
        timeout=600,
        check=False,
    )


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


# --- the textbook ----------------------------------------------------------------------------


def test_the_textbooks_gradient_is_that_of_its_loss(scripts, images):
    x, t = images
    params = scripts.textbook.initial_params(12, 5, 10, np.float64, std=0.5)
    positions = scripts.textbook.random_positions(params, 1000)
    assert len(set(positions)) == len(positions) == sum(v.size for v in params.values())
    before = {key: value.copy() for key, value in params.items()}

    numerical = scripts.textbook.numerical_gradient(params, x, t, positions)

    _, grads = scripts.textbook.gradient(params, x, t, exact=True)
    exact = np.array([grads[name].reshape(-1)[i] for name, i in positions])
    np.testing.assert_allclose(numerical, exact, atol=1e-8)
    assert all(np.array_equal(before[key], params[key]) for key in params)


def test_the_gradient_of_many_layers_is_that_of_their_loss(scripts, images):
    x, t = images
    params = dict(fastgrad.MultiLayerNet(12, [6, 5], 10, rng=0).params)
    positions = scripts.textbook.random_positions(params, 1000)
    numerical = scripts.textbook.numerical_gradient(
        params, x, t, positions, evaluate=scripts.deep.loss
    )
    _, grads = scripts.deep.gradient(params, x, t)
    exact = np.array([grads[name].reshape(-1)[i] for name, i in positions])
    np.testing.assert_allclose(numerical, exact, atol=1e-8)


def test_deep_trains_as_the_book_does(scripts, images):
    x, t = images
    deviation, times = scripts.deep.training_row("Adam", x, t, rounds=1)
    assert deviation < scripts.deep.CURVE_GOAL
    assert set(times) == {"fastgrad", "NumPy"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_training_step_goes_down_the_gradient_in_its_own_dtype(scripts, images, dtype):
    x, t = images[0].astype(dtype), images[1]
    params = scripts.textbook.initial_params(12, 5, 10, dtype, std=0.5)
    before = {key: value.copy() for key, value in params.items()}
    loss, grads = scripts.textbook.gradient(params, x, t)
    assert loss == pytest.approx(scripts.textbook.loss(params, x, t))

    assert scripts.textbook.training_step(params, x, t, 0.5) == loss

    for key, grad in grads.items():
        assert params[key].dtype == dtype
        np.testing.assert_allclose(params[key], before[key] - dtype(0.5) * grad, rtol=1e-6)
    assert scripts.textbook.loss(params, x, t) < loss


# --- measuring -------------------------------------------------------------------------------


def test_measurements_are_taken_in_turn(scripts):
    taken = []

    def measurement(name, seconds):
        def measure():
            taken.append(name)
            return seconds

        return measure

    times = scripts.measuring.in_turn({"a": measurement("a", 1.0), "b": measurement("b", 3.0)}, 5)
    assert times == {"a": [1.0] * 5, "b": [3.0] * 5}
    assert all(set(taken[k : k + 2]) == {"a", "b"} for k in range(0, 10, 2))
    assert {tuple(taken[k : k + 2]) for k in range(0, 10, 2)} == {("a", "b"), ("b", "a")}


@pytest.mark.parametrize("cores", [1, 2])
def test_a_measurement_is_taken_again_if_the_cores_were_not_free(scripts, monkeypatch, cores):
    # Asked before and after each measurement; while they are not, before it, once more.
    answers = iter([False, True, True, True, False, True, True])
    monkeypatch.setattr(scripts.measuring, "cores_are_free", lambda cores: next(answers))
    values = iter([1.0, 2.0, 3.0])
    times = scripts.measuring.in_turn({"a": lambda: next(values)}, 2, cores=cores, patience=60)
    assert times == {"a": [1.0, 3.0]}
    assert next(answers, None) is None


def test_patience_ends(scripts, monkeypatch):
    monkeypatch.setattr(scripts.measuring, "cores_are_free", lambda cores: False)
    monkeypatch.setattr(scripts.measuring, "PATIENCE", 0.01)
    times = scripts.measuring.in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, 3)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}


@pytest.mark.parametrize("cores", [1, 2])
def test_whether_cores_are_free(scripts, monkeypatch, cores):
    monkeypatch.setattr(scripts.measuring, "_shortest", {})
    probes = {
        (1.5, 1.6, 3.0): True,  # nothing better is known
        (1.0, 1.2, 2.9): True,
        (1.0, 1.3, 2.9): False,  # slower side by side
        (1.5, 1.5, 2.9): False,  # slower than before
        (1.1, 1.1, 6.0): False,  # slow to meet
        (1.1, 1.1, 5.0): True,
    }
    for probe, are_free in probes.items():
        monkeypatch.setattr(scripts.measuring, "_probe", lambda cores, probe=probe: probe)
        assert scripts.measuring.cores_are_free(cores) is are_free, probe


def test_the_work_that_tells_whether_cores_are_free(scripts):
    assert all(0 < seconds < 1 for seconds in scripts.measuring._probe(2))


def test_a_core_is_taken_twice_only_when_none_is_left(scripts, monkeypatch):
    cores = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 8: "8"}
    monkeypatch.setattr(scripts.measuring, "_siblings", cores.__getitem__)
    assert scripts.measuring.one_of_each_core(set(cores)) == [0, 2, 8, 1, 3]


def test_processors_whose_cores_are_not_known_are_taken_in_order(scripts):
    unknown = [10**6 + k for k in range(3)]
    assert scripts.measuring.one_of_each_core(reversed(unknown)) == unknown


def test_summary_takes_ratios_inside_a_round(scripts):
    times = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 6.0, 4.0]}
    ours, theirs = scripts.measuring.summary(times, "ours", scale={"theirs": 10.0})
    assert (ours["median_s"], ours["min_s"], ours["ratio"]) == (2.0, 1.0, 1.0)
    assert (theirs["median_s"], theirs["min_s"], theirs["ratio"]) == (40.0, 30.0, 30.0)


@pytest.fixture
def clockwork(scripts, monkeypatch):
    """Time that only passes when a test says so, and as few takes as possible."""
    clockwork = SimpleNamespace(now=0.0)
    monkeypatch.setattr(scripts.measuring.time, "perf_counter", lambda: clockwork.now)
    monkeypatch.setattr(scripts.measuring, "settle", lambda run, seconds=None: None)
    monkeypatch.setattr(scripts.measuring, "TAKES", 3)
    return clockwork


def test_an_iteration_is_that_of_the_fastest_long_stretch(scripts, clockwork):
    starts = iter([90.0, 4.0, 7.0])
    counts = 1, 1, 2, 4, 8, 3  # of which 4 and 8 are long enough
    seconds = iter([5, 9, 6, 0.5, 0.75, 0.1, 0, 0, 0, 0.25, 70, 0, 9, 9, 9, 50, 0.5, 9])

    def fit(iterations, rng):
        assert iterations == sum(counts)
        clockwork.now += next(starts)
        for count in counts:
            rng.integers(10, size=(count, 3))
            clockwork.now += count * next(seconds)

    iteration = scripts.measuring.Iteration(fit, sum(counts))
    assert iteration() == pytest.approx(0.25)
    assert iteration.startups == [pytest.approx(4.0)]


def test_the_clock_draws_the_batches_of_the_book(scripts):
    clock = scripts.measuring.Clock(7)
    book = np.random.RandomState(7)
    for shape in ((1, 5), (3, 5)):
        assert np.array_equal(clock.integers(100, size=shape), book.choice(100, shape))
    assert [count for _, count in clock.draws] == [1, 3]


def test_slow_takes_do_not_count(scripts, clockwork):
    steps = iter([8.0, 4.0, 6.0])

    def run():
        clockwork.now += next(steps)

    assert scripts.measuring.stretch(run, units=2)() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.34, "12.3 s"),
        (0.1234, "123 ms"),
        (1.5e-6, "1.50 µs"),
        (9.9996e-4, "1.00 ms"),
        (4e-9, "4.00 ns"),
    ],
)
def test_times_are_written_with_their_unit(scripts, value, text):
    assert scripts.measuring.seconds(value) == text


def test_exponents_of_power_laws_are_found(scripts):
    sizes = [1, 2, 4, 8]
    times = {size: [3.0 * size**1.5] for size in sizes}
    row = scripts.scaling.row_of("batch", "fit", times)
    assert row["exponent"] == pytest.approx(1.5)
    assert row["exponent_large"] == pytest.approx(1.5)


def test_no_exponent_is_made_up(scripts, capsys):
    rows = [
        scripts.scaling.row_of("threads", "fit", {1: [1.0]}),
        scripts.scaling.row_of("threads", "fit", {1: [-1.0]}),
    ]
    assert all(row["exponent"] is None and row["exponent_large"] is None for row in rows)
    scripts.scaling.show("threads", rows)
    assert "–" in capsys.readouterr().out


def test_growth_beyond_the_operations_is_pointed_out(scripts, capsys):
    for power, named in ((1.05, False), (1.5, True)):
        row = scripts.scaling.row_of("batch", "fit", {n: [n**power] for n in (1, 2, 4, 8)})
        scripts.scaling.show("batch", [row])
        assert ("fit grows faster" in capsys.readouterr().out) is named


# --- rivals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name", ["NumPyLoop", "TorchEager", "TorchLean", "JaxStep", "JaxScan", "SklearnMLP"]
)
@pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
def test_a_rival_does_the_same_work(scripts, images, name, dtype):
    kind = getattr(scripts.peers, name)
    pytest.importorskip(kind.module)
    problem = scripts.peers.Problem(images[0].astype(dtype), images[1], 5, 8, 6)
    loss, weights = scripts.peers.deviation(kind(problem))
    assert max(loss, weights) <= scripts.peers.TOLERANCE[dtype] / 10


@pytest.mark.parametrize("fault", ["a step less", "another rate", "not a number"])
def test_a_rival_that_does_other_work_is_refused(scripts, images, monkeypatch, capsys, fault):
    peers = scripts.peers

    class Wrong(peers.NumPyLoop):
        name = "wrong"

        def run(self):
            super().run()
            moved = {key: value - self.problem.params[key] for key, value in self.weights.items()}
            change = {"a step less": 1 - 1 / self.problem.steps, "another rate": 0.999}
            for key, value in self.weights.items():
                value[...] = self.problem.params[key] + change.get(fault, np.nan) * moved[key]

    monkeypatch.setattr(peers, "CANDIDATES", (peers.NumPyLoop, Wrong))
    report = peers.Report({})
    x, t = images
    peers.compare_training(
        report, {"float64": (x, t)}, settings(), hidden=5, batch=8, dtype="float64"
    )
    assert [refused["name"] for refused in report.refused] == ["wrong"]
    assert [row["name"] for row in report.results] == [peers.NumPyLoop.name]
    assert "Refused to time: wrong" in capsys.readouterr().out


def test_the_numerical_gradients_of_the_rivals_agree(scripts, images):
    x, t = images
    params = scripts.textbook.initial_params(12, 5, 10, np.float64, std=0.5)
    positions = scripts.textbook.random_positions(params, 20)
    _, grads = scripts.textbook.gradient(params, x, t, exact=True)
    exact = scripts.peers.pick(grads, positions)
    compared = 0
    for make in (
        scripts.peers.textbook_numerical,
        scripts.peers.scipy_numerical,
        scripts.peers.jax_numerical,
    ):
        _, module, build = make(params, x, t, positions, 1e-4)
        if scripts.measuring.is_installed(module):
            np.testing.assert_allclose(np.ravel(build()()), exact, atol=1e-8)
            compared += 1
    assert compared >= 1


# --- as commands -----------------------------------------------------------------------------


def test_peers_writes_its_files_and_names_what_it_skips(tmp_path):
    pytest.importorskip("matplotlib")
    done = run_script(
        "peers.py", "--hidden", 3, "--batch", 5, "--images", 300, "--rounds", 1, "--dtype",
        "float64", "--peers", "numpy", "abacus", "--only", "training", "gradient", "affine",
        "numerical", "--quick", "--patience", 0, "--taking", 0, "--json", tmp_path / "p.json",
        "--png", tmp_path / "p.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped: abacus" in done.stdout
    written = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert {row["group"] for row in written["results"]} == {
        "training", "gradient", "affine forward", "affine backward", "numerical gradient",
    }  # fmt: skip
    assert written["refused"] == []
    assert list(written["skipped"]) == ["abacus"]
    assert written["machine"]["versions"]["numpy"] == np.__version__
    assert is_png(tmp_path / "p.png")


def test_peers_skips_what_is_not_installed(scripts, monkeypatch):
    monkeypatch.setattr(scripts.measuring, "is_installed", lambda module: module == "numpy")
    found, skipped = scripts.peers.available(["numpy", "torch", "abacus"])
    assert found == {"fastgrad", "numpy"}
    assert skipped == {"torch": "is not installed", "abacus": "is not known"}


def test_scaling_writes_its_files(tmp_path):
    pytest.importorskip("matplotlib")
    done = run_script(
        "scaling.py", "--quick", "--rounds", 1, "--images", 400, "--work", "gradient", "fit",
        "--axis", "hidden", "--patience", 0, "--taking", 0, "--json", tmp_path / "s.json",
        "--png", tmp_path / "s.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert [row["work"] for row in written["results"]] == ["gradient", "fit"]
    assert np.isfinite(written["results"][0]["exponent"])
    assert is_png(tmp_path / "s.png")
