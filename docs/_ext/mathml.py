"""Write formulae as MathML when the site is built, so that pages load no script for them."""

import re

from docutils import nodes
from latex2mathml.converter import convert

_BAR = "<mo>&#x0007C;</mo>"
_THIN = '<mspace width="0.167em"/>'
_FUNCTION = re.compile(r"(</mi>)?(<mi>(?:ln|cos)</mi>)(?=<mi>)")
"""A function before its argument, and after a factor such as the d of a derivative."""
_BOLD = re.compile(r'<mi mathvariant="bold">([A-Za-z])</mi>')


def _mathml(formula, display):
    """Return a formula; bold letters are characters of their own, as browsers want them."""
    found = convert(formula, display=display)
    found = _BOLD.sub(lambda match: f"<mi>{_bold(match[1])}</mi>", found)
    # Browsers take bars for relations, and stretch one that has an exponent out of its line.
    found = found.replace(_BAR, '<mo stretchy="false" lspace="0" rspace="0">|</mo>')
    return _FUNCTION.sub(
        lambda match: f"{match[1]}{_THIN}{match[2]}{_THIN}" if match[1] else f"{match[2]}{_THIN}",
        found,
    )


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
