"""``vmrun ps``: the runs there are, read from files alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.output import as_json, print_error, print_json, table
from vmrun.cli.run_words import exit_status, port_words, printable, shortened, status_words
from vmrun.cli.runs import Json
from vmrun.model.errors import UsageError
from vmrun.settings import load_settings

if TYPE_CHECKING:
    from vmrun.run.survey import Seen

_COMMAND = 20
_IMAGE = 40
_HEADER = (
    "run id",
    "name",
    "image",
    "command",
    "status",
    "ports",
    "tenant",
    "accelerator",
)
_FILTERS = ("name", "status", "label", "tenant", "health", "id")


@dataclass(frozen=True, slots=True)
class Filter:
    """One ``KEY=VALUE``: of one key any may hold, except for labels, and of all keys one must."""

    key: str
    value: str

    def holds(self, seen: Seen) -> bool:
        """Whether the run is meant."""
        record = seen.record
        match self.key:
            case "name":
                return self.value in record.name
            case "id":
                return record.run_id.startswith(self.value)
            case "status":
                return seen.state == self.value
            case "tenant":
                return record.tenant == self.value
            case "health":
                return record.health == self.value and seen.lives
        key, equals, value = self.value.partition("=")
        labels = dict(record.labels)
        return key in labels and (not equals or labels[key] == value)


def parse_filter(text: str) -> Filter:
    """Raises :class:`UsageError`."""
    from vmrun.model.run_record import Health, RunState

    key, equals, value = text.partition("=")
    known: dict[str, list[str]] = {"status": list(RunState), "health": list(Health)}
    if not equals or key not in _FILTERS:
        raise UsageError(
            f"--filter: not a filter: {text[:80]!r}",
            hint=f"KEY=VALUE with one of: {', '.join(_FILTERS)}",
        )
    if key in known and value not in known[key]:
        raise UsageError(
            f"--filter: no {key} {value[:40]!r}", hint=f"one of: {', '.join(known[key])}"
        )
    return Filter(key, value)


def chosen(found: tuple[Seen, ...], filters: tuple[Filter, ...]) -> tuple[Seen, ...]:
    """Those that all filters mean."""
    by_key: dict[str, list[Filter]] = {}
    for one in filters:
        by_key.setdefault(one.key, []).append(one)
    return tuple(
        seen
        for seen in found
        if all(
            (all if key == "label" else any)(f.holds(seen) for f in group)
            for key, group in by_key.items()
        )
    )


def ps_command(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Those that have ended, too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print run ids only.")] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Shorten nothing.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            help="name=, id=, status=, label=KEY[=VALUE], tenant= or health=. Repeatable.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Only this tenant's.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List runs, the newest first."""
    from vmrun.run.survey import survey

    wanted = [parse_filter(text) for text in filters or ()]
    if tenant is not None:
        wanted = [f for f in wanted if f.key != "tenant"] + [Filter("tenant", tenant)]
    everything = everything or any(f.key == "status" for f in wanted)
    found = survey(load_settings().directories, on_damage=print_error)
    shown = chosen(tuple(s for s in found if everything or s.lives), tuple(wanted))
    if json:
        print_json([run_fields(seen) for seen in shown])
    elif quiet:
        for seen in shown:
            print(seen.record.run_id)
    else:
        now = time.time()
        print(table([_row(seen, now, whole=no_trunc) for seen in shown], header=_HEADER))


def run_fields(seen: Seen) -> dict[str, object]:
    """A run for programs: its record, and the state that is true."""
    fields: dict[str, object] = as_json(seen.record)
    fields["state"] = seen.state.value
    fields["owner"] = seen.owner
    fields["kept_until"] = seen.kept_until
    if not seen.lives:
        fields["exit_status"] = exit_status(seen)
    return fields


def _row(seen: Seen, now: float, *, whole: bool) -> tuple[str, ...]:
    record = seen.record
    image, command = printable(record.image), printable(record.command)
    if not whole:
        image, command = shortened(image, _IMAGE), shortened(command, _COMMAND)
    return (
        record.run_id,
        record.name,
        image,
        f'"{command}"',
        status_words(seen, now),
        port_words(record.ports),
        record.tenant,
        record.accelerator,
    )
