"""`guest archive` and `guest extract`: nothing of a container leads them out of its root."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmrun.volume.archive import ArchiveReader

from .base_binaries import binaries, guest
from .test_base_apply import GID, UID, directory, entry, file, hardlink, make_tar, symlink

GONE, REFUSED, SHORT, DENIED = 9, 6, 4, 11
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root beside a place that must neither be read nor changed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("secret")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def untouched(root: Path) -> bool:
    outside = root.parent / "outside"
    return [p.name for p in outside.iterdir()] == ["victim"] and (
        outside / "victim"
    ).read_text() == "secret"


def archived(root: Path, path: str, name: str = "top", *options: str) -> tarfile.TarFile:
    done = guest("archive", *options, root, path, name)
    assert done.returncode == 0, done.stderr
    return tarfile.open(fileobj=io.BytesIO(done.stdout))


def refused(root: Path, path: str, *options: str) -> str:
    done = guest("archive", *options, root, path, "top")
    assert done.returncode == REFUSED, done.stderr
    assert done.stdout == b""
    return done.stderr.decode()


# --- archive -----------------------------------------------------------------------------------


def test_a_tree_is_archived_as_it_is(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"content")
    (root / "d" / "f").chmod(0o4751)
    os.utime(root / "d" / "f", (1, 1234567890))
    (root / "d" / "l").symlink_to("/etc/passwd")
    os.link(root / "d" / "f", root / "d" / "same")
    with archived(root, "/d") as tar:
        members = {member.name: member for member in tar}
        assert set(members) == {"top", "top/e", "top/f", "top/l", "top/same"}
        found = members["top/f"]
        assert (found.mode, found.mtime, found.size) == (0o4751, 1234567890, 7)
        assert (found.uid, found.gid) == (UID, GID)
        assert members["top/l"].linkname == "/etc/passwd"
        extracted = tar.extractfile("top/same")
        assert extracted is not None
        assert extracted.read() == b"content"


def test_any_name_and_length_is_read_back_by_the_host(root: Path) -> None:
    names = ["a\nb", os.fsdecode(b"\xff\xfe"), "x" * 255, "ü" * 60, " ", "-f", "y" * 100, "z" * 101]
    deep = "/".join(["d" * 200] * 12)
    (root / deep).mkdir(parents=True)
    for name in names:
        (root / deep / name).write_text(name, errors="surrogateescape")
    (root / "link").symlink_to("t" * 300)
    out = guest("archive", root, "/", "top").stdout
    stream = io.BytesIO(out)
    reader = ArchiveReader(stream.read, max_bytes=1 << 30, max_entries=1000)
    seen = {}
    for found in reader.entries():
        seen["/".join(found.parts)] = (b"".join(reader.content()), found.target, found.uid)
    assert {f"top/{deep}/{name}" for name in names} < set(seen)
    assert seen["top/link"][1] == "t" * 300
    assert seen[f"top/{deep}/{names[1]}"][0] == b"\xff\xfe"
    assert {owner for _, _, owner in seen.values()} == {UID}


def test_paths_are_resolved_inside_the_root(root: Path) -> None:
    (root / "victim").write_text("mine")
    (root / "up").symlink_to("../outside")
    (root / "all").symlink_to(root.parent / "outside" / "victim")
    (root / "inside").symlink_to("/victim")
    for path in ("/up/victim", "/all", str(root.parent / "outside" / "victim")):
        assert "No such file" in refused(root, path, "--follow")
    for path in ("/../victim", "/inside", "inside"):
        with archived(root, path, "top", "--follow") as tar:
            extracted = tar.extractfile("top")
            assert extracted is not None
            assert extracted.read() == b"mine"
    with archived(root, "/inside") as tar:
        assert tar.getmember("top").linkname == "/victim"


def test_what_is_no_data_is_left_out_and_never_opened(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        done = guest("archive", root, "/", "top")
    assert done.returncode == 0
    assert done.stderr.count(b"no file, directory or link") == 2
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.getnames() == ["top"]
    assert "no file, directory or link" in refused(root, "/fifo")


def test_what_it_says_is_safe_for_a_terminal(root: Path) -> None:
    os.mkfifo(root / "a\x1b]0;evil\x07\nb")
    said = guest("archive", root, "/", "top").stderr
    assert said.count(b"\n") == 1
    assert b"\x1b" not in said


def test_it_does_not_say_more_than_anyone_reads(root: Path) -> None:
    for number in range(100):
        os.mkfifo(root / f"fifo{number}")
    said = guest("archive", root, "/", "top").stderr.decode().splitlines()
    assert len(said) == 21
    assert said[-1] == "vmrun-guest: and 80 more"


def test_the_kernels_own_file_systems_are_left_out() -> None:
    done = guest("archive", "/", "/proc/self/status", "top")
    assert done.returncode == REFUSED
    assert b"the kernel's own" in done.stderr
    assert guest("archive", "/", "/proc/self/root", "top", "--follow").returncode == 2
    assert guest("archive", "--follow", "/", "/proc/self/root", "top").returncode == REFUSED


def test_a_huge_sparse_file_has_its_size_and_ends_with_its_reader(root: Path) -> None:
    with open(root / "huge", "wb") as huge:
        huge.truncate(1 << 40)
    process = subprocess.Popen(
        [binaries() / "guest", "archive", root, "/huge", "top"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reader = ArchiveReader(process.stdout.read, max_bytes=1 << 62, max_entries=10)
    assert next(reader.entries()).size == 1 << 40
    process.stdout.close()
    assert process.wait(10) == SHORT
    assert b"nobody reads" in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("grow", [False, True])
def test_a_file_that_changes_keeps_its_announced_size(root: Path, grow: bool) -> None:
    size = 4 << 20
    path = root / "file"
    path.write_bytes(b"x" * size)
    process = subprocess.Popen(
        [binaries() / "guest", "archive", root, "/", "top"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    start = process.stdout.read(4096)
    os.truncate(path, size * 2 if grow else 0)
    rest, said = process.communicate(timeout=30)
    assert process.returncode == 0
    with tarfile.open(fileobj=io.BytesIO(start + rest)) as tar:
        extracted = tar.extractfile("top/file")
        assert extracted is not None
        data = extracted.read()
    assert len(data) == size
    assert (b"has shrunk" in said) is not grow
    assert set(data) == ({ord("x")} if grow else {ord("x"), 0})


def test_depth_and_length_have_limits(root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(140):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    done = guest("archive", root, "/", "top")
    assert done.returncode == REFUSED
    assert b"more than 128 directories deep" in done.stderr


def test_a_path_that_is_too_long_is_refused(root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    done = guest("archive", root, "/", "top")
    assert done.returncode == REFUSED
    assert b"longer than 4095 bytes" in done.stderr


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 256])
def test_a_name_that_is_none_is_a_usage_error(root: Path, name: str) -> None:
    assert guest("archive", root, "/", name).returncode == 2


@contextmanager
def swapping(a: Path, b: Path) -> Iterator[None]:
    """Exchanges two names as fast as it can (renameat2(2), RENAME_EXCHANGE)."""
    stop = threading.Event()
    exchange = ctypes.CDLL(None).renameat2
    done: list[int] = []

    def swap() -> None:
        while not stop.is_set():
            done.append(exchange(-100, os.fsencode(a), -100, os.fsencode(b), 2))

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert len(done) > 100
    assert set(done) == {0}


def test_a_race_leads_no_reader_outside(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "victim").write_text("mine")
    (root / "l").symlink_to(root.parent / "outside")
    seen = set()
    with swapping(root / "d", root / "l"):
        for attempt in range(150):
            path = ("/", "/d/victim", "/d/")[attempt % 3]
            done = guest("archive", "--follow", root, path, "top")
            assert b"secret" not in done.stdout
            assert done.returncode in (0, REFUSED)
            seen.add(b"mine" in done.stdout)
    assert seen == {True, False}


# --- extract -----------------------------------------------------------------------------------


def extract(root: Path, path: str, tar: bytes, *options: str) -> tuple[int, str]:
    done = guest("extract", *options, root, path, stdin=tar)
    return done.returncode, done.stderr.decode()


def contents(root: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


A_FILE = make_tar(file("f", b"new"))
A_TREE = make_tar(directory("d"), file("d/f", b"new"), directory("d/e"))
CONTENTS = make_tar(directory("./"), file("./f", b"new"))


@pytest.mark.parametrize(
    ("tar", "path", "status", "then"),
    [
        (A_FILE, "/new", 0, {"new": "new"}),
        (A_FILE, "/old", 0, {"old": "new"}),
        (A_FILE, "/here", 0, {"here/f": "new"}),
        (A_FILE, "/here/", 0, {"here/f": "new"}),
        (A_FILE, "/new/", REFUSED, {}),
        (A_FILE, "/none/new", REFUSED, {}),
        (A_FILE, "/old/", REFUSED, {}),
        (A_FILE, "/old/x", REFUSED, {}),
        (A_FILE, "/link", 0, {"old": "new"}),
        (A_FILE, "/dangling", 0, {"made": "new"}),
        (A_FILE, "/there", 0, {"here/f": "new"}),
        (A_FILE, "/circle", REFUSED, {}),
        (A_TREE, "/new", 0, {"new": None, "new/f": "new", "new/e": None}),
        (A_TREE, "/new/", REFUSED, {}),
        (A_TREE, "/here", 0, {"here/d": None, "here/d/f": "new", "here/d/e": None}),
        (A_TREE, "/old", REFUSED, {}),
        (A_TREE, "/none/new", REFUSED, {}),
        (CONTENTS, "/here", 0, {"here/f": "new"}),
        (CONTENTS, "/new", 0, {"new": None, "new/f": "new"}),
        (CONTENTS, "/old", REFUSED, {}),
    ],
)
def test_where_it_goes(
    root: Path, tar: bytes, path: str, status: int, then: dict[str, str | None]
) -> None:
    (root / "old").write_text("old")
    (root / "here").mkdir()
    (root / "link").symlink_to("/old")
    (root / "there").symlink_to("here")
    (root / "dangling").symlink_to("/made")
    (root / "circle").symlink_to("circle")
    before = contents(root)
    assert extract(root, path, tar)[0] == status
    assert contents(root) == before | then
    assert (root / "link").is_symlink()


def test_directory_only_means_that(root: Path) -> None:
    assert extract(root, "/new", A_FILE, "--directory")[0] == REFUSED
    assert extract(root, "/", A_FILE, "--directory") == (0, "")
    assert extract(root, "/", make_tar(), "--directory") == (0, "")
    assert contents(root) == {"f": "new"}


def test_what_is_there_stays_as_it_is(root: Path) -> None:
    (root / "d").mkdir(mode=0o711)
    (root / "d" / "other").write_text("kept")
    assert extract(root, "/", A_TREE)[0] == 0
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o711
    assert contents(root) == {"d": None, "d/e": None, "d/f": "new", "d/other": "kept"}


@pytest.mark.parametrize(
    "tar",
    [
        make_tar(file("d", b"x")),
        make_tar(symlink("d", "f")),
        make_tar(directory("f")),
        make_tar(entry("n", tarfile.CHRTYPE)),
        make_tar(entry("n", tarfile.FIFOTYPE)),
        make_tar(file("../n")),
        make_tar(file("up/n")),
        make_tar(directory("up/n")),
        make_tar(symlink("s", "up"), file("s/n")),
        make_tar(symlink("s", "/"), file("s/n")),
        make_tar(hardlink("n", "up/victim")),
        make_tar(hardlink("n", "../outside/victim")),
        make_tar(hardlink("n", "d")),
        make_tar(file("/".join("d" * 140))),
    ],
)
def test_what_is_refused_changes_nothing_else(root: Path, tar: bytes) -> None:
    (root / "d").mkdir()
    (root / "d" / "kept").write_text("kept")
    (root / "f").write_text("kept")
    (root / "up").symlink_to("../outside")
    assert extract(root, "/", tar)[0] == REFUSED
    assert untouched(root)
    assert (root / "f").read_text() == (root / "d" / "kept").read_text() == "kept"
    assert not [path for path in root.rglob("*") if path.name.startswith(".vmrun")]


def test_what_was_cut_off_leaves_nothing_half_written(root: Path) -> None:
    (root / "f").write_text("old")
    whole = make_tar(file("f", b"n" * 100_000))
    assert extract(root, "/", whole[:50_000])[0] == SHORT
    assert contents(root) == {"f": "old"}
    assert extract(root, "/", whole) == (0, "")
    assert (root / "f").read_text() == "n" * 100_000


def test_a_writer_that_is_killed_leaves_nothing_half_written(root: Path) -> None:
    writer = subprocess.Popen(
        [binaries() / "guest", "extract", root, "/"], stdin=subprocess.PIPE, bufsize=0
    )
    assert writer.stdin is not None
    writer.stdin.write(make_tar(file("a", b"a"), file("f", b"n" * 1_000_000))[:500_000])
    deadline = time.monotonic() + 10
    while contents(root) != {"a": "a"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    writer.stdin.close()
    assert contents(root) == {"a": "a"}


def test_links_and_modes_are_kept(root: Path) -> None:
    tar = make_tar(
        directory("d", mode=0o500),
        file("d/f", b"x", mode=0o640),
        hardlink("d/same", "d/f"),
        symlink("d/l", "/anywhere"),
    )
    assert extract(root, "/", tar) == (0, "")
    assert (root / "d/f").samefile(root / "d/same")
    assert os.readlink(root / "d/l") == "/anywhere"
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o500
    assert (root / "d").stat().st_mtime == 1000
    # Once more: a link onto itself must leave no spare name behind.
    assert extract(root, "/", tar) == (0, "")
    assert sorted(os.listdir(root / "d")) == ["f", "l", "same"]


@ROOT_ONLY
def test_it_is_done_by_that_user_and_belongs_to_it(root: Path) -> None:
    root.parent.chmod(0o755)
    tar = make_tar(directory("d", mode=0o500), file("d/f", b"x", mode=0o4755))
    status, said = extract(root, "/", tar, "--as", "1000:1001")
    assert (status, "Permission denied" in said) == (DENIED, True)
    (root / "own").mkdir()
    os.chown(root / "own", 1000, 1000)
    assert extract(root, "/own", tar, "--as", "1000:1001") == (0, "")
    status_ = (root / "own/d/f").stat()
    assert (status_.st_uid, status_.st_gid, stat.S_IMODE(status_.st_mode)) == (1000, 1001, 0o755)
    assert stat.S_IMODE((root / "own/d").stat().st_mode) == 0o500
    # Root without capabilities is nobody to whom a file of another belongs.
    (root / "own").chmod(0o700)
    assert extract(root, "/own/d", tar, "--as", "0:0")[0] == DENIED


def test_a_race_leads_no_writer_outside(root: Path) -> None:
    (root / "d").mkdir()
    (root / "l").symlink_to(root.parent / "outside")
    tar = make_tar(directory("d"), directory("d/e", mode=0o777), file("d/e/victim", b"evil"))
    seen = set()
    with swapping(root / "d", root / "l"):
        for attempt in range(150):
            seen.add(extract(root, ("/", "/d", "/d/new")[attempt % 3], tar)[0])
            assert untouched(root)
    assert seen <= {0, REFUSED}
    assert 0 in seen


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(["d", "f", "l", "h"]),
            st.lists(st.sampled_from(["a", "b", "..", ".", "up", "x"]), min_size=1, max_size=4),
            st.sampled_from(["a", "../outside", "/", "..", "a/b", "up/victim", "../../outside"]),
        ),
        max_size=8,
    ),
    path=st.sampled_from(["/", "/up", "/a", "/up/new", "/n/"]),
)
def test_nothing_that_is_sent_escapes(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, list[str], str]],
    path: str,
) -> None:
    root = tmp_path_factory.mktemp("any") / "root"
    (root.parent / "outside").mkdir()
    (root.parent / "outside" / "victim").write_text("secret")
    root.mkdir()
    (root / "up").symlink_to("../outside")
    make: dict[str, Callable[[str, str], object]] = {
        "d": lambda name, _: directory(name),
        "f": lambda name, _: file(name, b"evil"),
        "l": symlink,
        "h": hardlink,
    }
    tar = make_tar(*(make[kind]("/".join(name), target) for kind, name, target in entries))  # type: ignore[arg-type]
    assert extract(root, path, tar)[0] in (0, REFUSED)
    assert untouched(root)


# --- a process's root --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cgroups() -> Iterator[Path]:
    """A cgroup of version 2 where the guest tool looks for them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    at = binaries() / "cgroup"
    at.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "cgroup2", "none", at], check=False).returncode != 0:
        pytest.skip("cgroups cannot be mounted here")
    group = at / f"vmrun-test-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()
    subprocess.run(["umount", at], check=True)


