"""Many calls at once: `Task.map`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pulsartasks import InvalidArgumentsError, MessageTooLargeError, PulsarTasks, Task, UnconfirmedError
from pulsartasks import task as tasks
from tests.conformance.conftest import Workers


@pytest.fixture
def echo(app: PulsarTasks) -> Task[[str], str]:
    @app.task
    def echo(text: str) -> str:
        return text

    return echo


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PORTION", 4)


@pytest.mark.parametrize("batching", [False, True])
def test_calls_are_made_in_order_of_the_items_and_progress_is_told(
    app: PulsarTasks, start_worker: Workers, batching: bool
) -> None:
    @app.task(batching=batching)
    def double(number: int) -> int:
        return 2 * number

    start_worker(app)
    progress: list[int] = []

    calls = double.map(((number,) for number in range(10)), progress=progress.append)

    assert calls.get(timeout=120) == [2 * number for number in range(10)]
    assert progress == [4, 8, 10]


@pytest.mark.guarantee(14)
def test_what_was_not_confirmed_is_named_and_the_others_run(
    app: PulsarTasks, echo: Task[[str], str], start_worker: Workers
) -> None:
    start_worker(app)
    progress: list[int] = []

    with pytest.raises(UnconfirmedError, match="1 of 6 were not confirmed: echo") as caught:
        echo.map([("a",), ("x" * 6_000_000,), ("c",), ("d",), ("e",), ("f",)], progress=progress.append)

    [error] = caught.value.failures.values()
    assert isinstance(error, MessageTooLargeError)
    assert progress == [3, 5]
    calls = caught.value.calls
    assert [call.get(timeout=120) for call in calls if f"echo[{call.id}]" not in caught.value.failures] == list("acdef")


@pytest.mark.guarantee(14)
def test_item_that_does_not_fit_is_told_with_its_place(echo: Task[[str], str]) -> None:
    def items() -> Iterator[Sequence[Any]]:
        yield from [("a",), ("b",), ("c",), ("d",), ("e",), (7,)]

    with pytest.raises(InvalidArgumentsError, match=r"item 5, \(7,\): .*the 4 before it were sent"):
        echo.map(items())


@pytest.mark.guarantee(14)
def test_item_that_is_no_sequence_is_told_so(echo: Task[[str], str]) -> None:
    with pytest.raises(InvalidArgumentsError, match=r"item 1, 7: .*the 0 before it were sent"):
        echo.map([("a",), 7])  # type: ignore[list-item]


def test_options_of_using_are_those_of_all(app: PulsarTasks, echo: Task[[str], str], start_worker: Workers) -> None:
    seen: list[str | None] = []

    @app.task(bind=True)
    def keyed(self: Any, text: str) -> str:
        seen.append(self.request.key)
        return text

    start_worker(app)

    assert keyed.using(key="k").map([("a",), ("b",)]).get(timeout=120) == ["a", "b"]
    assert seen == ["k", "k"]


def test_in_a_block_they_leave_with_it(app: PulsarTasks, echo: Task[[str], str], start_worker: Workers) -> None:
    start_worker(app)

    with app.publishing():
        calls = echo.map([("a",), ("b",)])
        with pytest.raises(Exception, match="leaves when the block"):
            calls.get(timeout=1)

    assert calls.get(timeout=120) == ["a", "b"]


def test_nothing_is_a_group_of_nothing(echo: Task[[str], str]) -> None:
    assert echo.map([]).get(timeout=1) == []
