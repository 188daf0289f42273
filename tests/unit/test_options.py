"""Options as people type them: what they mean, and how a bad one is answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.cli.options import NAMES, RawOptions, make_workload
from vmrun.model.errors import UsageError, VmrunError
from vmrun.model.quantity import format_size, parse_duration, parse_size
from vmrun.model.workload import EngineName, ProfileName, TmpfsMount, Workload
from vmrun.run.directories import StateDirectories
from vmrun.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
NOWHERE = Path("/nonexistent")
SETTINGS = Settings(
    profile=ProfileName.RESTRICTED,
    floor=ProfileName.BASELINE,
    engine=EngineName.CRUN,
    memory="128m",
    cpus="1",
    pids_limit="128",
    connect="embedded",
    directories=StateDirectories(NOWHERE, NOWHERE, ()),
    trust_files=(),
    advisories=NOWHERE,
    cert_dirs=(),
    auth_file=None,
)


def workload(environment: dict[str, str] | None = None, **typed: Any) -> Workload:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(RawOptions))
    values |= {"image": "oci:/image", "tenant": "default", "allow_emulation": False, **typed}
    return make_workload(RawOptions(**values), SETTINGS, environment or {})


def test_every_option_is_passed_on() -> None:
    assert set(NAMES) == {field.name for field in fields(RawOptions)}


def test_settings_apply_where_no_flag_does() -> None:
    made = workload()
    assert (made.limits.memory, made.limits.cpus, made.limits.pids) == (128 << 20, 1.0, 128)
    assert (made.profile, made.engine, made.connect) == ("restricted", "crun", "embedded")
    made = workload(
        memory="64m",
        cpus="0.5",
        pids_limit="7",
        profile=ProfileName.HEALTHCARE,
        engine=EngineName.DOCKER,
        connect="qemu:///system",
    )
    assert (made.limits.memory, made.limits.cpus, made.limits.pids) == (64 << 20, 0.5, 7)
    assert (made.profile, made.engine, made.connect) == ("healthcare", "docker", "qemu:///system")


# Quantities.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1b", 1),
        ("64k", 64 << 10),
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64 << 20),
        ("512MiB", 512 << 20),
        ("1g", 1 << 30),
        ("2T", 2 << 40),
        (" 1k ", 1 << 10),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, option="--memory") == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("30s", 30.0), ("500ms", 0.5), ("1.5m", 90.0), ("1h", 3600.0), (" 2s ", 2.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, option="--timeout") == seconds


NO_NUMBER = ["", " ", "m", "-1", "-1m", "+1", "1 m", "1e3", "nan", "inf", "0x10", "1,5", "٣", "²"]
ENDLESS = "9" * 5000
"""More digits than int() takes, and more than a float holds."""


@pytest.mark.parametrize("text", [*NO_NUMBER, "1.5m", "1x", "1mm", "64m\n64m", ENDLESS])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, option="--memory")
    assert caught.value.message == f"--memory: not a size: {text!r}"
    assert caught.value.hint


@pytest.mark.parametrize("text", [*NO_NUMBER, "0", "0s", "0.0h", "1w", "1.s", ".5s", ENDLESS])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text, option="--timeout")
    assert caught.value.message == f"--timeout: not a duration: {text!r}"


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_bad_usage(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text, option="--x") >= 0
        except UsageError as error:
            assert repr(text) in error.message  # noqa: PT017 - a number is as good


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (128 << 20, "128 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


BAD: list[tuple[str, Any, str]] = [
    *(("memory", text, "--memory") for text in ("x", "-1", "1.5m", ENDLESS)),
    *(("cpus", text, "--cpus") for text in ("x", "0", "-1", "nan", "inf", "0.001", "1e9", "1025")),
    *(
        ("pids_limit", text, "--pids-limit")
        for text in ("x", "0", "-1", "1.5", "²", "4194304", ENDLESS)
    ),
    *(("timeout", text, "--timeout") for text in ("", "x", "0", "-1s", ENDLESS)),
    *(("env", [text], "--env") for text in ("", "=x", "=", " A=b", "A =b", "A=b\0c")),
    *(
        ("tmpfs", [text], "--tmpfs")
        for text in ("/x:size=", "/x:size=x", "/x:size=0", "/x:suid", "/x:dev", "/x:mode=7777")
    ),
    ("tmpfs", ["/x", "/y:suid,exec"], "--tmpfs"),
]


@pytest.mark.parametrize(
    ("option", "value", "flag"), BAD, ids=[f"{b[2]}-{str(b[1])[:12]!r}" for b in BAD]
)
def test_a_bad_value_is_named_with_its_option(option: str, value: Any, flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}") as caught:
        workload(**{option: value})
    assert caught.value.hint
    text = (
        value
        if isinstance(value, str)
        else value[-1].rpartition(":")[2].split(",")[0].rpartition("=")[2]
    )
    assert text[:50] in caught.value.message or repr(text)[1:-1] in caught.value.message


# Environment.


def test_env() -> None:
    made = workload({"HOST": "h"}, env=["A=1", "B=", "C=x=y", "HOST", "UNSET", "A=2"])
    assert dict(made.env) == {"A": "2", "B": "", "C": "x=y", "HOST": "h"}


def test_nothing_of_the_host_is_passed_on_unasked() -> None:
    assert workload({"AWS_SECRET_ACCESS_KEY": "x"}).env == ()


def test_env_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(
        b"# comment\n\n  # another\nA=1\nB= two words \r\nHOST\n"
        b"C=#no comment\nD=1\x0c2\xe2\x80\xa83"
    )
    made = workload({"HOST": "h"}, env_file=[file], env=["A=flag"])
    assert dict(made.env) == {
        "A": "flag",
        "B": " two words ",
        "HOST": "h",
        "C": "#no comment",
        "D": "1\x0c2\u20283",
    }


def test_later_env_files_win(tmp_path: Path) -> None:
    files = [tmp_path / "1", tmp_path / "2"]
    for file in files:
        file.write_text(f"A={file.name}\nB{file.name}=x")
    assert dict(workload(env_file=files).env) == {"A": "2", "B1": "x", "B2": "x"}


def test_a_bad_line_of_an_env_file_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n=x\n")
    with pytest.raises(UsageError, match=re.escape(f"{file}:2: not KEY=VALUE: '=x'")):
        workload(env_file=[file])


@pytest.mark.parametrize("kind", ["missing", "directory", "latin-1", "large"])
def test_a_bad_env_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "env"
    if kind == "directory":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(b"A=\xe4" if kind == "latin-1" else b"#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match=re.escape(f"--env-file {file}")) as caught:
        workload(env_file=[file])
    assert caught.value.hint


def test_an_env_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        workload(env_file=[Path("/dev/zero")])


# The rest.


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/x", TmpfsMount("/x")),
        ("/x:", TmpfsMount("/x")),
        ("/x:size=1m", TmpfsMount("/x", 1 << 20)),
        ("/x:exec,size=1m", TmpfsMount("/x", 1 << 20, executable=True)),
        ("/x:rw,noexec,nosuid,nodev", TmpfsMount("/x")),
    ],
)
def test_tmpfs(text: str, mount: TmpfsMount) -> None:
    assert workload(tmpfs=[text]).tmpfs == (mount,)


@given(st.text(max_size=30))
def test_any_tmpfs_or_variable_is_taken_or_bad_usage(text: str) -> None:
    for option in ("tmpfs", "env"):
        try:
            workload(**{option: [text]})
        except VmrunError as error:
            assert isinstance(error, UsageError)  # noqa: PT017 - taken is as good


# Through the command line.


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmrun", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "VMRUN_DEBUG": "", "COLUMNS": "200"},
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "lots", "oci:/x"), ("--memory", "'lots'", "hint: ")),
        (("--timeout", "0", "oci:/x"), ("--timeout", "'0'", "hint: ")),
        (("--tmpfs", "/x:suid", "oci:/x"), ("--tmpfs", "'suid'", "hint: ")),
        (("--pids-limit", ENDLESS, "oci:/x"), ("--pids-limit", "hint: ")),
        (("--profile", "lax", "oci:/x"), ("--profile", "'lax'")),
        (("--no-such-option", "oci:/x"), ("--no-such-option",)),
    ],
)
@pytest.mark.parametrize(("command", "status"), [("run", 125), ("plan", 2)])
def test_bad_usage_has_the_status_of_its_command(
    command: str, status: int, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    done = call(command, *words)
    assert done.returncode == status
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_options_before_the_command_change_no_status() -> None:
    assert call("--debug", "run", "--no-such-option").returncode == 125
