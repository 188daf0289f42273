"""Two tenants on one host, in real guests: containers that share a guest, and the walls between
those that do not."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.faults.inventory import of_guests
from vmrun.run.directories import StateDirectories
from vmrun.run.state import alive
from vmrun.settings import load_settings

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

Call = Callable[..., subprocess.CompletedProcess[str]]

SERVICE = "echo hello from $HOSTNAME; trap 'exit 3' TERM; while true; do sleep 1; done"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def call(vmrun_program: list[str]) -> Call:
    """A vmrun command, run to its end."""

    def run(*words: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*vmrun_program, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=REPOSITORY,
        )
        assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        return done

    return run


@pytest.fixture(scope="module")
def directories() -> StateDirectories:
    return load_settings().directories


@pytest.fixture(scope="module", autouse=True)
def tenants(call: Call, directories: StateDirectories) -> Iterator[None]:
    """``acme`` has a guest with docker, ``other`` one with crun."""
    create = ("tenant", "create", "--cpus", "2")
    at_the_same_time(
        lambda: call(*create, "acme", "--memory", "640m", "--guests", "2"),
        lambda: call(*create, "other", "--memory", "512m", "--engine", "crun"),
    )
    guests = {intent.run_id for intent in alive(directories)}
    yield
    guests |= {intent.run_id for intent in alive(directories)}
    for name in ("acme", "other"):
        call("tenant", "rm", "--force", "--volumes", name)
    left = [path for path in Path("/sys/fs/cgroup").glob("*/machine/qemu-*") if _id(path) in guests]
    assert [*of_guests(directories), *left] == []


def _id(cgroup: Path) -> str:
    """The guest that a cgroup was made for."""
    return cgroup.name.partition("-vmrun-")[2].partition(".")[0]


@pytest.fixture(scope="module")
def services(call: Call, busybox: str) -> list[str]:
    """Two services of each tenant, all started at once: their run ids."""
    found = []

    def start(tenant: str, name: str) -> None:
        done = call(
            "run", "-q", "-d", "--tenant", tenant, "--name", f"{tenant}-{name}", "-m", "32m",
            busybox, "--", "sh", "-c", SERVICE,
        )  # fmt: skip
        found.append(done.stdout.strip())

    at_the_same_time(
        *(partial(start, tenant, name) for tenant in ("acme", "other") for name in ("web", "db"))
    )
    return found


def at_the_same_time(*todo: Callable[[], object]) -> None:
    with ThreadPoolExecutor() as threads:
        for future in [threads.submit(one) for one in todo]:
            future.result()


def inspected(call: Call, tenant: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("tenant", "inspect", tenant).stdout)
    return found


# Containers that share a guest.


def test_containers_of_a_tenant_share_its_guest(call: Call, services: list[str]) -> None:
    boots = {}
    for tenant in ("acme", "other"):
        known = inspected(call, tenant)
        assert {run["name"] for run in known["runs"]} == {f"{tenant}-web", f"{tenant}-db"}
        assert known["used"]["guests"] == 1
        seen = {
            call("exec", f"{tenant}-{name}", "--", "cat", BOOT_ID).stdout for name in ("web", "db")
        }
        assert len(seen) == 1
        boots[tenant] = seen.pop()
    assert boots["acme"] != boots["other"]
    listed = json.loads(call("ps", "--json").stdout)
    assert {run["run_id"] for run in listed} == set(services)
    for tenant in ("acme", "other"):
        guests = {run["guest"] for run in listed if run["tenant"] == tenant}
        assert guests == {inspected(call, tenant)["guest"]}


def test_each_has_its_own_log_processes_and_name(call: Call, services: list[str]) -> None:
    for name in ("acme-web", "acme-db", "other-web", "other-db"):
        assert call("logs", name).stdout == f"hello from {name}\n"
        said = call("exec", name, "--", "sh", "-c", "hostname; ps").stdout
        hostname, *processes = said.splitlines()
        assert hostname == name
        assert sum("while true" in line for line in processes) == 1
    read = json.loads(call("tenant", "stats", "acme", "--json").stdout)
    assert len(read["containers"]) == 2
    assert all(one["stats"]["memory_limit"] == 32 << 20 for one in read["containers"])


@pytest.mark.parametrize("tenant", ["acme", "other"])
def test_an_attended_run_has_its_streams_and_status(
    call: Call, busybox: str, services: list[str], tenant: str
) -> None:
    done = call(
        "run", "-q", "-i", "--tenant", tenant, "-m", "32m", busybox, "--",
        "sh", "-c", "cat; echo problem >&2; exit 7",
        stdin="what it is given\n", status=7,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("what it is given\n", "problem\n")
    assert {run["run_id"] for run in json.loads(call("ps", "-a", "--json").stdout)} == set(services)
    assert len(inspected(call, tenant)["runs"]) == 2


def test_one_that_ends_leaves_the_others_alone(call: Call, services: list[str]) -> None:
    for tenant in ("acme", "other"):
        before = inspected(call, tenant)["used"]["memory"]
        call("stop", f"{tenant}-db")
        assert call("wait", f"{tenant}-db").stdout.strip().endswith("3")
        assert call("exec", f"{tenant}-web", "--", "echo", "still").stdout == "still\n"
        assert inspected(call, tenant)["used"]["memory"] < before
        assert call("logs", f"{tenant}-db").stdout == f"hello from {tenant}-db\n"


# Quotas.


def test_what_is_beyond_the_quota_makes_nothing(
    call: Call, busybox: str, services: list[str]
) -> None:
    before = call("ps", "-a", "-q").stdout
    for words, figures in (
        (("-m", "700m"), "of 640 MiB in use"),
        (("-m", "700m", "--own-guest"), "of 640 MiB in use"),
        (("--cpus", "2", "--own-guest", "--scratch", "20g"), "of 10.0 GiB in use"),
    ):
        done = call("run", "-q", "--tenant", "acme", *words, busybox, "--", "true", status=123)
        assert figures in done.stderr
    assert call("ps", "-a", "-q").stdout == before
    assert inspected(call, "acme")["used"]["containers"] == 1


# Walls.


@dataclass(frozen=True, slots=True)
class Qemu:
    pid: int
    uid: int
    guest: Path


def qemu_of(directories: StateDirectories, tenant: str) -> Qemu:
    (intent,) = [i for i in alive(directories) if i.shared and i.tenant == tenant]
    guest = directories.guests / intent.run_id
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command and os.fsencode(guest) in command:
                return Qemu(int(entry.name), entry.stat().st_uid, guest)
    raise AssertionError(f"no QEMU of {tenant}")


def what_can_be_opened(names: list[str], uid: int) -> list[str]:
    """What of ``names`` a process of ``uid`` can read, write, list or connect to; tried by one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            found = [how for name in names if (how := opened(name))]
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    answered: list[str] = json.loads(text)
    return answered


