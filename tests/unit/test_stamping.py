"""What a visitor is asked, where, and what becomes of what it says."""

from __future__ import annotations

from typing import Any

import pytest

from pulsartasks import InvalidArgumentsError, PulsarTasks, StampingVisitor, chain, chord, group
from pulsartasks.message import STAMPS

app = PulsarTasks("stamping", "memory://")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


class Listening(StampingVisitor):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object, dict[str, Any]]] = []

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on signature", sig, headers)

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on group", group, headers)

    def on_group_end(self, group: Any, **headers: Any) -> None:
        self._hear("on group end", group, headers)

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on chain", chain, headers)

    def on_chain_end(self, chain: Any, **headers: Any) -> None:
        self._hear("on chain end", chain, headers)

    def on_chord_body(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on body", sig, headers)

    def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on callback", callback, headers)

    def on_errback(self, errback: Any, **headers: Any) -> dict[str, Any]:
        return self._hear("on errback", errback, headers)

    def _hear(self, what: str, canvas: object, headers: dict[str, Any]) -> dict[str, Any]:
        self.heard.append((what, canvas, headers))
        return {what: len(self.heard)}


def test_visitor_is_asked_from_the_outside_to_the_inside_and_what_it_says_holds_for_all_within() -> None:
    one, two, three, callback, errback = add.s(1, 1), add.s(2), add.s(3), add.s(4), add.si(5, 5)
    parts = group(two, three.on_error(errback))
    parts.link(callback)
    whole = chain(one, parts)
    visitor = Listening()

    assert whole.stamp(visitor, order=7) is whole

    assert visitor.heard == [
        ("on chain", whole, {"order": 7}),
        ("on signature", one, {"order": 7, "on chain": 1}),
        ("on group", parts, {"order": 7, "on chain": 1}),
        ("on callback", callback, {"order": 7, "on chain": 1, "on group": 3}),
        ("on signature", callback, {"order": 7, "on chain": 1, "on group": 3, "on callback": 4}),
        ("on signature", two, {"order": 7, "on chain": 1, "on group": 3}),
        ("on errback", errback, {"order": 7, "on chain": 1, "on group": 3}),
        ("on signature", errback, {"order": 7, "on chain": 1, "on group": 3, "on errback": 7}),
        ("on signature", three, {"order": 7, "on chain": 1, "on group": 3}),
        ("on group end", parts, {"order": 7, "on chain": 1, "on group": 3}),
        ("on chain end", whole, {"order": 7, "on chain": 1}),
    ]
    assert two.stamps == {"order": 7, "on chain": 1, "on group": 3, "on signature": 6}


def test_parts_of_a_chord_are_a_group_and_its_links_go_with_its_body() -> None:
    part, body, errback = add.s(1, 1), total.s(), add.si(2, 2)
    whole = chord([part], body).on_error(errback)
    visitor = Listening()

    whole.stamp(visitor)

    assert [(what, canvas) for what, canvas, _ in visitor.heard] == [
        ("on group", whole.header),
        ("on signature", part),
        ("on group end", whole.header),
        ("on body", whole),
        ("on errback", errback),
        ("on signature", errback),
        ("on signature", body),
    ]
    assert part.stamps == {"on group": 1, "on signature": 2}
    assert body.stamps == {"on body": 4, "on signature": 7}
    assert errback.stamps == {"on body": 4, "on errback": 5, "on signature": 6}


def test_stamp_that_is_given_again_replaces_the_one_before_or_is_appended_to_it() -> None:
    call = add.s(1, 1).stamp(groups=["a"], colour="red")

    assert call.stamp(colour="blue").stamps == {"groups": ["a"], "colour": "blue"}
    assert call.stamp(groups="b", colour="green", append_stamps=True).stamps == {
        "groups": ["a", "b"],
        "colour": ["blue", "green"],
    }


@pytest.mark.parametrize(
    ("said", "stamps"),
    [
        ({"monitoring_id": 1, "other_data": 2}, {"monitoring_id": 1, "other_data": 2}),
        ({"monitoring_id": 1, "other_data": 2, "stamped_headers": ["monitoring_id"]}, {"monitoring_id": 1}),
        (None, {}),
    ],
)
def test_stamped_headers_say_which_of_them_are_stamps(said: Any, stamps: dict[str, Any]) -> None:
    class Saying(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return said  # type: ignore[no-any-return]

    assert add.s(1, 1).stamp(Saying()).stamps == stamps


def test_stamps_are_among_the_options_of_a_call_and_of_its_clone_and_in_its_message() -> None:
    happened = app.topic("happened", schema=int)
    call = add.s(1, 1).set(countdown=1).stamp(order=7)

    assert call.clone(countdown=2).options == {"countdown": 2, "order": 7, "stamped_headers": ["order"]}
    assert call.publication().properties[STAMPS] == '{"order":7}'
    assert happened.s(1).stamp(order=7).publication().properties[STAMPS] == '{"order":7}'
    assert STAMPS not in add.s(1, 1).publication().properties


def test_stamp_that_is_no_data_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgumentsError, match=r"a stamp of add\(1, 1\) cannot be sent as JSON"):
        add.s(1, 1).stamp(order=object()).delay()
