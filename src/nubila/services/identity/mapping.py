"""The mapping engine of federation: what an identity provider says about somebody becomes a user, groups, projects.

Pure: rules and assertion in, :class:`Mapped` out. A rule applies when every remote requirement is met; all rules that
apply add to the result. Requirements without a condition, and those with ``whitelist`` or ``blacklist``, are numbered
in their order and stand for ``{0}``, ``{1}`` ... in the local part. API reference: OS-FEDERATION, mappings; schema
versions 1.0, 2.0 (a ``domain`` is the default of the user and the projects) and 3.0 (``projects_json``, and grants
follow the provider).

Values that come from outside are never evaluated: placeholders are replaced as text, nothing else in braces means
anything, and a list stays a list where a list is meant.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from nubila.core.checks import checker
from nubila.core.faults import Fault, bad_request

Row = dict[str, Any]
Assertion = Mapping[str, Sequence[str]]
VERSIONS = ("1.0", "2.0", "3.0")
DEFAULT_VERSION = "1.0"
EPHEMERAL, LOCAL = "ephemeral", "local"
MAX_VALUE = 4096
"""Characters of a value that regular expressions look at: a bound on what a hostile value can cost."""

_PLACE = re.compile(r"\{(\d{1,3})\}")
_TEXT = {"type": "string"}
_DOMAIN: Row = {"type": "object", "properties": {"id": _TEXT, "name": _TEXT}, "additionalProperties": False}
_ROLES: Row = {
    "type": "array",
    "items": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}, "additionalProperties": False},
}


def _projects(version: str) -> Row:
    properties: Row = {"name": _TEXT, "roles": _ROLES, **({"domain": _DOMAIN} if version != "1.0" else {})}
    item = {"type": "object", "required": ["name", "roles"], "properties": properties, "additionalProperties": False}
    return {"type": "array", "items": item}


def _condition(word: str) -> Row:
    return {
        "type": "object",
        "required": ["type", word],
        "properties": {"type": _TEXT, word: {"type": "array"}, "regex": {"type": "boolean"}},
        "additionalProperties": False,
    }


_GROUP: Row = {
    "type": "object",
    "oneOf": [
        {"properties": {"id": _TEXT}, "required": ["id"], "additionalProperties": False},
        {"properties": {"name": _TEXT, "domain": _DOMAIN}, "required": ["name", "domain"],
         "additionalProperties": False},
    ],
}  # fmt: skip
_REMOTE: Row = {
    "type": "object",
    "oneOf": [
        {"type": "object", "required": ["type"], "properties": {"type": _TEXT}, "additionalProperties": False},
        *(_condition(word) for word in ("any_one_of", "not_any_of", "blacklist", "whitelist")),
    ],
}


def schema(version: str) -> Row:
    """The JSON Schema of a mapping's body in this schema version."""
    user = {
        "type": "object",
        "properties": {
            "id": _TEXT, "name": _TEXT, "email": _TEXT, "domain": _DOMAIN, "type": {"enum": [EPHEMERAL, LOCAL]},
        },
        "additionalProperties": False,
    }  # fmt: skip
    local: Row = {
        "user": user, "projects": _projects(version), "group": _GROUP, "groups": _TEXT, "group_ids": _TEXT,
        "domain": _DOMAIN, **({"projects_json": _TEXT} if version == "3.0" else {}),
    }  # fmt: skip
    rule = {
        "type": "object",
        "required": ["local", "remote"],
        "properties": {
            "local": {"type": "array", "items": {"type": "object", "properties": local, "additionalProperties": False}},
            "remote": {"type": "array", "minItems": 1, "items": _REMOTE},
        },
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["rules"],
        "properties": {
            "rules": {"type": "array", "minItems": 1, "items": rule},
            "schema_version": {"type": ["string", "null"]},  # clients send null for the default
        },
        "additionalProperties": False,
    }


_SCHEMAS = {version: schema(version) for version in VERSIONS}


def check(body: Row) -> str:
    """Raise 400 unless the body is a mapping that can work; its schema version."""
    version = body.get("schema_version") or DEFAULT_VERSION
    if version not in VERSIONS:
        raise bad_request(f"schema_version must be one of {', '.join(VERSIONS)}, not {version!r}.", "ValidationError")
    checker(_SCHEMAS[version])(body)
    for n, rule in enumerate(body["rules"]):
        direct = 0
        for requirement in rule["remote"]:
            direct += not {"any_one_of", "not_any_of"} & set(requirement)
            _check_patterns(n, requirement)
        asked = [int(m) for m in _PLACE.findall(json.dumps(rule["local"]))]
        if asked and max(asked) >= direct:
            raise bad_request(
                f"rules[{n}].local uses {{{max(asked)}}}, but its remote part has {direct} values to put in, counted"
                " from {0}: conditions any_one_of and not_any_of do not count.", "ValidationError",
            )  # fmt: skip
    return str(version)


def _check_patterns(n: int, requirement: Row) -> None:
    words = [w for w in ("any_one_of", "not_any_of", "blacklist", "whitelist") if w in requirement]
    for value in requirement[words[0]] if words else ():
        if not isinstance(value, str):
            raise bad_request(f"rules[{n}].remote: {words[0]} must hold texts, not {value!r}.", "ValidationError")
        if requirement.get("regex"):
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError) as e:
                raise bad_request(
                    f"rules[{n}].remote: {value!r} is not a regular expression: {e}.", "ValidationError"
                ) from None


