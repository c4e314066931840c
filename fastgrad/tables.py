"""Tables: as text of at most 80 columns, and as HTML for notebooks."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

__all__ = ["WIDTH", "html_table", "text_table", "wrapped"]

#: The usual width of a terminal, in columns.
WIDTH = 80

_GAP = "  "
#: What is cut where a table is too wide: columns, in this order, down to so many characters.
_CUTS = ((0, 16), (-1, 12), (0, 5))


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return a table as lines of at most 80 columns.

    Parameters
    ----------
    head : sequence of str
        The titles.
    rows : sequence of sequence of str
        The cells.
    align : str
        For each column "l" (left) or "r" (right).

    Returns
    -------
    str
        Where the table is too wide, cells of the last column continue on further lines, and long
        cells of the first column lose their middle.

    Examples
    --------
    >>> print(text_table(("epoch", "test"), [("0", "9.80%"), ("1", "90.08%")], "lr"))
    epoch    test
    0       9.80%
    1      90.08%
    """
    lines = [list(row) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for column, least in _CUTS:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - WIDTH
        if excess > 0 and align[column] == "l":
            widths[column] = max(widths[column] - excess, min(least, widths[column]))
    text = []
    for row in lines:
        row[0] = _shortened(row[0], widths[0])
        last = textwrap.wrap(row[-1], widths[-1]) or [""]
        for number, part in enumerate(last):
            cells = [*(row[:-1] if number == 0 else [""] * (len(row) - 1)), part]
            text.append(_GAP.join(
                cell.ljust(width) if side == "l" else cell.rjust(width)
                for cell, width, side in zip(cells, widths, align, strict=True)
            ).rstrip())  # fmt: skip
    return "\n".join(text)


def _shortened(text: str, width: int) -> str:
    """Return a text without its middle where it is too long."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table as HTML, with a line below it.

    Parameters
    ----------
    head : sequence of str
        The titles.
    rows : sequence of sequence of str
        The cells.
    caption : str, optional
        The line below.

    Returns
    -------
    str

    Examples
    --------
    >>> html_table(["a"], [["1 < 2"]])
    '<table><tr><th>a</th></tr><tr><td>1 &lt; 2</td></tr></table>'
    """
    lines = [_html_row("th", head), *(_html_row("td", row) for row in rows)]
    below = f"<p>{html.escape(caption)}</p>" if caption else ""
    return f"<table>{''.join(lines)}</table>{below}"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def wrapped(text: str, between: str = " ") -> str:
    """Return a paragraph in lines of at most 80 columns.

    Parameters
    ----------
    text : str
    between : str, optional
        Where lines are broken if possible; parts longer than a line are broken between words.

    Returns
    -------
    str

    Examples
    --------
    >>> len(wrapped("word " * 30).splitlines())
    2
    >>> print(wrapped(f"{'a ' * 30}; {'b ' * 30}", between="; ").replace(" ", "")[-32:])
    ;
    bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
    """
    first, *others = text.split(between) if between != " " else [text]
    lines = [first]
    for part in others:
        if len(lines[-1] + between + part) < WIDTH:
            lines[-1] += between + part
        else:
            lines[-1] += between.rstrip()
            lines.append(part)
    return "\n".join(
        textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines
    )
