"""What an authentication method is made of: the proof it adds to, and the look-ups that methods share.

A method is a function ``(cloud, reader, part, proof) -> None`` where ``part`` is its object of the request body. It
says who it is about in ``proof.users`` and either decides at once, or leaves work for the hashing threads in
``proof.compare`` and ``proof.check``. Which methods there are is in services/identity/methods.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.faults import Fault, bad_request
from nubila.services.identity import lookup
from nubila.services.identity.kinds import Project, User

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.config import Settings
    from nubila.core.db import Reader, Tx
    from nubila.core.payload import Payload

Row = dict[str, Any]

DOMAIN: Row = {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}
USER: Row = {
    "type": "object",
    "properties": {
        "id": {"type": "string"}, "name": {"type": "string"}, "password": {"type": "string"}, "domain": DOMAIN,
    },
}  # fmt: skip

_U, _P = User.table, Project.table
_USER_BY_NAME = sa.select(_U).where(_U.c.name == sa.bindparam("name"), _U.c.domain_id == sa.bindparam("domain_id"))
_DOMAIN_BY_NAME = sa.select(_P).where(_P.c.name == sa.bindparam("name"), _P.c.domain_id == "")


@dataclass(slots=True)
class Compare:
    """A secret to compare with a hash in the hashing threads. No hash: the time is spent and the answer is no."""

    hashed: str | None
    secret: str
    user: Row | None = None  # set for passwords: lockout, expiry, rehash are about this row


@dataclass
class Proof:
    """What the methods of one request have shown so far.

    ``users`` has one id per method, None = refused; all must be the same one. ``check`` are functions that run in the
    hashing threads (they may block for a bounded time, set ``users``, append ``effects``, raise a Fault such as 503)
    and return whether the proof holds. ``effects`` run in one write transaction once everything is proven, before scope
    and multi-factor rules are looked at; ``granted`` in one when there is a token to hand out (uses of a trust). Both
    may raise a Fault instead. ``fields`` are further fields of the token's payload (core/payload.py).
    """

    call: Call
    methods: list[str] = field(default_factory=list)
    users: list[str | None] = field(default_factory=list)
    compare: list[Compare] = field(default_factory=list)
    check: list[Callable[[], bool]] = field(default_factory=list)
    effects: list[Callable[[Tx], None]] = field(default_factory=list)
    granted: list[Callable[[Tx], None]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # ids of users for whom something wrong was shown: counted
    fields: Row = field(default_factory=dict)
    parent: Payload | None = None
    app_cred: Row | None = None
    refused: bool = False

    @property
    def user_id(self) -> str | None:
        """The user whom every method found, None when they disagree or one refused."""
        same = not self.refused and len(set(self.users)) == 1
        return self.users[0] if same else None


Prove: TypeAlias = "Callable[[Cloud, Reader, Row, Proof], None]"


def _always(settings: Settings) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Method:
    """One authentication method: its function and the JSON Schema of its object in the body."""

    prove: Prove
    schema: Row = field(default_factory=lambda: {"type": "object"})
    enabled: Callable[[Settings], bool] = _always


def expecting(what: str, where: str) -> Fault:
    """400: a part of the body is missing."""
    return bad_request(f"Expecting to find {what} in {where}.", "ValidationError")


def named(part: Row, where: str) -> None:
    """Raise 400 unless a user or project of the body is named by id, or by name and domain."""
    if "id" not in part and "name" not in part:
        raise bad_request(f"Invalid input for field {where}: id or name must be present.", "ValidationError")
    if "id" not in part and "domain" not in part:
        raise expecting("domain", where.rpartition("/")[2])
    if "id" not in part.get("domain", {"id": ""}) and "name" not in part["domain"]:
        raise bad_request(f"{where}/domain: give an id or a name.", "ValidationError")


def domain_of(reader: Reader, part: Row) -> Row | None:
    """The enabled domain that ``{id}`` or ``{name}`` means."""
    row = lookup.project(reader, part["id"]) if "id" in part else reader.one(_DOMAIN_BY_NAME, {"name": part["name"]})
    return row if row is not None and row["is_domain"] and row["enabled"] else None


def find_user(reader: Reader, part: Row) -> Row | None:
    """The enabled user that ``{id}`` or ``{name, domain}`` means; None also when its domain is disabled."""
    row = user_row(reader, part)
    if row is None or not row["enabled"]:
        return None
    return row if domain_of(reader, {"id": row["domain_id"]}) is not None else None


def user_row(reader: Reader, part: Row) -> Row | None:
    """The user that ``{id}`` or ``{name, domain}`` means, enabled or not."""
    if "id" in part:
        return lookup.user(reader, part["id"])
    domain = domain_of(reader, part["domain"])
    return None if domain is None else reader.one(_USER_BY_NAME, {"name": part["name"], "domain_id": domain["id"]})
