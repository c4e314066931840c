"""The asv suite: its benchmarks are found, each public name is covered, its reference is right."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgrad

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the benchmarks are part of the repository, not of the package"
)

#: Public names with nothing of their own to measure.
NOT_MEASURED = {
    "AddLayer",
    "GradientCheck",
    "GradientCheckWarning",
    "History",
    "MulLayer",
    "check_backward",
    "gradient_descent",
    "identity_function",
    "mean_squared_error",
    "numerical_diff",
}


def test_a_ratio_ignores_outliers_and_drift(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    common = importlib.import_module("benchmarks.common")

    def in_turn(takes, rounds, turn):
        paces = range(1, rounds + 1)  # slower and slower
        late = {3: 50, 12: 20}
        return {
            "theirs": [6.0 * pace * late.get(pace, 1) for pace in paces],
            "ours": [2.0 * pace * late.get(pace + 4, 1) for pace in paces],
        }

    monkeypatch.setattr(common.measuring, "in_turn", in_turn)
    assert common.ratio(lambda: None, lambda: None) == pytest.approx(3)


def words(path):
    """Return names, attributes and strings in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_public_name_is_measured():
    found = {word for path in FOLDER.glob("bench_*.py") for word in words(path)}
    found |= set(words(FOLDER / "common.py"))
    assert {name for name in fastgrad.__all__ if name not in found} <= NOT_MEASURED


def test_every_file_is_imported_without_the_alternatives():
    # asv imports them all, scripts included, in environments with fastgrad and what it needs.
    code = """
import importlib, pkgutil, sys
sys.modules["scipy"] = sys.modules["matplotlib"] = sys.modules["torch"] = None
import benchmarks
for module in pkgutil.iter_modules(benchmarks.__path__):
    importlib.import_module("benchmarks." + module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_params_and_their_names_agree():
    for path in FOLDER.glob("bench_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                given = {
                    target.id: statement.value
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                    for target in statement.targets
                    if isinstance(target, ast.Name)
                }
                counts = [len(given[key].elts) for key in ("params", "param_names") if key in given]
                assert len(set(counts)) <= 1, f"{path.name}, {node.name}"


def test_the_stored_reference_is_the_gradient_by_another_hand():
    # The central difference in float64, of a loss written in NumPy: right to seven digits.
    for case in json.loads((FOLDER / "reference" / "gradients.json").read_text(encoding="utf-8")):
        p = {name: np.array(values) for name, values in case["arrays"].items()}
        x, t = p.pop("x"), p.pop("t")

        def loss(p=p, x=x, t=t, case=case):
            a = x @ p["W1"] + p["b1"]
            z = 1 / (1 + np.exp(-a)) if case["activation"] == "sigmoid" else np.maximum(a, 0)
            e = np.exp(z @ p["W2"] + p["b2"])
            y = e / e.sum(axis=1, keepdims=True)
            return -np.sum(t * np.log(y + case["delta"])) / len(x)

        for name, array in p.items():
            flat = array.reshape(-1)
            for i, kept in enumerate(flat):
                flat[i] = kept + case["h"]
                above = loss()
                flat[i] = kept - case["h"]
                below = loss()
                flat[i] = kept
                slope = (above - below) / (2 * case["h"])
                for method in ("numerical_gradient", "gradient"):
                    assert slope == pytest.approx(float(case[method][name][i]), rel=1e-6, abs=1e-8)
