"""Devices plugged into a running QEMU, each with its back end: a vhost-user process or a tap.

Source: qapi/char.json, qapi/net.json, qapi/qdev.json.
"""

from __future__ import annotations

from typing import assert_never

from shim.errors import ShimError
from shim.hypervisor.api import Device, VhostUserFs, VhostUserVsock, VirtioNet
from shim.hypervisor.qemu import cmdline
from shim.hypervisor.qemu.qmp import Json, QmpClient
from shim.log import Log


async def plug(qmp: QmpClient, device: Device, log: Log) -> None:
    match device:
        case VhostUserVsock():
            await qmp.execute("getfd", {"fdname": device.id}, fds=(device.fd,))
            address: Json = {"type": "fd", "data": {"str": device.id}}
            properties: Json = {"driver": "vhost-user-vsock-pci", "disable-legacy": "on"}
            await _plug_vhost_user(qmp, device.id, address, properties, log)
        case VhostUserFs():
            address = {"type": "unix", "data": {"path": str(device.socket)}}
            properties = {"driver": "vhost-user-fs-pci", "tag": device.tag, "queue-size": 1024}
            await _plug_vhost_user(qmp, device.id, address, properties, log)
        case VirtioNet():
            await _plug_nic(qmp, device)
        case _:
            assert_never(device)


async def _plug_vhost_user(qmp: QmpClient, device_id: str, address: Json, properties: Json, log: Log) -> None:
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    chardev = f"{device_id}-chardev"
    await qmp.execute("chardev-add", {"id": chardev, "backend": backend})
    try:
        await qmp.execute(
            "device_add", {**properties, "id": device_id, "chardev": chardev, "bus": cmdline.HOTPLUG_BUS}
        )
    except ShimError:
        try:
            await qmp.execute("chardev-remove", {"id": chardev})
        except ShimError as err:
            log.warning("a character device stays behind", chardev=chardev, error=err)
        raise


async def _plug_nic(qmp: QmpClient, device: VirtioNet) -> None:
    backend = f"{device.id}-tap"
    await qmp.execute("getfd", {"fdname": backend}, fds=(device.fd,))
    await qmp.execute("netdev_add", {"type": "tap", "id": backend, "fd": backend})
    properties = {
        "driver": "virtio-net-pci",
        "disable-legacy": "on",
        "mac": device.mac,
        "netdev": backend,
    }
    await qmp.execute(
        "device_add",
        # Nobody boots from it: no option ROM, which would be another package's file.
        {**properties, "id": device.id, "romfile": "", "bus": cmdline.HOTPLUG_BUS},
    )
