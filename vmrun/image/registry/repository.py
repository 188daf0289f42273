"""One repository of a registry: the end points of the OCI distribution specification 1.1.

Only a 404 means that something is absent. A refusal, an overload or a status that the
specification does not know is an error, whatever was asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import quote, urlencode

from vmrun.image.document import parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.manifest import INDEX_TYPES, MANIFEST_TYPES
from vmrun.image.registry.auth import RegistryAuth
from vmrun.image.registry.credentials import find_credentials
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.transport import Body, Request, Response, Transport
from vmrun.image.streams import Readable
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound, ImageTooLarge
from vmrun.model.image import Descriptor, Reference

_HUB, _HUB_ADDRESS = "docker.io", "registry-1.docker.io"
_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_PAGES = 32
_LARGE = 8 * MIB
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


class Repository:
    """``HOST[:PORT]/REPOSITORY``; threads may share it."""

    def __init__(
        self,
        reference: Reference,
        options: RegistryOptions,
        *,
        push: bool = False,
        limits: ImageLimits | None = None,
    ) -> None:
        self.reference = reference
        self.limits = limits or ImageLimits()
        host, name = reference.host, reference.repository
        address = _HUB_ADDRESS if host == _HUB else host
        self._transport = Transport(host, address, options, self.limits)
        self._name = name
        access = "pull,push" if push else "pull"
        self._auth = RegistryAuth(
            self._transport,
            find_credentials(host, name, options.auth_file, os.environ),
            f"repository:{name}:{access}",
        )

    def __str__(self) -> str:
        return self.reference.path

    @property
    def account(self) -> str:
        """The name under which the registry has let us in; empty if it did not ask."""
        return self._auth.account

    # --- reading ---------------------------------------------------------------------------

    def manifest(self, name: str | Digest) -> tuple[Descriptor, bytes] | None:
        """The manifest or index under a tag or digest, its bytes hashed; None if there is none.

        With a tag the digest is that of the bytes: what a header says of it is compared, never
        believed.
        """
        headers = {"Accept": _ACCEPT + ", application/vnd.oci.artifact.manifest.v1+json"}
        what = f"manifest {name} of {self}"
        with self._send("GET", f"manifests/{name}", headers) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                self._refuse(response, what)
            media_type = response.header("Content-Type").partition(";")[0].strip().lower()
            said = response.header("Docker-Content-Digest")
            data = _document(response, self.limits.document, what)
        digest = name if isinstance(name, Digest) else Digest.of(data)
        _check(data, digest, what)
        if said and isinstance(name, str) and said.startswith("sha256:") and said != str(digest):
            raise DigestMismatch(
                f"{what}: the registry calls it {said[:80]}, its bytes hash to {digest}",
                hint="the answer was changed on its way, or the registry is broken",
            )
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ImageError(f"{what}: its media type is {media_type[:80]!r}")
        return Descriptor(media_type, digest, len(data)), data

    def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        with self._send("HEAD", f"blobs/{digest}") as response:
            if response.status not in (200, 404):
                self._refuse(response, f"blob {digest} of {self}")
            return response.status == 200

    @contextmanager
    def blob(self, blob: Descriptor) -> Iterator[Readable]:
        """A blob's bytes, for the caller to hash. :class:`ImageNotFound` if there is none."""
        what = f"blob {blob.digest} of {self}"
        with self._send("GET", f"blobs/{blob.digest}") as response:
            if response.status == 404:
                raise ImageNotFound(
                    f"{what}: the registry does not have it",
                    hint="the image is incomplete there; push it again",
                )
            if response.status != 200:
                self._refuse(response, what)
            yield response

    def referrers(self, subject: Digest) -> list[bytes] | None:
        """The pages of the referrers API, each an image index; None if it has no such API."""
        pages: list[bytes] = []
        path = f"referrers/{subject}"
        what = f"referrers of {subject} in {self}"
        for _ in range(_PAGES):
            with self._send("GET", path) as response:
                if response.status == 404 and not pages:
                    return None
                if response.status != 200:
                    self._refuse(response, what)
                pages.append(_document(response, self.limits.document, what))
                following = _NEXT.search(response.header("Link"))
            if following is None:
                return pages
            path = following[1]
        raise ImageTooLarge(f"{what}: more than {_PAGES} pages", hint="ask who runs the registry")

    def tags(self) -> tuple[str, ...]:
        """All tags, in the registry's order. :class:`ImageNotFound` without the repository."""
        found: list[str] = []
        path, what = "tags/list?" + urlencode({"n": 1000}), f"tags of {self}"
        for _ in range(_PAGES):
            with self._send("GET", path) as response:
                if response.status == 404:
                    raise ImageNotFound(f"{self} does not exist", hint="check its name")
                if response.status != 200:
                    self._refuse(response, what)
                data = _document(response, self.limits.document, what)
                following = _NEXT.search(response.header("Link"))
            found += parse_object(data, what, self.limits).texts("tags")
            if following is None:
                return tuple(found)
            path = following[1]
        raise ImageTooLarge(f"{what}: more than {_PAGES} pages")

    # --- writing ---------------------------------------------------------------------------

    def put_blob(self, blob: Descriptor, body: Body) -> None:
        """Upload a blob: an upload is opened, and closed with the bytes and their digest."""
        what = f"blob {blob.digest} to {self}"
        with self._send("POST", "blobs/uploads/", {"Content-Length": "0"}, b"") as response:
            location = response.header("Location")
            if response.status != 202 or not location:
                self._refuse(response, what)
        mark = "&" if "?" in location else "?"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(blob.size),
        }
        path = f"{location}{mark}{urlencode({'digest': str(blob.digest)})}"
        with self._send("PUT", path, headers, body) as response:
            if response.status != 201:
                self._refuse(response, what)

    def put_manifest(self, manifest: Descriptor, data: bytes, name: str | Digest) -> bool:
        """Store a manifest under a tag or its digest; whether the registry has itself listed it
        among its subject's referrers (the OCI-Subject header)."""
        headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(data))}
        what = f"manifest {name} to {self}"
        with self._send("PUT", f"manifests/{name}", headers, data) as response:
            if response.status not in (201, 202):
                self._refuse(response, what)
            said = response.header("Docker-Content-Digest")
            listed = bool(response.header("OCI-Subject"))
        if said.startswith("sha256:") and said != str(manifest.digest):
            raise DigestMismatch(
                f"{what}: the registry stored {said[:80]}, not {manifest.digest}",
                hint="ask who runs the registry",
            )
        return listed

    # --- the wire --------------------------------------------------------------------------

    @contextmanager
    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | Body | None = None,
    ) -> Iterator[Response]:
        if not path.startswith(("/", "http://", "https://")):
            path = f"/v2/{quote(self._name)}/{path}"
        follow = method in ("GET", "HEAD")
        request = Request(method, path, headers, body, follow)
        with self._transport.send(request, self._auth) as response:
            yield response

    def _refuse(self, response: Response, what: str) -> NoReturn:
        host, status, problem = self.reference.host, response.status, response.problem()
        if status in (401, 403):
            known = self._auth.account
            raise ImageError(
                f"{what}: the registry refuses {'user ' + known if known else 'us'}"
                f" (status {status}) {problem}".rstrip(),
                hint=f"log in with: docker login {host}; or ask for access to {self}",
            )
        raise ImageError(
            f"{what}: the registry answers {status} {problem}".rstrip(),
            hint="ask who runs the registry",
        )


def _document(response: Response, limit: int, what: str) -> bytes:
    size = response.header("Content-Length")
    if size.isdecimal() and int(size[:20]) > limit:
        raise ImageTooLarge(f"{what}: {size[:20]} bytes, the limit is {limit}")
    return response.document(limit)


def _check(data: bytes, digest: Digest, what: str) -> None:
    hasher = digest.hasher()
    hasher.update(data)
    if hasher.hexdigest() != digest.hex:
        raise DigestMismatch(
            f"{what}: its bytes hash to {digest.algorithm}:{hasher.hexdigest()}",
            hint="the answer was changed on its way, or the registry is damaged",
        )
