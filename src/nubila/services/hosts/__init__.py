"""The machines of the cloud: the host API their agents speak, join tokens, questions to hosts."""

from __future__ import annotations

from nubila.core.service import Service
from nubila.services.hosts import queries
from nubila.services.hosts.api import ROUTES

SERVICE = Service(
    name="hosts",
    type="",  # not in the catalogue
    title="hosts",
    prefix="/host",
    classic_port=0,
    routes=ROUTES,
    host_items={"query": queries.ITEM},
)
