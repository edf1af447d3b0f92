"""One process of a worker, as the supervisor starts it: ``python -m pulsartasks.worker.child OPTIONS``.

It takes its order to stop from standard input, whose end means: stop, finish, exit. So it also stops when the
supervisor dies. Signals that a terminal or container sends to the whole group are ignored, for the supervisor to
decide on. What it says of itself (`Report`) goes as JSON lines into the pipe whose number it was given.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.errors import AuthenticationError, AuthorizationError, ConfigurationError, PulsarTasksError
from pulsartasks.middleware.base import Middleware
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.metrics import METRICS_FOLDER, Metrics
from pulsartasks.worker.worker import Worker

CANNOT_START = 78
"""Exit status (EX_CONFIG of sysexits.h) that says: starting me again would not help."""
REPORT_EVERY = 1.0

_log = structlog.get_logger("pulsartasks")


class ChildOptions(msgspec.Struct, frozen=True):
    """What a child is told when it is started."""

    app: str
    """``module:attribute``."""
    concurrency: int
    processes: int
    """Of this worker, itself among them."""
    topics: list[str] | None
    log_level: str
    grace: float
    report_to: int
    """File descriptor of the pipe to the supervisor."""


class Report(msgspec.Struct, frozen=True):
    """What a child says of itself, once a second and whenever it changes."""

    ready: bool = False
    journal: str | None = None
    """Path of the file in which it keeps what it runs; said once, before anything runs."""


class AppImportError(ConfigurationError):
    """The app's module, or one that it imports, raised what is the cause of this; its traceback is its author's."""


def find_app(path: str) -> PulsarTasks:
    """The app at ``module:attribute``, with the modules that it imports when it is asked to; the attribute may be left
    out if it is ``app``.

    Raises:
        ConfigurationError: there is none; the message says what was found instead.
        AppImportError: the module cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    name = module_name.removesuffix(".py").lstrip("./").replace("/", ".")
    if not name:
        raise ConfigurationError(f"-A {path!r} names no module; write e.g. -A shop:{attribute or 'app'}")
    if name != module_name:
        raise ConfigurationError(f"-A {path}: write the module as in an import, e.g. -A {name}:{attribute or 'app'}")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    with _importing(path, module_name):
        module = importlib.import_module(module_name)
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, PulsarTasks):
        found = [name for name, value in vars(module).items() if isinstance(value, PulsarTasks)]
        hint = f"did you mean -A {module_name}:{found[0]}?" if found else "the module defines no PulsarTasks app"
        raise ConfigurationError(f"-A {path}: {attribute or 'app'!r} is not a PulsarTasks app; {hint}")
    with _importing(path, module_name):
        for raised in app.signals.import_modules.send(app):
            raise raised
    return app


@contextmanager
def _importing(path: str, module_name: str) -> Iterator[None]:
    """Say of which app it is what its modules raise, also by ``sys.exit()``; our own errors say so themselves."""
    try:
        yield
    except PulsarTasksError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            parent, _, last = module_name.rpartition(".")
            hint = f"run it from the folder that holds it{f', or did you mean -A {parent}:{last}?' if parent else ''}"
            raise ConfigurationError(f"-A {path}: no module {error.name!r} here; {hint}") from error
        kind = ConfigurationError if isinstance(error, SystemExit) else AppImportError
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"-A {path}: importing {module_name!r} failed: {cause}") from error


def run(options: ChildOptions) -> int:
    """Work until told to stop; gives the exit status."""
    stop, received = threading.Event(), bytearray()
    cannot_go_on: list[BaseException] = []

    def give_up(error: BaseException) -> None:
        cannot_go_on.append(error)
        stop.set()

    app = find_app(options.app)
    configure_logging(options.log_level, app.signals)
    if app.broker_url.startswith("memory:"):
        raise ConfigurationError(
            "memory:// is within one process, so this worker would get nothing; use local://, or app.testing() in tests"
        )
    app.signals.worker_process_init.send(app)
    worker = Worker(
        app,
        concurrency=options.concurrency,
        topics=options.topics,
        middleware=_metrics(app),
        processes=options.processes,
    )
    threading.Thread(target=_await_order, args=[stop, received], name="pulsartasks-orders", daemon=True).start()
    _log.info("worker.loaded", app=app.name, broker=app.broker_url.partition("?")[0], tasks=len(worker.tasks))
    worker.start(give_up, journal_begun=lambda path: _tell(options.report_to, Report(journal=str(path))))
    _report_until(stop, worker, options.report_to)
    finished = worker.stop(options.grace, signal=received.decode() or None)
    app.signals.worker_process_shutdown.send(app, pid=os.getpid(), exitcode=0 if finished else 1)
    if not finished:
        _log.error("worker.grace_exceeded", grace=options.grace)
        # Threads still run tasks and cannot be stopped; ending here is what has the broker deliver their messages
        # again.
        os._exit(1)
    app.close()
    if cannot_go_on:
        raise cannot_go_on[0]
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run a child; what makes starting again useless is said in one line."""
    # Programs that a task starts inherit what is ignored, but not a handler: it could not terminate them otherwise.
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = msgspec.json.decode(arguments[0], type=ChildOptions)
    configure_logging(options.log_level, again=True)
    try:
        return run(options)
    except AppImportError as error:
        _log.error("worker.failed", error=str(error), exc_info=error.__cause__)
    except ConfigurationError as error:
        sys.stderr.write(f"Error: {error}\n")
    except (AuthenticationError, AuthorizationError) as error:
        _log.error("worker.failed", error=str(error))
    except (Exception, SystemExit):  # noqa: BLE001 - a resource of the user's failed: the traceback is theirs
        _log.exception("worker.failed")
    return CANNOT_START


def _await_order(stop: threading.Event, received: bytearray) -> None:
    """Wait for the end of standard input, before which the supervisor may write the name of the signal it got."""
    while read := os.read(sys.stdin.fileno(), 1024):
        received += read
    stop.set()


def _report_until(stop: threading.Event, worker: Worker, descriptor: int) -> None:
    """Tell the supervisor how it goes; quickly until ready, so that who waits for that need not wait long."""
    ready = False
    while not stop.wait(REPORT_EVERY if ready else 0.02):
        if worker.ready or ready:
            ready = worker.ready
            if not _tell(descriptor, Report(ready=ready)):
                return


def _tell(descriptor: int, report: Report) -> bool:
    """Write to the supervisor, one line at once; False if it is not there any more."""
    try:
        os.write(descriptor, msgspec.json.encode(report) + b"\n")
    except BrokenPipeError:
        return False
    return True


def _metrics(app: PulsarTasks) -> list[Middleware]:
    folder = os.environ.get(METRICS_FOLDER)
    return [Metrics(app.tasks, Path(folder))] if folder else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
