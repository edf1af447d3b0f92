"""Every example runs alone, in an empty folder, and says what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

PROMISES = {
    "batches": ["calls in one run", "93 were stored, 27 rejected"],
    "chain": [
        "Oslo:            5 °C",
        "the step before: 5.0",
        "Cairo:           40 °C",
        "the last step ends in what the first one raised: KeyError('Atlantis')",
    ],
    "chord": ["words:   {'the': 3, 'cat': 2, 'dog': 2}", "refused: part 2 of 3, count*raised KeyError: 'four'"],
    "countdown": ["all three are with the broker", "at once", "three seconds later", "never early: True True"],
    "dead_letters": [
        "tea:    3",
        "coffee: KeyError 'coffee'",
        "kept:   *because of KeyError",
        "coffee: 4 and * left: 0",
    ],
    "errback": [
        "link:       thanks to Ada for 30",
        "link_error: sorry, Grace: pay failed, Grace has not that much",
    ],
    "events": ["mail:  order 2 is confirmed", "stock: tea is put aside for order 1", "stock: cups *for order 2"],
    "group": [
        "ready:       an egg of 1 minutes*ready:       an egg of 5 minutes",
        "as ordered:  [[]'an egg of 5 minutes', 'an egg of 1 minutes'",
        "1000 squares from 10 messages, the last one is 998001",
    ],
    "hello": ["called here* -> 5", "called through the broker* -> 5", "refused *Expected `int`, got `str`"],
    "library_tasks": ["tasks of the app: resize, resize_all", "cat.jpg at 640", "pictures sent on: 2"],
    "nested": ["(6+20) = 42", "(2+2+1) = 9", "(0+1+2+3+4) = 11"],
    "order_per_key": ["'Ada': [[]1, 2, 3]", "'Grace': [[]1, 2, 3]", "'Linus': [[]1, 2, 3]"],
    "outbox": ["committed:   order 3", "rolled back: order 2", "invoiced:    order 1, tea", "invoiced:    order 3"],
    "progress": [
        "running: PROGRESS, * of 40, page ",
        "ended:   SUCCESS the book is done",
        "at last: Progress(done=40, total=40, message='page 40')",
    ],
    "rate_limit": ["six questions took * s", "one after the other: True", "other tasks went on: True"],
    "resources": ["loading ", "translated: bonjour monde tâche", "... and it is put away "],
    "results_from_elsewhere": ["nobody has run it: PENDING", "a worker has: 144 SUCCESS"],
    "retry": ["attempt 3", "fetch returned '42 bytes'", "poll raised TimeoutError(the report was never done)"],
    "schedule": ["clocks go forward: 2027-03-28 01:00:00+00:00", "the first copy stops", "one for each second: True"],
    "signals": ["fetch(3,) is given up: page 3 does not answer", "attempts: 1 FAILURE, 2 RETRY, 2 SUCCESS"],
    "tail": ["tea now costs 4", "tea now costs 6", "the loop has ended: True"],
    "task_class": ["product is tried again: the database is away", "product(6, 7): SUCCESS, 42", "result: 42"],
    "testing": ["passed"],
    "unique": ["clicked 5 times: 1 handle", "drawn once: [[]'May']", "clicked again: another handle"],
    "worker_killed": ["begun by 2 processes, finished by the last one: True"],
}


def test_every_example_has_its_promise_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_example_runs_alone_and_keeps_its_promise(name: str, tmp_path: Path) -> None:
    example = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert example.returncode == 0, example.stderr
    assert [promise for promise in PROMISES[name] if not fnmatch(example.stdout, f"*{promise}*")] == [], example.stdout


def _environment() -> dict[str, str]:
    """As it is on a machine where nothing is set for pulsartasks."""
    ours = ("PULSARTASKS_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"PYTHONUTF8": "1"}
