"""Placement's published policy rule names with today's defaults."""

from __future__ import annotations

from nubila.core.policy import Rule

ADMIN_OR_SERVICE = "rule:admin_or_service_api"
READER = "rule:admin_or_project_reader_or_service_api"

_TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("resource_providers:list", "GET", "/resource_providers", ADMIN_OR_SERVICE),
    ("resource_providers:create", "POST", "/resource_providers", ADMIN_OR_SERVICE),
    ("resource_providers:show", "GET", "/resource_providers/{uuid}", ADMIN_OR_SERVICE),
    ("resource_providers:update", "PUT", "/resource_providers/{uuid}", ADMIN_OR_SERVICE),
    ("resource_providers:delete", "DELETE", "/resource_providers/{uuid}", ADMIN_OR_SERVICE),
    ("resource_providers:inventories:list", "GET", "/resource_providers/{uuid}/inventories", ADMIN_OR_SERVICE),
    ("resource_providers:inventories:create", "POST", "/resource_providers/{uuid}/inventories", ADMIN_OR_SERVICE),
    ("resource_providers:inventories:show", "GET", "/resource_providers/{uuid}/inventories/{resource_class}",
     ADMIN_OR_SERVICE),
    ("resource_providers:inventories:update", "PUT", "/resource_providers/{uuid}/inventories", ADMIN_OR_SERVICE),
    ("resource_providers:inventories:delete", "DELETE", "/resource_providers/{uuid}/inventories", ADMIN_OR_SERVICE),
    ("resource_providers:usages", "GET", "/resource_providers/{uuid}/usages", ADMIN_OR_SERVICE),
    ("resource_providers:allocations:list", "GET", "/resource_providers/{uuid}/allocations", ADMIN_OR_SERVICE),
    ("resource_providers:aggregates:list", "GET", "/resource_providers/{uuid}/aggregates", ADMIN_OR_SERVICE),
    ("resource_providers:aggregates:update", "PUT", "/resource_providers/{uuid}/aggregates", ADMIN_OR_SERVICE),
    ("resource_providers:traits:list", "GET", "/resource_providers/{uuid}/traits", ADMIN_OR_SERVICE),
    ("resource_providers:traits:update", "PUT", "/resource_providers/{uuid}/traits", ADMIN_OR_SERVICE),
    ("resource_providers:traits:delete", "DELETE", "/resource_providers/{uuid}/traits", ADMIN_OR_SERVICE),
    ("resource_classes:list", "GET", "/resource_classes", ADMIN_OR_SERVICE),
    ("resource_classes:create", "POST", "/resource_classes", ADMIN_OR_SERVICE),
    ("resource_classes:show", "GET", "/resource_classes/{name}", ADMIN_OR_SERVICE),
    ("resource_classes:update", "PUT", "/resource_classes/{name}", ADMIN_OR_SERVICE),
    ("resource_classes:delete", "DELETE", "/resource_classes/{name}", ADMIN_OR_SERVICE),
    ("traits:list", "GET", "/traits", ADMIN_OR_SERVICE),
    ("traits:show", "GET", "/traits/{name}", ADMIN_OR_SERVICE),
    ("traits:update", "PUT", "/traits/{name}", ADMIN_OR_SERVICE),
    ("traits:delete", "DELETE", "/traits/{name}", ADMIN_OR_SERVICE),
    ("allocations:manage", "POST", "/allocations", ADMIN_OR_SERVICE),
    ("allocations:list", "GET", "/allocations/{consumer_uuid}", ADMIN_OR_SERVICE),
    ("allocations:update", "PUT", "/allocations/{consumer_uuid}", ADMIN_OR_SERVICE),
    ("allocations:delete", "DELETE", "/allocations/{consumer_uuid}", ADMIN_OR_SERVICE),
    ("allocation_candidates:list", "GET", "/allocation_candidates", ADMIN_OR_SERVICE),
    ("usages", "GET", "/usages", READER),
    ("reshaper:reshape", "POST", "/reshaper", "rule:service_api"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule("admin_api", "role:admin", "Administrators.", scopes=("project",)),
    Rule("service_api", "role:service", "Other services.", scopes=("project",)),
    Rule(
        "admin_or_service_api", "role:admin or role:service", "Administrators and other services.", scopes=("project",)
    ),
    Rule("project_reader_api", "role:reader and project_id:%(project_id)s", "Readers of the project."),
    Rule(
        "admin_or_project_reader_or_service_api",
        "role:admin or rule:project_reader_api or role:service",
        "Administrators, readers of the project and other services.",
        scopes=("project",),
    ),
    *(
        Rule(f"placement:{name}", text, f"{method} {path}.", ((method, path),), ("project",))
        for name, method, path, text in _TABLE
    ),
)
