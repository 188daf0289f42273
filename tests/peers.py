"""cosign and skopeo as live peers: Debian's packages, unpacked into a folder.

They are not installed: this host may be Debian 12, whose C library is older than theirs, so each is
started through the loader that came with it. apt checks the packages against the archive's keys.
cosign 2 and skopeo are Debian 13's. cosign 3, which signs in bundles, is only in unstable yet.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = re.compile(r"^(?:URIs:|deb(?: \[[^\]]*\])?)[ \t]+(https?://\S+/debian)/?(?:\s|$)", re.M)
_APT = Path("/etc/apt")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_STABLE = (
    "cosign", "skopeo", "libc6", "libgpgme11t64", "libassuan9", "libgpg-error0", "libsubid5",
    "libdevmapper1.02.1", "libselinux1", "libudev1", "libpcre2-8-0", "libcap2", "libgcc-s1",
    "libsqlite3-0", "libaudit1", "libcap-ng0",
)  # fmt: skip
_UNSTABLE = ("cosign", "libc6")
_FETCH_TIMEOUT = 240
_TIMEOUT = 60
CACHE = Path(__file__).resolve().parents[1] / "build" / "peers"


@dataclass(frozen=True)
class Finished:
    """A peer that ended; ``text`` is all that it printed."""

    status: int
    out: str
    text: str


@dataclass(frozen=True)
class Peer:
    """A program of another project. It sees a home of its own, and COSIGN_PASSWORD."""

    command: tuple[str, ...]
    home: Path
    passphrase: str

    def __call__(self, *arguments: str | Path) -> Finished:
        finished = subprocess.run(
            [*self.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": os.defpath,
                "HOME": str(self.home),
                "COSIGN_PASSWORD": self.passphrase,
                "LC_ALL": "C.UTF-8",
            },
        )
        return Finished(finished.returncode, finished.stdout, finished.stdout + finished.stderr)

    def must(self, *arguments: str | Path) -> Finished:
        """Run it; it has to succeed."""
        finished = self(*arguments)
        assert finished.status == 0, finished.text
        return finished


def cosign(home: Path, passphrase: str) -> Peer:
    """Debian 13's cosign 2."""
    return Peer(_program("trixie", _STABLE, "cosign"), home, passphrase)


def skopeo(home: Path, passphrase: str) -> Peer:
    """Debian 13's skopeo 1.18."""
    return Peer(_program("trixie", _STABLE, "skopeo"), home, passphrase)


def cosign_3(home: Path, passphrase: str) -> Peer:
    """Debian unstable's cosign; skips when that is no cosign 3 any more."""
    peer = Peer(_program("sid", _UNSTABLE, "cosign"), home, passphrase)
    version = (CACHE / "sid" / "versions").read_text().partition("cosign=")[2]
    if not version.startswith("3."):
        pytest.skip(f"unstable has cosign {version.partition(' ')[0]}, not 3")
    return peer


def _program(suite: str, packages: tuple[str, ...], name: str) -> tuple[str, ...]:
    """How a program of a suite is started; its packages are fetched the first time."""
    directory = CACHE / suite
    root, complete = directory / "root", directory / "complete"
    wanted = " ".join(packages)
    with _locked(directory):
        if not complete.exists() or complete.read_text() != wanted:
            if shutil.which("apt-get") is None or not Path(_KEYRING).exists():
                pytest.skip("cosign and skopeo come as Debian packages, and this is no Debian")
            try:
                _fetch(suite, packages, directory)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
                pytest.skip(f"{name} of {suite} cannot be had: {error} {said[-300:]}")
            complete.write_text(wanted)
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    return (str(loader), "--library-path", str(libraries), str(root / "usr" / "bin" / name))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two test runs must not unpack into one folder."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mirror() -> str:
    """The archive of Debian that the host's own apt uses."""
    for path in (_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*"))):
        if path.is_file() and (found := _SOURCE.search(path.read_text(errors="replace"))):
            return found[1]
    pytest.skip("this host's apt names no archive of Debian")


def _fetch(suite: str, packages: tuple[str, ...], directory: Path) -> None:
    apt = directory / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    shutil.rmtree(directory / "root", ignore_errors=True)
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [arch=amd64 signed-by={_KEYRING}] {_mirror()} {suite} main\n")
    status = apt / "status"
    status.touch()
    options = {
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": status,
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        # Only root can hand the download to apt's own user.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _run(["apt-get", *flags, "update", "-q"], apt)
    _run(["apt-get", *flags, "download", "-q", *packages], apt / "archives")
    archives = sorted((apt / "archives").glob("*.deb"))
    versions = [_run(["dpkg-deb", "-W", "--showformat=${Package}=${Version}", a]) for a in archives]
    (directory / "versions").write_bytes(b" ".join(versions))
    for archive in archives:
        _run(["dpkg-deb", "-x", archive, directory / "root"])
    shutil.rmtree(apt)


def _run(command: Sequence[str | Path], directory: Path | None = None) -> bytes:
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        timeout=_FETCH_TIMEOUT,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout
