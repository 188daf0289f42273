"""Keys of encrypted disks on their way through libvirt to QEMU.

libvirt keeps a key as a secret and gives it to QEMU encrypted with a key of the guest's own. A
daemon keeps an ephemeral secret in its memory. The embedded driver of libvirt 9.0 crashes on those
(``secretDefineXML`` calls a callback that only daemons have), so there the secret is an ordinary
one whose file lies in memory, in the folder that libvirt documents for it
(https://libvirt.org/drvsecret.html), until QEMU has started. The guest's own key and QEMU's log,
which has the encrypted one in it, lie in memory too: no disk of the host ever holds either.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import libvirt

from vmrun.hypervisor.connection import open_daemon
from vmrun.hypervisor.remains import lies_in_memory, memory_of
from vmrun.model.errors import HypervisorError
from vmrun.model.plan import EMBEDDED

_SECRETS = Path("etc/secrets")
_IN_MEMORY = {_SECRETS: "secrets", Path("lib"): "lib", Path("log"): "log"}
_XML = (
    "<secret ephemeral='{ephemeral}' private='yes'><uuid>{uuid}</uuid>"
    "<description>vmrun: a disk of one guest</description></secret>"
)


def keep_root_in_memory(root: Path, domain: str) -> None:
    """Let what the embedded driver writes below ``root`` about keys lie in memory; before it is
    opened. :func:`vmrun.hypervisor.remains.remove_remains` removes it.

    Not all of it: libvirt moves the host's /dev/shm to a place below ``run`` for QEMU.
    Raises :class:`HypervisorError`.
    """
    memory = memory_of(domain)
    if not lies_in_memory(memory.parent):
        raise HypervisorError(
            f"{memory.parent} is no tmpfs: keys of encrypted disks would lie on a disk",
            hint=f"mount a tmpfs there: mount -t tmpfs tmpfs {memory.parent}",
        )
    try:
        # QEMU runs as a user of its own and must be able to walk through.
        memory.mkdir(mode=0o711)
        for path, name in _IN_MEMORY.items():
            (memory / name).mkdir(mode=0o700 if path == _SECRETS else 0o711)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(memory / name)
    except OSError as error:
        raise HypervisorError(f"cannot write {error.filename}: {error.strerror}") from error


@contextlib.contextmanager
def unlocked(connect: str, root: Path, keys: Mapping[str, bytes]) -> Iterator[None]:
    """Let libvirt know ``keys`` by their secrets' uuids while the guest is created in the block,
    by the thread that entered it. Raises :class:`HypervisorError`.

    Where libvirt is embedded its driver is open at ``root`` already, which was given to
    :func:`keep_root_in_memory` before.
    """
    if not keys:
        yield
        return
    embedded = connect == EMBEDDED
    secrets: list[libvirt.virSecret] = []
    with _identity() if embedded else contextlib.nullcontext():
        try:
            connection = open_daemon(f"secret:///embed?root={root}" if embedded else connect)
            for uuid, key in keys.items():
                xml = _XML.format(ephemeral="no" if embedded else "yes", uuid=uuid)
                secrets.append(connection.secretDefineXML(xml))
                secrets[-1].setValue(key)
        except libvirt.libvirtError as error:
            _forget(secrets, root, embedded=embedded)
            raise HypervisorError(
                f"libvirt does not take the key of a disk: {error}",
                hint="it needs its driver for secrets, which Debian has in libvirt-daemon",
            ) from error
        try:
            yield
        finally:
            _forget(secrets, root, embedded=embedded)


def _forget(secrets: list[libvirt.virSecret], root: Path, *, embedded: bool) -> None:
    for secret in secrets:
        with contextlib.suppress(libvirt.libvirtError):
            if embedded:
                # Undefining would call the missing callback, too.
                secret.setValue(b"forgotten")
            else:
                secret.undefine()
    if embedded:
        with contextlib.suppress(OSError):
            shutil.rmtree((root / _SECRETS).resolve())


@contextlib.contextmanager
def _identity() -> Iterator[None]:
    """Be the libvirt of this host to libvirt's own secret driver, in this thread.

    It hands out private secrets to nobody else, and an embedded driver has no identity until its
    program sets one, as libvirt's own virt-qemu-run does (src/qemu/qemu_shim.c). libvirt exports
    the two functions for that to its own programs only; they have been there since 1.1.
    """
    try:
        library = ctypes.CDLL("libvirt.so.0")
        system, set_current = library.virIdentityGetSystem, library.virIdentitySetCurrent
    except (OSError, AttributeError):
        raise HypervisorError(
            "this libvirt cannot unlock encrypted disks by itself",
            hint="run with a daemon: --connect qemu:///system",
        ) from None
    system.restype = ctypes.c_void_p
    set_current.argtypes = [ctypes.c_void_p]
    identity = system()
    if not identity or set_current(identity) != 0:
        raise HypervisorError(
            "libvirt does not let this process unlock disks", hint="see 'vmrun doctor'"
        )
    try:
        yield
    finally:
        set_current(None)
