"""BabbleBox as it runs in production: over TLS, by way of Pulsar's proxy, each process in a role of its own."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from apps.chat.database import Database
from apps.chat.migrate import migrate
from apps.chat.models import Message
from tests.secure import SecretVolume, SecurePulsarServer
from tests.services import CHECKOUT, LOOPBACK, Process, free_ports

HOST = "localhost"
"""By which the clients know the proxy: a name, as in production, that leads to this machine."""
NAMESPACE = "babblebox/apps"
TENANT = NAMESPACE.partition("/")[0]
ADMINISTRATOR = "topics"
JOBS = CHECKOUT / "k8s" / "base" / "jobs.yaml"


def _grants() -> dict[str, tuple[str, ...]]:
    """For each app the roles and what they do, as the Job `topics` gives them their permissions before a rollout."""
    objects = yaml.safe_load_all(JOBS.read_text("utf-8"))
    (job,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == ("Job", "topics"))
    pod = job["spec"]["template"]["spec"]
    grants = {}
    for container in (*pod["initContainers"], *pod["containers"]):
        roles = (word.removeprefix("--role=") for word in container["args"] if word.startswith("--role="))
        grants[container["name"]] = tuple(roles)
    return grants


GRANTS = _grants()
ROLES = {grant.partition("=")[0] for grants in GRANTS.values() for grant in grants}
START = 120.0


@dataclass(frozen=True)
class Program:
    """One of BabbleBox's processes."""

    name: str
    role: str
    module: Sequence[str]
    ready: str
    """What its log says when it is."""


