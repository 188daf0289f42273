"""What can go wrong, each with a hint that names the next command.

Every error that reaches a user is a :class:`VmrunError`: one line of what failed and
the value that caused it, a hint, and the exit status of ``vmrun run`` for it
(docs/reference/exit-status.md). Malformed input never surfaces as a ``ValueError``.
"""

from __future__ import annotations

EXIT_REFUSED = 123
EXIT_DEADLINE = 124
EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130


class VmrunError(Exception):
    """An expected failure.

    ``message`` says what failed, with the value; ``hint`` names what to do next;
    ``details`` (several lines, e.g. the console's tail) is shown below both.
    """

    exit_status: int = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return self.message


class UsageError(VmrunError):
    """An option or argument has a value that cannot be used."""


class SettingsError(VmrunError):
    """A settings file is malformed or relaxes a site's policy."""


class ImageError(VmrunError):
    """The image cannot be found, read or trusted to be what it says it is."""


class ImageNotFound(ImageError):
    """No image under that reference."""


class DigestMismatch(ImageError):
    """Bytes do not hash to the digest that names them."""


class ImageTooLarge(ImageError):
    """The image exceeds a size or count limit."""


class UnsafeLayer(ImageError):
    """A layer holds an entry that vmrun refuses to unpack."""


class CommandNotFound(ImageError):
    """The image has no such command."""

    exit_status = EXIT_NOT_FOUND


class CommandNotExecutable(ImageError):
    """The image has the command, but it cannot be executed."""

    exit_status = EXIT_NOT_EXECUTABLE


class TrustError(VmrunError):
    """A key, a signature or an attestation cannot be used; never a reason to trust."""


class ScanError(VmrunError):
    """An image could not be scanned, or a database of advisories not read. Never a PASS."""


class Refused(VmrunError):
    """Policy does not allow this run; nothing was created."""

    exit_status = EXIT_REFUSED


class BaseError(VmrunError):
    """The guest base is missing, damaged, or cannot be built."""


class HypervisorError(VmrunError):
    """libvirt or QEMU refused or failed."""


class GuestError(VmrunError):
    """The guest did not boot, did not answer, or answered what it must not."""


class ChannelError(VmrunError):
    """The SSH connection to the guest failed."""


class EngineError(VmrunError):
    """The engine inside the guest could not run the container."""


class HardeningError(VmrunError):
    """What was read live does not match the plan; the workload was not started."""


class StateError(VmrunError):
    """vmrun's own files on the host cannot be used."""


class NameInUse(StateError):
    """Another run holds that name."""


class DeadlineExceeded(VmrunError):
    """A deadline passed."""

    exit_status = EXIT_DEADLINE


class Interrupted(VmrunError):
    """A signal asked vmrun to stop."""

    exit_status = EXIT_INTERRUPTED
