"""Guarantee 14: a value of the annotated type arrives in the task as it was, and its result at the caller."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel

from pulsartasks import PulsarTasks, Task
from tests.conformance.conftest import Workers

pytestmark = pytest.mark.guarantee(14)


class Colour(Enum):
    RED = "red"


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: Decimal


class Person(BaseModel):
    name: str
    born: date


class Company(BaseModel):
    number: int


@dataclass(frozen=True)
class Parcel:
    weight: float
    orders: list[Order]
    receiver: Person | None = None


ADA = Person(name="Ada", born=date(1815, 12, 10))
ORDER = Order("ada", Decimal("1.10"))
VALUES: list[tuple[Any, Any]] = [
    (Order, ORDER),
    (Parcel, Parcel(1.5, [ORDER], ADA)),
    (Person, ADA),
    (datetime, datetime(2026, 11, 23, 2, 15, tzinfo=timezone.utc)),
    (timedelta, timedelta(seconds=90)),
    (UUID, UUID("01890a5d-ac96-774b-bcce-b302099a8057")),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (bytes, b"\x00\xff"),
    (Order | None, None),
    (list[Parcel | None], [Parcel(1.5, []), None]),
    (dict[str, Person], {"ada": ADA}),
    (dict[UUID, list[Colour]], {UUID("01890a5d-ac96-774b-bcce-b302099a8057"): [Colour.RED]}),
    (Person | Company, Company(number=7)),
    (list[Person | str], [ADA, "nobody"]),
    (tuple[int, bytes | None], (1, b"\xff")),
]


def test_values_arrive_as_they_were_and_so_do_results(app: PulsarTasks, start_worker: Workers) -> None:
    echoes = [echo(app, kind, name=f"echo-{number}") for number, (kind, _) in enumerate(VALUES)]
    start_worker(app)

    calls = [task.delay(value) for task, (_, value) in zip(echoes, VALUES, strict=True)]
    results = [call.get(timeout=120) for call in calls]

    assert results == [value for _, value in VALUES]
    assert [type(result) for result in results] == [type(value) for _, value in VALUES]


def echo(app: PulsarTasks, kind: Any, *, name: str) -> Task[..., Any]:
    """A task that gives back what it got, after making sure that it got what `kind` promises."""
    expected = next(value for each, value in VALUES if each == kind)

    def run(value: Any) -> Any:
        assert value == expected
        assert type(value) is type(expected)
        return value

    run.__annotations__.update({"value": kind, "return": kind})
    return app.task(topic="echo", name=name)(run)
