"""Rate limits and marks by nftables: routers' addresses and ports, and guests' taps on Linux bridges.

Model: one nft table in the router's namespace, apart from the one that translates, so that changes of either leave the
other's state alone. What comes from outside is judged before its address is translated, what goes out after that, so
both see the address the limit is about. The table carries a chain named after its content; it is loaded only when
that differs, since a load refills every bucket. Limits drop (police): routers do not queue. A guest's tap has a table
of its own in the bridge family: what it sends is judged before its filter, what it gets after all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from nubila.core.ports import QosSpec, RouterPort, RouterSpec
from nubila.drivers import nft

TABLE = "nubila-qos"
FRAMES_BYTES = 3028  # two full frames: a smaller bucket lets none through


def ensure(spec: RouterSpec, devices: Sequence[tuple[str, RouterPort]], outside: str | None) -> None:
    """Have the limits of a router in the namespace this thread is in.

    ``devices`` are its ports with the names of their devices, ``outside`` the gateway's device.
    """
    script = table(spec, devices, outside)
    if ("inet", TABLE) not in nft.tables():
        if script:
            nft.load(script)
    elif not script:
        nft.remove_table("inet", TABLE)
    elif not nft.has_chain("inet", TABLE, _version(script)):
        nft.load(script)


def guest(device: str, qos: QosSpec | None) -> None:
    """Have the limits of a guest's tap on a Linux bridge, in the namespace this thread is in; None takes them away."""
    name = f"{TABLE}-{device}"
    if qos is None:
        nft.remove_table("bridge", name)
        return
    arriving = _limits(f'iifname "{device}"', qos, to_owner=False)
    leaving = _limits(f'oifname "{device}"', qos, to_owner=True)
    script = _table("bridge", name, arriving, leaving, ("prerouting priority -310", "postrouting priority 310"))
    if not nft.has_chain("bridge", name, _version(script)):
        nft.load(script)


def _version(script: str) -> str:
    return next(line.split()[1] for line in script.splitlines() if line.startswith("  chain v-"))


def table(spec: RouterSpec, devices: Sequence[tuple[str, RouterPort]], outside: str | None) -> str:
    """The whole table as an nft script; "" when there is nothing to limit."""
    arriving: list[str] = []
    leaving: list[str] = []
    for device, port in devices:
        if port.qos is not None:
            arriving += _limits(f'iifname "{device}"', port.qos, to_owner=True)
            leaving += _limits(f'oifname "{device}"', port.qos, to_owner=False)
    by_port = {port.port_id: device for device, port in devices} | ({"": outside} if outside is not None else {})
    owners = [(by_port.get(ip.port_id), ip.floating_ip, ip.qos) for ip in spec.floating_ips]
    for port in (spec.gateway, *spec.more_gateways) if spec.gateway is not None else ():
        owners += [(by_port.get(port.port_id), ip.ip_address, spec.gateway_qos) for ip in port.fixed_ips]
    for way, address, qos in owners:
        if qos is not None and way is not None:
            family = "ip6" if ":" in address else "ip"
            arriving += _limits(f'iifname "{way}" {family} daddr {address}', qos, to_owner=True)
            leaving += _limits(f'oifname "{way}" {family} saddr {address}', qos, to_owner=False)
    if not arriving and not leaving:
        return ""
    # raw comes before any translation, 200 after all of it.
    return _table("inet", TABLE, arriving, leaving, ("prerouting priority raw", "postrouting priority 200"))


def _table(family: str, table: str, arriving: list[str], leaving: list[str], hooks: tuple[str, str]) -> str:
    digest = hashlib.sha256("\n".join([*arriving, "", *leaving]).encode()).hexdigest()[:16]
    lines = [f"table {family} {table}", f"delete table {family} {table}", f"table {family} {table} {{"]
    lines += [f"  chain v-{digest} {{", "  }"]
    for name, hook, rules in (("arriving", hooks[0], arriving), ("leaving", hooks[1], leaving)):
        lines += [f"  chain {name} {{", f"    type filter hook {hook};", *(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*lines, "}", ""])


def _limits(match: str, qos: QosSpec, *, to_owner: bool) -> list[str]:
    kbps, burst_kbit = (
        (qos.ingress_kbps, qos.ingress_burst_kbit) if to_owner else (qos.egress_kbps, qos.egress_burst_kbit)
    )
    pps, packets = (
        (qos.ingress_pps, qos.ingress_burst_packets) if to_owner else (qos.egress_pps, qos.egress_burst_packets)
    )
    rules = []
    if kbps:
        burst = max(burst_kbit * 125, FRAMES_BYTES)
        rules.append(f"{match} limit rate over {kbps * 125} bytes/second burst {burst} bytes drop")
    if pps:
        rules.append(f"{match} limit rate over {pps}/second burst {max(packets, 1)} packets drop")
    if not to_owner and qos.dscp is not None:
        family = "ip6" if " ip6 " in match else "ip"
        rules.append(f"{match} {family} dscp set {qos.dscp}")
        if " ip " not in match and " ip6 " not in match:  # a whole port sends both
            rules.append(f"{match} ip6 dscp set {qos.dscp}")
    return rules
