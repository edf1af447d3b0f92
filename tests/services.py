"""The real servers of the test run, each started once, on free ports of this machine, and stopped with the run.

``python -m tests.services`` starts a Pulsar by hand.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools import downloads

LOOPBACK = "127.0.0.1"
CHECKOUT = Path(__file__).parent.parent

PULSAR_SETTINGS = {
    "bindAddress": LOOPBACK,
    "brokerDeleteInactiveTopicsFrequencySeconds": "5",
    "delayedDeliveryTickTimeMillis": "100",
    "managedLedgerCacheEvictionFrequency": "1.0",  # a second; 100 of them keep an idle server busy
    "managedLedgerDefaultMarkDeleteRateLimit": "1000",
    "managedLedgerMaxUnackedRangesToPersist": "1000000",
    "managedLedgerNewEntriesCheckDelayInMillis": "0",
    "numHttpServerThreads": "8",
    "numIOThreads": "2",
}
"""What differs from Pulsar's own standalone.conf, and holds for production too, but for the three that save time."""

PULSAR_ENVIRONMENT = {
    "PULSAR_EXTRA_OPTS": "-XX:TieredStopAtLevel=1",  # up in two thirds of the time; the tests are no benchmark
    "PULSAR_GC": "-XX:+UseSerialGC -XX:+PerfDisableSharedMem",
    "PULSAR_LOG_LEVEL": "warn",
    "PULSAR_LOG_APPENDER": "Console",
    "PULSAR_MEM": "-Xms256m -Xmx1g -XX:MaxDirectMemorySize=1g",
    "PULSAR_STANDALONE_USE_ZOOKEEPER": "0",
}


def _candidates() -> Iterator[int]:
    """Ports below those that the system gives to whoever asks for any; each process of a test run has others."""
    first = 12_000 + 4_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    begin = secrets.randbelow(4_000)
    return itertools.cycle(first + (begin + number) % 4_000 for number in range(4_000))


_CANDIDATES = _candidates()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that nobody is given until a server that is slow to start listens there."""
    found: list[int] = []
    while len(found) < count:
        port = next(_CANDIDATES)
        with socket.socket() as one, suppress(OSError):
            one.bind((LOOPBACK, port))
            found.append(port)
    return found


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    """Returns as soon as `condition` holds, asked 20 times a second.

    Raises:
        TimeoutError: it did not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {timeout:g} s")
        time.sleep(0.05)


class Process:
    """A server under `tests.keeper`: it ends with the test run, however that ends."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "tests.keeper", *command],
                cwd=CHECKOUT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is the test run's alone
            )

    def wait_until_ready(self, ready: Callable[[], bool], what: str, timeout: float) -> None:
        """Waits for the server to answer; its last words are in the error when it does not."""
        try:
            wait_until(lambda: self._keeper.poll() is not None or ready(), f"{what} did not answer", timeout)
        except TimeoutError as error:
            self.stop()
            raise TimeoutError(f"{error}:\n{self._last_words()}") from None
        if self._keeper.poll() is not None:
            raise RuntimeError(f"{what} ended at once:\n{self._last_words()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server with a signal and waits for it; harmless when it has ended."""
        assert self._keeper.stdin is not None
        try:
            if how is not signal.SIGTERM:
                self.send(how)
                self._keeper.wait(60)
            self._keeper.stdin.close()
        except BrokenPipeError:
            pass  # ended by itself
        self._keeper.wait(60)

    def send(self, what: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(what.name.encode() + b"\n")
        self._keeper.stdin.flush()

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-30:])


