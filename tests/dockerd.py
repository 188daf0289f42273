"""A Docker daemon for tests: private sockets and data, no network, gone afterwards.

Import the fixture into a conftest: ``from tests.dockerd import dockerd``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_SECONDS = 60
_STOP_SECONDS = 20


@pytest.fixture(scope="session")
def dockerd() -> Iterator[str]:
    """The daemon's address, as DOCKER_HOST takes it. Skips where none can be started."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and dockerd")
    # Not below pytest's tmp_path: a Unix socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(
                _command(root), stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait(process, root)
            yield f"unix://{root}/docker.sock"
        finally:
            _stop(process)


def _command(root: Path) -> list[str]:
    return [
        "dockerd",
        f"--host=unix://{root}/docker.sock",
        f"--data-root={root}/data",
        f"--exec-root={root}/exec",
        f"--pidfile={root}/pid",
        # vfs needs no file system of a kind, and without a bridge no firewall is touched.
        "--storage-driver=vfs",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
    ]


def _wait(process: subprocess.Popen[bytes], root: Path) -> None:
    import docker
    from docker.errors import DockerException

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with docker.APIClient(base_url=f"unix://{root}/docker.sock") as client:
                client.ping()
            return
        except DockerException:
            time.sleep(0.2)
    pytest.skip(f"dockerd does not start here: {(root / 'log').read_text()[-800:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
