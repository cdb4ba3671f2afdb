"""Make wide tables readable on phones, where their rows are stacked instead of scrolled sideways.

A table that needs more than the width of a phone gets the class `stack`, and each of its cells the
name of its column. `site.css` hides these names on wide screens, and on narrow ones the heads.
"""

from docutils import nodes

PHONE = 358
"""Pixels that a page has for a table on a screen of 390."""
LETTER, PADDING = 6.8, 16
"""Pixels of a letter, and of the space around a cell."""


def stack(app, doctree, name):
    """Mark the wide tables of a page, and name their cells."""
    for table in doctree.findall(nodes.table):
        head, body = next(table.findall(nodes.thead), None), next(table.findall(nodes.tbody))
        if head is None or _narrowest([*head, *body]) <= PHONE:
            continue
        table["classes"].append("stack")
        columns = head[-1]
        for row in body:
            for column, cell in list(zip(columns, row, strict=True))[1:]:
                if not cell.astext():
                    cell["classes"].append("empty")
                    continue
                label = nodes.paragraph(classes=["column"])
                label += [child.deepcopy() for paragraph in column for child in paragraph]
                cell.insert(0, label)


def _narrowest(rows):
    """Return the width below which a table of rows cannot be made, from its longest words."""
    words = [max(len(word) for cell in column for word in cell.astext().split() or [""])
             for column in zip(*rows, strict=True)]  # fmt: skip
    return sum(LETTER * word + PADDING for word in words)


def setup(app):
    """Work on pages after their links are resolved."""
    app.connect("doctree-resolved", stack)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
