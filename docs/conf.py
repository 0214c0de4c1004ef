"""The book: `make book` builds a web site of the notebooks with their stored outputs.

Its pages ask no other host. Scripts, fonts and the search index lie beside them.
"""

import re

from going_modular.publishing import hosted

project = "The Vision Transformer, rebuilt"
copyright = "the authors, MIT licence"
language = "en"

# The root of the sources is the repository's, so that its relative links work.
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**.md",
    "going_modular/pretrained/README.md",
    "notebooks/**.ipynb",
]
exclude_patterns = ["build", ".venv", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx-mathjax-offline"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a notebook's first heading may be of level 2

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


def adapt_to_the_book(app, name: str, source: list[str]) -> None:
    """Rewrite what works on GitHub and not in the book.

    A badge is a picture on another host, so the book links words instead. Folders have
    no page in it, so their names stand without links. On GitHub, `<picture>` chooses
    between a light and a dark drawing. In the book, the switch on the page chooses.
    """
    text = source[0].replace(f"[![Open in Colab]({hosted.BADGE})]", "[Open this notebook in Colab]")
    text = re.sub(r"\[(`\w+/`)\]\(going_modular/\w+\)", r"\1", text)
    picture = r'<picture>.*?srcset="(.*?)".*?src="(.*?)" alt="(.*?)">\s*</picture>'
    both = "```{image} \\2\n:class: only-light\n:alt: \\3\n```\n"
    both += both.replace("\\2", "\\1").replace("light", "dark")
    source[0] = re.sub(picture, both, text, flags=re.DOTALL)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", adapt_to_the_book)
