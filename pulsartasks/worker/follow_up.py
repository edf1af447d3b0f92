"""What comes after a call is sent by whoever settles it: published and confirmed before its message is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.brokers.base import confirmed
from pulsartasks.canvas import Canvas, Draft, Place, Plan
from pulsartasks.errors import (
    CallError,
    InvalidArgumentsError,
    PulsarTasksError,
    TaskRevokedError,
    UnreadableMessageError,
)
from pulsartasks.message import CANVAS, LONGEST_ID, REPLY_TO, SINGLE, TASK, TASK_ID, Publication
from pulsartasks.outcome import Died, Outcome, Revoked, Skipped, Succeeded
from pulsartasks.results.base import Failure, RemoteError, Result, State, text_of
from pulsartasks.serializers import encode
from pulsartasks.steps import Node, Part, Parts, Sequel, Step, Steps, calls, messages, read_sequel
from pulsartasks.topics import namespace_of
from pulsartasks.worker.run import Run

_log = structlog.get_logger("pulsartasks")


class Ended(msgspec.Struct, frozen=True, tag_field="do", tag="end"):
    """What a part of a chord reports when it ended well."""

    chord: str
    number: int
    value: msgspec.Raw


class Failed(msgspec.Struct, frozen=True, tag_field="do", tag="fail"):
    """What it reports when it did not."""

    chord: str
    number: int
    failure: Failure


class FollowUp:
    """Sends what comes after a call, or a chord; shared by all threads of a worker process."""

    def __init__(self, app: PulsarTasks) -> None:
        self._app = app

    def follow(self, run: Run, outcome: Outcome) -> None:
        """Send what comes after an attempt that ended so; confirmed when this returns.

        Raises:
            CallError: something of what comes next can never be sent.
            PulsarTasksError: the broker did not take all of it.
        """
        sequel = self._sequel(run)
        name, task_id = run.request.task, run.request.id
        if isinstance(outcome, Succeeded):
            self.proceed(encode(outcome.value, what=f"the result of {name}()"), sequel)
        elif isinstance(outcome, Died):
            # What may have been sent twice may also fail twice, since only what runs is claimed.
            self.fail(Failure.of(name, task_id, outcome.error), sequel, single=SINGLE in run.headers)
        elif isinstance(outcome, Revoked) or outcome == Skipped("ignored"):  # else another run has sent it
            failure = Failure.of(name, task_id, TaskRevokedError(outcome.reason))
            # Nothing was raised, so its errbacks are not called.
            self.fail(failure, msgspec.structs.replace(sequel, errbacks=[]), state="REVOKED")

    def replace(self, run: Run, canvas: Canvas[Any]) -> None:
        """Send `canvas` in place of the task that ran, and behind it what was to follow; raises as `follow`."""
        sequel = self._sequel(run)
        gathered = bool(sequel.rest) or sequel.part is not None
        draft = Draft(self._app)
        try:
            plan: Plan[Any] = canvas.plan(Place(task_id=run.request.id, gathered=gathered), draft)
        except PulsarTasksError:
            raise
        except Exception as error:  # a key= of the user's
            raise InvalidArgumentsError(f"{canvas!r} cannot take its place: {error!r}") from error
        draft.declare()
        steps = [_with_errbacks(node, sequel.errbacks) for node in plan.steps]
        last = steps[-1]
        assert isinstance(last, Step)  # nothing else takes a task_id
        headers = {name: text for name, text in last.headers.items() if name != REPLY_TO}
        if run.wants_result and run.reply_to is not None:
            headers[REPLY_TO] = run.reply_to
        steps[-1] = msgspec.structs.replace(last, headers=headers, links=[*last.links, *sequel.links])
        self._send(list(messages([*steps, *sequel.rest], None, now=self._app.clock.now(), part=sequel.part)))

    def proceed(self, value: bytes, sequel: Sequel, *, single: bool = False) -> None:
        """Send what comes after a result, given as JSON; `single` as in `messages`. Raises as `follow`."""
        now = self._app.clock.now()
        publications = [
            each
            for steps in sequel.links
            for each in messages(steps, value, now=now, key_of=self._key_of, single=single)
        ]
        if sequel.rest:
            publications += messages(sequel.rest, value, now=now, part=sequel.part, key_of=self._key_of, single=single)
        elif sequel.part is not None:
            publications.append(_report(sequel.part, Ended(sequel.part.chord, sequel.part.number, msgspec.Raw(value))))
        self._send(publications)

    def _send(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if not self._may_publish(publication.topic):
                raise InvalidArgumentsError(
                    f"the next step is for topic {publication.topic[:LONGEST_ID]}, which is neither in the namespace "
                    "of this app nor one of its tasks' topics; a message may not choose another one"
                )
        for outcome in self._app.publish_many(publications):
            confirmed(outcome)

    def fail(
        self,
        failure: Failure,
        sequel: Sequel,
        *,
        error: RemoteError | None = None,
        state: State = "FAILURE",
        single: bool = False,
    ) -> None:
        """Tell all that waits for a call that it failed: its errbacks, its chord, and who asks for a later result.

        Args:
            failure: why.
            sequel: what waits.
            error: what the later results are; the failure itself unless it is given.
            state: in which they are.
            single: as in `messages`.

        Raises:
            PulsarTasksError: the broker did not take all of it; what can never be sent is left out and logged.
        """
        cause = RemoteError(failure.type, failure.message, failure.arguments, failure.traceback, failure.name)
        self._keep_results(sequel, error or cause, state)
        value = msgspec.json.encode(failure)
        now = self._app.clock.now()
        publications = [
            each
            for steps in sequel.errbacks
            for each in messages(steps, value, now=now, key_of=self._key_of, single=single)
        ]
        if sequel.part is not None:
            publications.append(_report(sequel.part, Failed(sequel.part.chord, sequel.part.number, failure)))
        allowed = [each for each in publications if self._may_publish(each.topic)]
        refused: list[tuple[str, object]] = [(each.topic, "topic") for each in publications if each not in allowed]
        for publication, outcome in zip(allowed, self._app.publish_many(allowed), strict=True):
            if isinstance(outcome, CallError):
                refused.append((publication.topic, outcome))
            else:
                confirmed(outcome)
        for topic, reason in refused:
            _log.error("step.refused", topic=topic[:LONGEST_ID], error=str(reason))

    def _sequel(self, run: Run) -> Sequel:
        if CANVAS not in run.headers:
            return Sequel()
        try:
            return read_sequel(self._app.claims.fetch(run.delivery.value, run.headers))
        except UnreadableMessageError as error:
            _log.warning("canvas.unreadable", error=text_of(error))
            return Sequel()

    def _keep_results(self, sequel: Sequel, error: RemoteError, state: State) -> None:
        """Have the calls that will not come now end like what came before them."""
        store, now = self._app.results, self._app.clock.now()
        results = [
            store.pack(
                Result(step.headers[TASK_ID], step.headers[TASK], state, error=error, finished_at=now),
                reply_to=step.headers[REPLY_TO],
            )
            for step in calls(sequel.rest)
            # Those of another app are kept where its own workers keep them.
            if step.app == self._app.name and {TASK, TASK_ID, REPLY_TO} <= step.headers.keys()
        ]
        for refusal in store.store(results) if results else ():
            if refusal is not None:
                raise refusal

    def _key_of(self, step: Step, value: bytes) -> str | None:
        if not step.keyed:
            return step.key
        name = step.headers.get(TASK, "")
        task = self._app.tasks.get(name)
        if task is None or step.topic not in (task.topics.calls, task.topics.delayed):
            _log.warning("step.unkeyed", step=name[:LONGEST_ID])
            return None
        try:
            return task.key_of(*task.codec.decode(value))
        except UnreadableMessageError:
            return None  # whoever receives it says what is wrong with it
        except PulsarTasksError:
            raise
        except Exception as error:
            raise InvalidArgumentsError(f"key= of {name}, the next step, raised {error!r}") from error

    def _may_publish(self, topic: str) -> bool:
        namespace, tasks_own = self._allowed
        return namespace_of(topic) == namespace or topic in tasks_own

    @cached_property
    def _allowed(self) -> tuple[str, frozenset[str]]:
        topics = [task.topics for task in self._app.tasks.values()]
        return namespace_of(self._app.chords), frozenset(name for each in topics for name in (each.calls, each.delayed))


def _with_errbacks(node: Node, errbacks: list[Steps]) -> Node:
    """The node with these errbacks too, each part of a group by itself."""
    if isinstance(node, Parts):
        return Parts([[_with_errbacks(each, errbacks) for each in part] for part in node.parts])
    return msgspec.structs.replace(node, errbacks=[*node.errbacks, *errbacks])


def _report(part: Part, report: Ended | Failed) -> Publication:
    return Publication(part.topic, msgspec.json.encode(report), part.chord)
