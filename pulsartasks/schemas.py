"""What an event looks like, in the words that Pulsar and other languages have for it: an Avro schema.

The payload stays plain JSON. The schema only describes it, so that a broker can refuse a publisher whose type does not
fit what is on the topic, and a Java or Go service has something to generate its own type from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_origin

from msgspec import NODEFAULT, UNSET, Struct, inspect

from pulsartasks.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WHOLE_NUMBERS = range(-(2**63), 2**63)
_TEXT = (
    inspect.StrType,
    inspect.BytesType,  # base64, as all that follows is text in JSON
    inspect.ByteArrayType,
    inspect.MemoryViewType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.TimeDeltaType,
    inspect.UUIDType,
    inspect.DecimalType,
)
_SIMPLE: Mapping[type, str] = {
    inspect.NoneType: "null",
    inspect.BoolType: "boolean",
    inspect.IntType: "long",
    inspect.FloatType: "double",
    **dict.fromkeys(_TEXT, "string"),
}
_READ_AS: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}
"""What Avro reads, beside the type itself, from each type."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The form of a topic's payloads."""

    name: str
    """The payload's type, as other languages call it."""
    definition: str
    """An Avro schema, as JSON: what Pulsar keeps for a topic whose schema type is JSON."""


def describe(kind: Any) -> Schema:
    """The schema of payloads of the type `kind`.

    Raises:
        ConfigurationError: something in it has no counterpart in Avro; the message says what.

    >>> from dataclasses import make_dataclass
    >>> describe(make_dataclass("Order", [("customer", str), ("note", "str | None", None)])).definition
    '{"type":"record","name":"Order","fields":[{"name":"customer","type":"string"},\
{"name":"note","type":["null","string"],"default":null}]}'
    """
    try:
        definition = _Description().of(inspect.type_info(kind), getattr(kind, "__name__", str(kind)))
    except (TypeError, NameError, RecursionError) as error:
        raise ConfigurationError(f"{kind!r} has no schema: {error}") from error
    if not (isinstance(definition, dict) and definition["type"] == "record"):
        raise ConfigurationError(f"{kind!r} has no schema: it is no object with named fields")
    return Schema(definition["name"], json.dumps(definition, separators=(",", ":")))


def are_apart(one: Any, other: Any) -> bool:
    """Whether no JSON is of both types; False also where they do not tell it at first sight.

    >>> are_apart(int, str), are_apart(int, float), are_apart(int, int | str)
    (True, False, False)
    """
    forms = _form(one), _form(other)
    return None not in forms and len(set(forms)) == 2


def _form(kind: Any) -> str | None:
    """What JSON has all values of a plain type or a record as."""
    if not isinstance(kind, type) or get_origin(kind) is not None:
        return None
    if is_dataclass(kind) or (issubclass(kind, Struct) and not kind.__struct_config__.array_like):
        return "object"
    return {int: "number", float: "number", str: "text", bool: "boolean"}.get(kind)


def differences(old: str, new: str) -> list[str]:
    """Why those who know the definition `old` and those who know `new` do not understand each other; empty if they do.

    The rule is Pulsar's default for a topic, FULL: what is new or gone must have a default, and what stays its type.

    >>> record = '{"type": "record", "name": "Order", "fields": [%s]}'
    >>> differences(record % '{"name": "a", "type": "long"}', record % '{"name": "b", "type": "long", "default": 0}')
    ['Order.a is gone and had no default']
    >>> differences(record % '{"name": "a", "type": "long"}', record % '{"name": "a", "type": "string"}')
    ['Order.a was long and is string']
    """
    before, after = json.loads(old), json.loads(new)
    news = _Comparison(before, after, reader_is_new=True).complaints()
    return list(dict.fromkeys([*news, *_Comparison(after, before, reader_is_new=False).complaints()]))


