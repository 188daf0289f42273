"""Directories on their way into a guest, and what a guest may and may not do on the way back."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmrun.model.errors import GuestError, StateError, VmrunError
from vmrun.planning.data import in_pages
from vmrun.volume.archive import ArchiveReader
from vmrun.volume.pack import END, Owner, measure, pack
from vmrun.volume.unpack import Unpacker, stays_inside

OWNER = Owner(65532, 65533)
MIB = 1 << 20


# --- in ---------------------------------------------------------------------------------------


def packed(source: Path, limit: int = MIB) -> dict[str, tarfile.TarInfo]:
    data = b"".join(pack(source, "it", OWNER, limit)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive.getmembers()}


def measured(source: Path) -> int:
    return measure(source, in_pages, note=lambda text: pytest.fail(text))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(b"x" * 5000)
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o6755)
    (top / "absolute").symlink_to("/etc/shadow")
    (top / "up").symlink_to("../../..")
    return top


def test_what_goes_in_belongs_to_the_containers_user(source: Path) -> None:
    members = packed(source)
    assert list(members) == ["it", "it/absolute", "it/run.sh", "it/sub", "it/sub/file", "it/up"]
    assert {(item.uid, item.gid) for item in members.values()} == {(65532, 65533)}
    assert not any(item.mode & 0o7000 for item in members.values())
    assert members["it/run.sh"].mode == 0o755
    assert members["it/absolute"].linkname == "/etc/shadow"
    assert members["it/up"].linkname == "../../.."


def test_a_link_is_not_followed_on_the_host(source: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    (source / "way").symlink_to(tmp_path)
    data = b"".join(pack(source, "it", OWNER, MIB))
    assert b"outside" not in data.replace(os.fsencode(tmp_path), b"")


def test_a_single_file(source: Path) -> None:
    members = packed(source / "sub" / "file")
    assert [(name, item.size) for name, item in members.items()] == [("it", 5000)]
    assert measured(source / "sub" / "file") == in_pages(5000)


def test_memory_is_counted_in_pages(source: Path) -> None:
    assert measured(source) == in_pages(5000) + in_pages(10) + 4 * in_pages(0)


def test_what_is_no_file_stays_behind_and_is_told(source: Path) -> None:
    os.mkfifo(source / "fifo")
    said: list[str] = []
    measure(source, in_pages, note=said.append)
    assert said == [f"{source / 'fifo'} is not copied: it is no file, directory or link"]
    assert "it/fifo" not in packed(source)


def test_long_and_strange_names(source: Path) -> None:
    names = [b"n" * 255, b"\xff\xfe", "ä b".encode(), b"new\nline"]
    for name in names:
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(b"1")
    found = {os.fsencode(name) for name in packed(source)}
    assert {b"it/" + name for name in names} <= found


def test_a_name_that_means_removed_is_refused(source: Path) -> None:
    (source / ".wh.x").write_text("")
    with pytest.raises(StateError, match=r"\.wh\."):
        measured(source)


def test_one_that_grows_or_shrinks_meanwhile_is_an_error(source: Path) -> None:
    with pytest.raises(StateError, match="has grown"):
        packed(source, limit=4000)
    chunks = pack(source, "it", OWNER, MIB)
    for _ in range(3):
        next(chunks)
    (source / "sub" / "file").write_bytes(b"")
    rest = b"".join(chunks)
    assert b"x" * 10 not in rest


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot copy"):
        measured(tmp_path / "none")


# --- out --------------------------------------------------------------------------------------


Member = tuple[str, bytes, dict[str, object]]


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    return name, data, fields


def directory(name: str, **fields: object) -> Member:
    return name, b"", {"type": tarfile.DIRTYPE, "mode": 0o755, **fields}


def symlink(name: str, target: str) -> Member:
    return name, b"", {"type": tarfile.SYMTYPE, "linkname": target}


def hard_link(name: str, target: str) -> Member:
    return name, b"", {"type": tarfile.LNKTYPE, "linkname": target}


def tar(*members: Member) -> bytes:
    data = b""
    for name, content, fields in members:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        data += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        data += content + bytes(-len(content) % 512)
    return data + END


def unpack(root: Path, data: bytes, *, most: int = MIB, entries: int = 1000) -> Unpacker:
    stream = io.BytesIO(data)
    archive = ArchiveReader(stream.read, max_bytes=most, max_entries=entries)
    unpacker = Unpacker(root)
    try:
        for entry in archive.entries():
            unpacker.put(entry.parts[1:], entry, archive)
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory with something beside it that nothing may touch, and that is looked at after."""
    path = tmp_path / "around" / "root"
    path.mkdir(parents=True)
    (path.parent / "outside").write_text("outside")
    outside = path.parent / "outside"
    outside.chmod(0o600)
    yield path
    assert sorted(item.name for item in path.parent.iterdir()) == ["outside", "root"]
    assert outside.read_text() == "outside"
    assert (outside.stat().st_mode & 0o7777, outside.stat().st_nlink) == (0o600, 1)
    assert not [item for item in path.rglob("*") if "partial" in item.name]