# --- evaluating ----------------------------------------------------------------------------------------------------


@dataclass
class Mapped:
    """What a mapping made of an assertion. Groups are ids, or ``(name, domain)`` where domain is {id} or {name}."""

    user: Row
    group_ids: list[str] = field(default_factory=list)
    group_names: list[tuple[str, Row]] = field(default_factory=list)
    projects: list[Row] = field(default_factory=list)
    sync_projects: bool = False  # grants on other projects go


class NotMapped(Exception):
    """The mapping makes nobody of this assertion; the text says why."""


def evaluate(rules: Iterable[Row], assertion: Assertion, version: str = DEFAULT_VERSION) -> Mapped:
    """Apply the rules. Raises :class:`NotMapped`."""
    found: list[Row] = []
    for rule in rules:
        values = _matched(rule["remote"], assertion)
        if values is not None:
            found += [_filled(local, values) for local in rule["local"]]
    if not found:
        raise NotMapped("no rule of the mapping applies to what the identity provider says")
    out = Mapped(user={}, sync_projects=version == "3.0")
    domain: Row | None = None
    for local in found:
        domain = local.get("domain", domain)
        _add(out, local, version)
    user = out.user
    if version != "1.0" and not user.get("domain") and domain:
        user["domain"] = domain
    user.setdefault("type", EPHEMERAL)
    out.group_ids = list(dict.fromkeys(out.group_ids))
    return out


def _add(out: Mapped, local: Row, version: str) -> None:
    if "user" in local and not (out.user and ("name" in out.user or "id" in out.user)):
        out.user = {**out.user, **{k: v for k, v in local["user"].items() if v != ""}}
    if "group" in local:
        group = local["group"]
        if "id" in group:
            out.group_ids.append(group["id"])
        else:
            out.group_names.append((group["name"], group["domain"]))
    if "groups" in local:
        for name in local["groups"]:
            out.group_names.append(_named_group(name, local))
    if "group_ids" in local:
        out.group_ids += local["group_ids"]
    projects = [*local.get("projects", ()), *_projects_json(local)]
    if version != "1.0" and "domain" in local:
        projects = [{"domain": local["domain"], **p} for p in projects]
    out.projects += projects


def _named_group(name: str, local: Row) -> tuple[str, Row]:
    if "domain" in local:
        return name, local["domain"]  # whatever the name looks like: it stays within the domain that the rule says
    if name.startswith("JSON:"):
        try:
            group = json.loads(name.removeprefix("JSON:"))
            return str(group["name"]), {k: str(v) for k, v in group["domain"].items() if k in ("id", "name")}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotMapped("a group in JSON needs a name and a domain") from None
    raise NotMapped("a rule with groups needs a domain that they are in")


def _projects_json(local: Row) -> list[Row]:
    if "projects_json" not in local:
        return []
    try:
        found = [p for part in local["projects_json"] for p in _as_list(json.loads(part))]
        checker(_projects("3.0"))(found)
    except (ValueError, RecursionError, Fault):
        raise NotMapped("projects_json must be a JSON list of {name, roles: [{name}], domain}") from None
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matched(requirements: Iterable[Row], assertion: Assertion) -> list[list[str]] | None:
    """The values for {0}, {1} ..., None when the rule does not apply."""
    out: list[list[str]] = []
    for requirement in requirements:
        values = list(assertion.get(requirement["type"], ()))
        if not values:
            return None
        regex = bool(requirement.get("regex"))
        if "any_one_of" in requirement:
            if not _hits(requirement["any_one_of"], values, regex):
                return None
        elif "not_any_of" in requirement:
            if _hits(requirement["not_any_of"], values, regex):
                return None
        elif "blacklist" in requirement:
            bad = set(_hits(requirement["blacklist"], values, regex))
            out.append([v for v in values if v not in bad])
        elif "whitelist" in requirement:
            out.append(_hits(requirement["whitelist"], values, regex))
        else:
            out.append(values)
    return out


def _hits(wanted: Sequence[str], values: Iterable[str], regex: bool) -> list[str]:
    if not regex:
        return [v for v in values if v in wanted]
    patterns = [re.compile(pattern) for pattern in wanted]
    return [v for v in values if len(v) <= MAX_VALUE and any(p.search(v) for p in patterns)]


def _filled(local: Any, values: list[list[str]]) -> Any:
    """The local part with its placeholders replaced."""
    if isinstance(local, dict):
        return {k: _FILL.get(k, _filled)(v, values) for k, v in local.items()}
    if isinstance(local, list):
        return [_filled(item, values) for item in local]
    return _PLACE.sub(lambda m: _one(values[int(m[1])]), local) if isinstance(local, str) else local


def _listed(text: str, values: list[list[str]]) -> list[str]:
    """Where a list is meant: all of a placeholder's values, or a list written in the rule as ``['a', 'b']``."""
    whole = _PLACE.fullmatch(text)
    if whole is not None:
        return list(values[int(whole[1])])
    if text.startswith("[") and not _PLACE.search(text):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(found, list):
            return [str(v) for v in found]
    filled = _filled(text, values)
    return [filled] if filled else []


_FILL: Mapping[str, Any] = MappingProxyType({"groups": _listed, "group_ids": _listed, "projects_json": _listed})


def _one(several: list[str]) -> str:
    """Where one text is meant: the only value, several separated by semicolons."""
    return ";".join(several)
