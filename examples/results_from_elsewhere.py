"""Results from elsewhere: who knows the id can ask for the result, in another process and after the caller has gone."""

from __future__ import annotations

import subprocess
import sys

from pulsartasks import PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("elsewhere")


@app.task
def square(number: int) -> int:
    return number * number


def main() -> None:
    caller = subprocess.run([sys.executable, __file__, "call"], capture_output=True, text=True, check=True)
    task_id = caller.stdout.strip()
    print("another process called square(12) and ended:", caller.returncode == 0)

    result = square.result(task_id)
    print("nobody has run it:", result.state)

    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A ...:app
    worker.start()
    print("a worker has:", result.get(timeout=30), result.state)
    worker.stop()


if __name__ == "__main__":
    configure_logging("warning")
    if sys.argv[1:] == ["call"]:
        print(square.delay(12).id)
    else:
        main()
