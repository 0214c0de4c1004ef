"""The book, built and opened in a browser that reaches no other host."""

import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from going_modular.utils import CHECKOUT

pytest.importorskip("myst_nb", reason="pip install -r requirements/book.txt")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of a fresh build, in which every warning is an error."""
    folder = tmp_path_factory.mktemp("book")
    command = "-m sphinx --fail-on-warning --keep-going -q -c docs ."
    subprocess.run([sys.executable, *command.split(), folder], cwd=CHECKOUT, check=True)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(book):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=book))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def pages_of(book):
    return sorted(path.relative_to(book).as_posix() for path in book.rglob("*.html"))


class Page(HTMLParser):
    """The links, anchors and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.pictures = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")}
        if tag == "img":
            self.pictures.append(found)
        link = found.get("href") if tag in ("a", "link") else found.get("src")
        if link:
            self.links.append((tag, link))


def test_all_notebooks_and_texts_are_pages(book):
    pages = pages_of(book)
    for path in CHECKOUT.glob("notebooks/**/[0-9]*.ipynb"):
        assert path.relative_to(CHECKOUT).with_suffix(".html").as_posix() in pages
    for name in ("index", "docs/index", "docs/glossary", "docs/at_a_glance", "README"):
        assert f"{name}.html" in pages


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(book):
    pages = {name: Page((book / name).read_text(encoding="utf-8")) for name in pages_of(book)}
    for name, page in pages.items():
        for tag, link in page.links:
            if re.match("https?:|mailto:", link):
                assert tag == "a", f"{name} loads {link}"
                continue
            if link.startswith(("data:", "javascript:")):
                continue
            target, anchor = urldefrag(urljoin(name, unquote(link)).split("?")[0])
            target = target + "index.html" if target.endswith("/") else target
            assert (book / target).is_file(), f"{name} links to {link}"
            anchor = unquote(urldefrag(link)[1])
            if anchor and target.endswith(".html"):
                assert anchor in pages[target].anchors, f"{name} links to {link}"


def test_every_picture_has_an_alternative_text(book):
    for name in pages_of(book):
        page = Page((book / name).read_text(encoding="utf-8"))
        for picture in page.pictures:
            assert len(picture.get("alt") or "") > 20, (name, picture["src"])


@pytest.fixture
def page(chromium, site):
    """A page as wide as a phone that cannot reach other hosts; it collects errors."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page, wrong = context.new_page(), []
    page.wrong = wrong

    def only_here(route):
        if not route.request.url.startswith((site, "data:")):
            wrong.append(f"asks for {route.request.url}")
            return route.abort()
        return route.continue_()

    context.route("**/*", only_here)
    page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    yield page
    context.close()


LOOK = """async () => {
  if (window.MathJax) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
  const equations = [...document.querySelectorAll(".math")];
  return {
    width: document.documentElement.scrollWidth,
    broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
    plain: equations.filter(e => !e.querySelector("mjx-container")).length,
    errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    equations: equations.length,
  };
}"""


def test_every_page_is_whole_on_a_phone_without_other_hosts(page, site, book):
    equations = 0
    for name in pages_of(book):
        page.goto(site + name)
        page.wait_for_load_state("networkidle")
        seen = page.evaluate(LOOK)
        assert page.wrong == [], (name, page.wrong)
        assert seen["width"] <= 390, (name, seen)
        assert seen["broken"] == [] and seen["plain"] == seen["errors"] == 0, (name, seen)
        equations += seen["equations"]
    assert equations > 50  # the check above has found them


def test_the_search_finds(page, site):
    page.goto(site + "search.html?q=residual")
    page.wait_for_selector("#search-results li a")
    titles = page.locator("#search-results li > a").all_inner_texts()
    assert any("Encoder" in title for title in titles), titles
    assert page.wrong == []


def test_a_reader_turns_pages_and_changes_to_dark(page, site):
    page.goto(site + "notebooks/02_patchify.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator(".theme-toggle:visible").click()
    assert page.evaluate("document.body.dataset.theme") == "dark"
    assert page.evaluate(background) != light
    page.locator("a.next-page").click()
    page.wait_for_url("**/03_equation_1_patch_embedding.html")
    assert page.evaluate("document.body.dataset.theme") == "dark"  # it remembers
    page.locator("a.prev-page").click()
    page.wait_for_url("**/02_patchify.html")
    assert page.wrong == []


def test_drawings_follow_light_and_dark(chromium, site):
    for scheme in ("light", "dark"):
        context = chromium.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(site + "docs/at_a_glance.html")
        shown = page.locator("article img:visible").evaluate_all(
            "all => all.map(image => image.src)"
        )
        assert len(shown) == 3 and all(f"_{scheme}.svg" in src for src in shown)
        context.close()
