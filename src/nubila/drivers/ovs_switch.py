"""The virtual switch of one host: one integration bridge, and a bridge per physical network joined by patch ports.

Goal: every guest, router and DHCP port of this cloud is a port of ``br-int`` with exactly the flows its spec asks
for. Model: the Open vSwitch database is the only memory. ``br-int`` has in its external_ids one entry ``net:<uuid>``
per network (local VLAN, segment, uplinks, fingerprint of its flows), every interface says in its external_ids whose
it is and which flows it has. Flows are replaced per thing, by cookie, in one OpenFlow bundle, and only when their
fingerprint differs; a copy is kept in ``<root>/switch-flows`` so that a restarted ovs-vswitchd, which has forgotten
them, gets all of them back at once. Tunnels are kernel VXLAN devices (they use the host's own routes, which the
userspace datapath's tunnels do not); GRE and Geneve are Open vSwitch ports. There is no ``br-tun``: one pipeline.

Failure: everything may be killed anywhere. Flows of things that no row names are removed by ``start``.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nubila.core.ports import HostPlace, Impossible, Segment, TryAgain
from nubila.drivers import ovs_db, ovs_flows, ovs_local_ip, ovs_qos, ovs_security
from nubila.drivers.ovs_bridges import Bridges, bridge_name
from nubila.drivers.ovs_daemons import Daemons
from nubila.drivers.ovs_db import Operation, Row
from nubila.drivers.ovs_replica import Replica
from nubila.drivers.ovs_view import (
    CLOUD,
    FLOWS,
    ID,
    INDEX,
    KIND,
    NETWORK,
    OWNER,
    STEERING,
    TX_STEERING,
    Interface,
    LocalNetwork,
    Shared,
    View,
    Wish,
    members,
)
from nubila.drivers.security_log import SecurityLog

_SWITCH, _NET, _LAST = "nubila-switch", "net:", "nubila-last-number"
_SHARED = {"security_group": "group:", "address_set": "set:"}
_LOCAL_PORT = 65534


class Switch(Bridges):
    """The integration bridge of one place, with what is plugged into it."""

    def __init__(self, place: HostPlace, daemons: Daemons | None = None) -> None:
        super().__init__(place, daemons)
        self.bridge = bridge_name("br-int", place.cloud)
        self.replica = Replica(self.db.path, self.db.timeout_s)
        self._seen: tuple[int, View] | None = None  # the newest view, with the replica's count of changes
        self._settled: dict[str, View] = {}  # network -> the view in which its flows were up to date
        self._read: dict[str, tuple[Row, Interface]] = {}
        self._copies = place.root / "switch-flows"
        self.log = SecurityLog(place, self.daemons, self.bridge)

    # --- life

    def start(self) -> None:
        """Have the daemons, the integration bridge and its common flows; drop flows nobody owns."""
        self.ready()
        self._check_flows()
        self.log.start()

    def stop(self) -> None:
        """Write no more to the log of security groups; packets go on."""
        self.log.stop()
        self.replica.close()

    def ready(self) -> None:
        """What every other verb needs; a few hundred microseconds when all is well."""
        self.daemons.ensure()
        bridges = self.replica.look()["Bridge"].values()
        row = next((row for row in bridges if row["name"] == self.bridge), None)
        if row is None:
            self._add_bridge(self.bridge, fail_mode="secure")
            row = self._bridge_row(self.bridge)
        if row is None:
            raise TryAgain(f"The bridge {self.bridge} was not created.")
        if row["external_ids"].get(_SWITCH) != self.daemons.identity():
            self._restore_flows(row["_uuid"])

    def destroy(self) -> None:
        """Remove our bridges with all their ports, and our own daemons."""
        self.stop()
        if self.daemons.running():
            gone = [ovs_db.uuid(row["_uuid"]) for row in self._our_bridges()]
            root, number = self._root()
            self.db.transact(
                ovs_db.mutate("Open_vSwitch", root, ["bridges", "delete", ["set", gone]]),
                ovs_db.mutate("Open_vSwitch", root, ["next_cfg", "+=", 1]),
            )
            # Its devices are gone when ovs-vswitchd has seen this configuration.
            done = [["_uuid", "==", ovs_db.uuid(root)], ["cur_cfg", ">", number]]
            with contextlib.suppress(ovs_db.OvsRefused):
                self.db.transact(ovs_db.wait_for("Open_vSwitch", done, 4.0))
        self.daemons.stop()
        for copy in self._copies.glob("*"):
            copy.unlink()
        if self._copies.is_dir():
            self._copies.rmdir()

    # --- reading

    def view(self) -> View:
        """Everything of ours as it is now."""
        tables = self.replica.look()
        if self._seen is not None and self._seen[0] == self.replica.changes:
            return self._seen[1]
        changes = self.replica.changes
        interfaces = list(tables["Interface"].values())
        bridge = next((row for row in tables["Bridge"].values() if row["name"] == self.bridge), None)
        if bridge is None:
            raise TryAgain(f"The bridge {self.bridge} does not exist.")
        port_of = {row["name"]: row["_uuid"] for row in tables["Port"].values()}
        ids = bridge["external_ids"]
        view = View(
            bridge_uuid=bridge["_uuid"],
            networks={
                key.removeprefix(_NET): msgspec.json.decode(value, type=LocalNetwork)
                for key, value in ids.items()
                if key.startswith(_NET)
            },
            interfaces={
                row["name"]: self._interface(row, port_of.get(row["name"], ""))
                for row in interfaces
                if row["external_ids"].get(CLOUD) == self.place.cloud and KIND in row["external_ids"]
            },
            shared={
                kind: {
                    key.removeprefix(prefix): msgspec.json.decode(value, type=Shared)
                    for key, value in ids.items()
                    if key.startswith(prefix)
                }
                for kind, prefix in _SHARED.items()
            },
            last=int(ids.get(_LAST, "0")),
            numbers=frozenset(
                number
                for row in interfaces
                for number in (_number(row["ofport"]), _number(row["ofport_request"]))
                if number
            ),
        )
        self._read = {i.uuid: self._read[i.uuid] for i in view.interfaces.values()}
        self._seen = (changes, view)
        return view

    def _interface(self, row: Row, port_uuid: str) -> Interface:
        """A row as an interface; one that is the same as at the last look is not read again."""
        known = self._read.get(row["_uuid"])
        if known is not None and known[0] is row and known[1].port_uuid == port_uuid:
            return known[1]
        interface = Interface(
            uuid=row["_uuid"],
            port_uuid=port_uuid,
            name=row["name"],
            ofport=_number(row["ofport"]),
            error=ovs_db.one(row["error"]) or "",
            ids=row["external_ids"],
        )
        self._read[row["_uuid"]] = (row, interface)
        return interface

    # --- networks

    def ensure_network(self, id: str, segment: Segment, project_id: str, view: View) -> LocalNetwork:
        """Have a local VLAN for a network; the same one as before a restart."""
        present = view.networks.get(id)
        if present is not None:
            if present.segment != segment or present.project_id != project_id:
                present = msgspec.structs.replace(present, segment=segment, project_id=project_id)
                self.save_network(id, present, view)
            return present
        taken = {network.vlan for network in view.networks.values()}
        free = next((vlan for vlan in range(1, 4095) if vlan not in taken), None)
        if free is None:
            raise Impossible("This host has 4094 networks already.")
        new = LocalNetwork(vlan=free, segment=segment, project_id=project_id)
        self.save_network(id, new, view)
        return new

    def save_network(self, id: str, network: LocalNetwork, view: View, also: Sequence[Operation] = ()) -> None:
        """Write br-int's memory of a network; ``also`` in the same transaction."""
        value = {_NET + id: msgspec.json.encode(network).decode()}
        self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, *ovs_db.put("external_ids", value)), *also)

    def forget_network(self, id: str, gone: Mapping[tuple[str, str], Sequence[str]]) -> None:
        """Remove a network's flows and those of its ``gone`` ports, and br-int's memory of it."""
        view = self.view()
        known = view.networks.get(id)
        self.replace_flows({**gone, ("network", id): ()}, [known.vlan] if known else [])
        self._settled.pop(id, None)
        forget = ["external_ids", "delete", ["set", [_NET + id]]]
        self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, forget))

    def wire(
        self,
        network_id: str,
        more: Mapping[tuple[str, str], Sequence[str]] | None = None,
        then: Sequence[Operation] = (),
    ) -> None:
        """Bring the flows of a network up to date with its ports, with ``more`` flow sets in the same bundle.

        ``then`` is written to the database once they are there. What is written makes ovs-vswitchd look at all its
        ports, so it is one transaction.
        """
        view = self.view()
        network = view.networks.get(network_id)
        sets = dict(more or {})
        if network is None:
            self.replace_flows(sets)
            if then:
                self.db.transact(*then)
            return
        if not sets and self._settled.get(network_id) is view:
            return  # nothing at all has changed since it was found to be up to date
        flows = ovs_flows.network_flows(
            network.vlan, members(view, network_id), network.uplinks, network.restricted, tags=network.tags
        )
        plugged = {i.ids.get(ID, ""): i.ofport for i in view.interfaces.values() if i.kind == "guest" and i.ofport}
        flows += ovs_local_ip.flows(network.vlan, network.local_ips, plugged)
        if ovs_flows.digest(flows) != network.flows:
            sets["network", network_id] = flows
            self.replace_flows(sets, [network.vlan], {("network", network_id): network.flows})
            now = msgspec.structs.replace(network, flows=ovs_flows.digest(flows))
            self.save_network(network_id, now, view, then)
        else:
            self.replace_flows(sets)
            if then:
                self.db.transact(*then)
            self._settled[network_id] = view

    # --- security groups and address sets

    def numbers(self, kind: str, ids: Iterable[str], view: View) -> dict[str, int]:
        """The numbers by which flows know these groups or sets; who has none yet gets one.

        A number that was given back is not used again soon: flows that still name it must not meet another's rules.
        """
        known = {id: shared.number for id, shared in view.shared[kind].items()}
        new = sorted(set(ids) - known.keys())
        if new:
            taken, last = {s.number for kinds in view.shared.values() for s in kinds.values()}, view.last
            values = {}
            for id in new:
                after = (*range(last + 1, ovs_security.MAX_NUMBER), *range(1, last + 1))
                number = next((n for n in after if n not in taken), None)
                if number is None:
                    raise Impossible("This host has too many security groups.")
                taken.add(number)
                known[id] = last = number
                values[_SHARED[kind] + id] = msgspec.json.encode(Shared(number=number)).decode()
            values[_LAST] = str(last)
            self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, *ovs_db.put("external_ids", values)))
        return known

    def write_shared(self, kind: str, id: str, number: int, flows: Sequence[str], view: View) -> None:
        """Make a group's or set's flows these: one bundle of what differs, nothing when nothing does."""
        present = view.shared[kind].get(id)
        print_now = ovs_flows.digest(flows)
        if present is not None and present.flows == print_now:
            return
        self.replace_flows({(kind, id): flows}, known={(kind, id): present.flows if present is not None else ""})
        value = msgspec.json.encode(Shared(number=number, flows=print_now)).decode()
        self.db.transact(
            ovs_db.mutate("Bridge", view.bridge_uuid, *ovs_db.put("external_ids", {_SHARED[kind] + id: value}))
        )

    def drop_shared(self, kind: str, id: str) -> None:
        """Forget a group or set; absent is success."""
        view = self.view()
        if id in view.shared[kind]:
            self.replace_flows({(kind, id): ()})
            forget = ["external_ids", "delete", ["set", [_SHARED[kind] + id]]]
            self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, forget))

    # --- ports

    def free_number(self, view: View) -> int:
        """An OpenFlow port number that is free in the whole database: it is a conntrack zone as well."""
        return next(number for number in range(1, ovs_local_ip.FIRST_ZONE) if number not in view.numbers)

    def plug(self, wish: Wish, view: View, timeout_s: float = 4.0) -> Interface:
        """Have an interface in br-int and know its OpenFlow number.

        Open vSwitch opens a device only when its row is new: when the device has been made again under the same name
        (its index differs from the recorded one), the row is replaced.
        Raises TryAgain when Open vSwitch cannot open the device.
        """
        ids = self._ids(wish)
        present = view.interfaces.get(wish.name)
        if present is not None and (present.error or present.ids.get(INDEX) != ids.get(INDEX)):
            self._unplug([present], view)
            present = None
        if present is None:
            number = self.free_number(view)
            if wish.kind == "guest":
                self.flush(number)  # the number is the conntrack zone, and somebody may have had it before
            self.db.transact(*self._plug_operations(wish, ids, number, view))
        elif {key: present.ids.get(key) for key in ids} != ids:
            self.set_ids(present, ids)
        if present is not None and present.ofport:
            return msgspec.structs.replace(present, ids={**present.ids, **ids})
        where = [["name", "==", wish.name]]
        with contextlib.suppress(ovs_db.OvsRefused):  # a timeout shows in the row
            self.db.transact(ovs_db.wait_changed("Interface", where, ["ofport"], {"ofport": ["set", []]}, timeout_s))
        plugged = self.view().interfaces.get(wish.name)
        if plugged is None or not plugged.ofport:
            why = plugged.error if plugged and plugged.error else "no answer"
            raise TryAgain(f"Open vSwitch could not use the device {wish.name}: {why}.")
        return plugged

    def set_ids(self, interface: Interface, ids: Mapping[str, str]) -> None:
        """Write external_ids of one interface."""
        changes = ovs_db.put("external_ids", ids)
        if ids.get(STEERING, "") != interface.ids.get(STEERING, "") and STEERING in ids:
            told = ovs_db.put("other_config", {TX_STEERING: ids[STEERING]})
            changes += told if ids[STEERING] else told[:1]
        self.db.transact(ovs_db.mutate("Interface", interface.uuid, *changes))

    def unplug(self, interfaces: Sequence[Interface]) -> dict[tuple[str, str], Sequence[str]]:
        """Take interfaces out of br-int; returns the flow sets that must be replaced by nothing."""
        if not interfaces:
            return {}
        self._unplug(interfaces, self.view())
        for interface in interfaces:
            ovs_qos.drop(self.daemons, self.bridge, sorted(ovs_qos.remembered(interface.ids)))
        return {(interface.kind, interface.ids.get(ID, "")): () for interface in interfaces}

    def flush(self, zone: int) -> None:
        """Forget all tracked connections of one port."""
        self.daemons.control("dpctl/flush-conntrack", f"zone={zone}")

    def _unplug(self, interfaces: Sequence[Interface], view: View) -> None:
        ports = [ovs_db.uuid(interface.port_uuid) for interface in interfaces if interface.port_uuid]
        self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, ["ports", "delete", ["set", ports]]))

    def _ids(self, wish: Wish) -> dict[str, str]:
        return {CLOUD: self.place.cloud, KIND: wish.kind, ID: wish.id, NETWORK: wish.network_id, **wish.ids}

    def _plug_operations(self, wish: Wish, ids: Mapping[str, str], number: int, view: View) -> list[Operation]:
        interface: Row = {"name": wish.name, "external_ids": ovs_db.ovs_map(ids), "ofport_request": number}
        if wish.type:
            interface.update(type=wish.type, options=ovs_db.ovs_map(wish.options))
        if ids.get(STEERING):
            interface["other_config"] = ovs_db.ovs_map({TX_STEERING: ids[STEERING]})
        port: Row = {"name": wish.name, "interfaces": ovs_db.named("interface")}
        port["external_ids"] = ovs_db.ovs_map({CLOUD: self.place.cloud})
        if wish.tag is not None:
            port["tag"] = wish.tag  # for the reader of ovs-vsctl show: the flows decide
        return [
            ovs_db.insert("Interface", "interface", interface),
            ovs_db.insert("Port", "port", port),
            ovs_db.mutate("Bridge", view.bridge_uuid, ["ports", "insert", ["set", [ovs_db.named("port")]]]),
        ]

    # --- physical networks

    def patch(self, physical_network: str) -> int:
        """Join br-int to a physical network's bridge; returns the OpenFlow number of br-int's end."""
        outer = self.physical_bridge(physical_network)
        here, there = f"int-{outer}", f"phy-{outer}"
        row = self._bridge_row(outer)
        if row is None:
            raise TryAgain(f"The bridge {outer} does not exist.")
        if not self.db.rows(ovs_db.select("Port", ["_uuid"], [["name", "==", there]]))[0]:
            ids = ovs_db.ovs_map({CLOUD: self.place.cloud})
            end = {"name": there, "type": "patch", "options": ovs_db.ovs_map({"peer": here}), "external_ids": ids}
            self.db.transact(
                ovs_db.insert("Interface", "interface", end),
                ovs_db.insert(
                    "Port", "port", {"name": there, "interfaces": ovs_db.named("interface"), "external_ids": ids}
                ),
                ovs_db.mutate("Bridge", row["_uuid"], ["ports", "insert", ["set", [ovs_db.named("port")]]]),
            )
        wish = Wish(name=here, kind="patch", id=physical_network, type="patch", options={"peer": there})
        number = self.plug(wish, self.view()).ofport
        if number is None:
            raise TryAgain(f"The patch port {here} has no number yet.")
        return number

    # --- flows

    def replace_flows(
        self,
        sets: Mapping[tuple[str, str], Sequence[str]],
        relearn: Iterable[int] = (),
        known: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """Make flow sets, each known by (kind, id), what they should be, in one bundle: all or nothing.

        ``relearn`` names local VLANs whose learned addresses are forgotten. ``known``: the fingerprint of what the
        bridge has of a set; when our copy is that, only what differs is written, else the whole set.
        """
        if not sets:
            return
        lines: list[str] = []
        for (kind, id), flows in sets.items():
            mark = ovs_flows.cookie(self.place.cloud, kind, id)
            lines += self._changes(mark, flows, (known or {}).get((kind, id), ""))
        lines += [f"delete table=31,reg5={vlan}" for vlan in relearn]
        self._bundle(lines)
        for (kind, id), flows in sets.items():
            self._copy(ovs_flows.cookie(self.place.cloud, kind, id), flows)

    def _copy(self, mark: int, flows: Sequence[str]) -> None:
        """Keep what the bridge was told, for a restarted ovs-vswitchd."""
        self._copies.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = self._copies / f"{mark:016x}"
        if flows:
            fresh = copy.with_suffix(".new")
            fresh.write_text("\n".join(flows) + "\n")
            fresh.replace(copy)
        else:
            copy.unlink(missing_ok=True)

    def _changes(self, mark: int, flows: Sequence[str], known: str) -> list[str]:
        """The lines of a bundle that make a flow set these flows."""
        copy = self._copies / f"{mark:016x}"
        present = copy.read_text().splitlines() if known and copy.is_file() else []
        if not present or ovs_flows.digest(present) != known:
            return [f"delete cookie={mark:#x}/-1", *(f"add cookie={mark:#x},{flow}" for flow in flows)]
        old = dict(flow.split(" actions=", 1) for flow in present)
        new = dict(flow.split(" actions=", 1) for flow in flows)
        lines = [f"delete_strict cookie={mark:#x}/-1,{match}" for match in old if match not in new]
        return lines + [f"add cookie={mark:#x},{m} actions={a}" for m, a in new.items() if old.get(m) != a]

    def _bundle(self, lines: Sequence[str]) -> None:
        self.daemons.openflow("--bundle add-flows", self.bridge, "-", lines="\n".join(lines) + "\n")

    def _restore_flows(self, bridge_uuid: str) -> None:
        """Give a new ovs-vswitchd all flows again; it needs a moment before it listens for them."""
        deadline = time.monotonic() + 5
        while True:
            try:
                self.replace_flows({("static", ""): ovs_flows.static_flows()})
                break
            except TryAgain:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        # First fragments show their ports; else rogue DHCP or advertisements in fragments would look like anything.
        self.daemons.openflow("set-frags", self.bridge, "nx-match")
        self.log.make_meter()
        for interface in self.view().interfaces.values():
            ovs_qos.ensure(self.daemons, self.bridge, ovs_qos.remembered(interface.ids), {})
        lines = []
        for copy in self._copies.glob("*"):
            if re.fullmatch(r"[0-9a-f]{16}", copy.name):
                lines += [f"add cookie=0x{copy.name},{flow}" for flow in copy.read_text().splitlines()]
        self._bundle(lines)
        self._check_flows()
        identity = {_SWITCH: self.daemons.identity()}
        self.db.transact(ovs_db.mutate("Bridge", bridge_uuid, *ovs_db.put("external_ids", identity)))

    def drift(self) -> list[tuple[str, str]]:
        """What has lost flows, has a port that does not work, or is joined to a bridge that is gone."""
        found = self._check_flows()
        view = self.view()
        rows = self.db.rows(ovs_db.select("Port", ["name"]), ovs_db.select("Bridge", ["name"]))
        names = {row["name"] for part in rows for row in part}
        torn = set()
        for interface in view.interfaces.values():
            if interface.kind == "patch" and interface.name.replace("int-", "phy-", 1) not in names:
                torn.add(interface.ids.get(ID, ""))
            elif interface.error:
                found.append(_thing(interface))
        found += [("network", id) for id, network in view.networks.items() if network.segment.physical_network in torn]
        return found

    def _check_flows(self) -> list[tuple[str, str]]:
        """Drop flows that no row owns, and forget the fingerprints of sets that are not whole; returns whose they are.

        Forgotten, a set is written again by the next ``ensure`` of its thing.
        """
        view = self.view()
        lost: list[tuple[str, str]] = []
        present = self.count_flows()
        static = ovs_flows.static_flows()
        owners = {ovs_flows.cookie(self.place.cloud, "static", ""): len(static), 0: present[0]}
        partial = []
        for interface in view.interfaces.values():
            if FLOWS in interface.ids:
                mark = ovs_flows.cookie(self.place.cloud, interface.kind, interface.ids.get(ID, ""))
                owners[mark] = _size(interface.ids[FLOWS])
                if owners[mark] != present[mark]:
                    self.set_ids(interface, {FLOWS: ""})
                    lost.append(_thing(interface))
        for id, network in view.networks.items():
            mark = ovs_flows.cookie(self.place.cloud, "network", id)
            owners[mark] = _size(network.flows)
            if owners[mark] != present[mark]:
                partial.append((id, network))
        for kind, things in view.shared.items():
            for id, shared in things.items():
                mark = ovs_flows.cookie(self.place.cloud, kind, id)
                owners[mark] = _size(shared.flows)
                if owners[mark] > 0 and owners[mark] != present[mark]:
                    value = msgspec.json.encode(Shared(number=shared.number)).decode()
                    put = ovs_db.put("external_ids", {_SHARED[kind] + id: value})
                    self.db.transact(ovs_db.mutate("Bridge", view.bridge_uuid, *put))
                    lost.append((kind, id))
        for id, network in partial:
            lost.append(("network", id))
            self.save_network(id, msgspec.structs.replace(network, flows=""), view)
        self._drop_flows([mark for mark in present if mark not in owners])
        if present[ovs_flows.cookie(self.place.cloud, "static", "")] != len(static):
            self.replace_flows({("static", ""): static})
        return lost

    def _drop_flows(self, marks: Sequence[int]) -> None:
        if marks:
            self._bundle([f"delete cookie={mark:#x}/-1" for mark in marks])
            for mark in marks:
                (self._copies / f"{mark:016x}").unlink(missing_ok=True)

    def count_flows(self) -> Counter[int]:
        """How many flows br-int has, by cookie."""
        shown = self.daemons.openflow("dump-flows --no-stats", self.bridge)
        counts: Counter[int] = Counter()
        for line in shown.splitlines():
            if "actions=" in line:
                mark = re.search(r"cookie=(0x[0-9a-f]+)", line.partition("actions=")[0])
                counts[int(mark[1], 16) if mark else 0] += 1
        return counts


def _thing(interface: Interface) -> tuple[str, str]:
    """Which thing must be ensured to have the interface as it should be."""
    if interface.kind == "guest":
        return "port", interface.ids.get(ID, "")
    if interface.kind == "router":
        return "router", interface.ids.get(OWNER, "")
    return "network", interface.ids.get(NETWORK, "")


def _number(value: Any) -> int | None:
    """A port number; None while there is none (-1: the device could not be opened)."""
    number = ovs_db.one(value)
    return number if isinstance(number, int) and 0 < number <= _LOCAL_PORT else None


def _size(digest: str) -> int:
    return int(digest.partition(":")[0]) if digest else -1
