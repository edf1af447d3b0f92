"""Testing: the whole way of a call, on a broker in memory and with a worker in the test's own process."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from pulsartasks import PulsarTasks

app = PulsarTasks("testing")
sent: list[str] = []


@app.task(autoretry_for=(ConnectionError,), default_retry_delay=0.05)
def mail(address: str) -> None:
    if not sent:
        sent.append("(the first attempt)")
        raise ConnectionError("no answer")
    sent.append(address)


def test_mail_is_sent_though_the_first_attempt_fails() -> None:
    with capture_logs() as logs, app.testing() as running:
        mail.delay("ada@example.org")
        running.join(timeout=10)  # until nothing waits and nothing runs, retries included

    assert sent[-1] == "ada@example.org"
    assert [entry["event"] for entry in logs if entry["event"].startswith("message.")] == [
        "message.retried",
        "message.succeeded",
    ]


if __name__ == "__main__":
    structlog.configure(cache_logger_on_first_use=False)
    test_mail_is_sent_though_the_first_attempt_fails()
    print("passed, and nothing was left behind on the disk")
