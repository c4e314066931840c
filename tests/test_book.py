"""The book's module names: who serves them, what they hand on, and how scripts are run."""

import copy
import importlib
import itertools
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from processes import environment_of

import fastgrad
from fastgrad import book, layers
from fastgrad.book import comparison, recognition, serving

SCRIPTS = Path(__file__).parent / "book_scripts"


@pytest.fixture(autouse=True)
def _isolated():
    """No window opens, and neither figures nor modules of the book's names outlive a test."""
    matplotlib.use("agg")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if serving._is_book(name)}
    yield
    book.uninstall()
    for name in list(sys.modules):
        if serving._is_book(name):
            del sys.modules[name]
    sys.modules.update(before)
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The served names, with nothing of the book lying about."""
    monkeypatch.chdir(tmp_path)
    book.install()


@pytest.fixture
def folder(tmp_path):
    """A reader's folder to put files in: ``folder("ch04/a.py", "code")`` returns the path."""

    def write(name, text=""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def run(script, *args, keep=()):
    return book.run_script(SCRIPTS / script, [str(arg) for arg in args], keep)


# --- names


def test_star_import_hands_on_the_functions_and_np(installed):
    names = {}
    exec("from common.functions import *", names)
    assert names["np"] is np
    for name in ("sigmoid", "softmax", "relu_grad", "cross_entropy_error", "step_function"):
        assert names[name] is getattr(fastgrad, name)
    assert names["softmax_loss"](np.zeros((1, 4)), [2]) == pytest.approx(np.log(4), abs=1e-6)


def test_layers_hand_on_the_functions_too(installed):
    names = {}
    exec("from common.layers import *", names)
    assert names["Affine"] is fastgrad.Affine
    assert names["softmax"] is fastgrad.softmax
    assert names["im2col"] is fastgrad.im2col


def test_every_served_name_can_be_imported(installed):
    for name in book.SERVED:
        module = importlib.import_module(name)
        assert module.__spec__.origin == "fastgrad"
        assert module.np is np
    import common.optimizer

    assert common.optimizer.Adam is fastgrad.Adam


def test_the_sizes_of_mnist(installed):
    from dataset.mnist import img_dim, img_size, test_num, train_num

    (x_train, _), (x_test, _) = fastgrad.load_mnist(flatten=False)
    assert (train_num, *img_dim) == x_train.shape
    assert (test_num, *img_dim) == x_test.shape
    assert img_size == np.prod(img_dim)


def test_what_nobody_has_is_not_found(installed):
    with pytest.raises(ModuleNotFoundError, match=r"common\.pace"):
        importlib.import_module("common.pace")


def test_uninstall_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.meta_path)
    book.install()
    book.install()
    importlib.import_module("common.util")
    importlib.import_module("two_layer_net")
    book.uninstall()
    book.uninstall()
    assert sys.meta_path == before
    assert not {"common", "common.util", "two_layer_net"} & set(sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("common.util")


def test_install_replaces_what_has_been_imported_and_uninstall_brings_it_back(
    folder, tmp_path, monkeypatch
):
    folder("common/__init__.py", "NUMBER = 3")
    folder("common/functions.py", "def sigmoid(x): return 'mine'")
    monkeypatch.syspath_prepend(tmp_path)
    functions = importlib.import_module("common.functions")
    assert functions.sigmoid(0) == "mine"
    book.install()
    assert importlib.import_module("common.functions").sigmoid(0) == 0.5
    assert sys.modules["common"].NUMBER == 3
    assert sys.modules["common"].functions.sigmoid(0) == 0.5
    book.uninstall()
    assert importlib.import_module("common.functions").sigmoid(0) == "mine"
    assert sys.modules["common"].functions.sigmoid(0) == "mine"


@pytest.mark.parametrize("keep", [["common.functions"], {"common"}, ("two_layer_net", "common")])
def test_what_is_kept_is_not_served(keep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book.install(keep)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("common.functions")
    importlib.import_module("dataset.mnist")


def test_keep_must_name_what_is_served():
    with pytest.raises(ValueError, match=r"`keep` must name .* Got 'common\.functon'"):
        book.install(["common.functon"])
    with pytest.raises(ValueError, match=r"Got 'trainer'"):
        run("surroundings.py", keep=["trainer"])
    assert not any(isinstance(finder, serving._Finder) for finder in sys.meta_path)


@pytest.mark.parametrize("there", [True, False])
def test_modules_of_other_names(folder, capfd, there):
    if there:
        folder("lib/two_layer_net.py", "class TwoLayerNet:\n    pass\n\ndef helper(): return 7\n")
        folder("lib/other.py", "from .two_layer_net import TwoLayerNet")
    script = folder(
        "train.py",
        "import lib.two_layer_net, numerical\n"
        "print(lib.two_layer_net.TwoLayerNet, numerical.numerical_gradient.__module__)\n"
        + ("from lib.other import TwoLayerNet\nprint(TwoLayerNet, lib.two_layer_net.helper())\n"
           if there else ""),
    )  # fmt: skip
    serve = {"lib.two_layer_net": "two_layer_net", "numerical": "common.gradient"}
    before = set(sys.modules)
    assert book.run_script(script, serve=serve) == 0
    out, err = capfd.readouterr()
    net = "<class 'fastgrad.networks.TwoLayerNet'>"
    assert out == f"{net} fastgrad.book.recognition\n" + (f"{net} 7\n" if there else "")
    assert "lib.two_layer_net (as two_layer_net) (chapter 4's), numerical (as common.grad" in err
    assert set(sys.modules) <= before | {"fastgrad.book.recognition"}


def test_modules_of_other_names_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book.install(serve={"ch4.functions": "common.functions"})
    assert importlib.import_module("ch4.functions").softmax is fastgrad.softmax
    book.uninstall()
    assert not {"ch4", "ch4.functions"} & set(sys.modules)


@pytest.mark.parametrize("there", ["folder", "empty", "missing"])
def test_the_books_names_inside_a_package(folder, capfd, there):
    """As with a submodule, which may not have been fetched."""
    if there == "folder":
        folder("scratch/common/functions.py", "1 / 0")
        folder("scratch/common/tools.py", "from .functions import relu")
        folder("scratch/dataset/mnist.py")
    elif there == "empty":
        folder("scratch/.git").unlink()
    script = folder(
        "a.py",
        "from scratch.common.functions import *\n"
        "from scratch.dataset.mnist import load_mnist\n"
        "from scratch.common import gradient\n"
        "print(sigmoid(np.zeros(1)), load_mnist.__module__)\n"
        "print(gradient.numerical_gradient.__module__)\n"
        + ("from scratch.common.tools import relu\nprint(relu.__module__)\n"
           if there == "folder" else ""),
    )  # fmt: skip
    before = set(sys.modules)
    assert book.run_script(script) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[:2] == ["[0.5] fastgrad.datasets", "fastgrad.book.recognition"]
    assert out.splitlines()[2:] == (["fastgrad.functions"] if there == "folder" else [])
    assert "scratch.common.functions (as common.functions), scratch.dataset.mnist (as" in err
    assert set(sys.modules) <= before


def test_packages_that_are_installed_are_left_alone(folder, tmp_path, monkeypatch):
    folder("site-packages/other/common/functions.py", "relu = 3")
    folder("site-packages/other/__init__.py")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    book.install()
    assert importlib.import_module("other.common.functions").relu == 3
    for name in ("other", "other.common", "other.common.functions"):
        del sys.modules[name]


def test_serve_must_name_what_there_is():
    for serve, match in (
        ({"lib.net": "two_layer_nets"}, r"`serve` must give modules among .* Got 'two_layer_nets'"),
        (
            {"lib/net": "two_layer_net"},
            r"`serve` must have names of modules as keys. Got 'lib/net'",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            book.install(serve=serve)
        with pytest.raises(ValueError, match=match):
            book.run_script(SCRIPTS / "surroundings.py", serve=serve)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 3}, r"`keep` must be a sequence of str, such as a list\. Got 3\."),
        ({"keep": "common"}, r"`keep` must be a sequence of str, .* Got 'common'\."),
        ({"keep": None}, r"`keep` must be a sequence of str, .* Got None\."),
        ({"keep": ["common", 3]}, r"`keep` must be a sequence of str, .* Got \['common', 3\]\."),
        ({"serve": "a"}, r"`serve` must be a dict of str to str\. Got 'a'\."),
        ({"serve": {1: "x"}}, r"`serve` must be a dict of str to str\. Got \{1: 'x'\}\."),
        ({"serve": {"a": ["x"]}}, r"`serve` must be a dict of str to str\. Got \{'a': \['x'\]\}\."),
        ({"args": "none"}, r"`args` must be a sequence of str, .* Got 'none'\."),
        ({"args": None}, r"`args` must be a sequence of str, .* Got None\."),
        ({"args": [1]}, r"`args` must be a sequence of str, .* Got \[1\]\."),
    ],
)
def test_arguments_of_another_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        book.run_script(SCRIPTS / "surroundings.py", **arguments)
    if "args" not in arguments:
        with pytest.raises(TypeError, match=message):
            book.install(**arguments)
    assert not any(isinstance(finder, serving._Finder) for finder in sys.meta_path)


