"""Brings the database to the newest version. ``python -m apps.chat.migrate``."""

from __future__ import annotations

import os

from apps.chat.database import Database
from apps.chat.settings import Settings


def main() -> None:
    """Migrate the database that DATABASE_URL names."""
    database = Database(Settings.from_environ(os.environ).database_url)
    database.migrate()
    database.close()


if __name__ == "__main__":
    main()
