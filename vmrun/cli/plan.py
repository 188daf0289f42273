"""``vmrun plan``: what ``vmrun run`` would do, without creating a thing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli import image_options as i
from vmrun.cli import options as o
from vmrun.cli.output import as_json, note, print_json
from vmrun.cli.tenant_run import of_tenant
from vmrun.model.quantity import format_size
from vmrun.model.workload import EngineName

if TYPE_CHECKING:
    from vmrun.model.storage import Bind
    from vmrun.run.preview import Preview


def plan_command(
    image: o.Image,
    command: o.Command = None,
    cpus: o.Cpus = None,
    memory: o.Memory = None,
    pids_limit: o.PidsLimit = None,
    env: o.Env = None,
    env_file: o.EnvFile = None,
    workdir: o.Workdir = None,
    user: o.User = None,
    entrypoint: o.Entrypoint = None,
    hostname: o.Hostname = None,
    tmpfs: o.Tmpfs = None,
    read_only: o.ReadOnly = None,
    cap_add: o.CapAdd = None,
    timeout: o.Timeout = None,
    publish: o.Publish = None,
    allow: o.Allow = None,
    volume: o.Volume = None,
    secret: o.Secret = None,
    scratch: o.Scratch = None,
    name: o.Name = None,
    tenant: o.Tenant = "default",
    profile: o.Profile = None,
    allow_emulation: o.AllowEmulation = False,
    engine: o.Engine = None,
    base: o.Base = None,
    connect: o.Connect = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    policy: i.Policy = None,
    trust_rules: i.TrustRules = None,
    advisories: i.Advisories = None,
    json: Annotated[
        bool, typer.Option("--json", help="The whole plan, with domain XML and OCI spec.")
    ] = False,
) -> None:
    """Print what run would do with the same options, without creating a thing."""
    settings = i.settings_with(
        cert_dir=cert_dir,
        authfile=authfile,
        policy=policy,
        trust_rules=trust_rules,
        advisories=advisories,
    )
    raw = o.RawOptions(**{key: value for key, value in locals().items() if key in o.NAMES})
    _, settings = of_tenant(settings, raw.tenant)
    workload = o.make_workload(raw, settings, dict(os.environ))

    from vmrun.planning.container_spec import docker_create, oci_spec
    from vmrun.run.preview import preview

    images = i.image_options(settings, plain_http=plain_http)
    result = preview(workload, settings.directories, images, floor=settings.floor)
    for text in result.notes:
        note(text)
    if not json:
        _print(result)
        return
    document: dict[str, Any] = as_json(result.plan)
    for listing in ("entries", "contents"):
        del document["image"]["tree"][listing]
    document["domain_xml"] = result.domain_xml
    document["trust"] = as_json(result.trust)
    document["health"] = as_json(result.health)
    document["oci_spec"] = oci_spec(
        result.plan.container, rootfs="rootfs", cgroup_path="/vmrun/container"
    )
    if workload.engine is EngineName.DOCKER:
        document["docker_create"] = docker_create(
            result.plan.container,
            image_id=str(result.plan.image.config_blob.digest),
            cgroup_parent="/vmrun",
            volumes=result.plan.image.config.volumes,
        )
    print_json(document)


def _bind(bind: Bind) -> str:
    access = "ro" if bind.read_only else "rw"
    return f"{bind.target} {access}" + (",exec" if bind.executable else "")


def _print(preview: Preview) -> None:
    plan, trust = preview.plan, preview.trust
    container, guest, memory = plan.container, plan.guest, plan.guest.memory
    rows = [
        ("image", f"{plan.image.reference}"),
        ("digest", str(plan.image.digest)),
        ("signed by", ", ".join(sorted({c.key_id for c in trust.claims})) or "NOT verified"),
        ("policy", ", ".join(name for name, _ in trust.policies)),
        ("scan", preview.health.verdict if preview.health else "no gate requires one"),
        ("base", f"{plan.base.flavour} {plan.base.digest.short} ({plan.base.kernel_release})"),
        ("engine", str(plan.workload.engine)),
        ("profile", str(plan.workload.profile)),
        ("accelerator", f"{guest.accelerator} ({plan.host.accelerator_reason})"),
        ("libvirt", plan.host.connect),
        ("command", " ".join(container.argv)),
        (
            "user",
            f"{container.uid}:{container.gid}"
            + (f" (the image asks for {container.user_asked})" if container.user_mapped else ""),
        ),
        ("root", "read-only" if container.read_only else "writable"),
        ("tmpfs", ", ".join(f"{t.path} {format_size(t.size)}" for t in container.tmpfs)),
        ("data", ", ".join(map(_bind, container.binds)) or "none"),
        ("capabilities", ", ".join(container.capabilities) or "none"),
        ("network", "none but loopback; the guest has no network card"),
        ("cpus", f"{container.limits.cpus:g} of {guest.vcpus} in the guest"),
        ("pids", str(container.limits.pids)),
        ("memory: workload", format_size(memory.workload)),
        (
            "memory: guest",
            f"{format_size(memory.guest)} (workload + image {format_size(memory.image)} "
            f"+ reserve {format_size(memory.reserve)})",
        ),
        (
            "memory: host",
            f"{format_size(memory.host)} for QEMU, "
            + ("by its cgroup" if guest.limit_host_memory else "NOT enforced"),
        ),
        ("QEMU's user", str(guest.qemu_uid) if guest.qemu_uid is not None else "yours"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {value}")
    for warning in plan.warnings:
        note(warning)
