"""What crun says of a program that cannot be executed, in the words that runc's users and tools know."""

from __future__ import annotations

import pytest

from shim.errors import InvalidArgument, NotFound, ShimError
from shim.guest import runtime


@pytest.mark.parametrize(
    ("program", "said", "kind", "told"),
    [
        ("nope", "executable file `nope` not found in $PATH", NotFound, "executable file not found in $PATH"),
        (
            "/bin/nope",
            "executable file `/bin/nope` not found",
            NotFound,
            "stat /bin/nope: no such file or directory",
        ),
        ("/bin/plain", "open executable: Permission denied", InvalidArgument, "permission denied"),
        ("/bin", "open executable: Operation not permitted", InvalidArgument, "permission denied"),
        (
            "x",
            "exec container process `x`: Exec format error",
            InvalidArgument,
            "exec container process `x`: Exec format error",
        ),
    ],
)
def test_a_program_that_cannot_be_executed(program: str, said: str, kind: type[ShimError], told: str) -> None:
    error = runtime._failure("exec", 1, said, [program])
    assert type(error) is kind
    assert str(error).endswith(f'exec failed: unable to start container process: exec: "{program}": {told}')
