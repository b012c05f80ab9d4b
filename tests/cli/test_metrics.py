import re

from shim.cli.metrics import exposition

from .conftest import Tool

# The exposition format's grammar of a line, without timestamps, which we do not write.
SAMPLE = re.compile(r'[a-z_]+\{([a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*\} -?[0-9.e+-]+')


def parse(text: str) -> dict[str, str]:
    found, seen = {}, ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            seen = line.split()[2]
        elif not line.startswith("#"):
            assert SAMPLE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name.startswith(f"{seen}{{"), "a family's samples stand together"
            assert name not in found
            found[name] = value
    return found


def test_every_sandbox_has_its_samples(tool: Tool) -> None:
    tool.record()
    tool.dead("gone")
    with tool.live():
        done = tool("metrics")
    found = parse(done.out)
    own = 'namespace="ns",sandbox="s1"'
    assert found['kata_py_sandboxes{state="up"}'] == found['kata_py_sandboxes{state="no shim"}'] == "1"
    assert found[f"kata_py_sandbox_up{{{own}}}"] == "1"
    assert found['kata_py_sandbox_up{namespace="ns",sandbox="gone"}'] == "0"
    assert found[f'kata_py_sandbox_info{{{own},origin="template",version="0.1.0"}}'] == "1"
    assert found[f"kata_py_sandbox_vm_memory_bytes{{{own}}}"] == str(256 << 20)
    assert found[f'kata_py_container_cpu_seconds_total{{{own},container="c1"}}'] == "1.5"
    assert found[f'kata_py_container_processes{{{own},container="c1",state="stopped"}}'] == "1"
    stream = f'{own},container="c1",exec="",stream="stdout"'
    assert found[f'kata_py_stream_bytes_total{{{stream},direction="from_guest"}}'] == "12345"
    assert found[f"kata_py_stream_stalls_total{{{stream}}}"] == "7"
    assert done.err.startswith("gone: ") and done.code == 0


def test_one_sandbox_s_samples_are_its_own(tool: Tool) -> None:
    tool.record()
    tool.record("s2")
    with tool.live():
        names = [item["labels"].get("sandbox") for item in tool("metrics", "s1", "--json").json]
    assert set(names) == {"s1"}


def test_numbers_are_whole_and_labels_escaped() -> None:
    text = exposition([("sandbox_vm_memory_bytes", {"sandbox": 'a"\\\n'}, 123456789012)])
    assert text.splitlines()[2] == 'kata_py_sandbox_vm_memory_bytes{sandbox="a\\"\\\\\\n"} 123456789012'
