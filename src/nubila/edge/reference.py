"""Reference pages, the policy sample and the table of settings, written from the declarations.

Each function returns one document as text; ``python -m nubila.apps.documents`` writes them. A declaration without a
sentence is named by :func:`missing`, which a test wants empty.
"""

from __future__ import annotations

import dataclasses as dc
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nubila.core.config import Settings
from nubila.core.declare import UNSET, Attr, Resource, Rest
from nubila.core.gates import ALWAYS, CLOSED, NEVER, OPEN, Gate, Version, show
from nubila.core.service import Service
from nubila.edge.openapi import ERRORS, Operation, newest, operations, policy_of, sentence, success, verb_errors
from nubila.edge.views import attr_rules

GENERATED = "Generated from the declarations by `python -m nubila.apps.documents`; do not edit."
KEPT = "Answers arrange these under the names of the original API; which of them a version shows is as that API says."
WRITE = {"c": "create", "u": "update", "cu": "create, update", "": ""}


def page(service: Service) -> str:
    """The reference page of one service."""
    lines = [f"# {service.name.capitalize()} API", "", f"<!-- {GENERATED} -->", "", *_facts(service), ""]
    of_kind: dict[str, list[Operation]] = {}
    others: list[Operation] = []
    for operation in operations(service):
        cls = operation.kind or _kind_of(service, operation)
        if cls is None:
            others.append(operation)
        else:
            of_kind.setdefault(cls.kind, []).append(operation)
    for cls in service.kinds:
        if cls.rest is not None:
            lines += _kind(service, cls, cls.rest, of_kind.get(cls.kind, []))
    if others:
        title = "Further operations" if of_kind else "Operations"
        lines += [f"## {title}", "", *_operations(service, others), ""]
    if stored := [cls for cls in service.kinds if cls.rest is None]:
        lines += ["## What is kept", "", KEPT, ""]
        for cls in stored:
            lines += [f"### {cls.kind}", "", sentence(cls), "", *_kept(cls), ""]
    if service.rules:
        lines += ["## Policy rules", "", *_rules(service), ""]
    lines += ["## Refusals", "", *_table(("Status", "Meaning"), ((str(c), t) for c, t in ERRORS.items()))]
    return "\n".join(lines).rstrip() + "\n"


def _kept(cls: type[Resource]) -> list[str]:
    rows = ((f"`{a.name}`", _type(a), a.doc) for a in cls.attrs.values() if not a.hidden)
    return _table(("Attribute", "Type", "Description"), rows)


def _facts(service: Service) -> Iterator[str]:
    where = f"`{service.prefix}{service.catalog_path}`" if service.prefix or service.catalog_path else "`/`"
    said = f"Catalogue type `{service.type}`, name `{service.title}`, at {where}"
    yield said + (f"; classic port {service.classic_port}." if service.classic_port else ".")
    if service.versions:
        low, high = service.versions
        header = service.version_headers[0]
        value = f"{service.version_word} {show(high)}" if header == "openstack-api-version" else show(high)
        yield f"Microversions {show(low)} to {show(high)}, chosen by the header `{header}: {value}`."
    yield f"The same as data: `GET {service.prefix}/openapi.json`."


def _kind_of(service: Service, operation: Operation) -> type[Resource] | None:
    """The kind whose path an own route is at or below."""
    found: type[Resource] | None = None
    longest = 0
    for cls in service.kinds:
        if cls.rest is not None and len(cls.rest.path) > longest:
            base, path = cls.rest.path, operation.route.path
            if path == base or path.startswith(base + "/"):
                found, longest = cls, len(base)
    return found


def _kind(service: Service, cls: type[Resource], rest: Rest, mine: list[Operation]) -> list[str]:
    out = [f"## {cls.kind}", "", sentence(cls), ""]
    if cls.quota:
        out += [f"Counted by the quota `{cls.quota}`.", ""]
    out += _table(
        ("Attribute", "Type", "Description", "Set on", "Default", "Filter", "Sort", "Versions", "Policy"),
        (_attribute(a, cls, rest) for a in cls.attrs.values() if not a.hidden),
    )
    mine = sorted(mine, key=lambda o: o.kind is None)  # what every resource has, then what is special
    return [*out, "", *_operations(service, mine), ""]


def _attribute(a: Attr, cls: type[Resource], rest: Rest) -> tuple[str, ...]:
    names = ", ".join(f"`{n}`" for n in a.wire)
    must = "c" in a.write and ((a.default is UNSET and not a.null) or a.must == OPEN)
    default = "required" if must else ""
    if not must and "c" in a.write and a.default is not UNSET:
        default = "made" if callable(a.default) else f"`{_plain(a.default)}`"
    filters = a.filter.replace("eq", "=") if a.filter else ""
    guards = []
    if a.see:
        guards.append(f"see: `{a.see}`")
    if a.set:
        guards.append(f"set: `{a.set}`")
    return (
        names, _type(a), a.doc, WRITE.get("".join(sorted(a.write)), a.write), default, filters,
        "yes" if a.sort else "", _gates(a), "; ".join(guards),
    )  # fmt: skip


def _plain(value: Any) -> str:
    """A default as JSON would spell it."""
    return "null" if value is None else json.dumps(value) if isinstance(value, bool | list | dict) else (
        str(value) if value != "" else '""'
    )  # fmt: skip


def _type(a: Attr) -> str:
    return _schema(a.type.schema) + (" or null" if a.null or a.default is None else "")


