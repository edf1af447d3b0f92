"""`app.testing()`: calls go through a broker in memory and run on threads of the test itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsartasks import INJECTED, PulsarTasks, TaskContext


class Engine:
    """Something costly."""


def test_call_runs_and_join_waits_for_it() -> None:
    app = PulsarTasks("shop", "pulsar://nobody.is.there:6650")
    seen: list[int] = []

    @app.task
    def note(number: int) -> int:
        seen.append(number)
        return number

    with app.testing() as session:
        results = [note.delay(number) for number in range(20)]
        session.join(timeout=30)

        assert sorted(seen) == list(range(20))
        assert results[7].get(timeout=30) == 7


def test_join_waits_for_what_tasks_publish_and_for_retries() -> None:
    app = PulsarTasks("shop", "memory://")
    happened = app.topic("happened", schema=int, subscriptions=("a", "b"))
    seen: list[str] = []

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0.05)
    def start(context: TaskContext) -> None:
        if context.retries < 2:
            raise OSError
        happened.publish(7)

    for subscription in ("a", "b"):

        @app.task(topic=happened, subscription=subscription, name=subscription, bind=True)
        def handle(context: TaskContext, number: int) -> None:
            seen.append(f"{context.request.subscription}{number}")

    with app.testing() as session:
        start.delay()
        session.join(timeout=30)

    assert sorted(seen) == ["a7", "b7"]


def test_join_that_waits_in_vain_says_how_many_are_left() -> None:
    app = PulsarTasks("shop", "memory://")

    @app.task
    def note() -> None:
        """Does nothing."""

    with app.testing() as session:
        note.using(countdown=3600).delay()
        with pytest.raises(TimeoutError, match="1"):
            session.join(timeout=0.1)


def test_resources_are_set_up_and_torn_down() -> None:
    app = PulsarTasks("shop", "memory://")
    story: list[str] = []

    @app.resource
    def engine() -> Iterator[Engine]:
        story.append("up")
        yield Engine()
        story.append("down")

    @app.task
    def use(engine: Engine = INJECTED) -> None:
        story.append("used")

    with app.testing() as session:
        use.delay()
        session.join(timeout=30)

    assert story == ["up", "used", "down"]


def test_what_was_configured_is_back_afterwards_and_tests_share_nothing(database: Path) -> None:
    app = PulsarTasks("shop", f"local://{database}")
    seen: list[str] = []

    @app.task
    def note(text: str) -> None:
        seen.append(text)

    note.delay("for the real broker")
    for text in ("first", "second"):
        with app.testing() as session:
            assert app.broker_url == "memory://"
            note.delay(text)
            session.join(timeout=30)

    assert seen == ["first", "second"]
    assert app.broker_url == f"local://{database}"
    app.close()


def test_broker_in_memory_leaves_no_thread_behind() -> None:
    app = PulsarTasks("shop", "memory://")

    @app.task
    async def note() -> None:
        """Runs on an event loop."""

    before = set(threading.enumerate())
    with app.testing() as session:
        note.delay()
        session.join(timeout=30)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)

    assert set(threading.enumerate()) <= before


def test_revoked_and_expired_calls_are_settled_in_a_test_too() -> None:
    app = PulsarTasks("shop", "memory://")
    seen: list[str] = []

    @app.task
    def note(text: str) -> None:
        seen.append(text)

    with app.testing() as session:
        revoked = note.using(countdown=0.5).delay("revoked")
        revoked.revoke()
        expired = note.using(expires=0).delay("expired")
        note.delay("noted")
        session.join(timeout=30)

        assert seen == ["noted"]
        assert [revoked.state, expired.state] == ["REVOKED", "REVOKED"]
