"""What a plan decides: who runs it, where, with how much; and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_samples import RUN_ID, container_plan, image_of, plan_of
from vmrun.model.base import Flavour
from vmrun.model.errors import Refused, UsageError
from vmrun.model.image import Account, FileEntry, FileTree, Image, ImageConfig, Layer
from vmrun.model.plan import Accelerator, HostFacts, Plan
from vmrun.model.quantity import MIB
from vmrun.model.workload import Limits, ProfileName, TmpfsMount, Workload
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import RunIdentity, make_plan
from vmrun.policy.profiles import NON_ROOT_UID, PROFILES

IDENTITY = RunIdentity(RUN_ID, "00000000-0000-4000-8000-000000000000", 3)
KVM_ROOT = HostFacts(Accelerator.KVM, "a guest booted", 8, 8 << 30, True, True, "embedded", 108)
TCG_USER = HostFacts(Accelerator.TCG, "there is no /dev/kvm", 8, 8 << 30, False, False, "embedded")
TREE = FileTree(
    {
        "/": FileEntry("dir", 0o755, 0, 0, 0),
        "/bin": FileEntry("dir", 0o755, 0, 0, 0),
        "/bin/sh": FileEntry("file", 0o755, 0, 0, 1),
    },
    accounts=(
        Account("root", 0, 0, "/root", (0, 10)),
        Account("app", 1000, 1000, "/home/app", (0, 44)),
        Account("openshift", 1001, 0, "/srv"),
    ),
    groups={"root": 0, "wheel": 10, "app": 1000},
    unpacked_bytes=1 << 20,
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layout")


@pytest.fixture
def plan(layout: Path) -> Any:
    """Plan a workload: its fields by name, the image's config as a mapping."""
    sample = image_of(layout, [b""])

    def make(
        host: HostFacts = KVM_ROOT, config: dict[str, Any] | None = None, **asked: Any
    ) -> Plan:
        image = replace(
            sample,
            tree=TREE,
            config=replace(ImageConfig("amd64", "linux", cmd=("sh",)), **(config or {})),
        )
        workload = Workload(image=image.reference, **asked)
        return make_plan(
            workload,
            image=image,
            base=plan_of(image, container_plan()).base,
            host=host,
            profile=PROFILES[workload.profile],
            identity=IDENTITY,
        )

    return make


def limits(**changes: Any) -> Limits:
    return replace(Limits(memory=128 * MIB, cpus=1.0, pids=128, files=1024), **changes)


# Who runs it.


@pytest.mark.parametrize("profile", [ProfileName.RESTRICTED, ProfileName.HEALTHCARE])
@pytest.mark.parametrize("user", ["", "root", "0", "0:0", "root:app", "0:1000"])
def test_an_image_that_says_root_runs_unprivileged(
    plan: Any, profile: ProfileName, user: str
) -> None:
    made = plan(config={"user": user}, profile=profile)
    assert (made.container.uid, made.container.gid) == (NON_ROOT_UID, NON_ROOT_UID)
    assert made.container.groups == ()
    assert made.container.user_mapped
    assert any(str(NON_ROOT_UID) in warning for warning in made.warnings)


@pytest.mark.parametrize("profile", [ProfileName.RESTRICTED, ProfileName.HEALTHCARE])
@pytest.mark.parametrize("user", ["0", "root", "0:1000", "", "00"])
def test_root_that_the_caller_asks_for_is_refused(
    plan: Any, profile: ProfileName, user: str
) -> None:
    with pytest.raises(Refused, match="never runs root") as caught:
        plan(profile=profile, user=user)
    assert "--user" in caught.value.hint


@pytest.mark.parametrize("where", ["caller", "image"])
def test_baseline_keeps_root(plan: Any, where: str) -> None:
    asked = {"user": "root"} if where == "caller" else {"config": {"user": "root"}}
    made = plan(profile=ProfileName.BASELINE, **asked)
    assert (made.container.uid, made.container.gid) == (0, 0)
    assert made.container.groups == (0, 10)
    assert not made.container.user_mapped


def test_an_ordinary_user_is_kept_without_the_group_root(plan: Any) -> None:
    made = plan(config={"user": "app"})
    assert (made.container.uid, made.container.gid) == (1000, 1000)
    assert made.container.groups == (44,)
    assert "HOME=/home/app" in made.container.env


