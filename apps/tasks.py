"""The tasks of all apps together, for who has to know them and runs none, as beat does: ``-A apps.tasks:app``."""

from apps.chat import tasks as chat
from apps.events import app
from apps.images import tasks as images
from apps.transcribe import tasks as transcribe

__all__ = ["app", "chat", "images", "transcribe"]
