"""The book's module names: who serves them, what they hand on, and how scripts are run."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from processes import environment_of

import fastgrad
from fastgrad import book
from fastgrad.book import comparison, finder, layers, loops
from fastgrad.book import functions as book_functions
from fastgrad.book import script as running

SCRIPTS = Path(__file__).parent / "book_scripts"


@pytest.fixture(autouse=True)
def _isolated():
    """No window opens, and neither figures nor modules of the book's names outlive a test."""
    matplotlib.use("agg")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if running.is_book(name)}
    yield
    book.uninstall()
    for name in list(sys.modules):
        if running.is_book(name):
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
        assert names[name] is getattr(book_functions, name)
    assert names["softmax_loss"](np.zeros((1, 4)), np.array([2])) == pytest.approx(
        np.log(4), abs=1e-6
    )


def test_layers_hand_on_the_functions_too(installed):
    names = {}
    exec("from common.layers import *", names)
    assert names["Affine"] is layers.Affine
    assert names["softmax"] is book_functions.softmax
    assert names["im2col"](np.zeros((1, 1, 2, 2), np.float32), 2, 2).dtype == np.float64


def test_every_served_name_can_be_imported(installed):
    for name in book.SERVED:
        module = importlib.import_module(name)
        assert module.__spec__.origin == "fastgrad"
        assert module.np is np
    import common.optimizer

    assert issubclass(common.optimizer.Adam, fastgrad.Adam)


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


def test_install_forgets_what_has_been_imported_and_uninstall_brings_it_back(
    folder, tmp_path, monkeypatch
):
    folder("common/__init__.py", "NUMBER = 3")
    folder("common/functions.py", "def sigmoid(x): return 'mine'")
    monkeypatch.syspath_prepend(tmp_path)
    first = importlib.import_module("common.functions")
    book.install()
    second = importlib.import_module("common.functions")
    assert second is not first
    assert second.sigmoid(0) == "mine"
    assert sys.modules["common"].NUMBER == 3
    assert book.report() == ("fastgrad served no module.\ncommon/functions.py: your own sigmoid")
    book.uninstall()
    assert importlib.import_module("common.functions") is not second


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
    assert not any(isinstance(other, finder.Finder) for other in sys.meta_path)


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
    net = "<class 'lib.two_layer_net.TwoLayerNet'>"
    assert out == f"{net} fastgrad.book.gradients\n" + (f"{net} 7\n" if there else "")
    assert "numerical (as common.gradient)" in err
    assert ("lib/two_layer_net.py: your own TwoLayerNet" in err) == there
    assert ("lib.two_layer_net (as two_layer_net) (chapter 4's)" in err) != there
    assert not {"lib", "numerical"} & set(sys.modules) - before


def test_modules_of_other_names_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book.install(serve={"ch4.functions": "common.functions"})
    assert importlib.import_module("ch4.functions").softmax is book_functions.softmax
    book.uninstall()
    assert not {"ch4", "ch4.functions"} & set(sys.modules)


@pytest.mark.parametrize("there", ["folder", "empty", "missing"])
def test_the_books_names_inside_a_package(folder, capfd, there):
    """As with a submodule, which may not have been fetched."""
    if there == "folder":
        folder("scratch/common/tools.py", "from .functions import relu")
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
    assert book.run_script(script) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[:2] == ["[0.5] fastgrad.data.mnist", "fastgrad.book.gradients"]
    assert out.splitlines()[2:] == (["fastgrad.book.functions"] if there == "folder" else [])
    assert "scratch.common.functions (as common.functions), scratch.dataset.mnist (as" in err
    assert not any(name.startswith("scratch") for name in sys.modules)


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
    assert not any(isinstance(other, finder.Finder) for other in sys.meta_path)


