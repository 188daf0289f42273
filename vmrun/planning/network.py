"""The wire of a container that has one, and the files by which it learns of it. Pure."""

from __future__ import annotations

import shlex

from vmrun.model.errors import UsageError
from vmrun.model.network import MOST_PORTS, NetworkPlan
from vmrun.model.storage import Bind
from vmrun.model.workload import Workload
from vmrun.policy.egress import ports_of

_GATEWAY, _ADDRESS, _PREFIX = "10.88.0.1", "10.88.0.2", 24
_FILES = "/run/vmrun-net"


def plan_network(workload: Workload, run_id: str, shared: NetworkPlan | None) -> NetworkPlan | None:
    """The wire of ``workload``: its place on a ``shared`` network, one of its own when it publishes
    or may reach anything, or none. Raises :class:`UsageError` for more ports than a relay takes
    connections to."""
    if shared is not None:
        return shared
    if not workload.publish and not workload.allow:
        return None
    listen = ports_of(workload.allow)
    if len(listen) > MOST_PORTS:
        raise UsageError(
            f"--allow names {len(listen)} different ports, {MOST_PORTS} at most are possible",
            hint="allow fewer ports; 80 and 443 are those of a rule without any",
        )
    return NetworkPlan(
        network=run_id,
        address=_ADDRESS,
        gateway=_GATEWAY,
        prefix=_PREFIX,
        publish=workload.publish,
        allow=workload.allow,
        listen=listen,
    )


def network_files(network: NetworkPlan) -> tuple[Bind, ...]:
    """What the container finds in its /etc: who answers for names, and names that need none."""
    directory = f"{_FILES}/{network.network}"
    return tuple(
        Bind(f"{directory}/{name}", f"/etc/{name}", read_only=True)
        for name in ("hosts", "resolv.conf")
    )


def lay_command(network: NetworkPlan, hostname: str) -> str:
    """Writes those files in the guest; they are the same for all containers of a network."""
    directory = shlex.quote(f"{_FILES}/{network.network}")
    own = () if network.names else ((hostname, network.address),)
    hosts = ["127.0.0.1 localhost", "::1 localhost"]
    hosts += [f"{address} {name}" for name, address in (*network.names, *own)]
    resolver = f"nameserver {network.gateway}\noptions attempts:2 timeout:5\n"
    return (
        f"mkdir -p {directory} && cd {directory} && "
        f"printf %s {shlex.quote(resolver)} >resolv.conf && "
        f"printf '%s\\n' {shlex.join(hosts)} >hosts"
    )


def remove_command(network: NetworkPlan) -> str:
    """Removes the files of a network that has no containers any more."""
    return f"rm -rf {shlex.quote(f'{_FILES}/{network.network}')}"