@pytest.mark.parametrize("user", ["1001", "openshift", "4242", "1000:0", "app:root"])
def test_the_group_root_is_replaced(plan: Any, user: str) -> None:
    made = plan(user=user)
    assert made.container.gid == made.container.uid != 0
    assert 0 not in made.container.groups


def test_baseline_keeps_the_group_root(plan: Any) -> None:
    assert plan(user="openshift", profile=ProfileName.BASELINE).container.gid == 0


@pytest.mark.parametrize("user", ["app", "1000", "openshift", "4242", "77:88", "", "root"])
@pytest.mark.parametrize("profile", [ProfileName.RESTRICTED, ProfileName.HEALTHCARE])
def test_no_id_is_ever_root_above_baseline(plan: Any, user: str, profile: ProfileName) -> None:
    container = plan(config={"user": user}, profile=profile).container
    assert 0 not in (container.uid, container.gid, *container.groups)


# What it sees.


def environment(made: Plan) -> dict[str, str]:
    return dict(setting.split("=", 1) for setting in made.container.env)


def test_the_caller_environment_wins_over_the_image(plan: Any) -> None:
    made = plan(config={"env": ("A=image", "B=image")}, env=(("A", "caller"), ("C", "")))
    assert environment(made) | {"A": "caller", "B": "image", "C": ""} == environment(made)
    assert len({setting.split("=")[0] for setting in made.container.env}) == len(made.container.env)


def test_path_and_home_have_defaults_that_the_image_and_caller_replace(plan: Any) -> None:
    assert environment(plan())["PATH"].endswith("/usr/bin:/sbin:/bin")
    assert environment(plan(config={"env": ("PATH=/bin", "HOME=/h")}))["HOME"] == "/h"
    assert environment(plan(env=(("PATH", "/bin"), ("HOME", "/x"))))["HOME"] == "/x"


def test_a_value_may_hold_equals_signs(plan: Any) -> None:
    assert environment(plan(config={"env": ("A=b=c",)}))["A"] == "b=c"


def test_only_a_terminal_sets_term(plan: Any) -> None:
    assert "TERM" not in environment(plan())
    assert environment(plan(terminal=True))["TERM"]
    assert environment(plan(terminal=True, env=(("TERM", "dumb"),)))["TERM"] == "dumb"


def test_the_working_directory(plan: Any) -> None:
    assert plan().container.workdir == "/"
    assert plan(config={"working_dir": "/srv"}).container.workdir == "/srv"
    assert plan(config={"working_dir": "/srv"}, workdir="/x").container.workdir == "/x"
    with pytest.raises(UsageError, match=r"--workdir.*'srv'"):
        plan(workdir="srv")


def test_the_host_name_is_hostname_then_name_then_id(plan: Any) -> None:
    assert plan(hostname="h", name="n").container.hostname == "h"
    assert plan(name="n").container.hostname == "n"
    assert plan().container.hostname == RUN_ID


@pytest.mark.parametrize("hostname", ["-a", "a-", "a b", "a.b", "a\nb", "x" * 64, "ä", "a\0"])
def test_what_is_no_host_name_is_refused(plan: Any, hostname: str) -> None:
    with pytest.raises(UsageError, match="not a host name"):
        plan(hostname=hostname)


# Where it may write.


def tmpfs(made: Plan) -> dict[str, Any]:
    return {mount.path: mount for mount in made.container.tmpfs}


def test_tmp_is_writable_and_not_executable(plan: Any) -> None:
    (mount,) = plan().container.tmpfs
    assert (mount.path, mount.mode, mount.executable) == ("/tmp", 0o1777, False)
    assert 0 < mount.size <= 64 * MIB


def test_tmp_takes_no_more_than_half_of_a_small_workload(plan: Any) -> None:
    assert tmpfs(plan(limits=limits(memory=32 * MIB)))["/tmp"].size == 16 * MIB


def test_volumes_become_tmpfs(plan: Any) -> None:
    made = plan(config={"volumes": ("/data", "/var/lib/x/")})
    assert set(tmpfs(made)) == {"/tmp", "/data", "/var/lib/x"}
    assert not any(mount.executable for mount in made.container.tmpfs)


@pytest.mark.parametrize("volume", ["/", "//", "/.", "relative", "", "/a/../..", "/.."])
def test_a_volume_that_is_no_path_below_the_root_is_left_out(plan: Any, volume: str) -> None:
    assert set(tmpfs(plan(config={"volumes": (volume,)}))) == {"/tmp"}


