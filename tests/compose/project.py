"""Projects of texts, with files that are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vmrun.compose.model import Project, Service
from vmrun.compose.parse import parse_project
from vmrun.model.errors import UsageError
from vmrun.policy.egress import parse_allow

FOLDER = Path("/srv/shop")
EXAMPLES = sorted(Path(__file__).parent.glob("*.yaml"))


@dataclass(frozen=True, slots=True)
class MemoryFiles:
    """Files by their paths; ``links`` are the ones that lead elsewhere."""

    contents: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def read(self, path: Path, limit: int) -> bytes | None:
        data = self.contents.get(str(path))
        return None if data is None else data[: limit + 1]

    def real(self, path: Path) -> Path:
        return Path(self.links.get(str(path), str(path)))


def project(
    text: str | bytes,
    *,
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Project:
    """The project of a file compose.yaml in /srv/shop."""
    return parse_project(
        text if isinstance(text, bytes) else text.encode(),
        path=FOLDER / "compose.yaml",
        environment=environment or {},
        files=MemoryFiles(files or {}, links or {}),
        parse_allow=parse_allow,
        name=name,
    )


def service(*lines: str, top: str = "", **options: Mapping[str, str]) -> Service:
    """The service ``web`` with these lines, which begin at line 4 of the file."""
    return project(_file(lines, top), **options).services[0]  # type: ignore[arg-type]


def refused(text: str | bytes, **options: Mapping[str, str]) -> UsageError:
    """The error that a file is refused with; without the folder before its place."""
    with pytest.raises(UsageError) as caught:
        project(text, **options)  # type: ignore[arg-type]
    error = caught.value
    assert "\n" not in error.message
    assert error.hint, error.message
    error.message = error.message.replace(f"{FOLDER}/", "")
    return error


def service_refused(*lines: str, top: str = "", **options: Mapping[str, str]) -> UsageError:
    """The error for the service ``web`` with these lines, which begin at line 4 of the file."""
    return refused(_file(lines, top), **options)


def _file(lines: tuple[str, ...], top: str) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"services:\n  web:\n    image: registry.example.com/web:1\n{body}{top}"
