"""Rules of the house that no single test would notice: read from the source, or counted."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastgrad

PACKAGE = Path(fastgrad.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: Imports run downwards, or along a floor. `fastgrad` itself stands on top.
FLOORS = {
    5: ["__main__", "cli"],
    4: ["book", "plots", "textbook", "warmup"],
    3: ["networks", "training"],
    2: ["archives", "checking", "convolution", "datasets", "differences", "engine", "evaluation",
        "evidence", "extrapolation", "functions", "gradients", "layers", "noise", "optimizers",
        "suspects", "trees"],
    1: ["arrays", "compile_time", "threads", "kernels"],
}  # fmt: skip
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def tree_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    return tree


def functions_around(node):
    while node := getattr(node, "parent", None):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def is_for_annotations(node):
    """Return whether an import stands below ``if TYPE_CHECKING:``."""
    while node := getattr(node, "parent", None):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return True
    return False


def imports(tree):
    """Return every import of a part of the package: the part's name, and the node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("fastgrad."):
                    yield alias.name.removeprefix("fastgrad."), node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "fastgrad":
                for alias in node.names:
                    yield alias.name, node
            elif node.module and node.module.startswith("fastgrad."):
                yield node.module.removeprefix("fastgrad."), node


def test_every_module_has_a_floor():
    names = {module_name(path).split(".")[0] for path in SOURCES}
    assert names - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_downwards(path):
    own = module_name(path)
    if own == "__init__":
        return
    for name, node in imports(tree_of(path)):
        # A method `plot` fetches matplotlib, which is slow and optional, when it is called.
        if (name == "plots" and "plot" in functions_around(node)) or is_for_annotations(node):
            continue
        part = name.split(".")[0]
        assert part in FLOOR, f"{own} imports the package itself: {ast.unparse(node)}"
        assert FLOOR[part] <= FLOOR[own.split(".")[0]], f"{own} imports {name}, above it"


