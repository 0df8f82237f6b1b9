"""Federation's resources: identity providers, their protocols, mappings, service providers. API: OS-FEDERATION.

All are made with PUT under an id the caller chooses. Whatever changes what a federated token means (a provider
disabled or deleted, a protocol or mapping gone) bumps the revision: the tokens are refused at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.checks import checker
from nubila.core.faults import Fault, bad_request, conflict, not_found
from nubila.services.identity import federated, lookup, mapping, resources, shape
from nubila.services.identity.kinds import Project, User
from nubila.services.identity.kinds_federation import (
    EXPIRING_MEMBERSHIP,
    FEDERATED_USER,
    IDP,
    MAPPING,
    PROTOCOL,
    REMOTE_ID,
    SERVICE_PROVIDER,
)
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.db import Tx

Row = dict[str, Any]
BASE = "/v3/OS-FEDERATION"
IDPS, PROTOCOLS = f"{BASE}/identity_providers", f"{BASE}/identity_providers/{{idp_id}}/protocols"
MAPPINGS, SPS = f"{BASE}/mappings", f"{BASE}/service_providers"
RELAY_STATE = "ss:mem:"
"""Default prefix of the RelayState of SAML."""

_TEXT = {"type": ["string", "null"]}
_TRUE = {"type": "boolean"}
_URL = {"type": "string", "maxLength": 225, "pattern": r"^[a-zA-Z0-9+.-]+:.+"}
_ID = {"type": "string", "minLength": 1, "maxLength": 64}
_IDP_FIELDS: Row = {
    "enabled": _TRUE,
    "description": _TEXT,
    "authorization_ttl": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1},
    "remote_ids": {
        "type": ["array", "null"], "items": {"type": "string", "maxLength": 255}, "uniqueItems": True,
    },
}  # fmt: skip
_SP_FIELDS: Row = {
    "auth_url": _URL, "sp_url": _URL, "description": _TEXT, "enabled": _TRUE,
    "relay_state_prefix": {"type": ["string", "null"], "maxLength": 256},
}  # fmt: skip
_PROTOCOL_FIELDS: Row = {"mapping_id": _ID, "remote_id_attribute": {"type": ["string", "null"], "maxLength": 64}}


def _body(item: str, fields: Row, required: tuple[str, ...] = (), least: int = 0) -> Row:
    inner = {
        "type": "object", "properties": fields, "required": list(required), "additionalProperties": False,
        "minProperties": least,
    }  # fmt: skip
    return {"type": "object", "properties": {item: inner}, "required": [item], "additionalProperties": False}


NEW_IDP = _body("identity_provider", {**_IDP_FIELDS, "domain_id": {"type": ["string", "null"], "maxLength": 64}})
SET_IDP = _body("identity_provider", _IDP_FIELDS, least=1)
NEW_PROTOCOL = _body("protocol", _PROTOCOL_FIELDS, ("mapping_id",))
SET_PROTOCOL = _body("protocol", _PROTOCOL_FIELDS, ("mapping_id",))
NEW_SP = _body("service_provider", _SP_FIELDS, ("auth_url", "sp_url"))
SET_SP = _body("service_provider", _SP_FIELDS, least=1)
A_MAPPING = {"type": "object", "properties": {"mapping": mapping.schema("3.0")}, "required": ["mapping"]}


def _taken(table: sa.Table, what: str, call: Call, *where: Any) -> None:
    if call.tx.scalar(sa.select(sa.func.count()).select_from(table).where(*where)):
        raise conflict(f"There is already a {what} with this id; choose another.")


def _id(call: Call, name: str) -> str:
    id = call.params[name]
    if len(id) > 64:
        raise bad_request(f"{name} in the path must have at most 64 characters.", "ValidationError")
    return id


def _read(call: Call, schema: Row, item: str) -> Row:
    checker(schema)(call.body)
    found: Row = dict(call.body[item])
    return found


def _matching(call: Call, table: sa.Table) -> list[Any]:
    """Filters of a list: ``id`` and ``enabled``."""
    where: list[Any] = [table.c.id == v for k, v in call.query if k == "id"]
    where += [table.c.enabled.is_(v.lower() not in ("0", "false", "no")) for k, v in call.query if k == "enabled"]
    return where


# --- identity providers --------------------------------------------------------------------------------------------


def idp(call: Call, id: str) -> Row:
    """The identity provider, or 404."""
    row: Row | None = call.tx.one(sa.select(IDP).where(IDP.c.id == id))
    if row is None:
        raise Fault(404, f"Could not find Identity Provider: {id}.", "IdentityProviderNotFound")
    return row


def _remote_ids(call: Call, ids: list[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {id: [] for id in ids}
    found = sa.select(REMOTE_ID.c.idp_id, REMOTE_ID.c.remote_id).where(REMOTE_ID.c.idp_id.in_(ids))
    for idp_id, remote in call.tx.rows(found.order_by(REMOTE_ID.c.remote_id)):
        out[idp_id].append(remote)
    return out


def _idp_views(call: Call, rows: list[Row]) -> list[Row]:
    remote = _remote_ids(call, [r["id"] for r in rows])
    out = []
    for r in rows:
        link = f"{call.base}{IDPS}/{r['id']}"
        out.append(
            {
                "id": r["id"], "enabled": bool(r["enabled"]), "description": r["description"],
                "domain_id": r["domain_id"], "authorization_ttl": r["authorization_ttl"], "remote_ids": remote[r["id"]],
                "links": {"self": link, "protocols": f"{link}/protocols"},
            }
        )  # fmt: skip
    return out


def _keep_remote_ids(call: Call, id: str, remote_ids: list[str] | None) -> None:
    call.tx.execute(sa.delete(REMOTE_ID).where(REMOTE_ID.c.idp_id == id))
    for remote in remote_ids or ():
        if call.tx.scalar(sa.select(REMOTE_ID.c.idp_id).where(REMOTE_ID.c.remote_id == remote)) is not None:
            raise conflict(f"remote_ids: {remote} belongs to another identity provider.")
        call.tx.insert(REMOTE_ID, {"remote_id": remote, "idp_id": id})


def _own_domain(call: Call, id: str) -> str:
    """A domain for the users of a provider that was registered without one."""
    domain = clock.new_hex()
    call.tx.insert(
        Project.table,
        {
            "id": domain, "name": domain, "domain_id": "", "parent_id": "", "is_domain": True, "enabled": True,
            "description": f"Users of the identity provider {id}", "options": {}, "extra": {},
        },
    )  # fmt: skip
    return domain


@takes(NEW_IDP)
def create_idp(call: Call) -> Reply:
    """PUT /v3/OS-FEDERATION/identity_providers/{idp_id}."""
    id, given = _id(call, "idp_id"), _read(call, NEW_IDP, "identity_provider")
    _taken(IDP, "identity provider", call, IDP.c.id == id)
    domain = given.get("domain_id")
    if domain:
        found = lookup.project(call.tx, domain)
        if found is None or not found["is_domain"]:
            raise not_found("domain", domain)
    row = {
        "id": id, "enabled": given.get("enabled", False), "description": given.get("description"),
        "domain_id": domain or _own_domain(call, id), "authorization_ttl": given.get("authorization_ttl"),
    }  # fmt: skip
    call.tx.insert(IDP, row)
    _keep_remote_ids(call, id, given.get("remote_ids"))
    return Reply({"identity_provider": _idp_views(call, [row])[0]}, 201)


def list_idps(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/identity_providers."""
    rows = call.tx.all(sa.select(IDP).where(*_matching(call, IDP)).order_by(IDP.c.id))
    return shape.listing(call, "identity_providers", _idp_views(call, rows), call.path)


