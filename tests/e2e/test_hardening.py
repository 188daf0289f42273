"""An image that says root and attacks from inside, in a real guest: each attempt is contained."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.conftest import Result, leftovers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

Vmrun = Callable[..., Result]

# What refuses each attempt: seccomp (EPERM, or ENOSYS where libc is to fall back), missing
# capabilities, the read-only root, the masked path, noexec.
REFUSED = {
    "create-in-root": {"refused EROFS"},
    "write-core-pattern": {"refused EROFS", "refused EACCES"},
    "write-sysrq": {"refused EROFS", "refused EACCES", "refused ENOENT"},
    "make-device": {"refused EPERM"},
    "mount": {"refused EPERM"},
    "remount-root": {"refused EPERM"},
    "unmount": {"refused EPERM"},
    "user-namespace": {"refused EPERM"},
    "mount-namespace": {"refused EPERM"},
    "clone-namespace": {"refused EPERM"},
    "raw-socket": {"refused EPERM"},
    "packet-socket": {"refused EPERM"},
    "vsock": {"refused EPERM"},
    "af-alg": {"refused EPERM"},
    "setuid-0": {"refused EPERM"},
    "ptrace": {"refused EPERM"},
    "bpf": {"refused EPERM"},
    "io-uring": {"refused EPERM", "refused ENOSYS"},
    "keyctl": {"refused EPERM"},
    "perf": {"refused EPERM"},
    "userfaultfd": {"refused EPERM"},
    "init-module": {"refused EPERM"},
    "kexec": {"refused EPERM"},
    "reboot": {"refused EPERM"},
    "open-by-handle": {"refused EPERM"},
    "set-clock": {"refused EPERM"},
    "chroot": {"refused EPERM"},
    "read-kcore": {"refused ENODATA", "refused EACCES", "refused EPERM"},
    "exec-from-tmp": {"refused EACCES"},
    "old-abi": {"killed 31", "killed 11", "refused EPERM", "refused ENOSYS"},
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Busybox and a setuid-root program that attacks; the image's user is root."""
    directory = tmp_path_factory.mktemp("hostile")
    program = directory / "attack"
    source = Path(__file__).with_name("attack.c")
    subprocess.run(
        ["gcc", "-O1", "-static", "-Wall", "-o", str(program), str(source)], check=True, timeout=120
    )
    image = images.image(
        [
            images.directory("bin"),
            images.directory("proc"),
            images.directory("tmp", mode=0o1777),
            images.file("bin/busybox", Path(shutil.which("busybox") or "").read_bytes(), 0o755),
            *(
                images.symlink(f"bin/{name}", "busybox")
                for name in ("sh", "id", "dd", "sleep", "cat", "tail", "true")
            ),
            images.file("bin/attack", program.read_bytes(), 0o4755),
        ],
        settings={"User": "0", "Env": ["PATH=/bin"]},
    )
    return f"oci:{image.write_layout(directory / 'image')}"


@pytest.mark.parametrize("engine", ["crun", "docker"])
def test_every_attack_of_a_setuid_root_program_is_refused(
    vmrun: Vmrun, hostile: str, engine: str
) -> None:
    done = vmrun("run", "--engine", engine, "--profile", "restricted", hostile, "--", "attack")
    assert done.status == 0, done.err
    lines = dict(line.split(" ", 1) for line in done.out.splitlines())
    assert lines.pop("ids") == "65532 65532 65532 65532", "setuid must not work"
    assert lines.keys() == REFUSED.keys()
    contained = {name: what for name, what in lines.items() if what not in REFUSED[name]}
    assert contained == {}
    assert done.report["receipt"]["kept"] == ""
    assert all(item["gone"] for item in done.report["receipt"]["removed"])


def test_a_fork_bomb_stops_at_the_limit_and_hurts_nobody_else(vmrun: Vmrun, hostile: str) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 2; echo alive"
    done = vmrun("run", "--pids-limit", "32", "--timeout", "90s", hostile, "--", "sh", "-c", bomb)
    usage = done.report["usage"]
    assert done.status in (0, 1, 2, 124, 137), done.err
    assert usage["pids_peak"] is None or usage["pids_peak"] <= 32
    assert usage["pids_refused"] is None or usage["pids_refused"] > 0
    assert leftovers() == []


def test_a_memory_hog_is_killed_inside_its_own_limit(vmrun: Vmrun, hostile: str) -> None:
    done = vmrun("run", "--memory", "32m", hostile, "--", "tail", "/dev/zero")
    assert done.status == 137, done.err
    assert done.report["usage"]["oom_kills"] >= 1
    assert done.report["usage"]["memory_peak"] <= 32 << 20


@pytest.mark.parametrize("engine", ["crun", "docker"])
def test_the_report_carries_what_was_read_live(vmrun: Vmrun, hostile: str, engine: str) -> None:
    done = vmrun("run", "--engine", engine, hostile, "--", "true")
    assert done.status == 0, done.err
    report: dict[str, Any] = done.report
    assert all(item["ok"] for item in report["assertions"])
    assert int(done.assertion("qemu", "uid")["actual"]) != 0
    assert done.assertion("qemu", "seccomp mode")["actual"] == "2"
    assert done.assertion("qemu", "no_new_privs")["actual"] == "True"
    assert done.assertion("qemu", "unplanned devices")["actual"] == "none"
    assert done.assertion("container", "uid")["actual"] == "65532 65532 65532 65532"
    for field in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(done.assertion("container", field)["actual"], 16) == 0
    assert done.assertion("container", "Seccomp")["actual"] == "2"
    assert done.assertion("container", "NoNewPrivs")["actual"] == "1"
    assert done.assertion("container", "root read-only")["actual"] == "True"


def test_healthcare_needs_kvm_unless_emulation_is_allowed(vmrun: Vmrun, hostile: str) -> None:
    accelerated = vmrun("run", hostile, "--", "true").report["isolated"]
    refused = vmrun("run", "--profile", "healthcare", hostile, "--", "true")
    if accelerated:
        assert refused.status == 0
        return
    assert refused.status == 123
    assert "requires KVM" in refused.err
    assert "--allow-emulation" in refused.err
    assert [phase["name"] for phase in refused.report["phases"]][-2:] == ["admit", "teardown"]
    allowed = vmrun(
        "run", "--profile", "healthcare", "--allow-emulation", hostile, "--", "sh", "-c", "id -u"
    )
    assert (allowed.status, allowed.out) == (0, "65532\n")
    assert allowed.report["emulation_allowed"] is True
    assert allowed.report["isolated"] is False
