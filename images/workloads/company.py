"""A company for the demo: a registry with a password, a signing key, a policy, a scan gate.

All of it is in one directory, named to vmrun by its environment, so that what the user has
configured stays as it is.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry import Registry, company_registry

_REPOSITORY = Path(__file__).resolve().parents[2]
_DEADLINE = 300

# One advisory of the Python Packaging Advisory Database, as OSV databases hold it.
_ADVISORY = {
    "id": "PYSEC-2018-28",
    "aliases": ["CVE-2018-18074", "GHSA-x84v-xcm2-53pg"],
    "modified": "2021-06-16T00:03:24Z",
    "summary": "requests sends credentials on when it is redirected from https to http",
    "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"}],
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "requests"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.20.0"}]}],
        }
    ],
}

_RULES = """\
version = 1

[scan]
required = true
max_severity = "medium"
# The demo brings one old advisory along; a real database is fetched anew every day.
max_db_age = "36500d"
"""


class CommandFailed(Exception):
    """vmrun did not do what the demo needs it to do."""


@dataclass(frozen=True)
class Finished:
    """A vmrun that has ended."""

    status: int
    output: str
    errors: str


@dataclass(frozen=True)
class Company:
    """``environment`` is what vmrun is told of it all."""

    registry: Registry
    directory: Path
    environment: Mapping[str, str]

    @property
    def key(self) -> Path:
        """The private key; the public one has ``.pub`` in place of ``.key``."""
        return self.directory / "release.key"

    def name(self, repository: str) -> str:
        """The full name of a repository, with its tag."""
        return f"{self.registry.host}/{repository}"

    def vmrun(self, *arguments: str) -> Finished:
        """Run vmrun to its end, whatever that is."""
        done = subprocess.run(
            [sys.executable, "-m", "vmrun", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DEADLINE,
            check=False,
            cwd=_REPOSITORY,
            env={**os.environ, **self.environment},
        )
        return Finished(done.returncode, done.stdout.strip(), done.stderr.strip())

    def do(self, *arguments: str) -> str:
        """Run vmrun; its output. Raises :class:`CommandFailed` unless it ends well."""
        done = self.vmrun(*arguments)
        if done.status != 0:
            raise CommandFailed(f"vmrun {' '.join(arguments)} failed: {done.errors}")
        return done.output

    def publish(self, layout: str, repository: str) -> str:
        """Push a layout's image and sign it there; its name with the tag."""
        name = self.name(repository)
        self.do("image", "push", "--quiet", layout, name)
        self.do("image", "sign", "--key", str(self.key), name)
        return name


@contextmanager
def found_company(directory: Path) -> Iterator[Company]:
    """A company with a running registry and a new key, whose policy lets signed images of
    ``demo/`` run."""
    directory.mkdir(parents=True, exist_ok=True)
    with company_registry(directory / "registry") as registry:
        advisories, rules = directory / "advisories", directory / "trust.toml"
        _write_advisories(advisories / "PyPI" / "all.zip")
        rules.write_text(_RULES)
        company = Company(
            registry,
            directory,
            {
                "VMRUN_POLICY": str(directory / "policy.json"),
                "VMRUN_TRUST_RULES": str(rules),
                "VMRUN_ADVISORIES": str(advisories),
                "VMRUN_CERT_DIR": str(registry.cert_dir),
                "VMRUN_AUTH_FILE": str(registry.auth_file),
                "VMRUN_KEY_PASSWORD": secrets.token_urlsafe(16),
            },
        )
        company.do("key", "generate", "--out", str(company.key.with_suffix("")))
        public = str(company.key.with_suffix(".pub"))
        policy = company.environment["VMRUN_POLICY"]
        company.do("policy", "allow", company.name("demo"), "--key", public, "--policy", policy)
        yield company


def _write_advisories(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{_ADVISORY['id']}.json", json.dumps(_ADVISORY))
