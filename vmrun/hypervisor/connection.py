"""Connections to libvirt: embedded in this process, or to a daemon by URI.

One process can open one embedded root in its life, so the connection is made once and kept.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import libvirt

from vmrun.host.lock import exclusive
from vmrun.hypervisor.capabilities import become_subreaper, seed
from vmrun.model.errors import HypervisorError

_QEMU_CONF = """\
# Written by vmrun for one guest.
stdio_handler = "file"
# Several roots share a base: libvirt must not record owners on it.
remember_owner = 0
seccomp_sandbox = 1
max_core = 0
"""

_QEMU_CONF_ROOT = """\
# No guest runs as this user: each domain names a uid of its own, which is read back live.
# libvirt asks only whether this user may open /dev/kvm, and probes QEMU again and again when
# the answer differs from what the probe itself could do.
user = "root"
group = "root"
"""

_NO_ROOM = "free disk space where vmrun keeps its state, see 'vmrun doctor'"
_loop_started = False


def open_embedded(root: Path, *, cache: Path) -> libvirt.virConnect:
    """Run libvirt's QEMU driver in this process, with its state below ``root``.

    ``cache`` keeps QEMU's capabilities between roots. First opens are serialised across
    processes: libvirt's start-up is not safe against itself. Raises :class:`HypervisorError`.
    """
    try:
        seed(root, cache=cache)
        with exclusive(cache / "lock"):
            connection = open_root(root)
    except OSError as error:
        raise HypervisorError(f"cannot write {root}: {_reason(error)}", hint=_NO_ROOM) from error
    # Loads the seeded capabilities now: from here on libvirt starts nothing but the guest.
    connection.getDomainCapabilities(None, "x86_64", "q35", "qemu")
    become_subreaper()
    return connection


def open_root(root: Path) -> libvirt.virConnect:
    """Open an embedded root as it is."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "qemu.conf").write_text(
        _QEMU_CONF + (_QEMU_CONF_ROOT if os.geteuid() == 0 else "")
    )
    return _open(f"qemu:///embed?root={root}")


def open_daemon(uri: str) -> libvirt.virConnect:
    """Connect to a libvirt daemon, e.g. ``qemu:///system``."""
    return _open(uri)


def _reason(error: OSError) -> str:
    """Why: copying several files raises one error that has those of all of them."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])[:200]
    return error.strerror or str(error)


def _open(uri: str) -> libvirt.virConnect:
    _start_event_loop()
    try:
        connection = libvirt.open(uri)
        connection.setKeepAlive(5, 3)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise HypervisorError(
                f"cannot open {uri}: {error}",
                hint="see 'vmrun doctor' for what this host lacks",
            ) from error
    return connection


def _start_event_loop() -> None:
    global _loop_started
    if _loop_started:
        return
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    _loop_started = True
