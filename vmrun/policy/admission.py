"""Admission: may this workload run on this host under its profile? Pure; nothing exists yet."""

from __future__ import annotations

from vmrun.model.capability import CAPABILITIES, normalise_capability
from vmrun.model.errors import Refused, UsageError
from vmrun.model.plan import HostFacts
from vmrun.model.workload import ProfileName, Workload
from vmrun.policy.profiles import PROFILES, Profile


def admit(workload: Workload, host: HostFacts, *, floor: ProfileName) -> Profile:
    """The profile under which ``workload`` may run on ``host``.

    ``floor`` is the site's least strict profile. Raises :class:`Refused` for what policy
    denies and :class:`UsageError` for what means nothing.
    """
    profile = PROFILES[workload.profile]
    if profile.strictness < PROFILES[floor].strictness:
        raise Refused(
            f"profile {profile.name} is below this site's minimum, {floor}",
            hint=f"run it with --profile {floor}",
        )
    _admit_accelerator(workload, host, profile)
    _admit_capabilities(workload, profile)
    if workload.read_only is False and not profile.allow_writable_root:
        raise Refused(
            f"profile {profile.name} requires a read-only root",
            hint="leave --no-read-only out and give writable paths with --tmpfs",
        )
    for mount in workload.tmpfs:
        if mount.executable and not profile.allow_executable_tmpfs:
            raise Refused(
                f"profile {profile.name} allows no executable tmpfs ({mount.path})",
                hint="leave ',exec' out",
            )
    storage = workload.storage
    executable = [item.target for item in storage.directories if item.executable]
    executable += [item.target for item in storage.volumes if item.executable]
    if executable and not profile.allow_executable_tmpfs:
        raise Refused(
            f"profile {profile.name} allows no executable data ({executable[0]})",
            hint="leave 'exec' out of --volume",
        )
    if workload.limits.pids > profile.max_pids:
        raise Refused(
            f"--pids-limit {workload.limits.pids} is above profile {profile.name}'s maximum",
            hint=f"ask for at most {profile.max_pids}",
        )
    return profile


def _admit_accelerator(workload: Workload, host: HostFacts, profile: Profile) -> None:
    if host.accelerator.isolates or not profile.require_isolation or workload.allow_emulation:
        return
    raise Refused(
        f"profile {profile.name} requires KVM, and this host has none that works: "
        f"{host.accelerator_reason}",
        hint="see 'vmrun doctor'; for a trial without real data add --allow-emulation "
        "(the report records it)",
    )


def _admit_capabilities(workload: Workload, profile: Profile) -> None:
    for name in workload.cap_add:
        capability = normalise_capability(name)
        if capability not in CAPABILITIES:
            raise UsageError(
                f"--cap-add: unknown capability {name!r}", hint="see capabilities(7) for the names"
            )
        if capability not in profile.may_add:
            allowed = ", ".join(sorted(profile.may_add)) or "none"
            raise Refused(
                f"profile {profile.name} does not allow {capability}",
                hint=f"it allows: {allowed}",
            )
