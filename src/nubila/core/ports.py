"""What the control plane and the drivers say to each other.

Everything here is plain data (msgspec structs, JSON on the wire) and protocols. A *spec* is the complete desired
state of one thing on one host, computed by a service from its rows; a *state* is what a driver saw. Specs carry no
secrets beyond what the host needs and never refer to the database. Drivers implement the protocols; the agent is
their only caller.

Driver rules (DESIGN.md section 5): verbs are list, ensure, remove, prune; absent is success; ``ensure`` is idempotent
and may be killed anywhere; everything created is marked with the cloud's name; unmarked things are never touched;
every call has a timeout; a driver keeps no state in memory that it cannot read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from msgspec import Struct, field


class DriverError(Exception):
    """Base of the three kinds of driver failure; the text is one sentence for the user's fault."""


class TryAgain(DriverError):
    """It may work later: retried with back-off."""


class NeedsOperator(DriverError):
    """Somebody has to mend the host: shown, retried slowly."""


class Impossible(DriverError):
    """This spec can never be made true: the resource goes to ERROR until its desired state changes."""


# --- the host -----------------------------------------------------------------------------------------------------


class HostPlace(Struct, frozen=True, kw_only=True):
    """Where a driver works: one cloud on one host."""

    cloud: str  # the cloud's name: the mark on everything we create
    host: str  # this host's name
    root: Path  # the host's own state directory, 0700
    tunnel_ip: str = "127.0.0.1"  # the local end of tunnels
    namespace: str = ""  # network namespace that plays this host in tests; "" = the machine itself
    bridges: dict[str, str] = field(default_factory=dict)  # physical network -> bridge, e.g. {"physnet1": "br-ex"};
    # with the Linux bridge: -> network card, e.g. {"physnet1": "eth1"}
    switch: Literal["openvswitch", "linuxbridge"] = "openvswitch"


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a host can offer to placement."""

    vcpus: int
    ram_mb: int
    disk_gb: int
    hypervisor_type: str = "QEMU"
    hypervisor_version: int = 0  # 7002000 = 7.2.0
    accel: str = "tcg"  # kvm | tcg | simulated
    switch: Literal["openvswitch", "linuxbridge"] = "openvswitch"
    cpu_arch: str = "x86_64"
    traits: tuple[str, ...] = ()


# --- guests -------------------------------------------------------------------------------------------------------

Power = Literal["on", "off"]


class NicSpec(Struct, frozen=True, kw_only=True):
    port_id: str
    device: str  # host-side tap device: "tap" + first 11 characters of the port id
    mac: str
    mtu: int = 1500


class DiskSpec(Struct, frozen=True, kw_only=True):
    """A disk made on this host: a qcow2 overlay on a cached base image, or an empty one."""

    name: str  # "disk" (root), "disk.eph0", "disk.swap"
    size_gb: int  # 0 = the image's own virtual size
    image_id: str | None = None
    image_format: str = "raw"  # the format declared on the image; never guessed
    image_checksum: str = ""  # os_hash_value (sha512) of the base image
    bus: str = "virtio"


class GuestSpec(Struct, frozen=True, kw_only=True):
    """One server that this host must run."""

    id: str  # server UUID
    name: str  # instance-%08x
    display_name: str
    epoch: int = 0  # fencing: refuse a spec with an older epoch than the one recorded
    vcpus: int
    ram_mb: int
    power: Power = "on"
    boots: int = 0  # raised by one for every reboot the user asks for; compared with the running guest's stamp
    hard: bool = False  # the last reboot was a hard one
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    config_drive: dict[str, str] | None = (
        None  # path -> content (base64 when it starts with "base64:"), None = no drive
    )
    kernel_args: str = ""
    project_id: str = ""
    user_id: str = ""
    flavor_name: str = ""


class GuestState(Struct, frozen=True, kw_only=True):
    """What runs (or lies stopped) on the host for one server."""

    id: str
    power: Literal["on", "off", "paused", "crashed"]
    boots: int = 0
    epoch: int = 0
    pid: int | None = None
    nics: tuple[str, ...] = ()  # port ids plugged
    fault: str = ""


class ImageSource(Protocol):
    """Gives the bytes of an image to the hypervisor's cache."""

    def __call__(self, image_id: str, into: Path) -> None: ...


