"""``vmrun policy``: which images may run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json
from vmrun.model.errors import StateError
from vmrun.model.image import Transport

if TYPE_CHECKING:
    from vmrun.model.image import Reference
    from vmrun.trust.files import TrustLayer

app = typer.Typer(
    help="Which images may run: signature policies, trust rules and the ledger.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("init")
def init_command(policy: i.Policy = None, trust_rules: i.TrustRules = None) -> None:
    """Write a policy that rejects everything, and trust rules with a scan gate, to start from."""
    from vmrun.policy.edit import FIRST_POLICY, FIRST_RULES

    files = i.settings_with(policy=policy, trust_rules=trust_rules).trust_files[-1]
    for path, text in ((files.policy, FIRST_POLICY), (files.rules, FIRST_RULES)):
        if path.exists():
            note(f"{path} is there already")
            continue
        _write(path, text, new=True)
        print(path)


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
) -> None:
    """Let images of a scope run if a key has signed them."""
    from vmrun.policy.edit import FIRST_POLICY, allow
    from vmrun.policy.signature_policy import LARGEST_POLICY
    from vmrun.trust.files import load_key_file, read_trusted

    path = i.settings_with().trust_files[-1].policy if policy is None else policy.absolute()
    before = read_trusted(path, LARGEST_POLICY, "policy")
    after = allow(
        before if before is not None else FIRST_POLICY,
        f"policy {str(path)!r}",
        transport=transport,
        scope=scope,
        keys=[load_key_file(file).pem for file in key],
        repository=identity_repository,
        reference=identity_reference,
    )
    _write(path, after, new=before is None)
    print(path)


@app.command("check")
def check_command(policy: i.Policy = None, trust_rules: i.TrustRules = None) -> None:
    """Read every policy, rule and key; fails with the first error."""
    for layer in _layers(policy, trust_rules):
        for name, digest in layer.files:
            print(f"{name}  {digest}")
        _keys(layer)


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
    from vmrun.trust.ledger import Ledger

    reference = parse_reference(image) if image else None
    layers = _layers(policy, trust_rules)
    ledger = Ledger(i.settings_with().directories.ledger).entries()
    if json:
        print_json(
            {
                "layers": [
                    {
                        "files": layer.files,
                        "requirements": _requirements(layer, reference),
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
        for line in _requirements(layer, reference):
            print(f"  {line}")
        for line in _rules(layer):
            print(f"  {line}")
    for entry in ledger:
        signed = datetime.fromtimestamp(entry.signed_at, UTC).isoformat()
        print(f"ledger: {entry.name} {entry.digest} signed {signed}")


@app.command("forget", no_args_is_help=True)
def forget_command(
    name: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG, as the ledger has it.")],
) -> None:
    """Remove a name from the ledger, so that an older image of it is accepted again."""
    from vmrun.trust.ledger import Ledger

    if not Ledger(i.settings_with().directories.ledger).forget(name):
        raise StateError(f"the ledger has no {name!r}", hint="see 'vmrun policy show'")
    print(name)


def _layers(policy: Path | None, trust_rules: Path | None) -> tuple[TrustLayer, ...]:
    from vmrun.trust.files import load_layers

    settings = i.settings_with(policy=policy, trust_rules=trust_rules)
    return load_layers(settings.trust_files)


def _requirements(layer: TrustLayer, reference: Reference | None) -> list[str]:
    from vmrun.policy.signature_policy import AcceptAnything, Requirement, Signed
    from vmrun.run.images import absolute
    from vmrun.trust.files import load_key

    def words(scope: str, requirement: Requirement) -> str:
        if isinstance(requirement, AcceptAnything):
            return f"{scope}: {requirement}  (!! nothing is verified)"
        if not isinstance(requirement, Signed):
            return f"{scope}: {requirement}"
        keys = ", ".join(load_key(source).key_id for source in requirement.keys)
        return f"{scope}: signed by {keys} as {requirement.identity}"

    if layer.policy is None:
        return ["(no policy beside these rules)"]
    if reference is not None:
        scope, found = layer.policy.requirements(absolute(reference))
        return [words(scope, requirement) for requirement in found]
    lines = [words("default", requirement) for requirement in layer.policy.default]
    for transport, scopes in layer.policy.transports.items():
        for scope, requirements in scopes.items():
            lines += [words(f"{transport}: {scope or '(all)'}", r) for r in requirements]
    return lines


def _rules(layer: TrustLayer) -> list[str]:
    rules = layer.rules
    lines = [f"revoked key {key}: {reason}" for key, reason in rules.revoked_keys.items()]
    lines += [f"revoked {digest}: {reason}" for digest, reason in rules.revoked_digests.items()]
    lines += [f"{t.signatures} keys must agree below {t.scope}" for t in rules.thresholds]
    if rules.scan is not None and rules.scan.required:
        lines.append(f"a scan must find nothing above {rules.scan.max_severity.word}")
    lines += [f"catalogue {c.name}: {', '.join(c.scopes)}" for c in rules.catalogues]
    return lines


def _keys(layer: TrustLayer) -> None:
    """Load every key, so that an unreadable one is found before it matters."""
    _requirements(layer, None)


def _write(path: Path, data: bytes, *, new: bool) -> None:
    from vmrun.image.durable import replace_file

    try:
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode=0o644)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="name another file with --policy"
        ) from None
