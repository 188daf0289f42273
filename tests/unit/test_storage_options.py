"""What --volume, --secret and --scratch take, what they refuse, and what becomes of them."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import UsageError
from vmrun.model.storage import Bind, HostDirectory, NamedVolume, Secret, Storage
from vmrun.planning.data import plan_binds, plan_disks
from vmrun.planning.storage import (
    make_storage,
    parse_scratch,
    parse_secret,
    parse_target,
    parse_volume,
)

HERE = Path("/somewhere")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./src:/app", HostDirectory(HERE / "src", "/app", read_only=True)),
        (".:/app", HostDirectory(HERE, "/app", read_only=True)),
        ("/srv/in:/in:rw", HostDirectory(Path("/srv/in"), "/in", read_only=False)),
        ("../up:/in/:ro", HostDirectory(HERE / "../up", "/in", read_only=True)),
        ("a/b://in//x", HostDirectory(HERE / "a/b", "/in/x", read_only=True)),
        ("db:/var/lib/db", NamedVolume("db", "/var/lib/db", read_only=False)),
        ("db:/data:ro", NamedVolume("db", "/data", read_only=True)),
        ("db:/data:rw,exec", NamedVolume("db", "/data", executable=True)),
        ("./bin:/opt:ro,exec", HostDirectory(HERE / "bin", "/opt", True, True)),
    ],
)
def test_volumes_that_are_taken(text: str, expected: object) -> None:
    assert parse_volume(text, here=HERE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "db",
        "db:",
        ":/data",
        "db:data",
        "db:/",
        "db:/data/../..",
        "db:/proc",
        "db:/proc/sys/x",
        "db:/sys/fs/cgroup",
        "db:/dev",
        "db:/dev/shm",
        "db:/.vmrun-gate",
        "db:/data:rw,ro",
        "db:/data:z",
        "db:/data:ro:ro",
        "-db:/data",
        "db x:/data",
        "db\n:/data",
        "./a\0b:/data",
        "./a:/da\x1bta",
        f"db:/{'x' * 1025}",
        f"{'d' * 64}:/data",
    ],
)
def test_volumes_that_are_refused_name_option_and_value(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_volume(text, here=HERE)
    assert refused.value.message.startswith("--volume: ")
    assert repr(text[:50])[1:-1] in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id=token", Secret("token", variable="token")),
        ("id=token,env=MY_TOKEN", Secret("token", variable="MY_TOKEN")),
        ("id=token,src=t.txt", Secret("token", source=HERE / "t.txt")),
        ("id=token,source=/etc/t", Secret("token", source=Path("/etc/t"))),
        ("db.pass-1=/etc/t=x", Secret("db.pass-1", source=Path("/etc/t=x"))),
    ],
)
def test_secrets_that_are_taken(text: str, expected: Secret) -> None:
    assert parse_secret(text, here=HERE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token",
        "token=",
        "=file",
        "id=",
        "id=a,id=b",
        "id=a,src=x,env=Y",
        "id=a,env=1X",
        "id=a-b",
        "id=../x,src=f",
        "id=a/b,src=f",
        "id=.hidden,src=f",
        "id=a,src=",
        "id=a,mode=0444",
        "src=file",
        "a\n=file",
        f"{'x' * 65}=file",
    ],
)
def test_secrets_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--secret: cannot use"):
        parse_secret(text, here=HERE)


def test_scratch() -> None:
    assert parse_scratch("64m") == (64 << 20, "/scratch")
    assert parse_scratch("1g:/var/tmp") == (1 << 30, "/var/tmp")
    for text in ("", "x", "1m", "99999t", "64m:", "64m:tmp", "64m:/proc"):
        with pytest.raises(UsageError, match="--scratch"):
            parse_scratch(text)


@pytest.mark.parametrize(
    "volumes",
    [
        ["a:/x", "b:/x"],
        ["a:/x", "b:/x/"],
        ["a:/x", "./b:/x"],
        ["a:/x", "a:/y"],
        ["a:/scratch"],
        ["a:/run/secrets"],
        ["a:/run/secrets/deep"],
        [f"v{number}:/v{number}" for number in range(17)],
        [f"./d{number}:/d{number}" for number in range(65)],
    ],
)
def test_two_things_in_one_place_and_too_many_are_refused(volumes: list[str]) -> None:
    with pytest.raises(UsageError):
        make_storage(volumes, ["id=token"], "64m", here=HERE)


def test_a_secret_has_one_name() -> None:
    with pytest.raises(UsageError, match="'token'"):
        make_storage([], ["token=a", "id=token"], None, here=HERE)


def storage(*volumes: str, secrets: tuple[str, ...] = (), scratch: str | None = None) -> Storage:
    return make_storage(volumes, secrets, scratch, here=HERE)


def test_parents_are_mounted_before_what_lies_below_them() -> None:
    asked = storage("./b:/a/b/c:rw", "v:/a", "./a:/a/b", secrets=("id=t",), scratch="64m")
    binds = plan_binds(asked, "0123456789ab")
    assert [bind.target for bind in binds] == ["/a", "/a/b", "/a/b/c", "/run/secrets", "/scratch"]
    assert [bind.read_only for bind in binds] == [False, True, False, True, False]
    assert not any(bind.executable for bind in binds)
    assert len({bind.source for bind in binds}) == 5
    assert {PurePosixPath(bind.source).parts[:4] for bind in binds} == {
        ("/", "run", "vmrun-data", "0123456789ab")
    }


def test_each_disk_is_told_apart_by_its_serial() -> None:
    disks = plan_disks(
        storage("a:/a", "b:/b:ro", scratch="64m"), uuid="u", directory=Path("/guest")
    )
    assert [disk.read_only for disk in disks] == [False, True, False]
    for values in zip(*((disk.path, disk.serial, disk.secret) for disk in disks), strict=True):
        assert len(set(values)) == 3
    assert all(len(disk.serial) <= 20 for disk in disks)
    assert {disk.path.parent for disk in disks} == {Path("/guest")}


def test_another_guest_has_other_secrets_at_libvirt() -> None:
    one, other = (plan_disks(storage("a:/a"), uuid=uuid, directory=HERE)[0] for uuid in "12")
    assert one.secret != other.secret


def test_nothing_asked_nothing_planned() -> None:
    assert plan_binds(Storage(), "0123456789ab") == ()
    assert plan_disks(Storage(), uuid="u", directory=HERE) == ()


def test_no_secret_is_in_any_value() -> None:
    """The model says where it comes from, never what it is."""
    asked = storage(secrets=("id=token,env=TOKEN",))
    assert plan_binds(asked, "0123456789ab") == (
        Bind("/run/vmrun-data/0123456789ab/secrets", "/run/secrets", read_only=True),
    )


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    for parse in (
        lambda: parse_volume(text, here=HERE),
        lambda: parse_secret(text, here=HERE),
        lambda: parse_scratch(text),
    ):
        with contextlib.suppress(UsageError):
            parse()


@given(st.text(alphabet="/.ab\0 é", max_size=30))
def test_a_target_is_below_the_root_and_plain(text: str) -> None:
    target: Any
    try:
        target = parse_target(text, option="--volume")
    except UsageError:
        return
    assert target.startswith("/")
    assert len(target) > 1
    assert "//" not in target
    assert not {"..", "."} & set(target.split("/"))
    assert not target.endswith("/")
