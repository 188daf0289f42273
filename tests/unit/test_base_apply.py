"""`guest apply`: layers are applied as the OCI specification says and never leave the root."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .base_binaries import guest

UID, GID = os.getuid(), os.getgid()


def make_tar(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = 2) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for entry in entries:
            info, data = entry if isinstance(entry, tuple) else (entry, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, mtime: int = 1000
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, mtime
    info.uid, info.gid = UID, GID
    return info


def directory(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE, mode=mode)


def file(name: str, data: bytes = b"x", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, mode=mode), data


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, target)


def hardlink(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.LNKTYPE, target)


def apply_layer(root: Path, layer: bytes) -> int:
    """Both passes; the status of the first that fails."""
    return (
        guest("apply", "--whiteouts", root, stdin=layer).returncode
        or guest("apply", root, stdin=layer).returncode
    )


def tree(root: Path) -> dict[str, object]:
    """What a tree holds: file contents, link targets, None for directories."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a place outside that must never change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("safe")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def _outside_is_untouched(tmp_path: Path) -> object:
    yield
    if (tmp_path / "outside").exists():
        assert tree(tmp_path / "outside") == {"victim": b"safe"}


def test_modes_times_and_links(root: Path) -> None:
    layer = make_tar(
        directory("d", 0o2750),
        file("d/f", b"hello", 0o4755),
        symlink("s", "../d/f"),
        hardlink("h", "d/f"),
    )
    assert apply_layer(root, layer) == 0
    assert tree(root) == {"d": None, "d/f": b"hello", "s": "../d/f", "h": b"hello"}
    status = (root / "d/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime, status.st_nlink) == (0o4755, 1000, 2)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o2750
    assert (root / "d").stat().st_mtime == 1000
    assert (root / "s").lstat().st_mtime == 1000


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(root: Path, form: int) -> None:
    name = "/".join(["d" * 60] * 3) + "/f"
    assert apply_layer(root, make_tar(file(name, b"deep"), form=form)) == 0
    assert (root / name).read_bytes() == b"deep"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_ustar_allows(root: Path, form: int) -> None:
    name, target = "é" + "n" * 200, "t/" * 150
    layer = make_tar(file(name), symlink("link", target), form=form)
    assert apply_layer(root, layer) == 0
    assert tree(root) == {name: b"x", "link": target}


def test_pax_times_have_fractions(root: Path) -> None:
    info = entry("f")
    info.pax_headers = {"mtime": "1234.5"}
    assert apply_layer(root, make_tar(info)) == 0
    assert (root / "f").stat().st_mtime == 1234.5


HOSTILE: dict[str, Callable[[], bytes]] = {
    "dot-dot": lambda: make_tar(file("../outside/victim")),
    "dot-dot inside": lambda: make_tar(file("a/../../outside/victim")),
    "dot-dot directory": lambda: make_tar(directory("..", 0o777)),
    "hard link outside": lambda: make_tar(hardlink("h", "../outside/victim")),
    "hard link to an absolute path": lambda: make_tar(hardlink("h", "/etc/passwd")),
    "hard link to a directory": lambda: make_tar(directory("d"), hardlink("h", "d")),
    "hard link to nothing": lambda: make_tar(hardlink("h", "missing")),
    "character device": lambda: make_tar(entry("null", tarfile.CHRTYPE)),
    "block device": lambda: make_tar(entry("sda", tarfile.BLKTYPE)),
    "fifo": lambda: make_tar(entry("p", tarfile.FIFOTYPE)),
    "unknown type": lambda: make_tar(entry("u", b"Z")),
    "sparse": lambda: make_tar(entry("s", b"S")),
    "empty symlink": lambda: make_tar(symlink("s", "")),
    "root is a file": lambda: make_tar(file("./")),
    "root is a link": lambda: make_tar(symlink(".", "/")),
    "parent is a file": lambda: make_tar(file("f"), file("f/g")),
    "dangling parent": lambda: make_tar(symlink("d", "nowhere"), file("d/f")),
    "long component": lambda: make_tar(file("n" * 256)),
    "long path": lambda: make_tar(file("/".join(["d" * 200] * 21))),
    "garbage": lambda: b"\x01" * 1024,
    "whiteout of nothing": lambda: make_tar(file(".wh.", b"")),
    "whiteout of dot-dot": lambda: make_tar(directory("d"), file("d/.wh...", b"")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_entries_are_refused(root: Path, name: str) -> None:
    assert apply_layer(root, HOSTILE[name]()) == 6


@pytest.mark.parametrize("target", ["../outside", "/outside", "/../../outside", "../../../outside"])
def test_symbolic_links_cannot_lead_out(root: Path, target: str, tmp_path: Path) -> None:
    layer = make_tar(symlink("link", target), file("link/victim", b"pwned"))
    guest("apply", root, stdin=layer)
    absolute = make_tar(symlink("l2", str(tmp_path / "outside")), file("l2/victim", b"pwned"))
    guest("apply", root, stdin=absolute)
    whiteouts = make_tar(file("link/.wh.victim", b""), file("l2/.wh..wh..opq", b""))
    assert guest("apply", "--whiteouts", root, stdin=whiteouts).returncode == 0


def test_absolute_links_resolve_inside_the_root(root: Path) -> None:
    layer = make_tar(directory("usr"), symlink("bin", "/usr"), file("bin/tool", b"t"))
    assert apply_layer(root, layer) == 0
    assert (root / "usr/tool").read_bytes() == b"t"


def test_an_entry_does_not_write_through_the_link_it_replaces(root: Path) -> None:
    layer = make_tar(symlink("f", "../outside/victim"), file("f", b"mine"))
    assert apply_layer(root, layer) == 0
    assert tree(root) == {"f": b"mine"}


def test_a_hard_link_is_not_written_through(root: Path) -> None:
    assert (
        apply_layer(root, make_tar(file("a", b"one"), hardlink("b", "a"), file("a", b"two"))) == 0
    )
    assert tree(root) == {"a": b"two", "b": b"one"}


def test_hard_links_to_itself_and_to_links(root: Path) -> None:
    layer = make_tar(
        file("a", b"1"), hardlink("a", "./a"), symlink("s", "/nowhere"), hardlink("t", "s")
    )
    assert apply_layer(root, layer) == 0
    assert tree(root) == {"a": b"1", "s": "/nowhere", "t": "/nowhere"}


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1536])
def test_a_cut_archive_is_an_error(root: Path, cut: int) -> None:
    layer = make_tar(file("a", b"a" * 600), file("b"))
    assert guest("apply", root, stdin=layer[:cut]).returncode == 4


def test_a_wrong_checksum_is_refused(root: Path) -> None:
    layer = bytearray(make_tar(file("a")))
    layer[0] ^= 1
    assert guest("apply", root, stdin=bytes(layer)).returncode == 6


def test_layers_replace_and_keep_as_the_specification_says(root: Path) -> None:
    below = make_tar(
        directory("keep"),
        file("keep/child"),
        directory("gone"),
        file("gone/child"),
        file("was-file"),
        symlink("was-link", "keep"),
    )
    above = make_tar(
        directory("keep", 0o700),
        file("gone", b"file now"),
        directory("was-file"),
        directory("was-link"),
        file("was-link/new"),
    )
    assert apply_layer(root, below) == 0
    assert apply_layer(root, above) == 0
    assert tree(root) == {
        "gone": b"file now",
        "keep": None,
        "keep/child": b"x",
        "was-file": None,
        "was-link": None,
        "was-link/new": b"x",
    }
    assert stat.S_IMODE((root / "keep").stat().st_mode) == 0o700


def test_whiteouts(root: Path) -> None:
    below = make_tar(
        file("a"),
        directory("d"),
        file("d/one"),
        directory("d/two"),
        file("d/two/deep"),
        directory("o"),
        file("o/old"),
        directory("o/sub"),
        file("o/sub/old"),
    )
    above = make_tar(
        file(".wh.a", b""),
        file("d/.wh.two", b""),
        file("o/new"),
        file("o/.wh..wh..opq", b""),
        file("missing/.wh.x", b""),
        file(".wh..wh.plnk", b""),
    )
    assert apply_layer(root, below) == 0
    assert apply_layer(root, above) == 0
    assert tree(root) == {"d": None, "d/one": b"x", "o": None, "o/new": b"x"}


def test_very_deep_trees_are_removed(root: Path) -> None:
    name = "/".join(["d"] * 1500)
    assert apply_layer(root, make_tar(file(f"top/{name}/f"))) == 0
    assert apply_layer(root, make_tar(file(".wh.top", b""))) == 0
    assert tree(root) == {}


def test_errors_are_one_printable_line(root: Path) -> None:
    result = guest("apply", root, stdin=make_tar(entry("\x1b[2Jx\ny", tarfile.FIFOTYPE)))
    assert result.returncode == 6
    assert result.stderr.count(b"\n") == 1
    assert b"\x1b" not in result.stderr


NAMES = st.sampled_from(
    ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "b/.wh.a", ".wh.b", "a/.wh..wh..opq"]
)
ENTRIES = st.lists(
    st.one_of(
        st.tuples(NAMES, st.just(tarfile.REGTYPE), st.binary(max_size=5)),
        st.tuples(
            NAMES.filter(lambda name: ".wh." not in name), st.just(tarfile.DIRTYPE), st.just(b"")
        ),
    ),
    max_size=6,
)


