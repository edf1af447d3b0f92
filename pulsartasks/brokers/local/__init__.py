"""The embedded broker: topics, subscriptions, all four modes and delays in one SQLite file, for many processes.

``local:///path/broker.db`` (or ``local://`` for ``.pulsartasks/broker.db`` here) survives SIGKILL; after a power cut
the last commits may be missing, unless ``?sync=full`` is added, which is about nine times slower. ``memory://`` is
the same inside one process. With ``?max_backlog=10000`` publishers wait while so many messages wait on a subscription.
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
    check_names(options, {"sync", "max_backlog"}, what=f"broker {url!r}")
    if options.get("sync", "normal") not in ("normal", "full"):
        raise ConfigurationError(f"broker {url!r}: sync is 'normal' or 'full'")
    most = options.get("max_backlog")
    if most is not None and not (most.isdecimal() and int(most) > 0):
        raise ConfigurationError(f"broker {url!r}: max_backlog is a number of messages, at least 1")
    max_backlog = None if most is None else int(most)
    if parts.scheme == "memory":
        return LocalBroker(None, max_backlog=max_backlog)
    if parts.netloc:
        raise ConfigurationError(f"broker {url!r}: write an absolute path with three slashes, local:///path/broker.db")
    path = Path(unquote(parts.path)) if parts.path else DEFAULT_PATH
    return LocalBroker(path.absolute(), full_sync=options.get("sync") == "full", max_backlog=max_backlog)
