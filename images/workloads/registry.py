"""A company's registry for the demo and the tests: Debian's docker-registry on this host only,
with TLS under a CA of its own, and a password.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DEADLINE = 30
_PROGRAMS = {
    "docker-registry": "docker-registry",
    "openssl": "openssl",
    "htpasswd": "apache2-utils",
}


class RegistryError(Exception):
    """The registry cannot be started."""


@dataclass(frozen=True)
class Registry:
    """``host`` is ``127.0.0.1:PORT``; ``cert_dir`` holds its CA as docker's certs.d does,
    ``auth_file`` the credentials as docker's config.json does."""

    host: str
    user: str
    password: str
    cert_dir: Path
    auth_file: Path
    storage: Path
    log: Path

    def blob(self, digest: str) -> Path:
        """Where a blob's bytes are kept."""
        algorithm, _, value = digest.partition(":")
        blobs = self.storage / "docker" / "registry" / "v2" / "blobs"
        return blobs / algorithm / value[:2] / value / "data"

    def tamper(self, digest: str) -> None:
        """Change one byte of a blob, as somebody with access to the disk would."""
        path = self.blob(digest)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@contextmanager
def company_registry(
    directory: Path, *, user: str = "demo", password: str | None = None
) -> Iterator[Registry]:
    """A registry that runs while the block does. Its files are in ``directory``."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise RegistryError(f"{program} is not installed; it is in Debian's {package}")
    directory.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{_free_port()}"
    registry = Registry(
        host=host,
        user=user,
        password=password or secrets.token_urlsafe(12),
        cert_dir=directory / "certs.d",
        auth_file=directory / "config.json",
        storage=directory / "storage",
        log=directory / "registry.log",
    )
    _make_certificates(directory, registry.cert_dir / host)
    config = _configure(directory, registry)
    with (
        registry.log.open("wb") as log,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            _wait(registry, process)
            yield registry
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_certificates(directory: Path, trusted: Path) -> None:
    """A CA that signs one certificate, for two days."""
    trusted.mkdir(parents=True, exist_ok=True)
    authority, key = trusted / "ca.crt", directory / "ca.key"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl(
        ["req", "-x509", *curve, "-keyout", str(key), "-out", str(authority), "-days", "2"],
        subject="/CN=demo company CA",
        extensions=("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"),
    )
    _openssl(
        [
            *("req", "-x509", *curve, "-days", "2"),
            *("-CA", str(authority), "-CAkey", str(key)),
            *("-keyout", str(directory / "server.key"), "-out", str(directory / "server.crt")),
        ],
        subject="/CN=demo registry",
        extensions=(
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "basicConstraints=critical,CA:FALSE",
        ),
    )
    key.unlink()


def _openssl(arguments: Sequence[str], *, subject: str, extensions: Sequence[str]) -> None:
    added = [word for extension in extensions for word in ("-addext", extension)]
    done = subprocess.run(
        ["openssl", *arguments, "-subj", subject, *added],
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=False,
    )
    if done.returncode != 0:
        raise RegistryError(f"openssl {arguments[0]}: {done.stderr.strip()[-300:]}")


def _configure(directory: Path, registry: Registry) -> Path:
    done = subprocess.run(
        ["htpasswd", "-Bbn", registry.user, registry.password],
        check=True,
        capture_output=True,
        timeout=_DEADLINE,
    )
    passwords = directory / "htpasswd"
    passwords.write_bytes(done.stdout)
    auth = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()
    registry.auth_file.touch(mode=0o600)
    registry.auth_file.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    config = directory / "registry.json"  # YAML is a superset of JSON
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "warn"},
                "storage": {
                    "filesystem": {"rootdirectory": str(registry.storage)},
                    "delete": {"enabled": True},
                },
                "http": {
                    "addr": registry.host,
                    "tls": {
                        "certificate": str(directory / "server.crt"),
                        "key": str(directory / "server.key"),
                    },
                },
                "auth": {"htpasswd": {"realm": "demo", "path": str(passwords)}},
            }
        )
    )
    return config


def _wait(registry: Registry, process: subprocess.Popen[bytes]) -> None:
    authority = registry.cert_dir / registry.host / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority))
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"https://{registry.host}/v2/", timeout=5, context=context)
        except urllib.error.HTTPError as answer:
            if answer.code == 401:
                return
        except OSError:
            time.sleep(0.1)
        else:
            raise RegistryError("the registry lets everybody in")
    tail = registry.log.read_text(errors="replace").strip()[-500:]
    raise RegistryError(f"docker-registry does not answer: {tail}")
