"""Attached pictures: small safe copies, or a sentence that the sender understands."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from PIL import Image, ImageCms

from apps.images.pictures import MAX_BYTES, SIZES, BadPictureError, Encoded, render

UNKNOWN = "This file is not a picture we can show (JPEG, PNG, WebP, GIF)."
DAMAGED = "This picture is damaged and cannot be shown."
TOO_LARGE = "This picture has more than 65 million pixels."

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def four_corners(width: int = 400, height: int = 300) -> Image.Image:
    """Red and green above blue and white: which way it was turned is seen at once."""
    picture = Image.new("RGB", (2, 2))
    for at, colour in {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE, (1, 1): WHITE}.items():
        picture.putpixel(at, colour)
    return picture.resize((width, height), Image.Resampling.NEAREST)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opened(image: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(image.data))


def corners(image: Encoded) -> list[tuple[int, ...]]:
    """The colours of the four corners, as pure as they were meant."""
    picture = opened(image).convert("RGB")
    x, y = picture.width - 4, picture.height - 4
    found = [picture.getpixel(at) for at in ((3, 3), (x, 3), (3, y), (x, y))]
    return [tuple(255 * round(part / 255) for part in colour) for colour in found if isinstance(colour, tuple)]


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF"])
def test_the_usual_kinds_become_small_copies(kind: str) -> None:
    made = render(encoded(four_corners(2400, 1800), kind))

    assert {name: (image.width, image.height) for name, image in made.items()} == {
        "thumb": (320, 240),
        "large": (1600, 1200),
    }
    for image in made.values():
        assert image.content_type == "image/webp"
        assert opened(image).format == "WEBP"
        assert opened(image).size == (image.width, image.height)
        assert corners(image) == [RED, GREEN, BLUE, WHITE]


def test_a_small_picture_is_not_blown_up() -> None:
    assert [(image.width, image.height) for image in render(encoded(four_corners(40, 30))).values()] == [(40, 30)] * 2


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 2), (1, 20_000)])
def test_extreme_shapes_stay_pictures(width: int, height: int) -> None:
    for name, image in render(encoded(Image.new("RGB", (width, height), RED))).items():
        assert min(image.width, image.height) >= 1
        assert max(image.width, image.height) <= SIZES[name]


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_a_picture_is_shown_as_the_camera_was_held(orientation: int, seen: list[tuple[int, int, int]]) -> None:
    notes = Image.Exif()
    notes[0x0112] = orientation

    made = render(encoded(four_corners(), "JPEG", exif=notes, quality=95))

    assert corners(made["large"]) == seen
    assert (made["large"].width > made["large"].height) == (orientation < 5)


def test_where_and_with_what_it_was_taken_stays_behind() -> None:
    notes = Image.Exif()
    notes[0x010F] = "Secret Camera"
    notes.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = encoded(four_corners(), "JPEG", exif=notes, icc_profile=profile, comment=b"taken at home")
    assert Image.open(io.BytesIO(picture)).getexif().get_ifd(0x8825)[1] == "N"

    for image in render(picture).values():
        assert not opened(image).getexif()
        assert not {"exif", "icc_profile", "xmp", "comment"} & opened(image).info.keys()
        assert b"Secret" not in image.data
        assert b"home" not in image.data


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_notes_do_not_cost_the_picture() -> None:
    picture = encoded(four_corners(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40))

    assert render(picture)["large"].width == 400


def test_of_an_animation_the_first_frame_is_shown() -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in (RED, GREEN, BLUE)]

    for kind in ("GIF", "WEBP"):
        made = render(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))["large"]
        assert corners(made)[0] == RED
        assert getattr(opened(made), "n_frames", 1) == 1


def test_colours_for_printing_become_colours_for_a_screen() -> None:
    assert corners(render(encoded(four_corners().convert("CMYK"), "JPEG"))["large"]) == [RED, GREEN, BLUE, WHITE]


def test_a_wide_colour_profile_is_brought_to_what_browsers_assume() -> None:
    narrow = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = _profile_with_swapped_colours(narrow)

    assert corners(render(encoded(four_corners(), "PNG", icc_profile=swapped))["large"])[0] == GREEN


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()],
    ids=["nonsense", "LAB"],  # a profile has the second in it in which it was made
)
def test_a_profile_that_does_not_fit_is_passed_over(profile: bytes) -> None:
    made = render(encoded(four_corners(), "JPEG", icc_profile=profile))

    assert corners(made["large"]) == [RED, GREEN, BLUE, WHITE]


def test_transparency_stays() -> None:
    sticker = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    sticker.paste((0, 0, 255, 255), (0, 0, 50, 100))
    palette = Image.new("P", (100, 100), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(0, (0, 0, 50, 100))

    for picture in (encoded(sticker), encoded(palette, transparency=1), encoded(sticker.convert("LA"))):
        seen = opened(render(picture)["large"]).convert("RGBA")
        assert [seen.getpixel(at)[3] for at in ((10, 50), (90, 50))] == [255, 0]  # type: ignore[index]


def test_grey_in_16_bits_keeps_its_shades() -> None:
    grey = Image.linear_gradient("L").convert("I").point(lambda value: value * 257).convert("I;16")

    seen = opened(render(encoded(grey))["large"]).convert("L")

    assert [seen.getpixel((128, y)) for y in (10, 128, 245)] == pytest.approx([10, 128, 245], abs=4)


def test_a_picture_bomb_is_refused_before_it_goes_off() -> None:
    for side in (9_000, 12_000, 50_000):
        bomb = _png_header(side, side)
        assert len(bomb) < 100

        with pytest.raises(BadPictureError) as refused:
            render(bomb)
        assert str(refused.value) == TOO_LARGE


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "This picture is empty."),
        (b"x", UNKNOWN),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", UNKNOWN),
        (encoded(four_corners(), "TIFF"), UNKNOWN),
        (encoded(four_corners(), "BMP"), UNKNOWN),
        (encoded(Image.effect_noise((300, 300), 90), "JPEG")[:5_000], DAMAGED),
        (encoded(Image.effect_noise((300, 300), 90), "PNG")[:5_000], DAMAGED),
        (encoded(Image.effect_noise((300, 300), 90), "WEBP")[:5_000], DAMAGED),
        (bytes(MAX_BYTES + 1), "This picture is larger than 32 MB."),
    ],
    ids=["empty", "byte", "svg", "tiff", "bmp", "cut jpeg", "cut png", "cut webp", "huge"],
)
def test_what_is_no_picture_is_refused_in_words(picture: bytes, reason: str) -> None:
    with pytest.raises(BadPictureError) as refused:
        render(picture)

    assert str(refused.value) == reason


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about broken notes
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_no_damage_gives_any_other_error(kind: str) -> None:
    whole = encoded(four_corners(60, 40), kind)
    lots = random.Random(kind)

    for _ in range(150):
        damaged = bytearray(whole[: lots.choice([50, 10**6])])
        for _ in range(lots.choice([1, 5, 20])):
            damaged[lots.randrange(len(damaged))] = lots.randrange(256)
        try:
            made = render(bytes(damaged))
        except BadPictureError:
            continue
        assert opened(made["thumb"]).size == (made["thumb"].width, made["thumb"].height)


def _png_header(width: int, height: int) -> bytes:
    """A few bytes that promise a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def _profile_with_swapped_colours(profile: bytes) -> bytes:
    """A profile in which red means green: it is seen whether it was obeyed."""
    return profile.replace(b"rXYZ", b"\0tmp").replace(b"gXYZ", b"rXYZ").replace(b"\0tmp", b"gXYZ")
