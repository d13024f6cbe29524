"""How the site is built: ``sphinx-build -n -W -b html docs docs/_build/html``, without network."""

import sys
from pathlib import Path

from sphinx.ext import autosummary

from vitkit import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "vitkit"
author = "vitkit contributors"
copyright = "vitkit contributors"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "generated",  # docs/_ext
    "mathml",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

autodoc_default_options = {"exclude-members": "model_config"}  # pydantic's
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say more: shapes
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)  # which does not end the first sentence
autosummary_ignore_module_all = False
numpydoc_show_class_members = False  # autodoc shows them in full
numpydoc_xref_param_type = False

# Types of others, which have no page here; the build uses no network to find theirs.
nitpick_ignore = [
    ("py:class", "abc.ABC"),
    ("py:class", "collections.abc.Callable"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "numpy.ndarray"),
    ("py:class", "numpy.random._generator.Generator"),
    ("py:class", "vitkit.optim.moments.Moments"),  # a base that has no page of its own
]

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["vitkit.css"]
html_title = "vitkit"
html_copy_source = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {page: [] for page in ("cli", "concepts/*", "notation", "changelog")}
