"""The virtual environment `.venv`: made by uv from the locks in `requirements/`, exactly and within seconds.

A profile is a lock; each holds all of the one before. An environment is never cut down to a smaller profile, so that
`make run` after `make test` changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tools import packages
from tools.cache import ATTEMPTS, cache_folder, locked, make_whole, run
from tools.terminal import SetupError, say

CHECKOUT = Path(__file__).parent.parent
LOCKS = CHECKOUT / "requirements"
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"
CDK_LOCK = CHECKOUT / "cdk" / "requirements.txt"
STAMP = VENV / "pulsartasks.json"
PROFILES = ("run-faster", "run", "dev")
GPU_LIBRARIES = "3.1 GB"
"""What torch brings along on Linux, though it runs on the processor here; elsewhere it is a tenth."""

UV_NAMES = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
"""uv does not read the settings of pip; a mirror or certificate given for pip is meant for it too."""


def ensure(wanted: str) -> None:
    """Brings `.venv` to a profile, or to the bigger one that it has; does nothing when that is so.

    Raises:
        SetupError: something is missing or could not be fetched.
    """
    if _is_current(_profile(wanted)):
        return
    with locked(cache_folder() / "locks" / f"venv-{_digest(str(VENV).encode())}"):
        profile = _profile(wanted)
        if not _is_current(profile):
            _sync(profile)


def bootstrap_python() -> Path:
    """A Python with the pinned uv and with pip, in the cache, for what comes before `.venv`."""
    lock = LOCKS / "uv.txt"
    name = f"bootstrap/{_python_version()}-{_digest(lock.read_bytes())}"
    python = cache_folder() / name / "bin" / "python"
    if not python.exists():  # never made, or its base was uninstalled
        shutil.rmtree(cache_folder() / name, ignore_errors=True)
        make_whole(name, lambda target: _bootstrap(target, lock))
    return python


def peers() -> Path:
    """The `bin` of an environment with what the benchmarks compare with."""
    return _apart("peers", LOCKS / "bench.txt", "the peers of the benchmarks") / "bin"


def cdk() -> Path:
    """The Python of an environment with AWS CDK, which is as the reader of `cdk/` would make it."""
    return _apart("cdk", CDK_LOCK, "AWS CDK") / "bin" / "python"


def deployment() -> Path:
    """The Python of an environment with what the commands that deploy need, which is small."""
    return _apart("deploy", LOCKS / "deploy.txt", "the deployment") / "bin" / "python"


def uv(*arguments: str | Path) -> None:
    """Runs the pinned uv; what it says goes to the terminal, with its progress bar.

    Raises:
        SetupError: it failed.
    """
    command = [str(bootstrap_python().parent / "uv"), *map(str, arguments)]
    if subprocess.run(command, env=_uv_environment(), cwd=CHECKOUT, check=False).returncode != 0:
        raise SetupError(f"uv {arguments[0]} {arguments[1]} failed; its own message stands above.")


def _bootstrap(target: Path, lock: Path) -> None:
    if not _has_venv():
        packages.install("python3-venv", why="Python's venv module")
    run([_base_python(), "-m", "venv", target])
    options = ["-q", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    run([target / "bin" / "python", "-m", "pip", "install", *options, "-r", lock], attempts=ATTEMPTS)


def _apart(name: str, lock: Path, what: str) -> Path:
    """An environment of its own, in the cache; ours is not in it."""
    digest = _digest(lock.read_bytes())
    return make_whole(f"{name}/{_python_version()}-{digest}", lambda target: _make_apart(target, lock, what))


def _make_apart(target: Path, lock: Path, what: str) -> None:
    say(f"Setting up {what} ...")
    uv("venv", "-q", "--relocatable", "--python", _base_python(), target)
    python = target / "bin" / "python"
    uv("pip", "sync", "-q", "--python", python, "--require-hashes", "--build-constraints", lock, lock)


def _sync(profile: str) -> None:
    lock = LOCKS / f"{profile}.txt"
    torch = [line for line in lock.read_bytes().splitlines() if line.startswith(b"torch==")]
    downloaded = cache_folder() / "downloaded" / f"torch-{_digest(_python_version().encode(), *torch)}"
    say(f"Setting up {VENV.name} with Python {_python_version()} ({profile}) ...")
    if torch and sys.platform == "linux" and not downloaded.exists():
        say(f"openai-whisper brings torch: up to {GPU_LIBRARIES} are downloaded, once, to {cache_folder()}.")
        say("`make run ENGINE=faster` uses faster-whisper instead and downloads 0.2 GB.")
    STAMP.unlink(missing_ok=True)
    if _venv_version() != _python_version():
        uv("venv", "-q", "--clear", "--python", _base_python(), VENV)
    quiet = [] if sys.stderr.isatty() else ["-q"]  # a progress bar for people, a hundred lines less for logs
    uv("pip", "sync", *quiet, "--python", PYTHON, "--require-hashes", "--build-constraints", lock, lock)
    uv("pip", "install", "-q", "--python", PYTHON, "--no-deps", "--no-build-isolation", "--editable", CHECKOUT)
    STAMP.write_text(json.dumps({"profile": profile, "state": _state(profile)}))
    if torch:
        downloaded.parent.mkdir(parents=True, exist_ok=True)
        downloaded.touch()


def _profile(wanted: str) -> str:
    return max(wanted, str(_stamp().get("profile", wanted)), key=PROFILES.index)


def _is_current(profile: str) -> bool:
    stamp = _stamp()
    return stamp.get("profile") == profile and stamp.get("state") == _state(profile)


def _stamp() -> dict[str, object]:
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and stamp.get("profile") in PROFILES and PYTHON.exists() else {}


def _state(profile: str) -> str:
    """Changes with everything that the environment is made from."""
    sources = (LOCKS / f"{profile}.txt", CHECKOUT / "setup.py")
    return _digest(_python_version().encode(), *(source.read_bytes() for source in sources))


def _venv_version() -> str | None:
    if not PYTHON.exists():
        return None
    program = "import platform; print(platform.python_version())"
    asked = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def _uv_environment() -> dict[str, str]:
    defaults = {"UV_CACHE_DIR": str(cache_folder() / "uv"), "UV_HTTP_TIMEOUT": "120", "UV_PYTHON_DOWNLOADS": "never"}
    for pip_name, uv_name in UV_NAMES.items():
        if value := os.environ.get(pip_name):
            defaults[uv_name] = value
    return {**defaults, **os.environ}


def _has_venv() -> bool:
    asked = subprocess.run([_base_python(), "-c", "import ensurepip, venv"], capture_output=True, check=False)
    return asked.returncode == 0


def _base_python() -> str:
    """The interpreter itself, also when this runs in a virtual environment made of it."""
    return str(getattr(sys, "_base_executable", sys.executable))


def _python_version() -> str:
    return platform.python_version()


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
