"""What type checkers see: right calls have their types, wrong calls are errors, for mypy and for pyright alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
CHECKERS = {"mypy": ["mypy"], "pyright": ["basedpyright", "--pythonpath", sys.executable]}


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_calls_have_their_types_and_wrong_calls_are_errors(checker: str) -> None:
    status, said = check(checker, "right_calls.py", "wrong_calls.py", folder=Path(__file__).parent)

    assert status == 0, said


@pytest.mark.parametrize("checker", CHECKERS)
def test_call_that_is_no_error_though_it_should_be_is_found(checker: str, tmp_path: Path) -> None:
    source = (Path(__file__).parent / "wrong_calls.py").read_text("utf-8")
    line = source[: source.index('add.delay("1", 2)')].count("\n") + 1
    (tmp_path / "mended.py").write_text(source.replace('add.delay("1", 2)', "add.delay(1, 2)"), "utf-8")

    status, said = check(checker, "mended.py", folder=tmp_path)

    assert status != 0
    assert [said_line for said_line in said.splitlines() if "error" in said_line and f"mended.py:{line}:" in said_line]
    assert said.count("mended.py:") <= 2  # pyright names the file once more, and nothing else is wrong


def check(checker: str, *names: str, folder: Path) -> tuple[int, str]:
    """The exit status of a type checker, with the settings in pyproject.toml, and what it said."""
    files = [str(folder / name) for name in names]
    command = [sys.executable, "-m", *CHECKERS[checker], *files]
    checked = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=500, check=False)
    return checked.returncode, checked.stdout + checked.stderr
