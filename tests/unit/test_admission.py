"""Admission: each profile against each loosening, the site's floor, and emulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.capability import CAPABILITIES, capability_mask, normalise_capability
from vmrun.model.errors import EXIT_REFUSED, Refused, UsageError
from vmrun.model.image import Reference, Transport
from vmrun.model.plan import Accelerator, HostFacts
from vmrun.model.workload import Limits, ProfileName, TmpfsMount, Workload
from vmrun.policy.admission import admit
from vmrun.policy.profiles import PROFILES, Profile

KVM = HostFacts(Accelerator.KVM, "", 8, 8 << 30, True, True, "embedded")
TCG = replace(KVM, accelerator=Accelerator.TCG, accelerator_reason="there is no /dev/kvm")

BASELINE, RESTRICTED, HEALTHCARE = ProfileName
STRICTNESS = [BASELINE, RESTRICTED, HEALTHCARE]
MORE_THAN_A_CONTAINER_NEEDS = sorted(
    set(CAPABILITIES) - PROFILES[BASELINE].may_add - PROFILES[RESTRICTED].may_add
)


def workload(profile: ProfileName, **asked: Any) -> Workload:
    return Workload(image=Reference(Transport.OCI, "/image"), profile=profile, **asked)


def verdict(
    profile: ProfileName,
    *,
    host: HostFacts = KVM,
    floor: ProfileName = BASELINE,
    **asked: Any,
) -> Profile:
    return admit(workload(profile, **asked), host, floor=floor)


def pids(count: int) -> Limits:
    return Limits(memory=128 << 20, cpus=1.0, pids=count, files=1024)


LOOSENINGS: dict[str, tuple[dict[str, Any], set[ProfileName]]] = {
    "nothing": ({}, {BASELINE, RESTRICTED, HEALTHCARE}),
    "read-only": ({"read_only": True}, {BASELINE, RESTRICTED, HEALTHCARE}),
    "writable root": ({"read_only": False}, {BASELINE, RESTRICTED}),
    "tmpfs": ({"tmpfs": (TmpfsMount("/x"),)}, {BASELINE, RESTRICTED, HEALTHCARE}),
    "executable tmpfs": (
        {"tmpfs": (TmpfsMount("/x"), TmpfsMount("/y", None, executable=True))},
        {BASELINE, RESTRICTED},
    ),
    "NET_BIND_SERVICE": ({"cap_add": ("NET_BIND_SERVICE",)}, {BASELINE, RESTRICTED}),
    "CHOWN": ({"cap_add": ("CHOWN",)}, {BASELINE}),
    "SETUID": ({"cap_add": ("NET_BIND_SERVICE", "cap_setuid")}, {BASELINE}),
    "SYS_ADMIN": ({"cap_add": ("SYS_ADMIN",)}, set()),
    "NET_RAW": ({"cap_add": ("NET_RAW",)}, set()),
    "1024 processes": ({"limits": pids(1024)}, {BASELINE, RESTRICTED, HEALTHCARE}),
    "1025 processes": ({"limits": pids(1025)}, {BASELINE, RESTRICTED}),
    "4096 processes": ({"limits": pids(4096)}, {BASELINE, RESTRICTED}),
    "4097 processes": ({"limits": pids(4097)}, {BASELINE}),
    "32769 processes": ({"limits": pids(32769)}, set()),
}


@pytest.mark.parametrize("profile", ProfileName)
@pytest.mark.parametrize("loosening", LOOSENINGS)
def test_each_profile_allows_what_it_names_and_no_more(
    profile: ProfileName, loosening: str
) -> None:
    asked, allowed = LOOSENINGS[loosening]
    if profile in allowed:
        assert verdict(profile, **asked) is PROFILES[profile]
        return
    with pytest.raises(Refused, match=f"profile {profile}") as caught:
        verdict(profile, **asked)
    assert caught.value.hint
    assert caught.value.exit_status == EXIT_REFUSED


@pytest.mark.parametrize("floor", ProfileName)
@pytest.mark.parametrize("profile", ProfileName)
def test_the_floor_of_the_site(profile: ProfileName, floor: ProfileName) -> None:
    if STRICTNESS.index(profile) >= STRICTNESS.index(floor):
        assert verdict(profile, floor=floor).name is profile
        return
    with pytest.raises(Refused, match=f"below this site's minimum, {floor}") as caught:
        verdict(profile, floor=floor, allow_emulation=True)
    assert f"--profile {floor}" in caught.value.hint


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("host", [KVM, TCG], ids=["kvm", "tcg"])
@pytest.mark.parametrize("profile", ProfileName)
def test_only_healthcare_insists_on_kvm(
    profile: ProfileName, host: HostFacts, allowed: bool
) -> None:
    if profile is HEALTHCARE and host is TCG and not allowed:
        with pytest.raises(Refused, match=r"requires KVM.*there is no /dev/kvm") as caught:
            verdict(profile, host=host)
        assert "--allow-emulation" in caught.value.hint
    else:
        assert verdict(profile, host=host, allow_emulation=allowed).name is profile


def test_leave_to_emulate_loosens_nothing_else() -> None:
    with pytest.raises(Refused, match="read-only root"):
        verdict(HEALTHCARE, host=TCG, allow_emulation=True, read_only=False)


@pytest.mark.parametrize("profile", ProfileName)
@pytest.mark.parametrize(
    "name", ["ALL", "", "CAP_", "NET BIND SERVICE", "CAP_CAP_CHOWN", "SYS-ADMIN"]
)
def test_an_unknown_capability_is_bad_usage(profile: ProfileName, name: str) -> None:
    with pytest.raises(UsageError, match="--cap-add: unknown capability") as caught:
        verdict(profile, cap_add=(name,))
    assert repr(name) in caught.value.message


@pytest.mark.parametrize("profile", ProfileName)
@pytest.mark.parametrize("name", MORE_THAN_A_CONTAINER_NEEDS)
def test_no_profile_gives_a_way_out(profile: ProfileName, name: str) -> None:
    with pytest.raises(Refused, match=name):
        verdict(profile, cap_add=(name,))


def test_a_refusal_says_what_would_be_allowed() -> None:
    with pytest.raises(Refused) as caught:
        verdict(RESTRICTED, cap_add=("chown",))
    assert "CAP_NET_BIND_SERVICE" in caught.value.hint
    with pytest.raises(Refused) as caught:
        verdict(HEALTHCARE, cap_add=("chown",))
    assert "none" in caught.value.hint


def test_stricter_profiles_allow_nothing_that_laxer_ones_do_not() -> None:
    for lax, strict in ((BASELINE, RESTRICTED), (RESTRICTED, HEALTHCARE)):
        a, b = PROFILES[lax], PROFILES[strict]
        assert a.strictness < b.strictness
        assert a.may_add >= b.may_add
        assert a.capabilities >= b.capabilities
        assert a.max_pids >= b.max_pids
        for field in ("allow_root", "allow_writable_root", "allow_executable_tmpfs"):
            assert getattr(a, field) >= getattr(b, field)
        assert a.require_isolation <= b.require_isolation


@given(st.sampled_from(CAPABILITIES), st.booleans(), st.booleans())
def test_capabilities_are_named_in_any_case_with_or_without_prefix(
    name: str, lower: bool, bare: bool
) -> None:
    written = name.removeprefix("CAP_") if bare else name
    assert normalise_capability(written.lower() if lower else written) == name


def test_the_mask_is_what_the_kernel_writes() -> None:
    assert capability_mask(()) == 0
    assert capability_mask(("CAP_CHOWN",)) == 1
    assert capability_mask(("CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN")) == (1 << 10) | (1 << 21)
    assert capability_mask(CAPABILITIES) == (1 << 41) - 1
