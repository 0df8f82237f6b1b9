"""IPv6 router advertisements of one router: radvd in its namespace (RFC 4861, RFC 8106).

Model: ``<run_dir>/radvd.conf`` says everything; it is rendered whole from the router's interfaces and the subnets
behind them. A change is a SIGHUP, after which radvd advertises at once; a dead radvd is started by the next ``ensure``.
radvd outlives this process. Asked to end, it says that the router is one no longer; killed (``silence``), it says
nothing, which is what a router that goes on elsewhere needs.

What a subnet's ipv6_ra_mode means (Networking API, IPv6 modes):

    mode               address from the prefix (A)    ask DHCPv6 for addresses (M)    and for the rest (O)
    slaac              yes                            no                              no
    dhcpv6-stateless   yes                            no                              yes
    dhcpv6-stateful    no                             yes                             yes

A prefix shorter or longer than /64 cannot be used for A; it is only told to be on link. A delegated prefix that is
replaced or lost is advertised as deprecated for two hours more, so that guests prefer their new address, or none
(RFC 4862 section 5.5.3, RFC 9096); ``<run_dir>/radvd.delegated`` remembers them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nubila.core.ports import SubnetSpec, TryAgain
from nubila.drivers import links, processes
from nubila.drivers.dhcp import METADATA_ADDRESS_6, resolvers
from nubila.drivers.files import read_json, write_json
from nubila.drivers.ovs_flows import link_local

NAME = "radvd"
MIN_MTU = 1280
STALE_S = 7200
"""How long a prefix that is gone is called deprecated; guests let nobody shorten an address' life to less."""
Interface = tuple[str, str, int, Sequence[str]]
"""(device, MAC, MTU in bytes, ids of the subnets it has an address in)"""
_SERVERS = 3  # an advertisement has room for more, stub resolvers have not
_CATCHES = 1 << (signal.SIGHUP - 1)


def render(
    interfaces: Sequence[Interface], subnets: Mapping[str, SubnetSpec], gone: Mapping[str, Sequence[str]] | None = None
) -> str:
    """radvd's configuration; "" when nothing is to be advertised. ``gone``: what ``stale`` found."""
    blocks = []
    for device, mac, mtu, ids in interfaces:
        wanted, old = _advertised(ids, subnets), (gone or {}).get(device, ())
        if wanted or old:
            blocks.append(_interface(device, mac, mtu, wanted, old))
    return "\n".join(blocks)


def _advertised(ids: Sequence[str], subnets: Mapping[str, SubnetSpec]) -> list[SubnetSpec]:
    here = [subnets[id] for id in dict.fromkeys(ids) if id in subnets]
    return [subnet for subnet in here if subnet.ip_version == 6 and subnet.ipv6_ra_mode]


def stale(
    run_dir: Path, interfaces: Sequence[Interface], subnets: Mapping[str, SubnetSpec]
) -> dict[str, tuple[str, ...]]:
    """Delegated prefixes that a device had until a while ago and has no longer, by device."""
    path, now = run_dir / "radvd.delegated", time.time()
    before = read_json(path, dict[str, dict[str, float]]) or {}
    after: dict[str, dict[str, float]] = {}
    for device, _, _, ids in interfaces:
        live = {subnet.cidr for subnet in _advertised(ids, subnets) if subnet.delegated}
        old = {p: until or now + STALE_S for p, until in before.get(device, {}).items() if p not in live}
        known = dict.fromkeys(live, 0.0) | {p: until for p, until in old.items() if until > now}
        if known:
            after[device] = known
    if after != before:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, after)
    return {device: tuple(sorted(p for p, until in known.items() if until)) for device, known in after.items()}


