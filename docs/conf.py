"""The site: `make docs`. Every example of every page is run; a warning is an error."""

import os
import re
import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent.resolve()
BUILT = HERE / "_build"
EXPLORED = "explore-embedded.html"  # in the site: explore.html is that of explore.md there
sys.path.insert(0, str(HERE))

import cells  # noqa: E402

project = "sparsekit"
author = "The sparsekit maintainers"
project_copyright = author
version = release = installed("sparsekit")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sparsekit {release}"
html_static_path = ["_static"]
html_css_files = ["sparsekit.css"]
html_show_sourcelink = False
html_domain_indices = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # stored outputs would be those of older code
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_in_temp = True
nb_merge_streams = True
nb_ipywidgets_js: dict = {}  # no requests to the network

default_role = "code"  # what docstrings write in backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# a name in a signature is on the page, or of another library, or one of these, which nobody makes by hand
nitpicky = True
_OTHERS = r"(torch|jaxtyping|pathlib|collections|contextlib|rich)\..*|Tensor|PreTrainedTokenizerFast"
_INNER = (
    r"sparsekit\.(testbed\.(tokenizer\.Tokenizer|sample\.Sample)|registry\.Class|sinks\.Sinks"
    r"|explore\.(pictures\.Grid|collect\.Layer)|integrations\..*\.(Slot|Layer))"
)
nitpick_ignore_regex = [("py:.*", _OTHERS), ("py:.*", _INNER)]
linkcheck_timeout = 20
linkcheck_exclude_documents = [r"results", r"front"]

# of the kernels that run the examples
os.environ |= {"SPARSEKIT_MEASURE": "0", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ["SPARSEKIT_CACHE"] = str(BUILT / "cache")  # times of this machine would decide what runs
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm wants widgets
os.environ.setdefault("OMP_NUM_THREADS", "1")


def read(app, docname, source):
    """Make a page of markdown one whose examples run, and link to the page of explore as to a page."""
    if Path(app.env.doc2path(docname)).suffix == ".md":
        text = re.sub(r"\[([^]]*)\]\(explore\.html\)", rf'<a href="{EXPLORED}">\1</a>', source[0])
        source[0] = cells.as_notebook(text)


def prepare(app):
    """Write what takes the place of a model of the hub, and settings of the kernels that run the examples."""
    os.environ[cells.MODEL] = str(cells.small_model(BUILT / "model"))
    os.environ["IPYTHONDIR"] = str(BUILT / "ipython")
    settings = BUILT / "ipython" / "profile_default" / "ipython_kernel_config.py"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("c.IPKernelApp.log_level = 40\n")  # it warns that it speaks to this machine over TCP


def add_explored(app, error):
    """Put the page that sparsekit explore wrote beside those of the site, one of which has its name."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(HERE / "explore.html", Path(app.outdir) / EXPLORED)


def setup(app):
    app.connect("builder-inited", prepare)
    app.connect("source-read", read)
    app.connect("build-finished", add_explored)
