"""A small cloud for the nets: servers, three hosts, a hypervisor that keeps its guests in files.

It has what the real thing has: a placement decided from what was read before, work handed on to a host in the same
transaction, effects outside the database with a fencing epoch, reboot as a level, deletion from any state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nubila.core.db import Store, Tx
from nubila.core.reconcile import Reconciler
from nubila.core.work import Item
from nubila.testing.crashpoints import Play, Scene

HOSTS = ("h1", "h2", "h3")
ID = "11111111-1111-1111-1111-111111111111"

tables = sa.MetaData()
server = sa.Table(
    "toy_server",
    tables,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("host", sa.String(64)),
    sa.Column("want", sa.String(16), nullable=False),  # on | off | gone
    sa.Column("boots", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("boots_done", sa.Integer, nullable=False, server_default="0"),
)
BY_ID = sa.select(server).where(server.c.id == sa.bindparam("b"))
HOST = sa.update(server).where(server.c.id == sa.bindparam("b")).values(host=sa.bindparam("v_host"))
OFF_HOST = (
    sa.update(server).where(server.c.id == sa.bindparam("b"), server.c.host == sa.bindparam("h")).values(host=None)
)
SEEN = (
    sa.update(server)
    .where(server.c.id == sa.bindparam("b"))
    .values(status=sa.bindparam("v_status"), boots_done=sa.bindparam("v_boots"))
)
FORGET = sa.delete(server).where(server.c.id == sa.bindparam("b"))
LOAD = sa.select(server.c.host, sa.func.count()).where(server.c.host.is_not(None)).group_by(server.c.host)


class Refused(Exception):
    """The caller's epoch is older than one seen before."""


class Hypervisor:
    """One host's guests, a file each; the epoch of a removed guest is remembered."""

    fencing = True

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(parents=True, exist_ok=True)

    def _admit(self, id: str, epoch: int) -> None:
        file = self._dir / f"{id}.epoch"
        if self.fencing and file.exists() and int(file.read_text()) > epoch:
            raise Refused(f"epoch {epoch} of {id}")
        self._put(file, str(epoch))

    @staticmethod
    def _put(file: Path, text: str) -> None:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, file)

    def list(self) -> dict[str, dict[str, Any]]:
        return {f.stem: json.loads(f.read_text()) for f in self._dir.glob("*.guest")}

    def ensure(self, id: str, guest: dict[str, Any], epoch: int) -> None:
        self._admit(id, epoch)
        file = self._dir / f"{id}.guest"
        if not file.exists() or json.loads(file.read_text()) != guest:
            self._put(file, json.dumps(guest))

    def remove(self, id: str, epoch: int) -> None:
        self._admit(id, epoch)
        (self._dir / f"{id}.guest").unlink(missing_ok=True)


def place(store: Store, item: Item) -> None:
    """Choose a host once, hand the wish on to it, forget the server when it is gone."""
    with store.read() as r:
        wish = r.one(BY_ID, {"b": item.id})
        load = dict(r.rows(LOAD))
    if wish is None or (wish["want"] == "gone" and wish["host"] is None):
        with store.write(item) as tx:
            tx.execute(FORGET, {"b": item.id})
            tx.drop()
        return
    host = wish["host"] or min(HOSTS, key=lambda h: (load.get(h, 0), h))
    with store.write(item) as tx:
        tx.execute(HOST, {"b": item.id, "v_host": host})
        tx.ask("domain", item.id, host)
        tx.settle(f"placed on {host}")


