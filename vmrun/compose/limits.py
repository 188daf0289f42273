"""Limits of a service: ``deploy.resources.limits``, and the older keys beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from vmrun.compose.field import Field
from vmrun.compose.model import ServiceLimits
from vmrun.compose.values import size

_MOST_PIDS = 1 << 22
_MOST_FILES = 1 << 20
_MOST_CPUS = 1024.0
_DEPLOY_REFUSED = {
    "restart_policy": "use 'restart' of the service",
    "update_config": "'up' replaces a service at once",
    "rollback_config": "there is no rollback",
    "placement": "all services of a project are in one guest",
    "endpoint_mode": "a service is one container with one address",
    "labels": "use 'labels' of the service",
}
_RESOURCES_REFUSED = {
    "reservations": "a guest has the memory of its services' limits from the start; use 'limits'"
}
_LIMITS_REFUSED = {"devices": "no device of the host reaches a guest"}
_Value = TypeVar("_Value", int, float)


def read_limits(fields: Mapping[str, Field]) -> ServiceLimits:
    """The service's limits. Two places that say different things are an error."""
    nested = _deploy(fields["deploy"]) if "deploy" in fields else {}
    return ServiceLimits(
        memory=_one(fields.get("mem_limit"), nested.get("memory"), size),
        cpus=_one(fields.get("cpus"), nested.get("cpus"), lambda field: field.number(_MOST_CPUS)),
        pids=_one(
            fields.get("pids_limit"), nested.get("pids"), lambda field: field.integer(1, _MOST_PIDS)
        ),
        files=_files(fields["ulimits"]) if "ulimits" in fields else None,
    )


def _deploy(field: Field) -> dict[str, Field]:
    fields = field.section(("resources", "replicas", "mode"), _DEPLOY_REFUSED)
    if "mode" in fields:
        fields["mode"].choice({"replicated": None})
    if "replicas" in fields and fields["replicas"].integer(0, 1_000_000) != 1:
        raise fields["replicas"].wrong(
            "not supported: a service is one container", "write 1, or a service for each"
        )
    if "resources" not in fields:
        return {}
    resources = fields["resources"].section(("limits",), _RESOURCES_REFUSED)
    if "limits" not in resources:
        return {}
    return resources["limits"].section(("memory", "cpus", "pids"), _LIMITS_REFUSED)


def _one(
    first: Field | None, second: Field | None, read: Callable[[Field], _Value]
) -> _Value | None:
    values = [(field, read(field)) for field in (first, second) if field is not None]
    if not values:
        return None
    if len(values) == 2 and values[0][1] != values[1][1]:
        raise values[0][0].wrong(f"{values[1][0].path} says something else", "remove one of them")
    return values[0][1]


def _files(field: Field) -> int | None:
    fields = field.named()
    for name, item in fields.items():
        if name != "nofile":
            raise item.wrong(
                "not supported: vmrun limits the number of open files only",
                "for processes use pids_limit",
            )
    if "nofile" not in fields:
        return None
    limit = fields["nofile"]
    if not limit.is_mapping:
        return limit.integer(1, _MOST_FILES)
    inner = limit.section(("soft", "hard"))
    values = {name: item.integer(1, _MOST_FILES) for name, item in inner.items()}
    if len(values) != 2 or values["soft"] != values["hard"]:
        raise limit.wrong("soft and hard differ", "vmrun has one limit: write nofile: NUMBER")
    return values["hard"]
