"""Programs that only the system's package manager has: installed on Debian as root, else named for the user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tools.cache import ATTEMPTS, cache_folder, locked, make_whole, run
from tools.terminal import SetupError, say

BREW_NAMES: Mapping[str, str] = {
    "chromium": "--cask chromium",
    "etcd-server": "etcd",
    "golang": "go",
    "maven": "maven",
    "openssl": "openssl",
    "openjdk-17-jre-headless": "openjdk@17",
    "postgresql": "postgresql@17",
    "prometheus": "prometheus",
    "python3-venv": "python",
    "rabbitmq-server": "rabbitmq",
    "redis-server": "redis",
}
CHROMIUM_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
RABBITMQ_PLACES = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
POSTGRES_PLACES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin")


def chromium() -> Path | None:
    """The browser for the tests, where it is installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    return next((Path(place) for place in CHROMIUM_PLACES if Path(place).exists()), None)


def postgres() -> Path | None:
    """The folder of PostgreSQL's programs, of the newest version that is installed."""
    folders = [folder for place in POSTGRES_PLACES for folder in Path("/").glob(place.lstrip("/"))]
    with_server = [folder for folder in folders if (folder / "initdb").exists()]
    if found := shutil.which("initdb"):
        with_server.append(Path(found).resolve().parent)
    return max(with_server, key=str, default=None)


def redis() -> Path | None:
    """The server program that the benchmarks start."""
    return Path(found) if (found := shutil.which("redis-server")) else None


def rabbitmq() -> Path | None:
    """The server program itself: the one on PATH is a wrapper that insists on the system's own user and folders."""
    programs = [Path(place, "rabbitmq-server") for place in RABBITMQ_PLACES]
    return next((program for program in programs if program.exists()), None)


def install_for_benchmarks() -> None:
    """Installs the servers of the peers, where they are missing.

    Raises:
        SetupError: they are missing and cannot be installed from here.
    """
    _install_missing(
        {
            "redis-server": (redis(), "the server of some peers"),
            "rabbitmq-server": (rabbitmq(), "the server of some peers"),
        }
    )


def install_for_tests() -> None:
    """Installs what the tests want of the system: browser, database server and openssl, where they are missing.

    Raises:
        SetupError: they are missing and cannot be installed from here.
    """
    _install_missing(
        {
            "chromium": (chromium(), "the browser tests"),
            "postgresql": (postgres(), "the tests of the outbox"),
            "openssl": (shutil.which("openssl"), "the tests with TLS"),
        }
    )
    for program, package in {"java": "openjdk-17-jre-headless", "mvn": "maven", "go": "golang"}.items():
        if shutil.which(program) is None:
            raise SetupError(f"`{program}` is needed for the tests: {_how_to_install(package)}")


def _install_missing(wanted: Mapping[str, tuple[object, str]]) -> None:
    """Installs each package of which nothing was found, and says what it is for."""
    for package, (found, why) in wanted.items():
        if found is None:
            install(package, why=why)


def install(package: str, *, why: str) -> None:
    """Installs a Debian package as root.

    Raises:
        SetupError: this is not Debian, or not root; the message says how to install it.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(f"{why[0].upper()}{why[1:]} is missing here: {_how_to_install(package)}")
    say(f"Installing {package} ...")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with locked(cache_folder() / "locks" / "apt"):
        run(["apt-get", "update", "-q"], env=env, attempts=ATTEMPTS)
        run(["apt-get", "install", "-y", "-q", "--no-install-recommends", package], env=env, attempts=ATTEMPTS)


def unpacked(package: str, *, why: str) -> Path:
    """A folder in the cache with the files of a Debian package, which is not installed: no service of it is started.

    Raises:
        SetupError: this is not Debian, or not root; the message says how to install it.
    """
    return make_whole(f"debian/{package}", lambda target: _unpack(package, target, why))


def _unpack(package: str, target: Path, why: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(f"{why[0].upper()}{why[1:]} is missing here: {_how_to_install(package)}")
    say(f"Downloading {package} ...")
    with locked(cache_folder() / "locks" / "apt"):
        run(["apt-get", "update", "-q"], attempts=ATTEMPTS)
        run(["apt-get", "download", "-q", package], cwd=target.parent, attempts=ATTEMPTS)
    (archive,) = target.parent.glob("*.deb")
    run(["dpkg-deb", "--extract", archive, target])


def _how_to_install(package: str) -> str:
    if shutil.which("brew") is not None:
        return f"`brew install {BREW_NAMES[package]}`"
    if shutil.which("apt-get") is not None:
        return f"`sudo apt-get install {package}`"
    return f"install what Debian calls `{package}`"
