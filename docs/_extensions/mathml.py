"""Formulas as MathML, which browsers show without scripts, fonts or pictures from elsewhere.

The conversion is that of docutils, which Sphinx rests on.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

#: What docutils would read otherwise than LaTeX does.
_SPELLINGS = (
    (re.compile(r"\\frac(\w)(\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"'+"), lambda primes: "^{" + r"\prime" * len(primes[0]) + "}"),
)


def converted(node: nodes.Element, *, block: bool) -> str:
    """Return a node's formula as MathML; warn where it is not understood."""
    formula = node.astext()
    for spelling, replacement in _SPELLINGS:
        formula = spelling.sub(replacement, formula)
    try:
        return tex2mathml(formula, as_block=block)
    except MathError as error:
        logger.warning("formula %r: %s", formula, error, location=node)
        return ""


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula in the text."""
    writer.body.append(converted(node, block=False))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    writer.body.append(f'<div class="formula">{converted(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
