"""``make tokens``: keys and tokens in a Secrets Manager, which a real Pulsar takes and which nobody sees."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pulsartasks import AuthorizationError
from pulsartasks.brokers.base import Subscription
from pulsartasks.brokers.pulsar import open_broker
from tests.secure import SecurePulsarServer
from tests.services import LOOPBACK, Process, answers, free_ports
from tools import tokens
from tools.tokens import ROLES, SUPERUSERS, KeyPair

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

KEYS = "babblebox/beta/pulsar-jwt-keys"
TOKENS = {role: f"babblebox/beta/pulsar-token/{role}" for role in (*ROLES, *SUPERUSERS)}


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an AWS whose credentials are not checked, which is not what these tests are about."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    server = Process(command, log=tmp_path_factory.mktemp("moto") / "moto.log")
    address = f"http://{LOOPBACK}:{port}"
    server.wait_until_ready(lambda: answers(f"{address}/moto-api/data.json"), "moto", timeout=60)
    yield address
    server.stop()


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsManagerClient]:
    """A Secrets Manager with the secrets that the stack `data` makes: without a value."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with closing(boto3.client("secretsmanager")) as client:
        for name in (KEYS, *TOKENS.values()):
            client.create_secret(Name=name)
        yield client
        for name in (KEYS, *TOKENS.values()):
            client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)


def _values(aws: SecretsManagerClient) -> dict[str, str]:
    return {name: aws.get_secret_value(SecretId=name)["SecretString"] for name in (KEYS, *TOKENS.values())}


def test_first_run_makes_all_and_the_next_leaves_it(
    aws: SecretsManagerClient, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tokens.main(["--stage", "beta"]) == 0
    first = _values(aws)
    told = capfd.readouterr().out
    assert tokens.main(["--stage", "beta"]) == 0

    assert _values(aws) == first
    assert told.splitlines() == [f"{name} was made anew" for name in first]
    assert capfd.readouterr().out == "All keys and tokens are there, and hold.\n"
    public = KeyPair.from_secret(first[KEYS]).private.public_key()
    assert public.key_size >= 2048
    for role, name in TOKENS.items():
        assert jwt.get_unverified_header(first[name])["alg"] == "RS256"
        assert jwt.decode(first[name], public, ["RS256"]).keys() == {"sub", "iat"}
        assert jwt.decode(first[name], public, ["RS256"])["sub"] == role


def test_nothing_secret_is_told(aws: SecretsManagerClient, capfd: pytest.CaptureFixture[str]) -> None:
    tokens.main(["--stage", "beta", "--days", "90"])
    tokens.main(["--stage", "beta", "--new-tokens"])

    told = "".join(capfd.readouterr())
    values = _values(aws)
    assert not any(value in told for value in values.values())
    assert not any(part in told for part in json.loads(values[KEYS]).values())


def test_new_tokens_are_signed_with_the_same_keys(aws: SecretsManagerClient) -> None:
    tokens.main(["--stage", "beta"])
    before = _values(aws)

    tokens.main(["--stage", "beta", "--new-tokens", "--days", "90"])

    after = _values(aws)
    assert after[KEYS] == before[KEYS]
    assert all(after[name] != before[name] for name in TOKENS.values())
    public = KeyPair.from_secret(after[KEYS]).private.public_key()
    ends = jwt.decode(after[TOKENS["web"]], public, ["RS256"])["exp"]
    assert ends == pytest.approx((datetime.now(timezone.utc) + timedelta(days=90)).timestamp(), abs=60)


def test_new_keys_bring_new_tokens(aws: SecretsManagerClient) -> None:
    tokens.main(["--stage", "beta"])
    before = _values(aws)

    tokens.main(["--stage", "beta", "--new-keys"])

    after = _values(aws)
    public = KeyPair.from_secret(after[KEYS]).private.public_key()
    assert after[KEYS] != before[KEYS]
    for name in TOKENS.values():
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.decode(before[name], public, ["RS256"])
        jwt.decode(after[name], public, ["RS256"])


def test_what_ends_soon_or_is_of_others_is_replaced(aws: SecretsManagerClient) -> None:
    tokens.main(["--stage", "beta"])
    before = _values(aws)
    keys, day = KeyPair.from_secret(before[KEYS]), timedelta(days=1)
    now = datetime.now(timezone.utc)
    replaced = {
        TOKENS["web"]: keys.sign("web", now + day),
        TOKENS["chat"]: KeyPair.generate().sign("chat", None),
        TOKENS["beat"]: keys.sign("admin", None),
        TOKENS["keda"]: "words",
    }
    for name, value in replaced.items():
        aws.put_secret_value(SecretId=name, SecretString=value)
    kept = keys.sign("images", now + 40 * day)
    aws.put_secret_value(SecretId=TOKENS["images"], SecretString=kept)

    tokens.main(["--stage", "beta"])

    after = _values(aws)
    assert after[TOKENS["images"]] == kept
    for name, value in replaced.items():
        assert after[name] != value
        assert keys.accepts(after[name], name.rpartition("/")[2], now)


def test_secret_that_is_not_there_is_named(aws: SecretsManagerClient, capfd: pytest.CaptureFixture[str]) -> None:
    assert tokens.main(["--stage", "prod"]) == 1

    told = capfd.readouterr().err
    assert "There is no secret babblebox/prod/pulsar-jwt-keys; the stack babblebox-prod-data makes it." in told


def test_lifetime_within_which_tokens_are_renewed_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tokens.main(["--stage", "beta", "--days", "30"])

    assert "more than 30" in capfd.readouterr().err


def test_pulsar_takes_the_keys_and_the_tokens(
    aws: SecretsManagerClient, secure_pulsar: SecurePulsarServer, tmp_path: Path
) -> None:
    private = serialization.load_pem_private_key(secure_pulsar.tokens.private.read_bytes(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    aws.put_secret_value(SecretId=KEYS, SecretString=KeyPair(private).to_secret())
    tokens.main(["--stage", "beta", "--days", "90"])
    values = _values(aws)

    assert KeyPair.from_secret(values[KEYS]).public_der() == secure_pulsar.tokens.public.read_bytes()
    topic = "persistent://public/default/tokens"
    with closing(open_broker(secure_pulsar.url(token=values[TOKENS["admin"]]))) as broker:
        broker.subscribe(Subscription((topic,), "s")).close()
    with (
        closing(open_broker(secure_pulsar.url(token=values[TOKENS["web"]]))) as broker,
        pytest.raises(AuthorizationError, match="the role 'web' has no permission"),
    ):
        broker.subscribe(Subscription((topic,), "s"))
