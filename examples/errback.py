"""Errback: what is called if something fails, with what failed and why; `link` is what is called if it does not."""

from __future__ import annotations

import threading

from pulsartasks import Failure, PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("errback")
told = threading.Semaphore(0)


@app.task
def pay(customer: str, amount: int) -> int:
    if amount > 100:
        raise ValueError(f"{customer} has not that much")
    return amount


@app.task
def thank(amount: int, customer: str) -> None:
    print(f"link:       thanks to {customer} for {amount}", flush=True)
    told.release()


@app.task
def apologise(failure: Failure, customer: str) -> None:
    print(f"link_error: sorry, {customer}: {failure.task} failed, {failure.message}", flush=True)
    told.release()


def main() -> None:
    for customer, amount in (("Ada", 30), ("Grace", 300)):
        pay.apply_async((customer, amount), link=thank.s(customer), link_error=apologise.s(customer))
    for _ in range(2):
        told.acquire(timeout=30)


if __name__ == "__main__":
    configure_logging("critical")  # its dead letter is meant to be
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A errback:app
    worker.start()
    main()
    worker.stop()
