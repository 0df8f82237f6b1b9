"""The attribute ``federated`` of users: under which names identity providers know them. API: users, federated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.faults import bad_request, conflict
from nubila.services.identity.kinds import User
from nubila.services.identity.kinds_federation import EXPIRING_MEMBERSHIP, FEDERATED_USER, IDP, PROTOCOL

if TYPE_CHECKING:
    from nubila.core.db import Reader, Tx
    from nubila.core.query import ListQuery

Row = dict[str, Any]
FILTERS = ("idp_id", "protocol_id", "unique_id")
_F, _E = FEDERATED_USER.c, EXPIRING_MEMBERSHIP.c
_ANYBODY = sa.select(_F.user_id).limit(1)


def keep(call: Call, user_id: str, federated: list[Row] | None) -> None:
    """Write down what the body says; None = it says nothing."""
    if federated is None:
        return
    tx = call.tx
    tx.execute(sa.delete(FEDERATED_USER).where(_F.user_id == user_id))
    for provider in federated:
        idp_id = provider["idp_id"]
        if tx.scalar(sa.select(IDP.c.id).where(IDP.c.id == idp_id)) is None:
            raise bad_request(f"federated: there is no identity provider {idp_id}.", "ValidationError")
        for part in provider["protocols"]:
            where = (PROTOCOL.c.idp_id == idp_id, PROTOCOL.c.id == part["protocol_id"])
            if tx.scalar(sa.select(PROTOCOL.c.id).where(*where)) is None:
                text = f"federated: the identity provider {idp_id} has no protocol {part['protocol_id']}."
                raise bad_request(text, "ValidationError")
            row = {"idp_id": idp_id, **{k: part[k] for k in ("protocol_id", "unique_id")}}
            if tx.scalar(sa.select(_F.user_id).where(*(_F[k] == v for k, v in row.items()))) is not None:
                raise conflict(f"federated: {part['unique_id']} of {idp_id} is somebody already.")
            tx.insert(FEDERATED_USER, {**row, "user_id": user_id, "display_name": None})


def of(reader: Reader, ids: list[str]) -> dict[str, list[Row]]:
    """user id -> the attribute, of those who have it; one small query where nobody has."""
    if not ids or reader.scalar(_ANYBODY) is None:
        return {}
    found = sa.select(_F.user_id, _F.idp_id, _F.protocol_id, _F.unique_id).where(_F.user_id.in_(ids))
    out: dict[str, dict[str, list[Row]]] = {}
    for user, idp, protocol, unique in reader.rows(found.order_by(_F.idp_id, _F.protocol_id, _F.unique_id)):
        part = {"protocol_id": protocol, "unique_id": unique}
        out.setdefault(user, {}).setdefault(idp, []).append(part)
    return {user: [{"idp_id": i, "protocols": p} for i, p in idps.items()] for user, idps in out.items()}


def clauses(q: ListQuery) -> list[Any]:
    """The filters idp_id, protocol_id and unique_id of a list of users."""
    where = [_F[name] == text for name in FILTERS for text in q.extra.get(name, [])]
    return [User.table.c.id.in_(sa.select(_F.user_id).where(*where))] if where else []


def memberships(reader: Reader, user_id: str, now: str) -> dict[str, str]:
    """group id -> until when the user is in it, of the memberships that end."""
    found = sa.select(_E.group_id, sa.func.max(_E.expires_at)).where(_E.user_id == user_id, _E.expires_at > now)
    return {group: until for group, until in reader.rows(found.group_by(_E.group_id))}


def forget(tx: Tx, *, user_id: str = "", group_id: str = "", domain_id: str = "") -> None:
    """Remove what federation keeps about a user, a group, or a whole domain with its identity providers."""
    if user_id:
        tx.execute(sa.delete(FEDERATED_USER).where(_F.user_id == user_id))
        tx.execute(sa.delete(EXPIRING_MEMBERSHIP).where(_E.user_id == user_id))
    if group_id:
        tx.execute(sa.delete(EXPIRING_MEMBERSHIP).where(_E.group_id == group_id))
    if domain_id:
        from nubila.services.identity.federation import forget_idp

        for (idp,) in tx.rows(sa.select(IDP.c.id).where(IDP.c.domain_id == domain_id)):
            forget_idp(tx, idp)
