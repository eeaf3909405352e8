"""Sphinx, as `make docs` runs it.

The source folder is the repository, so that one link is right here and where files are browsed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from medsam_tune import __version__

sys.path.insert(0, str(Path(__file__).parent))  # extension.py

project = "medsam_tune"
copyright = "the authors of medsam_tune"
version = release = __version__
root_doc = "README"
include_patterns = [
    *("docs/**", "tutorials/*", "benchmarks/results/*.md", "bundles/*/docs/*.md"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    "medsam_tune/sam/weights/README.md",
]
exclude_patterns = [".*", "build", "dist", "demo", "docs/sphinx"]
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"),
    "extension",
]

myst_heading_anchors = 4  # links such as page.md#a-heading, as GitHub makes them
myst_enable_extensions = ["colon_fence"]
napoleon_use_ivar = True  # attributes once: as the docstring lists them
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
highlight_language = "text"  # of blocks that name none
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"medsam_tune {version}"
html_extra_path = ["redirect"]  # the site's own index.html
html_static_path = ["style"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db4ec", "color-brand-content": "#7db4ec"},
}
