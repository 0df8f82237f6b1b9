"""Agents in the API, and which networks and routers they serve."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request, conflict
from nubila.services.network import (
    agent_counts,
    agents,
    dvr_hosts,
    ha_place,
    look,
    networks,
    place_router,
    placing,
    router_views,
)
from nubila.services.network.agents import DHCP, L3
from nubila.services.network.kinds import Network, Router
from nubila.services.network.tables import DHCP_BINDING

Row = dict[str, Any]
_N, _R = Network.table.c, Router.table.c
_SERVED = (
    sa.select(Network.table)
    .join(DHCP_BINDING, DHCP_BINDING.c.network_id == _N.id)
    .where(DHCP_BINDING.c.host == sa.bindparam("host"), DHCP_BINDING.c.state != placing.AWAY)
    .order_by(_N.created_at, _N.id)
)
_ROUTED = sa.select(Router.table).where(_R.host == sa.bindparam("host")).order_by(_R.created_at, _R.id)


def _fields(call: Call, found: list[Row]) -> list[Row]:
    names = {f for k, v in call.query if k == "fields" for f in v.split(",") if f}
    return [{k: v for k, v in a.items() if k in names} for a in found] if names else found


def listing(call: Call) -> Row:
    found = agents.filtered(agents.every(call.tx) if call.may("get_agent") else [], call.query)
    return {"agents": _fields(call, agent_counts.fill(call.tx, found))}


def _allowed(call: Call, rule: str, id: str) -> None:
    if not call.may("get_agent"):
        raise Fault(404, f"Agent {id} could not be found.", "AgentNotFound")
    call.enforce(rule)


def show(call: Call) -> Row:
    _allowed(call, "get_agent", call.params["id"])
    return {"agent": _fields(call, agent_counts.fill(call.tx, [agents.get(call.tx, call.params["id"])]))[0]}


def update(call: Call) -> Row:
    _allowed(call, "update_agent", call.params["id"])
    body = call.body
    if not isinstance(body, dict) or "agent" not in body:
        raise bad_request("The body must be an object with the key 'agent'.", "HTTPBadRequest")
    before = agents.get(call.tx, call.params["id"])
    after = agents.update(call.tx, call.params["id"], body["agent"])
    if after["binary"] == L3 and after["admin_state_up"] and not before["admin_state_up"]:
        placing.schedule_taken(call.tx)
    if after["binary"] == DHCP and after["admin_state_up"] and not before["admin_state_up"]:
        placing.dhcp_agent_is_on(call.tx, after["host"])
    return {"agent": after}


def delete(call: Call) -> None:
    """An agent of a host that is gone: what it served moves. One that is alive is a part of its host and stays."""
    _allowed(call, "delete_agent", call.params["id"])
    agent = agents.get(call.tx, call.params["id"])
    agents.delete(call.tx, agent)
    placing.give_up(call.cloud, call.tx, agent["host"], agent["binary"])


# --- DHCP -----------------------------------------------------------------------------------------------------------


def networks_of(call: Call) -> Row:
    call.enforce("get_dhcp-networks")
    agent = agents.get(call.tx, call.params["id"])
    rows = call.tx.all(_SERVED, {"host": agent["host"]}) if agent["binary"] == DHCP else []
    if rows:
        networks.present(call, rows)
    return {"networks": [_plain(Network, row) for row in rows]}


def _plain(cls: Any, row: Row) -> Row:
    """A row as an administrator sees it."""
    out: Row = {}
    for a in cls.attrs.values():
        if not a.hidden:
            value = row.get(a.name)
            for name in a.wire:
                out[name] = a.type.dump(value) if a.type.dump is not None and value is not None else value
    return out


def add_network(call: Call) -> Reply:
    call.enforce("create_dhcp-network")
    id = _given(call, "network_id")
    net = look.need(call.tx, Network, id)
    agent = agents.need(call.tx, call.params["id"], DHCP)
    look.lock(call.tx, Network, id)
    have = placing.bindings(call.tx, id)
    if agent["host"] in have:
        text = f"DHCP agent {agent['id']} serves network {id} already."
        raise conflict(text, "NetworkHostedByDHCPAgent")
    if not agent["admin_state_up"]:
        raise agents.invalid(agent["id"], DHCP)
    placing.bind(call.cloud, call.tx, net, agent["host"])
    placing.dhcp(call.cloud, call.tx, id, wanted=len(have) + 1)
    return Reply(None, 201)


def remove_network(call: Call) -> None:
    call.enforce("delete_dhcp-network")
    agent = agents.need(call.tx, call.params["id"], DHCP)
    id = call.params["network_id"]
    look.lock(call.tx, Network, id)
    have = placing.bindings(call.tx, id)
    if agent["host"] not in have:
        text = f"DHCP agent {agent['id']} does not serve network {id}."
        raise conflict(text, "NetworkNotHostedByDhcpAgent")
    placing.take_away(call.tx, id, agent["host"], have[agent["host"]])


def agents_of_network(call: Call) -> Row:
    call.enforce("get_dhcp-agents")
    where = placing.bindings(call.tx, call.params["id"])
    return {"agents": [a for a in agents.every(call.tx) if a["binary"] == DHCP and a["host"] in where]}


# --- L3 -------------------------------------------------------------------------------------------------------------


def routers_of(call: Call) -> Row:
    call.enforce("get_l3-routers")
    agent = agents.get(call.tx, call.params["id"])
    rows = call.tx.all(_ROUTED, {"host": agent["host"]}) if agent["binary"] == L3 else []
    rows = [r for r in rows if not r["ha"]]
    if agent["binary"] == L3:
        more = [*ha_place.routers_on(call.tx, agent["host"]), *dvr_hosts.on(call.tx, agent["host"])]
        rows += [look.need(call.tx, Router, id) for id in more if id not in [r["id"] for r in rows]]
    if rows:
        router_views.present(call, rows)
    return {"routers": [_plain(Router, row) for row in rows]}


def add_router(call: Call) -> Reply:
    call.enforce("create_l3-router")
    agent = agents.need(call.tx, call.params["id"], L3)
    id = _given(call, "router_id")
    look.lock(call.tx, Router, id)
    row = look.need(call.tx, Router, id)
    if row["ha"]:
        ha_place.add_by_operator(call.cloud, call.tx, row, agent)
        return Reply(b"null", 201)
    if row["host"] == agent["host"]:
        return Reply(b"null", 201)
    if row["host"]:
        text = f"Another L3 agent carries router {id}; remove it there first."
        raise conflict(text, "RouterHostedByL3Agent")
    if not agent["admin_state_up"]:
        raise agents.invalid(agent["id"], L3)
    place_router.refuse_unfit(call.tx, row, agent["host"])
    placing.move_router(call.tx, row, agent["host"])
    placing.router(call.cloud, call.tx, id)
    return Reply(b"null", 201)


def remove_router(call: Call) -> None:
    call.enforce("delete_l3-router")
    agent = agents.need(call.tx, call.params["id"], L3)
    id = call.params["router_id"]
    look.lock(call.tx, Router, id)
    row = look.need(call.tx, Router, id)
    if row["ha"] and agent["host"] in ha_place.staying(call.tx, id):
        ha_place.take_by_operator(call.cloud, call.tx, row, agent["host"])
        return
    if row["ha"] or row["host"] != agent["host"]:
        raise conflict(f"L3 agent {agent['id']} does not carry router {id}.", "RouterNotHostedByL3Agent")
    placing.unschedule(call.tx, row)


def agents_of_router(call: Call) -> Row:
    call.enforce("get_l3-agents")
    row = look.need(call.tx, Router, call.params["id"])
    where: Row = dict(ha_place.views(call.tx, row["id"])) if row["ha"] else {row["host"]: None}
    where = {**where, **dict.fromkeys(dvr_hosts.of(call.tx, row["id"]))}
    return {
        "agents": [
            {**a, "ha_state": where[a["host"]]}
            for a in agents.every(call.tx)
            if a["binary"] == L3 and a["host"] in where
        ]
    }


def _given(call: Call, name: str) -> str:
    body = call.body
    if not isinstance(body, dict) or set(body) != {name}:
        raise bad_request(f"The body must be an object with the key '{name}'.", "HTTPBadRequest")
    return look.uuid(name, body[name])


def _route(method: str, path: str, handler: Any, doc: str, status: int = 200) -> Route:
    return Route(
        method=method, path=f"/v2.0{path}", handler=handler, doc=doc, status=status,
        tx="read" if method == "GET" else "write",
    )  # fmt: skip


ROUTES = [
    _route("GET", "/agents", listing, "List agents."),
    _route("GET", "/agents/{id}", show, "Show an agent."),
    _route("PUT", "/agents/{id}", update, "Change an agent."),
    _route("DELETE", "/agents/{id}", delete, "Forget an agent of a host that is gone.", 204),
    _route("GET", "/agents/{id}/dhcp-networks", networks_of, "List the networks a DHCP agent serves."),
    _route("POST", "/agents/{id}/dhcp-networks", add_network, "Let a DHCP agent serve a network.", 201),
    _route(
        "DELETE", "/agents/{id}/dhcp-networks/{network_id}", remove_network, "Take a network from a DHCP agent.", 204
    ),
    _route("GET", "/networks/{id}/dhcp-agents", agents_of_network, "List the DHCP agents of a network."),
    _route("GET", "/agents/{id}/l3-routers", routers_of, "List the routers an L3 agent runs."),
    _route("POST", "/agents/{id}/l3-routers", add_router, "Let an L3 agent run a router.", 201),
    _route("DELETE", "/agents/{id}/l3-routers/{router_id}", remove_router, "Take a router from an L3 agent.", 204),
    _route("GET", "/routers/{id}/l3-agents", agents_of_router, "List the L3 agents of a router."),
]
