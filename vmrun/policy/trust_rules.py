"""trust.toml: what containers-policy.json(5) cannot say (docs/reference/trust-rules.md).

Revocations, the time in which a key is valid, how many keys must agree, whether an older signature
may replace a newer one, the scan gate, and a catalogue. Several files are combined by tightening:
whatever one of them forbids stays forbidden.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from vmrun.model.digest import Digest
from vmrun.model.errors import SettingsError
from vmrun.model.scan import Severity
from vmrun.policy.scopes import covers
from vmrun.policy.toml_table import KEY_ID, TomlTable

LARGEST_RULES = 1 << 20
_T = TypeVar("_T")
_HINT = "docs/reference/trust-rules.md lists what may stand there"


class Downgrade(IntEnum):
    """What to do when a signature is older than one that was accepted for the same name."""

    OFF = 0
    WARN = 1
    REFUSE = 2


@dataclass(frozen=True, slots=True)
class KeyValidity:
    """When a key's signatures count, by the verifier's clock (seconds since 1970)."""

    key_id: str
    name: str = ""
    not_before: float | None = None
    not_after: float | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """At least ``signatures`` different keys must agree on images below ``scope``."""

    scope: str
    signatures: int


@dataclass(frozen=True, slots=True)
class ScanException:
    """A finding that is accepted until ``expires`` (seconds since 1970), and why."""

    id: str
    reason: str
    expires: float
    package: str = ""


@dataclass(frozen=True, slots=True)
class ScanGate:
    """How healthy an image must be. ``max_severity`` is the highest that passes; ages in seconds.

    ``attested_by``: keys whose attested scans count; None leaves only scans made on this host.
    """

    required: bool = True
    max_severity: Severity = Severity.MEDIUM
    fixed_only: bool = False
    max_scan_age: float = 24 * 3600.0
    max_db_age: float = 7 * 24 * 3600.0
    attested_by: tuple[str, ...] = ()
    openvex: tuple[str, ...] = ()
    exceptions: tuple[ScanException, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueRule:
    """A TUF catalogue that says which digest a name has now, for names below ``scopes``."""

    name: str
    source: str
    """An absolute directory, or an https URL."""
    root: str
    """The file with the root metadata that is trusted at first."""
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustRules:
    """One file's rules. ``revoked_*`` map to the reason."""

    revoked_keys: Mapping[str, str] = field(default_factory=dict)
    revoked_digests: Mapping[Digest, str] = field(default_factory=dict)
    keys: tuple[KeyValidity, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    downgrade: Downgrade = Downgrade.REFUSE
    scan: ScanGate | None = None
    catalogues: tuple[CatalogueRule, ...] = ()

    def threshold(self, name: str) -> int:
        """How many keys must agree on an image of that name; none where no rule is about it."""
        fitting = [t.signatures for t in self.thresholds if covers(t.scope, name)]
        return max(fitting, default=0)


def parse_rules(data: bytes, where: str) -> TrustRules:
    """Read trust.toml. Raises :class:`SettingsError` that names the table and the key."""
    try:
        table = TomlTable(tomllib.loads(data.decode("utf-8")), where)
        return _rules(table)
    except ValueError as error:  # of which TOMLDecodeError and UnicodeDecodeError are kinds
        raise SettingsError(f"{where}: {str(error)[:200]}", hint=_HINT) from None
    except RecursionError:
        raise SettingsError(f"{where}: nested too deep", hint=_HINT) from None


def _rules(table: TomlTable) -> TrustRules:
    table.only("version", "revoked", "keys", "threshold", "ledger", "scan", "catalogue")
    if table.number("version", 0) != 1:
        raise table.wrong("version", "1")
    revoked = table.table("revoked")
    revoked.only("keys", "digests")
    ledger = table.table("ledger")
    ledger.only("downgrade")
    word = ledger.text("downgrade", Downgrade.REFUSE.name.lower())
    if word.upper() not in Downgrade.__members__:
        raise ledger.wrong("downgrade", "one of refuse, warn, off")
    return TrustRules(
        revoked_keys={t.key_id("id"): t.reason() for t in revoked.tables("keys", "id", "reason")},
        revoked_digests={
            t.digest("digest"): t.reason() for t in revoked.tables("digests", "digest", "reason")
        },
        keys=tuple(
            _validity(t) for t in table.tables("keys", "id", "name", "not_before", "not_after")
        ),
        thresholds=tuple(
            Threshold(t.scope("scope"), t.positive("signatures"))
            for t in table.tables("threshold", "scope", "signatures")
        ),
        downgrade=Downgrade[word.upper()],
        scan=_gate(table.table("scan")) if "scan" in table else None,
        catalogues=tuple(_catalogue(t) for t in table.tables("catalogue", *_CATALOGUE)),
    )


def _validity(table: TomlTable) -> KeyValidity:
    before, after = table.time("not_before"), table.time("not_after")
    if before is not None and after is not None and after <= before:
        raise table.wrong("not_after", "later than not_before")
    return KeyValidity(table.key_id("id"), table.text("name", ""), before, after)


_CATALOGUE = ("name", "source", "root", "scopes")


def _catalogue(table: TomlTable) -> CatalogueRule:
    source, root, name = table.text("source"), table.text("root"), table.text("name")
    if not posixpath.isabs(source) and not source.startswith(("https://", "http://")):
        raise table.wrong("source", "an absolute directory or an https URL")
    if not posixpath.isabs(root):
        raise table.wrong("root", "an absolute path")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise table.wrong("name", "lower-case letters, digits and hyphens")
    return CatalogueRule(name, source, root, table.scopes("scopes"))


def _gate(table: TomlTable) -> ScanGate:
    table.only(
        "required", "max_severity", "fixed_only", "max_scan_age", "max_db_age", "attested_by",
        "openvex", "exceptions",
    )  # fmt: skip
    default = ScanGate()
    for path in table.texts("openvex"):
        if not posixpath.isabs(path):
            raise table.wrong("openvex", "a list of absolute paths")
    for key_id in table.texts("attested_by"):
        if not KEY_ID.fullmatch(key_id):
            raise table.wrong("attested_by", "a list of key ids (see 'vmrun key show')")
    return ScanGate(
        required=table.boolean("required", True),
        max_severity=_severity(table),
        fixed_only=table.boolean("fixed_only", False),
        max_scan_age=table.duration("max_scan_age", default.max_scan_age),
        max_db_age=table.duration("max_db_age", default.max_db_age),
        attested_by=table.texts("attested_by"),
        openvex=table.texts("openvex"),
        exceptions=tuple(
            ScanException(
                t.text("id"), t.reason(), t.required_time("expires"), t.text("package", "")
            )
            for t in table.tables("exceptions", "id", "package", "reason", "expires")
        ),
    )


def _severity(table: TomlTable) -> Severity:
    word = table.text("max_severity", Severity.MEDIUM.word)
    allowed = [s.word for s in Severity if s is not Severity.UNKNOWN]
    if word not in allowed:
        raise table.wrong("max_severity", f"one of {', '.join(allowed)}")
    return Severity[word.upper()]


def combine_gates(gates: tuple[ScanGate, ...]) -> ScanGate | None:
    """The strictest of several gates: a finding passes only where all let it pass."""
    if not gates:
        return None
    return ScanGate(
        required=any(g.required for g in gates),
        max_severity=min(g.max_severity for g in gates),
        fixed_only=all(g.fixed_only for g in gates),
        max_scan_age=min(g.max_scan_age for g in gates),
        max_db_age=min(g.max_db_age for g in gates),
        attested_by=_common(tuple(g.attested_by for g in gates)),
        openvex=_common(tuple(g.openvex for g in gates)),
        exceptions=_common(tuple(g.exceptions for g in gates)),
    )


def _common(lists: tuple[tuple[_T, ...], ...]) -> tuple[_T, ...]:
    return tuple(item for item in lists[0] if all(item in other for other in lists[1:]))
