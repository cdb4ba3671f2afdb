"""Write formulae as MathML when the site is built, so that pages load no script for them."""

import re

from docutils import nodes
from latex2mathml.converter import convert

_BOLD = re.compile(r'<mi mathvariant="bold">([A-Za-z])</mi>')


def _mathml(formula, display):
    """Return a formula; bold letters are characters of their own, as browsers want them."""
    found = convert(formula, display=display)
    return _BOLD.sub(lambda match: f"<mi>{_bold(match[1])}</mi>", found)


def _bold(letter):
    first = 0x1D400 - ord("A") if letter.isupper() else 0x1D41A - ord("a")
    return chr(first + ord(letter))


def _inline(translator, node):
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="formula notranslate"))
    translator.body.append(_mathml(node.astext(), "block"))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
