"""The little of Pulsar's admin interface that the port needs; see https://pulsar.apache.org/admin-rest-api/."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pulsartasks.brokers.pulsar.settings import PulsarSettings
from pulsartasks.errors import AuthorizationError, BrokerError, BrokerUnavailableError
from pulsartasks.options import Start

_TIMEOUT = 10.0
_ABSENT_FOR = 30.0
"""Seconds for which an admin interface that could not be reached is not tried again."""
_MAX_REDIRECTS = 5
_POSITION: dict[Start, dict[str, int]] = {
    "earliest": {"ledgerId": -1, "entryId": -1, "partitionIndex": -1},
    "latest": {"ledgerId": 2**63 - 1, "entryId": 2**63 - 1, "partitionIndex": -1},
}


class AdminRefusedError(BrokerError):
    """The admin interface answered, but not with success."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the admin interface says {status}: {reason}")
        self.status = status


class AdminForbiddenError(AdminRefusedError, AuthorizationError):
    """The admin interface does not let these credentials do this."""


class Admin:
    """A thin client over the admin interface of `settings.admin_url`, each call a request of its own.

    Every method raises:
        BrokerUnavailableError: there is no admin interface, or it is not a Pulsar's.
        AdminRefusedError: it is there and says no.
    """

    def __init__(self, settings: PulsarSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known = False
        self._absent_until = 0.0

    def create_partitions(self, topic: str, partitions: int) -> None:
        """Make `topic` with so many partitions; nothing happens if it exists."""
        self._create(f"{_path(topic)}/partitions", partitions)

    def create_subscription(self, topic: str, subscription: str, start: Start) -> None:
        """Make the subscription, and the topic before it; nothing happens if it exists."""
        self._create(f"{_path(topic)}/subscription/{quote(subscription, safe='')}", _POSITION[start])

    def deduplicates(self, topic: str) -> bool:
        """Whether a policy of the topic or its namespace, or the broker's own, has what is sent twice stored once."""
        return bool(self._call("GET", f"{_path(topic)}/deduplicationEnabled?applied=true"))

    def expire(self, topic: str, subscription: str, before: float) -> None:
        """Acknowledge all of a topic (or partition, never a partitioned topic as a whole) published before `before`."""
        path = _path(topic)
        # Asked first: if nothing is as new as `before`, then all up to this message is older, whatever comes meanwhile.
        last = self._call("GET", f"{path}/lastMessageId")
        first_kept = self._call("GET", f"{path}/messageid/{int(before * 1000)}")
        end = min(_place(last), (_place(first_kept)[0], _place(first_kept)[1] - 1))
        if end[1] < 0 and end == _place(last):
            return  # nothing was ever published
        target = {"ledgerId": end[0], "entryId": end[1], "partitionIndex": -1}
        self._call("POST", f"{path}/subscription/{quote(subscription, safe='')}/expireMessages", target)

    def _create(self, path: str, body: Any) -> None:
        try:
            self._call("PUT", path, body)
        except AdminRefusedError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        url = self._find()
        try:
            return self._request(method, f"{url}/admin/v2/{path}", body)
        except (OSError, http.client.HTTPException) as error:
            raise self._absent(f"the admin interface {url} does not answer: {error}") from error

    def _find(self) -> str:
        """The address, once it has shown itself to be a Pulsar's: what else answers there must not be believed."""
        url = self._settings.admin_url
        if url is None:
            raise BrokerUnavailableError(
                "no admin interface is known; give admin_url= in the URL, or PULSARTASKS_ADMIN_URL"
            )
        if time.monotonic() < self._absent_until:
            raise BrokerUnavailableError(f"the admin interface {url} did not answer a moment ago")
        if not self._known:
            try:
                version = self._request("GET", f"{url}/admin/v2/brokers/version", None)
            except (OSError, http.client.HTTPException, AdminRefusedError) as error:
                raise self._absent(f"the admin interface {url} does not answer: {error}") from error
            if not isinstance(version, str) or re.match(r"\d+\.\d+", version) is None:
                raise self._absent(f"{url} is not the admin interface of a Pulsar")
            self._known = True
        return url

    def _absent(self, why: str) -> BrokerUnavailableError:
        with self._lock:
            self._known = False
            self._absent_until = time.monotonic() + _ABSENT_FOR
        return BrokerUnavailableError(why)

    def _request(self, method: str, url: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        for _ in range(_MAX_REDIRECTS):
            address = urlsplit(url)
            connection = self._connect(address)
            try:
                connection.request(method, _target(address), body=content, headers=self._headers())
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
            finally:
                connection.close()
            if answer.status not in (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT, HTTPStatus.FOUND):
                return _result(answer.status, text)
            # The broker that owns the topic; it wants to see the token too, but never in the clear.
            url = urljoin(url, answer.headers.get("Location", ""))
            if address.scheme == "https" and urlsplit(url).scheme != "https":
                raise AdminRefusedError(answer.status, f"it leads from https to {url}")
        raise AdminRefusedError(HTTPStatus.LOOP_DETECTED, "too many redirects")

    def _connect(self, address: SplitResult) -> http.client.HTTPConnection:
        host = address.hostname or ""
        if address.scheme != "https":
            return http.client.HTTPConnection(host, address.port, timeout=_TIMEOUT)
        context = ssl.create_default_context(cafile=self._settings.tls_ca)
        context.check_hostname = self._settings.tls_validate_hostname
        if self._settings.tls_cert:
            context.load_cert_chain(self._settings.tls_cert, self._settings.tls_key)
        return http.client.HTTPSConnection(host, address.port, timeout=_TIMEOUT, context=context)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/plain"}
        if self._settings.authenticated:
            headers["Authorization"] = f"Bearer {self._settings.read_token()}"
        return headers


def _result(status: int, text: str) -> Any:
    """The answer, decoded where it is JSON, as most are."""
    try:
        answer = json.loads(text) if text else None
    except ValueError:
        answer = text
    if status >= HTTPStatus.BAD_REQUEST:
        reason = answer.get("reason") if isinstance(answer, dict) else None
        forbidden = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        raise (AdminForbiddenError if forbidden else AdminRefusedError)(status, str(reason or text[:200]))
    return answer


def _path(topic: str) -> str:
    return quote(topic.replace("://", "/"))


def _target(address: SplitResult) -> str:
    return address.path + (f"?{address.query}" if address.query else "")


def _place(message_id: Any) -> tuple[int, int]:
    return int(message_id["ledgerId"]), int(message_id["entryId"])
