"""What readers' scripts print in plain Python is what they print under `run`."""

import ast
import copy
import subprocess
import sys

import numpy as np
import pytest
from processes import environment_of

from fastgrad import book
from fastgrad.book import networks, own_files

#: Files of the reader's, and the script among them that is run. It is run in the folder above.
SCRIPTS = {
    "a network of the reader's own in a file of the book's name": {
        "two_layer_net.py": """
            import numpy as np
            class TwoLayerNet:
                def __init__(self, input_size, hidden_size, output_size):
                    self.W = np.arange(6.0).reshape(3, 2)[:input_size]
                def loss(self, x, t):
                    return float(np.sum(np.abs(x @ self.W - t)))
        """,
        "main.py": """
            from two_layer_net import TwoLayerNet
            print(TwoLayerNet(2, 3, 4).loss(np.ones((1, 2)), 7) if "np" in globals() else "no np")
            import numpy as np
            print(TwoLayerNet, TwoLayerNet(2, 3, 4).loss(np.ones((1, 2)), 7))
        """,
    },
    "other functions by the book's names": {
        "common/functions.py": """
            import numpy as np
            def sigmoid(x): return np.tanh(x)
            def relu(x): return np.where(x > 0, x, 0.01 * x)
            def softmax(x): return np.exp(x) / np.sum(np.exp(x))
            def cross_entropy_error(y, t): return -np.sum(t * np.log(y + 1e-7))
        """,
        "main.py": """
            from common.functions import *
            x = np.array([[-1.0, 2.0], [3.0, 4.0]])
            print(sigmoid(x), relu(x), softmax(x), cross_entropy_error(softmax(x), x))
            print(relu(np.array([-100, 3])), sigmoid.__module__)
        """,
    },
    "a package called common of another project": {
        "common/__init__.py": "VERSION = 3",
        "common/functions.py": "def parse(text): return text.split(',')",
        "common/layers.py": "from .functions import parse\nRelu = 'mine'",
        "main.py": """
            import common.functions, common.layers
            print(common.VERSION, common.layers.parse("a,b"), common.layers.Relu)
            print(sorted(name for name in vars(common.functions) if name[0] != "_"))
        """,
    },
    "the second volume's": {
        "common/np.py": "import numpy as np",
        "common/optimizer.py": """
            from common.np import *
            class SGD:
                def __init__(self, lr=0.01):
                    self.lr = lr
                def update(self, params, grads):
                    for i in range(len(params)):
                        params[i] -= self.lr * grads[i]
        """,
        "common/trainer.py": """
            from common.optimizer import SGD
            class Trainer:
                def __init__(self, model, optimizer): self.model, self.optimizer = model, optimizer
                def fit(self): self.optimizer.update(self.model, [1.0, 2.0])
        """,
        "main.py": """
            from common.trainer import Trainer, SGD
            model = [3.0, 4.0]
            Trainer(model, SGD(0.5)).fit()
            print(model)
        """,
    },
    "another rule in common.gradient": {
        "common/gradient.py": """
            import numpy as np
            def numerical_gradient(f, x):
                grad = np.zeros_like(x)
                for i in range(x.size):
                    before, value = f(x), x[i]
                    x[i] = value + 0.5
                    grad[i] = (f(x) - before) / 0.5
                    x[i] = value
                return grad
        """,
        "main.py": """
            import numpy as np
            from common.gradient import numerical_gradient
            print(numerical_gradient(lambda x: float(np.sum(x**2)), np.array([1.0, 2.0])))
        """,
    },
    "the current folder, arguments and paths": {
        "main.py": """
            import os, sys
            print(sys.argv, os.path.basename(os.getcwd()), os.path.basename(sys.path[0]))
            with open("data.txt") as file:
                print(file.read(), os.path.basename(__file__), __name__, __spec__, __doc__)
            print(__cached__, __package__, sys.modules["__main__"].__dict__ is globals())
        """,
    },
    "modules keep what Python gives them": {
        "helper.py": """
            '''The docstring.'''
            import inspect, os, sys, traceback
            class Point:
                def __init__(self, x): self.x = x
                def fail(self):
                    return 1 / self.x  # here
            def text(): return inspect.getsource(Point.fail)
            print(__name__, __doc__, os.path.basename(__file__), os.path.basename(__cached__))
        """,
        "main.py": """
            import copy, pickle, traceback
            import helper
            class Own(helper.Point):
                pass
            print(helper.text(), pickle.loads(pickle.dumps(Own(3))).x, helper.Point)
            print(pickle.loads(pickle.dumps(helper.Point(4))).x, copy.deepcopy(Own(5)).x)
            try:
                helper.Point(0).fail()
            except ZeroDivisionError:
                lines = traceback.format_exc().splitlines()
                print([line.strip() for line in lines if "File" not in line])
        """,
    },
    "what the reader deletes in the end": {
        "main.py": """
            import numpy as np
            class Net:
                def __init__(self):
                    self.params = {"W1": np.ones((20, 5)), "b1": np.zeros(5),
                                   "W2": np.ones((5, 3)), "b2": np.zeros(3)}
            net = Net()
            print(sorted(net.params))
            net.params.clear()
            del net
        """,
    },
    "a module in a package of the reader's": {
        "lib/__init__.py": "",
        "lib/common/__init__.py": "",
        "lib/common/functions.py": "def relu(x): return 'own'",
        "lib/common/layers.py": "from .functions import *\nRelu = relu",
        "main.py": "from lib.common.layers import Relu\nprint(Relu(3))",
    },
    "definitions made twice, under conditions and by other means": {
        "common/functions.py": """
            import numpy as np
            def relu(x): return np.maximum(0, x)
            if True:
                def relu(x): return -x
            sigmoid = lambda x: 7
            def step_function(x):
                print("called")
                return np.array(x > 0, dtype=int)
        """,
        "main.py": """
            from common.functions import relu, sigmoid, step_function
            print(relu(3), sigmoid(3), step_function(np.array([1])) if "np" in globals() else "")
        """,
    },
    "a method that differentiates, and tells how far it is": {
        "net.py": """
            import numpy as np
            class Net:
                def __init__(self):
                    self.params = {"W": np.linspace(-1, 1, 900).reshape(30, 30), "b": np.ones(30)}
                def loss(self, x):
                    return np.sum(np.tanh(x @ self.params["W"] + self.params["b"]))
                def numerical_gradient(self, x, h=1e-4):
                    grads = {}
                    for key in self.params:
                        p = self.params[key]
                        grad = np.zeros_like(p)
                        for i in np.ndindex(p.shape):
                            p[i] += h
                            up = self.loss(x)
                            p[i] -= 2 * h
                            grad[i] = (up - self.loss(x)) / (2 * h)
                            p[i] += h
                            if i[-1] == 0:
                                print(key, i, round(float(grad[i]), 4))
                        grads[key] = grad
                    return grads
        """,
        "main.py": """
            import numpy as np
            from net import Net
            net = Net()
            grads = net.numerical_gradient(np.sin(np.arange(60000.0)).reshape(2000, 30))
            print({key: grad.round(4) for key, grad in grads.items()})
            print([array.sum() for array in net.params.values()])
        """,
    },
    "an exception that the script catches": {
        "common/util.py": "raise KeyError('not yet')",
        "main.py": """
            try:
                import common.util
            except KeyError as error:
                print("caught", error)
        """,
    },
}  # fmt: skip


