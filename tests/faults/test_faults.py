"""The fault suite in small: every scenario on every broker that it applies to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.__main__ import place, play, setting_of
from tests.faults.scenarios import SCENARIOS
from tests.services import PulsarServer
from tools import downloads

TASKS = {
    "workers": 1000,
    "restarts": 500,
    "unloads": 600,
    "publisher": 600,
    "network": 600,
    "disk": 400,
    "beat": 15,
    "chords": 420,
    "outbox": 800,
}
"""So many that it takes a few seconds, a fault in each of them. `rolling` is one of the conformance tests already."""

Place = tuple[str, PulsarServer | None]
CASES = [
    pytest.param((name, broker), id=f"{name}-{broker}", marks=[pytest.mark.pulsar] if broker == "pulsar" else [])
    for name in TASKS
    for broker in SCENARIOS[name].brokers
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, Place]]:
    """A scenario and a broker for it; a Pulsar of its own if it stops that."""
    name, broker = request.param
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:
        if broker == "local":
            yield name, (place(f"local://{folder}/broker.db", name), None)
            return
        if not SCENARIOS[name].own_server:
            server: PulsarServer = request.getfixturevalue("pulsar_server")
            yield name, (_url(server), server)
            return
        server = PulsarServer(downloads.pulsar(), Path(folder, "pulsar"))
        server.start()
        try:
            yield name, (_url(server), server)
        finally:
            server.stop()


def test_nothing_is_lost_early_out_of_order_or_run_twice_without_a_reason(case: tuple[str, Place]) -> None:
    name, (url, server) = case
    setting = setting_of(SCENARIOS[name], url, TASKS[name], seed=1, patience=240, server=server)

    verdict = play(SCENARIOS[name], replace(setting, short=True))

    assert verdict.complaints == []
    assert verdict.faults > 0


def _url(server: PulsarServer) -> str:
    return f"{server.service_url}?admin_url={server.admin_url}"
