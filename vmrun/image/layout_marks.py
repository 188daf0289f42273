"""cosign's marks in a layout: its ``verify --local-image`` takes the first entry of each kind.

So they are set only where what it takes belongs together: for one image of the layout, which is
the first that was signed there (cosign, pkg/oci/layout).
"""

from __future__ import annotations

import re

from vmrun.image.manifest import INDEX_TYPES, REF_NAME

Entry = dict[str, object]
"""A descriptor of an index, as JSON."""

_KIND = "kind"
_IMAGE = "dev.cosignproject.cosign/image"
_INDEX = "dev.cosignproject.cosign/imageIndex"
_ATTACHED = {"sig": "dev.cosignproject.cosign/sigs", "att": "dev.cosignproject.cosign/atts"}
_TAG = re.compile(r"(sha256|sha512)-([0-9a-f]+)\.(sig|att)")


def tag_of(entry: Entry) -> object:
    """An entry's tag, None when it has none."""
    return _notes(entry).get(REF_NAME)


def mark(entries: list[Entry], new: Entry) -> None:
    """Mark ``new``, one of the entries, and the image that it is attached to.

    Nothing is marked when another image is, or when somebody else has marked what is attached.
    """
    match = _TAG.fullmatch(str(tag_of(new) or ""))
    if match is None:
        return
    marked = [entry for entry in entries if _notes(entry).get(_KIND) in (_IMAGE, _INDEX)]
    subject = f"{match[1]}:{match[2]}"
    candidates = marked or [entry for entry in entries if entry.get("digest") == subject][:1]
    kind = _ATTACHED[match[3]]
    if [entry.get("digest") for entry in candidates] != [subject]:
        return
    if any(_notes(entry).get(_KIND) == kind for entry in entries):
        return
    image = candidates[0]
    _set(image, _INDEX if image.get("mediaType") in INDEX_TYPES else _IMAGE)
    _set(new, kind)


def _notes(entry: Entry) -> dict[str, object]:
    notes = entry.get("annotations")
    return notes if isinstance(notes, dict) else {}


def _set(entry: Entry, kind: str) -> None:
    entry["annotations"] = {**_notes(entry), _KIND: kind}