Ids = list[str]  # inside the protocol, ``list`` is the verb


class Hypervisor(Protocol):
    """Runs guests. Guests outlive this process and are found again by ``list``."""

    def capabilities(self) -> Capabilities: ...
    def list(self) -> list[GuestState]: ...
    def ensure(self, spec: GuestSpec) -> GuestState: ...
    def remove(self, id: str) -> None: ...
    def prune(self, keep: Iterable[str]) -> Ids: ...
    def console_log(self, id: str, lines: int | None = None) -> str: ...


# --- networks -----------------------------------------------------------------------------------------------------


class Segment(Struct, frozen=True, kw_only=True):
    network_type: str  # vxlan | vlan | flat | local | gre | geneve
    physical_network: str | None = None
    segmentation_id: int | None = None


class SubnetSpec(Struct, frozen=True, kw_only=True):
    id: str
    cidr: str
    ip_version: int = 4
    gateway_ip: str | None = None
    enable_dhcp: bool = True
    dns_nameservers: tuple[str, ...] = ()
    host_routes: tuple[tuple[str, str], ...] = ()  # (destination, nexthop)
    ipv6_ra_mode: str | None = None
    ipv6_address_mode: str | None = None
    resolvers: tuple[str, ...] = ()  # who answers when dns_nameservers is empty: the network's DHCP servers
    domain: str = ""  # DNS domain of the network, for router advertisements
    delegated: bool = False  # its prefix was delegated: guests are told to let go of it when it is another's


class FixedIp(Struct, frozen=True, kw_only=True):
    subnet_id: str
    ip_address: str
    prefixlen: int


class DhcpHost(Struct, frozen=True, kw_only=True):
    """One address that DHCP hands out."""

    port_id: str
    mac: str
    hostname: str
    fixed_ips: tuple[FixedIp, ...]
    options: tuple[tuple[str, str], ...] = ()  # (name or number, value); an IPv6 option is "option6:NAME"
    domain: str = ""  # the port's or the network's own DNS domain, besides the cloud's


class DhcpSpec(Struct, frozen=True, kw_only=True):
    """DHCP for one network served on this host: namespace ``qdhcp-<network>``, device ``tap<port>``."""

    port_id: str
    mac: str
    fixed_ips: tuple[FixedIp, ...]
    hosts: tuple[DhcpHost, ...] = ()
    metadata: bool = True  # answer 169.254.169.254 here and push a route to it (for subnets without a router)
    dns_domain: str = ""
    lease_s: int = 86400
    upstreams: tuple[str, ...] = ()  # name servers that are asked for other names
    host_resolvers: bool = False  # without upstreams: those of the host's /etc/resolv.conf


class Neighbour(Struct, frozen=True, kw_only=True):
    """A port of a tunnelled network on another host: who is where, so that nobody has to ask or learn."""

    mac: str
    host: str  # the other host's tunnel address
    addresses: tuple[str, ...] = ()  # its fixed addresses


class Restricted(Struct, frozen=True, kw_only=True):
    """A port of a private VLAN that does not reach everybody: isolated, or in a community."""

    device: str  # its tap, on the host where it is
    macs: tuple[str, ...]
    community: str = ""  # "" = isolated


class LocalIp(Struct, frozen=True, kw_only=True):
    """An address that a port of this host answers for, whoever else may have it."""

    address: str
    port_id: str
    mac: str
    fixed_ip: str
    translate: bool = True  # False: the guest takes packets to the address as they are
    owner_here: bool = False  # the port that really has the address is on this host as well


