"""``make tokens STAGE=beta``: the tokens that prove BabbleBox's roles to Pulsar, in AWS Secrets Manager.

A first run makes a pair of keys and signs a token for each role. A later one makes what is missing, is not signed by
the keys, or ends soon, and leaves the rest; so it can be run at any time. The stack `data` has made the secrets. What
is in them is never printed, nor written to this machine.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import boto3
import jwt
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tools.terminal import SetupError, say

STAGES = ("beta", "prod")
ROLES = ("web", "chat", "transcribe", "images", "beat", "keda", "topics")
"""Of web and relay, the workers, beat, the autoscaler, and who applies topics before a rollout."""
SUPERUSERS = ("broker-admin", "proxy-admin", "admin")
"""Of Pulsar itself and of its operator, as the Helm chart names them."""
ALGORITHM = "RS256"
KEY_BITS = 3072
RENEW_BEFORE = timedelta(days=30)
"""A token that ends within this time is replaced, so that a run every week is enough."""


@dataclass(frozen=True)
class KeyPair:
    """The keys: the private one signs, the public one is all that brokers and proxies have."""

    private: rsa.RSAPrivateKey

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS))

    @classmethod
    def from_secret(cls, text: str) -> KeyPair:
        """The pair that `to_secret` wrote.

        Raises:
            SetupError: it is something else.
        """
        try:
            key = serialization.load_der_private_key(base64.b64decode(json.loads(text)["PRIVATEKEY"]), None)
        except (ValueError, KeyError, TypeError):
            key = None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise SetupError("the secret pulsar-jwt-keys holds no RSA key pair; --new-keys makes one") from None
        return cls(key)

    def to_secret(self) -> str:
        """As ``pulsar tokens create-key-pair`` makes them (PKCS #8 and X.509, DER), under the Helm chart's names."""
        encoded = {"PRIVATEKEY": self._private_der(), "PUBLICKEY": self.public_der()}
        return json.dumps({name: base64.b64encode(der).decode() for name, der in encoded.items()})

    def public_der(self) -> bytes:
        """What Pulsar's ``tokenPublicKey`` names."""
        public = self.private.public_key()
        return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, role: str, ends: datetime | None) -> str:
        """A token for `role`, until an instant or for ever."""
        claims: dict[str, object] = {"sub": role, "iat": datetime.now(timezone.utc)}
        if ends is not None:
            claims["exp"] = ends
        return jwt.encode(claims, self.private, ALGORITHM)

    def accepts(self, token: str | None, role: str, until: datetime) -> bool:
        """Whether this is a token of these keys for `role`, which does not end before an instant."""
        try:
            claims = jwt.decode(token or "", self.private.public_key(), [ALGORITHM])
        except jwt.InvalidTokenError:
            return False
        return bool(claims.get("sub") == role and claims.get("exp", until.timestamp()) >= until.timestamp())

    def _private_der(self) -> bytes:
        return self.private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class Secrets:
    """The secrets of one stage."""

    def __init__(self, stage: str) -> None:
        self._client = boto3.client("secretsmanager")
        self._stage = stage

    def get(self, name: str) -> str | None:
        """The value of a secret; None where there is none yet."""
        try:
            return self._client.get_secret_value(SecretId=self._id(name))["SecretString"]
        except self._client.exceptions.ResourceNotFoundException:
            return None

    def put(self, name: str, value: str) -> None:
        """Gives a secret a new value.

        Raises:
            SetupError: there is no such secret.
        """
        try:
            self._client.put_secret_value(SecretId=self._id(name), SecretString=value)
        except self._client.exceptions.ResourceNotFoundException:
            raise SetupError(
                f"There is no secret {self._id(name)}; the stack babblebox-{self._stage}-data makes it."
            ) from None

    def _id(self, name: str) -> str:
        return f"babblebox/{self._stage}/{name}"


def renew(
    secrets: Secrets, *, lifetime: timedelta | None = None, new_tokens: bool = False, new_keys: bool = False
) -> Iterator[str]:
    """Makes what is missing or ends soon, and gives the names of the secrets that it changed.

    Args:
        secrets: Of the stage.
        lifetime: Of what is made; default: for ever.
        new_tokens: Replace all tokens.
        new_keys: Replace the keys, and with them all tokens.

    Raises:
        SetupError: a secret is not there, or holds something else.
    """
    held = None if new_keys else secrets.get("pulsar-jwt-keys")
    keys = KeyPair.generate() if held is None else KeyPair.from_secret(held)
    if held is None:
        secrets.put("pulsar-jwt-keys", keys.to_secret())
        yield "pulsar-jwt-keys"
    now = datetime.now(timezone.utc)
    for role in (*ROLES, *SUPERUSERS):
        name = f"pulsar-token/{role}"
        if new_tokens or not keys.accepts(secrets.get(name), role, now + RENEW_BEFORE):
            secrets.put(name, keys.sign(role, None if lifetime is None else now + lifetime))
            yield name


def main(arguments: Sequence[str] | None = None) -> int:
    """Says which secrets were changed; 1 when something is in the way."""
    parser = argparse.ArgumentParser(prog="python3 -m tools tokens", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--days", type=_days, help="how long new tokens hold; default: for ever")
    parser.add_argument("--new-tokens", action="store_true", help="replace all tokens, with the same keys")
    parser.add_argument(
        "--new-keys", action="store_true", help="replace the keys too: no former token holds once Pulsar has restarted"
    )
    options = parser.parse_args(arguments)
    lifetime = None if options.days is None else timedelta(days=options.days)
    changed = False
    try:
        secrets = Secrets(options.stage)
        changes = renew(secrets, lifetime=lifetime, new_tokens=options.new_tokens, new_keys=options.new_keys)
        for name in changes:
            print(f"babblebox/{options.stage}/{name} was made anew", flush=True)
            changed = True
    except (SetupError, BotoCoreError, ClientError) as error:
        say(f"Tokens: {error}")
        return 1
    if not changed:
        print("All keys and tokens are there, and hold.")
    return 0


def _days(text: str) -> int:
    """A lifetime that does not end before the token is renewed."""
    days = int(text)
    if days <= RENEW_BEFORE.days:
        raise argparse.ArgumentTypeError(f"more than {RENEW_BEFORE.days}, since tokens are renewed so long before")
    return days


if __name__ == "__main__":
    sys.exit(main())
