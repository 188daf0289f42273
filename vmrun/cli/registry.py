"""Options of every command that may speak to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.settings import Settings

if TYPE_CHECKING:
    from vmrun.image.registry.options import RegistryOptions

PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="Speak HTTP to the registry; loopback only.")
]
CertDir = Annotated[
    Path | None,
    typer.Option(help="Folder with HOST[:PORT]/*.crt, the registries' CAs.", show_default=False),
]
AuthFile = Annotated[
    Path | None,
    typer.Option(
        "--authfile", help="docker's config.json with the credentials.", show_default=False
    ),
]


def registry_options(
    settings: Settings, *, plain_http: bool, cert_dir: Path | None, auth_file: Path | None
) -> RegistryOptions:
    """What was typed, or else what the settings say."""
    from vmrun.image.registry.options import RegistryOptions

    return RegistryOptions(
        plain_http=plain_http,
        cert_dirs=(cert_dir.absolute(),) if cert_dir else settings.cert_dirs,
        auth_file=auth_file or settings.auth_file,
    )