class NetworkSpec(Struct, frozen=True, kw_only=True):
    """A network that has something to do on this host."""

    id: str
    project_id: str
    segment: Segment
    mtu: int = 1500
    subnets: tuple[SubnetSpec, ...] = ()
    dhcp: DhcpSpec | None = None
    peers: tuple[str, ...] = ()  # tunnel addresses of the other hosts where this network lives
    restricted: tuple[Restricted, ...] = ()  # of a private VLAN; everybody else is promiscuous
    neighbours: tuple[Neighbour, ...] = ()  # l2 population, for switches that use it (Linux bridge)
    host_address: str | None = None  # external network only: "172.24.4.1/24" put on the bridge so the host reaches it
    masquerade: bool = False  # external network only: let it out through the host's own address
    local_ips: tuple[LocalIp, ...] = ()  # of ports on this host; the first one for an address counts
    guest_tags: bool = False  # it carries frames that guests put VLAN tags on (VLAN transparency)
    vlan_ethertype: int = 0x8100  # of its own tag on a physical network; 0x88a8 = QinQ


class RuleSpec(Struct, frozen=True, kw_only=True):
    """One rule of a security group."""

    direction: Literal["ingress", "egress"]
    ethertype: Literal["IPv4", "IPv6"] = "IPv4"
    protocol: str | None = None  # tcp udp icmp icmpv6 ..., a number as text, None = any
    port_min: int | None = None  # for icmp: type
    port_max: int | None = None  # for icmp: code
    remote: tuple[str, ...] | None = None  # CIDRs; None = anyone; () = nobody yet
    remote_set: str | None = None  # id of an AddressSetSpec: only its addresses (then ``remote`` is None)


class SecurityGroupSpec(Struct, frozen=True, kw_only=True):
    """The rules of one security group, on every host that has a port in it. Ports name their groups by id."""

    id: str
    rules: tuple[RuleSpec, ...] = ()


class AddressSetSpec(Struct, frozen=True, kw_only=True):
    """Addresses that rules refer to by id: members of a security group, or an address group. Updated in place.

    The set is on every host where some group's rule names it, once. A rule that names a set which is not here yet
    lets nobody through.
    """

    id: str
    addresses: tuple[str, ...] = ()  # CIDRs of both versions, sorted, none inside another
    directions: tuple[Literal["ingress", "egress"], ...] = ("ingress",)  # of the rules that name it here


class QosSpec(Struct, frozen=True, kw_only=True):
    """Limits and marks for one port or address, seen from its owner: ``ingress`` is towards him. 0 = no limit."""

    ingress_kbps: int = 0
    ingress_burst_kbit: int = 0  # what may pass at once after a pause
    egress_kbps: int = 0
    egress_burst_kbit: int = 0
    ingress_pps: int = 0
    ingress_burst_packets: int = 0
    egress_pps: int = 0
    egress_burst_packets: int = 0
    dscp: int | None = None  # set in every IP packet he sends


class TrunkPlace(Struct, frozen=True, kw_only=True):
    """A port's place in a trunk: what the parent's guest sends and gets untagged, or with a VLAN tag."""

    trunk_id: str
    vlan: int | None = None  # None: the parent itself, whose tap carries all of them


class LogSpec(Struct, frozen=True, kw_only=True):
    """One log that a port's packets go to, at the rate the host allows."""

    id: str
    event: Literal["ALL", "ACCEPT", "DROP"] = "ALL"  # accepted connections, dropped packets
    group: str | None = None  # only what this security group accepted; drops are nobody's


class PortSpec(Struct, frozen=True, kw_only=True):
    """A guest's port wired on this host (router and DHCP ports are part of their router and network)."""

    id: str
    network_id: str
    device: str  # "tap" + first 11 characters of the id
    mac: str
    fixed_ips: tuple[FixedIp, ...] = ()
    mtu: int = 1500
    admin_state_up: bool = True
    port_security: bool = True
    allowed_pairs: tuple[tuple[str, str], ...] = ()  # (CIDR, MAC)
    groups: tuple[str, ...] = ()  # ids of SecurityGroupSpecs; no group: nothing in, nothing out
    rules: tuple[RuleSpec, ...] = ()  # of this port alone, besides those of its groups; they name no sets
    stateful: bool = True  # False: each packet is judged by itself, answers need rules of their own
    logs: tuple[LogSpec, ...] = ()
    project_id: str = ""  # for the lines in the log
    qos: QosSpec | None = None
    trunk: TrunkPlace | None = None  # a subport has no tap of its own
    tx_steering: str = ""  # a hint to Open vSwitch: transmit queues by "thread" or "hash"


