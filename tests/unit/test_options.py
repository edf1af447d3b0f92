"""Options of a task: safe defaults, and a hint for what cannot be."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from pulsartasks.errors import ConfigurationError
from pulsartasks.options import ORDERED, Mode, TaskKeywords, TaskOptions, check_names


def test_defaults_lose_nothing() -> None:
    options = TaskOptions()

    assert (options.mode, options.ack, options.start) == ("shared", "late", "earliest")
    assert options.dead_letter is True
    assert (options.max_retries, options.autoretry_for) == (3, ())


def test_every_option_but_those_with_overloads_is_a_keyword_that_type_checkers_know() -> None:
    assert {field.name for field in fields(TaskOptions)} - {"bind", "batch"} == set(TaskKeywords.__annotations__)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_mode_says_whether_it_keeps_an_order(mode: Mode) -> None:
    assert (mode in ORDERED) is (mode != "shared")


def test_retry_options_are_the_policys() -> None:
    options = TaskOptions.parse({"max_retries": None, "retry_backoff": 2, "autoretry_for": (OSError,)}, task="add")

    policy = options.retry_policy

    assert (policy.max_retries, policy.retry_backoff, policy.autoretry_for) == (None, 2, (OSError,))


@pytest.mark.parametrize(
    ("given", "hint"),
    [("max_retry", "did you mean 'max_retries'"), ("modus", "did you mean 'mode'"), ("zzz", "known are: .*ack")],
)
def test_unknown_option_is_refused_with_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        TaskOptions.parse({given: 1}, task="add")


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "fanout"},
        {"ack": "never"},
        {"start": "now"},
        {"key": 7},
        {"autoretry_for": OSError},
        {"dont_autoretry_for": ("OSError",)},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"concurrency": 0},
        {"concurrency": True},
        {"prefetch": 0},
        {"retry_backoff_max": -1},
        {"default_retry_delay": -0.1},
    ],
)
def test_value_that_an_option_cannot_have_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"task 'add': .*{next(iter(wrong))}"):
        TaskOptions.parse(wrong, task="add")


def test_mode_of_one_at_a_time_refuses_more() -> None:
    with pytest.raises(ConfigurationError, match="failover runs one message at a time"):
        TaskOptions.parse({"mode": "failover", "concurrency": 4}, task="add")


def test_names_that_are_known_pass() -> None:
    check_names(["a", "b"], {"a", "b", "c"}, what="anything")
