"""The bare Pulsar client: receive, note, acknowledge, in as many processes as asked for; prefetch as ours by default."""

import struct
import subprocess
import sys
from urllib.parse import urlsplit

import pulsar

from benchmarks.probe import now, ran, setting

parts = urlsplit(setting("url"))
client = pulsar.Client(f"{parts.scheme}://{parts.netloc}", logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
topic, batched = setting("queue"), bool(setting("batching"))
options = {"consumer_type": pulsar.ConsumerType.Shared, "initial_position": pulsar.InitialPosition.Earliest}
options |= {"receiver_queue_size": int(setting("prefetch", "16"))}


def publish(called: float) -> None:
    producer.send(struct.pack("d", called))


def fill(count: int) -> None:
    for _ in range(count):
        producer.send_async(struct.pack("d", now()), lambda *_: None)
    producer.flush()


def worker(processes: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.bare", str(processes)]


if __name__ != "__main__":
    client.subscribe(topic, "bench", **options).close()
    producer = client.create_producer(topic, batching_enabled=batched, block_if_queue_full=True)
elif (others := int(sys.argv[1]) - 1) > 0:
    sys.exit([other.wait() for other in [subprocess.Popen(worker(1)) for _ in range(others + 1)]].pop())
else:
    consumer = client.subscribe(topic, "bench", **options)
    while True:
        message = consumer.receive()
        ran(struct.unpack("d", message.data())[0])
        consumer.acknowledge(message)