@pytest.fixture
def container(root: Path, cgroups: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process with that root, a mount namespace of its own and a cgroup, and its argument."""
    (root / "gate").write_bytes((binaries() / "gate").read_bytes())
    (root / "gate").chmod(0o755)
    process = subprocess.Popen(
        ["unshare", "--mount", f"--root={root}", "/gate", "--", "x"], stderr=subprocess.DEVNULL
    )
    (cgroups / "cgroup.procs").write_text(str(process.pid))
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{process.pid}/exe").samefile(
        binaries() / "gate"
    ) and not os.path.samefile(f"/proc/{process.pid}/exe", root / "gate"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process, f"{process.pid}:/{cgroups.name}"
    process.kill()
    process.wait()


Container = tuple[subprocess.Popen[bytes], str]


def test_a_containers_links_end_inside_it(root: Path, container: Container) -> None:
    _, argument = container
    (root / "victim").write_text("mine")
    (root / "l").symlink_to("/victim")
    (root / "out").symlink_to(root.parent / "outside" / "victim")
    done = guest("archive", "--follow", argument, "/l", "top")
    assert done.returncode == 0, done.stderr
    assert b"mine" in done.stdout
    assert guest("archive", "--follow", argument, "/out", "top").returncode == REFUSED
    done = guest("extract", "--as", "1000:1000", argument, "/l", stdin=A_FILE)
    assert done.returncode == DENIED  # it is root's
    done = guest("extract", argument, "/l", stdin=A_FILE)
    assert done.returncode == 0, done.stderr
    assert (root / "victim").read_text() == "new"
    assert untouched(root)


def test_a_race_in_a_container_ends_inside_it(root: Path, container: Container) -> None:
    (root / "d").mkdir()
    (root / "l").symlink_to(root.parent / "outside")
    os.chown(root, 1000, 1000)
    os.chown(root / "d", 1000, 1000)
    tar = make_tar(directory("e", mode=0o777), file("e/victim", b"evil"), file("victim", b"evil"))
    seen = set()
    with swapping(root / "d", root / "l"):
        for attempt in range(90):
            options = ((), ("--as", "1000:1000"))[attempt % 2]
            done = guest("extract", *options, container[1], "/d", stdin=tar)
            seen.add(done.returncode)
            read = guest("archive", "--follow", container[1], "/d/victim", "top")
            assert b"secret" not in read.stdout
    assert seen <= {0, REFUSED, DENIED}
    assert 0 in seen
    assert untouched(root)


def test_what_only_root_may_read_is_read(root: Path, container: Container) -> None:
    (root / "private").mkdir(mode=0o700)
    (root / "private" / "f").write_text("mine")
    (root / "private" / "f").chmod(0)
    os.chown(root / "private", 1000, 1000)
    done = guest("archive", container[1], "/private", "top")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"mine" in done.stdout


def test_another_process_than_the_containers_is_refused(container: Container) -> None:
    process, argument = container
    pid, cgroup = argument.split(":")
    for wrong, why in (
        (f"{os.getpid()}:{cgroup}", "not of this container"),
        (f"{pid}:{cgroup}/below", "not of this container"),
        (f"{pid}:{cgroup[:-1]}", "not of this container"),
        (f"4194303:{cgroup}", "no such process"),
    ):
        for verb in (("archive", wrong, "/", "top"), ("extract", wrong, "/")):
            done = guest(*verb, stdin=A_FILE)
            assert done.returncode == GONE, verb
            assert why in done.stderr.decode()
    process.kill()
    process.wait()
    assert guest("archive", argument, "/", "top").returncode == GONE


def test_a_process_in_our_own_mounts_is_refused(cgroups: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        (cgroups / "cgroup.procs").write_text(str(process.pid))
        done = guest("archive", f"{process.pid}:/{cgroups.name}", "/", "top")
        assert done.returncode == GONE
        assert b"no mount namespace of its own" in done.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "argument", ["12", "12:", "12:/", "12:x", "x:/y", "1:/y", "12:/a/../b", ""]
)
def test_an_argument_that_is_none_is_a_usage_error(argument: str) -> None:
    assert guest("archive", argument, "/", "top").returncode == 2


@pytest.mark.parametrize("freeze", [False, True])
def test_a_writer_is_the_containers_and_ends_with_it(
    container: Container, cgroups: Path, freeze: bool
) -> None:
    process, argument = container
    writer = subprocess.Popen(
        [binaries() / "guest", "extract", argument, "/"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 10
    while len((cgroups / "cgroup.procs").read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if freeze:
        (cgroups / "cgroup.freeze").write_text("1")
    process.send_signal(signal.SIGKILL)
    assert writer.wait(10) == GONE
    (cgroups / "cgroup.freeze").write_text("0")
    assert writer.stderr is not None
    assert b"the container has ended" in writer.stderr.read()
    assert writer.stdin is not None
    writer.stdin.close()
    writer.stderr.close()
    process.wait()
    assert (cgroups / "cgroup.procs").read_text() == ""
