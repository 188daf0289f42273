#!/usr/bin/env python3
"""One image, run bare on this host and in a guest of its own: what each of them sees, what an
attacker gets, how long it took, and that nothing is left.

    make demo

Ends with a status other than zero when anything is not as vmrun promises it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from bare import NoRuntime, run_bare
from company import CommandFailed, Company, found_company
from inspection import (
    ATTACK,
    INSPECT,
    Attack,
    BadAnswer,
    View,
    compare,
    parse_attacks,
    parse_view,
)
from refusals import REFUSED, try_each
from registry import RegistryError

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE, TAG = "busybox", "demo"
HOSTNAME = "demo-guest"
_DEADLINE = "90s"
_KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CGROUPS = Path("/sys/fs/cgroup")


T = TypeVar("T")


class Stopped(Exception):
    """The demo cannot go on."""


# --- the screen ----------------------------------------------------------------------------


class Screen:
    """Writes to stdout; colour and block characters only where they can be shown."""

    def __init__(self) -> None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._codes = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
        self._colour = colour
        self.block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
        self.columns = min(shutil.get_terminal_size((100, 24)).columns, 120)

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{self._codes[style]}m{text}\x1b[0m" if self._colour else text

    def say(self, text: str = "", style: str = "") -> None:
        print(self.paint(text, style) if style else text, flush=True)

    def heading(self, text: str) -> None:
        self.say()
        self.say(text, "bold")
        self.say(self.paint("-" * len(text), "dim"))

    def loud(self, text: str) -> None:
        """Something that must not be missed."""
        lines = textwrap.wrap(text, self.columns - 6)
        self.say()
        for line in lines:
            self.say(f"  !! {line}", "yellow")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what begins, and how long it took. vmrun's own words on stderr come between."""
        self.say(f"==> {text}")
        start = time.monotonic()
        yield
        self.say(f"    done in {time.monotonic() - start:.1f} s", "dim")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], marked: set[int]) -> None:
        """The first column as wide as it is, the others as the screen allows; marked rows
        stand out."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        spare = self.columns - 4 - 2 * (len(header) - 1) - widths[0]
        while sum(widths[1:]) > spare and max(widths[1:]) > 12:
            widths[1 + widths[1:].index(max(widths[1:]))] -= 1
        self.say("    " + self._line(header, widths), "dim")
        for number, row in enumerate(rows):
            mark = "*" if number in marked else " "
            line = f"  {mark} " + self._line(row, widths)
            self.say(line, "bold" if number in marked else "")

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        cut = (
            cell if len(cell) <= width else cell[: width - 1] + "~"
            for cell, width in zip(cells, widths, strict=True)
        )
        return "  ".join(c.ljust(w) for c, w in zip(cut, widths, strict=True)).rstrip()


@dataclass
class Checks:
    """What was promised, and whether it held."""

    screen: Screen
    broken: list[str] = field(default_factory=list)
    count: int = 0

    def that(self, promise: str, kept: bool, found: str = "") -> None:
        self.count += 1
        if not kept:
            self.broken.append(f"{promise}{': ' + found if found else ''}")

    def show(self, promise: str, kept: bool, found: str = "") -> None:
        """The same, and a line about it."""
        self.that(promise, kept, found)
        mark = self.screen.paint("ok ", "green") if kept else self.screen.paint("NOT", "red")
        self.screen.say(f"    {mark} {promise}" + (f" ({found})" if found else ""))


# --- running -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuestRun:
    """What ``vmrun run`` printed for the workload, and its report."""

    output: str
    report: dict[str, Any]


def run_guest(company: Company, image: str, script: str, scratch: Path) -> GuestRun:
    """Run ``script`` in the image with vmrun, its progress and warnings on our stderr."""
    report = scratch / "report.json"
    report.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "vmrun", "run", "--report", str(report)),
        *("--profile", "restricted", "--timeout", _DEADLINE, "--hostname", HOSTNAME),
        *(image, "--", "sh", "-c", script),
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=REPOSITORY,
        env={**os.environ, **company.environment},
    ) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()  # it has had the signal too, and tears its guest down
            raise
    if process.returncode != 0 or not report.exists():
        raise Stopped(f"vmrun run ended with status {process.returncode}; see its error above")
    return GuestRun(output, json.loads(report.read_text()))


@dataclass(frozen=True)
class Bare(Generic[T]):
    """What a container on the host itself answered, and which runtime ran it."""

    runtime: str
    answer: T


def try_bare(
    screen: Screen, images: Images, script: str, parse: Callable[[str], T], scratch: Path
) -> Bare[T] | None:
    """Run ``script`` on the host, if a container runtime here can."""
    try:
        run = run_bare(images.layout, images.archive, f"{IMAGE}:{TAG}", script, scratch)
        return Bare(run.runtime, parse(run.output))
    except (NoRuntime, BadAnswer) as reason:
        screen.say(f"    no comparison: {reason}", "yellow")
        return None


@dataclass(frozen=True)
class Images:
    """The demo image in two forms, made of the same files, and one with a known hole."""

    layout: Path
    archive: Path
    vulnerable_layout: Path

    @property
    def reference(self) -> str:
        return f"oci:{self.layout}:{TAG}"

    @property
    def vulnerable(self) -> str:
        return f"oci:{self.vulnerable_layout}:{TAG}"


def build_images(directory: Path) -> Images:
    layout, saved, vulnerable = (directory / name for name in ("oci", "docker", "vulnerable"))
    program = Path(__file__).with_name("build.py")
    for name, out, form in (
        (IMAGE, layout, "oci"),
        (IMAGE, saved, "docker-archive"),
        ("vulnerable", vulnerable, "oci"),
    ):
        subprocess.run([sys.executable, program, name, out, "--format", form], check=True)
    return Images(layout, saved / f"{IMAGE}.tar", vulnerable)


# --- showing -------------------------------------------------------------------------------


def show_views(screen: Screen, bare: Bare[View] | None, view: View) -> None:
    host = _KERNEL_BOOT_ID.read_text().strip()
    rows = compare(bare.answer if bare else None, view, host_boot_id=host)
    if bare is None:
        header = ["what a process sees", "in a guest"]
        screen.table(header, [(row.what, row.guest) for row in rows], set())
        return
    screen.table(
        ["what a process sees", f"bare ({bare.runtime})", "in a guest (vmrun)"],
        [(row.what, row.bare, row.guest) for row in rows],
        {number for number, row in enumerate(rows) if row.differs},
    )
    screen.say("    * differs", "dim")


def check_view(checks: Checks, view: View) -> None:
    host = _KERNEL_BOOT_ID.read_text().strip()
    checks.that("the guest has a kernel of its own", view.boot_id != host)
    checks.that("the workload is not root", view.uid != 0, str(view.uid))
    checks.that("it has no capabilities", view.capabilities == 0, f"{view.capabilities:#x}")
    checks.that("seccomp filters its system calls", view.seccomp == 2)
    checks.that("no_new_privs is set", view.no_new_privs)
    checks.that("its root is read-only", view.root_read_only)
    checks.that("it has no network card", view.interfaces == ("lo",), " ".join(view.interfaces))
    checks.that("it has the host name it was given", view.hostname == HOSTNAME, view.hostname)


def show_attacks(
    screen: Screen, bare: Bare[tuple[Attack, ...]] | None, guest: tuple[Attack, ...]
) -> None:
    if bare is None:
        screen.table(["it tries to", "in a guest"], [(a.tried, a.outcome) for a in guest], set())
        return
    screen.table(
        ["it tries to", f"bare ({bare.runtime})", "in a guest (vmrun)"],
        [(b.tried, b.outcome, g.outcome) for b, g in zip(bare.answer, guest, strict=True)],
        loose := {n for n, attack in enumerate(bare.answer) if not attack.contained},
    )
    if loose:
        screen.say("    * the bare container let it through", "dim")


def show_phases(screen: Screen, report: dict[str, Any]) -> None:
    phases = report["phases"]
    longest = max(phase["duration"] for phase in phases)
    room = max(10, screen.columns - 34)
    for phase in phases:
        length = round(room * phase["duration"] / longest)
        bar = screen.paint(screen.block * length, "green")
        screen.say(f"    {phase['name']:<12} {phase['duration']:7.3f} s  {bar}".rstrip())
    total = phases[-1]["start"] + phases[-1]["duration"]
    screen.say(f"    {'in all':<12} {total:7.3f} s")


def show_assertions(screen: Screen, checks: Checks, report: dict[str, Any]) -> None:
    assertions = report["assertions"]
    for subject in dict.fromkeys(item["subject"] for item in assertions):
        mine = [item for item in assertions if item["subject"] == subject]
        held = [item for item in mine if item["ok"]]
        checks.show(
            f"{subject}: {len(held)} of {len(mine)} assertions hold", len(held) == len(mine)
        )
        words = "; ".join(f"{item['name']} {item['actual']}" for item in mine)
        for line in textwrap.wrap(words, screen.columns - 10):
            screen.say(f"        {line}", "dim")


def show_teardown(screen: Screen, checks: Checks, report: dict[str, Any]) -> None:
    removed = report["receipt"]["removed"]
    for item in removed:
        checks.show(f"{item['kind']} {item['name']}", item["gone"], "gone" if item["gone"] else "")
    kinds = {item["kind"] for item in removed}
    checks.that(
        "the receipt names the domain, the process and the directory",
        {"domain", "process", "directory"} <= kinds,
        ", ".join(sorted(kinds)),
    )
    screen.say("    Looked for again, without vmrun:", "dim")
    left = leftovers(report)
    checks.show("this host has no process, directory or cgroup of that run", not left, left)


def leftovers(report: dict[str, Any]) -> str:
    """What is on this host of a run, found without vmrun's help."""
    run_id, found = report["run_id"], []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"vmrun-{run_id}".encode() in command:
                found.append(f"process {entry.name}")
    found += [
        item["name"]
        for item in report["receipt"]["removed"]
        if item["kind"] == "directory" and Path(item["name"]).exists()
    ]
    if _CGROUPS.is_dir():
        found += [str(path) for path in _CGROUPS.rglob(f"*vmrun-{run_id}*")]
    return ", ".join(found)


