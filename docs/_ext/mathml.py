"""Formulas as MathML, which browsers draw themselves: no script, no network.

The converter is the one of docutils. It knows the usual part of LaTeX; a formula that it does not
know is a warning, and so fails the build.
"""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)


def convert(node: nodes.Element, *, block: bool) -> str:
    """Return the MathML of a formula, or its LaTeX and a warning."""
    code = node.astext()
    try:
        return tex2mathml(code, as_block=block)
    except MathError as error:
        logger.warning("%s in %s", error, code, location=node)
        return f"<code>{escape(code)}</code>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(convert(node, block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(convert(node, block=True))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Make ``html_math_renderer = "mathml"`` possible."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