class _Description:
    """One description in the making; it knows the records that have a name already."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}

    def of(self, kind: inspect.Type, where: str) -> Any:
        """The Avro schema of `kind`, which is the type of `where`."""
        if type(kind) in _SIMPLE:
            return _SIMPLE[type(kind)]
        match kind:
            case inspect.Metadata(type=inner):
                return self.of(inner, where)
            case inspect.EnumType() | inspect.LiteralType():
                return _joined([_of_constant(value, where) for value in _values(kind)])
            case inspect.UnionType(types=types):
                return _joined([self.of(each, where) for each in types])
            case inspect.TupleType(item_types=types):
                return {"type": "array", "items": _joined([self.of(each, where) for each in types])}
            case inspect.CollectionType(item_type=items):
                return {"type": "array", "items": self.of(items, where)}
            case inspect.DictType(value_type=values):
                return {"type": "map", "values": self.of(values, where)}
        if (fields := _fields(kind)) is not None:
            return self._record(kind, fields, where)
        raise ConfigurationError(f"{where} has no schema: Avro has nothing like {_told(kind)}")

    def _record(self, kind: Any, members: Iterable[inspect.Field], where: str) -> Any:
        cls = kind.cls
        name = re.sub(r"[^A-Za-z0-9_]", "_", getattr(cls, "__name__", str(cls)))
        if name in self._named:
            if self._named[name] is not cls:
                raise ConfigurationError(f"{where} has no schema: two of its types are called {name}")
            return name
        self._named[name] = cls
        fields = [_tag(kind)] if getattr(kind, "tag_field", None) else []
        for field in members:
            if _NAME.fullmatch(field.encode_name) is None:
                raise ConfigurationError(f"{where} has no schema: {field.encode_name!r} is no name in Avro")
            fields.append(_field(field, self.of(field.type, f"{name}.{field.encode_name}")))
        return {"type": "record", "name": name, "fields": fields}


def _values(kind: inspect.EnumType | inspect.LiteralType) -> list[Any]:
    """The constants, in the same order in every process, or each would register another schema."""
    values = [member.value for member in kind.cls] if isinstance(kind, inspect.EnumType) else kind.values
    return sorted(values, key=repr)


def _fields(kind: inspect.Type) -> Iterable[inspect.Field] | None:
    """The fields of what is an object in JSON; None for what is none."""
    match kind:
        case inspect.StructType(array_like=False) | inspect.DataclassType() | inspect.TypedDictType():
            return kind.fields
        case inspect.CustomType(cls=model) if hasattr(model, "model_fields"):
            return _model_fields(model)
    return None


def _model_fields(model: Any) -> Iterable[inspect.Field]:
    """The fields of a pydantic model, whose type msgspec does not know, as msgspec would tell them."""
    for name, field in model.model_fields.items():
        default = NODEFAULT if field.is_required() or field.default_factory is not None else field.default
        yield inspect.Field(name, name, inspect.type_info(field.annotation), field.is_required(), default)


def _tag(kind: inspect.StructType) -> dict[str, Any]:
    """The field by which msgspec tells the members of a union apart."""
    tag = "string" if isinstance(kind.tag, str) else "long"
    return {"name": kind.tag_field, "type": tag, "default": kind.tag}


def _field(field: inspect.Field, schema: Any) -> dict[str, Any]:
    if field.required:
        return {"name": field.encode_name, "type": schema}
    default = _constant(field)
    branches = schema if isinstance(schema, list) else [schema]
    for branch in branches:
        # A default belongs to the first branch. An array or map stays where it is: a record that it is the first to
        # describe may be named by the branches behind it.
        if _is_default_of(default, branch) and (isinstance(branch, str) or branch == branches[0]):
            others = [each for each in branches if each != branch]
            return {"name": field.encode_name, "type": [branch, *others] if others else branch, "default": default}
    # A default that is made anew each time, or that Avro cannot hold: that it may be absent is all that can be said.
    nullable = ["null", *(branch for branch in branches if branch != "null")]
    return {"name": field.encode_name, "type": nullable, "default": None}


def _constant(field: inspect.Field) -> Any:
    """The field's default where it is always the same; `UNSET` otherwise."""
    if field.default_factory in (list, set, frozenset, tuple):
        return []
    if field.default_factory is dict:
        return {}
    return UNSET if field.default is NODEFAULT else getattr(field.default, "value", field.default)


def _is_default_of(value: Any, branch: Any) -> bool:
    """Whether `value` can stand in JSON as the default of this branch."""
    match value:
        case None:
            return bool(branch == "null")
        case bool():
            return bool(branch == "boolean")
        case int():
            return branch == "double" or (branch == "long" and value in _WHOLE_NUMBERS)
        case float():
            return branch == "double" and math.isfinite(value)
        case str():
            return bool(branch == "string")
        case [] | {}:
            wanted = "array" if isinstance(value, list) else "map"
            return isinstance(branch, dict) and branch["type"] == wanted and not value
    return False


def _of_constant(value: Any, where: str) -> str:
    match value:
        case None:
            return "null"
        case str():
            return "string"
        case int() if not isinstance(value, bool):
            return "long"
    raise ConfigurationError(f"{where} has no schema: Avro has nothing like the constant {value!r}")


