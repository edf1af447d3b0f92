"""Draws the voice card of a transcript: what was said, set as a quotation above the shape of its sound.

The same message always gives the same card: the colours come from the chat, the arrangement from the message, and the
wave form from the letters, since the sound itself is not at hand here.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageColor, ImageDraw

from apps.images.pictures import Encoded, encode
from apps.images.typeface import ELLIPSIS, Typeface, balance, break_lines

WIDTH, HEIGHT = 1200, 630
MARGIN = 84
"""Pixels left free on either side."""

_ROOM = WIDTH - 2 * MARGIN
_TEXT_TOP, _TEXT_BOTTOM = 168, 462
_SIZES = range(140, 41, -2)
"""Of the text, in pixels; the largest that fits is taken."""
_LEADING = 1.17
_BARS = 64
_FINE = 3
"""Shapes are drawn this much larger and then reduced, which makes their edges smooth."""

RGB: TypeAlias = tuple[int, ...]
_CREAM: RGB = (255, 253, 249)


@dataclass(frozen=True)
class Palette:
    """The colours of a chat's cards."""

    base: str
    deep: str
    """What `base` darkens to at the bottom."""
    glow: str
    accent: str


_PALETTES = (
    Palette("#0f5c55", "#06302e", "#2fa08c", "#ffc857"),
    Palette("#3b2470", "#180d36", "#8a4fd0", "#ff9d6c"),
    Palette("#173a7a", "#091839", "#3d7be0", "#ffc857"),
    Palette("#a3361b", "#4a1407", "#f2703f", "#ffd98a"),
    Palette("#36592a", "#14260d", "#7fae45", "#ffd166"),
    Palette("#7d1d47", "#35081d", "#e0557f", "#ffc29e"),
    Palette("#0f5876", "#062838", "#2fb0cc", "#ffb55c"),
    Palette("#6b4226", "#2a1810", "#d09052", "#ffe0a3"),
)


def draw_card(text: str, *, chat_id: str, message_id: str, duration: float | None = None) -> Encoded:
    """Draw the card of a message; `duration`, in seconds, is shown if it is known."""
    palette = _PALETTES[_digest(chat_id)[0] % len(_PALETTES)]
    seed = _digest(message_id)
    canvas = _background(palette, seed)
    wave = _wave(text, seed)
    words = Typeface(100, 700).settable_words(text.replace("'", "’"))
    if words:
        Typeface(250, 800).draw(ImageDraw.Draw(canvas), (MARGIN - 12, 258), "“", ImageColor.getrgb(palette.accent))
        _draw_text(canvas, words)
        _draw_wave(canvas, palette, wave, (MARGIN, 500, WIDTH - MARGIN - 110, 584))
    else:  # silence about what cannot be set: the sound alone
        _draw_wave(canvas, palette, wave, (MARGIN, 150, WIDTH - MARGIN, 480))
    _draw_labels(canvas, palette, duration)
    return encode(canvas, quality=93)  # less, and the dusk falls in steps


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _background(palette: Palette, seed: bytes) -> Image.Image:
    """Dusk in the chat's colours, with two lights and the rings of a sound around one of them."""
    size = (WIDTH, HEIGHT)
    slope = Image.linear_gradient("L").resize(size, Image.Resampling.BICUBIC)
    canvas = Image.composite(Image.new("RGB", size, palette.deep), Image.new("RGB", size, palette.base), slope)
    x, y = WIDTH * (0.66 + 0.3 * seed[0] / 255), HEIGHT * (0.02 + 0.4 * seed[1] / 255)
    _shine(canvas, palette.glow, (x, y), 660, 0.8)
    _shine(canvas, palette.accent, (WIDTH - x, HEIGHT * 1.12), 460, 0.3)

    def rings(pen: ImageDraw.ImageDraw) -> None:
        for number in range(1, 8):
            box = [(edge + side * (44 + 72 * number)) * _FINE for side in (-1, 1) for edge in (x, y)]
            pen.ellipse(box, outline=30 - 3 * number, width=2 * _FINE)

    _paint(canvas, _CREAM, rings)
    return canvas


def _shine(canvas: Image.Image, colour: str, centre: tuple[float, float], radius: int, strength: float) -> None:
    """Light that fades out towards `radius`, where Pillow's own gradient is 181 (255 in the corners)."""
    fading = [round(255 * strength * max(0.0, 1 - distance / 181) ** 1.7) for distance in range(256)]
    light = Image.radial_gradient("L").resize((2 * radius, 2 * radius), Image.Resampling.BICUBIC).point(fading)
    canvas.paste(colour, (round(centre[0]) - radius, round(centre[1]) - radius), light)


