"""Identity's resources: who there is (domains, projects, users, groups), what they may be (roles), what runs where.

Keystone's peculiarities kept here: ids are 32 hexadecimal digits; a domain is a project that acts as one; bodies may
carry attributes of the caller's own, which come back as they were (``extra``); unknown query keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, revocations
from nubila.core.declare import METADATA, Attr, Resource, Rest
from nubila.core.gates import OPEN
from nubila.core.types import Bool, Enum, Id64, Int, Json, Object, Str, Text, Type, with_schema

_BOOL_WORD = {"type": ["boolean", "null"]}


def _truth(text: str) -> bool:
    """Keystone takes every word for true except the usual spellings of false."""
    return text.strip().lower() not in ("0", "false", "no", "off")


def _interface(text: str) -> str:
    if text not in INTERFACES:
        raise ValueError(f"not one of {', '.join(INTERFACES)}")
    return text


INTERFACES = ("public", "internal", "admin")
Interface = replace(Enum(*INTERFACES), parse=_interface)
Truth = replace(Bool, parse=_truth)
Name64 = Str(64, lo=1, pattern=r"\S")
Name255 = Str(255, lo=1, pattern=r"\S")
Doc = Text()
NullId = with_schema(Id64, {"type": ["string", "null"], "maxLength": 64})
Tag = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^,/]*$"}
Tags = Type(lambda: sa.JSON, {"type": "array", "items": Tag, "maxItems": 80, "uniqueItems": True})
ResourceOptions = Object({"immutable": _BOOL_WORD})
UserOptions = Object(
    {
        "ignore_change_password_upon_first_use": _BOOL_WORD,
        "ignore_password_expiry": _BOOL_WORD,
        "ignore_lockout_failure_attempts": _BOOL_WORD,
        "lock_password": _BOOL_WORD,
        "ignore_user_inactivity": _BOOL_WORD,
        "multi_factor_auth_enabled": _BOOL_WORD,
        "multi_factor_auth_rules": {
            "type": ["array", "null"],
            "items": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        },
    }
)
_KNOWN_AS = {
    "type": "object",
    "properties": {
        "protocol_id": {"type": "string"},
        "unique_id": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "required": ["protocol_id", "unique_id"],
}
_KNOWN_TO = {
    "type": "object",
    "properties": {"idp_id": {"type": "string"}, "protocols": {"type": "array", "minItems": 1, "items": _KNOWN_AS}},
    "required": ["idp_id", "protocols"],
}
Federated = Type(lambda: sa.JSON, {"type": "array", "items": _KNOWN_TO})
_NAMES = "eq in contains icontains startswith istartswith endswith iendswith iexact"


def _rules(item: str, items: str) -> dict[str, str]:
    return {
        "list": f"identity:list_{items}",
        "show": f"identity:get_{item}",
        "create": f"identity:create_{item}",
        "update": f"identity:update_{item}",
        "delete": f"identity:delete_{item}",
    }


def rest(path: str, item: str, items: str, **options: Any) -> Rest:
    """Identity's usual representation of a resource."""
    defaults: dict[str, Any] = {
        "update": "PATCH", "rules": _rules(item, items), "hidden": 403, "unknown_query": OPEN, "extra_body": True,
        "max_limit": 10000, "order": (("id", "asc"),),
    }  # fmt: skip
    return Rest(path=f"/v3/{path}", item=item, items=items, **{**defaults, **options})


class _Own(Resource):
    """What all have: an id of Keystone's form and room for the caller's own attributes."""

    service = "identity"
    owner = ""
    id = Attr(Id64, "Unique id.", key=True, default=clock.new_hex, filter="eq in", sort=True)
    extra = Attr(Json, "Attributes of the caller's own, merged into the answer.", hidden=True, default=dict)


def _or_none(name: str) -> Any:
    def shown(row: Mapping[str, Any]) -> Any:
        return row.get(name) or None

    return shown


