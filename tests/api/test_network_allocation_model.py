"""Addresses of one subnet against a model: whatever is asked for and given back, in whatever order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from nubila.core import quota
from nubila.core.db import Reader
from nubila.core.faults import Fault
from nubila.services.network import addresses, look, networks, ports, subnets
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION
from nubila.testing.cloud import TestCloud

HOSTS = [f"10.0.0.{i}" for i in range(1, 15)]


class Addresses(RuleBasedStateMachine):
    """A /28 with two pools; ports take any address, a named one, several, change them, and go."""

    held: Any = Bundle("held")

    @initialize()
    def start(self) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="nubila-model-")
        self.cloud = TestCloud(Path(self.place.name) / "cloud", hosts=0)
        self.model: dict[str, set[str]] = {}  # port -> its addresses
        pools = [{"start": "10.0.0.2", "end": "10.0.0.5"}, {"start": "10.0.0.9", "end": "10.0.0.11"}]
        self.pool = {ip for ip in HOSTS for p in pools
                     if addresses.key(p["start"]) <= addresses.key(ip) <= addresses.key(p["end"])}  # fmt: skip
        with self.cloud.cloud.store.write() as tx:
            self.net = networks.insert(self.cloud.cloud, tx, {"name": "n", "project_id": "p"})
            subnets.insert(
                self.cloud.cloud, tx, self.net,
                {"cidr": "10.0.0.0/28", "enable_dhcp": False, "allocation_pools": pools, "gateway_ip": None},
            )  # fmt: skip

    def teardown(self) -> None:
        if hasattr(self, "cloud"):
            self.cloud.close()
            self.place.cleanup()

    @property
    def taken(self) -> set[str]:
        return {ip for ips in self.model.values() for ip in ips}

    def make(self, **wish: Any) -> Any:
        """A new port's id and addresses, or why there is none."""

        def job(tx: Any) -> Any:
            return ports.create(
                self.cloud.cloud, tx, project_id="p", network_id=self.net["id"], port_security_enabled=False, **wish
            )

        try:
            row = self.cloud.cloud.store.transact(job)
        except Fault as e:
            return e.type
        got = {ip["ip_address"] for ip in row["fixed_ips"]}
        self.model[row["id"]] = got
        return row["id"], got

    @rule(target=held)
    def any_address(self) -> Any:
        free = self.pool - self.taken
        got = self.make()
        if not free:
            assert got == "IpAddressGenerationFailure"
            return multiple()
        id, ips = got
        assert len(ips) == 1
        assert ips <= free
        return id

    @rule(target=held, ip=st.sampled_from(HOSTS))
    def this_address(self, ip: str) -> Any:
        was = self.taken
        got = self.make(fixed_ips=[{"ip_address": ip}])
        if ip in was:
            assert got == "IpAddressAlreadyAllocated"
            return multiple()
        id, ips = got
        assert ips == {ip}
        return id

    @rule(port=held, wanted=st.lists(st.sampled_from(HOSTS), min_size=0, max_size=3, unique=True))
    def change(self, port: str, wanted: list[str]) -> None:
        if port not in self.model:
            return
        others = self.taken - self.model[port]

        def job(tx: Any) -> Any:
            before = look.need(tx, Port, port)
            values: dict[str, Any] = {"fixed_ips": [{"ip_address": ip} for ip in wanted]}
            ports.prepare_change(self.cloud.cloud, tx, before, values, None)
            ports.changed(self.cloud.cloud, tx, before, {**before, **values})

        refusal = ""
        try:
            self.cloud.cloud.store.transact(job)
        except Fault as e:
            refusal = e.type
        assert refusal == ("IpAddressAlreadyAllocated" if others & set(wanted) else "")
        if refusal:
            return
        self.model[port] = set(wanted)

    @rule(port=consumes(held))
    def give_back(self, port: str) -> None:
        if self.model.pop(port, None) is not None:
            self.cloud.cloud.store.transact(lambda tx: ports.delete(tx, look.need(tx, Port, port)))

    @invariant()
    def rows_are_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.cloud.cloud.store.read() as r:
            assert self._rows(r) == self.model
            assert quota.usage(r, "p").get("port", 0) == len(self.model)

    def _rows(self, r: Reader) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {id: set() for (id,) in r.rows(sa.select(Port.table.c.id))}
        for id, ip in r.rows(sa.select(IP_ALLOCATION.c.port_id, IP_ALLOCATION.c.ip_address)):
            assert ip not in found[id]
            found[id].add(ip)
        return found


TestAddresses = Addresses.TestCase
TestAddresses.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
