"""Why a broker does not let us in, asked of it directly.

The client tries again after a refused token as after a lost connection, until that is a time-out, and calls all that
can go wrong with TLS a ``ConnectError``. So before the first connection, and when one has failed, we knock ourselves:
shake hands, say CONNECT as the client does, and listen to the answer. No message ever waits for this.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pulsartasks.brokers.pulsar.settings import PulsarSettings
from pulsartasks.errors import AuthenticationError, AuthorizationError, BrokerUnavailableError, PulsarTasksError

PATIENCE = 3.0
"""Seconds for each step; who does not answer in that time has not said what is wrong."""
# Of https://github.com/apache/pulsar/blob/master/pulsar-common/src/main/proto/PulsarApi.proto
_TYPE, _CONNECT, _ERROR = 1, 2, 14
_ERROR_CODE, _ERROR_TEXT = 2, 3
_REFUSED = 3
_PROTOCOL_VERSION = 19
_WRONG_HOST = (62, 64)
"""OpenSSL's codes for a certificate of another host name or address."""
_LARGEST_ANSWER = 65_536


class WrongSettingError(BrokerUnavailableError):
    """Scheme, host name or authority are not what the broker has, so trying again does not help."""


def find_trouble(settings: PulsarSettings) -> PulsarTasksError | None:
    """What keeps us out; None if the broker lets us in, or does not say.

    Of several hosts the first that answers counts, as they are of one cluster.
    """
    try:
        credentials = _credentials(settings)
    except (OSError, UnicodeDecodeError) as error:
        return AuthenticationError(f"the token_file {settings.token_file} cannot be read: {error}")
    try:
        context = _context(settings) if settings.service_url.startswith("pulsar+ssl:") else None
    except OSError as error:
        return WrongSettingError(f"the files of tls_ca, tls_cert and tls_key cannot be used: {error}")
    unreachable: PulsarTasksError | None = None
    for address in _addresses(settings.service_url):
        try:
            raw = socket.create_connection(address, PATIENCE)
        except OSError as error:
            unreachable = BrokerUnavailableError(f"{_name(address)} cannot be reached: {error}; is the broker running?")
            continue
        with raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _knock(settings, context, credentials, raw, address)
    return unreachable


def missing_permission(settings: PulsarSettings, doing: str) -> AuthorizationError:
    """The error for what the broker does not permit, which names the role and what it lacks."""
    role = None
    with suppress(OSError, UnicodeDecodeError):
        role = _claims(settings.read_token()).get("sub")
    who = f"the role {role!r}" if role else "the role that these credentials prove"
    return AuthorizationError(
        f"could not {doing}: {who} has no permission; an app's processes need 'produce' and 'consume' in its namespace "
        "(pulsar-admin namespaces grant-permission TENANT/NAMESPACE --role ROLE --actions produce,consume)"
    )


def _knock(
    settings: PulsarSettings,
    context: ssl.SSLContext | None,
    credentials: bytes,
    raw: socket.socket,
    address: tuple[str, int],
) -> PulsarTasksError | None:
    """Say CONNECT on an open connection and understand the answer."""
    try:
        with context.wrap_socket(raw, server_hostname=address[0]) if context else raw as connection:
            connection.sendall(_connect_command(credentials))
            said = _refusal(_receive_command(connection))
    except ssl.SSLCertVerificationError as error:
        return _distrusted(settings, address[0], error)
    except TimeoutError:
        return None
    except (OSError, EOFError) as error:
        if settings.tls_cert and isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return _refused_certificate(settings)  # in TLS 1.3 this comes after the handshake
        return _wrong_scheme(settings.service_url, address)
    return None if said is None else _refused_credentials(settings, said)


# What each trouble is called


def _refused_credentials(settings: PulsarSettings, said: str) -> AuthenticationError:
    where = f"token in {settings.token_file}" if settings.token_file else "token"
    if settings.authenticated and (expired := _expired(settings.read_token())):
        why = f"the {where} expired at {expired}; put a new one there"
    elif settings.authenticated:
        why = f"it does not accept the {where}: was it made for this cluster, with its key?"
    elif settings.tls_cert:
        why = f"it does not accept the client certificate {settings.tls_cert} as a proof of who connects"
    else:
        why = "it wants to know who connects, but no token is set; give token_file=, or PULSARTASKS_TOKEN_FILE"
    return AuthenticationError(f"{settings.service_url} refuses the connection: {why} (it says: {said})")


def _refused_certificate(settings: PulsarSettings) -> AuthenticationError:
    return AuthenticationError(
        f"{settings.service_url} refuses the client certificate {settings.tls_cert}: it has expired, or the broker "
        "trusts another authority (tlsTrustCertsFilePath)"
    )


