"""Severity from CVSS vectors (first.org, by the cvss library) and from databases' own words."""

from __future__ import annotations

from cvss import CVSS2, CVSS3, CVSS4, CVSSError

from vmrun.model.scan import Severity

_LONGEST = 512
_WORDS = {
    "none": Severity.NONE,
    "unimportant": Severity.LOW,
    "negligible": Severity.LOW,
    "low": Severity.LOW,
    "minor": Severity.LOW,
    "moderate": Severity.MEDIUM,
    "medium": Severity.MEDIUM,
    "important": Severity.HIGH,
    "high": Severity.HIGH,
    "critical": Severity.CRITICAL,
}
_BOUNDS = (
    (9.0, Severity.CRITICAL),
    (7.0, Severity.HIGH),
    (4.0, Severity.MEDIUM),
    (0.1, Severity.LOW),
)


def severity_of_vector(vector: str) -> tuple[Severity, float] | None:
    """The rating and base score of a CVSS 2, 3 or 4 vector, or of a bare score; None if it is
    neither."""
    text = vector.strip()[:_LONGEST]
    try:
        if text.startswith("CVSS:4"):
            score = float(CVSS4(text).base_score)
        elif text.startswith("CVSS:3"):
            score = float(CVSS3(text).base_score)
        elif "/" in text:
            score = float(CVSS2(text).base_score)
        else:
            score = float(text)
    except (CVSSError, ValueError, ArithmeticError):
        return None
    if not 0.0 <= score <= 10.0:
        return None
    return rating(score), score


def severity_of_word(word: str) -> Severity | None:
    """A database's own word; None for one that says nothing (``not yet assigned``)."""
    return _WORDS.get(word.strip().lower().rstrip("*"))


def rating(score: float) -> Severity:
    """The qualitative rating of a score (CVSS 3.1, section 5)."""
    return next((severity for bound, severity in _BOUNDS if score >= bound), Severity.NONE)
