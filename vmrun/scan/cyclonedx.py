"""The software bill of materials as CycloneDX 1.6 JSON (ECMA-424)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vmrun.model.image import Image
from vmrun.model.scan import Catalogue, Package

_NAMESPACE = uuid.UUID("8d7bb4a5-4d1c-5c0b-9d5e-0c7b1c6a2f11")


def cyclonedx(catalogue: Catalogue, image: Image, *, created: float) -> dict[str, Any]:
    """The document; the same image and time (seconds since 1970) give the same bytes.

    What could not be read is a property of the image, so that a reader knows it is not complete.
    """
    time = datetime.fromtimestamp(int(created), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    distribution = catalogue.distribution
    components = [_component(package) for package in catalogue.packages]
    if distribution is not None:
        components.append(
            {
                "type": "operating-system",
                "bom-ref": f"os:{distribution.id}",
                "name": distribution.id,
                "version": distribution.version_id or "unknown",
                "description": distribution.name or distribution.id,
            }
        )
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
            "component": {
                "type": "container",
                "bom-ref": str(catalogue.digest),
                "name": str(image.reference),
                "version": str(catalogue.digest),
                "properties": [_property("unreadable", text) for text in catalogue.unreadable],
            },
        },
        "components": components,
        "compositions": [
            {
                "aggregate": "incomplete" if catalogue.unreadable else "unknown",
                "assemblies": [str(catalogue.digest)],
            }
        ],
    }


def _component(package: Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"{package.purl}#{package.path}",
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
        component["licenses"] = [{"license": {"name": package.licence}}]
    return component


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"vmrun:{name}", "value": value}
