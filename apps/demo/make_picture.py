"""Paints the picture of the demo, `picture.jpg`: mountains in the evening, above a lake.

python -m apps.demo.make_picture
"""

import itertools
import math
import random
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

TARGET = Path(__file__).with_name("picture.jpg")
WIDTH, HEIGHT, SHORE = 1600, 1067, 760
SUN = (1060, 420)
SKY = ("#2b3f6b", "#6f6a94", "#d98a84", "#ffc98a", "#ffe4b0")
RIDGES = (
    # height of the crest, its swing, how jagged, colour in the haze, colour at the foot
    (480, 130, 0.52, "#b98a97", "#e6b39c"),
    (560, 110, 0.54, "#8a6a86", "#c79490"),
    (620, 110, 0.56, "#5a4a6d", "#8f6b80"),
    (690, 70, 0.60, "#33324f", "#554a68"),
)


def gradient(colours: tuple[str, ...], size: tuple[int, int]) -> Image.Image:
    """Colours from top to bottom, with soft changes."""
    strip = Image.new("RGB", (1, len(colours)))
    for row, colour in enumerate(colours):
        strip.paste(colour, (0, row, 1, row + 1))
    return strip.resize(size, Image.Resampling.BICUBIC)


def crest(lots: random.Random, middle: float, swing: float, rough: float) -> list[float]:
    """The line of a ridge, by midpoint displacement."""
    line = [middle + lots.uniform(-swing, swing) / 2 for _ in range(2)]
    while len(line) <= WIDTH // 4:
        between = [(a + b) / 2 + lots.uniform(-swing, swing) for a, b in itertools.pairwise(line)]
        line = [y for pair in zip(line, between, strict=False) for y in pair] + line[-1:]
        swing *= rough
    return line


def silhouette(line: list[float]) -> Image.Image:
    """Everything below a ridge's line."""
    mask = Image.new("L", (WIDTH * 2, HEIGHT * 2))
    step = WIDTH * 2 / (len(line) - 1)
    points = [(number * step, y * 2) for number, y in enumerate(line)]
    ImageDraw.Draw(mask).polygon([*points, (WIDTH * 2, HEIGHT * 2), (0, HEIGHT * 2)], fill=255)
    return mask.reduce(2)


def shine(canvas: Image.Image, colour: str, radius: int, strength: float) -> None:
    """Light around the sun."""
    fading = [round(255 * strength * max(0.0, 1 - distance / 181) ** 2) for distance in range(256)]
    light = Image.radial_gradient("L").resize((2 * radius, 2 * radius), Image.Resampling.BICUBIC).point(fading)
    canvas.paste(colour, (SUN[0] - radius, SUN[1] - radius), light)


def paint_land(lots: random.Random) -> Image.Image:
    """Sky, sun and one ridge behind the other, each a little clearer than the last."""
    canvas = gradient(SKY, (WIDTH, SHORE + 60)).crop((0, 0, WIDTH, HEIGHT))
    shine(canvas, "#ffdba6", 470, 0.8)
    disc = Image.new("L", (WIDTH * 2, HEIGHT * 2))
    ImageDraw.Draw(disc).ellipse([2 * (c + s * 54) for s in (-1, 1) for c in SUN], fill=255)
    canvas.paste("#fff8e6", mask=disc.reduce(2))
    for middle, swing, rough, haze, foot in RIDGES:
        mask = silhouette(crest(lots, middle, swing, rough))
        slope = Image.new("RGB", (WIDTH, HEIGHT), haze)
        slope.paste(gradient((haze, foot), (WIDTH, SHORE - middle + 150)), (0, middle - 110))
        canvas.paste(slope, mask=mask)
    shine(canvas, "#ffd9a0", 760, 0.22)
    return canvas


def add_lake(canvas: Image.Image, lots: random.Random) -> None:
    """The land upside down, drawn out by ripples, darker towards the viewer."""
    mirror = canvas.crop((0, 2 * SHORE - HEIGHT, WIDTH, SHORE)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirror = mirror.filter(ImageFilter.GaussianBlur(2))
    water = Image.new("RGB", mirror.size)
    for y in range(mirror.height):
        depth = y / mirror.height
        shift = round(math.sin(y * y / 900 + y / 2.2) * (1 + 9 * depth) + lots.uniform(-1.5, 1.5))
        water.paste(ImageChops.offset(mirror.crop((0, y, WIDTH, y + 1)), shift, 0), (0, y))
    shade = Image.linear_gradient("L").resize(water.size).point([round(40 + value * 0.5) for value in range(256)])
    water.paste("#232c4a", mask=shade)
    canvas.paste(water, (0, SHORE))


def add_pines(canvas: Image.Image, lots: random.Random) -> None:
    """Some trees close by, left and right, as a frame."""
    mask = Image.new("L", (WIDTH * 2, HEIGHT * 2))
    pen = ImageDraw.Draw(mask)
    for side in (-1, 1):
        for _ in range(11):
            away = abs(lots.gauss(0, 130))
            x, foot = (away if side < 0 else WIDTH - away * 0.7), HEIGHT + 40
            height = max(130.0, lots.uniform(0.75, 1.1) * (560 - away * 1.5))
            tiers = int(height / 17)
            for tier in range(tiers):
                y, reach = foot - height + tier * height / tiers, (3 + tier * 66 / tiers) * lots.uniform(0.8, 1.15)
                tip = (x, y - 12)
                pen.polygon([(2 * a, 2 * b) for a, b in (tip, (x + reach, y + 26), (x - reach, y + 26))], fill=255)
    canvas.paste(gradient(("#1c2138", "#141828"), (WIDTH, HEIGHT)), mask=mask.reduce(2))


def paint() -> Image.Image:
    """The whole picture, always the same."""
    lots = random.Random(3)  # noqa: S311 - the same mountains every time
    canvas = paint_land(lots)
    add_lake(canvas, lots)
    add_pines(canvas, lots)
    return canvas


if __name__ == "__main__":
    paint().save(TARGET, quality=86, optimize=True, progressive=True)
