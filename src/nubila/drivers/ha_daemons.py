"""What runs in the namespace of a highly available router: keepalived (VRRP) and conntrackd (connection state).

keepalived says who would be master and carries the addresses; whether the master forwards is decided by the lease
(ha_gate.py, ADR 7). All hosts have the same priority, as the field's configuration has it; the keeper lowers it by a
tracked file while another host holds the lease, so that a host which heard nobody for a moment cannot take the
addresses from the one that forwards. conntrackd tells the other hosts of every connection; they put it straight into
their kernel, so that a connection goes on after a fail-over.
Source: keepalived.conf(5), conntrackd.conf(5), RFC 5798.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from nubila.core.ports import HaSpec, NeedsOperator
from nubila.drivers import processes

KEEPALIVED, CONNTRACKD = "keepalived", "conntrackd"
STANDING = "standing"
"""File in the router's directory: what the keeper adds to the VRRP priority."""
SYNC_PORT = 3780
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def keepalived_config(spec: HaSpec, device: str, addresses: Sequence[tuple[str, str]], run_dir: Path) -> str:
    """VRRP for one router; ``addresses`` are (device, "ip/length") that the master carries besides the VIP."""
    excluded = "".join(f"        {address} dev {where}\n" for where, address in addresses)
    if excluded:
        excluded = f"    virtual_ipaddress_excluded {{\n{excluded}    }}\n"
    return (
        "global_defs {\n    vrrp_version 3\n    vrrp_garp_master_repeat 1\n    vrrp_garp_master_delay 1\n}\n"
        f'track_file standing {{\n    file "{run_dir / STANDING}"\n    weight 1\n}}\n'
        f"vrrp_instance VR_{spec.vrid} {{\n"
        "    state BACKUP\n"
        f"    interface {device}\n"
        f"    virtual_router_id {spec.vrid}\n"
        f"    priority {spec.priority}\n"
        f"    advert_int {spec.advert_s:g}\n"
        "    track_file {\n        standing weight 1\n    }\n"
        f"    virtual_ipaddress {{\n        {spec.vip} dev {device}\n    }}\n"
        f"{excluded}}}\n"
    )


def conntrackd_config(spec: HaSpec, device: str, run_dir: Path) -> str:
    """Connection tracking shared with the other hosts over the HA network."""
    own = spec.port.fixed_ips[0].ip_address
    channels = "".join(
        f"    UDP {'Default ' if not i else ''}{{\n        IPv4_address {own}\n"
        f"        IPv4_Destination_Address {peer.address}\n        Port {SYNC_PORT}\n        Interface {device}\n"
        "        SndSocketBuffer 1249280\n        RcvSocketBuffer 1249280\n        Checksum on\n    }\n"
        for i, peer in enumerate(spec.peers[:1])
    )
    if len(spec.peers) != 1:  # everybody on the HA network's own group
        channels = (
            f"    Multicast {{\n        IPv4_address 225.0.0.{spec.vrid % 200 + 50}\n        Group {SYNC_PORT}\n"
            f"        IPv4_interface {own}\n        Interface {device}\n"
            "        SndSocketBuffer 1249280\n        RcvSocketBuffer 1249280\n        Checksum on\n    }\n"
        )
    return (
        "Sync {\n    Mode NOTRACK {\n        DisableExternalCache yes\n        DisableInternalCache yes\n    }\n"
        f"{channels}"
        "    Options {\n        TCPWindowTracking no\n    }\n}\n"
        "General {\n    HashSize 8192\n    HashLimit 65535\n"
        f"    LockFile {run_dir / 'conntrackd.lock'}\n"
        f"    UNIX {{\n        Path {socket_path(run_dir)}\n    }}\n"
        "    NetlinkBufferSize 2097152\n    NetlinkBufferSizeMaxGrowth 8388608\n"
        "    Filter From Kernelspace {\n        Protocol Accept {\n            TCP\n            UDP\n            ICMP\n"
        "            SCTP\n        }\n"
        f"        Address Ignore {{\n            IPv4_address 127.0.0.1\n            IPv4_address {own}\n"
        "            IPv4_address 169.254.0.0/16\n        }\n    }\n}\n"
    )


def socket_path(run_dir: Path) -> Path:
    """conntrackd's control socket; its path must be short, state directories are not."""
    return Path("/run/nubila") / f"ct-{run_dir.name[:13]}-{zlib.crc32(str(run_dir).encode()):08x}.ctl"


def run(name: str, argv: Sequence[str], config: str, run_dir: Path, where: str, *, reload: bool) -> None:
    """Have a daemon with this configuration: started, told to read it anew, or started again."""
    path = run_dir / f"{name}.conf"
    old = path.read_text() if path.exists() else ""
    running = processes.alive(name, run_dir) is not None
    if config != old:
        fresh = path.with_suffix(".new")
        fresh.write_text(config)
        fresh.replace(path)
        if running and reload:
            processes.reload(name, run_dir)
        elif running:
            processes.stop(name, run_dir, timeout_s=1)
            running = False
    if not running:
        processes.start(name, argv, run_dir, log=run_dir / f"{name}.log", netns=where)


def keepalived_argv(run_dir: Path) -> list[str]:
    """keepalived in the foreground; when its worker dies the whole of it ends and is started again."""
    return [
        KEEPALIVED, "--dont-fork", "--log-console", "--vrrp", f"--use-file={run_dir / 'keepalived.conf'}",
        f"--pid={run_dir / 'keepalived-own.pid'}", f"--vrrp_pid={run_dir / 'keepalived-vrrp.pid'}",
        "--dont-respawn",
    ]  # fmt: skip


def conntrackd_argv(run_dir: Path) -> list[str]:
    """conntrackd in the foreground."""
    return [CONNTRACKD, "-C", str(run_dir / "conntrackd.conf")]


def bulk_argv(run_dir: Path) -> list[str]:
    """Have a running conntrackd tell the others of every connection in the kernel, as it is now."""
    return [shutil.which(CONNTRACKD, path=_PATH) or CONNTRACKD, "-C", str(run_dir / "conntrackd.conf"), "-B"]


def clear(name: str, run_dir: Path) -> None:
    """Remove what a dead daemon left and the next one would stumble over; a worker it left is ended."""
    if name == CONNTRACKD:
        Path("/run/nubila").mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (run_dir / "conntrackd.lock", socket_path(run_dir)):
            left.unlink(missing_ok=True)


def keepalived(config: str, run_dir: Path, where: str) -> None:
    """Have keepalived."""
    if shutil.which(KEEPALIVED, path=_PATH) is None:
        raise NeedsOperator("The program keepalived is not installed on this host (package keepalived).")
    standing = run_dir / STANDING
    if not standing.exists():
        standing.write_text("0\n")
    argv = keepalived_argv(run_dir)
    run(KEEPALIVED, argv, config, run_dir, where, reload=True)


def conntrackd(config: str, run_dir: Path, where: str) -> None:
    """Have conntrackd; without it connections do not outlive a fail-over, and nothing else is amiss."""
    if processes.alive(CONNTRACKD, run_dir) is None:
        clear(CONNTRACKD, run_dir)
    run(CONNTRACKD, conntrackd_argv(run_dir), config, run_dir, where, reload=False)


def stop(run_dir: Path, names: Iterable[str] = (KEEPALIVED, CONNTRACKD)) -> None:
    """End them; absent is success."""
    for name in names:
        processes.stop(name, run_dir, timeout_s=1)
    if CONNTRACKD in names:
        socket_path(run_dir).unlink(missing_ok=True)
