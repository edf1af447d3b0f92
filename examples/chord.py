"""Chord: when all parts have ended, its body has the list of their results; no database counts them."""

from __future__ import annotations

from collections import Counter

from pulsartasks import ChordError, PulsarTasks, chord
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("chord")
PAGES = {"one": "the cat and the dog", "two": "the dog", "three": "a cat"}


@app.task
def count(page: str) -> dict[str, int]:
    return Counter(PAGES[page].split())


@app.task
def add_up(counts: list[dict[str, int]]) -> dict[str, int]:
    return sum(map(Counter, counts), Counter())


def main() -> None:
    words = chord([count.s(page) for page in PAGES], add_up.s()).delay().get(timeout=30)
    print("words:  ", {word: words[word] for word in ("the", "cat", "dog")})

    try:
        chord([count.s("one"), count.s("four"), count.s("two")], add_up.s()).delay().get(timeout=30)
    except ChordError as error:
        print("refused:", error)


if __name__ == "__main__":
    configure_logging("critical")  # its dead letter is meant to be
    worker = Worker(app, concurrency=3)  # otherwise: pulsartasks worker -A chord:app
    worker.start()
    main()
    worker.stop()
