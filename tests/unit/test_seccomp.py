"""The seccomp policy: nothing undecided, and what is dangerous is out."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vmrun.model.capability import CAPABILITIES
from vmrun.planning.seccomp import docker_seccomp, oci_seccomp, policy

SYSTEM_CALLS = frozenset(
    (Path(__file__).parent.parent / "golden" / "syscalls-x86_64.txt").read_text().split()
)
"""arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.19, the 64-bit and common ABIs."""

NEVER = [
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open",
    "userfaultfd", "keyctl", "add_key", "request_key", "mount", "umount2", "open_tree",
    "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "open_by_handle_at",
    "name_to_handle_at", "setns", "unshare", "pivot_root", "reboot", "swapon", "swapoff",
    "settimeofday", "clock_settime", "memfd_secret", "quotactl", "acct", "iopl", "ioperm",
    "modify_ldt", "fanotify_init", "clone3", "sethostname", "syslog",
]  # fmt: skip


def verdict(profile: dict[str, Any], name: str, *arguments: int) -> int | None:
    """What the filter does, as libseccomp would: None allows, a number is the errno."""
    found = []
    for rule in profile["syscalls"]:
        if name not in rule["names"]:
            continue
        for condition in rule.get("args", []):
            assert condition["op"] == "SCMP_CMP_MASKED_EQ"
            if arguments[condition["index"]] & condition["value"] != condition["valueTwo"]:
                break
        else:
            found.append(None if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"])
    assert len(set(found)) <= 1, f"{name}: rules contradict each other"
    return found[0] if found else profile["defaultErrnoRet"]


def test_every_system_call_is_decided() -> None:
    chosen = policy()
    allowed = chosen.allowed(())
    refused = Counter(n for rule in chosen.refuse if not rule.when for n in rule.names)
    decided = Counter(name for names in chosen.allow.values() for name in names)
    decided += Counter(chosen.allow_when.keys())
    decided += refused
    assert {name for name, times in decided.items() if times > 1} == set()
    assert SYSTEM_CALLS - decided.keys() == set()
    assert decided.keys() - SYSTEM_CALLS == set()
    assert allowed.isdisjoint(refused)


def test_every_refusal_has_a_reason() -> None:
    assert all(len(rule.why) > 10 for rule in policy().refuse)


def test_what_a_capability_opens_is_refused_without_it() -> None:
    chosen = policy()
    assert chosen.allow_with.keys() <= set(CAPABILITIES)
    refused = frozenset().union(*(rule.names for rule in chosen.refuse))
    for names in chosen.allow_with.values():
        assert names <= refused


@pytest.mark.parametrize("name", NEVER)
def test_never_allowed_whatever_the_capabilities(name: str) -> None:
    profile = oci_seccomp(CAPABILITIES)
    assert verdict(profile, name, 0, 0, 0) in (errno.EPERM, errno.ENOSYS)


@pytest.mark.parametrize(
    ("name", "capability"),
    [("ptrace", "CAP_SYS_PTRACE"), ("chroot", "CAP_SYS_CHROOT"), ("mbind", "CAP_SYS_NICE")],
)
def test_by_capability(name: str, capability: str) -> None:
    assert verdict(oci_seccomp(()), name) == errno.EPERM
    assert verdict(oci_seccomp([capability]), name) is None


AF = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "alg": 38, "vsock": 40}
HIGH = 1 << 32


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (AF["unix"], 1, 0), None),
        ("socket", (AF["inet"], 1, 6), None),
        ("socket", (AF["inet6"], 2, 17), None),
        ("socket", (AF["netlink"], 3, 0), None),
        ("socket", (AF["netlink"], 3, 9), errno.EINVAL),
        ("socket", (AF["netlink"], 3, 12), errno.EPERM),
        ("socket", (AF["packet"], 3, 0), errno.EPERM),
        ("socket", (AF["alg"], 5, 0), errno.EPERM),
        ("socket", (AF["vsock"], 1, 0), errno.EPERM),
        # The kernel drops the upper half of an int: so must the comparison.
        ("socket", (HIGH | AF["vsock"], 1, 0), errno.EPERM),
        ("socket", (HIGH | AF["inet"], 1, 0), None),
        ("socketpair", (AF["unix"], 1, 0), None),
        ("socketpair", (AF["inet"], 1, 0), errno.EPERM),
        ("clone", (0x3D0F00,), None),  # a thread, as glibc makes it
        ("clone", (0x11,), None),  # fork
        ("clone", (0x10000000,), errno.EPERM),  # CLONE_NEWUSER
        ("clone", (0x00020000,), errno.EPERM),  # CLONE_NEWNS
        ("clone", (0x40000000,), errno.EPERM),  # CLONE_NEWNET
        ("clone3", (0,), errno.ENOSYS),
        ("mknodat", (0, 0, 0o010644), None),  # a FIFO
        ("mknodat", (0, 0, 0o020644), errno.EPERM),  # a character device
        ("mknod", (0, 0o060644), errno.EPERM),  # a block device
        ("personality", (0,), None),
        ("personality", (0xFFFFFFFF,), None),
        ("personality", (0x0040000,), errno.EPERM),  # ADDR_NO_RANDOMIZE
        ("statmount", (), errno.ENOSYS),
        ("one_of_the_next_decade", (), errno.EPERM),
    ],
)
def test_arguments(name: str, arguments: tuple[int, ...], expected: int | None) -> None:
    assert verdict(oci_seccomp(()), name, *arguments) == expected


def test_both_engines_are_told_the_same() -> None:
    capabilities = ["CAP_SYS_CHROOT"]
    assert json.loads(docker_seccomp(capabilities)) == oci_seccomp(capabilities)


def test_only_the_64_bit_abi() -> None:
    assert oci_seccomp(())["architectures"] == ["SCMP_ARCH_X86_64"]
