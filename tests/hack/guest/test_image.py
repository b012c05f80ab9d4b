"""The image builder's parts: formats read and written, order, equal bytes for equal input."""

from __future__ import annotations

import ast
import gzip
import lzma
import marshal
import random
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from image import bytecode, elf, lz4, modules, packages, python, recipe, root, vmlinux
from image.cpio import Tree, encode


def tree(paths: list[str]) -> Tree:
    made = Tree()
    for path in paths:
        made.add_file(path, path.encode(), 0o755)
    made.add_link("link", "a/b")
    made.add_char_device("dev/console", 5, 1)
    return made


def test_the_archive_depends_on_the_tree_alone() -> None:
    names = ["a/b", "a/c/d", "z"]
    assert encode(tree(names)) == encode(tree(names[::-1]))
    assert len(encode(tree(names))) % 4 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    made = tree(["a/b", "a/c/d", "z"])
    made.add_dir("tmp", 0o1777)
    data = encode(made)
    subprocess.run(["cpio", "-idmu", "--quiet"], input=data, cwd=tmp_path, check=False)
    assert (tmp_path / "a/c/d").read_bytes() == b"a/c/d"
    assert (tmp_path / "z").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "link").readlink() == Path("a/b")
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_parents_stand_before_their_children() -> None:
    names = [name for name, _ in tree(["a/c/d"])]
    assert names.index("a") < names.index("a/c") < names.index("a/c/d")


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "a//b", "./a", "a/"])
def test_only_plain_relative_paths_enter_the_tree(path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        Tree().add_file(path, b"")


def lz4_frame(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-l", "-9", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


SAMPLES = [
    b"",
    b"x",
    b"ab" * 5000,
    bytes(range(256)) * 300,
    random.Random(1).randbytes(70_000) + b"\0" * 70_000,
]


@pytest.mark.skipif(shutil.which("lz4") is None, reason="no lz4 here")
@pytest.mark.parametrize("data", SAMPLES)
def test_lz4_unpacks_what_lz4_packed(data: bytes) -> None:
    assert lz4.decode(lz4_frame(data)) == data


def test_lz4_golden_bytes() -> None:
    # Made by hand: literals "abc", a match of 6 at distance 3, literals "!".
    block = bytes([0x32]) + b"abc" + struct.pack("<H", 3) + bytes([0x10]) + b"!"
    assert lz4.decode(lz4.MAGIC + struct.pack("<I", len(block)) + block) == b"abcabcabc!"


@pytest.mark.parametrize(
    "block",
    [b"\xf0", b"\x30ab", b"\x10a\x05\x00", b"\x10a\x00\x00", b"\x1fa\x01\x00\xff", b"\x10a\x01"],
)
def test_damaged_lz4_is_an_error(block: bytes) -> None:
    with pytest.raises(lz4.BadLz4):
        lz4.decode(lz4.MAGIC + struct.pack("<I", len(block)) + block)
    with pytest.raises(lz4.BadLz4, match="cut off"):
        lz4.decode(lz4.MAGIC + struct.pack("<I", 100) + block)


KERNEL = b"\x7fELF" + b"kernel " * 1000


def bzimage(packed: bytes, size: int = len(KERNEL), setup_sectors: int = 2) -> bytes:
    payload = packed + struct.pack("<I", size)
    head = bytearray((setup_sectors + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + b"\x90" * 16 + payload


@pytest.mark.parametrize("packed", [gzip.compress(KERNEL), lzma.compress(KERNEL)])
def test_the_kernel_comes_out_of_a_bzimage(packed: bytes) -> None:
    assert vmlinux.extract(bzimage(packed)) == KERNEL


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF" * 1000,
        bzimage(b"unknown" * 9),
        bzimage(gzip.compress(KERNEL), size=5),
        bzimage(gzip.compress(b"no elf"), size=6),
        bzimage(gzip.compress(KERNEL))[:-10],
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(vmlinux.BadKernel):
        vmlinux.extract(image)


def elf_file(**contents: bytes) -> bytes:
    """A minimal ELF64 with the given sections ("_" stands for "." in a name)."""
    names = b"\0" + b"".join(name.replace("_", ".").encode() + b"\0" for name in contents) + b".shstrtab\0"
    parts = [*contents.values(), names]
    body, headers, name_at = b"", bytearray(64), 1
    for index, part in enumerate(parts):
        headers += struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, 64 + len(body), len(part), 0, 0, 1, 0)
        body += part
        name_at += len([*contents, "_shstrtab"][index]) + 1
    head = b"\x7fELF\x02\x01\x01" + bytes(33) + struct.pack("<Q", 64 + len(body))
    head += bytes(10) + struct.pack("<HHH", 64, len(parts) + 1, len(parts))
    return head.ljust(64, b"\0")[:64] + body + bytes(headers)


def test_sections_are_found_by_name() -> None:
    data = elf_file(_text=b"code", _modinfo=b"name=x\0depends=a,b\0license=GPL\0")
    assert elf.sections(data)[".text"] == b"code"
    assert elf.modinfo(data) == {"name": "x", "depends": "a,b", "license": "GPL"}
    assert elf.needed(data) == []


def test_needed_libraries_are_read() -> None:
    dynamic = struct.pack("<qQqQqQqQ", 1, 1, 5, 0, 1, 11, 0, 0)
    data = elf_file(_dynstr=b"\0libc.so.6\0libm.so.6\0", _dynamic=dynamic)
    assert elf.needed(data) == ["libc.so.6", "libm.so.6"]


def test_a_truncated_elf_is_an_error_wherever_it_is_cut() -> None:
    data = elf_file(_modinfo=b"name=x\0")
    unread = 24  # the last fields of the last header
    for end in range(len(data) - unread):
        with pytest.raises(elf.NotElf):
            elf.sections(data[:end])


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    def module(name: str, depends: str, *, packed: bool = False) -> None:
        data = elf_file(_modinfo=f"name={name}\0depends={depends}\0".encode())
        path = tmp_path / f"kernel/{name}.ko{'.xz' if packed else ''}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lzma.compress(data) if packed else data)

    module("ring", "")
    module("virtio-base", "ring", packed=True)
    module("net", "virtio_base,ring,core")
    (tmp_path / "modules.builtin").write_text("kernel/core.ko\n")
    chosen = modules.ModuleSet(tmp_path)
    assert list(chosen.in_load_order(["net", "ring", "core"])) == ["ring.ko", "virtio_base.ko", "net.ko"]
    with pytest.raises(modules.ModuleError, match="no module fs"):
        chosen.in_load_order(["fs"])


def test_signatures_are_taken_off() -> None:
    signature = b"s" * 70
    trailer = bytes(8) + struct.pack(">I", len(signature)) + b"~Module signature appended~\n"
    assert modules.strip_signature(b"module" + signature + trailer) == b"module"
    assert modules.strip_signature(b"module") == b"module"
    with pytest.raises(ValueError, match="longer"):
        modules.strip_signature(b"m" + trailer)


def test_compiled_code_runs_and_names_its_place_in_the_guest(tmp_path: Path) -> None:
    source, output = tmp_path / "m.py", tmp_path / "m.pyc"
    source.write_text("x = {'a', 'b', 'c'} | {1}\nassert 'a' in x\n")
    bytecode.compile_file(str(source), "/usr/lib/python3.11/m.py", str(output))
    data = output.read_bytes()
    assert data[4:8] == b"\x01\0\0\0"  # hash-based, unchecked
    code = marshal.loads(data[16:])
    assert code.co_filename == "/usr/lib/python3.11/m.py"
    exec(code, {})


def test_a_package_that_apt_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packages, "_run", lambda argv, cwd=None: "Depends: linux-image-9-x\n" if "show" in argv else ""
    )
    with pytest.raises(packages.PackageError, match="busybox-static, linux-image-9-x; try apt-get update"):
        packages.resolve("linux-image-x", ["busybox-static"])


def test_the_image_has_every_module_the_guest_imports() -> None:
    there = recipe.STDLIB | recipe.EXTENSIONS | {"shim"} | set(sys.builtin_module_names)
    repository = Path(__file__).parents[3]
    for name, path in python.project_sources(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                wanted = {node.module.partition(".")[0]}
            else:
                continue
            assert wanted <= there, f"{name} imports {wanted - there}"


def test_a_damaged_download_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = packages.Package("x", "1", "x_1_all.deb", "0" * 64)
    (tmp_path / package.file).write_bytes(b"damaged")
    asked: list[str] = []

    def fake_apt(argv: list[str], cwd: Path | None = None) -> str:
        asked.append(argv[-1])
        assert not (tmp_path / package.file).exists()
        return ""

    monkeypatch.setattr(packages, "_run", fake_apt)
    monkeypatch.setattr(packages, "_is_there", lambda package, cache: bool(asked))
    assert packages.download([package], tmp_path) == 1
    assert asked == ["x=1"]


def test_another_agent_takes_the_place_of_ours_with_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "PROGRAMS", {})
    monkeypatch.setattr(recipe, "KERNEL_MODULES", ("ring",))
    monkeypatch.setattr(recipe, "FILE_SYSTEMS", ())
    monkeypatch.setattr(python, "add_library", lambda tree, unpacked, repository: None)
    for folder, name, data in (
        ("lib/x86_64-linux-gnu", "libx.so.1", elf_file(_dynamic=bytes(16))),
        ("modules/kernel", "ring.ko", elf_file(_modinfo=b"name=ring\0depends=\0")),
        ("modules", "modules.builtin", b""),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_bytes(data)
    agent = elf_file(_dynstr=b"\0libx.so.1\0", _dynamic=struct.pack("<qQqQ", 1, 1, 0, 0))
    for given, init in ((agent, recipe.OTHER_INIT), (None, recipe.INIT)):
        made = root.assemble(tmp_path, tmp_path / "modules", tmp_path, {}, given)
        assert dict(made)["init"].data == init
        assert ("usr/bin/kata-agent" in made) is (given is not None)
        assert ("lib/x86_64-linux-gnu/libx.so.1" in made) is (given is not None)


def test_a_file_system_lies_compressed_beside_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PROGRAMS", {}), ("KERNEL_MODULES", ("ring",)), ("FILE_SYSTEMS", ("fs",))):
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(python, "add_library", lambda tree, unpacked, repository: None)
    (tmp_path / "modules").mkdir()
    depends = {"ring": b"", "sum": b"", "fs": b"sum"}
    modules = {name: elf_file(_modinfo=b"depends=" + needed + b"\0") for name, needed in depends.items()}
    for name, data in modules.items():
        (tmp_path / f"modules/{name}.ko").write_bytes(data)
    made = dict(root.assemble(tmp_path, tmp_path / "modules", tmp_path, {}))
    assert made["lib/modules/order"].data == b"ring.ko\n"
    assert made["lib/modules/fs/order"].data == b"sum.ko\nfs.ko\n"
    assert zlib.decompress(made["lib/modules/fs/fs.ko.z"].data) == modules["fs"]