def _paint(canvas: Image.Image, colour: RGB, draw: Callable[[ImageDraw.ImageDraw], None]) -> None:
    """Have `draw` make a mask in `_FINE` times the size, and lay `colour` on through it."""
    mask = Image.new("L", (WIDTH * _FINE, HEIGHT * _FINE))
    draw(ImageDraw.Draw(mask))
    canvas.paste(colour, mask=mask.reduce(_FINE))


def _draw_text(canvas: Image.Image, words: Sequence[str]) -> None:
    size, lines = _fit(words)
    face = Typeface(size, 700)
    leading = size * _LEADING
    baseline = (_TEXT_TOP + _TEXT_BOTTOM - leading * len(lines)) / 2 + 0.88 * size
    for number, line in enumerate(lines):
        face.draw(ImageDraw.Draw(canvas), (MARGIN, baseline + leading * number), line, _CREAM)


def _fit(words: Sequence[str]) -> tuple[int, list[str]]:
    """The largest size at which the words fit, and their lines; of too many words the first ones."""
    measure = Typeface(100, 700)
    words = [part for word in words for part in _cut(word, measure)]
    widths = [measure.length(word) / 100 for word in words]
    space = measure.length(" ") / 100

    def most(size: int) -> int:
        return int((_TEXT_BOTTOM - _TEXT_TOP) / (size * _LEADING))

    for size in _SIZES:
        room = _ROOM / size
        if max(widths) <= room and len(break_lines(widths, space, room)) <= most(size):
            return size, _join(words, balance(widths, space, room))
    smallest = _SIZES[-1]
    *first, last = _join(words, break_lines(widths, space, _ROOM / smallest)[: most(smallest)])
    return smallest, [*first, last.rstrip(".,;:!? ") + ELLIPSIS]


def _cut(word: str, measure: Typeface) -> list[str]:
    """Cut up a word that is wider than a line even in the smallest size."""
    room = _ROOM / _SIZES[-1] * 100
    parts = [""]
    for letter in word:
        if measure.length(parts[-1] + letter) > room:
            parts.append("")
        parts[-1] += letter
    return parts


def _join(words: Sequence[str], lines: Sequence[range]) -> list[str]:
    return [" ".join(words[line.start : line.stop]) for line in lines]


def _wave(text: str, seed: bytes) -> list[float]:
    """Heights from 0 to 1: each letter has its own, spaces are pauses, and no two bars in a row are alike."""
    said = " ".join(text.split()) or seed.hex()
    heights = []
    for number in range(_BARS):
        at = number * len(said) // _BARS
        letters = said[at : max(at + 1, (number + 1) * len(said) // _BARS)]
        ripple = 0.68 + 0.32 * math.sin(seed[2] + 2.4 * number)  # steps of the golden angle never fall into a rhythm
        heights.append(ripple * sum(map(_loudness, letters)) / len(letters))
    return [height / max(heights) for height in heights]


def _loudness(letter: str) -> float:
    return 0.25 + 0.75 * _digest(letter.casefold())[0] / 255 if letter.isalnum() else 0.1


def _draw_wave(
    canvas: Image.Image, palette: Palette, wave: Sequence[float], box: tuple[float, float, float, float]
) -> None:
    """Draw bars as of a player, the first third as if it had been heard already."""
    left, top, right, bottom = box
    step = (right - left) / len(wave)
    width = step * 0.52

    def bars(numbers: range, strength: int) -> Callable[[ImageDraw.ImageDraw], None]:
        def draw(pen: ImageDraw.ImageDraw) -> None:
            for number in numbers:
                x, half = left + number * step, max(width, wave[number] * (bottom - top)) / 2
                bar = (x, (top + bottom) / 2 - half, x + width, (top + bottom) / 2 + half)
                pen.rounded_rectangle([edge * _FINE for edge in bar], radius=width * _FINE / 2, fill=strength)

        return draw

    heard = len(wave) // 3
    _paint(canvas, ImageColor.getrgb(palette.accent), bars(range(heard), 255))
    _paint(canvas, _CREAM, bars(range(heard, len(wave)), 120))


def _draw_labels(canvas: Image.Image, palette: Palette, duration: float | None) -> None:
    pen = ImageDraw.Draw(canvas)
    name = Typeface(30, 600)
    name.draw(pen, (WIDTH - MARGIN - name.length("BabbleBox"), 118), "BabbleBox", _CREAM)
    if duration is not None:
        clock = Typeface(34, 600)
        minutes, seconds = divmod(max(1, round(duration)), 60)
        time = f"{minutes}:{seconds:02}"
        clock.draw(pen, (WIDTH - MARGIN - clock.length(time), 554), time, ImageColor.getrgb(palette.accent))
