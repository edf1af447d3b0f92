"""A Pulsar as production should have it: TLS with a certificate for its address, tokens, and roles with permissions.

Certificates and tokens are made by the ``openssl`` program, so the tests need no library for it.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from tests.services import LOOPBACK, PulsarServer
from tools.terminal import SetupError

ADMIN = "admin"
"""The role that may do everything; the broker itself has it."""
OPERATOR = "operator"
"""The role that may do everything in the tenant `public`."""
NAMESPACE = "acme/live"
"""Where the roles `CLERK`, `PRODUCER` and `CONSUMER` have permissions, and nowhere else."""
CLERK, PRODUCER, CONSUMER = "clerk", "producer", "consumer"
_PERMISSIONS = {CLERK: ["produce", "consume"], PRODUCER: ["produce"], CONSUMER: ["consume"]}
_CA_EXTENSIONS = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
_LEAF_EXTENSIONS = "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"


class Authority:
    """A root certificate, and those that it signs."""

    def __init__(self, folder: Path, name: str = "Test Root") -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        extensions = self._write("ca.ext", _CA_EXTENSIONS)
        request = self._request("ca", name, self._key)
        _openssl(
            *("x509", "-req", "-in", request, "-signkey", self._key, "-days", "2", "-sha256"),
            *("-extfile", extensions, "-out", self.certificate),
        )

    def issue(self, name: str, addresses: str = "") -> tuple[Path, Path]:
        """A certificate for `name` and its key; `addresses` as in ``IP:127.0.0.1,DNS:localhost``."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        alternatives = f"subjectAltName={addresses}\n" if addresses else ""
        extensions = self._write(f"{name}.ext", _LEAF_EXTENSIONS + alternatives)
        request = self._request(name, name, key)
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "2", "-sha256", "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def _request(self, file: str, name: str, key: Path) -> Path:
        request = self._folder / f"{file}.csr"
        _openssl(
            *("req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha256", "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        return request

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path


class TokenKey:
    """A key that signs tokens (JWT, RS256), and its public half as Pulsar wants it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._private, self.public = folder / "private.pem", folder / "public.der"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self._private)
        _openssl("pkey", "-in", self._private, "-pubout", "-outform", "DER", "-out", self.public)

    def token(self, role: str, *, valid_for: float | None = None) -> str:
        """A token for `role`, valid for so many seconds (negative: it has expired), or for ever."""
        claims: dict[str, object] = {"sub": role}
        if valid_for is not None:
            claims["exp"] = int(time.time() + valid_for)
        signed = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}"
        signature = _openssl("dgst", "-sha256", "-sign", self._private, data=signed.encode())
        return f"{signed}.{_base64(signature)}"


class SecurePulsarServer(PulsarServer):
    """A standalone Pulsar that serves TLS alone, to those whose token or certificate proves a role."""

    def __init__(self, distribution: Path, folder: Path) -> None:
        super().__init__(distribution, folder)
        if shutil.which("openssl") is None:
            raise SetupError("the program openssl is not installed")
        self.authority = Authority(folder / "authority")
        self.tokens = TokenKey(folder / "tokens")
        self._certificate, self._key = self.authority.issue("broker", f"IP:{LOOPBACK}")
        self.service_url = self.service_url.replace("pulsar://", "pulsar+ssl://")
        self.admin_url = self.admin_url.replace("http://", "https://")
        self._context = ssl.create_default_context(cafile=str(self.authority.certificate))
        self._headers = {"Authorization": f"Bearer {self.tokens.token(ADMIN)}"}

    def url(self, role: str = OPERATOR, **settings: object) -> str:
        """The URL with which a client proves `role` by a token; `settings` replace its parameters, None removes one."""
        usual = {"tls_ca": self.authority.certificate, "admin_url": self.admin_url, "token": self.tokens.token(role)}
        given = {name: value for name, value in {**usual, **settings}.items() if value is not None}
        return f"{self.service_url}?{urlencode(given)}"

    def start(self) -> None:
        super().start()
        self.admin("POST", "tenants/public", {"adminRoles": [OPERATOR], "allowedClusters": ["standalone"]})
        if NAMESPACE not in str(self.admin("GET", "namespaces/public")):
            self.admin("PUT", "tenants/acme", {"adminRoles": [], "allowedClusters": ["standalone"]})
            self.admin("PUT", f"namespaces/{NAMESPACE}")
        for role, actions in _PERMISSIONS.items():
            self.admin("POST", f"namespaces/{NAMESPACE}/permissions/{role}", actions)

    def _settings(self) -> Mapping[str, str]:
        settings = super()._settings()
        return {
            **settings,
            "brokerServicePort": "",
            "brokerServicePortTls": settings["brokerServicePort"],
            "webServicePort": "",
            "webServicePortTls": settings["webServicePort"],
            "tlsCertificateFilePath": str(self._certificate),
            "tlsKeyFilePath": str(self._key),
            "tlsTrustCertsFilePath": str(self.authority.certificate),
            "brokerClientTlsEnabled": "true",
            "brokerClientTrustCertsFilePath": str(self.authority.certificate),
            "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            "brokerClientAuthenticationParameters": f"token:{self.tokens.token(ADMIN)}",
            "authenticationEnabled": "true",
            "authenticationProviders": ",".join(
                f"org.apache.pulsar.broker.authentication.AuthenticationProvider{kind}" for kind in ("Token", "Tls")
            ),
            "authenticationRefreshCheckSeconds": "1",  # how often it looks for expired tokens
            "authorizationEnabled": "true",
            "superUserRoles": ADMIN,
            "tokenPublicKey": self.tokens.public.as_uri(),
        }


class KeyPair:
    """A pair of keys that encrypt payloads from end to end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.private, self.public = folder / "private.pem", folder / "public.pem"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.private)
        _openssl("pkey", "-in", self.private, "-pubout", "-out", self.public)


def _openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False)
    if done.returncode:
        raise SetupError(f"openssl {arguments[0]}: {done.stderr.decode()}")
    return done.stdout


def _part(content: Mapping[str, object]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
