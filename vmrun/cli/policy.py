"""``vmrun policy``: which images may run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json
from vmrun.cli.policy_words import requirements, rules_of
from vmrun.model.errors import StateError
from vmrun.model.image import Transport

if TYPE_CHECKING:
    from vmrun.model.image import Reference
    from vmrun.trust.files import TrustLayer
    from vmrun.trust.ledger import Ledger

app = typer.Typer(
    help="Which images may run: signature policies, trust rules and the ledger.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("init")
def init_command(
    policy: i.Policy = None, trust_rules: i.TrustRules = None, json: Json = False
) -> None:
    """Write a policy that rejects everything, and trust rules with a scan gate, to start from."""
    from vmrun.policy.edit import FIRST_POLICY, FIRST_RULES

    files = i.settings_with(policy=policy, trust_rules=trust_rules).trust_files[-1]
    written = []
    for path, text in ((files.policy, FIRST_POLICY), (files.rules, FIRST_RULES)):
        with _editing(path):
            if path.exists() or path.is_symlink():
                note(f"{path} is there already")
                continue
            _write(path, text)
        written.append(path)
    _say(written, {"written": written}, json=json)


@app.command("allow", no_args_is_help=True)
def allow_command(
    scope: Annotated[
        str, typer.Argument(help="HOST, HOST/PATH, HOST/PATH:TAG, *.DOMAIN; a path for oci.")
    ],
    key: Annotated[list[Path], typer.Option(help="A public key; of several any will do.")],
    transport: Annotated[
        Transport, typer.Option(help="Where the scope's images come from.")
    ] = Transport.DOCKER,
    identity_repository: Annotated[
        str, typer.Option(help="Signatures for HOST/REPOSITORY count, whatever the tag.")
    ] = "",
    identity_reference: Annotated[
        str, typer.Option(help="Only signatures for HOST/REPOSITORY:TAG count.")
    ] = "",
    policy: i.Policy = None,
    json: Json = False,
) -> None:
    """Let images of a scope run if a key has signed them."""
    from vmrun.policy.edit import FIRST_POLICY, allow
    from vmrun.policy.signature_policy import LARGEST_POLICY
    from vmrun.trust.files import load_key_file, read_trusted

    keys = [load_key_file(file) for file in key]
    if transport is Transport.OCI and scope:
        scope = os.path.realpath(scope)  # the path that images are looked up by
    path = i.settings_with(policy=policy).trust_files[-1].policy
    with _editing(path):
        before = read_trusted(path, LARGEST_POLICY, "policy")
        after = allow(
            before if before is not None else FIRST_POLICY,
            f"policy {str(path)!r}",
            transport=transport,
            scope=scope,
            keys=[loaded.pem for loaded in keys],
            repository=identity_repository,
            reference=identity_reference,
        )
        _write(path, after)
    said = {"policy": path, "transport": transport, "scope": scope}
    _say([path], {**said, "keys": [loaded.key_id for loaded in keys]}, json=json)


@app.command("check")
def check_command(
    policy: i.Policy = None, trust_rules: i.TrustRules = None, json: Json = False
) -> None:
    """Read every policy, rule and key, and the ledger; fails with the first error."""
    from vmrun.trust.ledger import Ledger

    layers = _layers(policy, trust_rules)
    for layer in layers:
        requirements(layer, None)  # loads every key
    Ledger(i.settings_with().directories.ledger).entries()
    _warn(layers, None)
    files = [file for layer in layers for file in layer.files]
    said = [{"file": name, "digest": digest} for name, digest in files]
    _say([f"{name}  {digest}" for name, digest in files], said, json=json)


@app.command("show")
def show_command(
    image: Annotated[
        str | None, typer.Argument(help="Which requirements apply to this image.")
    ] = None,
    policy: i.Policy = None,
    trust_rules: i.TrustRules = None,
    json: Json = False,
) -> None:
    """Print what must be true of an image, or of all, and what the ledger has seen."""
    from vmrun.image.reference import parse_reference
    from vmrun.policy.identity import DockerName
    from vmrun.run.images import absolute
    from vmrun.trust.downgrade import date
    from vmrun.trust.ledger import Ledger

    reference = absolute(parse_reference(image)) if image else None
    layers = _layers(policy, trust_rules)
    ledger = Ledger(i.settings_with().directories.ledger).entries()
    name = DockerName.of(reference) if reference else None
    if name is not None:
        ledger = tuple(entry for entry in ledger if entry.name == str(name))
    _warn(layers, reference)
    if json:
        print_json(
            {
                "layers": [
                    {
                        "files": layer.files,
                        "requirements": requirements(layer, reference),
                        "rules": layer.rules,
                    }
                    for layer in layers
                ],
                "ledger": ledger,
            }
        )
        return
    for layer in layers:
        print(", ".join(name for name, _ in layer.files))
        for line in requirements(layer, reference):
            print(f"  {line}")
        for line in rules_of(layer):
            print(f"  {line}")
    for entry in ledger:
        print(f"ledger: {entry.name} {entry.digest} signed {date(entry.signed_at)}")


@app.command("forget", no_args_is_help=True)
def forget_command(
    name: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG, as the ledger has it.")],
    json: Json = False,
) -> None:
    """Remove a name from the ledger, so that an older image of it is accepted again."""
    from vmrun.run.remember import Memory
    from vmrun.trust.ledger import Ledger

    directories = i.settings_with().directories
    ledger = Ledger(directories.ledger)
    # The journal comes first: what it cannot take down must not happen.
    if _is_known(ledger, name):
        Memory(directories).forgets(name)
    if not ledger.forget(name):
        raise StateError(f"the ledger has no {name!r}", hint="see 'vmrun policy show'")
    _say([name], {"forgotten": name}, json=json)


def _is_known(ledger: Ledger, name: str) -> bool:
    try:
        return ledger.newest(name) is not None
    except StateError:  # a damaged entry is one that can be forgotten
        return True


def _layers(policy: Path | None, trust_rules: Path | None) -> tuple[TrustLayer, ...]:
    from vmrun.trust.files import load_layers

    settings = i.settings_with(policy=policy, trust_rules=trust_rules)
    return load_layers(settings.trust_files)


def _warn(layers: tuple[TrustLayer, ...], reference: Reference | None) -> None:
    """Nobody should overlook that something is not verified."""
    from vmrun.policy.signature_policy import AcceptAnything

    for layer in layers:
        if layer.policy is None:
            continue
        found = layer.policy.everything()
        if reference is not None:
            found = (layer.policy.requirements(reference),)
        for scope, wanted in found:
            if all(isinstance(requirement, AcceptAnything) for requirement in wanted):
                note(f"WARNING: {layer.name} accepts anything, signed or not ({scope})")


def _say(lines: Iterable[object], value: object, *, json: bool) -> None:
    if json:
        print_json(value)
        return
    for line in lines:
        print(line)


@contextmanager
def _editing(path: Path) -> Iterator[None]:
    """One editor of the folder's files at a time, so that no change is lost."""
    from vmrun.image.durable import locked_directory

    with ExitStack() as held:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked_directory(path.parent))
        yield


def _write(path: Path, data: bytes) -> None:
    from vmrun.image.durable import replace_file

    with _writing(path):
        replace_file(path.resolve(), data, mode=0o644)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="name another file with --policy"
        ) from None
