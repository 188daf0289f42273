"""Compose files on disk: which one is read, what stands beside it, and any text whatever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.project import EXAMPLES, project
from vmrun.compose.files import HostFiles, load_project
from vmrun.compose.model import Project
from vmrun.compose.order import start_order
from vmrun.compose.service import KEYS
from vmrun.compose.unsupported import SERVICE
from vmrun.model.errors import UsageError, VmrunError
from vmrun.policy.egress import parse_allow

ONE = "services: {web: {image: r.example.com/a, env_file: [a.env], environment: [B]}}\n"


def load(path: Path | None = None, **environment: str) -> Project:
    return load_project(path, environment=environment, parse_allow=parse_allow)


def refused(path: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.hint
    return caught.value.message


def test_a_file_with_what_stands_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "My Shop_2"
    folder.mkdir()
    (folder / "compose.yaml").write_text(ONE)
    (folder / "a.env").write_text("A=$B\n")
    (folder / ".env").write_text("B=beside\n")
    found = load(folder / "compose.yaml")
    assert found.name == "myshop_2"
    assert found.folder == folder
    assert found.services[0].environment == (("A", "beside"), ("B", "beside"))
    assert load(folder / "compose.yaml", B="host").services[0].environment[0] == ("A", "host")


@pytest.mark.parametrize(
    "name", ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"]
)
def test_the_file_of_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused() == "no compose file in this folder"
    Path(name).write_text("name: a\nservices: {web: {image: r.example.com/a}}\n")
    assert load().folder == tmp_path
    Path(name.replace(".y", ".override.y")).touch()
    assert "is not merged in" in refused()


def test_another_program_s_variable_is_not_silently_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("compose.yaml").write_text("name: a\nservices: {web: {image: r.example.com/a}}\n")
    with pytest.raises(UsageError, match="COMPOSE_FILE is not used"):
        load(COMPOSE_FILE="a.yaml:b.yaml")
    assert load(Path("compose.yaml"), COMPOSE_FILE="a.yaml").name == "a"


def test_several_files_are_not_guessed_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("compose.yaml").touch()
    Path("docker-compose.yml").touch()
    assert refused() == "several compose files: compose.yaml, docker-compose.yml"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    assert refused(path) == f"no such file: {path}"
    assert refused(tmp_path) == f"{tmp_path}: not a file"
    os.mkfifo(path)
    assert refused(path) == f"{path}: not a file"
    path.unlink()
    path.symlink_to(path)
    assert "symbolic links" in refused(path)
    assert "Not a directory" in refused(Path("/etc/passwd/compose.yaml"))
    assert refused(tmp_path / ("x" * 300)).endswith("File name too long")


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert refused(path) == f"{path}: larger than 1 MiB"


def test_a_dot_env_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: r.example.com/a}}\n")
    (tmp_path / ".env").mkdir()
    assert refused(tmp_path / "compose.yaml") == f"{tmp_path}/.env: not a file"


def test_a_link_that_leads_out_of_the_folder_is_noted(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    path = tmp_path / "compose.yaml"
    path.write_text(
        "name: a\nservices:\n  web:\n    image: r.example.com/a\n"
        "    volumes: [./inside:/a:ro, ./link/ssl:/b:ro]\n"
    )
    assert load(path).notes == (
        f"{path}:5: services.web.volumes[1]: {tmp_path}/link/ssl is outside the project's folder",
    )


def test_a_folder_that_is_reached_through_a_link_is_its_own(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "compose.yaml").write_text(
        "services: {web: {image: r.example.com/a, volumes: ['./x:/x:ro']}}\n"
    )
    (tmp_path / "link").symlink_to(real)
    assert load(tmp_path / "link" / "compose.yaml").notes == ()


def test_a_relative_path_is_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "compose.yaml").write_text(
        "services: {web: {image: 'oci:images/web:1', volumes: ['./x:/x:ro']}}\n"
    )
    monkeypatch.chdir(tmp_path)
    found = load(Path("shop/compose.yaml"))
    assert found.name == "shop"
    assert found.services[0].directories[0].source == tmp_path / "shop" / "x"
    assert found.services[0].image.path == str(tmp_path / "shop" / "images" / "web")


# --- examples, and anything else -----------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_read(path: Path) -> None:
    found = load(path)
    assert len(start_order(found.services)) == len(found.services)
    assert found.notes == (() if path.stem != "proxy" else found.notes)


def fuzzed(data: bytes) -> None:
    try:
        found = project(data, environment={"A": "1", "B": ""})
    except VmrunError as error:
        wrong = error
    else:
        assert found.services
        return
    assert wrong.hint
    assert "\n" not in wrong.message


@given(st.sampled_from(EXAMPLES), st.data())
def test_examples_with_bytes_changed(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 12))
        content[at : at + cut] = data.draw(
            st.sampled_from(
                [b"", b":", b"\n", b"- ", b"'", b"$", b"${A", b"[", b"*", b"<<: ", b"\0"]
            )
        )
    fuzzed(bytes(content))


SCALARS = st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats() | st.sampled_from([
    "", "a", "web", "data:/data", "./x:/x:ro", "8080:80", "1m", "5s", "CMD", "no", "$A", "${B:-x}",
    "always", "\n", "é", "default", "x" * 5000, "/", "/a", "service_healthy", "ALL",
])  # fmt: skip
KEY = st.sampled_from([
    *sorted(KEYS), *sorted(SERVICE)[:5], "source", "target", "type", "test", "interval", "limits",
    "resources", "memory", "nofile", "soft", "hard", "condition", "allow", "path", "aliases",
    "default", "web", "a", "published", "size", "file", "name", "external", "internal", "x-y", "",
])  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=12,
)
SERVICES = st.dictionaries(KEY, VALUES, max_size=6)


@given(SERVICES, st.dictionaries(KEY, VALUES, max_size=2), VALUES)
def test_any_values_are_a_project_or_an_error(
    web: dict[str, Any], rest: dict[str, Any], volumes: Any
) -> None:
    web.setdefault("image", "registry.example.com/a:1")
    document = {"services": {"web": web, **rest}, "volumes": volumes}
    fuzzed(yaml.safe_dump(document).encode())


@given(st.text(max_size=100))
def test_any_path_that_is_written_is_read_or_an_error(text: str) -> None:
    fuzzed(yaml.safe_dump({"services": {"web": {
        "image": "registry.example.com/a:1", "volumes": [f"./{text}:/a:ro"], "env_file": text,
    }}}).encode())  # fmt: skip


def test_the_host_s_files_read_no_more_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert HostFiles().read(path, 10) == b"x" * 11
    assert HostFiles().read(tmp_path / "none", 10) is None
