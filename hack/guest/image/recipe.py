"""What goes into the image, as data. Debian 12 (amd64) package, file and module names."""

from __future__ import annotations

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"

PACKAGES = (
    "busybox-static",
    "crun",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    # Shared libraries of the above; the builder fails if one is missing here.
    "libc6",
    "libcap2",
    "libexpat1",
    "libffi8",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libseccomp2",
    "libsystemd0",
    "libyajl2",
    "libzstd1",
    "zlib1g",
)

# In this order, and dependencies first: what the first connection to the agent needs stands first.
KERNEL_MODULES = (
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "overlay",
    "virtio_net",
    "virtio_blk",
    "af_packet",
    "veth",
    "loop",
    "virtio_balloon",
    "virtio_mem",
)

# File systems that disks may have. Few pods do: they lie in every guest's memory, so they are compressed, and are
# loaded when such a disk is mounted.
FILE_SYSTEMS = ("xfs",)

PROGRAMS = {
    "bin/busybox": "bin/busybox",
    "usr/bin/crun": "usr/bin/crun",
    "usr/bin/python3.11": "usr/bin/python3.11",
}
LINKS = {
    "bin/sh": "busybox",
    "usr/bin/python3": "python3.11",
    "lib64/ld-linux-x86-64.so.2": "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
}
DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "var", "mnt", "root", "etc", "sbin", "usr/sbin")

# Top-level modules and packages of the standard library that the agent and what it imports may use.
STDLIB = frozenset(
    """
    __future__ _collections_abc _compat_pickle _sitebuiltins _weakrefset abc argparse ast asyncio base64
    bisect codecs collections concurrent contextlib contextvars copy copyreg ctypes dataclasses dis encodings
    enum errno fnmatch functools genericpath glob hashlib heapq hmac importlib inspect io ipaddress json
    keyword linecache locale logging numbers opcode operator os pathlib pickle pkgutil platform posixpath
    queue random re reprlib runpy secrets select selectors shlex shutil signal site socket sre_compile
    sre_constants sre_parse stat statistics string stringprep struct subprocess tempfile textwrap
    threading token tokenize traceback types typing uuid warnings weakref zipimport
    _threading_local datetime calendar bdb cmd code codeop pdb pprint
    """.split()  # noqa: SIM905
)
ENCODINGS = frozenset(
    "__init__ aliases ascii idna latin_1 punycode raw_unicode_escape unicode_escape utf_8".split()  # noqa: SIM905
)
DROPPED_DIRECTORIES = frozenset({"__pycache__", "macholib", "test", "tests", "_msi"})

# Extension modules that Debian's interpreter does not have built in. Without _ssl asyncio goes without TLS.
EXTENSIONS = frozenset(
    "_asyncio _contextvars _ctypes _json _posixshmem _queue _typing mmap resource termios".split()  # noqa: SIM905
)

# Of the project, relative to the repository: packages and single modules the guest imports.
PROJECT = (
    "shim/__init__.py",
    "shim/errors.py",
    "shim/log.py",
    "shim/oci.py",
    "shim/wire.py",
    "shim/guest",
    "shim/ttrpc",
)

INIT = b"""\
#!/usr/bin/python3.11 -ISB
from shim.guest.start import main

main()
"""

# An image with another agent: that one is /init's successor, on a kernel whose drivers are modules here.
OTHER_AGENT = "usr/bin/kata-agent"
OTHER_AGENT_PACKAGES = ("libgcc-s1",)  # what a Rust program is linked with beyond libc6
OTHER_INIT = f"""\
#!/bin/sh
while read -r module; do /bin/busybox insmod "/lib/modules/$module"; done </lib/modules/order
exec /{OTHER_AGENT}
""".encode()
