"""One repository of a registry: the end points of the OCI distribution specification 1.1.

Only a 404 means that something is absent. A refusal, an overload or a status that the
specification does not know is an error, whatever was asked for.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import quote, urlencode

from vmrun.image.document import parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.manifest import INDEX_TYPES, MANIFEST_TYPES
from vmrun.image.registry.addresses import without_query
from vmrun.image.registry.auth import RegistryAuth
from vmrun.image.registry.credentials import find_credentials
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.response import Passing, Response
from vmrun.image.registry.transport import Body, Request, Transport
from vmrun.image.streams import Readable
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound, ImageTooLarge
from vmrun.model.image import Descriptor, Reference

_HUB, _HUB_ADDRESS = "docker.io", "registry-1.docker.io"
_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_PAGES = 32
_LARGE = 8 * MIB
"""Larger blobs are streamed in an upload's PATCH, as docker sends all of them."""
_UPLOADS = 3
_PAUSE = 1.0
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
        self.progress = options.progress
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
            if response.absent():
                return None
            if response.status != 200:
                self._refuse(response, what)
            media_type = response.header("Content-Type").partition(";")[0].strip().lower()
            said = response.header("Docker-Content-Digest")
            data = response.document(self.limits.document)
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
        with self._send("HEAD", f"blobs/{digest}", bare=True) as response:
            if response.status != 200 and not response.absent():
                self._refuse(response, f"blob {digest} of {self}")
            return response.status == 200

    @contextmanager
    def blob(self, blob: Descriptor) -> Iterator[Readable]:
        """A blob's bytes, for the caller to hash. :class:`ImageNotFound` if there is none."""
        what = f"blob {blob.digest} of {self}"
        with self._send("GET", f"blobs/{blob.digest}", bare=True) as response:
            if response.absent():
                raise ImageNotFound(
                    f"{what}: the registry does not have it",
                    hint="the image is incomplete there; push it again",
                )
            if response.status != 200:
                self._refuse(response, what)
            yield response

    def referrers(self, subject: Digest) -> list[bytes] | None:
        """The pages of the referrers API, each an image index; None if it has no such API."""
        return self._pages(f"referrers/{subject}", f"referrers of {subject} in {self}")

    def tags(self) -> tuple[str, ...]:
        """All tags, in the registry's order. :class:`ImageNotFound` without the repository."""
        what = f"tags of {self}"
        pages = self._pages("tags/list?" + urlencode({"n": 1000}), what)
        if pages is None:
            raise ImageNotFound(f"{self} does not exist", hint="check its name")
        return tuple(
            tag for page in pages for tag in parse_object(page, what, self.limits).texts("tags")
        )

    def _pages(self, path: str, what: str) -> list[bytes] | None:
        """All pages of a list, together no larger than a document may be; None if the registry
        has no such list."""
        pages: list[bytes] = []
        left = self.limits.document
        for _ in range(_PAGES):
            with self._send("GET", path) as response:
                if not pages and response.absent():
                    return None
                if response.status != 200:
                    self._refuse(response, what)
                pages.append(response.document(left))
                following = _NEXT.search(response.header("Link"))
                if following is None:
                    return pages
                path = self._transport.onward(following[1], response.url)
            left -= len(pages[-1])
            if not self._transport.is_own(path):
                raise ImageError(
                    f"{what}: the next page is at another host, {without_query(path)!r}",
                    hint="ask who runs the registry",
                )
        raise ImageTooLarge(f"{what}: more than {_PAGES} pages", hint="ask who runs the registry")

    # --- writing ---------------------------------------------------------------------------

    def put_blob(self, blob: Descriptor, body: Body, *, mount_from: str = "") -> bool:
        """Upload a blob; whether its bytes had to be sent.

        With ``mount_from``, another repository of the same registry, the registry may take the
        blob from there instead (distribution-spec, "Mounting a blob from another repository").
        """
        for more in reversed(range(_UPLOADS)):
            location = self._begin_upload(blob, mount_from)
            if location is None:
                return False
            try:
                self._upload(blob, body, location)
                return True
            except Passing as failure:
                # What arrived of it is unknown, so that it is begun anew.
                if not more:
                    raise ImageError(failure.message, hint=failure.hint) from None
                time.sleep(_PAUSE)
        raise AssertionError

    def _begin_upload(self, blob: Descriptor, mount_from: str) -> str | None:
        """Where to upload to; None when the blob was mounted."""
        fields = {"mount": str(blob.digest), "from": mount_from} if mount_from else {}
        path = "blobs/uploads/" + (f"?{urlencode(fields)}" if fields else "")
        with self._send("POST", path, {"Content-Length": "0"}, b"") as response:
            if fields and response.status == 201:
                return None
            return self._location(response, f"blob {blob.digest} to {self}")

    def _upload(self, blob: Descriptor, body: Body | bytes, location: str) -> None:
        what = f"blob {blob.digest} to {self}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(blob.size),
        }
        if blob.size > _LARGE:
            with self._send("PATCH", location, headers, body, once=True) as response:
                location = self._location(response, what)
            headers["Content-Length"], body = "0", b""
        mark = "&" if "?" in location else "?"
        path = f"{location}{mark}{urlencode({'digest': str(blob.digest)})}"
        with self._send("PUT", path, headers, body, once=True) as response:
            if response.status != 201:
                self._refuse(response, what)

    def _location(self, response: Response, what: str) -> str:
        location = response.header("Location")
        if response.status != 202 or not location:
            self._refuse(response, what)
        return self._transport.onward(location, response.url)

    def put_manifest(self, manifest: Descriptor, data: bytes, name: str | Digest) -> str:
        """Store a manifest under a tag or its digest; the subject whose list of referrers the
        registry says it has added it to, empty if none (the OCI-Subject header)."""
        headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(data))}
        what = f"manifest {name} to {self}"
        with self._send("PUT", f"manifests/{name}", headers, data) as response:
            if response.status not in (201, 202):
                self._refuse(response, what)
            said = response.header("Docker-Content-Digest")
            listed = response.header("OCI-Subject")
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
        *,
        once: bool = False,
        bare: bool = False,
    ) -> Iterator[Response]:
        if "://" not in path:
            path = f"/v2/{quote(self._name)}/{path}"
        follow = method in ("GET", "HEAD")
        request = Request(method, path, headers, body, follow, once, bare)
        with self._transport.send(request, self._auth) as response:
            yield response

    def _refuse(self, response: Response, what: str) -> NoReturn:
        host, status, problem = self.reference.host, response.status, response.problem()
        if not response.direct:
            raise ImageError(
                f"{what}: the registry leads to {without_query(response.url)!r}, which answers"
                f" {status} {problem}".rstrip(),
                hint="ask who runs the registry",
            )
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


def _check(data: bytes, digest: Digest, what: str) -> None:
    hasher = digest.hasher()
    hasher.update(data)
    if hasher.hexdigest() != digest.hex:
        raise DigestMismatch(
            f"{what}: its bytes hash to {digest.algorithm}:{hasher.hexdigest()}",
            hint="the answer was changed on its way, or the registry is damaged",
        )
