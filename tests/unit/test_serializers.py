"""Values to JSON and back, checked against the annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, Json, RootModel, computed_field

from pulsartasks.errors import ConfigurationError, InvalidArgumentsError, UnreadableMessageError
from pulsartasks.serializers import CallCodec, PayloadCodec, encode, type_hints


class Colour(Enum):
    RED = "red"


class Order(msgspec.Struct, frozen=True):
    customer: str
    amount: int = 1


@dataclass(frozen=True)
class Parcel:
    weight: float
    orders: list[Order]


class Model(BaseModel):
    """With all that makes its JSON other than its fields."""

    model_config = ConfigDict(strict=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    name: str = Field(alias="Name")
    born: date = date(1815, 12, 10)
    picture: bytes = b"\x00\xff"
    first: tuple[int, ...] = ()
    notes: Json[list[int]] = [1]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shouted(self) -> str:
        return self.name.upper()


class Other(BaseModel):
    number: int


class Numbers(RootModel[list[int]]):
    """A model of what is no object."""


ADA = Model(Name="ada", first=(1, 2))


class Opaque:
    """Neither data nor made from it."""


VALUES: list[tuple[Any, Any]] = [
    (Order, Order("ada", 2)),
    (Parcel, Parcel(1.5, [Order("ada"), Order("grace")])),
    (Model, ADA),
    (Numbers, Numbers([1, 2])),
    (list[Model], [ADA, ADA]),
    (Model | None, None),
    (dict[str, Model | None], {"a": ADA, "b": None}),
    (Model | Other, Other(number=7)),
    (Model | str, "ada"),
    (list[Model | bytes | None], [ADA, b"\x00\xff", None]),
    (object, {"free": [1, 2.5, None, True, "text"]}),
    (Colour, Colour.RED),
    (datetime, datetime(2026, 11, 23, 2, 15, tzinfo=timezone.utc)),
    (timedelta, timedelta(seconds=90)),
    (UUID, UUID("01890a5d-ac96-774b-bcce-b302099a8057")),
    (Decimal, Decimal("1.10")),
    (bytes, b"\x00\xff"),
    (tuple[int, str], (1, "one")),
    (set[int], {1, 2}),
    (dict[str, Order | None], {"a": Order("ada"), "b": None}),
    (Literal["ok", "failed"], "ok"),
    (Any, {"free": [1, 2.5, None, True, "text"]}),
]


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_value_comes_back_as_it_was(kind: Any, value: Any) -> None:
    codec: PayloadCodec[Any] = PayloadCodec(kind)

    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    "value", [object(), Opaque(), {1: object()}, "\ud800", lambda: None, {"deep": [Opaque()]}, 2**70 * 1j]
)
def test_what_is_not_data_cannot_be_sent(value: Any) -> None:
    with pytest.raises(InvalidArgumentsError, match="cannot be sent as JSON"):
        encode(value)


def test_bottomless_value_cannot_be_sent() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(InvalidArgumentsError):
        encode(loop)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_wherever_they_stand(number: float) -> None:
    @dataclass
    class Line:
        slope: Any

    def mean(values: Any) -> None:
        pass

    call = CallCodec(mean)
    floats: PayloadCodec[float] = PayloadCodec(float)
    for value in (number, {"mean": [None, number]}, (1, {"deep": (None, {"deeper": number})}), Line(number)):
        with pytest.raises(InvalidArgumentsError, match=f"a call of mean.. cannot be sent as JSON: it has no {number}"):
            call.encode([value], {})
    with pytest.raises(InvalidArgumentsError):
        floats.encode(number)
    for sound in (None, [None, 1.5], {"null": "null"}, msgspec.Raw(b"null")):
        call.encode([sound], {})


@pytest.mark.parametrize("wrong", [Order("ada", "many"), {"customer": 7}, "ada", None])  # type: ignore[arg-type]
def test_payload_of_another_type_is_refused_before_it_is_sent(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentsError):
        PayloadCodec(Order).encode(wrong)


@pytest.mark.parametrize("value", [b"", b"\xff", b"{", b"[" * 100_000, b'{"customer": 7}', b"{}", b"nul", b"1 2"])
def test_bytes_that_are_not_the_payload_are_unreadable(value: bytes) -> None:
    with pytest.raises(UnreadableMessageError):
        PayloadCodec(Order).decode(value)


def test_field_that_a_newer_publisher_added_is_no_harm() -> None:
    assert PayloadCodec(Order).decode(b'{"customer": "ada", "colour": "red"}') == Order("ada")


@pytest.mark.parametrize("kind", [Order | Parcel | dict[str, int], bytes | str, Model | Order])
def test_type_that_cannot_be_read_from_json_is_refused_at_definition(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read from JSON"):
        PayloadCodec(kind)


def test_model_that_another_language_sends_may_use_either_name() -> None:
    for name in ("name", "Name"):
        assert PayloadCodec(Model).decode(b'{"%s": "ada"}' % name.encode()) == Model(Name="ada")


def greet(name: str, /, times: int = 1, *more: int, loud: bool = False, **rest: Order) -> None:
    """Every kind of parameter."""


def bound(context: Any, name: str, engine: Opaque) -> None:
    """The first is the context, the last a resource."""


def test_call_comes_back_with_its_types() -> None:
    codec = CallCodec(greet)

    args, kwargs = codec.decode(codec.encode(("ada", 2, 3, 4), {"loud": True, "order": Order("ada")}))

    assert args == ["ada", 2, 3, 4]
    assert kwargs == {"loud": True, "order": Order("ada")}


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((), {}, "misses the argument name"),
        ((7,), {}, "argument 'name'"),
        (("ada", 1, "three"), {}, "argument 'more'"),
        (("ada", 1), {"times": 2}, "multiple values for argument 'times'"),
        (("ada",), {"loud": "very"}, "argument 'loud'"),
        (("ada",), {"order": 7}, "argument 'rest'"),
    ],
)
def test_wrong_call_is_refused_with_the_argument_that_is_wrong(
    args: tuple[Any, ...], kwargs: dict[str, Any], complaint: str
) -> None:
    codec = CallCodec(greet)

    with pytest.raises(InvalidArgumentsError, match=complaint):
        codec.encode(args, kwargs)


def test_call_may_have_a_model_beside_other_types_among_its_arguments() -> None:
    def register(person: Model | str, times: int) -> None:
        """Takes either."""

    register.__annotations__["person"] = Model | str
    codec = CallCodec(register)

    assert codec.decode(codec.encode((ADA, 2), {})) == ([ADA, 2], {})
    assert codec.decode(codec.encode(("ada", 2), {})) == (["ada", 2], {})
    with pytest.raises(InvalidArgumentsError, match="argument 'person'"):
        codec.encode((7, 2), {})


def test_what_the_worker_fills_in_does_not_travel() -> None:
    codec = CallCodec(bound, skip_first=True, injected={"engine"})

    assert codec.decode(codec.encode(("ada",), {})) == (["ada"], {})
    with pytest.raises(InvalidArgumentsError, match="unexpected argument 'engine'"):
        codec.encode(("ada",), {"engine": 1})


def test_bare_keyword_arguments_are_a_call_too() -> None:
    assert CallCodec(bound, skip_first=True, injected={"engine"}).decode_keywords(b'{"name": "ada"}') == (
        [],
        {"name": "ada"},
    )


@pytest.mark.parametrize("value", [b"", b"[]", b'{"args": {}}', b'{"args": [], "kwargs": []}', b"\xff", b"7"])
def test_bytes_that_are_no_call_are_unreadable(value: bytes) -> None:
    with pytest.raises(UnreadableMessageError):
        CallCodec(greet).decode(value)


def test_payload_is_the_only_argument_that_must_be_given() -> None:
    def handle(order: Order, note: str = "") -> None:
        """Takes an order."""

    handle.__annotations__["order"] = Order

    assert CallCodec(handle).payload.decode(b'{"customer": "ada"}') == Order("ada")


def test_annotation_that_names_nothing_is_said_with_its_name() -> None:
    def broken(value: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Its annotation does not exist."""

    with pytest.raises(ConfigurationError, match="Nowhere"):
        type_hints(broken)
