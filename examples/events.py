"""Events: published once, handled by every subscription, each with its own retries and its own dead letters."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pulsartasks import PulsarTasks
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("events")
handled = threading.Semaphore(0)


@dataclass(frozen=True)
class OrderPlaced:
    number: int
    article: str


order_placed = app.topic("shop.order-placed", schema=OrderPlaced, subscriptions=("mail", "stock"))


@app.task(topic=order_placed, subscription="mail")
def confirm(order: OrderPlaced) -> None:
    print(f"mail:  order {order.number} is confirmed", flush=True)
    handled.release()


@app.task(topic=order_placed, subscription="stock")
def reserve(order: OrderPlaced) -> None:
    print(f"stock: {order.article} is put aside for order {order.number}", flush=True)
    handled.release()


def main() -> None:
    # Nobody consumes yet. Both subscriptions exist from the first publish on, so nothing is missed.
    for number, article in enumerate(("tea", "cups"), start=1):
        order_placed.publish(OrderPlaced(number, article))
    print("published: 2 orders, before any worker was there", flush=True)

    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A events:app
    worker.start()
    for _ in range(4):
        handled.acquire(timeout=30)
    worker.stop()


if __name__ == "__main__":
    configure_logging("warning")
    main()
