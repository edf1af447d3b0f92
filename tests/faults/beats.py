"""Beat while its leaders are killed: three copies, a tick every second, each of which has to come once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from pulsartasks import PulsarTasks
from tests.conformance.processes import WorkerProcess
from tests.conformance.schedules import Ticks, make_app, start_beat, watching
from tests.faults.checker import Verdict
from tests.faults.stage import Stage

COPIES = 3
KILLS = 10
AIM = 0.03
"""Seconds after a tick's instant within which every second kill strikes, where it may have been sent or not."""
TAKE_OVER = 5.0
"""Seconds by which a tick may be late because of a kill; a second and a bit, but for a busy machine."""
IN_DOUBT = 30.0
"""The same where the broker does not drop what it has: a tick that may have been sent is waited for, for 11 s, and
perhaps the next leader is killed when it sends what came meanwhile."""


@dataclass(frozen=True)
class TickVerdict(Verdict):
    """The verdict on ticks, which are numbered from the first one on."""

    late: Sequence[str] = ()

    @property
    def complaints(self) -> list[str]:
        return [*super().complaints, *(f"late: {each}" for each in self.late[:10])]


def kill_leaders(stage: Stage) -> Verdict:
    """Ten times while the ticks come, every second time just when one is due; two times in short."""
    app = make_app(f"b{uuid4().hex[:10]}", stage.setting.url)
    stage.on_end(app.close)
    task, expected = app.tasks["often"], stage.setting.tasks
    kills = 2 if stage.setting.short else KILLS
    copies = [_start(stage, app) for _ in range(COPIES)]
    deadline = time.monotonic() + stage.setting.patience
    struck = 0
    with watching(app, task.topics.calls, task.subscription) as ticks:
        _wait_for(deadline, ticks, 1)
        while struck < kills:
            _wait_for(deadline, ticks, (struck + 0.5) * expected / kills)
            place = copies.index(_leader(copies))
            if struck % 2:
                time.sleep(1 - time.time() % 1 + AIM * stage.random.random())
            copies[place].kill()
            copies[place] = _start(stage, app)
            struck += 1
        _wait_for(deadline, ticks, expected)
        ticks.look(timeout=0.5)
    return _judge(ticks, kills, expected, bound=TAKE_OVER if stage.setting.server is None else IN_DOUBT)


def _leader(copies: list[WorkerProcess]) -> WorkerProcess:
    """The one that was elected last."""
    elected = {line["timestamp"]: copy for copy in copies for line in copy.logged("beat.elected")}
    return elected[max(elected)] if elected else copies[0]


def _wait_for(deadline: float, ticks: Ticks, count: float) -> None:
    """Wait until the tick of this number, from the first one on, has come."""
    while not ticks.seen or ticks.instants[-1] - ticks.instants[0] < 1000 * (count - 1):
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(ticks.seen)} ticks came in time")
        ticks.look()


def _judge(ticks: Ticks, kills: int, expected: int, *, bound: float) -> Verdict:
    first = min(ticks.instants)
    numbers = [(instant - first) // 1000 for instant in ticks.instants]
    delays = {n: at - first / 1000 - n for n, at in zip(numbers, ticks.sent_at, strict=True)}
    twice = sorted(number for number, count in Counter(numbers).items() if count > 1)
    return TickVerdict(
        expected=expected,
        tasks=max(numbers) + 1,
        runs=len(numbers),
        faults=kills,
        lost=sorted(set(range(max(numbers))) - set(numbers)),
        early=[number for number, delay in delays.items() if delay < 0],
        disordered=[],
        dead=0,
        duplicates=len(numbers) - len(set(numbers)),
        in_flight=0,
        unsure_acks=0,
        held=[],
        unexplained=twice,
        exact=True,
        late=[f"tick {number} by {delay:.1f} s" for number, delay in delays.items() if delay > bound],
    )


def _start(stage: Stage, app: PulsarTasks) -> WorkerProcess:
    copy = start_beat(app)
    stage.on_end(copy.clean_up)
    return copy
