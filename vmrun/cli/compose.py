"""``vmrun compose``: the services of a compose file, in the guest of a tenant."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli import image_options as i
from vmrun.cli import options as o
from vmrun.cli.lifecycle import stop_run
from vmrun.cli.logs import Ended
from vmrun.cli.output import note, print_error, print_json, table
from vmrun.cli.runs import Book, open_book
from vmrun.model.errors import EXIT_INTERRUPTED, Interrupted, StateError, UsageError
from vmrun.model.tenant import DEFAULT_TENANT, Tenant
from vmrun.settings import Settings
from vmrun.supervisor.logs import LogLine, follow_log, read_log

if TYPE_CHECKING:
    from vmrun.compose.model import Project
    from vmrun.model.run_record import RunRecord
    from vmrun.model.workload import Workload
    from vmrun.run.compose import Runner
    from vmrun.run.decide import RunOptions

app = typer.Typer(
    help="Compose files: their services in the guest of a tenant.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_LONGEST_WAIT = 3600
_POLL = 0.1

File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="The compose file; default: that of this folder."),
]
Name = Annotated[
    str | None, typer.Option("--project-name", "-p", help="In place of the file's own name.")
]
Tenant_ = Annotated[
    str | None,
    typer.Option("--tenant", help="Whose guest; default: x-vmrun.tenant of the file."),
]
Services = Annotated[
    list[str] | None, typer.Argument(help="Only these services.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A project, and whose guest it lives in."""

    project: Project
    tenant: Tenant
    settings: Settings
    book: Book


@app.command("up")
def up_command(
    services: Services = None,
    file: File = None,
    name: Name = None,
    tenant: Tenant_ = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all services have started.")
    ] = False,
    wait_timeout: Annotated[
        int, typer.Option(help="Seconds that a service may take to become healthy or complete.")
    ] = 300,
    allow_emulation: o.AllowEmulation = False,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    policy: i.Policy = None,
    trust_rules: i.TrustRules = None,
    advisories: i.Advisories = None,
) -> None:
    """Start the services of a compose file, each when what it depends on is ready.

    Without -d their output is shown until Ctrl-C, which stops them.
    """
    from vmrun.run.compose import check_volumes, up

    if not 1 <= wait_timeout <= _LONGEST_WAIT:
        raise UsageError(
            f"--wait-timeout {wait_timeout} is not possible", hint=f"1 to {_LONGEST_WAIT} seconds"
        )
    settings = i.settings_with(
        cert_dir=cert_dir,
        authfile=authfile,
        policy=policy,
        trust_rules=trust_rules,
        advisories=advisories,
    )
    chosen = _choose(file, name, tenant, settings, services)
    for text in chosen.project.notes:
        note(text)
    check_volumes(chosen.project, services or (), chosen.tenant.name, chosen.settings.directories)
    runner = _runner(chosen, plain_http=plain_http, patience=float(wait_timeout))
    defaults = _defaults(chosen, allow_emulation=allow_emulation)
    records = up(chosen.project, defaults, runner, only=services or ())
    if not detach:
        _watch(chosen, records, runner)


@app.command("down")
def down_command(
    file: File = None,
    name: Name = None,
    tenant: Tenant_ = None,
    grace: Annotated[
        int | None,
        typer.Option(
            "--timeout", "-t", help="Seconds until a service is killed; default: its own."
        ),
    ] = None,
) -> None:
    """Stop and remove the services of a compose file; its volumes stay."""
    from vmrun.run.compose import down

    if grace is not None and not 0 <= grace <= _LONGEST_WAIT:
        raise UsageError(f"--timeout {grace} is not possible", hint=f"0 to {_LONGEST_WAIT} seconds")
    chosen = _choose(file, name, tenant, i.settings_with())
    if not down(chosen.project, _runner(chosen, grace=grace)):
        note(f"project {chosen.project.name} has nothing that runs")


@app.command("ps")
def ps_command(
    services: Services = None,
    file: File = None,
    name: Name = None,
    tenant: Tenant_ = None,
    json: Json = False,
) -> None:
    """List the services of a compose file, those that have ended, too."""
    from vmrun.cli.run_words import port_words, status_words
    from vmrun.run.compose import service_of

    chosen = _choose(file, name, tenant, i.settings_with())
    found = _of(chosen, services or ())
    if json:
        print_json([seen.record for seen in found])
        return
    now = time.time()
    rows = [
        (
            service_of(seen.record),
            seen.record.name,
            seen.record.image,
            status_words(seen, now),
            port_words(seen.record.ports),
        )
        for seen in found
    ]
    print(table(rows, header=("service", "name", "image", "status", "ports")))


@app.command("logs")
def logs_command(
    services: Services = None,
    file: File = None,
    name: Name = None,
    tenant: Tenant_ = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the services have ended.")
    ] = False,
) -> None:
    """Print what the services of a compose file have written, each line with its service."""
    chosen = _choose(file, name, tenant, i.settings_with())
    records = [seen.record for seen in _of(chosen, services or ())]
    try:
        _show_logs(chosen, records, follow=follow)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command("config")
def config_command(
    file: File = None,
    name: Name = None,
) -> None:
    """Check a compose file, and print what it says as JSON."""
    print_json(_load(file, name))


def _load(file: Path | None, name: str | None) -> Project:
    from vmrun.compose.files import load_project
    from vmrun.policy.egress import parse_allow

    return load_project(file, environment=dict(os.environ), parse_allow=parse_allow, name=name)


