"""Images: from a reference to a private OCI layout that was hashed and judged.

:func:`fetch` does it all; the rest answers questions about what was fetched. Only errors
of the :class:`~vmrun.model.errors.ImageError` family, ``UsageError`` and ``StateError``
leave this package.
"""

from vmrun.image.command import Command, resolve_command
from vmrun.image.fetch import fetch
from vmrun.image.limits import ImageLimits
from vmrun.image.reference import parse_reference
from vmrun.image.tree import resolve
from vmrun.image.user import User, resolve_user

__all__ = [
    "Command",
    "ImageLimits",
    "User",
    "fetch",
    "parse_reference",
    "resolve",
    "resolve_command",
    "resolve_user",
]
