"""Where the settings come from: one TOML file, then its drop-ins.

The file is the one that KATA_PY_CONFIG names (`start` puts the runtime option config_path there), else
/etc/kata-py/config.toml, which need not exist. Beside it, `config.d/*.toml` are read in the order of their
names; a key that comes again wins.
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


def load(environ: Mapping[str, str] = os.environ, default_path: Path = DEFAULT_PATH) -> Config:
    """The settings of a process with this environment. InvalidArgument names the file and key at fault,
    NotFound the file that KATA_PY_CONFIG wants."""
    named = environ.get(VARIABLE, "")
    path = Path(named) if named else default_path
    if not path.is_absolute():
        raise InvalidArgument(f"{VARIABLE}={named}: want an absolute path")
    config = Config()
    if named or path.exists():
        config = _merge(config, path)
    try:
        drop_ins = sorted(path.parent.joinpath("config.d").glob("*.toml"))
    except OSError as error:
        raise InvalidArgument(f"{path.parent}/config.d: {error.strerror}") from error
    for drop_in in drop_ins:
        config = _merge(config, drop_in)
    return config


def _merge(config: Config, path: Path) -> Config:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such settings file") from error
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidArgument(f"{path}: {error}") from error
    return config.updated(values, str(path))
