"""The same files, read by docker compose: what both accept must mean the same.

Where vmrun differs on purpose, the test says how.
"""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose.peer import DockerCompose
from tests.compose.project import EXAMPLES
from tests.unit.test_compose_services import ACCEPTED, TOP
from vmrun.compose.files import load_project
from vmrun.compose.interpolate import Variables
from vmrun.compose.model import Project, Service
from vmrun.compose.ports import DEFAULT_ADDRESS
from vmrun.model.errors import UsageError
from vmrun.model.image import Transport
from vmrun.policy.egress import parse_allow

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}

AS_WRITTEN = {"0400": "256", "0640": "416", "1.10": "1.1", "yes": "yes"}
"""Numbers that docker compose rewrites in an environment. vmrun takes what is written."""


@pytest.fixture(scope="module")
def compose() -> DockerCompose:
    return DockerCompose()


def ours(path: Path) -> Project:
    return load_project(path, environment={}, parse_allow=parse_allow)


def seconds(text: str) -> float:
    return sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9.]+)(ms|us|[hms])", text))


def words(value: list[str] | None) -> list[str] | None:
    """A command without the dollars that config doubles."""
    return None if value is None else [word.replace("$$", "$") for word in value]


def check_container(theirs: dict[str, Any], service: Service) -> None:
    if service.image.transport is Transport.DOCKER:
        assert theirs["image"] == str(service.image)
    for key, value in (("command", service.command), ("entrypoint", service.entrypoint)):
        assert words(theirs.get(key)) == (None if value is None else list(value))
    environment = {k: v for k, v in theirs.get("environment", {}).items() if v is not None}
    assert {key: value.replace("$$", "$") for key, value in environment.items()} == {
        key: AS_WRITTEN.get(value, value) for key, value in service.environment
    }
    assert theirs.get("labels", {}) == dict(service.labels)
    assert theirs.get("user") == service.user
    assert theirs.get("hostname") == service.hostname
    assert bool(theirs.get("read_only")) == bool(service.read_only)
    mine = None if service.working_dir is None else Path(service.working_dir)
    assert (Path(theirs["working_dir"]) if "working_dir" in theirs else None) == mine


def check_limits(theirs: dict[str, Any], service: Service) -> None:
    limits = theirs.get("deploy", {}).get("resources", {}).get("limits", {})
    memory = limits.get("memory", theirs.get("mem_limit"))
    assert (None if memory is None else int(memory)) == service.limits.memory
    cpus = limits.get("cpus", theirs.get("cpus"))
    assert (None if cpus is None else float(cpus)) == service.limits.cpus
    assert limits.get("pids", theirs.get("pids_limit")) == service.limits.pids
    files = theirs.get("ulimits", {}).get("nofile")
    assert (files["hard"] if isinstance(files, dict) else files) == service.limits.files


def check_life(theirs: dict[str, Any], service: Service) -> None:
    policy = service.restart
    attempts = f":{policy.attempts}" if policy.attempts else ""
    assert theirs.get("restart", "no") == f"{policy.when}{attempts}"
    assert seconds(theirs.get("stop_grace_period", "10s")) == service.stop_timeout
    assert {name: item["condition"] for name, item in theirs.get("depends_on", {}).items()} == {
        item.service: str(item.condition) for item in service.depends_on
    }
    check = theirs.get("healthcheck", {"test": ["NONE"]})
    if check.get("disable") or check["test"] == ["NONE"]:
        assert service.healthcheck is None
        return
    found = service.healthcheck
    assert found is not None
    kind, *arguments = check["test"]
    assert found.command == (("/bin/sh", "-c") if kind == "CMD-SHELL" else ()) + tuple(arguments)
    assert seconds(check.get("interval", "30s")) == found.interval
    assert seconds(check.get("timeout", "30s")) == found.timeout
    assert seconds(check.get("start_period", "0s")) == pytest.approx(found.start_period)
    assert check.get("retries", 3) == found.retries


def check_world(theirs: dict[str, Any], service: Service, project: Project) -> None:
    ports = [
        (item.get("host_ip", DEFAULT_ADDRESS), int(item.get("published", 0)), item["target"])
        for item in theirs.get("ports", [])
    ]
    assert [(item.address, item.host_port, item.container_port) for item in service.ports] == [
        ("::1" if address == "0:0::1" else address, *numbers) for address, *numbers in ports
    ]
    assert set(theirs.get("networks", {})) == set(service.networks)
    assert {
        Path(item.get("target", item["source"])).name for item in theirs.get("secrets", [])
    } == {secret.name for secret in service.secrets}
    keys = {volume.name: volume.key for volume in project.volumes}
    mine = {(str(item.source), item.target, item.read_only) for item in service.directories}
    mine |= {(keys[item.name], item.target, item.read_only) for item in service.volumes}
    mine |= {("", item.path, False) for item in service.tmpfs}
    found = {
        (item.get("source", ""), item["target"].rstrip("/"), item.get("read_only", False))
        for item in theirs.get("volumes", [])
    }
    found |= {("", text.partition(":")[0], False) for text in theirs.get("tmpfs", [])}
    if "shm_size" in theirs:
        found.add(("", "/dev/shm", False))
    assert found == mine