def _interface(device: str, mac: str, mtu: int, subnets: Sequence[SubnetSpec], gone: Sequence[str]) -> str:
    modes = {subnet.ipv6_ra_mode for subnet in subnets}
    lines = [f"interface {device} {{", "  AdvSendAdvert on;", "  MinRtrAdvInterval 30;", "  MaxRtrAdvInterval 100;"]
    if not subnets:  # no router for anything any more
        lines.append("  AdvDefaultLifetime 0;")
    # Not the address of the metadata service, which the device carries as well.
    lines.append(f"  AdvRASrcAddress {{ {link_local(mac)}; }};")
    if mtu >= MIN_MTU:
        lines.append(f"  AdvLinkMTU {mtu};")
    if "dhcpv6-stateful" in modes:
        lines.append("  AdvManagedFlag on;")
    if modes & {"dhcpv6-stateful", "dhcpv6-stateless"}:
        lines.append("  AdvOtherConfigFlag on;")
    servers = list(dict.fromkeys(server for subnet in subnets for server in resolvers(subnet)))
    if servers:
        lines.append(f"  RDNSS {' '.join(servers[:_SERVERS])} {{ }};")
    domains = sorted({subnet.domain for subnet in subnets if re.fullmatch(r"[A-Za-z0-9.-]+", subnet.domain)})
    if domains:
        lines.append(f"  DNSSL {' '.join(domains)} {{ }};")
    for subnet in sorted(subnets, key=lambda subnet: subnet.cidr):
        own = ipaddress.ip_network(subnet.cidr).prefixlen == 64 and subnet.ipv6_ra_mode != "dhcpv6-stateful"
        lines.append(f"  prefix {subnet.cidr} {{ AdvOnLink on; AdvAutonomous {'on' if own else 'off'}; }};")
    lines += [
        f"  prefix {old} {{ AdvOnLink off; AdvAutonomous on; AdvPreferredLifetime 0; AdvValidLifetime {STALE_S}; }};"
        for old in gone
    ]
    lines.append(f"  route {METADATA_ADDRESS_6}/128 {{ }};")
    return "\n".join([*lines, "};", ""])


def ensure(config: str, run_dir: Path, namespace: str) -> None:
    """Advertise exactly this; "" = nothing."""
    if not config:
        stop(run_dir)
        return
    path, record = run_dir / "radvd.conf", run_dir / "radvd.loaded"
    digest = hashlib.sha256(config.encode()).hexdigest()
    pid = processes.alive(NAME, run_dir)
    if pid is not None and not links.lives_in(pid, namespace):
        processes.kill(NAME, run_dir)
        pid = None
    if pid is not None and _read(record) == f"{pid} {digest}":
        return
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(config)
    fresh.chmod(0o600)
    fresh.replace(path)
    if pid is None:
        argv = ["radvd", "--nodaemon", "--logmethod=stderr", f"--config={path}", f"--pidfile={run_dir}/radvd.own.pid"]
        pid = processes.start(NAME, argv, run_dir, log=run_dir / "radvd.log", netns=namespace)
        _until_ready(run_dir, pid)
    else:
        _until_ready(run_dir, pid)
        processes.reload(NAME, run_dir)
    record.write_text(f"{pid} {digest}")


def stop(run_dir: Path) -> None:
    """Tell everybody that this is a router no longer, and end; absent is success."""
    (run_dir / "radvd.loaded").unlink(missing_ok=True)
    processes.stop(NAME, run_dir, timeout_s=2)


def silence(run_dir: Path) -> None:
    """End without a word; absent is success."""
    (run_dir / "radvd.loaded").unlink(missing_ok=True)
    processes.kill(NAME, run_dir)


def wanted(run_dir: Path) -> bool:
    """Whether somebody should advertise, as far as was asked last."""
    return (run_dir / "radvd.loaded").exists()


def running(run_dir: Path) -> bool:
    """Whether somebody advertises."""
    return processes.alive(NAME, run_dir) is not None


def _until_ready(run_dir: Path, pid: int, timeout_s: float = 3.0) -> None:
    """Until it catches SIGHUP; before, the signal would end it."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = re.search(r"^SigCgt:\s*([0-9a-f]+)", _read(Path(f"/proc/{pid}/status")), re.MULTILINE)
        if found and int(found[1], 16) & _CATCHES:
            return
        if processes.alive(NAME, run_dir) is None or time.monotonic() > deadline:
            said = _read(run_dir / "radvd.log").strip().splitlines()[-1:]
            raise TryAgain(f"radvd does not advertise: {said[0] if said else 'it ended'}.")
        time.sleep(0.002)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