class Production:
    """All of BabbleBox before a Pulsar that is shared with other tests, in a tenant of its own."""

    def __init__(self, folder: Path, pulsar: SecurePulsarServer, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._pulsar = pulsar
        self._processes: dict[str, Process] = {}
        self._tokens = {role: SecretVolume(folder / "tokens" / role) for role in (*ROLES, ADMINISTRATOR)}
        (self._port,) = free_ports(1)
        self.url = f"http://{LOOPBACK}:{self._port}"
        self.proxy = pulsar.proxy(HOST)
        self._settings = {
            "PULSARTASKS_BROKER": self.proxy.service_url,
            "PULSARTASKS_ADMIN_URL": self.proxy.admin_url,
            "PULSARTASKS_NAMESPACE": NAMESPACE,
            "PULSARTASKS_TLS_CA": str(pulsar.authority.certificate),
            "DATABASE_URL": f"sqlite:///{folder / 'babblebox.db'}",
            "BLOB_STORE": str(folder / "blobs"),
            "SECRET_KEY": secrets.token_urlsafe(48),
            **settings,
        }
        self._database = Database(self._settings["DATABASE_URL"])

    def start(self) -> None:
        """Does what a rollout does, in its order, and returns when every part is ready."""
        for role in self._tokens:
            self.write_token(role)
        with ThreadPoolExecutor() as pool:
            for step in [pool.submit(step) for step in (self.proxy.start, self._prepare)]:
                step.result()
        programs = {program.name: program for program in self._programs()}
        for name, program in programs.items():
            command = [sys.executable, "-m", *program.module]
            self._processes[name] = Process(command, env=self.environment(program.role), log=self._log(name))
        for name, process in self._processes.items():
            process.wait_until_ready(partial(self._has_said, name, programs[name].ready), name, START)

    def _prepare(self) -> None:
        """Tenant, tables and topics, which need no proxy, so that nobody waits for it."""
        tenant = {"adminRoles": [ADMINISTRATOR], "allowedClusters": ["standalone"]}
        self._pulsar.admin("PUT", f"tenants/{TENANT}", tenant)
        self._pulsar.admin("PUT", f"namespaces/{NAMESPACE}")
        self._pulsar.admin("POST", f"namespaces/{NAMESPACE}/deduplication", True)
        self._pulsar.admin("POST", f"namespaces/{NAMESPACE}/schemaValidationEnforced", True)
        migrate(self._database)
        for name, grants in GRANTS.items():
            self._apply_topics(name, *(f"--role={grant}" for grant in grants))

    def stop(self) -> None:
        """Ends all of it."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Process.stop, self._processes.values()))
        self.proxy.stop(kill=True)
        self._database.close()

    def environment(self, role: str) -> dict[str, str]:
        """The variables of a process in this role."""
        return {**self._settings, "PULSARTASKS_TOKEN_FILE": str(self.token_file(role))}

    def token_file(self, role: str) -> Path:
        return self._tokens[role].path("TOKEN")

    def write_token(self, role: str, *, valid_for: float | None = None) -> None:
        """Replaces a role's token under its running processes, as External Secrets and the kubelet do."""
        self._tokens[role].write({"TOKEN": self._pulsar.tokens.token(role, valid_for=valid_for).encode()})

    def picture_states(self, messages: Collection[str]) -> dict[str, str]:
        """How far the pictures of these messages are, as the database has it."""
        wanted = sa.select(Message.id, Message.picture_state).where(Message.id.in_(messages))
        with self._database.reading() as db:
            return {found.id: found.picture_state for found in db.execute(wanted)}

    def logged(self, event: str, *, part: str) -> list[dict[str, Any]]:
        """What a part has logged under this name."""
        lines = (line for line in self._text(part).splitlines() if line.startswith("{"))
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def _programs(self) -> Iterator[Program]:
        gunicorn = ("gunicorn", "--worker-class=gthread", "--threads=16", f"--bind={LOOPBACK}:{self._port}")
        yield Program("web", "web", (*gunicorn, "apps.chat.wsgi:serve()"), "Booting worker")
        yield Program("relay", "web", ("apps.chat.relay",), "relay.started")
        for name in GRANTS:
            worker = ("pulsartasks", "worker", "-A", f"apps.{name}.tasks:app", "-c2", "--grace=5")
            yield Program(name, name, worker, "process.ready")

    def _has_said(self, name: str, words: str) -> bool:
        return words in self._text(name)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _text(self, name: str) -> str:
        return self._log(name).read_text("utf-8", "replace")

    def _apply_topics(self, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "pulsartasks", "topics", "apply", "-A", f"apps.{name}.tasks:app", *options]
        there = {"PULSARTASKS_BROKER": self._pulsar.service_url, "PULSARTASKS_ADMIN_URL": self._pulsar.admin_url}
        env = {**os.environ, **self.environment(ADMINISTRATOR), **there}
        done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Person:
    """Somebody with a browser: cookies, forms and streams, and nothing else of it."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def sign_up(self) -> None:
        with self._post("/sign-up", name=self._name, password=secrets.token_hex(8)):
            pass

    def new_chat(self) -> str:
        """Starts a chat and gives its address."""
        with self._post("/chats", name="", friend="") as answer:
            return str(urllib.parse.urlsplit(answer.url).path)

    def send(self, chat: str, **files: Path) -> str:
        """Sends a recording, a picture or both, and gives the message's id."""
        with self._post(f"{chat}/messages", client_id=secrets.token_hex(8), **files) as answer:
            return str(json.load(answer)["id"])

    def page(self, path: str) -> str:
        with self._opener.open(self._url + path, timeout=20) as answer:
            return str(answer.read().decode())

    @contextmanager
    def stream(self, chat: str) -> Iterator[Iterator[str]]:
        """The lines of the live stream of a chat."""
        with self._opener.open(f"{self._url}/events?chat={chat.rpartition('/')[2]}", timeout=60) as lines:
            yield (line.decode() for line in lines)

    def _post(self, path: str, **fields: str | Path) -> Any:
        token = re.search(r'name="csrf-token" content="([^"]+)"', self.page("/log-in"))
        assert token is not None
        with ExitStack() as files:
            values = {name: _form_value(value, files) for name, value in fields.items()}
            boundary, body = encode_multipart({"csrf_token": token[1], **values})
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self._opener.open(urllib.request.Request(self._url + path, body, headers), timeout=60)


def _form_value(value: str | Path, files: ExitStack) -> str | FileStorage:
    if isinstance(value, str):
        return value
    return FileStorage(files.enter_context(value.open("rb")), value.name, content_type="application/octet-stream")
