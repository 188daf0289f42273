"""``vmrun cp``: how its arguments are read, what goes where, and what is made of a hostile answer.

The container is a directory of the host, and the guest tool in it the real one.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.runs import World, short_directory
from tests.unit.base_binaries import binaries
from tests.unit.commands import Vmrun, vmrun_command
from tests.unit.test_base_apply import directory, entry, file, hardlink, make_tar, symlink
from vmrun.cli.copy_place import Place, parse_place
from vmrun.model.errors import StateError, UsageError
from vmrun.model.run_record import RunRecord
from vmrun.run.ports import TerminalSize
from vmrun.supervisor import copying
from vmrun.supervisor.answers import Answers, Living
from vmrun.supervisor.protocol import Kind, Line


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        yield made
        made.close()


@pytest.fixture
def vmrun(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Vmrun:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return vmrun_command(monkeypatch, capfd)


class Process:
    """A process of this host, as one in a guest."""

    def __init__(self, *arguments: str | Path) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [binaries() / "guest", *arguments], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )

    def write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[cast(Any, self._process.stdin).write(view) :]
        except OSError as error:
            raise StateError(str(error)) from error

    def close_stdin(self) -> None:
        cast(Any, self._process.stdin).close()

    def read(self, size: int) -> bytes:
        return cast(bytes, cast(Any, self._process.stdout).read(size))

    def read_error(self, size: int) -> bytes:
        return cast(bytes, cast(Any, self._process.stderr).read(size))

    def resize(self, size: TerminalSize) -> None:
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(30)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            cast(Any, stream).close()


class Container:
    """A run called ``web`` whose container's root is the directory ``root``."""

    def __init__(self, world: World, root: Path) -> None:
        self.root = root
        self.told: list[dict[str, str]] = []
        self.keep: bool | None = None
        self.controls = SimpleNamespace(paused=False, contained=self)
        self.record = world.live("web")
        living = SimpleNamespace(get=lambda run_id: self._get(run_id))
        world.answers(self.record, **Answers(cast(Living, living)).table())

    def _get(self, run_id: object) -> Container:
        assert run_id == self.record.run_id
        return self

    def tell(self, event: str, **fields: str) -> None:
        self.told.append({"event": event, **fields})

    def archive(self, path: str, name: str, *, follow: bool) -> Process:
        return Process("archive", *(["--follow"] if follow else []), self.root, path, name)

    def extract(self, path: str, *, keep: bool, directory: bool) -> Process:
        self.keep = keep
        return Process("extract", *(["--directory"] if directory else []), self.root, path)


@pytest.fixture
def container(world: World, tmp_path: Path) -> Container:
    root = tmp_path / "container"
    root.mkdir()
    return Container(world, root)


