"""Strict JSON schemas for kubeconform, out of what Kubernetes and the operators publish about their kinds.

``python -m tests.deploy.schemas FOLDER SWAGGER CRD...`` writes ``FOLDER/<group>_<kind>_<version>.json``. Strict: a
field that is not declared is an error, as it is for the API server when it is asked to validate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
QUANTITIES = {"type": ["string", "number"], "pattern": "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"}
"""As custom resources of Kubernetes' own projects write a quantity; the published definition says only: a string."""
STRINGS_AND_NUMBERS = {"type": ["string", "integer"]}
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")
"""What is taken over as it is; descriptions are not, and formats only matter where they are a type of their own."""
DEFINITIONS = "_definitions.json"

# PyYAML takes a bare "=", a default in some definitions, for a type of its own that it cannot make.
yaml.CSafeLoader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)


def main(arguments: list[str]) -> None:
    """Write the schemas."""
    target, swagger, *definitions = map(Path, arguments)
    target.mkdir()
    published = json.loads(swagger.read_text())["definitions"]
    own = {name: QUANTITIES if name == QUANTITY else strict(schema) for name, schema in published.items()}
    (target / DEFINITIONS).write_text(json.dumps({"definitions": own}))
    for name, schema in published.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            reference = {"$ref": f"{DEFINITIONS}#/definitions/{name}"}
            (target / file_name(kind["group"], kind["version"], kind["kind"])).write_text(json.dumps(reference))
    for path in definitions:
        for name, schema in of_custom_resources(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)):
            (target / name).write_text(json.dumps(schema))


def file_name(group: str, version: str, kind: str) -> str:
    """As kubeconform is told to look for it; what is of no group it looks for by its version.

    >>> file_name("apps", "v1", "Deployment"), file_name("", "v1", "Service")
    ('apps_deployment_v1.json', 'v1_service_v1.json')
    """
    return f"{group or version}_{kind.lower()}_{version}.json"


def of_custom_resources(documents: Iterable[Any]) -> Iterator[tuple[str, Schema]]:
    """For each version of each kind that the CustomResourceDefinitions define, its file name and schema."""
    for document in documents:
        if not document or document["kind"] != "CustomResourceDefinition":
            continue
        spec = document["spec"]
        for version in spec["versions"]:
            name = file_name(spec["group"], version["name"], spec["names"]["kind"])
            yield name, strict(version["schema"]["openAPIV3Schema"])


def strict(schema: Mapping[str, Any]) -> Schema:
    """The schema with nothing allowed beside what it declares.

    >>> strict({"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]})
    {'type': 'object', 'required': ['port'], 'properties': {'port': {'type': 'integer'}}, 'additionalProperties': False}
    """
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/definitions/", f"{DEFINITIONS}#/definitions/")}
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return dict(STRINGS_AND_NUMBERS)
    made = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    required = schema.get("required", ())
    if properties := schema.get("properties"):
        made["properties"] = {
            name: strict(each) if name in required else _or_null(strict(each)) for name, each in properties.items()
        }
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if isinstance(others := schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = strict(others)
    return _or_null(made) if schema.get("nullable") else made


def _or_null(schema: Schema) -> Schema:
    """What is not required may be null, which is as if it were left out."""
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


if __name__ == "__main__":
    main(sys.argv[1:])
