"""RBAC policies of the Networking API v2.0: who besides its owner may use a thing."""

from __future__ import annotations

from nubila.core import clock
from nubila.core.declare import Attr, Resource
from nubila.core.types import Str, Type, Uuid
from nubila.services.network.kinds import OwnerId, rest

TARGET_RULE = "rule:admin_only or (not field:rbac_policy:target_tenant=* and not field:rbac_policy:target_project=*)"
ObjectType = Type(Str(64).sql, {"type": "string", "maxLength": 64}, load=lambda v: str(v).strip().lower())


class RbacPolicy(Resource):
    """Lets a project, or every project, use one network, subnet pool, security group or the like."""

    kind, service, quota = "rbac_policy", "network", "rbac_policy"
    rest = rest("rbac_policy", "rbac_policies", bulk=False)
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    project_id = Attr(OwnerId, "Project that owns the policy.", alias=("tenant_id",), write="c", default="",
                      filter="eq", sort=True, index=True)  # fmt: skip
    object_type = Attr(ObjectType, "Kind of the thing: network, subnetpool ...", write="c", filter="eq", sort=True)
    object_id = Attr(Uuid, "The thing.", write="c", filter="eq", sort=True)
    action = Attr(Str(255), "access_as_shared or access_as_external.", write="c", filter="eq", sort=True)
    target = Attr(Str(255), "The project that may use it; * = every project.", api="target_tenant", write="cu",
                  set=TARGET_RULE, filter="eq", sort=True)  # fmt: skip
    unique = (("object_id", "action", "target"),)
    indexes = (("target", "action"),)
