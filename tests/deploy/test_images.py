"""The images: what the Dockerfile says, and that each program starts as it says and answers its own health check."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from apps.chat.database import Database
from apps.chat.migrate import migrate
from tests.deploy import dockerfile
from tests.deploy.dockerfile import TARGETS, Dockerfile
from tests.services import CHECKOUT, free_ports, wait_until

USER = "10001:10001"
PORTS = {"web": 8000, "worker": 9090, "transcribe": 9090, "images": 9090, "beat": 9090}
CODE = "/opt/babblebox/"
PINNED = re.compile(r"[a-z0-9./-]+:3\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}")
LABELS = ("title", "description", "licenses", "version", "revision", "base.name")

ENTRIES = {
    "web": ["gunicorn", "apps.chat.wsgi", "apps.chat.relay", "apps.chat.migrate", "boto3", "psycopg"],
    "worker": ["pulsartasks.cli.topics", "pulsartasks.worker.child", "apps.tasks", "prometheus_client", "psycopg"],
    "transcribe-faster": ["pulsartasks.worker.child", "apps.transcribe.engines.faster", "prometheus_client", "boto3"],
    "transcribe-openai": ["pulsartasks.worker.child", "apps.transcribe.engines.openai", "prometheus_client", "boto3"],
    "images": ["pulsartasks.worker.child", "apps.images.tasks", "prometheus_client", "boto3"],
    "beat": ["pulsartasks.cli.beat", "apps.tasks", "prometheus_client"],
}
"""What the programs of an image import, when they start or later."""
HEAVY = {"av", "boto3", "ctranslate2", "faster-whisper", "flask", "gunicorn", "numpy", "openai-whisper", "pillow"}
HEAVY |= {"psycopg", "sqlalchemy", "torch"}
"""What no image has unless a program of it imports it."""


@pytest.fixture(scope="module")
def file() -> Dockerfile:
    return dockerfile.read()


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    said = subprocess.run([hadolint, CHECKOUT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_base_is_pinned_by_its_digest_and_named_once(file: Dockerfile) -> None:
    assert PINNED.fullmatch(file.arguments["PYTHON_IMAGE"])
    assert {stage.base for stage in file.stages.values()} - file.stages.keys() == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_image_says_how_it_is_run(file: Dockerfile, target: str) -> None:
    labels = dict(word.split("=", 1) for word in file.last(target, "LABEL").words)

    assert file.last(target, "USER").rest == USER
    assert file.last(target, "STOPSIGNAL").rest == "SIGTERM"
    assert file.last(target, "EXPOSE").rest == str(PORTS[target])
    assert file.last(target, "CMD").is_json
    assert f"http://127.0.0.1:{PORTS[target]}/healthz'" in file.last(target, "HEALTHCHECK").rest
    assert f"{PORTS[target]}" in " ".join(file.last(target, "CMD").words)
    assert {f"org.opencontainers.image.{name}" for name in LABELS} < labels.keys()
    assert labels["org.opencontainers.image.version"] == version("pulsartasks")
    assert labels["babblebox.sbom"].startswith("/opt/venv/")


def test_what_is_copied_from_the_repository_is_there_and_not_ignored(file: Dockerfile) -> None:
    _, *rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    sources = {source for stage in file.stages for source in file.copied(stage, "")}

    assert sources
    for source in (name.replace("${WHISPER_ENGINE}", engine) for name in sources for engine in ("faster", "openai")):
        assert (CHECKOUT / source).exists(), source
        assert any(fnmatch(source, rule) or source.startswith(f"{rule}/") for rule in let_in), source


IN_THE_IMAGE = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

entries, absent = json.loads(sys.argv[1])
sys.meta_path.insert(0, Absent())
for name in entries:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    """The packages that are installed here, as a lock names them, by what they let one import."""
    return {
        module: {re.sub(r"[-_.]+", "-", package).lower() for package in packages}
        for module, packages in packages_distributions().items()
    }


@pytest.mark.parametrize("image", ENTRIES)
def test_image_has_the_code_and_the_packages_that_its_programs_import_and_nothing_heavy_beside(
    file: Dockerfile, image: str, modules: dict[str, set[str]], tmp_path: Path
) -> None:
    lock = (CHECKOUT / "requirements" / f"image-{image}.txt").read_text()
    locked = {*re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE), "pulsartasks"}
    absent = [module for module, packages in modules.items() if packages.isdisjoint(locked)]
    for name in file.copied(image.partition("-")[0], "code"):
        if name.startswith(f"{CODE}apps/"):
            copy = tmp_path / name.removeprefix(CODE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(CHECKOUT / name.removeprefix(CODE))
    (tmp_path / "pulsartasks").symlink_to(CHECKOUT / "pulsartasks")

    done = subprocess.run(
        [sys.executable, "-c", IN_THE_IMAGE, json.dumps([ENTRIES[image], absent])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    imported = {package for module in json.loads(done.stdout) for package in modules.get(module, ())}
    assert locked & HEAVY == imported & HEAVY


@pytest.fixture
def environment(tmp_path: Path, whisper_weights: Callable[[str], Path]) -> dict[str, str]:
    """What the programs of all images are told, on this machine alone."""
    given = {
        "BLOB_STORE": str(tmp_path / "blobs"),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'chat.db'}",
        "PULSARTASKS_BROKER": f"local://{tmp_path / 'broker.db'}",
        "PULSARTASKS_STATE_DIR": str(tmp_path / "state"),
        "SECRET_KEY": "for-this-test-alone-for-this-test-alone",
        "WHISPER_ENGINE": "faster",
        "WHISPER_MODEL": str(whisper_weights("faster")),
    }
    database = Database(given["DATABASE_URL"])
    migrate(database)
    database.close()
    return given


@pytest.mark.skipif(sys.platform != "linux", reason="the programs of the images are for Linux")
@pytest.mark.parametrize("target", TARGETS)
def test_program_of_an_image_passes_its_health_check_and_ends_when_it_is_told_to(
    file: Dockerfile, target: str, environment: dict[str, str]
) -> None:
    [port] = free_ports(1)

    def here(words: list[str]) -> list[str]:
        """The command, with the port of this test and the programs of this environment."""
        moved = [word.replace(str(PORTS[target]), str(port)).replace("0.0.0.0", "127.0.0.1") for word in words]
        return [str(Path(sys.executable).with_name(moved[0])), *moved[1:]]

    health = file.last(target, "HEALTHCHECK").rest.partition(" CMD ")[2]
    check = here([str(word) for word in json.loads(health)])
    assert _status_of(check) != 0

    with _running(here(file.last(target, "CMD").words), environment) as program:
        wait_until(lambda: program.poll() is not None or _status_of(check) == 0, f"{target} is not healthy", 90)
        program.terminate()

        assert program.wait(30) == 0


def _status_of(check: list[str]) -> int:
    return subprocess.run(check, capture_output=True, check=False).returncode


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program, in a group of processes of its own that ends with the block."""
    program = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **environment}, start_new_session=True)
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait(30)
