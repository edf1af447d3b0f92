"""What the chat is told by its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MEGABYTE = 1024 * 1024


class MissingSettingError(Exception):
    """A setting that has no safe default is not there."""


@dataclass(frozen=True)
class Settings:
    """One value each for everything that differs between a laptop, a test and production."""

    database_url: str
    blob_store: str
    secret_key: str = field(repr=False)
    demo: bool = False
    """Whether the login page offers the demo's two people. Never where strangers can reach it."""
    english_only: bool = False
    """Whether the speech model knows no other language, which people are told before they record."""
    proxies: int = 0
    """Proxies in front that end TLS and say who asks (X-Forwarded-For, -Proto); nobody must come past them."""
    upload_limit: int = 25 * MEGABYTE
    """Bytes of one sent message, recording and picture together."""
    stream_limit: int = 24
    """Open live streams of one web process; keep it below the threads of the server."""
    heartbeat: float = 15.0
    """Seconds between two comments on a silent stream, and between two looks in the database for what was missed."""
    stream_lifetime: float = 600.0
    """Seconds after which a stream ends and the browser comes back, so that no thread is held for ever."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """The settings in the environment variables that docs/settings.md lists."""
        return cls(
            database_url=_required(environ, "DATABASE_URL", "a SQLAlchemy URL"),
            blob_store=_required(environ, "BLOB_STORE", "a folder or s3://bucket/prefix"),
            secret_key=_required(environ, "SECRET_KEY", "at least 32 random characters"),
            demo=environ.get("BABBLEBOX_DEMO") == "1",
            english_only=environ.get("BABBLEBOX_ENGLISH_ONLY") == "1",
            proxies=int(environ.get("BABBLEBOX_PROXIES") or 0),
        )


def _required(environ: Mapping[str, str], name: str, what: str) -> str:
    value = environ.get(name)
    if not value:
        raise MissingSettingError(f"{name} is not set; it is {what}. `make run` sets all of them")
    return value
