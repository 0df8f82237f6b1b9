"""Audit: one CADF event for every authentication and every change, a JSON line each in ``DIR/log/audit.log`` (0600).

Event model: DMTF DSP0262 (CADF), with the action and resource names of OpenStack's Identity service. What a request
did is derived from its route, so that a new resource is audited without being told. Nothing of a request's body is
written but the names of authentication methods: no secret can get in. A line is one append to the file before the
answer is sent; the event of a request whose process is killed in between is lost. A full disk loses events, says so in
the log once, and refuses nobody.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from nubila.core.call import Call, Reply, StreamReply
    from nubila.core.cloud import Cloud
    from nubila.core.config import Settings
    from nubila.core.faults import Fault

log = logging.getLogger("nubila.audit")
EVENT = "http://schemas.dmtf.org/cloud/audit/1.0/event"
USER = "service/security/account/user"
TYPES = {
    "user": "data/security/account/user", "application_credential": "data/security/credential",
    "credential": "data/security/credential", "OS-TRUST:trust": "data/security/trust",
    "OS-OAUTH1:access_token": "data/security/credential", "OS-OAUTH1:request_token": "data/security/credential",
    "OS-OAUTH1:consumer": "data/security/account", "role_assignment": USER, "token": USER,
}  # fmt: skip
"""CADF types of resources; others are data/security/<name>."""
PREFIXED = {"consumer": "OS-OAUTH1:", "access_token": "OS-OAUTH1:", "request_token": "OS-OAUTH1:", "trust": "OS-TRUST:"}
CHECK_S = 1.0
_AGENT_MAX = 256


# --- what a route does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a request of one route means: resource, the operation by status, the path's names of ids."""

    resource: str
    operation: str  # created, updated, deleted, authenticate; "" = created, or updated when the answer is 200
    id: str = ""  # the path parameter with the resource's id, "" = in the answer
    extra: tuple[tuple[str, str], ...] = ()  # key of the event to path parameter, or to a word after "="


@lru_cache(maxsize=1024)
def plan(method: str, path: str) -> Plan | None:
    """The plan of a route; None when it changes nothing."""
    parts = path.strip("/").split("/")[1:]
    if _authenticates(method, parts):
        return Plan("user", "authenticate")
    if method not in ("POST", "PUT", "PATCH", "DELETE") or not parts:
        return None
    done = {"POST": "created", "PATCH": "updated", "DELETE": "deleted", "PUT": ""}[method]
    names = [(p, q[1:-1]) for p, q in pairwise(parts) if q[0] == "{" and p[0] != "{"]
    if parts == ["auth", "tokens"]:
        return Plan("token", "deleted")
    return _special(done, parts, names) or _plain(done, parts)


def _authenticates(method: str, parts: list[str]) -> bool:
    if method == "POST" and parts in (["auth", "tokens"], ["ec2tokens"], ["s3tokens"], ["OS-OAUTH2", "token"]):
        return True
    return "OS-FEDERATION" in parts and (parts[-1] == "auth" or "websso" in parts) and method in ("GET", "POST")


def _special(done: str, parts: list[str], names: list[tuple[str, str]]) -> Plan | None:
    """Routes that relate two things, or are a part of one."""
    known = dict(names)
    if "roles" in known and ("users" in known or "groups" in known):
        actor = "users" if "users" in known else "groups"
        target = next((t for t in ("projects", "domains") if t in known), "")
        inherited = "=true" if parts[-1] == "inherited_to_projects" else "=false"
        where = ((target[:-1], known[target]),) if target else (("system", "=all"),)
        extra = ((actor[:-1], known[actor]), *where, ("role", known["roles"]), ("inherited_to_projects", inherited))
        return Plan("role_assignment", done or "created", known[actor], extra)
    if parts[0] == "groups" and "users" in known:
        how = "=removed" if done == "deleted" else "=added"
        return Plan("group", "updated", known["groups"], (("user", known["users"]), ("actor_operation", how)))
    if parts[-1] == "password" and "users" in known:
        return Plan("user", "updated", known["users"])
    if "implies" in known:
        return Plan("implied_role", done or "created", known["roles"], (("implied_role", known["implies"]),))
    if "tags" in parts:
        return Plan("project", "updated", known["projects"])
    if "config" in parts:
        return Plan("domain_config", done, known["domains"])
    if "OS-ENDPOINT-POLICY" in parts:
        about = tuple((p[:-1], q) for p, q in names if p != "policies")
        return Plan("policy_association", done or "created", known.get("policies", ""), about)
    if "OS-EP-FILTER" in parts and "projects" in known and len(names) > 1:
        what = "endpoint_group" if "endpoint_groups" in known else "endpoint"
        return Plan(f"{what}_association", done or "created", known[what + "s"], (("project", known["projects"]),))
    if parts[-1] == "authorize" or ("OS-OAUTH1" in parts and "authorize" in parts):
        return Plan("OS-OAUTH1:request_token", "updated", names[-1][1] if names else "")
    return None