def domain(host: str, hypervisor: Hypervisor) -> Reconciler:
    """Make one guest what its row says, then say so."""

    def reconcile(store: Store, item: Item) -> None:
        with store.read() as r:
            wish = r.one(BY_ID, {"b": item.id})
        if wish is None or wish["want"] == "gone" or wish["host"] != host:
            hypervisor.remove(item.id, item.token)
            with store.write(item) as tx:
                tx.execute(OFF_HOST, {"b": item.id, "h": host, "host": None})
                tx.ask("server", item.id)
                tx.drop()
            return
        on = wish["want"] == "on"
        hypervisor.ensure(item.id, {"on": on, "boots": wish["boots"]}, item.token)
        with store.write(item) as tx:
            status = "ACTIVE" if on else "SHUTOFF"
            tx.execute(SEEN, {"b": item.id, "v_status": status, "v_boots": wish["boots"]})
            tx.settle(f"running={on} boots={wish['boots']}")

    return reconcile


def start(scene: Scene, store: Store) -> Mapping[str, Mapping[str, Reconciler]]:
    agents = {h: {"domain": domain(h, scene.watch(Hypervisor(scene.dir / h)))} for h in HOSTS}
    return {"": {"server": place}, **agents}


def ask(tx: Tx) -> None:
    """Ask whoever has to act: the server's host when it has one (so only that ask carries the news)."""
    wish = tx.one(BY_ID, {"b": ID})
    if wish is not None and wish["host"]:
        tx.ask("domain", ID, wish["host"])
    else:
        tx.ask("server", ID)


def request(change: Callable[[Tx], object]) -> Callable[[Store], None]:
    def go(store: Store) -> None:
        with store.write() as tx:
            change(tx)
            ask(tx)

    return go


def _born(id: str) -> Callable[[Tx], object]:
    def go(tx: Tx) -> None:
        if tx.one(BY_ID, {"b": id}) is None:
            tx.insert(server, {"id": id, "want": "on", "boots": 1, "status": "BUILD"})

    return go


def _set(**values: Any) -> Callable[[Tx], object]:
    alive = sa.update(server).where(server.c.id == ID, server.c.want != "gone")
    return lambda tx: tx.execute(alive.values(**values))


def _rival(store: Store) -> None:
    """Another server appears and the first one is to be off: placing it now would choose another host."""
    with store.write() as tx:
        rival = "22222222-2222-2222-2222-222222222222"
        if tx.one(BY_ID, {"b": rival}) is None:
            tx.insert(server, {"id": rival, "want": "on", "boots": 1, "status": "BUILD", "host": "h1"})
            tx.ask("domain", rival, "h1")
        _set(want="off")(tx)
        ask(tx)


def judge(scene: Scene) -> list[str]:
    """Compare rows and hosts exactly."""
    bad: list[str] = []
    with scene.store.read() as r:
        rows = {row["id"]: row for row in r.all(sa.select(server))}
    real = {(id, host): guest for host in HOSTS for id, guest in Hypervisor(scene.dir / host).list().items()}
    for id, row in rows.items():
        guest = real.pop((id, row["host"]), None)
        if row["want"] == "gone":
            bad.append(f"{id} should be gone")
        elif guest != {"on": row["want"] == "on", "boots": row["boots"]}:
            bad.append(f"{id} on {row['host']} is {guest}, wanted {row['want']} {row['boots']}")
        elif (row["status"], row["boots_done"]) != ("ACTIVE" if row["want"] == "on" else "SHUTOFF", row["boots"]):
            bad.append(f"{id} says {row['status']} {row['boots_done']}, wanted {row['want']} {row['boots']}")
    return bad + [f"orphan {id} on {host}" for id, host in real]


def _as(fn: Callable[[Store], None]) -> Callable[[Scene], None]:
    return lambda scene: fn(scene.store)


STEPS = (
    _as(request(_born(ID))),
    _as(request(_set(boots=2))),
    _as(request(_set(want="off"))),
    _as(request(_set(want="gone"))),
)
INTRUDERS = {
    "a rival, and off": _rival,
    "reboot": request(_set(boots=7, want="on")),
    "gone": request(_set(want="gone")),
}


def play(**changes: Any) -> Play:
    return Play(**{"tables": tables, "start": start, "steps": STEPS, "judge": judge, "intruders": INTRUDERS, **changes})
