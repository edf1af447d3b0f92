"""`app.testing()`: calls go through a broker in memory and run on threads of the test itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pulsartasks import (
    INJECTED,
    ConfigurationError,
    FrozenClock,
    InvalidArgumentsError,
    MessageTooLargeError,
    PulsarTasks,
    TaskContext,
    crontab,
)


class Engine:
    """Something costly."""


@dataclass(frozen=True)
class Order:
    customer: str


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
        assert results[7].get(timeout=120) == 7


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


def test_what_was_published_is_known_with_its_types_and_options() -> None:
    app = PulsarTasks("shop", "memory://")
    placed = app.topic("placed", schema=Order, key=lambda order: order.customer)

    @app.task(bind=True, max_retries=1, default_retry_delay=0.01, autoretry_for=(OSError,))
    def mail(context: TaskContext, order: Order, *, copies: int = 1) -> None:
        if context.retries == 0:
            raise OSError
        placed.publish(order)

    with app.testing() as session:
        call = mail.using(key="k", headers={"colour": "red"}).delay(Order("Ada"), copies=2)
        session.join(timeout=30)

        published = session.assert_published(mail, order=Order("Ada"), copies=2)  # given otherwise, and yet the same
        assert (published.id, published.key, published.headers) == (call.id, "k", {"colour": "red"})
        assert session.assert_published(placed, Order("Ada")).key == "Ada"
        assert [each.name for each in session.published()] == ["mail", "placed"]  # a retry is no publication
        assert len(session.published(mail)) == 1


def test_delayed_call_is_published_once_though_it_is_moved_to_where_it_runs() -> None:
    app = PulsarTasks("shop", "memory://")

    @app.task(mode="key_shared", key=lambda: "one")
    def note() -> None:
        """Runs later."""

    clock = FrozenClock()
    with app.testing(clock=clock) as session:
        note.using(countdown=60).delay()
        session.advance(60)

        [published] = session.published(note)
        assert published.eta is not None
        assert published.eta.timestamp() == clock.now()


def test_where_nothing_is_to_run_there_is_no_worker() -> None:
    app = PulsarTasks("shop", "memory://")
    placed = app.topic("placed", schema=Order)
    with app.testing() as session:
        placed.publish(Order("Ada"))
        session.join(timeout=30)
        session.assert_published(placed, Order("Ada"))

    @app.task
    def fail() -> None:
        raise ValueError

    with app.testing(topics=(), clock=FrozenClock()) as session:
        call = fail.using(countdown=60).delay()
        session.advance(60)
        session.assert_published(fail)
        assert call.state == "PENDING"


def test_test_that_could_not_begin_leaves_the_app_as_it_was() -> None:
    app = PulsarTasks("shop", "memory://")
    app.task(name="note")(lambda: None)

    with pytest.raises(ConfigurationError, match="no task consumes"), app.testing(topics=["nothing"]):
        """Is never reached."""

    assert app.middleware == ()


def test_dead_letter_is_no_publication_though_a_task_may_be_subscribed_to_it() -> None:
    app = PulsarTasks("shop", "memory://")
    placed = app.topic("placed", schema=Order, subscriptions=("mail",))
    unsent = placed.dead_letters("mail", subscriptions=("support",))
    seen: list[Order] = []

    @app.task(topic=placed, subscription="mail")
    def mail(order: Order) -> None:
        raise ValueError

    @app.task(topic=unsent, subscription="support")
    def look_into(order: Order) -> None:
        seen.append(order)

    with app.testing() as session:
        placed.publish(Order("Ada"))
        session.join(timeout=30)

        assert seen == [Order("Ada")]
        assert [str(each) for each in session.published()] == ["placed(Order(customer='Ada'))"]


def test_what_was_not_published_is_told_with_what_was() -> None:
    app = PulsarTasks("shop", "memory://")
    placed = app.topic("placed", schema=Order)

    @app.task
    def add(x: int, y: int = 0) -> int:
        return x + y

    with app.testing() as session:
        with pytest.raises(AssertionError, match=r"add\(2, 3\) was not published; nothing was published"):
            session.assert_published(add, 2, 3)
        add.using(key="k").delay(2, y=4)
        placed.publish(Order("Ada"))
        with pytest.raises(AssertionError) as caught:
            session.assert_published(add, 2, 3)
        assert str(caught.value).splitlines() == [
            "add(2, 3) was not published; what was published:",
            "  add(2, y=4) key=k",
            "  placed(Order(customer='Ada'))",
        ]
        with pytest.raises(AssertionError, match=r"placed.*Grace.* was not published"):
            session.assert_published(placed, Order("Grace"))
        with pytest.raises(InvalidArgumentsError):  # such a call there can never be
            session.assert_published(add, "two")  # type: ignore[call-overload]
        with pytest.raises(InvalidArgumentsError, match="exactly one payload"):
            session.assert_published(placed, Order("Ada"), Order("Grace"))  # type: ignore[call-overload]
        session.assert_published(add, 2, 4)
        assert session.assert_published(add).args == (2,)


def test_what_could_not_be_sent_was_not_published() -> None:
    app = PulsarTasks("shop", "memory://")

    @app.task
    def note(text: str) -> None:
        """Takes any text."""

    with app.testing() as session:
        with pytest.raises(MessageTooLargeError):
            note.delay("x" * 6_000_000)

        assert session.published() == []


@pytest.mark.parametrize("eager", [False, True])
def test_schedule_is_sent_at_its_instants_when_the_clock_comes_to_them(eager: bool) -> None:
    app = PulsarTasks("shop")
    ran: list[tuple[str, float]] = []

    @app.task
    def purge(what: str) -> None:
        ran.append((what, app.clock.now()))

    night = datetime(2026, 3, 28, 12, tzinfo=timezone.utc)  # before the one in which clocks go forward
    app.schedule("nightly", crontab("30 2 * * *", tz="Europe/Berlin"), purge.s("orders"))
    app.schedule("daily", 86_400, purge.s("carts"))
    with app.testing(clock=FrozenClock(night), eager=eager, beat=True) as running:
        running.advance(timedelta(days=2))
        running.assert_published(purge, "orders")

    day = night.replace(day=29, hour=0).timestamp()
    assert ran == [
        ("carts", day),
        ("orders", day + 3600),
        ("carts", day + 86_400),
        ("orders", day + 86_400 + 1800),
    ]


def test_schedule_without_a_frozen_clock_is_refused() -> None:
    testing = PulsarTasks("shop").testing(beat=True)

    with pytest.raises(ConfigurationError, match="beat=True sends what a frozen clock comes to"), testing:
        pass
