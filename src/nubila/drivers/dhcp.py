"""DHCP for one network: dnsmasq in namespace ``qdhcp-<network>``, answering only for the addresses it was given.

Model: ``<root>/dhcp/<network>/`` holds everything dnsmasq reads (config, hosts, opts, names) and its leases. The
files are rendered whole from the spec; a change of ``config`` restarts dnsmasq (20 ms), any other is a SIGHUP. The
file ``loaded`` records what the running process has read, and is written after it has: dying in between means the
reload is done again. Leases of addresses that were taken back are released, so that the next owner of the address
can have it at once. dnsmasq outlives this process; a dead one is started by the next ``ensure``.

It runs as root because its files lie below the host's private state directory and are read again at each reload.
Sources: dnsmasq(8); RFC 2131 (release), RFC 3442 (option 121); requirement B/NET-44.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nubila.core.ports import DhcpHost, DhcpSpec, HostPlace, NetworkSpec, SubnetSpec, TryAgain
from nubila.drivers import links, processes

METADATA_ADDRESS = "169.254.169.254"
METADATA_ADDRESS_6 = "fe80::a9fe:a9fe"
_NAME = "dnsmasq"
_INSIDE = ("domain-needed", "bogus-priv")
_STATEFUL, _STATELESS = "dhcpv6-stateful", "dhcpv6-stateless"


def namespace(place: HostPlace, network_id: str) -> str:
    """The namespace of a network's DHCP server; hosts played by namespaces add their own name."""
    return f"qdhcp-{network_id}" + (f".{place.namespace}" if place.namespace else "")


def device(dhcp: DhcpSpec) -> str:
    """The DHCP port's device."""
    return f"tap{dhcp.port_id[:11]}"


def addresses(dhcp: DhcpSpec) -> list[str]:
    """What the DHCP port's device carries."""
    own = [f"{ip.ip_address}/{ip.prefixlen}" for ip in dhcp.fixed_ips]
    return [*own, f"{METADATA_ADDRESS}/32", f"{METADATA_ADDRESS_6}/64"] if dhcp.metadata else own


def routes(spec: NetworkSpec, dhcp: DhcpSpec) -> list[tuple[str, str]]:
    """Where dnsmasq's own questions go: by the gateways of the subnets it has an address in."""
    own = {ip.subnet_id for ip in dhcp.fixed_ips}
    hops: dict[int, str] = {}
    for subnet in spec.subnets:
        if subnet.gateway_ip and subnet.id in own:
            hops.setdefault(subnet.ip_version, subnet.gateway_ip)
    return [("0.0.0.0/0" if version == 4 else "::/0", hop) for version, hop in sorted(hops.items())]


def strangers(spec: NetworkSpec, dhcp: DhcpSpec) -> list[str]:
    """IPv4 subnets in which the server has no address: their guests are answered all the same (metadata)."""
    own = {ip.subnet_id for ip in dhcp.fixed_ips}
    return [subnet.cidr for subnet in spec.subnets if subnet.ip_version == 4 and subnet.id not in own]


def unserved(spec: NetworkSpec) -> list[str]:
    """One sentence for each subnet that dnsmasq cannot serve."""
    return [
        f"DHCPv6 cannot serve subnet {subnet.id}: its prefix {subnet.cidr} is shorter than /64."
        for subnet in spec.subnets
        if subnet.enable_dhcp and _mode(subnet) and _too_large(subnet)
    ]


# --- files --------------------------------------------------------------------------------------------------------


def render(spec: NetworkSpec, dhcp: DhcpSpec, run_dir: Path) -> dict[str, str]:
    """The files dnsmasq reads, by name."""
    subnets = [subnet for subnet in spec.subnets if subnet.enable_dhcp and _served(subnet)]
    return {
        "config": _config(subnets, dhcp, run_dir),
        "hosts": "".join(f"{line}\n" for host in dhcp.hosts for line in _host_lines(host, dhcp, subnets)),
        "names": "".join(f"{line}\n" for host in dhcp.hosts for line in _name_lines(host, dhcp)),
        "opts": "".join(f"{line}\n" for line in _options(spec, subnets, dhcp)),
    }


def _mode(subnet: SubnetSpec) -> str:
    """How DHCPv6 serves an IPv6 subnet: "" not at all. One without modes gets addresses, if a router sends guests."""
    if subnet.ip_version == 4:
        return ""
    if not subnet.ipv6_address_mode and not subnet.ipv6_ra_mode:
        return _STATEFUL
    return subnet.ipv6_address_mode if subnet.ipv6_address_mode in (_STATEFUL, _STATELESS) else ""


