"""Options of every command that reaches for an image: registries, and who may vouch for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.settings import Settings, load_settings

if TYPE_CHECKING:
    from vmrun.run.images import ImageOptions

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
Policy = Annotated[
    Path | None,
    typer.Option(help="The signature policy, in place of the user's.", show_default=False),
]
TrustRules = Annotated[
    Path | None,
    typer.Option(help="The trust rules, in place of the user's.", show_default=False),
]
Advisories = Annotated[
    Path | None,
    typer.Option(help="Folder of offline OSV databases.", show_default=False),
]


def settings_with(
    *,
    cert_dir: Path | None = None,
    authfile: Path | None = None,
    policy: Path | None = None,
    trust_rules: Path | None = None,
    advisories: Path | None = None,
) -> Settings:
    """The settings, with what was typed in place of what the files and the environment say."""
    typed = {
        "cert_dir": cert_dir,
        "auth_file": authfile,
        "policy": policy,
        "trust_rules": trust_rules,
        "advisories": advisories,
    }
    return load_settings(flags={key: str(path) for key, path in typed.items() if path is not None})


def image_options(settings: Settings, *, plain_http: bool = False) -> ImageOptions:
    """How to reach images and whom to trust, of the settings."""
    from vmrun.image.registry.options import RegistryOptions
    from vmrun.run.images import ImageOptions

    return ImageOptions(
        registry=RegistryOptions(
            plain_http=plain_http,
            cert_dirs=settings.cert_dirs,
            auth_file=settings.auth_file,
        ),
        trust_files=settings.trust_files,
        advisories=settings.advisories,
    )
