"""What is in the cache is whole, and what it was built from is what was pinned."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.cache import check_sha256, make_whole, run
from tools.terminal import SetupError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PULSARTASKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_thing_is_built_once() -> None:
    built: list[Path] = []

    def build(target: Path) -> None:
        built.append(target)
        target.write_text("whole")

    paths = {make_whole("things/one", build) for _ in range(3)}

    assert [path.read_text() for path in paths] == ["whole"]
    assert len(built) == 1


def test_of_two_at_once_one_builds_and_both_have_it() -> None:
    built: list[Path] = []
    together = threading.Barrier(4)

    def build(target: Path) -> None:
        built.append(target)
        target.mkdir()
        (target / "part").touch()

    def make() -> bool:
        together.wait()
        return (make_whole("things/one", build) / "part").exists()

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(make) for _ in range(4)]

    assert [one.result() for one in found] == [True] * 4
    assert len(built) == 1


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def build(target: Path) -> None:
        target.write_text("half")
        raise SetupError("no more")

    with pytest.raises(SetupError, match="no more"):
        make_whole("things/one", build)

    assert list((cache / "things").iterdir()) == []


def test_what_a_killed_build_left_is_cleared_away(cache: Path) -> None:
    (cache / "things" / ".unfinished-one-killed").mkdir(parents=True)

    make_whole("things/one", Path.touch)

    assert [path.name for path in (cache / "things").iterdir()] == ["one"]


def test_a_download_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(b"abc")

    check_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(SetupError, match="not the file that is pinned"):
        check_sha256(path, "0" * 64)


def test_a_program_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.cache.PAUSE", 0.0)
    fails_once = "import sys, pathlib; ran = pathlib.Path('ran'); new = not ran.exists(); ran.touch(); sys.exit(new)"

    run([sys.executable, "-c", fails_once], cwd=tmp_path, attempts=2)

    assert (tmp_path / "ran").exists()


def test_a_program_that_keeps_failing_has_its_last_words_told() -> None:
    with pytest.raises(SetupError, match=r"(?s)failed:.*it hurts"):
        run([sys.executable, "-c", "import sys; sys.exit('it hurts')"])


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(SetupError, match="`no-such-program` is needed"):
        run(["no-such-program"])
