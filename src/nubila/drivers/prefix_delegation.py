"""IPv6 prefixes for a router's subnets, asked for on its gateway's network (RFC 8415, IA_PD) by dhcpcd.

Model: one dhcpcd for each router that asks, in its namespace, on its gateway device. A subnet is one identity
association whose number is the first 32 bits of the subnet's id; the client is known by the router's id (DUID-UUID, RFC
6355). Both are the same on every host, so a server gives a router that moved what it had. dhcpcd only talks to the
server: it configures no device. What the server last said is the lease file, which is read here. In
``<root>/routers/<id>``:

    pd.json           what is asked for (Task)
    pd-held.json      prefixes that the router has, and until when: a new client, or a new agent, takes none away
    pd-told.json      what ``report`` said last; ``news`` is when that is not so any longer
    pd/               dhcpcd's own files, in place of /var/lib/dhcpcd, which knows only one client of a name

dhcpcd keeps to fixed paths and runs in several processes, so it gets a mount and a process namespace: they all end
together, however that comes. It outlives the agent like every daemon. Nobody is told of a prefix's end but the server
(RELEASE), and only when the subnet or the gateway went: a router that is moved takes its prefixes along.

Failure: a dead client is started by the next ``tend`` and goes on with its lease; a server that is away is asked again
by dhcpcd; prefixes end when their time is over or the server takes them back.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from nubila.core.ports import Delegation, TryAgain
from nubila.drivers import dhcpv6, links, processes, programs
from nubila.drivers.files import read_json, write_atomic, write_json

NAME, CLIENT, PACKAGE = "pd", "dhcpcd", "dhcpcd-base"
GRACE_S = 300.0
"""How long a prefix that another host got is kept here before the server has confirmed it."""
NOTHING_S, LACKING_S = 120.0, 600.0
"""How long a client goes on that got no prefix, or not all of them, before another one begins anew."""
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_START = """
mount --bind "$1" /var/lib/dhcpcd && mount -t tmpfs -o size=1m,mode=755 tmpfs /run && mkdir /run/dhcpcd || exit 1
ip -6 route flush proto dhcp 2>/dev/null
dhcpcd --nobackground --ipv6only --config /var/lib/dhcpcd/dhcpcd.conf "$2" &
wait $!
"""


class Task(Struct, frozen=True, kw_only=True):
    """What is asked for, where."""

    namespace: str
    device: str
    router_id: str
    subnets: tuple[str, ...]  # ids


class Held(Struct, frozen=True, kw_only=True):
    """A prefix that a subnet has."""

    prefix: str  # /64
    until: float  # seconds since 1970


def iaid(subnet_id: str) -> int:
    """The number of a subnet's identity association."""
    return int(subnet_id[:8], 16)


def duid(router_id: str) -> str:
    """The router's identity as dhcpcd writes it: type 4, then the id."""
    return ":".join(f"{octet:02x}" for octet in b"\x00\x04" + uuid.UUID(router_id).bytes)


def config(task: Task) -> str:
    """dhcpcd's configuration: ask for prefixes, use them for nothing."""
    asked = "".join(f"  ia_pd {iaid(id)} -\n" for id in task.subnets)
    head = "duid\nipv6only\nnodev\nnoipv6rs\nscript /bin/true\n"
    return f"{head}interface {task.device}\n{asked}"


def choose(offered: Sequence[dhcpv6.Prefix], have: str) -> tuple[str, int] | None:
    """The /64 to use of what the server gives one subnet, and for how many seconds; the one it has if possible.

    Of a shorter prefix it is the first /64; a longer one is of no use.
    """
    usable = [
        (str(next(net.subnets(new_prefix=64))), p)
        for p in offered
        if p.valid_s > 0 and (net := ipaddress.IPv6Network(p.prefix)).prefixlen <= 64
    ]
    usable.sort(key=lambda one: (one[1].preferred_s > 0, one[0] == have, one[1].preferred_s, one[1].valid_s))
    return (usable[-1][0], usable[-1][1].valid_s) if usable else None


