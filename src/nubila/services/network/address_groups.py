"""Address groups: named sets of addresses that security group rules refer to; adding and removing addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Route
from nubila.core.db import Reader
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import allocate, asks, look, paging, rbac
from nubila.services.network.feature import Feature
from nubila.services.network.kinds_port import SecurityGroupRule
from nubila.services.network.kinds_security import AddressGroup, DefaultSecurityGroupRule
from nubila.services.network.policies import ADMIN, ADMIN_OR_MEMBER, READER

Row = dict[str, Any]
MAX_ADDRESSES = 5000
"""More in one group would make every host that has a rule with it slow to change."""
_R, _T = SecurityGroupRule.table.c, DefaultSecurityGroupRule.table.c
_USED = (
    sa.select(_R.id).where(_R.remote_address_group_id == sa.bindparam("group")).limit(1),
    sa.select(_T.id).where(_T.remote_address_group_id == sa.bindparam("group")).limit(1),
)
_PROJECTS = sa.select(_R.project_id).where(_R.remote_address_group_id == sa.bindparam("group")).distinct()


def _cidrs(given: Any, *, bare: bool) -> list[str]:
    """CIDRs without host bits, each once. ``bare``: an address without a prefix length stands for itself."""
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise bad_request("Invalid input for addresses. Reason: it must be a list of CIDRs.", "HTTPBadRequest")
    out: dict[str, None] = {}
    for text in given:
        try:
            if "/" not in text and not bare:
                raise ValueError
            out[str(ipaddress.ip_network(text, strict=False))] = None
        except ValueError:
            why = f"'{text}' is no network in CIDR form."
            raise bad_request(f"Invalid input for addresses. Reason: {why}", "HTTPBadRequest") from None
    return list(out)


def _check_size(cidrs: Iterable[str]) -> None:
    n = len(list(cidrs))
    if n > MAX_ADDRESSES:
        text = f"Invalid input for addresses. Reason: {n} addresses; a group has at most {MAX_ADDRESSES}."
        raise bad_request(text, "HTTPBadRequest")


def prepare(call: Call, values: Row) -> None:
    values["addresses"] = _cidrs(values["addresses"] or [], bare=False)
    _check_size(values["addresses"])


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def deleting(call: Call, row: Row) -> None:
    look.lock(call.tx, AddressGroup, row["id"])
    if any(call.tx.one(used, {"group": row["id"]}) is not None for used in _USED):
        text = f"Security group rules still name address group {row['id']}: delete those rules first."
        raise conflict(text, "AddressGroupInUse")


def find(call: Call, id: str) -> Row | None:
    """The group; for whoever may only use it, it is not there to be changed."""
    if call.method != "GET":
        look.lock(call.tx, AddressGroup, id)
    row = look.row(call.tx, AddressGroup, id)
    verb = {"PUT": "update", "DELETE": "delete"}.get(call.method)
    if row is not None and verb and not call.may(f"{verb}_address_group", look.wire(AddressGroup, row)):
        return None
    return row


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, AddressGroup, q)


def projects_using(reader: Reader, id: str) -> list[str]:
    """The projects with rules that refer to the group."""
    return [project for (project,) in reader.rows(_PROJECTS, {"group": id})]


def _change(call: Call, rule: str) -> tuple[Row, list[str]]:
    """The group to change, locked, and the addresses of the body."""
    creds, id = call.creds, call.params["id"]
    look.lock(call.tx, AddressGroup, id)
    row = look.seen(call.cloud, call.tx, creds, AddressGroup, id)
    if not call.may(rule, look.wire(AddressGroup, row)):
        raise look.missing(AddressGroup, id)
    body = call.body
    if not isinstance(body, dict) or set(body) != {"addresses"}:
        raise bad_request("The body must be an object with the key 'addresses'.", "HTTPBadRequest")
    return row, _cidrs(body["addresses"], bare=True)


def _store(call: Call, row: Row, addresses: list[str]) -> Row:
    _check_size(addresses)
    allocate.set_columns(call.tx, AddressGroup, row["id"], {"addresses": addresses})
    allocate.bump(call.tx, AddressGroup, [row["id"]], clock.now())
    asks.members(call.tx, [row["id"]])
    after = look.need(call.tx, AddressGroup, row["id"])
    return {"address_group": _view(after)}


def _view(row: Row) -> Row:
    view: Row = {}
    for a in AddressGroup.attrs.values():
        if not a.hidden:
            value = row[a.name]
            for name in a.wire:
                view[name] = a.type.dump(value) if a.type.dump is not None and value is not None else value
    return view


def add_addresses(call: Call) -> Row:
    row, given = _change(call, "add_addresses")
    present = [one for one in given if one in row["addresses"]]
    if present:
        text = f"Address group {row['id']} holds {present} already: leave them out."
        raise bad_request(text, "AddressesAlreadyExist")
    return _store(call, row, [*row["addresses"], *given])


def remove_addresses(call: Call) -> Row:
    row, given = _change(call, "remove_addresses")
    absent = [one for one in given if one not in row["addresses"]]
    if absent:
        text = f"Address group {row['id']} does not hold {absent}: leave them out."
        raise Fault(404, text, "AddressesNotFound")
    return _store(call, row, [one for one in row["addresses"] if one not in given])


FEATURE = Feature(
    kinds=(AddressGroup,),
    hooks={
        AddressGroup: rbac.shareable(
            AddressGroup,
            Hooks(
                target=look.own_project, prepare=prepare, prepare_update=prepare_update, deleting=deleting, scope=scope,
                find=find,
            ),
        )
    },
    shareable=(rbac.Shareable(kind=AddressGroup, uses={rbac.SHARED: projects_using}),),
    quotas={"address_group": 100},
    resources={"address-groups": "address_group"},
    routes=(
        Route(method="PUT", path="/v2.0/address-groups/{id}/add_addresses", handler=add_addresses, tx="write",
              doc="Add addresses to an address group."),
        Route(method="PUT", path="/v2.0/address-groups/{id}/remove_addresses", handler=remove_addresses, tx="write",
              doc="Remove addresses from an address group."),
    ),
    rules=(
        Rule("shared_address_groups", "field:address_groups:shared=True", "Used by other rules."),
        *(Rule(name, ADMIN_OR_MEMBER, f"{text} an address group.", scopes=("project",))
          for name, text in (("create_address_group", "Create"), ("update_address_group", "Update"),
                             ("delete_address_group", "Delete"), ("add_addresses", "Add addresses to"),
                             ("remove_addresses", "Remove addresses from"))),
        Rule("get_address_group", f"({ADMIN}) or {READER} or rule:shared_address_groups", "Get an address group.",
             scopes=("project",)),
    ),
    extensions={
        "address-group": ("Address group", "Named sets of addresses.", "2020-07-15"),
        "rbac-address-group": ("Add address_group type to RBAC", "Address groups can be shared.", "2021-01-20"),
        "security-groups-remote-address-group": (
            "Remote address group id field for security group rules", "Rules refer to address groups.", "2020-08-25",
        ),
    },
)  # fmt: skip
