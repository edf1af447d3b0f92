"""Tail: follow a topic live, as a web process does that pushes news to browsers; no subscription stays behind."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pulsartasks import PulsarTasks

app = PulsarTasks("tail")


@dataclass(frozen=True)
class PriceChanged:
    article: str
    price: int


price_changed = app.topic("shop.price-changed", schema=PriceChanged)


def main() -> None:
    price_changed.publish(PriceChanged("tea", 3))  # before anybody follows: not seen
    tail = price_changed.tail()

    def follow() -> None:
        for news in tail:
            print(f"{news.article} now costs {news.price}", flush=True)
            if news.price == 6:
                tail.close()  # any thread may end the loop

    follower = threading.Thread(target=follow)
    follower.start()
    for price in (4, 5, 6):
        price_changed.publish(PriceChanged("tea", price))
    follower.join(timeout=30)
    print("the loop has ended:", not follower.is_alive())


if __name__ == "__main__":
    main()
