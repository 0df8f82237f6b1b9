"""Who may do what: the services' rules, overridden by the operator's policy files, reloaded while we run.

Services declare their rules under OpenStack's published names as :class:`Rule`; base rules (``admin_required``,
``owner``, ``context_is_admin`` ...) are rules like any other. Each service's rules are a set of their own, because the
original services give one name different meanings (``owner`` is the user in Identity and the project in Network).

A policy file is YAML (or JSON, also in the old list form) of ``name: "check string"``. A file of everybody overrides a
name in every service that declares it; a file of one service only there. Names nobody declares are helpers for other
rules of the file. A file that cannot be read or used changes nothing: the last good rules stay and
:attr:`Policy.problem` says why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
import yaml

from nubila.core.rules import Column, Creds, RuleError, RuleSet, Target

_CHECK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule's default.

    ``name`` is OpenStack's published name, ``text`` the check string, ``doc`` one sentence for the operator,
    ``operations`` the requests it governs as ("GET", "/v3/users"), empty for base rules. ``scopes``, when not empty,
    are the token scopes ("system", "domain", "project") the rule accepts at all.
    """

    name: str
    text: str
    doc: str = ""
    operations: tuple[tuple[str, str], ...] = ()
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One good state of everything."""

    sets: Mapping[str, RuleSet]
    scopes: Mapping[tuple[str, str], tuple[str, ...]]
    owner: Mapping[str, str | None]  # rule name -> the service that answers for it; None: several that differ


class HasMapping(Protocol):
    """A caller as core.tokens.Creds."""

    def as_mapping(self) -> Creds: ...


Caller = Creds | HasMapping | None


def _mapping(creds: Caller) -> Creds:
    if creds is None:
        return {}
    return creds if isinstance(creds, Mapping) else creds.as_mapping()


def policy_files(directory: Path, services: Iterable[str]) -> list[tuple[Path, str]]:
    """The files looked for in ``directory``: policy.yaml and policy.json for all, policy.SERVICE.yaml/.json for one."""
    found = [(directory / f"policy.{kind}", "") for kind in ("json", "yaml")]
    return found + [(directory / f"policy.{name}.{kind}", name) for name in services for kind in ("json", "yaml")]


class Policy:
    """The rules in force. Safe to share by threads: a reload swaps the whole state at once."""

    def __init__(
        self,
        rules: Mapping[str, Iterable[Rule]],
        files: Sequence[tuple[Path, str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rules`` by service; ``files`` as :func:`policy_files` gives them, later ones win.

        Raises :class:`RuleError` when the defaults themselves cannot be used; a broken file only sets ``problem``.
        """
        self.defaults: Mapping[str, Mapping[str, Rule]] = {
            service: {rule.name: rule for rule in mine} for service, mine in rules.items()
        }
        self.problem: str | None = None  # why the newest file is not in force
        self.unknown: tuple[str, ...] = ()  # names in files that nobody declares and no rule refers to
        self._files, self._clock = tuple(files), clock
        self._loaded = self._build({service: {} for service in self.defaults})
        self._seen: tuple[object, ...] = ()
        self._next = 0.0
        self._load()

    # --- asking ----------------------------------------------------------------------------------------------------

    def enforce(self, name: str, creds: Caller, target: Target, service: str = "") -> bool:
        """Whether the caller may do ``name`` to ``target``; unknown names are denied (or go to the default rule).

        ``creds`` is a core.tokens.Creds, such a mapping, or None for nobody. ``service`` is needed only for names that
        several services declare differently (LookupError without it).
        """
        mapping = _mapping(creds)
        found = self._find(name, service, mapping)
        return found is not None and found.named(name)(mapping, target)

    def predicate(self, name: str, creds: Caller, column: Column, service: str = "") -> sa.ColumnElement[bool]:
        """The rows of a list the caller may see, as a WHERE clause (see :meth:`RuleSet.predicate`)."""
        mapping = _mapping(creds)
        found = self._find(name, service, mapping)
        return sa.false() if found is None else found.predicate(name, mapping, column)

    def _find(self, name: str, service: str, creds: Creds) -> RuleSet | None:
        loaded = self._loaded
        if not service:
            owner = loaded.owner.get(name, "")
            if owner is None:
                raise LookupError(f"several services have a rule {name!r}: say which service is meant")
            service = owner
        found = loaded.sets.get(service)
        if found is None:
            return None
        scopes = loaded.scopes.get((service, name))
        return None if scopes and scope_of(creds) not in scopes else found

    def text(self, name: str, service: str) -> str | None:
        """The check string in force, for documents and ``nubila policy show``."""
        found = self._loaded.sets.get(service)
        return None if found is None else found.rules.get(name)

    def rules_of(self, service: str) -> RuleSet | None:
        """The rules in force of one service, for explanations."""
        return self._loaded.sets.get(service)

    def scopes(self, name: str, service: str) -> tuple[str, ...]:
        """The token scopes a rule accepts at all; empty: every one."""
        return self._loaded.scopes.get((service, name), ())

    @property
    def state(self) -> object:
        """Another object after every reload: what was decided under the old one may be different now."""
        return self._loaded

    # --- loading ---------------------------------------------------------------------------------------------------

    def reload_if_changed(self) -> bool:
        """Read the files again when they changed; looks at most once a second, so call it per request.

        True when new rules are in force.
        """
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + _CHECK_EVERY_S
        return self._signature() != self._seen and self._load()

    def _signature(self) -> tuple[object, ...]:
        seen: list[object] = []
        for path, _ in self._files:
            try:
                stat = path.stat()
                seen.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
            except OSError as e:
                seen.append(e.errno)
        return tuple(seen)

    def _load(self) -> bool:
        self._seen = self._signature()  # before reading: a change while we read is seen next time
        over: dict[str, dict[str, str]] = {service: {} for service in self.defaults}
        named: set[str] = set()
        try:
            for path, service in self._files:
                for name, text in _read(path).items():
                    named.add(name)
                    for each in [service] if service in over else over:
                        over[each][name] = text
            loaded = self._build(over)
        except RuleError as e:
            self.problem = f"{e}; the rules in force before stay in force"
            return False
        declared = {name for mine in self.defaults.values() for name in mine}
        used = {name for each in loaded.sets.values() for name in each.references()} | {"default"}
        self.unknown = tuple(sorted(named - declared - used))
        self.problem = None
        self._loaded = loaded
        return True

    def _build(self, over: Mapping[str, Mapping[str, str]]) -> _Loaded:
        sets, scopes, owner = {}, {}, dict[str, str | None]()
        for service, mine in self.defaults.items():
            texts = {name: rule.text for name, rule in mine.items()}
            helpers = {name: text for name, text in over[service].items()}
            try:
                sets[service] = RuleSet(texts | helpers)
            except RuleError as e:
                raise RuleError(f"policy of {service}: {e}") from None
            for name, rule in mine.items():
                scopes[service, name] = rule.scopes
                other = owner.get(name, service)
                same = other == service or (other is not None and sets[other].rules[name] == sets[service].rules[name])
                owner[name] = other if same else None
        return _Loaded(sets, scopes, owner)


