"""What Identity holds in a new cloud: the default domain, first projects and users, roles, the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.services.identity import assignments, auth, compliance, credential_keys
from nubila.services.identity.catalog import BASE
from nubila.services.identity.kinds import (
    IMPLIED,
    INTERFACES,
    REVISION,
    CatalogService,
    Endpoint,
    Project,
    Region,
    Role,
    User,
)
from nubila.services.identity.login import hashing
from nubila.services.identity.lookup import DEFAULT_DOMAIN
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Tx
    from nubila.core.service import Service

ROLES = ("admin", "manager", "member", "reader", "service", "ResellerAdmin")
IMMUTABLE = ("admin", "manager", "member", "reader")
IMPLICATIONS = (("admin", "manager"), ("manager", "member"), ("member", "reader"))
PROJECTS = {
    "admin": "For the cloud's administrators.",
    "demo": "To try things out.",
    "service": "For users that are services.",
}
_E, _G, _P, _R, _S, _U = (cls.table for cls in (Endpoint, Region, Project, Role, CatalogService, User))


def _domain(tx: Tx) -> None:
    tx.insert(
        Project.table,
        {
            "id": DEFAULT_DOMAIN, "name": "Default", "domain_id": "", "parent_id": "", "is_domain": True,
            "enabled": True, "description": "The default domain", "options": {}, "extra": {},
        },
    )  # fmt: skip


def _role(tx: Tx, name: str) -> str:
    id = clock.new_hex()
    options = {"immutable": True} if name in IMMUTABLE else {}
    tx.insert(Role.table, {"id": id, "name": name, "domain_id": "", "options": options, "extra": {}})
    return id


def _project(tx: Tx, name: str, description: str) -> str:
    id = clock.new_hex()
    tx.insert(
        Project.table,
        {
            "id": id, "name": name, "domain_id": DEFAULT_DOMAIN, "parent_id": DEFAULT_DOMAIN, "is_domain": False,
            "enabled": True, "description": description, "options": {}, "extra": {},
        },
    )  # fmt: skip
    return id


def _user(cloud: Cloud, tx: Tx, name: str, password: str = "", *, hashed: str = "") -> str:
    id = clock.new_hex()
    hashed = hashed or cloud.bootstrap_ids.get(f"hash:{name}") or hashing(cloud).hash(password)
    tx.insert(
        User.table,
        {
            "id": id, "name": name, "domain_id": DEFAULT_DOMAIN, "enabled": True, "default_project_id": None,
            "options": {}, "password_expires_at": None, "password": hashed, "created_at": clock.now(), "extra": {},
        },
    )  # fmt: skip
    return id


def _service(tx: Tx, type: str, title: str) -> str:
    id = clock.new_hex()
    tx.insert(_S, {"id": id, "type": type, "name": title, "enabled": True, "extra": {}})
    return id


def _endpoint(tx: Tx, service_id: str, interface: str, region: str, url: str) -> None:
    tx.insert(
        _E,
        {
            "id": clock.new_hex(), "interface": interface, "service_id": service_id, "region_id": region, "url": url,
            "enabled": True, "name": None, "extra": {},
        },
    )  # fmt: skip


def _catalogue(cloud: Cloud, tx: Tx) -> None:
    tx.insert(_G, {"id": cloud.region, "description": "", "parent_region_id": None, "extra": {}})
    for service in cloud.services:
        if service.type:
            id = _service(tx, service.type, service.title)
            for interface in INTERFACES:
                _endpoint(tx, id, interface, cloud.region, f"{BASE}{service.prefix}{service.catalog_path}")


def bootstrap(cloud: Cloud, tx: Tx) -> None:
    """Fill an empty database, in the transaction of the first start.

    Passwords come from ``cloud.admin_password`` and ``cloud.demo_password``, or already hashed from
    ``cloud.bootstrap_ids["hash:admin"]`` and ``["hash:demo"]``; ids are left in ``bootstrap_ids`` for other services.
    """
    credential_keys.setup(cloud)
    tx.insert(REVISION, {"id": 1, "n": 1})
    _domain(tx)
    projects = {name: _project(tx, name, text) for name, text in PROJECTS.items()}
    roles = {name: _role(tx, name) for name in ROLES}
    for prior, implied in IMPLICATIONS:
        tx.insert(IMPLIED, {"prior_id": roles[prior], "implied_id": roles[implied]})
    admin = _user(cloud, tx, "admin", cloud.admin_password)
    demo = _user(cloud, tx, "demo", cloud.demo_password)
    for target in (("project", projects["admin"]), ("system", assignments.SYSTEM), ("domain", DEFAULT_DOMAIN)):
        assignments.grant(tx, ("user", admin), target, roles["admin"])
    assignments.grant(tx, ("user", demo), ("project", projects["demo"]), roles["member"])
    cloud.bootstrap_ids |= {f"project:{name}": id for name, id in projects.items()}
    cloud.bootstrap_ids |= {"user:admin": admin, "user:demo": demo}
    _catalogue(cloud, tx)


# --- making them again ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What :func:`repair` makes sure of. ``password`` is a hash; None leaves an existing user's as it is."""

    password: str | None = None
    user: str = "admin"
    project: str = "admin"
    role: str = "admin"
    service: str = "keystone"
    region: str = ""
    urls: Mapping[str, str] = field(default_factory=dict)  # interface to URL; missing ones as they are, or our own


