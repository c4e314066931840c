"""Rules of the house that no single test would notice: read from the source, or counted."""

import ast
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastgrad
from fastgrad.nn.layers import Layer

PACKAGE = Path(fastgrad.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: The rooms from the top floor down. Imports run downwards, or within a room.
ROOMS = (
    ("__main__",),
    ("cli",),
    ("book",),
    ("__init__", "api"),
    ("networks",),
    ("checking",),
    ("numdiff",),
    ("nn",),
    ("kernels",),
    ("data", "drawing"),
    ("tables", "validation"),
    ("runtime",),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield each module of the package that a file imports, inside functions too."""
    names = {module_name(path) for path in SOURCES}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            package, _, inside = name.partition(".")
            if package == "fastgrad":
                module = inside or "__init__"
                if module not in names and f"{module}.__init__" not in names:
                    module = inside.rpartition(".")[0]  # a name out of a module
                yield module if module in names else f"{module}.__init__".removeprefix(".")


def room_of(module):
    return module.partition(".")[0]


def test_every_module_lies_in_a_room():
    assert {room_of(module_name(path)) for path in SOURCES} == set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_downwards(path):
    own = room_of(module_name(path))
    for module in imports(path):
        room = room_of(module)
        assert room == own or FLOOR[room] > FLOOR[own] or (own, room) == ("__init__", "api"), module


def test_imports_have_no_circles():
    below = {module_name(path): set(imports(path)) for path in SOURCES}
    graphlib.TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_every_room_says_what_it_is_for():
    for room in PACKAGE.iterdir():
        if room.is_dir() and list(room.glob("*.py")):
            text = ast.get_docstring(tree_of(room / "__init__.py"))
            assert len((text or "").splitlines()) >= 3, room.name


def test_the_list_of_rooms_stands_in_contributing():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.partition("## How the code is laid out")[2].split("```")[1]
    listed = [line.split("  ")[0].split() for line in block.splitlines()[1:]]
    assert [names for names in listed if names] == [list(names) for names in ROOMS]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_options_of_compiling_have_one_place(path):
    if module_name(path) == "runtime.compile":
        return
    options = {"njit", "jit", "generated_jit", "vectorize", "guvectorize", "cfunc", "stencil"}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "numba":
            assert node.attr not in options, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "numba":
            assert not options & {alias.name for alias in node.names}, f"line {node.lineno}"


#: What is not promised by its owner, by the modules that may use it.
PRIVATE_ATTRIBUTES = {
    "runtime.compile": {
        "_cache", "_cache_path", "_can_compile", "_compiler", "_impl", "_index_path",
        "_load_overload",
    },
    "kernels.user_function": {"_getvalue"},
    "runtime.programs": {"_getvalue"},
}  # fmt: skip


def names_defined():
    """Return every name that the package defines: of functions, classes, variables, attributes."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.id if isinstance(node, ast.Name) else node.attr


def test_private_names_of_others_have_one_place():
    documented = {"_asdict", "_exit", "_fields"}
    ours = set(names_defined()) - {"_cache"} | documented
    found = {}
    for path in SOURCES:
        own = module_name(path)
        for node in ast.walk(tree_of(path)):
            name = ""
            if isinstance(node, ast.Import):
                name = " ".join(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                name = node.module or ""
            is_numbas = any(part.startswith(("numba.core", "numba.np", "numba.parfors", "numba._"))
                            for part in name.split())  # fmt: skip
            assert not is_numbas, f"{own}, line {node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "numba.core" or own == "runtime.compile", node.lineno
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                if private and node.attr not in ours:
                    found.setdefault(own, set()).add(node.attr)
    assert found == PRIVATE_ATTRIBUTES


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if room_of(module_name(path)) == "kernels"], ids=module_name
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
    owner, _, method = name.partition(".")
    if method in ("forward", "backward") and issubclass(getattr(fastgrad, owner), Layer):
        text = inspect.getdoc(getattr(Layer, method))  # what all layers share
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
    tree = tree_of(PACKAGE / "api.py")
    given = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert given == set(names)


def test_a_public_name_is_no_module():
    assert not {path.stem for path in PACKAGE.iterdir()} & set(fastgrad.__all__)


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
        "import fastgrad.api\n"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    others = {name.split(".")[0] for name in added}
    heavy = {"matplotlib", "scipy", "pandas", "tqdm", "mpmath", "IPython", "distributed", "asyncio"}
    assert not others & heavy
    assert len([name for name in added if name.split(".")[0] != "fastgrad"]) < 60, added


def test_names_are_imported_when_asked_for():
    names = {"numba", "numpy", "fastgrad.api"}
    out = run(
        "import sys, fastgrad\n"
        f"print({names} & set(sys.modules), fastgrad.__version__)\n"
        "print(fastgrad.relu(-1.0), fastgrad.api.TwoLayerNet is fastgrad.TwoLayerNet)\n"
        "print(hasattr(fastgrad, 'sigmoids'))\n"
    )
    assert out.splitlines() == [f"set() {fastgrad.__version__}", "0.0 True", "False"]
    assert run("import fastgrad; print('Adam' in dir(fastgrad))") == "True\n"
    assert run("from fastgrad import *; print(numerical_diff(lambda x: 2 * x, 1.0))") == "2.0\n"


def test_importing_prints_and_changes_nothing():
    out = run(
        "import os, numba, numpy, sys\n"
        "environment, state = dict(os.environ), numpy.random.get_state()[1].copy()\n"
        "options, errors = dict(vars(numba.config)), numpy.geterr()\n"
        "import fastgrad.api\n"
        "assert dict(os.environ) == environment\n"
        "assert (numpy.random.get_state()[1] == state).all()\n"
        "assert dict(vars(numba.config)) == options\n"
        "assert numpy.geterr() == errors\n"
    )
    assert out == ""


COUNT = """
import importlib, pkgutil
import numpy as np
from numba.extending import is_jitted
import fastgrad, fastgrad.kernels, fastgrad.runtime
from fastgrad import SGD, Adam, MultiLayerNet, TwoLayerNet

kernels = {
    name: thing
    for room in (fastgrad.kernels, fastgrad.runtime)
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + ".")
    for name, thing in vars(importlib.import_module(module.name)).items()
    if is_jitted(thing) and thing.__module__ == module.name
}
chunk_kernels = {
    name
    for name, thing in kernels.items()
    if thing.py_func.__code__.co_varnames[:4] == ("args", "chunk", "chunks", "iteration")
}

def counts():
    return {name: len(thing.signatures) for name, thing in kernels.items()}

def added(before):
    return sorted(name for name, count in counts().items() if count > before[name])

def all_calls(net, x, t):
    net.predict(x), net.loss(x, t), net.accuracy(x, t), net.gradient(x, t)
    net.numerical_gradient(x, t), net.numerical_gradient(x, t, 0.5)

def fits(net, x, t):
    for optimizer in (None, Adam()):
        for method in ("gradient", "numerical_gradient"):
            net.fit(x, t, iterations=2, batch_size=3, method=method, optimizer=optimizer)

rng = np.random.default_rng(0)
sparse = rng.random((6, 8)) * (rng.random((6, 8)) > 0.8)
dense = rng.random((6, 8))
labels = rng.integers(0, 3, 6)
net = TwoLayerNet(8, 5, 3)
for x in (sparse, dense):
    all_calls(net, x, labels)
    fits(net, x, labels)
"""


def test_samples_of_another_dtype_compile_what_reads_them():
    # A few kernels of forty; all others are shared.
    out = run(
        COUNT
        + """
for dtype in (np.float32, np.uint8):
    before = counts()
    for x in (sparse, dense):
        x = (255 * x).astype(dtype)
        all_calls(net, x, labels)
        fits(net, x, labels)
    print(*(name for name in added(before) if name in chunk_kernels))
"""
    )
    # What they call is compiled, or loaded from the cache, where they are compiled themselves.
    known = {
        "affine_sparse", "affine_dense",  # passes
        "weights_sparse", "weights_dense",  # the gradient by the weights
        "perturb_first_layer", "perturb_rows",  # central differences
        "build_bitmasks", "pack_entries", "gather_dense",  # training
    }  # fmt: skip
    for line in out.splitlines():
        assert set(line.split()) == known


def test_forms_of_input_compile_nothing_anew():
    # Compiling takes seconds: two dtypes are all the variants there may be, beside those of the
    # samples.
    out = run(
        COUNT
        + """
frozen = dense.copy()
frozen.flags.writeable = False
forms = [np.asfortranarray(dense), rng.random((12, 16))[::2, ::2], frozen, dense > 0.8,
         rng.random((6, 8)).astype(">f8"), dense.tolist(), dense[::-1]]
kinds = [labels.astype(np.uint8), labels[:, None], np.eye(3)[labels], rng.random((6, 3)),
         np.asfortranarray(rng.random((6, 3))), np.eye(3, dtype="f")[labels],
         np.eye(3, dtype=int)[labels]]
before = counts()
net.params["W1"] = np.asfortranarray(net.params["W1"])
for other in (net, TwoLayerNet(8, 5, 3, activation="relu", delta=0), MultiLayerNet(8, [5, 4], 3)):
    for x, t in [(x, labels) for x in forms] + [(sparse, t) for t in kinds]:
        all_calls(other, x, t)
    for t in kinds:
        fits(other, sparse, t)
    fits(other, frozen, labels)
print(*added(before))
for x in (sparse.astype("f"), dense.astype("f")):
    for other in (TwoLayerNet(8, 5, 3, dtype="f"), MultiLayerNet(8, [5, 4], 3, dtype="f")):
        all_calls(other, x, labels)
        fits(other, x, labels)
found = counts()
print(found["run_stages"], found["run_thread"])
print(*(name for name, count in found.items() if count > 2))
"""
    )
    assert out.split("\n")[:3] == ["", "1 1", ""]
