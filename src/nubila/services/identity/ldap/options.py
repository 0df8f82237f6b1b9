"""The options of one directory, under Keystone's names: a table, checked and typed once.

They come from ``[ldap.<domain name>]`` in nubila.toml or from the domain's configuration in the API. Values may be
text ("true", "5", "a,b"), as old files have them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
# name -> default; the type of the default is the type of the option; None = text or nothing
DEFAULTS: Mapping[str, Any] = MappingProxyType({
    "url": "ldap://localhost", "randomize_urls": False, "user": None, "password": None, "password_file": None,
    "suffix": "cn=example,cn=com", "query_scope": "one", "page_size": 0, "alias_dereferencing": "default",
    "chase_referrals": False, "connection_timeout": 5, "operation_timeout": 10, "cache_time": 60, "debug_level": None,
    "user_tree_dn": None, "user_filter": None, "user_objectclass": "inetOrgPerson", "user_id_attribute": "cn",
    "user_name_attribute": "sn", "user_description_attribute": "description", "user_mail_attribute": "mail",
    "user_pass_attribute": "userPassword", "user_enabled_attribute": "enabled", "user_enabled_invert": False,
    "user_enabled_mask": 0, "user_enabled_default": "True", "user_enabled_emulation": False,
    "user_enabled_emulation_dn": None, "user_enabled_emulation_use_group_config": False,
    "user_attribute_ignore": ("default_project_id",), "user_default_project_id_attribute": None,
    "user_additional_attribute_mapping": (),
    "user_allow_create": False, "user_allow_update": False, "user_allow_delete": False,
    "group_tree_dn": None, "group_filter": None, "group_objectclass": "groupOfNames", "group_id_attribute": "cn",
    "group_name_attribute": "ou", "group_desc_attribute": "description", "group_member_attribute": "member",
    "group_members_are_ids": False, "group_ad_nesting": False, "group_attribute_ignore": (),
    "group_additional_attribute_mapping": (),
    "group_allow_create": False, "group_allow_update": False, "group_allow_delete": False,
    "use_dumb_member": False, "dumb_member": "cn=dumb,dc=nonexistent", "allow_subtree_delete": False,
    "use_tls": False, "tls_cacertfile": None, "tls_cacertdir": None, "tls_req_cert": "demand",
    "use_pool": True, "pool_size": 10, "pool_retry_max": 3, "pool_retry_delay": 0.1, "pool_connection_timeout": -1,
    "pool_connection_lifetime": 600, "use_auth_pool": True, "auth_pool_size": 100, "auth_pool_connection_lifetime": 60,
})  # fmt: skip
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "query_scope": ("one", "sub"), "tls_req_cert": ("demand", "allow", "never"),
    "alias_dereferencing": ("default", "never", "searching", "always", "finding"),
})  # fmt: skip
ALIASES = {"group_description_attribute": "group_desc_attribute"}
LEAST = {"connection_timeout": 1, "operation_timeout": 1, "cache_time": 0, "page_size": 0, "pool_size": 1}
FALLBACK_S = {"connection_timeout": 5}
"""Keystone's -1 means "wait for ever"; here every wait ends."""


class BadOption(ValueError):
    """An option that is unknown or has the wrong form; the text names it and the fix."""


@dataclass(frozen=True)
class Options:
    """One directory's options; each is read as ``options["name"]``."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def urls(self) -> list[str]:
        """The servers, in the order they are tried."""
        return [u for u in str(self["url"]).replace(",", " ").split() if u]

    @property
    def user_tree(self) -> str:
        """Where users are."""
        return str(self["user_tree_dn"] or f"ou=Users,{self['suffix']}")

    @property
    def group_tree(self) -> str:
        """Where groups are."""
        return str(self["group_tree_dn"] or f"ou=UserGroups,{self['suffix']}")

    @property
    def emulation_dn(self) -> str:
        """The group whose members are enabled, when that is emulated."""
        return str(self["user_enabled_emulation_dn"] or f"cn=enabled_users,{self.user_tree}")

    @property
    def deadline_s(self) -> float:
        """After so many seconds whoever waits for this directory is told that it does not answer."""
        return float(self["connection_timeout"]) + float(self["operation_timeout"]) + 1.0

    def secret(self) -> str:
        """The password of ``user``. Raises BadOption when its file cannot be read."""
        if self["password_file"]:
            try:
                return Path(self["password_file"]).read_text().rstrip("\n")
            except OSError as e:
                raise BadOption(f"password_file {self['password_file']}: {e.strerror}") from None
        return str(self["password"] or "")


def parse(given: Mapping[str, Any]) -> Options:
    """Typed options, defaults filled in. Raises BadOption."""
    values = dict(DEFAULTS)
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, 1)
            raise BadOption(f"unknown option {key!r}{f'; did you mean {near[0]}?' if near else ''}")
        if value is not None:
            values[name] = _typed(name, value)
    for name, choices in CHOICES.items():
        values[name] = str(values[name]).lower()
        if values[name] not in choices:
            raise BadOption(f"{name} must be one of {', '.join(choices)}, not {values[name]!r}")
    for name, least in LEAST.items():
        if values[name] < least:
            if name not in FALLBACK_S:
                raise BadOption(f"{name} must be {least} or more, not {values[name]}")
            values[name] = FALLBACK_S[name]
    _check(values)
    return Options(MappingProxyType(values))


def _check(values: Mapping[str, Any]) -> None:
    urls = str(values["url"]).replace(",", " ").split()
    if not urls or not all(u.partition("://")[0] in ("ldap", "ldaps", "ldapi") and "://" in u for u in urls):
        raise BadOption(f"url must be ldap://, ldaps:// or ldapi:// addresses, not {values['url']!r}")
    if values["use_tls"] and any(u.startswith("ldaps://") for u in urls):
        raise BadOption("use_tls (StartTLS) and an ldaps:// url exclude each other; choose one")
    for name in ("user_filter", "group_filter"):
        text = values[name]
        if text and not (text.startswith("(") and text.endswith(")") and text.count("(") == text.count(")")):
            raise BadOption(f"{name} must be a filter in brackets such as (memberOf=cn=cloud,dc=example), not {text!r}")
    for name in ("user_additional_attribute_mapping", "group_additional_attribute_mapping"):
        for pair in values[name]:
            if pair.count(":") != 1:
                raise BadOption(f"{name} holds pairs such as employeeNumber:employee, not {pair!r}")


def _typed(name: str, value: Any) -> Any:
    default = DEFAULTS[name]
    try:
        if isinstance(default, bool):
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word not in TRUE + FALSE:
                raise ValueError
            return word in TRUE
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
        if isinstance(default, tuple):
            parts = value if isinstance(value, list | tuple) else str(value).split(",")
            return tuple(str(p).strip() for p in parts if str(p).strip())
    except (TypeError, ValueError):
        raise BadOption(f"{name} must be a {type(default).__name__}, not {value!r}") from None
    return str(value)
