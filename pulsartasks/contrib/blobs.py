"""Where bytes live that are too big for a message: a folder, or an S3 bucket. The message carries the key.

Both stores keep the same promises: a blob is there whole or not at all, the last `put` of a key wins as a whole (bytes
and content type together), and whoever got an answer from `put` will find the blob after a crash.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from pulsartasks.errors import ConfigurationError, PulsarTasksError

MAX_KEY_BYTES = 1024
"""Bytes of a key in UTF-8, its prefix included, that S3 takes."""
OCTETS = "application/octet-stream"


class BlobStoreError(PulsarTasksError):
    """A blob store could not do what was asked."""


class BlobNotFoundError(BlobStoreError):
    """There is no blob of this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no blob {key!r}.")
        self.key = key


class InvalidBlobKeyError(BlobStoreError, ValueError):
    """The key is empty, too long, or has a segment that a store would not take or would take for something else."""


class BlobStoreRefusedError(BlobStoreError):
    """The store said no and will say so again: no such bucket, wrong credentials, no permission."""


class BlobStoreUnavailableError(BlobStoreError, OSError):
    """The store did not answer, or not well; as an ``OSError`` it fits ``autoretry_for=(OSError,)``."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What a store holds under a key."""

    data: bytes
    content_type: str


class BlobStore(Protocol):
    """Blobs by key, safe to use from all threads of a process and after a fork.

    A key is text such as ``chat-7/voice/01.webm``: segments between slashes, at most 1024 bytes. No key may be the
    folder of another one (``a`` beside ``a/b``): some S3 servers keep folders and refuse that.

    Every method raises `BlobStoreUnavailableError` for what may pass, `BlobStoreRefusedError` for what will not, and
    `InvalidBlobKeyError` before anything else.
    """

    def put(self, key: str, data: bytes, content_type: str = OCTETS) -> None:
        """Keep `data` under `key`, in place of what was there; when it returns the blob is durable."""
        ...

    def get(self, key: str) -> Blob:
        """The blob of `key`.

        Raises:
            BlobNotFoundError: there is none.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget the blob of `key`; it is no error if there is none, so that a repeated delivery may delete again."""
        ...


def open_blob_store(url: str) -> BlobStore:
    """The store that `url` names; nothing is touched or connected before its first use.

    A folder is a path or ``file:///path``, made when it is missing. A bucket is
    ``s3://bucket/prefix?endpoint_url=https://...&region=...``, where all after the bucket is optional, with credentials
    from the usual chain (``AWS_ACCESS_KEY_ID``, profile, role).

    Raises:
        ConfigurationError: the URL is not one of these, or boto3 is missing; the message says what to do.
        InvalidBlobKeyError: the prefix cannot begin a key.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return _open_bucket(parts)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigurationError(f"Blob store {url!r}: a file URL has three slashes, as in file:///var/lib/blobs.")
        return DirectoryBlobStore(Path(unquote(parts.path)))
    if "://" in url or not url.strip():
        raise ConfigurationError(
            f"Blob store {url!r} is not known: write a folder such as /var/lib/blobs or file:///var/lib/blobs, "
            "or a bucket such as s3://bucket/prefix."
        )
    return DirectoryBlobStore(Path(url).expanduser())


def _open_bucket(parts: SplitResult) -> S3BlobStore:
    settings = dict(parse_qsl(parts.query))
    endpoint_url, region = settings.pop("endpoint_url", None), settings.pop("region", None)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
        flaw = "has no bucket's name after s3://, or credentials, which come from AWS_ACCESS_KEY_ID and the like"
    elif settings or parts.fragment:
        flaw = f"has {', '.join([*settings, *filter(None, [parts.fragment])])!r}, which means nothing here"
    elif endpoint_url and not re.match(r"https?://[^/]", endpoint_url):
        flaw = "has an endpoint_url without http:// or https://"
    else:
        return S3BlobStore(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint_url, region=region)
    address = f"s3://{parts.netloc.rpartition('@')[2]}{parts.path}"
    example = "s3://bucket/prefix?endpoint_url=https://s3.example.org&region=eu-central-1"
    raise ConfigurationError(f"Blob store {address} {flaw}: write a URL such as {example}.")


def check_key(key: str) -> str:
    """The key itself, if every store can take it.

    Raises:
        InvalidBlobKeyError: it cannot; the message says why.

    >>> check_key("chat-7/Grüße.webm")
    'chat-7/Grüße.webm'
    >>> check_key("../etc/passwd")
    Traceback (most recent call last):
    pulsartasks.contrib.blobs.InvalidBlobKeyError: Blob key '../etc/passwd' has a segment '..'.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidBlobKeyError(f"Blob key {key!r} cannot be written as UTF-8.") from None
    if size > MAX_KEY_BYTES:
        raise InvalidBlobKeyError(f"Blob key {key[:40]!r}... has {size} bytes; at most {MAX_KEY_BYTES} are possible.")
    if any(unicodedata.category(character) == "Cc" for character in key):
        raise InvalidBlobKeyError(f"Blob key {key!r} has a control character.")
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            flaw = f"a segment {segment!r}" if segment else "an empty segment"
            raise InvalidBlobKeyError(f"Blob key {key!r} has {flaw}.")
    return key


def _check_content_type(content_type: str) -> str:
    """It travels as an HTTP header, so no store takes one that would not fit there."""
    if not (content_type and content_type.isascii() and content_type.isprintable()):
        raise ValueError(f"{content_type!r} is not a content type; write one such as audio/webm.")
    return content_type