def opened(name: str) -> str:
    try:
        mode = os.lstat(name).st_mode
    except OSError:
        return ""
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX) as sock:
            return "" if sock.connect_ex(name) else f"connect {name}"
    for how, flags in (("write", os.O_WRONLY), ("read", os.O_RDONLY)):
        try:
            os.close(os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
        except OSError:
            continue
        return f"{how} {name}"
    return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain user has one uid for all guests")
def test_a_qemu_that_was_taken_over_meets_nothing_of_another_tenant(
    directories: StateDirectories, services: list[str]
) -> None:
    acme, other = qemu_of(directories, "acme"), qemu_of(directories, "other")
    assert acme.uid != other.uid
    assert 0 not in (acme.uid, other.uid)
    for mine, theirs in ((acme, other), (other, acme)):
        places = [
            theirs.guest, directories.tenants, directories.runs, directories.journal,
            directories.volumes,
        ]  # fmt: skip
        names = [str(path) for place in places for path in (place, *place.rglob("*"))]
        process = [f"/proc/{theirs.pid}/{name}" for name in ("root", "root/", "fd", "mem", "maps")]
        assert len(names) > 20
        assert what_can_be_opened([*names, *process], mine.uid) == []


def files_of(pid: int) -> dict[tuple[int, int], tuple[str, bool]]:
    """What a process has open or mapped, by device and inode: its name, and whether it can write
    to it."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        status = entry.stat()
        flags = int(
            Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split("flags:\t")[1].split()[0], 8
        )
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        found[status.st_dev, status.st_ino] = (os.readlink(entry), writable)
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        _, access, _, device, inode, *name = line.split(maxsplit=5)
        if inode != "0":
            major, minor = (int(part, 16) for part in device.split(":"))
            key = (os.makedev(major, minor), int(inode))
            found.setdefault(key, (name[0] if name else "", "w" in access and "s" in access))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain user has one uid for all guests")
def test_two_tenants_have_no_file_in_common_but_read_only_code(
    directories: StateDirectories, services: list[str]
) -> None:
    acme, other = (files_of(qemu_of(directories, name).pid) for name in ("acme", "other"))
    bases = tuple(os.path.realpath(path) for path in directories.bases)
    for key in set(acme) & set(other):
        name, writable = acme[key]
        if name.startswith(("/dev/", "anon_inode:")):
            continue
        assert not writable, name
        assert not other[key][1], name
        assert name.startswith(("/usr/", "/lib/", *bases)), name


def test_a_tenant_cannot_name_what_another_has(
    call: Call, busybox: str, services: list[str], tmp_path: Path
) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("a long and secret passphrase")
    call(
        "volume", "create", "ledger", "--tenant", "acme", "--size", "64m",
        "--passphrase-file", str(passphrase),
    )  # fmt: skip
    done = call("volume", "inspect", "ledger", "--tenant", "other", status=1)
    assert "tenant 'other' has no volume 'ledger'" in done.stderr
    done = call(
        "run", "--tenant", "other", "--own-guest", "-v", "ledger:/data", busybox, "--", "true",
        status=125,
    )  # fmt: skip
    assert "tenant 'other' has no volume 'ledger'" in done.stderr
    names = {tenant: [run["name"] for run in inspected(call, tenant)["runs"]]
             for tenant in ("acme", "other")}  # fmt: skip
    assert not set(names["acme"]) & set(names["other"])
    listed = json.loads(call("ps", "-a", "--json", "--filter", "tenant=other").stdout)
    assert all(run["name"].startswith("other-") for run in listed)
    done = call("tenant", "rm", "--force", "acme", status=1)
    assert "tenant 'acme' has volumes: ledger" in done.stderr


def test_what_one_tenants_images_brought_is_not_anothers(
    call: Call, directories: StateDirectories, services: list[str]
) -> None:
    for tenant, foreign in (("acme", "other"), ("other", "acme")):
        own = directories.for_tenant(tenant)
        assert own.images.is_dir()
        assert own.images != directories.for_tenant(foreign).images
        assert own.images.is_relative_to(directories.tenants / tenant)
    inodes = [
        {(s.st_dev, s.st_ino) for path in (directories.tenants / tenant).rglob("*")
         if stat.S_ISREG((s := path.stat()).st_mode)}
        for tenant in ("acme", "other")
    ]  # fmt: skip
    assert inodes[0]
    assert not inodes[0] & inodes[1]


def test_a_tenant_that_was_never_created_has_nothing(call: Call, busybox: str) -> None:
    done = call("run", "--tenant", "nobody", busybox, "--", "true", status=125)
    assert "there is no tenant 'nobody'" in done.stderr
    assert "vmrun tenant create nobody" in done.stderr


# Ends.


def test_a_guest_that_was_lost_is_started_again(
    call: Call, directories: StateDirectories, busybox: str, services: list[str]
) -> None:
    (intent,) = [i for i in alive(directories) if i.shared and i.tenant == "other"]
    os.kill(intent.owner, 9)
    call("tenant", "start", "other")
    (again,) = [i for i in alive(directories) if i.shared and i.tenant == "other"]
    assert again.run_id != intent.run_id
    listed = json.loads(call("ps", "-a", "--json", "--filter", "name=other-web").stdout)
    assert [run["state"] for run in listed] == ["dead"]
    done = call("run", "-q", "--tenant", "other", "-m", "32m", busybox, "--", "echo", "again")
    assert done.stdout == "again\n"


def test_a_stopped_guest_is_gone_and_says_so(call: Call, busybox: str, services: list[str]) -> None:
    receipt = json.loads(call("tenant", "stop", "acme", "--json").stdout)
    kinds = {item["kind"] for item in receipt["removed"]}
    assert {"container", "domain", "directory"} <= kinds
    assert all(item["gone"] for item in receipt["removed"])
    done = call("run", "--tenant", "acme", busybox, "--", "true", status=125)
    assert "vmrun tenant start acme" in done.stderr
    assert call("logs", "acme-web").stdout == "hello from acme-web\n"
    events = [
        entry["event"]
        for entry in json.loads(call("audit", "show", "--json", "--tenant", "acme").stdout)
    ]
    for event in ("tenant.create", "tenant.start", "guest.start", "tenant.stop", "guest.end"):
        assert event in events
