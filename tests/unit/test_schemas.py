"""What becomes of Python's types in a schema, and what two schemas differ in."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypedDict
from uuid import UUID, uuid4

import msgspec
import pytest
from typing_extensions import NotRequired

from pulsartasks import ConfigurationError, PulsarTasks
from pulsartasks.schemas import describe, differences


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Line(msgspec.Struct):
    sku: str


LINE = {"type": "record", "name": "Line", "fields": [{"name": "sku", "type": "string"}]}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (bool, "boolean"),
        (int, "long"),
        (float, "double"),
        (bytes, "string"),
        (datetime, "string"),
        (timedelta, "string"),
        (UUID, "string"),
        (Decimal, "string"),
        (Colour, "string"),
        (Size, "long"),
        (Literal["a", "b"], "string"),
        (Literal["a", 1, None], ["null", "string", "long"]),
        (str | None, ["null", "string"]),
        (int | str, ["long", "string"]),
        (Annotated[int, msgspec.Meta(ge=0)], "long"),
        (list[int], {"type": "array", "items": "long"}),
        (frozenset[str], {"type": "array", "items": "string"}),
        (tuple[int, ...], {"type": "array", "items": "long"}),
        (tuple[int, str, int], {"type": "array", "items": ["long", "string"]}),
        (dict[str, float], {"type": "map", "values": "double"}),
        (list[Line | None], {"type": "array", "items": ["null", LINE]}),
    ],
    ids=str,
)
def test_type_of_a_field_becomes(kind: Any, schema: Any) -> None:
    payload = msgspec.defstruct("Payload", [("it", kind)])

    described = describe(payload)

    assert described.name == "Payload"
    assert msgspec.json.decode(described.definition)["fields"] == [{"name": "it", "type": schema}]


class Defaults(msgspec.Struct):
    number: int = 1
    ratio: float = 1
    colour: Colour = Colour.RED
    nothing: str | None = None
    something: str | None = "x"
    one_or_more: Line | list[Line] = []
    lines: list[Line] = []
    labels: dict[str, str] = {}
    fresh: UUID = msgspec.field(default_factory=uuid4)
    octets: bytes = b"x"
    maybe: int | msgspec.UnsetType = msgspec.UNSET


def test_default_is_told_where_it_is_always_the_same_and_else_that_the_field_may_be_absent() -> None:
    fields = {f["name"]: f for f in msgspec.json.decode(describe(Defaults).definition)["fields"]}

    assert {name: (f["type"], f["default"]) for name, f in fields.items()} == {
        "number": ("long", 1),
        "ratio": ("double", 1),
        "colour": ("string", "red"),
        "nothing": (["null", "string"], None),
        "something": (["string", "null"], "x"),
        "one_or_more": (["null", LINE, {"type": "array", "items": "Line"}], None),
        "lines": ({"type": "array", "items": "Line"}, []),
        "labels": ({"type": "map", "values": "string"}, {}),
        "fresh": (["null", "string"], None),
        "octets": (["null", "string"], None),
        "maybe": (["null", "long"], None),
    }


class Tree(msgspec.Struct, tag="tree"):
    left: Tree | None = None
    right: Tree | None = None


def test_type_that_has_itself_as_a_part_is_named_there_and_a_tag_is_a_field() -> None:
    assert msgspec.json.decode(describe(Tree).definition)["fields"] == [
        {"name": "type", "type": "string", "default": "tree"},
        {"name": "left", "type": ["null", "Tree"], "default": None},
        {"name": "right", "type": ["null", "Tree"], "default": None},
    ]


@dataclass
class Parcel:
    weight: float
    labels: list[str] = field(default_factory=list)


class Letter(TypedDict):
    address: str
    stamp: NotRequired[str]


class Model:
    """The part of a pydantic model that tells of its fields."""

    model_fields: ClassVar[dict[str, Any]] = {
        "name": SimpleNamespace(annotation=str, is_required=lambda: True, default=None, default_factory=None),
        "age": SimpleNamespace(annotation=int, is_required=lambda: False, default=0, default_factory=None),
    }

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            Parcel,
            [
                {"name": "weight", "type": "double"},
                {"name": "labels", "type": {"type": "array", "items": "string"}, "default": []},
            ],
        ),
        (
            Letter,
            [
                {"name": "address", "type": "string"},
                {"name": "stamp", "type": ["null", "string"], "default": None},
            ],
        ),
        (Model, [{"name": "name", "type": "string"}, {"name": "age", "type": "long", "default": 0}]),
    ],
)
def test_dataclass_typed_dict_and_model_are_records(kind: type, fields: list[Any]) -> None:
    assert msgspec.json.decode(describe(kind).definition)["fields"] == fields


class Pair(NamedTuple):
    one: int
    two: int


class Kebab(msgspec.Struct, rename="kebab"):
    two_words: str


class Loose(msgspec.Struct):
    anything: Any


class Tuple(msgspec.Struct, array_like=True):
    one: int


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (dict, "value of any type"),
        (str, "no object with named fields"),
        (Pair, "Pair, whose JSON is no object"),
        (Tuple, "Tuple, whose JSON is no object"),
        (Kebab, "'two-words' is no name in Avro"),
        (Loose, "Loose.anything has no schema: Avro has nothing like a value of any type"),
        (msgspec.defstruct("Twice", [("a", Line), ("b", msgspec.defstruct("Line", []))]), "two of its types"),
    ],
)
def test_what_avro_has_no_words_for_is_named(kind: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        describe(kind)


def test_topic_without_a_fitting_schema_is_refused_only_where_it_must_be_registered() -> None:
    app = PulsarTasks("shop", "memory://")

    assert app.topic("a", schema=Line).registered is not None
    assert "any type" in app.topic("b", schema=dict).unregistered
    assert app.topic("c", schema=Line, register=False).registered is None
    with pytest.raises(ConfigurationError, match=r"topic 'd': .* any type; leave register=True out"):
        app.topic("d", schema=dict, register=True)


def test_difference_deep_inside_is_told_where_it_is() -> None:
    old_line, new_line = (msgspec.defstruct("Line", [(name, str)]) for name in ("sku", "code"))
    old = msgspec.defstruct("Order", [("line", old_line), ("labels", dict[str, int])])
    new = msgspec.defstruct("Order", [("line", new_line), ("labels", dict[str, bool])])

    assert differences(describe(old).definition, describe(new).definition) == [
        "Line.code is new and has no default",
        "Order.labels[] was long and is boolean",
        "Line.sku is gone and had no default",
    ]


def test_recursive_type_is_compared_with_itself_and_with_another() -> None:
    definition = describe(Tree).definition

    assert differences(definition, definition) == []
    assert differences(definition, definition.replace('"left"', '"leaf"')) == []
    assert differences(definition, definition.replace('"string"', '"long"')) == ["Tree.type was string and is long"]
