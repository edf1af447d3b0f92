"""Text for pictures: which letters can be set at all, how wide they run, where lines break.

The fonts beside this file cover Latin, Greek and Cyrillic scripts, Vietnamese included. What none of them covers would
be drawn as an empty box, so it is found out beforehand.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeAlias

from PIL import ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, ...]

FONTS = Path(__file__).with_name("fonts")
_FILES = (
    "bricolage-grotesque-latin.woff2",
    "bricolage-grotesque-latin-ext.woff2",
    "bricolage-grotesque-vietnamese.woff2",
    "manrope-cyrillic.woff2",
    "manrope-cyrillic-ext.woff2",
    "manrope-greek.woff2",
    "manrope-latin-ext.woff2",
)
_NO_CHARACTER = "\uffff"
ELLIPSIS = "…"


class Typeface:
    """One size and weight, over several font files that share the work of covering the scripts.

    Not for several threads at once: a font that FreeType has opened is not.
    """

    def __init__(self, size: float, weight: int) -> None:
        self.size = size
        self._fonts = [ImageFont.truetype(FONTS / name, size) for name in _FILES]
        for font in self._fonts:
            font.set_variation_by_axes([weight])
        self._missing = [_shape(font, _NO_CHARACTER) for font in self._fonts]
        self.find = functools.cache(self._find)

    def _find(self, character: str) -> ImageFont.FreeTypeFont | None:
        """The first font that has the character, or None; a space is in all of them."""
        if character == " ":
            return self._fonts[0]
        for font, missing in zip(self._fonts, self._missing, strict=True):
            if _shape(font, character) != missing:
                return font
        return None

    def length(self, text: str) -> float:
        """How wide `text` runs, in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(self, canvas: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Colour) -> None:
        """Draw `text` with its baseline beginning at `at`."""
        x, y = at
        for font, run in self._runs(text):
            canvas.text((x, y), run, fill=colour, font=font, anchor="ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        for font, run in groupby(text, self.find):
            if font is not None:
                yield font, "".join(run)

    def settable_words(self, text: str) -> list[str]:
        """The words of `text` as far as they can be set; none if it would not be the same text any more.

        Emoji and the like are left out. A word with a letter that no font has becomes an ellipsis, so that nobody is
        misquoted; when that happens to half of them, nothing is left.
        """
        words = [set_word for word in unicodedata.normalize("NFC", text).split() if (set_word := self._settable(word))]
        if 2 * words.count(ELLIPSIS) >= len(words):
            return []
        return [word for before, word in pairwise(["", *words]) if not before == word == ELLIPSIS]

    def _settable(self, word: str) -> str:
        kinds = {character: unicodedata.category(character)[0] for character in word}
        if any(kinds[character] in "LN" and not self.find(character) for character in word):
            return ELLIPSIS
        return "".join(character for character in word if kinds[character] in "LNPS" and self.find(character))


def break_lines(widths: Sequence[float], space: float, room: float) -> list[range]:
    """Break words of these `widths` into lines of at most `room`; a wider word has a line of its own.

    >>> break_lines([4, 4, 4, 9, 2], space=1, room=9)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    starts, end = [0], -space
    for index, width in enumerate(widths):
        end += space + width
        if end > room and index > starts[-1]:
            starts.append(index)
            end = width
    return [range(start, stop) for start, stop in pairwise([*starts, len(widths)])]


def balance(widths: Sequence[float], space: float, room: float) -> list[range]:
    """Break into as few lines as `break_lines`, all about as long, so that no single word is left for the last.

    >>> break_lines([5, 5, 5, 5, 5], space=1, room=24), balance([5, 5, 5, 5, 5], space=1, room=24)
    ([range(0, 4), range(4, 5)], [range(0, 3), range(3, 5)])
    """
    lines = break_lines(widths, space, room)
    narrow, wide = 0.0, room
    while wide - narrow > 1:
        middle = (narrow + wide) / 2
        if len(break_lines(widths, space, middle)) > len(lines):
            narrow = middle
        else:
            wide = middle
    return break_lines(widths, space, wide)


def _shape(font: ImageFont.FreeTypeFont, text: str) -> tuple[float, tuple[float, float, float, float]]:
    return font.getlength(text), font.getbbox(text)
