"""What cdk/ writes: the templates of all stacks, read as JSON, so that nothing here needs CDK."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import environment

CDK = environment.CHECKOUT / "cdk"
Json = dict[str, Any]


@dataclass(frozen=True)
class Assembly:
    """The templates by the names of their stacks."""

    folder: Path
    templates: Mapping[str, Json]

    @classmethod
    def synthesise(cls, folder: Path) -> Assembly:
        """Run `python app.py` as the reader of docs/aws.md does; without a network where this machine can say so."""
        alone = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_", "JSII_"))}
        done = subprocess.run(
            [*alone, environment.cdk(), "app.py"],
            cwd=CDK,
            env={**env, "CDK_OUTDIR": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = {path.name.removesuffix(".template.json"): path for path in folder.glob("*.template.json")}
        return cls(folder, {name: json.loads(path.read_text("utf-8")) for name, path in sorted(found.items())})

    @property
    def manifest(self) -> Json:
        manifest: Json = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        return manifest

    def everywhere(self, kind: str) -> Iterator[tuple[str, Json]]:
        """All resources of a kind, each with the name of its stack."""
        for name, template in self.templates.items():
            for resource in template["Resources"].values():
                if resource["Type"] == kind:
                    yield name, resource

    def resources(self, stack: str, kind: str) -> list[Json]:
        """The resources of a kind in one stack."""
        return [resource for name, resource in self.everywhere(kind) if name == stack]

    def properties(self, stack: str, kind: str) -> list[Json]:
        """Their properties."""
        return [resource["Properties"] for resource in self.resources(stack, kind)]

    def only(self, stack: str, kind: str) -> Json:
        """The properties of the one that there is."""
        (properties,) = self.properties(stack, kind)
        return properties

    def policies(self) -> Iterator[tuple[str, Json]]:
        """Every statement about what a role may do, with its stack."""
        for name, resource in self.everywhere("AWS::IAM::Policy"):
            yield from ((name, statement) for statement in resource["Properties"]["PolicyDocument"]["Statement"])
        for name, resource in self.everywhere("AWS::IAM::Role"):
            for policy in resource["Properties"].get("Policies", []):
                yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])


def listed(value: Any) -> list[Any]:
    """What IAM writes as one value or as a list of them."""
    return value if isinstance(value, list) else [value]


def text(value: Any) -> str:
    """A text as it will be, with what only AWS knows as `{name}`.

    >>> text({"Fn::Join": ["", ["arn:", {"Ref": "AWS::Partition"}, ":s3"]]})
    'arn:{AWS::Partition}:s3'
    """
    if not isinstance(value, dict):
        return str(value)
    ((function, argument),) = value.items()
    if function == "Fn::Join":
        return str(argument[0]).join(map(text, argument[1]))
    if function == "Ref":
        return f"{{{argument}}}"
    if function == "Fn::GetAtt":
        return f"{{{'.'.join(argument)}}}"
    return f"{{{'.'.join(_strings(argument))}}}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def named(properties: list[Json], key: str) -> dict[str, Json]:
    """Properties by one of them that names them."""
    return {text(each[key]): each for each in properties}
