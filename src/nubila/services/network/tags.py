"""Tags: shown from each resource's own column, filtered by the tag table; only this module writes either."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route
from nubila.core.db import Tx
from nubila.core.declare import Resource
from nubila.core.faults import Fault, bad_request
from nubila.core.query import ListQuery
from nubila.services.network import allocate, look
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet, SubnetPool
from nubila.services.network.kinds_port import Port, SecurityGroup
from nubila.services.network.kinds_qos import QosPolicy
from nubila.services.network.kinds_segment import NetworkSegmentRange
from nubila.services.network.kinds_trunk import Trunk
from nubila.services.network.tables import TAG

MAX_TAGS = 50
FILTERS = ("tags", "tags-any", "not-tags", "not-tags-any")
_FORGET = sa.delete(TAG).where(TAG.c.resource_id == sa.bindparam("b_id"))
TAGGED: tuple[type[Resource], ...] = (
    Network, Subnet, SubnetPool, Port, Router, FloatingIP, SecurityGroup, QosPolicy, Trunk, NetworkSegmentRange,
)  # fmt: skip


def clean(tags: Any) -> list[str]:
    """Tags of a request; 400 for what cannot be one."""
    if not isinstance(tags, list) or not all(isinstance(t, str) and 0 < len(t) <= 255 for t in tags):
        raise bad_request("Invalid input for tags: it must be a list of texts of 1 to 255 characters.", "InvalidInput")
    if len(set(tags)) > MAX_TAGS:
        raise bad_request(f"Invalid input for tags: a resource has at most {MAX_TAGS}.", "InvalidInput")
    return list(dict.fromkeys(tags))


def store(tx: Tx, id: str, tags: Sequence[str], *, fresh: bool = False) -> None:
    """Make the tag table say what the resource's column says."""
    if not fresh:
        tx.execute(_FORGET, {"b_id": id})
    for tag in sorted(set(tags)):
        tx.insert(TAG, {"resource_id": id, "tag": tag})


def forget(tx: Tx, id: str) -> None:
    """The resource is going."""
    tx.execute(_FORGET, {"b_id": id})


def clauses(cls: type[Resource], q: ListQuery) -> list[Any]:
    """WHERE clauses of the tag filters in a list's query."""
    id = cls.table.c.id
    out: list[Any] = []

    def having(tags: Iterable[str]) -> Any:
        return sa.exists().where(TAG.c.resource_id == id, TAG.c.tag.in_(list(tags)))

    for name in FILTERS:
        for text in q.extra.get(name, []):
            tags = [t for t in text.split(",") if t]
            if name.endswith("any"):
                clause = having(tags)
            else:
                clause = sa.and_(sa.true(), *(having([t]) for t in tags))
            out.append(sa.not_(clause) if name.startswith("not") else clause)
    return out


def routes() -> list[Route]:
    """``/<resource>/{id}/tags`` and ``/tags/{tag}`` of every resource that has tags."""
    out: list[Route] = []
    for cls in TAGGED:
        assert cls.rest is not None
        item = cls.rest.item.replace("_", " ")
        # QoS policies live below /qos; their tags are also where those of everything else are.
        for place in dict.fromkeys((cls.rest.path, cls.rest.path.replace("/qos/", "/"))):
            base = f"{place}/{{id}}/tags"
            for method, path, make, doc, tx, status in (
                ("GET", base, _list, "List the tags", "read", 200),
                ("PUT", base, _replace, "Replace the tags", "write", 200),
                ("POST", base, _add_many, "Add tags", "write", 200),
                ("DELETE", base, _clear, "Remove all tags", "write", 204),
                ("GET", base + "/{tag}", _has, "Ask for a tag", "read", 204),
                ("PUT", base + "/{tag}", _add, "Add a tag", "write", 201),
                ("DELETE", base + "/{tag}", _remove, "Remove a tag", "write", 204),
            ):
                out.append(
                    Route(method=method, path=path, handler=make(cls), doc=f"{doc} of a {item}.", tx=tx, status=status)
                )  # fmt: skip
    return out


def _find(call: Call, cls: type[Resource], verb: str) -> dict[str, Any]:
    assert cls.rest is not None
    row = look.seen(call.cloud, call.tx, call.creds, cls, call.params["id"])
    call.enforce(f"{verb}_{cls.rest.item}:tags", look.wire(cls, row))
    return row


def _write(call: Call, cls: type[Resource], row: dict[str, Any], tags: list[str]) -> None:
    allocate.set_columns(call.tx, cls, row["id"], {"tags": tags})
    allocate.bump(call.tx, cls, [row["id"]], clock.now())
    store(call.tx, row["id"], tags)


def _missing(tag: str) -> Fault:
    return Fault(404, f"Tag {tag} could not be found.", "TagNotFound")


def _body(call: Call) -> list[str]:
    body = call.body
    if not isinstance(body, dict) or set(body) != {"tags"}:
        raise bad_request("The body must be an object with the key 'tags'.", "InvalidInput")
    return clean(body["tags"])


def _list(cls: type[Resource]) -> Any:
    return lambda call: {"tags": _find(call, cls, "get")["tags"]}


def _replace(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        row, tags = _find(call, cls, "update"), _body(call)
        _write(call, cls, row, tags)
        return {"tags": tags}

    return handler


def _add_many(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        row = _find(call, cls, "update")
        tags = clean([*row["tags"], *_body(call)])
        _write(call, cls, row, tags)
        return {"tags": tags}

    return handler


def _clear(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        _write(call, cls, _find(call, cls, "delete"), [])

    return handler


def _has(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        if call.params["tag"] not in _find(call, cls, "get")["tags"]:
            raise _missing(call.params["tag"])
        return Reply(None, 204)

    return handler


def _add(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        row, tag = _find(call, cls, "update"), call.params["tag"]
        if tag not in row["tags"]:
            _write(call, cls, row, clean([*row["tags"], tag]))
        return Reply(None, 201)

    return handler


def _remove(cls: type[Resource]) -> Any:
    def handler(call: Call) -> Any:
        row, tag = _find(call, cls, "delete"), call.params["tag"]
        if tag not in row["tags"]:
            raise _missing(tag)
        _write(call, cls, row, [t for t in row["tags"] if t != tag])

    return handler
