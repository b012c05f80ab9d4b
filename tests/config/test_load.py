from pathlib import Path

import pytest

from shim.config.load import load
from shim.config.model import Config
from shim.errors import InvalidArgument, NotFound


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_any_file_everything_has_its_default(tmp_path: Path) -> None:
    assert load({}, tmp_path / "config.toml") == Config()


def test_the_default_file_is_read_if_it_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "config.toml", "memory_mib = 512\n")
    assert load({}, path).memory_mib == 512


def test_the_environment_names_another_file(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", "memory_mib = 512\n")
    other = write(tmp_path / "other/o.toml", 'kernel = "/k"\nkernel_params = ["a=1", "quiet"]\nboot_s = 5\n')
    config = load({"KATA_PY_CONFIG": str(other)}, tmp_path / "config.toml")
    assert config == Config(kernel=Path("/k"), kernel_params=("a=1", "quiet"), boot_s=5.0)
    assert type(config.boot_s) is float


def test_drop_ins_win_in_the_order_of_their_names_and_others_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "config.toml", "vcpus = 2\nmemory_mib = 512\n")
    write(tmp_path / "config.d/20-b.toml", "vcpus = 4\n")
    write(tmp_path / "config.d/10-a.toml", 'vcpus = 3\naccelerator = "tcg"\n')
    write(tmp_path / "config.d/30-c.toml~", "vcpus = 5\n")
    assert load({}, path) == Config(vcpus=4, memory_mib=512, accelerator="tcg")


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.toml: no such settings file"):
        load({"KATA_PY_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(InvalidArgument, match="absolute"):
        load({"KATA_PY_CONFIG": "none.toml"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory_mb = 1", "unknown setting 'memory_mb': there are hypervisor, "),
        ("[hypervisor]\npath = 'x'", "hypervisor = {'path': 'x'}: want a program's name or absolute path"),
        ("hypervisor = 'bin/qemu'", "want a program's name or absolute path"),
        ("memory_mib = 64", "memory_mib = 64: want a whole number from 128 to "),
        ("memory_mib = '256'", "want a whole number"),
        ("memory_mib = 256.5", "want a whole number"),
        ("vcpus = true", "vcpus = True: want a whole number from 1 to 240"),
        ("accelerator = 'xen'", "accelerator = 'xen': want one of auto, kvm, tcg"),
        ("accelerator = []", "accelerator = []: want one of"),
        ("kernel = 'vmlinux'", "kernel = 'vmlinux': want an absolute path"),
        ("initrd = 5", "initrd = 5: want an absolute path"),
        ("kernel_params = 'quiet'", "want a list of words"),
        ("kernel_params = ['a b']", "want a list of words"),
        ("kernel_params = ['']", "want a list of words"),
        ("use_passfd_io = 1", "want true or false"),
        ("passfd_listener_port = 0", "want a whole number from 1 to"),
        ("boot_s = nan", "boot_s = nan: want seconds from 1 to 600"),
        ("boot_s = inf", "want seconds"),
        ("drain_grace_s = -1", "want seconds from 0"),
        ("enable_annotations = ['kernel']", "want a list of some of default_memory, default_vcpus, "),
        ("enable_annotations = 'x'", "want a list of some of"),
        ("log_level = 'loud'", "want one of trace, debug, info, warning, error"),
        ("vcpus = ", "Invalid value"),
        ("vcpus = 1\nvcpus = 2", "Cannot overwrite"),
        ("kernel = '/a\x7f'", "config.toml"),
        ("x = " + "[" * 5000, "config.toml"),
    ],
)
def test_a_bad_line_is_refused_with_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path / "config.toml", text)
    with pytest.raises(InvalidArgument) as caught:
        load({}, path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("latin.toml").write_bytes(b"# \xff\n")
    for path in (tmp_path / "latin.toml", tmp_path):
        with pytest.raises(InvalidArgument, match=str(path)):
            load({"KATA_PY_CONFIG": str(path)})


def test_the_runtime_options_body_is_the_most_specific(tmp_path: Path) -> None:
    path = write(tmp_path / "config.toml", "memory_mib = 512\nvcpus = 2\n")
    write(tmp_path / "config.d/a.toml", "vcpus = 3\n")
    body = 'TypeUrl = "runtimeoptions.v1.Options"\nConfigPath = ""\nmemory_mib = 1024\n'
    found = load({"KATA_PY_CONFIG_BODY": body}, path)
    assert found == Config(memory_mib=1024, vcpus=3)
    assert found.origins["memory_mib"].startswith("runtime options")
    assert found.origins["vcpus"] == str(tmp_path / "config.d/a.toml") and "boot_s" not in found.origins
    with pytest.raises(
        InvalidArgument, match="runtime options in containerd's configuration: unknown setting"
    ):
        load({"KATA_PY_CONFIG_BODY": "Memory = 5"}, path)


def test_what_is_written_as_toml_is_read_as_the_same(tmp_path: Path) -> None:
    config = Config(kernel=Path('/a "b" \\ ü'), kernel_params=("x=1",), boot_s=5.5, use_passfd_io=False)
    assert load({"KATA_PY_CONFIG": str(write(tmp_path / "o.toml", config.to_toml()))}) == config
    assert load({"KATA_PY_CONFIG_BODY": config.to_toml()}, tmp_path / "none.toml") == config


def test_every_setting_is_in_the_readme() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    assert not [key for key in Config().values() if f"`{key}`" not in readme]
