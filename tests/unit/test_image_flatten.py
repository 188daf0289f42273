"""The flattened tree: layers, whiteouts, links, and what lies on disk at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import (
    Entry,
    directory,
    fetched,
    file,
    hardlink,
    image,
    opaque,
    symlink,
    whiteout,
)
from vmrun.image.tree import LookupFailed, NoEntry, TooManyLinks, resolve
from vmrun.model.image import FileTree

KIB = 1024


def tree_of(tmp_path: Path, *layers: list[Entry]) -> FileTree:
    return fetched(f"oci:{image(*layers).write_layout(tmp_path / 'layout')}", tmp_path).tree


def paths(tree: FileTree) -> set[str]:
    return set(tree.entries) - {"/"}


def test_an_empty_image_has_a_root(tmp_path: Path) -> None:
    assert set(tree_of(tmp_path).entries) == {"/"}


def test_upper_layers_replace(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [file("a", b"1"), directory("d"), file("d/x"), symlink("l", "d"), directory("e", 0o700)],
        [file("a", b"22"), file("d"), directory("l"), file("l/y"), directory("e", 0o711)],
    )
    assert paths(tree) == {"/a", "/d", "/l", "/l/y", "/e"}
    assert tree.entries["/a"].size == 2
    assert tree.entries["/d"].kind == "file"
    assert tree.entries["/l"].kind == "dir"
    assert tree.entries["/e"].mode == 0o711


def test_a_directory_again_keeps_its_contents(tmp_path: Path) -> None:
    assert paths(tree_of(tmp_path, [file("d/x")], [directory("d")])) == {"/d", "/d/x"}


def test_whiteouts_hide_lower_layers_only(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [file("a"), file("d/x"), file("d/y/z"), file("keep")],
        [file("a", b"new"), whiteout("a"), whiteout("d/y"), whiteout("d/none")],
    )
    assert paths(tree) == {"/a", "/d", "/d/x", "/keep"}
    assert tree.entries["/a"].size == 3


def test_opaque_hides_lower_layers_only_whatever_the_order(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [file("d/old"), file("d/sub/old")],
        [file("d/new"), file("d/sub/new"), opaque("d")],
    )
    assert paths(tree) == {"/d", "/d/new", "/d/sub", "/d/sub/new"}


def test_opaque_on_what_was_no_directory(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, [file("d")], [directory("d"), opaque("d"), file("d/new")])
    assert paths(tree) == {"/d", "/d/new"}


def test_whiteout_follows_links_in_its_parents_but_not_itself(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [directory("usr/bin"), file("usr/bin/a"), symlink("bin", "usr/bin"), symlink("s", "usr")],
        [whiteout("bin/a"), whiteout("s")],
    )
    assert paths(tree) == {"/usr", "/usr/bin", "/bin"}


def test_entries_go_through_links(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [directory("usr/bin"), symlink("bin", "/usr/bin"), symlink("usr/up", "../usr/bin")],
        [file("bin/a"), file("usr/up/b"), file("bin/deep/c")],
    )
    assert {"/usr/bin/a", "/usr/bin/b", "/usr/bin/deep/c"} <= paths(tree)
    assert tree.entries["/usr/bin/deep"].mode == 0o755


def test_a_file_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, [file("t", b"old"), symlink("l", "t")], [file("l", b"new!")])
    assert (tree.entries["/t"].size, tree.entries["/l"].size) == (3, 4)


def test_bytes_are_whole_pages_and_hard_links_count_once(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        [file("a", b"x" * 5000), hardlink("b", "a"), file("empty"), file("c", b"x")],
    )
    assert tree.unpacked_bytes == (8 + 4) * KIB


def test_bytes_are_the_most_at_any_time(tmp_path: Path) -> None:
    big, small = b"x" * 40 * KIB, b"x"
    tree = tree_of(
        tmp_path,
        [file("a", big), hardlink("b", "a")],
        [whiteout("a"), file("c", small)],
        [whiteout("b"), file("d", small)],
        [file("d", small)],
    )
    assert tree.unpacked_bytes == 44 * KIB
    assert paths(tree) == {"/c", "/d"}


LOOKUPS = [
    directory("usr/bin"),
    file("usr/bin/sh"),
    symlink("bin", "usr/bin"),
    symlink("abs", "/bin"),
    symlink("clamped", "../../../usr"),
    symlink("loop", "loop"),
    symlink("dangling", "no"),
    *(symlink(f"c{n}", f"c{n - 1}" if n else "usr/bin/sh") for n in range(41)),
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/bin/sh", "/usr/bin/sh"),
        ("/abs/sh", "/usr/bin/sh"),
        ("//usr/./bin/../bin//sh", "/usr/bin/sh"),
        ("/../../usr", "/usr"),
        ("/clamped/bin", "/usr/bin"),
        ("/c39", "/usr/bin/sh"),
        ("sh", "/usr/bin/sh"),
        ("../bin/sh", "/usr/bin/sh"),
    ],
)
def test_resolve(tmp_path: Path, path: str, expected: str) -> None:
    tree = tree_of(tmp_path, LOOKUPS)
    assert resolve(tree, path, working_dir="/usr/bin").path == expected


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/no", NoEntry),
        ("/dangling", NoEntry),
        ("/usr/bin/sh/x", NoEntry),
        ("/usr/bin/sh/", NoEntry),
        ("/usr/bin/sh/..", NoEntry),
        ("/loop", TooManyLinks),
        ("/c40", TooManyLinks),
    ],
)
def test_resolve_fails_as_the_kernel_does(
    tmp_path: Path, path: str, error: type[LookupFailed]
) -> None:
    with pytest.raises(error):
        resolve(tree_of(tmp_path, LOOKUPS), path)