def _too_large(subnet: SubnetSpec) -> bool:
    return ipaddress.ip_network(subnet.cidr).prefixlen < 64  # dnsmasq refuses it


def _served(subnet: SubnetSpec) -> bool:
    return subnet.ip_version == 4 or bool(_mode(subnet) and not _too_large(subnet))


def _config(subnets: Iterable[SubnetSpec], dhcp: DhcpSpec, run_dir: Path) -> str:
    lines = [
        "user=root",
        "group=root",
        "pid-file=",
        "no-hosts",
        *_forwarding(dhcp),
        "except-interface=lo",
        f"interface={device(dhcp)}",
        "bind-dynamic",
        "dhcp-authoritative",
        "log-facility=-",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        f"dhcp-hostsfile={run_dir}/hosts",
        f"dhcp-optsfile={run_dir}/opts",
        f"addn-hosts={run_dir}/names",
        f"dhcp-leasefile={run_dir}/leases",
        "dhcp-lease-max=65536",
    ]
    domain = _domain(dhcp)
    if domain:
        lines += [f"domain={domain}", f"local=/{domain}/"]
    for subnet in subnets:
        network = ipaddress.ip_network(subnet.cidr)
        if network.version == 4:
            where = f"{network.network_address},static,{network.netmask}"
        else:
            where = f"{network.network_address},static,{network.prefixlen}"
        lines.append(f"dhcp-range=set:{_tag(subnet)},{where},{dhcp.lease_s}s")
    return "\n".join(lines) + "\n"


def _forwarding(dhcp: DhcpSpec) -> list[str]:
    """Where questions about other names go; names without a dot and private addresses never leave."""
    if not dhcp.upstreams:
        return ["no-resolv"] if not dhcp.host_resolvers else ["resolv-file=/etc/resolv.conf", *_INSIDE]
    return ["no-resolv", *_INSIDE, *(f"server={ipaddress.ip_address(server)}" for server in dhcp.upstreams)]


def _host_lines(host: DhcpHost, dhcp: DhcpSpec, subnets: Iterable[SubnetSpec]) -> list[str]:
    by_id = {subnet.id: subnet for subnet in subnets}
    lines = []
    for ip in host.fixed_ips:
        subnet = by_id.get(ip.subnet_id)
        if subnet is None or (subnet.ip_version == 6 and _mode(subnet) != _STATEFUL):
            continue
        address = f"[{ip.ip_address}]" if subnet.ip_version == 6 else ip.ip_address
        lines.append(f"{host.mac},{_tagged(host)}{_hostname(host, ip.ip_address)},{address}")
    if not lines and host.options and any(subnet.ip_version == 6 for subnet in by_id.values()):
        lines.append(f"{host.mac},set:port-{host.port_id}")  # stateless: options only
    return lines


def _tagged(host: DhcpHost) -> str:
    return f"set:port-{host.port_id}," if host.options else ""


def _name_lines(host: DhcpHost, dhcp: DhcpSpec) -> list[str]:
    """Names of its addresses; the first is what an address is called: that in the domain of port or network."""
    domains = dict.fromkeys(domain for domain in (_legal(host.domain), _domain(dhcp)) if domain)
    lines = []
    for ip in host.fixed_ips:
        name = _hostname(host, ip.ip_address)
        lines.append(" ".join([ip.ip_address, *(f"{name}.{domain}" for domain in domains), name]))
    return lines


def _options(spec: NetworkSpec, subnets: Iterable[SubnetSpec], dhcp: DhcpSpec) -> list[str]:
    lines = []
    for subnet in subnets:
        tag = f"tag:{_tag(subnet)}"
        own = [ip.ip_address for ip in dhcp.fixed_ips if ip.subnet_id == subnet.id]
        servers = resolvers(subnet, own[:1])
        domain = _domain(dhcp)
        if subnet.ip_version == 6:
            listed = ",".join(f"[{server}]" for server in servers)
            lines += [f"{tag},option6:dns-server,{listed}"] if servers else []
            lines += [f"{tag},option6:domain-search,{domain}"] if domain else []
            continue
        # An empty option: else dnsmasq offers itself.
        lines.append(f"{tag},option:dns-server{''.join(f',{server}' for server in servers)}")
        lines += [f"{tag},option:domain-search,{domain}"] if domain else []
        lines.append(f"{tag},26,{spec.mtu}")
        routes = _routes(subnet, own[0] if own and dhcp.metadata else None)
        if routes:
            # Option 249 is the same for older Windows. A client that takes 121 ignores 3 (RFC 3442).
            lines += [f"{tag},{number},{','.join(routes)}" for number in ("option:classless-static-route", "249")]
        lines.append(f"{tag},3,{subnet.gateway_ip}" if subnet.gateway_ip else f"{tag},3")
    for host in dhcp.hosts:
        for name, value in host.options:
            if re.fullmatch(r"(option6:)?[a-z0-9-]+", name) and value.isprintable():
                # An IPv6 option has its prefix already (core.ports.DhcpHost); dnsmasq wants it also before a number.
                known = name if name.isdigit() or name.startswith("option6:") else f"option:{name}"
                lines.append(f"tag:port-{host.port_id},{known},{value}")
        asked = dict(host.options)
        domain = _legal((asked.get("domain-name") or asked.get("15") or "").strip('"'))
        if domain and not {"domain-search", "119"} & asked.keys():  # clients believe the search list before the name
            lines.append(f"tag:port-{host.port_id},option:domain-search,{domain}")
    return lines


