"""One tree of errors, named as containerd's errdefs and numbered as gRPC status codes.

Every RPC border of the project (containerd's Task service, the agent's service) speaks these: a server
answers with `code` and `str(error)`, a client raises `from_status(code, message)`. Pure standard library,
because the guest and the `start`/`delete` subcommands use it too.

Source: google.rpc.Code; containerd `pkg/errdefs`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for its constant would double the start time of `start`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar


class ShimError(Exception):
    """Base of all errors that may cross an RPC border. `code` is the gRPC status number."""

    code: ClassVar[int] = 2

    @property
    def message(self) -> str:
        return str(self)


class Canceled(ShimError):
    code = 1


class Unknown(ShimError):
    code = 2


class InvalidArgument(ShimError):
    code = 3


class DeadlineExceeded(ShimError):
    code = 4


class NotFound(ShimError):
    code = 5


class AlreadyExists(ShimError):
    code = 6


class PermissionDenied(ShimError):
    code = 7


class ResourceExhausted(ShimError):
    code = 8


class FailedPrecondition(ShimError):
    code = 9


class Aborted(ShimError):
    code = 10


class OutOfRange(ShimError):
    code = 11


class Unimplemented(ShimError):
    code = 12


class Internal(ShimError):
    code = 13


class Unavailable(ShimError):
    code = 14


class DataLoss(ShimError):
    code = 15


class Unauthenticated(ShimError):
    code = 16


class ChildFailed(Internal):
    """A program we ran failed. The message names it (behind "--", if another one runs it), how it ended and the end
    of its stderr."""

    def __init__(self, argv: Sequence[str], exit_code: int, stderr_tail: str) -> None:
        ended = f"exit status {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
        program = argv[argv.index("--") + 1] if "--" in argv else argv[0]
        super().__init__(f"{program}: {ended}: {stderr_tail.strip() or 'no message'}")


_BY_CODE: dict[int, type[ShimError]] = {kind.code: kind for kind in ShimError.__subclasses__()}


def from_status(code: int, message: str) -> ShimError:
    """The error for a gRPC status `code` other than 0; an unknown number gives `Unknown`."""
    return _BY_CODE.get(code, Unknown)(message)
