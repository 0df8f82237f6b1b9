"""Who forwards for a highly available router, as the wires show it.

The external network is made to flood: every echo request reaches all network hosts, so a host that forwards while
another one does sends the same request into the tunnels a second time. Captures there (the outer address says which
host) and on the external network (each host's own port) must never show one packet from two hosts.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from ha_stage import Stage
from machines import until

Packet = tuple[float, str, tuple[int, int]]  # when, from which host, (id, sequence number) of the echo


def frames(path: Path) -> Iterator[tuple[float, bytes]]:
    """The frames of a capture file (pcap-savefile(5), nanoseconds or microseconds)."""
    data = path.read_bytes()
    if len(data) < 24:
        return
    unit = 1e-9 if data[:4] == b"\x4d\x3c\xb2\xa1" else 1e-6
    at = 24
    while at + 16 <= len(data):
        seconds, part, length, _ = struct.unpack_from("<IIII", data, at)
        if at + 16 + length > len(data):  # still being written
            return
        yield seconds + part * unit, data[at + 16 : at + 16 + length]
        at += 16 + length


def echo(ip: bytes, kind: int) -> tuple[int, int] | None:
    """(id, sequence number) of an ICMP echo request (8) or reply (0); None for anything else."""
    head = (ip[0] & 0xF) * 4
    if len(ip) < head + 8 or ip[9] != 1 or ip[head] != kind:
        return None
    id, number = struct.unpack_from("!HH", ip, head + 4)
    return id, number


class Witness:
    """Captures on both sides of the router."""

    def __init__(self, stage: Stage, root: Path) -> None:
        self.stage, self.root = stage, root
        self._children = []
        for name, wire, device, condition in (
            ("tunnels", stage.tunnels, "br0", "udp port 4789"),
            *((host, stage.external, f"to-{host}", "icmp") for host in stage.network_hosts),
        ):
            way = ["-Q", "in"] if device != "br0" else []
            argv = ["tcpdump", "-i", device, "-U", "-n", *way, "-w", str(root / f"{name}.pcap"), condition]
            self._children.append(wire.machine.spawn(*argv))
        files = [root / f"{name}.pcap" for name in ("tunnels", *stage.network_hosts)]
        until(lambda: all(file.exists() and file.stat().st_size >= 24 for file in files), "the captures run")

    def stop(self) -> None:
        """Write everything out."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(20)

    def inwards(self) -> list[Packet]:
        """Echo requests that network hosts sent into tunnels."""
        hosts = {bytes((10, 0, 1, i)): name for i, name in enumerate(self.stage.machines, 1)}
        found: list[Packet] = []
        for at, frame in frames(self.root / "tunnels.pcap"):
            outer, inner = frame[14:34], frame[50:]  # Ethernet, IPv4, UDP, VXLAN
            host = hosts.get(outer[12:16], "")
            if host in self.stage.network_hosts and inner[12:14] == b"\x08\x00":
                what = echo(inner[14:], 8)
                if what is not None:
                    found.append((at, host, what))
        return found

    def outwards(self) -> list[Packet]:
        """Echo replies that network hosts sent out."""
        found: list[Packet] = []
        for host in self.stage.network_hosts:
            for at, frame in frames(self.root / f"{host}.pcap"):
                what = echo(frame[14:], 0) if frame[12:14] == b"\x08\x00" else None
                if what is not None:
                    found.append((at, host, what))
        return sorted(found)


def twice(packets: list[Packet]) -> list[str]:
    """Packets that two hosts forwarded."""
    first: dict[tuple[int, int], tuple[float, str]] = {}
    out = []
    for at, host, what in sorted(packets):
        known = first.setdefault(what, (at, host))
        if known[1] != host and at - known[0] < 30:
            out.append(f"echo {what}: {known[1]} at {known[0]:.3f}, {host} {1000 * (at - known[0]):.1f} ms later")
    return out


def flood(stage: Stage) -> None:
    """What comes from outside reaches both network hosts, and neither hears the other there: so none learns better."""
    for host in stage.network_hosts:
        stage.external.inside(
            "bridge", "link", "set", "dev", f"to-{host}", "learning", "off", "flood", "on", "isolated", "on"
        )
        stage.external.inside("ip", "link", "set", "dev", f"to-{host}", "type", "bridge_slave", "fdb_flush")
        if host in stage.machines:  # its own bridge must not remember that the router is out there
            daemon = "/run/nubila/ovs/ovs-vswitchd.ctl"
            stage.machines[host].run("ovs-appctl", "-t", daemon, "fdb/flush", "br-ex", check=False)


def second_forwarder(stage: Stage, witness: Witness) -> bool:
    """Open the gate of the standby by force, with all that it needs to forward; whether the witness sees both."""
    active, standby = stage.active(), stage.standby()
    mine = [(d, a) for d, found in stage.addresses(active).items() if d[:3] in ("qr-", "qg-") for a in found]
    inner = next(d for d, _ in mine if d.startswith("qr-"))
    known = stage.inside(active, "ip", "-4", "neigh", "show", "dev", inner)
    guest = next((line.split() for line in known.splitlines() if "lladdr" in line), [])
    for device, address in mine:
        if "." in address:
            stage.inside(standby, "ip", "addr", "add", address, "dev", device, check=False)
    if guest:
        mac = guest[guest.index("lladdr") + 1]
        stage.inside(standby, "ip", "neigh", "replace", guest[0], "lladdr", mac, "dev", inner, check=False)
    force = f"from nubila.drivers.ha_gate import Gate; assert Gate('qrouter-{stage.router}').open(3)"
    stage.machines[standby].run(sys.executable, "-c", force)
    stage.from_outside("ping", "-c", "5", "-i", "0.05", "-W", "1", stage.floating)
    seen = twice(witness.inwards())
    return bool(seen) and active in seen[0] and standby in seen[0]
