"""Version documents and the extensions list."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from nubila.core.call import Call, Route
from nubila.core.faults import Fault
from nubila.core.gates import Version, show
from nubila.services.compute.wire import Row

LOWEST: Version = (2, 1)
HIGHEST: Version = (2, 100)
_MEDIA = [{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]


def _document(call: Call) -> Row:
    return {
        "id": "v2.1", "status": "CURRENT", "version": show(HIGHEST), "min_version": show(LOWEST),
        "updated": "2013-07-23T11:33:21Z", "links": [{"rel": "self", "href": f"{call.base}/v2.1/"}],
    }  # fmt: skip


def _old(call: Call) -> Row:
    return {
        "id": "v2.0", "status": "DEPRECATED", "version": "", "min_version": "", "updated": "2025-07-04T12:00:00Z",
        "links": [{"rel": "self", "href": f"{call.base}/v2/"}],
    }  # fmt: skip


def versions(call: Call) -> Row:
    """List the versions of the Compute API."""
    return {"versions": [_old(call), _document(call)]}


def old_version(call: Call) -> Row:
    """Show the version 2.0 of the Compute API: 2.1 without microversions."""
    return {"version": {**_old(call), "media-types": [{**_MEDIA[0], "type": _MEDIA[0]["type"].replace("2.1", "2")}]}}


def without_microversions(route: Route) -> Route:
    """The same route under /v2: whatever version is asked for, it is 2.1."""

    def handler(call: Call) -> Any:
        call.version = LOWEST
        return route.handler(call)

    async def later(call: Call) -> Any:
        call.version = LOWEST
        return await route.handler(call)  # type: ignore[misc]  # chosen only for coroutine functions

    chosen = later if inspect.iscoroutinefunction(route.handler) else handler
    return replace(route, path=route.path.replace("/v2.1", "/v2", 1), handler=chosen)


def version(call: Call) -> Row:
    """Show the version 2.1 of the Compute API."""
    it = _document(call)
    it["links"].append(
        {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/api-ref/compute/"}
    )
    return {"version": {**it, "media-types": _MEDIA}}


_EXTENSIONS = {
    "os-aggregates": "Aggregates", "os-attach-interfaces": "AttachInterfaces",
    "os-availability-zone": "AvailabilityZone", "os-config-drive": "ConfigDrive", "os-console-output": "ConsoleOutput",
    "os-extended-availability-zone": "ExtendedAvailabilityZone",
    "os-extended-server-attributes": "ExtendedServerAttributes", "os-extended-status": "ExtendedStatus",
    "os-flavor-access": "FlavorAccess", "os-flavor-extra-specs": "FlavorExtraSpecs", "os-flavor-manage": "FlavorManage",
    "flavors": "Flavors", "os-hosts": "Hosts",
    "os-hypervisors": "Hypervisors", "os-instance-actions": "InstanceActions", "ips": "Ips",
    "os-keypairs": "Keypairs", "limits": "Limits", "os-lock-server": "LockServer",
    "os-quota-class-sets": "QuotaClasses",
    "os-quota-sets": "Quotas", "os-scheduler-hints": "SchedulerHints", "os-security-groups": "SecurityGroups",
    "os-server-groups": "ServerGroups", "server-metadata": "ServerMetadata", "os-server-password": "ServerPassword",
    "os-server-start-stop": "ServerStartStop", "servers": "Servers", "os-services": "Services",
    "os-simple-tenant-usage": "SimpleTenantUsage", "os-used-limits": "UsedLimits", "os-user-data": "UserData",
    "versions": "Versions",
}  # fmt: skip


def _extension(alias: str) -> Row:
    return {
        "alias": alias, "name": _EXTENSIONS[alias], "description": f"{_EXTENSIONS[alias]} of this cloud.", "links": [],
        "namespace": "http://docs.openstack.org/compute/ext/fake_xml", "updated": "2014-12-03T00:00:00Z",
    }  # fmt: skip


def extensions(call: Call) -> Row:
    """List what this API offers beyond its core, as clients of old ask."""
    return {"extensions": [_extension(alias) for alias in sorted(_EXTENSIONS)]}


def extension(call: Call) -> Row:
    """Show one extension."""
    if call.params["alias"] not in _EXTENSIONS:
        raise Fault(404, f"Extension {call.params['alias']} could not be found.")
    return {"extension": _extension(call.params["alias"])}


ROUTES = (
    Route(method="GET", path="/", handler=versions, doc="List the versions of the Compute API.", tx="", auth=False),
    Route(method="GET", path="/v2", handler=old_version, doc="Show version 2.0 of the Compute API.", tx="", auth=False),
    Route(method="GET", path="/v2.1", handler=version, doc="Show version 2.1 of the Compute API.", tx="", auth=False),
    Route(method="GET", path="/v2.1/extensions", handler=extensions, doc="List extensions.", tx="",
          rule="os_compute_api:extensions"),
    Route(method="GET", path="/v2.1/extensions/{alias}", handler=extension, doc="Show an extension.", tx="",
          rule="os_compute_api:extensions"),
)  # fmt: skip
