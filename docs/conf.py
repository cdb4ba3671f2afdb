"""Build the documentation site: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import cosmoflow  # noqa: E402

project = "cosmoflow"
author = "The cosmoflow developers"
copyright = author
release = version = cosmoflow.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
    "generated",
    "repository",
    "tables",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_checks", "_ext", "_templates", "reference/made", "requirements.txt"]
root_doc = "index"
if not (HERE / "licences.md").exists():
    # The list of licences is made by a lane of CI.
    exclude_patterns.append("licences.md")
    suppress_warnings = ["toc.excluded"]
language = "en"

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# All references stay within the site; links to other sites are not opened by the build.
nitpicky = True
# Types in signatures are those of NumPy, xarray and Python, whose sites the build does not ask.
nitpick_ignore_regex = [("py:(class|obj|data)", r".*")]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_theme = "pydata_sphinx_theme"
html_title = f"cosmoflow {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
# An index of modules would list what few pages of Python functions name.
html_domain_indices = False
html_theme_options = {
    "logo": {"text": "cosmoflow"},
    "navbar_center": [],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "icon_links": [],
}
html_sidebars = {"**": ["pages"]}
