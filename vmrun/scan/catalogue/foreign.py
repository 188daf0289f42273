"""What holds packages that vmrun cannot read. An image that has any of it is not scanned: whatever
is in there was not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS = (
    ("an rpm database", r"/(?:var/lib|usr/lib/sysimage|usr/share)/rpm/(?:Packages.*|rpmdb\..*)"),
    ("a pacman database", r"/var/lib/pacman/local/[^/]+/desc"),
    ("a portage database", r"/var/db/pkg/[^/]+/[^/]+/PF"),
    ("an opkg database", r"/usr/lib/opkg/status"),
    ("a Nix store", r"/nix/store/[^/]+/nix-support/[^/]+"),
    ("conda packages", r".*/conda-meta/[^/]+\.json"),
    ("Java archives", r".*\.(?:jar|war|ear)"),
    ("Ruby gems", r".*/specifications/(?:default/)?[^/]+\.gemspec"),
    ("PHP packages", r".*/vendor/composer/installed\.json"),
    (".NET packages", r".*\.deps\.json"),
)  # fmt: skip
_ANY = re.compile("|".join(f"(?P<k{at}>{pattern})" for at, (_, pattern) in enumerate(_KINDS)))


def foreign(paths: Iterable[str]) -> tuple[str, ...]:
    """One sentence for each kind of package that is there and cannot be read."""
    found: dict[str, list[str]] = {}
    for path in paths:
        match = _ANY.fullmatch(path)
        if match is not None:
            kind = next(number for number in range(len(_KINDS)) if match[f"k{number}"] is not None)
            found.setdefault(_KINDS[kind][0], []).append(path)
    return tuple(
        f"{kind} ({len(paths)} files, e.g. {min(paths)[:200]})" for kind, paths in found.items()
    )
