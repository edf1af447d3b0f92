"""Calls that are wrong, each with the error that mypy and pyright must give for it. Nothing of this is run.

A checker that has nothing to say about a line complains that its `ignore` is not needed.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pulsartasks.contrib.sqlalchemy import Outbox
from tests.typing.right_calls import Order, add, app, ask, double, fetch, mail, placed, shared, wait, wait_bound


def wrong_arguments() -> None:
    add("1", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.delay("1", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(1, z=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(1, note=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.using(countdown=1).delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.si("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch.delay(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch.delay("url", "url")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fetch.delay(self=None, url="url")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    wait.delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_bound.delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ask.delay(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ask.delay("what?", "a model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    shared.delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    double.delay([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    double("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    mail.delay("order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_arguments_from_asyncio() -> None:
    await add.adelay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await wait.adelay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await placed.apublish("order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await wait_bound("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_options_of_a_call() -> None:
    add.using(countdwn=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.using(countdown="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.apply_async(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.apply_async((1,), priority=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.apply_async((1,), headers={"a": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


def wrong_uses_of_a_result() -> None:
    number: str = add.delay(1).get()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text: int = wait.delay(1.0).get()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    add.delay(1).get("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(number, text)


def wrong_events() -> None:
    placed.publish("order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    placed.publish(Order(1, "Ada"), task_id=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    placed.publish(Order(1, "Ada"), countdown="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    placed.s("order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for order in placed.tail():
        order.nothing  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def wrong_options_of_a_task() -> None:
    @app.task(max_retry=5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
    def misspelt() -> None: ...

    @app.task(mode="sharded")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
    def no_such_mode() -> None: ...

    @app.task(bind=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
    def bound_without_a_context(url: str) -> None: ...

    print(misspelt, no_such_mode, bound_without_a_context)


def wrong_expectations_of_a_test() -> None:
    with app.testing(eager="yes") as running:  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        running.assert_published(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        running.assert_published(placed, "order")  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def wrong_transactions(outbox: Outbox, session: Session, asynchronous: AsyncSession) -> None:
    outbox.add(asynchronous, add.s(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await outbox.aadd(session, add.s(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