def accelerator_line(screen: Screen, report: dict[str, Any]) -> None:
    if report["isolated"]:
        screen.say("    The guest ran under KVM: hardware isolation.", "green")
        return
    screen.loud(
        "This guest was EMULATED, for KVM does not work here. Emulation is NO SECURITY BOUNDARY: "
        "QEMU's developers do not treat it as one. What is shown is how vmrun works, not how "
        "strong it is on a host with KVM."
    )


# --- the story -----------------------------------------------------------------------------


def prologue(screen: Screen, checks: Checks, company: Company, images: Images) -> str:
    """Publish the image as a company would; the name that everybody runs it by."""
    screen.heading("Only what is signed and healthy runs")
    screen.say(
        f"    a registry on {company.registry.host}: TLS by its own CA, and a password", "dim"
    )
    refused = company.vmrun("run", "--quiet", images.reference, "--", "true")
    checks.show("without a policy that allows it nothing runs", refused.status == REFUSED)
    with screen.step("vmrun image push, vmrun image sign"):
        name = company.publish(images.reference, "demo/busybox:1")
    with screen.step("vmrun image scan --key: the bill of health, signed, beside the image"):
        table = company.do("image", "scan", "--key", str(company.key), name)
    screen.say(textwrap.indent(table, "    "), "dim")
    with screen.step("vmrun image verify"):
        chain = company.do("image", "verify", name)
    screen.say(textwrap.indent(chain, "    "), "dim")
    checks.that("its scan passes", "PASS" in table, table)
    checks.that("its signature is found in both formats", "bundle" in chain and "simple" in chain)
    return name


