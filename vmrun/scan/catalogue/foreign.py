"""What holds packages that vmrun cannot read. An image that has any of it is not scanned: whatever
is in there was not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vmrun.scan.catalogue import apk
from vmrun.scan.catalogue.records import printable

FOLDERS = (
    "/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm", "/var/lib/pacman/local",
    "/var/db/pkg", "/var/db/xbps", "/var/lib/opkg", "/usr/lib/opkg", "/nix/store", "/gnu/store",
)  # fmt: skip
"""Folders of package systems, any of which may be a link to where it really is."""

_RPM = r"(?:var/lib|usr/lib/sysimage|usr/share)/rpm/(?:Packages|Packages\.db|rpmdb\.sqlite)"
_OURS = r"var/lib/dpkg/status(?:\.d/[^/]+)?|lib/apk/db/installed"
_KINDS = (
    ("an rpm database", rf".*/{_RPM}"),
    ("a pacman database", r".*/var/lib/pacman/local/[^/]+/desc"),
    ("a portage database", r".*/var/db/pkg/[^/]+/[^/]+/(?:PF|CONTENTS)"),
    ("an xbps database", r".*/var/db/xbps/pkgdb-[^/]+\.plist"),
    ("an opkg database", r".*/(?:usr|var)/lib/opkg/status"),
    ("a Nix store", r"/nix/store/.*"),
    ("a Guix store", r"/gnu/store/.*"),
    # The root of another system, whose own packages are not those of the image.
    ("a root file system of its own", rf"/.+/(?:{_OURS})"),
    # What dpkg's status is to be, once dpkg gets to it.
    ("changes that dpkg has not committed", r"/var/lib/dpkg/updates/[0-9]+"),
    ("conda packages", r".*/conda-meta/[^/]+\.json"),
    ("Java archives", r".*\.(?:jar|war|ear)"),
    ("Ruby gems", r".*/specifications/(?:default/)?[^/]+\.gemspec"),
    ("PHP packages", r".*/vendor/composer/installed\.json"),
    (".NET packages", r".*\.deps\.json"),
    ("packages of Yarn Plug'n'Play", r".*/\.pnp\.cjs"),
    ("zipped Python eggs", r".*/site-packages/[^/]+\.egg"),
)
_ANY = re.compile("|".join(f"(?P<k{at}>{pattern})" for at, (_, pattern) in enumerate(_KINDS)))


def foreign(names: Mapping[str, str]) -> dict[str, str]:
    """The files that hold packages which cannot be read, and what each of them is. ``names`` are
    the image's files, and by which name each is known."""
    found = {}
    for path, name in names.items():
        match = _ANY.fullmatch(name)
        if match is not None and match.lastgroup is not None and name not in apk.DATABASES:
            found[path] = _KINDS[int(match.lastgroup.removeprefix("k"))][0]
    return found


def counted(found: Mapping[str, str]) -> list[str]:
    """One sentence for each kind."""
    paths: dict[str, list[str]] = {}
    for path, kind in found.items():
        paths.setdefault(kind, []).append(path)
    return [
        f"{kind}: {len(some)} file{'s' if len(some) > 1 else ''}, {example(some)}"
        for kind, some in sorted(paths.items())
    ]


def example(paths: Iterable[str]) -> str:
    """One path of many, for people."""
    return f"such as {printable(min(paths))[:200]}"
