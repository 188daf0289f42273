"""``vmrun key``: keys that sign images."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli.output import note, print_json
from vmrun.model.errors import StateError, UsageError

if TYPE_CHECKING:
    from vmrun.trust.keys import PrivateKey

app = typer.Typer(
    help="Keys that sign images.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the key's passphrase.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_VARIABLES = ("VMRUN_KEY_PASSWORD", "COSIGN_PASSWORD")
_LARGEST = 64 * 1024


@app.command("generate")
def generate_command(
    out: Annotated[Path, typer.Option(help="Write OUT.key and OUT.pub; neither may exist.")] = Path(
        "vmrun"
    ),
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make an ECDSA P-256 key pair; the private key is encrypted as cosign's are."""
    from vmrun.trust.keys import PrivateKey

    private, public = out.with_name(out.name + ".key"), out.with_name(out.name + ".pub")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise UsageError(
                f"{path} exists", hint="choose another --out; a key is not overwritten"
            )
    key = PrivateKey.generate()
    _create(private, key.encrypted_pem(passphrase(passphrase_file, confirm=True)), 0o600)
    _create(public, key.public.pem, 0o644)
    if json:
        print_json({"private": private, "public": public, "key_id": key.public.key_id})
        return
    print(key.public.key_id)
    note(f"wrote {private} (keep it secret) and {public}")


@app.command("show", no_args_is_help=True)
def show_command(
    file: Annotated[
        Path, typer.Argument(help="A public key, or an encrypted private one.", show_default=False)
    ],
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Print a key's id, which is what trust rules name; a private key's needs the passphrase."""
    from vmrun.trust.encrypted_key import is_encrypted
    from vmrun.trust.files import load_key_file

    private = is_encrypted(read_key(file, "key file"))
    key = load_private_key(file, passphrase_file).public if private else load_key_file(file)
    if json:
        fields = {"key_id": key.key_id, "algorithm": key.algorithm, "file": file}
        print_json({**fields, "private": private})
        return
    print(f"{key.key_id}  {key.algorithm}")


def load_private_key(path: Path, passphrase_file: Path | None) -> PrivateKey:
    """The key in ``path``, its passphrase asked for only when the file can be read."""
    from vmrun.trust.keys import PrivateKey

    pem = read_key(path, "--key")
    return PrivateKey.load(pem, passphrase(passphrase_file), f"key file {str(path)!r}")


def read_key(path: Path, what: str) -> bytes:
    """The bytes of a file that a user named as a key."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}", hint="name a file you may read") from (
            None
        )


def passphrase(file: Path | None, *, confirm: bool = False) -> bytes:
    """From ``file``, else ``VMRUN_KEY_PASSWORD`` or ``COSIGN_PASSWORD``, else the terminal."""
    if file is not None:
        try:
            with file.open("rb") as stream:
                return stream.read(_LARGEST).partition(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise UsageError(
                f"--passphrase-file {file}: {error.strerror}", hint="name a file you may read"
            ) from None
    for name in _VARIABLES:
        if name in os.environ:
            return os.fsencode(os.environ[name])
    if not sys.stdin.isatty():
        raise UsageError(
            "the key needs a passphrase, and there is no terminal to ask at",
            hint=f"give --passphrase-file, or set {_VARIABLES[0]}",
        )
    text: str = typer.prompt(
        "Passphrase of the key", hide_input=True, confirmation_prompt=confirm, err=True
    )
    return text.encode()


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="choose another --out"
        ) from None