class Project(_Own):
    """A project owns resources; projects form a tree below their domain. A domain is a project that acts as one."""

    kind = "project"
    name = Attr(Name64, "Unique among the projects of its domain.", write="cu", filter=_NAMES, sort=True)
    domain_id = Attr(
        NullId, "The domain it belongs to.", write="cu", default="", filter="eq in", index=True,
        compute=_or_none("domain_id"),
    )  # fmt: skip
    parent_id = Attr(
        NullId, "The project or domain above it.", write="cu", default="", filter="eq in", index=True,
        compute=_or_none("parent_id"),
    )  # fmt: skip
    is_domain = Attr(Truth, "Whether it acts as a domain.", write="cu", default=False, filter="eq")
    enabled = Attr(
        Truth, "Nobody can have a token for a disabled one.", write="cu", default=True, filter="eq", sort=True
    )
    description = Attr(Doc, "Free text.", write="cu", default="", null=True)
    tags = Attr(Tags, "Labels to filter by.", write="cu", default=list, store=False)
    options = Attr(ResourceOptions, "Known options: immutable.", write="cu", default=dict)
    unique = (("domain_id", "name"),)
    rest = rest("projects", "project", "projects")


class Domain(_Own):
    """A domain contains projects, users and groups, and is the boundary of their names."""

    kind = "domain"
    name = Attr(Name64, "Unique in the cloud.", write="cu", filter=_NAMES, sort=True)
    domain_id = Attr(Id64, "", hidden=True, default="")
    parent_id = Attr(Id64, "", hidden=True, default="")
    is_domain = Attr(Truth, "", hidden=True, default=True)
    enabled = Attr(
        Truth, "Nobody in a disabled one can have a token.", write="cu", default=True, filter="eq", sort=True
    )
    description = Attr(Doc, "Free text.", write="cu", default="", null=True)
    tags = Attr(Tags, "Labels.", write="cu", default=list, store=False)
    options = Attr(ResourceOptions, "Known options: immutable.", write="cu", default=dict)
    rest = rest("domains", "domain", "domains")


# One table: whatever may own, own under, or be granted on a project may be so on a domain.
METADATA.remove(Domain.table)
Domain.table = Project.table


class User(_Own):
    """A person or a program that can prove who it is."""

    kind = "user"
    name = Attr(Name255, "Unique in its domain.", write="cu", filter=_NAMES, sort=True)
    domain_id = Attr(Id64, "The domain it belongs to.", write="cu", default="", filter="eq in", index=True)
    enabled = Attr(Truth, "A disabled user cannot authenticate.", write="cu", default=True, filter="eq", sort=True)
    default_project_id = Attr(Id64, "Scope of a token when none is asked for.", write="cu", null=True, hidden=True)
    options = Attr(UserOptions, "Exemptions and multi-factor rules.", write="cu", default=dict)
    password_expires_at = Attr(
        Str(32), "When the password stops working; null = never.", observed=True, filter="lt lte gt gte eq neq"
    )
    password = Attr(Str(255), "Its hash.", hidden=True, null=True, default=None)
    created_at = Attr(Str(32), "", hidden=True, default=clock.now)
    federated = Attr(
        Federated,
        "Under which names providers know this user.",
        write="cu",
        null=True,
        store=False,
        hidden=True,
    )
    unique = (("domain_id", "name"),)
    rest = rest("users", "user", "users")


class Group(_Own):
    """A set of users that is granted roles together."""

    kind = "user_group"
    name = Attr(Name64, "Unique in its domain.", write="cu", filter=_NAMES, sort=True)
    domain_id = Attr(Id64, "The domain it belongs to.", write="cu", default="", filter="eq in", index=True)
    description = Attr(Doc, "Free text.", write="cu", default="", null=True)
    unique = (("domain_id", "name"),)
    rest = rest("groups", "group", "groups")