def after(
    held: Mapping[str, Held], subnets: Iterable[str], lease: Mapping[int, Sequence[dhcpv6.Prefix]], got: float,
    now: float,
) -> dict[str, Held]:  # fmt: skip
    """What the subnets have once the server said ``lease`` at the time ``got``; associations it left out stay."""
    found = {}
    for id in subnets:
        old = held.get(id)
        if iaid(id) in lease:
            chosen = choose(lease[iaid(id)], old.prefix if old else "")
            if chosen is None:
                continue
            old = Held(prefix=chosen[0], until=got + chosen[1])
        if old is not None and old.until > now:
            found[id] = old
    return found


# --- what the router's ``ensure`` calls ---------------------------------------------------------------------------


def leave(run_dir: Path, task: Task | None, *, give_back: bool = True) -> None:
    """End what is not asked for any longer, before its device goes; ``give_back``: and tell the server."""
    before = read_json(run_dir / "pd.json", Task)
    if before is None or before == task:
        return
    same = task is not None and (before.namespace, before.device) == (task.namespace, task.device)
    gone = [id for id in before.subnets if task is None or not same or id not in task.subnets]
    _end(run_dir, before, gone if give_back else ())
    shutil.rmtree(run_dir / "pd", ignore_errors=True)
    if task is not None:
        _keep(run_dir, {id: one for id, one in _held(run_dir).items() if id not in gone})
        write_json(run_dir / "pd.json", task)
        return
    for name in ("pd-held.json", "pd-told.json", "pd.json"):
        (run_dir / name).unlink(missing_ok=True)


def ensure(run_dir: Path, task: Task | None, known: Iterable[Delegation] = ()) -> list[str]:
    """Ask for prefixes; ``known``: what the control plane has from this or another host. Sentences on what cannot be.

    ``leave`` has been called with the same task.
    """
    if task is None:
        return []
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if read_json(run_dir / "pd.json", Task) is None:
        until = time.time() + GRACE_S
        _keep(run_dir, {one.subnet_id: Held(prefix=one.prefix, until=until) for one in known if one.prefix})
        write_json(run_dir / "pd.json", task)
    said = _run(run_dir, task)
    held = look(run_dir)
    lacking = [id for id in task.subnets if id not in held]
    if lacking and not said:
        said = f"No DHCPv6 server has delegated a prefix to subnet {', '.join(lacking)} on {task.device} yet."
    return [said] if said else []


def report(run_dir: Path, task: Task | None) -> tuple[Delegation, ...] | None:
    """What to tell the control plane; None = nothing is asked for here."""
    if task is None:
        return None
    held = look(run_dir)
    write_json(run_dir / "pd-told.json", _brief(held))
    return tuple(Delegation(subnet_id=id, prefix=held[id].prefix) for id in task.subnets if id in held)


def news(run_dir: Path) -> bool:
    """Whether ``report`` would say something else than it did last."""
    if not (run_dir / "pd.json").exists():
        return False
    return _brief(look(run_dir)) != read_json(run_dir / "pd-told.json", dict[str, str])


def tend(run_dir: Path) -> None:
    """Start the client again when it ended by itself, or gets nothing and hardly asks any more."""
    task = read_json(run_dir / "pd.json", Task)
    if task is None or not links.namespace_exists(task.namespace):
        return
    if impatient(run_dir, task):
        processes.kill(NAME, run_dir)
        _lease_file(run_dir, task).unlink(missing_ok=True)
    if dead(run_dir):
        _run(run_dir, task)


def stop(run_dir: Path, *, give_back: bool) -> None:
    """End it; absent is success. ``give_back``: the prefixes are not needed any more, here or anywhere."""
    leave(run_dir, None, give_back=give_back)


def impatient(run_dir: Path, task: Task) -> bool:
    """Whether a prefix is lacking for so long that asking begins anew: clients pause up to an hour (RFC 8415, 7.6)."""
    held = look(run_dir)
    if all(id in held for id in task.subnets):
        return False
    try:
        return time.time() - (run_dir / f"{NAME}.pid").stat().st_mtime > (LACKING_S if held else NOTHING_S)
    except OSError:
        return False


def running(run_dir: Path, task: Task) -> bool:
    """Whether the client runs where it should."""
    pid = processes.alive(NAME, run_dir)
    return pid is not None and links.lives_in(pid, task.namespace)


