"""``vmrun volume``: encrypted volumes that outlive the guests that use them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli.output import as_json, note, print_json, table
from vmrun.model.errors import UsageError
from vmrun.model.quantity import format_age, format_size
from vmrun.model.tenant import DEFAULT_TENANT, checked_tenant
from vmrun.planning.storage import parse_disk_size, parse_volume_name
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from vmrun.model.storage import Volume
    from vmrun.run.directories import StateDirectories

app = typer.Typer(
    help="Encrypted volumes that outlive guests.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="The volume.", show_default=False)]
Names = Annotated[list[str], typer.Argument(help="Volumes.", show_default=False)]
Tenant = Annotated[str, typer.Option(help="Whose volumes; nobody sees another tenant's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("create", no_args_is_help=True)
def create_command(
    name: Name,
    size: Annotated[str, typer.Option(help="How much it holds at most, e.g. 1g.")],
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="File whose first line is the passphrase.", show_default=False),
    ] = None,
    passphrase_command: Annotated[
        str | None,
        typer.Option(help="Command that prints it; executed without a shell.", show_default=False),
    ] = None,
    tenant: Tenant = "default",
    json: Json = False,
) -> None:
    """Make an encrypted volume. Where its passphrase comes from is remembered, the passphrase
    itself is not."""
    from vmrun.volume.store import VolumeStore

    parse_volume_name(name, option="NAME")
    if (passphrase_file is None) == (passphrase_command is None):
        raise UsageError(
            "a volume needs one place where its passphrase comes from",
            hint="give --passphrase-file FILE or --passphrase-command COMMAND",
        )
    directories = load_settings().directories
    room = parse_disk_size(size, option="--size")
    _must_fit(directories, tenant, room)
    volume = VolumeStore(directories.volumes, tenant).create(
        name,
        room,
        passphrase_file=None if passphrase_file is None else passphrase_file.absolute(),
        passphrase_command=passphrase_command or "",
        note=note,
    )
    _remember(directories, "volume.create", volume)
    _note_restart(directories, tenant)
    if json:
        print_json(_document(volume))
    else:
        print(volume.name)


@app.command("ls")
def ls_command(tenant: Tenant = "default", json: Json = False) -> None:
    """List the volumes of a tenant."""
    from vmrun.volume.store import VolumeStore

    volumes = VolumeStore(load_settings().directories.volumes, tenant).list()
    if json:
        print_json([_document(volume) for volume in volumes])
        return
    now = time.time()
    rows = [
        (
            volume.name,
            format_size(volume.size),
            format_size(_used(volume)),
            f"{format_age(now - volume.created)} ago",
            volume.in_use_by or "-",
        )
        for volume in volumes
    ]
    print(table(rows, header=("name", "size", "on disk", "created", "in use by")))


@app.command("inspect", no_args_is_help=True)
def inspect_command(name: Name, tenant: Tenant = "default", json: Json = False) -> None:
    """Print what is known of a volume."""
    from vmrun.volume.store import VolumeStore

    parse_volume_name(name, option="NAME")
    volume = VolumeStore(load_settings().directories.volumes, tenant).get(name)
    if json:
        print_json(_document(volume))
        return
    source = volume.passphrase_file or f"the output of: {volume.passphrase_command}"
    rows = [
        ("name", volume.name),
        ("tenant", volume.tenant),
        ("size", format_size(volume.size)),
        ("on disk", format_size(_used(volume))),
        ("created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.created))),
        ("passphrase", str(source)),
        ("directory", str(volume.path)),
        ("in use by", volume.in_use_by or "nobody"),
    ]
    for key, value in rows:
        print(f"{key.ljust(10)}  {value}")


@app.command("rm", no_args_is_help=True)
def rm_command(names: Names, tenant: Tenant = "default", json: Json = False) -> None:
    """Remove volumes and all that is in them. One that is in use stays, and is an error."""
    from vmrun.volume.store import VolumeStore

    for name in names:
        parse_volume_name(name, option="NAME")
    directories = load_settings().directories
    store = VolumeStore(directories.volumes, tenant)
    removed = []
    for name in names:
        volume = store.remove(name)
        _remember(directories, "volume.rm", volume)
        removed.append(name)
        if not json:
            print(name)
    if json:
        print_json(removed)


def _must_fit(directories: StateDirectories, name: str, size: int) -> None:
    """Raises :class:`StateError` for a tenant that was never created, :class:`Refused` for a volume
    that is beyond its quota."""
    if checked_tenant(name) == DEFAULT_TENANT:
        return
    from vmrun.run.shares import Shares
    from vmrun.tenant.store import TenantStore

    tenant = TenantStore(directories.tenants).get(name)
    Shares(directories, name).must_have_room(tenant, size)


def _note_restart(directories: StateDirectories, tenant: str) -> None:
    """Say so where the tenant's guest lives, which does not have the new volume."""
    if tenant == DEFAULT_TENANT:
        return
    from vmrun.run.tenant import shared_guest

    if shared_guest(directories, tenant) is not None:
        note(
            f"the guest of tenant {tenant} has it when it was started again: "
            f"vmrun tenant stop {tenant}; vmrun tenant start {tenant}"
        )


def _document(volume: Volume) -> dict[str, Any]:
    document: dict[str, Any] = as_json(volume)
    return {**document, "on_disk": _used(volume)}


def _used(volume: Volume) -> int:
    """Bytes that its file takes on the host."""
    try:
        return (volume.path / "disk.qcow2").stat().st_blocks * 512
    except OSError:
        return 0


def _remember(directories: StateDirectories, event: str, volume: Volume) -> None:
    from vmrun.journal.journal import Journal

    fields = {"volume": volume.name, "tenant": volume.tenant, "size": str(volume.size)}
    Journal(directories.journal).append(event, fields)
