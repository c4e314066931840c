"""How Sphinx builds this documentation: ``sphinx-build -W -b html docs docs/_build/html``.

Pages of the public names are generated from the docstrings of the installed package. Nothing is
fetched from the network, neither to build the pages nor to show them.
"""

import shutil
import sys
from pathlib import Path

import fastgrad

here = Path(__file__).parent
sys.path.insert(0, str(here / "_extensions"))
# Pages of names that are gone would be taken for part of the documentation.
shutil.rmtree(here / "api" / "generated", ignore_errors=True)

project = "fastgrad"
author = "The fastgrad developers"
copyright = author
release = version = fastgrad.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "mathml",
    "public_names",
]
default_role = "py:obj"
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"fastgrad {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["fastgrad.css"]
html_show_copyright = False
html_copy_source = False

# Docstrings say more of a type than its annotation: shapes, dtypes and units.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# Where the case of letters is ignored in names of files, `Relu` and `relu` would be one page.
autosummary_filename_map = {
    "fastgrad.relu": "fastgrad.relu_function",
    "fastgrad.sigmoid": "fastgrad.sigmoid_function",
}


def shorten_signature(app, what, name, obj, options, signature, returned):
    """Write defaults as users do."""
    if signature:
        signature = signature.replace("<class 'numpy.float64'>", "np.float64")
        signature = signature.replace("<factory>", "...")
    return signature, returned


def setup(app):
    app.connect("autodoc-process-signature", shorten_signature)
