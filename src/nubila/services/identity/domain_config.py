"""Configuration of single domains: where their users and groups are kept. API: /v3/domains/{domain_id}/config.

Sensitive options (the password of a directory) are kept encrypted (credential_keys.py) and never shown. Other text
options may name them as ``%(password)s``; readers inside the program get them filled in, clients do not.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request, forbidden, not_found
from nubila.services.identity import credential_keys, lookup
from nubila.services.identity.kinds_config import DOMAIN_CONFIG
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
Config = dict[str, dict[str, Any]]
_D = DOMAIN_CONFIG.c
_PLACE = re.compile(r"%\(([a-z_]+)\)s")

# group -> option -> default; the names that can be set for one domain, as Keystone's documentation lists them
DEFAULTS: dict[str, dict[str, Any]] = {
    "identity": {"driver": "sql", "list_limit": None},
    "ldap": {
        "url": "ldap://localhost", "user": None, "suffix": "cn=example,cn=com", "query_scope": "one", "page_size": 0,
        "alias_dereferencing": "default", "debug_level": None, "chase_referrals": None, "user_tree_dn": None,
        "user_filter": None, "user_objectclass": "inetOrgPerson", "user_id_attribute": "cn",
        "user_name_attribute": "sn", "user_mail_attribute": "mail", "user_description_attribute": "description",
        "user_pass_attribute": "userPassword", "user_enabled_attribute": "enabled", "user_enabled_invert": False,
        "user_enabled_mask": 0, "user_enabled_default": "True", "user_attribute_ignore": ["default_project_id"],
        "user_default_project_id_attribute": None, "user_enabled_emulation": False, "user_enabled_emulation_dn": None,
        "user_enabled_emulation_use_group_config": False, "user_additional_attribute_mapping": [],
        "group_tree_dn": None, "group_filter": None, "group_objectclass": "groupOfNames", "group_id_attribute": "cn",
        "group_name_attribute": "ou", "group_members_are_ids": False, "group_member_attribute": "member",
        "group_desc_attribute": "description", "group_attribute_ignore": [],
        "group_additional_attribute_mapping": [], "tls_cacertfile": None, "tls_cacertdir": None, "use_tls": False,
        "tls_req_cert": "demand", "use_pool": True, "pool_size": 10, "pool_retry_max": 3, "pool_retry_delay": 0.1,
        "pool_connection_timeout": -1, "pool_connection_lifetime": 600, "use_auth_pool": True, "auth_pool_size": 100,
        "auth_pool_connection_lifetime": 60,
    },
}  # fmt: skip
SENSITIVE: dict[str, tuple[str, ...]] = {"ldap": ("password",)}
COMPLIANCE = ("password_regex", "password_regex_description")


def read(cloud: Cloud, reader: Reader, domain_id: str) -> Config:
    """A domain's own options, secrets included and filled in: ``{group: {option: value}}``; {} when it has none.

    For code inside the program, never for an answer. Raises Fault 503 when the key repository cannot be used.
    """
    out: Config = {}
    hidden: dict[str, Row] = {}
    for row in reader.all(sa.select(DOMAIN_CONFIG).where(_D.domain_id == domain_id)):
        value = row["value"]
        if row["secret"] is not None:
            value = json.loads(credential_keys.keys(cloud).decrypt(row["secret"]))
            hidden.setdefault(row["group_name"], {})[row["option_name"]] = value
        out.setdefault(row["group_name"], {})[row["option_name"]] = value
    for group, secrets in hidden.items():
        for option, value in out[group].items():
            if option not in secrets and isinstance(value, str):
                out[group][option] = _PLACE.sub(lambda m, s=secrets: str(s.get(m[1], m[0])), value)  # type: ignore[misc]
    return out


def configured(reader: Reader) -> list[str]:
    """Ids of the domains that have options of their own."""
    return [id for (id,) in reader.rows(sa.select(_D.domain_id).distinct().order_by(_D.domain_id))]


def forget(tx: Tx, domain_id: str) -> None:
    """Remove the configuration of a domain that goes."""
    tx.execute(sa.delete(DOMAIN_CONFIG).where(_D.domain_id == domain_id))


# --- what may be said ----------------------------------------------------------------------------------------------


def _wrong(message: str) -> Fault:
    return forbidden(message, "Forbidden")


def _known(group: str | None, option: str | None = None) -> None:
    """Raise 403 unless domains may have this group or option of their own."""
    if group is None:
        return
    if group not in DEFAULTS:
        raise _wrong(f"Group {group} is not supported for domains; use {' or '.join(DEFAULTS)}.")
    if option is not None and option not in DEFAULTS[group] and option not in SENSITIVE.get(group, ()):
        raise _wrong(f"{group}.{option} can not be set for a domain.")


def _config(call: Call) -> Row:
    """The body's ``config`` object, else 400."""
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get("config"), dict):
        raise bad_request("The body must be an object with the key 'config'.", "ValidationError")
    found: Row = body["config"]
    return found


