"""``pulsartasks beat`` as people and programs use it."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from pulsartasks import PulsarTasks, crontab
from pulsartasks.cli import main
from pulsartasks.worker.child import CANNOT_START
from tests.conformance import schedules
from tests.conformance.processes import WorkerProcess
from tests.services import wait_until

APP = ["-A", schedules.BEAT]


@pytest.fixture
def app(database: Path) -> Iterator[PulsarTasks]:
    app = schedules.make_app("clockwork", f"local://{database}")
    yield app
    app.close()


@pytest.fixture
def start(app: PulsarTasks) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a copy."""
    with ExitStack() as stack:

        def start(*arguments: str) -> WorkerProcess:
            beat = schedules.start_beat(app, *arguments)
            stack.callback(beat.clean_up)
            return beat

        yield start


@pytest.fixture
def run(app: PulsarTasks) -> Callable[..., Result]:
    """Runs ``pulsartasks beat`` with these arguments to its end."""
    return lambda *arguments: CliRunner(env=schedules.environment(app)).invoke(main, ["beat", *arguments])


def test_list_shows_the_next_ticks_and_the_last_one(
    run: Callable[..., Result], start: Callable[..., WorkerProcess]
) -> None:
    before = run(*APP, "--list")
    start().wait_for_log("tick.sent", count=2)
    after = run(*APP, "--list")

    assert before.exit_code == after.exit_code == 0
    head, first, *others = before.stdout.splitlines()
    assert head.split() == ["entry", "schedule", "next", "next", "(UTC)", "last", "(UTC)"]
    assert first.startswith("often  every 0:00:01")
    assert first.endswith("never")
    assert len(others) == 2
    last = after.stdout.splitlines()[1].split("  ")[-1]
    assert abs(datetime.fromisoformat(f"{last}+00:00").timestamp() - time.time()) < 60


def test_list_for_programs_is_one_json_object_a_line(run: Callable[..., Result]) -> None:
    done = run(*APP, "--list", "--json")

    [entry] = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert (entry["entry"], entry["schedule"], entry["missed"], entry["last"]) == (
        "often",
        "every 0:00:01",
        "skip",
        None,
    )
    assert len(entry["next"]) == len(entry["next_utc"]) == 3


def test_list_shows_ticks_in_the_zone_of_their_entry(app: PulsarTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    app.schedule("nightly", crontab("30 2 * * *", tz="Asia/Tokyo"), app.tasks["often"].s("x"))
    module = type(sys)("clockwork_module")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clockwork_module", module)

    done = CliRunner().invoke(main, ["beat", "-A", "clockwork_module:app", "--list"])

    nightly = next(line for line in done.stdout.splitlines() if line.startswith("nightly"))
    assert "30 2 * * * (Asia/Tokyo)" in nightly
    assert "02:30:00 +0900" in nightly
    assert "17:30:00" in nightly


def test_it_stops_in_order_and_says_so(start: Callable[..., WorkerProcess]) -> None:
    beat = start()
    beat.wait_for_log("tick.sent")

    beat.terminate()

    assert beat.wait() == 0
    beat.wait_for_log("beat.stopped")


@pytest.mark.parametrize(
    ("code", "complaint"),
    [("raise LookupError('no FOO')", "LookupError: no FOO"), ("raise SystemExit('no FOO')", "SystemExit: no FOO")],
)
def test_app_that_cannot_be_imported_is_said_in_a_line(tmp_path: Path, code: str, complaint: str) -> None:
    (tmp_path / "broken.py").write_text(f"{code}\n")

    beat = WorkerProcess(env={"PYTHONPATH": str(tmp_path)}, app="broken", command="beat")
    try:
        assert beat.wait() == CANNOT_START
        assert beat.lines[-1] == f"Error: -A broken: importing 'broken' failed: {complaint}"
    finally:
        beat.clean_up()


def test_start_is_told_to_who_has_connected(database: Path) -> None:
    database.parent.joinpath("told.py").write_text(
        "import structlog\nfrom pulsartasks import PulsarTasks\napp = PulsarTasks('a')\n"
        "@app.task\ndef act() -> None: ...\n"
        "@app.signals.beat_init.connect\n"
        "def begin(sender, **_):\n    structlog.get_logger().info('told.begun', by=type(sender).__name__)\n"
    )
    env = {"PULSARTASKS_BROKER": f"local://{database}", "PYTHONPATH": str(database.parent)}
    beat = WorkerProcess(env=env, app="told:app", command="beat")
    try:
        beat.wait_for_log("beat.loaded")
        assert [line["by"] for line in beat.logs if line["event"] == "told.begun"] == ["Beat"]
    finally:
        beat.clean_up()


def test_the_leader_and_the_stand_by_are_ready(start: Callable[..., WorkerProcess]) -> None:
    copies = [start("--health-port", "0") for _ in range(2)]

    for copy in copies:
        wait_until(lambda copy=copy: _status(copy, "/readyz") == 200, "it does not get ready")  # type: ignore[misc]
        assert _status(copy, "/healthz") == 200
    events = [{line["event"] for line in copy.logs} for copy in copies]
    assert sorted("beat.elected" in each for each in events) == [False, True]


def _status(beat: WorkerProcess, path: str) -> int:
    address = next((line.partition("Health: ")[2] for line in list(beat.lines) if line.startswith("Health: ")), None)
    if address is None:
        return 0
    try:
        with urllib.request.urlopen(address.replace("/readyz", path), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("app = PulsarTasks('a', 'memory://')", "memory:// is within one process"),
        ("app = PulsarTasks('a')", "has neither a schedule nor tasks"),
        ("app.schedule('nightly', 60, act.s('five'))", "schedule 'nightly' cannot be sent"),
        ("app.schedule('nightly', crontab('99 * * * *'), act.s(5))", "its minute is none"),
        ("app = 5", "is not a PulsarTasks app"),
    ],
)
def test_what_cannot_work_ends_it_at_once_with_a_reason(source: str, complaint: str, database: Path) -> None:
    folder = database.parent
    folder.joinpath("faulty.py").write_text(
        "from pulsartasks import PulsarTasks, crontab\napp = PulsarTasks('a')\n"
        + ("" if source.startswith("app =") else "@app.task\ndef act(number: int) -> None: ...\n")
        + source
    )
    env = {"PULSARTASKS_BROKER": f"local://{database}", "PYTHONPATH": str(folder)}
    beat = WorkerProcess(env=env, app="faulty:app", command="beat")
    try:
        assert beat.wait() == 78
        wait_until(lambda: complaint in "\n".join(beat.lines), f"{complaint!r} was not said")
    finally:
        beat.clean_up()


def test_json_is_for_the_list(run: Callable[..., Result]) -> None:
    done = run(*APP, "--json")

    assert done.exit_code == 2
    assert "--json goes with --list" in done.stderr
