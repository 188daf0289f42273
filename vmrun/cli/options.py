"""The options that ``run`` and ``plan`` share, and the workload they make."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError
from vmrun.model.quantity import parse_duration, parse_size
from vmrun.model.service import NO_SERVICE, ServiceOptions
from vmrun.model.workload import EngineName, Limits, ProfileName, TmpfsMount, Workload
from vmrun.planning.publish import parse_publishes
from vmrun.planning.storage import make_storage
from vmrun.policy.egress import parse_allows
from vmrun.settings import Settings

_FILES = 1024
_MAX_ENV_FILE = 1 << 20

Image = Annotated[
    str,
    typer.Argument(
        help="oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or docker-daemon:REF",
        show_default=False,
    ),
]
Command = Annotated[
    list[str] | None,
    typer.Argument(help="The command and its arguments, after --.", show_default=False),
]
Cpus = Annotated[str | None, typer.Option(help="CPUs of the workload; fractions are allowed.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", "-m", help="The workload's own limit, e.g. 256m; the guest gets more."
    ),
]
PidsLimit = Annotated[str | None, typer.Option(help="How many processes it may have.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", help="KEY=VALUE, or KEY to pass the host's value on."),
]
EnvFile = Annotated[list[Path] | None, typer.Option(help="A file of KEY=VALUE lines.")]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", help="Directory to start in.")]
User = Annotated[str | None, typer.Option("--user", "-u", help="NAME, UID, NAME:GROUP or UID:GID.")]
Entrypoint = Annotated[str | None, typer.Option(help="Replaces the image's entrypoint.")]
Hostname = Annotated[str | None, typer.Option(help="Host name inside.")]
Tmpfs = Annotated[
    list[str] | None, typer.Option(help="PATH[:size=64m,exec]: a writable tmpfs at PATH.")
]
ReadOnly = Annotated[
    bool | None,
    typer.Option("--read-only/--no-read-only", help="Root file system read-only (the default)."),
]
CapAdd = Annotated[
    list[str] | None, typer.Option(help="A capability to add, where the profile allows it.")
]
Timeout = Annotated[
    str | None, typer.Option(help="Kill the workload after this long, e.g. 30s or 5m.")
]
Publish = Annotated[
    list[str] | None,
    typer.Option("--publish", "-p", help="[ADDRESS:]HOST:CONTAINER: a TCP port of the host."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="HOST[:PORT]: where it may connect to; nowhere without it."),
]
Volume = Annotated[
    list[str] | None,
    typer.Option(
        "--volume", "-v", help="DIRECTORY:TARGET[:rw] (a copy), or VOLUME:TARGET[:ro] (encrypted)."
    ),
]
Secret = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FILE or id=NAME,env=VARIABLE: a file in /run/secrets."),
]
Scratch = Annotated[
    str | None,
    typer.Option(help="SIZE[:TARGET]: encrypted disk space that goes with the guest."),
]
Name = Annotated[str | None, typer.Option(help="A name for the run; unique among live ones.")]
Tenant = Annotated[str, typer.Option(help="Who owns it; guests are never shared across tenants.")]
Profile = Annotated[
    ProfileName | None, typer.Option(help="How hard it is confined.", show_default=False)
]
AllowEmulation = Annotated[
    bool,
    typer.Option(
        "--allow-emulation", help="Let a profile that requires KVM run without; it is recorded."
    ),
]
Engine = Annotated[
    EngineName | None, typer.Option(help="What starts the container.", show_default=False)
]
Base = Annotated[
    str | None, typer.Option(help="A base by flavour or digest; default: the engine's flavour.")
]
Connect = Annotated[
    str | None,
    typer.Option(help="embedded (libvirt inside vmrun), or a libvirt URI such as qemu:///system."),
]


@dataclass(frozen=True, slots=True)
class RawOptions:
    """The options as they were typed."""

    image: str
    command: list[str] | None
    cpus: str | None
    memory: str | None
    pids_limit: str | None
    env: list[str] | None
    env_file: list[Path] | None
    workdir: str | None
    user: str | None
    entrypoint: str | None
    hostname: str | None
    tmpfs: list[str] | None
    read_only: bool | None
    cap_add: list[str] | None
    timeout: str | None
    publish: list[str] | None
    allow: list[str] | None
    volume: list[str] | None
    secret: list[str] | None
    scratch: str | None
    name: str | None
    tenant: str
    profile: ProfileName | None
    allow_emulation: bool
    engine: EngineName | None
    base: str | None
    connect: str | None


NAMES = frozenset(field.name for field in fields(RawOptions))


def make_workload(
    raw: RawOptions,
    settings: Settings,
    environment: dict[str, str],
    *,
    interactive: bool = False,
    terminal: bool = False,
    keep: bool = False,
    service: ServiceOptions = NO_SERVICE,
    labels: tuple[tuple[str, str], ...] = (),
) -> Workload:
    """Parse what was typed. Raises :class:`UsageError` naming the option and the value."""
    limits = Limits(
        memory=parse_size(raw.memory or settings.memory, option="--memory"),
        cpus=parse_cpus(raw.cpus or settings.cpus),
        pids=_count(raw.pids_limit or settings.pids_limit, option="--pids-limit"),
        files=_FILES,
        timeout=None if raw.timeout is None else parse_duration(raw.timeout, option="--timeout"),
    )
    return Workload(
        image=parse_reference(raw.image),
        command=tuple(raw.command or ()),
        entrypoint=raw.entrypoint,
        env=_environment(raw, environment),
        workdir=raw.workdir,
        user=raw.user,
        hostname=raw.hostname,
        tmpfs=tuple(_tmpfs(text) for text in raw.tmpfs or ()),
        read_only=raw.read_only,
        cap_add=tuple(raw.cap_add or ()),
        limits=limits,
        interactive=interactive,
        terminal=terminal,
        name=raw.name,
        tenant=raw.tenant,
        profile=raw.profile or settings.profile,
        allow_emulation=raw.allow_emulation,
        engine=raw.engine or settings.engine,
        base=raw.base,
        connect=raw.connect or settings.connect,
        keep=keep,
        publish=parse_publishes(raw.publish or ()),
        allow=parse_allows(raw.allow or ()),
        storage=make_storage(raw.volume or (), raw.secret or (), raw.scratch, here=Path.cwd()),
        service=service,
        labels=labels,
    )


def parse_cpus(text: str) -> float:
    """A number of processors. Raises :class:`UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1024:
        raise UsageError(f"--cpus: not a number of CPUs: {text!r}", hint="e.g. 1, 2 or 0.5")
    return value


def _count(text: str, *, option: str) -> int:
    if re.fullmatch("[0-9]{1,7}", text) is None or not 0 < int(text) < 1 << 22:
        raise UsageError(f"{option}: not a count: {text!r}", hint="a whole number from 1")
    return int(text)


def _environment(raw: RawOptions, environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    values: dict[str, str] = {}
    for path in raw.env_file or ():
        for number, line in enumerate(_lines(path), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                _set(values, line, environment, where=f"{path}:{number}")
    for setting in raw.env or ():
        _set(values, setting, environment, where="--env")
    return tuple(values.items())


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_ENV_FILE + 1)
        if len(data) > _MAX_ENV_FILE:
            raise UsageError(f"--env-file {path} is larger than 1 MiB", hint="make it smaller")
        # Not splitlines: a value may hold a form feed or U+2028.
        return [line.removesuffix("\r") for line in data.decode("utf-8").split("\n")]
    except OSError as error:
        raise UsageError(
            f"--env-file {path}: {error.strerror}", hint="name a readable file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--env-file {path} is not UTF-8", hint="save it as UTF-8") from error


def _set(values: dict[str, str], setting: str, environment: dict[str, str], *, where: str) -> None:
    key, equals, value = setting.partition("=")
    if not key or key != key.strip() or "\0" in setting:
        raise UsageError(f"{where}: not KEY=VALUE: {setting[:80]!r}", hint="e.g. --env MODE=test")
    if equals:
        values[key] = value
    elif key in environment:
        values[key] = environment[key]


def _tmpfs(text: str) -> TmpfsMount:
    path, _, options = text.partition(":")
    size, executable = None, False
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key == "size":
            size = parse_size(value, option="--tmpfs size")
            if size == 0:
                # The kernel would take it as no limit at all.
                raise UsageError(f"--tmpfs {path}: size=0 is no limit", hint="e.g. size=64m")
        elif option == "exec":
            executable = True
        elif option not in ("noexec", "nosuid", "nodev", "rw"):
            raise UsageError(
                f"--tmpfs {path}: unknown option {option!r}", hint="known: size=64m, exec"
            )
    return TmpfsMount(path, size, executable)
