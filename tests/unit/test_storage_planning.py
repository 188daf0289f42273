"""From what was asked to disks, mounts and memory, in the words of libvirt and of both engines, and
whether what is read live is what was planned."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine_samples import RUN_ID, container_plan, image_of, plan_of
from vmrun.model.base import Flavour
from vmrun.model.errors import Refused, UsageError
from vmrun.model.image import FileEntry, FileTree, Image, ImageConfig
from vmrun.model.live import ContainerReading, QemuReading
from vmrun.model.plan import Accelerator, HostFacts, Plan
from vmrun.model.quantity import MIB
from vmrun.model.storage import HostDirectory, NamedVolume
from vmrun.model.workload import ProfileName, TmpfsMount, Workload
from vmrun.planning.container_spec import docker_create, oci_spec
from vmrun.planning.data import StorageFacts, volume_serial
from vmrun.planning.domain_xml import Sockets, domain_xml
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import RunIdentity, make_plan
from vmrun.planning.storage import make_storage
from vmrun.policy.admission import admit
from vmrun.policy.confinement import check_container, check_qemu, failed
from vmrun.policy.profiles import PROFILES

GOLDEN = Path(__file__).parent.parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
GUEST = Path("/var/lib/vmrun/guests") / RUN_ID
BASE = Path("/var/lib/vmrun/bases/0123456789abcdef")
HOST = HostFacts(Accelerator.TCG, "", 8, 8 << 30, True, True, "embedded")
IDENTITY = RunIdentity(RUN_ID, "01234567-89ab-4cde-8f01-23456789abcd", 3)
ASKED = {
    "volumes": ["db:/var/lib/db", "ref:/data/ref:ro", "./in:/data", "./tools:/opt:rw,exec"],
    "secrets": ["id=token"],
    "scratch": "64m:/var/tmp",
}
TREE = FileTree({"/": FileEntry("dir", 0o755, 0, 0, 0), "/sh": FileEntry("file", 0o755, 0, 0, 1)})


@pytest.fixture
def image(tmp_path: Path) -> Image:
    config = ImageConfig("amd64", "linux", cmd=("/sh",), volumes=("/var/lib/db", "/cache"))
    return replace(image_of(tmp_path, [b""]), tree=TREE, config=config)


def planned(image: Image, *, tmpfs: tuple[TmpfsMount, ...] = (), **asked: Any) -> Plan:
    storage = make_storage(**{**ASKED, **asked}, here=Path("/here"))
    workload = Workload(image=image.reference, storage=storage, tmpfs=tmpfs)
    base = replace(plan_of(image, container_plan()).base, architecture="x86_64", directory=BASE)
    return make_plan(
        workload,
        image=image,
        base=base,
        host=HOST,
        profile=PROFILES[workload.profile],
        identity=IDENTITY,
        stored=StorageFacts(GUEST, copied=100 * MIB, secret=4 * MIB),
    )


@pytest.fixture
def plan(image: Image) -> Plan:
    return planned(image)


def xml_of(plan: Plan) -> str:
    sockets = Sockets.within(GUEST, ssh_ports=plan.guest.ssh_ports)
    return domain_xml(plan.guest, plan.base, sockets, metadata={"run": RUN_ID})


def golden(name: str, text: str) -> None:
    """Set VMRUN_UPDATE_GOLDEN=1 to write the files anew, then read the difference."""
    path = GOLDEN / name
    if os.environ.get("VMRUN_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_golden_mounts(plan: Plan) -> None:
    oci = oci_spec(plan.container, rootfs="rootfs", cgroup_path="/vmrun/x")["mounts"]
    docker = docker_create(plan.container, image_id="sha256:" + "ab" * 32, cgroup_parent="/vmrun")
    document = {"oci": oci, "docker": docker["HostConfig"]["Mounts"]}
    golden("mounts-data.json", json.dumps(document, indent=1) + "\n")


def test_golden_disks(plan: Plan) -> None:
    disks = ET.fromstring(xml_of(plan)).findall("./devices/disk")
    text = "".join(ET.tostring(disk, encoding="unicode") for disk in disks)
    golden("disks-data.xml", text)


def test_the_domain_is_valid_by_libvirts_schema(plan: Plan) -> None:
    done = subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(SCHEMA), "-"],
        input=xml_of(plan).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_no_two_devices_share_a_slot(image: Image) -> None:
    most = [f"v{number}:/v{number}" for number in range(15)]
    domain = ET.fromstring(xml_of(planned(image, volumes=most)))
    slots = [item.get("slot") for item in domain.findall(".//address[@type='pci']")]
    assert len(slots) == len(set(slots)) == 19
    # 0x1f is the chipset's own.
    assert max(int(slot or "", 16) for slot in slots) < 0x1F
    names = [item.get("dev") for item in domain.findall("./devices/disk/target")]
    assert len(set(names)) == 17


def test_every_disk_but_the_base_is_encrypted(plan: Plan) -> None:
    base, *disks = ET.fromstring(xml_of(plan)).findall("./devices/disk")
    assert base.find("readonly") is not None
    assert [disk.find("readonly") is not None for disk in disks] == [False, True, False]
    for disk in disks:
        assert disk.find("./source/encryption[@format='luks']/secret") is not None
        assert disk.find("shareable") is None


def test_data_takes_the_place_of_a_tmpfs(plan: Plan) -> None:
    """An image's VOLUME is writable memory, unless something is mounted there."""
    paths = {mount.path for mount in plan.container.tmpfs}
    assert "/cache" in paths
    assert "/var/lib/db" not in paths
    body = docker_create(
        plan.container,
        image_id="sha256:" + "ab" * 32,
        cgroup_parent="/vmrun",
        volumes=("/var/lib/db", "/cache"),
    )
    assert "/var/lib/db" not in body["HostConfig"]["Tmpfs"]