def _plain(done: str, parts: list[str]) -> Plan:
    last = [p for p in parts if p[0] != "{"][-1]
    name = "credential" if last == "OS-EC2" else last[:-3] + "y" if last.endswith("ies") else last.removesuffix("s")
    id = parts[-1][1:-1] if parts[-1][0] == "{" else ""
    return Plan(PREFIXED.get(name, "") + name, done, id)


# --- the event --------------------------------------------------------------------------------------------------------


class _Who(msgspec.Struct):
    id: str = ""


class _Token(msgspec.Struct):
    user: _Who = msgspec.field(default_factory=_Who)
    methods: list[str] = []


class _Tokens(msgspec.Struct):
    token: _Token = msgspec.field(default_factory=_Token)


_read_token = msgspec.json.Decoder(_Tokens).decode
_read_answer = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def observe(call: Call, answer: Reply | StreamReply, fault: Fault | None) -> None:
    """Write the event of one answered request, if it is one to be audited (what the edge calls for each)."""
    if call.route is None or (planned := plan(call.route.method, call.route.path)) is None:
        return
    settings = call.cloud.settings
    if not settings.audit:
        return
    outcome = _outcome(answer)
    failed = outcome != "success"
    operation = planned.operation or ("updated" if answer.status == 200 else "created")
    authenticates = operation == "authenticate"
    if _opted_out(settings.audit_opt_out, planned.resource, operation, outcome):
        return
    written, initiator = trail(call.cloud), _initiator(call)
    if authenticates:
        user, methods = _authenticated(call, answer, failed)
        initiator["id"] = user or initiator["id"]
        event = _event(written, "authenticate", outcome, initiator, {"typeURI": USER, "id": initiator["id"]})
        if methods:
            event["methods"] = methods
    else:
        id = call.params.get(planned.id, "") if planned.id else _made(answer, failed)
        target = {"typeURI": TYPES.get(planned.resource, f"data/security/{planned.resource}"), "id": id or "unknown"}
        event = _event(written, f"{operation}.{planned.resource}", outcome, initiator, target)
        if id:
            event["resource_info"] = id
        for key, param in planned.extra:
            event[key] = _word(param[1:]) if param[0] == "=" else call.params.get(param)
    if failed:
        event["reason"] = {"reasonCode": str(answer.status), "reasonType": _why(answer.status, fault)}
    written.write(event)


def record(state: Path, settings: Settings, operation: str, resource: str, id: str, **more: Any) -> None:
    """Write the event of something done without a request: by a command on this machine."""
    if not settings.audit or _opted_out(settings.audit_opt_out, resource, operation, "success"):
        return
    written = Trail(state / "log" / "audit.log", settings.name)
    host = {"address": "localhost", "agent": "nubila"}
    initiator = {"typeURI": USER, "id": f"os:uid:{os.getuid()}", "host": host}
    target = {"typeURI": TYPES.get(resource, f"data/security/{resource}"), "id": id}
    event = _event(written, f"{operation}.{resource}", "success", initiator, target)
    written.write({**event, "resource_info": id, **more})
    written.close()


def _outcome(answer: Reply | StreamReply) -> str:
    """CADF outcome; pending when one of several methods has been shown (the answer has a receipt)."""
    if answer.status < 400:
        return "success"
    return "pending" if any(name.lower() == "openstack-auth-receipt" for name in answer.headers) else "failure"


def _opted_out(names: tuple[str, ...], resource: str, operation: str, outcome: str) -> bool:
    """Names as in notification_opt_out: identity.user.created, identity.authenticate.success (pending, failed)."""
    if not names:
        return False
    if operation == "authenticate":
        return f"identity.authenticate.{'failed' if outcome == 'failure' else outcome}" in names
    return f"identity.{resource}.{operation}" in names


def _event(
    trail: Trail, action: str, outcome: str, initiator: Mapping[str, Any], target: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "typeURI": EVENT, "id": f"openstack:{uuid.uuid4()}", "eventType": "activity",
        "eventTime": datetime.now(UTC).isoformat(), "action": action, "outcome": outcome,
        "initiator": initiator, "target": target,
        "observer": {"typeURI": "service/security", "id": trail.observer, "name": trail.cloud},
    }  # fmt: skip


