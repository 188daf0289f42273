"""OpenVEX documents (openvex.dev, specification 0.2.0): somebody looked, and it does not matter."""

from __future__ import annotations

from collections.abc import Iterator
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
        return tuple(
            statement
            for item in document.objects("statements", _MOST)
            for statement in _statements(item)
        )
    except ImageError as error:
        raise ScanError(error.message, hint="correct the document, or do without it") from None


def _statements(item: Document) -> Iterator[VexStatement]:
    status = item.text("status")
    if status not in _STATUSES:
        raise item.wrong("status", f"one of {', '.join(sorted(_STATUSES))}")
    if status not in ("not_affected", "fixed"):
        return
    why = item.text("impact_statement", "")
    if status == "not_affected":
        justification = item.text("justification", "")
        if justification not in _JUSTIFICATIONS and not why:
            raise item.wrong("justification", "a justification, which not_affected needs")
        why = why or justification
    vulnerability = item.nested("vulnerability")
    names = (vulnerability.text("name"), *vulnerability.texts("aliases"))
    products = tuple(
        name for product in item.objects("products", _MOST) for name in _products(product)
    )
    if not products:
        raise item.wrong("products", "a list of products: a statement about nothing in particular")
    yield VexStatement(names, products, f"{status}: {why}".rstrip(": "))


def _products(product: Document) -> Iterator[str]:
    """The identifiers of a product, or of its subcomponents where it names some: then only those
    are meant."""
    below = product.objects("subcomponents", _MOST) if "subcomponents" in product else []
    for item in below or [product]:
        names = [item.text("@id", ""), *item.nested("identifiers").text_map_values()]
        yield from (name for name in names if name)
