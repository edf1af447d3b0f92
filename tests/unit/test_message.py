"""Headers: what they say, and what is believed of those that others write."""

from __future__ import annotations

import time

import pytest

from pulsartasks.message import (
    DeadLetter,
    Request,
    milliseconds,
    new_task_id,
    read_int,
    task_id_instant,
    without_death,
    without_retries,
)

HEADERS = {
    "pt-task": "bill",
    "pt-id": "one",
    "colour": "red",
    "RECONSUMETIMES": "3",
    "DELAY_TIME": "1000",
    "REAL_TOPIC": "persistent://public/default/orders",
    "REAL_SUBSCRIPTION": "billing",
    "ORIGIN_MESSAGE_ID": "1:2",
    "ORIGIN_MESSAGE_IDY_TIME": "1:2",
    "pt-eta": "5",
    "pt-reason": "failed",
    "pt-exception-type": "ValueError",
    "pt-exception-message": "no",
    "pt-traceback": "Traceback",
    "pt-attempts": "4",
    "pt-worker": "here:1",
    "pt-failed-at": "2026-11-23T02:15:01.000+00:00",
    "pt-published-at": "2026-11-23T02:15:00.000+00:00",
}


def test_dead_letter_is_read_from_its_headers() -> None:
    assert DeadLetter.from_headers(HEADERS) == DeadLetter(
        reason="failed",
        exception_type="ValueError",
        exception_message="no",
        traceback="Traceback",
        attempts=4,
        worker="here:1",
        failed_at="2026-11-23T02:15:01.000+00:00",
        published_at="2026-11-23T02:15:00.000+00:00",
        topic="persistent://public/default/orders",
        subscription="billing",
    )


@pytest.mark.parametrize("written", ["", "order 7", "[7]", "[" * 100_000])
def test_what_is_no_stamps_is_none(written: str) -> None:
    assert Request(headers={"pt-stamps": written}).stamps == {}


def test_message_without_a_reason_is_no_dead_letter_of_ours() -> None:
    assert DeadLetter.from_headers({"REAL_TOPIC": "x"}) is None


def test_dead_letter_with_a_reason_alone_is_one() -> None:
    letter = DeadLetter.from_headers({"pt-reason": "failed"})

    assert letter is not None
    assert (letter.attempts, letter.traceback, letter.topic) == (0, "", "")


def test_message_that_lives_again_keeps_only_what_is_its_own() -> None:
    assert without_death(HEADERS) == {"pt-task": "bill", "pt-id": "one", "colour": "red"}


def test_dead_letter_starts_to_count_anew_for_who_handles_it() -> None:
    left = HEADERS.keys() - without_retries(HEADERS).keys()

    assert left == {"RECONSUMETIMES", "DELAY_TIME", "pt-eta"}


@pytest.mark.parametrize("text", ["", "two", "-1", "1.5", "٣", "9" * 19, " 1"])
def test_number_that_is_none_counts_as_nothing(text: str) -> None:
    assert read_int({"n": text}, "n") == 0
    assert read_int({}, "n") == 0


@pytest.mark.parametrize("instant", [0.0001, 1688062274.7101, 1688062274.7109999])
def test_delay_is_never_rounded_down(instant: float) -> None:
    assert instant <= int(milliseconds(instant)) / 1000 < instant + 0.0011


def test_task_ids_are_different_and_sort_by_time() -> None:
    ids = []
    for _ in range(3):
        ids.append([new_task_id() for _ in range(1000)])
        began = time.time()
        while time.time() < began + 0.002:
            pass

    assert len({task_id for batch in ids for task_id in batch}) == 3000
    assert max(ids[0]) < min(ids[1])
    assert max(ids[1]) < min(ids[2])


def test_task_id_tells_when_it_was_made() -> None:
    before = time.time()

    made = task_id_instant(new_task_id())

    assert made is not None
    assert before - 0.001 <= made <= time.time()


@pytest.mark.parametrize("task_id", ["order-17", "", "5b4ba4b5-5b4a-4b4a-8b4a-5b4a4b4a5b4a"])
def test_id_of_the_callers_own_tells_nothing(task_id: str) -> None:
    assert task_id_instant(task_id) is None
