"""``vmrun tenant``: owners of guests, their quotas, and the guest of each."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.options import parse_cpus
from vmrun.cli.output import note, print_json, table
from vmrun.model.errors import StateError, UsageError
from vmrun.model.plan import EMBEDDED
from vmrun.model.quantity import format_size, parse_size
from vmrun.model.tenant import Quota, Tenant, checked_tenant
from vmrun.model.workload import EngineName, ProfileName
from vmrun.settings import Settings, load_settings

if TYPE_CHECKING:
    from vmrun.model.report import Receipt
    from vmrun.run.tenant import TenantOptions

app = typer.Typer(
    help="Tenants: who owns guests, and how much they may take.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_CPUS, _MEMORY, _DISK, _GUESTS = "1", "1g", "10g", 4
_MOST_GUESTS = 10_000

Name = Annotated[str, typer.Argument(help="The tenant.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Connect = Annotated[
    str | None,
    typer.Option(help="embedded (libvirt inside vmrun), or a libvirt URI such as qemu:///system."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


@app.command("create", no_args_is_help=True)
def create_command(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens.")],
    cpus: Annotated[
        str, typer.Option(help="Processors of its guest, and of all guests of runs' own together.")
    ] = _CPUS,
    memory: Annotated[
        str, typer.Option("--memory", "-m", help="For all of its containers and their images.")
    ] = _MEMORY,
    disk: Annotated[str, typer.Option(help="For its volumes and scratch space.")] = _DISK,
    guests: Annotated[int, typer.Option(help="Guests at once, its own among them.")] = _GUESTS,
    engine: Annotated[
        EngineName, typer.Option(help="What starts the containers in its guest.")
    ] = EngineName.DOCKER,
    profile_floor: Annotated[
        ProfileName | None,
        typer.Option(help="The least strict profile of its runs.", show_default=False),
    ] = None,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Do not boot its guest yet.")
    ] = False,
    connect: Connect = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Define a tenant, and boot the guest that its containers will run in."""
    from vmrun.run.tenant import create, start

    settings = load_settings()
    tenant = Tenant(
        name=checked_tenant(name),
        created=time.time(),
        engine=engine,
        quota=_quota(cpus, memory, disk, guests),
        floor=profile_floor,
    )
    options = _options(settings, connect, quiet=quiet)
    create(tenant, options)
    if not no_start:
        start(name, options)
    _done(settings, name, json=json)


@app.command("ls")
def ls_command(json: Json = False) -> None:
    """List the tenants."""
    from vmrun.tenant.store import TenantStore

    settings = load_settings()
    found = [_document(settings, t) for t in TenantStore(settings.directories.tenants).all()]
    if json:
        print_json(found)
        return
    rows = [
        (
            one["name"],
            "running" if one["guest"] else "stopped",
            one["engine"],
            str(one["used"]["containers"]),
            f"{format_size(one['used']['memory'])} / {format_size(one['quota']['memory'])}",
            f"{one['quota']['cpus']:g}",
            f"{one['used']['guests']} / {one['quota']['guests']}",
            f"{format_size(one['used']['disk'])} / {format_size(one['quota']['disk'])}",
        )
        for one in found
    ]
    print(
        table(
            rows,
            header=("name", "guest", "engine", "runs", "memory", "cpus", "guests", "disk"),
        )
    )


@app.command("inspect", no_args_is_help=True)
def inspect_command(name: Name) -> None:
    """Print all that is known of a tenant, as JSON."""
    _print_inspected(load_settings(), name)


@app.command("start", no_args_is_help=True)
def start_command(
    name: Name, connect: Connect = None, quiet: Quiet = False, json: Json = False
) -> None:
    """Boot a tenant's guest: after it was stopped, or has ended with its host."""
    from vmrun.run.tenant import start

    settings = load_settings()
    start(checked_tenant(name), _options(settings, connect, quiet=quiet))
    _done(settings, name, json=json)


@app.command("stop", no_args_is_help=True)
def stop_command(name: Name, json: Json = False) -> None:
    """Stop a tenant's guest with all containers in it. The tenant stays."""
    from vmrun.run.tenant_end import stop

    settings = load_settings()
    _show(name, stop(checked_tenant(name), _options(settings, None)), json=json)