def show_idp(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/identity_providers/{idp_id}."""
    return {"identity_provider": _idp_views(call, [idp(call, call.params["idp_id"])])[0]}


@takes(SET_IDP)
def update_idp(call: Call) -> Row:
    """PATCH /v3/OS-FEDERATION/identity_providers/{idp_id}."""
    row, given = idp(call, call.params["idp_id"]), _read(call, SET_IDP, "identity_provider")
    values = {k: v for k, v in given.items() if k != "remote_ids"}
    if values:
        call.tx.execute(sa.update(IDP).where(IDP.c.id == row["id"]).values(**values))
    if "remote_ids" in given:
        _keep_remote_ids(call, row["id"], given["remote_ids"])
    bump(call.cloud, call.tx)
    return {"identity_provider": _idp_views(call, [{**row, **values}])[0]}


def _forget_guests(tx: Tx, *where: Any) -> None:
    """Remove the guests of these federated names, and the users that were made for them: whoever is vouched for under
    the same name by a later provider of that id is somebody else. Users made by hand stay."""
    for row in tx.all(sa.select(FEDERATED_USER).where(*where)):
        if row["user_id"] == federated.shadow_id(row["idp_id"], row["protocol_id"], row["unique_id"]):
            resources.forget_user(tx, row["user_id"])
            tx.execute(sa.delete(User.table).where(User.table.c.id == row["user_id"]))
    tx.execute(sa.delete(FEDERATED_USER).where(*where))


def forget_idp(tx: Tx, id: str) -> None:
    """Remove an identity provider and what hangs on it, its guests included."""
    tx.execute(sa.delete(REMOTE_ID).where(REMOTE_ID.c.idp_id == id))
    tx.execute(sa.delete(PROTOCOL).where(PROTOCOL.c.idp_id == id))
    _forget_guests(tx, FEDERATED_USER.c.idp_id == id)
    tx.execute(sa.delete(EXPIRING_MEMBERSHIP).where(EXPIRING_MEMBERSHIP.c.idp_id == id))
    tx.execute(sa.delete(IDP).where(IDP.c.id == id))


def delete_idp(call: Call) -> None:
    """DELETE /v3/OS-FEDERATION/identity_providers/{idp_id}: tokens got through it are refused from now on."""
    forget_idp(call.tx, idp(call, call.params["idp_id"])["id"])
    bump(call.cloud, call.tx)


# --- protocols -----------------------------------------------------------------------------------------------------


def _protocol(call: Call) -> Row:
    idp_id, id = call.params["idp_id"], call.params["protocol_id"]
    same = (PROTOCOL.c.idp_id == idp_id, PROTOCOL.c.id == id)
    row: Row | None = call.tx.one(sa.select(PROTOCOL).where(*same))
    if row is None:
        text = f"Identity Provider: {idp_id} has no protocol {id}."
        raise Fault(404, text, "FederatedProtocolNotFound")
    return row


def _protocol_view(call: Call, row: Row, *, whole: bool = False) -> Row:
    provider = f"{call.base}{IDPS}/{row['idp_id']}"
    out: Row = {
        "id": row["id"], "mapping_id": row["mapping_id"],
        "links": {"self": f"{provider}/protocols/{row['id']}", "identity_provider": provider},
    }  # fmt: skip
    if whole or row["remote_id_attribute"] is not None:
        out["remote_id_attribute"] = row["remote_id_attribute"]
    if whole:
        out["idp_id"] = row["idp_id"]
    return out


def _known_mapping(call: Call, id: str | None) -> None:
    if id is not None and call.tx.scalar(sa.select(MAPPING.c.id).where(MAPPING.c.id == id)) is None:
        raise bad_request(f"Invalid mapping id: {id}", "ValidationError")


@takes(NEW_PROTOCOL)
def create_protocol(call: Call) -> Reply:
    """PUT /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}."""
    provider, id = idp(call, call.params["idp_id"])["id"], _id(call, "protocol_id")
    given = _read(call, NEW_PROTOCOL, "protocol")
    _known_mapping(call, given["mapping_id"])
    _taken(PROTOCOL, "protocol", call, PROTOCOL.c.idp_id == provider, PROTOCOL.c.id == id)
    row = {"idp_id": provider, "id": id, "remote_id_attribute": None, **given}
    call.tx.insert(PROTOCOL, row)
    return Reply({"protocol": _protocol_view(call, row)}, 201)


def list_protocols(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols."""
    found = sa.select(PROTOCOL).where(PROTOCOL.c.idp_id == call.params["idp_id"]).order_by(PROTOCOL.c.id)
    views = [_protocol_view(call, r, whole=True) for r in call.tx.all(found)]
    return shape.listing(call, "protocols", views, call.path)


