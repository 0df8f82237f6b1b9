"""Who may do what in a cloud, and why: what ``nubila policy`` shows. Works on the files and the database alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import yaml

from nubila.apps.lifecycle import Cannot
from nubila.core.policy import Rule, policy_files, scope_of
from nubila.core.rule_explain import Part, explain
from nubila.core.tokens import Creds

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader


@dataclass(frozen=True)
class Caller:
    """Who asks: a user of the cloud in one scope, or only roles. Names or ids; an empty text is "not given"."""

    user: str = ""
    user_domain: str = "default"
    project: str = ""
    project_domain: str = "default"
    domain: str = ""
    system: bool = False
    roles: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """One rule's answer: ``answer`` None means that it depends on the target."""

    service: str
    rule: str
    text: str
    answer: bool | None
    reasons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        words = {True: "allowed", False: "denied", None: "depends"}
        return {
            "service": self.service, "rule": self.rule, "text": self.text, "answer": words[self.answer],
            "because": self.reasons,
        }  # fmt: skip


def open_cloud(state: Path) -> Cloud:
    """The cloud of a state directory, running or not. Raises :class:`Cannot`."""
    from nubila.apps import first, wiring

    if not (state / "run" / "options.json").exists():
        raise Cannot(f"there is no cloud in {state}; bring one up with `nubila up`, or name it with --state")
    return wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))


def from_clouds(state: Path, name: str) -> Caller:
    """The caller that an entry of the cloud's clouds.yaml logs in as."""
    try:
        known = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]
        auth = known[name]["auth"]
    except FileNotFoundError:
        raise Cannot(f"there is no {state / 'clouds.yaml'}; give --user and --project instead of --cloud") from None
    except KeyError:
        raise Cannot(f"{state / 'clouds.yaml'} has no cloud {name!r}; it has {', '.join(known)}") from None
    return Caller(user=auth["username"], project=auth.get("project_name", ""))


# --- who -----------------------------------------------------------------------------------------------------------


def _one(reader: Reader, table: sa.Table, what: str, text: str, domain: str, **where: Any) -> dict[str, Any]:
    named = sa.and_(table.c.name == text, table.c.domain_id == domain)
    extra = [table.c[k].is_(v) for k, v in where.items()]
    found = reader.all(sa.select(table).where(sa.or_(table.c.id == text, named), *extra))
    if len(found) != 1:
        raise Cannot(f"there is {'more than one' if found else 'no'} {what} {text!r}")
    row: dict[str, Any] = found[0]
    return row


def credentials(cloud: Cloud, who: Caller) -> Creds:
    """What policy would see of this caller. Raises :class:`Cannot` for names that are not there."""
    from nubila.services.identity import assignments
    from nubila.services.identity.kinds import Project, User
    from nubila.services.identity.revision import fresh

    with cloud.store.read() as reader:
        t = Project.table
        domains = {
            text: _one(reader, t, "domain", text, "", is_domain=True)["id"] if text != "default" else text
            for text in {who.user_domain, who.project_domain, who.domain} - {""}
        }
        user = _one(reader, User.table, "user", who.user, domains[who.user_domain]) if who.user else None
        project = (
            _one(reader, t, "project", who.project, domains[who.project_domain], is_domain=False)
            if who.project else None
        )  # fmt: skip
        domain = domains[who.domain] if who.domain else None
        scope = (
            ("project", project["id"]) if project else ("domain", domain) if domain
            else ("system", assignments.SYSTEM) if who.system else ("", "")
        )  # fmt: skip
        roles = list(who.roles or ())
        if who.roles is None and user is not None and scope[0]:
            found = assignments.token_roles(fresh(cloud, reader), reader, user["id"], scope[0], str(scope[1]))
            roles = [role["name"] for role in found]
            if not roles:
                raise Cannot(f"user {user['name']} has no role on this {scope[0]}, so no token for it")
    return Creds(
        user_id=user["id"] if user else None, user_name=user["name"] if user else None,
        user_domain_id=user["domain_id"] if user else None,
        project_id=project["id"] if project else None, project_name=project["name"] if project else None,
        project_domain_id=project["domain_id"] if project else None, domain_id=domain,
        system_scope="all" if who.system else None, roles=tuple(roles),
    )  # fmt: skip


# --- which rules ---------------------------------------------------------------------------------------------------


def rules(cloud: Cloud, service: str = "", pattern: str = "*") -> Iterator[tuple[str, Rule]]:
    """(service, rule) of every declared rule whose name fits a shell pattern."""
    known = cloud.policy.defaults
    if service and service not in known:
        raise Cannot(f"there is no service {service!r}; there are {', '.join(known)}")
    for name, mine in known.items():
        if service in ("", name):
            yield from ((name, rule) for rule in mine.values() if fnmatch.fnmatchcase(rule.name, pattern))


def governing(cloud: Cloud, operation: str) -> list[tuple[str, str]]:
    """(service, rule name) of the rules that say who may do ``"METHOD /path"``; ids may be real or ``{places}``."""
    from nubila.edge.openapi import operations, policy_of

    method, _, path = operation.strip().partition(" ")
    method, path = method.upper(), path.strip().partition("?")[0]
    if not path.startswith("/"):
        raise Cannot(f'an operation is a method and a path, e.g. "GET /v3/users", not {operation!r}')
    found: dict[tuple[str, str], None] = {}
    best = -1
    for service in cloud.services:
        pairs = [(o.route.method, o.route.path, policy_of(service, o)) for o in operations(service)]
        pairs += [(m, p, [rule.name]) for rule in service.rules for m, p in rule.operations]
        for verb, template, names in pairs:
            exact = _fits(service.prefix, template.partition("?")[0], path) if path.startswith(service.prefix) else -1
            if verb != method or not names or exact < max(best, 0):
                continue
            if exact > best:
                found, best = {}, exact
            found.update(dict.fromkeys((service.name, name) for name in names))
    if not found:
        raise Cannot(f"no rule governs {method} {path}; see `nubila policy list`")
    return list(found)


