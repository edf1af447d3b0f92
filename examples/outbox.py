"""Outbox: a message is stored in the transaction of the data it tells of, so there is never one without the other."""

from __future__ import annotations

import threading

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pulsartasks import PulsarTasks
from pulsartasks.contrib.sqlalchemy import Outbox
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str]


outbox = Outbox(Base.metadata)  # two more tables, made and migrated with yours
engine = sa.create_engine("sqlite:///shop.db")
app = PulsarTasks("shop")
handled = threading.Semaphore(0)


@app.task(mode="key_shared", key=lambda number: f"order-{number}")
def send_invoice(number: int) -> None:
    with Session(engine) as session:
        order = session.get_one(Order, number)  # always there: the message left after the commit
        print(f"invoiced:    order {number}, {order.article}", flush=True)
    handled.release()


outbox.relay_in_worker(app, engine)


def place_order(number: int, article: str) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(number=number, article=article))
        outbox.add(session, send_invoice.s(number))
        if article == "nothing":
            raise ValueError("an order of nothing")


def main() -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    for number, article in enumerate(("tea", "nothing", "cups"), start=1):
        try:
            place_order(number, article)
            print(f"committed:   order {number}", flush=True)
        except ValueError as error:
            print(f"rolled back: order {number}, {error}", flush=True)

    worker = Worker(app)  # and its relay, on threads of this process, for once
    worker.start()
    for _ in range(2):
        handled.acquire(timeout=30)
    worker.stop()


if __name__ == "__main__":
    configure_logging("warning")
    main()
