"""The book: `make book` builds a web site of the notebooks, as they are stored.

Pages need no other host: scripts, fonts and the search lie beside them.
"""

import re

from going_modular.publishing import hosted

project = "The Vision Transformer, rebuilt"
copyright = "the authors, MIT licence"
language = "en"

# The sources are those of the repository, so that its relative links lead somewhere.
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**.md",
    "models/README.md",
    "notebooks/**.ipynb",
]
exclude_patterns = ["build", ".venv", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx-mathjax-offline"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a notebook's sections may start deeper

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"footer_icons": []}
# The first page of the site leads to the first page of the book.
html_extra_path = ["front"]
html_favicon = "static/favicon.svg"
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def as_the_book_has_it(app, name: str, source: list[str]) -> None:
    """What GitHub and the book write in different ways.

    A badge is a picture on another host: here its link is words. A drawing for light
    and for dark pages is `<picture>` there; here the page's own switch decides.
    """
    text = source[0].replace(f"[![Open in Colab]({hosted.BADGE})]", "[Open this notebook in Colab]")
    picture = r'<picture>.*?srcset="(.*?)".*?src="(.*?)" alt="(.*?)">\s*</picture>'
    both = "```{image} \\2\n:class: only-light\n:alt: \\3\n```\n"
    both += both.replace("\\2", "\\1").replace("light", "dark")
    source[0] = re.sub(picture, both, text, flags=re.DOTALL)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", as_the_book_has_it)
