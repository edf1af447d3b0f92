"""The part of Pulsar's admin interface that the port needs; see https://pulsar.apache.org/admin-rest-api/."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pulsartasks.brokers.base import Administration, SubscriptionState, TopicState
from pulsartasks.brokers.pulsar.settings import PulsarSettings
from pulsartasks.errors import AuthorizationError, BrokerError, BrokerUnavailableError
from pulsartasks.options import Start
from pulsartasks.schemas import Schema
from pulsartasks.topics import namespace_of

_TIMEOUT = 10.0
_ABSENT_FOR = 30.0
"""Seconds for which an admin interface that could not be reached is not tried again."""
_MAX_REDIRECTS = 5
_POSITION: dict[Start, dict[str, int]] = {
    "earliest": {"ledgerId": -1, "entryId": -1, "partitionIndex": -1},
    "latest": {"ledgerId": 2**63 - 1, "entryId": 2**63 - 1, "partitionIndex": -1},
}

_POLICIES = {"retention": "retention", "ttl": "messageTTL", "dispatch_rate": "dispatchRate"}
"""What Pulsar calls the policies of a topic."""
_IN_FORCE_WITHIN = 30.0
"""Seconds that a policy has to get to the broker of its topic, for which about one is usual."""
_IN_FORCE_PAUSE = 0.1
_PARTITION = re.compile(r"-partition-\d+$")


class AdminRefusedError(BrokerError):
    """The admin interface answered, but not with success."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the admin interface says {status}: {reason}")
        self.status = status


class AdminForbiddenError(AdminRefusedError, AuthorizationError):
    """The admin interface does not let these credentials do this."""


class Admin(Administration):
    """A thin client over the admin interface of `settings.admin_url`, each call a request of its own.

    What is refused is an `AdminRefusedError`.
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

    def inspect(self, topic: str) -> TopicState | None:
        """How the topic stands; None if there is none."""
        known = self._get(f"{_path(topic)}/partitions")
        partitions = 0 if known is None else int(known["partitions"])
        of_all = "partitioned-stats?perPartition=false&" if partitions else "stats?"
        stats = self._get(f"{_path(topic)}/{of_all}getPreciseBacklog=true")
        if stats is None:
            return TopicState(partitions, {}) if partitions else None
        durable = {name: sub for name, sub in sorted(stats["subscriptions"].items()) if sub["isDurable"]}
        return TopicState(partitions, {name: _state(sub) for name, sub in durable.items()})

    def topics(self, namespace: str) -> Collection[str]:
        path = f"persistent/{namespace}"
        found = {name for kind in ("", "/partitioned") for name in self._call("GET", f"{path}{kind}")}
        return {_PARTITION.sub("", name) for name in found}

    def grow(self, topic: str, partitions: int) -> None:
        self._call("POST", f"{_path(topic)}/partitions", partitions)

    def policy(self, topic: str, name: str) -> int | None:
        found = self._call("GET", f"{_path(topic)}/{_POLICIES[name]}?applied=false")
        return None if found is None else _policy_value(name, found)

    def set_policy(self, topic: str, name: str, value: int) -> None:
        path, body = f"{_path(topic)}/{_POLICIES[name]}", _policy_body(name, value)
        self._call("POST", f"{path}?messageTTL={value}" if name == "ttl" else path, body)
        deadline = time.monotonic() + _IN_FORCE_WITHIN
        while self.policy(topic, name) != value:
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"the {name} of {topic} is not in force {_IN_FORCE_WITHIN:g} s later")
            time.sleep(_IN_FORCE_PAUSE)

    def schemas(self, topic: str) -> Sequence[str]:
        found = self._get(f"{_schemas_path(topic)}/schemas")
        return [] if found is None else [each["data"] for each in found["getSchemaResponses"]]

    def register(self, topic: str, schema: Schema) -> None:
        body = {"type": "JSON", "schema": schema.definition, "properties": {}}
        self._call("POST", f"{_schemas_path(topic)}/schema", body)

    def permissions(self, topic: str) -> Mapping[str, frozenset[str]]:
        found = self._get(f"{_path(topic)}/permissions")
        if found is None:  # there is no such topic
            found = self._call("GET", f"namespaces/{namespace_of(topic)}/permissions")
        return {role: frozenset(actions) for role, actions in found.items()}

    def grant(self, topic: str, role: str, actions: Collection[str]) -> None:
        self._call("POST", f"{_path(topic)}/permissions/{quote(role, safe='')}", sorted(actions))

    def _get(self, path: str) -> Any:
        """What is there; None if that is nothing."""
        try:
            return self._call("GET", path)
        except AdminRefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

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


def _schemas_path(topic: str) -> str:
    return f"schemas/{_path(topic).partition('/')[2]}"


def _state(subscription: Any) -> SubscriptionState:
    return SubscriptionState(subscription["msgBacklog"], subscription["msgDelayed"], len(subscription["consumers"]))


def _policy_value(name: str, found: Any) -> int:
    if name == "retention":
        minutes = int(found["retentionTimeInMinutes"])
        return minutes * 60 if minutes > 0 else minutes
    return int(found["dispatchThrottlingRateInMsg"] if name == "dispatch_rate" else found)


def _policy_body(name: str, value: int) -> Any:
    if name == "retention":
        return {"retentionTimeInMinutes": value // 60, "retentionSizeInMB": -1}
    if name == "dispatch_rate":
        rate = {"dispatchThrottlingRateInMsg": value, "dispatchThrottlingRateInByte": -1}
        return {**rate, "ratePeriodInSecond": 1, "relativeToPublishRate": False}
    return None  # its value is in the address


def _target(address: SplitResult) -> str:
    return address.path + (f"?{address.query}" if address.query else "")


def _place(message_id: Any) -> tuple[int, int]:
    return int(message_id["ledgerId"]), int(message_id["entryId"])