def _checked(config: Row) -> Config:
    if not config:
        raise _wrong("No options specified.")
    for group, options in config.items():
        if not isinstance(options, dict) or not options:
            raise _wrong(f"The value of group {group} must be an object of options.")
        for option, value in options.items():
            _known(group, option)
            if isinstance(value, dict):
                raise bad_request(f"config/{group}/{option}: must not be an object.", "ValidationError")
    return config


# --- reading and writing rows --------------------------------------------------------------------------------------


def _where(domain_id: str, group: str | None, option: str | None) -> list[Any]:
    given = [(_D.domain_id, domain_id), (_D.group_name, group), (_D.option_name, option)]
    return [column == value for column, value in given if value is not None]


def _shown(reader: Reader, domain_id: str, group: str | None = None, option: str | None = None) -> Row:
    """What clients see: no sensitive option; for one option just that."""
    where = [*_where(domain_id, group, option), _D.secret.is_(None)]
    rows = reader.all(sa.select(DOMAIN_CONFIG).where(*where).order_by(_D.group_name, _D.option_name))
    if option is not None:
        return {r["option_name"]: r["value"] for r in rows}
    out: Row = {}
    for row in rows:
        out.setdefault(row["group_name"], {})[row["option_name"]] = row["value"]
    return out


def _missing(domain_id: str, group: str | None, option: str | None) -> Fault:
    what = f"option {option} in group {group}" if option else f"group {group}" if group else "any options"
    return Fault(
        404, f"Could not find a configuration of domain {domain_id} with {what}.", "DomainConfigNotFound"
    )  # fmt: skip


def _has(reader: Reader, domain_id: str, group: str | None, option: str | None) -> bool:
    return reader.scalar(sa.select(_D.domain_id).where(*_where(domain_id, group, option)).limit(1)) is not None


def _write(call: Call, domain_id: str, config: Config) -> None:
    for group, options in config.items():
        for option, value in options.items():
            row: Row = {"value": value, "secret": None, "key_hash": None}
            if option in SENSITIVE.get(group, ()):
                keys = credential_keys.keys(call.cloud)
                row = {"value": None, "secret": keys.encrypt(json.dumps(value)), "key_hash": keys.hash}
            where = _where(domain_id, group, option)
            if not call.tx.execute(sa.update(DOMAIN_CONFIG).where(*where).values(row)):
                call.tx.insert(
                    DOMAIN_CONFIG, {"domain_id": domain_id, "group_name": group, "option_name": option, **row}
                )
    bump(call.cloud, call.tx)


# --- handlers ------------------------------------------------------------------------------------------------------


def _domain(call: Call, rule: str) -> tuple[str, str | None, str | None]:
    """Path parts, after policy and after making sure of the domain."""
    call.enforce(f"identity:{rule}")
    id = call.params["domain_id"]
    row = lookup.project(call.tx, id)
    if row is None or not row["is_domain"]:
        raise not_found("domain", id)
    return id, call.params.get("group"), call.params.get("option")


def create(call: Call) -> Reply:
    """PUT /v3/domains/{domain_id}/config: replaces all there is."""
    id, _, _ = _domain(call, "create_domain_config")
    config = _checked(_config(call))
    before = _has(call.tx, id, None, None)
    forget(call.tx, id)
    _write(call, id, config)
    return Reply({"config": _shown(call.tx, id)}, 200 if before else 201)