class Role(_Own):
    """A name that policy rules ask for; a domain role only implies others and never appears in a token."""

    kind = "role"
    name = Attr(Name255, "Unique, or unique in its domain.", write="cu", filter=_NAMES, sort=True)
    domain_id = Attr(
        NullId, "The domain of a domain role.", write="cu", default="", filter="eq in", compute=_or_none("domain_id")
    )
    description = Attr(Doc, "Free text.", write="cu", null=True)
    options = Attr(ResourceOptions, "Known options: immutable.", write="cu", default=dict)
    unique = (("domain_id", "name"),)
    rest = rest("roles", "role", "roles")


class Region(_Own):
    """A part of the cloud with its own endpoints; regions can nest."""

    kind = "region"
    id = Attr(Str(255), "Chosen by the caller or generated.", key=True, write="c", default=clock.new_hex, sort=True)
    description = Attr(Doc, "Free text.", write="cu", default="", null=True)
    parent_region_id = Attr(
        Str(255), "The region it is part of.", write="cu", null=True, filter="eq in", ref="region.id"
    )
    rest = rest("regions", "region", "regions")


class CatalogService(_Own):
    """A service that the catalogue lists."""

    kind = "catalog_service"
    type = Attr(Str(255, lo=1), "What API it speaks: compute, network ...", write="cu", filter="eq in", sort=True)
    name = Attr(Str(255), "What it is called.", write="cu", default="", filter=_NAMES, sort=True)
    enabled = Attr(Truth, "A disabled one is not in the catalogue.", write="cu", default=True, filter="eq")
    rest = rest("services", "service", "services")


class Endpoint(_Own):
    """A URL at which a service answers, for one interface in one region."""

    kind = "endpoint"
    interface = Attr(Interface, "For whom.", write="cu", filter="eq in", sort=True)
    service_id = Attr(Id64, "The service that answers.", write="cu", filter="eq in", ref="catalog_service.id")
    region_id = Attr(Str(255), "The region it serves.", write="cu", null=True, filter="eq in", ref="region.id")
    region = Attr(
        Str(255), "The same as region_id.", write="cu", null=True, store=False, compute=lambda row: row["region_id"]
    )
    url = Attr(Str(2048, lo=1, pattern=r"^[a-zA-Z0-9+.-]+:.+"), "May hold $(project_id)s and $(user_id)s.", write="cu")
    name = Attr(Str(255), "Free text.", write="cu", null=True, default=None, filter="eq", hidden=True)
    enabled = Attr(Truth, "A disabled one is not in the catalogue.", write="cu", default=True, filter="eq")
    rest = rest("endpoints", "endpoint", "endpoints")


class Policy(_Own):
    """A policy document kept for other services; Identity itself does not read it."""

    kind = "policy"
    type = Attr(Str(255), "MIME type of the document.", write="cu", filter="eq")
    blob = Attr(Json, "The document.", write="cu")
    rest = rest("policies", "policy", "policies")


class Credential(_Own):
    """A secret of a user other than the password, such as an EC2 key pair."""

    kind = "credential"
    user_id = Attr(Id64, "Whose it is.", write="cu", filter="eq", ref="user.id")
    project_id = Attr(Id64, "The project it is for; required for ec2.", write="cu", null=True)
    type = Attr(Str(255), "ec2, cert, totp ...", write="cu", filter="eq")
    blob = Attr(Text(), "The secret; encrypted in the database.", write="cu", store=False)
    encrypted_blob = Attr(Text(), "", hidden=True)
    key_hash = Attr(Str(64), "", hidden=True, null=True)
    rest = rest("credentials", "credential", "credentials")


class RegisteredLimit(_Own):
    """The default of how much of something every project may have."""

    kind = "registered_limit"
    service_id = Attr(Id64, "The service that counts.", write="cu", filter="eq", ref="catalog_service.id")
    region_id = Attr(Str(255), "Only in this region.", write="cu", null=True, filter="eq", ref="region.id")
    resource_name = Attr(Str(255, lo=1), "What is counted.", write="cu", filter="eq")
    default_limit = Attr(Int(-1), "How many; -1 = no limit.", write="cu")
    description = Attr(Doc, "Free text.", write="cu", null=True)
    rest = rest(
        "registered_limits", "registered_limit", "registered_limits",
        verbs=frozenset({"list", "show", "update", "delete"}), extra_body=False,
    )  # fmt: skip


