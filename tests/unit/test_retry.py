"""When a message is tried again, and after how long."""

from __future__ import annotations

import random

import pytest

from pulsartasks.retry import UNKNOWN_TASK_PATIENCE, RetryPolicy, backoff, unknown_task_delay


def test_nothing_is_retried_that_is_not_named() -> None:
    policy = RetryPolicy()

    assert not any(policy.covers(error) for error in (OSError(), ValueError(), KeyboardInterrupt()))


def test_subclasses_of_what_is_named_are_retried_but_for_those_excluded() -> None:
    policy = RetryPolicy(autoretry_for=(OSError, KeyError), dont_autoretry_for=(FileNotFoundError,))

    assert [policy.covers(error) for error in (ConnectionError(), KeyError(), FileNotFoundError(), ValueError())] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("limit", "attempts"), [(0, 1), (3, 4)])
def test_attempts_are_the_first_and_its_retries(limit: int, attempts: int) -> None:
    policy = RetryPolicy(max_retries=limit)

    made = 1
    while policy.has_left(made - 1):
        made += 1

    assert made == attempts


def test_without_a_limit_there_is_always_one_left() -> None:
    assert RetryPolicy(max_retries=None).has_left(10**9)


def test_without_backoff_every_delay_is_the_default() -> None:
    policy = RetryPolicy(default_retry_delay=2.5, retry_jitter=True)

    assert [policy.delay(retries, random.random) for retries in range(4)] == [2.5] * 4


def test_backoff_doubles_up_to_its_maximum() -> None:
    policy = RetryPolicy(retry_backoff=0.5, retry_backoff_max=3, retry_jitter=False)

    assert [policy.delay(retries, random.random) for retries in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_backoff_of_true_begins_with_a_second() -> None:
    assert RetryPolicy(retry_backoff=True, retry_jitter=False).delay(0, random.random) == 1.0


def test_jitter_spreads_over_the_backoff_and_never_gives_nothing() -> None:
    policy = RetryPolicy(retry_backoff=8)
    draw = random.Random(7).random

    delays = [policy.delay(0, draw) for _ in range(1000)]

    assert 0 < min(delays) < 0.1
    assert 7.9 < max(delays) <= 8.0
    assert policy.delay(0, lambda: 0.0) == 8.0


@pytest.mark.parametrize("retries", [0, 1, 63, 64, 65, 10**6])
def test_backoff_never_overflows(retries: int) -> None:
    assert 0 < backoff(retries) <= 600.0


def test_unknown_task_is_tried_again_with_backoff_until_its_patience_is_over() -> None:
    delays = [unknown_task_delay(age=0.0, retries=retries) for retries in range(7)]

    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert unknown_task_delay(age=UNKNOWN_TASK_PATIENCE, retries=30) == 30.0
    assert unknown_task_delay(age=UNKNOWN_TASK_PATIENCE + 1, retries=0) is None
