"""Every example runs from another folder, draws what it says, and prints the book's numbers."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the examples are part of the repository, not of the package"
)

#: What must come out, in this order.
PRINTED = {
    "gates": ["0  0     0     1     0     0", "1  1     1     0     1     0"],
    "three_layer_network": ["[0.31682708 0.69627909]", "accuracy", "in batches of 100"],
    "losses": ["0.0975", "0.510825457099", "0.5975", "2.302584092995"],
    "mini_batch": ["(10, 784) (10, 10)", "60,000 images"],
    "by_hand": [
        "(784, 100) after",
        "numerical_gradient in TwoLayerNet.numerical_gradient: by the compiled kernels",
    ],
    "simple_net": ["[-0.74279207 -0.82127971  0.87053506]", "loss: 0.32455034"],
    "buy_apple": ["220 yen", "2.2", "110", "200", "715 yen", "3.3", "165", "650"],
    "gradient_check": ["W1: ", "b2: ", "verdict"],
    "optimizer_compare_naive": ["SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"],
}


def draws(script):
    """Return whether an example draws a picture."""
    return "--output" in script.read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example with small sizes, in an empty folder; return what it printed."""

    def run(script):
        code = script.read_text(encoding="utf-8")
        arguments = ["--quick"] if "--quick" in code else []
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example(script, run, tmp_path):
    out = run(script)
    position = 0
    for text in PRINTED.get(script.stem, []):
        assert text in out[position:], out
        position = out.index(text, position) + len(text)
    lines = [line for line in out.splitlines() if not line.startswith("fastgrad ")]
    assert max(map(len, lines), default=0) <= 80
    if draws(script):
        assert out.endswith(f"drawn: pictures/{script.stem}.png\n")
        (picture,) = (tmp_path / "pictures").iterdir()
        assert picture.name == f"{script.stem}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"] * draws(script)


def test_output_says_where_the_picture_goes(monkeypatch, tmp_path):
    picture = tmp_path / "other.png"
    monkeypatch.setattr(sys, "argv", ["activations.py", "--output", str(picture)])
    runpy.run_path(str(FOLDER / "activations.py"), run_name="__main__")
    assert picture.stat().st_size > 1000


def test_the_readme_shows_every_example_and_picture():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert f"({script.name})" in text
        if draws(script):
            assert f"(images/{script.stem}.png)" in text
    for picture in (FOLDER / "images").iterdir():
        assert f"(images/{picture.name})" in text
        assert picture.stat().st_size < 150_000
