"""``vmrun run``."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli import options as o
from vmrun.cli import service_options as s
from vmrun.cli.output import note, print_error, print_json
from vmrun.cli.streams import workload_streams
from vmrun.cli.tenant_run import of_tenant, run_for_tenant
from vmrun.model.errors import UsageError, VmrunError

if TYPE_CHECKING:
    from vmrun.model.workload import Workload
    from vmrun.run.decide import RunOptions


def run_command(
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
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Pass stdin to the workload.")
    ] = False,
    terminal: Annotated[
        bool, typer.Option("--tty", "-t", help="Give the workload a terminal.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Leave it running, owned by a supervisor of its own."),
    ] = False,
    rm: Annotated[
        bool, typer.Option("--rm", help="With -d: remove its record and logs when it has ended.")
    ] = False,
    restart: s.Restart = None,
    health_cmd: s.HealthCmd = None,
    health_interval: s.HealthInterval = None,
    health_timeout: s.HealthTimeout = None,
    health_retries: s.HealthRetries = None,
    health_start_period: s.HealthStartPeriod = None,
    stop_signal: s.StopSignal = None,
    stop_timeout: s.StopTimeout = None,
    label: s.Label = None,
    own_guest: Annotated[
        bool,
        typer.Option("--own-guest", help="In a guest of its own, not in that of the tenant."),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep a failed guest for an hour, for a look.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the report on stdout; the workload's output: stderr."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the report to this file as JSON.")
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Say nothing but errors and the workload's output."),
    ] = False,
) -> None:
    """Run a container in a guest of its own, and tear the guest down.

    Exits with the container's own status; 123 refused by policy, 124 deadline, 125 vmrun failed,
    126 and 127 as docker, 130 interrupted.
    """
    settings = i.settings_with(
        cert_dir=cert_dir,
        authfile=authfile,
        policy=policy,
        trust_rules=trust_rules,
        advisories=advisories,
    )
    raw = o.RawOptions(**{key: value for key, value in locals().items() if key in o.NAMES})
    owner, settings = of_tenant(settings, raw.tenant)
    if own_guest:
        owner = replace(owner, shares_guest=False)
    raw = replace(raw, engine=raw.engine or owner.engine)
    workload = o.make_workload(
        raw,
        settings,
        dict(os.environ),
        interactive=interactive,
        terminal=terminal,
        keep=keep,
        service=s.service_options(
            restart=restart,
            command=health_cmd,
            interval=health_interval,
            timeout=health_timeout,
            retries=health_retries,
            start_period=health_start_period,
            stop_signal=stop_signal,
            stop_timeout=stop_timeout,
            remove=rm,
        ),
        labels=s.labels(label or []),
    )
    if detach:
        s.check_detached(interactive=interactive, terminal=terminal, keep=keep, report=report)
    else:
        s.check_attended(restart=restart, health=health_cmd)
    if owner.shares_guest and report is not None:
        raise UsageError("--report is for runs with a guest of their own", hint="add --own-guest")
    if json and terminal:
        raise UsageError("--json and -t exclude each other", hint="use --report FILE with -t")

    from vmrun.run.decide import RunOptions
    from vmrun.run.pipeline import run as run_pipeline
    from vmrun.run.remember import Memory

    _must_be_writable(report)
    progress = sys.stderr.isatty() and not quiet and not terminal
    tell = _silent if quiet else _note_over_progress if progress else note
    run_options = RunOptions(
        directories=settings.directories,
        floor=settings.floor,
        images=i.image_options(settings, plain_http=plain_http),
        memory=Memory(settings.directories, note=tell),
        announce=_show_phase if progress else _silent,
        note=tell,
        on_error=_show_traceback,
        reserve=owner.reserve(settings.directories),
    )
    if owner.tenant is not None and owner.shares_guest:
        raise typer.Exit(
            run_for_tenant(workload, run_options, owner.tenant, detach=detach, json=json)
        )
    if detach:
        _detach(workload, run_options, json=json)
        return
    with workload_streams(
        interactive=interactive, terminal=terminal, stdout_is_stderr=json
    ) as streams:
        result = run_pipeline(workload, run_options, streams)
    if result.error and not (json and quiet):
        print_error(VmrunError(result.error, hint=result.hint, details=result.details))
    if result.receipt.kept:
        note(f"the guest is kept for an hour: {result.receipt.kept}")
        note(f"remove it with: vmrun rm {result.name}")
    elif not result.receipt.clean:
        left = ", ".join(f"{r.kind} {r.name}" for r in result.receipt.removed if not r.gone)
        note(f"teardown left: {left}; the next vmrun command tries again")
    if json:
        print_json(result)
    if report is not None:
        with report.open("w") as file:
            print_json(result, file)
    raise typer.Exit(result.exit_status)


def _detach(workload: Workload, options: RunOptions, *, json: bool) -> None:
    from vmrun.run.detach import detach

    record = detach(workload, options)
    if sys.stderr.isatty():
        _show_phase("workload")
    if json:
        print_json(record)
    else:
        print(record.run_id)


def _must_be_writable(report: Path | None) -> None:
    """Said before anything is created, not after the workload has run."""
    if report is None:
        return
    place = report if report.exists() else report.absolute().parent
    if report.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(
            f"--report {report} cannot be written", hint="name a file in a directory of yours"
        )


def _silent(_text: str) -> None:
    return


def _show_phase(phase: str) -> None:
    """One line on a terminal that says which phase is going on; none while the workload runs."""
    over = phase in ("workload", "collect", "teardown")
    sys.stderr.write("\r\x1b[K" if over else f"\r\x1b[K… {phase}")
    sys.stderr.flush()


def _note_over_progress(text: str) -> None:
    sys.stderr.write("\r\x1b[K")
    note(text)


def _show_traceback(error: VmrunError) -> None:
    if os.environ.get("VMRUN_DEBUG"):
        traceback.print_exception(error)
