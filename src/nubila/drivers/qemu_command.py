"""The command line of one guest.

Paths are relative: QEMU runs in the guest's own directory, so neither a long state directory nor the 107 bytes of a
socket address matter. The machine is ``pc``: its PCI bus takes hot-plugged devices without reserved ports (eight root
ports on q35 cost 0.4 s of every boot under TCG), and its IDE CD, unlike q35's AHCI, is known to Debian's cloud kernel.
Guest NICs have every offload off: packets with partial checksums do not survive a userspace datapath.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nubila.core.ports import DiskSpec, GuestSpec, NicSpec
from nubila.drivers.disks import disk_format

CONFIG_DRIVE = "disk.config"
CONSOLE_LOG = "console.log"
CONSOLE_SOCKET = "console.sock"
QMP_SOCKET = "qmp.sock"

_NO_OFFLOADS = {
    name: False for name in ("csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "host_tso4", "host_tso6")
} | {name: False for name in ("guest_ecn", "guest_ufo", "host_ecn", "host_ufo")}


def command(binary: str, accel: str, spec: GuestSpec, config_drive: bool) -> list[str]:
    """argv for a guest of which every disk and tap device exists."""
    return [
        binary,
        *("-name", f"guest={spec.name},debug-threads=on"),
        *("-uuid", spec.id),
        *("-machine", "pc,usb=off,hpet=off,vmport=off,dump-guest-core=off"),
        *_accel(accel),
        *("-smp", f"{spec.vcpus},sockets={spec.vcpus},cores=1,threads=1"),
        *("-m", f"{spec.ram_mb}M"),
        *("-no-user-config", "-nodefaults"),
        *("-display", "none", "-vga", "none"),
        *("-rtc", "base=utc,driftfix=slew"),
        *("-boot", "menu=off,strict=on"),
        # cloud-init and others look for OpenStack's product name before they ask the metadata service
        *("-smbios", f"type=1,manufacturer=Nubila,product=OpenStack Compute,serial={spec.id},uuid={spec.id}"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        # a guest that powers itself off stays as a process in state "shutdown": told apart from a crash
        *("-action", "shutdown=pause"),
        *("-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        "-chardev",
        f"socket,id=serial0,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on",
        *("-device", "isa-serial,chardev=serial0"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"),
        *_disks(spec.disks),
        *(_config_drive() if config_drive else ()),
        *_nics(spec.nics),
        *("-msg", "timestamp=on"),
    ]


def netdev(nic: NicSpec) -> dict[str, Any]:
    """The host side of a NIC, for -netdev and netdev_add: a tap the network driver has made."""
    return {
        "type": "tap",
        "id": f"net-{nic.port_id}",
        "ifname": nic.device,
        "script": "no",
        "downscript": "no",
        "vhost": False,
    }


def device(nic: NicSpec) -> dict[str, Any]:
    """The guest side of a NIC, for -device and device_add."""
    return {
        "driver": "virtio-net-pci",
        "id": f"nic-{nic.port_id}",
        "netdev": f"net-{nic.port_id}",
        "mac": nic.mac,
        "host_mtu": nic.mtu,
        "romfile": "",
        **_NO_OFFLOADS,
    }


def _accel(accel: str) -> Iterable[str]:
    if accel == "kvm":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max")


def _disks(disks: tuple[DiskSpec, ...]) -> Iterable[str]:
    scsi = sata = 0
    for index, disk in enumerate(disks):
        file = {"driver": "file", "filename": disk.name, "discard": "unmap"}
        node = {"driver": disk_format(disk), "node-name": _node(disk), "discard": "unmap", "file": file}
        yield from ("-blockdev", _json(node))
        drive: dict[str, Any] = {"drive": _node(disk), "id": f"dev-{_node(disk)}", "bootindex": index + 1}
        if disk.bus == "scsi":
            if not scsi:
                yield from ("-device", "virtio-scsi-pci,id=scsi0")
            yield from ("-device", _json({"driver": "scsi-hd", "bus": "scsi0.0", "lun": scsi, **drive}))
            scsi += 1
        elif disk.bus in ("ide", "sata"):
            yield from ("-device", _json({"driver": "ide-hd", "bus": "ide.0", "unit": sata, **drive}))
            sata += 1
        else:
            yield from ("-device", _json({"driver": "virtio-blk-pci", **drive}))


def _config_drive() -> Iterable[str]:
    file = {"driver": "file", "filename": CONFIG_DRIVE}
    node = {"driver": "raw", "node-name": "configdrive", "read-only": True, "file": file}
    return (
        *("-blockdev", _json(node)),
        *("-device", _json({"driver": "ide-cd", "bus": "ide.1", "unit": 0, "drive": "configdrive", "id": "cd0"})),
    )


def _nics(nics: tuple[NicSpec, ...]) -> Iterable[str]:
    for nic in nics:
        yield from ("-netdev", _json(netdev(nic)), "-device", _json(device(nic)))


def _node(disk: DiskSpec) -> str:
    return disk.name.replace(".", "-")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
