"""From a domain's XML to a guest that has said hello on its control port."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vmrun.channel.control import ControlPort, Hello
from vmrun.channel.unix import connect_unix
from vmrun.hypervisor.guest import GuestIdentifiers, Hypervisor, LibvirtGuest
from vmrun.model.errors import GuestError
from vmrun.model.plan import Accelerator, GuestPlan
from vmrun.planning.domain_xml import Sockets
from vmrun.run.teardown import Teardown

_TAIL = 20
_FATAL = "vmrun-init: fatal:"
_VERITY_MARKS = ("is corrupted", "dm-verity device corrupted", "verity: reached maximum errors")


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A guest that was created and let go; it may still be booting."""

    guest: LibvirtGuest
    control: ControlPort


def create_guest(
    hypervisor: Hypervisor, xml: str, plan: GuestPlan, sockets: Sockets, teardown: Teardown
) -> Provisioned:
    """Create the guest with everything connected, then let its first instruction run."""
    guest = hypervisor.create(
        xml,
        GuestIdentifiers(plan.name, plan.uuid),
        sockets,
        huge_pages=plan.accelerator is Accelerator.KVM,
    )
    teardown.add("guest", guest.destroy)
    if plan.limit_host_memory:
        guest.limit_memory(plan.memory.host)
    guest.attach_console()
    control = ControlPort(connect_unix(sockets.control, time.monotonic() + 5))
    guest.resume()
    return Provisioned(guest, control)


def wait_for_hello(provisioned: Provisioned, timeout: float) -> Hello:
    """Wait until the guest has booted; :class:`GuestError` with the console's tail if not."""
    try:
        return provisioned.control.hello(time.monotonic() + timeout, alive=provisioned.guest.alive)
    except GuestError as error:
        raise boot_failure(error, provisioned.guest.console_tail()) from error


def boot_failure(error: GuestError, console: str) -> GuestError:
    """What the console says about a boot that failed; its details are the lines that matter."""
    lines = console.splitlines()
    corrupted = [line for line in lines if any(mark in line for mark in _VERITY_MARKS)]
    fatal = [line for line in lines if _FATAL in line]
    if corrupted:
        return GuestError(
            "the guest stopped: its root is not what was built (dm-verity)",
            hint="check and rebuild the base: vmrun base verify; vmrun base build",
            details="\n".join(corrupted[:5]),
        )
    reason = fatal[0].partition(_FATAL)[2].strip() if fatal else error.message
    return GuestError(
        f"the guest did not boot: {reason}",
        hint="see 'vmrun doctor'",
        details="\n".join(lines[-_TAIL:]),
    )