def dead(run_dir: Path) -> bool:
    """Whether a client should run and does not, though it could."""
    task = read_json(run_dir / "pd.json", Task)
    return task is not None and not running(run_dir, task) and shutil.which(CLIENT, path=_PATH) is not None


def look(run_dir: Path) -> dict[str, Held]:
    """What the router has now, by subnet; remembered."""
    task = read_json(run_dir / "pd.json", Task)
    if task is None:
        return {}
    before = _held(run_dir)
    message, got = _lease(run_dir, task)
    found = after(before, task.subnets, dhcpv6.delegated(message), got, time.time())
    if found != before:
        _keep(run_dir, found)
    return found


# --- inside -------------------------------------------------------------------------------------------------------


def _held(run_dir: Path) -> dict[str, Held]:
    return read_json(run_dir / "pd-held.json", dict[str, Held]) or {}


def _keep(run_dir: Path, held: Mapping[str, Held]) -> None:
    if run_dir.is_dir():
        write_json(run_dir / "pd-held.json", held)


def _brief(held: Mapping[str, Held]) -> dict[str, str]:
    return {id: one.prefix for id, one in held.items()}


def _lease_file(run_dir: Path, task: Task) -> Path:
    return run_dir / "pd" / f"{task.device}.lease6"


def _lease(run_dir: Path, task: Task) -> tuple[bytes, float]:
    """The server's last answer, and when it came; dhcpcd writes the file anew each time."""
    path = _lease_file(run_dir, task)
    try:
        return path.read_bytes(), path.stat().st_mtime
    except OSError:
        return b"", 0.0


def _run(run_dir: Path, task: Task) -> str:
    """Have the client; a sentence when that cannot be."""
    if shutil.which(CLIENT, path=_PATH) is None:
        return f"No prefix can be asked for: {CLIENT} is not installed on this host (package {PACKAGE})."
    own, text = run_dir / "pd", config(task)
    path = own / "dhcpcd.conf"
    same = path.exists() and path.read_text() == text
    if running(run_dir, task) and same:
        return ""
    processes.kill(NAME, run_dir)
    if not same:  # it would go on with the old associations and never ask for the new ones
        shutil.rmtree(own, ignore_errors=True)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(own / "duid", f"{duid(task.router_id)}\n".encode())
    write_atomic(path, text.encode())
    _free_port(task).close()
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave", "sh", "-c", _START, "pd",
            str(own.absolute()), task.device]  # fmt: skip
    processes.start(NAME, argv, run_dir, log=run_dir / "pd.log", netns=task.namespace)
    return ""


def _free_port(task: Task, patience_s: float = 3.0) -> socket.socket:
    """The client's UDP port, once an ended client has let go of it."""
    deadline = time.monotonic() + patience_s
    while True:
        with links.entered(task.namespace):
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            try:
                sender.bind(("::", dhcpv6.CLIENT_PORT))
                return sender
            except OSError as refusal:
                sender.close()
                if refusal.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise TryAgain(f"The DHCPv6 client's port in {task.namespace} is taken: {refusal}.") from None
        time.sleep(0.01)  # the kernel tells nobody when a killed client's port is free; milliseconds as a rule


def _end(run_dir: Path, task: Task, gone: Sequence[str]) -> None:
    """End the client and give back what these subnets had; the server may be away, nobody waits for it."""
    message, _ = _lease(run_dir, task)
    processes.kill(NAME, run_dir)
    if not links.namespace_exists(task.namespace):
        return
    back = dhcpv6.release(message, [iaid(id) for id in gone])
    with contextlib.suppress(TryAgain, OSError):
        if back is not None:
            with _free_port(task) as sender, links.entered(task.namespace):
                where = socket.if_nametoindex(task.device)
                for _ in range(2):
                    sender.sendto(back, (dhcpv6.SERVERS, dhcpv6.SERVER_PORT, 0, where))
    with contextlib.suppress(TryAgain, OSError), links.entered(task.namespace):
        links.sysctl(f"net/ipv6/conf/{task.device}/addr_gen_mode", "0")  # dhcpcd sets 1: no link-local address
        programs.run(["ip", "-6", "route", "flush", "proto", "dhcp"], package="iproute2", check=False)
