"""Encrypted disks, made and opened by the real qemu-img and mke2fs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmrun.model.errors import DeadlineExceeded, StateError
from vmrun.volume import luks
from vmrun.volume.luks import check_disk, check_passphrase, create_disk, in_use

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "a,b c.qcow2"
    create_disk(path, 64 << 20, KEY, guessable=False)
    return path


def test_it_is_a_luks_disk_of_that_size_for_its_owner_alone(disk: Path) -> None:
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", str(disk)],
        capture_output=True,
        check=True,
        timeout=30,
    )
    info = json.loads(said.stdout)
    assert (info["format"], info["virtual-size"], info["encrypted"]) == ("qcow2", 64 << 20, True)
    assert info["format-specific"]["data"]["encrypt"]["format"] == "luks"
    assert info["format-specific"]["data"]["encrypt"]["cipher-alg"] == "aes-256"
    assert stat.S_IMODE(disk.stat().st_mode) == 0o600
    assert disk.stat().st_blocks * 512 < 16 << 20


def test_it_holds_an_ext4_with_one_directory(disk: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    source = {
        "driver": "qcow2",
        "encrypt": {"format": "luks", "key-secret": "key"},
        "file": {"driver": "file", "filename": str(disk)},
    }
    subprocess.run(
        [
            *("qemu-img", "convert", "--object", "secret,id=key,file=/dev/stdin"),
            *("-O", "raw", f"json:{json.dumps(source)}", str(plain)),
        ],
        input=KEY,
        check=True,
        timeout=60,
    )
    listing = subprocess.run(
        [shutil.which("debugfs") or "/usr/sbin/debugfs", "-R", "ls -p /", str(plain)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    names = {line.split("/")[5] for line in listing.splitlines() if line}
    assert names == {".", "..", "lost+found", "data"}
    assert all(line.split("/")[3:5] == ["0", "0"] for line in listing.splitlines() if line)


def test_nothing_of_the_file_system_is_readable_on_the_host(disk: Path) -> None:
    content = disk.read_bytes()
    assert b"lost+found" not in content
    assert KEY not in content


def test_the_passphrase_opens_it(disk: Path) -> None:
    check_disk(disk, KEY)


def test_a_wrong_passphrase_does_not(disk: Path) -> None:
    with pytest.raises(StateError, match="the passphrase does not open it"):
        check_disk(disk, b"wrong")


def test_a_damaged_file_is_an_error(disk: Path, tmp_path: Path) -> None:
    for name, data in (
        ("empty", b""),
        ("text", b"no disk" * 200),
        ("cut", disk.read_bytes()[:512]),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(StateError):
            check_disk(path, KEY)


def test_a_disk_that_somebody_writes_to_is_noticed(disk: Path) -> None:
    assert not in_use(disk)
    source = json.dumps(
        {
            "driver": "qcow2",
            "encrypt": {"format": "luks", "key-secret": "key"},
            "file": {"driver": "file", "filename": str(disk)},
        }
    )
    reader, writer = os.pipe()
    os.write(writer, KEY)
    os.close(writer)
    other = subprocess.Popen(
        [
            *("qemu-io", "--object", f"secret,id=key,file=/dev/fd/{reader}"),
            f"json:{source}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[reader],
    )
    try:
        deadline = time.monotonic() + 20
        while not in_use(disk):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StateError, match="in use by a guest"):
            check_disk(disk, KEY)
    finally:
        assert other.stdin is not None
        other.stdin.close()
        other.wait(20)
        os.close(reader)
    assert not in_use(disk)


def test_the_passphrase_is_in_no_argument_environment_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qemu-img that tells all it was given, and reads the key as the real one does."""
    told = tmp_path / "told"
    tool = tmp_path / "bin" / "qemu-img"
    tool.parent.mkdir()
    tool.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "descriptor = next(a for a in sys.argv if 'secret,id=key' in a).rpartition('file=')[2]\n"
        "key = open(descriptor, 'rb').read()\n"
        f"open({str(told)!r}, 'a').write(repr((sys.argv, dict(os.environ), len(key))) + chr(10))\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    work = tmp_path / "work"
    work.mkdir()
    create_disk(work / "disk", 16 << 20, b"correct horse battery staple")
    text = told.read_text()
    assert "battery" not in text
    assert text.count(", 28)") == 2
    assert [path.name for path in work.iterdir()] == ["disk"]


def test_a_disk_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot look at"):
        in_use(tmp_path / "none")


def test_a_clock_that_stands_still_is_tried_again_and_the_disk_stays_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qemu-img before 9.2 that fails twice for its clock, deleting what it has made."""
    tool = tmp_path / "bin" / "qemu-img"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        f"echo x >>{tmp_path}/calls\n"
        f"[ $1 = create ] || exit 0\n"
        f"rm -f {tmp_path}/disk\n"
        f"[ $(wc -l <{tmp_path}/calls) -gt 2 ] && echo disk >{tmp_path}/disk && exit 0\n"
        "echo 'qemu-img: disk: Unable to get accurate CPU usage' >&2; exit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    create_disk(tmp_path / "disk", 16 << 20, KEY)
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o600
    assert (tmp_path / "calls").read_text().count("x") == 4


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        create_disk(tmp_path / "disk", 1 << 62, KEY, guessable=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        create_disk(path, 16 << 20, KEY)
    assert path.read_text() == "mine"


def test_a_tool_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "qemu-img"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(luks, "DEADLINE", 0.3)
    before = threading.active_count()
    for _ in range(8):
        with pytest.raises(DeadlineExceeded):
            check_disk(tmp_path / "disk", KEY)
    assert threading.active_count() < before + 8


@pytest.mark.parametrize("passphrase", [b"", b"a\0b", b"\xff\xfe", b"x" * 513])
def test_what_qemu_would_not_take_is_refused_before(passphrase: bytes) -> None:
    with pytest.raises(StateError, match="is no passphrase"):
        check_passphrase(passphrase, "it")
