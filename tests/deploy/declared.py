"""What an app declares, asked in a process of its own: in one process all of BabbleBox's tasks are of one app.

``python -m tests.deploy.declared MODULE:APP [ROLE=DUTY,...]...``
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

from pulsartasks.provisioning import wanted
from pulsartasks.roles import Role
from pulsartasks.worker.child import find_app
from tests.services import CHECKOUT


@dataclass(frozen=True)
class Declared:
    """One topic of an app."""

    name: str
    """In full."""
    kinds: list[str]
    subscriptions: list[str]
    partitions: int
    consumed_by: list[str]
    """The subscriptions for which the app has a task that consumes it."""
    permissions: dict[str, list[str]]


@cache
def declared(app: str, namespace: str, roles: Sequence[str] = ()) -> tuple[Declared, ...]:
    """The topics of an app in a namespace of Pulsar, and what roles may do with each."""
    env = {**os.environ, "PULSARTASKS_BROKER": "memory://", "PULSARTASKS_NAMESPACE": namespace}
    command = [sys.executable, "-m", "tests.deploy.declared", app, *roles]
    told = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return tuple(Declared(**each) for each in json.loads(told.stdout))


def main(path: str, *roles: str) -> None:
    app = find_app(path)
    topics = []
    for each in wanted(app, [Role.parse(role) for role in roles]):
        topic = each.topic
        tasks = [task for task in app.tasks.values() if topic.name in (task.topics.work, task.topics.calls)]
        topics.append(
            Declared(
                name=topic.name,
                kinds=sorted(topic.kinds),
                subscriptions=sorted(topic.subscriptions),
                partitions=topic.partitions,
                consumed_by=sorted({task.subscription for task in tasks}),
                permissions={role: sorted(actions) for role, actions in each.permissions.items()},
            )
        )
    print(json.dumps([asdict(topic) for topic in topics]))


if __name__ == "__main__":
    main(*sys.argv[1:])
