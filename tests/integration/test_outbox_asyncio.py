"""The outbox in the transactions of SQLAlchemy's asyncio, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from pulsartasks.errors import InvalidArgumentsError
from tests.integration.shop import Order, Shop, running

DRIVERS = ["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]


@pytest.fixture
def shop(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    sqlite = driver.startswith("sqlite")
    url = f"sqlite:///{tmp_path}/shop.db" if sqlite else request.getfixturevalue("postgres")
    shop = Shop(url, f"local://{tmp_path}/broker.db")
    shop.metadata.create_all(shop.engine)
    yield shop
    shop.close()


@asynccontextmanager
async def connected(shop: Shop, driver: str) -> AsyncIterator[AsyncEngine]:
    """The shop's database, by an asynchronous driver."""
    engine = create_async_engine(f"{driver}:{shop.database_url.partition(':')[2]}")
    try:
        yield engine
    finally:
        await engine.dispose()


def numbers(shop: Shop, count: int) -> list[int]:
    """What arrives until nothing is left."""
    with running(shop.relay()):
        arrived = shop.receive(count)
        shop.wait_until_empty()
    return [order.number for order in arrived]


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_an_asynchronous_session_commits_arrives_and_nothing_else(shop: Shop, driver: str) -> None:
    async def request() -> None:
        async with connected(shop, driver) as engine:
            async with AsyncSession(engine) as session:
                await shop.outbox.aadd(session, shop.ordered.s(Order("a", 1)))
                await session.rollback()
            async with AsyncSession(engine) as session, session.begin():
                await shop.outbox.aadd(session, shop.ordered.s(Order("a", 2)))
                async with session.begin_nested() as savepoint:
                    await shop.outbox.aadd(session, shop.ordered.s(Order("a", 3)))
                    await savepoint.rollback()
            async with engine.begin() as connection:
                await shop.outbox.aadd(connection, shop.ordered.s(Order("a", 4)))

    asyncio.run(request())

    assert numbers(shop, 2) == [2, 4]


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"])
def test_asynchronous_transaction_that_began_first_and_commits_last_is_last(shop: Shop, driver: str) -> None:
    async def requests() -> None:
        async with connected(shop, driver) as engine, AsyncSession(engine) as first, AsyncSession(engine) as second:
            await shop.outbox.aadd(first, shop.ordered.s(Order("a", 1)))
            await shop.outbox.aadd(second, shop.ordered.s(Order("a", 2)))
            await second.commit()
            await first.commit()

    asyncio.run(requests())

    assert numbers(shop, 2) == [2, 1]


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
def test_id_of_a_call_is_given_and_parked_rows_are_released(shop: Shop, driver: str) -> None:
    @shop.app.task
    def pay(number: int) -> None: ...

    async def request() -> tuple[str | None, int]:
        async with connected(shop, driver) as engine, AsyncSession(engine) as session, session.begin():
            task_id = await shop.outbox.aadd(session, pay.using(task_id="mine").s(17))
            await session.execute(shop.outbox.table.update().values(error="no permission"))
            return task_id, await session.run_sync(shop.outbox.release)

    assert asyncio.run(request()) == ("mine", 1)


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
def test_asynchronous_session_is_refused_where_a_synchronous_one_is_needed(shop: Shop, driver: str) -> None:
    async def request() -> None:
        async with connected(shop, driver) as engine, AsyncSession(engine) as session:
            shop.outbox.add(cast("Any", session), shop.ordered.s(Order("a", 1)))

    with pytest.raises(InvalidArgumentsError, match=r"await outbox\.aadd"):
        asyncio.run(request())
