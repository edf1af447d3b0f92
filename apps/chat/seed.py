"""The demo's two people and what they said. ``python -m apps.chat.seed``, as often as you like.

The messages are sent like anybody's: whatever is shown of them is made by the running workers.
"""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path

import structlog
from argon2 import PasswordHasher

from apps.chat import media, threads
from apps.chat.database import Database
from apps.chat.models import Chat, User
from apps.chat.settings import Settings
from apps.chat.views import user_named
from pulsartasks.contrib.blobs import BlobStore, open_blob_store

log = structlog.get_logger(__name__)

DEMO_FILES = Path(__file__).parent.parent / "demo"
PEOPLE = ("Ada", "Grace")
CHAT_ID = uuid.uuid5(uuid.NAMESPACE_DNS, "demo.babblebox").hex


def seed(database: Database, blobs: BlobStore, files: Path = DEMO_FILES) -> None:
    """Make what is not there yet; nothing at all if somebody real has one of the names."""
    with database.writing() as session:
        people = [user_named(session, name) or _demo_user(name) for name in PEOPLE]
        if not all(user.demo for user in people):
            log.warning("seed.skipped", reason=f"{' or '.join(PEOPLE)} is somebody's real account")
            return
        session.add_all(people)
        session.flush()
        if session.get(Chat, CHAT_ID) is None:
            session.add(Chat(id=CHAT_ID, name=""))
            session.flush()
        for user in people:
            threads.add_member(session, CHAT_ID, user.id)
    ada = people[0]
    [recording] = sorted(files.glob("recording.*"))[:1]
    spoken = media.recording(recording.read_bytes())
    threads.send(database, blobs, CHAT_ID, ada.id, threads.Draft("demo-recording", audio=spoken))
    seen = media.picture((files / "picture.jpg").read_bytes())
    threads.send(database, blobs, CHAT_ID, ada.id, threads.Draft("demo-picture", picture=seen))


def _demo_user(name: str) -> User:
    nobodys = PasswordHasher().hash(secrets.token_hex())
    return User(name=name, name_key=name.casefold(), demo=True, password=nobodys)


def main() -> None:
    """Seed the database that DATABASE_URL names."""
    settings = Settings.from_environ(os.environ)
    database = Database(settings.database_url)
    seed(database, open_blob_store(settings.blob_store))
    database.close()


if __name__ == "__main__":
    main()
