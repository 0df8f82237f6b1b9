"""Network segment ranges: which VLAN and tunnel ids networks get, for everybody or for one project.

A network that names no id gets one of its project's own ranges while they last, then one that belongs to everybody:
the settings' ranges (shown as default ranges, read-only) and those that administrators shared, without what other
projects have for themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.call import Call
from nubila.core.config import Settings
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import look, paging, tags
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_segment import NetworkSegmentRange
from nubila.services.network.policies import ADMIN
from nubila.services.network.tables import SEGMENT

Row = dict[str, Any]
Span = tuple[int, int]
RANGED = {"vlan": 4094, "vxlan": 2**24 - 1, "gre": 2**32 - 1, "geneve": 2**24 - 1}
"""Types that have ids, with the largest one."""
FIRST = 2000
"""Ids of a range that are used before the others: short numbers are easier to read."""
MOST_SHOWN = 100_000
"""Free ids listed of one range."""

_R, _S, _N = NetworkSegmentRange.table.c, SEGMENT.c, Network.table.c
_OF_TYPE = sa.select(NetworkSegmentRange.table).where(
    _R.network_type == sa.bindparam("type"), _R.physical_network == sa.bindparam("physnet"), _R.is_default.is_(False)
)
_DEFAULTS = sa.select(NetworkSegmentRange.table).where(_R.is_default.is_(True))
_HOLD = _DEFAULTS.where(
    _R.network_type == sa.bindparam("type"), _R.physical_network == sa.bindparam("physnet")
).with_for_update()
_DROP = sa.delete(NetworkSegmentRange.table).where(_R.id == sa.bindparam("b_id"))
_USED = (
    sa.select(_S.segmentation_id, _N.project_id)
    .join(Network.table, _N.id == _S.network_id)
    .where(
        _S.network_type == sa.bindparam("type"), _S.physical_network == sa.bindparam("physnet"),
        _S.segmentation_id.between(sa.bindparam("lo"), sa.bindparam("hi")),
    )
    .order_by(_S.segmentation_id)
)  # fmt: skip


ANY = "*"
"""Among the setting's physical networks: flat networks may have any name (Neutron's ``flat_networks = *``)."""


def physical_networks(reader: Reader, settings: Settings) -> set[str]:
    """The names that networks may use: the setting's, and those that hosts have a bridge or network card for."""
    named = {*settings.physical_networks, *(name for host in hosts.every(reader) for name in host["bridges"] or ())}
    return named - {ANY}


def first(settings: Settings) -> str | None:
    """The physical network of a VLAN network that names none."""
    return next((name for name in settings.physical_networks if name != ANY), None)


# --- which ids ------------------------------------------------------------------------------------------------------


def minus(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """The ids of ``spans`` that are in none of ``holes``."""
    left = list(spans)
    for lo, hi in holes:
        cut: list[Span] = []
        for first, last in left:
            if hi < first or lo > last:
                cut.append((first, last))
                continue
            if first < lo:
                cut.append((first, lo - 1))
            if last > hi:
                cut.append((hi + 1, last))
        left = cut
    return left


def spans(reader: Reader, settings: Settings, kind: str, physnet: str, project_id: str) -> list[Span]:
    """Where a network of the project may get its id, best first."""
    ranges = reader.all(_OF_TYPE, {"type": kind, "physnet": physnet})
    own = [(r["minimum"], r["maximum"]) for r in ranges if not r["shared"] and r["project_id"] == project_id]
    taken = [(r["minimum"], r["maximum"]) for r in ranges if not r["shared"]]
    common = [_setting(settings, kind), *((r["minimum"], r["maximum"]) for r in ranges if r["shared"])]
    out = list(own)
    for lo, hi in minus(common, taken):
        out += [(lo, hi)] if hi - lo < FIRST else [(lo, lo + FIRST - 1), (lo + FIRST, hi)]
    return out


def hold(tx: Tx, kind: str, physnet: str) -> None:
    """Let nobody else choose among the ids of a type meanwhile (SQLite has one writer anyway)."""
    if tx.dialect != "sqlite":
        tx.one(_HOLD, {"type": kind, "physnet": physnet})


def _setting(settings: Settings, kind: str) -> Span:
    return settings.vlan_range if kind == "vlan" else settings.vni_range


# --- the default ranges ---------------------------------------------------------------------------------------------


def show_settings(tx: Tx, settings: Settings) -> None:
    """Make the default ranges say what the settings say."""
    wanted = {("vlan", physnet, *settings.vlan_range) for physnet in settings.physical_networks if physnet != ANY}
    wanted |= {(kind, "", *settings.vni_range) for kind in RANGED if kind != "vlan"}
    for row in tx.all(_DEFAULTS):
        found = (row["network_type"], row["physical_network"], row["minimum"], row["maximum"])
        if found in wanted:
            wanted.remove(found)
        else:
            tx.execute(_DROP, {"b_id": row["id"]})
    now = clock.now()
    for kind, physnet, lo, hi in sorted(wanted):
        tx.insert(NetworkSegmentRange.table, {
            "id": clock.new_id(), "name": "", "description": "", "project_id": "", "created_at": now,
            "updated_at": now, "revision_number": 0, "is_default": True, "shared": True, "network_type": kind,
            "physical_network": physnet, "minimum": lo, "maximum": hi, "tags": [],
        })  # fmt: skip


# --- the API --------------------------------------------------------------------------------------------------------


def _valid(call: Call, row: Row) -> None:
    kind = row["network_type"]
    if kind not in RANGED:
        text = f"network_type {kind} has no ranges; use one of {', '.join(RANGED)}."
        raise bad_request(text, "HTTPBadRequest")
    lo, hi = row["minimum"], row["maximum"]
    if not 1 <= lo <= hi <= RANGED[kind]:
        text = f"Invalid input for operation: minimum {lo} and maximum {hi} are not in order or not in 1 to "
        raise bad_request(f"{text}{RANGED[kind]}.", "InvalidInput")
    overlapping = [
        r["id"]
        for r in call.tx.all(_OF_TYPE, {"type": kind, "physnet": row["physical_network"]})
        if r["id"] != row["id"] and lo <= r["maximum"] and hi >= r["minimum"]
    ]
    if overlapping:
        text = f"minimum, maximum: the range meets {', '.join(overlapping)}; choose other bounds."
        raise conflict(text, "NetworkSegmentRangeOverlaps")


def prepare(call: Call, values: Row) -> None:
    physnet = values["physical_network"] or ""
    if values["network_type"] == "vlan":
        if not physnet:
            raise bad_request("Bad network_segment_range request: VLAN ids need a physical_network.", "BadRequest")
        known = physical_networks(call.tx, call.cloud.settings)
        if physnet not in known:
            text = f"Invalid input for operation: physical_network '{physnet}' unknown; VLAN ids belong to one of "
            raise bad_request(f"{text}{', '.join(sorted(known))}.", "InvalidInput")
    else:
        physnet = ""
    values["physical_network"] = physnet
    if values["shared"]:
        values["project_id"] = ""
    elif not values["project_id"]:
        raise bad_request("Invalid input for operation: a range that is not shared needs a project_id.", "InvalidInput")
    values["tags"] = tags.clean(values["tags"])
    _valid(call, values)


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)


