"""A company's registry for the demo and the tests: Debian's docker-registry on the loopback
interface only, with TLS under a CA of its own, and a password.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TOOL_SECONDS = 30.0
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_DAYS_VALID = 2
_TAIL = 1000
_BCRYPT_BYTES = 72  # it ignores what follows: any password that begins alike would do
_PACKAGES = {
    "docker-registry": "docker-registry",
    "openssl": "openssl",
    "htpasswd": "apache2-utils",
    "setpriv": "util-linux",
}
_LISTENING = re.compile(r'msg="listening on (127\.0\.0\.1:[0-9]+), tls"')
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

_EXTENSIONS = """\
[req]
distinguished_name = name
prompt = no
string_mask = utf8only
[name]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1, DNS:localhost
"""
"""For openssl-req(1): all of it, for the host's own openssl.cnf may add extensions to ours."""


class RegistryError(Exception):
    """The registry cannot be started, or has no such blob."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry.

    ``host`` is ``127.0.0.1:PORT``. ``cert_dir`` holds ``HOST/ca.crt`` as docker's certs.d does,
    ``auth_file`` the credentials as docker's config.json does (mode 0600). ``storage`` and
    ``log`` are the registry's own.
    """

    host: str
    cert_dir: Path
    auth_file: Path
    storage: Path
    log: Path


@contextmanager
def company_registry(
    directory: Path, *, user: str = "demo", password: str | None = None
) -> Iterator[Registry]:
    """A registry that runs while the block does, with its files in ``directory``. Without a
    password it gets a random one; what ``storage`` held before is served again.

    Raises :class:`RegistryError` if a program is missing or the registry does not start.
    """
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            raise RegistryError(f"{program} is not installed: apt-get install {package}")
    password = secrets.token_urlsafe(18) if password is None else password
    directory = directory.absolute()
    storage, log = directory / "storage", directory / "registry.log"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_certificates(directory)
        _write_private(directory / "htpasswd", _password_line(user, password))
        configuration = directory / "registry.json"
        _write_private(configuration, json.dumps(_configuration(directory, storage)))
        _write_private(log, "")
    except OSError as error:
        raise RegistryError(f"cannot prepare a registry in {directory}: {error}") from None
    with _serve(configuration, log) as process:
        host = _wait(process, log, directory / "ca.crt")
        certificates, auth_file = directory / "certs.d", directory / "config.json"
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        try:
            if certificates.exists():  # of an earlier port, and an earlier CA
                shutil.rmtree(certificates)
            (certificates / host).mkdir(parents=True)
            shutil.copyfile(directory / "ca.crt", certificates / host / "ca.crt")
            _write_private(auth_file, json.dumps({"auths": {host: {"auth": auth}}}))
        except OSError as error:
            raise RegistryError(f"cannot write for clients of {host}: {error}") from None
        yield Registry(host, certificates, auth_file, storage, log)


def tamper(registry: Registry, digest: str) -> None:
    """Flip one bit of the byte in the middle of a blob, as somebody with access to the
    registry's disk could. Its size stays.

    Raises :class:`RegistryError` if the registry has no such blob, or it is empty.
    """
    matched = _DIGEST.fullmatch(digest)
    if matched is None:
        raise RegistryError(f"not a sha256 digest: {digest!r}")
    value = matched[1]
    path = registry.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"
    try:
        with path.open("r+b") as blob:
            middle = blob.seek(0, os.SEEK_END) // 2
            blob.seek(middle)
            byte = blob.read(1)
            if not byte:
                raise RegistryError(f"{digest} is empty: there is no byte to change")
            blob.seek(middle)
            blob.write(bytes([byte[0] ^ 1]))
    except OSError as error:
        raise RegistryError(f"cannot change {digest} in {registry.host}: {error}") from None


# --- its files -----------------------------------------------------------------------------


