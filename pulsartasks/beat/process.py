"""One copy of beat, as a process: it takes part in the schedule and moves what is due, until it is told to stop."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

import structlog

from pulsartasks.app import PulsarTasks
from pulsartasks.beat.beat import Beat
from pulsartasks.beat.forwarding import Forwarding
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from pulsartasks.worker.health import metrics_folder, serve_health
from pulsartasks.worker.stopping import stopped_by_signals

_log = structlog.get_logger("pulsartasks")


def run(app: PulsarTasks, *, health: tuple[str, int] | None = None) -> None:
    """Work until SIGTERM or SIGINT; `health` is a host and port that answer whether all is well.

    Raises:
        ConfigurationError, AuthenticationError, AuthorizationError: it cannot be done.
    """
    _check(app)
    errors = list[BaseException]()

    def give_up(error: BaseException) -> None:
        errors.append(error)
        stop.set()

    def take_part() -> None:
        try:
            beat.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            give_up(error)

    beat, forwarding = Beat(app), Forwarding(app)
    thread = threading.Thread(target=take_part, name="pulsartasks-beat", daemon=True)
    stop = stopped_by_signals()
    with ExitStack() as stack:
        if health is not None:
            stack.enter_context(metrics_folder())
            port = stack.enter_context(
                serve_health(*health, alive=thread.is_alive, ready=lambda: beat.ready and forwarding.ready)
            )
            sys.stderr.write(f"Health: http://{health[0]}:{port}/readyz\n")
        app.signals.beat_init.send(beat)
        _log.info("beat.loaded", app=app.name, broker=app.broker_url.partition("?")[0], entries=len(app.scheduled))
        thread.start()
        forwarding.start(give_up)
        stop.wait()
        forwarding.stop()
        thread.join()
    _log.info("beat.stopped")
    if errors:
        raise errors[0]


def _check(app: PulsarTasks) -> None:
    """Refuse what would only be found out when it is due."""
    if app.broker_url.startswith("memory:"):
        raise ConfigurationError("memory:// is within one process, so nobody would get what beat sends; use local://")
    if not app.tasks and not app.scheduled:
        raise ConfigurationError(f"app {app.name!r} has neither a schedule nor tasks; is the module imported?")
    for name, entry in app.scheduled.items():
        try:
            entry.tick(app.name, 0)
        except PulsarTasksError as error:
            raise ConfigurationError(f"schedule {name!r} cannot be sent: {error}") from error
