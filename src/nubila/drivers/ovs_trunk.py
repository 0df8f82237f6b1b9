"""Trunks in Open vSwitch: a bridge ``tbr-<trunk>`` between a parent's tap and br-int.

Goal: what the guest sends with a VLAN tag enters br-int as untagged frames of the subport, and back; on br-int a
subport is a port like any other, with its own filter, limits and conntrack zone. Model: the tap is a port of the
trunk's bridge; each port of the trunk is a pair of patch ports, ``tpt-``/``tpi-`` for the parent (untagged frames
only) and ``spt-``/``spi-`` for a subport (an access port of its VLAN). The interface on br-int remembers the trunk
and the tap. Ports come and go in any order: whoever is first makes the bridge, whoever is last takes it away. A port
that becomes or ceases to be a parent keeps its tap; only the port row moves between the bridges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nubila.core.ports import PortSpec
from nubila.drivers import ovs_db
from nubila.drivers.ovs_db import Operation

if TYPE_CHECKING:
    from nubila.drivers.ovs_switch import Switch
    from nubila.drivers.ovs_view import Interface, View

TRUNK, TAP = "nubila-trunk", "nubila-tap"
_CLOUD, _ID, _INDEX = "nubila-cloud", "nubila-id", "nubila-ifindex"


def bridge(trunk_id: str) -> str:
    """The bridge of a trunk."""
    return f"tbr-{trunk_id[:11]}"


def inner(spec: PortSpec) -> str:
    """The port's end on br-int: its tap, or a patch port when it is in a trunk."""
    if spec.trunk is None:
        return spec.device
    return ("tpi-" if spec.trunk.vlan is None else "spi-") + spec.id[:11]


def outer(name: str) -> str:
    """The other end of a patch port on br-int."""
    return name.replace("pi-", "pt-", 1)


def place(switch: Switch, spec: PortSpec, index: int | None, view: View) -> View:
    """Bring everything outside br-int to what the spec says; returns the switch as it is then.

    ``index`` is that of the tap, None for a subport. What the port was before (a plain port, a parent, a subport of
    another trunk) is taken out of br-int.
    """
    wanted = inner(spec)
    stale = [i for i in view.interfaces.values() if i.kind == "guest" and i.ids.get(_ID) == spec.id]
    if spec.trunk is not None:
        stale = [i for i in stale if i.name != wanted or i.ids.get(TRUNK) != spec.trunk.trunk_id]
    else:
        stale = [i for i in stale if i.name != wanted]
    if stale:
        switch.unplug(stale)
        forget(switch, stale, keep=spec.device)
        view = switch.view()
    if spec.trunk is not None:
        _join(switch, spec, index, wanted)
    return view


def _join(switch: Switch, spec: PortSpec, index: int | None, name: str) -> None:
    assert spec.trunk is not None
    here = bridge(spec.trunk.trunk_id)
    if switch.bridge_row(here) is None:
        switch.add_bridge(here)
    marks = {_CLOUD: switch.place.cloud}
    if index is not None:
        _put(switch, here, {"name": spec.device, "external_ids": {**marks, _INDEX: str(index)}}, {})
    far = outer(name)
    # The parent takes untagged frames alone; a subport's frames have its tag on this bridge and none on br-int.
    kind: dict[str, Any] = (
        {"trunks": ["set", [0]], "vlan_mode": "trunk"}
        if spec.trunk.vlan is None
        else {"tag": spec.trunk.vlan, "vlan_mode": "access"}
    )
    _put(switch, here, {"name": far, "type": "patch", "options": {"peer": name}, "external_ids": marks}, kind)


def _put(switch: Switch, here: str, interface: dict[str, Any], port: dict[str, Any]) -> None:
    """Have a port on a bridge with exactly this interface; one that differs is replaced."""
    name = interface["name"]
    ports, present = switch.db.rows(
        ovs_db.select("Port", ["_uuid", "tag", "trunks"], [["name", "==", name]]),
        ovs_db.select("Interface", ["options", "external_ids", "error"], [["name", "==", name]]),
    )
    if ports and present:
        same = all(present[0].get(part, {}) == interface.get(part, {}) for part in ("options", "external_ids"))
        if same and ovs_db.one(ports[0]["tag"]) == port.get("tag") and not ovs_db.one(present[0]["error"]):
            return
        _drop(switch, here, [name])
    row = {**interface, "external_ids": ovs_db.ovs_map(interface["external_ids"])}
    if "options" in interface:
        row["options"] = ovs_db.ovs_map(interface["options"])
    bridge_row = switch.bridge_row(here)
    assert bridge_row is not None
    operations: list[Operation] = [
        ovs_db.insert("Interface", "interface", row),
        ovs_db.insert("Port", "port", {"name": name, "interfaces": ovs_db.named("interface"), **port,
                                       "external_ids": ovs_db.ovs_map({_CLOUD: switch.place.cloud})}),
        ovs_db.mutate("Bridge", bridge_row["_uuid"], ["ports", "insert", ["set", [ovs_db.named("port")]]]),
    ]  # fmt: skip
    switch.db.transact(*operations)


def _drop(switch: Switch, here: str, names: Iterable[str]) -> None:
    row = switch.bridge_row(here)
    if row is None:
        return
    wanted = set(names)
    ports = switch.db.rows(ovs_db.select("Port", ["_uuid", "name"]))[0]
    gone = [ovs_db.uuid(p["_uuid"]) for p in ports if p["name"] in wanted]
    if gone:
        switch.db.transact(ovs_db.mutate("Bridge", row["_uuid"], ["ports", "delete", ["set", gone]]))


def forget(switch: Switch, interfaces: Sequence[Interface], keep: str = "") -> list[str]:
    """Take away what belongs to ports that left br-int; returns the taps that have lost their use, but ``keep``."""
    taps = []
    for interface in interfaces:
        trunk_id = interface.ids.get(TRUNK, "")
        if not trunk_id:
            continue
        here, tap = bridge(trunk_id), interface.ids.get(TAP, "")
        _drop(switch, here, [outer(interface.name), *([tap] if tap else [])])
        if tap and tap != keep:
            taps.append(tap)
        if not _used(switch, here):
            switch.remove_bridge(here)
    return taps


def _used(switch: Switch, here: str) -> bool:
    """Whether a bridge has any port but its own."""
    rows = switch.db.rows(ovs_db.select("Bridge", ["ports"], [["name", "==", here]]))[0]
    ports = rows[0]["ports"] if rows else []
    return len(ports if isinstance(ports, list) else [ports]) > 1
