from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from apps.chat import seed, threads
from apps.chat.database import Database
from apps.chat.migrate import migrate
from apps.chat.models import Base, Member, Message, User
from apps.events import Transcribed
from pulsartasks.contrib.blobs import open_blob_store


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/chat.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    database = Database(url)
    yield database
    database.close()


def test_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    migrate(database)
    migrate(database)  # again: nothing happens

    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_thread_works_on_every_database(database: Database, tmp_path: Path) -> None:
    migrate(database)
    blobs = open_blob_store(str(tmp_path / "blobs"))
    with database.writing() as db:
        ada = User(name="Ada", name_key="ada", password="x")
        db.add(ada)
        db.flush()
        chat = threads.create_chat(db, ada, "Engines")
    draft = threads.Draft("message-1", audio=threads.Upload(b"sound", "audio/webm", 1.5))

    first, again = (threads.send(database, blobs, chat.id, ada.id, draft) for _ in range(2))
    with database.writing() as db:
        threads.write_transcript(db, Transcribed(first, chat.id, "ok", "Good morning", "en", 1.6))

    with database.reading() as db:
        message = db.scalars(sa.select(Message)).one()
    assert first == again == message.id
    assert (message.number, message.version, message.transcript) == (2, 3, "Good morning")
    assert message.sent_at.utcoffset() is not None


def test_seeding_leaves_real_people_alone(database: Database, tmp_path: Path) -> None:
    migrate(database)
    with database.writing() as db:
        db.add(User(name="Ada", name_key="ada", password="x"))

    seed.seed(database, open_blob_store(str(tmp_path / "blobs")))

    with database.reading() as db:
        assert list(db.scalars(sa.select(User.name))) == ["Ada"]
        assert db.scalars(sa.select(Message)).all() == []


def test_seeding_twice_is_seeding_once(database: Database, tmp_path: Path) -> None:
    migrate(database)
    blobs = open_blob_store(str(tmp_path / "blobs"))

    seed.seed(database, blobs)
    seed.seed(database, blobs)

    with database.reading() as db:
        assert sorted(db.scalars(sa.select(User.name))) == ["Ada", "Grace"]
        assert len(db.scalars(sa.select(Member)).all()) == 2
        messages = db.scalars(sa.select(Message).order_by(Message.number)).all()
    assert [(message.audio is not None, message.picture is not None) for message in messages] == [
        (True, False),
        (False, True),
    ]
