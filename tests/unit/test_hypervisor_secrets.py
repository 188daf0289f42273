"""Where the keys of a guest's disks are kept on the host, and that they go with the guest."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmrun.hypervisor import secrets
from vmrun.hypervisor.remains import memory_of, remains, remove_remains
from vmrun.hypervisor.secrets import keep_root_in_memory
from vmrun.model.errors import HypervisorError

UUID = "00000000-0000-4000-8000-000000000000"
KEY = b"correct horse battery staple"

# A process of its own, as one can open one embedded root: defines a key, says what lies where while
# the guest would be created and afterwards.
PROGRAM = """
import sys
from pathlib import Path
from vmrun.hypervisor.connection import open_root
from vmrun.hypervisor.secrets import keep_root_in_memory, unlocked
root = Path(sys.argv[1])
keep_root_in_memory(root, sys.argv[2])
connection = open_root(root)
with unlocked("embedded", root, {sys.argv[3]: sys.stdin.buffer.read()}):
    print(*sorted(path.resolve() for path in root.rglob("etc/secrets/*")), flush=True)
    print(*sorted(path.resolve() for path in root.glob("*")), flush=True)
print(*root.rglob("etc/secrets/*"), "forgotten")
"""


@pytest.fixture
def domain() -> Iterator[str]:
    name = f"vmrun-{os.urandom(6).hex()}"
    yield name
    remove_remains(domain=name, uuid=UUID)
    assert not memory_of(name).exists()


def test_what_libvirt_writes_of_a_key_is_in_memory_and_only_while_it_is_needed(
    tmp_path: Path, domain: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "r"), domain, UUID],
        input=KEY,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    meanwhile, places, after = done.stdout.decode().splitlines()
    memory = str(memory_of(domain))
    assert len(meanwhile.split()) == 2
    assert all(path.startswith(f"{memory}/secrets/") for path in meanwhile.split())
    assert f"{memory}/lib" in places.split()
    assert f"{memory}/log" in places.split()
    assert after.strip() == "forgotten"
    for directory in (tmp_path, memory_of(domain)):
        for path in directory.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert KEY not in content
                assert base64.b64encode(KEY) not in content


def test_it_is_removed_with_the_guest(tmp_path: Path, domain: str) -> None:
    keep_root_in_memory(tmp_path, domain)
    assert remains(domain=domain, uuid=UUID) == (f"keys {memory_of(domain)}",)
    (removed,) = remove_remains(domain=domain, uuid=UUID)
    assert (removed.kind, removed.gone) == ("keys", True)
    assert remains(domain=domain, uuid=UUID) == ()


def test_what_somebody_made_there_before_is_not_used(tmp_path: Path, domain: str) -> None:
    memory_of(domain).mkdir()
    with pytest.raises(HypervisorError, match="File exists"):
        keep_root_in_memory(tmp_path, domain)


def test_a_link_that_somebody_made_there_is_neither_used_nor_followed(
    tmp_path: Path, domain: str
) -> None:
    (tmp_path / "mine").mkdir()
    memory_of(domain).symlink_to(tmp_path / "mine")
    with pytest.raises(HypervisorError):
        keep_root_in_memory(tmp_path / "r", domain)
    assert remove_remains(domain=domain, uuid=UUID) == ()
    assert (tmp_path / "mine").exists()
    memory_of(domain).unlink()


def test_a_disk_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "memory_of", lambda name: tmp_path / name)
    with pytest.raises(HypervisorError, match="is no tmpfs"):
        keep_root_in_memory(tmp_path / "r", "vmrun-0123456789ab")
    assert list(tmp_path.iterdir()) == []
