"""The files of a pod that its containers have in common. For a pod with a pause container CRI writes them; here nobody
else does. Source: containerd, internal/cri/server/podsandbox (sandbox_run_linux.go, setupSandboxFiles)."""

from __future__ import annotations

from pathlib import Path

from shim.errors import Internal
from shim.pb.runtime.v1 import DnsConfig, PodSandboxConfig

_HOSTS, _RESOLV_CONF = Path("/etc/hosts"), Path("/etc/resolv.conf")


def write(directory: Path, config: PodSandboxConfig, hostname: str) -> dict[str, Path]:
    """Make the files below `directory`; their paths by where containers have them. Internal when that fails."""
    texts = {
        "/etc/hostname": f"{hostname}\n",
        "/etc/hosts": _host_text(_HOSTS),
        "/etc/resolv.conf": resolv_conf(config.dns_config) or _host_text(_RESOLV_CONF),
    }
    written = {}
    for place, text in texts.items():
        path = directory / Path(place).name
        try:
            directory.mkdir(mode=0o711, exist_ok=True)
            path.write_text(text, errors="surrogateescape")
            path.chmod(0o644)
        except OSError as error:
            raise Internal(f"{path}: {error.strerror}") from error
        written[place] = path
    return written


def resolv_conf(dns: DnsConfig) -> str:
    """resolv.conf(5); empty if the pod names nothing."""
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def _host_text(path: Path) -> str:
    """The node's own file, which pods take over; empty if it has none."""
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Internal(f"{path}: {error.strerror}") from error
