import os
from pathlib import Path

from shim.log import Log
from shim.logfile import LogFile, read


def test_the_end_is_kept_whatever_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    file = LogFile(path, limit=1000)
    for number in range(1000):
        file.write(f"line {number}\n".encode())
    file.close()
    lines = read(path).splitlines()
    assert lines == [f"line {number}" for number in range(1000 - len(lines), 1000)]
    assert 1000 < len(read(path)) <= 2000
    assert sorted(os.listdir(tmp_path)) == ["x.log", "x.log.1"]
    assert all(
        item.stat().st_size <= 1000 and item.stat().st_mode & 0o777 == 0o600 for item in tmp_path.iterdir()
    )


def test_a_file_that_is_there_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    for word in ("a", "b"):
        file = LogFile(path, limit=3)
        file.write(f"{word}\n".encode())
        file.close()
    assert read(path) == "a\nb\n" and (tmp_path / "x.log.1").read_text() == "a\n"


def test_a_directory_that_is_gone_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = str(tmp_path / "d/x.log")
    file = LogFile(path, limit=10)
    file.write(b"12345678\n")
    os.unlink(path)
    os.rmdir(tmp_path / "d")
    for _ in range(3):
        file.write(b"12345678\n")
    LogFile(path).write(b"x")
    assert read(path) == "" and not os.listdir(tmp_path)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("v")
    os.symlink(tmp_path / "victim", tmp_path / "x.log")
    LogFile(str(tmp_path / "x.log")).write(b"x")
    assert (tmp_path / "victim").read_text() == "v"


def test_a_log_keeps_its_lines_also_without_a_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    file = LogFile(path)
    reader, writer = os.pipe()
    Log(writer, "info", file, sandbox="s").bind(n=1).warning("both")
    Log(None, keep=file).info("kept \x1b[31m")
    Log(None, keep=file).debug("below")
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    kept = read(path).splitlines()
    assert kept[0] + "\n" == said and "msg=both sandbox=s n=1" in kept[0]
    assert len(kept) == 2 and 'msg="kept \\x1b[31m"' in kept[1]
