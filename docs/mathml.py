"""Formulas as MathML, which browsers draw by themselves: MathJax would have to come from the network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)
#: What docutils does not know: sizes of brackets, which MathML finds itself, and the numbers of formulas.
SIZE, NUMBER = re.compile(r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![a-zA-Z])"), re.compile(r"\\tag\{(.*?)\}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it a renderer of Sphinx's ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    code = node.astext().strip()
    if r"\\" in code and r"\begin" not in code:  # lines of Sphinx's directive
        code = rf"\begin{{aligned}}{code}\end{{aligned}}"
    writer.body.append(f'<div class="math-wrapper">{_mathml(node, code)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, code: str) -> str:
    code = NUMBER.sub(r"\\qquad\\text{(\1)}", SIZE.sub("", code))
    try:
        return tex2mathml(code, as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logger.warning("formula %s: %s", code, error, location=node)
        return ""
