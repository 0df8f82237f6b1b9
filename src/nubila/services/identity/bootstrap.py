"""What Identity holds in a new cloud: the default domain, first projects and users, roles, the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nubila.core import clock
from nubila.services.identity import assignments, credential_keys
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

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Tx

ROLES = ("admin", "manager", "member", "reader", "service", "ResellerAdmin")
IMMUTABLE = ("admin", "manager", "member", "reader")
IMPLICATIONS = (("admin", "manager"), ("manager", "member"), ("member", "reader"))
PROJECTS = {
    "admin": "For the cloud's administrators.",
    "demo": "To try things out.",
    "service": "For users that are services.",
}


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


def _user(cloud: Cloud, tx: Tx, name: str, password: str, **extra: Any) -> str:
    id = clock.new_hex()
    hashed = cloud.bootstrap_ids.get(f"hash:{name}") or hashing(cloud).hash(password)
    tx.insert(
        User.table,
        {
            "id": id, "name": name, "domain_id": DEFAULT_DOMAIN, "enabled": True, "default_project_id": None,
            "options": {}, "password_expires_at": None, "password": hashed, "created_at": clock.now(), "extra": extra,
        },
    )  # fmt: skip
    return id


def _catalogue(cloud: Cloud, tx: Tx) -> None:
    tx.insert(
        Region.table, {"id": cloud.region, "description": "", "parent_region_id": None, "extra": {}}
    )  # fmt: skip
    for service in cloud.services:
        if not service.type:
            continue
        id = clock.new_hex()
        tx.insert(
            CatalogService.table,
            {"id": id, "type": service.type, "name": service.title, "enabled": True, "extra": {}},
        )
        for interface in INTERFACES:
            tx.insert(
                Endpoint.table,
                {
                    "id": clock.new_hex(), "interface": interface, "service_id": id, "region_id": cloud.region,
                    "url": f"{BASE}{service.prefix}{service.catalog_path}", "enabled": True, "name": None, "extra": {},
                },
            )  # fmt: skip


def bootstrap(cloud: Cloud, tx: Tx) -> None:
    """Fill an empty database, in the transaction of the first start.

    Passwords come from ``cloud.admin_password`` and ``cloud.demo_password``, or already hashed from
    ``cloud.bootstrap_ids["hash:admin"]`` and ``["hash:demo"]``; ids are left in ``bootstrap_ids`` for other services.
    """
    credential_keys.setup(cloud)
    tx.insert(REVISION, {"id": 1, "n": 1})
    tx.insert(
        Project.table,
        {
            "id": DEFAULT_DOMAIN, "name": "Default", "domain_id": "", "parent_id": "", "is_domain": True,
            "enabled": True, "description": "The default domain", "options": {}, "extra": {},
        },
    )  # fmt: skip
    projects = {name: _project(tx, name, text) for name, text in PROJECTS.items()}
    roles = {}
    for name in ROLES:
        roles[name] = clock.new_hex()
        options = {"immutable": True} if name in IMMUTABLE else {}
        tx.insert(Role.table, {"id": roles[name], "name": name, "domain_id": "", "options": options, "extra": {}})
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
