"""What Go's module proxy has: programs that are built from it, and sources. Go verifies what it downloads."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tools.cache import ATTEMPTS, make_whole, run
from tools.terminal import say


def program(source: str, *, takes: str, name: str = "") -> Path:
    """The program that ``path@version`` builds, called `name` here if Go's own name for it says little.

    `takes` tells who waits for it how long that is.
    """
    built, version = _name(source)
    name = name or built

    def build(target: Path) -> None:
        say(f"Building {name} ({takes}) ...")
        env = {**os.environ, "GOBIN": str(target.parent), "CGO_ENABLED": "0"}
        run(["go", "install", "-ldflags=-s -w", source], env=env, attempts=ATTEMPTS)
        (target.parent / built).rename(target)

    return make_whole(f"bin/{name}-{version}", build)


def _name(source: str) -> tuple[str, str]:
    """What Go calls the program, and its version; a major version in the path is not its name.

    >>> _name("example.org/cmd/tool@v0.8.0"), _name("example.org/other/v5@v5.8.1")
    (('tool', 'v0.8.0'), ('other', 'v5.8.1'))
    """
    path, _, version = source.partition("@")
    words = [word for word in path.split("/") if not re.fullmatch(r"v\d+", word)]
    return words[-1], version


def sources(module: str) -> Path:
    """The unpacked sources of the module ``path@version``."""
    command = ["go", "mod", "download", "-json", module]
    run(command, cwd=Path("/"), attempts=ATTEMPTS)
    told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    return Path(json.loads(told.stdout)["Dir"])
