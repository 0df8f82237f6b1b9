"""OpenAPI 3.1 of a service, derived from its declarations and routes; served at ``<prefix>/openapi.json``.

Nothing is written by hand: what the checks accept is what the document says, because both read the same declaration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.declare import Attr, Resource, body_schema
from nubila.core.gates import ALWAYS, Version, show
from nubila.core.service import Service
from nubila.edge import crud

PATH = "/openapi.json"
JSON = "application/json"
ANY = {"schema": {"type": "object"}}  # of a handler that does not say what it takes, perhaps nothing
ANSWERS = {sa.Boolean: "boolean", sa.BigInteger: "integer", sa.Double: "number", sa.String: "string"}
ERRORS = {
    400: "The request is wrong; the message names the field and what would be accepted.",
    401: "There is no valid token.",
    403: "Policy does not allow it.",
    404: "There is no such thing, or the caller may not know of it.",
    405: "The path does not have this method; Allow says which it has.",
    406: "The API version asked for is not supported.",
    409: "It contradicts what exists.",
    413: "The body, or what is used, is larger than allowed.",
    415: "The body is not JSON.",
    503: "A part that is needed does not answer; Retry-After says when to try again.",
}


@dataclass(frozen=True)
class Operation:
    """One method of one path: a route, and what it derives from when it is a declared verb."""

    route: Route
    verb: str = ""
    kind: type[Resource] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Method and path without the names of its parameters: what tells operations apart."""
        return self.route.method, re.sub(r"\{[^}]*\}", "{}", self.route.path)


def operations(service: Service, version: Version | None = None) -> list[Operation]:
    """Every operation of a service, own routes first (they win), of one version or of all."""
    found: dict[tuple[str, str], Operation] = {}
    derived = [Operation(route, verb, cls) for cls, verb, route in crud.derived(service)]
    for operation in [*map(Operation, service.routes), *derived]:
        if version is None or operation.route.gate.open(version):
            known = found.setdefault(operation.key, operation)
            if operation.kind is not None and known.kind is None:  # done by hand, and still that verb of that kind
                found[operation.key] = replace(known, verb=operation.verb, kind=operation.kind)
    return list(found.values())


def newest(service: Service) -> Version:
    """The newest version a service speaks."""
    return service.versions[1] if service.versions else ALWAYS


def document(service: Service, version: Version | None = None) -> dict[str, Any]:
    """The OpenAPI document of one version (default: the newest) of a service."""
    chosen = newest(service) if version is None else version
    kinds = {cls.kind: cls for cls in service.kinds if cls.rest is not None}
    paths: dict[str, dict[str, Any]] = {}
    spelled: dict[str, str] = {}  # OpenAPI knows one spelling of a path's parameters
    for operation in operations(service, chosen):
        path = re.sub(r"\{(\w+)\.\.\.\}", r"{\1}", operation.route.path)
        path = spelled.setdefault(operation.key[1], path)
        paths.setdefault(path, {})[operation.route.method.lower()] = _operation(service, operation, path, chosen)
    components: dict[str, Any] = {
        "schemas": {kind: item_schema(cls, chosen) for kind, cls in kinds.items()},
        "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{service.name} ({service.title})", "version": show(chosen) if chosen != ALWAYS else "1.0"},
        "servers": [{"url": service.prefix or "/"}],
        "paths": paths,
        "components": components,
        "security": [{"token": []}],
    }


def route(service: Service) -> Route:
    """The route that serves the document of the version asked for (the newest when none is)."""
    made: dict[Version, dict[str, Any]] = {}

    def serve(call: Call) -> Reply:
        asked = any(name in call.headers for name in service.version_headers)
        version = call.version if asked else newest(service)
        if version not in made:
            made[version] = document(service, version)
        return Reply(made[version])

    return Route(
        method="GET", path=PATH, handler=serve, auth=False, tx="", doc="Show this API as an OpenAPI 3.1 document."
    )


# --- one operation ----------------------------------------------------------------------------------------------------


def _operation(service: Service, operation: Operation, path: str, version: Version) -> dict[str, Any]:
    given, cls = operation.route, operation.kind
    out: dict[str, Any] = {"summary": given.doc, "operationId": _operation_id(operation)}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if cls is not None:
        out["tags"] = [cls.kind]
        parameters += list(_query(service, operation, version))
    if parameters:
        out["parameters"] = parameters
    if body := _body(operation, version):
        out["requestBody"] = {"required": body != {JSON: ANY}, "content": body}
    out["responses"] = _responses(operation, version)
    if not given.auth:
        out["security"] = []
    if rules := policy_of(service, operation):
        out["x-policy"] = rules
    return out


def _operation_id(operation: Operation) -> str:
    if operation.kind is not None:
        return f"{operation.verb}_{operation.kind.kind}"
    words = re.sub(r"[^a-zA-Z0-9]+", "_", operation.route.path).strip("_")
    return f"{operation.route.method.lower()}_{words}".rstrip("_")


def policy_of(service: Service, operation: Operation) -> list[str]:
    """The policy rules that say who may do it."""
    if operation.kind is not None and operation.kind.rest is not None:
        return [operation.kind.rest.rules[operation.verb]]
    if operation.route.rule:
        return [operation.route.rule]
    method, path = operation.key
    return [
        rule.name for rule in service.rules
        if any(m == method and re.sub(r"\{[^}]*\}", "{}", p) == path for m, p in rule.operations)
    ]  # fmt: skip


