"""Makes servers be what is wanted of them, as far as the control plane can: place, plug, ask the host, clean up.

Each turn reads everything anew and changes the difference in one transaction; it may die anywhere and run again.
What the host does with the guest is hosting.py's to describe and to take in.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Conflict, Reader, Store, Tx
from nubila.core.faults import Fault
from nubila.core.work import Item
from nubila.services.compute import history, nics, place, quotas, rows, zones
from nubila.services.compute.kinds import GROUP, SERVER, SERVER_TAG
from nubila.services.network import plug
from nubila.services.placement import claims, reading, trees

Row = dict[str, Any]
CONFLICT_TRIES = 5
NO_HOST = "No valid host was found. All are full, down or ruled out."  # clients look for the first sentence
_GROUP = sa.select(GROUP).where(GROUP.c.id == sa.bindparam("id"))
_MEMBERS = (
    sa.select(SERVER.c.host, sa.func.count())
    .where(
        SERVER.c.group_id == sa.bindparam("group"), SERVER.c.id != sa.bindparam("id"), SERVER.c.deleted.is_(False),
        SERVER.c.host.is_not(None),
    )
    .group_by(SERVER.c.host)
)  # fmt: skip
_HOST_OF = sa.select(SERVER.c.host).where(SERVER.c.id.in_(sa.bindparam("ids", expanding=True)))
_LOCK_GROUP = sa.select(GROUP.c.id).where(GROUP.c.id == sa.bindparam("id")).with_for_update()
_ALIVE_IDS = sa.select(SERVER.c.id).where(SERVER.c.deleted.is_(False))


class _Refused(Exception):
    """This server can not be built as asked: the transaction is undone and the server goes to ERROR."""

    def __init__(self, message: str, code: int = 500, details: str = "") -> None:
        super().__init__(message)
        self.code, self.details = code, details


def server(cloud: Cloud, store: Store, item: Item) -> None:
    """One turn of one server."""
    try:
        with store.write(item) as tx:
            _turn(cloud, tx, item.id, item.tries)
    except _Refused as e:
        with store.write(item) as tx:
            row = rows.get(tx, item.id)
            if row is not None and row["want"] == "present" and row["vm_state"] == "building":
                fail(tx, row, str(e), e.code, e.details)
            tx.settle(str(e))


def _turn(cloud: Cloud, tx: Tx, id: str, tries: int) -> None:
    row = tx.one(rows.ONE_LOCKED, {"id": id}) if tx.dialect != "sqlite" else tx.one(rows.ONE, {"id": id})
    if row is None or row["deleted"]:
        tx.drop()
    elif row["want"] == "gone":
        _remove(cloud, tx, row)
    elif row["vm_state"] == "error" and row["host"] is None:
        tx.settle(f"in error: {(row['fault'] or {}).get('message', '')}")
    elif row["host"] is None:
        _place(cloud, tx, row, tries)
    else:
        _watch(tx, row)


# --- building ---------------------------------------------------------------------------------------------------------


def _place(cloud: Cloud, tx: Tx, row: Row, tries: int) -> None:
    """Choose a host, claim its room, plug the ports there and hand the guest to it: one transaction."""
    if row["group_id"]:
        tx.one(_LOCK_GROUP if tx.dialect != "sqlite" else _GROUP, {"id": row["group_id"]})
    every = views_of(tx)
    seen = _connected(tx, row, every)
    wish = wish_of(tx, row)
    if asked := _guaranteed(tx, row):
        wish = dataclasses.replace(wish, ports=asked)
        whole = trees.every(tx)
        seen = [dataclasses.replace(host, tree=whole.get(host.provider_id, ())) for host in seen]
    for host in place.candidates(seen, wish):
        if _claimed(tx, row, host, wish):
            break
    else:
        cut_off = "No compute host can have ports on all of the server's networks (physical networks, kind of switch)."
        raise _Refused(NO_HOST, details=cut_off if every and not seen else place.explain(seen, wish))
    try:
        plugged = nics.plug_all(cloud, tx, row, host.name, host.zone)
    except Fault as e:
        raise _Refused(f"Failed to allocate the network(s): {e.message}", details=e.message) from None
    except Conflict as e:
        if tries < CONFLICT_TRIES:
            raise  # another transaction took the same address or name at the same moment: all of it again
        raise _Refused(f"Failed to allocate the network(s): {e}", details=str(e)) from None
    rows.change(tx, row, host=host.name, zone=host.zone, nics=plugged, host_gone=False)
    tx.ask("guest", row["id"], host.name)
    tx.settle(f"placed on {host.name}; waiting for it to start the guest", again=_left(row))


def _claimed(tx: Tx, row: Row, host: place.Host, wish: place.Wish) -> bool:
    """Take what the server and its ports need of a host, in the server's name; False when it cannot give that."""
    for chosen in plug.choices(host.tree, wish.ports) if wish.ports else [{}]:
        amounts = {host.provider_id: dict(wish.amounts)}
        for provider, classes in plug.shares(wish.ports, chosen).items():
            mine = amounts.setdefault(provider, {})
            mine.update({name: mine.get(name, 0) + n for name, n in classes.items()})
        try:
            claims.claim(tx, row["id"], row["project_id"], row["user_id"], amounts)
        except claims.NoRoom:
            continue  # somebody was faster, or units do not fit: the next best
        plug.hold(tx, row["id"], wish.ports, chosen)
        return True
    return False


