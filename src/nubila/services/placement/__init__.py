"""Placement: who has how much of what, and who uses it."""

from __future__ import annotations

from nubila.core.call import Call, Reply, Route
from nubila.core.gates import Version, show
from nubila.core.service import Service
from nubila.services.placement import allocations, candidates, invariants, names, providers
from nubila.services.placement.kinds import ResourceProvider
from nubila.services.placement.policies import RULES
from nubila.services.placement.wire import answer

LOWEST: Version = (1, 0)
HIGHEST: Version = (1, 39)


def root(call: Call) -> Reply:
    """Show the version of the Placement API."""
    return answer(
        call,
        {
            "versions": [
                {
                    "id": f"v{show(LOWEST)}",
                    "min_version": show(LOWEST),
                    "max_version": show(HIGHEST),
                    "status": "CURRENT",
                    "links": [{"rel": "self", "href": ""}],
                }
            ]
        },
    )


SERVICE = Service(
    name="placement",
    type="placement",
    title="placement",
    prefix="/placement",
    classic_port=8778,
    kinds=(ResourceProvider,),
    routes=(
        Route(method="GET", path="/", handler=root, doc="Show the version of the Placement API.", tx="", auth=False),
        *providers.ROUTES,
        *names.ROUTES,
        *allocations.ROUTES,
        *candidates.ROUTES,
    ),
    rules=RULES,
    invariants=invariants.INVARIANTS,
    versions=(LOWEST, HIGHEST),
    version_headers=("openstack-api-version",),
    version_word="placement",
)