def check(theirs: dict[str, Any], project: Project) -> None:
    assert set(theirs["services"]) == {service.name for service in project.services}
    assert theirs["name"] == project.name
    for key, volume in theirs.get("volumes", {}).items():
        assert volume["name"] == next(v.name for v in project.volumes if v.key == key)
    for service in project.services:
        found = theirs["services"][service.name]
        check_container(found, service)
        check_limits(found, service)
        check_life(found, service)
        check_world(found, service, project)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_mean_the_same(path: Path, compose: DockerCompose) -> None:
    theirs, said = compose.config(path)
    assert theirs is not None, said
    check(theirs, ours(path))


LAXER = {
    "command: [sleep, 10, '']": "must be a string",
    "command: true": "must be a null",
    "stop_signal: 15": "must be a string",
    "user: 1000": "must be a string",
    # An example of the specification.
    "ports: ['::1:6000:6001']": "Invalid ip address",
}
"""What docker compose refuses: it demands quotes where vmrun takes what is written for a text."""

SKEWED = {"environment: {x-A: 1}"}
"""docker compose 2.26 takes a variable with such a name for an extension, and garbles it."""


@pytest.mark.parametrize("line", [line for line, *_ in ACCEPTED if line not in SKEWED])
def test_keys_mean_the_same(line: str, compose: DockerCompose, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    path = folder / "compose.yaml"
    # The lines are of a project in /srv/shop.
    text = line.replace("/srv/shop", str(folder))
    path.write_text(
        f"name: shop\nservices:\n  web:\n    image: registry.example.com/a:1\n    {text}\n{TOP}"
    )
    theirs, said = compose.config(path)
    if line in LAXER:
        assert LAXER[line] in said
        return
    assert theirs is not None, said
    check(theirs, ours(path))


# --- variables -----------------------------------------------------------------------------------

PIECES = ["$SET", "${SET}", "${EMPTY}", "$$", "$${SET}", "x", " ", "-", ":", "é", "/a?b=c", "}"]
OPERATORS = ["-", ":-", "+", ":+", "?", ":?"]


def expressions(count: int) -> list[str]:
    """Texts with variables, nested; always the same ones. Requirements are not nested: docker
    compose demands them even where the text that they stand in is not used."""
    chance = random.Random(7)

    def text(depth: int) -> str:
        return "".join(piece(depth) for _ in range(chance.randint(1, 3)))

    def piece(depth: int) -> str:
        if depth == 0 or chance.random() < 0.5:
            return chance.choice(PIECES if depth == 3 else PIECES[:-1])
        name = chance.choice(["SET", "EMPTY", "NONE"])
        return f"${{{name}{chance.choice(OPERATORS[: 6 if depth == 3 else 4])}{text(depth - 1)}}}"

    return [text(3) for _ in range(count)]


def test_variables_mean_the_same(compose: DockerCompose, tmp_path: Path) -> None:
    variables = Variables({"SET": "value", "EMPTY": ""})
    expanded = {}
    for at, text in enumerate(expressions(1_000)):
        with contextlib.suppress(UsageError):
            expanded[text] = f"V{at}", variables.expand(text)
    assert len(expanded) > 400
    path = tmp_path / "compose.yaml"
    environment = {name: text for text, (name, _) in expanded.items()}
    service = {"image": "registry.example.com/a:1", "environment": environment}
    path.write_text(yaml.safe_dump({"services": {"web": service}}, allow_unicode=True))
    (tmp_path / ".env").write_text("SET=value\nEMPTY=\n")
    theirs, said = compose.config(path)
    assert theirs is not None, said
    found = theirs["services"]["web"]["environment"]
    different = {
        text: (value, found[name].replace("$$", "$"))
        for text, (name, value) in expanded.items()
        if found[name].replace("$$", "$") != value
    }
    assert different == {}


ENV_FILE = r"""
# a comment
A=plain
B="double"
C='single $SET'
D="a\tb\nc"
E=a b # comment
F=a#b
G="x # y" # z
H=$SET
I="${SET}/x"
J=${NONE:-d}
K=
L="\"q\""
export M=1
N='a "b"'
O=a=b
P="\$SET"
SET
"""


def test_files_of_variables_mean_the_same(compose: DockerCompose, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services:\n  web:\n    image: registry.example.com/a:1\n    env_file: [a.env]\n"
    )
    (tmp_path / "a.env").write_text(ENV_FILE)
    (tmp_path / ".env").write_text("SET=value\n")
    theirs, said = compose.config(path)
    assert theirs is not None, said
    found = theirs["services"]["web"]["environment"]
    mine = dict(ours(path).services[0].environment)
    assert {key: value.replace("$$", "$") for key, value in found.items()} == mine
