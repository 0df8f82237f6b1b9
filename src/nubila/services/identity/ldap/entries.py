"""Entries of a directory as users and groups of Identity, and filters from what a client asks for. Plain data only."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nubila.services.identity.ldap.client import Entry, as_text
from nubila.services.identity.ldap.options import TRUE, Options

Row = dict[str, Any]
_SPACES = re.compile(r"\s*([,=+])\s*")
_SPECIAL = {"\\": "\\5c", "*": "\\2a", "(": "\\28", ")": "\\29", "\0": "\\00"}
_DN_SPECIAL = frozenset('#,+"\\<>;=')
AD_CHAIN = "1.2.840.113556.1.4.1941"
"""Active Directory's rule that follows groups in groups."""


@dataclass(frozen=True, slots=True)
class Person:
    """A user as the directory has it."""

    local_id: str
    dn: str
    name: str
    enabled: bool
    default_project_id: str | None = None
    extra: Row = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Team:
    """A group as the directory has it; ``members`` are DNs or ids, as ``group_members_are_ids`` says."""

    local_id: str
    dn: str
    name: str
    description: str = ""
    extra: Row = field(default_factory=dict)
    members: tuple[str, ...] = ()


def escaped(text: str) -> str:
    """Text for a place in a filter (RFC 4515): it can never become part of the filter itself."""
    return "".join(_SPECIAL.get(c) or (_hex(c.encode()) if c.isspace() else c) for c in text)


def _hex(value: bytes) -> str:
    return "".join("\\" + format(b, "02x") for b in value)


def rdn(attribute: str, value: str) -> str:
    """``attribute=value`` for a DN (RFC 4514)."""
    out = "".join("\\" + c if c in _DN_SPECIAL else "\\00" if c == "\0" else c for c in value)
    if out[:1] == " ":
        out = "\\" + out
    if out.endswith(" ") and not out.endswith("\\ "):
        out = out[:-1] + "\\ "
    return f"{attribute}={out}"


def same_dn(dn: str) -> str:
    """The DN as it is compared: without case and optional spaces."""
    return _SPACES.sub(r"\1", dn.strip()).lower()


def _is_guid(attribute: str) -> bool:
    return attribute.lower() == "objectguid"


def _id(entry: Entry, attribute: str) -> str | None:
    raw = entry.attributes.get(attribute.lower())
    if not raw:
        return None
    if _is_guid(attribute) and len(raw[0]) == 16:
        return str(uuid.UUID(bytes_le=raw[0]))
    return as_text(raw[0])


def id_filter(attribute: str, local_id: str) -> str:
    """The filter that finds this id."""
    if _is_guid(attribute):
        try:
            return f"({attribute}={_hex(uuid.UUID(local_id).bytes_le)})"
        except ValueError:
            return f"({attribute}=)"
    return f"({attribute}={escaped(local_id)})"


def _pairs(mapping: Iterable[str]) -> list[tuple[str, str]]:
    """``ldap_attribute:api_attribute`` pairs."""
    return [(a.strip(), b.strip()) for a, _, b in (p.partition(":") for p in mapping)]


def query(options: Options, what: str, *parts: str) -> str:
    """The filter of all users (or groups) that there are for us, narrowed by further parts."""
    return (
        f"(&(objectClass={escaped(options[f'{what}_objectclass'])}){options[f'{what}_filter'] or ''}{''.join(parts)})"
    )


def wanted(options: Options, what: str, asked: Iterable[tuple[str, str]]) -> str:
    """The part of an API query that the directory can narrow by: names and mail, never less than what fits."""
    attribute = {"name": options[f"{what}_name_attribute"], "id": None}
    if what == "user":
        attribute["email"] = options["user_mail_attribute"]
    shapes = {
        "": "{}", "iexact": "{}", "contains": "*{}*", "icontains": "*{}*", "startswith": "{}*", "istartswith": "{}*",
        "endswith": "*{}", "iendswith": "*{}",
    }  # fmt: skip
    out = []
    for key, value in asked:
        base, _, op = key.partition("__")
        name = attribute.get(base)
        if name and op in shapes and value and not value.startswith("in:"):
            out.append(f"({name}={shapes[op].format(escaped(value))})")
    return "".join(out)


# --- users ---------------------------------------------------------------------------------------------------------


