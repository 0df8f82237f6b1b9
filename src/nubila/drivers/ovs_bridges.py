"""The bridges of one place: the integration bridge and those of physical networks, made and found by their mark."""

from __future__ import annotations

import contextlib
import hashlib

from nubila.core.ports import HostPlace, NeedsOperator
from nubila.drivers import ovs_db
from nubila.drivers.ovs_daemons import Daemons
from nubila.drivers.ovs_db import Row
from nubila.drivers.ovs_view import CLOUD

_VLAN_LIMIT = "vlan-limit"


class Bridges:
    """Bridges in the database; ``db`` and ``daemons`` are the place's."""

    def __init__(self, place: HostPlace, daemons: Daemons | None = None) -> None:
        self.place = place
        self.daemons = daemons or Daemons(place)
        self.db = self.daemons.database

    def physical_bridge(self, physical_network: str) -> str:
        """The bridge of a physical network: the operator's when it exists unmarked, else one of our own.

        A name that another cloud's bridge has already gets this cloud's suffix.

        Raises NeedsOperator when this host has no bridge configured for it.
        """
        wanted = self.place.bridges.get(physical_network)
        if wanted is None:
            raise NeedsOperator(f"This host has no bridge for the physical network {physical_network}.")
        row = self._bridge_row(wanted)
        owner = row["external_ids"].get(CLOUD, "") if row is not None else None
        if owner in ("", self.place.cloud):
            return wanted
        name = wanted if owner is None else bridge_name(wanted, self.place.cloud)
        if self._bridge_row(name) is None:
            self._add_bridge(name)
        return name

    def _root(self) -> tuple[str, int]:
        """The database's only Open_vSwitch row and the number of its newest configuration."""
        row = self.db.rows(ovs_db.select("Open_vSwitch", ["_uuid", "next_cfg"]))[0][0]
        return row["_uuid"], row["next_cfg"]

    def see_two_tags(self) -> None:
        """Have ovs-vswitchd look at two VLAN tags of a frame: at one it does by default, and 0 is its most."""
        root, number = self._root()
        row = self.db.rows(ovs_db.select("Open_vSwitch", ["other_config"]))[0][0]
        if row["other_config"].get(_VLAN_LIMIT, "1") != "1":
            return
        self.db.transact(
            ovs_db.mutate("Open_vSwitch", root, *ovs_db.put("other_config", {_VLAN_LIMIT: "2"}), ["next_cfg", "+=", 1])
        )
        done = [["_uuid", "==", ovs_db.uuid(root)], ["cur_cfg", ">", number]]
        with contextlib.suppress(ovs_db.OvsRefused):  # until it does, frames with two tags are dropped by filters
            self.db.transact(ovs_db.wait_for("Open_vSwitch", done, 4.0))

    def _bridge_row(self, name: str) -> Row | None:
        rows = self.db.rows(ovs_db.select("Bridge", ["_uuid", "external_ids"], [["name", "==", name]]))[0]
        return rows[0] if rows else None

    def bridge_row(self, name: str) -> Row | None:
        """``_uuid`` and ``external_ids`` of a bridge, None when there is none of that name."""
        return self._bridge_row(name)

    def add_bridge(self, name: str) -> None:
        """Make an ordinary switching bridge, marked ours."""
        self._add_bridge(name)

    def remove_bridge(self, name: str) -> None:
        """Take away a bridge of ours with all its ports; absent is success."""
        row = self._bridge_row(name)
        if row is not None and row["external_ids"].get(CLOUD) == self.place.cloud:
            gone = ["bridges", "delete", ["set", [ovs_db.uuid(row["_uuid"])]]]
            self.db.transact(ovs_db.mutate("Open_vSwitch", self._root()[0], gone))

    def _our_bridges(self) -> list[Row]:
        rows = self.db.rows(ovs_db.select("Bridge", ["_uuid", "name", "external_ids"]))[0]
        return [row for row in rows if row["external_ids"].get(CLOUD) == self.place.cloud]

    def our_bridges(self) -> list[str]:
        """Names of the bridges we made."""
        return sorted(row["name"] for row in self._our_bridges())

    def _add_bridge(self, name: str, fail_mode: str = "standalone") -> None:
        """Make a bridge and wait until ovs-vswitchd has it."""
        root, _ = self._root()
        ids = ovs_db.ovs_map({CLOUD: self.place.cloud})
        mac = hashlib.sha256(f"{self.place.cloud}/{self.place.host}/{name}".encode()).digest()
        bridge = {
            "name": name,
            "datapath_type": self.daemons.datapath_type,
            "fail_mode": fail_mode,
            "ports": ovs_db.named("port"),
            "external_ids": ids,
            "protocols": ["set", ["OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"]],
            # A fixed address: else it would change whenever the lowest address among the ports does.
            "other_config": ovs_db.ovs_map({"hwaddr": ":".join(f"{byte:02x}" for byte in (0xFA, 0x16, *mac[:4]))}),
        }
        self.db.transact(
            ovs_db.insert("Interface", "interface", {"name": name, "type": "internal", "external_ids": ids}),
            ovs_db.insert("Port", "port", {"name": name, "interfaces": ovs_db.named("interface")}),
            ovs_db.insert("Bridge", "bridge", bridge),
            ovs_db.mutate("Open_vSwitch", root, ["bridges", "insert", ["set", [ovs_db.named("bridge")]]]),
        )
        where = [["name", "==", name]]
        self.db.transact(ovs_db.wait_changed("Interface", where, ["ofport"], {"ofport": ["set", []]}, 4.0))
        error = self.db.rows(ovs_db.select("Interface", ["error"], where))[0]
        said = ovs_db.one(error[0]["error"]) if error else None
        if said:
            raise NeedsOperator(f"Open vSwitch could not make the bridge {name}: {said}.")


def bridge_name(base: str, cloud: str) -> str:
    """A bridge's name for one cloud, at most 15 characters; the cloud called nubila has the plain names."""
    if cloud == "nubila":
        return base[:15]
    plain = f"{base}-{cloud}"
    if len(plain) <= 15:
        return plain
    return f"{base[:8]}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"
