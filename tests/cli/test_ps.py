from .conftest import Tool

LONG = "0123456789abcdef" * 4


def test_the_table_has_sandboxes_and_their_containers(tool: Tool) -> None:
    tool.record()
    tool.dead("gone")
    with tool.live():
        done = tool("ps")
    head, gone, its, first, *containers = done.out.splitlines()
    assert head.split() == ["SANDBOX", "NAMESPACE", "SHIM", "VM", "MEMORY", "FROM", "STATE"]
    assert gone.split() == ["gone", "ns", "-", "-", "0", "MiB", "-", "no", "shim"]
    assert its.split() == ["gone", "unknown"]
    words = first.split()
    assert (words[0], words[1], words[-2], words[-1]) == ("s1", "ns", "template", "up") and words[5] == "MiB"
    assert [line.split() for line in containers] == [["c1", "+", "1", "exec", "running"], ["c2", "created"]]
    assert done.err.startswith("gone: its shim (pid ") and done.err.count("\n") == 1
    assert done.code == 0 and max(len(line) for line in done.out.splitlines()) <= 80


def test_long_ids_fit_and_json_has_them_whole(tool: Tool) -> None:
    tool.record(LONG, "k8s.io")
    assert max(len(line) for line in tool("ps").out.splitlines()) <= 80
    (found,) = tool("ps", "--json").json
    assert found["sandbox"] == LONG and found["namespace"] == "k8s.io"
    for args in ((LONG[:20],), ("-n", "k8s.io")):
        assert [item["sandbox"] for item in tool("ps", *args, "--json").json] == [LONG]
    assert tool("ps", "--json", "-n", "ns").json == []


def test_json_has_everything(tool: Tool) -> None:
    tool.record()
    with tool.live():
        (found,) = tool("ps", "--json").json
    assert (found["state"], found["origin"], found["up_s"], found["vcpus"]) == ("up", "template", 0.25, 2)
    first, second = found["containers"]
    assert first["id"] == "c1" and second["processes"] == [{"exec_id": "", "state": "created", "streams": {}}]
    assert first["processes"][0]["streams"]["stdout"] == {
        "from_guest_bytes": 12345,
        "to_guest_bytes": 0,
        "stalls": 7,
    }
    assert [item["role"] for item in found["processes"]] == ["daemon"]


def test_io_counts_each_stream(tool: Tool) -> None:
    tool.record()
    with tool.live():
        lines = tool("ps", "--io").out.splitlines()
    assert lines[0].split() == ["PROCESS", "STREAM", "FROM", "GUEST", "TO", "GUEST", "STALLS"]
    assert [line.split() for line in lines[1:]] == [
        ["c1", "stdout", "12345", "0", "7"],
        ["c1", "stdin", "0", "5", "0"],
    ]
    assert max(len(line) for line in lines) <= 80
