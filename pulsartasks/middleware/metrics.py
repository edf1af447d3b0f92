"""Prometheus metrics of every attempt; needs the extra ``pulsartasks[metrics]``.

In a worker with several processes the counts are kept in files that the supervisor sums up (prometheus_client's
multiprocess mode), so a replaced process loses none.
"""

from __future__ import annotations

import time

from prometheus_client import Counter, Gauge, Histogram

from pulsartasks.message import Request
from pulsartasks.middleware.base import Execute, Middleware
from pulsartasks.outcome import Died, Outcome, Retried, Skipped, Succeeded

SETTLED = Counter("pulsartasks_attempts_total", "Attempts that ended, by outcome.", ["task", "outcome"])
SECONDS = Histogram(
    "pulsartasks_attempt_duration_seconds",
    "How long attempts took.",
    ["task"],
    buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900),
)
WAITED = Histogram(
    "pulsartasks_message_age_seconds",
    "How old messages were when they began to run, delays included.",
    ["task"],
    buckets=(0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600, 86_400),
)
RUNNING = Gauge("pulsartasks_attempts_running", "Attempts that run now.", ["task"], multiprocess_mode="livesum")

_NAMES: dict[type[Outcome], str] = {Succeeded: "succeeded", Retried: "retried", Died: "died", Skipped: "skipped"}


class Metrics(Middleware):
    """Counts and times attempts."""

    def execute(self, request: Request, call_next: Execute) -> Outcome:
        running = RUNNING.labels(request.task)
        running.inc()
        WAITED.labels(request.task).observe(max(0.0, time.time() - request.published_at))
        began = time.perf_counter()
        try:
            outcome = call_next(request)
        finally:
            running.dec()
        SECONDS.labels(request.task).observe(time.perf_counter() - began)
        SETTLED.labels(request.task, _NAMES[type(outcome)]).inc()
        return outcome