def _joined(schemas: Iterable[Any]) -> Any:
    """The union of `schemas`, null first; the schema itself if they are all the same."""
    distinct: list[Any] = []
    for schema in schemas:
        distinct += [each for each in (schema if isinstance(schema, list) else [schema]) if each not in distinct]
    distinct.sort(key=lambda schema: schema != "null")
    return distinct[0] if len(distinct) == 1 else distinct


def _told(kind: inspect.Type) -> str:
    match kind:
        case inspect.CustomType(cls=cls) | inspect.StructType(cls=cls) | inspect.NamedTupleType(cls=cls):
            return f"{cls.__name__}, whose JSON is no object with named fields"
        case inspect.AnyType() | inspect.RawType():
            return "a value of any type"
    return type(kind).__name__.removesuffix("Type")


class _Comparison:
    """Whether one who knows the schema `reader` can read what one who knows `writer` wrote."""

    def __init__(self, writer: Any, reader: Any, *, reader_is_new: bool) -> None:
        self._writer, self._reader = writer, reader
        self._writers = dict(_records(writer))
        self._readers = dict(_records(reader))
        self._reader_is_new = reader_is_new
        self._compared: set[tuple[str, str]] = set()

    def complaints(self) -> list[str]:
        return list(self._compare(self._writer, self._reader, ""))

    def _compare(self, writer: Any, reader: Any, where: str) -> Iterable[str]:
        writer, reader = _unfold(writer, self._writers), _unfold(reader, self._readers)
        if isinstance(writer, list):
            if not all(self._reads(branch, reader) for branch in writer):
                yield self._retyped(writer, reader, where)
        elif isinstance(reader, list):
            if not any(self._reads(writer, branch) for branch in reader):
                yield self._retyped(writer, reader, where)
        elif _type(writer) != _type(reader):
            if _type(reader) not in _READ_AS.get(_type(writer), ()):
                yield self._retyped(writer, reader, where)
        elif _type(writer) == "record":
            yield from self._compare_records(writer, reader)  # by their fields: Pulsar lets their names differ
        elif _type(writer) in ("array", "map"):
            inside = "items" if _type(writer) == "array" else "values"
            yield from self._compare(writer[inside], reader[inside], f"{where}[]")
        elif writer != reader and _type(writer) in ("enum", "fixed"):
            yield self._retyped(writer, reader, where)

    def _compare_records(self, writer: Any, reader: Any) -> Iterable[str]:
        if (pair := (writer["name"], reader["name"])) in self._compared:
            return  # a type that has itself as a part, or is there twice
        self._compared.add(pair)
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            place = f"{reader['name']}.{field['name']}"
            if field["name"] in written:
                yield from self._compare(written[field["name"]]["type"], field["type"], place)
            elif "default" not in field:
                yield f"{place} is {'new and has' if self._reader_is_new else 'gone and had'} no default"

    def _reads(self, writer: Any, reader: Any) -> bool:
        compared = set(self._compared)  # a branch that does not fit must not pass for compared
        if fits := not list(self._compare(writer, reader, "")):
            return fits
        self._compared = compared
        return False

    def _retyped(self, writer: Any, reader: Any, where: str) -> str:
        old, new = (writer, reader) if self._reader_is_new else (reader, writer)
        return f"{where or 'the payload'} was {_named(old)} and is {_named(new)}"


def _records(schema: Any) -> Iterable[tuple[str, Any]]:
    """Every record in `schema` with its name, by which it is meant where it comes again."""
    if isinstance(schema, list):
        for branch in schema:
            yield from _records(branch)
    elif isinstance(schema, dict):
        if schema.get("type") == "record":
            yield schema["name"], schema
        for part in (schema.get("type"), schema.get("items"), schema.get("values")):
            yield from _records(part)
        for field in schema.get("fields", ()):
            yield from _records(field["type"])


def _unfold(schema: Any, records: Mapping[str, Any]) -> Any:
    """`schema` itself, or the record or type that it only names."""
    if isinstance(schema, str):
        return records.get(schema, schema)
    nested = schema.get("type") if isinstance(schema, dict) else None
    return _unfold(nested, records) if isinstance(nested, (dict, list)) else schema


def _type(schema: Any) -> str:
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _named(schema: Any) -> str:
    """A schema in few words."""
    if isinstance(schema, list):
        return " or ".join(map(_named, schema))
    return schema["name"] if isinstance(schema, dict) and "name" in schema else _type(schema)
