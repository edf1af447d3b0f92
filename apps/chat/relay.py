"""The relay: what committed transactions had to say is handed to the broker. ``python -m apps.chat.relay``."""

from __future__ import annotations

import os

import structlog

from apps.chat.database import Database
from apps.chat.models import outbox
from apps.chat.settings import Settings
from apps.events import app
from pulsartasks.worker.logs import configure_logging
from pulsartasks.worker.stopping import stopped_by_signals

log = structlog.get_logger(__name__)


def main() -> None:
    """Relay until SIGTERM or Ctrl-C."""
    configure_logging("info")
    stop = stopped_by_signals()
    database = Database(Settings.from_environ(os.environ).database_url)
    log.info("relay.started", broker=app.broker_url)
    outbox.relay(app, database.engine).run(stop)
    database.close()
    app.close()
    log.info("relay.stopped")


if __name__ == "__main__":
    main()
