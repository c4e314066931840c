"""README.ja.md says what README.md says: the same sections, commands, code, numbers and links."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent

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

    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    return [ast.dump(Strings().visit(ast.parse(block))) for block in blocks]


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
    english, japanese = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md")
    )
    assert part(english)
    assert part(english) == part(japanese)


def test_links_lead_somewhere():
    for name in ("README.md", "README.ja.md", "examples/README.md"):
        file = FOLDER / name
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{name}: {link}"
