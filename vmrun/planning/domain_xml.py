"""The guest as libvirt's domain XML (https://libvirt.org/formatdomain.html). Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.base import Base
from vmrun.model.plan import Accelerator, GuestPlan, Plan
from vmrun.model.storage import Disk

NAMESPACE = "urn:vmrun:guest:1"
"""XML namespace of vmrun's metadata inside a domain."""

CONTROL_PORT = "vmrun.control"
SSH_PORT = "vmrun.ssh.{index}"

_TRANSLATION_CACHE_MIB = 32
"""A boot fills any cache and goes on well with this one; each MiB is resident in every guest."""

_SLOT_DISK, _SLOT_SERIAL, _SLOT_RNG, _SLOT_DATA = 2, 3, 4, 5
"""Data disks follow one another from the last."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Unix sockets that QEMU listens on: the console, the control port, one per SSH port."""

    console: Path
    control: Path
    ssh: tuple[Path, ...]

    @classmethod
    def within(cls, directory: Path, *, ssh_ports: int) -> Sockets:
        """The sockets of a guest whose directory is ``directory``."""
        return cls(
            console=directory / "console",
            control=directory / "control",
            ssh=tuple(directory / f"ssh.{index}" for index in range(ssh_ports)),
        )


def domain_xml(
    guest: GuestPlan, base: Base, sockets: Sockets, *, metadata: Mapping[str, str]
) -> str:
    """The domain: nothing but what the guest contract names.

    No network card, display, USB, balloon or sound; virtio devices sit directly on the root
    complex, because each PCIe root port costs the guest's kernel time to probe.
    """
    domain = ET.Element("domain", type="kvm" if guest.accelerator is Accelerator.KVM else "qemu")
    _text(domain, "name", guest.name)
    _text(domain, "uuid", guest.uuid)
    ET.SubElement(domain, "genid")
    domain.append(_metadata(metadata))
    _text(domain, "memory", str(guest.memory.guest >> 10), unit="KiB")
    backing = ET.SubElement(domain, "memoryBacking")
    # Page deduplication across guests leaks what they hold, even where the host has it on.
    ET.SubElement(backing, "nosharepages")
    _text(domain, "vcpu", str(guest.vcpus), placement="static")
    domain.append(_boot(guest, base))
    domain.append(_features(guest.accelerator))
    domain.append(_cpu(guest.cpu_model))
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    domain.append(_devices(base, sockets, guest.disks))
    if guest.qemu_uid is not None:
        # The base is shared by guests under different uids: libvirt must not change its owner.
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", f"+{guest.qemu_uid}:+{guest.qemu_gid}")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def guest_metadata(plan: Plan) -> Mapping[str, str]:
    """What the domain says of the run that it serves."""
    return {
        "run": plan.run_id,
        "tenant": plan.workload.tenant,
        "image": str(plan.image.digest),
        "base": str(plan.base.digest),
        "profile": str(plan.workload.profile),
    }


def _metadata(attributes: Mapping[str, str]) -> ET.Element:
    metadata = ET.Element("metadata")
    ET.register_namespace("vmrun", NAMESPACE)
    ET.SubElement(metadata, f"{{{NAMESPACE}}}guest", dict(attributes))
    return metadata


def _boot(guest: GuestPlan, base: Base) -> ET.Element:
    boot = ET.Element("os")
    _text(boot, "type", "hvm", arch=base.architecture, machine="q35")
    _text(boot, "kernel", str(base.kernel))
    _text(boot, "initrd", str(base.initrd))
    _text(boot, "cmdline", " ".join(guest.kernel_arguments))
    return boot


def _features(accelerator: Accelerator) -> ET.Element:
    features = ET.Element("features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if accelerator is Accelerator.TCG:
        tcg = ET.SubElement(features, "tcg")
        _text(tcg, "tb-cache", str(_TRANSLATION_CACHE_MIB), unit="MiB")
    return features


def _cpu(model: str) -> ET.Element:
    cpu = ET.Element("cpu", mode=model)
    if model == "host-passthrough":
        cpu.set("migratable", "off")
        cpu.set("check", "none")
    return cpu


def _data_disk(devices: ET.Element, disk: Disk, index: int) -> None:
    """An encrypted disk. QEMU encrypts above the file, so that the host's page cache holds no
    plaintext; it is used because direct I/O is not possible on every file system. A full or broken
    host disk is the guest's I/O error, where libvirt's default would stop the guest for good."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(
        element,
        "driver",
        name="qemu",
        type="qcow2",
        cache="writeback",
        error_policy="report",
        discard="unmap",
    )
    source = ET.SubElement(element, "source", file=str(disk.path))
    encryption = ET.SubElement(source, "encryption", format="luks")
    ET.SubElement(encryption, "secret", type="passphrase", uuid=disk.secret)
    ET.SubElement(element, "target", dev=f"vd{chr(ord('b') + index)}", bus="virtio")
    if disk.read_only:
        ET.SubElement(element, "readonly")
    _text(element, "serial", disk.serial)
    _pci(element, _SLOT_DATA + index)


def _devices(base: Base, sockets: Sockets, disks: tuple[Disk, ...]) -> ET.Element:
    devices = ET.Element("devices")
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="raw", cache="writeback", discard="ignore")
    ET.SubElement(disk, "source", file=str(base.root))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    ET.SubElement(disk, "readonly")
    ET.SubElement(disk, "shareable")
    _pci(disk, _SLOT_DISK)
    for index, data in enumerate(disks):
        _data_disk(devices, data, index)
    ET.SubElement(devices, "controller", type="usb", index="0", model="none")
    controller = ET.SubElement(
        devices, "controller", type="virtio-serial", index="0", ports=str(len(sockets.ssh) + 2)
    )
    _pci(controller, _SLOT_SERIAL)
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=str(sockets.console))
    target = ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(target, "model", name="isa-serial")
    names = [CONTROL_PORT, *(SSH_PORT.format(index=i) for i in range(len(sockets.ssh)))]
    for index, (name, path) in enumerate(
        zip(names, [sockets.control, *sockets.ssh], strict=True), start=1
    ):
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind", path=str(path))
        ET.SubElement(channel, "target", type="virtio", name=name)
        ET.SubElement(
            channel, "address", type="virtio-serial", controller="0", bus="0", port=str(index)
        )
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    _pci(rng, _SLOT_RNG)
    ET.SubElement(devices, "memballoon", model="none")
    return devices


def _pci(device: ET.Element, slot: int) -> None:
    ET.SubElement(
        device,
        "address",
        type="pci",
        domain="0x0000",
        bus="0x00",
        slot=f"0x{slot:02x}",
        function="0x0",
    )
