"""README.ja.md says what README.md says: the same sections, commands, code, numbers and links.

What they print also works. Their Python runs here; their commands, which install the project anew,
run in .ci/run, and here is checked only that the command line takes them.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest

from fastgrad import book
from fastgrad.cli import parser

FOLDER = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.ja.md")

pytestmark = pytest.mark.skipif(
    not (FOLDER / "README.ja.md").is_file(), reason="the READMEs are part of the repository"
)


def headings(text):
    """The levels of the headings."""
    return re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)


def commands(text):
    """The lines of the shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


def code(text):
    """The Python blocks, without comments and with their strings left out."""

    class Strings(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.Constant("") if isinstance(node.value, str) else node

        def visit_JoinedStr(self, node):
            kept = [value for value in node.values if isinstance(value, ast.FormattedValue)]
            return ast.JoinedStr(kept)

    return [ast.dump(Strings().visit(ast.parse(block))) for block in python_blocks(text)]


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def numbers(text):
    """The numbers of every row of the tables."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [re.findall(r"\d+(?:[.,]\d+)*", row) for row in rows]


def links(text):
    """Where links lead to, each README's link to the other left out."""
    found = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(set(found) - {"README.md", "README.ja.md"})


@pytest.mark.parametrize("part", [headings, commands, code, numbers, links])
def test_readmes_agree(part):
    english, japanese = ((FOLDER / name).read_text(encoding="utf-8") for name in READMES)
    assert part(english)
    assert part(english) == part(japanese)


def test_code_runs_as_printed(tmp_path, monkeypatch, capsys):
    """Each block as a script of its own, in a scratch folder. Both READMEs have the same code."""
    monkeypatch.chdir(tmp_path)
    english, japanese = ((FOLDER / name).read_text(encoding="utf-8") for name in READMES)
    library, by_hand, own_functions = python_blocks(english)
    exec(library, {"__name__": "__main__"})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "(784, 50)"
    assert 94 < float(re.search(r"[\d.]+(?=%)", last).group()) < 96
    script = tmp_path / "by_hand.py"
    script.write_text(by_hand, encoding="utf-8")
    assert book.run_script(script) == 0
    script.unlink()
    out, err = capsys.readouterr()
    assert out == "(784, 100)\n"
    told = re.search(r"numerical_gradient in .*\n  .*cross entropy\),", err).group()
    for text in (english, japanese):
        assert told.replace("\n", "\n    ") in text
    exec(own_functions, {"__name__": "__main__"})
    assert capsys.readouterr().out.split("\n") == ["[6. 8.]", "False", ""]
    assert not list(tmp_path.iterdir())


def test_commands_are_those_of_the_command_line():
    for line in commands((FOLDER / "README.md").read_text(encoding="utf-8")):
        for command in line.split(" && "):
            program, *arguments = shlex.split(command)
            if program == ".venv/bin/fastgrad":
                assert parser.argument_parser().parse_args(arguments).command
            else:
                assert (program, *arguments[:2]) in (
                    ("python3", "-m", "venv"), (".venv/bin/pip", "install", "-e"),
                    (".venv/bin/pytest",),
                )  # fmt: skip


def test_links_lead_somewhere():
    for name in (*READMES, "examples/README.md"):
        file = FOLDER / name
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{name}: {link}"
