"""Class names in figures: in a font that has their letters, or as a word."""

import matplotlib.pyplot as plt
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

import helper_functions
from going_modular.predictions import Prediction, plot_prediction
from going_modular.vit.fonts import drawable_names
from going_modular.vit.plots import plot_attention, plot_beside_images


def make_font(path, letters):
    """A font in which every letter is a square."""
    pen = TTGlyphPen(None)
    corners = [(0, 0), (0, 500), (500, 500), (500, 0)]
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"letter{i}" for i in range(len(letters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): n for c, n in zip(letters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with the fonts that a test gives it, and matplotlib's own."""
    monkeypatch.setitem(plt.rcParams, "font.family", ["sans-serif"])
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])

    def install(**fonts):
        paths = [make_font(tmp_path / f"{name}.ttf", letters) for name, letters in fonts.items()]
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
        return paths

    install()
    yield install
    plt.close("all")


NAMES = ["寿司", "pizza", "Käse Łódź"]


def test_names_are_as_they_are_where_a_font_has_the_letters(system, capfd):
    system(Greek="αβγ", Sushi="寿司")
    assert drawable_names(NAMES) == NAMES
    assert plt.rcParams["font.family"] == ["sans-serif", "Sushi"]  # Greek is not needed
    plt.figure().suptitle(NAMES[0])
    plt.gcf().canvas.draw()  # matplotlib warns of a letter that it lacks
    assert capfd.readouterr().err == ""


def test_letters_may_come_from_two_fonts(system):
    system(One="寿", Two="司")
    assert drawable_names(["寿司"]) == ["寿司"]
    assert plt.rcParams["font.family"] == ["sans-serif", "One", "Two"]


@pytest.mark.parametrize("fonts", [{}, {"Half": "寿"}, {"LastResort": "寿司"}])
def test_a_name_without_a_font_becomes_a_word_and_a_line(system, fonts, capfd):
    system(**fonts)
    assert drawable_names(NAMES) == ["class 1", "pizza", "Käse Łódź"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "in the figure class 1 is 寿司. " in line


def test_fonts_that_matplotlib_cannot_read_are_passed_over(system, tmp_path):
    paths = system(Sushi="寿司")
    for name, content in (("a.ttf", b""), ("b.otf", b"no font"), ("c.pcf.gz", b"x")):
        (tmp_path / name).write_bytes(content)
        paths.insert(0, str(tmp_path / name))
    assert drawable_names(["寿司"]) == ["寿司"]


def test_nothing_is_looked_for_if_nothing_is_missing(system, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", None)  # cannot be called
    assert drawable_names(["pizza", "Käse", "щи", "a\nb", ""]) == [
        "pizza",
        "Käse",
        "щи",
        "a\nb",
        "",
    ]
    assert drawable_names([]) == []


def figures():
    """Every figure of ours that has names of classes in it."""
    names, images = ["寿司", "🍕"], torch.rand(2, 3, 8, 8)
    yield plot_prediction(
        Image.new("RGB", (9, 9)), Prediction(names[0], 0.5, {n: 0.5 for n in names})
    )
    helper_functions.plot_confusion_matrix(torch.eye(2, dtype=torch.long), names)
    yield plt.gcf()
    helper_functions.show_images(list(images), names)
    yield plt.gcf()
    yield plot_attention(images, torch.rand(2, 2, 2), names)
    yield plot_beside_images(images, {"share": torch.rand(2, 2, 2)}, "share", titles=names)


def test_no_figure_has_empty_boxes(system, monkeypatch, capfd):
    monkeypatch.setattr(plt, "show", lambda: None)
    for figure in figures():
        figure.canvas.draw()  # a warning of a letter that is missing is an error
        assert len(capfd.readouterr().err.splitlines()) == 1
