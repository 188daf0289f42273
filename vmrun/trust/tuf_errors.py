"""What python-tuf finds wrong with a catalogue, as vmrun's errors.

Metadata that came and is not good enough is :class:`Refused`: it may be an attack, and the cached
metadata must not hide that. A source that gave no metadata is an :class:`ImageError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.serialization import DeserializationError

from vmrun.model.errors import ImageError, Refused, SettingsError, StateError, VmrunError
from vmrun.trust.tuf_fetch import SourceDamaged

_LONGEST = 200
_REFUSED: tuple[tuple[type[Exception], str, str], ...] = (
    (
        UnsignedMetadataError,
        "not signed by the keys that count",
        "if its keys were changed, the change is missing in it or was not signed by enough keys of"
        " the root that you trust; ask who keeps it",
    ),
    (
        ExpiredMetadataError,
        "has expired",
        "somebody may be holding back newer metadata; if it is yours sign it again with"
        " 'vmrun catalogue refresh', else ask who keeps it; check this host's clock too",
    ),
    (
        BadVersionNumberError,
        "is older than what was seen before",
        "it was rolled back, or restored from a backup; ask who keeps it",
    ),
    (
        LengthOrHashMismatchError,
        "its parts do not belong together",
        "it was changed, or mixed from several of its versions; ask who keeps it",
    ),
    (
        DownloadLengthMismatchError,
        "is larger than allowed",
        "ask who keeps it",
    ),
    (DeserializationError, "is malformed", "ask who keeps it"),
    (RepositoryError, "cannot be trusted", "ask who keeps it"),
    # What a document that is JSON, but no metadata, can make of the library.
    (ValueError, "is malformed", "ask who keeps it"),
    (LookupError, "is malformed", "ask who keeps it"),
    (TypeError, "is malformed", "ask who keeps it"),
    (AttributeError, "is malformed", "ask who keeps it"),
    (RecursionError, "is malformed", "ask who keeps it"),
)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Errors of python-tuf about the catalogue ``where`` become vmrun's."""
    try:
        yield
    except VmrunError:
        raise
    except OSError as error:
        raise unusable_state(error) from error
    except Exception as error:
        raise explain(error, where) from error


def explain(error: Exception, where: str) -> VmrunError:
    """The error to show for ``error``; one that is not about a catalogue is raised again."""
    for kind, what, hint in _REFUSED:
        if isinstance(error, kind):
            return Refused(f"catalogue {where} {what}: {printable(error)}", hint=hint)
    if isinstance(error, DownloadHTTPError):
        return ImageError(
            f"catalogue {where} is incomplete: {printable(error)}",
            hint="check the source in the trust rules; it must hold timestamp.json",
        )
    if isinstance(error, SourceDamaged):
        return ImageError(
            f"catalogue {where} cannot be read: {printable(error)}",
            hint="it must consist of plain files; ask who keeps it",
        )
    if isinstance(error, DownloadError):
        return ImageError(
            f"catalogue {where} cannot be reached: {printable(error)}",
            hint="check the source in the trust rules, and the network",
        )
    raise error


def bad_root(error: Exception, where: str) -> SettingsError:
    """The root that is to be trusted at first is none."""
    return SettingsError(
        f"the root metadata for catalogue {where} cannot be used: {printable(error)}",
        hint="the rules' root must name a copy of the catalogue's 1.root.json, or of a later one",
    )


def unusable_state(error: OSError) -> StateError:
    """Trusted metadata cannot be kept."""
    return StateError(
        f"cannot use the trusted metadata of catalogues: {error.filename or ''}"
        f" {error.strerror or error}".replace("  ", " "),
        hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
    )


def printable(error: Exception) -> str:
    """What the library says, on one line and without what could steer a terminal."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST]
