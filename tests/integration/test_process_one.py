"""The worker as process 1 of a container: what the system asks of that process, and a memory limit around all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.errors import WorkerCrashedError
from tests.conformance.records import Record
from tests.integration.container import USER, Container, can_contain, memory_limit
from tests.services import wait_until

pytestmark = pytest.mark.skipif(not can_contain(), reason="namespaces are made by root, on Linux")

StartContainer = Callable[..., Container]
MEGABYTE = 1_000_000


@pytest.fixture
def start_container(environment: dict[str, str]) -> Iterator[StartContainer]:
    """Starts ``pulsartasks worker`` with these arguments as process 1; `memory` is its limit in bytes."""
    with ExitStack() as stack:

        def start(*arguments: str, memory: int | None = None, **options: Any) -> Container:
            group = None if memory is None else _limited(stack, memory)
            container = Container(*arguments, env=environment, memory=group, **options)
            stack.callback(container.clean_up)
            return container

        yield start


def _limited(stack: ExitStack, memory: int) -> Path:
    try:
        return stack.enter_context(memory_limit(memory))
    except OSError as error:
        pytest.skip(f"control groups cannot be made: {error}")


def test_what_tasks_leave_behind_is_buried(acting: PulsarTasks, start_container: StartContainer) -> None:
    container = start_container("-Q", "shared", "-c", "4", "--processes", "2").wait_until_ready(2)
    before = container.processes()

    for call in [acting.tasks["shared"].delay(str(number), "leave behind") for number in range(20)]:
        call.get(timeout=120)

    wait_until(lambda: container.processes().keys() == before.keys(), "the dead are not buried")
    assert not container.logged("process.died")


def test_death_of_a_child_is_noticed_among_the_dead_of_others(
    acting: PulsarTasks, start_container: StartContainer
) -> None:
    container = start_container("-Q", "shared", "-c", "8").wait_until_ready()
    for number in range(10):
        acting.tasks["shared"].delay(str(number), "leave behind")

    poison = acting.tasks["shared"].delay("poison", "exit")

    with pytest.raises(WorkerCrashedError):
        poison.get(timeout=120)
    assert {line["status"] for line in container.wait_for_log("process.died", count=3)} == {3}
    wait_until(lambda: "Z" not in container.processes().values(), "the dead are not buried")


def test_stop_of_a_container_finishes_what_runs(
    acting: PulsarTasks, start_container: StartContainer, record: Record
) -> None:
    container = start_container("-Q", "shared").wait_until_ready()
    acting.tasks["shared"].delay("running", seconds=1.0)
    record.wait_for(1, ended=False)

    container.terminate()

    assert container.wait() == 0
    assert record.finished() == ["running"]
    container.wait_for_end_of_children()


def test_container_that_is_killed_again_and_again_gives_the_task_up(
    acting: PulsarTasks, start_container: StartContainer, record: Record
) -> None:
    poison = acting.tasks["shared"].delay("poison", "hang")

    for attempts in (1, 2, 3):
        container = start_container("-Q", "shared")
        record.wait_for(attempts, ended=False)
        container.kill()
    start_container("-Q", "shared")

    with pytest.raises(WorkerCrashedError, match="3 worker processes died"):
        poison.get(timeout=120)


def test_memory_limit_of_the_container_costs_a_child_and_never_process_one(
    acting: PulsarTasks, start_container: StartContainer, record: Record
) -> None:
    container = start_container("-Q", "shared", "-c", "2", memory=200 * MEGABYTE).wait_until_ready()
    greedy = acting.tasks["shared"].delay("greedy", "eat")
    neighbour = acting.tasks["shared"].delay("neighbour", seconds=0.05)

    with pytest.raises(WorkerCrashedError, match="3 worker processes died"):
        greedy.get(timeout=120)

    assert neighbour.get(timeout=120).startswith("neighbour")
    container.terminate()
    assert container.wait() == 0


def test_any_user_on_a_read_only_root_needs_the_state_folder_and_one_for_temporary_files(
    acting: PulsarTasks,
    start_container: StartContainer,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, temporary = tmp_path / "state", tmp_path / "tmp"
    temporary.mkdir()
    state.mkdir()
    monkeypatch.setenv("PULSARTASKS_STATE_DIR", str(state))
    monkeypatch.setenv("TMPDIR", str(temporary))

    container = start_container("-Q", "shared", writable=[database.parent, tmp_path]).wait_until_ready()

    assert acting.tasks["shared"].delay("fine").get(timeout=120).startswith("fine")
    assert container.told("uid_map").split() == [str(USER), "0", "1"]
    assert "CapEff:\t0000000000000000" in container.told("status")
    assert re.search(r" / / ro\b", container.told("mountinfo"))
    container.terminate()
    assert container.wait() == 0
