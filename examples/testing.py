"""Testing: a broker in memory, a worker in the test's own process, and a clock that moves when the test says so."""

from __future__ import annotations

import structlog

from pulsartasks import FrozenClock, PulsarTasks

app = PulsarTasks("testing")
sent: list[str] = []


@app.task(autoretry_for=(ConnectionError,), default_retry_delay=3600)
def mail(address: str) -> None:
    sent.append(address)
    if len(sent) == 1:
        raise ConnectionError("no answer")


@app.task
def sign_up(address: str) -> str:
    mail.using(countdown=86_400).delay(address)
    return f"welcome, {address}"


def test_mail_is_sent_a_day_later_though_the_first_attempt_fails() -> None:
    with app.testing(clock=FrozenClock()) as running:
        assert sign_up.delay("ada@example.org").get(timeout=30) == "welcome, ada@example.org"
        running.assert_published(mail, "ada@example.org")
        assert sent == []

        running.advance(86_400)
        assert sent == ["ada@example.org"]  # which failed

        running.advance(3600)
        assert sent == ["ada@example.org"] * 2


def test_call_has_run_when_delay_returns() -> None:
    with app.testing(eager=True):
        assert sign_up.delay("grace@example.org").state == "SUCCESS"
        assert sent[-1] == "grace@example.org"  # a countdown takes no time


if __name__ == "__main__":
    structlog.configure(cache_logger_on_first_use=False)
    test_mail_is_sent_a_day_later_though_the_first_attempt_fails()
    test_call_has_run_when_delay_returns()
    print("passed: a day and an hour in a moment, and nothing was left behind on the disk")
