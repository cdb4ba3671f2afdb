"""Lead links that leave `docs/` to pages of the site, or to the repository.

Pages are read in the repository too, where such links are right as they are.
"""

import re

SOURCE = "https://github.com/cosmoflow/cosmoflow/blob/main/"
PAGES = {"CONTRIBUTING.md": "/contributing.md", "cluster/README.md": "/howto/cluster-files.md"}
"""Files outside of `docs/` that pages of the site include."""
_LINK = re.compile(r"\]\((?:\.\./)+([^)#\s]+)(#[^)\s]*)?\)")


def lead(app, name, source):
    """Rewrite the links of a page."""
    folder = name.rpartition("/")[0]

    def replace(link):
        target, anchor = link[1], link[2] or ""
        if link[0].count("../") <= folder.count("/") + bool(folder):
            return link[0]
        return f"]({PAGES[target]}{anchor})" if target in PAGES else f"]({SOURCE}{target}{anchor})"

    source[0] = _LINK.sub(replace, source[0])


def setup(app):
    """Rewrite links before a page is parsed."""
    app.connect("source-read", lead)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
