from pathlib import Path

from shim import vm
from shim.config.model import Config


def test_the_agent_is_told_its_ports() -> None:
    config = Config(passfd_listener_port=2000, kernel_params=("quiet", "a=1"))
    spec = vm.spec(config, "c1", Path("/run/x"))
    assert spec.kernel_params == ("agent.passfd_listener_port=2000", "quiet", "a=1")


def test_the_debug_console_is_there_only_when_asked_for() -> None:
    spec = vm.spec(Config(debug_console=True, debug_console_vport=99), "c1", Path("/run/x"))
    assert spec.kernel_params[1:] == ("agent.debug_console", "agent.debug_console_vport=99")
