"""What every Compute handler needs of the wire: checked bodies, links, pages, who the caller is."""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from nubila.core import checks, clock
from nubila.core.call import Call
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import Version

Row = dict[str, Any]
MAX_LIMIT = 1000

# JSON Schemas of values that many bodies hold. \S at both ends: no leading or trailing blanks.
NAME = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^\S(?:[^\x00-\x1f\x7f]*\S)?$"}
TEXT = {"type": ["string", "null"], "maxLength": 255}
BOOL = {
    "enum": [True, False, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t",
             "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"],
}  # fmt: skip
METADATA = {
    "type": "object",
    "patternProperties": {r"^[a-zA-Z0-9_:. -]{1,255}$": {"type": "string", "maxLength": 255}},
    "additionalProperties": False,
}
TAG = {"type": "string", "minLength": 1, "maxLength": 60, "pattern": "^[^,/]*$"}
UUID = {"type": "string", "pattern": "^[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"}
IP = {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
FQDN = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9._-]*$"}
HOSTNAME = {"type": "string", "minLength": 2, "maxLength": 63, "pattern": "^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$"}


def whole(lo: int, hi: int = 2**31 - 1) -> dict[str, Any]:
    """A whole number, also spelled as text."""
    return {
        "anyOf": [{"type": "integer", "minimum": lo, "maximum": hi}, {"type": "string", "pattern": "^[0-9]{1,10}$"}]
    }


def obj(properties: Mapping[str, Any], required: Sequence[str] = (), *, extra: bool = False) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": extra,
    }


Schema = Callable[[Version], Mapping[str, Any]]


@functools.lru_cache(maxsize=512)
def _checker(schema: Schema, version: Version) -> checks.Checker:
    return checks.checker(schema(version))


def body(call: Call, schema: Mapping[str, Any] | Schema) -> dict[str, Any]:
    """The request's body, checked; ``schema`` may depend on the version. Raises a 400 that names the field."""
    if not isinstance(call.body, dict):
        raise bad_request("The request needs a body that is a JSON object.")
    check = _checker(schema, call.version) if callable(schema) else _fixed(json.dumps(schema, sort_keys=True))
    check(call.body)
    return call.body


@functools.lru_cache(maxsize=512)
def _fixed(text: str) -> checks.Checker:
    return checks.checker(json.loads(text))


def number(value: Any, name: str, lo: int, hi: int = 2**31 - 1) -> int:
    """A checked whole number out of an int or text. Raises a 400 naming the field."""
    try:
        n = int(value)
    except (TypeError, ValueError):
        n = lo - 1
    if not lo <= n <= hi:
        raise bad_request(f"Invalid input for field/attribute {name}: {value!r} is not between {lo} and {hi}.")
    return n


def root(call: Call) -> str:
    """The service's URL without version."""
    return call.base


def links(call: Call, collection: str, id: str) -> list[Row]:
    """Self and bookmark links of one thing."""
    return [
        {"rel": "self", "href": f"{call.base}/v2.1/{collection}/{id}"},
        {"rel": "bookmark", "href": f"{call.base}/{collection}/{id}"},
    ]


def bookmark(call: Call, collection: str, id: str) -> list[Row]:
    """The bookmark link alone."""
    return [{"rel": "bookmark", "href": f"{call.base}/{collection}/{id}"}]


def limit_and_marker(call: Call) -> tuple[int, str | None]:
    """The page asked for. Raises 400 for a limit that is not a number of zero or more."""
    text = call.arg("limit")
    limit = MAX_LIMIT if text is None else number(text, "limit", 0)
    return min(limit, MAX_LIMIT), call.arg("marker")


def next_link(call: Call, path: str, rows: Sequence[Row], limit: int, key: str = "id") -> list[Row]:
    """The link to the next page when this one is full, else an empty list."""
    if not rows or len(rows) < limit:
        return []
    query = [(k, v) for k, v in call.query if k != "marker"] + [("marker", str(rows[-1][key]))]
    return [{"rel": "next", "href": f"{call.base}/v2.1{path}?{urlencode(query)}"}]


def known_query(call: Call, known: Iterable[str], since: Version = (2, 75)) -> None:
    """Refuse unknown query keys in versions that do so."""
    if call.version < since:
        return
    names = set(known)
    for key, _ in call.query:
        if key not in names:
            raise bad_request(f"Additional properties are not allowed in the query: '{key}' was unexpected.")


def allowed(call: Call, rule: str, target: Mapping[str, Any] | None = None) -> bool:
    """Whether policy allows; remembered for rules that look at no target."""
    if target is not None:
        return call.may(rule, target)
    memo = call.memo
    if rule not in memo:
        memo[rule] = call.may(rule, {"project_id": call.creds.project_id, "user_id": call.creds.user_id})
    return bool(memo[rule])


def is_admin(call: Call) -> bool:
    """Whether the caller is an administrator of Compute."""
    memo = call.memo
    if "is_admin" not in memo:
        memo["is_admin"] = call.cloud.policy.enforce("context_is_admin", call.creds, {}, "compute")
    return bool(memo["is_admin"])


def mine(call: Call) -> Row:
    """The policy target of something the caller is about to own."""
    return {"project_id": call.creds.project_id, "user_id": call.creds.user_id}


def project_of(call: Call) -> str:
    """The caller's project. Raises 403 for a token without one."""
    if call.creds.project_id is None:
        raise Fault(403, "This needs a token scoped to a project.")
    return str(call.creds.project_id)


def plain(text: str | None) -> str | None:
    """A time as the parts of the API show it that never learned the Z: 2026-11-21T09:40:00.000000."""
    return None if text is None else text[:26]


def address(text: str | None) -> str | None:
    """A checked IP address in its shortest form; None for nothing."""
    return str(ipaddress.ip_address(text)) if text else None


def parse_time(text: str, name: str) -> str:
    """A query's time in stored form. Raises 400 naming the key."""
    try:
        # a plus that was not percent-encoded arrives as a blank
        value = datetime.fromisoformat(text.strip().replace(" ", "+") if text.count(" ") and "T" in text else text)
        if value.tzinfo is None:
            value = value.replace(tzinfo=UTC)
        return clock.at(value.timestamp())
    except (ValueError, OverflowError, OSError):
        raise bad_request(f"Invalid input for query parameter {name}: {text!r} is not a date and time.") from None