def resolvers(subnet: SubnetSpec, fallback: Iterable[str] = ()) -> list[str]:
    """The name servers that guests of a subnet are told; the unspecified address (0.0.0.0, ::) stands for none."""
    given = [ipaddress.ip_address(server) for server in subnet.dns_nameservers or subnet.resolvers or fallback]
    return [] if any(server.is_unspecified for server in given) else [str(server) for server in given]


def _routes(subnet: SubnetSpec, metadata_by: str | None) -> list[str]:
    routes = [part for destination, hop in subnet.host_routes for part in (destination, hop)]
    if metadata_by and not subnet.gateway_ip:
        routes += [f"{METADATA_ADDRESS}/32", metadata_by]
    if routes and subnet.gateway_ip and "0.0.0.0/0" not in routes:
        routes += ["0.0.0.0/0", subnet.gateway_ip]
    return routes


def _tag(subnet: SubnetSpec) -> str:
    return f"subnet-{subnet.id}"


def _domain(dhcp: DhcpSpec) -> str:
    return _legal(dhcp.dns_domain)


def _legal(name: str) -> str:
    domain = name.rstrip(".")
    return domain if re.fullmatch(r"[A-Za-z0-9.-]+", domain) else ""


def _hostname(host: DhcpHost, address: str) -> str:
    """The given name when it is a legal label, else one made of the address, as the field does."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", host.hostname):
        return host.hostname
    return "host-" + address.replace(".", "-").replace(":", "-")


# --- the process --------------------------------------------------------------------------------------------------


class Dhcp:
    """The DHCP servers of one place."""

    def __init__(self, place: HostPlace) -> None:
        self.place = place

    def run_dir(self, network_id: str) -> Path:
        """Where one server's files are."""
        return self.place.root / "dhcp" / network_id

    def ensure(self, spec: NetworkSpec, dhcp: DhcpSpec) -> None:
        """Have dnsmasq serve exactly this spec; the namespace and its device exist already."""
        run_dir = self.run_dir(spec.id)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = render(spec, dhcp, run_dir)
        for name, content in files.items():
            _write(run_dir / name, content)
        config = _digest(files["config"])
        tables = _digest(files["hosts"] + "\0" + files["names"] + "\0" + files["opts"])
        pid = processes.alive(_NAME, run_dir)
        if pid is not None and not links.lives_in(pid, namespace(self.place, spec.id)):
            processes.stop(_NAME, run_dir, timeout_s=2)
            pid = None
        loaded = _loaded(run_dir)
        # dnsmasq 2.90 frees memory it does not own when it reads hosts with tags a second time after a lease: it must
        # be started anew then. Leases of IPv6 addresses cannot be released for the client: they leave with the file.
        tags = "tags" if ",set:" in files["hosts"] else "plain"
        stale = _stale_leases(run_dir, dhcp)
        anew = loaded[:2] != (str(pid), config) or (loaded[2:] != (tables, tags) and "tags" in (tags, *loaded[3:]))
        if pid is not None and (anew or any(":" in address for _, _, address in stale)):
            processes.stop(_NAME, run_dir, timeout_s=2)
            pid = None
        if pid is None:
            _drop_leases(run_dir, stale)
            pid = self._start(spec.id, run_dir)
        elif loaded[2:3] != (tables,):
            _until(lambda: _catches(pid, signal.SIGHUP), run_dir)
            processes.reload(_NAME, run_dir)
        if stale:
            self._release(spec.id, dhcp, stale)
        _write(run_dir / "loaded", f"{pid} {config} {tables} {tags}\n")

    def remove(self, network_id: str) -> None:
        """Stop a server and forget its files; absent is success."""
        run_dir = self.run_dir(network_id)
        processes.stop(_NAME, run_dir, timeout_s=2)
        shutil.rmtree(run_dir, ignore_errors=True)

    def runs(self, network_id: str) -> bool:
        """Whether a network's server is alive."""
        return processes.alive(_NAME, self.run_dir(network_id)) is not None

    def networks(self) -> list[str]:
        """Networks that have a server's directory here."""
        parent = self.place.root / "dhcp"
        return sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []

    def _start(self, network_id: str, run_dir: Path) -> int:
        argv = ["dnsmasq", "--keep-in-foreground", f"--conf-file={run_dir}/config"]
        where = namespace(self.place, network_id)
        pid = processes.start(_NAME, argv, run_dir, log=run_dir / "log", netns=where)
        ports = "0043|0223" if "dhcp-range=" in (run_dir / "config").read_text() else "0035"
        _until(lambda: _serves(pid, ports), run_dir)
        return pid

    def _release(self, network_id: str, dhcp: DhcpSpec, stale: Iterable[tuple[str, str, str]]) -> None:
        """Tell dnsmasq, as the client would, that it is done with an address (RFC 2131 section 4.4.6)."""
        own = {ip.subnet_id: ip for ip in dhcp.fixed_ips}
        servers = {ipaddress.ip_interface(f"{ip.ip_address}/{ip.prefixlen}") for ip in own.values()}
        with links.entered(namespace(self.place, network_id)):
            for mac, client, address in stale:
                for server in servers:
                    if ipaddress.ip_address(address) in server.network:
                        _send_release(device(dhcp), str(server.ip), address, mac, client)


