"""Stamps, as Celery's user guide has them; its examples are here as they are there."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from pulsartasks import (
    AsyncResult,
    Failure,
    GroupResult,
    PulsarTasks,
    StampingVisitor,
    Task,
    TaskContext,
    chain,
    chord,
    group,
)
from tests.conformance.conftest import BrokerUnderTest, Workers
from tests.services import wait_until

PATIENCE = 90.0
Stamps = dict[str, Any]


@pytest.fixture
def label(app: PulsarTasks) -> Task[..., Stamps]:
    """Gives its own stamps, whatever comes before it."""

    @app.task(bind=True)
    def label(self: TaskContext, *_: Any) -> Stamps:
        assert self.request.stamped_headers == list(self.request.stamps)
        return self.request.stamps

    return label


class InGroupVisitor(StampingVisitor):
    def __init__(self) -> None:
        self.in_group = False

    def on_group_start(self, group: Any, **headers: Any) -> Stamps:
        self.in_group = True
        return {"in_group": [self.in_group], "stamped_headers": ["in_group"]}

    def on_group_end(self, group: Any, **headers: Any) -> None:
        self.in_group = False

    def on_chain_start(self, chain: Any, **headers: Any) -> Stamps:
        return {"in_group": [self.in_group], "stamped_headers": ["in_group"]}

    def on_signature(self, sig: Any, **headers: Any) -> Stamps:
        return {"in_group": [self.in_group], "stamped_headers": ["in_group"]}


class MonitoringIdStampingVisitor(StampingVisitor):
    def on_signature(self, sig: Any, **headers: Any) -> Stamps:
        return {"monitoring_id": uuid4().hex}


class CustomStampingVisitor(StampingVisitor):
    def on_signature(self, sig: Any, **headers: Any) -> Stamps:
        return {"header": "value"}

    def on_callback(self, callback: Any, **header: Any) -> Stamps:
        return {"on_callback": True}

    def on_errback(self, errback: Any, **header: Any) -> Stamps:
        return {"on_errback": True}


def test_stamp_of_a_group_is_on_each_of_its_parts_and_in_its_result(
    broker: BrokerUnderTest, name: str, start_worker: Workers
) -> None:
    app = PulsarTasks(name, broker.url, result_extended=True)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    start_worker(app)
    g = group(add.si(2, 2), add.si(3, 3))
    g.stamp(stamp="your_custom_stamp")
    res = g.apply_async()

    assert res.get(PATIENCE) == [4, 6]
    assert [call.stamps for call in res] == [{"stamp": "your_custom_stamp"}] * 2
    assert add.result(res[0].id).stamps == {"stamp": "your_custom_stamp"}
    app.close()


def test_visitor_labels_what_is_in_a_group(app: PulsarTasks, label: Task[..., Stamps], start_worker: Workers) -> None:
    start_worker(app)
    outside, inside = {"in_group": [False]}, {"in_group": [True]}

    chained = chain(label.s(), group(label.s(), label.s()), label.s()).stamp(InGroupVisitor()).delay()
    parts = chained.parent
    body = chord([label.s(), label.s()], label.s()).stamp(InGroupVisitor()).delay()

    assert chained.get(PATIENCE) == outside
    assert isinstance(parts, GroupResult)
    assert parts.get(PATIENCE) == [inside, inside]
    assert isinstance(parts.parent, AsyncResult)
    assert parts.parent.get(PATIENCE) == outside
    assert isinstance(body.parent, GroupResult)
    assert (body.parent.get(PATIENCE), body.get(PATIENCE)) == ([inside, inside], outside)


def test_visitor_gives_each_call_an_id_of_its_own(
    app: PulsarTasks, label: Task[..., Stamps], start_worker: Workers
) -> None:
    start_worker(app)

    single = label.s().stamp(visitor=MonitoringIdStampingVisitor()).delay()
    parts = group([label.s(), label.s()]).stamp(visitor=MonitoringIdStampingVisitor()).delay()
    body = chord([label.s(), label.s()], label.s()).stamp(visitor=MonitoringIdStampingVisitor()).delay()
    last = chain(label.s(), label.s()).stamp(visitor=MonitoringIdStampingVisitor()).delay()

    assert isinstance(body.parent, GroupResult)
    assert isinstance(last.parent, AsyncResult)
    calls = [single, *parts, *body.parent, body, last.parent, last]
    assert len({call.get(PATIENCE)["monitoring_id"] for call in calls}) == len(calls) == 8


def test_what_is_linked_is_labelled_too(app: PulsarTasks, label: Task[..., Stamps], start_worker: Workers) -> None:
    seen: list[Stamps] = []

    @app.task(bind=True)
    def sig_link(self: TaskContext, _: Stamps) -> Stamps:
        return self.request.stamps

    @app.task(bind=True)
    def sig_link_error(self: TaskContext, _: Failure) -> None:
        seen.append(self.request.stamps)

    @app.task
    def fail() -> None:
        raise ValueError("a part")

    start_worker(app)
    c = chord([label.s(), label.s()], label.s())
    callback, errback = sig_link.s(), sig_link_error.s()
    c.link(callback)
    c.link_error(errback)
    c.stamp(visitor=CustomStampingVisitor())

    called = c.delay()
    [child] = called.children
    assert isinstance(called.parent, GroupResult)
    assert called.parent.get(PATIENCE) == [{"header": "value"}] * 2
    assert called.get(PATIENCE) == {"header": "value"}
    assert isinstance(child, AsyncResult)
    assert child.get(PATIENCE) == {"header": "value", "on_callback": True}
    assert errback.options == {"header": "value", "on_errback": True, "stamped_headers": ["on_errback", "header"]}
    chord([label.s(), fail.si()], label.s()).on_error(errback).delay()
    wait_until(lambda: bool(seen), "the errback was not called")
    assert seen == [{"header": "value", "on_errback": True}]


@pytest.mark.guarantee(3)
def test_stamps_stay_through_retries_and_replacements(
    app: PulsarTasks, label: Task[..., Stamps], start_worker: Workers
) -> None:
    @app.task(bind=True)
    def again(self: TaskContext) -> Stamps:
        if self.retries == 0:
            raise self.retry(countdown=0.05)
        return self.request.stamps

    @app.task(bind=True)
    def swap(self: TaskContext) -> Stamps:
        assert self.request.stamps == {"order": 7}
        raise self.replace(chain(label.si(), label.si().stamp(new=True)))

    start_worker(app)
    last = chain(again.si(), swap.si(), label.si()).stamp(order=7).delay()

    assert last.get(PATIENCE) == {"order": 7}
    assert isinstance(last.parent, AsyncResult)
    assert last.parent.get(PATIENCE) == {"new": True}  # as there, what replaces a task has its own
    assert isinstance(last.parent.parent, AsyncResult)
    assert last.parent.parent.get(PATIENCE) == {"order": 7}
