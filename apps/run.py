"""BabbleBox on one machine: web, workers and relay under one process. ``make run``, or ``python -m apps.run``.

State lives in one folder and is kept between runs. Ctrl-C stops everything; a part that dies is started again, and if
it keeps dying everything ends, saying which one it was.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from apps.chat.database import Database
from apps.chat.migrate import migrate
from apps.chat.seed import seed
from apps.chat.settings import Settings
from pulsartasks.contrib.blobs import open_blob_store

LOOPBACK = "127.0.0.1"
WEB_THREADS = 32
"""More than the open streams of one process (Settings.stream_limit), so that pages are served beside them."""
WORKERS = {"chat": 4, "transcribe": 1, "images": 1}
"""Threads for each subscription."""
GRACE = 10.0
"""Seconds that a running task has to finish after Ctrl-C; what does not is delivered again at the next start."""
START_LIMIT = 900.0
"""Seconds until all parts must be ready: a first start may download a large model."""
RESTART_DELAY = 1.0
SHORT_LIFE = 20.0
MOST_SHORT_LIVES = 3

_HEALTH = re.compile(r"Health: (http://\S+)")
_COLOURS = (36, 33, 35, 32, 34)


def say(text: str) -> None:
    print(text, flush=True)


class CannotRunError(Exception):
    """What is in the way, in words for the person at the terminal."""


@dataclass
class Part:
    """One program of BabbleBox and the process that runs it."""

    name: str
    command: Sequence[str]
    colour: int = 0
    address: str | None = None
    """Answers 200 when the part is ready; None: there is nothing to ask. Workers tell theirs when they start."""
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    short_lives: int = 0
    """Starts in a row that did not last."""
    tells_address: bool = field(default=False)

    def start(self, env: Mapping[str, str]) -> None:
        """Start it in a session of its own, so that the terminal's Ctrl-C reaches this process alone."""
        self.started = time.monotonic()
        if self.tells_address:
            self.address = None
        self.process = subprocess.Popen(
            self.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._pass_on_output, args=(self.process,), daemon=True).start()

    @property
    def ready(self) -> bool:
        if self.address is None:
            return not self.tells_address
        try:
            with urllib.request.urlopen(self.address, timeout=5) as answer:  # noqa: S310 - an address of our own
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, or with SIGKILL to all that it started."""
        if self.process is None or self.process.poll() is not None:
            return
        if number is signal.SIGKILL:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def _pass_on_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                told = _HEALTH.match(line)
                if told and self.tells_address:
                    self.address = told[1]
                else:
                    say(f"{self._prefix()}{readable(line.rstrip())}")

    def _prefix(self) -> str:
        name = f"{self.name:<10} | "
        return f"\033[{self.colour}m{name}\033[0m" if sys.stdout.isatty() else name


def readable(line: str) -> str:
    """A worker's log line for a person: what happened, then its fields.

    >>> readable('{"id": "7", "event": "message.settled", "level": "info", "timestamp": "2026-01-01"}')
    'message.settled  id=7'
    """
    try:
        entry = json.loads(line)
        event, level = entry.pop("event"), entry.pop("level", "info")
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    entry.pop("timestamp", None)
    loud = "" if level in ("info", "debug") else f"{level.upper()} "
    error = entry.pop("exception", "")
    return f"{loud}{event}  {' '.join(f'{name}={value}' for name, value in entry.items())}{error and chr(10)}{error}"


class BabbleBox:
    """All parts together."""

    def __init__(self, parts: Sequence[Part], env: Mapping[str, str]) -> None:
        self._parts = parts
        self._env = env
        self._stopping = False
        """No event: a signal may come while the main thread holds its lock, and waits for itself then."""

    def start(self) -> None:
        """Start all parts and wait until each is ready.

        Raises:
            CannotRunError: one keeps dying, or is not ready in time.
        """
        for part in self._parts:
            part.start(self._env)
        deadline = time.monotonic() + START_LIMIT
        waiting = list(self._parts)
        while waiting and not self._paused(0.2):
            self._revive()
            waiting = [part for part in waiting if not part.ready]
            if time.monotonic() > deadline:
                raise CannotRunError(f"{waiting[0].name} is not ready after {START_LIMIT:.0f} s; see its lines above")

    def watch(self) -> None:
        """Keep all parts alive until `stop` was asked for.

        Raises:
            CannotRunError: one keeps dying.
        """
        while not self._paused(0.5):
            self._revive()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def ask_to_stop(self, *_: object) -> None:
        """End `watch`; a second time, do not wait for anything that runs."""
        if self._stopping:
            self._signal(signal.SIGKILL)
        self._stopping = True

    def stop(self) -> None:
        """Stop all parts; those that do not come to an end are killed."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE + 8
        for part in self._parts:
            if part.process is None:
                continue
            try:
                part.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.signal(signal.SIGKILL)
                part.process.wait()

    def _paused(self, seconds: float) -> bool:
        """Wait so long; whether to stop now."""
        time.sleep(seconds)
        return self._stopping

    def _signal(self, number: signal.Signals) -> None:
        for part in self._parts:
            part.signal(number)

    def _revive(self) -> None:
        for part in self._parts:
            status = part.process.poll() if part.process is not None else None
            if status is None:
                continue
            lived = time.monotonic() - part.started
            part.short_lives = part.short_lives + 1 if lived < SHORT_LIFE else 1
            if part.short_lives >= MOST_SHORT_LIVES:
                raise CannotRunError(f"{part.name} keeps ending (status {status}); its lines above say why")
            say(f"{part.name} ended with status {status} and is started again")
            self._paused(RESTART_DELAY)
            part.start(self._env)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C; 1 if something is in the way."""
    parser = argparse.ArgumentParser(prog="python -m apps.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, default=Path(".babblebox"), help="folder of everything that is kept")
    parser.add_argument("--host", default=os.environ.get("HOST") or LOOPBACK, help="an address of this machine alone")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8000))
    options = parser.parse_args(arguments)
    try:
        return _run(options.state.resolve(), _own(options.host), options.port)
    except CannotRunError as error:
        say(f"BabbleBox cannot run: {error}")
        return 1


def _run(state: Path, host: str, port: int) -> int:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state / "lock").open("w") as lock:
        _take(lock.fileno(), state)
        _check_port(host, port)
        env = environment(state, os.environ)
        settings = Settings.from_environ(env)
        database = Database(settings.database_url)
        migrate(database)
        box = BabbleBox(_parts(host, port), env)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, box.ask_to_stop)
        say(_introduction(env))
        try:
            box.start()
            if not box.stopping:
                if settings.demo:
                    seed(database, open_blob_store(settings.blob_store))
                say(f"BabbleBox is ready: http://{host}:{port}")
            box.watch()
        finally:
            say("Stopping...")
            box.stop()
            database.close()
    return 0


def environment(state: Path, given: Mapping[str, str]) -> dict[str, str]:
    """What all parts are told: what was given, and for the rest the defaults of one machine."""
    model = given.get("WHISPER_MODEL") or "tiny.en"
    defaults = {
        "BABBLEBOX_DEMO": "1",
        "BABBLEBOX_ENGLISH_ONLY": "1" if _english_only(model) else "0",
        "BLOB_STORE": str(state / "blobs"),
        "DATABASE_URL": f"sqlite:///{state / 'babblebox.db'}",
        "PULSARTASKS_BROKER": f"local://{state / 'broker.db'}",
        "PYTHONUNBUFFERED": "1",
        "WHISPER_ENGINE": "openai",
        "WHISPER_MODEL": model,
    }
    env = {**defaults, **{name: value for name, value in given.items() if value}}
    if "SECRET_KEY" not in env:
        env["SECRET_KEY"] = _secret_key(state / "secret_key")
    return env


def _english_only(model: str) -> bool:
    """Whether a model, a name or a path, is one of those that know no other language.

    >>> _english_only("tiny.en"), _english_only("/cache/whisper/tiny.en.pt"), _english_only("small")
    (True, True, False)
    """
    return any(part.removesuffix(".pt").endswith(".en") for part in Path(model).parts)


def _secret_key(path: Path) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text()


def _take(lock: int, state: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotRunError(f"it runs already, with the state in {state}") from None


def _own(host: str) -> str:
    """`host`, if only this machine can reach it: there is no TLS here, and demo users need no password."""
    try:
        own = host == "localhost" or IPv4Address(host).is_loopback
    except ValueError:
        own = False
    if not own:
        raise CannotRunError(
            f"{host} can be reached by others, and this way of running is for one machine; use {LOOPBACK}. "
            'For others, run gunicorn "apps.chat.wsgi:serve()" behind a proxy that speaks TLS'
        )
    return host


def _check_port(host: str, port: int) -> None:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except (OSError, OverflowError) as error:
            raise CannotRunError(
                f"port {port} cannot be had ({error}). Choose another one: make run PORT={port % 60_000 + 1}"
            ) from None


def _parts(host: str, port: int) -> list[Part]:
    python = [sys.executable, "-m"]
    gunicorn = [*python, "gunicorn", "--worker-class=gthread", "--workers=1", f"--threads={WEB_THREADS}"]
    gunicorn += [
        f"--bind={host}:{port}",
        "--graceful-timeout=2",
        "--log-level=warning",
        "apps.chat.wsgi:serve()",
    ]
    parts = [
        Part("web", gunicorn, address=f"http://{host}:{port}/healthz"),
        Part("relay", [*python, "apps.chat.relay"]),
    ]
    for name, threads in WORKERS.items():
        worker = [*python, "pulsartasks", "worker", "-A", f"apps.{name}.tasks:app", f"-c{threads}"]
        parts.append(Part(name, [*worker, "--health-port=0", f"--grace={GRACE}"], tells_address=True))
    for part, colour in zip(parts, _COLOURS, strict=True):
        part.colour = colour
    return parts


def _introduction(env: Mapping[str, str]) -> str:
    only = " - English only" if env["BABBLEBOX_ENGLISH_ONLY"] == "1" else ""
    engine = {"openai": "openai-whisper", "faster": "faster-whisper"}.get(env["WHISPER_ENGINE"], env["WHISPER_ENGINE"])
    broker = env["PULSARTASKS_BROKER"].partition("@")[2] or env["PULSARTASKS_BROKER"]
    return f"Speech: {engine}, model {Path(env['WHISPER_MODEL']).name}{only}\nBroker: {broker}"


if __name__ == "__main__":
    sys.exit(main())
