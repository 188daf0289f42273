"""Named volumes and secrets of containers that share their tenant's guest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Result, leftovers
from tests.volumes import quick_volume
from vmrun.run.intent import Intent
from vmrun.run.state import alive
from vmrun.settings import load_settings

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

Call = Callable[..., Result]

TENANT = "wards"
PASSPHRASE = "correct horse battery staple"
TOKEN = "t0ken-of-a-variable-4711"
COMPOSE = """\
x-vmrun: {tenant: wards}
services:
  db:
    image: IMAGE
    volumes: ["data:/data"]
volumes:
  data:
"""


@pytest.fixture
def call(vmrun_program: list[str]) -> Call:
    """A vmrun command, run to its end."""

    def run(*words: str, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [*vmrun_program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=REPOSITORY,
        )
        return Result(done.returncode, done.stdout, done.stderr, {})

    return run


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE)
    path.chmod(0o600)
    return path


@pytest.fixture
def tenant(call: Call, passphrase: Path) -> Iterator[str]:
    """With two volumes, and a guest that was started with them."""
    for name in (TENANT, "others"):
        made = call("tenant", "create", name, "--engine", "crun", "--memory", "192m", "--no-start")
        assert made.status == 0, made.err
    for name in ("db", "free"):
        quick_volume(name, passphrase, tenant=TENANT)
    started = call("tenant", "start", TENANT)
    assert started.status == 0, started.err
    yield TENANT
    for name in (TENANT, "others"):
        assert call("tenant", "rm", "--force", "--volumes", name).status == 0
    assert leftovers() == []


def guest() -> Intent:
    (found,) = [i for i in alive(load_settings().directories) if i.shared]
    return found


def below(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_containers_share_what_their_tenant_has(
    call: Call, tenant: str, busybox: str, passphrase: Path, tmp_path: Path
) -> None:
    def run(volume: str, script: str, *options: str, env: dict[str, str] | None = None) -> Result:
        return call(
            "run", "-q", "--tenant", tenant, "-m", "32m", "-v", volume, *options, busybox, "--",
            "sh", "-c", script,
            env=env,
        )  # fmt: skip

    # Two at once; read-only is so for one of them.
    script = "echo one >/data/file; cp /bin/busybox /data/sh; while :; do sleep 1; done"
    writer = run("db:/data", script, "-d", "--name", "w")
    assert writer.status == 0, writer.err
    done = run(
        "db:/data:ro",
        "cat /data/file; touch /data/x 2>/dev/null || echo ro; cat /run/secrets/token; "
        "env | grep -c TOKEN; grep ' /data ' /proc/self/mountinfo",
        "--secret", "id=token,env=MY_TOKEN",
        env={"MY_TOKEN": TOKEN},
    )  # fmt: skip
    first, second, third, mount = done.out.splitlines()
    assert (first, second, third) == ("one", "ro", f"{TOKEN}0"), done.err
    assert "ro,nosuid,nodev,noexec" in mount
    assert "lost+found" not in call("exec", "w", "--", "ls", "/data").out

    # Each belongs to the first that could write to it, whoever comes later.
    done = run("db:/data", "stat -c %u /data; echo x 2>/dev/null >/data/y || echo no", "-u", "4711")
    assert done.out == "65532\nno\n", done.err
    # Programs on it are executed where that was asked for, and only there.
    for options, said in (("ro,exec", "ran\n"), ("rw", "no\n")):
        done = run(f"db:/data:{options}", "/data/sh -c 'echo ran' 2>/dev/null || echo no")
        assert done.out == said, done.err
    done = run("free:/data", "echo x >/data/y && stat -c %u /data", "-u", "4711")
    assert done.out == "4711\n", done.err

    # The token has been on no disk and in no environment but the command's own.
    state = load_settings().directories.guests.parent
    supervisor = Path(f"/proc/{guest().owner}")
    for place in (below(state), (supervisor / "environ").read_bytes()):
        assert TOKEN.encode() not in place
        assert PASSPHRASE.encode() not in place
    (cores,) = [
        line for line in (supervisor / "limits").read_text().splitlines() if "core file" in line
    ]
    assert cores.split()[4] == "0"

    # Who else may have them: nobody.
    listed = json.loads(call("volume", "ls", "--tenant", tenant, "--json").out)
    assert {item["in_use_by"] for item in listed} == {guest().run_id}
    done = run("db:/data", "true", "--own-guest")
    assert (done.status, "'db' is in use by" in done.err) == (125, True)
    done = call("plan", "--tenant", "others", "-v", "db:/data", busybox, "--", "true")
    assert "tenant 'others' has no volume 'db'" in done.err

    # What its guest has not.
    restart = f"vmrun tenant stop {tenant}; vmrun tenant start {tenant}"
    quick_volume("late", passphrase, tenant=tenant)
    done = run("late:/data", "true")
    assert (done.status, done.err.count("'late' was made after the guest")) == (125, 1)
    assert restart in done.err
    done = run("db:/data", "true", "--scratch", "16m")
    assert (done.status, "add --own-guest" in done.err) == (125, True)
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "compose.yaml").write_text(COMPOSE.replace("IMAGE", busybox))
    done = call("compose", "up", "-d", "-f", str(shop / "compose.yaml"))
    assert (done.status, "'wards' has no volume 'shop_data'" in done.err) == (1, True), done.err
    assert f"vmrun volume create shop_data --tenant {tenant} --size" in done.err
    assert restart in done.err

    # It outlives the guest.
    receipt = json.loads(call("tenant", "stop", tenant, "--json").out)
    locks = {item["name"] for item in receipt["removed"] if item["kind"] == "volume lock"}
    assert locks == {"db", "free"}
    assert all(item["gone"] for item in receipt["removed"])
    for name in ("db", "free"):
        disk = load_settings().directories.volumes / tenant / name / "disk.qcow2"
        assert (disk.stat().st_nlink, disk.stat().st_uid) == (1, os.geteuid())
    assert call("tenant", "start", tenant).status == 0
    done = run(
        "db:/data", "cat /data/file; ls -A /late; echo two >/data/file; sync", "-v", "late:/late"
    )
    assert done.out == "one\n", done.err

    # A guest that was killed gives them back; a wrong passphrase keeps the next from starting.
    os.kill(guest().owner, signal.SIGKILL)
    passphrase.write_text("wrong")
    done = call("tenant", "start", tenant)
    assert done.status == 1
    assert "volume 'db': the passphrase does not open it" in done.err
    listed = json.loads(call("volume", "ls", "--tenant", tenant, "--json").out)
    assert {item["in_use_by"] for item in listed} == {""}
    assert leftovers() == []
