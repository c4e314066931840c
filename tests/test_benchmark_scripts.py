"""The benchmark scripts: their textbook is right, a wrong rival is refused, files come out."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastgrad
from fastgrad.runtime.compile import COMPILED

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the benchmarks are part of the repository, not of the package"
)

#: Options that make a measurement short.
SHORT = SimpleNamespace(rounds=2, turn=0.0, stretch=1e-4, sample=8, modules={"numpy"}, json=None)


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the folder, imported as the scripts import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("textbook", "measuring", "reports", "peers", "scaling", "deep", "convolution")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def images():
    """A few made-up images, half of them zeros, and their labels."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(40, 12)) * (rng.uniform(size=(40, 12)) < 0.5)
    return x, rng.integers(0, 10, 40)


def run_script(name, *options):
    """Run a script as its users do, for as short as it can; fail unless it ends well."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--rounds", "1", "--turn", "0", *map(str, options)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        cwd=FOLDER.parent,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the textbook ----------------------------------------------------------------------------


def test_the_textbooks_gradient_is_that_of_its_loss(scripts, images):
    x, t = images
    params = scripts.textbook.initial_params(12, 5, 10, np.float64, std=0.5)
    positions = scripts.textbook.random_positions(params, 1000)
    assert len(set(positions)) == len(positions) == sum(v.size for v in params.values())
    before = {key: value.copy() for key, value in params.items()}

    numerical = scripts.textbook.numerical_gradient(params, x, t, positions)

    _, grads = scripts.textbook.gradient(params, x, t, exact=True)
    np.testing.assert_allclose(numerical, scripts.peers.pick(grads, positions), atol=1e-8)
    assert all(np.array_equal(before[key], params[key]) for key in params)


def test_the_gradient_of_many_layers_is_that_of_their_loss(scripts, images):
    x, t = images
    params = dict(fastgrad.MultiLayerNet(12, [6, 5], 10, rng=0).params)
    positions = scripts.textbook.random_positions(params, 1000)
    numerical = scripts.textbook.numerical_gradient(
        params, x, t, positions, evaluate=scripts.deep.loss
    )
    _, grads = scripts.deep.gradient(params, x, t)
    np.testing.assert_allclose(numerical, scripts.peers.pick(grads, positions), atol=1e-8)


def test_gradients_of_convolutional_networks_agree_with_the_books(scripts):
    x, t = np.random.default_rng(0).random((4, 1, 28, 28)), np.arange(4)
    goals = scripts.reports.Goals(SHORT)
    book = {"NumPy": lambda net, x, t: lambda: scripts.convolution.book_gradient(net, x, t)}
    for kind in (scripts.convolution.SimpleConvNet, scripts.convolution.DeepConvNet):
        scripts.convolution.compare(goals, kind, "float64", x, t, book, 0.0)
    assert len(goals.rows) == 2


def test_deep_trains_as_the_book_does(scripts, images, monkeypatch):
    for name, value in {"HIDDEN": [9, 8, 7, 6], "STEPS": 4}.items():
        monkeypatch.setattr(scripts.deep, name, value)
    goals = scripts.reports.Goals(SHORT)
    scripts.deep.train_in_turn(goals, "Adam", *images)
    assert [row["what"] for row in goals.rows] == [
        "an iteration, Adam: losses differ by",
        "an iteration, Adam",
    ]
    assert goals.rows[0]["met"]


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


@pytest.fixture
def clockwork(scripts, monkeypatch):
    """Time that only passes when a test says so."""
    clockwork = SimpleNamespace(now=0.0)
    monkeypatch.setattr(scripts.measuring.time, "perf_counter", lambda: clockwork.now)
    return clockwork


def test_candidates_take_turns_and_the_shortest_take_of_a_turn_counts(scripts, clockwork):
    taken, steps = [], {"a": iter([8.0, 4.0, 6.0] * 5), "b": iter([20.0] * 5)}

    def take(name):
        taken.append(name)
        seconds = next(steps[name])
        clockwork.now += seconds
        return seconds

    takes = {name: lambda name=name: take(name) for name in steps}
    times = scripts.measuring.in_turn(takes, 5, turn=17.0)
    assert times == {"a": [4.0] * 5, "b": [20.0] * 5}
    rounds = ["".join(taken[k : k + 4]) for k in range(0, 20, 4)]
    assert set(rounds) == {"aaab", "baaa"}


def test_a_take_is_divided_by_its_units(scripts, clockwork):
    def run():
        clockwork.now += 6.0

    assert scripts.measuring.stretch(run, units=3)() == 2.0


def test_summary_divides_the_shortest_times_and_tells_the_spread(scripts):
    times = {"ours": [1.0, 2.0, 1.5], "theirs": [6.0, 3.0, 3.0]}
    ours, theirs = scripts.measuring.summary(times, {"theirs": 10.0})
    assert (ours["shortest_s"], ours["spread"], ours["ratio"]) == (1.0, 0.5, 1.0)
    assert (theirs["shortest_s"], theirs["spread"], theirs["ratio"]) == (30.0, 0.0, 30.0)


def test_an_iteration_is_that_of_the_shortest_long_stretch(scripts, clockwork):
    counts = 1, 1, 2, 4, 8, 3  # of which 4 and 8 are long enough
    seconds = iter([5, 9, 6, 0.5, 0.75, 0.1])

    def fit(iterations, rng):
        assert iterations == sum(counts)
        clockwork.now += 4.0
        for count in counts:
            rng.integers(10, size=(count, 3))
            clockwork.now += count * next(seconds)

    iteration = scripts.measuring.Iteration(fit, sum(counts))
    assert iteration() == pytest.approx(0.5)
    assert iteration.startup == pytest.approx(4.0)


def test_the_clock_draws_the_batches_of_the_book(scripts):
    clock = scripts.measuring.Clock(7)
    book = np.random.RandomState(7)
    for shape in ((1, 5), (3, 5)):
        assert np.array_equal(clock.integers(100, size=shape), book.choice(100, shape))
    assert [count for _, count in clock.draws] == [1, 3]


def test_goals_are_met_or_missed(scripts, capsys, tmp_path):
    goals = scripts.reports.Goals(SimpleNamespace(rounds=1, turn=0.0, json=tmp_path / "g.json"))
    goals.speed_up("twice", lambda: 1.0, lambda: 2.0, 2.0)
    goals.speed_up("a part", lambda: 1.0, lambda: 2.0, 8.0, part=0.25)
    goals.add("error", 1e-3, 1e-2, at_most=True)
    assert goals.finish() == 0
    assert "MISSED" not in capsys.readouterr().out
    for value, at_most in ((0.9, False), (1.1, True), (np.nan, False), (np.nan, True)):
        goals = scripts.reports.Goals(goals.settings)
        goals.add("something", value, 1.0, at_most=at_most)
        assert goals.finish() == 1
        assert "MISSED" in capsys.readouterr().out
    assert json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))[0]["met"] is False


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
    assert scripts.reports.seconds(value) == text


def test_exponents_of_power_laws_are_found(scripts, capsys):
    for power, named in ((1.05, False), (1.5, True)):
        row = scripts.scaling.row_of("batch", "fit", {n: 3.0 * n**power for n in (1, 2, 4, 8)})
        assert row["exponent"] == pytest.approx(power)
        assert row["exponent_large"] == pytest.approx(power)
        scripts.scaling.show("batch", [row])
        assert ("fit grows faster" in capsys.readouterr().out) is named


def test_no_exponent_is_made_up(scripts, capsys):
    row = scripts.scaling.row_of("threads", "fit", {1: 1.0})
    assert row["exponent"] is row["exponent_large"] is None
    scripts.scaling.show("threads", [row])
    assert "–" in capsys.readouterr().out


# --- rivals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name",
    [
        "NumPy, textbook loop",
        "PyTorch eager",
        "PyTorch eager, no modules",
        "JAX, jitted step",
        "JAX, lax.scan",
        "scikit-learn MLPClassifier",
    ],
)
@pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
def test_a_rival_does_the_same_work(scripts, images, name, dtype):
    module, build = scripts.peers.CANDIDATES[name]
    pytest.importorskip(module)
    problem = scripts.peers.Problem(images[0].astype(dtype), images[1], 5, 8, 6)
    loss, weights = scripts.peers.deviation(problem, build(problem))
    assert max(loss, weights) <= scripts.peers.TOLERANCE[dtype] / 10


@pytest.mark.parametrize("fault", ["a step less", "another rate", "not a number"])
def test_a_rival_that_does_other_work_is_refused(scripts, images, monkeypatch, capsys, fault):
    peers = scripts.peers

    def wrong(problem):
        loop = peers.numpy_loop(problem)
        change = {"a step less": 1 - 1 / problem.steps, "another rate": 0.999}.get(fault, np.nan)

        def run():
            loop.run()
            for key, value in loop.params().items():
                start = problem.params[key]
                value[...] = start + change * (value - start)

        return peers.Candidate(run, loop.params)

    right = ("numpy", peers.numpy_loop)
    monkeypatch.setattr(peers, "CANDIDATES", {"right": right, "wrong": ("numpy", wrong)})
    report = peers.Report(SHORT)
    peers.compare_training(report, *images, SHORT, hidden=5, batch=8)
    assert [refused["name"] for refused in report.refused] == ["wrong"]
    assert [row["name"] for row in report.results] == ["right"]
    assert "Refused to time: wrong" in capsys.readouterr().out


def test_the_numerical_gradients_of_the_rivals_agree(scripts, images):
    x, t = images
    params = scripts.textbook.initial_params(12, 5, 10, np.float64, std=0.5)
    positions = scripts.textbook.random_positions(params, 20)
    _, grads = scripts.textbook.gradient(params, x, t, exact=True)
    exact = scripts.peers.pick(grads, positions)
    for module, build in scripts.peers.NUMERICAL.values():
        if scripts.reports.is_installed(module):
            found = build(params, x, t, positions, 1e-4)()
            np.testing.assert_allclose(np.ravel(found), exact, atol=1e-8)


# --- as commands -----------------------------------------------------------------------------


def test_peers_writes_its_results_and_names_what_it_skips(tmp_path):
    printed = run_script(
        "peers.py", "--hidden", 3, "--batch", 5, "--images", 300, "--dtype", "float64",
        "--peers", "numpy", "abacus", "--json", tmp_path / "p.json",
    )  # fmt: skip
    assert "Skipped: abacus" in printed
    written = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert {row["group"] for row in written["results"]} == {
        "training", "gradient", "numerical gradient",
    }  # fmt: skip
    assert written["refused"] == []
    assert list(written["skipped"]) == ["abacus"]
    assert written["machine"]["versions"]["numpy"] == np.__version__


def test_peers_skips_what_is_not_installed(scripts, monkeypatch):
    monkeypatch.setattr(scripts.reports, "is_installed", lambda module: module == "numpy")
    found, skipped = scripts.peers.available(["numpy", "torch", "abacus"])
    assert found == {"fastgrad", "numpy"}
    assert skipped == {"torch": "is not installed", "abacus": "is not known"}


def test_scaling_writes_its_files(scripts, tmp_path):
    pytest.importorskip("matplotlib")
    curves = ("--axis", "threads", "hidden", "--work", "gradient", "fit", "--images", 400)
    run_script("scaling.py", *curves, "--json", tmp_path / "s", "--png", tmp_path / "s.png")
    written = json.loads((tmp_path / "s").read_text(encoding="utf-8"))
    assert [row["axis"] for row in written["results"]] == ["threads"] * 2 + ["hidden"] * 2
    assert np.isfinite(written["results"][2]["exponent"])
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("name", "options"), [("affine_sparse", ()), ("softmax", ("--call", "functions"))]
)
def test_the_code_and_the_time_of_a_kernel(name, options):
    command = [sys.executable, str(FOLDER / "kernel.py"), name, "--dtype", "float32", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    first, *code = done.stdout.splitlines()
    assert re.fullmatch(r"# \d+\.\d\d µs", first)
    assert any(name in line for line in code)
