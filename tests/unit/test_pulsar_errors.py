"""Every error of the Pulsar client has one of ours."""

from __future__ import annotations

import pulsar
import pytest

from pulsartasks.brokers.pulsar.errors import ERRORS, from_result, to_error, translated
from pulsartasks.errors import BrokerUnavailableError, MessageTooLargeError, PulsarTasksError


def test_no_exception_of_the_client_is_forgotten() -> None:
    exceptions = {
        name
        for name, value in vars(pulsar).items()
        if isinstance(value, type) and issubclass(value, pulsar.PulsarException) and value is not pulsar.Interrupted
    }

    assert set(ERRORS) >= exceptions
    assert len(exceptions) > 40


def test_no_result_code_of_the_client_is_forgotten() -> None:
    codes = set(pulsar.Result.__members__) - {"Ok", "Interrupted"}

    assert set(ERRORS) >= codes


def test_no_name_is_listed_that_the_client_does_not_have() -> None:
    known = set(vars(pulsar)) | set(pulsar.Result.__members__)

    assert known >= set(ERRORS)


def test_error_says_what_could_not_be_done_and_keeps_its_cause() -> None:
    refused = pytest.raises(BrokerUnavailableError, match="could not publish to t: ConnectError")
    with refused as raised, translated("publish to t"):
        raise pulsar.ConnectError

    assert isinstance(raised.value.__cause__, pulsar.ConnectError)


def test_result_code_becomes_the_same_error_as_the_exception() -> None:
    assert type(from_result(pulsar.Result.MessageTooBig, "publish")) is MessageTooLargeError
    assert type(to_error("MessageTooBig", "publish")) is MessageTooLargeError


def test_interrupted_call_is_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), translated("subscribe"):
        raise pulsar.Interrupted


def test_what_is_ours_passes_unchanged() -> None:
    with pytest.raises(PulsarTasksError, match="mine"), translated("subscribe"):
        raise PulsarTasksError("mine")