def test_a_file_of_the_readers_that_fails(folder, tmp_path, monkeypatch):
    folder("common/util.py", "assert __file__\ndef pad_image(x): pass\n1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    book.install()
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("common.util")


# --- chapter 4's network or chapter 5's


@pytest.mark.parametrize(
    ("place", "script", "chapter"),
    [
        ("ch04", "", 4),
        ("ch05", "", 5),
        ("Chapter_5", "", 5),
        ("ch051", "", 4),
        ("notes", "", 4),
        ("notes", "print(TwoLayerNet(2, 2, 2).layers)", 5),
    ],
)
def test_which_two_layer_net(folder, capfd, place, script, chapter):
    path = folder(f"{place}/train.py", f"from two_layer_net import TwoLayerNet\n{script}")
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
    seconds = re.search(r"served common\.functions\.\nThe script took ([\d.]+) s", err)
    assert float(seconds[1]) >= 0.3


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
    monkeypatch.setattr(loops, "_MOMENT", 0.0)
    assert run("ch04/by_hand.py") == 0
    out, err = capfd.readouterr()
    assert (
        "fastgrad served common.functions, common.gradient.\n"
        "numerical_gradient in MyNet.numerical_gradient: by the compiled kernels, 12-7-3\n"
        "  (sigmoid, cross entropy), "
    ) in err
    folder("common/gradient.py", OWN_LOOP)
    script = folder("ch04/by_hand.py", (SCRIPTS / "ch04/by_hand.py").read_text(encoding="utf-8"))
    assert book.run_script(script, keep=["common.gradient"]) == 0
    loop, err = capfd.readouterr()
    assert "common.gradient" not in err
    found, wanted = (
        [float(line.split()[-1]) for line in text.splitlines()] for text in (out, loop)
    )
    assert len(found) == 4
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_a_notebook_is_served_until_it_is_uninstalled(installed):
    from common.gradient import numerical_gradient

    assert numerical_gradient.__module__ == "fastgrad.book.gradients"
    book.install(keep=["common.gradient"])
    from common.layers import sigmoid  # noqa: F401 - served as before

    book.install()
    assert book.report() == "fastgrad served no module."
    book.uninstall()
    with pytest.raises(RuntimeError, match="`report` needs `install` first"):
        book.report()


def test_chapter_5_gradient_check(capfd):
    assert run("ch05/gradient_check.py") == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[-1] == "['Affine1', 'Relu1', 'Affine2'] SoftmaxWithLoss"
    differences = [float(line.split(":")[1]) for line in lines[:4]]
    assert 0 < max(differences) < 1e-6  # the book's backward pass leaves out the 1e-7
    assert "two_layer_net (chapter 5's)" in err


def test_chapter_6_on_mnist(capfd):
    assert run("ch06/compare_on_mnist.py") == 0
    out, err = capfd.readouterr()
    assert out == "compared SGD, Momentum, AdaGrad, Adam\n"
    assert "common.util, common.multi_layer_net, common.optimizer." in err


def test_chapter_6_with_a_module_of_the_books_own(capfd):
    assert run("ch06/with_a_module_of_its_own.py") == 0
    out, err = capfd.readouterr()
    assert out == "[0. 4.] [0. 2.]\n(18, 4)\nfastgrad.book.optimizers 0.5\n"
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
    assert issubclass(importlib.import_module("two_layer_net").TwoLayerNet, fastgrad.TwoLayerNet)


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
    folder(
        "ch03/common/functions.py", "import time\ntime.sleep(0.5)\ndef relu(x): return max(x, 0)\n"
    )
    script = folder(
        "ch03/a.py",
        "import os, sys\nsys.path.append(os.pardir)\n"
        "from common.functions import relu\nprint(relu(3.0), *sys.argv[1:], __name__)",
    )
    assert book.run_script(script, ["-x"], compare=60) == 0
    out, err = capfd.readouterr()
    assert out == "3.0 -x __main__\n"
    assert "The script used nothing of fastgrad, so there is nothing to compare." in err


def test_its_own_way_is_stopped(folder):
    script = folder("a.py", "import time\nprint('a\\nb')\ntime.sleep(600)\n")
    # A busy machine may take a second to start a process.
    for limit in (0.4, 2, 10, 50):
        own = comparison.run_own_way(script, [], limit)
        assert own.status is None
        if own.lines:
            break
    assert len(own.lines) == 2
    assert own.lines[-1] <= own.seconds < 600
    failed = comparison.run_own_way(folder("b.py", "import sys\nsys.exit('no\\nluck')"), [], 60)
    assert (failed.status, failed.error) == (1, "luck")


@pytest.mark.parametrize(
    ("own", "ours", "words"),
    [
        (([], 4.0, 0), ([], 0.5, 0), "In its own way it takes 4.00 s: 8 times faster here."),
        (([], 0.5, 0), ([], 1.6, 0), "In its own way it takes 0.50 s: 3.2 times slower here."),
        (([], 0.5, 0), ([], 60.0, 0), "In its own way it takes 0.50 s: 120 times slower here."),
        (([], 2.0, 1), ([], 0.5, 1), "In its own way the script failed, with exit status 1."),
        (
            ([], 2.0, 1, "EOFError: EOF when reading a line"),
            ([], 0.5, 0),
            "In its own way the script failed, with exit status 1: EOFError: EOF when reading a "
            "line\nIt gets no input there.",
        ),
        (
            ([], 2.0, 1, "ModuleNotFoundError: No module named 'common'"),
            ([], 0.5, 0),
            "In its own way the script failed, with exit status 1: ModuleNotFoundError: No module "
            "named 'common'",
        ),
        (([0.01], 0.02, 0), ([0.0], 0.001, 0), "In its own way it takes 0.02 s."),
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


def test_a_script_that_uses_nothing_gets_no_factor():
    own, ours = comparison.Timing([], 5.0, None), comparison.Timing([], 0.1, 0)
    assert "nothing to compare" in comparison.verdict(own, ours, used=False)


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
