"""The scenarios: what is done to a run while it goes on. Each ends when all tasks are done, or the time is up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.conformance.processes import WorkerProcess
from tests.faults.beats import kill_leaders
from tests.faults.checker import ACK_WINDOW, Verdict
from tests.faults.disk import SmallDisk
from tests.faults.entries import Kind
from tests.faults.outbox import kill_relays
from tests.faults.proxy import Proxy
from tests.faults.stage import Stage, wait_until_connected
from tests.services import LOOPBACK

EVERY = 1.0
"""Seconds between two kills."""
RECONNECT = 0.7
"""Seconds after an outage in which clients connect again, and in which they start what they had received before it."""
PERSISTED = 1.0
"""Seconds before a Pulsar is killed whose acknowledgements may not have reached its disk."""


@dataclass(frozen=True)
class Scenario:
    """Something that goes wrong."""

    play: Callable[[Stage], Verdict | None]
    """Gives the verdict, if that is another one than on the tasks of the stage."""
    what: str
    brokers: tuple[str, ...] = ("local", "pulsar")
    plan: str = "mixed"
    rate: int = 0
    share: float = 1.0
    """Of the tasks asked for."""
    own_server: bool = False
    """Whether it stops the Pulsar."""


def kill_workers(stage: Stage) -> None:
    """A child, a whole worker or a supervisor alone, one every second; supervisors are started again."""
    workers = [_worker(stage) for _ in range(2)]
    stage.publish()
    while stage.going:
        stage.wait(EVERY)
        place = stage.random.randrange(len(workers))
        match stage.random.choices(["child", "worker", "supervisor"], [5, 3, 1])[0]:
            case "child":
                kill_child(stage, workers[place])
            case "worker":
                kill_worker(stage, workers[place])
                workers[place] = _worker(stage)
            case "supervisor":
                kill_supervisor(stage, workers[place])
                workers[place] = _worker(stage)


def restart_broker(stage: Stage) -> None:
    """By SIGTERM, by SIGKILL and by SIGTERM, in the middle; in short only by SIGKILL."""
    server = stage.setting.server
    assert server is not None
    workers = [_worker(stage) for _ in range(2)]
    stage.publish()
    kills = (True,) if stage.setting.short else (False, True, False)
    for number, kill in enumerate(kills, start=1):
        _wait_for_progress(stage, number / (len(kills) + 1))
        with stage.outage(acks=PERSISTED if kill else ACK_WINDOW):
            server.restart(kill=kill)
            wait_until_connected(*workers)
            stage.wait(RECONNECT)
    stage.wait(stage.setting.patience)


def unload_topics(stage: Stage) -> None:
    """Each of the topics in turn, one every second or two."""
    server = stage.setting.server
    assert server is not None
    workers = [_worker(stage) for _ in range(2)]
    wait_until_connected(*workers)
    stage.publish()
    while stage.going:
        stage.wait(EVERY)
        with stage.outage():
            server.unload(stage.random.choice(stage.topics))
            stage.wait(RECONNECT)


def kill_publisher(stage: Stage) -> None:
    """In the middle of its calls, within a second of its first; the next one goes on behind what was confirmed."""
    for _ in range(2):
        _worker(stage)
    stage.publish()
    while stage.publisher.poll() is None and stage.going:
        confirmed = stage.confirmed()
        while stage.publisher.poll() is None and stage.going and stage.confirmed() == confirmed:
            stage.wait(0.05)
        stage.wait(stage.random.random() * EVERY)
        if stage.publisher.poll() is None:
            stage.note(Kind.KILLED, stage.publisher.pid)
            stage.publisher.kill()
            stage.publisher.wait(30)
            stage.publish(stage.confirmed())
    stage.wait(stage.setting.patience)


def spoil_network(stage: Stage) -> None:
    """Between one worker and the broker: cut, slowed and held up in turn; another worker has a good one."""
    port = urlsplit(stage.setting.url).port
    assert port is not None
    proxy = Proxy(port)
    stage.on_end(proxy.close)
    bad = _worker(stage, url=stage.setting.url.replace(f"{LOOPBACK}:{port}", f"{LOOPBACK}:{proxy.port}", 1))
    good = _worker(stage)
    wait_until_connected(bad, good)
    stage.publish()
    turn = 0
    while stage.going:
        stage.wait(EVERY)
        with stage.outage(bad):
            [proxy.cut, lambda: setattr(proxy, "delay", 0.05), proxy.hold][turn % 3]()
            stage.wait(EVERY)
            proxy.restore()
            wait_until_connected(bad)
            stage.wait(RECONNECT)
        turn += 1
    assert proxy.passed > 10 * stage.setting.tasks, f"only {proxy.passed} bytes went through the proxy"


def fill_disk(stage: Stage) -> None:
    """For a second each time, under the database of a local broker."""
    disk = SmallDisk(Path(urlsplit(stage.setting.url).path).parent)
    stage.on_end(disk.close)
    workers = [_worker(stage) for _ in range(2)]
    wait_until_connected(*workers)
    stage.publish()
    while stage.going:
        stage.wait(EVERY)
        processes = [stage.publisher.pid, *(pid for worker in workers for pid in worker.children())]
        with stage.outage():
            disk.fill(processes, spare=stage.entries.path.stat().st_size + 256 * 1024)
            stage.wait(EVERY)
            disk.free(processes)
            stage.wait(RECONNECT)
    for (
        worker
    ) in workers:  # what was done and is not acknowledged for want of room comes again when its process is gone
        worker.terminate()
        worker.wait()
    wait_until_connected(_worker(stage))


def restart_workers(stage: Stage) -> None:
    """Two of them, one after the other, in order (SIGTERM), again and again under a steady load."""
    workers = [stage.start_worker("-c", "8").wait_until_ready() for _ in range(2)]
    stage.publish()
    place = 0
    while stage.publisher.poll() is None and stage.going:
        stage.wait(EVERY)
        stage.note(Kind.STOPPED, *workers[place].children())
        workers[place].terminate()
        status = workers[place].wait()
        assert status == 0, f"a worker ended with {status}"
        workers[place] = stage.start_worker("-c", "8").wait_until_ready()
        place = 1 - place
    stage.wait(stage.setting.patience)


SCENARIOS: Mapping[str, Scenario] = {
    "workers": Scenario(kill_workers, "a child, a worker or a supervisor killed every second"),
    "restarts": Scenario(
        restart_broker, "Pulsar stopped, killed, stopped", ("pulsar",), rate=250, share=0.5, own_server=True
    ),
    "unloads": Scenario(unload_topics, "a topic unloaded every second or two", ("pulsar",), rate=500, share=0.5),
    "publisher": Scenario(kill_publisher, "the publisher killed every second", rate=1000, share=0.5),
    "network": Scenario(spoil_network, "a worker's network cut, slow, held up", ("pulsar",), rate=250, share=0.25),
    "disk": Scenario(fill_disk, "the disk full, for a second at a time", ("local",), rate=400, share=0.5),
    "rolling": Scenario(restart_workers, "two workers restarted in turn, 200 x 50 ms a second", rate=200, share=0.2,
                        plan="steady"),
    "beat": Scenario(kill_leaders, "the leader of three copies of beat killed ten times", share=0.006),
    "chords": Scenario(kill_workers, "chords of 20 parts, in one of ten a part fails; killed like `workers`", rate=210,
                       share=0.21, plan="chords"),
    "outbox": Scenario(kill_relays, "outboxes whose relays are killed, and Pulsar for a minute", rate=200,
                       share=0.75, plan="keyed", own_server=True),
}  # fmt: skip


def kill_child(stage: Stage, worker: WorkerProcess) -> None:
    """SIGKILL to one of its processes that runs, if there is one."""
    died = {line["pid"] for line in worker.logged("process.died")}
    alive = [pid for pid in worker.children() if pid not in died]
    if alive:
        pid = stage.random.choice(alive)
        stage.note(Kind.KILLED, pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_worker(stage: Stage, worker: WorkerProcess) -> None:
    """SIGKILL to all of it at once."""
    at = time.time()
    worker.kill()
    worker.wait_for_end_of_children()  # so that all that it had started is known
    stage.note(Kind.KILLED, *worker.children(), at=at)


def kill_supervisor(stage: Stage, worker: WorkerProcess) -> None:
    """SIGKILL to the supervisor alone; its children finish what they run and exit."""
    at = time.time()
    worker.kill_supervisor()
    worker.wait_for_end_of_children()
    stage.note(Kind.STOPPED, *worker.children(), at=at)


def _worker(stage: Stage, url: str | None = None) -> WorkerProcess:
    return stage.start_worker("-c", "4", "--processes", "1" if stage.setting.short else "2", url=url)


def _wait_for_progress(stage: Stage, share: float) -> None:
    while stage.going and stage.progress() < share:
        stage.wait(0.1)