def test_what_was_asked_for_replaces_volume_and_tmp(plan: Any) -> None:
    asked = (TmpfsMount("/data", 5 * MIB, executable=True), TmpfsMount("/tmp/", 7 * MIB))
    mounts = tmpfs(plan(config={"volumes": ("/data/",)}, tmpfs=asked))
    assert set(mounts) == {"/tmp", "/data"}
    assert (mounts["/data"].size, mounts["/data"].executable) == (5 * MIB, True)
    assert mounts["/tmp"].size == 7 * MIB


@pytest.mark.parametrize("path", ["", "/", "//", "///.", "/.", "tmp", "./x", "/a/../b", "/..", "~"])
def test_a_tmpfs_must_lie_below_the_root(plan: Any, path: str) -> None:
    with pytest.raises(UsageError, match="--tmpfs") as caught:
        plan(tmpfs=(TmpfsMount(path),))
    assert repr(path) in caught.value.message


@pytest.mark.parametrize("path", ["/data/", "//data", "/data//", "/./data", "/data/."])
def test_a_mount_point_is_named_as_the_kernel_lists_it(plan: Any, path: str) -> None:
    assert "/data" in tmpfs(plan(tmpfs=(TmpfsMount(path),)))


# How much it gets.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": 16 * MIB - 1}, "--memory 1[56].* MiB is too little"),
        ({"memory": 0}, "--memory 0 B"),
        ({"cpus": 8.01}, "--cpus 8.01"),
        ({"cpus": 0.0}, "--cpus 0"),
        ({"cpus": -1.0}, "--cpus -1"),
        ({"cpus": float("nan")}, "--cpus nan"),
        ({"pids": 0}, "--pids-limit"),
    ],
)
def test_impossible_limits(plan: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        plan(limits=limits(**changes))
    assert caught.value.hint


def test_limits_at_their_bounds(plan: Any) -> None:
    made = plan(limits=limits(memory=16 * MIB, cpus=8.0, pids=1))
    assert made.guest.vcpus == 8
    assert made.container.limits.memory == 16 * MIB


@pytest.mark.parametrize(("cpus", "vcpus"), [(0.01, 1), (1.0, 1), (1.01, 2), (2.5, 3)])
def test_the_guest_has_whole_cpus(plan: Any, cpus: float, vcpus: int) -> None:
    assert plan(limits=limits(cpus=cpus)).guest.vcpus == vcpus


def test_a_guest_larger_than_the_host_is_refused(plan: Any) -> None:
    small = replace(KVM_ROOT, memory=200 * MIB)
    with pytest.raises(Refused, match="200 MiB available") as caught:
        plan(host=small)
    assert "--memory" in caught.value.hint


SIZES = st.integers(0, 1 << 36)


@given(
    workload=st.integers(16 * MIB, 1 << 36),
    unpacked=SIZES,
    blobs=st.lists(SIZES, max_size=8),
    flavour=st.sampled_from(Flavour),
    accelerator=st.sampled_from(Accelerator),
)
def test_memory_sums(
    workload: int, unpacked: int, blobs: list[int], flavour: Flavour, accelerator: Accelerator
) -> None:
    memory = plan_memory(
        workload=workload,
        unpacked=unpacked,
        blobs=blobs,
        flavour=flavour,
        accelerator=accelerator,
    )
    assert memory.workload == workload
    assert memory.workload + memory.image + memory.reserve == memory.guest
    assert workload <= memory.guest < memory.host
    assert memory.image >= unpacked + (max(blobs, default=0) if flavour is Flavour.MINIMAL else 0)
    assert memory.reserve >= 64 * MIB
    assert memory.guest % MIB == 0


@given(workload=st.integers(16 * MIB, 1 << 33), unpacked=SIZES, more=st.integers(0, 1 << 30))
def test_a_larger_image_never_gets_a_smaller_guest(workload: int, unpacked: int, more: int) -> None:
    def guest(size: int) -> int:
        return plan_memory(
            workload=workload,
            unpacked=size,
            blobs=[size // 2],
            flavour=Flavour.MINIMAL,
            accelerator=Accelerator.KVM,
        ).guest

    assert guest(unpacked) <= guest(unpacked + more)


def test_the_image_counts(plan: Any, layout: Path) -> None:
    def guest(image: Image) -> int:
        return make_plan(
            Workload(image=image.reference),
            image=image,
            base=plan_of(image, container_plan()).base,
            host=KVM_ROOT,
            profile=PROFILES[ProfileName.RESTRICTED],
            identity=IDENTITY,
        ).guest.memory.guest

    small = replace(
        image_of(layout, [b""]), tree=TREE, config=ImageConfig("amd64", "linux", cmd=("sh",))
    )
    large = replace(small, tree=replace(TREE, unpacked_bytes=500 * MIB))
    layers = tuple(
        Layer(replace(layer.blob, size=100 * MIB), layer.compression, layer.diff_id)
        for layer in small.layers
    )
    assert guest(large) - guest(small) >= 499 * MIB
    assert guest(replace(large, layers=layers)) - guest(large) >= 96 * MIB


# The guest.


def test_each_slot_has_a_qemu_user_of_its_own(layout: Path, plan: Any) -> None:
    image = plan().image
    uids = {
        make_plan(
            Workload(image=image.reference),
            image=image,
            base=plan_of(image, container_plan()).base,
            host=KVM_ROOT,
            profile=PROFILES[ProfileName.RESTRICTED],
            identity=replace(IDENTITY, slot=slot),
        ).guest.qemu_uid
        for slot in range(50)
    }
    assert len(uids) == 50
    # Above what distributions give to people, services and subordinate ranges.
    assert min(uids) >= 2_000_000_000


def test_only_kvm_needs_the_group_of_its_device(plan: Any) -> None:
    assert plan().guest.qemu_gid == 108
    emulated = plan(host=replace(KVM_ROOT, accelerator=Accelerator.TCG)).guest
    assert emulated.qemu_gid == emulated.qemu_uid is not None
    open_to_all = plan(host=replace(KVM_ROOT, kvm_gid=None)).guest
    assert open_to_all.qemu_gid == open_to_all.qemu_uid


def test_a_plain_user_runs_qemu_as_themselves(plan: Any) -> None:
    guest = plan(host=TCG_USER).guest
    assert (guest.qemu_uid, guest.qemu_gid, guest.limit_host_memory) == (None, None, False)


def test_the_kernel_is_told_what_it_must_verify(plan: Any) -> None:
    made = plan()
    arguments = made.guest.kernel_arguments
    verity = made.base.verity
    assert (
        f"vmrun.verity={verity.root_hash}:{verity.salt}:{verity.data_blocks}:{verity.hash_start}"
        in arguments
    )
    assert f"vmrun.lease={made.guest.lease}" in arguments
    assert "lockdown=integrity" in arguments
    assert not any(" " in argument for argument in arguments)


# What is said, and what is granted.


def test_nothing_is_warned_of_a_confined_run_with_kvm(plan: Any) -> None:
    assert plan(user="1000").warnings == ()


def test_emulation_is_warned_of_with_its_reason(plan: Any) -> None:
    warnings = "\n".join(plan(host=TCG_USER).warnings)
    assert "NOT a security boundary" in warnings
    assert "there is no /dev/kvm" in warnings
    assert "memory is not limited" in warnings


def test_a_writable_root_is_warned_of(plan: Any) -> None:
    assert plan().container.read_only
    assert plan(read_only=True).container.read_only
    made = plan(read_only=False)
    assert not made.container.read_only
    assert any("root is writable" in warning for warning in made.warnings)


@pytest.mark.parametrize("profile", ProfileName)
def test_no_profile_grants_a_capability_unasked(plan: Any, profile: ProfileName) -> None:
    assert plan(profile=profile).container.capabilities == ()


@pytest.mark.parametrize("name", ["net_bind_service", "CAP_NET_BIND_SERVICE", "Net_Bind_Service"])
def test_a_capability_has_one_name(plan: Any, name: str) -> None:
    made = plan(cap_add=(name, "NET_BIND_SERVICE"))
    assert made.container.capabilities == ("CAP_NET_BIND_SERVICE",)


@pytest.mark.parametrize("profile", ProfileName)
def test_no_new_privileges_in_every_profile(plan: Any, profile: ProfileName) -> None:
    container = plan(profile=profile).container
    assert container.no_new_privileges
    assert "/proc/kcore" in container.masked_paths
    assert "/proc/sys" in container.readonly_paths
