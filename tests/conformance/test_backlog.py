"""Of guarantee 11, that publishing waits up to its timeout: for room, where a topic may hold only so much."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from pulsartasks import BacklogFullError, PulsarTasks, Task
from tests.conformance.conftest import BrokerUnderTest, Pulsar, Workers

pytestmark = pytest.mark.guarantee(11)

KIBIBYTE = "x" * 1024


@pytest.fixture
def make_app(broker: BrokerUnderTest, name: str) -> Iterator[Callable[[], PulsarTasks]]:
    """Makes the app as one more process would have it, on a broker that holds ten calls of a kibibyte for it."""
    apps = []
    namespace = None
    if isinstance(broker, Pulsar):
        namespace = f"public/{name}"
        broker.server.admin("PUT", f"namespaces/{namespace}", {})
        quota = {"limitSize": 10 * 1024, "policy": "producer_request_hold"}
        broker.server.admin("POST", f"namespaces/{namespace}/backlogQuota?backlogQuotaType=destination_storage", quota)

    def make() -> PulsarTasks:
        limit = "" if isinstance(broker, Pulsar) else "?max_backlog=10"
        apps.append(PulsarTasks(name, f"{broker.url}{limit}", namespace=namespace))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def _define(app: PulsarTasks, run: Callable[[str], object] = len) -> Task[[str], None]:
    @app.task(ignore_result=True)
    def store(text: str) -> None:
        run(text)

    return store


def _fill(app: PulsarTasks) -> None:
    call = _define(app).s(KIBIBYTE)
    assert all(isinstance(outcome, str) for outcome in app.publish_many([call.publication() for _ in range(10)]))


def test_call_that_finds_no_room_is_told_so_in_time(make_app: Callable[[], PulsarTasks]) -> None:
    _fill(make_app())
    late = make_app()
    call = _define(late).s(KIBIBYTE)

    [outcome] = late.publish_many([call.publication()], timeout=2.0)

    assert isinstance(outcome, BacklogFullError)
    assert "for 2 s" in str(outcome)


def test_call_waits_until_there_is_room(make_app: Callable[[], PulsarTasks], start_worker: Workers) -> None:
    _fill(make_app())
    late, working = make_app(), make_app()
    call = _define(late).s(KIBIBYTE)
    _define(working)
    outcomes: list[object] = []
    waiting = threading.Thread(target=lambda: outcomes.extend(late.publish_many([call.publication()], timeout=60.0)))
    waiting.start()

    start_worker(working)
    waiting.join(60)

    assert [type(outcome) for outcome in outcomes] == [str]