class RouterPort(Struct, frozen=True, kw_only=True):
    port_id: str
    network_id: str
    mac: str
    fixed_ips: tuple[FixedIp, ...]
    mtu: int = 1500
    qos: QosSpec | None = None  # of all that passes the device
    hops: tuple[str, ...] = ()  # of a further gateway: next hops out of its subnets
    near: tuple[str, ...] = ()  # CIDRs that it reaches directly though it has no address in them
    alias_mac: str = ""  # of a distributed interface, which every host has: what it goes by away from this host


class FloatingSpec(Struct, frozen=True, kw_only=True):
    id: str
    floating_ip: str
    fixed_ip: str
    qos: QosSpec | None = None
    port_id: str = ""  # the router's port on the external network; "" = its gateway


class ForwardSpec(Struct, frozen=True, kw_only=True):
    """Ports of a floating address that lead to ports of a fixed one, or all to one port."""

    floating_ip: str
    protocol: str  # tcp udp sctp dccp udplite
    outside: tuple[int, int]  # first and last port
    fixed_ip: str
    inside: tuple[int, int]
    port_id: str = ""  # as in FloatingSpec


class HelperSpec(Struct, frozen=True, kw_only=True):
    """A protocol whose further connections a router lets through and translates (conntrack helper)."""

    helper: str  # ftp tftp sip irc h323 amanda netbios-ns pptp sane snmp
    protocol: str
    port: int


class HaPeer(Struct, frozen=True, kw_only=True):
    """Another host of a highly available router."""

    host: str
    address: str  # on the HA network


class HaSpec(Struct, frozen=True, kw_only=True):
    """One host's part in a highly available router: its place on the HA network and who else may be master."""

    vrid: int  # VRRP virtual router id, 1 to 255, unique on the HA network
    port: RouterPort  # network:router_ha_interface of this host; device ``ha-`` + first 11 characters of the port id
    vip: str  # "169.254.0.1/24": carried by whoever is VRRP master
    peers: tuple[HaPeer, ...] = ()
    priority: int = 50
    advert_s: float = 0.1  # VRRP version 3 advertises in hundredths of a second


class LabelRule(Struct, frozen=True, kw_only=True):
    """What a metering label counts or leaves out: packets coming in by a gateway, or going out by one."""

    direction: Literal["ingress", "egress"]
    source: str | None = None  # CIDR, as seen inside
    destination: str | None = None
    excluded: bool = False


class LabelSpec(Struct, frozen=True, kw_only=True):
    """A metering label in one router; its counter lives as long as the router has it."""

    id: str
    rules: tuple[LabelRule, ...] = ()


class MeterCount(Struct, frozen=True, kw_only=True):
    """What a router has counted for a label since it has it."""

    label_id: str
    packets: int
    bytes: int


class Delegation(Struct, frozen=True, kw_only=True):
    """An IPv6 subnet whose prefix a router asks for on its gateway's network, or the prefix it got."""

    subnet_id: str
    prefix: str = ""  # "2001:db8:1::/64"; "" = none


