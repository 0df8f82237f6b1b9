"""Which host may take a server, and which is best: pure functions over what is known, no database, no clock.

Filters in order: the host is up and enabled, is the one asked for, is in the availability zone, has what the flavor's
``trait:`` properties ask, fits the scheduler hints and the server group, has room. Weight: most free memory first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nubila.services.network import plug
from nubila.services.placement.combine import Provider


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host as placement sees it. ``free`` is by resource class, overcommit included."""

    name: str
    provider_id: str
    zone: str
    up: bool = True
    free: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)  # the largest single request it takes, by class
    traits: frozenset[str] = frozenset()
    tree: Sequence[Provider] = ()  # the host's provider and those below it, when ports ask for something of them


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a server needs of its host."""

    amounts: Mapping[str, int]
    zone: str | None = None
    host: str | None = None
    required: frozenset[str] = frozenset()  # traits
    forbidden: frozenset[str] = frozenset()
    policy: str = ""  # of the server group: affinity, anti-affinity, soft-affinity, soft-anti-affinity
    max_per_host: int = 1  # of anti-affinity
    members: Mapping[str, int] = field(default_factory=dict)  # host -> how many of the group are there
    same_hosts: frozenset[str] | None = None  # hint same_host, as host names; None = no such hint
    other_hosts: frozenset[str] = frozenset()  # hint different_host, as host names
    ports: Sequence[plug.Request] = ()  # what the server's ports ask for


def amounts(flavor: Mapping[str, Any]) -> dict[str, int]:
    """What a flavor claims, by resource class; classes of which it needs nothing are left out.

    ``resources:CLASS`` properties override or add.
    """
    swap_gb = -(-int(flavor.get("swap") or 0) // 1024)
    need = {
        "VCPU": int(flavor["vcpus"]),
        "MEMORY_MB": int(flavor["ram"]),
        "DISK_GB": int(flavor["disk"]) + int(flavor.get("ephemeral") or 0) + swap_gb,
    }
    for key, value in (flavor.get("extra_specs") or {}).items():
        if key.startswith("resources:") and str(value).isdigit():
            need[key[10:]] = int(value)
    return {name: n for name, n in need.items() if n > 0}


def traits(flavor: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Traits that the flavor's properties require and forbid."""
    asked = {k[6:]: v for k, v in (flavor.get("extra_specs") or {}).items() if k.startswith("trait:")}
    return (
        frozenset(t for t, v in asked.items() if v == "required"),
        frozenset(t for t, v in asked.items() if v == "forbidden"),
    )


def refusal(host: Host, wish: Wish) -> str:  # one line per filter
    """Why the host cannot take the server, in a few words; "" when it can."""
    if wish.host is not None and host.name != wish.host:
        return "not the host asked for"
    if not host.up:
        return "down or disabled"
    if wish.zone is not None and host.zone != wish.zone:
        return "in another availability zone"
    if not wish.required <= host.traits:
        return f"lacks trait {min(wish.required - host.traits)}"
    if wish.forbidden & host.traits:
        return f"has forbidden trait {min(wish.forbidden & host.traits)}"
    if wish.same_hosts is not None and host.name not in wish.same_hosts:
        return "not where the hint same_host points"
    if host.name in wish.other_hosts:
        return "excluded by the hint different_host"
    if wish.policy == "affinity" and wish.members and host.name not in wish.members:
        return "the server group has affinity to another host"
    if wish.policy == "anti-affinity" and wish.members.get(host.name, 0) >= wish.max_per_host:
        return "the server group's anti-affinity forbids another member"
    return _short(host, wish)


def _short(host: Host, wish: Wish) -> str:
    for name, n in wish.amounts.items():
        if n > host.free.get(name, 0) or n > host.most.get(name, n):
            return f"too little {name}: {host.free.get(name, 0)} free, {n} needed"
    if wish.ports and not plug.choices(host.tree, wish.ports):
        return "cannot guarantee the bandwidth or packet rate that the server's ports ask for"
    return ""


def candidates(hosts: Iterable[Host], wish: Wish) -> list[Host]:
    """The hosts that can take the server, best first: soft group policy, then free memory, then name."""
    fit = [h for h in hosts if not refusal(h, wish)]

    def weight(host: Host) -> tuple[float, int, str]:
        near = wish.members.get(host.name, 0)
        soft = -near if wish.policy == "soft-affinity" else near if wish.policy == "soft-anti-affinity" else 0
        return soft, -host.free.get("MEMORY_MB", 0), host.name

    return sorted(fit, key=weight)


def explain(hosts: Sequence[Host], wish: Wish) -> str:
    """One sentence on why nothing fits, for the note of the work row and the operator."""
    if not hosts:
        return "There is no compute host."
    return "; ".join(f"{h.name}: {refusal(h, wish) or 'fits'}" for h in hosts[:5]) + ("; ..." if len(hosts) > 5 else "")
