"""Runs a server for as long as the test run lives: ``python -m tests.keeper COMMAND...``.

The test run holds the other end of this process's standard input. A line there is the name of a signal for the server;
the end of it, which comes even when the test run is killed, stops the server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE = 20.0


def main(command: list[str]) -> int:
    """Starts `command`, obeys standard input, and ends with the server's exit status."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_obey, args=(server,), daemon=True).start()
    return server.wait()


def _obey(server: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        server.send_signal(signal.Signals[line.strip()])
    server.terminate()
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status & 0xFF)  # the thread may be waiting in a read of standard input
