"""The bare Pulsar client: receive, note, acknowledge, in some processes, with the queue that ours has by default."""

import os
import struct
import sys
from urllib.parse import urlsplit

import pulsar

from benchmarks.probe import now, ran, setting

if __name__ == "__main__":  # before there is a client: it does not survive a fork
    any(os.fork() == 0 for _ in range(int(sys.argv[1]) - 1))

parts = urlsplit(setting("url"))
topic = setting("queue") if not setting("volatile") else f"non-persistent://public/default/{setting('queue')}"
client = pulsar.Client(f"{parts.scheme}://{parts.netloc}", logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
queue = int(setting("prefetch", "16"))
consumer = client.subscribe(topic, "bench", consumer_type=pulsar.ConsumerType.Shared, receiver_queue_size=queue)
called_as = struct.Struct("d")

if __name__ == "__main__":
    while True:
        message = consumer.receive()
        ran(called_as.unpack(message.data())[0])
        consumer.acknowledge(message)

consumer.close()  # the subscription is there now, before the first message
producer = client.create_producer(topic, batching_enabled=bool(setting("batching")), block_if_queue_full=True)
publish = lambda called: producer.send(called_as.pack(called))  # noqa: E731


def fill(count: int) -> None:
    for _ in range(count):
        producer.send_async(called_as.pack(now()), lambda *_: None)
    producer.flush()


def worker(processes: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.bare", str(processes)]
