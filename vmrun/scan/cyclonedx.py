"""The software bill of materials as CycloneDX 1.6 JSON (ECMA-424)."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vmrun.model.digest import Digest
from vmrun.model.image import Image, Reference
from vmrun.model.scan import Catalogue, Distribution, Package
from vmrun.scan.purl import oci_purl

_NAMESPACE = uuid.UUID("8d7bb4a5-4d1c-5c0b-9d5e-0c7b1c6a2f11")
_ALGORITHMS = {"sha256": "SHA-256", "sha512": "SHA-512"}


def cyclonedx(catalogue: Catalogue, image: Image, *, created: float) -> dict[str, Any]:
    """The document; the same image and time (seconds since 1970) give the same bytes.

    What could not be read is a property of the image, and so is what has no record: a reader
    knows that the list is not complete.
    """
    time = datetime.fromtimestamp(int(created), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{catalogue.digest} {time}')}",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": {
                "components": [
                    {"type": "application", "name": "vmrun", "version": version("vmrun")}
                ]
            },
            "component": _image(catalogue, image.reference),
        },
        "components": [*_components(catalogue.packages), *_system(catalogue.distribution)],
        "compositions": [
            {
                "aggregate": "incomplete" if _has_gaps(catalogue) else "unknown",
                "assemblies": [str(catalogue.digest)],
            }
        ],
    }


def _has_gaps(catalogue: Catalogue) -> bool:
    return bool(catalogue.unreadable or catalogue.unseen)


def _image(catalogue: Catalogue, reference: Reference) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "container",
        "bom-ref": str(catalogue.digest),
        "name": str(reference),
        "version": str(catalogue.digest),
        "hashes": [_hash(catalogue.digest)],
        "properties": [
            *(_property("unreadable", text) for text in catalogue.unreadable),
            *(_property("unseen", text) for text in catalogue.unseen),
        ],
    }
    if purl := oci_purl(reference, catalogue.digest):
        component["purl"] = purl
    return component


def _hash(digest: Digest) -> dict[str, str]:
    return {"alg": _ALGORITHMS[digest.algorithm], "content": digest.hex}


def _components(packages: tuple[Package, ...]) -> list[dict[str, Any]]:
    """The packages; those with the same name and record are told apart by a number."""
    found, times = [], Counter[str]()
    for package in packages:
        ref = f"{package.purl}#{package.path}"
        times[ref] += 1
        found.append(_component(package, f"{ref}#{times[ref]}" if times[ref] > 1 else ref))
    return found


def _component(package: Package, ref: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": ref,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        "properties": [
            _property("path", package.path),
            _property("layer", str(package.layer)),
            _property("source", f"{package.source} {package.source_version}"),
        ],
    }
    if package.managed:
        component["properties"].append(_property("managed", "true"))
    if package.licence:
        component["licenses"] = [
            {"license": {"name": package.licence, "acknowledgement": "declared"}}
        ]
    return component


def _system(distribution: Distribution | None) -> list[dict[str, Any]]:
    if distribution is None:
        return []
    return [
        {
            "type": "operating-system",
            "bom-ref": f"os:{distribution.id}",
            "name": distribution.id,
            "version": distribution.version_id or "unknown",
            "description": distribution.name or distribution.id,
        }
    ]


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"vmrun:{name}", "value": value}
