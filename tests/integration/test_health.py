"""``--health-port``: what probes and Prometheus are told."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.error
import urllib.request

from pulsartasks import PulsarTasks
from tests.conformance.processes import WorkerProcess
from tests.conformance.records import Record
from tests.integration.conftest import StartProcess
from tests.services import LOOPBACK, free_ports, wait_until


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def port_of(worker: WorkerProcess) -> int:
    """The port that a worker with ``--health-port 0`` chose."""
    found: list[int] = []

    def said() -> bool:
        text = "\n".join(list(worker.lines))
        found[:] = [int(port) for port in re.findall(r"^Health: http://127\.0\.0\.1:(\d+)/readyz$", text, re.M)]
        return bool(found)

    wait_until(said, "the worker did not say its health port")
    return found[0]


def test_worker_that_consumes_is_alive_and_ready(start_process: StartProcess) -> None:
    worker = start_process("-Q", "shared", "--health-port", "0")
    port = port_of(worker)
    worker.wait_until_ready()

    assert get(port, "/healthz") == (200, "alive\n")
    wait_until(lambda: get(port, "/readyz") == (200, "ready\n"), "not ready")
    assert get(port, "/readyz?verbose=1")[0] == 200
    assert get(port, "/")[0] == 404


def test_worker_whose_broker_is_away_is_alive_but_not_ready(start_process: StartProcess) -> None:
    url = f"pulsar://{LOOPBACK}:{free_ports(1)[0]}?operation_timeout=1"
    worker = start_process("-Q", "shared", "--health-port", "0", PULSARTASKS_BROKER=url)
    port = port_of(worker)
    worker.wait_for_log("consumer.refused")

    assert get(port, "/healthz")[0] == 200
    assert get(port, "/readyz") == (503, "not every subscription is consumed yet\n")


def test_stand_by_counts_as_ready(start_process: StartProcess) -> None:
    start_process("-Q", "exclusive").wait_until_ready()
    stand_by = start_process("-Q", "exclusive", "--health-port", "0")
    port = port_of(stand_by)

    stand_by.wait_for_log("consumer.stood_by")

    wait_until(lambda: get(port, "/readyz")[0] == 200, "not ready")


def test_metrics_of_all_processes_are_added_up_and_outlive_them(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--processes", "2", "-c", "1", "--health-port", "0").wait_until_ready(2)
    port = port_of(worker)
    shared = acting.tasks["shared"]
    for number in range(10):
        shared.delay(str(number))
    shared.delay("retried", "retry", times=1)
    shared.delay("bad", "raise")
    record.wait_for(13)

    def count(outcome: str) -> float:
        pattern = rf'^pulsartasks_attempts_total{{outcome="{outcome}",task="shared"}} (.+)$'
        return sum(float(number) for number in re.findall(pattern, get(port, "/metrics")[1], re.M))

    def counted() -> bool:
        return (count("succeeded"), count("retried"), count("died")) == (11, 1, 1)

    wait_until(counted, "it was not counted")
    for child in worker.children():
        os.kill(child, signal.SIGKILL)
    worker.wait_for_log("process.died", count=2)
    assert counted()
    assert 'pulsartasks_attempt_duration_seconds_count{task="shared"} 13.0' in get(port, "/metrics")[1]


def test_port_that_is_taken_is_said_in_a_line(start_process: StartProcess) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        worker = start_process("--health-port", str(port))

        assert worker.wait() == 1

    worker.wait_for_end_of_children()
    assert f"Error: --health-port {port}: Address already in use; choose another port" in worker.lines
    assert worker.children() == []
