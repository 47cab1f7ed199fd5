"""The documentation, built by Sphinx: ``make docs``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

from sb3_softmod import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for mathml.py
# The notebooks are pages too; Sphinx reads what lies below its own folder alone.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)  # of before, which may have had other names
for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    (HERE / "notebooks").mkdir(exist_ok=True)
    shutil.copyfile(notebook, HERE / "notebooks" / notebook.name)

project = "sb3_softmod"
author = "The authors of sb3_softmod"
copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "mathml",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"sb3_softmod {__version__}"
html_static_path = ["_static"]
html_css_files = ["mathml.css"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they hold the outputs of real runs; tests/test_notebooks.py runs them

autodoc_typehints = "none"  # the signatures say them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"  # no __init__ here has a text of its own, but those of torch have
python_use_unqualified_type_names = True
