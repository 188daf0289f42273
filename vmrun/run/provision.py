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
    """What the console says about a boot that failed."""
    if any(mark in console for mark in _VERITY_MARKS):
        return GuestError(
            "the guest stopped: its root is not what was built (dm-verity)",
            hint="check and rebuild the base: vmrun base verify; vmrun base build",
            details=console,
        )
    if "vmrun-init: fatal:" in console:
        reason = console.split("vmrun-init: fatal:", 1)[1].splitlines()[0].strip()
        return GuestError(
            f"the guest did not boot: {reason}", hint="see 'vmrun doctor'", details=console
        )
    return GuestError(
        f"the guest did not boot: {error.message}",
        hint="see 'vmrun doctor'; --keep keeps a failed guest for a look",
        details=console,
    )