class PulsarServer:
    """A standalone Pulsar of its own folder and ports, with the settings that production should have too."""

    def __init__(self, distribution: Path, folder: Path, *, ports: tuple[int, int] | None = None) -> None:
        self._distribution = distribution
        self._folder = folder
        *free, self._bookie_port = free_ports(3)
        self._broker_port, self._web_port = ports or free
        self._process: Process | None = None
        self.service_url = f"pulsar://{LOOPBACK}:{self._broker_port}"
        self.admin_url = f"http://{LOOPBACK}:{self._web_port}"
        self._context: ssl.SSLContext | None = None
        self._headers: Mapping[str, str] = {}
        """What a call of the admin interface needs to be let in."""

    def start(self) -> None:
        """Starts it and returns when it serves; what an earlier start stored is there again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        conf = self._folder / "standalone.conf"
        conf.write_text(configuration(self._distribution / "conf" / conf.name, self._settings()))
        program = self._distribution / "bin" / "pulsar"
        command = [str(program), "standalone", "--no-functions-worker", "--no-stream-storage"]
        command += ["--metadata-dir", str(self._folder / "meta"), "--bookkeeper-dir", str(self._folder / "bookies")]
        command += ["--bookkeeper-port", str(self._bookie_port), "--advertised-address", LOOPBACK]
        env = {**PULSAR_ENVIRONMENT, "PULSAR_STANDALONE_CONF": str(conf), "PULSAR_LOG_DIR": str(self._folder)}
        self._process = Process(command, env=env, log=self._folder / "pulsar.log")
        self._process.wait_until_ready(self._ready, "Pulsar", timeout=170)
        self._process.wait_until_ready(self._makes_topics, "Pulsar", timeout=120)

    def stop(self, *, kill: bool = False) -> None:
        """Stops it in order, or as a power cut would."""
        if self._process is not None:
            self._process.stop(signal.SIGKILL if kill else signal.SIGTERM)
            self._process = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """In the block it keeps its connections and answers nobody."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send(signal.SIGCONT)

    def restart(self, *, kill: bool = False, down: float = 0.0) -> None:
        """Stops it, stays away for `down` seconds and comes back with the same addresses and data."""
        self.stop(kill=kill)
        time.sleep(down)
        self.start()

    def unload(self, topic: str) -> None:
        """Makes the broker drop the topic from memory: clients reconnect, what is in flight is delivered again."""
        self.admin("PUT", f"{_topic_path(topic)}/unload")

    def stats(self, topic: str) -> dict[str, object]:
        """The broker's statistics of a topic, as its admin interface gives them, with a precise backlog."""
        found = self.admin("GET", f"{_topic_path(topic)}/stats?getPreciseBacklog=true")
        assert isinstance(found, dict)
        return found

    def admin(self, method: str, path: str, body: object = None) -> object:
        """One call of the admin interface below ``/admin/v2/``; the answer decoded, None where it is empty.

        A broker that has just come back may miss its own bookie for a moment and answer 500, so that is asked again;
        and so is what it leaves without an answer while it loads its topics, if asking twice does no harm.

        Raises:
            urllib.error.HTTPError: the broker refused it.
            TimeoutError: it did not answer.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(f"{self.admin_url}/admin/v2/{path}", data, headers, method=method)
        patience = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code < 500 or time.monotonic() > patience:
                    raise
                error.close()
            except TimeoutError:
                if method != "GET" or time.monotonic() > patience:
                    raise
            time.sleep(0.2)

    def _ready(self) -> bool:
        request = urllib.request.Request(f"{self.admin_url}/admin/v2/brokers/health", headers=dict(self._headers))
        return answers(request, self._context)

    def _makes_topics(self) -> bool:
        """Whether its bookie has registered, which takes a killed one a minute at times, after it calls itself healthy.

        Until then all that is stored already works, but a new topic has "not enough non-faulty bookies".
        """
        url = f"{self.admin_url}/admin/v2/persistent/public/default/made-{secrets.token_hex(4)}"
        headers = {"Content-Type": "application/json", **self._headers}
        return all(
            answers(urllib.request.Request(url, b"", headers, method=method), self._context)
            for method in ("PUT", "DELETE")
        )

    def _settings(self) -> Mapping[str, str]:
        return {
            **PULSAR_SETTINGS,
            "brokerServicePort": str(self._broker_port),
            "webServicePort": str(self._web_port),
        }


def configuration(original: Path, settings: Mapping[str, str]) -> str:
    """A configuration file of Pulsar's with some settings replaced."""
    kept = [line for line in original.read_text().splitlines() if line.partition("=")[0] not in settings]
    return "\n".join([*kept, *(f"{name}={value}" for name, value in settings.items()), ""])


def _topic_path(topic: str) -> str:
    return topic.replace("://", "/")


