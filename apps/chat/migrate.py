"""Brings the database to the newest version. ``python -m apps.chat.migrate``."""

from __future__ import annotations

import os
from pathlib import Path

from alembic import command
from alembic.config import Config

from apps.chat.database import Database
from apps.chat.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(database: Database, target: str = "head") -> None:
    """Bring the tables to a version, the newest one if not told otherwise; does nothing when they are."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, target)


def main() -> None:
    """Migrate the database that DATABASE_URL names."""
    database = Database(Settings.from_environ(os.environ).database_url)
    migrate(database)
    database.close()


if __name__ == "__main__":
    main()
