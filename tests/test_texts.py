"""The texts: words of the glossary, links, files."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import requests

from going_modular.publishing import notebooks
from going_modular.utils import CHECKOUT

PRETRAINED = CHECKOUT / "going_modular/pretrained/README.md"
PAGES = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), PRETRAINED]
ALL = notebooks.NOTEBOOKS + notebooks.EXERCISES + notebooks.SOLUTIONS


def text_of(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links_of(path):
    """The targets of links and pictures, without those in code."""
    text = re.sub("```.*?```|`[^`]*`", "", text_of(path), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall('(?:src|srcset)="(.*?)"', text)


def test_every_word_of_the_glossary_stands_in_its_notebook():
    page = CHECKOUT / "docs/glossary.md"
    rows = re.findall(r"^\| \*\*(.*?)\*\* \| (.*?) \| \[\d\d\]\((.*?)\) \|$", text_of(page), re.M)
    assert len(rows) > 50 and rows == sorted(rows, key=lambda row: row[0].lower())
    for words, _, notebook in rows:
        text = text_of(page.parent / notebook).lower()
        for word in words.split(", "):
            assert re.search(rf"\b{word.lower()}", text), (word, notebook)


@pytest.mark.parametrize("path", PAGES + ALL, ids=lambda path: path.name)
def test_links_within_the_repository_lead_to_files(path):
    for link in links_of(path):
        if not re.match("https?:|#|mailto:", link):
            assert (path.parent / link.split("#")[0]).exists(), link


def test_dead_places_are_not_linked():
    for path in PAGES + ALL:
        assert not any("paperswithcode" in link for link in links_of(path))


def status_of(link):
    """A link's status after at most three requests, None if it cannot be reached."""
    for pause in (1, 3, 0):
        try:
            with requests.get(
                link, timeout=20, stream=True, headers={"User-Agent": "Mozilla/5.0"}
            ) as answer:
                status = answer.status_code
        except requests.RequestException:
            time.sleep(pause)
            continue
        if status < 500 and status != 429:
            return status
        time.sleep(pause)
    return None


@pytest.mark.slow
def test_links_to_other_hosts_lead_somewhere():
    """Skipped without a network. A host may refuse programs, but must not answer 404 or 410."""
    links = {
        link.split("#")[0]
        for path in PAGES + ALL
        for link in links_of(path)
        if link.startswith("http")
    }
    assert len(links) > 20
    with ThreadPoolExecutor(8) as pool:
        status = dict(zip(sorted(links), pool.map(status_of, sorted(links)), strict=True))
    if not any(status.values()):
        pytest.skip("no network: not one link could be reached")
    assert not {link: code for link, code in status.items() if code in (404, 410)}
