import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bootstrap.installed import Shim


@pytest.fixture
def shim() -> Iterator[Shim]:
    """An installed shim; nothing of it runs afterwards. Its directory is short, for Unix sockets' sake."""
    directory = Path(tempfile.mkdtemp(prefix="kpb"))
    shim = Shim(directory)
    yield shim
    shim.kill()
    shutil.rmtree(directory)