def test_what_comes_back(root: Path) -> None:
    unpacker = unpack(
        root,
        tar(
            directory("it"),
            directory("it/sub", mode=0o500),
            member("it/sub/file", b"data", mode=0o640, mtime=1_000_000),
            symlink("it/sub/link", "../other"),
            member("it/other", b""),
            hard_link("it/again", "it/sub/file"),
        ),
    )
    assert (root / "sub" / "file").read_bytes() == b"data"
    status = (root / "sub" / "file").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o640, os.geteuid())
    assert status.st_mtime == 1_000_000
    assert (root / "sub").stat().st_mode & 0o7777 == 0o500
    assert os.readlink(root / "sub" / "link") == "../other"
    assert (root / "again").samefile(root / "sub" / "file")
    assert unpacker.written == 3
    (root / "sub").chmod(0o700)


def test_owner_setuid_and_times_are_not_the_guests_to_choose(root: Path) -> None:
    unpack(root, tar(member("it/x", b"#!", mode=0o6777, uid=0, gid=0, mtime=(1 << 33) - 1)))
    status = (root / "x").stat()
    assert status.st_mode & 0o7777 == 0o777
    assert status.st_uid == os.geteuid()


def test_unchanged_files_keep_their_inode_and_changed_ones_get_a_new_one(root: Path) -> None:
    for name in ("same", "changed", "mode"):
        (root / name).write_text("before")
        (root / name).chmod(0o644)
    before = {name: (root / name).stat().st_ino for name in ("same", "changed", "mode")}
    unpacker = unpack(
        root,
        tar(
            member("it/same", b"before", mode=0o644),
            member("it/changed", b"behind", mode=0o644),
            member("it/mode", b"before", mode=0o755),
        ),
    )
    assert unpacker.written == 2
    assert (root / "same").stat().st_ino == before["same"]
    assert (root / "changed").read_text() == "behind"
    assert (root / "mode").stat().st_mode & 0o777 == 0o755