class NeedsPassword(Exception):
    """The user is not there yet and was given no password."""


def repair(cloud: Cloud, tx: Tx, wanted: Wanted) -> list[str]:
    """Make sure that somebody can administer this cloud and find it; returns what was done, a sentence each.

    The default domain, the roles with what they imply, user and project, the role on the project and on the system,
    region, service and endpoints of Identity: made when missing, enabled when disabled, else left alone. May be
    repeated. Raises :class:`NeedsPassword`.
    """
    done: list[str] = []
    if tx.scalar(sa.select(REVISION.c.n)) is None:
        tx.insert(REVISION, {"id": 1, "n": 1})
    _repair_domain(tx, done)
    roles = _repair_roles(tx, wanted.role, done)
    project = _repair_project(tx, wanted.project, done)
    user = _repair_user(cloud, tx, wanted, done)
    for kind, id, what in (("project", project, f"project {wanted.project}"), ("system", assignments.SYSTEM, "system")):
        if not assignments.has(tx, ("user", user), (kind, id), roles[wanted.role]):
            assignments.grant(tx, ("user", user), (kind, id), roles[wanted.role])
            done.append(f"granted role {wanted.role} to user {wanted.user} on {what}")
    _repair_catalogue(cloud, tx, wanted, done)
    bump(cloud, tx)
    return done


def _repair_domain(tx: Tx, done: list[str]) -> None:
    row = tx.one(sa.select(_P).where(_P.c.id == DEFAULT_DOMAIN))
    if row is None:
        _domain(tx)
        done.append("created domain Default")
    elif not row["enabled"]:
        tx.execute(sa.update(_P).where(_P.c.id == DEFAULT_DOMAIN).values(enabled=True))
        done.append(f"enabled domain {row['name']}")


def _repair_roles(tx: Tx, extra: str, done: list[str]) -> dict[str, str]:
    rows = tx.all(sa.select(_R.c.name, _R.c.id).where(_R.c.domain_id == ""))
    roles: dict[str, str] = {r["name"]: r["id"] for r in rows}
    for name in dict.fromkeys((*ROLES, extra)):
        if name not in roles:
            roles[name] = _role(tx, name)
            done.append(f"created role {name}")
    known = set(tx.rows(sa.select(IMPLIED.c.prior_id, IMPLIED.c.implied_id)))
    for prior, implied in IMPLICATIONS:
        if (roles[prior], roles[implied]) not in known:
            tx.insert(IMPLIED, {"prior_id": roles[prior], "implied_id": roles[implied]})
            done.append(f"role {prior} implies {implied}")
    return roles