@app.command("rm", no_args_is_help=True)
def rm_command(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Though it has guests that run: they are ended.")
    ] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Delete its volumes, too, and what is in them.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove a tenant: its runs' records and logs, its images, what is known of them."""
    from vmrun.run.tenant_end import remove

    settings = load_settings()
    options = _options(settings, None)
    _show(name, remove(checked_tenant(name), options, force=force, volumes=volumes), json=json)


@app.command("stats", no_args_is_help=True)
def stats_command(name: Name, json: Json = False) -> None:
    """Show what a tenant's guest uses now, and each container in it."""
    from vmrun.run.tenant_stats import tenant_stats

    found = tenant_stats(load_settings().directories, checked_tenant(name))
    if json:
        print_json(found)
        return
    rows = [
        (
            one.record.name,
            format_size(one.stats.memory) if one.stats else "--",
            format_size(one.stats.memory_limit) if one.stats else "--",
            f"{one.stats.cpu_seconds:.1f} s" if one.stats else "--",
            str(one.stats.pids) if one.stats else "--",
        )
        for one in found.containers
    ]
    print(table(rows, header=("name", "memory", "limit", "cpu time", "pids")))
    note(
        f"guest {found.guest}: QEMU uses {format_size(found.qemu_memory or 0)} of"
        f" {format_size(found.guest_memory)}, {found.qemu_cpu_seconds:.1f} s of processor time"
    )


def _quota(cpus: str, memory: str, disk: str, guests: int) -> Quota:
    quota = Quota(
        cpus=parse_cpus(cpus),
        memory=parse_size(memory, option="--memory"),
        disk=parse_size(disk, option="--disk"),
        guests=guests,
    )
    if quota.memory < 32 << 20:
        raise UsageError(f"--memory {memory} is too little", hint="at least 32m")
    if not 1 <= guests <= _MOST_GUESTS:
        raise UsageError(f"--guests {guests} is not possible", hint=f"1 to {_MOST_GUESTS}")
    return quota


def _options(settings: Settings, connect: str | None, *, quiet: bool = False) -> TenantOptions:
    from vmrun.run.tenant import TenantOptions

    return TenantOptions(
        settings.directories,
        connect or settings.connect or EMBEDDED,
        announce=_show_phase if sys.stderr.isatty() and not quiet else _silent,
        note=_silent if quiet else note,
    )


def _document(settings: Settings, tenant: Tenant) -> dict[str, Any]:
    from vmrun.cli.output import as_json
    from vmrun.run.shares import taken, volume_sizes
    from vmrun.run.tenant import shared_guest

    directories = settings.directories
    has = taken(directories, tenant.name)
    sizes = volume_sizes(directories, tenant.name)
    guest = shared_guest(directories, tenant.name)
    known: dict[str, Any] = as_json(tenant)
    return {
        **known,
        "guest": guest.run_id if guest else "",
        "used": {
            "containers": sum(1 for one in has if not one.shared),
            "memory": sum(one.share.memory for one in has),
            "cpus": sum(one.share.cpus for one in has if one.own),
            "disk": sum(sizes) + sum(one.share.disk for one in has),
            "guests": sum(1 for one in has if one.own or one.shared),
        },
        "runs": [as_json(one) for one in has if not one.shared],
    }


def _print_inspected(settings: Settings, name: str) -> None:
    from vmrun.tenant.store import TenantStore

    tenant = TenantStore(settings.directories.tenants).get(name)
    print_json(_document(settings, tenant))


def _done(settings: Settings, name: str, *, json: bool) -> None:
    if sys.stderr.isatty():
        _show_phase("")
    if json:
        _print_inspected(settings, name)
    else:
        print(name)


def _show(name: str, receipt: Receipt, *, json: bool) -> None:
    if json:
        print_json(receipt)
    else:
        print(name)
        for item in receipt.removed:
            note(f"{'removed' if item.gone else 'LEFT'} {item.kind} {item.name}")
    if not receipt.clean:
        raise StateError(f"not all of tenant {name!r} is gone", hint="try again; see 'vmrun gc'")


def _silent(_text: str) -> None:
    return


def _show_phase(phase: str) -> None:
    sys.stderr.write(f"\r\x1b[K… {phase}" if phase else "\r\x1b[K")
    sys.stderr.flush()
