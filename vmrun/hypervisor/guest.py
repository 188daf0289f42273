"""Guests through libvirt: create, look at, destroy. libvirt's domains stay inside this package."""

from __future__ import annotations

import contextlib
import json
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu

from vmrun.channel.unix import connect_unix
from vmrun.hypervisor import process
from vmrun.hypervisor.capabilities import without_huge_pages
from vmrun.hypervisor.connection import open_daemon, open_embedded
from vmrun.hypervisor.console import Console
from vmrun.model.errors import HypervisorError
from vmrun.model.live import QemuReading
from vmrun.model.plan import EMBEDDED
from vmrun.model.report import Removed
from vmrun.planning.domain_xml import NAMESPACE, Sockets


@dataclass(frozen=True, slots=True)
class GuestIdentifiers:
    """What names a guest to the hypervisor."""

    name: str
    uuid: str


class Hypervisor:
    """One libvirt connection, embedded in this process or to a daemon."""

    def __init__(self, connection: libvirt.virConnect, *, embedded: bool) -> None:
        self._connection = connection
        self._embedded = embedded

    @classmethod
    def open(cls, connect: str, *, root: Path, cache: Path) -> Hypervisor:
        """``connect`` is ``embedded`` or a libvirt URI."""
        if connect == EMBEDDED:
            return cls(open_embedded(root, cache=cache), embedded=True)
        return cls(open_daemon(connect), embedded=False)

    def create(
        self,
        xml: str,
        identifiers: GuestIdentifiers,
        sockets: Sockets,
        *,
        huge_pages: bool = True,
    ) -> LibvirtGuest:
        """Start a guest from its domain XML.

        It starts paused, so that nothing of its console is lost and its control port is
        connected before its first instruction.
        """
        if self._embedded and not huge_pages:
            without_huge_pages()
        reaper = process.Reaper(identifiers.uuid) if self._embedded else None
        try:
            domain = self._connection.createXML(
                xml, libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_VALIDATE
            )
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"libvirt could not start the guest: {error}", hint=_hint(str(error))
            ) from error
        finally:
            if reaper is not None:
                reaper.started()
        pid = process.find_guest_process(identifiers.uuid)
        if pid is None:
            raise HypervisorError("QEMU ended as soon as it was started")
        if self._embedded:
            _end_with_the_guest(domain)
        return LibvirtGuest(domain, identifiers=identifiers, pid=pid, sockets=sockets)

    def destroy_leftover(self, identifiers: GuestIdentifiers) -> None:
        """Destroy the guest of a dead run, if this libvirt has it and vmrun made it."""
        try:
            domain = self._connection.lookupByUUIDString(identifiers.uuid)
            if NAMESPACE not in domain.XMLDesc():
                raise HypervisorError(
                    f"domain {identifiers.name} has no vmrun metadata; it is left alone"
                )
            domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_OPERATION_INVALID,
            ):
                raise HypervisorError(f"cannot destroy {identifiers.name}: {error}") from error


