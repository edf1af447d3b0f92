"""So many at once, and nobody is passed while waiting."""

from __future__ import annotations

import threading

from pulsartasks.worker.concurrency import Concurrency
from tests.services import wait_until

PATIENCE = 60.0


class Waiter:
    """A thread that asks to be let in."""

    def __init__(self, concurrency: Concurrency) -> None:
        self.let_in: bool | None = None
        self._concurrency = concurrency
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        self.let_in = self._concurrency.enter()

    def answer(self) -> bool | None:
        self._thread.join(PATIENCE)
        return self.let_in


def waiting(concurrency: Concurrency, count: int) -> list[Waiter]:
    """So many, one behind the other."""
    waiters = []
    for number in range(1, count + 1):
        waiters.append(Waiter(concurrency))
        wait_until(lambda number=number: concurrency.waiting == number, "it did not line up")  # type: ignore[misc]
    return waiters


def test_so_many_are_let_in_and_no_more() -> None:
    concurrency = Concurrency(2)

    assert concurrency.enter()
    assert concurrency.enter()
    [third] = waiting(concurrency, 1)

    assert third.let_in is None
    concurrency.leave()
    assert third.answer()


def test_who_waits_is_not_passed_by_one_that_leaves_and_comes_back_at_once() -> None:
    concurrency = Concurrency(1)
    concurrency.enter()
    [first, second] = waiting(concurrency, 2)

    concurrency.leave()
    back = Waiter(concurrency)
    assert first.answer()
    wait_until(lambda: concurrency.waiting == 2, "it did not line up")
    concurrency.leave()

    assert second.answer()
    assert back.let_in is None
    concurrency.leave()
    assert back.answer()


def test_who_waits_is_sent_away_when_it_stops_and_so_is_who_comes_later() -> None:
    concurrency = Concurrency(1)
    concurrency.enter()
    waiters = waiting(concurrency, 2)

    concurrency.stop()

    assert [waiter.answer() for waiter in waiters] == [False, False]
    assert not concurrency.enter()


def test_many_threads_that_come_and_go_are_never_more_than_allowed_nor_left_waiting() -> None:
    concurrency = Concurrency(2)
    inside: set[int] = set()
    most: list[int] = []

    def come_and_go() -> None:
        for _ in range(2000):
            assert concurrency.enter()
            inside.add(threading.get_ident())
            most.append(len(inside))
            inside.discard(threading.get_ident())
            concurrency.leave()

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert len(most) == 6 * 2000
    assert max(most) <= 2