def test_a_tmpfs_that_was_asked_for_is_not_silently_replaced(image: Image) -> None:
    with pytest.raises(UsageError, match="two mounts at /data"):
        planned(image, tmpfs=(TmpfsMount("/data/"),))


def test_parents_come_before_children_whatever_they_are(image: Image) -> None:
    plan = planned(image, tmpfs=(TmpfsMount("/data/ref/sub"), TmpfsMount("/var")))
    mounts = oci_spec(plan.container, rootfs="rootfs", cgroup_path="/vmrun/x")["mounts"]
    places = [mount["destination"] for mount in mounts]
    for path in places:
        for parent in places:
            if path.startswith(parent + "/"):
                assert places.index(parent) < places.index(path)


def test_copies_count_as_memory_and_disks_as_qemus_own() -> None:
    def memory(**more: int) -> Any:
        return plan_memory(
            workload=128 * MIB,
            unpacked=MIB,
            blobs=[MIB],
            flavour=Flavour.MINIMAL,
            accelerator=Accelerator.KVM,
            **more,
        )

    plain, data, disks = memory(), memory(data=100 * MIB), memory(disks=2)
    assert data.guest - plain.guest >= 100 * MIB
    assert data.image - plain.image == 100 * MIB
    assert disks.guest == plain.guest
    assert disks.host - plain.host == 64 * MIB


@pytest.mark.parametrize("name", ProfileName)
@pytest.mark.parametrize(
    "item",
    [
        {"directories": (HostDirectory(Path("/x"), "/x", executable=True),)},
        {"volumes": (NamedVolume("x", "/x", executable=True),)},
    ],
)
def test_a_profile_without_executable_tmpfs_has_no_executable_data(
    image: Image, name: ProfileName, item: dict[str, Any]
) -> None:
    storage = replace(make_storage([], [], None, here=Path("/")), **item)
    workload = Workload(image=image.reference, storage=storage, profile=name)
    host = replace(HOST, accelerator=Accelerator.KVM)
    if PROFILES[name].allow_executable_tmpfs:
        admit(workload, host, floor=ProfileName.BASELINE)
        return
    with pytest.raises(Refused, match="no executable data"):
        admit(workload, host, floor=ProfileName.BASELINE)


# --- read live --------------------------------------------------------------------------------


def qemu(plan: Plan, disks: tuple[str, ...]) -> QemuReading:
    return QemuReading(
        pid=7,
        uid=plan.guest.qemu_uid or 0,
        seccomp=2,
        no_new_privs=True,
        effective_capabilities=0,
        own_mount_namespace=True,
        accelerator="tcg",
        devices=tuple(["disk:file"] * len(disks)),
        memory_limit=0,
        disks=disks,
    )


def disk_file(name: str) -> Path:
    return GUEST / f"{volume_serial(name).removeprefix('vmrun-')}.qcow2"


def good_disks(plan: Plan) -> tuple[str, ...]:
    return (
        f"{BASE}/root.img ro",
        f"{GUEST}/scratch.qcow2 rw luks",
        f"{disk_file('db')} rw luks",
        f"{disk_file('ref')} ro luks",
    )


def test_the_planned_disks_pass(plan: Plan) -> None:
    assert failed(check_qemu(plan.guest, qemu(plan, good_disks(plan)))) == ()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda disks: disks[:-1], "encrypted disks"),
        (lambda disks: (*disks, "/etc/shadow ro luks"), "unplanned devices"),
        (lambda disks: (*disks[:-1], "/other.qcow2 ro luks"), "encrypted disks"),
        (lambda disks: (*disks[:-1], disks[-1].replace(" ro ", " rw ")), "encrypted disks"),
        (lambda disks: (*disks[:-1], disks[-1].removesuffix(" luks")), "encrypted disks"),
        (lambda disks: (*disks[1:], disks[0].replace(" ro", " rw")), "other disks"),
    ],
)
def test_any_other_disk_is_noticed(plan: Plan, change: Any, name: str) -> None:
    broken = failed(check_qemu(plan.guest, qemu(plan, change(good_disks(plan)))))
    assert name in {item.name for item in broken}


def reading(plan: Plan, **options: str) -> ContainerReading:
    mounts = {}
    for bind in plan.container.binds:
        words = "ro" if bind.read_only else "rw"
        words += ",nosuid,nodev" + ("" if bind.executable else ",noexec")
        words = options.get(bind.target, words)
        mounts[bind.target] = ("ext4", frozenset(words.split(",")))
    return ContainerReading(
        pid=7, status={}, root_read_only=True, mounts=mounts, namespaces={}, cgroup={}
    )


def broken_binds(plan: Plan, found: ContainerReading) -> list[str]:
    return [item.name for item in failed(check_container(plan, found)) if "bind" in item.name]


def test_the_planned_mounts_pass(plan: Plan) -> None:
    assert broken_binds(plan, reading(plan)) == []


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("/run/secrets", "rw,nosuid,nodev,noexec"),
        ("/data", "ro,nosuid,nodev"),
        ("/data", "ro,nodev,noexec"),
        ("/data/ref", "ro,nosuid,noexec"),
        ("/opt", "rw,nodev"),
        ("/var/lib/db", "ro,nosuid,nodev,noexec"),
    ],
)
def test_any_missing_option_is_noticed(plan: Plan, target: str, options: str) -> None:
    assert broken_binds(plan, reading(plan, **{target: options})) == [f"bind {target}"]


def test_a_missing_mount_is_noticed(plan: Plan) -> None:
    found = reading(plan)
    mounts = {key: value for key, value in found.mounts.items() if key != "/data"}
    assert broken_binds(plan, replace(found, mounts=mounts)) == ["bind /data"]