def _schema(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        values = list(schema["enum"])
        if True in values and "true" in values:
            return "boolean"
        return " \\| ".join(str(v) for v in values)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema(s) for s in schema["anyOf"]))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    if kind == "string" and "maxLength" in schema:
        return f"string, {schema.get('minLength', 0)} to {schema['maxLength']}"
    if kind == "integer" and "minimum" in schema and "maximum" in schema:
        return f"integer, {schema['minimum']} to {schema['maximum']}"
    return str(kind)


def _gates(a: Attr) -> str:
    said = []
    for word, gate in (("shown", a.show), ("accepted", a.take), ("required", a.must)):
        if gate not in (OPEN, CLOSED):
            said.append(f"{word} {_gate(gate)}")
    if a.show == CLOSED:
        said.append("never shown")
    return "; ".join(said)


def _gate(gate: Gate) -> str:
    start = f"from {show(gate.since)}" if gate.since != ALWAYS else ""
    end = f"before {show(gate.until)}" if gate.until != NEVER else ""
    return " ".join(p for p in (start, end) if p)


def _operations(service: Service, mine: Iterable[Operation]) -> list[str]:
    return _table(
        ("Operation", "What it does", "Success", "Refusals", "Policy", "Versions"),
        (_operation(service, o, newest(service)) for o in mine),
    )


def _operation(service: Service, o: Operation, version: Version) -> tuple[str, ...]:
    if o.kind is not None and o.kind.rest is not None:
        status = str(o.kind.rest.status(o.verb, version))
        refusals = ", ".join(map(str, verb_errors(o.verb)))
    else:
        status, refusals = success(o.route), ""
    policy = ", ".join(f"`{name}`" for name in policy_of(service, o))
    gate = _gate(o.route.gate) if o.route.gate != OPEN else ""
    return f"`{o.route.method} {service.prefix}{o.route.path}`", o.route.doc, status, refusals, policy, gate


def _rules(service: Service) -> list[str]:
    rows = []
    for rule in _all_rules(service):
        governs = "<br>".join(f"`{m} {p}`" for m, p in rule.operations)
        rows.append((f"`{rule.name}`", f"`{rule.text}`" if rule.text else "everybody", rule.doc, governs))
    return _table(("Rule", "Default", "What it allows", "Governs"), rows)


def _all_rules(service: Service) -> list[Any]:
    mine = {r.name: r for cls in service.kinds if cls.rest and cls.rest.attr_rules for r in attr_rules(cls)}
    mine.update({r.name: r for r in service.rules})
    return list(mine.values())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table without the columns in which no row says anything."""
    names, body = list(head), [[c.replace("\n", " ") for c in row] for row in rows]
    keep = [i for i in range(len(names)) if i == 0 or any(row[i] for row in body)]
    lines = [f"| {' | '.join(names[i] for i in keep)} |", f"|{'---|' * len(keep)}"]
    return lines + [f"| {' | '.join(_cell(row[i]) for i in keep)} |" for row in body]


def _cell(text: str) -> str:
    return text if "\\|" in text else text.replace("|", "\\|")


# --- other documents --------------------------------------------------------------------------------------------------


def policy_sample(services: Iterable[Service]) -> str:
    """All rules with their defaults, commented out, in the form of a policy file."""
    lines = [
        f"# {GENERATED}", "#",
        "# Copy what you want to change into DIR/policy.yaml (every service that has the rule) or",
        "# DIR/policy.SERVICE.yaml (that service only) and remove the comment sign. Files are read again when they",
        "# change; one that cannot be used changes nothing and `nubila status` says why.",
    ]  # fmt: skip
    for service in services:
        if not (rules := _all_rules(service)):
            continue
        lines += ["", f"# --- {service.name} (policy.{service.name}.yaml)"]
        for rule in rules:
            lines += ["", *([f"# {rule.doc}"] if rule.doc else [])]
            lines += [f"# {method} {path}" for method, path in rule.operations]
            if rule.scopes:
                lines.append(f"# Token scopes: {', '.join(rule.scopes)}")
            lines.append(f'#"{rule.name}": "{rule.text}"')
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every setting with its default and what it is for."""
    rows = []
    for f in dc.fields(Settings):
        value = f.default
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else _plain(value)
        rows.append((f"`{f.name}`", f"`{text}`" if text not in ("", '""') else "empty", str(f.metadata.get("doc", ""))))
    lines = [
        "# Settings", "", f"<!-- {GENERATED} -->", "",
        "Settings are read from `DIR/nubila.toml` (TOML, one `name = value` a line), then from environment variables",
        "`NUBILA_<NAME>` (capitals; lists separated by commas), then from options of `nubila up`; later ones win. An",
        "unknown name or a value of the wrong form stops the start with a sentence. `nubila up` remembers its options.",
        "", *_table(("Setting", "Default", "What it is for"), rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def missing(services: Iterable[Service]) -> list[str]:
    """Everything declared that lacks its sentence."""
    out = [f"setting {f.name}" for f in dc.fields(Settings) if not f.metadata.get("doc")]
    for service in services:
        for cls in service.kinds:
            out += [f"{service.name} {cls.kind}.{a.name}" for a in cls.attrs.values() if not a.hidden and not a.doc]
        out += [f"{service.name} {o.route.method} {o.route.path}" for o in operations(service) if not o.route.doc]
        out += [f"{service.name} rule {r.name}" for r in _all_rules(service) if r.operations and not r.doc]
    return out
