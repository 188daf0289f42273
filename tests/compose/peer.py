"""docker compose itself, to compare with: Debian 13's package, unpacked like the other peers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import peers

_PACKAGES = ("docker-compose", "libc6")
_TIMEOUT = 30


class DockerCompose:
    """docker compose 2.26, of which only ``config`` is used, which needs no docker."""

    def __init__(self) -> None:
        folder = peers.CACHE / "compose"
        complete, wanted = folder / "complete", " ".join(_PACKAGES)
        with peers._locked(folder):
            if not complete.exists() or complete.read_text() != wanted:
                if shutil.which("apt-get") is None:
                    pytest.skip("docker compose comes as a Debian package, and this is no Debian")
                try:
                    peers._fetch("trixie", _PACKAGES, folder)
                except (OSError, subprocess.SubprocessError) as error:
                    pytest.skip(f"docker compose cannot be had: {error}")
                complete.write_text(wanted)
        libraries = folder / "root/usr/lib/x86_64-linux-gnu"
        self._command = (
            *(str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
            str(folder / "root/usr/libexec/docker/cli-plugins/docker-compose"),
        )

    def config(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        """What it read, None if it refused the file, and what it said."""
        finished = subprocess.run(
            [*self._command, "-f", str(path), "config", "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
        )
        return (json.loads(finished.stdout) if finished.returncode == 0 else None), finished.stderr
