"""Order per key: each account's bookings run one after the other, retries included; other accounts need not wait."""

from __future__ import annotations

import time
from collections import defaultdict

from pulsartasks import PulsarTasks, TaskContext
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.worker import Worker

app = PulsarTasks("bank")
BEGAN = time.monotonic()
booked: dict[str, list[int]] = defaultdict(list)


def account_of(account: str, _amount: int) -> str:
    return account


@app.task(
    bind=True,
    mode="key_shared",
    key=account_of,
    concurrency=4,
    autoretry_for=(ConnectionError,),
    default_retry_delay=1.0,
)
def book(self: TaskContext, account: str, amount: int) -> None:
    if (account, amount) == ("Ada", 1) and self.retries == 0:
        raise ConnectionError("Ada's bank does not answer")
    booked[account].append(amount)
    print(f"{time.monotonic() - BEGAN:4.1f} s  {account}: {amount}", flush=True)


def main() -> None:
    calls = [book.delay(account, amount) for amount in (1, 2, 3) for account in ("Ada", "Grace", "Linus")]
    for call in calls:
        call.get(timeout=30)
    print("Ada's first booking had to be tried twice; hers waited for it, the others' did not:", dict(booked))


if __name__ == "__main__":
    configure_logging("error")
    worker = Worker(app)  # on threads of this process, for once; otherwise: pulsartasks worker -A order_per_key:app
    worker.start()
    main()
    worker.stop()
