"""A tiny service of the tests' own: every feature of a declaration once, and an edge that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from nubila.apps import wiring
from nubila.core import clock
from nubila.core.call import Call, Reply, Route
from nubila.core.cloud import Cloud
from nubila.core.declare import Attr, Resource, Rest
from nubila.core.faults import Fault, unauthorized
from nubila.core.gates import since, until
from nubila.core.policy import Rule
from nubila.core.service import Service
from nubila.core.tokens import Creds
from nubila.core.types import Bool, Enum, Float, Int, Json, List, LooseBool, LooseInt, Mac, Map, Str, Time, Uuid
from nubila.edge.app import Edge
from nubila.testing.cloud import Response, call_app

ADMIN = "role:admin"
OWNER = "role:admin or project_id:%(project_id)s"
RULES = {v: f"tiny:{v}" for v in ("list", "show", "create", "update", "delete")}


class Thing(Resource):
    """Something with an attribute of every type."""

    kind, service, quota = "tiny_thing", "tiny", "thing"
    rest = Rest(path="/v1/things", item="thing", items="things", rules=RULES, bulk=True, attr_rules=True, max_limit=50)
    unique = (("project_id", "name"),)
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    project_id = Attr(Str(64), "Owner.", alias=("tenant_id",), write="c", default="", filter="eq", sort=True)
    name = Attr(Str(60, lo=1), "Name.", write="cu", filter="eq in like startswith", sort=True)
    size = Attr(Int(1, 100), "Size.", write="cu", default=1, filter="eq ge le", sort=True)
    loose = Attr(LooseInt(0, 9), "A number or its text.", write="cu", default=0, filter="eq", sort=True)
    weight = Attr(Float(), "Weight.", write="cu", null=True, default=None, filter="eq", sort=True)
    on = Attr(Bool, "Switch.", write="cu", default=True, filter="eq", sort=True)
    shared = Attr(LooseBool, "Switch of the operator.", write="cu", default=False, set=ADMIN, filter="eq")
    colour = Attr(Enum("red", "green"), "Colour.", write="c", null=True, default=None, filter="eq in", sort=True)
    mac = Attr(Mac, "Address.", write="c", null=True, default=None, filter="eq")
    labels = Attr(List(Str(10), unique=True), "Labels.", write="cu", default=[])
    notes = Attr(Map(), "Free pairs.", write="cu", default={})
    anything = Attr(Json, "Any JSON.", write="cu", null=True, default=None)
    secret = Attr(Str(20), "For the operator's eyes.", default="s", see=ADMIN)
    hidden = Attr(Str(20), "For nobody's eyes.", default="h", hidden=True)
    late = Attr(Str(20), "Came with 1.5.", write="cu", null=True, default=None, show=since(1, 5), take=since(1, 5))
    early = Attr(Str(20), "Went with 1.5.", write="c", null=True, default=None, show=until(1, 5), take=until(1, 5))
    created_at = Attr(Time, "When it was made.", default=clock.now, sort=True)
    updated_at = Attr(Time, "When it was changed.", default=clock.now, sort=True)
    revision_number = Attr(Int(), "Grows with every change.", default=0)


def shout(call: Call) -> Mapping[str, Any]:
    """Answer in capitals."""
    return {"said": call.body["text"].upper()}


def fail(call: Call) -> Reply:
    """What the query says goes wrong."""
    word = call.arg("how")
    if word == "odd":
        return Reply({"n": "\ud800 cannot be JSON"})
    if word == "fault":
        raise Fault(418, "I am a teapot.", headers={"X-Tea": "green"})
    raise RuntimeError("planted")


TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
SERVICE = Service(
    name="tiny", type="tiny", title="tiny", prefix="/tiny", classic_port=0, kinds=(Thing,),
    rules=[
        Rule("tiny:list", OWNER, "List things.", (("GET", "/v1/things"),)),
        Rule("tiny:show", OWNER, "Show a thing.", (("GET", "/v1/things/{id}"),)),
        Rule("tiny:create", OWNER, "Create a thing.", (("POST", "/v1/things"),)),
        Rule("tiny:update", OWNER, "Update a thing.", (("PUT", "/v1/things/{id}"),)),
        Rule("tiny:delete", OWNER, "Delete a thing.", (("DELETE", "/v1/things/{id}"),)),
    ],
    routes=[
        Route(method="POST", path="/v1/shout", handler=shout, doc="Say it in capitals.", schema=TEXT, tx=""),
        Route(method="GET", path="/v1/fail", handler=fail, doc="Fail.", tx="", auth=False),
        Route(method="GET", path="/v1/new", handler=lambda c: {}, doc="Came with 1.5.", tx="", gate=since(1, 5)),
    ],
    quotas={"thing": 500}, versions=((1, 0), (1, 9)), version_headers=("openstack-api-version",), version_word="tiny",
)  # fmt: skip


def authenticate(cloud: Cloud, token: str) -> Creds:
    """A token is ``PROJECT:ROLE``."""
    project, colon, role = token.partition(":")
    if not colon:
        raise unauthorized()
    return Creds(user_id=f"user-{project}", project_id=project, roles=(role,))


class Tiny:
    """The tiny service behind an edge, on a database of its own."""

    def __init__(self, state: Path, **settings: Any) -> None:
        found = replace(wiring.settings(state), **settings)
        self.cloud = wiring.open_cloud(state, found, wired=(SERVICE,))
        self.edge = Edge(self.cloud, authenticate)

    def request(
        self, method: str, path: str, json: Any = None, *, token: str = "p1:member", body: bytes | None = None,
        headers: Mapping[str, str] | None = None, version: str = "",
    ) -> Response:  # fmt: skip
        """One request below /tiny."""
        sent = dict(headers or {})
        if token:
            sent["x-auth-token"] = token
        if version:
            sent["openstack-api-version"] = f"tiny {version}"
        data = body if body is not None else b"" if json is None else msgspec.json.encode(json)
        return call_app(self.edge, method, "/tiny" + path, body=data, headers=sent)

    def thing(self, token: str = "p1:member", **values: Any) -> dict[str, Any]:
        """Make one."""
        got = self.request("POST", "/v1/things", {"thing": {"name": clock.new_id(), **values}}, token=token)
        assert got.status == 201, got.body
        made: dict[str, Any] = got.json["thing"]
        return made

    def close(self) -> None:
        """Close the database."""
        self.cloud.store.close()
