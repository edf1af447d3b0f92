"""Lanes: one message of each at a time, in order, and others go on."""

from __future__ import annotations

import random
from collections import defaultdict

from pulsartasks.brokers.base import Delivery
from pulsartasks.worker.lanes import Held, Lanes


def held(label: str) -> Held:
    delivery = Delivery("topic", label, b"", label[0], {}, 0.0)
    return Held(delivery, lane=label[0])


def label(one: Held | None) -> str | None:
    return None if one is None else one.delivery.message_id


def filled(*labels: str) -> Lanes:
    lanes = Lanes(100)
    for each in labels:
        lanes.put(held(each))
    return lanes


def test_one_message_of_a_lane_runs_at_a_time() -> None:
    lanes = filled("a1", "a2", "b1")

    first, second = lanes.take(0.0), lanes.take(0.0)

    assert (label(first), label(second)) == ("a1", "b1")
    assert lanes.take(0.0) is None


def test_next_of_a_lane_runs_when_the_one_before_is_done() -> None:
    lanes = filled("a1", "a2")
    first = lanes.take(0.0)
    assert first is not None

    lanes.done(first)

    assert label(lanes.take(0.0)) == "a2"


def test_postponed_message_holds_its_lane_until_it_is_due() -> None:
    lanes = filled("a1", "a2", "b1")
    first = lanes.take(0.0)
    assert first is not None

    lanes.postpone(first, until=10.0)

    assert label(lanes.take(5.0)) == "b1"
    assert lanes.take(5.0) is None
    assert lanes.next_due() == 10.0
    assert lanes.take(10.0) is first
    assert lanes.next_due() is None


def test_parked_message_joins_its_lane_when_it_is_due_and_holds_up_nobody() -> None:
    lanes = filled("a1", "a2")
    lanes.park(held("a9"), until=10.0)
    running = lanes.take(10.0)
    assert running is not None
    assert label(running) == "a1"

    lanes.done(running)
    second = lanes.take(10.0)
    assert second is not None
    lanes.done(second)

    assert (label(second), label(lanes.take(10.0))) == ("a2", "a9")


def test_parked_message_waits_though_nothing_else_is_there() -> None:
    lanes = Lanes(100)
    lanes.park(held("a1"), until=10.0)

    assert lanes.take(9.999) is None
    assert lanes.next_due() == 10.0
    assert label(lanes.take(10.0)) == "a1"


def test_messages_due_at_the_same_instant_keep_their_order() -> None:
    lanes = filled("a1", "b1", "c1")
    for _ in range(3):
        one = lanes.take(0.0)
        assert one is not None
        lanes.postpone(one, until=1.0)

    assert [label(lanes.take(1.0)) for _ in range(3)] == ["a1", "b1", "c1"]


def test_all_that_is_held_counts_towards_the_limit() -> None:
    lanes = Lanes(3)
    lanes.put(held("a1"))
    lanes.put(held("a2"))
    full = [lanes.full]
    lanes.park(held("b1"), until=1.0)
    full.append(lanes.full)
    running = lanes.take(0.0)
    assert running is not None
    full.append(lanes.full)
    lanes.done(running)
    full.append(lanes.full)

    assert full == [False, True, True, False]


def test_any_interleaving_keeps_the_order_of_every_lane() -> None:
    draw = random.Random(17)
    lanes, now = Lanes(10_000), 0.0
    arriving = [f"{lane}{number:03}" for number in range(50) for lane in "abcd"]
    running: list[Held] = []
    seen: dict[str, list[str]] = defaultdict(list)

    while sum(map(len, seen.values())) < len(arriving):
        now += 0.1
        match draw.randrange(3):
            case 0 if arriving_left := len(arriving) - lanes_received(seen, running, lanes):
                lanes.put(held(arriving[len(arriving) - arriving_left]))
            case 1 if (one := lanes.take(now)) is not None:
                assert one.lane not in {other.lane for other in running}
                running.append(one)
            case 2 if running:
                one = running.pop(draw.randrange(len(running)))
                if draw.random() < 0.2:
                    lanes.postpone(one, now + draw.random())
                else:
                    seen[str(one.lane)].append(one.delivery.message_id)
                    lanes.done(one)

    assert all(labels == sorted(labels) for labels in seen.values())


def lanes_received(seen: dict[str, list[str]], running: list[Held], lanes: Lanes) -> int:
    return sum(map(len, seen.values())) + lanes._count
