"""The guest kernel's command line (kernel docs, admin-guide/kernel-parameters)."""

from __future__ import annotations

from vmrun.model.base import Verity

HARDENING = (
    "init_on_alloc=1",
    "slab_nomerge",
    "page_alloc.shuffle=1",
    "randomize_kstack_offset=on",
    "vsyscall=none",
    "oops=panic",
    "mitigations=auto",
    "lockdown=integrity",
)
"""Defences that the guest's kernel has but does not use by default."""


_QUICKER = ("cryptomgr.notests", "i8042.noaux", "i8042.nokbd")
"""Skips self-tests of ciphers and the probing of ports that the guest does not have."""


def kernel_arguments(verity: Verity, *, lease: int) -> tuple[str, ...]:
    """The whole command line: console, root hash, lease (seconds), hardening."""
    return (
        "console=ttyS0",
        "quiet",
        "loglevel=4",
        "panic=-1",
        f"vmrun.verity={verity.root_hash}:{verity.salt}:{verity.data_blocks}:{verity.hash_start}",
        f"vmrun.lease={lease}",
        *_QUICKER,
        *HARDENING,
    )
