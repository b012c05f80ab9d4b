#!/usr/bin/python3 -IS
"""crun's command line as the agent uses it, without any isolation: for tests of the agent.

State lives beside this file. A container's init process waits on a FIFO until `start`.
"""

import contextlib
import json
import os
import pty
import signal
import socket
import sys
import time

STATE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "state")


def option(name, argv):
    return argv[argv.index(name) + 1] if name in argv else None


def fail(argv, message):
    with open(option("--log", argv), "w") as file:
        file.write('{"msg":"a warning","level":"warning"}\n' + json.dumps({"msg": message, "level": "error"}))
    sys.exit(1)


def which(program):
    return any(os.access(f"{place}/{program}", os.X_OK) for place in ("/bin", "/usr/bin", ""))


def launch(argv, process, gate):
    if not which(process["args"][0]):
        fail(argv, f"executable file `{process['args'][0]}` not found in $PATH: No such file or directory")
    if process["terminal"]:
        pid, master = pty.fork()
    else:
        pid = os.fork()
    if pid == 0:
        if gate:
            open(gate).close()
        os.execvpe(process["args"][0], process["args"], {"PATH": "/bin:/usr/bin"})
    if process["terminal"]:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(option("--console-socket", argv))
            socket.send_fds(console, [b"master"], [master])
    with open(option("--pid-file", argv), "w") as file:
        file.write(str(pid))
    return pid


def main(argv):
    os.makedirs(STATE, exist_ok=True)
    with open(f"{STATE}/calls", "a") as file:
        file.write(" ".join(argv) + "\n")
    command = next(word for word in argv if word in ("create", "start", "exec", "update", "delete"))
    state = f"{STATE}/{argv[-1]}"
    match command:
        case "create":
            with open(f"{option('--bundle', argv)}/config.json") as file:
                spec = json.load(file)
            if spec.get("annotations", {}).get("test.slow"):
                time.sleep(float(spec["annotations"]["test.slow"]))
            os.mkfifo(f"{state}.gate")
            pid = launch(argv, spec["process"], f"{state}.gate")
            with open(f"{state}.pid", "w") as file:
                file.write(str(pid))
        case "start":
            open(f"{state}.gate", "w").close()
        case "exec":
            if not os.path.exists(f"{state}.pid"):
                fail(argv, "container does not exist")
            with open(option("--process", argv)) as file:
                launch(argv, json.load(file), None)
        case "update":
            with open(option("--resources", argv)) as file:
                resources = json.load(file)
            if resources.get("cpu", {}).get("shares") == 1:
                fail(argv, "writing file `cpu.weight`: Numerical result out of range")
            with open(f"{state}.limits", "w") as file:
                json.dump(resources, file)
        case "delete":
            if os.path.exists(f"{state}.pid"):
                with open(f"{state}.pid") as file, contextlib.suppress(ProcessLookupError):
                    os.kill(int(file.read()), signal.SIGKILL)
            for suffix in ("pid", "gate", "limits"):
                if os.path.exists(f"{state}.{suffix}"):
                    os.unlink(f"{state}.{suffix}")


main(sys.argv[1:])
