"""The top level of a compose file, but for its services (06-networks.md to 09-secrets.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.compose import unsupported
from vmrun.compose.context import Context
from vmrun.compose.field import Field
from vmrun.compose.model import Network, ProjectVolume
from vmrun.compose.values import is_long_name, is_name
from vmrun.model.storage import Secret
from vmrun.model.workload import ProfileName

DEFAULT_NETWORK = "default"
TOP_LEVEL = ("version", "name", "services", "networks", "volumes", "secrets", "x-vmrun")
_MOST = 128
_NAME_HINT = "letters, digits, and -, _ or . between them, at most 63"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Declarations:
    """What services may refer to, by name."""

    networks: Mapping[str, Network]
    volumes: Mapping[str, ProjectVolume]
    secrets: Mapping[str, Secret]


def read_declarations(top: Mapping[str, Field], context: Context) -> Declarations:
    """Networks, volumes and secrets of the project."""
    networks = _each(top, "networks")
    return Declarations(
        networks={
            DEFAULT_NETWORK: Network(DEFAULT_NETWORK),
            **{name: _network(name, field) for name, field in networks.items()},
        },
        volumes={key: _volume(key, field, context) for key, field in _each(top, "volumes").items()},
        secrets={
            name: _secret(name, field, context) for name, field in _each(top, "secrets").items()
        },
    )


def read_own(top: Mapping[str, Field]) -> tuple[str | None, ProfileName | None]:
    """``x-vmrun``: the tenant and the profile."""
    if "x-vmrun" not in top:
        return None, None
    fields = top["x-vmrun"].section(("tenant", "profile"), extensions=False)
    tenant = fields["tenant"].word() if "tenant" in fields else None
    if tenant is not None and not is_name(tenant):
        raise fields["tenant"].wrong(f"not a name: {tenant[:80]!r}", "letters, digits and hyphens")
    profiles = {str(name): name for name in ProfileName}
    return tenant, fields["profile"].choice(profiles) if "profile" in fields else None


def _each(top: Mapping[str, Field], key: str) -> dict[str, Field]:
    if key not in top or top[key].null:
        return {}
    fields = top[key].named(_MOST)
    for name, field in fields.items():
        if not is_long_name(name):
            raise field.wrong(f"not a name: {name[:80]!r}", _NAME_HINT)
    return fields


def _network(name: str, field: Field) -> Network:
    if field.null:
        return Network(name)
    fields = field.section(("internal", "driver"), unsupported.NETWORK)
    if "driver" in fields:
        fields["driver"].choice({"bridge": None})
    return Network(name, "internal" in fields and fields["internal"].boolean())


def _volume(key: str, field: Field, context: Context) -> ProjectVolume:
    own = f"{context.project}_{key}"
    fields = {} if field.null else field.section(("name", "external"), unsupported.VOLUME)
    external = "external" in fields and fields["external"].boolean()
    name = fields["name"].word() if "name" in fields else key if external else own
    if not is_long_name(name):
        raise field.wrong(f"not a name: {name[:80]!r}", _NAME_HINT)
    return ProjectVolume(key, name, external)


def _secret(name: str, field: Field, context: Context) -> Secret:
    fields = field.section(("file", "environment"), unsupported.SECRET)
    if len(fields) != 1:
        raise field.wrong("names no source, or two", "write 'file: PATH' or 'environment: NAME'")
    if "file" in fields:
        return Secret(name, source=context.host_path(fields["file"]))
    variable = fields["environment"].word()
    if _VARIABLE.fullmatch(variable) is None:
        raise fields["environment"].wrong(
            f"not the name of a variable: {variable[:80]!r}", "letters, digits and _"
        )
    return Secret(name, variable=variable)
