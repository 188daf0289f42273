"""Writing policies for people: the first one, and one more scope."""

from __future__ import annotations

import base64
import json

from vmrun.model.errors import UsageError
from vmrun.model.image import Transport
from vmrun.policy.identity import DockerName
from vmrun.policy.scopes import bad_scope
from vmrun.policy.signature_policy import parse_policy

FIRST_POLICY = b'{\n  "default": [\n    {\n      "type": "reject"\n    }\n  ]\n}\n'
FIRST_RULES = b"""\
# Trust rules: see docs/reference/trust-rules.md
version = 1

[ledger]
downgrade = "refuse"       # an image older than the one that was accepted before is refused

[scan]
required = true            # only images that pass a scan run
max_severity = "medium"    # the highest severity that passes
fixed_only = false         # true: findings without a fix pass
max_scan_age = "24h"
max_db_age = "7d"

# [[scan.exceptions]]
# id = "CVE-2026-0001"
# reason = "the affected function is not called"
# expires = 2027-01-31T00:00:00Z

# [[revoked.keys]]
# id = "sha256:..."
# reason = "the laptop that held it was stolen"
"""


def allow(
    policy: bytes,
    where: str,
    *,
    transport: str,
    scope: str,
    keys: list[bytes],
    repository: str = "",
    reference: str = "",
) -> bytes:
    """``policy`` with one more scope, in which a signature by any of ``keys`` (PEM) is required.

    Raises :class:`UsageError` for a scope that cannot match or has requirements already, and
    :class:`SettingsError` when ``policy`` itself is malformed.
    """
    parse_policy(policy, where)
    if transport not in (Transport.DOCKER, Transport.OCI):
        raise UsageError(
            f"images of {transport[:80]!r} keep no signatures, so none could be required",
            hint="push them to a registry or copy them into an OCI layout, and sign them there",
        )
    if reason := bad_scope(transport, scope):
        raise UsageError(f"scope {scope[:200]!r} {reason}", hint="see docs/reference/policy.md")
    identity = _identity(transport, repository, reference)
    document = json.loads(policy)
    scopes = document.setdefault("transports", {}).setdefault(transport, {})
    if scope in scopes:
        raise UsageError(
            f"{where} has requirements for {transport} {scope!r} already",
            hint="edit the file: all of a scope's requirements must be met",
        )
    data = [base64.b64encode(pem).decode() for pem in keys]
    requirement: dict[str, object] = {"type": "sigstoreSigned"}
    requirement |= {"keyData": data[0]} if len(data) == 1 else {"keyDatas": data}
    if identity:
        requirement["signedIdentity"] = identity
    scopes[scope] = [requirement]
    changed = (json.dumps(document, indent=2) + "\n").encode()
    parse_policy(changed, where)
    return changed


def _identity(transport: str, repository: str, reference: str) -> dict[str, str] | None:
    if repository and reference:
        raise UsageError("--identity-repository and --identity-reference exclude each other")
    if repository:
        name = DockerName.parse(repository)
        if name is None or name.tag or name.digest:
            raise UsageError(f"not HOST/REPOSITORY: {repository[:200]!r}")
        return {"type": "exactRepository", "dockerRepository": repository}
    if reference:
        name = DockerName.parse(reference)
        if name is None or not (name.tag or name.digest):
            raise UsageError(f"not HOST/REPOSITORY:TAG: {reference[:200]!r}")
        return {"type": "exactReference", "dockerReference": reference}
    if transport != Transport.DOCKER:
        raise UsageError(
            f"images of {transport}: have no name of their own that a signature could be for",
            hint="say which name they are signed as: --identity-repository HOST/REPOSITORY",
        )
    return None
