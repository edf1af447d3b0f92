"""The embedded broker: topics, subscriptions, all four modes and delays in one SQLite file, for many processes.

``local:///path/broker.db`` (or ``local://`` for ``.pulsartasks/broker.db`` here) survives SIGKILL; after a power cut
the last commits may be missing, unless ``?sync=full`` is added, which is about nine times slower. ``memory://`` is
the same inside one process.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pulsartasks.brokers.base import Broker
from pulsartasks.brokers.local.broker import LocalBroker
from pulsartasks.errors import ConfigurationError
from pulsartasks.options import check_names

DEFAULT_PATH = Path(".pulsartasks", "broker.db")

__all__ = ["DEFAULT_PATH", "LocalBroker", "open_broker"]


def open_broker(url: str) -> Broker:
    """The broker at a ``local://`` or ``memory://`` URL.

    Raises:
        ConfigurationError: the URL has a host, a relative path, or an option that does not exist.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    check_names(options, {"sync"}, what=f"broker {url!r}")
    if options.get("sync", "normal") not in ("normal", "full"):
        raise ConfigurationError(f"broker {url!r}: sync is 'normal' or 'full'")
    if parts.scheme == "memory":
        return LocalBroker(None)
    if parts.netloc:
        raise ConfigurationError(f"broker {url!r}: write an absolute path with three slashes, local:///path/broker.db")
    path = Path(unquote(parts.path)) if parts.path else DEFAULT_PATH
    return LocalBroker(path.absolute(), full_sync=options.get("sync") == "full")
