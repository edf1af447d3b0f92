"""A Pulsar as production should have it: TLS with a certificate for its address, tokens, and roles with permissions.

Certificates and tokens are made by the ``openssl`` program, so the tests need no library for it.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from tests.services import LOOPBACK, PULSAR_ENVIRONMENT, Process, PulsarServer, answers, configuration, free_ports
from tools.terminal import SetupError

ADMIN, BROKER_ADMIN, PROXY_ADMIN = "admin", "broker-admin", "proxy-admin"
"""The roles that may do everything: a person's, the broker's own and the proxy's, named as the Helm chart does."""
OPERATOR = "operator"
"""The role that may do everything in the tenant `public`."""
NAMESPACE = "acme/live"
"""Where the roles `CLERK`, `PRODUCER` and `CONSUMER` have permissions, and nowhere else."""
CLERK, PRODUCER, CONSUMER = "clerk", "producer", "consumer"
_PERMISSIONS = {CLERK: ["produce", "consume"], PRODUCER: ["produce"], CONSUMER: ["consume"]}
_ROOT_EXTENSIONS = (
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
)
_SUBORDINATE_EXTENSIONS = _ROOT_EXTENSIONS.replace("CA:TRUE", "CA:TRUE,pathlen:0") + "authorityKeyIdentifier=keyid\n"
_LEAF_EXTENSIONS = "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"