def dedented(text):
    """Return code without the margin of its first line."""
    lines = text.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "\n".join(line[margin:] for line in lines) + "\n"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_it_prints_what_it_prints_in_plain_python(kind, tmp_path, monkeypatch, capfd):
    for name, text in SCRIPTS[kind].items():
        path = tmp_path / "ch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedented(text), encoding="utf-8")
    (tmp_path / "data.txt").write_text("the data")
    monkeypatch.chdir(tmp_path)
    plain = subprocess.run(
        [sys.executable, "ch/main.py", "a", "-b"],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    status = book.run_script("ch/main.py", ["a", "-b"])
    out, err = capfd.readouterr()
    assert out == plain.stdout
    assert status == 0, err


def test_processes_find_the_served_modules(tmp_path):
    """Spawned ones begin with nothing; a pool starts those that fail anew, for ever."""
    script = tmp_path / "main.py"
    script.write_text(
        "import multiprocessing\n"
        "from common.functions import *\n"
        "def f(x): return float(sigmoid(np.array(x)))\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(pool.map(f, [0.0]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "fastgrad", "run", str(script)],
        env=environment_of(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "[0.5]\n[0.5]\n"), result.stderr


def test_a_script_that_needs_nothing_imports_nothing(tmp_path):
    script = tmp_path / "main.py"
    script.write_text("import sys\nprint({'numpy', 'numba', 'fastgrad.api'} & set(sys.modules))")
    result = subprocess.run(
        [sys.executable, "-m", "fastgrad", "run", str(script)],
        env=environment_of(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout == "set()\n"


# --- which definitions are the book's


def adopted(tmp_path, monkeypatch, text, published, title="common.layers"):
    """Load a module of this text, with these classes taken for the book's; return both lists."""
    code = dedented(text)
    hashes = {
        name: {own_files.fingerprint(ast.parse(dedented(lines)).body[0])}
        for name, lines in published.items()
    }
    monkeypatch.setattr(own_files, "_published", lambda: {title: hashes})
    (tmp_path / "module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    book.install(serve={"module": title})
    try:
        import module

        return module, book.report()
    finally:
        book.uninstall()


CLASS = """
    class Pooling:
        def forward(self, x):
            out = sigmoid(x)
            return out
"""
SIGMOID = "def sigmoid(x): return 1 / (1 + np.exp(-x))"


@pytest.mark.parametrize(
    ("functions_above", "the_class", "is_the_books"),
    [
        (SIGMOID, CLASS, True),
        ("def sigmoid(x):\n    e = np.exp(-x)\n    return 1.0 / (e + 1.0)", CLASS, True),
        (SIGMOID, CLASS.replace("out", "y").replace("(self, x):", "(self, x):  # sum"), True),
        (SIGMOID, CLASS.replace("return out", "return out + 0"), False),
        (SIGMOID, CLASS.replace("forward(self, x)", "forward(self, x, y=1)"), False),
        ("sigmoid = np.tanh", CLASS, False),
        ("def sigmoid(x): return np.tanh(x)", CLASS, False),
        ("def sigmoid(x): return print(x) or 1 / (1 + np.exp(-x))", CLASS, False),
        (SIGMOID + "\nsigmoid = np.tanh", CLASS, False),
        ("from math import tanh as sigmoid", CLASS, False),
        (SIGMOID, CLASS + "    Pooling.forward = lambda self, x: x", False),
        (SIGMOID + "\nif True:\n    def sigmoid(x): return x", CLASS, False),
    ],
)
def test_a_class_is_the_books_with_all_that_it_uses(
    tmp_path, monkeypatch, capsys, functions_above, the_class, is_the_books
):
    text = f"import numpy as np\n{functions_above}\n{dedented(the_class)}"
    module, report = adopted(tmp_path, monkeypatch, text, {"Pooling": CLASS})
    assert (module.Pooling.__module__ == "fastgrad.book.convolutions") == is_the_books
    assert ("module.py: your own" in report) != is_the_books
    assert capsys.readouterr().out == ""  # nothing of the reader's was called that prints


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "relu", "cross_entropy_error"])
def test_functions_are_compared_by_values(tmp_path, name):
    """The book's own are alike; with another number somewhere they are not."""
    text = {
        "sigmoid": "def sigmoid(x):\n    return 1 / (1 + np.exp(-x))",
        "softmax": (
            "def softmax(x):\n    if x.ndim == 2:\n        x = x.T\n"
            "        x = x - np.max(x, axis=0)\n        y = np.exp(x) / np.sum(np.exp(x), axis=0)\n"
            "        return y.T\n    x = x - np.max(x)\n    return np.exp(x) / np.sum(np.exp(x))"
        ),
        "relu": "def relu(x):\n    return np.maximum(0, x)",
        "cross_entropy_error": (
            "def cross_entropy_error(y, t):\n    if y.ndim == 1:\n"
            "        t = t.reshape(1, t.size)\n        y = y.reshape(1, y.size)\n"
            "    if t.size == y.size:\n        t = t.argmax(axis=1)\n    n = y.shape[0]\n"
            "    return -np.sum(np.log(y[np.arange(n), t] + 1e-7)) / n"
        ),
    }[name]
    changed = {
        "sigmoid": ("1 +", "1.001 +"),
        "softmax": ("np.sum(np.exp(x))", "np.sum(np.exp(x), axis=None) * 1.001"),
        "relu": ("maximum(0", "maximum(0.0"),  # integers would become floats
        "cross_entropy_error": ("1e-7", "1e-8"),
    }[name]
    for code, alike in ((text, True), (text.replace(*changed), False)):
        assert returns_the_same(tmp_path, name, code) == alike


def returns_the_same(tmp_path, name, code):
    """Return whether a function of a file is taken for the book's."""
    path = tmp_path / f"module{len(list(tmp_path.iterdir()))}.py"
    path.write_text(code)
    names = {"np": np, "source": subprocess, "__name__": path.stem}
    exec(compile(code, path, "exec"), names)
    definitions = {node.name: node for node in ast.parse(code).body}
    return own_files._returns_the_same(name, definitions, names)


@pytest.mark.parametrize(
    "body",
    [
        "open('x', 'w')", "np.save('x', x)", "np.random.seed(0)", "x.tofile('x')", "exec('1')",
        "x.__class__", "source.run('true')", "other(x)", "[1 for i in iter(int, 1)]",
    ],
)  # fmt: skip
def test_what_does_more_than_compute_is_never_called(tmp_path, monkeypatch, body):
    monkeypatch.setattr(own_files, "_copies", None)
    code = (
        f"def relu(x):\n    y = {body}\n    return np.maximum(0, x)\ndef other(x): return open('x')"
    )
    assert not returns_the_same(tmp_path, "relu", code)


def test_what_may_never_return_is_never_called(tmp_path):
    assert not returns_the_same(tmp_path, "relu", "def relu(x):\n    while x is not None: pass")


def test_data_of_the_readers_own_are_read_by_the_readers_own_function(tmp_path, monkeypatch):
    text = "def load_mnist(): return 'own data'"
    (tmp_path / "mnist.pkl").touch()
    module, report = adopted(tmp_path, monkeypatch, text, {"load_mnist": text}, "dataset.mnist")
    assert module.load_mnist() == "own data"
    assert "module.py" not in report
    (tmp_path / "mnist.pkl").unlink()
    module, _ = adopted(tmp_path, monkeypatch, text, {"load_mnist": text}, "dataset.mnist")
    assert module.load_mnist.__module__ == "fastgrad.data.mnist"


def test_a_served_network_is_pickled_by_the_name_that_it_was_imported_by(tmp_path, capfd):
    script = tmp_path / "ch05" / "main.py"
    script.parent.mkdir()
    script.write_text(
        "import pickle\n"
        "from two_layer_net import TwoLayerNet\n"
        "net = pickle.loads(pickle.dumps(TwoLayerNet(4, 3, 2)))\n"
        "print(TwoLayerNet, list(net.layers), net.layers['Affine1'].W is net.params['W1'])\n"
    )
    assert book.run_script(script) == 0
    expected = "<class 'two_layer_net.TwoLayerNet'> ['Affine1', 'Relu1', 'Affine2'] True\n"
    assert capfd.readouterr().out == expected


NETWORK = """
    class TwoLayerNet:
        def __init__(self, rows):
            self.params = {"W1": np.ones((rows, 2))}
        def predict(self, x):
            return sigmoid(np.dot(x, self.params["W1"]))
"""


def test_a_name_replaced_in_a_module_reaches_what_was_served_in_it(tmp_path, monkeypatch):
    text = f"import numpy as np\n{SIGMOID}\n{dedented(NETWORK)}"
    module, _ = adopted(tmp_path, monkeypatch, text, {"TwoLayerNet": NETWORK}, "two_layer_net")
    served = module.TwoLayerNet
    assert issubclass(served, networks.BookTwoLayerNet)
    before = served(2, 2, 2)
    before.params["W1"] = np.ones((3, 2))
    module.sigmoid = np.tanh
    assert type(served(3)) is module.TwoLayerNet
    for net in (before, copy.deepcopy(before), served(3)):
        np.testing.assert_array_equal(net.predict(np.ones(3)), np.tanh([3.0, 3.0]))


def test_nothing_is_said_of_the_second_volume(tmp_path, capfd):
    for name, text in SCRIPTS["the second volume's"].items():
        path = tmp_path / "ch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedented(text))
    assert book.run_script(tmp_path / "ch" / "main.py") == 0
    out, err = capfd.readouterr()
    assert out == "[2.5, 3.0]\n"
    assert err.startswith("\nThe script took")
