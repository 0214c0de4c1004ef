"""Names of classes in figures, in any script that a font on this machine has."""

import sys
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties


def drawable_names(names: Sequence[str], word: str = "class") -> list[str]:
    """The names as matplotlib can draw them on this machine.

    matplotlib draws an empty box for a letter that its font does not have. So a font of
    the system that has the letters joins matplotlib's list of fonts, behind those that
    are there. A name that no font can draw becomes "class 1", by its place in the list, and
    a line says so.

    Args:
        word: what a name names, for such a name.
    """
    names = [str(name) for name in names]
    missing = letters_missing("".join(names))
    if missing:
        missing -= add_fonts(missing)
    drawn = [
        f"{word} {number}" if missing & set(name) else name
        for number, name in enumerate(names, start=1)
    ]
    if drawn != names:
        pairs = ", ".join(
            f"{new} is {old}" for new, old in zip(drawn, names, strict=True) if new != old
        )
        print(
            f"No font on this machine has all letters of these names, so in the figure {pairs}. "
            "A font that has them, such as Noto Sans CJK or Noto Sans, can be installed.",
            file=sys.stderr,
        )
    return drawn


def letters_missing(text: str) -> set[str]:
    """The letters of a text that matplotlib's present fonts do not have."""
    families = plt.rcParams["font.family"]
    paths = (font_manager.findfont(FontProperties(family=[family])) for family in families)
    return set(text) - {"\n"} - letters_of(paths, text)


def letters_of(paths: Iterable[str], text: str) -> set[str]:
    """The letters of a text that one of these font files has."""
    fonts = [font_manager.get_font(path) for path in paths]
    return {letter for letter in text if any(font.get_char_index(ord(letter)) for font in fonts)}


def add_fonts(letters: set[str]) -> set[str]:
    """Add fonts of the system to matplotlib's until they have all letters, if any do.

    Returns:
        The letters that are now there.
    """
    found: set[str] = set()
    for path in sorted(font_manager.findSystemFonts()):
        if "lastresort" in path.lower():  # has a box for every letter
            continue
        try:
            font = font_manager.get_font(path)
            new = letters_of([path], "".join(letters - found)) if font.scalable else set()
            if new:
                font_manager.fontManager.addfont(path)
        except Exception:  # a damaged font, or one of a kind that matplotlib cannot read
            continue
        if new:
            found |= new
            plt.rcParams["font.family"] = [*plt.rcParams["font.family"], font.family_name]
        if found == letters:
            break
    return found
