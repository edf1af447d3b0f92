"""Chain: one call after the other, each with the result of the one before."""

from __future__ import annotations

from pulsartasks import PulsarTasks, chain
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("chain")


@app.task
def fetch(city: str) -> float:
    return {"Oslo": 41.0, "Cairo": 104.0}[city]


@app.task
def to_celsius(fahrenheit: float) -> float:
    return (fahrenheit - 32) * 5 / 9


@app.task
def describe(celsius: float, unit: str) -> str:
    return f"{celsius:.0f} {unit}"


def main() -> None:
    result = chain(fetch.s("Oslo"), to_celsius.s(), describe.s("°C")).delay()
    print("Oslo:           ", result.get(timeout=30))
    before = result.parent
    print("the step before:", before.get(timeout=30) if before else None)

    forecast = fetch.s() | to_celsius.s() | describe.s("°C")  # the same, still without a city
    print("Cairo:          ", forecast.delay("Cairo").get(timeout=30))

    nowhere = forecast.delay("Atlantis")
    try:
        nowhere.get(timeout=30)
    except KeyError as error:
        print("Atlantis:        the last step ends in what the first one raised:", repr(error))


if __name__ == "__main__":
    configure_logging("critical")  # its dead letter is meant to be
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A chain:app
    worker.start()
    main()
    worker.stop()
