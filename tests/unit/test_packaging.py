"""What is shipped, what it needs, and that every machine gets the same."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import files, requires
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
LOCKS = sorted((CHECKOUT / "requirements").glob("*.txt"))
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
PINNED = re.compile(r"([a-z0-9][a-z0-9.-]*)==([^\s;]+)( ;[^\\]*)? ?((\\\n    --hash=sha256:[0-9a-f]{64} ?)+)\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in the wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("apps", "pulsartasks", "tests", "tools"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, "dist"], cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_library_only(wheel: list[str]) -> None:
    folders = {name.partition("/")[0] for name in wheel}

    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"pulsartasks"}


def test_the_wheel_holds_the_whole_library(wheel: list[str]) -> None:
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "pulsartasks").rglob("*.py")}

    assert modules - set(wheel) == set()
    assert "pulsartasks/py.typed" in wheel


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_exact_versions_with_hashes_and_no_address(lock: Path) -> None:
    text = re.sub("^#.*\n", "", lock.read_text(), flags=re.MULTILINE)

    assert PINNED.sub("", text) == ""
    assert len(PINNED.findall(text)) > 0


OF_IMAGES = [lock.stem for lock in LOCKS if lock.stem.startswith("image-") and lock.stem != "image-tools"]


@pytest.mark.parametrize("name", ["run", "run-faster", "uv", *OF_IMAGES])
def test_a_package_has_one_version_in_all_locks(name: str) -> None:
    assert _pins(name) - _pins("dev") == set()


def test_faster_whisper_needs_no_torch() -> None:
    assert {name for name, _ in _pins("run-faster")}.isdisjoint({"torch", "triton", "openai-whisper"})
    assert {"torch", "openai-whisper"} <= {name for name, _ in _pins("run")}


def test_everything_that_setup_py_names_is_locked() -> None:
    assert _named() - {name for name, _ in _pins("dev")} == set()


@pytest.mark.parametrize("folder", ["pulsartasks", "apps"])
def test_every_import_is_named_by_setup_py(folder: str) -> None:
    given = {module for name in _named() for module in _modules_of(name)}
    ours = {"apps", "pulsartasks", *sys.stdlib_module_names}

    assert set(_imports(CHECKOUT / folder)) - ours - given - TRANSITIVE == set()


TRANSITIVE = {
    "botocore",  # of boto3
    "ctranslate2",  # of faster-whisper
    "torch",  # of openai-whisper
    "werkzeug",  # of flask
    "wtforms",  # of flask-wtf
}
"""Part of what another package promises: pinning them beside it would only invite disagreement."""


def _pins(name: str) -> set[tuple[str, str]]:
    text = (CHECKOUT / "requirements" / f"{name}.txt").read_text()
    return {(match[1], match[2]) for match in PINNED.finditer(text)}


def _named() -> set[str]:
    """The packages in setup.py, of all extras."""
    return {_normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requires("pulsartasks") or ()}


def _modules_of(package: str) -> set[str]:
    """What a package that is installed lets one import."""
    return {file.parts[0].removesuffix(".py") for file in files(package) or ()}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]