def _distrusted(settings: PulsarSettings, host: str, error: ssl.SSLCertVerificationError) -> WrongSettingError:
    if error.verify_code in _WRONG_HOST:
        why = f"its certificate is not for the host name {host!r}; connect to a name that stands in the certificate"
    else:
        trusted = f"tls_ca={settings.tls_ca}" if settings.tls_ca else "the authorities of this system"
        why = f"its certificate is not trusted by {trusted}; tls_ca= names the file of the authority that signed it"
    return WrongSettingError(f"{settings.service_url}: {why} ({error.verify_message})")


def _wrong_scheme(service_url: str, address: tuple[str, int]) -> WrongSettingError | None:
    """The error for a port that does not speak what the URL says; None if that is not certain."""
    if service_url.startswith("pulsar+ssl:"):
        advice = "does not use TLS; write pulsar://" if _speaks_plainly(address) else ""
    else:
        advice = "uses TLS; write pulsar+ssl://" if _speaks_tls(address) else ""
    return WrongSettingError(f"{service_url}: {_name(address)} {advice}") if advice else None


def _speaks_plainly(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, PATIENCE) as connection:
            connection.sendall(_connect_command(b""))  # no token in the clear
            return bool(_receive_command(connection))
    except (OSError, EOFError):
        return False


def _speaks_tls(address: tuple[str, int]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is said on it
    try:
        with socket.create_connection(address, PATIENCE) as raw, context.wrap_socket(raw):
            return True
    except OSError:
        return False


def _name(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


# The wire


def _addresses(service_url: str) -> list[tuple[str, int]]:
    scheme, _, hosts = service_url.partition("://")
    own_port = 6651 if scheme == "pulsar+ssl" else 6650
    parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return [(part.hostname or "", part.port or own_port) for part in parts]


def _context(settings: PulsarSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the client does not ask for it either
    context.check_hostname = settings.tls_validate_hostname
    if settings.tls_cert:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context


def _credentials(settings: PulsarSettings) -> bytes:
    """Who we are, as fields of CONNECT."""
    if settings.authenticated:
        return _text(3, settings.read_token().encode()) + _text(5, b"token")
    return _text(3, b"none") + _text(5, b"tls") if settings.tls_cert else b""


def _connect_command(credentials: bytes) -> bytes:
    connect = _text(1, b"pulsartasks") + credentials + _number(4, _PROTOCOL_VERSION)
    command = _number(_TYPE, _CONNECT) + _text(_CONNECT, connect)
    return struct.pack(">II", len(command) + 4, len(command)) + command


def _receive_command(connection: socket.socket) -> Mapping[int, Any]:
    """The next command; raises an `EOFError` if what comes is none, or nothing."""
    (frame,) = struct.unpack(">I", _receive(connection, 4))
    if not 4 < frame <= _LARGEST_ANSWER:
        raise EOFError("this is not Pulsar's protocol")
    data = _receive(connection, frame)
    (size,) = struct.unpack(">I", data[:4])
    return _fields(data[4 : 4 + size])


def _refusal(command: Mapping[int, Any]) -> str | None:
    """What the broker says, if it does not accept our credentials."""
    details = command.get(_ERROR)
    if command.get(_TYPE) != _ERROR or not isinstance(details, bytes):
        return None
    error = _fields(details)
    if error.get(_ERROR_CODE) != _REFUSED:
        return None
    text = error.get(_ERROR_TEXT)
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else ""


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError("the broker hung up")
        data += more
    return data


def _fields(data: bytes) -> dict[int, Any]:
    """The fields of a protocol-buffers message, each the last of its number: a number or bytes.

    >>> _fields(_number(1, 300) + _text(2, b"abc"))
    {1: 300, 2: b'abc'}
    """
    found: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:
            value, at = data[at : at + value], at + value  # type: ignore[assignment]
        found[tag >> 3] = value
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at


def _number(field: int, value: int) -> bytes:
    return _as_varint(field << 3) + _as_varint(value)


def _text(field: int, value: bytes) -> bytes:
    return _as_varint(field << 3 | 2) + _as_varint(len(value)) + value


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# Tokens


def _claims(token: str) -> dict[str, Any]:
    """What a JWT says, whoever signed it; nothing if it is none."""
    with suppress(ValueError, IndexError):
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        if isinstance(claims, dict):
            return claims
    return {}


def _expired(token: str) -> str | None:
    """When the token expired, if it did."""
    expires = _claims(token).get("exp")
    if not isinstance(expires, (int, float)) or expires > time.time():
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(expires))
