"""`make run` without its set-up: one process that starts everything, watches it, and takes it down again."""

from __future__ import annotations

import http.cookiejar
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from apps import run
from apps.run import BabbleBox, CannotRunError, Part
from tests.apps.running import RunningBabbleBox
from tests.services import CHECKOUT, LOOPBACK, free_ports, wait_until


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_defaults_keep_everything_in_the_state_folder(tmp_path: Path) -> None:
    env = run.environment(tmp_path, {})

    assert env["DATABASE_URL"] == f"sqlite:///{tmp_path}/babblebox.db"
    assert env["PULSARTASKS_BROKER"] == f"local://{tmp_path}/broker.db"
    assert env["BLOB_STORE"] == f"{tmp_path}/blobs"
    assert (env["BABBLEBOX_DEMO"], env["BABBLEBOX_ENGLISH_ONLY"]) == ("1", "1")


def test_what_is_given_comes_before_the_defaults(tmp_path: Path) -> None:
    given = {"PULSARTASKS_BROKER": "pulsar://127.0.0.1:6650", "WHISPER_MODEL": "small", "SECRET_KEY": "mine"}

    env = run.environment(tmp_path, given)

    assert {name: env[name] for name in given} == given
    assert env["BABBLEBOX_ENGLISH_ONLY"] == "0"
    assert list(tmp_path.iterdir()) == []


def test_secret_key_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    first, second = (run.environment(tmp_path, {})["SECRET_KEY"] for _ in range(2))

    assert first == second
    assert len(first) >= 32
    assert (tmp_path / "secret_key").stat().st_mode & 0o077 == 0


def test_taken_port_is_told_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert run.main(["--state", str(tmp_path), "--port", str(port)]) == 1

    said = capsys.readouterr().out
    assert f"port {port} cannot be had" in said
    assert "make run PORT=" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.org"])
def test_address_that_others_can_reach_is_refused(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--state", str(tmp_path), "--host", host]) == 1

    said = capsys.readouterr().out
    assert f"{host} can be reached by others" in said
    assert "gunicorn" in said


def test_part_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESTART_DELAY", 0.0)
    starts = tmp_path / "starts"
    starts.write_text("")
    flaky = python(
        f"""
import pathlib, sys, time
starts = pathlib.Path({str(starts)!r})
starts.write_text(starts.read_text() + "x")
time.sleep(60 if starts.read_text() == "xx" else 0)
sys.exit(3)
"""
    )
    box = BabbleBox([Part("flaky", flaky)], {})

    box.start()
    watching = threading.Thread(target=box.watch)
    watching.start()
    wait_until(lambda: starts.read_text() == "xx", "it was not started again")
    box.ask_to_stop()
    watching.join()
    box.stop()


def test_part_that_keeps_dying_ends_everything_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESTART_DELAY", 0.0)
    steady = Part("steady", python("import time; time.sleep(60)"))
    broken = Part("broken", python("raise SystemExit(7)"), tells_address=True)
    box = BabbleBox([steady, broken], {})

    with pytest.raises(CannotRunError, match=r"broken keeps ending \(status 7\)"):
        box.start()
    box.stop()

    assert steady.process is not None
    assert steady.process.returncode == -signal.SIGTERM


def test_log_lines_that_are_no_objects_are_passed_on_as_they_are() -> None:
    assert run.readable("Listening at: [1, 2]") == "Listening at: [1, 2]"
    assert run.readable("[1, 2]") == "[1, 2]"
    assert run.readable('{"event": "worker.died", "level": "error"}').startswith("ERROR worker.died")


class Browser:
    """Cookies and forms, and nothing else of a browser."""

    def __init__(self, url: str) -> None:
        self._url = url
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies)

    def get(self, path: str) -> str:
        with self._opener.open(self._url + path, timeout=20) as answer:
            return str(answer.read().decode())

    def post(self, path: str) -> str:
        token = re.search(r'name="csrf-token" content="([^"]+)"', self.get("/log-in"))
        assert token is not None
        body = urllib.parse.urlencode({"csrf_token": token[1]}).encode()
        with self._opener.open(self._url + path, body, timeout=20) as answer:
            return str(answer.read().decode())


@pytest.mark.slow
def test_demo_is_made_by_the_running_workers_and_kept_between_runs(
    tmp_path: Path, whisper_weights: Callable[[str], Path]
) -> None:
    env = {"BABBLEBOX_DEMO": "1", "WHISPER_ENGINE": "faster", "WHISPER_MODEL": str(whisper_weights("faster"))}
    babblebox = RunningBabbleBox(tmp_path, env)

    for _ in range(2):
        babblebox.start()
        assert "faster-whisper, model tiny.en - English only" in babblebox.log_text
        browser = Browser(babblebox.url)
        assert all(f'action="/demo/{name}"' in browser.get("/log-in") for name in ("Ada", "Grace"))
        chat = re.search(r'href="(/chats/[0-9a-f]{32})"', browser.post("/demo/Ada"))
        assert chat is not None

        def finished(browser: Browser = browser, address: str = chat[1]) -> bool:
            page = browser.get(address)
            return all(part in page for part in ('data-transcript="ok"', "Voice card: ", 'alt="Picture from'))

        wait_until(finished, "the demo was not finished")
        page = browser.get(chat[1])
        assert page.count('<li class="message') == 2
        assert "English only" in page
        babblebox.stop(signal.SIGINT)
        with socket.socket() as gone:
            assert gone.connect_ex((LOOPBACK, babblebox.port)) != 0


@pytest.mark.slow
def test_second_copy_with_the_same_state_is_refused_and_ctrl_c_ends_the_first_in_order(tmp_path: Path) -> None:
    [port, other] = free_ports(2)
    command = [sys.executable, "-m", "apps.run", "--state", str(tmp_path), "--port"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "WHISPER_ENGINE": "faster", "WHISPER_MODEL": str(tmp_path)}
    first = subprocess.Popen([*command, str(port)], cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert "Speech:" in first.stdout.readline()

    second = subprocess.run([*command, str(other)], cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=60)

    assert second.returncode == 1
    assert "it runs already" in second.stdout
    assert first.returncode == 0
    assert "Stopping" in said
