"""A server never outlives its test run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.services import CHECKOUT

Keeper = subprocess.Popen[bytes]
SERVER = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A keeper whose server has started."""
    command = [sys.executable, "-m", "tests.keeper", sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_the_server_ends_when_the_pipe_does(keeper: Keeper) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()

    assert keeper.wait(60) == -signal.SIGTERM & 0xFF
    assert _is_gone(keeper)


def test_a_line_is_a_signal_for_the_server(keeper: Keeper) -> None:
    assert keeper.stdin is not None
    keeper.stdin.write(b"SIGKILL\n")
    keeper.stdin.flush()

    assert keeper.wait(60) == -signal.SIGKILL & 0xFF
    assert _is_gone(keeper)


def _is_gone(keeper: Keeper) -> bool:
    """The server holds the other end of this pipe for as long as it lives."""
    assert keeper.stdout is not None
    return keeper.stdout.read() == b""
