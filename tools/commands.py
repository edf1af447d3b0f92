"""What `python3 -m tools` does: sets up what a command needs, then becomes that command."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import downloads, environment, locks, packages
from tools.terminal import SetupError, say

DOWNLOADS: dict[str, Callable[[], Path]] = {
    "pulsar": downloads.pulsar,
    "versitygw": downloads.versitygw,
    "speech": downloads.speech,
    "whisper-faster": lambda: downloads.whisper_weights("faster"),
    "whisper-openai": lambda: downloads.whisper_weights("openai"),
}


def main(arguments: Sequence[str]) -> int:
    """Runs one command; a `SetupError` is told without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except SetupError as error:
        say(f"Set-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="BabbleBox on this machine")
    run.add_argument("--engine", choices=("openai", "faster"), default="openai")
    run.set_defaults(command=_run)
    test = commands.add_parser("test", help="pytest, with everything the tests need; arguments go to it")
    test.add_argument("pytest", nargs=argparse.REMAINDER)
    test.set_defaults(command=_test)
    python = commands.add_parser("python", help=".venv with everything, then its Python with the arguments")
    python.add_argument("python", nargs=argparse.REMAINDER)
    python.set_defaults(command=_python)
    lock = commands.add_parser("lock", help="write the locks anew")
    lock.add_argument("--upgrade", action="store_true", help="take the newest versions")
    lock.set_defaults(command=lambda options: locks.write(upgrade=options.upgrade))
    fetch = commands.add_parser("fetch", help="one of the big things, and its path")
    fetch.add_argument("name", choices=sorted(DOWNLOADS))
    fetch.set_defaults(command=lambda options: print(DOWNLOADS[options.name]()))
    return parser


def _run(options: argparse.Namespace) -> None:
    engine: str = options.engine
    environment.ensure("run-faster" if engine == "faster" else "run")
    os.environ["WHISPER_ENGINE"] = engine
    if not os.environ.get("WHISPER_MODEL"):
        os.environ["WHISPER_MODEL"] = str(downloads.whisper_weights(engine))
    _become_python(["-m", "apps.run"])


def _test(options: argparse.Namespace) -> None:
    _set_up_tests()
    _become_python(["-m", "pytest", *options.pytest])


def _python(options: argparse.Namespace) -> None:
    environment.ensure("dev")
    if options.python:
        _become_python(options.python)


def _set_up_tests() -> None:
    """All at once: while one waits for the network another builds. The first error is told, the rest still end."""
    packages.install_for_tests()
    environment.bootstrap_python()  # the others need it
    independent = [name for name in DOWNLOADS if name != "whisper-openai"]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(DOWNLOADS[name]) for name in independent]
        running.append(pool.submit(environment.ensure, "dev"))  # type: ignore[arg-type]
    for future in running:
        future.result()
    downloads.whisper_weights("openai")  # needs torch


def _become_python(arguments: Sequence[str]) -> None:
    """Replaces this process, so that Ctrl-C and the exit status are the command's own."""
    assert threading.active_count() == 1
    os.chdir(environment.CHECKOUT)
    os.environ["PATH"] = f"{environment.PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(environment.PYTHON, [str(environment.PYTHON), *arguments])
