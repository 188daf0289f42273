"""Dependencies point one way, and each library is used in one place: read from the imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PURE = {"vmrun.image.command", "vmrun.image.user"}
"""What planning may use of the image package: it reads no file and no daemon."""

STRICT = {"vmrun.image.document", "vmrun.image.limits"}
"""What policy uses of it: the strict reader of JSON."""


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield node.module
            if node.module.startswith("vmrun"):
                # "from vmrun.cli import base" imports a module, other names are harmless here.
                submodules = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in submodules if name in MODULES)


def module(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(path): path for path in sorted((REPOSITORY / "vmrun").rglob("*.py"))}
MODULES = frozenset(FILES)
IMPORTS = {name: frozenset(imports(path)) for name, path in FILES.items()}


def package(name: str) -> str:
    """``model`` of ``vmrun.model.image``; a module of the root by its own name."""
    return name.split(".")[1] if "." in name else ""


def used(importer: str) -> dict[str, frozenset[str]]:
    """vmrun's own modules that each module of a package imports from other packages."""
    return {
        name: frozenset(
            other
            for other in IMPORTS[name]
            if other.startswith("vmrun.") and package(other) != importer
        )
        for name in MODULES
        if package(name) == importer
    }


ALLOWED = {
    "model": set(),
    "policy": {"model", "planning"},
    "planning": {"model", "policy"},
    "image": {"model"},
    "base": {"model"},
    "trust": {"model", "policy", "image"},
    "scan": {"model", "policy", "image"},
    "journal": {"model"},
    "compose": {"model", "vmrun.image.reference"},
    "network": {"model", "policy", "vmrun.run.ports"},
    "volume": {"model", "vmrun.run.ports", "vmrun.host.lock"},
    "tenant": {"model", "policy", "vmrun.host.lock"},
    # The ports that an adapter implements are declared by who uses it.
    "channel": {"model", "vmrun.run.ports"},
    "engine": {"model", "planning", "vmrun.run.ports"},
    "hypervisor": {"model", "planning", "channel", "vmrun.host.lock"},
    "host": {"model", "planning", "base", "hypervisor"},
    "settings": {"model", "policy", "vmrun.run.directories"},
    "run": {
        "model", "policy", "planning", "image", "base", "channel", "engine", "hypervisor", "host",
        "trust", "scan", "journal", "network", "volume", "tenant", "compose", "supervisor",
    },
    "supervisor": {
        "model", "policy", "planning", "channel", "engine", "hypervisor", "network", "journal",
        "tenant", "vmrun.run.clock", "vmrun.run.containers", "vmrun.run.directories",
        "vmrun.run.guest_volumes", "vmrun.run.ports", "vmrun.run.provision", "vmrun.run.signals",
        "vmrun.run.state", "vmrun.run.storage", "vmrun.run.teardown",
    },
    "cli": {
        "model", "settings", "policy", "planning", "image", "base", "host", "run", "trust", "scan",
        "journal", "supervisor", "volume", "tenant", "compose",
    },
    "__main__": {"cli"},
}  # fmt: skip
"""What each package may import: others by their short names, single modules by their full."""


@pytest.mark.parametrize("importer", ALLOWED)
def test_dependencies_point_one_way(importer: str) -> None:
    allowed = ALLOWED[importer] | {"planning": PURE, "policy": STRICT}.get(importer, set())
    wrong = [
        f"{name} imports {other}"
        for name, others in used(importer).items()
        for other in sorted(others)
        if package(other) not in allowed and other not in allowed
    ]
    assert wrong == []


def test_every_package_has_a_rule() -> None:
    assert {package(name) for name in MODULES} - {""} == set(ALLOWED)


@pytest.mark.parametrize("pure", sorted(PURE | STRICT))
def test_what_the_core_uses_of_images_is_pure(pure: str) -> None:
    seen, todo = set(), [pure]
    while todo:
        name = todo.pop()
        seen.add(name)
        todo.extend((IMPORTS[name] & MODULES) - seen)
    assert {package(name) for name in seen} <= {"image", "model"}
    outside = {other.partition(".")[0] for name in seen for other in IMPORTS[name]}
    assert outside.isdisjoint({"io", "os", "shutil", "socket", "subprocess", "tarfile", "tempfile"})


CORE = {"model", "policy", "planning"}
OUTSIDE_THE_CORE = {
    "http", "os", "random", "secrets", "select", "shutil", "signal", "socket", "subprocess",
    "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if package(name) in CORE])
def test_the_core_does_nothing_but_decide(name: str) -> None:
    """No clock, chance, process, file or network: equal input, equal plan."""
    outside = {other.partition(".")[0] for other in IMPORTS[name]}
    assert outside.isdisjoint(OUTSIDE_THE_CORE)
    assert outside <= {"vmrun", "__future__", *sys.stdlib_module_names}


HOMES = {
    "libvirt": {"vmrun.hypervisor"},
    "libvirt_qemu": {"vmrun.hypervisor"},
    "paramiko": {"vmrun.channel"},
    "cryptography": {"vmrun.channel", "vmrun.trust"},
    "nacl": {"vmrun.trust"},
    "tuf": {"vmrun.trust"},
    "securesystemslib": {"vmrun.trust"},
    "urllib3": {"vmrun.image.registry"},
    "univers": {"vmrun.scan"},
    "cvss": {"vmrun.scan"},
    "docker": {"vmrun.engine", "vmrun.image.docker_daemon"},
    "requests": {"vmrun.engine", "vmrun.image.docker_daemon"},
    "zstandard": {"vmrun.image"},
    "yaml": {"vmrun.compose"},
    "typer": {"vmrun.cli"},
    "rich": {"vmrun.cli"},
}
"""Where each library may be imported."""

ANYWHERE = {"tenacity"}


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_one_home(library: str) -> None:
    wrong = [
        name
        for name, others in sorted(IMPORTS.items())
        if any(other.partition(".")[0] == library for other in others)
        and not any(name == home or name.startswith(f"{home}.") for home in HOMES[library])
    ]
    assert wrong == []


def test_no_other_library_is_used() -> None:
    known = {"vmrun", *HOMES, *ANYWHERE, *sys.stdlib_module_names}
    found = {other.partition(".")[0] for others in IMPORTS.values() for other in others}
    assert found - known == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in sorted(IMPORTS[name] & MODULES):
                visit(other, (*path, name))
            done.add(name)

    done: set[str] = set()
    for name in sorted(MODULES):
        visit(name, ())
