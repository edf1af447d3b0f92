"""A worker is killed in the middle of a task: the message was not acknowledged, so the next process has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pulsartasks import PulsarTasks

app = PulsarTasks("killed")


@app.task
def slow(attempts: str) -> int:
    with Path(attempts).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(attempts).read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as when memory runs out, or the power goes
    time.sleep(0.5)
    return os.getpid()


def main() -> None:
    attempts = Path("attempts.txt").absolute()
    attempts.unlink(missing_ok=True)
    survivor = slow.delay(str(attempts)).get(timeout=40)
    processes = attempts.read_text().split()
    print(f"begun by {len(processes)} processes, finished by the last one: {processes[-1] == str(survivor)}")


if __name__ == "__main__":
    module = Path(__file__)
    command = [sys.executable, "-m", "pulsartasks", "worker", "-A", f"{module.stem}:app", "-l", "error"]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(module.parent)})
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()