def _fits(prefix: str, template: str, path: str) -> int:
    """How many parts of the path are literally those of the template; -1 when it is not this template.

    The template may leave out what stands before it: the service's prefix and its version.
    """
    theirs = path.removeprefix(prefix).split("/")
    version = len(theirs) > 1 and re.fullmatch(r"v\d[\d.]*", theirs[1])
    mine = template.split("/")
    for parts in (theirs, ["", *theirs[2:]]) if version else (theirs,):
        if len(mine) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(mine, parts, strict=True)):
            return sum(not a.startswith("{") for a in mine) - bool(version and parts is theirs)
    return -1


def named(cloud: Cloud, name: str, service: str = "") -> list[tuple[str, str]]:
    """(service, rule name) for a rule's name, in every service that has it."""
    found = [(owner, rule.name) for owner, rule in rules(cloud, service) if rule.name == name]
    if not found:
        near = [rule.name for _, rule in rules(cloud, service) if name.partition(":")[2] in rule.name][:3]
        raise Cannot(f"no rule is called {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return found


# --- the answer ----------------------------------------------------------------------------------------------------


def check(cloud: Cloud, service: str, name: str, creds: Creds, target: Mapping[str, Any]) -> Verdict:
    """Whether the caller may, and which parts of the rule decided it."""
    policy, caller = cloud.policy, creds.as_mapping()
    text = policy.text(name, service) or ""
    allowed = policy.scopes(name, service)
    if allowed and scope_of(caller) not in allowed:
        reason = f"the token is for a {scope_of(caller)}; this rule takes tokens for {', '.join(allowed)}"
        return Verdict(service, name, text, False, [reason])
    found = policy.rules_of(service)
    part = explain(found, name, caller, target) if found is not None else Part(name, False, "no such service")
    return Verdict(service, name, text, part.answer, list(dict.fromkeys(_reasons(part))))


def _reasons(part: Part) -> Iterator[str]:
    for trail, leaf in part.deciding():
        way = "".join(f"{name} > " for name in trail)
        answer = {True: "holds", False: "does not hold", None: "holds"}[leaf.answer]
        why = f" {leaf.why}" if leaf.answer is None else f": {leaf.why}" if leaf.why else ""
        yield f"{way}{leaf.text} {answer}{why}"


# --- the whole file ------------------------------------------------------------------------------------------------


def render(cloud: Cloud, state: Path, service: str = "") -> str:
    """A complete policy file with what is in force, each rule with what it is for.

    With ``service`` it is that service's own file (policy.SERVICE.yaml); without, one for all (policy.yaml), in which
    names that mean different things in different services are only comments: they belong into the services' files.
    """
    policy = cloud.policy
    lines = [
        f"# The policy in force of the cloud {cloud.name}. Put it into",
        f"# {state}/policy{'.' + service if service else ''}.yaml and change what you want; it is read again within",
        "# a second. A rule that is left out has its default.",
    ]  # fmt: skip
    if policy.problem:
        lines.append(f"# The file there cannot be used: {policy.problem}")
    texts: dict[str, set[str]] = {}
    for owner, rule in rules(cloud):
        texts.setdefault(rule.name, set()).add(policy.text(rule.name, owner) or "")
    section, said = "", set[str]()
    for owner, rule in rules(cloud, service):
        if owner != section:
            lines += ["", f"# --- {owner}"]
            section = owner
        text = policy.text(rule.name, owner) or ""
        lines += ["", *([f"# {rule.doc}"] if rule.doc else []), *(f"# {m} {p}" for m, p in rule.operations)]
        if rule.scopes:
            lines.append(f"# Token scopes: {', '.join(rule.scopes)}")
        if text != rule.text:
            lines.append(f"# Default: {_quoted(rule.text)}")
        line = f"{_quoted(rule.name)}: {_quoted(text)}"
        if not service and (len(texts[rule.name]) > 1 or rule.name == "default"):
            line = f"#{line}  # of this service alone: policy.{owner}.yaml"
        elif rule.name in said:
            line = f"#{line}  # as above"
        said.add(rule.name)
        lines.append(line)
    helpers = _helpers(cloud, state, service)
    if helpers:
        lines += ["", "# --- helpers of the operator's own"]
        lines += [f"{_quoted(name)}: {_quoted(text)}" for name, text in helpers.items()]
    return "\n".join(lines) + "\n"


def _helpers(cloud: Cloud, state: Path, service: str) -> dict[str, str]:
    """Rules of the operator's files that no service declares."""
    out: dict[str, str] = {}
    for owner, declared in cloud.policy.defaults.items():
        found = cloud.policy.rules_of(owner)
        if found is not None and service in ("", owner):
            out |= {name: text for name, text in found.rules.items() if name not in declared}
    return out


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def files(cloud: Cloud, state: Path) -> list[Path]:
    """The policy files that are there."""
    return [path for path, _ in policy_files(state, [s.name for s in cloud.services]) if path.exists()]
