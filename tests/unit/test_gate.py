"""The gate before an attempt: what was revoked or has expired does not get through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone

import pytest

from pulsartasks.clock import SystemClock
from pulsartasks.errors import UnreadableMessageError
from pulsartasks.message import EXPIRES, PUBLISHED_AT, Request, milliseconds, without_death, without_retries
from pulsartasks.outcome import Outcome, Revoked, Succeeded
from pulsartasks.revocation import KEPT, Notice
from pulsartasks.worker.revocations import Gate

PAST, FUTURE = time.time() - 60, time.time() + 3600


def outcome_of(
    headers: Mapping[str, str], *, published_at: float = 0.0, task_id: str = "id", **expires: float
) -> Outcome:
    request = Request(id=task_id, task="add", headers=headers, published_at=published_at)
    return Gate({"revoked"}, expires, SystemClock()).execute(request, lambda _: Succeeded(5))


def test_what_is_neither_revoked_nor_expired_gets_through() -> None:
    assert outcome_of({}) == Succeeded(5)
    assert outcome_of({EXPIRES: milliseconds(FUTURE)}) == Succeeded(5)
    assert outcome_of({}, published_at=PAST, add=3600) == Succeeded(5)
    assert outcome_of({}, published_at=PAST, subtract=1) == Succeeded(5)


def test_what_was_revoked_ends_here() -> None:
    assert outcome_of({}, task_id="revoked") == Revoked("revoked")


def test_what_has_expired_ends_here_by_its_header_first_and_else_by_its_tasks_option() -> None:
    assert outcome_of({EXPIRES: milliseconds(PAST)}) == Revoked("expired")
    assert outcome_of({EXPIRES: milliseconds(PAST)}, published_at=FUTURE, add=3600) == Revoked("expired")
    assert outcome_of({EXPIRES: milliseconds(FUTURE)}, published_at=PAST, add=1) == Succeeded(5)
    assert outcome_of({}, published_at=PAST, add=1) == Revoked("expired")


def test_option_counts_from_the_first_publication_and_not_from_that_of_a_retry() -> None:
    first = datetime.fromtimestamp(PAST, timezone.utc).isoformat()

    assert outcome_of({PUBLISHED_AT: first}, published_at=time.time(), add=30) == Revoked("expired")


@pytest.mark.parametrize("text", ["soon", "", "-1", "0"])
def test_header_that_is_no_instant_expires_nothing(text: str) -> None:
    assert outcome_of({EXPIRES: text}) == Succeeded(5)


def test_dead_letters_do_not_expire_whoever_gets_them() -> None:
    headers = {EXPIRES: milliseconds(PAST), "colour": "red"}

    assert without_death(headers) == without_retries(headers) == {"colour": "red"}


def test_notice_is_read_as_it_was_written_and_outlives_the_call() -> None:
    notice = Notice.of("id", terminate=True, eta=FUTURE, now=PAST)

    assert Notice.read(notice.publication("topic").value) == notice
    assert notice.until == FUTURE + KEPT
    assert Notice.of("id", terminate=False, eta=None, now=PAST).until == PAST + KEPT


def test_what_is_no_notice_is_said_to_be_none() -> None:
    with pytest.raises(UnreadableMessageError, match="no notice of a revoked task"):
        Notice.read(b'{"id": 5}')
