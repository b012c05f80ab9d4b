"""Packages of another Debian suite, by the machine's own apt configuration, of which only the suite's name is
changed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence


def unpack(suite: str, names: Sequence[str], work: str) -> str:
    """Packages of `suite` downloaded and unpacked below `work`, neither installed nor known to the machine's
    apt; the folder that stands for their "/". RuntimeError with apt's or dpkg's words."""
    for part in ("lists/partial", "archives/partial"):
        os.makedirs(os.path.join(work, part))
    sources = os.path.join(work, "debian.sources")
    with open(sources, "w") as out:
        out.write(rewritten_sources(suite))
    options = [
        f"-oDir::Etc::SourceList={sources}",
        "-oDir::Etc::SourceParts=-",
        f"-oDir::State::Lists={work}/lists",
        f"-oDir::Cache={work}",
        "-oAPT::Sandbox::User=root",  # the private folders are root's
        "-oAcquire::Languages=none",
        "-oAcquire::Check-Valid-Until=false",  # a mirror that lags behind still has a signed package
        "-oAPT::Get::List-Cleanup=false",
    ]
    run("apt-get", *options, "-qq", "update")
    run("apt-get", *options, "-qq", "download", *names, cwd=work)
    root = os.path.join(work, "root")
    for package in sorted(name for name in os.listdir(work) if name.endswith(".deb")):
        run("dpkg-deb", "-x", os.path.join(work, package), root)
    return root


def rewritten_sources(suite: str) -> str:
    """The machine's main Debian source as one deb822 stanza with `suite` in place of its own suite."""
    with open("/etc/os-release") as release:
        own = re.search(r"^VERSION_CODENAME=(\w+)", release.read(), re.MULTILINE)
    if own is None:
        raise RuntimeError("/etc/os-release names no VERSION_CODENAME: is this Debian?")
    texts = {}
    folder = "/etc/apt/sources.list.d"
    names = (
        [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    )
    for path in ["/etc/apt/sources.list", *names]:
        if path.endswith((".list", ".sources")) and os.path.exists(path):
            with open(path) as file:
                texts[path] = file.read()
    for path, text in texts.items():
        found = deb822(text, own[1]) if path.endswith(".sources") else one_line(text, own[1])
        if found is not None:
            fields = {**found, "types": "deb", "suites": suite, "components": "main"}
            return "".join(f"{key.title()}: {value}\n" for key, value in fields.items())
    raise RuntimeError(f"no Debian source with the suite {own[1]} in the machine's apt configuration")


def deb822(text: str, codename: str) -> dict[str, str] | None:
    """The fields of the first enabled stanza that has `codename` among its suites."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields: dict[str, str] = {}
        key = ""
        for line in lines:
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + "\n" + line
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if (
            enabled
            and codename in fields.get("suites", "").split()
            and "deb" in fields.get("types", "").split()
        ):
            return fields
    return None


def one_line(text: str, codename: str) -> dict[str, str] | None:
    """The first `deb [options] uri codename components...` line as deb822 fields."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s", line + " ")
        if match and match[3] == codename:
            options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
            return {"uris": match[2], **{key.lower(): value for key, value in options.items()}}
    return None


def run(*argv: str, cwd: str = "/", env: Mapping[str, str] | None = None) -> str:
    """The stdout of a program; RuntimeError with its stderr when it fails."""
    done = subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}\nended with status {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout
