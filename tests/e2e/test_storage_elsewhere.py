"""Encrypted data where libvirt is a daemon, and for a user who is not root."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result, leftovers
from tests.e2e.test_libvirtd import URI, libvirtd
from tests.e2e.test_plain_user import PlainUser, user
from tests.volumes import quick_volume
from vmrun.settings import load_settings

__all__ = ["libvirtd", "user"]

pytestmark = [pytest.mark.guest, pytest.mark.timeout(420)]

Vmrun = Callable[..., Result]

PASSPHRASE = "correct horse battery staple"
SCRIPT = "cat /data/kept 2>/dev/null; echo something >/data/kept; echo x >/scratch/x && echo wrote"


def test_through_a_daemon(vmrun: Vmrun, busybox: str, libvirtd: str, tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE)
    passphrase.chmod(0o600)
    quick_volume("far", passphrase)
    for said in ("wrote\n", "something\nwrote\n"):
        done = vmrun(
            "run", "--connect", libvirtd, "-v", "far:/data", "--scratch", "16m", busybox, "--",
            "sh", "-c", SCRIPT,
        )  # fmt: skip
        assert (done.status, done.out) == (0, said), done.err
        assert done.assertion("qemu", "encrypted disks")["ok"]
    secrets = subprocess.run(
        ["virsh", "-c", URI, "secret-list"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "".join(secrets.stdout.splitlines()[2:]) == "", "the daemon still has a key"
    disk = load_settings().directories.volumes / "default" / "far" / "disk.qcow2"
    assert (disk.stat().st_uid, disk.stat().st_nlink) == (0, 1)
    assert vmrun("volume", "rm", "far").status == 0
    assert leftovers() == []


def test_for_a_plain_user(user: PlainUser) -> None:
    done = user.vmrun(
        "volume", "create", "mine", "--size", "16m",
        "--passphrase-command", f"sh -c 'echo {PASSPHRASE}'",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("wrote\n", "something\nwrote\n"):
        done = user.vmrun(
            "run", "-v", "mine:/data", "--scratch", "16m", "--secret", "id=home,env=HOME",
            f"oci:{user.home}/image", "--", "sh", "-c", SCRIPT,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, said), done.stderr
    listed = json.loads(user.vmrun("volume", "ls", "--json").stdout)
    assert [(item["name"], item["in_use_by"]) for item in listed] == [("mine", "")]
    assert user.vmrun("volume", "rm", "mine").returncode == 0
    guests = user.home / ".local/state/vmrun/guests"
    assert [path.name for path in guests.iterdir() if path.name != ".lock"] == []
