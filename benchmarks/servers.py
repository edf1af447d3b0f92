"""The servers of the contenders, on loopback, each started once for the run and stopped with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import LOOPBACK, Process, PulsarServer, free_ports
from tools import downloads, packages


class Servers:
    """Starts a server when its URL is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._urls: dict[str, str] = {}
        self._stops: list[Callable[[], None]] = []
        self._starts: dict[str, Callable[[], str]] = {
            "pulsar": self._pulsar,
            "redis": self._redis,
            "rabbitmq": self._rabbitmq,
        }

    def url(self, kind: str, queue: str) -> str:
        """The broker's address; of an embedded one, a file that only this queue uses."""
        if kind == "local":
            return f"local://{self._folder}/{queue}.db"
        if kind == "sqlite":
            return str(self._folder / f"{queue}.sqlite")
        if kind not in self._urls:
            self._urls[kind] = self._starts[kind]()
        return self._urls[kind]

    def stop(self) -> None:
        """Stops all that were started."""
        while self._stops:
            self._stops.pop()()

    def _pulsar(self) -> str:
        server = PulsarServer(downloads.pulsar(), self._folder / "pulsar")
        self._stops.append(server.stop)
        server.start()
        return f"{server.service_url}?admin_url={server.admin_url}"

    def _redis(self) -> str:
        """With its log on disk, written once a second: what its documentation calls the durable default."""
        (port,) = free_ports(1)
        program = _found(packages.redis())
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        command = [str(program), "--bind", LOOPBACK, "--port", str(port), "--dir", str(self._folder), *durable]
        self._process(command, {}, "redis", port)
        return f"redis://{LOOPBACK}:{port}/0"

    def _rabbitmq(self) -> str:
        port, dist_port, epmd_port = free_ports(3)
        home = self._folder / "rabbitmq"
        home.mkdir()
        env = {
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(epmd_port),
            "HOME": str(home),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_NODENAME": f"bench{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._process(["epmd", "-address", LOOPBACK, "-port", str(epmd_port)], env, "epmd", epmd_port)
        self._process([str(_found(packages.rabbitmq()))], env, "rabbitmq", port)
        return f"amqp://guest:guest@{LOOPBACK}:{port}"

    def _process(self, command: list[str], env: dict[str, str], name: str, port: int) -> None:
        process = Process(command, env=env, log=self._folder / f"{name}.log")
        self._stops.append(process.stop)
        process.wait_until_ready(lambda: _listens(port), name, timeout=90)


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """All are stopped at the end."""
    started = Servers(folder)
    try:
        yield started
    finally:
        started.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def _found(program: Path | None) -> Path:
    if program is None or not os.access(program, os.X_OK):
        raise FileNotFoundError("a server of the peers is missing: `make bench` installs it")
    return program
