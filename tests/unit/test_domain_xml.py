"""The domain XML: golden files, libvirt's own schema, and what must never be in it."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine_samples import container_plan, image_of, plan_of
from vmrun.model.plan import Accelerator, HostFacts, Plan
from vmrun.model.quantity import MIB
from vmrun.planning.domain_xml import NAMESPACE, Sockets, domain_xml, guest_metadata
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import RunIdentity, plan_guest

GOLDEN = Path(__file__).parent.parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
IDENTITY = RunIdentity("0123456789ab", "01234567-89ab-4cde-8f01-23456789abcd", 3)
HOSTS = {
    "tcg-root": HostFacts(Accelerator.TCG, "", 8, 8 << 30, True, True, "embedded", None),
    "kvm-root": HostFacts(Accelerator.KVM, "", 8, 8 << 30, True, True, "embedded", 108),
    "tcg-user": HostFacts(Accelerator.TCG, "", 8, 8 << 30, False, False, "embedded", None),
}
BASE = Path("/var/lib/vmrun/bases/0123456789abcdef")
GUEST = Path("/var/lib/vmrun/guests/0123456789ab")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    sample = plan_of(image_of(tmp_path, []), container_plan())
    base = replace(sample.base, architecture="x86_64", directory=BASE)
    return replace(sample, base=base)


def xml_of(plan: Plan, host: HostFacts, **metadata: str) -> str:
    memory = plan_memory(
        workload=128 * MIB,
        unpacked=2 * MIB,
        blobs=[MIB],
        flavour=plan.base.flavour,
        accelerator=host.accelerator,
    )
    guest = plan_guest(plan.base, host, memory, IDENTITY, cpus=1.5)
    sockets = Sockets.within(GUEST, ssh_ports=guest.ssh_ports)
    return domain_xml(guest, plan.base, sockets, metadata={**guest_metadata(plan), **metadata})


def assert_valid(xml: str) -> None:
    finished = subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(SCHEMA), "-"],
        input=xml.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()


@pytest.mark.parametrize("host", HOSTS)
def test_golden(plan: Plan, host: str) -> None:
    """Set VMRUN_UPDATE_GOLDEN=1 to write the files anew, then read the difference."""
    path = GOLDEN / f"domain-{host}.xml"
    xml = xml_of(plan, HOSTS[host])
    if os.environ.get("VMRUN_UPDATE_GOLDEN"):
        path.write_text(xml)
    assert xml == path.read_text()


@pytest.mark.parametrize("host", HOSTS)
def test_golden_is_valid(host: str) -> None:
    """By libvirt's schema as it is, metadata and all."""
    assert_valid((GOLDEN / f"domain-{host}.xml").read_text())


def test_the_schema_notices_what_is_wrong(plan: Plan) -> None:
    xml = xml_of(plan, HOSTS["tcg-root"])
    with pytest.raises(AssertionError, match="validate"):
        assert_valid(xml.replace("<vcpu ", "<vcpus ").replace("</vcpu>", "</vcpus>"))


@pytest.fixture(params=HOSTS)
def domain(plan: Plan, request: pytest.FixtureRequest) -> ET.Element:
    return ET.fromstring(xml_of(plan, HOSTS[request.param]))


FORBIDDEN = [
    "audio",
    "filesystem",
    "graphics",
    "hostdev",
    "hub",
    "input",
    "interface",
    "parallel",
    "redirdev",
    "shmem",
    "smartcard",
    "sound",
    "tpm",
    "video",
    "vsock",
]


@pytest.mark.parametrize("device", FORBIDDEN)
def test_there_is_no_way_out_but_the_channels(domain: ET.Element, device: str) -> None:
    assert domain.findall(f".//devices/{device}") == []


def test_usb_and_balloon_are_switched_off(domain: ET.Element) -> None:
    """Left out they would be added by libvirt."""
    usb = domain.findall("./devices/controller[@type='usb']")
    assert [controller.get("model") for controller in usb] == ["none"]
    balloons = domain.findall("./devices/memballoon")
    assert [balloon.get("model") for balloon in balloons] == ["none"]


def test_the_only_disk_is_the_base_and_read_only(domain: ET.Element) -> None:
    (disk,) = domain.findall("./devices/disk")
    source = disk.find("source")
    assert source is not None
    assert source.get("file") == str(BASE / "root.img")
    assert disk.find("readonly") is not None
    assert disk.find("shareable") is not None


def test_every_socket_lies_in_the_guests_own_directory(domain: ET.Element) -> None:
    sources = domain.findall("./devices/channel/source") + domain.findall("./devices/serial/source")
    paths = [Path(source.get("path", "")) for source in sources]
    assert len(paths) == len(set(paths)) == 4
    assert {path.parent for path in paths} == {GUEST}
    assert {source.get("mode") for source in sources} == {"bind"}


def test_a_guest_never_comes_back(domain: ET.Element) -> None:
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        assert domain.findtext(event) == "destroy"


def test_memory_is_not_shared_with_other_guests(domain: ET.Element) -> None:
    assert domain.find("./memoryBacking/nosharepages") is not None


@pytest.mark.parametrize("host", ["tcg-root", "kvm-root"])
def test_qemu_runs_under_the_guests_own_uid(plan: Plan, host: str) -> None:
    label = ET.fromstring(xml_of(plan, HOSTS[host])).find("./seclabel")
    assert label is not None
    assert label.attrib == {"type": "static", "model": "dac", "relabel": "no"}
    gid = 108 if host == "kvm-root" else 2_000_000_003
    assert label.findtext("label") == f"+2000000003:+{gid}"


def test_a_plain_user_has_no_label(plan: Plan) -> None:
    assert ET.fromstring(xml_of(plan, HOSTS["tcg-user"])).find("./seclabel") is None


def test_the_domain_type_is_what_was_proved(plan: Plan) -> None:
    types = {name: ET.fromstring(xml_of(plan, host)).get("type") for name, host in HOSTS.items()}
    assert types == {"tcg-root": "qemu", "kvm-root": "kvm", "tcg-user": "qemu"}


@pytest.mark.parametrize("tenant", ['"/><devices/>', "<a>&amp;", "a'b", "ä\u2028\n"])
def test_a_tenant_cannot_add_to_the_domain(plan: Plan, tenant: str) -> None:
    xml = xml_of(plan, HOSTS["tcg-root"], tenant=tenant)
    domain = ET.fromstring(xml)
    guest = domain.find(f"./metadata/{{{NAMESPACE}}}guest")
    assert guest is not None
    assert guest.get("tenant") == tenant
    assert len(domain.findall("devices")) == 1
    assert_valid(xml)