def test_a_file_that_fails_leaves_our_names(folder, tmp_path, monkeypatch):
    folder("common/util.py", "assert __file__\ndef pad_image(x): pass\n1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    book.install()
    with pytest.warns(RuntimeWarning, match=r"common\.util hands on .* ZeroDivisionError"):
        util = importlib.import_module("common.util")
    assert util.smooth_curve is book.smooth_curve


@pytest.mark.parametrize(
    ("addition", "name"),
    [
        ("EPS = 3", "EPS"),
        ("EPS: int = 3", "EPS"),
        ("low, (EPS, high) = 2, (3, 4)", "EPS"),
        ("try:\n    EPS = 1 / 0\nexcept ZeroDivisionError:\n    EPS = 3", "EPS"),
        ("def three(): return 3\nif True:\n    EPS = three()", "EPS"),
        ("import math\nact = math.tanh", "act"),
    ],
)
def test_a_constant_of_the_readers_own(folder, capfd, addition, name):
    folder("common/functions.py", f"def relu(x): return 'mine'\nnp = 'mine'\n{addition}\n")
    script = folder(
        "a.py",
        f"from common.functions import *\nfrom common.functions import {name} as named\n"
        f"print(named is {name}, {name}(0.0) if {name!r} == 'act' else {name}, relu(np.zeros(1)))",
    )
    assert book.run_script(script) == 0
    assert capfd.readouterr().out == f"True {'0.0' if name == 'act' else '3'} [0.]\n"


def test_a_file_with_nothing_new_is_not_run(folder, tmp_path, monkeypatch):
    folder("two_layer_net.py", "import os\n1 / 0\n_x = 3\nclass TwoLayerNet: pass")
    monkeypatch.syspath_prepend(tmp_path)
    book.install()
    assert importlib.import_module("two_layer_net").TwoLayerNet is fastgrad.TwoLayerNet


# --- chapter 4's network or chapter 5's

LAYERED = "class TwoLayerNet:\n    def __init__(self):\n        self.lastLayer = None\n"
PLAIN = "class TwoLayerNet:  # no layers here\n    pass\n"


@pytest.mark.parametrize(
    ("place", "own", "script", "chapter"),
    [
        ("ch04", LAYERED, "", 5),  # the reader's file decides before the folder's name does
        ("ch05", PLAIN, "", 4),
        ("ch04", None, "", 4),
        ("ch05", None, "", 5),
        ("Chapter_5", None, "", 5),
        ("ch051", None, "", 4),
        ("notes", None, "", 4),
        ("notes", None, "print(TwoLayerNet(2, 2, 2).layers)", 5),
        ("ch05", "this is no Python", "", 4),
    ],
)
def test_which_two_layer_net(folder, capfd, place, own, script, chapter):
    path = folder(f"{place}/train.py", f"from two_layer_net import TwoLayerNet\n{script}")
    if own is not None:
        folder(f"{place}/two_layer_net.py", own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert book.run_script(path) == 0
    assert f"two_layer_net (chapter {chapter}'s)" in capfd.readouterr().err


# --- scripts


def test_a_script_finds_the_surroundings_it_expects(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sys.argv, sys.path, list(sys.path), sys.modules["__main__"], os.getcwd()
    assert run("surroundings.py", "a", "--b") == 0
    assert before == (sys.argv, sys.path, list(sys.path), sys.modules["__main__"], os.getcwd())
    out, err = capfd.readouterr()
    assert out == "__main__ ['a', '--b']\n"
    assert "fastgrad served no module.\nThe script took 0.0" in err


def test_names_gone_from_numpy_are_lent(folder, capfd):
    had = hasattr(np, "int"), hasattr(np, "float")
    code = "import numpy as np\nprint(np.array([1.5]).astype(np.int), np.float(2))\n1 / 0"
    assert book.run_script(folder("old.py", code)) == 1
    assert capfd.readouterr().out == "[1] 2.0\n"
    assert (hasattr(np, "int"), hasattr(np, "float")) == had


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete the current folder")
def test_the_current_folder_may_be_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run("surroundings.py") == 0


def test_a_relative_path_is_meant_from_here(monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert book.run_script("book_scripts/surroundings.py") == 0


def test_an_exception_shows_the_scripts_traceback_alone(capfd):
    assert run("fails.py") == 1
    out, err = capfd.readouterr()
    assert out == "before\n"
    assert "ZeroDivisionError" in err
    assert "divide(1, 0)" in err
    assert os.path.join("fastgrad", "book") not in err


def test_a_script_that_is_no_python(folder, capfd):
    assert book.run_script(folder("bad.py", "def f(:\n")) == 1
    err = capfd.readouterr().err
    assert "SyntaxError" in err
    assert os.path.join("fastgrad", "book") not in err


LATE = """
import concurrent.futures, sys, threading, time

def work():
    time.sleep(0.3)
    from common.functions import relu
    print("late", relu(-1.0), sys.argv[1:], flush=True)
    threading.Thread(target=print, args=("later",)).start()

threading.Thread(target=work).start()
executor = concurrent.futures.ThreadPoolExecutor(1)  # never shut down
executor.submit(print, "submitted").result()
print("end")
"""


def test_threads_that_outlive_the_script(folder, capfd):
    assert book.run_script(folder("a.py", LATE + "1 / 0\n"), ["x"]) == 1
    out, err = capfd.readouterr()
    assert out == "submitted\nend\nlate 0.0 ['x']\nlater\n"
    assert "served common.functions.\nThe script took 0.3" in err


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_the_waiting_for_threads(folder):
    script = folder(
        "a.py",
        "import signal, threading, time\n"  # what starts the tests may ignore the signal
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('end', flush=True)\n",
    )
    with subprocess.Popen(
        [sys.executable, "-m", "fastgrad", "run", str(script)],
        env=environment_of(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "end\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert "The script took" in err


@pytest.mark.parametrize(
    ("in_the_hook", "status", "shown"),
    [
        ("", 1, ""),
        ("sys.exit(5)", 5, ""),
        ("{}['key']", 1, "Error in sys.excepthook:"),
    ],
)
def test_a_scripts_own_hook_for_exceptions(folder, capfd, in_the_hook, status, shown):
    script = folder(
        "a.py",
        "import sys\n\ndef hook(kind, value, frames):\n"
        "    print('hook:', kind.__name__, value, frames.tb_frame.f_code.co_filename == __file__)\n"
        f"    {in_the_hook}\n\nsys.excepthook = hook\nraise ValueError('x')\n",
    )
    before = sys.excepthook
    assert book.run_script(script) == status
    assert sys.excepthook is before
    out, err = capfd.readouterr()
    assert out == "hook: ValueError x True\n"
    assert err.startswith(shown or "\nfastgrad served")
    if shown:
        assert re.search(r"KeyError: 'key'\n\nOriginal exception was:\nTrace(?s:.*)Error: x\n", err)
    assert os.path.join("fastgrad", "book") not in err


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 7), ("goodbye", 1)])
def test_exit_codes_pass_through(capfd, code, status):
    assert run("exits.py", code) == status
    assert ("goodbye" in capfd.readouterr().err) == (code == "goodbye")


def test_an_interrupt_is_130(capfd):
    assert run("interrupted.py") == 130
    assert "The script took" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "error"), [("nothing_here.py", FileNotFoundError), ("ch04", IsADirectoryError)]
)
def test_a_missing_script_is_an_error(name, error):
    if os.name == "nt" and name == "ch04":
        error = PermissionError
    with pytest.raises(error, match=name):
        run(name)


def test_chapter_3_by_hand(capfd):
    assert run("ch03/forward_by_hand.py") == 0
    out, err = capfd.readouterr()
    assert out == "dtype:float32 shape:(100, 10)\n"
    assert "served dataset.mnist, common.functions." in err


def test_chapter_4_with_a_closure(capfd):
    assert run("ch04/simple_net.py") == 0
    assert "0.21924757" not in capfd.readouterr().out  # of another x in the book


def textbook_training(steps):
    """The last loss of ch04/train_neuralnet.py in plain NumPy."""
    (x_train, t_train), _ = fastgrad.load_mnist(one_hot_label=True)
    np.random.seed(0)
    W1, b1 = 0.01 * np.random.randn(784, 50), np.zeros(50)
    W2, b2 = 0.01 * np.random.randn(50, 10), np.zeros(10)
    for _ in range(steps):
        mask = np.random.choice(60_000, 100)
        x, t = x_train[mask].astype(float), t_train[mask]
        z = 1 / (1 + np.exp(-(x @ W1 + b1)))
        y = np.exp(z @ W2 + b2)
        y /= y.sum(axis=1, keepdims=True)
        dy = (y - t) / 100
        da = dy @ W2.T * z * (1 - z)
        W2 -= 0.1 * z.T @ dy
        b2 -= 0.1 * dy.sum(axis=0)
        W1 -= 0.1 * x.T @ da
        b1 -= 0.1 * da.sum(axis=0)
    y = np.exp(1 / (1 + np.exp(-(x @ W1 + b1))) @ W2 + b2)
    y /= y.sum(axis=1, keepdims=True)
    return -np.mean(np.log(y[np.arange(100), t.argmax(axis=1)] + 1e-7))


def test_chapter_4_training_gives_the_books_numbers(capfd):
    assert run("ch04/train_neuralnet.py", 5) == 0
    out, err = capfd.readouterr()
    loss = float(out.split("last loss:")[1].split()[0])
    assert loss == pytest.approx(textbook_training(5), rel=1e-6)
    assert "served dataset.mnist, two_layer_net (chapter 4's)." in err
    assert "own TwoLayerNet" not in out
    assert "Warning" not in err


def test_chapter_4_keeping_the_readers_network(capfd):
    # Its numerical gradient reads a live array, and it has no W2.
    assert run("ch04/train_neuralnet.py", 0, keep=["two_layer_net"]) == 1
    out, err = capfd.readouterr()
    assert "own TwoLayerNet" in out
    assert "served dataset.mnist, common.functions, common.gradient." in err


OWN_LOOP = """
import numpy as np

def numerical_gradient(f, x):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        held = x[i]
        x[i] = held + 1e-4
        upper = f(x)
        x[i] = held - 1e-4
        grad[i] = (upper - f(x)) / 2e-4
        x[i] = held
    return grad
"""


def test_chapter_4_with_a_network_written_by_hand(folder, capfd, monkeypatch):
    """Recognised, and with the reader's own numerical gradient the same numbers."""
    monkeypatch.setattr(recognition, "_SHARE", 1e9)  # of a loop that takes a moment only
    assert run("ch04/by_hand.py") == 0
    out, err = capfd.readouterr()
    assert (
        "fastgrad served common.functions, common.gradient.\n"
        "fastgrad recognised MyNet.numerical_gradient as a network of 12-7-3 (sigmoid, "
        "cross entropy averaged over the batch).\n"
    ) in err
    folder("common/gradient.py", OWN_LOOP)
    script = folder("ch04/by_hand.py", (SCRIPTS / "ch04/by_hand.py").read_text(encoding="utf-8"))
    assert book.run_script(script, keep=["common.gradient"]) == 0
    loop, err = capfd.readouterr()
    assert "recognised" not in err
    found, wanted = (
        [float(line.split()[-1]) for line in text.splitlines()] for text in (out, loop)
    )
    assert len(found) == 4
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_a_notebook_recognises_until_it_is_uninstalled(installed):
    from common.gradient import numerical_gradient

    assert numerical_gradient is recognition.numerical_gradient
    assert recognition.use(None) is serving._installed.recognition
    book.install(keep=["common.gradient"])
    assert recognition.use(None) is None
    from common.layers import sigmoid  # noqa: F401 - served as before

    book.install()
    assert book.report() == "fastgrad served no module."
    book.uninstall()
    assert recognition.use(None) is None
    with pytest.raises(RuntimeError, match="`report` needs `install` first"):
        book.report()


def test_chapter_5_gradient_check(capfd):
    assert run("ch05/gradient_check.py") == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[-1] == "['Affine1', 'Relu1', 'Affine2'] SoftmaxWithLoss"
    differences = [float(line.split(":")[1]) for line in lines[:4]]
    assert 0 < max(differences) < 1e-9
    assert "two_layer_net (chapter 5's)" in err


def test_chapter_6_on_mnist(capfd):
    assert run("ch06/compare_on_mnist.py") == 0
    out, err = capfd.readouterr()
    assert out == "compared SGD, Momentum, AdaGrad, Adam\n"
    assert "common.util, common.multi_layer_net, common.optimizer." in err


def test_chapter_6_with_a_module_of_the_books_own(capfd):
    assert run("ch06/with_a_module_of_its_own.py") == 0
    out, err = capfd.readouterr()
    assert out == "[0. 4.] [0. 2.]\n(18, 4)\nfastgrad.optimizers 0.5\n"
    assert "common.trainer" in err
    assert "common.pace" not in err  # it came from the folder


def test_chapters_7_and_8(tmp_path, capfd):
    assert run("ch07/train_and_look.py", tmp_path / "params.pkl") == 0
    out, err = capfd.readouterr()
    assert out == "True\n" + "".join(f"{k}{n} True\n" for n in (1, 2, 3) for k in "Wb")
    assert all(name in err for name in ("simple_convnet", "common.layers", "common.trainer"))
    assert run("ch08/half_floats.py") == 0
    assert capfd.readouterr().out == "True True\n"


def test_the_books_folder_is_found_beside_the_scripts(folder, capfd):
    """Without any ``sys.path.append``."""
    folder("common/pace.py", "from common.functions import *\nPace = relu")
    script = folder("ch06/a.py", "from common.pace import Pace\nprint(Pace(-1.0))")
    assert book.run_script(script) == 0
    assert capfd.readouterr().out == "0.0\n"


def test_the_current_folder_does_not_hide_the_books(folder, tmp_path):
    """``python -m`` puts the current folder first on the path, unlike ``python SCRIPT``."""
    folder("common/pace.py", "NAME = 'the book'")
    script = folder(
        "ch06/a.py",
        "import sys, os\nsys.path.append(os.pardir)\nfrom common.pace import NAME\nprint(NAME)",
    )
    here = tmp_path / "elsewhere"
    (here / "common").mkdir(parents=True)
    (here / "common/__init__.py").touch()
    result = subprocess.run(
        [sys.executable, "-m", "fastgrad", "run", str(script.resolve())],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "the book\n"), result.stderr


def test_two_folders_one_after_the_other(folder, capfd):
    """Python remembers what ``..`` was; it must not be taken from the first script's folder."""
    for name in ("one", "two"):
        folder(f"{name}/common/pace.py", f"NAME = {name!r}")
        script = folder(
            f"{name}/ch06/a.py",
            "import os, sys\nsys.path.append(os.pardir)\nfrom common.pace import NAME\nprint(NAME)",
        )
        assert book.run_script(script) == 0
        assert not {"common", "common.pace"} & set(sys.modules)
    assert capfd.readouterr().out == "one\ntwo\n"


def test_a_script_leaves_an_installed_notebook_as_it_was(installed, folder, capfd):
    import common.functions

    script = folder(
        "a.py",
        "import helper, common.functions, two_layer_net\n"
        "print(helper.NUMBER, common.functions.sigmoid(0.0))",
    )
    folder("helper.py", "NUMBER = 3")
    folder("common/functions.py", "def sigmoid(x): return 'mine'")
    assert book.run_script(script, keep=["common.functions"]) == 0
    assert capfd.readouterr().out == "3 mine\n"
    assert not {"helper", "two_layer_net"} & set(sys.modules)
    assert sys.modules["common.functions"] is common.functions
    assert importlib.import_module("two_layer_net").TwoLayerNet is fastgrad.TwoLayerNet


def test_from_the_command_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "fastgrad", "run", str(SCRIPTS / "exits.py"), "7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 7, result.stderr
    assert "The script took" in result.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.stdout = open('log.txt', 'w')\nsys.stdout.close()", 0),
        ("sys.stdout = None", 0),
        ("del sys.stdout", 0),
        ("sys.stderr = open('log.txt', 'w')\nsys.stderr.close()", 0),
        ("sys.stderr = None", 0),
        ("sys.stderr.close()", 0),
        ("sys.stdout.close()\n1 / 0", 1),
        ("sys.stderr.close()\n1 / 0", 1),
        ("sys.stderr = None\n1 / 0", 1),
        ("sys.stderr.close()\nsys.exit('goodbye')", 1),
        ("sys.stdout = sys.stderr = None\nsys.exit(7)", 7),
    ],
)
def test_streams_that_a_script_closes(folder, code, status):
    """In a process of its own, whose end flushes the streams once more."""
    script = folder("a.py", f"import sys\n{code}\n")
    plain, served = (
        subprocess.run(
            [sys.executable, *how, str(script)],
            cwd=script.parent,
            env=environment_of(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        for how in ([], ["-m", "fastgrad", "run"])
    )
    assert plain.returncode == served.returncode == status, served.stderr
    assert plain.stdout == served.stdout == ""
    assert ("Traceback" in plain.stderr) == ("Traceback" in served.stderr)
    if "stderr.close" not in code or "log" in code:  # the report goes to the first stderr
        assert "The script took" in served.stderr


def test_compared_with_its_own_way(folder, capfd):
    folder("common/functions.py", "import time\ntime.sleep(0.5)\ndef relu(x): return max(x, 0)\n")
    script = folder(
        "ch03/a.py",
        "import os, sys\nsys.path.append(os.pardir)\n"
        "from common.functions import relu\nprint(relu(3.0), *sys.argv[1:], __name__)",
    )
    assert book.run_script(script, ["-x"], compare=60) == 0
    out, err = capfd.readouterr()
    assert out == "3.0 -x __main__\n"
    took = float(err.split("In its own way it takes ")[1].split()[0])
    assert took >= 0.5
    assert err.endswith("times faster here.\n")


def test_its_own_way_is_stopped(folder):
    script = folder("a.py", "import time\nwhile True:\n    print('line')\n    time.sleep(0.05)\n")
    own = comparison.run_own_way(script, [], 0.4)
    assert own.status is None
    assert 1 < len(own.lines) < 10
    assert own.lines[-1] <= own.seconds < 5
    assert comparison.run_own_way(folder("b.py", "import sys\nsys.exit(3)"), [], 60).status == 3


@pytest.mark.parametrize(
    ("own", "ours", "words"),
    [
        (([], 4.0, 0), ([], 0.5, 0), "In its own way it takes 4.00 s: 8 times faster here."),
        (([], 0.5, 0), ([], 1.6, 0), "In its own way it takes 0.50 s: 3.2 times slower here."),
        (([], 0.5, 0), ([], 60.0, 0), "In its own way it takes 0.50 s: 120 times slower here."),
        (([], 2.0, 1), ([], 0.5, 1), "In its own way the script failed, with exit status 1."),
        (
            ([], 2.0, 1),
            ([], 0.5, 0),
            "In its own way the script failed, with exit status 1. It gets no input there.",
        ),
        (
            ([0.2], 4.0, None),
            ([0.5], 9.0, 0),
            "In its own way the first line of output comes after 0.20 s, here after 0.50 s: "
            "2.5 times slower here.",
        ),
        (
            ([1.0, 3.0], 4.0, None),
            ([0.1, 0.2, 0.3], 9.0, 0),
            "In its own way the first 2 lines of output come after 3.00 s, here after 0.20 s: "
            "15 times faster here.",
        ),
        (
            ([2.0], 4.0, None),
            ([0.5], 9.0, 0),
            "In its own way the first line of output comes after 2.00 s, here after 0.50 s: "
            "4 times faster here.",
        ),
        (
            ([], 5.0, None),
            ([0.01], 0.025, 0),
            "In its own way it has printed nothing after 5 s: more than 200 times faster here.",
        ),
        (([], 5.0, None), ([], 6.0, 0), "In its own way it has printed nothing after 5 s."),
    ],
)
def test_verdicts(own, ours, words):
    assert comparison.verdict(comparison.Timing(*own), comparison.Timing(*ours)) == words


def test_show_passes_without_a_display(folder, tmp_path):
    """In a process of its own, as a reader on a server would."""
    script = folder(
        "plot.py",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('shown')",
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    }
    result = subprocess.run(
        [sys.executable, "-c", "import sys, fastgrad.book as b; sys.exit(b.run_script('plot.py'))"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert script.exists()
    assert (result.returncode, result.stdout) == (0, "shown\n"), result.stderr
    assert "Warning" not in result.stderr


# --- the networks with layers


def plain_gradient(params, x, t, activation, decay=0.0):
    """Loss and gradient in plain NumPy, the small number under the logarithm included."""
    depth = len(params) // 2
    values = [x]
    for n in range(1, depth + 1):
        a = values[-1] @ params[f"W{n}"] + params[f"b{n}"]
        if n < depth:
            a = np.maximum(a, 0) if activation == "relu" else 1 / (1 + np.exp(-a))
        values.append(a)
    y = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    picked = y[np.arange(len(x)), t]
    penalty = decay / 2 * sum(np.sum(params[f"W{n}"] ** 2) for n in range(1, depth + 1))
    loss = -np.mean(np.log(picked + 1e-7)) + penalty
    da = (y - np.eye(y.shape[1])[t]) * (picked / (picked + 1e-7))[:, None] / len(x)
    grads = {}
    for n in range(depth, 0, -1):
        grads[f"W{n}"] = values[n - 1].T @ da + decay * params[f"W{n}"]
        grads[f"b{n}"] = da.sum(axis=0)
        z = values[n - 1]
        da = da @ params[f"W{n}"].T * ((z > 0) if activation == "relu" else z * (1 - z))
    return loss, grads


@pytest.fixture(params=["chapter 5", "relu", "sigmoid"])
def network(request):
    """A network with layers, its activation, and its weight decay."""
    np.random.seed(1)
    if request.param == "chapter 5":
        return book.LayeredTwoLayerNet(6, 5, 4, 0.5), "relu", 0.0
    net = book.LayeredMultiLayerNet(6, [5, 3], 4, request.param, 0.7, weight_decay_lambda=0.2)
    return net, request.param, 0.2


@pytest.fixture
def batch():
    rng = np.random.default_rng(2)
    return rng.normal(size=(7, 6)), rng.integers(0, 4, 7)


def exchange_a_layer(net):
    """Put in an equal layer of the book's kind, so that the layers are what is computed with."""
    name = list(net.layers)[1]
    net.layers[name] = type(net.layers[name])()


@pytest.mark.parametrize("exchanged", [False, True])
def test_layered_networks_against_numpy(network, batch, exchanged):
    net, activation, decay = network
    x, t = batch
    if exchanged:
        exchange_a_layer(net)
        assert net._changed
    loss, grads = plain_gradient(net.params, x, t, activation, decay)
    assert net.loss(x, t) == pytest.approx(loss, rel=1e-12)
    found = net.gradient(x, t)
    numerical = net.numerical_gradient(x, t)
    assert list(found) == list(net.params)
    for name, expected in grads.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(numerical[name], expected, rtol=1e-5, atol=1e-8)
    for n in range(1, len(net.params) // 2 + 1):
        np.testing.assert_allclose(
            net.layers[f"Affine{n}"].dW + (decay * net.params[f"W{n}"] if exchanged else 0),
            grads[f"W{n}"],
            rtol=1e-10,
            atol=1e-14,
        )
    assert net.check_gradient(x, t).ok


def test_layers_read_the_parameters_also_after_these_are_replaced(network, batch):
    net, *_ = network
    x, _ = batch

    def through_the_layers():
        z = x
        for layer in net.layers.values():
            z = layer.forward(z)
        return z

    np.testing.assert_allclose(through_the_layers(), net.predict(x), rtol=1e-12)
    net.params["W1"] = np.ones((6, 5))
    net.params["b2"][...] = 3
    np.testing.assert_allclose(through_the_layers(), net.predict(x), rtol=1e-12)
    net.layers["Affine2"].W = np.zeros_like(net.params["W2"])
    assert not net.params["W2"].any()
    np.testing.assert_allclose(through_the_layers(), net.predict(x), rtol=1e-12)


def test_an_exchanged_layer_takes_effect(batch):
    x, t = batch
    net = book.LayeredTwoLayerNet(6, 5, 4, 0.5)
    expected, _ = plain_gradient(net.params, x, t, "sigmoid")
    net.layers["Relu1"] = layers.Sigmoid()
    assert net.loss(x, t) == pytest.approx(expected, rel=1e-12)
    assert 0 <= net.accuracy(x, t) <= 1
    with pytest.raises(ValueError, match="`layers` must be as they were made"):
        net.fit(x, t, iterations=1)


def test_scores_are_raw_and_images_are_flattened(batch):
    x, t = batch
    net = book.LayeredTwoLayerNet(6, 5, 4, 0.5)
    scores = np.maximum(x @ net.params["W1"], 0) @ net.params["W2"]
    np.testing.assert_allclose(net.predict(x), scores, rtol=1e-12)
    np.testing.assert_allclose(net.predict(x.reshape(7, 1, 2, 3)), scores, rtol=1e-12)
    assert net.loss(x.reshape(7, 1, 2, 3), t) == net.loss(x, t)
    assert net.accuracy(x, np.eye(4)[t]) == net.accuracy(x, t) == np.mean(scores.argmax(1) == t)


def test_the_books_numbers_come_from_its_generator():
    np.random.seed(5)
    net = book.LayeredTwoLayerNet(6, 5, 4)
    np.random.seed(5)
    assert (net.params["W1"] == 0.01 * np.random.randn(6, 5)).all()
    assert (net.params["W2"] == 0.01 * np.random.randn(5, 4)).all()


def test_copies_pickles_and_files(network, batch, tmp_path):
    net, *_ = network
    x, t = batch
    for other in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        type(net).load(net.save(tmp_path / "net")),
    ):
        assert not other._changed
        assert other.loss(x, t) == net.loss(x, t)
        assert isinstance(other.layers, OrderedDict)
        other.params["W1"] += 1
        assert other.layers["Affine1"].W is other.params["W1"]
        assert other.params["W1"] is not net.params["W1"]


def test_attributes_of_the_multi_layer_net():
    net = book.LayeredMultiLayerNet(6, [5, 3], 4, weight_decay_lambda=0.2)
    assert (net.input_size, net.hidden_size_list, net.output_size) == (6, [5, 3], 4)
    assert (net.hidden_layer_num, net.weight_decay_lambda) == (2, 0.2)
    x, t = np.random.default_rng(0).random((5, 6)), np.arange(5) % 4
    before = net.loss(x, t), net.gradient(x, t)["W1"]
    net.weight_decay_lambda = 0.4
    squares = sum(np.sum(net.params[f"W{n}"] ** 2) for n in (1, 2, 3))
    assert net.loss(x, t) == pytest.approx(before[0] + 0.1 * squares)
    np.testing.assert_allclose(net.gradient(x, t)["W1"], before[1] + 0.2 * net.params["W1"])
    with pytest.raises(ValueError, match="weight_decay_lambda"):
        net.weight_decay_lambda = -0.1


LAYERED = {
    "lastLayer": lambda: book.LayeredTwoLayerNet(6, 5, 4),
    "last_layer": lambda: book.LayeredMultiLayerNet(6, [5], 4, weight_decay_lambda=0.1),
}


@pytest.mark.parametrize("last", LAYERED)
@pytest.mark.parametrize("looked_before", [False, True])
def test_going_back_by_hand_after_the_loss(last, looked_before):
    net = LAYERED[last]()
    (first, second), t = np.random.default_rng(0).random((2, 7, 6)), np.arange(7) % 4
    if looked_before:
        assert net.layers["Affine1"].x is None
    net.gradient(first, t)
    net.loss(second, t)
    dout = getattr(net, last).backward(1)
    assert net.layers["Affine1"].x is second
    for layer in reversed(net.layers.values()):
        dout = layer.backward(dout)
    found = {f"{p}{n}": getattr(net.layers[f"Affine{n}"], f"d{p}") for n in (1, 2) for p in "Wb"}
    for name, array in net.gradient(second, t).items():
        decay = net._decay * net.params[name] if name.startswith("W") else 0  # not the layers'
        np.testing.assert_allclose(found[name], array - decay, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("last", LAYERED)
def test_layers_hold_the_last_pass_whenever_they_are_asked_for(last):
    net, t = LAYERED[last](), np.arange(7) % 4
    first, second, third, fourth = np.random.default_rng(0).random((4, 7, 6))
    loss = net.loss(first, t)
    net.predict(second)  # runs the layers, but for the last
    assert getattr(net, last).loss == pytest.approx(loss - net._weight_decay())
    assert net.layers["Affine1"].x is second
    other = pickle.loads(pickle.dumps(net))
    net.loss(third, t)
    assert net.layers["Affine1"].x is third
    assert other.loss(third, t) == pytest.approx(net.loss(third, t), rel=1e-14)
    other.loss(fourth, t[:, None])
    assert other.layers["Affine1"].x is fourth


@pytest.mark.parametrize("last", LAYERED)
def test_the_loss_is_the_same_before_and_after_a_look_at_the_layers(last):
    net, x = LAYERED[last](), np.random.default_rng(0).random((7, 6))
    for t in (np.arange(7) % 4, np.eye(4)[np.arange(7) % 4]):
        net = copy.deepcopy(net)
        before = net.loss(x, t), net.loss(x[0], t[0])
        assert net.layers
        assert (net.loss(x, t), net.loss(x[0], t[0])) == pytest.approx(before, rel=1e-14)


def test_exchanged_layers_get_what_the_script_gives():
    class Flatten:
        def forward(self, x):
            return x.reshape(len(x), -1)[:, :6]

    net = book.LayeredTwoLayerNet(6, 5, 4)
    x = np.random.default_rng(0).random((7, 2, 2, 2))
    want = net.predict(x.reshape(7, 8)[:, :6])
    net.layers["Flatten"] = Flatten()
    net.layers.move_to_end("Flatten", last=False)
    np.testing.assert_array_equal(net.predict(x), want)


def test_a_subclass_with_another_predict():
    class Doubled(book.LayeredTwoLayerNet):
        def predict(self, x):
            return 2 * super().predict(x)

    np.random.seed(0)
    net = Doubled(6, 5, 4)
    net.params["W1"] *= 100
    x, t = np.random.default_rng(0).random((7, 6)), np.arange(7) % 4
    assert net.loss(x, t) == book.softmax_loss(2 * book.LayeredTwoLayerNet.predict(net, x), t)
    numerical = net.numerical_gradient(x, t, 1e-5)  # 1e-4 is off by up to 1.3e-7
    plain = book.LayeredTwoLayerNet(6, 5, 4)
    plain.params = {**net.params, "W2": 2 * net.params["W2"], "b2": 2 * net.params["b2"]}
    for name, array in plain.gradient(x, t).items():
        factor = 2 if name.endswith("2") else 1
        np.testing.assert_allclose(numerical[name], factor * array, atol=1e-7)


# --- batch normalisation and dropout


class PlainExtend:
    """Chapter 6's network in NumPy, for the numbers of a seed."""

    def __init__(self, sizes, activation, decay, dropout, normalized):
        self.sizes, self.activation, self.decay = sizes, activation, decay
        self.dropout, self.normalized, self.params = dropout, normalized, {}
        for n, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.params[f"W{n}"] = np.sqrt(2 / n_in) * np.random.randn(n_in, n_out)
            self.params[f"b{n}"] = np.zeros(n_out)
            if normalized and n < len(sizes) - 1:
                self.params[f"gamma{n}"], self.params[f"beta{n}"] = np.ones(n_out), np.zeros(n_out)
        self.moving = {
            n: (np.zeros(sizes[n]), np.zeros(sizes[n])) for n in range(1, len(sizes) - 1)
        }

    def predict(self, x, training, masks=None):
        last = len(self.sizes) - 1
        for n in range(1, last):
            x = x @ self.params[f"W{n}"] + self.params[f"b{n}"]
            if self.normalized:
                mean, variance = self.moving[n]
                if training:
                    mean, variance = x.mean(axis=0), x.var(axis=0)
                x = (x - mean) / np.sqrt(variance + 1e-6)
                x = self.params[f"gamma{n}"] * x + self.params[f"beta{n}"]
            x = np.maximum(x, 0) if self.activation == "relu" else 1 / (1 + np.exp(-x))
            if self.dropout is not None:
                if training:
                    mask = masks[n] if masks else np.random.rand(*x.shape) > self.dropout
                    x = x * mask
                else:
                    x = x * (1 - self.dropout)
        return x @ self.params[f"W{last}"] + self.params[f"b{last}"]

    def loss(self, x, t, training, masks=None):
        y = fastgrad.softmax(self.predict(x, training, masks))
        decay = sum(np.sum(W**2) for name, W in self.params.items() if name[0] == "W")
        return -np.mean(np.log(y[np.arange(len(x)), t] + 1e-7)) + 0.5 * self.decay * decay


EXTENSIONS = [
    pytest.param(activation, decay, dropout, normalized, id=f"{activation}-{dropout}-{normalized}")
    for activation, decay in (("relu", 0.0), ("sigmoid", 0.1))
    for dropout, normalized in ((None, False), (None, True), (0.3, False), (0.3, True))
]


@pytest.mark.parametrize(("activation", "decay", "dropout", "normalized"), EXTENSIONS)
def test_the_extended_network_gives_the_books_numbers(activation, decay, dropout, normalized):
    sizes, x = (6, 5, 4, 3), np.random.default_rng(0).random((7, 6))
    t = np.arange(7) % 3
    np.random.seed(3)
    plain = PlainExtend(sizes, activation, decay, dropout, normalized)
    np.random.seed(3)
    net = book.MultiLayerNetExtend(
        6, [5, 4], 3, activation, "relu", decay,
        use_dropout=dropout is not None, dropout_ration=0.5 if dropout is None else dropout,
        use_batchnorm=normalized,
    )  # fmt: skip
    assert net.params.keys() == plain.params.keys()
    for n in (1, 2) if normalized else ():
        net.params[f"gamma{n}"] *= 1.5
        net.params[f"beta{n}"] += 0.1 * n
    for name, array in plain.params.items():
        if name[0] in "Wb" and len(name) == 2:
            np.testing.assert_array_equal(net.params[name], array)
    plain.params = net.params  # so that nudges reach both
    np.random.seed(4)
    masks = {n: np.random.rand(7, sizes[n]) > (dropout or 0) for n in (1, 2)}
    np.random.seed(4)
    assert net.loss(x, t, train_flg=True) == pytest.approx(plain.loss(x, t, True, masks), rel=1e-12)
    np.random.seed(4)
    numerical = net.numerical_gradient(x, t)
    np.random.seed(4)
    gradient = net.gradient(x, t)
    assert numerical.keys() == gradient.keys() == net.params.keys()
    for name in net.params:
        want = fastgrad.numerical_gradient(
            lambda _: plain.loss(x, t, True, masks), net.params[name], 1e-4
        )
        np.testing.assert_allclose(numerical[name], want, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(gradient[name], want, atol=2e-7, err_msg=name)
    if normalized:  # two passes were for training: of the loss and of the gradient
        for n in (1, 2):
            layer = net.layers[f"BatchNorm{n}"]
            plain.moving[n] = layer.running_mean, layer.running_var
            assert layer.running_mean.any()
    np.testing.assert_allclose(net.predict(x), plain.predict(x, False), atol=1e-12)
    np.testing.assert_allclose(net.predict(x[0]), plain.predict(x, False)[0], atol=1e-12)
    assert net.loss(x, t) == pytest.approx(plain.loss(x, t, False), rel=1e-12)
    assert net.accuracy(x, t) == np.mean(plain.predict(x, False).argmax(axis=1) == t)


def test_numerical_gradient_of_one_sample_and_of_exchanged_layers():
    """A batch of one has no variance; and a layer of the reader's is run as it is."""
    net = book.MultiLayerNetExtend(6, [5], 3, use_batchnorm=True)
    x = np.random.default_rng(0).random((4, 6))
    found = net.numerical_gradient(x[:1], [2])
    assert not found["W1"].any()
    assert found["b2"].any()
    want = net.numerical_gradient(x, [0, 1, 2, 0])
    net.layers["Activation_function1"] = layers.Relu()
    for name, slopes in net.numerical_gradient(x, [0, 1, 2, 0]).items():
        np.testing.assert_allclose(slopes, want[name], atol=1e-10)


def test_the_extended_network_without_extensions_is_the_plain_one():
    x, t = np.random.default_rng(0).random((7, 6)), np.arange(7) % 3
    np.random.seed(0)
    net = book.MultiLayerNetExtend(6, [5, 4], 3, weight_decay_lambda=0.1)
    np.random.seed(0)
    plain = book.LayeredMultiLayerNet(6, [5, 4], 3, weight_decay_lambda=0.1)
    assert not net._changed
    for method in ("gradient", "numerical_gradient"):
        want = getattr(plain, method)(x, t)
        for name, array in getattr(net, method)(x, t).items():
            np.testing.assert_array_equal(array, want[name])
    assert net.loss(x, t) == net.loss(x, t, train_flg=True) == plain.loss(x, t)
    assert net.check_gradient(x, t).ok


def test_the_extended_network_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="`dropout_ratio` must be from 0 to 1"):
        book.MultiLayerNetExtend(6, [5], 3, use_dropout=True, dropout_ration=1.5)
    with pytest.raises(TypeError, match="`use_batchnorm` must be True or False"):
        book.MultiLayerNetExtend(6, [5], 3, use_batchnorm="yes")
    net = book.MultiLayerNetExtend(6, [5], 3, use_batchnorm=True)
    x, t = np.zeros((2, 6)), [0, 1]
    for call in (net.fit, net.check_gradient, lambda *_: net.save(tmp_path / "net")):
        with pytest.raises(ValueError, match="without batch normalisation and dropout"):
            call(x, t)
    with pytest.raises(ValueError, match=r"`x` must have shape \(N, 6\)"):
        net.loss(np.zeros((2, 5)), t, train_flg=True)
    for each in (net, book.MultiLayerNetExtend(6, [5], 3)):
        with pytest.raises(TypeError, match="`train_flg`"):
            each.loss(x, t, train_flg="no")
    net.params["gamma1"] = np.ones(4)
    with pytest.raises(ValueError, match=r"`params\['gamma1'\]` must have shape \(5,\)"):
        net.gradient(x, t)


def test_trainer(capsys):
    x, t = np.random.default_rng(0).random((30, 6)), np.arange(30) % 3
    np.random.seed(0)
    net = book.LayeredMultiLayerNet(6, [5], 3)
    trainer = book.Trainer(net, x, t, x[:9], t[:9], 2, 10, "AdaGrad", {"lr": 0.1})
    trainer.train()
    printed = capsys.readouterr().out
    np.random.seed(0)
    other = book.LayeredMultiLayerNet(6, [5], 3)
    rule = fastgrad.AdaGrad(0.1)
    losses, accuracies = [], []
    for step in range(6):
        mask = np.random.choice(30, 10)
        rule.update(other.params, other.gradient(x[mask], t[mask]))
        losses.append(other.loss(x[mask], t[mask]))
        if step % 3 == 0:
            accuracies.append((other.accuracy(x, t), other.accuracy(x[:9], t[:9])))
    assert trainer.train_loss_list == losses
    assert list(zip(trainer.train_acc_list, trainer.test_acc_list, strict=True)) == accuracies
    lines = [f"train loss:{loss}" for loss in losses]
    for epoch, (train, test) in enumerate(accuracies):
        lines.insert(
            4 * epoch + 1, f"=== epoch:{epoch + 1}, train acc:{train}, test acc:{test} ==="
        )
    lines += [
        "=============== Final Test Accuracy ===============",
        f"test acc:{other.accuracy(x[:9], t[:9])}",
    ]
    assert printed.splitlines() == lines


def test_trainer_evaluates_each_epoch_of_a_fraction(capsys):
    x, t = np.zeros((25, 2)), np.zeros(25, int)

    class Net:
        params, calls = {}, 0

        def gradient(self, x, t):
            return {}

        def loss(self, x, t):
            return 0.5

        def accuracy(self, x, t):
            assert len(x) == 7
            return 0.25

    trainer = book.Trainer(Net(), x, t, x, t, 4, 10, evaluate_sample_num_per_epoch=7)
    assert (trainer.iter_per_epoch, trainer.max_iter) == (2.5, 10)
    for _ in range(10):
        trainer.train_step()
    assert capsys.readouterr().out.splitlines() == [
        line
        for step in range(10)
        for line in (
            "train loss:0.5",
            *(
                [f"=== epoch:{1 + step * 2 // 5}, train acc:0.25, test acc:0.25 ==="]
                if step in (0, 3, 5, 8)
                else []
            ),
        )
    ]
    with pytest.raises(ValueError, match="`optimizer` must be one of"):
        book.Trainer(Net(), x, t, x, t, optimizer="lion")


# --- helpers


def test_smooth_curve():
    x = np.random.default_rng(0).normal(size=40)
    padded = np.r_[x[10:0:-1], x, x[-1:-11:-1]]
    window = np.kaiser(11, 2)
    expected = [padded[i : i + 11] @ window / window.sum() for i in range(5, 45)]
    np.testing.assert_allclose(book.smooth_curve(list(x)), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"N at least 11. Got \(10,\)"):
        book.smooth_curve(x[:10])


def test_shuffle_dataset():
    x = np.arange(24.0).reshape(6, 1, 2, 2)
    np.random.seed(0)
    shuffled, labels = book.shuffle_dataset(x, np.arange(6))
    np.random.seed(0)
    order = np.random.permutation(6)
    assert (labels == order).all()
    assert (shuffled == x[order]).all()
    with pytest.raises(ValueError, match=r"`t` must have as many entries as `x`, 6\. Got 5"):
        book.shuffle_dataset(x, np.arange(5))


def test_numerical_gradient_2d_goes_by_rows():
    x = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, -1.0]])
    before = x.copy()
    # The product of a row's entries: f of the whole array would be another number.
    gradient = book.numerical_gradient_2d(np.prod, x)
    np.testing.assert_allclose(gradient, x[:, ::-1], atol=1e-9)
    assert (x == before).all()
    np.testing.assert_allclose(book.numerical_gradient_2d(np.prod, x[1]), [4, 3], atol=1e-9)
    assert book.numerical_gradient_2d(np.prod, np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("form", [np.int64, list, np.array])
def test_numerical_gradient_with_an_exchanged_layer_and_odd_parameters(form, batch):
    x, t = batch
    net = book.LayeredTwoLayerNet(x.shape[1], 5, 4, 0.5)
    net.layers["Relu1"] = layers.Relu()
    held = net.params["b1"] = form(np.zeros(5))
    want, got = net.gradient(x, t)["b1"], net.numerical_gradient(x, t)["b1"]
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
    assert net.params["b1"] is held
