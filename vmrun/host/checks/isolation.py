"""Judging: what isolates a guest from the host, and guests from each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.host.checks.facts import Asked, Device, Host, Kernel, Processor, Qemu
from vmrun.model.diagnosis import Diagnosis, advice, fault, ok
from vmrun.model.plan import Accelerator

NO_BOUNDARY = "NOT a security boundary"
_OPEN_KVM = "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (udev does it where it runs)"


def judge_accelerator(host: Host) -> Iterator[Diagnosis]:
    """The processor's word, /dev/kvm, and what a trial said."""
    yield _processor(host)
    yield _kvm_device(host.asked, host.kvm)
    yield _accelerator(host)
    yield _vsock(host.vsock)


def judge_confinement(asked: Asked, kernel: Kernel, qemu: Qemu) -> Iterator[Diagnosis]:
    """The walls around QEMU besides KVM."""
    if qemu.version:
        yield _seccomp(kernel, qemu)
    yield _cgroups(asked, kernel)
    yield _apparmor(asked, kernel)
    if not asked.privileged:
        yield _user_namespaces(asked, kernel)


def judge_leaks(processor: Processor, kernel: Kernel) -> Iterator[Diagnosis]:
    """What lets one guest, or a thief of disks, learn of another guest."""
    if processor.vulnerable:
        yield advice(
            "cpu-vulnerabilities",
            f"open: {', '.join(processor.vulnerable)}",
            "update kernel and microcode, and drop mitigations=off if it is set",
        )
    else:
        yield ok("cpu-vulnerabilities", "the kernel reports none open")
    if processor.smt:
        yield advice(
            "smt",
            "on: two guests can share a core",
            "boot with nosmt where guests of different tenants share the host",
        )
    else:
        yield ok("smt", "off")
    if kernel.ksm:
        yield advice(
            "ksm",
            "on: guests can tell by timing what pages others hold",
            "echo 2 > /sys/kernel/mm/ksm/run, and disable ksmtuned",
        )
    else:
        yield ok("ksm", "off")
    if kernel.plain_swap:
        yield advice(
            "swap",
            f"{', '.join(kernel.plain_swap)} not encrypted: guests' memory may stay on it",
            "swapoff -a, or swap on dm-crypt",
        )
    else:
        yield ok("swap", "none that keeps guests' memory in clear")


def _processor(host: Host) -> Diagnosis:
    processor, verdict = host.processor, host.trial.verdict
    flag = "vmx or svm is there" if processor.flag else "neither vmx nor svm"
    where = ", this host is itself a guest" if processor.guest else ""
    found = f"{processor.cpus} usable; {flag}{where} (a hint, not proof)"
    if processor.flag or (verdict is not None and verdict.accelerator.isolates):
        return ok("cpu", found)
    return advice(
        "cpu",
        found,
        "use a bare-metal host, or ask for nested virtualization"
        if processor.guest
        else "switch on VT-x or AMD-V in the firmware",
    )


def _kvm_device(asked: Asked, kvm: Device | None) -> Diagnosis:
    check = "kvm-device"
    if kvm is None:
        return advice(
            check, "no /dev/kvm", "modprobe kvm_intel or kvm_amd, if the processor virtualizes"
        )
    found = f"/dev/kvm: group {kvm.group}, mode {kvm.mode:04o}"
    if kvm.anyone_may:
        return advice(check, f"{found}: every local user may use KVM", _OPEN_KVM)
    if not kvm.we_may:
        remedy = f"adduser {asked.user} kvm, then log in again"
        return advice(
            check,
            f"{found}: closed to {asked.user}",
            remedy if kvm.group_may and kvm.group == "kvm" else _OPEN_KVM,
        )
    if asked.privileged and not kvm.group_may:
        return advice(check, f"{found}: closed to QEMU, which runs as a user of its own", _OPEN_KVM)
    return ok(check, found)


