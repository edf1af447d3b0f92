"""What a Pulsar URL and the environment say about where the broker is and how one proves who one is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pulsartasks.errors import ConfigurationError
from pulsartasks.options import check_names

_OWN_PORTS = {"pulsar": ("6650", "http", "8080"), "pulsar+ssl": ("6651", "https", "8443")}
"""Pulsar's own port of each scheme, and where the admin interface is beside it."""
_FILES = ("token_file", "tls_ca", "tls_cert", "tls_key", "encryption_public_key", "encryption_private_key")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class PulsarSettings:
    """The settings of one connection; each may stand in the URL (``?token_file=...``) or in PULSARTASKS_<NAME>."""

    service_url: str
    """``pulsar://`` or ``pulsar+ssl://``, several hosts by comma."""
    admin_url: str | None = None
    """The admin interface, which makes topics and subscriptions. Without one they are made by a short subscription,
    which cannot make partitions. Default: port 8080 (TLS: 8443) of the first host, but only if the service has Pulsar's
    own port, 6650 (6651): beside any other, nobody knows whose port 8080 is."""
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    """A file that holds the token; read again for every connection, so it may be replaced at any time."""
    tls_ca: str | None = None
    """PEM file of the authorities that are trusted; default: those that browsers trust (certifi)."""
    tls_cert: str | None = None
    """PEM file of the client's own certificate, with `tls_key`, for mutual TLS."""
    tls_key: str | None = None
    tls_validate_hostname: bool = True
    encryption_key: str | None = None
    """A name for the key pair with which payloads are encrypted from end to end; it travels with each message."""
    encryption_public_key: str | None = None
    """PEM file of the public key; with it everything that is published is encrypted."""
    encryption_private_key: str | None = field(default=None, repr=False)
    """PEM file of the private key, with which it is read. Messages that this key cannot open stay where they are."""
    operation_timeout: int = 30
    """Seconds to wait for the broker to answer a subscription, a look-up or a new producer."""
    client_log: str = os.devnull
    """A file for the warnings of the client library underneath, e.g. ``/dev/stderr``."""

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str] | None = None) -> PulsarSettings:
        """The settings of `url`; what it leaves out comes from `environ` (default: this process's).

        >>> PulsarSettings.parse("pulsar://localhost:6650?operation_timeout=5", {}).admin_url
        'http://localhost:8080'

        Raises:
            ConfigurationError: a setting is unknown (with a hint), contradictory, or has a value it cannot have.
        """
        environ = os.environ if environ is None else environ
        parts = urlsplit(url)
        service_url = _service_url(parts)
        names = [f.name for f in fields(cls) if f.name != "service_url"]
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        check_names(given, names, what=f"broker {service_url!r}")
        for name in names:
            value = environ.get(f"PULSARTASKS_{name.upper()}")
            if value and name not in given and not (name in ("token", "token_file") and _has_token(given)):
                given[name] = value
        return cls(
            service_url=service_url,
            admin_url=_admin_url(parts, given.get("admin_url")),
            token=given.get("token"),
            token_file=given.get("token_file"),
            tls_ca=given.get("tls_ca"),
            tls_cert=given.get("tls_cert"),
            tls_key=given.get("tls_key"),
            tls_validate_hostname=_yes(given.get("tls_validate_hostname", "true")),
            encryption_key=given.get("encryption_key"),
            encryption_public_key=given.get("encryption_public_key"),
            encryption_private_key=given.get("encryption_private_key"),
            operation_timeout=_seconds(given.get("operation_timeout", "30")),
            client_log=given.get("client_log", os.devnull),
        )

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise ConfigurationError("give the token or the token_file, not both")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigurationError("tls_cert and tls_key belong together; one of them is missing")
        if bool(self.encryption_key) != bool(self.encryption_public_key):
            raise ConfigurationError("encryption_key, a name, and encryption_public_key, a file, belong together")
        for name in _FILES:
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise ConfigurationError(f"{name}: there is no file {path!r}")

    @property
    def authenticated(self) -> bool:
        return bool(self.token or self.token_file)

    def read_token(self) -> str:
        """The token as it is now; empty without one.

        Raises:
            OSError: its file cannot be read.
        """
        return Path(self.token_file).read_text("utf-8").strip() if self.token_file else self.token or ""


def _service_url(parts: SplitResult) -> str:
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(
            "a Pulsar URL has no user, path or fragment: pulsar://HOST:6650?name=value; a namespace belongs to the app"
        )
    if parts.scheme not in _OWN_PORTS or not all(map(_HOST.fullmatch, parts.netloc.split(","))):
        raise ConfigurationError("a Pulsar URL reads pulsar://HOST:6650 or pulsar+ssl://HOST:6651")
    return f"{parts.scheme}://{parts.netloc}"


def _admin_url(parts: SplitResult, given: str | None) -> str | None:
    if given is not None:
        if given and urlsplit(given).scheme not in ("http", "https"):
            raise ConfigurationError(f"admin_url reads http://HOST:8080 or https://HOST:8443, not {given!r}")
        return given.rstrip("/") or None
    first = _HOST.match(parts.netloc)
    own_port, admin_scheme, admin_port = _OWN_PORTS[parts.scheme]
    if first is None or first["port"] not in (None, own_port):
        return None
    return f"{admin_scheme}://{first['name']}:{admin_port}"


def _has_token(given: Mapping[str, str]) -> bool:
    return "token" in given or "token_file" in given


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigurationError(f"tls_validate_hostname is true or false, not {text!r}")
    return text.lower() in ("true", "1", "yes")


def _seconds(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 3600:
        raise ConfigurationError(f"operation_timeout is a whole number of seconds from 1 to 3600, not {text!r}")
    return int(text)
