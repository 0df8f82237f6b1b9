"""Make one thing on this host what its spec says. The order of kinds is written once, here.

To create: networks, address sets, security groups, ports, routers, guests. To remove: the reverse. ``apply`` never
raises for what a driver says; it returns the outcome in the form the host API settles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from nubila.core.ports import (
    AddressSetSpec,
    GuestSpec,
    Hypervisor,
    Impossible,
    NeedsOperator,
    NetworkDriver,
    NetworkSpec,
    PortSpec,
    RouterSpec,
    SecurityGroupSpec,
    TryAgain,
)

log = logging.getLogger("nubila.agent")
ORDER = ("network", "address_set", "security_group", "port", "router", "guest", "query")
OPERATOR_AGAIN_S = 60.0
COUNTS_S = 30.0


@dataclass
class Drivers:
    """The engines of this host."""

    hypervisor: Hypervisor | None
    network: NetworkDriver


def sequence(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Removals first, leaves before roots; then the rest, roots before leaves."""
    rank = {kind: i for i, kind in enumerate(ORDER)}
    gone = sorted((i for i in items if i["spec"] is None), key=lambda i: -rank.get(i["kind"], 99))
    here = sorted((i for i in items if i["spec"] is not None), key=lambda i: rank.get(i["kind"], 99))
    return gone + here


def retry_s(tries: int) -> float:
    """Pause before the next try: 0.2 s doubling to 10 s."""
    return float(min(0.2 * 2 ** min(tries, 6), 10.0))


def apply(drivers: Drivers, item: Mapping[str, Any], waits_for: Callable[[GuestSpec], str]) -> dict[str, Any]:
    """Ensure or remove one thing; returns ``observed``, ``note``, ``failed``, ``again_s`` and ``gone``."""
    kind, id, spec, tries = item["kind"], item["id"], item["spec"], int(item.get("tries", 0))
    try:
        if spec is None:
            _remove(drivers, kind, id)
            return {"observed": {"id": id, "status": "GONE"}, "gone": True, "note": "removed"}
        return _ensure(drivers, kind, spec, tries, waits_for)
    except Impossible as e:
        return {"observed": {"id": id, "status": "ERROR", "fault": str(e)}, "note": str(e)}
    except NeedsOperator as e:
        observed = {"id": id, "status": "ERROR", "fault": str(e)} if spec is not None else None
        return {"observed": observed, "note": str(e), "failed": True, "again_s": OPERATOR_AGAIN_S}
    except TryAgain as e:
        return {"observed": None, "note": str(e), "failed": True, "again_s": retry_s(tries)}
    except Exception as e:
        log.exception("%s %s", kind, id)
        return {"observed": None, "note": f"{type(e).__name__}: {e}", "failed": True, "again_s": retry_s(tries)}


def _remove(drivers: Drivers, kind: str, id: str) -> None:
    if kind == "guest" and drivers.hypervisor is not None:
        drivers.hypervisor.remove(id)
    elif kind == "router":
        drivers.network.remove_router(id)
    elif kind == "port":
        drivers.network.remove_port(id)
    elif kind == "security_group":
        drivers.network.remove_security_group(id)
    elif kind == "address_set":
        drivers.network.remove_address_set(id)
    elif kind == "network":
        drivers.network.remove_network(id)


def _ensure(
    drivers: Drivers, kind: str, spec: Any, tries: int, waits_for: Callable[[GuestSpec], str]
) -> dict[str, Any]:
    state: Any
    if kind == "network":
        state = drivers.network.ensure_network(msgspec.convert(spec, NetworkSpec))
    elif kind == "port":
        state = drivers.network.ensure_port(msgspec.convert(spec, PortSpec))
    elif kind == "security_group":
        state = drivers.network.ensure_security_group(msgspec.convert(spec, SecurityGroupSpec))
    elif kind == "address_set":
        state = drivers.network.ensure_address_set(msgspec.convert(spec, AddressSetSpec))
    elif kind == "router":
        wish = msgspec.convert(spec, RouterSpec)
        state = drivers.network.ensure_router(wish)
        if wish.labels:  # what it has counted is told every now and then
            return {"observed": msgspec.to_builtins(state), "note": f"{state.status}", "again_s": COUNTS_S}
    elif kind == "guest":
        return _guest(drivers, msgspec.convert(spec, GuestSpec), tries, waits_for)
    elif kind == "query":
        return {"observed": {"answer": _answer(drivers, spec)}, "gone": True, "note": "answered"}
    else:
        return {"observed": None, "note": f"this agent does not know {kind}", "failed": True, "again_s": 60.0}
    return {"observed": msgspec.to_builtins(state), "note": f"{state.status}"}


def _guest(drivers: Drivers, spec: GuestSpec, tries: int, waits_for: Callable[[GuestSpec], str]) -> dict[str, Any]:
    if drivers.hypervisor is None:
        raise NeedsOperator("this host has no hypervisor")
    if missing := waits_for(spec):
        return {"observed": None, "note": missing, "failed": True, "again_s": min(0.05 * 2 ** min(tries, 6), 2.0)}
    state = drivers.hypervisor.ensure(spec)
    observed = msgspec.to_builtins(state)
    observed["status"] = "ERROR" if state.fault else {"on": "ACTIVE", "off": "SHUTOFF"}.get(state.power, "ERROR")
    outcome: dict[str, Any] = {"observed": observed, "note": f"power {state.power}"}
    if state.power != spec.power and not state.fault:
        outcome |= {"failed": True, "again_s": 0.5, "note": f"power {state.power}, waiting for {spec.power}"}
    return outcome


def _answer(drivers: Drivers, question: Mapping[str, Any]) -> dict[str, Any]:
    if question.get("kind") == "console" and drivers.hypervisor is not None:
        lines = question.get("lines")
        try:
            return {"output": drivers.hypervisor.console_log(str(question["guest"]), lines)}
        except FileNotFoundError:
            return {"output": ""}
    if question.get("kind") == "trace":
        return drivers.network.trace(question)
    return {"error": f"this host cannot answer {question.get('kind')}"}