def user_attributes(options: Options) -> list[str]:
    """What is read of a user's entry."""
    ignored = set(options["user_attribute_ignore"])
    names = [options["user_id_attribute"], options["user_name_attribute"]]
    for api, option in (
        ("email", "user_mail_attribute"), ("description", "user_description_attribute"),
        ("enabled", "user_enabled_attribute"),
    ):  # fmt: skip
        if api not in ignored and not (api == "enabled" and options["user_enabled_emulation"]):
            names.append(options[option])
    if options["user_default_project_id_attribute"]:
        names.append(options["user_default_project_id_attribute"])
    return names + [a for a, _ in _pairs(options["user_additional_attribute_mapping"])]


def person(options: Options, entry: Entry, enabled_dns: frozenset[str] | None) -> Person | None:
    """The user of an entry, None when it has no id or no name. ``enabled_dns``: members of the emulation group."""
    local_id, name = _id(entry, options["user_id_attribute"]), entry.first(options["user_name_attribute"])
    if not local_id or not name:
        return None
    ignored = set(options["user_attribute_ignore"])
    extra: Row = {}
    for api, option in (("email", "user_mail_attribute"), ("description", "user_description_attribute")):
        value = entry.first(options[option])
        if api not in ignored and value is not None:
            extra[api] = value
    for attribute, api in _pairs(options["user_additional_attribute_mapping"]):
        if (value := entry.first(attribute)) is not None:
            extra[api] = value
    return Person(
        local_id, entry.dn, name, _enabled(options, entry, local_id, enabled_dns),
        entry.first(options["user_default_project_id_attribute"]), extra,
    )  # fmt: skip


def _enabled(options: Options, entry: Entry, local_id: str, enabled_dns: frozenset[str] | None) -> bool:
    if enabled_dns is not None:
        by_id = options["user_enabled_emulation_use_group_config"] and options["group_members_are_ids"]
        return (local_id.lower() if by_id else same_dn(entry.dn)) in enabled_dns
    if "enabled" in options["user_attribute_ignore"]:
        return True
    text = entry.first(options["user_enabled_attribute"])
    if text is None:
        text = str(options["user_enabled_default"])
    mask: int = options["user_enabled_mask"]
    if mask:
        return (_number(text) & mask) != mask
    found = text.strip().lower() in TRUE
    return not found if options["user_enabled_invert"] else found


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def enabled_value(options: Options, enabled: bool, before: str | None) -> str | None:
    """What the enabled attribute must say, None when it may stay away. ``before`` is its value now."""
    mask = options["user_enabled_mask"]
    if mask:
        now = _number(before if before is not None else str(options["user_enabled_default"]))
        return str(now & ~mask if enabled else now | mask)
    default = str(options["user_enabled_default"]).lower() in TRUE
    shown = not enabled if options["user_enabled_invert"] else enabled
    if before is None and shown == default:
        return None
    return "TRUE" if shown else "FALSE"


# --- groups --------------------------------------------------------------------------------------------------------


def group_attributes(options: Options, *, members: bool) -> list[str]:
    """What is read of a group's entry."""
    names = [options["group_id_attribute"], options["group_name_attribute"]]
    if "description" not in options["group_attribute_ignore"]:
        names.append(options["group_desc_attribute"])
    if members:
        names.append(options["group_member_attribute"])
    return names + [a for a, _ in _pairs(options["group_additional_attribute_mapping"])]


def team(options: Options, entry: Entry) -> Team | None:
    """The group of an entry, None when it has no id or no name."""
    local_id, name = _id(entry, options["group_id_attribute"]), entry.first(options["group_name_attribute"])
    if not local_id or not name:
        return None
    ignored = "description" in options["group_attribute_ignore"]
    extra = {
        api: value for attribute, api in _pairs(options["group_additional_attribute_mapping"])
        if (value := entry.first(attribute)) is not None
    }  # fmt: skip
    return Team(
        local_id, entry.dn, name, "" if ignored else entry.first(options["group_desc_attribute"]) or "", extra,
        tuple(entry.all(options["group_member_attribute"])),
    )  # fmt: skip


def id_in_dn(dn: str, attribute: str) -> str | None:
    """The id when a DN begins with it (plain values only), so that no look-up is needed."""
    first = re.match(r"\s*([A-Za-z0-9.-]+)\s*=\s*([^,+\\]+?)\s*(?:,|$)", dn)
    return first[2] if first and first[1].lower() == attribute.lower() else None
