"""What `python3 -m tools` does: sets up what a command needs, then becomes that command."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tools import downloads, environment, kubernetes, locks, packages
from tools.terminal import SetupError, say

TEST_PROCESSES = 4
DOWNLOADS: dict[str, Callable[[], Path]] = {
    "compose-spec": downloads.compose_spec,
    "pulsar": downloads.pulsar,
    "pulsar-java-client": downloads.pulsar_java_client,
    "versitygw": downloads.versitygw,
    "speech": downloads.speech,
    "whisper-faster": lambda: downloads.whisper_weights("faster"),
    "whisper-openai": lambda: downloads.whisper_weights("openai"),
    "kubeconform": kubernetes.kubeconform,
    "kustomize": kubernetes.kustomize,
    "promtool": kubernetes.promtool,
    "schemas": kubernetes.schemas,
}
NEED_ENVIRONMENT = ("whisper-openai", "schemas")
"""Made by the environment's Python, so after it."""


def main(words: Sequence[str]) -> int:
    """Runs one command; a `SetupError` is told without a traceback."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "run": _run,
        "test": _test,
        "python": _python,
        "deploy": partial(_deployment, "deploy"),
        "tokens": partial(_deployment, "tokens"),
        "lock": _lock,
        "fetch": _fetch,
    }
    parser = argparse.ArgumentParser(prog="python3 -m tools", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command; -h after it says more")
    options = parser.parse_args(words)
    try:
        commands[options.command](options.arguments)
    except SetupError as error:
        say(f"Set-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tools run", description="Starts BabbleBox on this machine.")
    parser.add_argument("--engine", choices=("openai", "faster"), default="openai")
    engine: str = parser.parse_args(arguments).engine
    environment.ensure("run-faster" if engine == "faster" else "run")
    os.environ["WHISPER_ENGINE"] = engine
    if not os.environ.get("WHISPER_MODEL"):
        os.environ["WHISPER_MODEL"] = str(downloads.whisper_weights(engine))
    _become_python(["-m", "apps.run"])


def _test(arguments: Sequence[str]) -> None:
    """Becomes pytest; for all tests in several processes, each with servers of its own: most of the time they wait."""
    _set_up_tests()
    parallel = ["-n", str(TEST_PROCESSES), "--dist=loadgroup", "--no-loadscope-reorder"]
    _become_python(["-m", "pytest", *(arguments or parallel)])


def _python(arguments: Sequence[str]) -> None:
    """Becomes the Python of an environment with everything, or only makes that."""
    environment.ensure("dev")
    if arguments:
        _become_python(arguments)


def _deployment(module: str, arguments: Sequence[str]) -> None:
    """Becomes a module of the tools in the environment that has what it needs."""
    _become([str(environment.deployment()), "-m", f"tools.{module}", *arguments])


def _lock(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tools lock", description=locks.__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    locks.write(upgrade=parser.parse_args(arguments).upgrade)


def _fetch(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tools fetch", description="Prints the path of a big thing.")
    parser.add_argument("name", choices=sorted(DOWNLOADS))
    print(DOWNLOADS[parser.parse_args(arguments).name]())


def _set_up_tests() -> None:
    """All at once: while one waits for the network another builds. The first error is told, the rest still end."""
    packages.install_for_tests()
    environment.bootstrap_python()  # the others need it
    independent: list[Callable[[], object]] = [DOWNLOADS[name] for name in DOWNLOADS if name not in NEED_ENVIRONMENT]
    environments = (lambda: environment.ensure("dev"), environment.cdk)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(step) for step in (*environments, *independent)]
    for step in running:
        step.result()
    for name in NEED_ENVIRONMENT:
        DOWNLOADS[name]()


def _become_python(arguments: Sequence[str]) -> None:
    os.environ["PATH"] = f"{environment.PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _become([str(environment.PYTHON), *arguments])


def _become(command: list[str]) -> None:
    """Replaces this process, so that Ctrl-C and the exit status are the command's own."""
    assert threading.active_count() == 1
    os.chdir(environment.CHECKOUT)
    os.execv(command[0], command)