def model(layers: list[list[tuple[str, bytes, bytes]]]) -> dict[str, object] | None:
    """The tree that layers make, as a mapping of paths; None if one must be refused."""
    found: dict[str, object] = {}

    def remove(name: str) -> None:
        for other in [path for path in found if path == name or path.startswith(f"{name}/")]:
            del found[other]

    for layer in layers:
        for name, _, _ in layer:
            parent, _, last = name.rpartition("/")
            if last == ".wh..wh..opq":
                for other in [path for path in found if path.startswith(f"{parent}/")]:
                    remove(other)
            elif last.startswith(".wh."):
                victim = last.removeprefix(".wh.")
                remove(f"{parent}/{victim}" if parent else victim)
        for name, kind, data in layer:
            parts = name.split("/")
            if parts[-1].startswith(".wh."):
                continue
            for depth in range(1, len(parts)):
                if found.setdefault("/".join(parts[:depth]), None) is not None:
                    return None
            if kind == tarfile.DIRTYPE:
                if found.get(name) is not None:
                    remove(name)
                found.setdefault(name, None)
            else:
                remove(name)
                found[name] = data
    return found


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layers=st.lists(ENTRIES, min_size=1, max_size=3))
def test_agrees_with_the_model(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, bytes, bytes]]]
) -> None:
    root = tmp_path_factory.mktemp("root")
    expected = model(layers)
    statuses = [
        apply_layer(
            root, make_tar(*((entry(name, kind, mode=0o755), data) for name, kind, data in layer))
        )
        for layer in layers
    ]
    if expected is None:
        assert 6 in statuses
    else:
        assert set(statuses) == {0}
        assert tree(root) == expected
