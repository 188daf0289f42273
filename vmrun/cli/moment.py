"""Points in time as people write them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from vmrun.model.errors import UsageError
from vmrun.model.quantity import parse_duration

_AGO = re.compile(r"[0-9.]+(?:ms|s|m|h|d)")
_EPOCH = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")


def moment(text: str | None, *, option: str) -> str:
    """``10m`` (ago), a Unix time, or an RFC 3339 time, in UTC with microseconds as logs and the
    journal write it, so that texts can be compared; empty for None. Raises :class:`UsageError`."""
    if text is None:
        return ""
    try:
        if _AGO.fullmatch(text):
            seconds = parse_duration(text, option=option)
            at = datetime.fromtimestamp(time.time() - seconds, UTC)
        elif _EPOCH.fullmatch(text):
            at = datetime.fromtimestamp(float(text), UTC)
        else:
            at = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option}: not a time: {text[:80]!r}",
            hint="write 10m, 2h, 7d, or a time such as 2026-05-01T12:00:00Z",
        ) from None
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
