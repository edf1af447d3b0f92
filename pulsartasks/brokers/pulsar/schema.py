"""Schemas as the Pulsar client has them: a producer registers its own, and is refused if that does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pulsar

from pulsartasks.brokers.pulsar.connection import Connection
from pulsartasks.errors import IncompatibleSchemaError
from pulsartasks.schemas import Schema, differences

# The client offers no other way to register a schema without its own encoder, nor to read one.
_JSON = pulsar._pulsar.SchemaType.JSON  # noqa: SLF001
_NEWEST = -1


class JsonBytes(pulsar.schema.Schema):  # type: ignore[misc]
    """Registers a schema for values that are JSON already."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(bytes, _JSON, json.loads(schema.definition), schema.name)

    def encode(self, obj: bytes) -> bytes:
        return obj


@contextmanager
def explained(connection: Connection, topic: str, schema: Schema | None) -> Iterator[None]:
    """A refusal of `schema` that is raised inside comes out with what is wrong with it, which the client keeps back."""
    try:
        yield
    except IncompatibleSchemaError as error:
        if schema is None:
            raise
        raise IncompatibleSchemaError(f"{error}: {_why(connection, topic, schema)}") from error


def _why(connection: Connection, topic: str, schema: Schema) -> str:
    try:
        known: Any = connection.consuming()._client.get_schema_info(topic, _NEWEST)  # noqa: SLF001
        found = differences(known.schema(), schema.definition)
    except (pulsar.PulsarException, AttributeError, KeyError, TypeError, ValueError):
        found = []  # it is gone, not to be had, or of another kind than ours
    return "; ".join(found) or "a rule of the namespace, or the schema's type, forbids it"
