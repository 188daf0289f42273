"""Which packages are found in an image, which are not there any more, and what is never passed
over in silence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images import Entry, directory, fetched, file, hardlink, image, opaque, symlink, whiteout
from tests.packaged import (
    ALPINE,
    STATUS,
    apk,
    dpkg,
    listed,
    names,
    node,
    os_release,
    stanza,
    wheel,
)
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError
from vmrun.model.scan import Distribution
from vmrun.scan.catalogue.read import catalogue

BASH = stanza("bash", "5.2.15-2+b2", "Source: bash (5.2.15-2)")
TLS = stanza("libssl3", "3.0.11-1~deb12u2", "Source: openssl")
PROGRAM = b"\x7fELF" + bytes(60)
BASE = [os_release(), dpkg(BASH)]


# --- what is there -----------------------------------------------------------------------------


def test_debian(tmp_path: Path) -> None:
    found = listed(tmp_path, [os_release(), dpkg(BASH, TLS)])
    assert found.distribution == Distribution("debian", "12", name="Debian GNU/Linux 12 (bookworm)")
    bash, tls = found.packages
    assert (bash.name, bash.version, bash.source, bash.source_version, bash.architecture) == (
        "bash", "5.2.15-2+b2", "bash", "5.2.15-2", "amd64",
    )  # fmt: skip
    assert bash.purl == "pkg:deb/debian/bash@5.2.15-2%2Bb2?arch=amd64&distro=debian-12"
    assert (tls.source, tls.source_version) == ("openssl", "3.0.11-1~deb12u2")
    assert bash.path == "/var/lib/dpkg/status"
    assert found.unreadable == found.unseen == ()


def test_a_package_is_of_the_layer_that_records_it_last(tmp_path: Path) -> None:
    made = image(BASE, [file("a"), wheel("six", "1.16.0", "opt")], [file("b")])
    fetched_image = fetched(f"oci:{made.write_layout(tmp_path / 'layout')}", tmp_path)
    found = {p.name: p.layer for p in catalogue(fetched_image).packages}
    blobs = [layer.blob.digest for layer in fetched_image.layers]
    assert found == {"bash": blobs[0], "six": blobs[1]}


def test_distroless(tmp_path: Path) -> None:
    """status.d has a file for each package, without a state, and checksums beside them."""
    found = listed(
        tmp_path,
        [
            file("usr/lib/os-release", b"ID=debian\nVERSION_ID=12\n"),
            symlink("etc/os-release", "../usr/lib/os-release"),
            file(f"{STATUS}.d/libc6", b"Package: libc6\nVersion: 2.36-9\nSource: glibc\n"),
            file(f"{STATUS}.d/libc6.md5sums", b"d41d8  usr/lib/libc.so.6\n"),
            file("usr/lib/libc.so.6", PROGRAM),
        ],
    )
    assert names(found) == [("deb", "libc6", "2.36-9")]
    assert found.unreadable == found.unseen == ()


def test_alpine(tmp_path: Path) -> None:
    found = listed(tmp_path, [os_release(ALPINE), apk(("musl", "1.2.5-r0"), ("zlib", "1.3-r1"))])
    musl, _ = found.packages
    assert (musl.source, musl.source_version, musl.licence) == ("musl-src", "1.2.5-r0", "MIT")
    assert musl.purl == "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.3"
    assert found.unreadable == ()


@pytest.mark.parametrize(
    "path",
    [
        "opt/venv/lib/python3.12/site-packages/Jinja2-2.11.2.dist-info/METADATA",
        "usr/lib/python3/dist-packages/Jinja2-2.11.2.egg-info/PKG-INFO",
        "usr/lib/python3/dist-packages/Jinja2-2.11.2.egg-info",
        "srv/Jinja2-2.11.2-py3.8.egg/EGG-INFO/PKG-INFO",
    ],
)
def test_python(tmp_path: Path, path: str) -> None:
    data = b"Metadata-Version: 2.1\r\nName: Jinja__2.x\r\nVersion: 2.11.2\r\n\r\nVersion: 9\r\n"
    found = listed(tmp_path, [*BASE, file(path, data)])
    assert names(found)[1:] == [("pypi", "jinja-2-x", "2.11.2")]
    assert found.packages[1].path == f"/{path}"
    assert found.packages[1].purl == "pkg:pypi/jinja-2-x@2.11.2"


def test_npm(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        [
            *BASE,
            file("app/package.json", b'{"name": "app", "version": "1.0.0"}'),
            node("lodash", "4.17.20", license="MIT"),
            node("@types/node", "20.1.0", "app/node_modules/lodash/node_modules"),
            file("app/node_modules/lodash/fp/package.json", b'{"name": "no", "version": "1"}'),
            file("app/node_modules/esm/package.json", b'{"type": "module"}'),
            file("app/node_modules/.package-lock.json", b"{"),
            file("app/node_modules/bom/package.json", b'\xef\xbb\xbf{"name":"b","version":"1"}'),
            file("app/node_modules/twice/package.json", b'{"files":1,"files":2}'),
            file("app/node_modules/empty/package.json", b""),
        ],
    )
    npm = [p for p in found.packages if p.kind == "npm"]
    assert [(p.name, p.version, p.licence) for p in npm] == [
        ("@types/node", "20.1.0", ""),
        ("b", "1", ""),
        ("lodash", "4.17.20", "MIT"),
    ]
    assert npm[0].purl == "pkg:npm/%40types/node@20.1.0"
    assert found.unreadable == ()


# --- what is not there any more ----------------------------------------------------------------


def test_whiteouts_and_upper_layers_count(tmp_path: Path) -> None:
    lower = [*BASE, wheel("six", "1.16.0"), wheel("idna", "3.3"), node("left-pad", "1.3.0")]
    upper = [
        dpkg(BASH.replace("5.2.15-2+b2", "5.2.21-2")),
        whiteout("usr/lib/python3/dist-packages/six-1.16.0.dist-info"),
        opaque("app/node_modules"),
    ]
    assert names(listed(tmp_path, lower, upper)) == [
        ("deb", "bash", "5.2.21-2"),
        ("pypi", "idna", "3.3"),
    ]


def test_a_database_that_is_removed_is_missed(tmp_path: Path) -> None:
    found = listed(tmp_path, BASE, [whiteout(STATUS)])
    assert found.packages == ()
    assert found.unreadable == ("it is debian, but has no packages of kind deb",)


@pytest.mark.parametrize(
    ("state", "there"),
    [
        ("install ok installed", True),
        ("hold ok installed", True),
        ("deinstall ok installed", True),
        ("install ok half-configured", True),
        ("install ok half-installed", True),
        ("install ok triggers-pending", True),
        ("deinstall ok config-files", False),
        ("purge ok not-installed", False),
    ],
)
def test_states_of_dpkg(tmp_path: Path, state: str, there: bool) -> None:
    found = listed(tmp_path, [os_release(), dpkg(BASH, stanza("nano", "7.2-1", status=state))])
    assert ("deb", "nano", "7.2-1") in names(found) if there else len(found.packages) == 1
    assert found.unreadable == ()


# --- who answers for it ------------------------------------------------------------------------


def test_what_a_package_of_the_distribution_brought_is_its_own_to_answer_for(
    tmp_path: Path,
) -> None:
    """Through /lib, a link: dpkg lists names as the package has them."""
    owned = "/lib/python3/dist-packages/requests-2.28.1.dist-info/METADATA"
    found = listed(
        tmp_path,
        [
            symlink("lib", "usr/lib"),
            os_release(),
            dpkg(BASH, stanza("python3-requests", "2.28.1+dfsg-1")),
            file("var/lib/dpkg/info/python3-requests:amd64.list", f"/.\n{owned}\n".encode()),
            wheel("requests", "2.28.1"),
            wheel("requests", "2.19.1", "usr/local/lib/python3.11/dist-packages"),
        ],
    )
    managed = {p.version: p.managed for p in found.packages if p.kind == "pypi"}
    assert managed == {"2.28.1": True, "2.19.1": False}


def test_a_package_that_is_gone_answers_for_nothing(tmp_path: Path) -> None:
    owned = b"/usr/lib/python3/dist-packages/requests-2.28.1.dist-info/METADATA\n"
    gone = stanza("python3-requests", "2.28.1+dfsg-1", status="deinstall ok config-files")
    found = listed(
        tmp_path,
        [
            os_release(),
            dpkg(BASH, gone),
            file("var/lib/dpkg/info/python3-requests.list", owned),
            wheel("requests", "2.28.1"),
        ],
    )
    assert [p.managed for p in found.packages if p.kind == "pypi"] == [False]


def test_apk_answers_for_its_files(tmp_path: Path) -> None:
    folder = "usr/lib/python3.12/site-packages"
    owned = f"F:{folder}/six-1.16.0.dist-info\nM:0:0:755\nR:METADATA\na:0:0:644\nZ:Q1x=\n"
    found = listed(
        tmp_path,
        [
            os_release(ALPINE),
            apk(("py3-six", "1.16.0-r9"), owned=owned),
            wheel("six", "1.16.0", folder),
            wheel("idna", "3.3", folder),
        ],
    )
    assert {p.name: p.managed for p in found.packages if p.kind == "pypi"} == {
        "six": True,
        "idna": False,
    }


def test_a_record_of_the_distribution_need_not_be_sound(tmp_path: Path) -> None:
    bad = "usr/lib/python3/dist-packages/odd-1.egg-info"
    lists = file("var/lib/dpkg/info/bash.list", f"/{bad}\n/usr/share/java/a.jar\n".encode())
    layer = [*BASE, file(bad, b"nothing"), file("usr/share/java/a.jar")]
    assert listed(tmp_path / "owned", [*layer, lists]).unreadable == ()
    assert len(listed(tmp_path / "not", layer).unreadable) == 2


# --- behind links ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        [symlink("var/lib/dpkg", "/opt/db"), dpkg(BASH, path="opt/db/status")],
        [symlink(STATUS, "../../../opt/s"), dpkg(BASH, path="opt/s")],
        [symlink(f"{STATUS}.d", "/opt/d"), dpkg(BASH, path="opt/d/bash")],
        [directory(f"{STATUS}.d"), symlink(f"{STATUS}.d/x", "/o"), dpkg(BASH, path="o")],
        [dpkg(BASH, path="o"), directory("var/lib/dpkg"), hardlink(STATUS, "o")],
    ],
    ids=["folder", "file", "status.d", "file of status.d", "hard link"],
)
def test_a_database_behind_a_link_is_read(tmp_path: Path, layer: list[Entry]) -> None:
    found = listed(tmp_path, [os_release(), *layer])
    assert names(found) == [("deb", "bash", "5.2.15-2+b2")]
    assert found.unreadable == ()


def test_records_behind_links_are_read(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        [
            *BASE,
            directory("app"),
            symlink("app/node_modules", "/cache/js"),
            node("lodash", "4.17.20", "cache/js"),
            symlink("usr/lib/six-1.16.0.dist-info", "/cache/six"),
            file("cache/six/METADATA", b"Name: six\nVersion: 1.16.0\n"),
        ],
    )
    assert names(found)[1:] == [("npm", "lodash", "4.17.20"), ("pypi", "six", "1.16.0")]


def test_one_database_by_two_names_is_read_once(tmp_path: Path) -> None:
    layer = [os_release(ALPINE), symlink("lib", "usr/lib")]
    found = listed(tmp_path, [*layer, apk(("musl", "1"), path="usr/lib/apk/db/installed")])
    assert (names(found), found.unreadable) == ([("apk", "musl", "1")], ())


@pytest.mark.parametrize("link", [STATUS, "var/lib/dpkg", "lib/apk/db/installed", "var/lib/rpm"])
def test_a_link_that_leads_nowhere_hides_nothing(tmp_path: Path, link: str) -> None:
    found = listed(tmp_path, [os_release(), symlink(link, "/nowhere/at/all")])
    assert f"/{link} is a link that leads nowhere" in found.unreadable


def test_links_in_circles_end(tmp_path: Path) -> None:
    circles = [
        symlink("app/node_modules", "/app"),
        symlink("app/x", "/app/node_modules"),
        symlink("loop.dist-info", "/loop.dist-info"),
    ]
    assert len(listed(tmp_path, [*BASE, *circles]).packages) == 1


def test_too_many_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [symlink(f"{name}.dist-info", "/cache") for name in "abc"]
    monkeypatch.setattr("vmrun.scan.catalogue.places._MOST_LINKS", 3)
    assert listed(tmp_path / "few", [*BASE, *links]).unreadable == ()
    monkeypatch.setattr("vmrun.scan.catalogue.places._MOST_LINKS", 2)
    assert listed(tmp_path / "many", [*BASE, *links]).unreadable == (
        "more than 2 links that may lead to records",
    )


# --- what cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("var/lib/rpm/Packages", "an rpm database"),
        ("usr/lib/sysimage/rpm/rpmdb.sqlite", "an rpm database"),
        ("var/lib/rpm/Packages.db", "an rpm database"),
        ("var/lib/pacman/local/bash-5.2-1/desc", "a pacman database"),
        ("var/db/pkg/app-shells/bash-5.2/PF", "a portage database"),
        ("var/db/xbps/pkgdb-0.38.plist", "an xbps database"),
        ("usr/lib/opkg/status", "an opkg database"),
        ("nix/store/abc-bash/bin/bash", "a Nix store"),
        ("opt/root/var/lib/dpkg/status", "a root file system of its own"),
        ("opt/root/lib/apk/db/installed", "a root file system of its own"),
        ("var/lib/dpkg/updates/0001", "changes that dpkg has not committed"),
        ("opt/conda/conda-meta/zlib-1.3.json", "conda packages"),
        ("app/log4j-core-2.14.1.jar", "Java archives"),
        ("usr/lib/ruby/gems/specifications/rack-2.0.gemspec", "Ruby gems"),
        ("srv/vendor/composer/installed.json", "PHP packages"),
        ("app/app.deps.json", ".NET packages"),
        ("app/.pnp.cjs", "packages of Yarn Plug'n'Play"),
        ("usr/lib/python3/site-packages/old-1-py3.egg", "zipped Python eggs"),
    ],
)
def test_packages_of_other_kinds_are_said_to_be_there(tmp_path: Path, path: str, what: str) -> None:
    found = listed(tmp_path, [*BASE, file(path, b"x")])
    assert found.unreadable == (f"{what}: 1 file, such as /{path}",)
    assert len(found.packages) == 1


def test_a_journal_behind_a_link(tmp_path: Path) -> None:
    link, journal = symlink("var/lib/dpkg", "/opt/d"), file("opt/d/updates/0001")
    found = listed(tmp_path, [os_release(), link, dpkg(BASH, path="opt/d/status"), journal])
    assert found.unreadable == (
        "changes that dpkg has not committed: 1 file, such as /opt/d/updates/0001",
    )


def test_a_foreign_database_behind_a_link(tmp_path: Path) -> None:
    layer = [*BASE, directory("var/lib"), symlink("var/lib/rpm", "/opt/x"), file("opt/x/Packages")]
    assert listed(tmp_path, layer).unreadable == (
        "an rpm database: 1 file, such as /opt/x/Packages",
    )


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ([file("bin/tool", b"x")], "no package database: what its files come from cannot be known"),
        ([], "no package database"),
        ([node("lodash", "1.0.0")], "no package database"),
        ([os_release(b"ID=fedora\n")], "it is fedora, but has no package database of dpkg or apk"),
        ([os_release(), file(STATUS)], "it is debian, but has no packages of kind deb"),
        ([os_release(), apk(("a", "1"))], "it is debian, but has no packages of kind deb"),
        ([os_release(b"ID='debian\n"), dpkg(BASH)], "/etc/os-release: line"),
        ([os_release(b"ID=../../x\n"), dpkg(BASH)], "cannot name a distribution"),
        ([os_release(b"ID=debian\n" * 10_000), dpkg(BASH)], "the limit is 65536"),
    ],
)
def test_an_image_of_unknown_origin(tmp_path: Path, layer: list[Entry], why: str) -> None:
    found = listed(tmp_path, layer)
    assert len(found.unreadable) == 1
    assert why in found.unreadable[0]


def bad(*entries: Entry) -> Sequence[Entry]:
    return [os_release(), dpkg(BASH), *entries]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ([os_release(), dpkg(BASH, "no field")], "/var/lib/dpkg/status: line 'no field' is"),
        ([os_release(), dpkg(BASH, BASH)], "package bash comes twice"),
        ([os_release(), dpkg(BASH, BASH + "Version: 9")], "'version' comes twice in a paragraph"),
        ([os_release(), dpkg(BASH, "Package: x\nVersion: 1")], "package 'x' is in no known state"),
        ([os_release(), dpkg(BASH, stanza("x", ""))], "version of x '' is not one"),
        ([os_release(), dpkg(BASH, stanza("x" * 300, "1"))], "is not one"),
        ([os_release(), dpkg(BASH, stanza("x\x1b[2J", "1"))], r"x\x1b[2J"),
        ([os_release(), dpkg(BASH, stanza("x/../y", "1"))], "is not one"),
        ([os_release(), dpkg(BASH, stanza("x", "1", "Source: a b c"))], "source 'a b c' of x"),
        (bad(apk(("x", ""))), "version of x '' is not one"),
        (bad(apk(("x", "1"), ("x", "2"))), "package x comes twice"),
        (bad(apk(("x", "1\nV:2"))), "field 'V' comes twice"),
        (bad(file("lib/apk/db/installed", b"\x00binary\x00")), "is not a field"),
        (bad(file("x-1.dist-info/METADATA", b"Name: x\n")), "version of x"),
        (bad(file("x-1.dist-info/METADATA", b"")), "name '' is not one"),
        (bad(file("x-1.dist-info/METADATA", b"Name: a\nName: b\nVersion: 1")), "comes twice"),
        (bad(file("x-1.dist-info/METADATA", b"Name: -x\nVersion: 1")), "name '-x' is not one"),
        (bad(file("node_modules/x/package.json", b"{")), "malformed JSON"),
        (bad(file("node_modules/x/package.json", b"[" * 100_000)), "nested too deeply"),
        (bad(file("node_modules/x/package.json", b'{"name":"x","version":1}')), "is not text"),
        (bad(file("node_modules/x/package.json", b'{"name":"a","name":"b"}')), "comes twice"),
        (bad(file("node_modules/x/package.json", b"\xff{}")), "malformed JSON"),
    ],
)
def test_records_that_cannot_be_read(tmp_path: Path, layer: list[Entry], why: str) -> None:
    found = listed(tmp_path, layer)
    assert len(found.unreadable) == 1
    assert why in found.unreadable[0]
    assert found.unreadable[0].isprintable()
    assert ("deb", "bash", "5.2.15-2+b2") in names(found)


def test_too_large_or_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = [os_release(), dpkg(BASH, TLS), wheel("six", "1.16.0"), wheel("idna", "3.3")]
    with monkeypatch.context() as patch:
        patch.setattr("vmrun.scan.catalogue.read._LARGEST", 120)
        found = listed(tmp_path / "a", layer)
        assert found.unreadable[0].startswith("/var/lib/dpkg/status: it has ")
        assert len(found.packages) == 2  # the others are small
    with monkeypatch.context() as patch:
        patch.setattr("vmrun.scan.catalogue.read._ALL", 100)
        found = listed(tmp_path / "b", layer)
        assert "more than 100 bytes together" in found.unreadable[0]
    with monkeypatch.context() as patch:
        patch.setattr("vmrun.scan.catalogue.read.MOST_PACKAGES", 1)
        found = listed(tmp_path / "c", layer)
        assert found.unreadable[0] == "/var/lib/dpkg/status: more than 1 packages"
        assert len(found.packages) == 1
    many = [file(f"{at}.egg-info", b"") for at in range(70)]
    found = listed(tmp_path / "d", [*layer, *many])
    assert len(found.unreadable) == 51
    assert found.unreadable[-1] == "20 more records that could not be read"


def test_names_that_a_terminal_would_act_upon_are_escaped(tmp_path: Path) -> None:
    name = b"a\xff\xe2\x80\xae-1.dist-info".decode("utf-8", "surrogateescape")
    found = listed(tmp_path, [*BASE, file(f"{name}/METADATA", b"Name: a\nVersion: 1\n")])
    assert found.packages[1].path == "/a\\udcff\\u202e-1.dist-info/METADATA"


# --- what has no record ------------------------------------------------------------------------


def test_programs_of_no_package_are_named(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        [
            *BASE,
            file("var/lib/dpkg/info/bash.list", b"/usr/bin/bash\n"),
            file("usr/bin/bash", PROGRAM, mode=0o755),
            file("usr/bin/script", b"#!/bin/sh\n", mode=0o755),
            file("app/server", PROGRAM, mode=0o755),
            file("app/data.bin", PROGRAM),
            file("app/libssl.so.3", PROGRAM),
        ],
    )
    assert found.unseen == (
        "2 programs or libraries of no package of the distribution, such as /app/libssl.so.3",
    )
    assert found.unreadable == ()


def test_the_same_image_has_the_same_catalogue(tmp_path: Path) -> None:
    layer = [*BASE, wheel("six", "1.16.0"), file("app/server", PROGRAM, mode=0o755)]
    assert listed(tmp_path / "1", layer) == listed(tmp_path / "2", layer)
    assert isinstance(listed(tmp_path / "3", layer).digest, Digest)


# --- anything ----------------------------------------------------------------------------------

PATHS = [
    "etc", "etc/os-release", "usr/lib/os-release", "var/lib", "var/lib/dpkg", STATUS,
    f"{STATUS}.d", f"{STATUS}.d/a", f"{STATUS}.d/a.md5sums", "var/lib/dpkg/info/bash.list",
    "lib", "lib/apk/db/installed", "usr/lib", "usr/lib/apk/db/installed", "app", "app/node_modules",
    "app/node_modules/a", "app/node_modules/a/package.json", "app/node_modules/@b/c/package.json",
    "a.dist-info", "a.dist-info/METADATA", "b.egg-info", "var/lib/rpm", "var/lib/rpm/Packages",
]  # fmt: skip
DATA = [
    b"", b"ID=debian\nVERSION_ID=12\n", BASH.encode(), b"P:a\nV:1\n\n", b"Name: a\nVersion: 1\n",
    b'{"name": "a", "version": "1"}', b"/a.dist-info/METADATA\n", PROGRAM, b"\xff\x00",
]  # fmt: skip
TARGETS = ["/", ".", "..", "/nowhere", *PATHS, *(f"/{path}" for path in PATHS)]
ENTRIES = st.builds(
    file, st.sampled_from(PATHS), st.sampled_from(DATA), st.just(0o755)
) | st.builds(symlink, st.sampled_from(PATHS), st.sampled_from(TARGETS))


@settings(max_examples=150, deadline=None)
@given(layers=st.lists(st.lists(ENTRIES, max_size=12), min_size=1, max_size=2))
def test_every_image_has_a_catalogue(
    layers: list[list[Entry]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever leads where: what is found is in the image, and it never passes for whole unless
    there is a distribution and a package of it."""
    path = tmp_path_factory.mktemp("any")
    try:
        made = fetched(f"oci:{image(*layers).write_layout(path / 'layout')}", path)
    except ImageError:
        return
    found = catalogue(made)
    for package in found.packages:
        assert package.path in made.tree.contents
    if not found.unreadable:
        assert {package.kind.value for package in found.packages} & {"deb", "apk"}
