"""Networks that carry nothing: same protocol, same answers, no root, well under a millisecond a call.

One JSON file per thing under ``<root>/network/{networks,ports,routers}``, replaced by rename, so the "wiring" survives
``kill -9`` of the agent as the real one does. ``<root>/behaviours.json`` (shared with the simulated hypervisor) makes
it slow or makes it fail: its ``delay_s`` and ``fail`` know the operations network, port, router, remove_network,
remove_port and remove_router. Its ``prefixes`` are what a DHCPv6 server would delegate, by subnet id.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from nubila.core.ports import (
    AddressSetSpec,
    Delegation,
    HostPlace,
    Impossible,
    LeaseClaims,
    MetadataAnswer,
    NeedsOperator,
    NetworkSpec,
    NetworkState,
    PortSpec,
    RouterSpec,
    SecurityGroupSpec,
    TryAgain,
)
from nubila.drivers.files import read_json, write_json
from nubila.drivers.simulated_hypervisor import Behaviours

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z")
_KINDS = {"again": TryAgain, "operator": NeedsOperator, "impossible": Impossible}
_FOLDERS = {
    "network": "networks",
    "port": "ports",
    "router": "routers",
    "security_group": "security-groups",
    "address_set": "address-sets",
}
Spec = TypeVar("Spec", NetworkSpec, PortSpec, RouterSpec, SecurityGroupSpec, AddressSetSpec)


class SimulatedNetwork:
    """The NetworkDriver of the simulated gear."""

    def __init__(self, place: HostPlace) -> None:
        self.place = place
        self.folder = place.root / "network"
        self._lock = threading.RLock()
        self._answer: MetadataAnswer | None = None
        self._told: dict[str, tuple[Delegation, ...] | None] = {}

    def start(self) -> None:
        """Make the folders; adopts what is there."""
        for name in _FOLDERS.values():
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def stop(self) -> None:
        """Stop answering metadata; the files stay."""
        self._answer = None

    def destroy(self) -> None:
        """Forget everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def networks(self) -> list[str]:
        """Ids of the networks here."""
        return self._ids("network")

    def ports(self) -> list[str]:
        """Ids of the guests' ports here."""
        return self._ids("port")

    def routers(self) -> list[str]:
        """Ids of the routers here."""
        return self._ids("router")

    def ensure_network(self, spec: NetworkSpec) -> NetworkState:
        """Record a network; a physical network must have a bridge on this host, as in the real driver."""
        self._step("network")
        segment = spec.segment
        if segment.network_type in ("vlan", "flat") and segment.physical_network not in self.place.bridges:
            raise NeedsOperator(f"This host has no bridge for the physical network {segment.physical_network}.")
        self._write("network", spec.id, spec)
        return NetworkState(id=spec.id)

    def remove_network(self, id: str) -> None:
        """Forget a network; absent is success."""
        self._remove("network", id)

    def ensure_port(self, spec: PortSpec) -> NetworkState:
        """Record a guest's port; its network must be here."""
        self._step("port")
        self._must_be_wired(spec.network_id)
        self._write("port", spec.id, spec)
        return NetworkState(id=spec.id, status="ACTIVE" if spec.admin_state_up else "DOWN")

    def remove_port(self, id: str) -> None:
        """Forget a port; absent is success."""
        self._remove("port", id)

    def security_groups(self) -> list[str]:
        """Ids of the security groups known here."""
        return self._ids("security_group")

    def ensure_security_group(self, spec: SecurityGroupSpec) -> NetworkState:
        """Record a group's rules."""
        self._step("security_group")
        self._write("security_group", spec.id, spec)
        return NetworkState(id=spec.id)

    def remove_security_group(self, id: str) -> None:
        """Forget a group; absent is success."""
        self._remove("security_group", id)

    def address_sets(self) -> list[str]:
        """Ids of the address sets known here."""
        return self._ids("address_set")

    def ensure_address_set(self, spec: AddressSetSpec) -> NetworkState:
        """Record a set's addresses."""
        self._step("address_set")
        self._write("address_set", spec.id, spec)
        return NetworkState(id=spec.id)

    def remove_address_set(self, id: str) -> None:
        """Forget a set; absent is success."""
        self._remove("address_set", id)

    def ensure_router(self, spec: RouterSpec) -> NetworkState:
        """Record a router; its networks must be here and its epoch not older than the recorded one."""
        self._step("router")
        present = self.router(spec.id)
        if present is not None and present.epoch > spec.epoch:
            raise TryAgain(
                f"Router {spec.id} is at epoch {present.epoch}: this wish of epoch {spec.epoch} is out of date."
            )
        for port in (*spec.interfaces, *([spec.gateway] if spec.gateway else [])):
            if spec.admin_state_up:
                self._must_be_wired(port.network_id)
        self._write("router", spec.id, spec)
        told = self._told[spec.id] = self._delegated(spec)
        return NetworkState(id=spec.id, status="ACTIVE" if spec.admin_state_up else "DOWN", delegated=told)

    def remove_router(self, id: str) -> None:
        """Forget a router; absent is success."""
        self._remove("router", id)

    def prune(
        self,
        networks: Iterable[str],
        ports: Iterable[str],
        routers: Iterable[str],
        security_groups: Iterable[str] | None = None,
        address_sets: Iterable[str] | None = None,
    ) -> list[str]:
        """Forget what is not named, leaves first; returns what was forgotten ("router <id>" ...)."""
        removed = []
        kinds = (
            ("router", routers),
            ("port", ports),
            ("security_group", security_groups),
            ("address_set", address_sets),
            ("network", networks),
        )
        for kind, given in kinds:
            if given is None:
                continue
            keep = set(given)
            for id in self._ids(kind):
                if id not in keep:
                    self._remove(kind, id)
                    removed.append(f"{kind} {id}")
        return removed

    def serve_metadata(self, answer: MetadataAnswer) -> None:
        """Remember who answers; ``ask_metadata`` plays the guest."""
        self._answer = answer

    def tend(self, claims: LeaseClaims) -> None:
        """Claim the leases of highly available routers: every host of a router could forward."""
        specs = [spec for id in self.routers() if (spec := self.router(id)) is not None and spec.ha is not None]
        wishes = {}
        for spec in specs:
            peers = [peer.host for peer in spec.ha.peers] if spec.ha else []
            wishes[spec.id] = {"want": spec.admin_state_up, "master": True, "knows": peers,
                               "seq": time.time_ns() // 1000}  # fmt: skip
        if wishes:
            claims(wishes)

    def news(self) -> list[str]:
        """Routers whose prefixes differ from those last told."""
        known = {id: spec for id in self.routers() if (spec := self.router(id)) is not None and spec.delegations}
        return [id for id, spec in known.items() if self._delegated(spec) != self._told.get(id)]

    def trace(self, question: Mapping[str, object]) -> dict[str, object]:
        """Nothing to follow."""
        return {"error": "simulated networks carry no packets"}

    def drift(self, known: Mapping[str, set[str]], spec: Callable[[str, str], object]) -> list[tuple[str, str]]:
        """Files that somebody deleted."""
        return [(kind, id) for kind in _FOLDERS for id in sorted(known.get(kind, set()) - set(self._ids(kind)))]

    # --- for tests and for simulated guests

    def network(self, id: str) -> NetworkSpec | None:
        """The recorded spec of a network."""
        return read_json(self._path("network", id), NetworkSpec)

    def port(self, id: str) -> PortSpec | None:
        """The recorded spec of a port."""
        return read_json(self._path("port", id), PortSpec)

    def security_group(self, id: str) -> SecurityGroupSpec | None:
        """The recorded spec of a security group."""
        return read_json(self._path("security_group", id), SecurityGroupSpec)

    def address_set(self, id: str) -> AddressSetSpec | None:
        """The recorded spec of an address set."""
        return read_json(self._path("address_set", id), AddressSetSpec)

    def router(self, id: str) -> RouterSpec | None:
        """The recorded spec of a router."""
        return read_json(self._path("router", id), RouterSpec)

    def ask_metadata(
        self,
        *,
        address: str,
        path: str,
        network_id: str | None = None,
        router_id: str | None = None,
        method: str = "GET",
        body: bytes = b"",
    ) -> tuple[int, str, bytes]:
        """Ask for metadata as a guest would, through a network's DHCP port or a router.

        Raises TryAgain when nobody would answer there.
        """
        network = self.network(network_id) if network_id else None
        through_dhcp = network is not None and network.dhcp is not None and network.dhcp.metadata
        if self._answer is None or not (through_dhcp or (router_id and self.router(router_id))):
            raise TryAgain("Nobody answers metadata there.")
        return self._answer(
            network_id=network_id, router_id=router_id, address=address, method=method, path=path, body=body
        )

    # --- inside

    def _delegated(self, spec: RouterSpec) -> tuple[Delegation, ...] | None:
        """What the simulated server delegates to a router; None when it does not ask here."""
        if spec.delegations is None:
            return None
        given = (read_json(self.place.root / "behaviours.json", Behaviours) or Behaviours()).prefixes
        asked = [one.subnet_id for one in spec.delegations]
        return tuple(Delegation(subnet_id=id, prefix=given[id]) for id in asked if id in given)

    def _must_be_wired(self, network_id: str) -> None:
        if not self._path("network", network_id).exists():
            raise TryAgain(f"The network {network_id} is not wired on this host yet.")

    def _path(self, kind: str, id: str) -> Path:
        if not _ID.match(id):
            raise Impossible(f"{id!r} is not a {kind} id.")
        return self.folder / _FOLDERS[kind] / f"{id}.json"

    def _ids(self, kind: str) -> list[str]:
        try:
            names = os.listdir(self.folder / _FOLDERS[kind])
        except FileNotFoundError:
            return []
        return sorted(name[:-5] for name in names if name.endswith(".json") and name[0] != ".")

    def _write(self, kind: str, id: str, spec: Spec) -> None:
        path = self._path(kind, id)
        with self._lock:
            if read_json(path, type(spec)) != spec:
                write_json(path, spec, sync=False)

    def _remove(self, kind: str, id: str) -> None:
        path = self._path(kind, id)
        if path.exists():
            self._step(f"remove_{kind}")
        path.unlink(missing_ok=True)

    def _step(self, operation: str) -> None:
        file = self.place.root / "behaviours.json"
        if not file.exists():
            return
        with self._lock:
            behaviours = read_json(file, Behaviours) or Behaviours()
            left = behaviours.fail.get(operation, 0)
            if left > 0:
                rest = {**behaviours.fail, operation: left - 1}
                write_json(file, msgspec.structs.replace(behaviours, fail=rest), sync=False)
        delay_s = behaviours.delay_s.get(operation, 0.0)
        if delay_s:
            time.sleep(delay_s)
        if left:
            raise _KINDS.get(behaviours.fail_as, TryAgain)(f"The simulated host was told to fail at {operation}.")
