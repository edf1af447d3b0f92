"""What README and docs show is true: their Python runs, their commands print what they say, their links lead somewhere.

A page is read from top to bottom, in an empty folder:

- ``python`` that begins with a comment ``# NAME.py`` is saved as that file;
- ``console`` is run: after ``$`` stands a command, below it what it prints (on standard output and error). ``...``
  stands for anything; ids and instants are other ones, but the same id on the page means the same id. A worker runs on
  a terminal until the page starts another one or ends;
- all other ``python`` is one program, which is run at the end.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PATIENCE = 90.0
"""Seconds that a worker has to print what the page says."""

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# ([\w/]+\.py)\n")
COMMAND = re.compile(r"^\$ ", re.MULTILINE)
FAILURE = re.compile(r"\A(Traceback|Usage|[\w.]+\.RemoteTraceback)\b|^Error: ", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
VARYING = re.compile(
    r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|(?P<instant>\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00))"
    r"|(?P<pid>pid=\d+)|(?P<anything>\.\.\.)|(?P<space>\s+)"
)


def _name(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=_name)
def test_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    program = []
    with _terminal(tmp_path) as terminal:
        for language, text in BLOCK.findall(page.read_text("utf-8")):
            if language == "console":
                terminal.follow(text)
            elif name := FILE_NAME.match(text):
                (tmp_path / name[1]).write_text(text, "utf-8")
            else:
                program.append(text)

    (tmp_path / "page.py").write_text("\n".join(program), "utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", [*PAGES, CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "CHANGELOG.md"], ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a ... z", "a b\nc z", True),
        ("at 2026-11-23T03:00:01Z", "at 2027-01-02T03:04:05.678901Z", True),
        ("pid=4711   number=0", "pid=12 number=0", True),
        ("01a20660-9766-7d72-932f-1d16491f2bc1", "02b20660-0000-7d72-932f-1d16491f2bc1", True),
        ("6", "7", False),
        ("6", "66", False),
    ],
)
def test_shown_output_stands_for_the_printed_one(shown: str, printed: str, same: bool) -> None:
    assert (_Ids().match(shown, printed) is not None) == same


class _Ids:
    """The ids that those on the page stand for."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def match(self, shown: str, printed: str) -> re.Match[str] | None:
        """Compare what a page shows with what was printed, and learn the ids in it."""
        names: dict[str, str] = {}
        match = re.fullmatch(self._pattern(shown.strip(), names), COLOUR.sub("", printed).strip(), re.DOTALL)
        if match is not None:
            self._real.update({shown_id: match[name] for shown_id, name in names.items()})
        return match

    def in_place(self, command: str) -> str:
        """The command as a reader types it, with the ids that were really printed."""
        for shown, real in self._real.items():
            command = command.replace(shown, real)
        return command

    def _pattern(self, shown: str, names: dict[str, str]) -> str:
        pattern, end = "", 0
        for varying in VARYING.finditer(shown):
            pattern += re.escape(shown[end : varying.start()]) + self._stand_in(varying, names)
            end = varying.end()
        return pattern + re.escape(shown[end:])

    def _stand_in(self, varying: re.Match[str], names: dict[str, str]) -> str:
        text = varying[0]
        match varying.lastgroup:
            case "id" if text in self._real:
                return re.escape(self._real[text])
            case "id" if text in names:
                return f"(?P={names[text]})"
            case "id":
                names[text] = f"id{len(names)}"
                return f"(?P<{names[text]}>[0-9a-f-]{{36}})"
            case "instant":
                return r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)"
            case "pid":
                return r"pid=\d+"
            case "anything":
                return ".*?"
            case _:
                return r"\s+"


class _Terminal:
    """What a reader has open: a shell, and beside it a worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids = _Ids()
        self._worker: subprocess.Popen[bytes] | None = None
        self._screen = -1

    def follow(self, block: str) -> None:
        for step in COMMAND.split(block)[1:]:
            command, _, shown = step.partition("\n")
            if command.startswith("pulsartasks worker"):
                self.stop_worker()
                self._start_worker(command, shown)
            else:
                self._run(command, shown)

    def stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.send_signal(signal.SIGINT)
            self._worker.wait(PATIENCE)
            os.close(self._screen)
            self._worker = None

    def _run(self, command: str, shown: str) -> None:
        ran = subprocess.run(
            self._ids.in_place(command),
            shell=True,
            cwd=self._folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=200,
        )
        assert not shown or self._ids.match(shown, ran.stdout), f"$ {command}\n{ran.stdout}"
        assert (ran.returncode != 0) == bool(FAILURE.search(shown)), f"$ {command}\n{ran.stdout}"

    def _start_worker(self, command: str, shown: str) -> None:
        self._screen, its_end = pty.openpty()
        self._worker = subprocess.Popen(
            command.split(), cwd=self._folder, env=_environment(), stdin=its_end, stdout=its_end, stderr=its_end
        )
        os.close(its_end)
        printed, deadline = "", time.monotonic() + PATIENCE
        while not self._ids.match(f"{shown.rstrip()}...", printed):
            received = self._read_screen(deadline)
            assert received, f"$ {command}\n{printed}"
            printed += received

    def _read_screen(self, deadline: float) -> str:
        """What is printed next; nothing if that does not come, or the worker has ended."""
        readable, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
        try:
            return os.read(self._screen, 65_536).decode() if readable else ""
        except OSError:  # Linux says so when the other end is closed
            return ""


@contextmanager
def _terminal(folder: Path) -> Iterator[_Terminal]:
    terminal = _Terminal(folder)
    try:
        yield terminal
    finally:
        terminal.stop_worker()


def _environment() -> dict[str, str]:
    """As it is where nothing is set for pulsartasks, and its virtual environment is active."""
    ours = ("PULSARTASKS_", "PYTHONPATH")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"PATH": path}


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
