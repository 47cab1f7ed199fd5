"""Formulas as MathML, which browsers draw by themselves: MathJax would have to come from the network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it a renderer of Sphinx's ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    code = node.astext().strip()
    if r"\\" in code and r"\begin" not in code:  # lines of Sphinx's directive
        code = rf"\begin{{aligned}}{code}\end{{aligned}}"
    writer.body.append(f'<div class="math">{tex2mathml(code, as_block=True)}</div>\n')
    raise nodes.SkipNode