def _connected(reader: Reader, row: Row, seen: list[place.Host]) -> list[place.Host]:
    """The hosts that reach a segment of each of the server's networks."""
    try:
        asked = nics.wanted(reader, row)
    except Fault:
        return seen  # plugging says why
    ports = [nic["port"] for nic in asked if nic.get("port")]
    networks = [nic["uuid"] for nic in asked if not nic.get("port")]
    names = plug.hosts_reaching(reader, ports, networks, [host.name for host in seen])
    return [host for host in seen if host.name in names]


def _guaranteed(reader: Reader, row: Row) -> list[plug.Request]:
    """What the server's ports ask of its host besides."""
    try:
        asked = nics.wanted(reader, row)
    except Fault:
        return []  # plugging says why
    ports = [nic["port"] for nic in asked if nic.get("port")]
    return plug.guaranteed(reader, ports, [nic["uuid"] for nic in asked if not nic.get("port")])


def _left(row: Row) -> float:
    return max(1.0, (row["deadline"] or 0.0) - time.time())


def views_of(reader: Reader) -> list[place.Host]:
    """Every compute host as placement sees it."""
    room = claims.rooms(reader)
    traits = reading.traits_by_provider(reader)
    return [
        place.Host(
            name=h["name"], provider_id=h["id"], zone=h["zone"], up=h["up"] and h["state"] == "enabled",
            free={n: claims.capacity(i) - i["used"] for n, i in room.get(h["id"], {}).items()},
            most={n: i["max_unit"] for n, i in room.get(h["id"], {}).items()},
            traits=frozenset(traits.get(h["id"], ())),
        )
        for h in zones.compute_hosts(reader)
    ]  # fmt: skip


def wish_of(reader: Reader, row: Row) -> place.Wish:
    """What a server needs of its host, hints and group resolved to hosts."""
    required, forbidden = place.traits(row["flavor"])
    hints = row["hints"] or {}
    group = reader.one(_GROUP, {"id": row["group_id"]}) if row["group_id"] else None
    members: dict[str, int] = {}
    if group is not None:
        members = {host: int(n) for host, n in reader.rows(_MEMBERS, {"group": group["id"], "id": row["id"]})}
    return place.Wish(
        amounts=place.amounts(row["flavor"]), zone=row["zone_wanted"], host=row["host_wanted"], required=required,
        forbidden=forbidden, policy=group["policy"] if group else "",
        max_per_host=int((group["rules"] or {}).get("max_server_per_host", 1)) if group else 1, members=members,
        same_hosts=_hosts_of(reader, hints["same_host"]) if hints.get("same_host") else None,
        other_hosts=_hosts_of(reader, hints.get("different_host")),
    )  # fmt: skip


def _hosts_of(reader: Reader, ids: Any) -> frozenset[str]:
    if not ids:
        return frozenset()
    wanted = [ids] if isinstance(ids, str) else list(ids)
    return frozenset(h for (h,) in reader.rows(_HOST_OF, {"ids": wanted}) if h)


def _watch(tx: Tx, row: Row) -> None:
    """It is on a host: see that building ends in time."""
    if row["vm_state"] != "building":
        tx.settle(f"on {row['host']}")
        return
    left = (row["deadline"] or 0.0) - time.time()
    if left > 0:
        tx.settle(f"waiting for {row['host']} to start the guest", again=left)
        return
    fail(tx, row, f"Build of instance {row['id']} aborted: host {row['host']} did not start it in time.")
    tx.ask("guest", row["id"], row["host"])
    tx.settle(f"host {row['host']} did not start the guest in time")


def fail(tx: Tx, row: Row, message: str, code: int = 500, details: str = "") -> None:
    """Put a server into ERROR with a fault its owner can read."""
    fault = {"code": code, "message": message[:255], "details": details[:1024], "created": clock.now()}
    rows.change(tx, row, vm_state="error", fault=fault, deadline=None)
    history.finish(tx, row, message)


# --- removing ---------------------------------------------------------------------------------------------------------


def _remove(cloud: Cloud, tx: Tx, row: Row) -> None:
    """Children first; the row goes when the host has confirmed that nothing of the guest is left."""
    name = row["host"]
    if name is not None and not row["host_gone"]:
        host = hosts.get(tx, name)
        if host is not None and host["state"] != "removed":
            tx.ask("guest", row["id"], name)
            why = "" if host["alive"] else ", which does not report"
            tx.settle(f"waiting for {name}{why} to remove the guest", again=60.0)
            return
    nics.unplug_all(cloud, tx, row)
    claims.release(tx, row["id"])
    quotas.release_server(tx, row)
    now = clock.now()
    tx.execute(sa.delete(SERVER_TAG).where(SERVER_TAG.c.server_id == row["id"]))
    history.finish(tx, row)
    rows.change(
        tx, row, deleted=True, deleted_at=now, terminated_at=now, updated_at=now, vm_state="deleted", power_state=0,
        nics=[], user_data=None, keypair=None, files=[], password=None, deadline=None,
    )  # fmt: skip
    tx.drop()


def every(cloud: Cloud, reader: Reader) -> list[str]:
    """Ids of all servers that exist, for the full compare."""
    return [id for (id,) in reader.rows(_ALIVE_IDS)]
