"""A web app on a real SQLite database and a folder of blobs, and people who use it."""

from __future__ import annotations

import io
import math
import re
import struct
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from apps.chat.migrate import migrate
from apps.chat.settings import Settings
from apps.chat.web import auth, create_app
from apps.chat.web.context import Services, limiter
from apps.events import app as babblebox

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080600000"
    "01f15c4890000000d49444154789c6360f8cf50070003860180daea4c2f0000000049454e44ae426082"
)


def tone(seconds: float = 1.0) -> bytes:
    """A WAV file of a hum."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(n / 6))) for n in range(int(16_000 * seconds))))
    return file.getvalue()


class Person:
    """Somebody with a browser."""

    def __init__(self, client: FlaskClient, name: str) -> None:
        self.client = client
        self.name = name

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, **{"buffered": True, **options})

    def post(self, path: str, **data: Any) -> TestResponse:
        """Submit a form as the page does, with the token that it carries."""
        headers = {"Accept": data.pop("accept", "text/html")}
        return self.client.post(path, data={"csrf_token": self.token(), **data}, headers=headers)

    def token(self) -> str:
        page = self.get("/log-in").text
        found = re.search(r'name="csrf-token" content="([^"]+)"', page)
        assert found is not None
        return found[1]

    def sign_up(self, password: str = "correct horse", **fields: str) -> TestResponse:
        return self.post("/sign-up", name=self.name, password=password, **fields)

    def new_chat(self, friend: str = "", name: str = "") -> str:
        """Start a chat and return its id."""
        answer = self.post("/chats", friend=friend, name=name)
        assert answer.status_code == 302, answer.text
        return answer.location.rsplit("/", 1)[1]

    def send(
        self, chat_id: str, client_id: str = "message-1", audio: bytes | None = None, picture: bytes | None = None
    ) -> TestResponse:
        data: dict[str, Any] = {"client_id": client_id, "accept": "application/json"}
        if audio is not None:
            data["audio"] = (io.BytesIO(audio), "recording")
        if picture is not None:
            data["picture"] = (io.BytesIO(picture), "picture.png")
        return self.post(f"/chats/{chat_id}/messages", **data)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        database_url=f"sqlite:///{tmp_path}/chat.db",
        blob_store=str(tmp_path / "blobs"),
        secret_key="a secret of the tests",
        upload_limit=2 * 1024 * 1024,
        heartbeat=0.2,
    )


@pytest.fixture
def web(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    monkeypatch.setenv("PULSARTASKS_BROKER", f"local://{tmp_path}/broker.db")
    monkeypatch.setattr(auth, "hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    web = create_app(settings)
    services: Services = web.extensions["babblebox"]
    migrate(services.database)
    limiter.reset()
    yield web
    services.live.close()
    services.database.close()
    babblebox.close()


@pytest.fixture
def services(web: Flask) -> Services:
    found = web.extensions["babblebox"]
    assert isinstance(found, Services)
    return found


@pytest.fixture
def stranger(web: Flask) -> Callable[[str], Person]:
    """Makes somebody who has no account yet."""
    return lambda name: Person(web.test_client(), name)


@pytest.fixture
def person(stranger: Callable[[str], Person]) -> Callable[[str], Person]:
    """Makes somebody who has signed up."""

    def sign_up(name: str) -> Person:
        someone = stranger(name)
        assert someone.sign_up().status_code == 302
        return someone

    return sign_up
