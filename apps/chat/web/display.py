"""How values are shown in templates."""

from __future__ import annotations

import zlib
from typing import Any

from flask import Flask

from apps.chat.models import Message
from apps.chat.web.context import services, signed_in

AVATAR_HUES = 8


def register_display(app: Flask) -> None:
    app.jinja_env.filters.update(clock=clock, hue=hue, initial=initial, rendition=rendition)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.context_processor(lambda: {"viewer": signed_in(), "settings": services().settings})
    app.jinja_env.globals["can_try_again"] = can_try_again


def clock(seconds: float | None) -> str:
    """A length of time as a player shows it.

    >>> clock(63.4), clock(0.2), clock(None)
    ('1:03', '0:01', '–:––')
    """
    if seconds is None:
        return "–:––"
    whole = max(1, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def hue(name: str) -> int:
    """Which of the avatar colours a name has, always the same."""
    return zlib.crc32(name.casefold().encode()) % AVATAR_HUES


def initial(name: str) -> str:
    return name[:1].upper()


def rendition(renditions: dict[str, Any], width: int) -> tuple[str, dict[str, Any]] | None:
    """The name and values of the smallest rendition that fills `width` pixels, or of the largest there is."""
    by_width = sorted(renditions.items(), key=lambda item: int(item[1]["width"]))
    return next((item for item in by_width if item[1]["width"] >= width), by_width[-1] if by_width else None)


def can_try_again(message: Message) -> bool:
    return "failed" in (message.transcript_state, message.picture_state)
