"""The command line: what it does on real runs, and one clear line for everything that is wrong."""

import importlib.metadata
import os
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from processes import environment_of

import fastgrad
from fastgrad.cli import commands, parser
from fastgrad.nn import optimizers


def run(*arguments):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fastgrad", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of IDX files: images of 8 x 8 pixels, each with a bright row that is its label."""
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 300), ("t10k", 80)):
        labels = rng.integers(5, size=n).astype(np.uint8)
        images = rng.integers(60, size=(n, 8, 8)).astype(np.uint8)
        images[np.arange(n), labels] += 180
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", n, 8, 8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = bytes([0, 0, 8, 1]) + struct.pack(">I", n)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def figures(output, label):
    """Return the numbers of the line that starts with `label`."""
    (line,) = (line for line in output.splitlines() if line.startswith(label))
    return [float(text.replace(",", "")) for text in re.findall(r"\d[\d,.e+-]*", line)]


# wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["train", "extra"], "unrecognized arguments: extra"),
        (["train", "--iterations", "ten"], "--iterations: must be a whole number from 0 on"),
        (["train", "--iterations", "-1"], "must be a whole number from 0 on. Got '-1'"),
        (["train", "--batch-size", "0"], "--batch-size: must be a whole number from 1 on. Got '0'"),
        (["train", "--hidden-size", "2.5"], "--hidden-size: must be a whole number from 1 on"),
        (["train", "--learning-rate", "nan"], "must be a finite number from 0 on. Got 'nan'"),
        (["train", "--learning-rate", "fast"], "must be a finite number from 0 on. Got 'fast'"),
        (["train", "--seed", "4294967296"], "--seed: must be a whole number from 0 to 4294967295"),
        (["train", "--method", "guess"], "--method: invalid choice: 'guess'"),
        (["train", "--optimizer", "lion"], "--optimizer: invalid choice: 'lion'"),
        (["train", "--activation", "tanh"], "--activation: invalid choice: 'tanh'"),
        (["train", "--dtype", "float16"], "--dtype: invalid choice: 'float16'"),
        (["train", "--save"], "--save: expected one argument"),
        (["exercise", "--h", "0"], "--h: must be a finite number above 0. Got '0'"),
        (["exercise", "--h=-1e-4"], "--h: must be a finite number above 0. Got '-1e-4'"),
        (["exercise", "--h", "inf"], "--h: must be a finite number above 0. Got 'inf'"),
        (["exercise", "--sample", "0"], "--sample: must be a whole number from 1 on"),
        (["exercise", "--sample", "5", "--full"], "not allowed with argument"),
        (["exercise", "--data", "no-such-folder"], "'no-such-folder', which is missing"),
        (["train", "--save", "no-such-folder/a.npz"], "the folder 'no-such-folder' does not exist"),
        (["train", "--plot", "no-such-folder/a.png"], "the folder 'no-such-folder' does not exist"),
        (["train", "--plot", "."], "--plot: '.' is a folder."),
        (["train", "--plot", "curves.doc"], "--plot: must end in one of eps, "),
        (["train", "--hidden-size", "10000000000000"], "allocate"),
        (["run"], "the following arguments are required: SCRIPT"),
        (["run", "nope.py"], "error: No such file or directory: 'nope.py'"),
        (["run", "--serve", "lib.net", "a.py"], "--serve: must be NAME=MODULE. Got 'lib.net'."),
        (["run", "--serve", "lib.net=net", "a.py"], "`serve` must give modules among"),
        (["run", "--compare", "0", "a.py"], "--compare: must be a finite number above 0. Got '0'"),
    ],
)  # fmt: skip
def test_wrong_arguments_end_in_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser.main(arguments)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert re.fullmatch(r"(fastgrad \d.*\n)?", out)
    err = re.sub(r"^fastgrad: (compiling|running) .*\n", "", err)
    assert err.startswith("fastgrad")
    assert err.count(": error: ") == 1
    assert all(len(line) <= 80 for line in err.splitlines())
    assert message in " ".join(err.split())


def test_a_damaged_data_set_ends_in_one_sentence(digits, tmp_path, capsys):
    for file in digits.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SystemExit) as exit_:
        parser.main(["exercise", "--data", str(tmp_path)])
    assert exit_.value.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert re.fullmatch(r"fastgrad exercise: error: .*-ubyte' must hold .*", err)