def show_protocol(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}."""
    return {"protocol": _protocol_view(call, _protocol(call))}


@takes(SET_PROTOCOL)
def update_protocol(call: Call) -> Row:
    """PATCH /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}."""
    row, given = _protocol(call), _read(call, SET_PROTOCOL, "protocol")
    _known_mapping(call, given.get("mapping_id"))
    same = (PROTOCOL.c.idp_id == row["idp_id"], PROTOCOL.c.id == row["id"])
    call.tx.execute(sa.update(PROTOCOL).where(*same).values(**given))
    return {"protocol": _protocol_view(call, {**row, **given})}


def delete_protocol(call: Call) -> None:
    """DELETE /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}."""
    row = _protocol(call)
    call.tx.execute(sa.delete(PROTOCOL).where(PROTOCOL.c.idp_id == row["idp_id"], PROTOCOL.c.id == row["id"]))
    who = (FEDERATED_USER.c.idp_id == row["idp_id"], FEDERATED_USER.c.protocol_id == row["id"])
    _forget_guests(call.tx, *who)
    bump(call.cloud, call.tx)


# --- mappings ------------------------------------------------------------------------------------------------------


def _mapping(call: Call) -> Row:
    row: Row | None = call.tx.one(sa.select(MAPPING).where(MAPPING.c.id == call.params["mapping_id"]))
    if row is None:
        raise not_found("mapping", call.params["mapping_id"])
    return row


def _mapping_view(call: Call, row: Row) -> Row:
    return {
        "id": row["id"], "rules": row["rules"], "schema_version": row["schema_version"],
        "links": {"self": f"{call.base}{MAPPINGS}/{row['id']}"},
    }  # fmt: skip


def _mapping_body(call: Call) -> Row:
    body = call.body.get("mapping") if isinstance(call.body, dict) else None
    if not isinstance(body, dict):
        raise bad_request("The body must be an object with the key 'mapping'.", "ValidationError")
    given = {k: v for k, v in body.items() if k not in ("id", "links")}
    return {"rules": given.get("rules"), "schema_version": mapping.check(given)}


@takes(A_MAPPING)
def create_mapping(call: Call) -> Reply:
    """PUT /v3/OS-FEDERATION/mappings/{mapping_id}."""
    row = {"id": _id(call, "mapping_id"), **_mapping_body(call)}
    _taken(MAPPING, "mapping", call, MAPPING.c.id == row["id"])
    call.tx.insert(MAPPING, row)
    return Reply({"mapping": _mapping_view(call, row)}, 201)


def list_mappings(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/mappings."""
    rows = call.tx.all(sa.select(MAPPING).order_by(MAPPING.c.id))
    return shape.listing(call, "mappings", [_mapping_view(call, r) for r in rows], call.path)


