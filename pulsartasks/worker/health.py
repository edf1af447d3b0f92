"""``/healthz``, ``/readyz`` and ``/metrics`` of a worker, answered by its supervisor."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pulsartasks.errors import ConfigurationError
from pulsartasks.worker.metrics import METRICS_FOLDER, collect

Answer = tuple[HTTPStatus, str, bytes]
_TEXT = "text/plain; charset=utf-8"


@contextmanager
def metrics_folder() -> Iterator[None]:
    """Where the children keep their counts, and prometheus_client those of the tasks' own metrics."""
    if METRICS_FOLDER in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="pulsartasks-metrics-")
    os.environ[METRICS_FOLDER] = folder
    try:
        yield
    finally:
        del os.environ[METRICS_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serve_health(host: str, port: int, *, alive: Callable[[], bool], ready: Callable[[], bool]) -> Iterator[int]:
    """Answer on `host`:`port` (0: any free one, which is given back) until the block ends.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    answers: dict[str, Callable[[], Answer]] = {
        "/healthz": lambda: _yes_or_no(alive(), "alive", "no process runs"),
        "/readyz": lambda: _yes_or_no(ready(), "ready", "not every subscription is consumed yet"),
        "/metrics": _metrics,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            status, kind, body = (
                answer() if answer else (HTTPStatus.NOT_FOUND, _TEXT, b"try /healthz, /readyz or /metrics\n")
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Probes come every few seconds; they are no news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigurationError(f"--health-port {port}: {error.strerror}; choose another port") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="pulsartasks-health", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _yes_or_no(yes: bool, good: str, bad: str) -> Answer:
    return (
        (HTTPStatus.OK, _TEXT, f"{good}\n".encode())
        if yes
        else (HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{bad}\n".encode())
    )


def _metrics() -> Answer:
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
    except ImportError:
        return HTTPStatus.NOT_IMPLEMENTED, _TEXT, b"metrics need: pip install 'pulsartasks[metrics]'\n"
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(_Attempts())
    return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)


class _Attempts:
    """What prometheus_client calls a collector."""

    def collect(self) -> Iterator[Any]:
        return collect(Path(os.environ[METRICS_FOLDER]))