def test_a_folder_in_place_of_a_file_is_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parser.main(["train", "--save", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err


def test_plot_without_matplotlib_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)  # importing it raises
    with pytest.raises(SystemExit) as exit_:
        parser.main(["train", "--plot", "picture.png"])
    assert exit_.value.code == 2
    assert "pip install 'fastgrad[plot]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["exercise", "train", "warmup", "run"])
def test_a_first_line_before_the_imports(command, tmp_path):
    (tmp_path / "a.py").write_text("import numpy")
    code = (
        "import sys\n"
        "sys.modules['numpy'] = sys.modules['numba'] = None  # importing them raises\n"
        "from fastgrad.cli import parser\n"
        f"parser.main([{command!r}, *{['a.py'] * (command == 'run')}])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment_of(), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert "ModuleNotFoundError" in result.stderr
    if command == "run":  # stdout belongs to the script
        assert result.stderr.startswith("fastgrad: running a.py\n")
        assert result.stdout == ""
    else:
        versions = map(importlib.metadata.version, ("fastgrad", "numpy", "numba"))
        assert re.findall(r"[\d.]+", result.stdout)[:1] == [next(versions)]
        assert all(number in result.stdout for number in versions)


def test_the_optimizers_are_those_of_the_library():
    assert tuple(optimizers.BY_NAME) == parser.OPTIMIZERS


def test_in_a_process_of_its_own_too():
    result = run("train", "--iterations", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("fastgrad train: error: argument --iterations: must be")
    assert "Traceback" not in result.stderr


# help, version, info ---------------------------------------------------------------------------


def test_without_arguments_it_helps(capsys):
    assert parser.main([]) == 0
    out, err = capsys.readouterr()
    assert all(command in out for command in ("exercise", "train", "warmup", "info"))
    assert err == ""


@pytest.mark.parametrize("command", ["exercise", "train", "run", "warmup", "info"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser.main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: fastgrad {command}" in capsys.readouterr().out


def test_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit):
        parser.main(["--version"])
    assert capsys.readouterr().out.split() == ["fastgrad", fastgrad.__version__]


def test_info(capsys):
    assert parser.main(["info"]) == 0
    out = capsys.readouterr().out
    lines = re.sub(r"\n {17}", "  ", out).splitlines()  # long ones go on below
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines)
    for package in ("numpy", "numba", "llvmlite"):
        assert told[package] == importlib.metadata.version(package)
    assert told["threading layer"] in ("tbb", "omp", "workqueue")
    assert int(told["threads"]) >= 1
    assert told["processor"]
    assert re.search(r"\((writable|read-only)\)$|^none: ", told["kernel cache"])
    assert all(len(line) <= 80 or " " not in line.strip() for line in out.splitlines())


# exercise --------------------------------------------------------------------------------------


def test_exercise_on_mnist():
    result = run("exercise", "--hidden-size", 5, "--batch-size", 10, "--sample", 80, "--seed", 1)
    assert result.returncode == 0, result.stderr
    assert all(line.startswith("fastgrad: compiling") for line in result.stderr.splitlines())
    out = result.stdout
    assert "TwoLayerNet 784-5-10, sigmoid, float64: 3,985 parameters" in out
    assert "batch of 10 random MNIST digits, seed 1" in out
    assert "estimated: 3,985 times the fastest of 80 random parameters" in out.replace("\n", " ")
    assert max(map(len, [*out.splitlines(), *result.stderr.splitlines()])) <= 80
    ratio = re.search(r"numerical_gradient is [\d,.]+ times faster than the textbook", out)
    assert (ratio is None) == ("no ratio is printed" in out.replace("\n", " "))
    assert "The rows of the textbook loop cover 80 random parameters." in out
    digits = {}
    for method in ("textbook loop", "numerical_gradient"):
        for h in (1e-4, 1e-6):
            _, *errors, common = figures(out, f"h = {h:g}, {method}")
            assert len(errors) == 4
            assert common == pytest.approx(-np.log10(max(errors)), abs=0.1)
            digits[method, h] = common
    # What the smaller step costs the one, the other wins.
    assert digits["textbook loop", 1e-4] > max(6, digits["textbook loop", 1e-6] + 1)
    assert digits["numerical_gradient", 1e-4] > 7
    assert digits["numerical_gradient", 1e-6] > digits["numerical_gradient", 1e-4] + 3


def test_exercise_in_full(digits, capsys, monkeypatch):
    monkeypatch.setattr(commands, "_BAR_DELAY", 0)
    arguments = ["exercise", "--full", "--hidden-size", "3", "--batch-size", "4", "--h", "1e-5"]
    assert parser.main([*arguments, "--data", str(digits)]) == 0
    out, err = capsys.readouterr()
    assert "TwoLayerNet 64-3-5, sigmoid, float64: 215 parameters" in out
    assert "batch of 4 random images" in out
    assert "all parameters, start to end" in out
    assert "estimated" not in out
    assert "cover" not in out
    assert "215/215" in err  # the progress bar


def test_a_quick_textbook_loop_shows_no_bar(digits, capsys):
    arguments = ["--sample", "5", "--hidden-size", "3", "--h", "1e-3", "1e-5"]
    assert parser.main(["exercise", "--data", str(digits), *arguments]) == 0
    out, err = capsys.readouterr()
    assert "textbook" not in err
    assert re.findall(r"^h = (\S+), textbook", out, flags=re.M) == ["0.001", "1e-05"]


def test_exercise_leaves_out_the_kinks_of_relu(digits, capsys):
    arguments = ["exercise", "--activation", "relu", "--h", "0.003", "--seed", "2"]
    assert parser.main([*arguments, "--data", str(digits)]) == 0
    out = capsys.readouterr().out
    assert "whose ±h reaches a kink of ReLU" in out
    *_, digits_in_common = figures(out, "h = 0.003, numerical_gradient")
    assert digits_in_common > 4


def test_exercise_in_float32(digits, capsys):
    assert parser.main(["exercise", "--dtype", "float32", "--data", str(digits)]) == 0
    out = capsys.readouterr().out
    *_, digits_in_common = figures(out, "h = 0.0001, numerical_gradient")
    assert digits_in_common > 4


@pytest.mark.parametrize(("factor", "difference", "common"), [(1.001, 1e-3, 3.0), (4, 3.0, 0.0)])
def test_differences_are_found(factor, difference, common, digits, capsys, monkeypatch):
    """A wrong numerical gradient must show; of digits there are none below zero."""
    right = fastgrad.TwoLayerNet.numerical_gradient

    def wrong(self, *arguments):
        return {name: factor * array for name, array in right(self, *arguments).items()}

    monkeypatch.setattr(fastgrad.TwoLayerNet, "numerical_gradient", wrong)
    assert parser.main(["exercise", "--data", str(digits)]) == 0
    out = capsys.readouterr().out
    assert figures(out, "h = 0.0001, numerical_gradient") == [1e-4, *[difference] * 4, common]


# train -----------------------------------------------------------------------------------------


def test_train_a_convnet(digits, tmp_path, capsys):
    arguments = ["--network", "convnet", "--data", str(digits), "--iterations", "60"]
    files = ["--save", str(tmp_path / "net.npz"), "--plot", str(tmp_path / "net.png")]
    assert parser.main(["train", *arguments, *files, "--batch-size", "20", "--seed", "0",
                     "--learning-rate", "0.01"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert figures(out, "test accuracy")[0] > 50
    assert "60 iterations of gradient, batches of 20 out of 300 images, adam" in (
        out.replace("\n", " ")
    )
    net = fastgrad.book.SimpleConvNet.load(tmp_path / "net.npz")
    assert net.params["W3"].shape == (100, 5)
    assert (tmp_path / "net.png").stat().st_size > 1000


def test_train(digits, tmp_path):
    network, picture = tmp_path / "net.npz", tmp_path / "curves.png"
    result = run(
        "train", "--data", digits, "--iterations", 100, "--batch-size", 30, "--hidden-size", 8,
        "--learning-rate", 1.5, "--seed", 3, "--save", network, "--plot", picture,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "100/100" in result.stderr  # the progress bar
    assert picture.read_bytes().startswith(b"\x89PNG")

    # The same run as the book would have written it.
    np.random.seed(3)
    (x, t), test = fastgrad.load_mnist(path=digits)
    net = fastgrad.TwoLayerNet(64, 8, 5)
    history = net.fit(x, t, iterations=100, batch_size=30, learning_rate=1.5, validation=test)
    saved = fastgrad.TwoLayerNet.load(network)
    for name, array in net.params.items():
        np.testing.assert_allclose(saved.params[name], array, rtol=1e-12)
    table = result.stdout.partition("epoch  ")[2].splitlines()[1:11]
    for epoch, line in enumerate(table):
        train, test_accuracy = history.train_accuracy[epoch], history.test_accuracy[epoch]
        assert line.split() == [f"{epoch}", f"{train:.2%}", f"{test_accuracy:.2%}"]
    assert f"test accuracy {net.accuracy(*test):.2%}" in result.stdout
    assert net.accuracy(*test) > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"])
def test_every_optimizer(optimizer, digits, capsys):
    arguments = ["--iterations", "30", "--batch-size", "20", "--activation", "relu", "--seed", "1"]
    assert parser.main(["train", "--data", str(digits), "--optimizer", optimizer, *arguments]) == 0
    out = capsys.readouterr().out
    default = {"sgd": 0.1, "adam": 0.001}.get(optimizer, 0.01)
    assert f"{optimizer}, learning rate {default:g}, seed 1" in out.replace("\n", " ")


def test_both_methods_learn_the_same(digits, tmp_path, capsys):
    for method in ("gradient", "numerical_gradient"):
        arguments = ["--method", method, "--iterations", "20", "--hidden-size", "4", "--seed", "1"]
        save = ["--save", str(tmp_path / method)]
        assert parser.main(["train", "--data", str(digits), *arguments, *save]) == 0
    backward, numerical = (
        fastgrad.TwoLayerNet.load(tmp_path / f"{method}.npz").params
        for method in ("gradient", "numerical_gradient")
    )
    for name, array in backward.items():
        np.testing.assert_allclose(numerical[name], array, atol=1e-8)


def test_no_iterations(digits, tmp_path, capsys):
    picture = tmp_path / "curves"
    arguments = ["--iterations", "0", "--plot", str(picture)]
    assert parser.main(["train", "--data", str(digits), *arguments]) == 0
    assert "0 iterations" in capsys.readouterr().out
    assert (tmp_path / "curves.png").exists()


def test_a_picture_is_of_the_kind_that_its_name_says(digits, tmp_path, capsys):
    picture = tmp_path / "curves.jpg"
    arguments = ["--iterations", "0", "--plot", str(picture)]
    assert parser.main(["train", "--data", str(digits), *arguments]) == 0
    assert picture.read_bytes().startswith(b"\xff\xd8")
    assert list(tmp_path.iterdir()) == [picture]


def test_a_diverging_run_warns_in_one_line(digits):
    result = run(
        "train", "--data", digits, "--learning-rate", 1e200, "--activation", "relu",
        "--iterations", 20,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "fastgrad: warning: the loss is not finite" in result.stderr
    assert ".py:" not in result.stderr


# signals and pipes -----------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_keeps_what_was_learned(digits, tmp_path):
    arguments = ["--iterations", "1000000000", "--learning-rate", "1", "--batch-size", "30"]
    save = ["--save", str(tmp_path / "net.npz"), "--plot", str(tmp_path / "curves.png")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgrad", "train", "--data", str(digits), *arguments, *save],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    seen = ""
    try:
        while "test=0.9" not in seen and "test=1.0" not in seen:
            letter = process.stderr.read(1)
            assert letter, seen
            seen += letter
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "fastgrad: interrupted after" in err
    net = fastgrad.TwoLayerNet.load(tmp_path / "net.npz")
    _, test = fastgrad.load_mnist(path=digits)
    assert f"test accuracy {net.accuracy(*test):.2%}" in out
    assert net.accuracy(*test) > 0.85
    assert (tmp_path / "curves.png").exists()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("command", ["exercise", "train"])
def test_ctrl_c_while_kernels_compile(command, digits, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgrad", command, "--data", str(digits)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1", "PYTHONIOENCODING": "utf-8"},
    )
    try:
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert line.startswith("fastgrad: compiling kernels for ")
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "test accuracy" not in out


def test_ctrl_c_elsewhere(monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastgrad, "load_mnist", interrupted)
    assert parser.main(["exercise"]) == 130


def test_a_second_ctrl_c_keeps_what_was_learned(digits, tmp_path, monkeypatch, capsys):
    def interrupted(self, *_, **__):
        self.params["b1"][:] = 7
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "compile_ahead", lambda *_: 0.0)  # it calls `fit`, too
    monkeypatch.setattr(fastgrad.TwoLayerNet, "fit", interrupted)
    file = tmp_path / "net.npz"
    assert parser.main(["train", "--data", str(digits), "--save", str(file)]) == 130
    assert (fastgrad.TwoLayerNet.load(file).params["b1"] == 7).all()


@pytest.mark.skipif(os.name != "posix", reason="about pipes of POSIX")
def test_a_broken_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "fastgrad", "info"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=900,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")