def contents(root: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(root)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc/passwd", Place("web", "/etc/passwd")),
        ("web:etc", Place("web", "etc")),
        ("web:/a:b", Place("web", "/a:b")),
        ("./web:x", Place("", "./web:x")),
        ("/srv/web:x", Place("", "/srv/web:x")),
        ("plain", Place("", "plain")),
        ("-", Place("", "-")),
    ],
)
def test_what_is_here_and_what_is_there(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", ":/x", "web:", "web:/a\nb", "web:/\x1b[0m"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


@pytest.mark.parametrize(
    ("path", "inside", "contents_"),
    [
        ("/a/b", "/a/b", False),
        ("a/b", "/a/b", False),
        ("/a/b/", "/a/b/", False),
        ("/a/b/.", "/a/b/", True),
        ("/", "/", True),
        (".", "/", True),
        ("//a/../../b", "/b", False),
    ],
)
def test_paths_in_a_container_are_absolute(path: str, inside: str, contents_: bool) -> None:
    place = Place("web", path)
    assert (place.inside, place.contents) == (inside, contents_)


@pytest.mark.parametrize(
    "words",
    [
        ("a", "b"),
        ("web:/a", "web:/b"),
        ("web:/a", "other:/b"),
        ("-", "-"),
        ("--json", "web:/a", "-"),
    ],
)
def test_exactly_one_side_is_a_container(vmrun: Vmrun, words: tuple[str, ...]) -> None:
    assert vmrun("cp", *words).status == 2


def test_no_such_run(world: World, vmrun: Vmrun) -> None:
    world.ended("eeeeeeeeeeee", "done")
    done = vmrun("cp", "web:/a", ".")
    assert (done.status, "no such run" in done.err) == (1, True)
    done = vmrun("cp", "done:/a", ".")
    assert (done.status, "is not running" in done.err) == (1, True)


def test_a_paused_run_says_so(vmrun: Vmrun, container: Container) -> None:
    container.controls.paused = True
    for words in (("web:/", "."), (".", "web:/")):
        done = vmrun("cp", *words)
        assert done.status == 1
        assert "run 'web' is paused" in done.err
        assert "vmrun unpause web" in done.err


# --- out of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "then"),
    [
        ("/f", "new", {"new": "content"}),
        ("/f", "./old", {"old": "content"}),
        ("/f", "dir", {"dir/f": "content"}),
        ("/f", "dir/", {"dir/f": "content"}),
        ("/f", ".", {"f": "content"}),
        ("/f", "new/", None),
        ("/f", "none/new", None),
        ("/f", "old/", None),
        ("/f/", "new", None),
        ("/f", "todir", {"dir/f": "content"}),
        ("/f", "toold", {"old": "content"}),
        ("/none", "new", None),
        ("/d", "new", {"new": None, "new/g": "deep"}),
        ("/d", "new/", {"new": None, "new/g": "deep"}),
        ("/d", "dir", {"dir/d": None, "dir/d/g": "deep"}),
        ("/d/", "dir", {"dir/d": None, "dir/d/g": "deep"}),
        ("/d/.", "dir", {"dir/g": "deep"}),
        ("/d/.", "new", {"new": None, "new/g": "deep"}),
        ("/d", "old", None),
        ("/d/.", "old", None),
        ("/d", "none/new", None),
        ("/l", "new", {"new": "f"}),
        ("/away", "new", {}),
    ],
)
def test_where_it_goes_on_the_host(
    vmrun: Vmrun,
    container: Container,
    source: str,
    destination: str,
    then: dict[str, str | None] | None,
) -> None:
    (container.root / "f").write_text("content")
    (container.root / "d").mkdir()
    (container.root / "d" / "g").write_text("deep")
    (container.root / "l").symlink_to("f")
    (container.root / "away").symlink_to("/etc/passwd")
    here = Path.cwd()
    (here / "old").write_text("old")
    (here / "dir").mkdir()
    (here / "todir").symlink_to("dir")
    (here / "toold").symlink_to("old")
    before = contents(here)
    done = vmrun("cp", f"web:{source}", destination)
    assert done.status == (0 if then else 1), done.err
    assert contents(here) == before | (then or {})
    assert "hint: " in done.err or done.status == 0


def test_a_link_is_followed_when_asked(vmrun: Vmrun, container: Container) -> None:
    (container.root / "f").write_text("content")
    (container.root / "l").symlink_to("/f")
    assert vmrun("cp", "-L", "web:/l", ".").status == 0
    assert contents(Path.cwd()) == {"l": "content"}


def test_links_that_lead_elsewhere_are_left_out(vmrun: Vmrun, container: Container) -> None:
    (container.root / "d").mkdir()
    (container.root / "d" / "away").symlink_to("/etc/passwd")
    (container.root / "d" / "up").symlink_to("../..")
    (container.root / "d" / "z").write_text("last")
    done = vmrun("cp", "web:/d", ".")
    assert done.status == 1
    assert "2 of what was asked for was left out" in done.err
    assert contents(Path.cwd()) == {"d": None, "d/z": "last"}


def test_a_directory_is_no_file(vmrun: Vmrun, container: Container) -> None:
    (container.root / "f").write_text("content")
    (container.root / "d").mkdir()
    (Path.cwd() / "f").mkdir()
    (Path.cwd() / "d").write_text("kept")
    assert vmrun("cp", "web:/f", ".").status == 1
    assert vmrun("cp", "web:/d", ".").status == 1
    assert contents(Path.cwd()) == {"f": None, "d": "kept"}


def test_a_device_of_the_host_is_not_replaced(vmrun: Vmrun, container: Container) -> None:
    (container.root / "f").write_text("content")
    os.mkfifo("fifo")
    assert vmrun("cp", "web:/f", "fifo").status == 1
    assert stat.S_ISFIFO(os.lstat("fifo").st_mode)
    assert vmrun("cp", "web:/f", "/dev/null").status == 1
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


def test_more_than_there_is_room_for(vmrun: Vmrun, container: Container) -> None:
    with open(container.root / "huge", "wb") as huge:
        huge.truncate(1 << 43)
    done = vmrun("cp", "web:/", ".")
    assert done.status == 1
    assert "no room for" in done.err
    assert "huge" in done.err
    assert contents(Path.cwd()) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_are_kept_when_asked(vmrun: Vmrun, container: Container) -> None:
    (container.root / "d").mkdir()
    (container.root / "d" / "f").write_text("x")
    (container.root / "d" / "l").symlink_to("f")
    for path in ("d", "d/f", "d/l"):
        os.chown(container.root / path, 1234, 4321, follow_symlinks=False)
    os.chmod(container.root / "d" / "f", 0o4711)
    assert vmrun("cp", "web:/d", "mine").status == 0
    assert vmrun("cp", "-a", "web:/d", "its").status == 0
    for path in (".", "f", "l"):
        mine, its = os.lstat(f"mine/{path}"), os.lstat(f"its/{path}")
        assert (mine.st_uid, its.st_uid, its.st_gid) == (0, 1234, 4321)
    assert stat.S_IMODE(os.lstat("its/f").st_mode) == 0o711


def test_a_tar_on_stdout(vmrun: Vmrun, container: Container) -> None:
    (container.root / "d").mkdir()
    (container.root / "d" / "g").write_bytes(b"\xff deep")
    done = subprocess.run(
        [sys.executable, "-m", "vmrun", "cp", "web:/d", "-"], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert sorted(tar.getnames()) == ["d", "d/g"]
    done = subprocess.run(
        [sys.executable, "-m", "vmrun", "cp", "-q", "web:/d/.", "-"],
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert sorted(tar.getnames()) == [".", "./g"]
    assert done.stderr == b""


def test_it_says_what_was_copied(vmrun: Vmrun, container: Container) -> None:
    (container.root / "f").write_text("content")
    done = vmrun("cp", "web:/f", ".")
    assert (done.out, done.err) == ("", "vmrun: copied 1 entry of 7 bytes to .\n")
    assert vmrun("cp", "-q", "web:/f", ".").err == ""
    known = json.loads(vmrun("cp", "--json", "web:/f", ".").out)
    assert known == {
        "run": container.record.run_id,
        "name": "web",
        "direction": "out",
        "entries": 1,
        "bytes": 7,
        "left_out": 0,
    }


def test_the_journal_hears_no_names_of_files(vmrun: Vmrun, container: Container) -> None:
    (container.root / "data").mkdir()
    (container.root / "data" / "jane-doe.txt").write_text("x")
    assert vmrun("cp", "web:/data/jane-doe.txt", ".").status == 0
    assert vmrun("cp", "jane-doe.txt", "web:/data/").status == 0
    assert [told["place"] for told in container.told] == ["/data", "/data"]
    assert [told["direction"] for told in container.told] == ["out", "in"]
    assert "jane" not in str(container.told)


# --- a hostile guest ---------------------------------------------------------------------------


def sends(world: World, *frames: tuple[Kind, bytes]) -> RunRecord:
    def answer(line: Line, _request: dict[str, Any]) -> None:
        line.send({"started": True})
        for kind, data in frames:
            line.send_frame(kind, data)

    record = world.live("web")
    world.answers(record, **{"copy-out": answer, "copy-in": answer})
    return record


EXIT = (Kind.EXIT, b"0")


@pytest.mark.parametrize(
    "tar",
    [
        make_tar(file("other", b"evil")),
        make_tar(directory("f"), file("f/../../evil", b"evil")),
        make_tar(directory("f"), file("/evil", b"evil")),
        make_tar(directory("f"), file("g", b"evil")),
        make_tar(directory("f"), symlink("f/l", ".."), file("f/l/evil", b"evil")),
        make_tar(directory("f"), hardlink("f/h", "f/g")),
        make_tar(entry("f", tarfile.CHRTYPE)),
        make_tar(entry("f", tarfile.FIFOTYPE)),
        make_tar(),
        b"",
        b"nonsense" * 1000,
        make_tar(file("f", b"x" * 5000))[:1024],
        make_tar(file("f", b"x")) + b"more" * 200,
    ],
)
def test_what_it_must_not_send_is_refused(world: World, vmrun: Vmrun, tar: bytes) -> None:
    sends(world, (Kind.STDOUT, tar), EXIT)
    before = contents(Path.cwd().parent)
    done = vmrun("cp", "web:/f", "new")
    assert done.status == 1
    assert done.err.startswith("vmrun: ")
    left = {
        path: text
        for path, text in contents(Path.cwd().parent).items()
        if not path.startswith("here/new")
    }
    assert left == before
    assert "evil" not in "".join(contents(Path.cwd()))


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([], "the guest ended before all was copied"),
        ([(Kind.STDOUT, make_tar(file("f"))[:512])], "the guest ended before all was copied"),
        ([(Kind.FAILURE, b"{}")], "it was not said why"),
        ([(Kind.FAILURE, b"[" * 100_000)], "it was not said why"),
        ([(Kind.EXIT, b"999999")], "cannot copy"),
        ([(Kind.EXIT, b"\xff")], "cannot copy"),
        ([(Kind.STDERR, b"x\n" * 30000 + b"\x1b[2J"), (Kind.EXIT, b"6")], "?[2J"),
    ],
)
def test_what_it_may_say_instead(
    world: World, vmrun: Vmrun, frames: list[tuple[Kind, bytes]], why: str
) -> None:
    sends(world, *frames)
    for words in (("web:/f", "new"), (".", "web:/f")):
        done = vmrun("cp", *words)
        assert done.status == 1
        assert why in done.err
        assert "\x1b" not in done.err
        assert len(done.err) < 2000
    assert contents(Path.cwd()) == {}


def test_a_guest_that_stalls(world: World, vmrun: Vmrun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "STALLED", 1.0)
    monkeypatch.setattr("vmrun.cli.copy_out.STALLED", 1.0)
    record = world.live("web")

    def answer(line: Line, _request: dict[str, Any]) -> None:
        line.send({"started": True})
        line.sock.recv(1)
        while line.sock.recv(1 << 16):
            if record.name == "never":
                break

    world.answers(record, **{"copy-out": answer, "copy-in": answer})
    for words in (("web:/f", "new"), (".", "web:/f")):
        done = vmrun("cp", *words)
        assert done.status == 1
        assert "moved nothing" in done.err


# --- into it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "then"),
    [
        ("f", "/new", {"new": "content"}),
        ("./f", "old", {"old": "content"}),
        ("f", "/dir", {"dir/f": "content"}),
        ("f", "/dir/", {"dir/f": "content"}),
        ("f", "/", {"f": "content"}),
        ("f", "/new/", None),
        ("f", "/none/new", None),
        ("f/", "/new", None),
        ("none", "/new", None),
        ("d", "/new", {"new": None, "new/g": "deep"}),
        ("d", "/dir", {"dir/d": None, "dir/d/g": "deep"}),
        ("d/", "/dir", {"dir/d": None, "dir/d/g": "deep"}),
        ("d/.", "/dir", {"dir/g": "deep"}),
        ("d/.", "/new", {"new": None, "new/g": "deep"}),
        ("d", "/old", None),
        ("l", "/new", {"new": "f"}),
        ("dl", "/new", {"new": "d"}),
        ("dl/", "/dir", {"dir/dl": None, "dir/dl/g": "deep"}),
        ("fifo", "/new", None),
    ],
)
def test_where_it_goes_in_a_container(
    vmrun: Vmrun,
    container: Container,
    source: str,
    destination: str,
    then: dict[str, str | None] | None,
) -> None:
    here = Path.cwd()
    (here / "f").write_text("content")
    (here / "d").mkdir()
    (here / "d" / "g").write_text("deep")
    (here / "l").symlink_to("f")
    (here / "dl").symlink_to("d")
    os.mkfifo(here / "fifo")
    (container.root / "old").write_text("old")
    (container.root / "dir").mkdir()
    before = contents(container.root)
    done = vmrun("cp", source, f"web:{destination}")
    assert done.status == (0 if then else 1), done.err
    assert contents(container.root) == before | (then or {})
    assert container.keep is not True


