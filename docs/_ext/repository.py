"""Lead links that leave `docs/` to pages of the site, or to the repository.

Pages are read in the repository too, where such links are right as they are. A page that consists
of a file outside of `docs/` includes it; the links of that file are led in the same way.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath

ROOT = Path(__file__).parents[2]
SOURCE = "https://github.com/cosmoflow/cosmoflow/blob/main/"
PAGES = {"CONTRIBUTING.md": "contributing.md", "cluster/README.md": "howto/cluster-files.md"}
"""Files outside of `docs/`, and the pages that include them."""
_INCLUDE = re.compile(r"^```\{include\} (\.\./\S+)\n```$", re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")


def lead(app, name, source):
    """Replace the links, and the inclusions of files outside of `docs/`, of a page."""
    folder = dirname(join("docs", name))

    def include(match):
        path = normpath(join(folder, match[1]))
        app.env.note_dependency(str(ROOT / path))
        return _lead((ROOT / path).read_text(), dirname(path))

    text = _lead(source[0], folder)
    source[0] = _INCLUDE.sub(include, text)


def _lead(text, folder):
    """Return a text, of a file in a folder of the repository, with its links led."""

    def replace(match):
        path, anchor = normpath(join(folder, match[1])), match[2] or ""
        if path.startswith("docs/"):
            # Links from page to page stay as they are.
            return match[0] if folder.startswith("docs") else f"](/{path[5:]}{anchor})"
        return f"](/{PAGES[path]}{anchor})" if path in PAGES else f"]({SOURCE}{path}{anchor})"

    return _LINK.sub(replace, text)


def setup(app):
    """Work on pages before they are parsed."""
    app.connect("source-read", lead)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
