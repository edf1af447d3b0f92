"""Real worker processes: started as their own command line does, their processor time and memory read from /proc."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parent.parent
_MAPPING = re.compile("[0-9a-f]+-[0-9a-f]+ ")
TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with_children = _text(thread).split()
        found += [below for child in with_children for below in tree(int(child))]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a tree, with what has ended in it and was waited for."""
    return sum(sum(map(int, _fields(one)[11:15])) for one in tree(pid)) / TICKS


def pss_mb(processes: Sequence[int]) -> float:
    """Memory of some processes, shared pages divided among those who share them; without what the probe has noted."""
    total = 0
    for one in processes:
        counts = True
        for line in _text(Path(f"/proc/{one}/smaps")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) if counts else 0
            elif _MAPPING.match(line):
                counts = not line.endswith(".times")
    return total / 1024


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[int]:
    """A worker in a session of its own, ended in order; its process id."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def answer(command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 300) -> Any:
    """What a program prints as JSON."""
    done = subprocess.run(command, cwd=CHECKOUT, env=env, check=False, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 900) -> None:
    """Returns within 2 ms of `condition`.

    Raises:
        TimeoutError: it did not hold within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.002)


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, after the name, which may hold blanks."""
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() or ["0"] * 15


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return ""