def test_the_current_directory_is_its_contents(vmrun: Vmrun, container: Container) -> None:
    Path("f").write_text("content")
    assert vmrun("cp", ".", "web:/new").status == 0
    assert contents(container.root) == {"new": None, "new/f": "content"}


def test_a_link_here_is_followed_when_asked(vmrun: Vmrun, container: Container) -> None:
    Path("f").write_text("content")
    Path("l").symlink_to("f")
    assert vmrun("cp", "-L", "l", "web:/").status == 0
    assert contents(container.root) == {"l": "content"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_go_with_it_when_asked(vmrun: Vmrun, container: Container) -> None:
    Path("f").write_text("content")
    os.chown("f", 1234, 4321)
    assert vmrun("cp", "-a", "f", "web:/").status == 0
    found = (container.root / "f").stat()
    assert (container.keep, found.st_uid, found.st_gid) == (True, 1234, 4321)


def test_a_tar_on_stdin(vmrun: Vmrun, container: Container) -> None:
    (container.root / "dir").mkdir()
    command = [sys.executable, "-m", "vmrun", "cp", "--json", "-"]
    tar = make_tar(file("a/b", b"x" * 1_000_000))
    done = subprocess.run([*command, "web:/dir"], input=tar, capture_output=True, check=True)
    assert json.loads(done.stdout)["bytes"] == len(tar)
    assert (container.root / "dir/a/b").stat().st_size == 1_000_000
    for path, data in (("/none", tar), ("/dir", tar[:5000]), ("/dir", b"")):
        failed = subprocess.run([*command, f"web:{path}"], input=data, capture_output=True)
        assert failed.returncode == 1, path
        assert failed.stderr.startswith(b"vmrun: cannot copy to web:"), failed.stderr


def test_a_failure_ends_the_sending(vmrun: Vmrun, container: Container) -> None:
    with open("big", "wb") as big:
        big.truncate(64 << 20)
    done = vmrun("cp", "big", "web:/none/there")
    assert done.status == 1
    assert "cannot copy to web:/none/there: /none/: No such file or directory" in done.err
