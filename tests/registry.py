"""Real registries for tests: Debian's docker-registry on the loopback interface, one per session.

Import the fixtures into a conftest: ``from tests.registry import plain_registry, registry``.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.workloads.registry import RegistryError, company_registry
from vmrun.image.registry.options import RegistryOptions

USER = "demo"
PASSWORD = "correct horse"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LISTENING = re.compile(r'msg="listening on (127\.0\.0\.1:[0-9]+)"')
_DONE = re.compile(
    r'msg="response completed[^"]*".*? http\.request\.method=(\S+)'
    r'.*? http\.request\.uri="?([^"\s]+)"?.*? http\.response\.status=(\d+)'
)


@dataclass(frozen=True, slots=True)
class RealRegistry:
    """A running docker-registry and how a client reaches it."""

    host: str
    options: RegistryOptions
    log: Path
    storage: Path

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, URI and status of every request that was answered so far."""
        found = _DONE.findall(self.log.read_text())
        return [(method, uri, int(status)) for method, uri, status in found]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """With TLS under a CA of its own, and a password (htpasswd, bcrypt)."""
    try:
        with company_registry(
            tmp_path_factory.mktemp("registry"), user=USER, password=PASSWORD
        ) as running:
            options = RegistryOptions(cert_dirs=(running.cert_dir,), auth_file=running.auth_file)
            yield RealRegistry(running.host, options, running.log, running.storage)
    except RegistryError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """Without TLS and password: for loopback only."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    root = tmp_path_factory.mktemp("plain-registry")
    nobody = root / "config.json"
    nobody.write_text("{}")
    with _serve(root) as host:
        options = RegistryOptions(plain_http=True, auth_file=nobody)
        yield RealRegistry(host, options, root / "log", root / "storage")


@contextmanager
def _serve(root: Path) -> Iterator[str]:
    configuration = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text"},
        "storage": {"filesystem": {"rootdirectory": str(root / "storage")}},
        "http": {"addr": "127.0.0.1:0", "secret": secrets.token_hex(32)},
    }
    (root / "registry.json").write_text(json.dumps(configuration))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "registry.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield _wait(process, root / "log")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (match := _LISTENING.search(log.read_text())) is not None:
            return match[1]
        time.sleep(0.05)
    pytest.skip(f"docker-registry does not start here: {log.read_text()[-800:]}")
