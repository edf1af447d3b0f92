"""Schedule: any number of copies of beat, of which one sends; when it is gone another goes on, and no tick is lost."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from itertools import pairwise

from pulsartasks import PulsarTasks, TaskContext, crontab, every
from pulsartasks.beat.beat import Beat
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("schedule")
seconds: list[int] = []
beaten = threading.Condition()


@app.task(bind=True)
def beat_time(self: TaskContext, sound: str) -> None:
    instant = int(self.request.headers["pt-tick"].partition("@")[2]) // 1000
    print(f"{datetime.fromtimestamp(instant, timezone.utc):%T}  {sound}", flush=True)
    with beaten:
        seconds.append(instant)
        beaten.notify_all()


@app.task
def clean_up() -> None: ...


app.schedule("metronome", every(1), beat_time.s("tick"))
app.schedule("nightly", crontab("30 2 * * *", tz="Europe/Berlin"), clean_up.s(), missed="run_once")


def start_copy() -> threading.Event:
    """On a thread of this process, for once; otherwise: pulsartasks beat -A schedule:app, as often as you like."""
    stop = threading.Event()
    threading.Thread(target=Beat(app).run, args=[stop]).start()
    return stop


def wait_for(count: int) -> None:
    with beaten:
        beaten.wait_for(lambda: len(seconds) >= count, timeout=30)


def main() -> None:
    nightly = app.scheduled["nightly"].schedule
    print("the night the clocks go forward:", nightly.next(datetime(2027, 3, 28, tzinfo=timezone.utc)))

    worker = Worker(app)
    worker.start()
    leader, stand_by = start_copy(), start_copy()
    wait_for(3)
    leader.set()
    print("the first copy stops", flush=True)
    wait_for(7)
    stand_by.set()
    worker.stop()

    print("one for each second:", all(after - before == 1 for before, after in pairwise(sorted(seconds))))


if __name__ == "__main__":
    configure_logging("warning")
    main()