def _accelerator(host: Host) -> Diagnosis:
    check, verdict = "accelerator", host.trial.verdict
    if verdict is None:
        return advice(check, f"not tried: {host.trial.untried}", _after(host))
    if verdict.accelerator is Accelerator.KVM:
        return ok(check, f"KVM: {verdict.reason}")
    return advice(
        check,
        f"emulation only (TCG), {NO_BOUNDARY}: {verdict.reason}",
        (
            "use a bare-metal host or one with nested virtualization that works"
            if verdict.proved
            else "remedy kvm-device, then run vmrun doctor again"
        )
        + "; for trials without real data: vmrun run --allow-emulation …",
    )


def _after(host: Host) -> str:
    if host.software.libvirt.error:
        return "remedy libvirt, then run vmrun doctor again"
    if host.state.error:
        return "remedy state, then run vmrun doctor again"
    if all(base.digest is None for base in host.bases):
        return "vmrun base build, then vmrun doctor"
    return "vmrun doctor, without --no-trial"


def _vsock(vsock: Device | None) -> Diagnosis:
    if vsock is None:
        return ok("vsock", "no /dev/vhost-vsock; not needed, vmrun talks over virtio-serial")
    return ok("vsock", "/dev/vhost-vsock is there; not needed, vmrun talks over virtio-serial")


def _seccomp(kernel: Kernel, qemu: Qemu) -> Diagnosis:
    check = "seccomp"
    if not kernel.seccomp:
        return fault(
            check, "the kernel has none", "boot a kernel with CONFIG_SECCOMP_FILTER, as Debian's is"
        )
    if not qemu.sandbox:
        return fault(
            check,
            "this QEMU was built without: it takes no -sandbox",
            "use the distribution's: apt install qemu-system-x86",
        )
    return ok(check, "the kernel has it and QEMU takes -sandbox")


def _cgroups(asked: Asked, kernel: Kernel) -> Diagnosis:
    check, cgroups = "cgroups", kernel.cgroups
    found = cgroups.version or "none mounted"
    if not asked.privileged:
        return advice(
            check,
            f"{found}; QEMU stays in {asked.user}'s own group, with no memory limit for each guest",
            "run vmrun as root, or limit all of it: systemd-run --user --scope -p MemoryMax=1G …",
        )
    if not cgroups.memory:
        return advice(
            check,
            f"{found}, without a memory controller: QEMU's memory is not limited",
            "boot with cgroup_enable=memory, or have the controller delegated to this container",
        )
    if not cgroups.writable:
        return advice(
            check,
            f"{found}, read-only: QEMU's memory is not limited",
            "mount /sys/fs/cgroup writable, or have a group delegated to this container",
        )
    return ok(check, f"{found}; the memory controller limits each guest's QEMU")


def _apparmor(asked: Asked, kernel: Kernel) -> Diagnosis:
    check = "apparmor"
    if not kernel.apparmor:
        return advice(
            check,
            "off: one wall fewer around QEMU",
            "apt install apparmor, and boot with apparmor=1 security=apparmor",
        )
    if not asked.embedded:
        return ok(check, f"on; libvirt at {asked.connect} decides whether it confines QEMU")
    if not asked.privileged:
        return ok(check, "on; libvirt confines QEMU by it only when root runs vmrun")
    if kernel.apparmor_profile:
        return ok(check, "on, with a profile under which libvirt confines QEMU")
    return advice(
        check,
        "on, but no profile is loaded under which libvirt would confine QEMU",
        "apt install libvirt-daemon-system, whose profiles and templates these are",
    )


def _user_namespaces(asked: Asked, kernel: Kernel) -> Diagnosis:
    check = "user-namespaces"
    if kernel.namespaces_off:
        return advice(
            check,
            f"off: {', '.join(kernel.namespaces_off)}",
            "set it above 0; guests run without, bases are better built by root then",
        )
    if not kernel.subordinate_ids:
        return advice(
            check,
            f"open, but {asked.user} has no ids in /etc/subuid",
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {asked.user}",
        )
    return ok(check, f"open to {asked.user}")
