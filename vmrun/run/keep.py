"""Keeping a failed guest for a look: its lease is extended, and a key for it is written."""

from __future__ import annotations

import sys

from vmrun.channel.control import ControlPort
from vmrun.channel.keys import ClientKey
from vmrun.model.errors import VmrunError
from vmrun.run.state import GuestDirectory

KEEP_SECONDS = 3600


def keep_guest(
    directory: GuestDirectory, control: ControlPort, *, client_key: ClientKey, host_key: str
) -> str:
    """Keep the guest for an hour and say how to look at it; empty if it cannot be kept.

    From here on the client key lies in the guest's private directory: the guest has failed, and
    its workload does not run any more.
    """
    try:
        control.extend_lease(KEEP_SECONDS)
    except VmrunError:
        return ""
    key = directory.path / "key"
    key.touch(mode=0o600)
    key.write_text(client_key.pem)
    known_hosts = directory.path / "known_hosts"
    known_hosts.write_text(f"vmrun-guest {host_key}\n")
    directory.keep(KEEP_SECONDS)
    socket = directory.path / "ssh.1"
    return (
        f"ssh -i {key} -o UserKnownHostsFile={known_hosts} -o HostKeyAlias=vmrun-guest "
        f"-o ProxyCommand='{sys.executable} -m vmrun dial {socket}' root@guest"
    )
