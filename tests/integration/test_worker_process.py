"""``pulsartasks worker`` as its user meets it: wrong arguments, logs, exit statuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pulsartasks import PulsarTasks
from tests.conformance.records import Record
from tests.integration.conftest import StartProcess
from tests.services import CHECKOUT

CANNOT_START = 78

WRONG_APPS = {
    "tests.no_such_module:app": "no module 'tests.no_such_module'",
    "no_such_package:app": "no module 'no_such_package'",
    "tests.conformance.records:app": "no PulsarTasks app",
    "tests.integration.conftest:Path": "is not a PulsarTasks app",
}


@pytest.mark.parametrize("path", WRONG_APPS)
def test_wrong_app_is_said_in_a_line_and_not_tried_again(path: str, start_process: StartProcess) -> None:
    worker = start_process(app=path)

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    [error] = [line for line in worker.lines if line.startswith("Error: ")]
    assert WRONG_APPS[path] in error
    assert len(worker.children()) == 1
    assert "Traceback" not in "\n".join(worker.lines)


def test_app_that_cannot_be_imported_shows_its_traceback_once(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text("raise ZeroDivisionError('in the middle of the module')\n")

    worker = start_process(app="broken_app:app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    [failed] = worker.logged("worker.failed")
    assert failed["error"] == (
        "-A broken_app:app: importing 'broken_app' failed: ZeroDivisionError: in the middle of the module"
    )
    assert "in the middle of the module" in failed["exception"]


def test_app_that_ends_the_program_is_not_tried_again(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "leaving_app.py").write_text("import sys\nsys.exit('please set FOO')\n")

    worker = start_process(app="leaving_app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert len(worker.children()) == 1
    assert worker.lines[-1] == ("Error: -A leaving_app: importing 'leaving_app' failed: SystemExit: please set FOO")
    assert "Traceback" not in "\n".join(worker.lines)


def test_resource_that_ends_the_program_is_not_tried_again(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "poor_app.py").write_text(
        "import sys\nfrom collections.abc import Iterator\nfrom pulsartasks import PulsarTasks\n"
        "app = PulsarTasks('poor')\n"
        "@app.resource\ndef number() -> Iterator[int]:\n    sys.exit('no licence')\n    yield 1\n"
        "@app.task\ndef add(x: str, number: int) -> None: ...\n"
    )

    worker = start_process(app="poor_app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert "SystemExit: no licence" in worker.logged("worker.failed")[0]["exception"]


def test_app_under_another_name_is_hinted_at(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "shop_tasks.py").write_text("from pulsartasks import PulsarTasks\nshop = PulsarTasks('shop')\n")

    worker = start_process(app="shop_tasks", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert "did you mean -A shop_tasks:shop?" in "\n".join(worker.lines)


def test_module_that_an_app_misses_is_not_taken_for_the_app(start_process: StartProcess, tmp_path: Path) -> None:
    (tmp_path / "needy_app.py").write_text("import a_module_that_is_not_installed\n")

    worker = start_process(app="needy_app:app", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert "a_module_that_is_not_installed" in worker.logged("worker.failed")[0]["exception"]


def test_unknown_topic_is_said_in_a_line(start_process: StartProcess) -> None:
    worker = start_process("-Q", "sharde")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert any(line.startswith("Error: ") and "sharde" in line for line in worker.lines)


def test_broker_url_that_is_wrong_is_said_in_a_line(start_process: StartProcess) -> None:
    worker = start_process(PULSARTASKS_BROKER="redis://localhost")

    assert worker.wait() == CANNOT_START
    worker.wait_for_end_of_children()
    assert any("redis" in line for line in worker.lines)


def test_every_line_of_the_log_is_json_with_what_it_is_about(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--processes", "2", "-c", "4").wait_until_ready(2)
    ids = {acting.tasks["shared"].delay(str(number)).id for number in range(40)}
    record.wait_for(40)

    worker.terminate()
    assert worker.wait() == 0
    worker.wait_for_end_of_children()

    assert len(worker.logs) == len(worker.lines)
    succeeded = worker.logged("message.succeeded", task="shared", level="info", attempt=1)
    assert {line["id"] for line in succeeded} == ids
    assert all("timestamp" in line for line in worker.logs)


def test_log_level_hides_what_is_below_it(acting: PulsarTasks, start_process: StartProcess, record: Record) -> None:
    worker = start_process("-Q", "shared", "-l", "error")
    acting.tasks["shared"].delay("good")
    acting.tasks["shared"].delay("bad", "raise")
    record.wait_for(2)

    worker.terminate()
    assert worker.wait() == 0
    worker.wait_for_end_of_children()

    assert [line["event"] for line in worker.logs] == ["message.died"]


def test_line_of_the_log_is_written_in_one_piece() -> None:
    program = (
        "import logging, structlog; from pulsartasks.worker.logs import configure_logging; configure_logging('info');"
        "structlog.get_logger('pulsartasks').info('thing.done', number=1); logging.getLogger('other').warning('hello')"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # it keeps writes apart

    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=CHECKOUT,
            stderr=theirs.fileno(),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=True,
        )
        ours.settimeout(10)
        lines = [ours.recv(65_536).decode() for _ in range(2)]

    assert [line.count("\n") for line in lines] == [1, 1]
    assert all(line.startswith("{") and line.endswith("}\n") for line in lines)


def test_ctrl_c_in_a_terminal_finishes_what_runs(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared")
    acting.tasks["shared"].delay("running", seconds=1.0)
    record.wait_for(1, ended=False)

    os.killpg(worker.pid, signal.SIGINT)  # a terminal signals the whole group

    assert worker.wait() == 0
    assert record.finished() == ["running"]


def test_container_that_signals_the_whole_group_finishes_what_runs(
    acting: PulsarTasks, start_process: StartProcess, record: Record
) -> None:
    worker = start_process("-Q", "shared", "--processes", "2")
    acting.tasks["shared"].delay("running", seconds=1.0)
    record.wait_for(1, ended=False)

    os.killpg(worker.pid, signal.SIGTERM)

    assert worker.wait() == 0
    assert record.finished() == ["running"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["worker", "--help"], ["dlq", "replay", "--help"]])
def test_command_line_explains_itself(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pulsartasks", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )

    assert "pulsartasks" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["worker"], ["worker", "-A", "x:y", "--processes", "0"], ["worker", "-A", "x:y", "-l", "loud"], ["wroker"]],
)
def test_wrong_usage_is_refused_with_status_2(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pulsartasks", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "Error" in done.stderr


SIGNALLED = """
from pulsartasks import PulsarTasks

app = PulsarTasks("signalled")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.signals.worker_process_init.connect
def begin(**_):
    print("begun", flush=True)
    # Connected in time for this process's worker, as instrumentation does it.
    app.signals.task_success.connect(lambda result, **_: print("result", result, flush=True))


@app.signals.worker_process_shutdown.connect
def end(pid, exitcode, **_):
    print("ended", exitcode, flush=True)
"""


def test_process_tells_of_its_beginning_before_all_else_and_of_its_end(tmp_path: Path, database: Path) -> None:
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    env = {**os.environ, "PULSARTASKS_BROKER": f"local://{database}", "PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"}
    command = [sys.executable, "-m", "pulsartasks", "worker", "-A", "signalled:app"]
    app = PulsarTasks("signalled", env["PULSARTASKS_BROKER"])
    call = app.task(name="add")(_add).delay(2, 3)

    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
        assert call.get(timeout=120) == 5
        worker.terminate()
        said, _ = worker.communicate(timeout=60)
    app.close()

    assert said.splitlines() == ["begun", "result 5", "ended 0"]


def _add(x: int, y: int) -> int:
    """Stands for the task where it is called."""
    return x + y
