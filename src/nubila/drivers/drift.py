"""What is missing on this host although it was made: a quick look, many times a minute.

A full compare (``ensure`` of everything) happens at every sweep of the agent; it is thorough and not free. This look
finds what people and crashes take away: switch daemons, bridges, ports, devices, namespaces, dnsmasq, radvd, tables and
flows. It only reads; whoever asked ensures what it names, nothing else. Names of devices are compared at every look,
flows at every third, and of namespaces with what is inside a few at each look, so that a look stays cheap on a host
with a thousand of everything.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nubila.core.ports import NetworkSpec, RouterPort, RouterSpec, TryAgain
from nubila.drivers import advertise, dhcp, links, nft, prefix_delegation, processes, router

if TYPE_CHECKING:
    from nubila.drivers.network import RealNetwork

Item = tuple[str, str]
"""("network" | "port" | "router" | ..., id), as work items are called."""
NAMESPACES_A_LOOK = 20
FLOWS_EVERY = 3


class Drift:
    """Looks at one driver's host."""

    def __init__(self, driver: RealNetwork) -> None:
        self.driver = driver
        self.place = driver.place
        self._looks = 0
        self._turn: list[Item] = []  # namespaces still to be looked at in this round

    def look(self, known: Mapping[str, set[str]], spec: Callable[[str, str], Any]) -> list[Item]:
        """What of ``known`` (kind -> ids) must be ensured again; ``spec(kind, id)`` is its last spec, or None."""
        self._looks += 1
        switch = self.driver.switch
        switch.ready()
        found = dict.fromkeys(self._unlisted(known))
        found |= dict.fromkeys(self._devices())
        found |= dict.fromkeys(self._daemons(known))
        found |= dict.fromkeys(self._namespaces(known, spec))
        if self._looks % FLOWS_EVERY == 0:
            found |= dict.fromkeys(switch.drift())
        return [item for item in found if item[1] in known.get(item[0], ())]

    def _unlisted(self, known: Mapping[str, set[str]]) -> list[Item]:
        driver = self.driver
        lists: list[tuple[str, set[str]]] = [
            ("network", driver.switch.networks()),
            ("port", {port.id for port in driver.switch.plugged() if port.kind == "guest"}),
            ("security_group", set(driver.switch.groups())),
            ("address_set", set(driver.switch.sets())),
        ]
        return [(kind, id) for kind, present in lists for id in sorted(known.get(kind, set()) - present)]

    def _devices(self) -> list[Item]:
        """Ports whose device is gone, and external networks whose bridge is."""
        with links.entered(self.place.namespace):
            names = {name for _, name in socket.if_nameindex()}
        items = []
        for port in self.driver.switch.plugged():
            if port.device not in names and port.kind != "patch":
                kind, id = {"guest": ("port", port.id), "router": ("router", port.owner)}.get(
                    port.kind, ("network", port.network_id)
                )
                items.append((kind, id))
        for id, bridge in self.driver.host_bridges():
            if bridge not in names:
                items.append(("network", id))
        return items

    def _daemons(self, known: Mapping[str, set[str]]) -> list[Item]:
        served = [id for id in self.driver.dhcp.networks() if id in known.get("network", ())]
        items = [("network", id) for id in served if not self.driver.dhcp.runs(id)]
        folder = self.place.root / "routers"
        for path in folder.iterdir() if folder.is_dir() else ():
            mute = advertise.wanted(path) and processes.alive(advertise.NAME, path) is None
            if mute or prefix_delegation.dead(path):
                items.append(("router", path.name))
        return items

    def _namespaces(self, known: Mapping[str, set[str]], spec: Callable[[str, str], Any]) -> list[Item]:
        """Namespaces that are gone, all of them; and of a few more what is inside."""
        items: list[Item] = []
        served = set(self.driver.dhcp.networks()) & known.get("network", set())
        here = [("network", id) for id in sorted(served)] + [("router", id) for id in sorted(known.get("router", ()))]
        names = {("network", id): self.driver.dhcp_namespace(id) for id in served}
        names |= {("router", id): self.driver.router_namespace(id) for id in known.get("router", ())}
        items += [item for item in here if not links.namespace_exists(names[item])]
        if not self._turn:
            self._turn = [*here, ("", "")]  # the host itself
        now, self._turn = self._turn[:NAMESPACES_A_LOOK], self._turn[NAMESPACES_A_LOOK:]
        for item in now:
            if item == ("", ""):
                self._host()
            elif item in names and item not in items and self._lacks(item, names[item], spec(*item)):
                items.append(item)
        return items

    def _host(self) -> None:
        """The host's own table is nobody's: it is loaded again here."""
        with links.entered(self.place.namespace):
            present = nft.table_names()
        if ("inet", nft.host_table_name(self.place.cloud)) not in present:
            self.driver.reload_host_rules()

    def _lacks(self, item: Item, namespace: str, spec: Any) -> bool:
        plugged = {port.id for port in self.driver.switch.plugged()}
        with contextlib.suppress(TryAgain), links.opened(namespace) as net:
            if isinstance(spec, NetworkSpec) and spec.dhcp is not None:
                device = net.device(dhcp.device(spec.dhcp))
                wanted = {links.normal_interface(address) for address in dhcp.addresses(spec.dhcp)}
                if spec.dhcp.port_id not in plugged:
                    return True
                return device is None or not device.up or not wanted <= net.addresses(device.index)
            if isinstance(spec, RouterSpec) and spec.admin_state_up and spec.ha is None:
                if not any(name == nft.ROUTER_TABLE for _, name in nft.table_names()):
                    return True
                return any(self._port_lacks(plugged, *one) for one in router.expected(self.place, spec))
        return False

    def _port_lacks(self, plugged: set[str], namespace: str, name: str, port: RouterPort) -> bool:
        wanted = {f"{ip.ip_address}/{ip.prefixlen}" for ip in port.fixed_ips}
        try:
            with links.opened(namespace) as net:
                device = net.device(name)
                if port.port_id not in plugged or device is None or not device.up:
                    return True
                return not wanted <= net.addresses(device.index)
        except TryAgain:  # the namespace is gone
            return True