def test_content_is_on_the_disk_before_it_has_its_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, bytes]] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        order.append(("synced", os.pread(descriptor, 100, 0)))
        fsync(descriptor)

    def renamed(source: str, target: str, **where: int) -> None:
        order.append(("renamed", target.encode()))
        rename(source, target, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    unpack(root, tar(member("it/file", b"new")))
    assert order == [("synced", b"new"), ("renamed", b"file")]


def test_nothing_is_deleted(root: Path) -> None:
    (root / "kept").write_text("kept")
    (root / "full").mkdir()
    (root / "full" / "kept").write_text("kept")
    unpack(root, tar(directory("it")))
    with pytest.raises(StateError, match="not empty"):
        unpack(root, tar(member("it/full", b"in its place")))
    assert (root / "kept").read_text() == (root / "full" / "kept").read_text() == "kept"


def test_a_link_of_the_hosts_stays_as_it_was(root: Path) -> None:
    (root / "absolute").symlink_to("/etc/passwd")
    unpack(root, tar(symlink("it/absolute", "/etc/passwd")))
    assert os.readlink(root / "absolute") == "/etc/passwd"


def test_a_link_of_the_hosts_is_replaced_never_followed(root: Path) -> None:
    (root / "file").symlink_to("../outside")
    (root / "dir").symlink_to("..")
    unpack(
        root,
        tar(member("it/file", b"x"), directory("it/dir"), member("it/dir/outside", b"x")),
    )
    assert (root / "file").read_bytes() == b"x"
    assert not (root / "file").is_symlink()
    assert (root / "dir" / "outside").read_bytes() == b"x"


HOSTILE = {
    "absolute path": tar(member("/it/x", b"x")),
    "dotdot": tar(member("it/../outside", b"x")),
    "dotdot deep": tar(directory("it/a"), member("it/a/../../../outside", b"x")),
    "only dotdot": tar(member("..", b"x")),
    "nothing": tar(member("./", b"x")),
    "absolute link": tar(symlink("it/x", "/etc/passwd")),
    "link up": tar(symlink("it/x", "../outside")),
    "link out and in": tar(symlink("it/x", "../root/y")),
    "link bent by a link": tar(symlink("it/a", "."), symlink("it/b", "a/../..")),
    "empty link": tar(symlink("it/x", "")),
    "through a link": tar(symlink("it/way", "."), member("it/way/../../outside", b"x")),
    "into a link": tar(symlink("it/way", "sub"), member("it/way/x", b"x")),
    "hard link outside": tar(hard_link("it/x", "it/../../outside")),
    "hard link beside": tar(hard_link("it/x", "outside")),
    "hard link absolute": tar(hard_link("it/x", "/etc/passwd")),
    "hard link to a link": tar(symlink("it/a", "b"), hard_link("it/x", "it/a")),
    "hard link to nothing": tar(hard_link("it/x", "it/none")),
    "hard link to a directory": tar(directory("it/d"), hard_link("it/x", "it/d")),
    "character device": tar(member("it/x", b"", type=tarfile.CHRTYPE)),
    "block device": tar(member("it/x", b"", type=tarfile.BLKTYPE)),
    "sparse": tar(member("it/x", b"", type=tarfile.GNUTYPE_SPARSE)),
    "pax": tar(member("it/x", b"", type=tarfile.XHDTYPE)),
    "global pax": tar(member("it/x", b"", type=tarfile.XGLTYPE)),
    "directory with content": tar(("it/d", b"x" * 512, {"type": tarfile.DIRTYPE})),
    "missing parent": tar(member("it/none/x", b"x")),
    "long component": tar(member("it/" + "n" * 256, b"x")),
    "long path": tar(member("it/" + "d/" * 2100 + "x", b"x")),
    "deep path": tar(member("it/" + "d/" * 300 + "x", b"x")),
    "more than it may": tar(member("it/x", b"x" * (MIB + 1))),
    "many entries": tar(*(member(f"it/{number}") for number in range(1001))),
    "no end": tar(member("it/x", b"x"))[: -len(END)],
    "cut content": tar(member("it/x", b"x" * 2000))[:1000],
    "cut header": tar(member("it/x", b"x"))[:100],
    "text": b"total 0\n" * 200,
    "nothing at all": b"",
    "after its end": tar(member("it/x")) + b"x" * 512,
    "endless end": tar(member("it/x")) + bytes(8 * MIB),
    "file for the root": tar(member("it", b"x")),
    "link for the root": tar(symlink("it", "x")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_errors_and_nothing_is_outside(root: Path, name: str) -> None:
    with pytest.raises((GuestError, StateError)):
        unpack(root, HOSTILE[name])


def test_a_fifo_stays_behind(root: Path) -> None:
    unpack(root, tar(member("it/x", b"", type=tarfile.FIFOTYPE)))
    assert list(root.iterdir()) == []


def test_a_fifo_of_the_hosts_does_not_hold_us_up(root: Path) -> None:
    os.mkfifo(root / "x")
    unpack(root, tar(member("it/x", b"x")))
    assert (root / "x").read_bytes() == b"x"


def test_a_wrong_checksum_is_noticed(root: Path) -> None:
    data = bytearray(tar(member("it/x", b"x", mode=0o600)))
    data[101] ^= 1
    with pytest.raises(GuestError):
        unpack(root, bytes(data))


def test_a_long_name_that_never_ends_is_not_read(root: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    with pytest.raises(GuestError):
        unpack(root, info.tobuf(tarfile.GNU_FORMAT))


def test_what_busybox_writes_is_understood(root: Path, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None, "needs busybox (Debian: busybox-static)"
    source = tmp_path / "source" / "0" / "it"
    deep = source / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep" * 5000)
    (deep / "link").symlink_to("x" * 150)
    (source / "one").write_text("1")
    (source / "two").hardlink_to(source / "one")
    (source / "ä b\n").write_text("2")
    data = subprocess.run(
        [busybox, "tar", "-C", str(source.parent), "-c", "-f", "-", "it"],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    unpack(root, data)
    there = {path.relative_to(source) for path in source.rglob("*")}
    assert {path.relative_to(root) for path in root.rglob("*")} == there
    assert (root / ("d" * 200) / ("e" * 200) / "file").read_bytes() == b"deep" * 5000
    assert (root / "one").samefile(root / "two")


@given(st.binary(max_size=3000))
@example(bytes(1024))
def test_any_bytes_are_an_archive_or_an_error(data: bytes) -> None:
    stream = io.BytesIO(data)
    archive = ArchiveReader(stream.read, max_bytes=MIB, max_entries=10)
    try:
        for entry in archive.entries():
            assert ".." not in entry.parts
    except GuestError:
        return


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=4)
MEMBERS = st.one_of(
    st.builds(lambda n: member("it/" + "/".join(n), b"x"), NAMES),
    st.builds(lambda n: directory("it/" + "/".join(n)), NAMES),
    st.builds(lambda n, t: symlink("it/" + "/".join(n), "/".join(t)), NAMES, NAMES),
    st.builds(lambda n, t: hard_link("it/" + "/".join(n), "it/" + "/".join(t)), NAMES, NAMES),
)


@given(st.lists(MEMBERS, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_no_sequence_of_entries_leads_outside(root: Path, members: list[Member]) -> None:
    shutil.rmtree(root)
    root.mkdir()
    with contextlib.suppress(VmrunError):
        unpack(root, tar(*members))
    for path in root.rglob("*"):
        if path.is_symlink():
            assert stays_inside(os.readlink(path), depth=len(path.relative_to(root).parts) - 1)
            try:
                resolved = path.resolve(strict=True)
            except (OSError, RuntimeError):
                continue
            assert resolved.is_relative_to(root.resolve())
        else:
            assert not path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        ("x", 0, True),
        ("x/y", 0, True),
        ("./x", 0, True),
        ("../x", 1, True),
        ("../../x", 2, True),
        ("..", 1, True),
        ("..", 0, False),
        ("../x", 0, False),
        ("x/..", 5, False),
        ("x/../../y", 5, False),
        ("../x/../y", 5, False),
        ("/x", 5, False),
        ("", 5, False),
    ],
)
def test_links_that_stay_inside(target: str, depth: int, inside: bool) -> None:
    assert stays_inside(target, depth=depth) is inside


def test_a_directory_that_becomes_a_link_under_our_hands_is_not_followed(root: Path) -> None:
    data = tar(directory("it/d"), member("it/d/outside", b"x"))
    archive = ArchiveReader(io.BytesIO(data).read, max_bytes=MIB, max_entries=10)
    unpacker = Unpacker(root)
    entries = archive.entries()
    unpacker.put(("d",), next(entries), archive)
    (root / "d").rmdir()
    (root / "d").symlink_to("..")
    with pytest.raises(StateError):
        unpacker.put(("d", "outside"), next(entries), archive)
    with pytest.raises(StateError):
        unpacker.finish()
    unpacker.close()
