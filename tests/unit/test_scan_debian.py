"""Debian's security suite, by the real apt from an archive of our own: what it accepts, and what a
hostile or old mirror gets."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.advisories import BOOKWORM, package
from vmrun.model.errors import ScanError
from vmrun.model.scan import Distribution, PackageKind, Severity
from vmrun.scan import debian_lists, debian_security
from vmrun.scan.debian_security import SecuritySuite, security_suite

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("gpg")), reason="needs apt and gpg"
)
DAY = 86400.0


class Archive:
    """A package archive with one suite, ``bookworm-security``, signed with a key made for it."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path = path
        self.suite = path / "dists" / "bookworm-security"
        self._home = home

    def publish(
        self,
        packages: dict[str, str],
        *,
        age: float = 3600.0,
        valid_for: float = 7 * DAY,
        signed: bool = True,
        dated: bool = True,
    ) -> None:
        text = "\n".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x\n"
            f"Filename: pool/{name}.deb\nSize: 1\nSHA256: {'0' * 64}\nDescription: x\n"
            for name, version in packages.items()
        )
        below = self.suite / "main" / "binary-amd64"
        below.mkdir(parents=True, exist_ok=True)
        lists = {"Packages": text.encode(), "Packages.gz": gzip.compress(text.encode(), mtime=0)}
        for name, data in lists.items():
            (below / name).write_bytes(data)
        now = time.time() - age
        sums = "".join(
            f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/{name}\n"
            for name, data in lists.items()
        )
        release = (
            "Origin: Test\nLabel: Test\nSuite: oldstable-security\nCodename: bookworm-security\n"
            + (f"Date: {formatdate(now, usegmt=True)}\n" if dated else "")
            + f"Valid-Until: {formatdate(now + valid_for, usegmt=True)}\n"
            + f"Architectures: amd64\nComponents: main\nSHA256:\n{sums}"
        )
        (self.suite / "Release").write_text(release)
        inline = self.suite / "InRelease"
        inline.unlink(missing_ok=True)
        if signed:
            gpg(self._home, "--clearsign", "--output", str(inline), str(self.suite / "Release"))


def gpg(home: Path, *arguments: str) -> bytes:
    command = ["gpg", "--batch", "--homedir", str(home), "--pinentry-mode", "loopback"]
    done = subprocess.run(
        [*command, "--passphrase", "", *arguments], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    # Not below tmp_path: gpg's agent needs a short path.
    home = Path("/tmp") / f"vmrun-gpg-{os.getpid()}"
    home.mkdir(mode=0o700)
    gpg(home, "--quick-generate-key", "Archive <a@example.com>", "ed25519", "sign", "never")
    keyring = tmp_path_factory.mktemp("keys") / "archive.gpg"
    keyring.write_bytes(gpg(home, "--export"))
    yield home, keyring
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def archive(key: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    home, keyring = key
    monkeypatch.setattr(debian_lists, "_KEYRING", keyring)
    monkeypatch.setattr(debian_lists, "_MIRROR", f"file:{tmp_path / 'archive'}")
    return Archive(tmp_path / "archive", home)


def get(tmp_path: Path, *, max_age: float = DAY, again: bool = False) -> SecuritySuite:
    if again:  # as if a day had passed
        for mark in ("fetched", "tried"):
            path = tmp_path / "cache" / "apt-bookworm" / mark
            if path.exists():
                os.utime(path, (0, 0))
    return security_suite(
        BOOKWORM, tmp_path / "cache", max_age=max_age, sources=tmp_path / "etc" / "apt"
    )


def deb(version: str, name: str = "libssl3") -> object:
    return package(name, version, PackageKind.DEB, source="openssl")


def test_older_than_the_suite_is_a_finding(archive: Archive, tmp_path: Path) -> None:
    archive.publish({"libssl3": "3.0.15-1~deb12u1"})
    suite = get(tmp_path)
    assert suite.description.name == "debian-security bookworm"
    assert suite.description.dated == pytest.approx(time.time() - 3600, abs=60)
    assert suite.description.advisories == 1
    installed = [
        deb("3.0.14-1"),
        deb("3.0.15-1~deb12u1"),
        deb("3.0.15-1"),
        deb("not a version"),
        deb("1", name="openssl-provider"),
        package("libssl3", "1"),  # a wheel of that name
    ]
    found = suite.findings(installed)  # type: ignore[arg-type]
    assert [(f.package.version, f.certain) for f in found] == [
        ("3.0.14-1", True),
        ("not a version", False),
    ]
    assert found[0].id == "DEBIAN-SECURITY:openssl"
    assert found[0].fixed == "3.0.15-1~deb12u1"
    assert found[0].severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    "hostile",
    [
        {"signed": False},
        {"age": 10 * DAY, "valid_for": 7 * DAY},
        {"age": -3 * DAY},
    ],
    ids=["unsigned", "expired", "of the future"],
)
def test_an_index_that_cannot_be_trusted_is_none(
    archive: Archive, tmp_path: Path, hostile: dict[str, float]
) -> None:
    archive.publish({"libssl3": "3"}, **hostile)  # type: ignore[arg-type]
    with pytest.raises(ScanError, match="bookworm-security"):
        get(tmp_path)


def test_a_signed_index_with_other_lists_is_none(archive: Archive, tmp_path: Path) -> None:
    archive.publish({"libssl3": "3.0.15-1"})
    lists = archive.suite / "main" / "binary-amd64"
    for path in lists.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ScanError):
        get(tmp_path)


