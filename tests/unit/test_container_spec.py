"""The container plan in crun's and docker's words: golden files, and what holds for any plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_samples import container_plan
from vmrun.model.errors import UsageError
from vmrun.model.plan import ContainerPlan, Tmpfs
from vmrun.model.workload import Limits
from vmrun.planning.container_spec import docker_create, gate_argv, oci_spec

GOLDEN = Path(__file__).parent.parent / "golden"
IMAGE = "sha256:" + "ab" * 32

PLANS = {
    "restricted": container_plan(),
    "loosened": container_plan(
        argv=("/bin/server", "--listen", "0.0.0.0:80"),
        uid=0,
        gid=0,
        groups=(10, 20),
        user_mapped=False,
        read_only=False,
        capabilities=("CAP_SETUID", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"),
        tmpfs=(
            Tmpfs("/run/cache", 1 << 20, 0o700, executable=False),
            Tmpfs("/run", 4 << 20, 0o755, executable=True),
            Tmpfs("/dev/shm", 8 << 20, 0o1777, executable=False),
        ),
        terminal=True,
        interactive=True,
    ),
}


def oci(plan: ContainerPlan) -> dict[str, Any]:
    return oci_spec(plan, rootfs="rootfs", cgroup_path="/vmrun/0123456789ab/container")


def docker(plan: ContainerPlan, volumes: tuple[str, ...] = ()) -> dict[str, Any]:
    return docker_create(plan, image_id=IMAGE, cgroup_parent="/vmrun/0123456789ab", volumes=volumes)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("words", [oci, docker])
def test_golden(name: str, words: Any) -> None:
    """Set VMRUN_UPDATE_GOLDEN=1 to write the files anew, then read the difference."""
    document = words(PLANS[name])
    # The filter has tests of its own; here it would drown the rest.
    if words is oci:
        assert document["linux"].pop("seccomp")["defaultAction"] == "SCMP_ACT_ERRNO"
    else:
        options = document["HostConfig"]["SecurityOpt"]
        document["HostConfig"]["SecurityOpt"] = [item[:40] for item in options]
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    path = GOLDEN / f"container-{words.__name__}-{name}.json"
    if os.environ.get("VMRUN_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


CAPABILITIES = ["CAP_CHOWN", "CAP_SETUID", "CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE"]


@st.composite
def plans(draw: st.DrawFn) -> ContainerPlan:
    uid = draw(st.integers(0, 2**31))
    return container_plan(
        argv=tuple(draw(st.lists(st.text(min_size=1), min_size=1, max_size=4))),
        uid=uid,
        gid=draw(st.integers(0, 2**31)),
        groups=tuple(draw(st.lists(st.integers(0, 2**31), max_size=3))),
        read_only=draw(st.booleans()),
        capabilities=tuple(draw(st.lists(st.sampled_from(CAPABILITIES), unique=True))),
        limits=Limits(
            memory=draw(st.integers(4 << 20, 1 << 40)),
            cpus=draw(st.floats(0.001, 64)),
            pids=draw(st.integers(1, 32768)),
            files=draw(st.integers(16, 1 << 20)),
        ),
        terminal=draw(st.booleans()),
        interactive=draw(st.booleans()),
    )


@given(plans())
def test_oci_holds_the_plan(plan: ContainerPlan) -> None:
    spec = oci(plan)
    process, linux = spec["process"], spec["linux"]
    held = sorted(plan.capabilities)
    for kind in ("bounding", "effective", "permitted"):
        assert process["capabilities"][kind] == held
    for kind in ("inheritable", "ambient"):
        assert process["capabilities"][kind] == (held if plan.uid else [])
    assert process["args"] == gate_argv(plan.argv)
    assert process["noNewPrivileges"] is True
    assert spec["root"]["readonly"] is plan.read_only
    assert {item["type"] for item in linux["namespaces"]} == {
        "pid", "network", "ipc", "uts", "mount", "cgroup",
    }  # fmt: skip
    assert linux["resources"]["memory"] == {
        "limit": plan.limits.memory,
        "swap": plan.limits.memory,
    }
    assert linux["resources"]["pids"]["limit"] == plan.limits.pids
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    for mount in spec["mounts"]:
        options = set(mount["options"])
        assert "nosuid" in options, mount
        if mount["destination"] not in ("/dev", "/dev/pts"):
            assert "nodev" in options, mount
        if mount["destination"] != "/.vmrun-gate":
            assert "noexec" in options, mount


@given(plans())
def test_docker_says_the_same(plan: ContainerPlan) -> None:
    if plan.capabilities and plan.uid:
        with pytest.raises(UsageError, match="cannot give"):
            docker(plan)
        return
    spec, body = oci(plan), docker(plan)
    host = body["HostConfig"]
    assert body["Entrypoint"] + body["Cmd"] == spec["process"]["args"]
    assert body["Env"] == spec["process"]["env"]
    assert body["User"] == f"{plan.uid}:{plan.gid}"
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == spec["process"]["capabilities"]["bounding"]
    assert host["ReadonlyRootfs"] is spec["root"]["readonly"]
    resources = spec["linux"]["resources"]
    assert host["Memory"] == host["MemorySwap"] == resources["memory"]["limit"]
    assert (host["CpuQuota"], host["CpuPeriod"]) == (
        resources["cpu"]["quota"],
        resources["cpu"]["period"],
    )
    assert host["PidsLimit"] == resources["pids"]["limit"]
    assert host["MaskedPaths"] == spec["linux"]["maskedPaths"]
    assert host["ReadonlyPaths"] == spec["linux"]["readonlyPaths"]
    assert host["Sysctls"] == spec["linux"]["sysctl"]
    assert host["OomScoreAdj"] == spec["process"]["oomScoreAdj"]
    assert (host["NetworkMode"], host["IpcMode"], host["CgroupnsMode"]) == (
        "none", "private", "private",
    )  # fmt: skip
    assert host["Privileged"] is False
    assert host["LogConfig"]["Type"] == "none"
    filters = [item for item in host["SecurityOpt"] if item.startswith("seccomp=")]
    assert [json.loads(item.removeprefix("seccomp=")) for item in filters] == [
        spec["linux"]["seccomp"]
    ]
    ulimits = {item["Name"]: (item["Soft"], item["Hard"]) for item in host["Ulimits"]}
    assert ulimits == {"nofile": (plan.limits.files, plan.limits.files), "core": (0, 0)}


def test_a_tmpfs_below_another_is_mounted_after_it() -> None:
    destinations = [item["destination"] for item in oci(PLANS["loosened"])["mounts"]]
    assert destinations.index("/run") < destinations.index("/run/cache")
    assert destinations.count("/dev/shm") == 1


@pytest.mark.parametrize(("read_only", "access"), [(True, "ro"), (False, "rw")])
def test_image_volumes_get_no_directory_of_dockerd(read_only: bool, access: str) -> None:
    plan = container_plan(read_only=read_only)
    tmpfs = docker(plan, volumes=("/data", "/tmp"))["HostConfig"]["Tmpfs"]
    assert tmpfs["/data"].startswith(f"{access},nosuid,nodev,noexec,")
    assert "size=16777216" in tmpfs["/tmp"]


def test_the_least_cpu_quota_is_the_kernels() -> None:
    plan = container_plan(limits=Limits(memory=1 << 26, cpus=0.000001, pids=1, files=16))
    assert oci(plan)["linux"]["resources"]["cpu"]["quota"] == 1000
