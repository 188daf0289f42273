"""One service of a compose file (Compose specification, 05-services.md)."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from vmrun.compose import unsupported
from vmrun.compose.attachment import check_network, read_allow, read_networks
from vmrun.compose.context import Context
from vmrun.compose.environment import read_environment, read_labels
from vmrun.compose.field import Field
from vmrun.compose.lifecycle import (
    read_dependencies,
    read_healthcheck,
    read_restart,
    read_stop_signal,
)
from vmrun.compose.limits import read_limits
from vmrun.compose.model import NO_RESTART, Service
from vmrun.compose.mounts import read_mounts
from vmrun.compose.ports import read_expose, read_ports
from vmrun.compose.toplevel import Declarations
from vmrun.compose.values import checked_path, duration, is_name
from vmrun.image.reference import parse_reference
from vmrun.model.capability import CAPABILITIES, normalise_capability
from vmrun.model.errors import UsageError
from vmrun.model.image import Reference, Transport

KEYS = frozenset({
    "cap_add", "cap_drop", "command", "cpus", "depends_on", "deploy", "entrypoint", "env_file",
    "environment", "expose", "healthcheck", "hostname", "image", "labels", "mem_limit",
    "network_mode", "networks", "pids_limit", "platform", "ports", "read_only", "restart",
    "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal",
    "tmpfs", "tty", "ulimits", "user", "volumes", "working_dir", "x-vmrun",
})  # fmt: skip

_FILES = {Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE}
_HOSTNAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_ARGUMENTS = 1_000
_NO_NEW_PRIVILEGES = {"no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"}
_DETACHED = "a service has no terminal and no input; see vmrun run -it"


def read_service(name: str, field: Field, context: Context, declared: Declarations) -> Service:
    """Everything about one service but what concerns the others."""
    if not is_name(name):
        raise field.wrong(
            f"cannot name a service: {name[:80]!r}",
            "letters, digits, - and _ between them, at most 63: it is a host name on the network",
        )
    fields = field.section(KEYS, unsupported.SERVICE)
    if "image" not in fields:
        raise field.wrong("has no 'image'", "name one, e.g. registry.example.com/app:1")
    command, entrypoint = _commands(fields)
    mounts = read_mounts(fields, context, declared.volumes, declared.secrets)
    networks, aliases = read_networks(fields, declared.networks)
    _check_defaults(fields)
    service = Service(
        name=name,
        image=_image(fields["image"], context),
        command=command,
        entrypoint=entrypoint,
        environment=read_environment(fields, context),
        ports=read_ports(fields["ports"]) if "ports" in fields else (),
        expose=read_expose(fields["expose"]) if "expose" in fields else (),
        allow=read_allow(fields["x-vmrun"], context) if "x-vmrun" in fields else (),
        directories=mounts.directories,
        volumes=mounts.volumes,
        secrets=mounts.secrets,
        tmpfs=mounts.tmpfs,
        networks=networks,
        aliases=aliases,
        depends_on=read_dependencies(fields["depends_on"]) if "depends_on" in fields else (),
        limits=read_limits(fields),
        healthcheck=read_healthcheck(fields["healthcheck"]) if "healthcheck" in fields else None,
        restart=read_restart(fields["restart"]) if "restart" in fields else NO_RESTART,
        user=_matching(fields.get("user"), _USER, "NAME, UID, NAME:GROUP or UID:GID"),
        working_dir=_working_dir(fields),
        hostname=_matching(fields.get("hostname"), _HOSTNAME, "a host name without dots"),
        read_only=fields["read_only"].boolean() if "read_only" in fields else None,
        cap_add=_capabilities(fields["cap_add"]) if "cap_add" in fields else (),
        labels=read_labels(fields["labels"]) if "labels" in fields else (),
    )
    if "stop_signal" in fields:
        service = replace(service, stop_signal=read_stop_signal(fields["stop_signal"]))
    if "stop_grace_period" in fields:
        timeout = duration(fields["stop_grace_period"], zero=True)
        service = replace(service, stop_timeout=timeout)
    check_network(service, fields, declared.networks)
    return service


def _image(field: Field, context: Context) -> Reference:
    text = field.word()
    try:
        reference = parse_reference(text)
    except UsageError as error:
        raise field.rethrow(error) from None
    if reference.transport not in _FILES:
        return reference
    return replace(reference, path=os.path.normpath(context.folder / reference.path))


def _commands(
    fields: Mapping[str, Field],
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Command and entrypoint. An empty list or text sets the image's aside, which vmrun can do
    with both together only: otherwise it is an error rather than the image's own command."""
    command = _words(fields["command"]) if "command" in fields else None
    entrypoint = _words(fields["entrypoint"]) if "entrypoint" in fields else None
    if entrypoint == () and not command:
        raise fields["entrypoint"].wrong("empty, and no command", "say what to execute")
    if command == () and entrypoint is None:
        raise fields["command"].wrong("empty", "remove it, or give an entrypoint as well")
    return command, entrypoint


def _words(field: Field) -> tuple[str, ...] | None:
    if field.null:
        return None
    if field.is_list:
        return tuple(item.text(empty=True) for item in field.items(_ARGUMENTS))
    try:
        words = shlex.split(field.text(empty=True))
    except ValueError as error:
        raise field.wrong(f"cannot be split into words: {error}", "write it as a list") from None
    return tuple(words)


def _matching(field: Field | None, form: re.Pattern[str], expected: str) -> str | None:
    if field is None:
        return None
    text = field.word()
    if form.fullmatch(text) is None:
        raise field.unusable(expected)
    return text


def _working_dir(fields: Mapping[str, Field]) -> str | None:
    if "working_dir" not in fields:
        return None
    field = fields["working_dir"]
    return checked_path(field, field.word())


def _capabilities(field: Field) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for item in field.items(64):
        name = normalise_capability(item.word())
        if name == "CAP_ALL":
            raise item.wrong("ALL is not supported", "name those that the workload needs")
        if name not in CAPABILITIES:
            raise item.unusable("a capability", "see capabilities(7), e.g. NET_BIND_SERVICE")
        found[name] = None
    return tuple(found)


def _check_defaults(fields: Mapping[str, Field]) -> None:
    """Keys that may say what is so anyway, and nothing else."""
    added = _capabilities(fields["cap_add"]) if "cap_add" in fields else ()
    for item in fields["cap_drop"].items(64) if "cap_drop" in fields else ():
        name = normalise_capability(item.word())
        if name != "CAP_ALL" and name not in CAPABILITIES:
            raise item.unusable("a capability, or ALL", "see capabilities(7)")
        if name in added:
            raise item.wrong(f"{name} is in cap_add as well", "remove one of them")
    for item in fields["security_opt"].items(64) if "security_opt" in fields else ():
        if item.word() not in _NO_NEW_PRIVILEGES:
            raise item.wrong(
                f"{item.word()[:80]!r} is not supported: the profile decides how a container is "
                "confined",
                "write no-new-privileges:true, or remove it",
            )
    for key in ("tty", "stdin_open"):
        if key in fields and fields[key].boolean():
            raise fields[key].wrong(f"not supported: {_DETACHED}", "remove it")
    if "platform" in fields and fields["platform"].word() not in ("linux/amd64", "linux"):
        raise fields["platform"].unusable("linux/amd64", "guests are of that platform")
