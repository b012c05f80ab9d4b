"""Exceptions to statuses and back: what a call's failure is on the wire.

`shim.errors` is the currency. A `grpclib.GRPCError`, which generated code raises, is recognised by its shape,
so that nothing here imports grpclib.
"""

from __future__ import annotations

from shim import errors


def from_exception(error: BaseException) -> tuple[int, str]:
    """Code and message for what a handler raised. An exception that means nothing to us is UNKNOWN with its
    own words."""
    code, message = errors.Unknown.code, str(error)
    if isinstance(error, errors.ShimError):
        code, message = error.code, error.message
    else:
        grpc = getattr(error, "status", None)
        value = getattr(grpc, "value", None)
        if isinstance(value, int) and value:
            code, message = value, str(getattr(error, "message", None) or getattr(grpc, "name", ""))
    # A path with undecodable bytes must not make the error itself impossible to send.
    return code, (message or type(error).__name__).encode(errors="backslashreplace").decode()


def is_expected(error: BaseException) -> bool:
    """Whether a handler raised this to answer its caller, rather than because it is broken."""
    return isinstance(error, errors.ShimError) or from_exception(error)[0] != errors.Unknown.code


def closed() -> errors.Unavailable:
    """For calls whose connection is gone, in ttrpc's words."""
    return errors.Unavailable("ttrpc: closed")
