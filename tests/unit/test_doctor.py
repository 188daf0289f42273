"""What ``vmrun doctor`` makes of what it reads: facts in, diagnoses out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmrun.cli.doctor import lines
from vmrun.cli.output import as_json
from vmrun.host.accelerator import Verdict
from vmrun.host.checks.facts import (
    Asked,
    BaseFound,
    Cgroups,
    Device,
    Host,
    Kernel,
    Libvirt,
    Processor,
    Qemu,
    Software,
    State,
    Trial,
)
from vmrun.host.doctor import diagnose
from vmrun.model.base import Flavour
from vmrun.model.diagnosis import CheckState, Diagnosis, Examination
from vmrun.model.digest import Digest
from vmrun.model.plan import Accelerator
from vmrun.model.quantity import MIB

OK, ADVICE, FAULT = CheckState.OK, CheckState.ADVICE, CheckState.FAULT
KVM = Device("kvm", 0o660, group_may=True, anyone_may=False, we_may=True)

GOOD = Host(
    asked=Asked("root", True, "embedded", 128 * MIB, Flavour.MINIMAL),
    software=Software(
        name="Debian GNU/Linux 12 (bookworm)",
        distribution="debian",
        release="12",
        kernel="6.1.0-31-amd64",
        architecture="x86_64",
        python="3.11.2",
        libvirt=Libvirt("9.0.0", "9.0.0"),
        libvirt_user=True,
        qemu=Qemu("7.2.22", sandbox=True),
        missing_tools={},
        missing_disk_tools={},
        docker="",
    ),
    processor=Processor(4, flag=True, guest=False, smt=False, vulnerable=()),
    kvm=KVM,
    vsock=None,
    kernel=Kernel(
        cgroups=Cgroups("v2", memory=True, writable=True),
        seccomp=True,
        apparmor=True,
        apparmor_profile=True,
        namespaces_off=(),
        subordinate_ids=True,
        ksm=False,
        plain_swap=(),
        memory_folder=True,
        memory=8192 * MIB,
    ),
    state=State("/var/lib/vmrun", 100_000 * MIB),
    bases=tuple(BaseFound(flavour, Digest.of(flavour.encode())) for flavour in Flavour),
    trial=Trial(Verdict(Accelerator.KVM, "a guest booted with KVM", proved=True)),
)
PLAIN = replace(GOOD, asked=replace(GOOD.asked, user="alice", privileged=False))


def software(**changes: object) -> Host:
    return replace(GOOD, software=replace(GOOD.software, **changes))  # type: ignore[arg-type]


def processor(**changes: object) -> Host:
    return replace(GOOD, processor=replace(GOOD.processor, **changes))  # type: ignore[arg-type]


def kernel(host: Host = GOOD, **changes: object) -> Host:
    return replace(host, kernel=replace(host.kernel, **changes))  # type: ignore[arg-type]


def state(**changes: object) -> Host:
    return replace(GOOD, state=replace(GOOD.state, **changes))  # type: ignore[arg-type]


def minimal(base: BaseFound) -> Host:
    return replace(GOOD, bases=(base, GOOD.bases[1]))


def docker(base: BaseFound) -> Host:
    return replace(GOOD, bases=(GOOD.bases[0], base))


def tcg(reason: str, *, proved: bool) -> Trial:
    return Trial(Verdict(Accelerator.TCG, reason, proved=proved))


def check(examination: Examination, name: str) -> Diagnosis:
    (found,) = [each for each in examination.checks if each.id == name]
    return found


def test_a_good_host_needs_nothing() -> None:
    examination = diagnose(GOOD)
    assert {each.state for each in examination.checks} == {OK}
    assert examination.verdict.usable
    assert examination.verdict.isolated
    assert examination.verdict.text == "vmrun can run containers here, each isolated by KVM"


def closed(**changes: object) -> Device:
    return replace(KVM, **changes)  # type: ignore[arg-type]


CASES = [
    (software(architecture="aarch64"), "system", FAULT, "x86_64"),
    (software(release="11"), "system", ADVICE, "Debian 12"),
    (software(distribution="fedora", release="42"), "system", ADVICE, "Debian 12"),
    (software(release=""), "system", OK, ""),
    (software(libvirt=Libvirt("", "", "not installed", "pip install")), "libvirt", FAULT, "pip"),
    (software(libvirt=Libvirt("9.0.0", "8.10.0")), "libvirt", ADVICE, "9.0"),
    (software(libvirt=Libvirt("12.8.0", "10.0.0")), "libvirt", OK, ""),
    (software(libvirt_user=False), "libvirt-user", FAULT, "make setup"),
    (software(qemu=Qemu("", sandbox=False)), "qemu", FAULT, "qemu-system-x86"),
    (software(qemu=Qemu("6.2.0", sandbox=True)), "qemu", ADVICE, "7.2"),
    (software(qemu=Qemu("10.0.2", sandbox=True)), "qemu", OK, ""),
    (software(qemu=Qemu("7.2.22", sandbox=False)), "seccomp", FAULT, "qemu-system-x86"),
    (kernel(seccomp=False), "seccomp", FAULT, "kernel"),
    (
        software(missing_tools={"mkfs.erofs": "erofs-utils", "musl-gcc": "musl-tools"}),
        "build-tools",
        ADVICE,
        "apt install erofs-utils musl-tools",
    ),
    (
        software(missing_disk_tools={"mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}),
        "disk-tools",
        ADVICE,
        "apt install e2fsprogs qemu-utils",
    ),
    (kernel(memory_folder=False), "key-memory", ADVICE, "mount -t tmpfs"),
    (replace(GOOD, kvm=None), "kvm-device", ADVICE, "modprobe"),
    (replace(GOOD, kvm=closed(mode=0o666, anyone_may=True)), "kvm-device", ADVICE, "0660"),
    (
        replace(GOOD, kvm=closed(group="root", mode=0o600, group_may=False)),
        "kvm-device",
        ADVICE,
        "chgrp kvm",
    ),
    (replace(PLAIN, kvm=closed(we_may=False)), "kvm-device", ADVICE, "adduser alice kvm"),
    (
        replace(PLAIN, kvm=closed(group="root", mode=0o600, group_may=False, we_may=False)),
        "kvm-device",
        ADVICE,
        "chgrp kvm",
    ),
    (kernel(cgroups=Cgroups("", False, False)), "cgroups", ADVICE, "cgroup_enable=memory"),
    (kernel(cgroups=Cgroups("v2", True, False)), "cgroups", ADVICE, "writable"),
    (kernel(cgroups=Cgroups("hybrid", True, True)), "cgroups", OK, ""),
    (PLAIN, "cgroups", ADVICE, "systemd-run"),
    (kernel(apparmor=False), "apparmor", ADVICE, "apparmor=1"),
    (kernel(apparmor_profile=False), "apparmor", ADVICE, "libvirt-daemon-system"),
    (PLAIN, "apparmor", OK, ""),
    (PLAIN, "user-namespaces", OK, ""),
    (
        kernel(PLAIN, namespaces_off=("user.max_user_namespaces = 0",)),
        "user-namespaces",
        ADVICE,
        "above 0",
    ),
    (kernel(PLAIN, subordinate_ids=False), "user-namespaces", ADVICE, "--add-subuids"),
    (state(error="cannot write it", hint="free some"), "state", FAULT, "free some"),
    (state(free=1024 * MIB), "disk", ADVICE, "VMRUN_STATE_DIR"),
    (state(free=8 * MIB), "disk", FAULT, "VMRUN_STATE_DIR"),
    (kernel(memory=100 * MIB), "memory", FAULT, "--memory"),
    (state(reclaimed=("0123456789ab",)), "leftovers", OK, ""),
    (state(unreclaimed=("0123456789ab",)), "leftovers", ADVICE, "tries again"),
    (state(kept=("web",)), "kept-guests", ADVICE, "vmrun rm web"),
    (
        minimal(BaseFound(Flavour.MINIMAL, None)),
        "base-minimal",
        FAULT,
        "vmrun base build --flavour minimal",
    ),
    (
        docker(BaseFound(Flavour.DOCKER, None)),
        "base-docker",
        ADVICE,
        "vmrun base build --flavour docker",
    ),
    (
        docker(BaseFound(Flavour.DOCKER, None, "root.img differs", "build it again")),
        "base-docker",
        ADVICE,
        "build it again",
    ),
    (processor(vulnerable=("mds",)), "cpu-vulnerabilities", ADVICE, "microcode"),
    (processor(smt=True), "smt", ADVICE, "nosmt"),
    (kernel(ksm=True), "ksm", ADVICE, "ksm/run"),
    (kernel(plain_swap=("/dev/sda2",)), "swap", ADVICE, "swapoff"),
]


@pytest.mark.parametrize(
    ("host", "name", "expected", "remedy"), CASES, ids=[f"{c[1]}-{c[2]}" for c in CASES]
)
def test_a_fact_leads_to_its_state_and_remedy(
    host: Host, name: str, expected: CheckState, remedy: str
) -> None:
    examination = diagnose(host)
    found = check(examination, name)
    assert found.state is expected
    assert remedy in found.remedy
    assert examination.verdict.usable is (expected is not FAULT)
    for each in examination.checks:
        assert bool(each.remedy) is (each.state is not OK), each


def test_emulation_is_usable_and_said_to_be_no_boundary() -> None:
    examination = diagnose(replace(GOOD, trial=tcg("it hangs on KVM", proved=True)))
    found = check(examination, "accelerator")
    assert found.state is ADVICE
    assert "NOT a security boundary" in found.found
    assert "it hangs on KVM" in found.found
    assert "--allow-emulation" in found.remedy
    verdict = examination.verdict
    assert (verdict.usable, verdict.isolated) == (True, False)
    assert verdict.accelerator is Accelerator.TCG
    assert "NOT a security boundary" in verdict.text


def test_without_a_device_the_device_is_to_be_remedied_first() -> None:
    host = replace(GOOD, kvm=None, trial=tcg("there is no /dev/kvm", proved=False))
    assert "kvm-device" in check(diagnose(host), "accelerator").remedy


def test_kvm_untried_is_not_called_isolated() -> None:
    examination = diagnose(replace(GOOD, trial=Trial(None, "no guest has been booted")))
    assert check(examination, "accelerator").state is ADVICE
    assert "--no-trial" in check(examination, "accelerator").remedy
    verdict = examination.verdict
    assert (verdict.usable, verdict.isolated, verdict.accelerator) == (True, False, None)


def test_without_a_base_the_accelerator_asks_for_one() -> None:
    bases = tuple(BaseFound(flavour, None) for flavour in Flavour)
    host = replace(GOOD, bases=bases, trial=Trial(None, "there is no base to boot"))
    assert "vmrun base build" in check(diagnose(host), "accelerator").remedy


def test_a_guest_seen_to_boot_outweighs_the_processors_word() -> None:
    assert check(diagnose(processor(flag=False)), "cpu").state is OK
    untried = replace(processor(flag=False, guest=True), trial=Trial(None, "no base"))
    assert "nested" in check(diagnose(untried), "cpu").remedy


def test_the_default_engine_decides_which_base_is_needed() -> None:
    host = docker(BaseFound(Flavour.DOCKER, None))
    host = replace(host, asked=replace(host.asked, flavour=Flavour.DOCKER))
    assert check(diagnose(host), "base-docker").state is FAULT


def test_the_verdict_names_what_is_at_fault() -> None:
    host = software(libvirt_user=False, qemu=Qemu("", sandbox=False))
    verdict = diagnose(host).verdict
    assert not verdict.usable
    assert "libvirt-user, qemu" in verdict.text


def test_lines_are_aligned_and_a_remedy_follows_its_check() -> None:
    shown = list(lines(diagnose(kernel(ksm=True)), colour=False))
    columns = {line.index(line.split()[1]) for line in shown[:-1] if not line.startswith(" ")}
    assert columns == {len("advice") + 2}
    at = next(number for number, line in enumerate(shown) if " ksm " in line)
    assert shown[at].startswith("advice  ksm ")
    assert shown[at + 1].strip().startswith("→ echo 2")
    assert shown[-1] == "vmrun can run containers here, each isolated by KVM"
    assert not any("\x1b" in line for line in shown)


def test_what_programs_said_cannot_break_a_line_or_colour_it() -> None:
    host = state(error="first\nsecond \x1b[31mred", hint="try")
    shown = [line for line in lines(diagnose(host), colour=False) if "second" in line]
    assert len(shown) == 1
    assert shown[0].startswith("fault")
    assert "\x1b" not in shown[0]


def test_colour_is_wrapped_around_the_state() -> None:
    shown = list(lines(diagnose(GOOD), colour=True))
    assert all(line.startswith("\x1b[32m") for line in shown)


def test_json_has_the_documented_fields() -> None:
    document = as_json(diagnose(GOOD))
    assert set(document) == {"checks", "verdict"}
    assert {tuple(each) for each in document["checks"]} == {("id", "state", "found", "remedy")}
    assert document["verdict"] == {
        "usable": True,
        "accelerator": "kvm",
        "isolated": True,
        "text": "vmrun can run containers here, each isolated by KVM",
    }
