"""What may stand in a Pulsar URL, and what each part of it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from pulsartasks.brokers.pulsar import PulsarSettings
from pulsartasks.errors import ConfigurationError

PLAIN = "pulsar://localhost:6650"


@pytest.mark.parametrize(
    ("url", "admin_url"),
    [
        ("pulsar://localhost:6650", "http://localhost:8080"),
        ("pulsar+ssl://pulsar.example:6651", "https://pulsar.example:8443"),
        ("pulsar://one:6650,two:6650", "http://one:8080"),
        ("pulsar://[::1]:6650", "http://[::1]:8080"),
        ("pulsar://localhost:16650", None),
        ("pulsar://localhost", "http://localhost:8080"),
        ("pulsar://localhost:6650?admin_url=", None),
        ("pulsar://localhost:16650?admin_url=https://admin.example/", "https://admin.example"),
    ],
)
def test_admin_interface_is_guessed_beside_pulsars_own_ports_only(url: str, admin_url: str | None) -> None:
    assert PulsarSettings.parse(url, {}).admin_url == admin_url


def test_service_url_keeps_all_hosts_and_no_settings() -> None:
    settings = PulsarSettings.parse("pulsar://one:6650,two:6650/?operation_timeout=5", {})

    assert settings.service_url == "pulsar://one:6650,two:6650"
    assert settings.operation_timeout == 5


def test_the_url_comes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from file\n")
    environment = {
        "PULSARTASKS_TOKEN": "from environment",
        "PULSARTASKS_ADMIN_URL": "http://admin:1",
        "PULSARTASKS_TLS_CA": "",
    }

    by_environment = PulsarSettings.parse(PLAIN, environment)
    by_url = PulsarSettings.parse(f"{PLAIN}?token_file={file}&admin_url=http://admin:2", environment)

    assert (by_environment.read_token(), by_environment.admin_url) == ("from environment", "http://admin:1")
    assert (by_url.read_token(), by_url.admin_url) == ("from file", "http://admin:2")


def test_token_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    settings = PulsarSettings.parse(PLAIN, {"PULSARTASKS_TOKEN_FILE": str(file)})
    assert settings.read_token() == "first"

    file.write_text("second\n")

    assert settings.read_token() == "second"


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(PulsarSettings.parse(f"{PLAIN}?token=secret", {}))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("pulsar://", "reads pulsar://HOST:6650"),
        ("pulsar://localhost:6650/public/default", "a namespace belongs to the app"),
        ("pulsar://user@localhost:6650", "no user"),
        ("pulsar://localhost:6650?tokn=x", "did you mean 'token'"),
        ("pulsar://localhost:6650?service_url=x", "has no option 'service_url'"),
        ("pulsar://localhost:6650?token=x&token_file=y", "not both"),
        ("pulsar://localhost:6650?token_file=/nowhere", "no file '/nowhere'"),
        ("pulsar+ssl://localhost:6651?tls_ca=/nowhere", "no file '/nowhere'"),
        ("pulsar+ssl://localhost:6651?tls_key=/nowhere", "belong together"),
        ("pulsar+ssl://localhost:6651?tls_validate_hostname=perhaps", "true or false"),
        ("pulsar://localhost:6650?encryption_key=name", "encryption_public_key, a file, belong together"),
        ("pulsar://localhost:6650?encryption_private_key=/nowhere", "no file '/nowhere'"),
        ("pulsar://localhost:6650?operation_timeout=0", "from 1 to 3600"),
        ("pulsar://localhost:6650?admin_url=localhost:8080", "admin_url reads"),
        ("pulsar://localhost:port", "HOST:6650"),
        ("pulsar://one:6650,", "HOST:6650"),
        ("http://localhost:8080", "HOST:6650"),
    ],
)
def test_wrong_url_is_refused_with_a_hint(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        PulsarSettings.parse(url, {})


@pytest.mark.parametrize(("text", "validated"), [("", True), ("?tls_validate_hostname=false", False)])
def test_host_names_are_validated_unless_switched_off(text: str, validated: bool) -> None:
    assert PulsarSettings.parse(f"pulsar+ssl://localhost:6651{text}", {}).tls_validate_hostname is validated
