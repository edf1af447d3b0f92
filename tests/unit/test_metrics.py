"""What is counted of attempts, and what Prometheus is told of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from pulsartasks.message import Request
from pulsartasks.outcome import Died, Outcome, Retried, Revoked, Skipped, Succeeded
from pulsartasks.worker.metrics import Metrics, collect, process_ended


class Told(CollectorRegistry):
    """What a registry makes of the files in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.register(self)

    def collect(self) -> Iterable[Metric]:
        return collect(self._folder)

    def value(self, name: str, **labels: str) -> float | None:
        return self.get_sample_value(f"pulsartasks_{name}", {"task": "add", **labels})


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Succeeded(5), "succeeded"),
        (Retried(OSError(), 1), "retried"),
        (Died(OSError(), "failed"), "died"),
        (Revoked("expired"), "revoked"),
        (Skipped("done"), "skipped"),
    ],
)
def test_each_outcome_is_counted_by_its_name(tmp_path: Path, outcome: Outcome, name: str) -> None:
    metrics = Metrics(["subtract", "add"], tmp_path)

    assert metrics.execute(Request(task="add"), lambda _: outcome) is outcome

    told = Told(tmp_path)
    assert told.value("attempts_total", outcome=name) == 1
    assert told.value("attempts_total", outcome=name, task="subtract") == 0
    assert told.value("attempt_duration_seconds_count") == (0 if name == "revoked" else 1)


def test_what_runs_is_counted_until_its_process_has_ended(tmp_path: Path) -> None:
    metrics = Metrics(["add"], tmp_path)

    def look(_: Request) -> Outcome:
        assert Told(tmp_path).value("attempts_running") == 1
        process_ended(os.getpid(), tmp_path)
        assert Told(tmp_path).value("attempts_running") == 0
        return Succeeded(5)

    metrics.execute(Request(task="add"), look)

    assert Told(tmp_path).value("attempts_total", outcome="succeeded") == 1


def test_attempt_that_a_bug_broke_off_runs_no_more_and_has_no_outcome(tmp_path: Path) -> None:
    def bug(_: Request) -> Outcome:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Metrics(["add"], tmp_path).execute(Request(task="add"), bug)

    assert Told(tmp_path).value("attempts_running") == 0
    assert Told(tmp_path).value("attempt_duration_seconds_count") == 0


def test_histograms_hold_what_is_at_or_below_each_limit(tmp_path: Path) -> None:
    metrics = Metrics(["add"], tmp_path)
    now = time.time()
    for age in (-50, 20, 20, 10**7):
        metrics.execute(Request(task="add", published_at=now - age), lambda _: Succeeded(5))

    told = Told(tmp_path)
    assert told.value("message_age_seconds_bucket", le="0.005") == 1
    assert told.value("message_age_seconds_bucket", le="5.0") == 1
    assert told.value("message_age_seconds_bucket", le="30.0") == 3
    assert told.value("message_age_seconds_bucket", le="+Inf") == told.value("message_age_seconds_count") == 4
    assert told.value("message_age_seconds_sum") == pytest.approx(10**7 + 40, abs=60)


def test_processes_and_threads_are_added_up(tmp_path: Path) -> None:
    processes = [Metrics(["add"], tmp_path), Metrics(["subtract", "add"], tmp_path)]

    def work(metrics: Metrics) -> None:
        for _ in range(500):
            metrics.execute(Request(task="add"), lambda _: Succeeded(5))

    threads = [threading.Thread(target=work, args=[metrics]) for metrics in processes * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Told(tmp_path).value("attempts_total", outcome="succeeded") == 2000
