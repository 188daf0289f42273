"""The readers of package databases, on bytes that nobody has vouched for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.scan.catalogue import apk, dpkg, npm, os_release, python
from vmrun.scan.catalogue.records import Installed, Unreadable, lines, printable, stanzas

READERS: dict[str, Callable[[bytes], object]] = {
    "dpkg": lambda data: list(dpkg.parse_status(data, partial=False)),
    "status.d": lambda data: list(dpkg.parse_status(data, partial=True)),
    "apk": lambda data: list(apk.parse_installed(data)),
    "python": python.parse_metadata,
    "npm": npm.parse_package,
    "os-release": os_release.parse_os_release,
    "owned by dpkg": lambda data: list(dpkg.owned_files(data, "x.list")),
    "owned by status.d": lambda data: list(dpkg.owned_files(data, "x.md5sums")),
    "owned by apk": lambda data: list(apk.owned_files(data)),
}
_PIECES = st.sampled_from(
    [b"Package: a", b"Status: install ok installed", b"Version: 1", b"Source: b (2)", b" more",
     b"P:a", b"V:1", b"F:etc", b"R:x", b"Name: a", b"{", b"}", b'"name":', b'"version"', b":",
     b"ID=a", b"'", b"\n", b"\n\n", b"\r\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf"]
)  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=300) | st.lists(_PIECES, max_size=30).map(b"".join))
def test_anything_is_read_or_refused(reader: str, data: bytes) -> None:
    try:
        found = READERS[reader](data)
    except Unreadable:
        return
    for installed in found if isinstance(found, list) else [found]:
        if isinstance(installed, Installed):
            for text in (installed.name, installed.version, installed.source):
                assert text
                assert len(text) <= 256
                assert text.isprintable()
                assert " " not in text


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "block", [b"\n", b" x\n", b"A: b\n x\n", b"a", b"P:", b"'", b"[", b"F:/\n"]
)
def test_no_reader_takes_long(reader: str, block: bytes) -> None:
    data = b"Package: x\nDescription: y\n" + block * ((1 << 20) // len(block))
    start = time.process_time()
    with contextlib.suppress(Unreadable):
        READERS[reader](data)
    assert time.process_time() - start < 5


@given(st.text(alphabet="ab\n", max_size=30))
def test_lines_are_those_of_split(text: str) -> None:
    whole = text.split("\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmrun.scan.catalogue.records._BLOCK", 4)
        assert list(lines(text)) == (whole if whole[-1] else whole[:-1])


def test_stanzas_join_what_continues() -> None:
    text = "\n\nA: 1\n b\n\tc\nB:2\r\n\n \nC: 3"
    assert list(stanzas(text)) == [{"a": "1\nb\nc", "b": "2"}, {"c": "3"}]


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_os_release_is_read_as_a_shell_would() -> None:
    data = b'# ID=no\nID="alpine"\nVERSION_ID=\'3.20\'\nPRETTY_NAME="A \\"B\\" \x1b[2J"\n  X=1\n'
    found = os_release.parse_os_release(data)
    assert (found.id, found.version_id) == ("alpine", "3.20")
    assert found.name == 'A "B" \\x1b[2J'
    assert os_release.parse_os_release(b"").id == "linux"


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("/var/lib/dpkg/info/libc6:amd64.list", "libc6"),
        ("/var/lib/dpkg/info/bash.list", "bash"),
        ("/var/lib/dpkg/status.d/libssl3.md5sums", "libssl3"),
        ("/var/lib/dpkg/info/bash.md5sums", ""),
        ("/var/lib/dpkg/info/x/bash.list", ""),
        ("/opt/bash.list", ""),
    ],
)
def test_lists_of_files(path: str, package: str) -> None:
    assert dpkg.lists_files_of(path) == package


def test_lists_with_checksums() -> None:
    data = b"d41d8  usr/bin/a b\nd41d8  ./etc/x\nd41d8  /abs\nnothing\n"
    found = list(dpkg.owned_files(data, "/var/lib/dpkg/status.d/x.md5sums"))
    assert found == ["/usr/bin/a b", "/etc/x", "/abs"]


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/var/lib/dpkg/status", True),
        ("/var/lib/dpkg/status.d/libc6", True),
        ("/var/lib/dpkg/status.d/libc6.md5sums", False),
        ("/var/lib/dpkg/status.d/deep/er", False),
        ("/var/lib/dpkg/status-old", False),
        ("/opt/var/lib/dpkg/status", False),
    ],
)
def test_files_of_the_database(path: str, is_one: bool) -> None:
    assert dpkg.is_database(path) is is_one
