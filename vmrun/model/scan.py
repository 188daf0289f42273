"""What an image contains and what is known to be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from vmrun.model.digest import Digest


class PackageKind(StrEnum):
    """Package systems whose records vmrun reads; the values are purl types."""

    DEB = "deb"
    APK = "apk"
    PYPI = "pypi"
    NPM = "npm"


@dataclass(frozen=True, slots=True)
class Distribution:
    """The image's /etc/os-release: ``id`` (``debian``), ``version_id`` (``12``)."""

    id: str
    version_id: str
    codename: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """An installed package. ``source`` and ``source_version`` are what distributions' advisories
    name; for PyPI and npm they equal ``name`` and ``version``."""

    kind: PackageKind
    name: str
    version: str
    source: str
    source_version: str
    architecture: str
    path: str
    """The file that records it, printable: bytes that are not text are escapes."""
    layer: Digest
    """The layer (blob) that file comes from: for databases that are one file, the last layer in
    which a package was installed or removed."""
    purl: str
    licence: str = ""
    managed: bool = False
    """Whether it was put there by a package of the distribution, which then answers for it: fixes
    are backported, so that its version says little."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All packages that could be read.

    Each entry of ``unreadable`` says what could not be, such as an rpm database: an image that
    has any is not scanned. ``unseen`` says what has no record that could be read: programs that no
    package brought. What is compiled into those was not looked at, which every reader of the
    catalogue has to be told.
    """

    digest: Digest
    """The image's manifest."""
    distribution: Distribution | None
    packages: tuple[Package, ...]
    unreadable: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


class Severity(IntEnum):
    """Qualitative severity (CVSS 3.1, section 5). An advisory without one is UNKNOWN."""

    NONE = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4
    UNKNOWN = 5

    @property
    def word(self) -> str:
        """As people write it."""
        return self.name.lower()


class Verdict(StrEnum):
    """What the scan gate says. Only PASS runs."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a secret
    FAIL = "FAIL"
    NOT_SCANNED = "NOT-SCANNED"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Finding:
    """An advisory that applies to an installed package. ``fixed`` is empty when no fix is known;
    ``source`` names the database; ``certain`` is False when versions could not be compared."""

    id: str
    aliases: tuple[str, ...]
    package: Package
    fixed: str
    severity: Severity
    summary: str
    source: str
    score: float | None = None
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Database:
    """A source of advisories: ``dated`` is how recent its content is (seconds since 1970; None
    when it does not say), ``digest`` that of its file."""

    name: str
    digest: Digest
    dated: float | None
    advisories: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in one image against which databases, not yet judged.

    ``uncovered`` names what no database covers (an ecosystem without one): not checked is
    never clean, so an image that has any is not scanned.
    """

    digest: Digest
    scanned_at: float
    scanner: str
    distribution: Distribution | None
    packages: int
    databases: tuple[Database, ...]
    findings: tuple[Finding, ...]
    uncovered: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    """What has no record that could be read, such as programs that were copied in; see
    :class:`Catalogue`."""
    ecosystems: tuple[str, ...] = ()
    """Those that its packages belong to, whether or not there was a database of each."""


@dataclass(frozen=True, slots=True)
class Excused:
    """A finding that an exception covers, and why."""

    finding: Finding
    reason: str
    expires: float | None
    origin: str
    """``openvex`` or ``rules``."""


@dataclass(frozen=True, slots=True)
class BillOfHealth:
    """A scan, judged by a gate at a time. ``reasons`` say why it is not PASS."""

    scan: Scan
    verdict: Verdict
    reasons: tuple[str, ...]
    failing: tuple[Finding, ...] = ()
    excused: tuple[Excused, ...] = ()
    judged_at: float = 0.0
