"""Unique calls: whoever asks for what is asked for already gets the handle of the first call."""

from __future__ import annotations

from pulsartasks import PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("reports")
drawn: list[str] = []


@app.task(unique_key=lambda month: month, unique_for=600)
def draw(month: str) -> str:
    drawn.append(month)
    return f"the report of {month}"


def main() -> None:
    clicks = [draw.delay("May") for _ in range(5)]  # an impatient user; other processes would be heard as well
    print(f"clicked {len(clicks)} times: {len({click.id for click in clicks})} handle")

    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A unique:app
    worker.start()
    print("all have", {click.get(timeout=30) for click in clicks})
    worker.stop()
    print("drawn once:", drawn)

    again = draw.delay("May")  # the first one has ended, so this is a new call
    print("clicked again:", "the same" if again.id == clicks[0].id else "another", "handle")


if __name__ == "__main__":
    configure_logging("error")
    main()