class LibvirtGuest:
    """A guest that was created; made by :class:`Hypervisor`."""

    def __init__(
        self,
        domain: libvirt.virDomain,
        *,
        identifiers: GuestIdentifiers,
        pid: int,
        sockets: Sockets,
    ) -> None:
        self._domain = domain
        self._identifiers = identifiers
        self._sockets = sockets
        self._console: Console | None = None
        self.pid = pid

    def attach_console(self) -> None:
        """Start to drain the console; before :meth:`resume`, so that nothing is lost."""
        sock = connect_unix(self._sockets.console, time.monotonic() + 5)
        self._console = Console(sock)

    def limit_memory(self, size: int) -> None:
        """Limit QEMU's memory to ``size`` bytes by its cgroup.

        Set on the live guest, not in its XML: there libvirt would also raise the limit of
        locked memory to the same size, which nothing here needs and not every host allows.
        """
        try:
            self._domain.setMemoryParameters(
                {"hard_limit": size >> 10}, libvirt.VIR_DOMAIN_AFFECT_LIVE
            )
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt could not limit QEMU's memory: {error}") from error

    def suspend(self) -> None:
        """Stop the guest's processors."""
        try:
            self._domain.suspend()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt could not suspend the guest: {error}") from error

    def resume(self) -> None:
        """Let the guest's first instruction run, or the next one after :meth:`suspend`."""
        try:
            self._domain.resume()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt could not resume the guest: {error}") from error

    def qemu(self) -> QemuReading:
        """How QEMU itself is confined, read live from the kernel and from libvirt's domain."""
        status = process.status_fields(self.pid)
        try:
            xml = self._domain.XMLDesc()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"cannot read the guest's domain: {error}") from error
        domain = ET.fromstring(xml)  # noqa: S314 - libvirt's own output, not the guest's
        return QemuReading(
            pid=self.pid,
            uid=int(status["Uid"].split()[1]),
            seccomp=int(status.get("Seccomp", "0")),
            no_new_privs=status.get("NoNewPrivs") == "1",
            effective_capabilities=int(status["CapEff"], 16),
            own_mount_namespace=not process.same_namespace(self.pid, "mnt"),
            accelerator="kvm" if domain.get("type") == "kvm" else "tcg",
            devices=tuple(sorted(_devices(domain))),
            disks=tuple(sorted(_disks(domain))),
            memory_limit=process.memory_limit(self.pid),
            pss=process.proportional_memory(self.pid),
        )

    def console_tail(self, lines: int = 400) -> str:
        """The last lines of the console, made printable."""
        return self._console.tail(lines) if self._console else ""

    def alive(self) -> bool:
        """Whether QEMU still runs."""
        return process.runs_guest(self.pid, self._identifiers.uuid)

    def destroy(self) -> tuple[Removed, ...]:
        """End the guest at once; the kernel's word is taken on whether QEMU is gone."""
        with contextlib.suppress(libvirt.libvirtError):
            self._domain.destroyFlags(0)
        if self._console is not None:
            self._console.close()
        gone = process.kill_guest_process(self.pid, self._identifiers.uuid)
        return (
            Removed("domain", self._identifiers.name, gone=not self._defined()),
            Removed("process", f"qemu {self.pid}", gone=gone),
        )

    def _defined(self) -> bool:
        try:
            return bool(self._domain.isActive())
        except libvirt.libvirtError as error:
            return bool(error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN)


def _end_with_the_guest(domain: libvirt.virDomain) -> None:
    """Make QEMU end when the guest powers itself off or resets (QMP set-action).

    libvirt starts it so that it waits to be told; when our process was killed, nobody would.
    """
    actions = {"shutdown": "poweroff", "reboot": "shutdown"}
    command = {"execute": "set-action", "arguments": actions}
    try:
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command), 0)
    except libvirt.libvirtError as error:
        raise HypervisorError(f"QEMU does not take its shutdown action: {error}") from error


def _devices(domain: ET.Element) -> list[str]:
    names = []
    for device in domain.find("devices") or ():
        if device.tag in ("emulator", "controller", "console"):
            continue
        model = device.get("model") or device.get("type") or ""
        if device.tag == "memballoon" and model == "none":
            continue
        names.append(f"{device.tag}:{model}" if model else device.tag)
    return names


def _disks(domain: ET.Element) -> list[str]:
    found = []
    for disk in domain.findall("./devices/disk"):
        source = disk.find("source")
        encryption = None if source is None else source.find("encryption")
        words = [
            "" if source is None else source.get("file", ""),
            "rw" if disk.find("readonly") is None else "ro",
            "" if encryption is None else encryption.get("format", ""),
        ]
        found.append(" ".join(filter(None, words)))
    return found


def _hint(message: str) -> str:
    if "KVM" in message or "kvm" in message:
        return "see 'vmrun doctor' for the accelerator"
    if "ermission denied" in message:
        return (
            "QEMU runs as a user of its own: the base and every folder above it must be "
            "readable for others"
        )
    if "No space left" in message or "failed to write" in message:
        return "free disk space where vmrun keeps its state, see 'vmrun doctor'"
    return "see 'vmrun doctor'"
