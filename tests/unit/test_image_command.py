"""Which file a container executes, and as whom."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vmrun.image.accounts import parse_accounts
from vmrun.image.command import resolve_command
from vmrun.image.user import User, resolve_user
from vmrun.model.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ImageError,
    UsageError,
    VmrunError,
)
from vmrun.model.image import FileEntry, FileTree, ImageConfig

DIRECTORY = FileEntry("dir", 0o755, 0, 0, 0)


def executable(mode: int = 0o755) -> FileEntry:
    return FileEntry("file", mode, 0, 0, 1)


def link(target: str) -> FileEntry:
    return FileEntry("symlink", 0o777, 0, 0, 0, target)


TREE = FileTree(
    {
        **dict.fromkeys(
            ("/", "/usr", "/usr/bin", "/app", "/sbin", "/sbin/sub", "/first"), DIRECTORY
        ),
        "/bin": link("usr/bin"),
        "/usr/bin/busybox": executable(),
        "/usr/bin/sh": link("busybox"),
        "/usr/bin/data": executable(0o644),
        "/usr/bin/root-only": executable(0o700),
        "/usr/bin/loop": link("loop"),
        "/usr/bin/gone": link("/no"),
        "/app/tool": executable(),
        "/first/busybox": executable(0o600),
        "/first/sub": DIRECTORY,
    }
)


def config(
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Sequence[str] = (),
    working_dir: str = "/",
) -> ImageConfig:
    return ImageConfig(
        "amd64",
        "linux",
        entrypoint=tuple(entrypoint),
        cmd=tuple(cmd),
        env=tuple(env),
        working_dir=working_dir,
    )


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "expected"),
    [
        ([], ["sh"], [], ("sh",)),
        ([], ["sh", "-c", "x"], ["busybox", "ls"], ("busybox", "ls")),
        (["sh", "-c"], ["x"], [], ("sh", "-c", "x")),
        (["sh", "-c"], ["x"], ["y"], ("sh", "-c", "y")),
        (["sh"], [], [], ("sh",)),
    ],
)
def test_docker_s_rules(
    entrypoint: list[str], cmd: list[str], command: list[str], expected: tuple[str, ...]
) -> None:
    found = resolve_command(config(entrypoint, cmd), TREE, command)
    assert found.argv == expected
    assert found.executable == "/usr/bin/busybox"


def test_an_entrypoint_of_the_caller_drops_the_image_s_cmd() -> None:
    found = resolve_command(config(["no"], ["no"]), TREE, ["-c"], entrypoint=["sh"])
    assert found.argv == ("sh", "-c")
    assert resolve_command(config(["no"], ["no"]), TREE, [], entrypoint=["sh"]).argv == ("sh",)
    assert resolve_command(config(["no"], ["no"]), TREE, ["sh"], entrypoint=[]).argv == ("sh",)


@pytest.mark.parametrize(
    ("name", "path", "working_dir", "expected"),
    [
        ("/bin/sh", "/x", "/", "/usr/bin/busybox"),
        ("./tool", "/x", "/app", "/app/tool"),
        ("bin/sh", "/x", "/", "/usr/bin/busybox"),
        ("../app/tool", "/x", "/app", "/app/tool"),
        ("sh", "/no:/bin", "/", "/usr/bin/busybox"),
        ("tool", ":/bin", "/app", "/app/tool"),
        ("tool", "/bin:", "/app", "/app/tool"),
        ("tool", ".", "/app", "/app/tool"),
        # Like execvp, go on after what may not be executed.
        ("busybox", "/first:/bin", "/", "/usr/bin/busybox"),
        ("root-only", "/bin", "/", "/usr/bin/root-only"),
    ],
)
def test_lookup(name: str, path: str, working_dir: str, expected: str) -> None:
    image = config(env=["PATH=/overridden", f"PATH={path}"], working_dir=working_dir)
    assert resolve_command(image, TREE, [name]).executable == expected


def test_env_and_working_dir_of_the_container_count() -> None:
    found = resolve_command(config(), TREE, ["tool"], env=["PATH=."], working_dir="/app")
    assert found.executable == "/app/tool"


@pytest.mark.parametrize(
    ("name", "path", "error", "message"),
    [
        ("nope", None, CommandNotFound, "no command 'nope' in PATH '/usr/local/sbin:"),
        ("sh", "/no", CommandNotFound, "no command 'sh' in PATH '/no'"),
        ("sh", "", CommandNotFound, "no command 'sh'"),
        ("/nope", None, CommandNotFound, "no command '/nope'"),
        ("./sh", "/bin", CommandNotFound, "no command './sh'"),
        ("/usr/bin/sh/x", None, CommandNotFound, "no command"),
        ("gone", "/bin", CommandNotFound, "no command 'gone'"),
        ("", "/bin", CommandNotFound, "no command ''"),
        ("data", "/bin", CommandNotExecutable, "'/usr/bin/data' has no execute permission"),
        ("/app", None, CommandNotExecutable, "'/app' is a directory"),
        ("sub", "/first:/sbin", CommandNotExecutable, "'/first/sub' is a directory"),
        ("loop", "/bin", CommandNotExecutable, "a loop of links"),
    ],
)
def test_no_such_command(
    name: str, path: str | None, error: type[VmrunError], message: str
) -> None:
    image = config(env=[] if path is None else [f"PATH={path}"])
    with pytest.raises(error) as caught:
        resolve_command(image, TREE, [name])
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_status == (127 if error is CommandNotFound else 126)


def test_no_command_at_all() -> None:
    with pytest.raises(ImageError, match="neither Entrypoint nor Cmd") as caught:
        resolve_command(config(), TREE, [])
    assert "vmrun run" in caught.value.hint


def test_nul_in_an_argument() -> None:
    with pytest.raises(UsageError, match="NUL"):
        resolve_command(config(), TREE, ["sh", "a\0b"])


PASSWD = b"""root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
homeless:x:7:7:::
7:x:8:8::/eight:
toolarge:x:4294967296:1::/:
"""
GROUP = b"""root:x:0:
app:x:1001:
staff:x:50:app,other
audio:x:29:app
broken
"""
ACCOUNTS, GROUPS = parse_accounts(PASSWD, GROUP)
WITH_ACCOUNTS = FileTree({"/": DIRECTORY}, ACCOUNTS, GROUPS)
WITHOUT = FileTree({"/": DIRECTORY})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (), "root", "/root")),
        ("root", User(0, 0, (), "root", "/root")),
        ("0", User(0, 0, (), "root", "/root")),
        ("app", User(1000, 1001, (50, 29), "app", "/home/app")),
        ("1000", User(1000, 1001, (50, 29), "app", "/home/app")),
        ("app:staff", User(1000, 50, (), "app", "/home/app")),
        ("app:77", User(1000, 77, (), "app", "/home/app")),
        ("app:", User(1000, 1001, (50, 29), "app", "/home/app")),
        (":staff", User(0, 50, (), "root", "/root")),
        ("7", User(7, 7, (), "homeless", "/")),
        ("4242", User(4242, 0)),
        ("4242:4343", User(4242, 4343)),
        ("2147483647", User(2147483647, 0)),
    ],
)
def test_user(text: str, expected: User) -> None:
    assert resolve_user(text, WITH_ACCOUNTS) == expected


def test_user_without_account_files() -> None:
    assert resolve_user("", WITHOUT) == User(0, 0)
    assert resolve_user("5:6", WITHOUT) == User(5, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "no user 'nobody'"),
        ("app:wheel", "no group 'wheel'"),
        ("2147483648", "no user '2147483648'"),
        ("-1", "no user '-1'"),
        ("1000:-1", "no group '-1'"),
        ("app:staff:x", "no group 'staff:x'"),
        ("\u0661", "no user"),
        ("toolarge", "no user 'toolarge'"),
    ],
)
def test_unknown_user(text: str, message: str) -> None:
    with pytest.raises(ImageError, match="in /etc/") as caught:
        resolve_user(text, WITH_ACCOUNTS)
    assert message in caught.value.message