class _Header(msgspec.Struct, frozen=True):
    """The first line of a blob's file."""

    key: str
    content_type: str


class DirectoryBlobStore:
    """Blobs as files of one folder, for one machine and any number of processes on it.

    A file is named after a hash of the key and holds a line of JSON (key and content type) and then the bytes. So one
    rename replaces both at once, and no key is too long, differs only in case or is a folder's name, as a path made
    from it might be on some file system.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put(self, key: str, data: bytes, content_type: str = OCTETS) -> None:
        path = self._path(key)
        header = msgspec.json.encode(_Header(key, _check_content_type(content_type)))
        with _folder_errors(key):
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                _sync_folder(self.root)
            draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
            try:
                with draft.open("xb") as stream:
                    stream.write(header + b"\n")
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def get(self, key: str) -> Blob:
        path = self._path(key)
        with _folder_errors(key):
            try:
                stream = path.open("rb")
            except FileNotFoundError:
                raise BlobNotFoundError(key) from None
            with stream:
                header = msgspec.json.decode(stream.readline(), type=_Header)
                return Blob(stream.read(), header.content_type)

    def delete(self, key: str) -> None:
        with _folder_errors(key), suppress(FileNotFoundError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(check_key(key).encode()).hexdigest()
        return self.root / name[:2] / name[2:]


def _sync_folder(folder: Path) -> None:
    """A new name is durable only when its folder was written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _folder_errors(key: str) -> Iterator[None]:
    """The one place where a file system's errors become ours."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise BlobStoreRefusedError(f"The blob store's folder is not usable: {error}") from error
    except OSError as error:
        raise BlobStoreUnavailableError(error.errno or errno.EIO, error.strerror, error.filename) from error
    except msgspec.MsgspecError as error:
        raise BlobStoreRefusedError(f"The file of blob {key!r} was not written by a blob store: {error}") from error


class _S3Client(Protocol):
    """As much of boto3's client as is used here: its own type is known only where boto3's stubs are installed."""

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> object: ...  # noqa: N803
    def get_object(self, *, Bucket: str, Key: str) -> Mapping[str, Any]: ...  # noqa: N803
    def delete_object(self, *, Bucket: str, Key: str) -> object: ...  # noqa: N803


class S3BlobStore:
    """Blobs in an S3 bucket or under a prefix of it, on AWS or any server that speaks S3."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        if find_spec("boto3") is None:
            raise ConfigurationError("Blobs in S3 need boto3: pip install 'pulsartasks[s3]'.")
        self.bucket = bucket
        self.prefix = check_key(prefix) if prefix else ""
        self.endpoint_url = endpoint_url
        self.region = region
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._own_client: _S3Client | None = None

    def put(self, key: str, data: bytes, content_type: str = OCTETS) -> None:
        name, kind = self._name(key), _check_content_type(content_type)
        with _s3_errors(self.bucket, key):
            self._client().put_object(Bucket=self.bucket, Key=name, Body=data, ContentType=kind)

    def get(self, key: str) -> Blob:
        name = self._name(key)
        with _s3_errors(self.bucket, key):
            found = self._client().get_object(Bucket=self.bucket, Key=name)
            with found["Body"] as body:
                return Blob(body.read(), found["ContentType"])

    def delete(self, key: str) -> None:
        name = self._name(key)
        with _s3_errors(self.bucket, key):
            self._client().delete_object(Bucket=self.bucket, Key=name)

    def _name(self, key: str) -> str:
        return check_key(f"{self.prefix}/{check_key(key)}" if self.prefix else key)

    def _client(self) -> _S3Client:
        """This process's client, made at its first use."""
        if self._pid != os.getpid():  # a fork takes over neither connections nor a lock that nobody here will release
            self._pid, self._lock, self._own_client = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._own_client is None:
                self._own_client = _make_s3_client(self.endpoint_url, self.region)
            return self._own_client


def _make_s3_client(endpoint_url: str | None, region: str | None) -> _S3Client:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},  # servers other than AWS seldom have a host name per bucket
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=64,
    )
    # A session of its own: the default one is shared by all threads and must not be.
    return boto3.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


_S3_HINTS = {
    "NoSuchBucket": "make the bucket, or correct the URL",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    "PermanentRedirect": "the bucket is in another region: add ?region= to the URL",
    "RequestTimeTooSkewed": "set this machine's clock",
}
_S3_TRANSIENT = frozenset({"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "TooManyRequests"})


@contextmanager
def _s3_errors(bucket: str, key: str) -> Iterator[None]:
    """The one place where boto3's errors become ours."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _s3_answer(error.response, bucket, key) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise BlobStoreRefusedError(f"S3 bucket {bucket!r}: {error}: {hint}.") from error
    except (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.ChecksumError,
        boto.FlexibleChecksumError,
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
    ) as error:
        raise BlobStoreUnavailableError(f"S3 bucket {bucket!r}: {error}") from error
    except boto.BotoCoreError as error:
        raise BlobStoreRefusedError(f"S3 bucket {bucket!r}: {error}") from error


def _s3_answer(response: Mapping[str, Any], bucket: str, key: str) -> BlobStoreError:
    """What an S3 server's answer means."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchKey":
        return BlobNotFoundError(key)
    said = f"S3 bucket {bucket!r}, {key!r}: {code}: {response.get('Error', {}).get('Message', '')}".rstrip(": .")
    if status >= 500 or status == 429 or code in _S3_TRANSIENT:
        return BlobStoreUnavailableError(said)
    hint = _S3_HINTS.get(code)
    return BlobStoreRefusedError(f"{said}: {hint}." if hint else f"{said}.")