class Authority:
    """A root certificate, or a subordinate one that `signer` has signed, and those that it signs."""

    def __init__(self, folder: Path, name: str = "Test Root", *, signer: Authority | None = None) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        request = self._request("ca", name, self._key)
        if signer is None:
            _sign(request, self._write("ca.ext", _ROOT_EXTENSIONS), self.certificate, "-signkey", self._key)
            self._chain = b""
        else:
            signer._sign(request, self._write("ca.ext", _SUBORDINATE_EXTENSIONS), self.certificate)
            self._chain = self.certificate.read_bytes() + signer._chain

    def issue(self, name: str, addresses: str = "") -> tuple[Path, Path]:
        """A certificate for `name` and its key; `addresses` as in ``IP:127.0.0.1,DNS:localhost``.

        After it in its file come those between it and the root, which is what a server has to present.
        """
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        alternatives = f"subjectAltName={addresses}\n" if addresses else ""
        extensions = self._write(f"{name}.ext", _LEAF_EXTENSIONS + alternatives)
        self._sign(self._request(name, name, key), extensions, certificate)
        certificate.write_bytes(certificate.read_bytes() + self._chain)
        return certificate, key

    def _sign(self, request: Path, extensions: Path, certificate: Path) -> None:
        _sign(request, extensions, certificate, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")

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


class SecretVolume:
    """A folder with the files of a Secret as the kubelet mounts it: links, so that all of them change at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def path(self, name: str) -> Path:
        return self._folder / name

    def write(self, files: Mapping[str, bytes]) -> None:
        """Replaces the content of all files."""
        current, fresh, swap = (self._folder / name for name in ("..data", f"..{uuid4().hex}", "..data_tmp"))
        former = current.resolve() if current.exists() else None
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        swap.symlink_to(fresh.name)
        swap.replace(current)
        for name in files:
            if not self.path(name).is_symlink():
                self.path(name).symlink_to(Path(current.name, name))
        if former is not None:
            shutil.rmtree(former)


class ServerCertificate:
    """A server's certificate in a mounted Secret, with the key and the root beside it, as cert-manager keeps it."""

    def __init__(self, folder: Path, root: Authority, issuer: Authority, name: str, addresses: str) -> None:
        self._root, self._issuer, self._name, self._addresses = root, issuer, name, addresses
        self._volume = SecretVolume(folder)
        self.renew()

    def renew(self) -> None:
        """Puts a new certificate with a new key in the place of the former."""
        chain, key = self._issuer.issue(self._name, self._addresses)
        files = {"tls.crt": chain, "tls.key": key, "ca.crt": self._root.certificate}
        self._volume.write({name: path.read_bytes() for name, path in files.items()})

    @property
    def settings(self) -> Mapping[str, str]:
        """What a broker or proxy is told of it; it looks every second for another one, in production every 300."""
        return {
            "tlsCertificateFilePath": str(self._volume.path("tls.crt")),
            "tlsKeyFilePath": str(self._volume.path("tls.key")),
            "tlsTrustCertsFilePath": str(self._volume.path("ca.crt")),
            "tlsCertRefreshCheckDurationSec": "1",
        }


class TokenKey:
    """A key that signs tokens (JWT, RS256), and its public half as Pulsar wants it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.private, self.public = folder / "private.pem", folder / "public.der"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.private)
        _openssl("pkey", "-in", self.private, "-pubout", "-outform", "DER", "-out", self.public)

    def token(self, role: str, *, valid_for: float | None = None) -> str:
        """A token for `role`, valid for so many seconds (negative: it has expired), or for ever."""
        claims: dict[str, object] = {"sub": role}
        if valid_for is not None:
            claims["exp"] = int(time.time() + valid_for)
        signed = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}"
        signature = _openssl("dgst", "-sha256", "-sign", self.private, data=signed.encode())
        return f"{signed}.{_base64(signature)}"


class SecurePulsarServer(PulsarServer):
    """A standalone Pulsar that serves TLS alone, to those whose token or certificate proves a role.

    Its certificate comes from a subordinate of `authority`, the root that clients trust, as with AWS Private CA.
    """

    def __init__(self, distribution: Path, folder: Path) -> None:
        super().__init__(distribution, folder)
        if shutil.which("openssl") is None:
            raise SetupError("the program openssl is not installed")
        self.authority = Authority(folder / "authority")
        self._subordinate = Authority(folder / "subordinate", "Test Subordinate", signer=self.authority)
        self.tokens = TokenKey(folder / "tokens")
        self.certificate = self.certify("broker", f"IP:{LOOPBACK},DNS:localhost")  # which Java takes for the same
        self.service_url = self.service_url.replace("pulsar://", "pulsar+ssl://")
        self.admin_url = self.admin_url.replace("http://", "https://")
        self._context = ssl.create_default_context(cafile=str(self.authority.certificate))
        self._headers = {"Authorization": f"Bearer {self.tokens.token(ADMIN)}"}

    def url(self, role: str = OPERATOR, **settings: object) -> str:
        """The URL with which a client proves `role` by a token; `settings` replace its parameters, None removes one."""
        usual = {"tls_ca": self.authority.certificate, "admin_url": self.admin_url, "token": self.tokens.token(role)}
        given = {name: value for name, value in {**usual, **settings}.items() if value is not None}
        return f"{self.service_url}?{urlencode(given)}"

    def certify(self, name: str, addresses: str) -> ServerCertificate:
        """A certificate for a server of this Pulsar."""
        return ServerCertificate(
            self._folder / "certificates" / name, self.authority, self._subordinate, name, addresses
        )

    def start(self) -> None:
        super().start()
        self.admin("POST", "tenants/public", {"adminRoles": [OPERATOR], "allowedClusters": ["standalone"]})
        if NAMESPACE not in str(self.admin("GET", "namespaces/public")):
            self.admin("PUT", "tenants/acme", {"adminRoles": [], "allowedClusters": ["standalone"]})
            self.admin("PUT", f"namespaces/{NAMESPACE}")
        for role, actions in _PERMISSIONS.items():
            self.admin("POST", f"namespaces/{NAMESPACE}/permissions/{role}", actions)

    def proxy(self, host: str) -> PulsarProxy:
        """A proxy before it, for clients that know it by the name `host`, which has to be started."""
        return PulsarProxy(self._distribution, self._folder / f"proxy-{uuid4().hex}", self, host)

    def client_settings(self, role: str) -> Mapping[str, str]:
        """How a broker or a proxy is a client of this one itself."""
        token = self._folder / f"{role}.jwt"
        token.write_text(self.tokens.token(role))
        return {
            "brokerClientTrustCertsFilePath": str(self.authority.certificate),
            "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            "brokerClientAuthenticationParameters": token.as_uri(),
        }

    def authentication(self, *kinds: str) -> Mapping[str, str]:
        """What it takes as a proof of a role."""
        providers = (f"org.apache.pulsar.broker.authentication.AuthenticationProvider{kind}" for kind in kinds)
        return {
            "authenticationEnabled": "true",
            "authenticationProviders": ",".join(providers),
            "authenticationRefreshCheckSeconds": "1",  # how often it looks for expired tokens
            "tokenPublicKey": self.tokens.public.as_uri(),
        }

    def _settings(self) -> Mapping[str, str]:
        settings = super()._settings()
        return {
            **settings,
            **self.certificate.settings,
            **self.client_settings(BROKER_ADMIN),
            **self.authentication("Token", "Tls"),
            "brokerServicePort": "",
            "brokerServicePortTls": settings["brokerServicePort"],
            "webServicePort": "",
            "webServicePortTls": settings["webServicePort"],
            "brokerClientTlsEnabled": "true",
            "authorizationEnabled": "true",
            "superUserRoles": ",".join([ADMIN, BROKER_ADMIN, PROXY_ADMIN]),
            "proxyRoles": PROXY_ADMIN,
        }


class PulsarProxy:
    """Pulsar's own proxy before a `SecurePulsarServer`, with the settings that the Helm chart gives it."""

    def __init__(self, distribution: Path, folder: Path, server: SecurePulsarServer, host: str) -> None:
        self._program = distribution / "bin" / "pulsar"
        self._folder = folder
        self._process: Process | None = None
        self._context = ssl.create_default_context(cafile=str(server.authority.certificate))
        service_port, web_port = free_ports(2)
        self.service_url, self.admin_url = f"pulsar+ssl://{host}:{service_port}", f"https://{host}:{web_port}"
        self.certificate = server.certify(f"proxy-{uuid4().hex}", f"DNS:{host}")
        settings = {
            **self.certificate.settings,
            **server.client_settings(PROXY_ADMIN),
            **server.authentication("Token"),
            "bindAddress": LOOPBACK,
            "clusterName": "standalone",
            "statusFilePath": str(folder / "status"),
            "servicePort": "",
            "servicePortTls": str(service_port),
            "webServicePort": "",
            "webServicePortTls": str(web_port),
            "brokerServiceURLTLS": server.service_url,
            "brokerWebServiceURLTLS": server.admin_url,
            "brokerProxyAllowedTargetPorts": "*",
            "tlsEnabledInProxy": "true",
            "tlsEnabledWithBroker": "true",
            "tlsHostnameVerificationEnabled": "true",
            "authorizationEnabled": "false",  # the broker does that, with the client's own token
            "forwardAuthorizationCredentials": "true",
            "superUserRoles": ",".join([ADMIN, BROKER_ADMIN]),
            "httpNumThreads": "8",
        }
        folder.mkdir(parents=True)
        (folder / "status").write_text("OK")
        (folder / "proxy.conf").write_text(configuration(distribution / "conf" / "proxy.conf", settings))

    def start(self) -> None:
        """Starts it and returns when it serves."""
        env = {
            **PULSAR_ENVIRONMENT,
            "PULSAR_PROXY_CONF": str(self._folder / "proxy.conf"),
            "PULSAR_LOG_DIR": str(self._folder),
        }
        self._process = Process([str(self._program), "proxy"], env=env, log=self._folder / "proxy.log")
        self._process.wait_until_ready(self._ready, "the proxy", timeout=170)

    def stop(self, *, kill: bool = False) -> None:
        """Stops it, in order or as a power cut would, and with it all connections that lead through it."""
        if self._process is not None:
            self._process.stop(signal.SIGKILL if kill else signal.SIGTERM)
            self._process = None

    def _ready(self) -> bool:
        return answers(f"{self.admin_url}/status.html", self._context)


def presented_by(url: str, root: Authority) -> bytes:
    """The certificate of a server, to a client that trusts `root` alone and wants it to be for the URL's host."""
    address = urlsplit(url)
    assert address.port is not None
    context = ssl.create_default_context(cafile=str(root.certificate))
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=address.hostname) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


class KeyPair:
    """A pair of keys that encrypt payloads from end to end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.private, self.public = folder / "private.pem", folder / "public.pem"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.private)
        _openssl("pkey", "-in", self.private, "-pubout", "-out", self.public)


def _sign(request: Path, extensions: Path, certificate: Path, *by: str | Path) -> None:
    _openssl(
        *("x509", "-req", "-in", request, *by, "-days", "2", "-sha256"),
        *("-extfile", extensions, "-out", certificate),
    )


def _openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False)
    if done.returncode:
        raise SetupError(f"openssl {arguments[0]}: {done.stderr.decode()}")
    return done.stdout


def _part(content: Mapping[str, object]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