def _send_release(device: str, server: str, address: str, mac: str, client: str) -> None:
    octets = bytes.fromhex(mac.replace(":", ""))
    packet = struct.pack("!BBBBIHH", 1, 1, 6, 0, 1, 0, 0) + socket.inet_aton(address) + b"\0" * 12
    packet += octets.ljust(16, b"\0") + b"\0" * 192 + b"\x63\x82\x53\x63"
    packet += b"\x35\x01\x07" + b"\x36\x04" + socket.inet_aton(server)
    if client and client != "*":
        identifier = bytes.fromhex(client.replace(":", ""))
        packet += bytes([61, len(identifier)]) + identifier
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sender.sendto((packet + b"\xff").ljust(300, b"\0"), (server, 67))


def _leases(run_dir: Path) -> list[list[str]]:
    """Lines of dnsmasq's lease file, split: expiry, MAC (or IAID), address, host name, client id."""
    try:
        lines = (run_dir / "leases").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line.split() for line in lines if len(line.split()) >= 5]


def _stale_leases(run_dir: Path, dhcp: DhcpSpec) -> list[tuple[str, str, str]]:
    """Leases nobody may have any longer: (MAC, client id, address)."""
    owners: dict[str, str] = {}
    for host in dhcp.hosts:
        owners.update({ip.ip_address: host.mac.lower() for ip in host.fixed_ips})
    stale = []
    for _, mac, address, _, client in (lease[:5] for lease in _leases(run_dir)):
        gone = address not in owners
        if gone or ("." in address and owners[address] != mac.lower()):
            stale.append((mac, client, address))
    return stale


def _drop_leases(run_dir: Path, stale: Iterable[tuple[str, str, str]]) -> None:
    """Take leases out of the file while no dnsmasq has it open."""
    gone = {address for _, _, address in stale}
    path = run_dir / "leases"
    if gone and path.exists():
        kept = [line for line in path.read_text().splitlines() if not gone & set(line.split()[2:3])]
        _write(path, "".join(f"{line}\n" for line in kept))


def _loaded(run_dir: Path) -> tuple[str, ...]:
    try:
        return tuple((run_dir / "loaded").read_text().split())
    except FileNotFoundError:
        return ()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, content: str) -> None:
    """Replace a file when its content differs."""
    try:
        if path.read_text() == content:
            return
    except FileNotFoundError:
        pass
    fresh = path.with_suffix(".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(content)
    fresh.replace(path)


def _serves(pid: int, ports: str) -> bool:
    """Whether a process's namespace has somebody on one of these UDP ports (hexadecimal, "0043|0223")."""
    for table in ("udp", "udp6"):
        try:
            sockets = Path(f"/proc/{pid}/net/{table}").read_text()
        except OSError:
            return False
        if re.search(rf"^\s*\d+: [0-9A-F]+:({ports}) ", sockets, re.MULTILINE):
            return True
    return False


def _catches(pid: int, signum: int) -> bool:
    """Whether a process has installed a handler for a signal; before that the signal would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> (signum - 1) & 1)


def _until(ready: Callable[[], bool], run_dir: Path, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if processes.alive(_NAME, run_dir) is None or time.monotonic() > deadline:
            log = run_dir / "log"
            said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise TryAgain(f"dnsmasq does not serve: {said[0] if said else 'it ended'}.")
        time.sleep(0.002)
