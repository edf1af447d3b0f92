"""What a consumer of Pulsar knows of the messages that run, wait or ran here, when they come again."""

from __future__ import annotations

from pulsartasks.brokers.base import Delivery
from pulsartasks.brokers.pulsar.consumer import Progress


def delivery(handle: str) -> Delivery:
    return Delivery("t", "7:1:0", b"", None, {}, 0.0, handle=handle)


def test_copy_of_a_running_message_is_let_go_and_settled_in_its_place() -> None:
    progress, first = Progress(), delivery("first")
    assert progress.start(first, 0) == "new"

    assert progress.start(delivery("copy"), 1) == "running"

    assert (first.handle, first.session) == ("copy", 1)
    progress.finish(first.message_id)
    assert progress.start(delivery("late"), 1) == "finished"


def test_what_was_held_when_the_broker_was_lost_does_not_begin_and_its_copy_does() -> None:
    progress, held, copy = Progress(), delivery("held"), delivery("copy")
    progress.start(held, 0)
    progress.hold(held)

    assert progress.start(copy, 1) == "new"

    progress.hold(copy)
    assert not progress.begin(held, 1)
    assert progress.begin(copy, 1)
    assert progress.start(delivery("again"), 1) == "running"


def test_what_was_held_and_is_with_others_is_forgotten() -> None:
    progress, held = Progress(), delivery("held")
    progress.start(held, 0)
    progress.hold(held)

    assert not progress.begin(held, 1)

    assert progress.start(delivery("much later"), 1) == "new"


def test_held_message_begins_and_waits_again_while_the_broker_is_there() -> None:
    progress, held = Progress(), delivery("held")
    progress.start(held, 3)
    for _ in range(2):
        progress.hold(held)
        assert progress.start(delivery("copy"), 3) == "running"
        assert progress.begin(held, 3)


def test_message_that_ran_while_the_broker_was_lost_and_came_again_may_have_its_next_attempt() -> None:
    progress, first = Progress(), delivery("first")
    progress.start(first, 0)
    assert progress.start(delivery("copy"), 1) == "running"

    progress.hold(first)

    assert progress.begin(first, 1)