class RouterSpec(Struct, frozen=True, kw_only=True):
    """A router in namespace ``qrouter-<id>`` with ``qr-``/``qg-`` devices and one nft table."""

    id: str
    epoch: int = 0
    admin_state_up: bool = True
    interfaces: tuple[RouterPort, ...] = ()
    gateway: RouterPort | None = None
    gateway_ips: tuple[str, ...] = ()  # next hops out of the gateway port's subnets
    subnets: tuple[SubnetSpec, ...] = ()  # IPv6 subnets that the router advertises
    snat: bool = True
    floating_ips: tuple[FloatingSpec, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()  # (destination, nexthop)
    more_gateways: tuple[RouterPort, ...] = ()
    ecmp: bool = False  # traffic is spread over all gateways; else it leaves by the first one
    bfd: bool = False  # default routes are left out while their next hops, watched by BFD, are away
    forwardings: tuple[ForwardSpec, ...] = ()
    helpers: tuple[HelperSpec, ...] = ()
    ndp_proxy: bool = False  # IPv6 comes in from outside for ``proxies`` only, which the gateway answers for
    proxies: tuple[str, ...] = ()  # IPv6 addresses
    labels: tuple[LabelSpec, ...] = ()  # what is counted
    gateway_qos: QosSpec | None = None  # of the gateway's own address: what is translated to it, not floating IPs
    ha: HaSpec | None = None  # highly available: several hosts have it, the holder of its lease forwards
    way_out: tuple[str, ...] = ()  # distributed: next hops to the part that translates, on its host
    central: RouterSpec | None = None  # distributed: that part, on this host, in namespace ``snat-<id>``
    delegations: tuple[Delegation, ...] | None = None  # prefixes asked for here; None: another host does, if any


class NetworkState(Struct, frozen=True, kw_only=True):
    """Outcome of one network-side ensure."""

    id: str
    status: Literal["ACTIVE", "DOWN", "ERROR"] = "ACTIVE"
    fault: str = ""
    counts: tuple[MeterCount, ...] = ()  # of a router
    delegated: tuple[Delegation, ...] | None = None  # prefixes that a router has; None: this host does not ask


class MetadataAnswer(Protocol):
    """Answers one metadata request of a guest: (status, content type, body)."""

    def __call__(
        self, *, network_id: str | None, router_id: str | None, address: str, method: str, path: str, body: bytes
    ) -> tuple[int, str, bytes]: ...


LeaseClaims = Callable[[dict[str, Any]], dict[str, Any]]
"""Claims of highly available routers, by id, for the control plane (POST /host/routers); its answers."""


class NetworkDriver(Protocol):
    """Makes networks, ports and routers real on this host.

    Order of use: ``start``; networks; ports (the tap exists before the guest starts); routers. Removal is the
    reverse. ``prune`` gets everything that may stay and removes whatever else carries our mark (groups and sets are
    left alone when they are not given). Security groups and address sets come in any order: who is named before it is
    told lets nobody through.
    """

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def destroy(self) -> None: ...
    def networks(self) -> list[str]: ...
    def ports(self) -> list[str]: ...
    def routers(self) -> list[str]: ...
    def ensure_network(self, spec: NetworkSpec) -> NetworkState: ...
    def remove_network(self, id: str) -> None: ...
    def ensure_port(self, spec: PortSpec) -> NetworkState: ...
    def remove_port(self, id: str) -> None: ...
    def security_groups(self) -> list[str]: ...
    def ensure_security_group(self, spec: SecurityGroupSpec) -> NetworkState: ...
    def remove_security_group(self, id: str) -> None: ...
    def address_sets(self) -> list[str]: ...
    def ensure_address_set(self, spec: AddressSetSpec) -> NetworkState: ...
    def remove_address_set(self, id: str) -> None: ...
    def ensure_router(self, spec: RouterSpec) -> NetworkState: ...
    def remove_router(self, id: str) -> None: ...
    def prune(
        self,
        networks: Iterable[str],
        ports: Iterable[str],
        routers: Iterable[str],
        security_groups: Iterable[str] | None = None,
        address_sets: Iterable[str] | None = None,
    ) -> list[str]: ...
    def serve_metadata(self, answer: MetadataAnswer) -> None: ...
    def trace(self, question: Mapping[str, object]) -> dict[str, object]:
        """One leg of a packet's way through this host, on paper: steps, where it leaves, why it stops."""
        ...

    def drift(self, known: Mapping[str, set[str]], spec: Callable[[str, str], object]) -> list[tuple[str, str]]:
        """What of ``known`` (kind -> ids) is not as it was made, found by a quick look; ``spec``: its last spec."""
        ...

    def tend(self, claims: LeaseClaims) -> None: ...
    def news(self) -> list[str]:
        """Routers about which something has changed by itself since ``ensure_router``: prefixes came or went."""
        ...


Progress = Callable[[str], None]
"""Called with one line when a long step starts or advances."""