class S3Server:
    """A real S3 server (versitygw) over a folder, with one bucket and one user."""

    bucket = "babblebox"
    region = "us-east-1"

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: Process | None = None
        (self._port,) = free_ports(1)
        self.access_key = "testkey"
        self.secret_key = secrets.token_hex(16)
        self.endpoint_url = f"http://{LOOPBACK}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The usual variables with which every AWS client finds the user."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def store_url(self, prefix: str = "") -> str:
        """The value of BLOB_STORE for a prefix of the bucket."""
        return f"s3://{self.bucket}/{prefix}?endpoint_url={self.endpoint_url}"

    def start(self) -> None:
        """Starts it and returns when it serves; the bucket is the folder of that name."""
        root, users = self._folder / "root", self._folder / "iam"
        for folder in (root / self.bucket, users):
            folder.mkdir(parents=True, exist_ok=True)
        command = [str(self._program), "--port", f"{LOOPBACK}:{self._port}", "--health", "/health", "--quiet"]
        command += ["--iam-dir", str(users), "posix", *_without_attributes(self._folder), str(root)]
        env = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        self._process = Process(command, env=env, log=self._folder / "versitygw.log")
        self._process.wait_until_ready(lambda: answers(f"{self.endpoint_url}/health"), "versitygw", timeout=30)

    def stop(self) -> None:
        """Stops it; what was stored is there after the next start."""
        if self._process is not None:
            self._process.stop()
            self._process = None


class PostgresServer:
    """A PostgreSQL of its own folder and port; it refuses to run as root and runs as ``postgres`` then."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._process: Process | None = None
        (self._port,) = free_ports(1)
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name

    def start(self) -> None:
        """Makes the cluster, starts it and returns when it serves."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self._folder, self._user)
        data = str(self._folder / "data")
        initdb = [*self._as_user(), str(self._programs / "initdb"), "-D", data, "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, cwd="/", check=True, capture_output=True)
        command = [*self._as_user(), str(self._programs / "postgres"), "-D", data, "-p", str(self._port)]
        command += ["-h", LOOPBACK, "-k", "", "-F"]
        self._process = Process(command, log=self._folder.with_suffix(".log"))
        self._process.wait_until_ready(self._ready, "PostgreSQL", timeout=60)

    def stop(self) -> None:
        """Stops it."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def new_database(self) -> str:
        """Makes an empty database and returns its SQLAlchemy URL."""
        name = f"test_{secrets.token_hex(6)}"
        createdb = [str(self._programs / "createdb"), "-h", LOOPBACK, "-p", str(self._port), "-U", self._user, name]
        subprocess.run(createdb, check=True, capture_output=True)
        return f"postgresql+psycopg://{self._user}@{LOOPBACK}:{self._port}/{name}"

    def _as_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups", "--"]

    def _ready(self) -> bool:
        program = [str(self._programs / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self._port)]
        return subprocess.run(program, check=False).returncode == 0


@dataclass(frozen=True)
class Clip:
    """A recording of one sentence and the words that are spoken in it."""

    path: Path
    transcript: str


class Speech:
    """LibriVox readings with transcripts, and broken files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sentences = (folder / "librivox" / "transcription").read_text().splitlines()
        self.clips = [self._clip(sentence) for sentence in sentences]
        """Five sentences of "Sense and Sensibility", 16 kHz mono WAV, in the order of the book."""
        self.broken = sorted(folder.glob("*.wav"))
        """Files named .wav from which nothing can be decoded, or which claim what they do not hold."""

    def _clip(self, line: str) -> Clip:
        sentence, _, name = line.partition("</s>")
        path = self._folder / "librivox" / f"{name.strip(' ()')}.wav"
        return Clip(path, sentence.removeprefix("<s>").strip())


def answers(url: str | urllib.request.Request, context: ssl.SSLContext | None = None) -> bool:
    """Whether a GET, or another request, is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            return bool(answer.status < 300)
    except (OSError, http.client.HTTPException):
        return False


def _without_attributes(folder: Path) -> list[str]:
    """The gateway keeps metadata in extended attributes, and in files beside where the file system has none."""
    try:
        os.setxattr(folder, "user.pulsartasks", b"1")  # Linux has it, macOS does not
    except (AttributeError, OSError):
        sidecar = folder / "metadata"
        sidecar.mkdir(exist_ok=True)
        return ["--sidecar", str(sidecar)]
    return []


def main() -> None:
    """Runs a Pulsar with its own usual ports until Ctrl-C."""
    folder = Path(tempfile.mkdtemp(prefix="pulsartasks-"))
    server = PulsarServer(downloads.pulsar(), folder, ports=(6650, 8080))
    server.start()
    print(f"Pulsar is ready: {server.service_url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
