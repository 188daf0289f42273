"""Four images that must not run, and what vmrun says to each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from company import Company
from registry import tamper

REFUSED = 123
FAILED = 125


@dataclass(frozen=True)
class Refusal:
    """An image that was tried: ``status`` is what 'vmrun run' ended with, ``said`` its error,
    ``started`` whether the journal has the creation of a guest for it."""

    what: str
    status: int
    expected: int
    said: str
    started: bool

    @property
    def right(self) -> bool:
        """Whether it was refused as it should be, and nothing was created for it."""
        return self.status == self.expected and not self.started


def unsigned(company: Company, layout: str) -> str:
    """Pushed by somebody who has the password, but not the key."""
    name = company.name("demo/unsigned:1")
    company.do("image", "push", "--quiet", layout, name)
    return name


def retagged(company: Company, layout: str) -> str:
    """Signed as 1.0, and put in the place of 2.0: the signature is good, the name is not."""
    company.publish(layout, "demo/retagged:1.0")
    name = company.name("demo/retagged:2.0")
    company.do("image", "push", "--quiet", layout, name)
    return name


def vulnerable(company: Company, layout: str) -> str:
    """Signed, and known to have a hole."""
    return company.publish(layout, "demo/vulnerable:1")


def tampered(company: Company, layout: str) -> str:
    """Signed, then changed by one byte on the registry's own disk."""
    name = company.publish(layout, "demo/tampered:1")
    pushed = json.loads(company.do("image", "push", "--json", layout, name))
    tamper(company.registry, pushed["digest"])
    return name


def try_each(company: Company, layout: str, vulnerable_layout: str) -> list[Refusal]:
    """Try to run each of them. The tampered one comes last: its blobs are the others', too."""
    attempts: tuple[tuple[str, Callable[[Company, str], str], str, int], ...] = (
        ("an unsigned image", unsigned, layout, REFUSED),
        ("a signed image under another tag", retagged, layout, REFUSED),
        ("a signed image with a known hole", vulnerable, vulnerable_layout, REFUSED),
        ("a signed image, one byte changed", tampered, layout, FAILED),
    )
    found = []
    for what, prepare, source, expected in attempts:
        name = prepare(company, source)
        done = company.vmrun("run", "--quiet", name, "--", "true")
        said = next((x for x in done.errors.splitlines() if x.startswith("vmrun: ")), "")
        starts = json.loads(company.do("audit", "show", "--event", "run.start", "--json"))
        started = any(entry["fields"]["reference"] == name for entry in starts)
        found.append(Refusal(what, done.status, expected, said.removeprefix("vmrun: "), started))
    return found
