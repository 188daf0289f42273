"""Data of real workloads: what they see of it, what the host sees of it, and who else does not."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Result, leftovers
from tests.volumes import quick_volume
from vmrun.model.tenant import Quota, Tenant
from vmrun.model.workload import EngineName
from vmrun.settings import load_settings
from vmrun.tenant.store import TenantStore

pytestmark = [pytest.mark.guest, pytest.mark.timeout(420)]

Vmrun = Callable[..., Result]

ENGINES = ["crun", "docker"]
PASSPHRASE = "correct horse battery staple"
PATTERN = "PATTERN-of-the-workload-4711"
TOKEN = "t0ken-that-nobody-else-sees-0815"


@pytest.fixture(scope="module")
def passphrase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("passphrase") / "file"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def volume(passphrase: Path) -> Iterator[str]:
    """One for all tests."""
    name = "mine"
    store = quick_volume(name, passphrase)
    yield name
    store.remove(name)
    assert not volume_directory(name).exists()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(Path("/dev/shm").iterdir())
    yield
    assert leftovers() == []
    assert {path.name for path in set(Path("/dev/shm").iterdir()) - before} & own_names() == set()


def own_names() -> set[str]:
    guests = load_settings().directories.guests
    return {f"vmrun-{path.name}" for path in guests.iterdir()} if guests.is_dir() else set()


def volume_directory(name: str, tenant: str = "default") -> Path:
    return load_settings().directories.volumes / tenant / name


def below(directory: Path) -> bytes:
    """Every byte of every file below a directory."""
    found = b""
    for path in directory.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError):
                found += path.read_bytes()
    return found


@dataclass(slots=True)
class Background:
    """A run that goes on until it is told to end; :attr:`said` is its output so far."""

    process: subprocess.Popen[bytes]
    said: bytes = b""

    def wait_for(self, text: bytes, timeout: float = 200) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, (self.said, self.errors())
                self.said += data

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture
def background(vmrun_program: list[str]) -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*arguments: str) -> Background:
        process = subprocess.Popen(
            [*vmrun_program, "run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        started.append(Background(process))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.end()
        for stream in (run.process.stdout, run.process.stderr):
            assert stream is not None
            stream.close()


# --- volumes ----------------------------------------------------------------------------------


def test_a_volume_outlives_its_guests_and_is_ciphertext(
    vmrun: Vmrun, busybox: str, volume: str
) -> None:
    script = (
        f"echo {PATTERN} >/data/kept; mkdir -p /data/d/e; ls -lnd /data; ls -A /data; "
        "cp /bin/busybox /data/sh; /data/sh -c 'echo executed' 2>/dev/null || echo refused"
    )
    done = vmrun("run", "-v", f"{volume}:/data", busybox, "--", "sh", "-c", script)
    assert done.status == 0, done.err
    owner, *said = done.out.splitlines()
    assert owner.split()[2:4] == ["65532", "65532"]
    assert said == ["d", "kept", "refused"]
    bind = done.assertion("container", "bind /data")
    assert bind["ok"]
    assert bind["expected"] == "nodev,noexec,nosuid,rw"
    assert done.assertion("qemu", "encrypted disks")["ok"]

    content = below(volume_directory(volume))
    assert len(content) > 1 << 20
    for secret in (PATTERN, PASSPHRASE, "kept"):
        assert secret.encode() not in content

    # Read-only down to QEMU, in a second guest; executable since that was asked for.
    script = (
        "cat /data/kept; echo x 2>/dev/null >/data/kept || echo refused; "
        "/data/sh -c 'echo executed'"
    )
    done = vmrun("run", "-v", f"{volume}:/data:ro,exec", busybox, "--", "sh", "-c", script)
    assert (done.status, done.out) == (0, f"{PATTERN}\nrefused\nexecuted\n"), done.err
    assert done.assertion("container", "bind /data")["expected"] == "nodev,nosuid,ro"
    assert done.assertion("qemu", "encrypted disks")["actual"].endswith(".qcow2 ro luks")


def test_a_wrong_passphrase_makes_no_guest(
    vmrun: Vmrun, busybox: str, volume: str, passphrase: Path
) -> None:
    passphrase.write_text("wrong\n")
    done = vmrun("run", "-v", f"{volume}:/data", busybox, "--", "true")
    assert done.status == 125
    assert f"vmrun: volume {volume!r}: the passphrase does not open it" in done.err
    phases = [phase["name"] for phase in done.report["phases"]]
    assert phases[-2:] == ["provision", "teardown"]
    passphrase.write_text(PASSPHRASE)


def test_it_has_one_user_and_one_tenant(
    vmrun: Vmrun, busybox: str, volume: str, background: Callable[..., Background]
) -> None:
    holder = background(
        "--name", "holder", "-v", f"{volume}:/data", busybox, "--",
        "sh", "-c", f"echo {PATTERN} >/data/late; echo ready; sleep 300",
    )  # fmt: skip
    holder.wait_for(b"ready")
    listed = json.loads(vmrun("volume", "ls", "--json").out)
    (run_id,) = [item["in_use_by"] for item in listed if item["name"] == volume]

    done = vmrun("run", "-v", f"{volume}:/data", busybox, "--", "true")
    assert done.status == 125
    assert f"volume {volume!r} is in use by {run_id}" in done.err
    assert vmrun("volume", "rm", volume).status == 1

    quota = Quota(cpus=1, memory=1 << 30, disk=1 << 30, guests=1)
    bob = Tenant("bob", time.time(), EngineName.CRUN, quota)
    TenantStore(load_settings().directories.tenants).create(bob)
    done = vmrun("plan", "--tenant", "bob", "-v", f"{volume}:/data", busybox, "--", "true")
    assert done.status == 1
    assert f"tenant 'bob' has no volume {volume!r}" in done.err
    assert volume not in vmrun("volume", "ls", "--tenant", "bob").out

    # One that is interrupted writes its volume out all the same: a read-only mount would refuse a
    # journal that has to be played back.
    assert holder.end() == 130
    done = vmrun("run", "-v", f"{volume}:/data:ro", busybox, "--", "cat", "/data/late")
    assert (done.status, done.out) == (0, f"{PATTERN}\n"), done.err


def test_a_killed_run_gives_its_volume_back(
    vmrun: Vmrun, busybox: str, volume: str, background: Callable[..., Background]
) -> None:
    killed = background(
        "-v", f"{volume}:/data", "--scratch", "16m", busybox, "--",
        "sh", "-c", f"echo {PATTERN} >/data/kept; sync; echo ready; sleep 300",
    )  # fmt: skip
    killed.wait_for(b"ready")
    killed.end(signal.SIGKILL)
    done = vmrun("volume", "rm", volume)
    assert done.status == 1
    assert "in use by a guest whose command has ended" in done.err
    done = vmrun("run", "-v", f"{volume}:/data:ro", busybox, "--", "true")
    assert done.status == 125
    assert "use the volume once read-write" in done.err
    done = vmrun("run", "-v", f"{volume}:/data", busybox, "--", "cat", "/data/kept")
    assert (done.status, done.out) == (0, f"{PATTERN}\n"), done.err
    disk = volume_directory(volume) / "disk.qcow2"
    assert (disk.stat().st_nlink, disk.stat().st_uid) == (1, os.geteuid())


# --- host directories -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_host_directory_is_copied_in_and_back(
    vmrun: Vmrun, busybox: str, volume: str, tmp_path: Path, engine: str
) -> None:
    source, results = tmp_path / "source", tmp_path / "results"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "private").write_text("for the workload")
    (source / "sub" / "private").chmod(0o600)
    (source / "link").symlink_to("sub/private")
    results.mkdir()
    (results / "old").write_text("old")
    (results / "removed").write_text("stays here")
    (results / "led").symlink_to("../outside")
    (tmp_path / "outside").write_text("outside")
    single = tmp_path / "single.conf"
    single.write_text("one file")
    script = (
        "cat /in/link /etc/app/single.conf; echo; echo x 2>/dev/null >/in/sub/private || echo ro; "
        "echo new >/out/old; mkdir /out/made; echo deep >/out/made/file; "
        "ln -s ../old /out/made/up; rm /out/removed /out/led; mkdir /out/led; echo x >/out/led/y; "
        "ls -ln /out/old; cat /run/secrets/token; env | grep -c TOKEN; "
        "touch /data/x 2>/dev/null || echo ro"
    )
    done = vmrun(
        "run", "--engine", engine, "-v", f"{source}:/in", "-v", f"{results}:/out:rw",
        "-v", f"{single}:/etc/app/single.conf", "--secret", "id=token,env=MY_TOKEN",
        "-v", f"{volume}:/data:ro",
        busybox, "--", "sh", "-c", script,
        env={"MY_TOKEN": TOKEN},
    )  # fmt: skip
    assert done.status == 0, done.err
    first, second, listing, secret, third = done.out.splitlines()
    assert (secret, third) == (f"{TOKEN}0", "ro")
    assert done.assertion("container", "bind /data")["expected"] == "nodev,noexec,nosuid,ro"
    assert TOKEN not in json.dumps(done.report)
    assert (first, second) == ("for the workloadone file", "ro")
    assert listing.split()[2:4] == ["65532", "65532"]
    assert (results / "old").read_text() == "new\n"
    assert (results / "made" / "file").read_text() == "deep\n"
    assert os.readlink(results / "made" / "up") == "../old"
    assert (results / "removed").read_text() == "stays here"
    # A link of the host's is replaced, never followed.
    assert (results / "led" / "y").read_text() == "x\n"
    assert (tmp_path / "outside").read_text() == "outside"
    assert {path.lstat().st_uid for path in results.rglob("*")} == {os.geteuid()}
    assert (source / "sub" / "private").read_text() == "for the workload"
    assert done.assertion("container", "bind /in")["expected"] == "nodev,noexec,nosuid,ro"


def test_a_workload_cannot_lead_the_host_astray(vmrun: Vmrun, busybox: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "outside").write_text("outside")
    done = vmrun(
        "run", "-v", f"{results}:/out:rw", busybox, "--",
        "sh", "-c", "ln -s ../../outside /out/x; ln -s /etc/passwd /out/y; true",
    )  # fmt: skip
    assert done.status == 125
    assert "is not copied back: it links to" in done.err
    assert list(results.iterdir()) == []
    assert (tmp_path / "outside").read_text() == "outside"


def test_a_directory_that_is_not_there_makes_no_guest(
    vmrun: Vmrun, busybox: str, tmp_path: Path
) -> None:
    done = vmrun("run", "-v", f"{tmp_path}/none:/in", busybox, "--", "true")
    assert done.status == 125
    assert "No such file or directory" in done.err


# --- secrets and scratch ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_secrets_and_keys_are_nowhere_else(
    vmrun: Vmrun,
    busybox: str,
    volume: str,
    token: Path,
    background: Callable[..., Background],
    tmp_path: Path,
    engine: str,
) -> None:
    report = tmp_path / "background.json"
    script = (
        "cd /run/secrets; stat -c '%a %u %n' . token; test \"$(cat token)\" = "
        f'"$(printf {TOKEN[:10]}; printf {TOKEN[10:]})" && echo same; '
        "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | grep -c token; "
        "touch x 2>/dev/null || echo ro; grep ' /run/secrets ' /proc/self/mountinfo; "
        f"cat token token >/scratch/copy; echo {PATTERN} >/scratch/pattern; cp token /data; sync; "
        "echo ready; sleep 300"
    )
    run = background(
        "--engine", engine, "--report", str(report), "--secret", f"token={token}",
        "--scratch", "64m", "-v", f"{volume}:/data", busybox, "--", "sh", "-c", script,
    )  # fmt: skip
    run.wait_for(b"ready")
    lines = run.said.decode().splitlines()
    assert lines[:2] == ["500 65532 .", "400 65532 token"]
    assert lines[2] == "same"
    assert lines[4] == "ro"
    assert "ro,nosuid,nodev,noexec" in lines[5]
    assert "noswap" in lines[5]

    key = PASSPHRASE.encode()
    hidden = [TOKEN.encode(), PATTERN.encode(), key, base64.b64encode(key)]
    state = load_settings().directories.guests.parent
    (guest,) = [path for path in (state / "guests").iterdir() if not path.name.startswith(".")]
    (scratch,) = guest.glob("scratch.qcow2")
    assert scratch.stat().st_blocks * 512 > 1 << 20
    places = [below(state), below(Path(f"/dev/shm/vmrun-{guest.name}"))]
    places += [below_process(name) for name in ("cmdline", "environ")]
    for place in places:
        for secret in hidden:
            assert secret not in place
    # The key of the scratch disk is in no file either: none is left that could hold it.
    assert not (guest / "r" / "etc" / "secrets").exists()

    assert run.end() == 130
    assert not guest.exists()
    assert not Path(f"/dev/shm/vmrun-{guest.name}").exists()
    text = report.read_text() + vmrun("audit", "show", "--json").out
    assert TOKEN not in text
    receipt: list[dict[str, Any]] = json.loads(report.read_text())["receipt"]["removed"]
    kinds = {item["kind"] for item in receipt if item["gone"]}
    assert {"mounts", "scratch disk", "volume lock", "keys", "directory"} <= kinds
    assert all(item["gone"] for item in receipt)


def below_process(name: str) -> bytes:
    """A file of every process of this host but those of this test and of its shell."""
    found = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                data = (entry / name).read_bytes()
                # The script that is run names the token in two pieces, and the pattern.
                found += data.replace(f"echo {PATTERN}".encode(), b"")
    return found


def test_a_secret_that_is_not_set_makes_no_guest(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--secret", "id=token,env=MY_TOKEN", busybox, "--", "true")
    assert done.status == 125
    assert "the environment has no MY_TOKEN" in done.err


def test_the_plan_names_places_not_contents(
    vmrun: Vmrun, busybox: str, volume: str, token: Path, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    words = [
        "plan", "--secret", f"token={token}", "--scratch", "64m", "-v", f"{volume}:/data",
        "-v", f"{tmp_path}/source:/in", busybox,
    ]  # fmt: skip
    done = vmrun(*words)
    assert done.status == 0, done.err
    assert "/data rw, /in ro, /run/secrets ro, /scratch rw" in done.out
    done = vmrun(*words[:1], "--json", *words[1:])
    plan = json.loads(done.out)
    assert [disk["read_only"] for disk in plan["guest"]["disks"]] == [False, False]
    assert TOKEN not in done.out
    assert PASSPHRASE not in done.out
