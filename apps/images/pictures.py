"""Makes small, safe copies of a picture that somebody attached, whatever is in the file.

Nothing of the file itself is ever shown: its pixels are decoded, turned upright, brought to sRGB, made smaller and
encoded anew. Where it was taken, by whom and with what stays behind.
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

SIZES: Mapping[str, int] = MappingProxyType({"thumb": 320, "large": 1600})
"""Pixels of the longer side of each rendition, at most; a smaller picture is not blown up."""
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 65_000_000
"""A phone's picture has 12 to 64 million. A PNG of some kilobytes may claim billions, and memory with them."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


class BadPictureError(Exception):
    """The picture itself is the trouble: trying again cannot help. The message is for the person who sent it."""


@dataclass(frozen=True)
class Encoded:
    """A picture that is safe to show."""

    data: bytes
    content_type: str
    width: int
    height: int


def render(data: bytes) -> dict[str, Encoded]:
    """Make the renditions of a picture by their names in `SIZES`; raises `BadPictureError`.

    Of an animation the first frame is taken. Transparency stays.
    """
    picture = _read(data, max(SIZES.values()))
    renditions = {}
    for name, longest in SIZES.items():
        small = picture.copy()
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        renditions[name] = encode(small)
    return renditions


def encode(picture: Image.Image, quality: int = 84) -> Encoded:
    """Encode the pixels, and nothing but the pixels, for the web."""
    bare = Image.new(picture.mode, picture.size)
    bare.paste(picture)
    target = io.BytesIO()
    bare.save(target, "WEBP", quality=quality, method=4)
    return Encoded(target.getvalue(), "image/webp", bare.width, bare.height)


def _read(data: bytes, longest: int) -> Image.Image:
    """Decode a picture to upright sRGB pixels, with alpha where it has any, and not much larger than needed."""
    if not data:
        raise BadPictureError("This picture is empty.")
    if len(data) > MAX_BYTES:
        raise BadPictureError(f"This picture is larger than {MAX_BYTES // 2**20} MB.")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.draft(None, (2 * longest, 2 * longest))  # JPEG can be decoded at a half, a quarter or an eighth
            small = _with_full_colours(picture)
            small.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
            return _to_srgb(_upright(small))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPictureError(f"This picture has more than {MAX_PIXELS // 10**6} million pixels.") from None
    except UnidentifiedImageError:
        raise BadPictureError("This file is not a picture we can show (JPEG, PNG, WebP, GIF).") from None
    except MemoryError:  # not the picture's fault: another worker may have more
        raise
    except Exception as error:  # Pillow names no set: SyntaxError, struct.error, zlib.error, OSError, IndexError, ...
        raise BadPictureError("This picture is damaged and cannot be shown.") from error


def _with_full_colours(picture: Image.Image) -> Image.Image:
    """Give each pixel a colour of its own, which palettes do not, so that neighbours can be mixed."""
    if picture.mode.startswith("I"):  # grey in 16 bits, which `convert` would cut off at 255 instead of scaling
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode in ("L", "RGB", "RGBA", "CMYK") and "transparency" not in picture.info:
        return picture  # no copy: it may have a quarter of a gigabyte
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its camera was held."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - a picture with broken notes is still a picture
        return picture


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Bring a picture to the colours that browsers assume where no profile says otherwise."""
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    if profile := picture.info.get("icc_profile"):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # broken, or not for these pixels: as if it had none
            converted = ImageCms.profileToProfile(picture, io.BytesIO(profile), srgb, outputMode=mode)
            return converted or picture.convert(mode)
    return picture.convert(mode)
