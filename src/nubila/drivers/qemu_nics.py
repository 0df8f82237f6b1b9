"""NICs of a running guest: see what is plugged, plug and unplug the difference over QMP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nubila.core.ports import NicSpec, TryAgain
from nubila.drivers import qemu_command
from nubila.drivers.qmp import Qmp, QmpError

_RELEASE_S = 3.0  # how long one ensure waits for the guest to let go of a NIC


def plugged(socket: Path) -> tuple[str, ...]:
    """The port ids of the NICs the running guest has; () when QEMU does not answer."""
    try:
        with Qmp(socket, 2.0) as qmp:
            return _plugged(qmp)
    except QmpError:
        return ()


def ensure(socket: Path, nics: Iterable[NicSpec]) -> None:
    """Make the running guest have these NICs; raises TryAgain when the guest does not release one yet."""
    wanted = {nic.port_id: nic for nic in nics}
    try:
        with Qmp(socket) as qmp:
            have = _plugged(qmp)
            for port_id in have:
                if port_id not in wanted:
                    _unplug(qmp, port_id)
            for port_id, nic in wanted.items():
                if port_id not in have:
                    _plug(qmp, nic)
    except QmpError as error:
        raise TryAgain(f"The guest's network devices cannot be changed: {error}") from None


def _plugged(qmp: Qmp) -> tuple[str, ...]:
    children = qmp.execute("qom-list", path="/machine/peripheral")
    return tuple(child["name"][4:] for child in children if child["name"].startswith("nic-"))


def _plug(qmp: Qmp, nic: NicSpec) -> None:
    netdev = qemu_command.netdev(nic)
    try:
        qmp.execute("netdev_add", **netdev)
    except QmpError as error:
        if "Duplicate" not in str(error):
            raise
        qmp.execute("netdev_del", id=netdev["id"])  # left over from an ensure that died half-way
        qmp.execute("netdev_add", **netdev)
    qmp.execute("device_add", **qemu_command.device(nic))


def _unplug(qmp: Qmp, port_id: str) -> None:
    device = f"nic-{port_id}"
    try:
        qmp.execute("device_del", id=device)
    except QmpError as error:
        if "already in the process" not in str(error):
            raise
    gone = qmp.wait_event(
        lambda event: event["event"] == "DEVICE_DELETED" and event["data"].get("device") == device, _RELEASE_S
    )
    if not gone and port_id in _plugged(qmp):
        raise TryAgain(f"Waiting for the guest to release the network device of port {port_id}.")
    qmp.execute("netdev_del", id=f"net-{port_id}")
