"""What comes after a call: the steps of a canvas that are not sent yet, as they travel with the one before them.

They stand in the value of its message, under ``then``, so that whoever settles it can send the next ones without any
store, and without knowing their tasks: ids, topics and headers were fixed by whoever sent the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, Union

import msgspec

from pulsartasks.errors import UnreadableMessageError
from pulsartasks.message import CANVAS, ETA, EXPIRES, SINGLE, Publication, milliseconds
from pulsartasks.serializers import UNREADABLE

STARMAP = ".starmap"
"""What the name of a task has behind it in a message that calls it for each of a list of arguments."""


class Step(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="call"):
    """One call that is not sent yet: all of its message but the result that it is to have as first argument."""

    topic: str
    """Full name."""
    headers: dict[str, str]
    app: str = ""
    """Of its task."""
    args: list[msgspec.Raw] = []
    kwargs: dict[str, msgspec.Raw] = {}
    key: str | None = None
    keyed: bool = False
    """Its key is what its task's ``key=`` gives, which could not be asked before all arguments were known."""
    immutable: bool = False
    """It takes its arguments as they are, without the result of the step before."""
    countdown: float | None = None
    """Seconds from when it is sent."""
    eta: float | None = None
    """Seconds since the epoch."""
    expires: float | None = None
    """Seconds from when it is sent."""
    links: list[Steps] = []
    """What is called with its result, besides the next step."""
    errbacks: list[Steps] = []
    """What is called with its failure."""

    def publication(self, value: bytes | None, sequel: Sequel, *, now: float) -> Publication:
        """Its message; `value` is the result of the step before (JSON), None if there was none."""
        args = self.args if value is None or self.immutable else [msgspec.Raw(value), *self.args]
        call: dict[str, object] = {"args": args, "kwargs": self.kwargs}
        properties = dict(self.headers)
        if sequel:
            call["then"] = sequel
            properties[CANVAS] = "1"
        due = self.eta if self.countdown is None else now + self.countdown
        if due is not None:
            properties[ETA] = milliseconds(due)
        if self.expires is not None:
            properties[EXPIRES] = str(int((now + self.expires) * 1000))
        return Publication(self.topic, msgspec.json.encode(call), self.key, properties, due)


class Parts(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="group"):
    """Steps that run beside each other, and that nothing waits for together."""

    parts: list[Steps]


class Gather(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="chord"):
    """Steps that run beside each other; what comes next has the list of their results."""

    topic: str
    """Where its parts say how they ended."""
    id: str
    parts: list[Steps]
    errbacks: list[Steps] = []
    """What is called with the first failure among its parts."""


Node: TypeAlias = Union[Step, Parts, Gather]  # noqa: UP007 - msgspec reads it when the classes are there
Steps: TypeAlias = list[Node]
"""One after the other; a group without anything that gathers its results can only be the last."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Which part of which chord."""

    topic: str
    chord: str
    number: int
    """From 0."""


class Sequel(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes after one call."""

    rest: Steps = []
    """The steps that follow, the first of them with its result."""
    links: list[Steps] = []
    errbacks: list[Steps] = []
    part: Part | None = None
    """Whose value the result of the last step is."""

    def __bool__(self) -> bool:
        return bool(self.rest or self.links or self.errbacks or self.part)


class Opening(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="do", tag="open"):
    """What a chord's counter must know, sent along with the chord's parts."""

    chord: str
    count: int
    then: Sequel


KeyOf: TypeAlias = Callable[[Step, bytes], str | None]
"""The key of a step whose message has this value."""


def own_key(step: Step, _: bytes) -> str | None:
    """The key that was known when the canvas was sent."""
    return step.key


def messages(
    steps: Sequence[Node],
    value: bytes | None,
    *,
    now: float,
    part: Part | None = None,
    key_of: KeyOf = own_key,
    single: bool = False,
) -> Iterator[Publication]:
    """What to send for the first of `steps` now; the others travel along.

    Args:
        steps: one after the other.
        value: the result of the step before, as JSON; None at the beginning.
        now: seconds since the epoch.
        part: what the last of `steps` is to answer for.
        key_of: gives the key of a call.
        single: the same may be sent once more by somebody who does not know of it; of both only one is to run.
    """
    first, rest = steps[0], list(steps[1:])
    if isinstance(first, Step):
        publication = first.publication(value, Sequel(rest, first.links, first.errbacks, part), now=now)
        properties = {**publication.properties, SINGLE: "1"} if single else publication.properties
        yield msgspec.structs.replace(publication, key=key_of(first, publication.value), properties=properties)
        return
    if isinstance(first, Gather):
        opening = Opening(first.id, len(first.parts), Sequel(rest, errbacks=first.errbacks, part=part))
        yield Publication(first.topic, msgspec.json.encode(opening), first.id)
    for number, each in enumerate(first.parts):
        its = Part(first.topic, first.id, number) if isinstance(first, Gather) else None
        yield from messages(each, value, now=now, part=its, key_of=key_of, single=single)


def calls(steps: Sequence[Node]) -> Iterator[Step]:
    """All calls in `steps`, those linked to them left out."""
    for node in steps:
        if isinstance(node, Step):
            yield node
        else:
            for part in node.parts:
                yield from calls(part)


class _Call(msgspec.Struct):
    then: Sequel


def read_sequel(value: bytes) -> Sequel:
    """What comes after the call whose message has this value.

    Raises:
        UnreadableMessageError: it does not say so, or not in our words.
    """
    try:
        return _decode(value).then
    except UNREADABLE as error:
        raise UnreadableMessageError(f"what comes after the call cannot be read: {error}") from error


_decode = msgspec.json.Decoder(_Call).decode