def _repair_project(tx: Tx, name: str, done: list[str]) -> str:
    here = (_P.c.name == name, _P.c.domain_id == DEFAULT_DOMAIN, _P.c.is_domain.is_(False))
    row = tx.one(sa.select(_P).where(*here))
    if row is None:
        done.append(f"created project {name}")
        return _project(tx, name, PROJECTS.get(name, ""))
    if not row["enabled"]:
        tx.execute(sa.update(_P).where(_P.c.id == row["id"]).values(enabled=True))
        done.append(f"enabled project {name}")
    id: str = row["id"]
    return id


def _repair_user(cloud: Cloud, tx: Tx, wanted: Wanted, done: list[str]) -> str:
    row = tx.one(sa.select(_U).where(_U.c.name == wanted.user, _U.c.domain_id == DEFAULT_DOMAIN))
    if row is None:
        if wanted.password is None:
            raise NeedsPassword(wanted.user)
        done.append(f"created user {wanted.user}")
        return _user(cloud, tx, wanted.user, hashed=wanted.password)
    values: dict[str, Any] = {}
    if wanted.password is not None:
        values |= {"password": wanted.password, "password_expires_at": None}
        done.append(f"set the password of user {wanted.user}; tokens made before no longer count")
        auth.revoke(cloud, tx, user_id=row["id"])
    if not row["enabled"]:
        values["enabled"] = True
        done.append(f"enabled user {wanted.user}")
    if values:
        tx.execute(sa.update(_U).where(_U.c.id == row["id"]).values(**values))
    if not compliance.usable(cloud, tx, row):  # locked after wrong passwords, or not here for too long
        compliance.note_enabled(cloud, tx, row["id"])
        done.append(f"unlocked user {wanted.user}")
    id: str = row["id"]
    return id


def _repair_catalogue(cloud: Cloud, tx: Tx, wanted: Wanted, done: list[str]) -> None:
    region = wanted.region or cloud.region
    if tx.scalar(sa.select(_G.c.id).where(_G.c.id == region)) is None:
        tx.insert(_G, {"id": region, "description": "", "parent_region_id": None, "extra": {}})
        done.append(f"created region {region}")
    for service in cloud.services:
        if service.type and (service.type == "identity" or not _has_service(tx, service.type)):
            urls = wanted.urls if service.type == "identity" else {}
            title = wanted.service if service.type == "identity" else service.title
            _repair_service(tx, service, title, region, urls, done)


def _has_service(tx: Tx, type: str) -> bool:
    return tx.scalar(sa.select(_S.c.id).where(_S.c.type == type)) is not None


def _repair_service(
    tx: Tx, service: Service, title: str, region: str, urls: Mapping[str, str], done: list[str]
) -> None:
    row = tx.one(sa.select(_S).where(_S.c.type == service.type).order_by(_S.c.name != title, _S.c.id))
    if row is None:
        id = _service(tx, service.type, title)
        done.append(f"created service {title}")
    else:
        id = row["id"]
        if not row["enabled"]:
            tx.execute(sa.update(_S).where(_S.c.id == id).values(enabled=True))
            done.append(f"enabled service {row['name']}")
    for interface in INTERFACES:
        here = (_E.c.service_id == id, _E.c.interface == interface, _E.c.region_id == region)
        found = tx.one(sa.select(_E).where(*here).order_by(_E.c.id))
        url = urls.get(interface) or f"{BASE}{service.prefix}{service.catalog_path}"
        if found is None:
            _endpoint(tx, id, interface, region, url)
            done.append(f"created the {interface} endpoint of {title} in {region}")
        elif not found["enabled"] or (interface in urls and found["url"] != url):
            url = url if interface in urls else found["url"]
            tx.execute(sa.update(_E).where(_E.c.id == found["id"]).values(enabled=True, url=url))
            done.append(f"corrected the {interface} endpoint of {title} in {region}")
