"""The web app as a server runs it: ``gunicorn "apps.chat.wsgi:serve()"``."""

from __future__ import annotations

from flask import Flask

from apps.chat.web import create_app
from pulsartasks.worker.logs import configure_logging


def serve() -> Flask:
    """The web app with the settings of the environment, logging as the workers do."""
    configure_logging("info")
    return create_app()
