"""``vmrun catalogue``: keep a TUF catalogue of what image names mean now."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmrun.cli import catalogue_options as c
from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json, table
from vmrun.model.errors import UsageError
from vmrun.trust.tuf_roles import KeyType, Role

if TYPE_CHECKING:
    from vmrun.model.digest import Digest
    from vmrun.trust.catalogue_publish import Listing

app = typer.Typer(
    help="Catalogues: which digest a name has now, signed, with an expiry date.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_LARGEST_ROOT = 512_000
_SOON = 14 * 24 * 3600.0


@app.command("init")
def init_command(
    directory: c.Directory,
    keys: c.Keys = None,
    passphrase_file: c.PassphraseFile = None,
    key_type: Annotated[
        KeyType, typer.Option(help="ecdsa is on the curve P-256.")
    ] = KeyType.ED25519,
    root_keys: Annotated[int, typer.Option(help="How many root keys to make.")] = 1,
    root_threshold: Annotated[
        int, typer.Option(help="How many root keys must sign a new root.")
    ] = 1,
    root_days: Annotated[int, typer.Option(help="For how many days a root is good.")] = 365,
    targets_days: Annotated[int, typer.Option(help="… the list of names.")] = 90,
    snapshot_days: Annotated[int, typer.Option(help="… the snapshot.")] = 30,
    timestamp_days: Annotated[int, typer.Option(help="… the timestamp.")] = 7,
    json: c.Json = False,
) -> None:
    """Make an empty catalogue, and keys for it in a folder of their own."""
    from vmrun.trust.catalogue_publish import create_catalogue
    from vmrun.trust.tuf_keys import KeyFolder
    from vmrun.trust.tuf_sign import Lifetimes

    ask = c.passphrase(passphrase_file, "new keys", confirm=True)
    ask()  # before anything is made
    folder = KeyFolder(keys or c.beside(directory), ask)
    listing = create_catalogue(
        directory,
        folder,
        now=time.time(),
        root_keys=root_keys,
        root_threshold=root_threshold,
        lifetimes=Lifetimes(root_days, targets_days, snapshot_days, timestamp_days),
        kind=key_type,
    )
    root = directory / "1.root.json"
    if json:
        print_json({"root": root, "keys": folder.directory, **_as_json(listing)})
        return
    print(root)
    note(f"give {root} to those who shall trust it; keep {folder.directory} secret and backed up")


@app.command("add")
def add_command(
    directory: c.Directory,
    name: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG.", show_default=False)],
    digest: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIGEST]",
            help="The manifest's; default: what the registry's tag leads to.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="The manifest's bytes; default: ask the registry.", show_default=False),
    ] = None,
    keys: c.Keys = None,
    passphrase_file: c.PassphraseFile = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    json: c.Json = False,
) -> None:
    """Let a name mean a digest from now on."""
    from vmrun.model.digest import Digest

    key = c.listed_name(name)
    wanted = Digest.parse(digest) if digest is not None else None
    if length is not None and wanted is None:
        raise UsageError("--length without DIGEST", hint="give both, or neither")
    if wanted is None or length is None:
        wanted, length = _resolve(key, wanted, plain_http, cert_dir, authfile)
    listing = c.publisher(directory, keys, passphrase_file).add(key, wanted, length)
    _report(listing, {"name": key, "digest": wanted, "length": length}, json=json)
    if not json:
        print(f"{key}@{wanted}")


@app.command("remove")
def remove_command(
    directory: c.Directory,
    name: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG.", show_default=False)],
    keys: c.Keys = None,
    passphrase_file: c.PassphraseFile = None,
    json: c.Json = False,
) -> None:
    """Remove a name: readers refuse its image from now on."""
    key = c.listed_name(name)
    listing = c.publisher(directory, keys, passphrase_file).remove(key)
    _report(listing, {"name": key}, json=json)
    if not json:
        print(key)


@app.command("ls")
def ls_command(directory: c.Directory, keys: c.Keys = None, json: c.Json = False) -> None:
    """List the names, and say when what expires."""
    from vmrun.trust.catalogue_publish import list_catalogue

    place = keys or c.beside(directory)
    folder = c.key_folder(place, None) if keys is not None or place.is_dir() else None
    listing = list_catalogue(directory, folder)
    _report(listing, {}, json=json)
    if json:
        return
    rows = [(name, str(digest), str(size)) for name, (digest, size) in listing.names.items()]
    print(table(rows, header=("name", "digest", "length")))
    for role, (version, expires) in listing.roles.items():
        note(f"{role} {version} is good until {_date(expires)}")


@app.command("refresh")
def refresh_command(
    directory: c.Directory,
    role: Annotated[Role, typer.Option(help="What to sign again.")] = Role.TIMESTAMP,
    keys: c.Keys = None,
    passphrase_file: c.PassphraseFile = None,
    json: c.Json = False,
) -> None:
    """Sign the timestamp (or another role) again before it expires; for a timer."""
    listing = c.publisher(directory, keys, passphrase_file).refresh(role)
    _report(listing, {}, json=json)
    if not json:
        version, expires = listing.roles[role]
        print(f"{role} {version} is good until {_date(expires)}")


@app.command("rotate")
def rotate_command(
    directory: c.Directory,
    role: Annotated[Role, typer.Option(help="Whose keys.", show_default=False)],
    key: Annotated[
        str | None,
        typer.Option(help="Only the key whose id begins so.", show_default=False),
    ] = None,
    keys: c.Keys = None,
    passphrase_file: c.PassphraseFile = None,
    json: c.Json = False,
) -> None:
    """Replace a role's keys by new ones, with a new root that no longer names the old."""
    publisher = c.publisher(directory, keys, passphrase_file)
    listing, fresh = publisher.rotate(role, key)
    _report(listing, {"role": role, "keys": fresh}, json=json)
    if not json:
        for key_id in fresh:
            print(f"{role} {key_id}")