def third_act(screen: Screen, checks: Checks, company: Company, images: Images) -> None:
    screen.heading("Act 3: what does not run")
    with screen.step("push four images that must not run, and try each"):
        refusals = try_each(company, images.reference, images.vulnerable)
    for refusal in refusals:
        found = f"status {refusal.status}, {'a guest was made' if refusal.started else 'no guest'}"
        checks.show(f"{refusal.what} is refused", refusal.right, found)
        for line in textwrap.wrap(refusal.said, screen.columns - 10):
            screen.say(f"        {line}", "dim")
    audit = company.do("audit", "verify")
    checks.show("the journal's chain is whole", bool(audit), f"head {audit[:20]}…")


def first_act(
    screen: Screen, checks: Checks, company: Company, name: str, images: Images, scratch: Path
) -> GuestRun:
    screen.heading("Act 1: the same image, bare and in a guest")
    with screen.step("run it bare, with this host's container runtime"):
        bare = try_bare(screen, images, INSPECT, parse_view, scratch)
    with screen.step("run it in a guest of its own: vmrun run"):
        guest = run_guest(company, name, INSPECT, scratch)
    view = parse_view(guest.output)
    screen.say()
    show_views(screen, bare, view)
    check_view(checks, view)
    accelerator_line(screen, guest.report)
    return guest


