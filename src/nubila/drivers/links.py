"""Network namespaces, devices, addresses and routes of this host, by netlink.

Everything happens in one network namespace at a time: ``net = opened(namespace)`` moves the calling *thread* there
(other threads stay where they are), so sockets and child processes made inside the block live there too. Verbs are
idempotent and absent is success. What we create is marked: namespaces by the alias of their ``lo``, devices by their
alias (``ip -d link`` shows both), and every device whose packets belong to the switch is in one interface group, so
that one rule keeps the host's own IP stack away from them (see nft.host_table).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nubila.core.ports import NeedsOperator, TryAgain
from nubila.drivers import link_reads
from nubila.drivers.link_reads import Device as Device

NETNS = Path("/run/netns")
GROUP = 0x6E75  # "nu": interface group of devices that belong to the switch

_CLONE_NEWNET = 0x40000000
_MS_REC_SHARED = 0x4000 | (1 << 20)
_MS_BIND = 0x1000
_MNT_DETACH = 2
_NSFS_MAGIC = 0x6E736673
_IFF_UP = 0x1
_IFF_NOARP = 0x80
_OURS = ipaddress.ip_address("fe80::a9fe:a9fe")  # the link-local address we give ourselves, for metadata
_RTPROT_STATIC, _LINK = 4, 253
_NUD_PERMANENT_NOARP = 0x80 | 0x40
_NTF_SELF = 0x02
_ETHTOOL = {"tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24}  # ETHTOOL_STXCSUM, SSG, STSO, SGSO
_SIOCETHTOOL = 0x8946
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP_NO_PI = 0x0002 | 0x1000

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


# --- namespaces ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Move this thread into a named namespace for the length of the block; "" stays where the process is.

    Raises TryAgain when the namespace does not exist.
    """
    if not namespace:
        yield
        return
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise TryAgain(f"The network namespace {namespace} does not exist.") from None
        try:
            _check(_libc.setns(there, _CLONE_NEWNET), f"Entering the network namespace {namespace}")
        finally:
            os.close(there)
        try:
            yield
        finally:
            _check(_libc.setns(back, _CLONE_NEWNET), "Leaving a network namespace")
    finally:
        os.close(back)


def namespace_exists(name: str) -> bool:
    """Whether a namespace of that name is mounted (a left-over empty file does not count)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(NETNS / name), buffer) != 0:
        return False
    return int(struct.unpack_from("l", buffer.raw)[0]) == _NSFS_MAGIC


def lives_in(pid: int, name: str) -> bool:
    """Whether a process is in the namespace of that name: one that was unmounted lives on with its processes."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == (NETNS / name).stat().st_ino
    except OSError:
        return False


def namespaces() -> list[str]:
    """Names of all mounted namespaces, sorted."""
    try:
        names = sorted(os.listdir(NETNS))
    except FileNotFoundError:
        return []
    return [name for name in names if namespace_exists(name)]


def ensure_namespace(name: str, mark: str) -> bool:
    """Make a namespace with ``lo`` up and carrying ``mark``; returns whether it was new.

    The mark is set before the namespace gets its name: a named namespace of ours is never unmarked.
    """
    if namespace_exists(name):
        return False
    _prepare_mounts()
    _in_thread(lambda: _new_namespace(name, mark))
    return True


def remove_namespace(name: str) -> None:
    """Unmount and forget a namespace; the kernel frees it (and its devices) a little later."""
    target = os.fsencode(NETNS / name)
    while _libc.umount2(target, _MNT_DETACH) == 0:
        pass
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)


def forget_mount() -> None:
    """Undo what the first namespace did to /run/netns once there is none; whoever needs it next makes it again."""
    if not NETNS.is_dir() or os.listdir(NETNS):
        return
    while _libc.umount2(os.fsencode(NETNS), 0) == 0:  # refused while in use, and when it is no mount
        pass
    with contextlib.suppress(OSError):
        NETNS.rmdir()


def namespace_mark(name: str) -> str:
    """The mark a namespace carries; "" when there is none or no namespace."""
    try:
        with opened(name) as net:
            device = net.device("lo")
    except (TryAgain, OSError):
        return ""
    return device.alias if device else ""


def _new_namespace(name: str, mark: str) -> None:
    _check(_libc.unshare(_CLONE_NEWNET), "Making a network namespace")
    with IPRoute() as route:
        route.link("set", index=1, state="up", ifalias=mark)
    target = NETNS / name
    target.touch(mode=0o444)
    done = _libc.mount(b"/proc/thread-self/ns/net", os.fsencode(target), b"none", _MS_BIND, None)
    _check(done, f"Mounting the network namespace {name}")


def _prepare_mounts() -> None:
    """Make /run/netns a shared mount point, as ``ip netns`` does, so that other mount namespaces see removals."""
    if NETNS.is_dir() and os.path.ismount(NETNS):
        return
    NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = os.fsencode(NETNS)
    if _libc.mount(b"", target, b"none", _MS_REC_SHARED, None) == 0:
        return
    _check(_libc.mount(target, target, b"none", _MS_BIND | 0x4000, None), "Mounting /run/netns")
    _check(_libc.mount(b"", target, b"none", _MS_REC_SHARED, None), "Sharing /run/netns")


