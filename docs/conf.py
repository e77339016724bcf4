"""Settings of the documentation: `sphinx-build -W -b html docs docs/_build/html`."""

import inspect
import os
import re
from pathlib import Path

import pymc_ensemble

HERE = Path(__file__).parent

project = "pymc_ensemble"
author = "The pymc_ensemble developers"
copyright = author
version = release = pymc_ensemble.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "figures", "**.py"]
templates_path = ["_templates"]

# -- pages ----------------------------------------------------------------------------------------
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- examples: notebooks, which are run when they have changed ------------------------------------
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # matrices of ensembles are small

# -- reference ------------------------------------------------------------------------------------
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections tell the types
autodoc_default_options = {"exclude-members": "default_tune_steps, problem_class, sampler_class"}
default_role = "autolink"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# -- theme ----------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = "pymc_ensemble"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_theme_options = {
    "show_toc_level": 2,
    "header_links_before_dropdown": 8,
    "logo": {
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "text": html_title,
    },
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "pygments_light_style": "friendly",
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
}
html_sidebars = {"index": [], "changelog": []}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's machine
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_show_sourcelink = False


def copy_examples():
    """Put the notebooks among the pages, with links that lead from there to the other pages."""
    folder = HERE / "examples"
    folder.mkdir(exist_ok=True)
    for source in (HERE.parent / "examples").glob("*.md"):
        text = source.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = folder / source.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def link_to_copies(app, docname, source):
    """Links to examples lead to the folder of the notebooks here, and beside the docs on GitHub."""
    source[0] = re.sub(r"\]\(\.\./examples/([^)]*\.md)", r"](examples/\1", source[0])


def signature_of_init(app, what, name, obj, options, signature, returns):
    """Step methods are built by PyMC's ``__new__``, which takes anything."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    parameters = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature(parameters)), returns


def setup(app):
    """Connect what Sphinx has no setting for."""
    copy_examples()
    app.connect("autodoc-process-signature", signature_of_init)
    app.connect("source-read", link_to_copies)
