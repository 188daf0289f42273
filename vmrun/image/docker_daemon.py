"""Images in a local Docker daemon, fetched as ``docker save`` would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vmrun.image.docker_archive import DockerArchiveSource
from vmrun.image.files import ArchiveFiles
from vmrun.image.layout import spool
from vmrun.image.limits import ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    import docker
    import requests

_CONNECT_SECONDS = 10
_READ_SECONDS = 120
"""How long the daemon may be silent; before the first byte it may have to pack layers."""


@contextmanager
def open_daemon_image(
    name: str, scratch: Path, limits: ImageLimits
) -> Iterator[DockerArchiveSource]:
    """An image of the daemon that ``DOCKER_HOST`` names (else of the usual socket).

    The name is resolved to an id once and the image asked for by that, so that a tag which
    moves meanwhile does no harm.
    """
    with _daemon_errors(name):
        client = _connect()
    with client:
        with _daemon_errors(name):
            image_id = Digest.parse(client.inspect_image(name)["Id"])  # type: ignore[no-untyped-call]
        archive = f"of image {name!r} from the Docker daemon"
        stream = _Download(client, str(image_id), name)
        with spool(stream, scratch, limits.blobs, f"archive {archive}") as file:
            files = ArchiveFiles(file, archive, limits)
            yield DockerArchiveSource(files, None, limits, image_id=image_id)


def _connect() -> docker.APIClient:
    import docker
    from docker.utils import kwargs_from_env

    return docker.APIClient(timeout=_CONNECT_SECONDS, version="auto", **kwargs_from_env())


class _Download:
    """The daemon's answer as a stream. docker-py's own ``get_image`` would switch the read
    timeout off, and a daemon that hangs would hang the run."""

    def __init__(self, client: docker.APIClient, image_id: str, name: str) -> None:
        self._name = name
        with _daemon_errors(name):
            response: requests.Response = client.get(
                f"{client.base_url}/v{client.api_version}/images/{quote(image_id)}/get",
                stream=True,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            )
            response.raise_for_status()
        self._chunks = response.iter_content(1024 * 1024)
        self._left = b""

    def read(self, size: int, /) -> bytes:
        if not self._left:
            with _daemon_errors(self._name):
                self._left = next(self._chunks, b"")
        data, self._left = self._left[:size], self._left[size:]
        return data


@contextmanager
def _daemon_errors(name: str) -> Iterator[None]:
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.NotFound:
        raise ImageNotFound(
            f"the Docker daemon has no image {name!r}", hint="list its images with: docker images"
        ) from None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise ImageError(
            f"cannot get image {name!r} from the Docker daemon: {str(error)[:300]}",
            hint="check with: docker version; DOCKER_HOST names the daemon to use",
        ) from None
