"""What a file is, told from its bytes: what the browser says about it is not believed."""

from __future__ import annotations

from apps.audio import BadAudioError, probe
from apps.chat.threads import Upload

_PICTURES = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))


class RefusedUploadError(Exception):
    """A file that cannot be sent; the text tells the sender why."""


def recording(data: bytes) -> Upload:
    """A recording that can be decoded.

    Raises:
        RefusedUploadError: it is empty, or holds no sound.
    """
    if not data:
        raise RefusedUploadError("The recording is empty. Please record it again.")
    try:
        info = probe(data)
    except BadAudioError as exc:
        raise RefusedUploadError(str(exc)) from exc
    return Upload(data, info.content_type, info.duration)


def picture(data: bytes) -> Upload:
    """A file that begins like a picture; whether it can be shown is found out by the worker that makes its renditions.

    Raises:
        RefusedUploadError: it is something else.
    """
    for start, content_type in _PICTURES:
        if data.startswith(start):
            return Upload(data, content_type)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Upload(data, "image/webp")
    raise RefusedUploadError("This is not a picture that can be shown. Please choose a JPEG, PNG, WebP or GIF file.")
