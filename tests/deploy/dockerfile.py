"""The repository's Dockerfile as the tests read it: its stages, and each target with what it stands on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.services import CHECKOUT

TARGETS = ("web", "worker", "transcribe", "images", "beat")


@dataclass(frozen=True)
class Instruction:
    """One of a stage, its continued lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """Those after the name: of its JSON form, or as a shell takes them apart."""
        return [str(word) for word in json.loads(self.rest)] if self.rest.startswith("[") else shlex.split(self.rest)

    @property
    def is_json(self) -> bool:
        return self.rest.startswith("[")


@dataclass(frozen=True)
class Stage:
    """What is between two FROM."""

    base: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Dockerfile:
    """All of it."""

    arguments: dict[str, str]
    """Of the build, before the first stage."""
    stages: dict[str, Stage]

    def all_of(self, target: str) -> Iterator[Instruction]:
        """The instructions of a target, with those of the stages that it stands on before its own."""
        stage = self.stages[target]
        if stage.base in self.stages:
            yield from self.all_of(stage.base)
        yield from stage.instructions

    def last(self, target: str, name: str) -> Instruction:
        """The one of this name that counts."""
        return [instruction for instruction in self.all_of(target) if instruction.name == name][-1]

    def environment(self, target: str) -> dict[str, str]:
        """What a program of the target finds set."""
        given = [word for one in self.all_of(target) if one.name == "ENV" for word in one.words]
        return dict(word.split("=", 1) for word in given)

    def copied(self, target: str, stage: str) -> Iterator[str]:
        """What the target takes from a stage ("": the repository)."""
        for instruction in self.all_of(target):
            if instruction.name == "COPY":
                origin = "".join(w.removeprefix("--from=") for w in instruction.words if w.startswith("--from="))
                if origin == stage:
                    yield from [word for word in instruction.words if not word.startswith("--")][:-1]


def read(path: Path = CHECKOUT / "Dockerfile") -> Dockerfile:
    """What stands in the file."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    name = ""
    for instruction in _instructions(path.read_text("utf-8")):
        if instruction.name == "FROM":
            base, _, name = instruction.words
            stages[name] = Stage(base, ())
        elif name:
            stages[name] = Stage(stages[name].base, (*stages[name].instructions, instruction))
        else:
            key, _, value = instruction.rest.partition("=")
            arguments[key] = value
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> Iterator[Instruction]:
    without_comments = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", without_comments).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield Instruction(name, rest.strip())