def second_act(
    screen: Screen, checks: Checks, company: Company, name: str, images: Images, scratch: Path
) -> GuestRun:
    screen.heading("Act 2: it attacks")
    with screen.step("attack from a bare container"):
        bare = try_bare(screen, images, ATTACK, parse_attacks, scratch)
    with screen.step("attack from a container in a guest"):
        guest = run_guest(company, name, ATTACK, scratch)
    attacks = parse_attacks(guest.output)
    screen.say()
    show_attacks(screen, bare, attacks)
    for attack in attacks:
        checks.that(f"'{attack.tried}' is refused", attack.contained, attack.answer or "no answer")
    return guest


def epilogue(screen: Screen, checks: Checks, runs: Sequence[GuestRun]) -> None:
    report = runs[0].report
    screen.heading("Where the time went (act 1)")
    show_phases(screen, report)
    screen.heading("Read live, before the workload's first instruction (act 1)")
    show_assertions(screen, checks, report)
    for number, run in enumerate(runs, start=1):
        screen.heading(f"Teardown receipt (act {number})")
        show_teardown(screen, checks, run.report)


def default_directory() -> Path:
    """In the checkout if this user may write there."""
    wanted = REPOSITORY / "build" / "demo"
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if os.access(existing, os.W_OK):
        return wanted
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmrun-demo"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the demo image is kept (default: build/demo, or your cache)",
    )
    directory = (parser.parse_args().directory or default_directory()).absolute()
    screen = Screen()
    checks = Checks(screen)
    start = time.monotonic()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="run-", dir=directory) as scratch:
            screen.heading("A real image, from Debian packages")
            with screen.step(f"build {IMAGE} (or find it built) in {directory}"):
                images = build_images(directory)
            with found_company(Path(scratch) / "company") as company:
                name = prologue(screen, checks, company, images)
                runs = [
                    act(screen, checks, company, name, images, Path(scratch))
                    for act in (first_act, second_act)
                ]
                third_act(screen, checks, company, images)
            epilogue(screen, checks, runs)
    except (
        Stopped, BadAnswer, CommandFailed, RegistryError, subprocess.CalledProcessError,
    ) as error:  # fmt: skip
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"demo: {error}\nhint: --directory DIR says where to work", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return conclude(screen, checks, time.monotonic() - start, runs[0].report)


def conclude(screen: Screen, checks: Checks, seconds: float, report: dict[str, Any]) -> int:
    screen.heading("In short")
    if checks.broken:
        for broken in checks.broken:
            screen.say(f"    NOT as promised: {broken}", "red")
        return 1
    screen.say(f"    {checks.count} promises checked, all kept, in {seconds:.0f} s.", "green")
    if not report["isolated"]:
        screen.say("    Under emulation, which is no security boundary.", "yellow")
    screen.say("    Go on with docs/tutorial/first-run.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