def _initiator(call: Call) -> dict[str, Any]:
    host = {"address": call.peer}
    if agent := call.headers.get("user-agent"):
        host["agent"] = agent[:_AGENT_MAX]
    out: dict[str, Any] = {"typeURI": USER, "id": "unknown", "host": host, "request_id": call.request_id}
    if wider := call.headers.get("x-openstack-request-id"):
        out["global_request_id"] = wider[:64]
    creds = call.creds
    if creds is not None:
        out["id"] = out["user_id"] = creds.user_id
        told = {"username": creds.user_name, "project_id": creds.project_id, "domain_id": creds.domain_id,
                "system_scope": creds.system_scope}  # fmt: skip
        if creds.token is not None:
            told |= {"application_credential_id": creds.token.app_cred_id, "trust_id": creds.token.trust_id}
        out |= {k: v for k, v in told.items() if v}
    return out


def _authenticated(call: Call, answer: Reply | StreamReply, failed: bool) -> tuple[str, list[str]]:
    """Who it was, or whose name was used; by which methods. The answer is read only when the request does not tell."""
    user = call.memo.get("audit.user")
    if user is None and not failed:
        try:
            body = getattr(answer, "body", None)
            token = (_read_token(body) if isinstance(body, bytes) else msgspec.convert(body, _Tokens)).token
            return token.user.id, token.methods
        except (msgspec.MsgspecError, TypeError):
            return "", []
    asked: Any = call.body
    for name in ("auth", "identity", "methods"):
        asked = asked.get(name) if isinstance(asked, dict) else None
    methods = [m for m in asked[:8] if isinstance(m, str) and len(m) <= 32] if isinstance(asked, list) else []
    return str(user or ""), methods


def _made(answer: Reply | StreamReply, failed: bool) -> str:
    """The id in the answer to a creation."""
    body = getattr(answer, "body", None)
    if failed or not body:
        return ""
    try:
        found = _read_answer(body) if isinstance(body, bytes) else body
    except msgspec.MsgspecError:
        return ""
    for inner in found.values() if isinstance(found, dict) else ():
        if isinstance(inner, dict) and "id" in inner:
            return str(inner["id"])
        if isinstance(inner, dict) and "access" in inner:  # EC2 credentials have no other
            return str(inner["access"])
        if isinstance(inner, list):
            return ",".join(str(i["id"]) for i in inner if isinstance(i, dict) and "id" in i)
    return ""


def _why(status: int, fault: Fault | None) -> str:
    """What kind of refusal it was; its text may quote what was sent, so it stays out."""
    return (fault.type if fault is not None else "") or {401: "Unauthorized", 403: "Forbidden"}.get(status, "HTTP")


def _word(text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


# --- the file ---------------------------------------------------------------------------------------------------------


class Trail:
    """The file of one process; follows it when it is rotated. Several processes append whole lines to it."""

    def __init__(self, path: Path, cloud: str) -> None:
        self.path, self.cloud = path, cloud
        self.observer = f"openstack:{uuid.uuid5(uuid.NAMESPACE_URL, f'nubila:{cloud}')}"
        self._fd = -1
        self._seen: tuple[int, int] = (0, 0)
        self._next = 0.0
        self._failed = False

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event; what goes wrong is logged once."""
        try:
            self._follow()
            os.write(self._fd, _encode(event) + b"\n")
            self._failed = False
        except OSError as e:
            if not self._failed:
                log.error("audit events are lost: %s cannot be written: %s", self.path, e.strerror)
            self._failed = True
            self._next = 0.0

    def close(self) -> None:
        """Let go of the file; a later event opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self) -> None:
        now = time.monotonic()
        if self._fd >= 0 and now < self._next:
            return
        self._next = now + CHECK_S
        try:
            found = os.stat(self.path)
            same = (found.st_dev, found.st_ino) == self._seen
        except FileNotFoundError:
            same = False
        if self._fd >= 0 and same:
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        made = os.fstat(fd)
        self._fd, self._seen = fd, (made.st_dev, made.st_ino)


def trail(cloud: Cloud) -> Trail:
    """This process's end of the cloud's audit log."""
    found: Trail | None = cloud.memory.get("identity.audit")
    if found is None:
        made = Trail(cloud.state / "log" / "audit.log", cloud.name)
        found = cloud.memory.setdefault("identity.audit", made)
    return found
