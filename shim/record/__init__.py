"""What a sandbox would leave behind if its daemon vanished, kept on disk so that others can remove it.

    /run/kata-py/<namespace>/<sandbox id>/      0700, flock'ed by `start` and `delete` (see `lock`)
        address      the address of the shim's socket, written by `start` before the daemon exists
        record.json  `Record`, written by the daemon
        *.sock, ...  whatever the sandbox needs

The daemon adds an entry before it creates the thing (a process: as soon as it has a pid) and every change
replaces the file atomically. `teardown` then works from the file alone, in the `delete` subcommand, in the
next `start` of the same sandbox, or in `kata-py gc`. A process is known by pid and start time, so a pid that was
given to somebody else meanwhile is never signalled.

Standard library only and light: `start` imports it.
"""

from shim.record.place import lock, sandbox_dir, write_file
from shim.record.process import LOGGER, Process, exiting
from shim.record.record import Record
from shim.record.redirection import Redirection
from shim.record.teardown import left, remove_run_dir, teardown

__all__ = [
    "LOGGER",
    "Process",
    "Record",
    "Redirection",
    "exiting",
    "left",
    "lock",
    "remove_run_dir",
    "sandbox_dir",
    "teardown",
    "write_file",
]
