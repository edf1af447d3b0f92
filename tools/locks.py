"""`make lock`: writes `requirements/*.txt` anew from `requirements/*.in` and `setup.py`.

Exact versions and hashes, no index, for every supported Python on Linux and macOS at once. The biggest lock is resolved
first; the others start as its copy and lose what they do not need, so that a package has one version in all of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tools import environment
from tools.terminal import say

OPTIONS = (
    "--universal",
    "--python-version=3.10",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-emit-package=pulsartasks",
)
IMAGES = sorted(path.stem for path in environment.LOCKS.glob("image-*.in"))
"""What the Dockerfile installs; the tools among them are in no environment of ours, and pinned for themselves."""


def write(*, upgrade: bool) -> None:
    """Resolves all locks; without `upgrade` what is in them stays as long as it fits."""
    biggest = environment.LOCKS / f"{environment.PROFILES[-1]}.txt"
    _resolve(biggest, start=biggest, options=["--upgrade"] if upgrade else [])
    for name in (*environment.PROFILES[:-1], "deploy", "uv", *IMAGES):
        _resolve(environment.LOCKS / f"{name}.txt", start=biggest, options=[])
    for apart in (environment.LOCKS / "bench.txt", environment.CDK_LOCK):  # share no environment, so no version either
        _resolve(apart, start=apart, options=["--upgrade"] if upgrade else [])


def _resolve(lock: Path, *, start: Path, options: list[str]) -> None:
    say(f"Resolving {lock.name} ...")
    draft = lock.with_suffix(".draft")
    if start.exists():
        shutil.copyfile(start, draft)
    environment.uv("pip", "compile", "-q", *OPTIONS, *options, lock.with_suffix(".in"), "--output-file", draft)
    draft.rename(lock)