def _query(service: Service, operation: Operation, version: Version) -> Iterator[dict[str, Any]]:
    cls = operation.kind
    if operation.verb != "list" or cls is None or cls.rest is None:
        return
    for a in cls.attrs.values():
        if not a.filter or not (a.show.open(version) or a.take.open(version)):
            continue
        for name in a.wire:
            for op in a.filter.split():
                suffix = "" if op in ("eq", "in") else f"__{op}"
                if op == "in" and "eq" in a.filter.split():
                    continue
                yield _parameter(name + suffix, query_schema(a), a.doc)
    hooks = service.hooks.get(cls)
    declared = {n for a in cls.attrs.values() if a.filter for n in a.wire}
    for name in hooks.own_filters if hooks else ():
        if name not in declared:
            yield _parameter(name, {"type": "string"}, "")
    sortable = [n for a in cls.attrs.values() if a.sort for n in a.wire]
    yield _parameter("limit", {"type": "integer", "minimum": 0}, "At most so many.")
    yield _parameter("marker", {"type": "string"}, "Only what comes after this one.")
    if sortable:
        yield _parameter("sort_key", {"type": "string", "enum": sortable}, "Sort by this attribute.")
        yield _parameter("sort_dir", {"type": "string", "enum": ["asc", "desc"]}, "Direction of the sort key.")


def _parameter(name: str, schema: Mapping[str, Any], doc: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": dict(schema), **({"description": doc} if doc else {})}


def _body(operation: Operation, version: Version) -> dict[str, Any]:
    given, cls = operation.route, operation.kind
    if cls is not None and cls.rest is not None and operation.verb in ("create", "update"):
        inner = body_schema(cls, operation.verb, version)
        one = {
            "type": "object", "properties": {cls.rest.item: inner}, "required": [cls.rest.item],
            "additionalProperties": False,
        }  # fmt: skip
        if operation.verb == "create" and cls.rest.bulk:
            many = {
                "type": "object", "properties": {cls.rest.items: {"type": "array", "items": inner, "minItems": 1}},
                "required": [cls.rest.items],
            }  # fmt: skip
            return {JSON: {"schema": {"oneOf": [one, many]}}}
        return {JSON: {"schema": one}}
    schema = given.schema or getattr(given.handler, "takes", None)
    if schema is not None:
        return {JSON: {"schema": dict(schema(version) if callable(schema) else schema)}}
    if given.method in ("POST", "PUT", "PATCH"):
        if given.stream or given.raw:
            return {"application/octet-stream": {"schema": {}}}
        return {JSON: ANY}
    return {}


def _responses(operation: Operation, version: Version) -> dict[str, Any]:
    cls = operation.kind
    if cls is None or cls.rest is None:
        out: dict[str, Any] = {success(operation.route): {"description": operation.route.doc}}
        codes = [400, 403, 404, 409] if operation.route.method != "GET" else [400, 403, 404]
    else:
        rest, reference = cls.rest, {"$ref": f"#/components/schemas/{cls.kind}"}
        answer: dict[str, Any] = {"description": operation.route.doc}
        properties: dict[str, Any] = {rest.item: reference}
        if operation.verb == "list":
            properties = {rest.items: {"type": "array", "items": reference}}
        if operation.verb != "delete":
            answer["content"] = {JSON: {"schema": {"type": "object", "properties": properties}}}
        out = {str(rest.status(operation.verb, version)): answer}
        codes = verb_errors(operation.verb)
    if operation.route.auth:
        codes = sorted({*codes, 401})
    return out | {str(code): {"description": ERRORS[code]} for code in codes}


def success(route: Route) -> str:
    """The status of a success; 2XX where the handler chooses it."""
    return "2XX" if route.status == 200 and route.method != "GET" else str(route.status)


def verb_errors(verb: str) -> list[int]:
    """The refusals a declared verb has beside those every request may get."""
    return {
        "list": [400, 403], "show": [403, 404], "create": [400, 403, 409, 413, 415],
        "update": [400, 403, 404, 409, 413, 415], "delete": [403, 404, 409],
    }[verb]  # fmt: skip


# --- schemas ----------------------------------------------------------------------------------------------------------


def item_schema(cls: type[Resource], version: Version) -> dict[str, Any]:
    """JSON Schema of one resource as answers of this version show it."""
    properties = {
        name: {**answer_schema(a), **({"description": a.doc} if a.doc else {})}
        for a in cls.attrs.values() if not a.hidden and a.show.open(version) for name in a.wire
    }  # fmt: skip
    return {"type": "object", "description": sentence(cls), "properties": properties}


def sentence(cls: type[Resource]) -> str:
    """The declaration's docstring as one line."""
    return " ".join((cls.__doc__ or "").split())


def answer_schema(a: Attr) -> dict[str, Any]:
    """JSON Schema of an attribute's value in answers: what is accepted loosely ("yes") is shown strictly (true)."""
    word = next((name for kind, name in ANSWERS.items() if isinstance(a.type.sql(), kind)), "")
    schema = dict(a.type.schema)
    if word and schema.get("type") != word:
        schema = {"type": word}
    if a.null or a.observed or a.default is None or not a.store:
        return {"anyOf": [schema, {"type": "null"}]} if schema else {}
    return schema


def query_schema(a: Attr) -> dict[str, Any]:
    """JSON Schema of a filter's value."""
    schema = answer_schema(a)
    plain: dict[str, Any] = next((s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"), {})
    if plain.get("type") in ("boolean", "integer", "number"):
        return {"type": plain["type"]}
    return {"type": "string", **{k: plain[k] for k in ("enum",) if k in plain}}
