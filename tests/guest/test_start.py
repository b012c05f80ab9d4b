"""Deferred imports: in a Python of their own, for they are about what has been imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PRELUDE = """
import sys
sys.path[:0] = sys.argv[1:]
from shim.guest import start
def runs(name):
    return type(sys.modules[name]).__name__ == "module"
"""


def python(code: str, *paths: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", _PRELUDE + code, ROOT, *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asyncio_serves_without_what_is_deferred() -> None:
    python("""
sys.meta_path.insert(0, start.DeferringFinder)
import asyncio
async def main():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with asyncio.timeout(5):
        await asyncio.gather(asyncio.sleep(0), asyncio.shield(asyncio.create_task(asyncio.sleep(0))))
    server.close()
asyncio.run(main())
for name in start.DEFERRED & set(sys.modules):
    assert not runs(name), name
""")


def test_what_is_deferred_is_all_there_when_it_is_used() -> None:
    python("""
sys.meta_path.insert(0, start.DeferringFinder)
import asyncio, inspect, textwrap, traceback
assert inspect.iscoroutinefunction(asyncio.sleep) and runs("inspect")
assert inspect.__spec__.loader is inspect.__loader__ and inspect.__file__
assert not runs("textwrap") and textwrap.indent("a", " ") == " a" and runs("textwrap")
try:
    1 / 0
except ZeroDivisionError as error:
    assert "ZeroDivisionError" in "".join(traceback.format_exception(error))
asyncio.get_event_loop_policy().new_event_loop().close()
""")


def test_a_deferred_module_runs_once_at_the_first_name_asked_of_it(tmp_path: Path) -> None:
    Path(tmp_path, "later.py").write_text("print('runs'); value = 1\n")
    code = """
start.DEFERRED = frozenset({"later"})
sys.meta_path.insert(0, start.DeferringFinder)
import later
import later as again
print("imported")
print(later.value, again.value)
try:
    later.nothing
except AttributeError as error:
    print(error)
"""
    assert python(code, tmp_path).splitlines() == [
        "imported",
        "runs",
        "1 1",
        "module 'later' has no attribute 'nothing'",
    ]


def test_names_taken_from_a_deferred_module_run_it(tmp_path: Path) -> None:
    Path(tmp_path, "later.py").write_text("value = 1\n_hidden = 2\n")
    python(
        """
start.DEFERRED = frozenset({"later"})
sys.meta_path.insert(0, start.DeferringFinder)
from later import *
assert value == 1 and "_hidden" not in globals()
""",
        tmp_path,
    )


def test_what_is_not_there_is_not_deferred_and_others_are_left_alone() -> None:
    python("""
start.DEFERRED = frozenset({"no_such_module"})
sys.meta_path.insert(0, start.DeferringFinder)
import textwrap
assert runs("textwrap")
try:
    import no_such_module
except ModuleNotFoundError:
    pass
else:
    raise AssertionError
""")
