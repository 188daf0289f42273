"""OpenVEX documents (openvex.dev, specification 0.2.0): somebody looked, and it does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.errors import ImageError, ScanError
from vmrun.policy.scan_gate import VexStatement

_LIMITS = ImageLimits(document=16 * MIB)
_MOST = 10_000
_CONTEXT = "https://openvex.dev/ns"
_JUSTIFICATIONS = frozenset(
    {
        "component_not_present",
        "vulnerable_code_not_present",
        "vulnerable_code_not_in_execute_path",
        "vulnerable_code_cannot_be_controlled_by_adversary",
        "inline_mitigations_already_exist",
    }
)
_STATUSES = frozenset({"not_affected", "affected", "fixed", "under_investigation"})


def read_openvex(path: Path) -> tuple[VexStatement, ...]:
    """The statements of a document that excuse a finding. Raises :class:`ScanError`."""
    where = f"OpenVEX document {str(path)!r}"
    try:
        with open_regular(path, "OpenVEX document") as file, reading(where):
            data = read_exactly(file, _LIMITS.document + 1)
        document = parse_object(data, where, _LIMITS)
        if not document.text("@context").startswith(_CONTEXT):
            raise document.wrong("@context", f"{_CONTEXT}…")
        for key in ("@id", "author"):
            document.text(key)
        document.integer("version")
        written = _time(document, "timestamp")
        said = [
            statement
            for item in document.objects("statements", _MOST)
            for statement in _statements(item, written)
        ]
    except ImageError as error:
        raise ScanError(error.message, hint="correct the document, or do without it") from None
    return tuple(_last_words(said))


@dataclass(frozen=True, slots=True)
class _Said:
    """A statement about one product, and when it was made."""

    at: float
    excuses: bool
    statement: VexStatement


def _last_words(said: list[_Said]) -> Iterator[VexStatement]:
    """Statements that excuse, unless a later one says otherwise of the same vulnerability and
    product (OpenVEX, "Status inheritance and chronology")."""
    retractions: dict[str, list[_Said]] = {}
    for one in said:
        for name in () if one.excuses else one.statement.names:
            retractions.setdefault(name, []).append(one)
    for one in said:
        if one.excuses and not any(
            _takes_back(other, one)
            for name in one.statement.names
            for other in retractions.get(name, ())
        ):
            yield one.statement


def _takes_back(other: _Said, one: _Said) -> bool:
    """Whether ``other`` was said at the same time or later of what ``one`` is about: a product, or
    one part of it. What is said of the whole is said of its parts."""
    there, here = other.statement, one.statement
    return (
        other.at >= one.at
        and bool(set(there.product) & set(here.product))
        and (not there.component or bool(set(there.component) & set(here.component)))
    )


def _statements(item: Document, written: float) -> Iterator[_Said]:
    status = item.text("status")
    if status not in _STATUSES:
        raise item.wrong("status", f"one of {', '.join(sorted(_STATUSES))}")
    why = item.text("impact_statement", "")
    if status == "not_affected":
        justification = item.text("justification", "")
        if justification not in _JUSTIFICATIONS and (justification or not why):
            raise item.wrong("justification", "a justification, which not_affected needs")
        why = why or justification
    vulnerability = item.nested("vulnerability")
    names = (vulnerability.text("name"), *vulnerability.texts("aliases"))
    at = _time(item, "timestamp") if "timestamp" in item else written
    reason = f"{status}: {why}".rstrip(": ")
    excuses = status in ("not_affected", "fixed")
    products = item.objects("products", _MOST)
    if not products:
        raise item.wrong("products", "a list of products: a statement about nothing in particular")
    for product in products:
        below = product.objects("subcomponents", _MOST) if "subcomponents" in product else []
        for component in [_identifiers(one) for one in below] or [()]:
            statement = VexStatement(names, _identifiers(product), reason, component)
            yield _Said(at, excuses, statement)


def _identifiers(component: Document) -> tuple[str, ...]:
    """By what a product or a part of it is named; a part that nothing names is an error."""
    named = component.nested("identifiers").text_map_values()
    names = tuple(name for name in (component.text("@id", ""), *named) if name)
    if not names:
        raise component.wrong("@id", "the name of a product")
    return names


def _time(item: Document, key: str) -> float:
    try:
        return datetime.fromisoformat(item.text(key).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise item.wrong(key, "a time (RFC 3339)") from None