class Limit(_Own):
    """How much of something one project or domain may have, in place of the default."""

    kind = "project_limit"
    project_id = Attr(Id64, "The project.", write="c", null=True, filter="eq")
    domain_id = Attr(Id64, "The domain.", write="c", null=True, filter="eq")
    service_id = Attr(Id64, "The service that counts.", write="c", filter="eq", ref="catalog_service.id")
    region_id = Attr(Str(255), "Only in this region.", write="c", null=True, filter="eq", ref="region.id")
    resource_name = Attr(Str(255, lo=1), "What is counted.", write="c", filter="eq")
    resource_limit = Attr(Int(-1), "How many; -1 = no limit.", write="cu")
    description = Attr(Doc, "Free text.", write="cu", null=True)
    rest = rest(
        "limits", "limit", "limits", verbs=frozenset({"list", "show", "update", "delete"}), extra_body=False
    )  # fmt: skip


class ApplicationCredential(_Own):
    """A secret with some of its user's roles on one project, for programs."""

    kind = "application_credential"
    user_id = Attr(Id64, "Whose it is.", hidden=True, ref="user.id")
    name = Attr(Str(255, lo=1), "Unique for the user.", write="c", filter="eq")
    description = Attr(Doc, "Free text.", write="c", null=True)
    project_id = Attr(Id64, "The project of the token that made it.", observed=True, index=True)
    expires_at = Attr(Str(32), "When it stops working; null = never.", write="c", null=True)
    unrestricted = Attr(Bool, "Whether it may make others of its kind.", write="c", default=False)
    roles = Attr(Json, "The roles it has.", write="c", default=list)
    access_rules = Attr(Json, "The requests it is limited to; null = none are excluded.", write="c", null=True)
    secret_hash = Attr(Str(255), "", hidden=True)
    unique = (("user_id", "name"),)


MEMBERSHIP = sa.Table(
    "membership",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("group_id", sa.String(64), primary_key=True, index=True),
)

ASSIGNMENT = sa.Table(
    "assignment",
    METADATA,
    sa.Column("actor_kind", sa.String(8), primary_key=True),  # user | group
    sa.Column("actor_id", sa.String(64), primary_key=True),
    sa.Column("target_kind", sa.String(8), primary_key=True),  # project | domain | system
    sa.Column("target_id", sa.String(64), primary_key=True),  # "all" for the system
    sa.Column("role_id", sa.String(64), primary_key=True),
    sa.Column("inherited", sa.Boolean, primary_key=True),
    sa.Index("ix_assignment_target", "target_kind", "target_id"),
    sa.Index("ix_assignment_role", "role_id"),
)

IMPLIED = sa.Table(
    "implied_role",
    METADATA,
    sa.Column("prior_id", sa.String(64), primary_key=True),
    sa.Column("implied_id", sa.String(64), primary_key=True, index=True),
)

PROJECT_TAG = sa.Table(
    "project_tag",
    METADATA,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
)

REVISION = sa.Table(
    "identity_revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),  # always 1
    sa.Column("n", sa.BigInteger, nullable=False),
)

REVOCATION = revocations.table(METADATA)

TRUST = sa.Table(
    "trust",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("trustor_user_id", sa.String(64), nullable=False, index=True),
    sa.Column("trustee_user_id", sa.String(64), nullable=False, index=True),
    sa.Column("project_id", sa.String(64), index=True),
    sa.Column("impersonation", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.String(32)),
    sa.Column("roles", sa.JSON, nullable=False),  # ids
    sa.Column("remaining_uses", sa.Integer),  # tokens still to be had; null = any number
    sa.Column("redelegated_trust_id", sa.String(64), index=True),  # the trust it was made with
    sa.Column("redelegation_count", sa.Integer, nullable=False),  # how often it may be passed on
    sa.Column("created_at", sa.String(32), nullable=False),
)
