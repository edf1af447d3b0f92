"""Who receives: that one thread alone is never the only one when it is not quick."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pulsartasks.worker.crew import SHORT, Crew, Member
from tests.services import wait_until

PATIENCE = 60.0


def run(crew: Crew, member: Member, *, seconds: float = 0.0) -> None:
    crew.begin(member)
    member.began -= seconds
    crew.end(member)


def work_alone(crew: Crew) -> Member:
    member = Member()

    def tries() -> bool:
        for _ in range(64):
            run(crew, member)
        return crew.alone is member

    wait_until(tries, "nobody tried")
    return member


@contextmanager
def others(crew: Crew, *turns: int) -> Iterator[list[threading.Thread]]:
    """Threads that wait for so many turns each; all of them have had these at the end of the block."""

    def wait(count: int) -> None:
        member = Member()
        for _ in range(count):
            crew.wait_turn(member)

    threads = [threading.Thread(target=wait, args=(count,), daemon=True) for count in turns or (1, 1, 1)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_many_quick_runs_are_made_by_one_thread_while_the_others_sleep() -> None:
    crew = Crew()

    def alone_all_the_time() -> bool:
        member = work_alone(crew)
        with others(crew) as threads:
            for _ in range(1000):
                run(crew, member)
                crew.wait_turn(member)
            asleep = any(thread.is_alive() for thread in threads)
            still = crew.alone is member
            crew.wake()
        return asleep and still

    wait_until(alone_all_the_time, "others were woken")  # the system may keep one waiting long within a run


def test_all_help_when_a_run_takes_its_time() -> None:
    crew = Crew()
    member = work_alone(crew)

    with others(crew):
        crew.begin(member)

    assert crew.alone is None


def test_all_receive_again_when_nothing_comes() -> None:
    crew = Crew()
    work_alone(crew)

    with others(crew):
        pass

    assert crew.alone is None


def test_all_help_when_most_runs_are_not_short() -> None:
    crew = Crew()
    member = work_alone(crew)

    with others(crew):
        runs = 0
        while crew.alone is member and (runs := runs + 1) <= 100:
            run(crew, member, seconds=2 * SHORT)

    assert runs <= 100


def test_one_long_run_among_short_ones_says_nothing() -> None:
    crew = Crew()
    member = work_alone(crew)

    run(crew, member, seconds=PATIENCE)

    assert crew.alone is member


def test_all_receive_when_the_one_has_left() -> None:
    crew = Crew()
    member = work_alone(crew)

    with others(crew):
        crew.leave(member)
    crew.leave(Member())

    assert crew.alone is None


def test_who_begins_alone_while_others_are_being_woken_is_watched_as_well() -> None:
    crew = Crew()
    work_alone(crew)

    for _ in range(200):
        with others(crew, 1, 2, 2, 2):
            crew.wake()
            crew.begin(work_alone(crew))