def _make_certificates(directory: Path) -> None:
    """A CA that signs one certificate for the server; its key is gone afterwards."""
    extensions, key = directory / "openssl.cnf", directory / "ca.key"
    extensions.write_text(_EXTENSIONS)
    authority = directory / "ca.crt"
    request = [
        *("openssl", "req", "-x509", "-config", str(extensions), "-days", str(_DAYS_VALID)),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
    ]
    try:
        _output(
            [
                *(*request, "-extensions", "authority", "-subj", "/CN=Demo company CA"),
                *("-keyout", str(key), "-out", str(authority)),
            ]
        )
        _output(
            [
                *(*request, "-extensions", "server", "-subj", "/CN=Demo company registry"),
                *("-CA", str(authority), "-CAkey", str(key)),
                *("-keyout", str(directory / "server.key")),
                *("-out", str(directory / "server.crt")),
            ]
        )
    finally:
        key.unlink(missing_ok=True)


def _password_line(user: str, password: str) -> str:
    if not 0 < len(password.encode()) <= _BCRYPT_BYTES or "\n" in password:
        raise RegistryError(f"a registry's password is one line of 1 to {_BCRYPT_BYTES} bytes")
    return _output(["htpasswd", "-Bbn", user, password])


def _configuration(directory: Path, storage: Path) -> dict[str, Any]:
    """JSON is YAML too. At port 0 the kernel chooses a free one: no other program can take it
    between our choice and the registry's start."""
    return {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
        },
        "http": {
            "addr": "127.0.0.1:0",
            "secret": secrets.token_hex(32),
            "tls": {
                "certificate": str(directory / "server.crt"),
                "key": str(directory / "server.key"),
                "minimumtls": "tls1.2",
            },
        },
        "auth": {"htpasswd": {"realm": "demo", "path": str(directory / "htpasswd")}},
    }


def _write_private(path: Path, text: str) -> None:
    """A new file for this user only, whatever was there before."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        # Not the exception's own words: they would show the password.
        raise RegistryError(f"{command[0]} did not run: {type(error).__name__}") from None
    if done.returncode != 0:
        reason = done.stderr.strip()[-_TAIL:]
        raise RegistryError(f"{command[0]} ended with status {done.returncode}: {reason}")
    return done.stdout


# --- its process ---------------------------------------------------------------------------


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without REGISTRY_…, which override the configuration: its address, even its passwords."""
    return {k: v for k, v in environment.items() if not k.startswith("REGISTRY_")}


@contextmanager
def _serve(configuration: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The registry while the block runs. It ends with us even if we are killed (setpriv), but
    not by a Ctrl-C of the terminal before the block has ended (a session of its own)."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *("docker-registry", "serve", str(configuration)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(os.environ),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        try:
            process.terminate()
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path, authority: Path) -> str:
    """Wait until it asks for a password, and return its address."""
    context = ssl.create_default_context(cafile=authority)
    deadline = time.monotonic() + _START_SECONDS
    while (left := deadline - time.monotonic()) > 0 and process.poll() is None:
        listening = _LISTENING.search(log.read_text(errors="replace"))
        status = _status(listening[1], context, left) if listening else None
        if listening and status == http.client.UNAUTHORIZED:
            return listening[1]
        if status == http.client.OK:
            raise RegistryError(f"docker-registry asks nobody for a password; see {log}")
        time.sleep(0.05)
    if process.poll() is None:
        what = f"does not answer after {_START_SECONDS:g} s"
    else:
        what = f"ended with status {process.returncode}"
    tail = log.read_text(errors="replace").strip()[-_TAIL:]
    raise RegistryError(f"docker-registry {what}; the end of {log}:\n{tail}")


def _status(host: str, context: ssl.SSLContext, seconds: float) -> int | None:
    """What it answers to somebody without a password (None: not yet). Through no proxy."""
    connection = http.client.HTTPSConnection(host, timeout=min(seconds, 5.0), context=context)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