def show(call: Call) -> Row:
    """GET /v3/domains/{domain_id}/config[/{group}[/{option}]]."""
    if call.params.get("group") == "security_compliance":
        return _compliance(call)
    id, group, option = _domain(call, "get_domain_config")
    _known(group, option)
    found = _shown(call.tx, id, group, option)
    if not found:
        raise _missing(id, group, option)
    return {"config": found}


def _compliance(call: Call) -> Row:
    """The rules for passwords, which everybody who chooses one may read."""
    id, _, option = _domain(call, "get_security_compliance_domain_config")
    if id != lookup.DEFAULT_DOMAIN:
        raise _wrong("Security compliance can be read for the default domain only.")
    if option is not None and option not in COMPLIANCE:
        raise _wrong(f"Of security compliance only {' and '.join(COMPLIANCE)} can be read.")
    settings = call.cloud.settings
    values = {name: getattr(settings, name, None) or None for name in COMPLIANCE}
    return {"config": {option: values[option]} if option else {"security_compliance": values}}


def update(call: Call) -> Row:
    """PATCH /v3/domains/{domain_id}/config[/{group}[/{option}]]."""
    id, group, option = _domain(call, "update_domain_config")
    config = _config(call)
    if group is not None and option is not None:
        config = {group: config}
    _checked(config)
    _known(group, option)
    if group is not None:
        if list(config) != [group]:
            raise _wrong(f"Only the group {group} can be changed here; 'config' must have it and nothing else.")
        if option is not None and list(config[group]) != [option]:
            raise _wrong(f"Only the option {option} can be changed here; 'config' must have it and nothing else.")
        if not _has(call.tx, id, group, option):
            raise _missing(id, group, option)
    _write(call, id, config)
    return {"config": _shown(call.tx, id)}


def delete(call: Call) -> None:
    """DELETE /v3/domains/{domain_id}/config[/{group}[/{option}]]."""
    id, group, option = _domain(call, "delete_domain_config")
    _known(group, option)
    if not call.tx.execute(sa.delete(DOMAIN_CONFIG).where(*_where(id, group, option))) and group is not None:
        raise _missing(id, group, option)
    bump(call.cloud, call.tx)


def defaults(call: Call) -> Row:
    """GET /v3/domains/config[/{group}[/{option}]]/default."""
    call.enforce("identity:get_domain_config_default")
    group, option = call.params.get("group"), call.params.get("option")
    _known(group, option)
    if group is None:
        return {"config": DEFAULTS}
    if option is None:
        return {"config": {group: DEFAULTS[group]}}
    if option not in DEFAULTS[group]:
        raise _wrong(f"The default of option {option} in group {group} is not shown.")
    return {"config": {option: DEFAULTS[group][option]}}


_ALL, _DEFAULT = "/v3/domains/{domain_id}/config", "/v3/domains/config"
_PARTS = (("", "a domain's configuration"), ("/{group}", "a group of it"), ("/{group}/{option}", "one option of it"))
ROUTES = (
    Route(method="PUT", path=_ALL, handler=create, doc="Set a domain's configuration.", tx="write", status=201),
    *(Route(method="GET", path=_ALL + part, handler=show, doc=f"Show {what}.") for part, what in _PARTS),
    *(
        Route(method="PATCH", path=_ALL + part, handler=update, doc=f"Change {what}.", tx="write")
        for part, what in _PARTS
    ),
    *(
        Route(method="DELETE", path=_ALL + part, handler=delete, doc=f"Delete {what}.", tx="write", status=204)
        for part, what in _PARTS
    ),
    Route(method="GET", path=f"{_DEFAULT}/default", handler=defaults, doc="Show what domains have by default."),
    Route(method="GET", path=f"{_DEFAULT}/{{group}}/default", handler=defaults, doc="Show a group's defaults."),
    Route(
        method="GET", path=f"{_DEFAULT}/{{group}}/{{option}}/default", handler=defaults, doc="Show an option's default."
    ),
)
