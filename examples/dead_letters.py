"""Dead letters: what could not be done is kept with its reason, and done once the cause is gone."""

from __future__ import annotations

import time

from pulsartasks import PulsarTasks
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("dead-letters")
prices = {"tea": 3}


@app.task
def charge(article: str) -> int:
    return prices[article]


def main() -> None:
    charges = [charge.delay(article) for article in ("tea", "coffee")]
    print("tea:   ", charges[0].get(timeout=30))
    try:
        charges[1].get(timeout=30)
    except KeyError as error:
        print("coffee: KeyError", error)

    kept = DeadLetters(app, charge)
    for letter in kept.list():  # as `pulsartasks dlq list -A dead_letters:app` does
        assert letter.story is not None
        print(f"kept:   {letter.delivery.value.decode()}, because of {letter.story.exception_type}")

    prices["coffee"] = 4
    for letter in kept.replay():  # as `pulsartasks dlq replay -A dead_letters:app --all` does
        print("replayed:", letter.task)
    while not charge.result(charges[1].id).successful():
        time.sleep(0.1)
    print("coffee:", charge.result(charges[1].id).get(), "and dead letters are left:", len(list(kept.list())))


if __name__ == "__main__":
    configure_logging("critical")  # the dead letter is meant to be
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A dead_letters:app
    worker.start()
    main()
    worker.stop()