def test_another_key_is_nobody(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish({"libssl3": "3"})
    (tmp_path / "other.gpg").write_bytes(b"")
    monkeypatch.setattr(debian_lists, "_KEYRING", tmp_path / "other.gpg")
    with pytest.raises(ScanError):
        get(tmp_path)
    monkeypatch.setattr(debian_lists, "_KEYRING", tmp_path / "none.gpg")
    with pytest.raises(ScanError, match=r"none\.gpg"):
        get(tmp_path)


def test_lists_are_kept_and_say_how_old_they_are(archive: Archive, tmp_path: Path) -> None:
    archive.publish({"libssl3": "3"}, age=2 * DAY)
    first = get(tmp_path)
    archive.publish({"libssl3": "4"})
    assert get(tmp_path).versions == {"libssl3": "3"}  # not asked again yet
    assert get(tmp_path, again=True).versions == {"libssl3": "4"}
    shutil.rmtree(archive.path)
    kept = get(tmp_path, again=True)  # no network: what is there counts, and its age
    assert kept.versions == {"libssl3": "4"}
    assert first.description.dated is not None
    assert kept.description.dated is not None
    assert kept.description.dated > first.description.dated


def test_lists_that_are_a_day_old_are_fetched_again_however_old_they_may_be(
    archive: Archive, tmp_path: Path
) -> None:
    archive.publish({"libssl3": "3"})
    get(tmp_path, max_age=30 * DAY)
    archive.publish({"libssl3": "4"})
    assert get(tmp_path, max_age=30 * DAY, again=True).versions == {"libssl3": "4"}


def test_an_attack_on_the_mirror_does_not_replace_what_was_signed(
    archive: Archive, tmp_path: Path
) -> None:
    archive.publish({"libssl3": "3"})
    get(tmp_path)
    archive.publish({"libssl3": "0"}, signed=False)
    assert get(tmp_path, again=True).versions == {"libssl3": "3"}


def test_the_hosts_hooks_do_not_run(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish({"libssl3": "3"})
    mark = tmp_path / "ran"
    configuration = tmp_path / "host.conf"
    configuration.write_text(
        f'APT::Update {{ Pre-Invoke {{"touch {mark}";}}; Post-Invoke {{"touch {mark}";}}; }};'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    get(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("system", "name", "text", "expected"),
    [
        (
            "debian",
            "sources.list",
            "deb http://mirror.example.com/sec bookworm-security main\n",
            "http://mirror.example.com/sec",
        ),
        (
            "debian",
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://deb.example.com/debian\nSuites: bookworm\n\n"
            "Types: deb deb-src\nURIs: https://mirror.example.com/sec\n"
            "Suites: bookworm-security\nComponents: main\n",
            "https://mirror.example.com/sec",
        ),
        (
            "debian",
            "sources.list.d/debian.sources",
            "Enabled: no\nTypes: deb\nURIs: https://mirror.example.com/sec\n"
            "Suites: bookworm-security\n",
            None,
        ),
        # Ubuntu's suites have names of the same form, and nothing of Debian in them
        (
            "ubuntu",
            "sources.list",
            "deb http://security.example.com/ubuntu noble-security main\n",
            None,
        ),
        ("debian", "sources.list", "# deb http://x.example.com/s bookworm-security main\n", None),
        ("debian", "sources.list", "", None),
    ],
)
def test_the_hosts_own_mirror_is_used(
    tmp_path: Path, system: str, name: str, text: str, expected: str | None
) -> None:
    sources = tmp_path / "apt"
    (sources / "sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text(f"NAME=x\nID={system}\n")
    (sources / name).write_text(text)
    assert debian_lists._mirror(sources) == (expected or debian_lists._MIRROR)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (BOOKWORM, True),
        (None, False),
        (Distribution("debian", "12"), False),
        (Distribution("debian", "12", "../x"), False),
        (Distribution("ubuntu", "24.04", "noble"), False),
    ],
)
def test_what_it_answers_for(distribution: Distribution | None, expected: bool) -> None:
    assert debian_security.covers(distribution) is expected