@app.command("verify")
def verify_command(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="A directory or https URL.", show_default=False)
    ],
    name: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG.", show_default=False)],
    root: Annotated[
        Path | None,
        typer.Option(help="The root metadata to trust; default: DIR/1.root.json."),
    ] = None,
    cert_dir: i.CertDir = None,
    json: c.Json = False,
) -> None:
    """Look a name up as a reader who never saw the catalogue before."""
    import tempfile

    from vmrun.trust.catalogue import look_up
    from vmrun.trust.files import read_trusted

    remote = "://" in source
    if remote and root is None:
        raise UsageError("a URL proves nothing about itself", hint="give --root FILE")
    place = source if remote else str(Path(source).absolute())
    file = root or Path(place) / "1.root.json"
    data = read_trusted(file, _LARGEST_ROOT, "root metadata")
    if data is None:
        raise UsageError(f"{file} does not exist", hint="name the root with --root")
    with tempfile.TemporaryDirectory(prefix="vmrun-catalogue.") as scratch:
        entry = look_up(
            c.listed_name(name),
            source=place,
            root=data,
            state=Path(scratch) / "trusted",
            now=time.time(),
            cert_dirs=i.settings_with(cert_dir=cert_dir).cert_dirs,
        )
    if json:
        print_json(entry)
        return
    print(f"{entry.name}@{entry.digest}")
    note(str(entry))


# --- what they share ------------------------------------------------------------------------


def _resolve(
    name: str, digest: Digest | None, plain_http: bool, cert_dir: Path | None, authfile: Path | None
) -> tuple[Digest, int]:
    from vmrun.image.reference import parse_reference
    from vmrun.image.registry.repository import Repository
    from vmrun.model.errors import ImageNotFound

    settings = i.settings_with(cert_dir=cert_dir, authfile=authfile)
    options = i.image_options(settings, plain_http=plain_http).registry
    reference = parse_reference(name)
    found = Repository(reference, options).manifest(digest or reference.tag or "")
    if found is None:
        raise ImageNotFound(
            f"{name}: the registry has no such manifest" + (f" {digest}" if digest else ""),
            hint="push the image first",
        )
    return found[0].digest, found[0].size


def _report(listing: Listing, values: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json({**values, **_as_json(listing)})
    for role, (_, expires) in listing.roles.items():
        if role in ("root", "targets") and expires - time.time() < _SOON:
            note(f"{role} expires {_date(expires)}: run 'vmrun catalogue refresh --role {role}'")


def _as_json(listing: Listing) -> dict[str, Any]:
    return {
        "names": {
            name: {"digest": digest, "length": length}
            for name, (digest, length) in listing.names.items()
        },
        "roles": {
            role: {"version": version, "expires": _date(expires)}
            for role, (version, expires) in listing.roles.items()
        },
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
