"""A compose file as a :class:`~vmrun.compose.model.Project`: nothing unknown, nothing ignored.

The source is the Compose specification (compose-spec/compose-spec). docs/reference/compose.md
lists every key, what is supported, and where vmrun reads a file more strictly than compose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vmrun.compose import unsupported
from vmrun.compose.context import Context, Files
from vmrun.compose.document import read_document
from vmrun.compose.dotenv import MAX_BYTES as MAX_ENV_BYTES
from vmrun.compose.dotenv import parse_variables
from vmrun.compose.field import Field
from vmrun.compose.interpolate import Variables
from vmrun.compose.model import Project
from vmrun.compose.relations import check_relations
from vmrun.compose.service import read_service
from vmrun.compose.toplevel import TOP_LEVEL, read_declarations, read_own
from vmrun.compose.values import is_project_name, project_name_of
from vmrun.model.errors import UsageError
from vmrun.model.network import Allow

MAX_SERVICES = 64
PROJECT_VARIABLE = "COMPOSE_PROJECT_NAME"
_NAME_HINT = "lower-case letters, digits, - and _, at most 40; begin with a letter or digit"
_LONGEST_NAME = 63


def parse_project(
    data: bytes,
    *,
    path: Path,
    environment: Mapping[str, str],
    files: Files,
    parse_allow: Callable[[str], Allow],
    name: str | None = None,
) -> Project:
    """The project that the file ``path`` with the content ``data`` describes.

    Variables come from ``environment``, then from ``.env`` beside the file. Its name is ``name``,
    or else ``COMPOSE_PROJECT_NAME``, the file's ``name``, or the folder's. Raises
    :class:`UsageError` with file, line and key.
    """
    document = read_document(data, str(path))
    folder = path.parent.absolute()
    variables = {**_dot_env(folder, environment, files), **environment}
    top = Field(document, Variables(variables), file=str(path), path="", line=1).section(
        TOP_LEVEL, unsupported.TOP
    )
    project = _project_name(name, variables, top, folder)
    variables[PROJECT_VARIABLE] = project
    context = Context(project, folder, variables, files, parse_allow)
    # A new one: from here on the project's name is a variable, too.
    fields = Field(document, Variables(variables), file=str(path), path="", line=1).section(
        TOP_LEVEL, unsupported.TOP
    )
    if "services" not in fields:
        raise UsageError(f"{path}: has no 'services'", hint="begin with 'services:'")
    if "version" in fields:
        fields["version"].text()
    declared = read_declarations(fields, context)
    tenant, profile = read_own(fields)
    sections = fields["services"].named(MAX_SERVICES)
    if not sections:
        raise fields["services"].wrong("there is none", "name at least one service")
    services = {key: read_service(key, field, context, declared) for key, field in sections.items()}
    for key, field in sections.items():
        if len(project) + len(key) >= _LONGEST_NAME:
            raise field.wrong(
                f"{project}-{key} is longer than {_LONGEST_NAME} characters", "choose shorter names"
            )
    check_relations(services, sections)
    return Project(
        name=project,
        folder=folder,
        services=tuple(services.values()),
        networks=tuple(declared.networks.values()),
        volumes=tuple(declared.volumes.values()),
        secrets=tuple(declared.secrets.values()),
        tenant=tenant,
        profile=profile,
        notes=tuple(context.notes),
    )


def _dot_env(folder: Path, environment: Mapping[str, str], files: Files) -> dict[str, str]:
    path = folder / ".env"
    data = files.read(path, MAX_ENV_BYTES)
    return {} if data is None else parse_variables(data, str(path), environment)


def _project_name(
    name: str | None, variables: Mapping[str, str], top: Mapping[str, Field], folder: Path
) -> str:
    """The first that is given; each is checked as it is, only the folder's is made to fit."""
    if name is None:
        name = variables.get(PROJECT_VARIABLE) or None
    if name is not None:
        if not is_project_name(name):
            raise UsageError(f"cannot name a project: {name[:80]!r}", hint=_NAME_HINT)
        return name
    if "name" in top:
        found = top["name"].word()
        if not is_project_name(found):
            raise top["name"].wrong(f"cannot name a project: {found[:80]!r}", _NAME_HINT)
        return found
    found = project_name_of(folder.name)
    if not is_project_name(found):
        raise UsageError(
            f"the folder's name makes no project name: {folder.name[:80]!r}",
            hint="write 'name: NAME' at the top of the file",
        )
    return found
