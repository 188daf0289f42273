"""dockerd in one guest: the few calls that a run needs, through docker-py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vmrun.engine import guest
from vmrun.engine.archive import archive
from vmrun.engine.tunnel import Tunnel
from vmrun.model.errors import DeadlineExceeded, DigestMismatch, EngineError, VmrunError
from vmrun.model.image import Image
from vmrun.model.plan import Plan
from vmrun.planning.container_spec import docker_create
from vmrun.run.ports import Connection, TerminalSize

API_VERSION = "1.44"
"""Pinned: asking dockerd for its own would be a round trip. 25.0 and later speak it."""

_POLL = 0.25

_Result = TypeVar("_Result")


def _call(what: str, function: Callable[[], _Result]) -> _Result:
    """Run a call of docker-py; only :class:`VmrunError` leaves."""
    import requests
    from docker.errors import APIError, DockerException

    try:
        return function()
    except APIError as error:
        raise EngineError(f"dockerd cannot {what}: {error.explanation or error}") from error
    except requests.exceptions.Timeout as error:
        raise DeadlineExceeded(f"dockerd did not {what} in time") from error
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        raise EngineError(f"dockerd cannot {what}: {error}") from error


def _one_connection(path: Path, timeout: int) -> Any:
    """An adapter that keeps one connection for all calls: docker-py's own makes a pool for each
    path that is asked for, and each new connection is a command in the guest."""
    from docker.transport import UnixHTTPAdapter

    class Adapter(UnixHTTPAdapter):
        def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
            return super().get_connection("http+docker://localhost", proxies)

    return Adapter(f"http+unix://{path}", timeout)


class Daemon:
    """A client of one guest's dockerd; every call has a deadline."""

    def __init__(
        self, connection: Connection, timeout: float, *, scratch: Path | None = None
    ) -> None:
        # docker-py takes 0.2 s to import, which only a run with this engine should pay.
        import docker

        self._tunnel = Tunnel(connection, scratch)
        path = self._tunnel.path
        # Any: the published stubs leave half of these calls untyped.
        self._client: Any = docker.APIClient(
            base_url=f"unix://{path}", version=API_VERSION, timeout=int(timeout)
        )
        self._client.mount("http+docker://", _one_connection(path, int(timeout)))

    def wait_until_ready(self, timeout: float) -> None:
        """dockerd starts with the guest and takes its time."""
        import tenacity

        waiting = tenacity.Retrying(
            stop=tenacity.stop_after_delay(timeout),
            wait=tenacity.wait_fixed(_POLL),
            retry=tenacity.retry_if_exception_type(EngineError),
            reraise=True,
        )
        try:
            waiting(lambda: _call("answer", self._client.ping))
        except EngineError as error:
            raise DeadlineExceeded(
                f"dockerd was not ready within {timeout:g} s: {error}"
            ) from error

    def load(self, image: Image) -> int:
        """Send the image; returns the bytes of its blobs."""
        messages = _call("load the image", lambda: list(self._client.load_image(archive(image))))
        for message in messages:
            if reason := message.get("error"):
                raise _load_error(str(reason))
        blobs = {image.config_blob.digest: image.config_blob.size}
        blobs |= {layer.blob.digest: layer.blob.size for layer in image.layers}
        return sum(blobs.values())

    def check(self, image: Image) -> None:
        """What dockerd has under the config's digest is what the plan says."""
        expected = str(image.config_blob.digest)
        found = _call("find the image", lambda: self._client.inspect_image(expected))
        layers = (found.get("RootFS") or {}).get("Layers") or []
        if found.get("Id") != expected:
            raise DigestMismatch(f"dockerd loaded {found.get('Id')}, not {expected}")
        if layers != [str(layer.diff_id) for layer in image.layers]:
            raise DigestMismatch(f"dockerd loaded other layers than those of {expected}")

    def create(self, plan: Plan) -> str:
        """Create the plan's container; returns its id."""
        body = docker_create(
            plan.container,
            image_id=str(plan.image.config_blob.digest),
            volumes=plan.image.config.volumes,
            cgroup_parent=guest.cgroup_of(plan.run_id),
        )
        name = _name(plan)
        created = _call(
            "create the container",
            lambda: self._client.create_container_from_config(body, name=name),
        )
        if warnings := created.get("Warnings"):
            # dockerd warns of what it was told and will not do, a limit first of all.
            raise EngineError(f"dockerd would not keep to the plan: {warnings[0]}")
        return str(created["Id"])

    def remove(self, plan: Plan) -> None:
        """Remove the plan's container, if there is one."""
        from docker.errors import NotFound

        def remove() -> None:
            with contextlib.suppress(NotFound):
                self._client.remove_container(_name(plan), force=True, v=True)

        _call("remove the container", remove)

    def remove_image(self, image: Image) -> None:
        """Remove an image unless a container still uses it."""
        from docker.errors import APIError

        def remove() -> None:
            try:
                self._client.remove_image(str(image.config_blob.digest))
            except APIError as error:
                # In use, by a container or as another one's parent; or gone.
                if error.status_code not in (404, 409):
                    raise

        _call("remove the image", remove)

    def start(self, container_id: str) -> int:
        """Start the container; returns the pid of its first process, in the guest."""
        _call("start the container", lambda: self._client.start(container_id))
        state = self._state(container_id)
        if not state.get("Pid"):
            reason = state.get("Error") or f"exit status {state.get('ExitCode')}"
            raise EngineError(f"the container did not start: {reason}")
        return int(state["Pid"])

    def resize(self, container_id: str, size: TerminalSize) -> None:
        """Change the size of the container's terminal."""
        _call(
            "resize the terminal",
            lambda: self._client.resize(container_id, height=size.rows, width=size.columns),
        )

    def exit_status(self, container_id: str) -> int:
        """The exit status of a container that has ended."""
        result = _call("say how the container ended", lambda: self._client.wait(container_id))
        status = result.get("StatusCode")
        if type(status) is not int or not 0 <= status <= 255:
            raise EngineError(f"dockerd gave no exit status but {result!r:.100}")
        return status

    def error_of(self, container_id: str) -> str:
        """Why dockerd says a container failed; empty if it does not."""
        try:
            return str(self._state(container_id).get("Error") or "")
        except VmrunError:
            return ""

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()
        self._tunnel.close()

    def _state(self, container_id: str) -> dict[str, Any]:
        found = _call("inspect the container", lambda: self._client.inspect_container(container_id))
        state = found.get("State")
        return state if isinstance(state, dict) else {}


def _name(plan: Plan) -> str:
    return f"vmrun-{plan.run_id}"


def _load_error(reason: str) -> VmrunError:
    if "diffID" in reason:
        return DigestMismatch(f"the guest received other bytes than were verified: {reason}")
    if "no space left" in reason:
        return EngineError(
            f"the image does not fit into the guest: {reason}", hint="give it more: --memory"
        )
    return EngineError(f"dockerd cannot load the image: {reason}")
