"""The folder of big things that all checkouts share: a thing is there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.terminal import SetupError, say

ATTEMPTS = 3
PAUSE = 3.0


def cache_folder() -> Path:
    """``$PULSARTASKS_CACHE``, else ``~/.cache/pulsartasks``."""
    return Path(os.environ.get("PULSARTASKS_CACHE") or "~/.cache/pulsartasks").expanduser().absolute()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes out while the block runs; the lock ends with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another set-up that holds {path.name} ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_whole(name: str, build: Callable[[Path], None]) -> Path:
    """The path of `name` in the cache, made by `build` if it is not there.

    `build` gets a path beside it and writes a file or a folder there; only when it has ended well is that renamed into
    place. A set-up that is killed leaves nothing that the next one trusts; of two at once one builds, the other waits.
    """
    target = cache_folder() / name
    if target.exists():
        return target
    with locked(cache_folder() / "locks" / name.replace("/", "-")):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            for left_over in target.parent.glob(f".unfinished-{target.name}-*"):
                shutil.rmtree(left_over)
            workshop = Path(tempfile.mkdtemp(prefix=f".unfinished-{target.name}-", dir=target.parent))
            try:
                build(workshop / target.name)
                (workshop / target.name).rename(target)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
    return target


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, attempts: int = 1
) -> None:
    """Runs a program and raises `SetupError` with its last words when it fails `attempts` times.

    Raises:
        SetupError: the program is missing or ended with an error.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, env=env, cwd=cwd, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise SetupError(f"`{words[0]}` is needed and was not found.") from None
    if done.returncode == 0:
        return
    if attempts == 1:
        last_words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise SetupError(f"`{' '.join(words)}` failed:\n{last_words}")
    say(f"`{words[0]}` failed, trying again ...")
    time.sleep(PAUSE)
    run(command, env=env, cwd=cwd, attempts=attempts - 1)


def check_sha256(path: Path, expected: str) -> None:
    """Refuses a download that is not the pinned one.

    Raises:
        SetupError: the content differs.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise SetupError(f"{path.name} is not the file that is pinned: sha256 {digest.hexdigest()}, not {expected}.")