def test_imports_have_no_cycles():
    below = {
        module_name(path): {
            name for name, node in imports(tree_of(path)) if not list(functions_around(node))
            and not is_for_annotations(node)
        }
        for path in SOURCES
    }  # fmt: skip
    below.pop("__init__")

    def visit(name, above):
        assert name not in above, " -> ".join((*above, name))
        for other in below.get(name, ()):
            visit(other, (*above, name))

    for name in below:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_options_of_compiling_have_one_place(path):
    if module_name(path) == "kernels.compile":
        return
    options = {"njit", "jit", "generated_jit", "vectorize", "guvectorize", "cfunc", "stencil"}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "numba":
            assert node.attr not in options, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "numba":
            assert not options & {alias.name for alias in node.names}, f"line {node.lineno}"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent.name == "kernels"], ids=module_name
)
def test_kernels_do_not_raise_or_validate(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if any(name.endswith("kernel") for name in decorators):
                for inner in ast.walk(node):
                    assert not isinstance(inner, ast.Raise | ast.Assert | ast.Try), node.name
                assert ast.get_docstring(node) or node.name.startswith("_"), node.name


def public_things():
    for name in fastgrad.__all__:
        thing = getattr(fastgrad, name)
        yield name, thing
        if inspect.isclass(thing):
            for member, value in inspect.getmembers(thing):
                if not member.startswith("_") and (
                    inspect.isfunction(value)
                    or inspect.ismethod(value)
                    or isinstance(value, property)
                ):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize(
    ("name", "thing"), list(public_things()), ids=[name for name, _ in public_things()]
)
def test_public_names_are_documented(name, thing):
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    if isinstance(thing, property):
        return
    # Three methods of the networks are the protocol between `fit` and them, and say so.
    if not inspect.isclass(thing) and "; for `f" not in text:
        if set(inspect.signature(thing).parameters) - {"self", "cls"}:
            assert "Parameters\n----------" in text, name
        assert "Returns\n-------" in text or inspect.signature(thing).return_annotation in (
            "None",
            None,
        ), name


@pytest.mark.parametrize("name", sorted(fastgrad.__all__))
def test_public_names_have_examples(name):
    if name in ("GradientCheckWarning", "History"):
        return  # nobody makes these
    assert ">>> " in (inspect.getdoc(getattr(fastgrad, name)) or ""), name


def test_the_list_of_public_names_is_sorted_and_true():
    names = fastgrad.__all__
    assert len(set(names)) == len(names)
    tree = tree_of(PACKAGE / "__init__.py")
    given = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert given == set(names)


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_lean():
    added = run(
        "import sys, numba\n"
        "before = set(sys.modules)\n"
        "import fastgrad\n"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    others = {name.split(".")[0] for name in added}
    heavy = {"matplotlib", "scipy", "pandas", "tqdm", "mpmath", "IPython", "distributed", "asyncio"}
    assert not others & heavy
    assert len([name for name in added if name.split(".")[0] != "fastgrad"]) < 60, added


def test_importing_prints_and_changes_nothing():
    out = run(
        "import os, numba, numpy, sys\n"
        "environment, state = dict(os.environ), numpy.random.get_state()[1].copy()\n"
        "options, errors = dict(vars(numba.config)), numpy.geterr()\n"
        "import fastgrad\n"
        "assert dict(os.environ) == environment\n"
        "assert (numpy.random.get_state()[1] == state).all()\n"
        "assert dict(vars(numba.config)) == options\n"
        "assert numpy.geterr() == errors\n"
    )
    assert out == ""


def test_forms_of_input_compile_nothing_anew():
    # Compiling takes seconds: two dtypes are all the variants there may be.
    out = run("""
import importlib, pkgutil
import numpy as np
from numba.core.dispatcher import Dispatcher
import fastgrad, fastgrad.kernels
from fastgrad import SGD, Adam, MultiLayerNet, TwoLayerNet

rng = np.random.default_rng(0)
frozen = rng.random((6, 8))
frozen.flags.writeable = False
forms = [rng.random((6, 8)) * (rng.random((6, 8)) > 0.8), rng.random((6, 8)),
         np.asfortranarray(rng.random((6, 8))), rng.random((12, 16))[::2, ::2],
         frozen, rng.random((6, 8)) > 0.8, rng.integers(0, 255, (6, 8), dtype=np.uint8),
         rng.random((6, 8)).astype("f"), rng.random((6, 8)).astype(">f8"),
         rng.random((6, 8)).tolist(), rng.random((6, 8))[::-1]]
labels = rng.integers(0, 3, 6)
kinds = [labels, labels.astype(np.uint8), labels[:, None], np.eye(3)[labels], rng.random((6, 3)),
         np.asfortranarray(rng.random((6, 3))), np.eye(3, dtype="f")[labels],
         np.eye(3, dtype=int)[labels]]
for dtype in "fd":
    for net in (TwoLayerNet(8, 5, 3, dtype=dtype),
                TwoLayerNet(8, 5, 3, activation="relu", delta=0, dtype=dtype),
                MultiLayerNet(8, [5, 4], 3, dtype=dtype)):
        for x, t in [(x, labels) for x in forms] + [(forms[0], t) for t in kinds]:
            net.predict(x), net.loss(x, t), net.accuracy(x, t), net.gradient(x, t)
            net.numerical_gradient(x, t), net.numerical_gradient(x, t, 0.5)
        net.params["W1"] = np.asfortranarray(net.params["W1"])
        for t in kinds:
            for optimizer in (None, Adam()):
                for method in ("gradient", "numerical_gradient"):
                    net.fit(forms[0], t, iterations=2, batch_size=3, method=method,
                            optimizer=optimizer)

for module in pkgutil.iter_modules(fastgrad.kernels.__path__):
    for name, thing in vars(importlib.import_module("fastgrad.kernels." + module.name)).items():
        if isinstance(thing, Dispatcher) and thing.__module__.endswith("." + module.name):
            if thing.targetoptions.get("inline") != "always":
                print(name, len(thing.signatures))
""")
    counts = dict(line.split() for line in out.splitlines())
    tasks = {
        "take_over", "forward", "forward_and_back", "rows", "count_values", "list_values",
        "list_entries", "prepare", "accumulate", "collect", "general",
    }  # fmt: skip
    assert {counts[name] for name in tasks | {"begin"}} == {"2"}
    assert counts["run_steps"] == "1"
    assert {name: count for name, count in counts.items() if int(count) > 2} == {}
