"""``vmrun image verify``."""

from __future__ import annotations

import base64
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrun.cli import image_options as i
from vmrun.cli.output import note, print_json
from vmrun.image.reference import parse_reference
from vmrun.model.errors import UsageError

if TYPE_CHECKING:
    from vmrun.trust.files import TrustLayer


def verify_command(
    image: Annotated[str, typer.Argument(help="The image, by any transport.")],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Ask only whether this public key signed it under this very name;"
            " policies are not looked at. May be repeated: any of them will do."
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="With --key: the HOST/REPOSITORY:TAG that must have been signed."),
    ] = None,
    plain_http: i.PlainHttp = False,
    cert_dir: i.CertDir = None,
    authfile: i.AuthFile = None,
    policy: i.Policy = None,
    trust_rules: i.TrustRules = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Decide as 'vmrun run' would: hash every byte, check signatures against the policies."""
    reference = parse_reference(image)
    if identity is not None and not key:
        raise UsageError("--identity needs --key", hint="policies name identities themselves")
    settings = i.settings_with(
        cert_dir=cert_dir, authfile=authfile, policy=policy, trust_rules=trust_rules
    )

    from vmrun.run.images import find_briefly, verify
    from vmrun.run.remember import Memory
    from vmrun.trust.downgrade import date

    options = i.image_options(settings, plain_http=plain_http)
    layers = only_keys(key, identity) if key else options.layers()
    directories = settings.directories
    with find_briefly(reference, directories, options) as found:
        verified = verify(reference, found.digests, layers, directories, options)
        fetched = found.fetch()
    Memory(directories).verified(reference, fetched.digest, verified.trust)
    for text in verified.notes:
        note(text)
    if json:
        print_json({"reference": reference, "digests": found.digests, "trust": verified.trust})
        return
    print(f"{reference}")
    for digest in found.digests.lineage:
        print(f"  → {digest}")
    for claim in verified.trust.claims:
        when = "at no known time" if claim.signed_at is None else date(claim.signed_at)
        print(f"  signed as {claim.identity} by key {claim.key_id} ({claim.format}, {when})")
    for name, digest in verified.trust.policies:
        print(f"  policy {name} ({digest})")
    for requirement in verified.trust.requirements:
        print(f"  satisfies {requirement}")


def only_keys(paths: list[Path], identity: str | None) -> tuple[TrustLayer, ...]:
    """A layer that requires a signature by any of the keys, and nothing else, not even that it is
    the newest; for ``identity`` or else for the very name by which the image was asked for."""
    from vmrun.model.digest import Digest
    from vmrun.policy.identity import DockerName
    from vmrun.policy.signature_policy import parse_policy
    from vmrun.policy.trust_rules import Downgrade, TrustRules
    from vmrun.trust.files import TrustLayer, load_key_file

    keys = [base64.b64encode(load_key_file(path).pem).decode() for path in paths]
    requirement: dict[str, object] = {"type": "sigstoreSigned", "keyDatas": keys}
    if identity is not None:
        name = DockerName.parse(identity)
        if name is None or not name.exact:
            raise UsageError(
                f"--identity {identity[:200]!r} is not a full name",
                hint="write HOST/REPOSITORY:TAG, as it was signed",
            )
        requirement["signedIdentity"] = {"type": "exactReference", "dockerReference": identity}
    text = jsonlib.dumps({"default": [requirement]}).encode()
    files = (("--key", Digest.of(text)),)
    return (TrustLayer(parse_policy(text, "--key"), TrustRules(downgrade=Downgrade.OFF), files),)
