"""Claim check over a real S3 server, which goes away and comes back, and on the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from pulsartasks import ClaimCheck, ConfigurationError, PulsarTasks
from pulsartasks.brokers.base import MAX_MESSAGE_SIZE
from pulsartasks.cli import main
from pulsartasks.contrib.blobs import InvalidBlobKeyError
from pulsartasks.dead_letters import DeadLetters
from pulsartasks.worker.worker import Worker
from tests.services import S3Server, wait_until

LARGE = "x" * 6_000_000


@pytest.fixture
def app(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[PulsarTasks]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    claim_check = ClaimCheck(s3_server.store_url(f"test-{os.urandom(6).hex()}"))
    app = PulsarTasks("claims", f"local://{tmp_path}/broker.db", claim_check=claim_check)
    yield app
    app.close()


def test_large_call_waits_until_the_s3_server_is_back(app: PulsarTasks, s3_server: S3Server) -> None:
    @app.task
    def measure(text: str) -> int:
        return len(text)

    result = measure.delay(LARGE)
    s3_server.stop()
    worker = Worker(app)
    try:
        with capture_logs() as logs:
            worker.start()
            wait_until(lambda: any(log["event"] == "message.retried" for log in logs), "it was not put off")
    finally:
        s3_server.start()

    assert result.get(timeout=120) == 6_000_000
    worker.stop()


def test_dead_letter_is_shown_with_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claimed.py").write_text(
        "from pulsartasks import ClaimCheck, PulsarTasks\n"
        f"app = PulsarTasks('claimed', 'local://{tmp_path}/broker.db',"
        f" claim_check=ClaimCheck('{tmp_path}/blobs', above=100))\n"
        "@app.task\n"
        "def refuse(text: str) -> None:\n"
        "    raise ValueError('no')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from claimed import app  # type: ignore[import-not-found]

    worker = Worker(app)
    worker.start()
    result = app.tasks["refuse"].delay("x" * 1_000)
    wait_until(result.failed, "it did not fail")
    worker.stop()
    [letter] = DeadLetters(app, app.tasks["refuse"]).list()
    app.close()

    shown = CliRunner().invoke(main, ["dlq", "show", "-A", "claimed:app", letter.id])

    assert 'value      in the blob store: {"key":"claims/' in shown.stdout
    assert '"size":1' in shown.stdout


@pytest.mark.parametrize("above", [-1, MAX_MESSAGE_SIZE + 1])
def test_limit_above_what_a_message_may_have_is_refused(above: int) -> None:
    with pytest.raises(ConfigurationError, match="above must be from 0 to"):
        ClaimCheck("blobs", above=above)


def test_bare_url_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"write claim_check=ClaimCheck\('s3://bucket'\)"):
        PulsarTasks("shop", claim_check="s3://bucket")  # type: ignore[arg-type]


def test_store_that_is_none_is_refused_at_definition() -> None:
    with pytest.raises(ConfigurationError, match="ftp://blobs"):
        ClaimCheck("ftp://blobs")
    with pytest.raises(InvalidBlobKeyError):
        ClaimCheck("s3://bucket/..")
