"""What a router does to packets, as one nft table for IPv4 and one for IPv6 (pure: from a spec to a script).

Order in postrouting: a floating address wins over the router's own; traffic that came from inside and was turned round
to a floating address gets a source that the answer must come back to; the rest of what leaves gets the address of the
gateway it leaves by. Ports that are forwarded are looked up after whole floating addresses (an address is one or the
other). With several gateways, connections remember by which one they came in (ct mark), so that answers go back there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from nubila.core.ports import ForwardSpec, HelperSpec, RouterPort, RouterSpec, TryAgain
from nubila.drivers import nft, programs
from nubila.drivers.routes import MARK_MASK

BY_GATEWAY, BY_DOOR = 0x2, 0x4  # marks of a connection's first packet: it came in where floating addresses live
INSIDE = f"meta mark & {BY_GATEWAY | BY_DOOR:#x} == 0"
_HELPERS = {("h323", "tcp"): "Q.931", ("h323", "udp"): "RAS"}  # what Linux calls them where the names differ
_NAT = {
    "prerouting": "nat hook prerouting priority dstnat",
    "output": "nat hook output priority -100",
    "postrouting": "nat hook postrouting priority srcnat",
}


class Door(Struct, frozen=True, kw_only=True):
    """A device of the router on an external network."""

    device: str
    port: RouterPort
    gateway: bool = True  # False: an interface like any other, where floating addresses live as well
    mark: int = 0  # of connections that come in by it, when there are several

    @property
    def own(self) -> str | None:
        """The router's own IPv4 address there."""
        return next((ip.ip_address for ip in self.port.fixed_ips if ":" not in ip.ip_address), None)


def script(spec: RouterSpec, inside: Sequence[str], doors: Sequence[Door], without: Iterable[str] = ()) -> str:
    """Both tables; ``inside`` are the qr- devices, ``without`` names helpers that this host's kernel lacks."""
    missing = set(without)
    helpers = [(i, h) for i, h in enumerate(spec.helpers) if h.helper not in missing]
    return _four(spec, inside, doors, helpers) + _six(spec, doors, helpers)


def _four(
    spec: RouterSpec, inside: Sequence[str], doors: Sequence[Door], helpers: Sequence[tuple[int, HelperSpec]]
) -> str:
    pre, out, post, guard = [], [], [], []
    for door in doors:
        pre.append(f'iifname "{door.device}" meta mark set {BY_GATEWAY if door.gateway else BY_DOOR:#x}')
        if door.gateway:
            guard.append(f'iifname "{door.device}" tcp dport {nft.METADATA_PORT} drop')
    pre += [
        f'iifname "{name}" ip daddr 169.254.169.254 tcp dport 80 redirect to :{nft.METADATA_PORT}' for name in inside
    ]
    where = {door.port.port_id: door.device for door in doors}
    first = next((door for door in doors if door.gateway), None)
    for floating in spec.floating_ips:
        device = where.get(floating.port_id) or (first.device if first else "")
        if not device:
            continue
        turn = f"ip daddr {floating.floating_ip} dnat to {floating.fixed_ip}"
        pre.append(turn)
        out.append(turn)
        post.append(f'oifname "{device}" ip saddr {floating.fixed_ip} snat to {floating.floating_ip}')
        post.append(f"{INSIDE} ct status dnat ip saddr {floating.fixed_ip} snat to {floating.floating_ip}")
    if doors:
        forwards = [_forward(one) for one in spec.forwardings]
        pre += forwards
        out += forwards
        own = first.own if first else None
        post.append(f"{INSIDE} ct status dnat " + (f"snat to {own}" if own else "masquerade"))
    for door in doors:
        if door.gateway and door.own and spec.snat:
            post.append(f'oifname "{door.device}" meta mark & {BY_GATEWAY:#x} == 0 snat to {door.own}')
    rules = {"prerouting": pre, "output": out, "postrouting": post}
    chains = {name: (hook, rules[name]) for name, hook in _NAT.items()}
    chains["input"] = ("filter hook input priority filter", guard)
    return _table("ip", chains, inside, doors, helpers)


def _forward(one: ForwardSpec) -> str:
    (low, high), (first, last) = one.outside, one.inside
    match = f"ip daddr {one.floating_ip} {one.protocol} dport {low}" + (f"-{high}" if high != low else "")
    if first == last:
        return f"{match} dnat to {one.fixed_ip}:{first}"
    if (low, high) == (first, last):
        return f"{match} dnat to {one.fixed_ip}"
    pairs = ", ".join(f"{low + i} : {one.fixed_ip} . {first + i}" for i in range(high - low + 1))
    return f"{match} dnat ip to {one.protocol} dport map {{ {pairs} }}"


def _six(spec: RouterSpec, doors: Sequence[Door], helpers: Sequence[tuple[int, HelperSpec]]) -> str:
    forward = []
    if spec.ndp_proxy:
        near = sorted({f"{ip.ip_address}/{ip.prefixlen}" for p in spec.interfaces for ip in p.fixed_ips
                       if ":" in ip.ip_address})  # fmt: skip
        for door in doors:
            if door.gateway and near:
                forward.append(f'iifname "{door.device}" ct state established,related accept')
                if spec.proxies:
                    forward.append(f'iifname "{door.device}" ip6 daddr {{ {", ".join(spec.proxies)} }} accept')
                forward += [f'iifname "{door.device}" ip6 daddr {net} drop' for net in near]
    chains = {"forward": ("filter hook forward priority filter", forward)}
    return _table("ip6", chains, (), doors, helpers)


def _table(
    family: str,
    chains: dict[str, tuple[str, list[str]]],
    inside: Sequence[str],
    doors: Sequence[Door],
    helpers: Sequence[tuple[int, HelperSpec]],
) -> str:
    objects = []
    helping = []
    for number, one in helpers:
        name = _HELPERS.get((one.helper, one.protocol), one.helper)
        objects += [f"ct helper h-{number} {{", f'  type "{name}" protocol {one.protocol}', f"  l3proto {family}", "}"]
        helping.append(f'{one.protocol} dport {one.port} ct helper set "h-{number}"')
    marking = []
    marked = [door for door in doors if door.mark]
    for door in marked:
        marking.append(f'iifname "{door.device}" ct state new ct mark set ct mark & {~MARK_MASK & 0xFFFFFFFF:#x} '
                       f"| {door.mark:#x}")  # fmt: skip
    if marked:
        others = " ".join(f'iifname != "{door.device}"' for door in marked)
        marking.append(f"{others} meta mark set ct mark & {MARK_MASK:#x}")
    if helping or marking:
        chains["tracking"] = ("filter hook prerouting priority mangle", [*marking, *helping])
        # A connection of the router itself goes by the same ways as one that it forwards.
        if marking:
            chains["own"] = ("route hook output priority mangle", [f"meta mark set ct mark & {MARK_MASK:#x}"])
    return nft.replace(family, nft.ROUTER_TABLE, chains, objects)


def lacking(helpers: Iterable[HelperSpec]) -> list[str]:
    """Helpers that the kernel does not have, asked of the kernel by a check that changes nothing."""
    out = []
    for one in sorted({(h.helper, h.protocol) for h in helpers}):
        name = _HELPERS.get(one, one[0])
        text = f'table ip nubila-check {{\n  ct helper h {{\n    type "{name}" protocol {one[1]}\n  }}\n}}\n'
        argv = ["nft", "-c", "-f", "-"]
        try:
            programs.run(argv, package="nftables", text=text, timeout_s=5.0)
        except TryAgain:
            out.append(one[0])
    return out
