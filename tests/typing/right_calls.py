"""Calls that are right, and the types that type checkers must see in them. Nothing of this is run."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from pulsartasks import (
    INJECTED,
    AsyncResult,
    Batch,
    FrozenClock,
    GroupResult,
    PulsarTasks,
    Signature,
    StampingVisitor,
    Tail,
    TaskContext,
    Topic,
    chain,
    chord,
    group,
    shared_task,
)
from pulsartasks.contrib.sqlalchemy import Outbox
from pulsartasks.published import Published


@dataclass
class Order:
    number: int
    customer: str


class Model:
    def answer(self, question: str) -> str:
        return question


app = PulsarTasks("typing")


@app.task
def add(x: int, y: int = 0, *more: int, note: str = "") -> int:
    return x + y + sum(more) + len(note)


@app.task(bind=True, max_retries=5, retry_backoff=True, expires=60)
def fetch(self: TaskContext, url: str) -> bytes | None:
    raise self.retry(countdown=timedelta(seconds=1))


@app.task(batch=Batch(max_messages=8), max_retries=1)
def double(numbers: list[int]) -> list[int | Exception]:
    return [2 * number for number in numbers]


@app.task(batch=Batch())
def store(orders: list[Order], model: Model) -> None: ...


@app.task(batch=Batch())
async def name_all(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


@app.task
async def wait(seconds: float) -> str:
    return f"{seconds}"


@app.task(bind=True, soft_time_limit=1)
async def wait_bound(self: TaskContext, seconds: float) -> list[int]:
    return [self.retries, int(seconds)]


@app.resource
def model() -> Iterator[Model]:
    yield Model()


@app.task(concurrency=1)
def ask(question: str, model: Model = INJECTED) -> str:
    return model.answer(question)


placed = app.topic("placed", schema=Order, key=lambda order: order.customer, subscriptions=("mail",))
failed = placed.dead_letters("mail")


@app.task(topic=placed, subscription="mail", mode="key_shared")
def mail(order: Order) -> None: ...


@shared_task
def shared(number: int) -> str:
    return str(number)


@shared_task(bind=True, max_retries=1)
async def shared_bound(self: TaskContext, number: int) -> str:
    return str(number)


def calls() -> None:
    assert_type(shared.delay(1), AsyncResult[str])
    assert_type(shared_bound.delay(1), AsyncResult[str])
    app.include("tests.typing.right_calls")
    assert_type(add(1, 2), int)
    assert_type(add.delay(1, 2, 3, note="x"), AsyncResult[int])
    assert_type(add.delay(x=1, y=2), AsyncResult[int])
    assert_type(add.apply_async((1, 2), {"note": "x"}, countdown=10, key="k", headers={"a": "b"}), AsyncResult[int])
    assert_type(add.using(countdown=timedelta(seconds=1), expires=5).delay(1), AsyncResult[int])
    assert_type(add.using(key="k")(1, 2), int)
    assert_type(add.s(1, 2, note="x"), Signature[int])
    assert_type(add.si(1, 2).delay(), AsyncResult[int])
    assert_type(fetch("https://example.org"), bytes | None)
    assert_type(fetch.delay("https://example.org"), AsyncResult[bytes | None])
    assert_type(ask("the answer?", Model()), str)
    assert_type(ask.delay("the answer?"), AsyncResult[str])
    assert_type(mail.delay(Order(1, "Ada")), AsyncResult[None])
    assert_type(double.delay(1), AsyncResult[int])
    assert_type(store.delay(Order(1, "Ada")), AsyncResult[None])
    assert_type(name_all.delay(1), AsyncResult[str])
    double([1, 2])


class Numbering(StampingVisitor):
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"number": 1, "stamped_headers": ["number"]}


def canvases() -> None:
    assert_type((add.s(1) | shared.s()).delay(), AsyncResult[str])
    assert_type(chain(add.s(1, 2), add.s(3), shared.s())(), AsyncResult[str])
    assert_type(group(add.s(n, n) for n in range(3)).delay().get(), list[int])
    assert_type((add.s(1, 2) | group(shared.s(), shared.s())).delay(), GroupResult[str])
    assert_type(chord([add.s(1, 2), shared.s(3)], shared.s()).delay(), AsyncResult[str])
    assert_type(add.chunks([(1, 2), (3, 4)], 1)().get(), list[list[int]])
    add.apply_async((1, 2), link=shared.s(), link_error=[shared.si(1)])
    assert_type(add.s(1, 2).stamp(Numbering(), append_stamps=True, order="7").delay(), AsyncResult[int])


async def calls_of_coroutines() -> None:
    coroutine: Coroutine[Any, Any, str] = wait.using(key="k")(1.0)
    assert_type(await coroutine, str)
    assert_type(await wait(1.0), str)
    assert_type(wait.delay(1.0), AsyncResult[str])
    assert_type(await wait_bound(1.0), list[int])
    assert_type(wait_bound.delay(1.0).get(timeout=1), list[int])
    assert_type(await add.adelay(1, 2), AsyncResult[int])
    assert_type(await wait.adelay(1.0), AsyncResult[str])
    assert_type(await wait.result("id").aget(timeout=1), str)
    assert_type(await placed.apublish(Order(1, "Ada"), key="Ada"), str)
    async for order in placed.tail():
        assert_type(order, Order)
    async with app.publishing():
        await add.using(countdown=1).adelay(1, 2)


def results(call: AsyncResult[int]) -> None:
    assert_type(call.get(timeout=1), int)
    assert_type(add.result("id"), AsyncResult[int])
    assert_type(wait.result("id").get(), str)
    assert_type(call.ready(), bool)
    assert_type(call.traceback, str | None)
    assert_type(call.kwargs, dict[str, Any] | None)
    call.revoke(terminate=True)


def events() -> None:
    assert_type(placed, Topic[Order])
    assert_type(failed, Topic[Order])
    assert_type(placed.publish(Order(1, "Ada"), countdown=1, key="Ada"), str)
    assert_type(placed.s(Order(1, "Ada")), Signature[None])
    with placed.tail() as news:
        assert_type(news, Tail[Order])
        assert_type(news.receive(1.0), Order | None)
        for order in news:
            assert_type(order, Order)


def tests() -> None:
    with app.testing(clock=FrozenClock(), concurrency=1) as running:
        running.advance(timedelta(days=1))
        running.assert_published(add)
        running.assert_published(placed)
        assert_type(running.assert_published(add, 1, y=2), Published)
        assert_type(running.assert_published(placed, Order(1, "Ada")), Published)
        assert_type(running.published(wait), Sequence[Published])


def stored(outbox: Outbox, session: Session, connection: Connection) -> None:
    assert_type(outbox.add(session, add.s(1)), str | None)
    assert_type(outbox.add(connection, placed.s(Order(1, "Ada"))), str | None)


async def stored_from_asyncio(outbox: Outbox, session: AsyncSession, connection: AsyncConnection) -> None:
    assert_type(await outbox.aadd(session, add.s(1)), str | None)
    assert_type(await outbox.aadd(connection, placed.s(Order(1, "Ada"))), str | None)
    assert_type(await session.run_sync(outbox.release), int)