def _writable(row: Row) -> None:
    if row["is_default"]:
        text = f"Segment range {row['id']} comes from the configuration file (default): change it there."
        raise bad_request(text, "NetworkSegmentRangeDefaultReadOnly")


def _in_use(reader: Reader, row: Row, spans: Sequence[Span]) -> bool:
    """Whether networks that may have got their id from the range have one in these spans."""
    for lo, hi in spans:
        where = {"type": row["network_type"], "physnet": row["physical_network"], "lo": lo, "hi": hi}
        if any(row["shared"] or project == row["project_id"] for _, project in reader.rows(_USED, where)):
            return True
    return False


def _referenced(row: Row) -> Exception:
    text = f"Networks have ids of segment range {row['id']}: delete them first."
    return conflict(text, "NetworkSegmentRangeReferencedByProject")


def prepare_update(call: Call, before: Row, values: Row) -> None:
    _writable(before)
    look.check_revision(call, before)
    after = {**before, **values}
    lost = minus([(before["minimum"], before["maximum"])], [(after["minimum"], after["maximum"])])
    if _in_use(call.tx, before, lost):
        raise _referenced(before)
    _valid(call, after)


def deleting(call: Call, row: Row) -> None:
    _writable(row)
    if _in_use(call.tx, row, [(row["minimum"], row["maximum"])]):
        raise _referenced(row)
    tags.forget(call.tx, row["id"])


def present(call: Call, rows: list[Row]) -> None:
    for row in rows:
        lo, hi = row["minimum"], row["maximum"]
        where = {"type": row["network_type"], "physnet": row["physical_network"], "lo": lo, "hi": hi}
        used = {str(id): project for id, project in call.tx.rows(_USED, where)}
        row["used"] = used
        last = min(hi, lo + MOST_SHOWN + len(used) - 1)
        row["available"] = [id for id in range(lo, last + 1) if str(id) not in used][:MOST_SHOWN]


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, NetworkSegmentRange, q)


_NAMES = ("create", "get", "update", "delete")
FEATURE = Feature(
    kinds=(NetworkSegmentRange,),
    hooks={
        NetworkSegmentRange: Hooks(
            target=look.own_project, prepare=prepare, created=created, prepare_update=prepare_update,
            deleting=deleting, present=present, scope=scope, own_filters=tags.FILTERS,
        )
    },
    rules=tuple(
        Rule(f"{verb}_network_segment_range{part}", ADMIN, f"{verb.capitalize()} a network segment range{what}.",
             scopes=("project",))
        for verb in _NAMES
        for part, what in (("", ""), (":tags", "'s tags"))
    ),
    resources={"network_segment_ranges": "network_segment_range"},
    extensions={
        "network-segment-range": (
            "Neutron Network Segment Range", "Ids of networks come from ranges of projects or of everybody.",
            "2018-11-29",
        ),
    },
)  # fmt: skip
