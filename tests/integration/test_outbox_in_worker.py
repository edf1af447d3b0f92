"""The relay as a part of the worker, which begins and ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from pulsartasks.errors import ConfigurationError
from pulsartasks.worker.worker import Worker
from tests.integration.shop import Order, Shop, numbers_by_key, orders
from tests.services import wait_until


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = f"sqlite:///{tmp_path}/shop.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    shop = Shop(url, f"local://{tmp_path}/broker.db")
    shop.metadata.create_all(shop.engine)
    yield shop
    shop.close()


@contextmanager
def worker_of(shop: Shop) -> Iterator[Worker]:
    """A worker that relays, and has a task."""
    shop.app.task(name="pay")(lambda number: number)
    shop.outbox.relay_in_worker(shop.app, shop.engine)
    worker = Worker(shop.app)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_worker_relays_until_it_has_stopped(shop: Shop) -> None:
    with capture_logs() as logs, worker_of(shop) as worker:
        shop.send(Order("a", 1))
        assert shop.receive(1) == [Order("a", 1)]
        assert worker.stop()
        shop.send(Order("a", 2))

    assert [entry["event"] for entry in logs if entry["event"] in ("outbox.started", "outbox.stopped")] == [
        "outbox.started",
        "outbox.stopped",
    ]
    assert shop.count_rows() == 1


def test_workers_share_the_rows_and_one_takes_over_from_another(shop: Shop) -> None:
    """Another app is as good as another process."""
    other = Shop(shop.database_url, shop.broker_url)
    sent = orders(400, keys=20)
    with worker_of(shop) as first, worker_of(other):
        shop.send(*sent[:200])
        arrived = shop.receive(200)
        first.stop()
        shop.send(*sent[200:])
        arrived += shop.receive(200)
        wait_until(lambda: shop.count_rows() == 0, "rows are left in the outbox")
    other.close()

    assert numbers_by_key(arrived) == numbers_by_key(sent)


def test_database_that_cannot_be_relayed_from_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    shop = Shop(f"sqlite:///{tmp_path}/shop.db", f"local://{tmp_path}/broker.db")
    engine = cast("sa.Engine", sa.create_mock_engine("mysql+pymysql://", executor=lambda *_: None))

    with pytest.raises(ConfigurationError, match="postgresql or sqlite, not from mysql"):
        shop.outbox.relay_in_worker(shop.app, engine)
    shop.close()
