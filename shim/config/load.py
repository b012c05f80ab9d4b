"""Where the settings come from, the most specific last: a key that comes again wins.

    the file        that the runtime option ConfigPath names, else KATA_PY_CONFIG, else /etc/kata-py/config.toml,
                    which need not exist
    its drop-ins    config.d/*.toml beside it, in the order of their names
    ConfigBody      settings that stand in containerd's own configuration ([...runtimes.kata-py.options])

`start` puts the runtime options into the environment of the daemon, where a template's creator finds them too.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from shim.config.model import Config
from shim.errors import InvalidArgument, NotFound

DEFAULT_PATH = Path("/etc/kata-py/config.toml")
VARIABLE = "KATA_PY_CONFIG"
BODY_VARIABLE = "KATA_PY_CONFIG_BODY"
_BODY = "runtime options in containerd's configuration"
# containerd hands over the table of options as it is: these keys of it are its own.
_CONTAINERDS = ("TypeUrl", "ConfigPath", "ConfigBody")


def load(environ: Mapping[str, str] = os.environ, default_path: Path = DEFAULT_PATH) -> Config:
    """The settings of a process with this environment. InvalidArgument names the file and key at fault,
    NotFound the file that KATA_PY_CONFIG wants."""
    config = Config()
    for path in files(environ, default_path):
        config = config.updated(_read(path), str(path))
    body = _parse(environ.get(BODY_VARIABLE, ""), _BODY)
    return config.updated({k: v for k, v in body.items() if k not in _CONTAINERDS}, _BODY)


def files(environ: Mapping[str, str] = os.environ, default_path: Path = DEFAULT_PATH) -> list[Path]:
    """What is read, in this order."""
    named = environ.get(VARIABLE, "")
    path = Path(named) if named else default_path
    if not path.is_absolute():
        raise InvalidArgument(f"{VARIABLE}={named}: want an absolute path")
    try:
        drop_ins = sorted(path.parent.joinpath("config.d").glob("*.toml"))
    except OSError as error:
        raise InvalidArgument(f"{path.parent}/config.d: {error.strerror}") from error
    return [*([path] if named or path.exists() else []), *drop_ins]


def _read(path: Path) -> dict[str, object]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such settings file") from error
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from error


def _parse(text: str, source: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise InvalidArgument(f"{source}: {error}") from error