def show_mapping(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/mappings/{mapping_id}."""
    return {"mapping": _mapping_view(call, _mapping(call))}


@takes(A_MAPPING)
def update_mapping(call: Call) -> Row:
    """PATCH /v3/OS-FEDERATION/mappings/{mapping_id}."""
    row, given = _mapping(call), _mapping_body(call)
    call.tx.execute(sa.update(MAPPING).where(MAPPING.c.id == row["id"]).values(**given))
    return {"mapping": _mapping_view(call, {**row, **given})}


def delete_mapping(call: Call) -> None:
    """DELETE /v3/OS-FEDERATION/mappings/{mapping_id}."""
    call.tx.execute(sa.delete(MAPPING).where(MAPPING.c.id == _mapping(call)["id"]))


# --- service providers ---------------------------------------------------------------------------------------------


def _sp(call: Call) -> Row:
    row: Row | None = call.tx.one(
        sa.select(SERVICE_PROVIDER).where(SERVICE_PROVIDER.c.id == call.params["service_provider_id"])
    )
    if row is None:
        raise not_found("service_provider", call.params["service_provider_id"])
    return row


def _sp_view(call: Call, row: Row) -> Row:
    return {**row, "enabled": bool(row["enabled"]), "links": {"self": f"{call.base}{SPS}/{row['id']}"}}


@takes(NEW_SP)
def create_sp(call: Call) -> Reply:
    """PUT /v3/OS-FEDERATION/service_providers/{service_provider_id}."""
    id, given = _id(call, "service_provider_id"), _read(call, NEW_SP, "service_provider")
    _taken(SERVICE_PROVIDER, "service provider", call, SERVICE_PROVIDER.c.id == id)
    row = {"id": id, "enabled": False, "description": None, **given}
    row["relay_state_prefix"] = given.get("relay_state_prefix") or RELAY_STATE
    call.tx.insert(SERVICE_PROVIDER, row)
    bump(call.cloud, call.tx)  # tokens show them
    return Reply({"service_provider": _sp_view(call, row)}, 201)


def list_sps(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/service_providers."""
    found = sa.select(SERVICE_PROVIDER).where(*_matching(call, SERVICE_PROVIDER)).order_by(SERVICE_PROVIDER.c.id)
    return shape.listing(call, "service_providers", [_sp_view(call, r) for r in call.tx.all(found)], call.path)


def show_sp(call: Call) -> Row:
    """GET /v3/OS-FEDERATION/service_providers/{service_provider_id}."""
    return {"service_provider": _sp_view(call, _sp(call))}


@takes(SET_SP)
def update_sp(call: Call) -> Row:
    """PATCH /v3/OS-FEDERATION/service_providers/{service_provider_id}."""
    row, given = _sp(call), _read(call, SET_SP, "service_provider")
    if "relay_state_prefix" in given:
        given["relay_state_prefix"] = given["relay_state_prefix"] or RELAY_STATE
    call.tx.execute(sa.update(SERVICE_PROVIDER).where(SERVICE_PROVIDER.c.id == row["id"]).values(**given))
    bump(call.cloud, call.tx)
    return {"service_provider": _sp_view(call, {**row, **given})}


def delete_sp(call: Call) -> None:
    """DELETE /v3/OS-FEDERATION/service_providers/{service_provider_id}."""
    call.tx.execute(sa.delete(SERVICE_PROVIDER).where(SERVICE_PROVIDER.c.id == _sp(call)["id"]))
    bump(call.cloud, call.tx)


_Five = tuple[Callable[[Call], Any], Callable[[Call], Any], Callable[[Call], Any], Callable[[Call], Any],
              Callable[[Call], Any]]  # fmt: skip


def _routes(what: str, names: tuple[str, str], many: str, one: str, handlers: _Five) -> list[Route]:
    """create, list, show, update, delete of one kind; ``names`` are those of its policy rules."""
    create, index, show, update, delete = handlers
    item, items = names
    one = f"{many}/{{{one}}}"
    return [
        Route(method="PUT", path=one, handler=create, doc=f"Create {what}.", tx="write", status=201,
              rule=f"identity:create_{item}"),
        Route(method="GET", path=many, handler=index, doc=f"List every {what.split(' ', 1)[1]}.",
              rule=f"identity:list_{items}"),
        Route(method="GET", path=one, handler=show, doc=f"Show {what}.", rule=f"identity:get_{item}"),
        Route(method="PATCH", path=one, handler=update, doc=f"Change {what}.", tx="write",
              rule=f"identity:update_{item}"),
        Route(method="DELETE", path=one, handler=delete, doc=f"Delete {what}.", tx="write", status=204,
              rule=f"identity:delete_{item}"),
    ]  # fmt: skip


ROUTES = (
    *_routes("an identity provider", ("identity_provider", "identity_providers"), IDPS, "idp_id",
             (create_idp, list_idps, show_idp, update_idp, delete_idp)),
    *_routes("a protocol", ("protocol", "protocols"), PROTOCOLS, "protocol_id",
             (create_protocol, list_protocols, show_protocol, update_protocol, delete_protocol)),
    *_routes("a mapping", ("mapping", "mappings"), MAPPINGS, "mapping_id",
             (create_mapping, list_mappings, show_mapping, update_mapping, delete_mapping)),
    *_routes("a service provider", ("service_provider", "service_providers"), SPS, "service_provider_id",
             (create_sp, list_sps, show_sp, update_sp, delete_sp)),
)  # fmt: skip