def _in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own, for what a thread cannot undo."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _check(result: int, what: str) -> None:
    if result == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise NeedsOperator(f"{what} is not permitted: the agent must run as root.")
    raise TryAgain(f"{what} failed: {os.strerror(code)}.")


# --- devices ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(namespace: str) -> Iterator[Net]:
    """Enter a namespace and open netlink there; kernel refusals become TryAgain with the kernel's words."""
    with entered(namespace):
        net = Net()
        try:
            yield net
        except NetlinkError as refusal:
            where = f" in {namespace}" if namespace else ""
            raise TryAgain(f"The kernel refused a network change{where}: {refusal}.") from refusal
        finally:
            net.close()


class Net:
    """The devices of one namespace."""

    def __init__(self) -> None:
        self._opened: IPRoute | None = None

    @property
    def _route(self) -> IPRoute:
        """Opened when something is to be changed: looking at a device does without."""
        if self._opened is None:
            self._opened = IPRoute()
        return self._opened

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self._opened is not None:
            self._opened.close()

    @property
    def route(self) -> IPRoute:
        """The netlink socket, for modules that know more kinds of devices."""
        return self._route

    def device(self, name: str) -> Device | None:
        """One device by name, None when absent."""
        return link_reads.device(name)

    def must(self, name: str) -> Device:
        """One device by name; raises TryAgain when absent."""
        device = self.device(name)
        if device is None:
            raise TryAgain(f"The network device {name} does not exist.")
        return device

    def devices(self) -> list[Device]:
        """All devices of the namespace."""
        return link_reads.devices()

    def add_veth(self, name: str, peer_namespace: str, mac: str, peer_name: str = "") -> None:
        """A veth pair: ``name`` here, and the same (or ``peer_name``) with ``mac`` in ``peer_namespace``."""
        with open(NETNS / peer_namespace, "rb") as there:
            peer = {"ifname": peer_name or name, "net_ns_fd": there.fileno(), "address": mac}
            self._route.link("add", ifname=name, kind="veth", peer=peer)

    def add_pair(self, name: str, peer: str) -> None:
        """A veth pair with both ends in this namespace."""
        self._route.link("add", ifname=name, kind="veth", peer={"ifname": peer})

    def add_vxlan(self, name: str, vni: int, local: str, mtu: int, port: int = 4789) -> None:
        """A VXLAN device that learns addresses and floods to the peers given to ``set_flood`` only."""
        family = "vxlan_local6" if ":" in local else "vxlan_local"
        more = {family: local, "vxlan_port": port, "vxlan_learning": 1}
        self._route.link("add", ifname=name, kind="vxlan", vxlan_id=vni, mtu=mtu, **more)

    def add_tap(self, name: str, mark: str) -> None:
        """A persistent tap device; marked before it is made persistent, so ours is never unmarked."""
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
            self._route.link("set", index=self.must(name).index, ifalias=mark)
            fcntl.ioctl(handle, _TUNSETPERSIST, 1)
        finally:
            os.close(handle)

    def change(
        self,
        device: Device,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        alias: str | None = None,
        arp: bool | None = None,
        group: int | None = None,
    ) -> None:
        """Set what differs, in one request."""
        wanted: dict[str, Any] = {}
        if mtu is not None and device.mtu != mtu:
            wanted["mtu"] = mtu
        if mac is not None and device.mac.lower() != mac.lower():
            wanted["address"] = mac
        if alias is not None and device.alias != alias:
            wanted["ifalias"] = alias
        if group is not None and device.group != group:
            wanted["group"] = group
        flags, mask = 0, 0
        if up is not None and device.up != up:
            flags, mask = flags | (_IFF_UP if up else 0), mask | _IFF_UP
        if arp is not None and device.arp != arp:
            flags, mask = flags | (0 if arp else _IFF_NOARP), mask | _IFF_NOARP
        if mask:
            wanted.update(flags=flags, change=mask)
        if wanted:
            self._route.link("set", index=device.index, **wanted)

    def give_to_switch(self, name: str, mark: str, mtu: int) -> Device:
        """Make a device a pure port of the switch: up, marked, and of no interest to the host's own IP stack."""
        device = self.must(name)
        if device.group != GROUP:
            sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        self.change(device, up=True, mtu=mtu, alias=mark, arp=False, group=GROUP)
        return device

    def remove(self, name: str) -> None:
        """Delete a device; absent is success."""
        device = self.device(name)
        if device is not None:
            with _absent_is_fine():
                self._route.link("del", index=device.index)

    # --- addresses and routes

    def addresses(self, index: int) -> set[str]:
        """Addresses of a device as "ip/prefixlen", without the IPv6 link-local ones that the kernel makes."""
        found = set()
        for message in self._route.get_addr(index=index):
            address = ipaddress.ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            if address == _OURS or not (address.version == 6 and address.is_link_local):
                found.add(f"{address}/{message['prefixlen']}")
        return found

    def set_addresses(self, index: int, wanted: Iterable[str]) -> list[str]:
        """Make the device's addresses exactly ``wanted`` ("ip/prefixlen"); returns the new ones."""
        target = {normal_interface(address) for address in wanted}
        present = self.addresses(index)
        for gone in present - target:
            self.remove_address(index, gone)
        # Larger networks first: a /32 of the same network added before it would become the primary address.
        new = sorted(target - present, key=lambda text: int(text.rpartition("/")[2]))
        for address in new:
            self.add_address(index, address)
        return new

    def add_address(self, index: int, address: str) -> None:
        """Add "ip/prefixlen" without duplicate address detection; present is success."""
        ip, _, length = address.partition("/")
        more: dict[str, Any] = {"flags": 0x02} if ":" in ip else {}
        try:
            self._route.addr("add", index=index, address=ip, prefixlen=int(length), **more)
        except NetlinkError as refusal:
            if refusal.code != errno.EEXIST:
                raise

    def remove_address(self, index: int, address: str) -> None:
        """Take "ip/prefixlen" off a device; absent is success."""
        ip, _, length = address.partition("/")
        with _absent_is_fine():
            self._route.addr("del", index=index, address=ip, prefixlen=int(length))

    def routes(self) -> set[tuple[str, str]]:
        """Routes with a next hop, as (destination CIDR, next hop)."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._route.get_routes(family=family, table=254):
                hop = message.get_attr("RTA_GATEWAY")
                if hop is None or message["type"] != 1:
                    continue
                destination = message.get_attr("RTA_DST") or ("0.0.0.0" if family == socket.AF_INET else "::")
                found.add((f"{destination}/{message['dst_len']}", hop))
        return found

    def set_routes(self, wanted: Iterable[tuple[str, str]]) -> list[str]:
        """Make the routes with next hops exactly ``wanted``; returns one sentence per route the kernel refused."""
        target = {(str(ipaddress.ip_network(to, strict=False)), hop) for to, hop in wanted}
        present = self.routes()
        for to, hop in present - target:
            with _absent_is_fine():
                self._route.route("del", dst=to, gateway=hop)
        refused = []
        for to, hop in sorted(target - present):
            try:
                self._route.route("replace", dst=to, gateway=hop)
            except NetlinkError as refusal:
                refused.append(f"The route to {to} by {hop} was refused: {refusal}.")
        return refused

    def set_link_routes(self, device: str, wanted: Iterable[str]) -> None:
        """Make the IPv4 destinations that are reached directly by a device without an address there exactly these."""
        index = self.must(device).index
        target = {str(ipaddress.ip_network(to, strict=False)) for to in wanted}
        present = set()
        for message in self._route.get_routes(family=socket.AF_INET, table=254, oif=index):
            if message["proto"] == _RTPROT_STATIC and message.get_attr("RTA_GATEWAY") is None:
                present.add(f"{message.get_attr('RTA_DST')}/{message['dst_len']}")
        for to in present - target:
            with _absent_is_fine():
                self._route.route("del", dst=to, oif=index, scope=_LINK)
        for to in target - present:
            self._route.route("replace", dst=to, oif=index, scope=_LINK, proto=_RTPROT_STATIC)

    def set_flood(self, index: int, peers: Iterable[str]) -> None:
        """Make a VXLAN device flood to exactly these remote tunnel addresses."""
        present = {entry.address for entry in link_reads.forwarding(index) if entry.mac == "00:00:00:00:00:00"}
        target = set(peers)
        everyone: dict[str, Any] = {"ifindex": index, "lladdr": "00:00:00:00:00:00", "flags": _NTF_SELF}
        for peer in target - present:
            self._route.fdb("append", dst=peer, state=_NUD_PERMANENT_NOARP, **everyone)
        for peer in present - target:
            with _absent_is_fine():
                self._route.fdb("del", dst=peer, **everyone)


def plain_frames(name: str) -> None:
    """Switch off checksum and segmentation offload of a device of the namespace this thread is in.

    The userspace datapath hands frames on as they are: one with a partial checksum is dropped by its receiver.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _ETHTOOL.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", name.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):  # a device without the feature has nothing to switch off
                fcntl.ioctl(control, _SIOCETHTOOL, request)


def sysctl(name: str, value: str | None = None) -> str:
    """Read (and with ``value`` set) a sysctl of the namespace this thread is in; returns what it was.

    ``name`` has slashes (net/ipv4/ip_forward). A sysctl this kernel lacks reads as "" and cannot be set.
    """
    path = Path("/proc/sys", name)
    try:
        before = path.read_text().strip()
        if value is not None and before != value:
            path.write_text(value)
    except FileNotFoundError:
        return ""
    return before


def normal_interface(address: str) -> str:
    """The usual spelling of "ip/prefixlen"."""
    return ipaddress.ip_interface(address).with_prefixlen


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as refusal:
        if refusal.code not in (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
            raise