def scope_of(creds: Creds) -> str:
    """ "system", "domain" or "project", as OpenStack counts: what is neither system nor domain is project."""
    if creds.get("system_scope"):
        return "system"
    return "domain" if creds.get("domain_id") else "project"


def _read(path: Path) -> dict[str, str]:
    """The rules of one file; a missing file has none. Raises :class:`RuleError` naming the file and what is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise RuleError(f"{path} cannot be read: {e.strerror}") from None
    try:
        found: Any = json.loads(data) if path.suffix == ".json" else yaml.safe_load(data)
    except (ValueError, yaml.YAMLError, RecursionError) as e:
        raise RuleError(f"{path} is not {path.suffix[1:].upper()}: {' '.join(str(e).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RuleError(f'{path} must be a mapping of rule names to check strings, e.g. "get_network": "role:reader"')
    return {_name(path, name): _text(path, name, rule) for name, rule in found.items()}


def _name(path: Path, name: object) -> str:
    if not isinstance(name, str):
        raise RuleError(f"{path}: {name!r} is not a rule name; put it in quotes")
    return name


def _text(path: Path, name: object, rule: object) -> str:
    """A check string; the old form, a list (any of) of lists (all of) of checks, is written as one."""
    if isinstance(rule, str):
        return rule
    if not isinstance(rule, list):
        raise RuleError(f"{path}: rule {name!r} must be a string in quotes, not {rule!r}")
    if not rule:
        return "@"
    groups = [[group] if isinstance(group, str) else group for group in rule if group]
    if not all(isinstance(group, list) and all(isinstance(check, str) for check in group) for group in groups):
        raise RuleError(f"{path}: rule {name!r} must be a string, or a list of lists of strings")
    return " or ".join(f"({' and '.join(group)})" for group in groups) or "!"
