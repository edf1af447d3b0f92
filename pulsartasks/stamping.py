"""Stamps: labels that the calls of a canvas carry, so that whoever sees one of them knows what it is part of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from typing_extensions import Self


class StampingVisitor:
    """Is asked at each place of a canvas what to stamp there: a dict of stamps by name, of which only those count that
    are listed under ``stamped_headers``, if that is in it.

    Each method gets the stamps of what is around. Those that it gives are for all that is in that place, too.
    """

    def on_signature(self, sig: Any, **stamps: Any) -> dict[str, Any]:
        """A call; asked after what is linked to it."""
        return {}

    def on_group_start(self, group: Any, **stamps: Any) -> dict[str, Any]:
        return {}

    def on_group_end(self, group: Any, **stamps: Any) -> None: ...

    def on_chain_start(self, chain: Any, **stamps: Any) -> dict[str, Any]:
        return {}

    def on_chain_end(self, chain: Any, **stamps: Any) -> None: ...

    def on_chord_header_start(self, sig: Any, **stamps: Any) -> dict[str, Any]:
        """The parts of a chord, which are a group as well."""
        return self.on_group_start(sig.header, **stamps)

    def on_chord_header_end(self, sig: Any, **stamps: Any) -> None:
        self.on_group_end(sig.header, **stamps)

    def on_chord_body(self, sig: Any, **stamps: Any) -> dict[str, Any]:
        """The body of a chord, and what is linked to the chord."""
        return {}

    def on_callback(self, callback: Any, **stamps: Any) -> dict[str, Any]:
        """What is linked to any of these."""
        return {}

    def on_errback(self, errback: Any, **stamps: Any) -> dict[str, Any]:
        return {}


class Stamped(Protocol):
    """What stamping needs of a canvas."""

    @property
    def links(self) -> Iterable[Stamped]: ...
    @property
    def errbacks(self) -> Iterable[Stamped]: ...
    def take(self, stamping: Stamping) -> None: ...


class Compound(Stamped, Protocol):
    """And of one that is made of others."""

    @property
    def tasks(self) -> Iterable[Stamped]: ...


@dataclass(frozen=True)
class Stamping:
    """What comes to one place of a canvas."""

    visitor: StampingVisitor
    stamps: Mapping[str, Any]
    append: bool
    """A stamp that is given twice is a list of both; else the last one counts."""

    def at(self, method: Callable[..., Mapping[str, Any]], place: object) -> Self:
        """The same for what is in `place`, with what the visitor says of that."""
        said = method(place, **self.stamps) or {}
        names = said.get("stamped_headers", said)
        stamps = {name: stamp for name, stamp in said.items() if name in names}
        return replace(self, stamps=replace(self, stamps=stamps).over(self.stamps))

    def over(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Its stamps, on top of those that were there `before`."""
        twice = before.keys() & self.stamps.keys() if self.append else ()
        both = {name: [*_listed(before[name]), *_listed(self.stamps[name])] for name in twice}
        return {**before, **self.stamps, **both}

    def links(self, canvas: Stamped) -> None:
        """Stamp what is linked to `canvas`."""
        for callback in canvas.links:
            callback.take(self.at(self.visitor.on_callback, callback))
        for errback in canvas.errbacks:
            errback.take(self.at(self.visitor.on_errback, errback))

    def parts(
        self, canvas: Compound, begin: Callable[..., Mapping[str, Any]], end: Callable[..., None], *, of: object
    ) -> None:
        """Stamp what `canvas` is made of, and what is linked to it, between two calls of the visitor."""
        inside = self.at(begin, of)
        inside.links(canvas)
        for part in canvas.tasks:
            part.take(inside)
        end(of, **inside.stamps)


def _listed(stamp: Any) -> Iterable[Any]:
    return stamp if isinstance(stamp, (list, tuple, set)) else [stamp]