def _choose(
    file: Path | None,
    name: str | None,
    tenant: str | None,
    settings: Settings,
    services: Sequence[str] | None = None,
) -> _Chosen:
    """The project, which must have ``services``, and its tenant, who has to be there."""
    from vmrun.cli.tenant_run import of_tenant
    from vmrun.run.compose import check_services

    project = _load(file, name)
    check_services(project, services or ())
    wanted = tenant or project.tenant
    if wanted is None or wanted == DEFAULT_TENANT:
        raise UsageError(
            "a compose file needs the guest of a tenant",
            hint="vmrun tenant create NAME, then --tenant NAME or x-vmrun: {tenant: NAME}",
        )
    if project.tenant not in (None, wanted):
        raise UsageError(
            f"--tenant {wanted}: the file says {project.tenant}", hint="leave --tenant out"
        )
    owner, own = of_tenant(settings, wanted)
    if owner.tenant is None:
        raise StateError(f"there is no tenant {wanted!r}", hint=f"vmrun tenant create {wanted}")
    return _Chosen(project, owner.tenant, own, open_book())


def _defaults(chosen: _Chosen, *, allow_emulation: bool) -> Workload:
    """What counts where the file says nothing."""
    nothing: dict[str, Any] = dict.fromkeys(o.NAMES)
    said = {
        "image": str(chosen.project.services[0].image),
        "tenant": chosen.tenant.name,
        "engine": chosen.tenant.engine,
        "allow_emulation": allow_emulation,
    }
    return o.make_workload(o.RawOptions(**(nothing | said)), chosen.settings, dict(os.environ))


def _runner(
    chosen: _Chosen, *, plain_http: bool = False, patience: float = 300.0, grace: int | None = None
) -> Runner:
    from dataclasses import replace

    from vmrun.run.compose import Runner
    from vmrun.run.tenant_run import run_in_tenant

    options = _options(chosen, plain_http=plain_http)

    def start(workload: Workload, network: Any) -> RunRecord:
        entered = run_in_tenant(
            workload, replace(options, network=network), chosen.tenant, keep_record=True
        )
        return entered.record

    def stop(record: RunRecord) -> None:
        stop_run(chosen.book, record.run_id, grace)
        if not chosen.book.runs.remove(record.run_id):
            raise StateError(f"cannot remove {chosen.book.runs.folder(record.run_id)}")

    return Runner(
        start=start,
        stop=stop,
        look=lambda: [seen.record for seen in _all(chosen)],
        say=lambda service, what: note(f"{chosen.project.name}: {service}: {what}"),
        patience=patience,
    )


def _options(chosen: _Chosen, *, plain_http: bool) -> RunOptions:
    from vmrun.run.decide import RunOptions
    from vmrun.run.remember import Memory

    directories = chosen.settings.directories
    return RunOptions(
        directories=directories,
        floor=chosen.settings.floor,
        images=i.image_options(chosen.settings, plain_http=plain_http),
        memory=Memory(directories, note=note),
        announce=lambda _: None,
        note=_Once(),
        on_error=lambda _: None,
    )


class _Once:
    """Says each thing once: what is true of an image or a host is so for every service."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            note(text)


def _all(chosen: _Chosen) -> list[Any]:
    from vmrun.run.survey import survey

    everything = survey(chosen.book.directories, on_damage=print_error)
    return [seen for seen in everything if seen.record.tenant == chosen.tenant.name]


def _of(chosen: _Chosen, services: Sequence[str]) -> list[Any]:
    """The runs of the project, in the order of its file."""
    from vmrun.run.compose import check_services, of_project, service_of

    seen = _all(chosen)
    mine = of_project((one.record for one in seen), chosen.project.name)
    order = [service.name for service in chosen.project.services]
    wanted = {service.name for service in check_services(chosen.project, services)}
    if not services:
        wanted |= set(mine)
    found = [one for one in seen if mine.get(service_of(one.record)) is one.record]
    found = [one for one in found if service_of(one.record) in wanted]
    return sorted(
        found,
        key=lambda one: (
            order.index(service_of(one.record)) if service_of(one.record) in order else len(order)
        ),
    )


def _watch(chosen: _Chosen, records: Sequence[RunRecord], runner: Runner) -> None:
    """Show what the services write until all have ended; Ctrl-C stops them."""
    try:
        _show_logs(chosen, records, follow=True)
    except (KeyboardInterrupt, Interrupted):
        note("stopping; once more to leave them running")
        try:
            for record in reversed(records):
                runner.say(dict(record.labels).get("vmrun.compose.service", ""), "stopping")
                stop_run(chosen.book, record.run_id, None)
        except KeyboardInterrupt:
            note("they go on running; see 'vmrun compose ps'")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _lines(book: Book, record: RunRecord, *, follow: bool) -> Iterator[LogLine]:
    folder = book.runs.folder(record.run_id)
    if not follow:
        return read_log(folder)
    return follow_log(folder, Ended(book, record), lambda: time.sleep(_POLL))


def _show_logs(chosen: _Chosen, records: Sequence[RunRecord], *, follow: bool) -> None:
    """Each line with its service in front; lines of one service stay in order."""
    from vmrun.run.compose import service_of

    width = max((len(service_of(record)) for record in records), default=0)
    lock = threading.Lock()

    def show(record: RunRecord) -> None:
        prefix = f"{service_of(record).ljust(width)} | ".encode()
        for line in _lines(chosen.book, record, follow=follow):
            out = sys.stderr.buffer if line.stream == "stderr" else sys.stdout.buffer
            data = line.data if line.data.endswith(b"\n") else line.data + b"\n"
            with lock:
                out.write(prefix + data)
                out.flush()

    threads = [threading.Thread(target=show, args=(record,), daemon=True) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
