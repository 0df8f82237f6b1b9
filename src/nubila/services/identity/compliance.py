"""Rules about passwords and accounts that an operator may set: strength, expiry, history, age, lockout, inactivity.

Each setting is off by default and has the name that Keystone's section ``security_compliance`` gives it. Options of a
user (``options.ignore_*``, ``lock_password``) exempt it. Pure decisions come first, then what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.faults import Fault, bad_request
from nubila.core.passwords import verify
from nubila.core.sql import upsert
from nubila.services.identity.kinds_auth import OLD_PASSWORD, SECURITY, USED_PASSCODE

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.config import Settings
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
DAY_S = 86400.0
_S, _O = SECURITY.c, OLD_PASSWORD.c
_SECURITY = sa.select(SECURITY).where(_S.user_id == sa.bindparam("id"))
_EMPTY: Row = {"failures": 0, "failed_at": None, "active_on": None, "changed_at": None, "self_service": False}


# --- decisions -----------------------------------------------------------------------------------------------------


def exempt(user: Row, option: str) -> bool:
    """Whether an option of the user is set (``ignore_password_expiry`` ...)."""
    return bool((user.get("options") or {}).get(option))


def expired(user: Row) -> bool:
    """Whether the user's password has to be changed before it is good for a token."""
    until = user["password_expires_at"]
    return bool(until) and until <= clock.now() and not exempt(user, "ignore_password_expiry")


def locked(settings: Settings, user: Row, security: Row) -> bool:
    """Whether too many wrong passwords were given of late."""
    if not settings.lockout_failure_attempts or security["failures"] < settings.lockout_failure_attempts:
        return False
    if exempt(user, "ignore_lockout_failure_attempts"):
        return False
    return not settings.lockout_duration or security["failed_at"] > _ago(settings.lockout_duration)


def inactive(settings: Settings, user: Row, security: Row) -> bool:
    """Whether the user has not logged in for so many days that it counts as disabled."""
    days = settings.disable_user_account_days_inactive
    if not days or exempt(user, "ignore_user_inactivity"):
        return False
    last = security["active_on"] or user["created_at"] or clock.now()
    return (_day(clock.now()) - _day(last)).days >= days


def expiry(settings: Settings, options: Row | None, *, by_admin: bool) -> str | None:
    """When a password set now stops working; None = never."""
    of = {"options": options}
    forced = by_admin and settings.change_password_upon_first_use
    if forced and not exempt(of, "ignore_change_password_upon_first_use"):
        return clock.now()
    if settings.password_expires_days and not exempt(of, "ignore_password_expiry"):
        return clock.at(int(_seconds() + settings.password_expires_days * DAY_S))
    return None


def strong(settings: Settings, password: str) -> None:
    """Raise 400 when a new password does not match the operator's pattern."""
    if settings.password_regex and not re.match(settings.password_regex, password):
        why = settings.password_regex_description or "it does not match the operator's pattern"
        raise bad_request(f"Choose another password: {why}.", "PasswordValidationError")


def changeable(settings: Settings, user: Row, security: Row) -> None:
    """Raise 400 when the user may not change the password now: locked by an administrator, or too young."""
    if exempt(user, "lock_password"):
        raise bad_request(
            "The password of this user is locked (lock_password); ask an administrator to change it.",
            "PasswordValidationError",
        )
    days = settings.minimum_password_age
    if days and security["self_service"] and security["changed_at"]:
        left = clock.seconds(security["changed_at"]) + days * DAY_S - _seconds()
        if left > 0:
            raise bad_request(
                f"A new password is kept for {days} day(s) before you change it. Try again in "
                f"{int(left // DAY_S)} day(s) or ask an administrator to reset it.",
                "PasswordValidationError",
            )


def expired_fault(user_id: str, headers: dict[str, str]) -> Fault:
    """401 for the right password of a user who has to change it first."""
    text = f"The password is expired and needs to be changed for user: {user_id}."  # clients look for these words
    return Fault(401, text, "HTTPUnauthorized", headers=headers)


# --- what is stored ------------------------------------------------------------------------------------------------


def security(reader: Reader, user_id: str) -> Row:
    """What is known about the user's logins."""
    return reader.one(_SECURITY, {"id": user_id}) or {"user_id": user_id, **_EMPTY}


def usable(cloud: Cloud, reader: Reader, user: Row) -> bool:
    """Whether the user is neither locked nor inactive; costs a query only where either can be."""
    settings = cloud.settings
    if not settings.lockout_failure_attempts and not settings.disable_user_account_days_inactive:
        return True
    known = security(reader, user["id"])
    return not locked(settings, user, known) and not inactive(settings, user, known)


def note_failures(cloud: Cloud, tx: Tx, user_ids: Iterable[str]) -> None:
    """Count one wrong password of each user; after a lock that has run out the count begins anew."""
    settings, now = cloud.settings, clock.now()
    over = sa.and_(
        _S.failures >= settings.lockout_failure_attempts,
        _S.failed_at <= _ago(settings.lockout_duration) if settings.lockout_duration else sa.false(),
    )
    count = sa.case((over, 1), else_=_S.failures + 1)
    for user_id in sorted(set(user_ids)):
        first = {"user_id": user_id, **_EMPTY, "failures": 1, "failed_at": now}
        tx.execute(upsert(cloud.store.dialect, SECURITY, first, {"failures": count, "failed_at": now}))


def note_login(cloud: Cloud, tx: Tx, user: Row, known: Row) -> None:
    """Forget failures, and remember that the user was active today; writes only what changed."""
    values: Row = {"failures": 0, "failed_at": None} if known["failures"] else {}
    today = clock.now()[:10]
    if cloud.settings.disable_user_account_days_inactive and known["active_on"] != today:
        values["active_on"] = today
    if values:
        put(cloud, tx, user["id"], values)


def put(cloud: Cloud, tx: Tx, user_id: str, values: Row) -> None:
    """Set some columns of the user's row."""
    tx.execute(upsert(cloud.store.dialect, SECURITY, {"user_id": user_id, **_EMPTY, **values}, values))


def note_enabled(cloud: Cloud, tx: Tx, user_id: str) -> None:
    """An administrator enabled the user: no failures, active today."""
    put(cloud, tx, user_id, {"failures": 0, "failed_at": None, "active_on": clock.now()[:10]})


def note_password(cloud: Cloud, tx: Tx, user_id: str, old: str | None, *, self_service: bool) -> None:
    """A password was set: its age begins, the old hash becomes history, a lock ends."""
    now = clock.now()
    values = {"changed_at": now, "self_service": self_service, "failures": 0, "failed_at": None}
    put(cloud, tx, user_id, values)
    keep = cloud.settings.unique_last_password_count - 1
    if old and keep > 0:
        tx.insert(OLD_PASSWORD, {"user_id": user_id, "set_at": now, "hash": old})
    last = sa.select(_O.set_at).where(_O.user_id == user_id).order_by(_O.set_at.desc()).limit(1).offset(max(keep, 0))
    if (limit := tx.scalar(last)) is not None:
        tx.execute(sa.delete(OLD_PASSWORD).where(_O.user_id == user_id, _O.set_at <= limit))


def history(settings: Settings, reader: Reader, user: Row) -> list[str]:
    """The hashes that a new password must differ from, newest first."""
    count = settings.unique_last_password_count
    if count <= 0:
        return []
    rows = reader.all(sa.select(_O.hash).where(_O.user_id == user["id"]).order_by(_O.set_at.desc()).limit(count - 1))
    return [h for h in (user["password"], *(r["hash"] for r in rows)) if h]


def new(settings: Settings, hashes: list[str], password: str) -> None:
    """Raise 400 when the password is one of the last; takes the time of a comparison for each."""
    if any(verify(h, password) for h in hashes):
        raise bad_request(
            f"The new password cannot be one of the last {settings.unique_last_password_count}; choose another.",
            "PasswordValidationError",
        )


def inactive_ids(settings: Settings, reader: Reader, users: list[Row]) -> set[str]:
    """Which of these users count as disabled for their inactivity."""
    if not settings.disable_user_account_days_inactive or not users:
        return set()
    rows = reader.all(sa.select(SECURITY).where(_S.user_id.in_([u["id"] for u in users])))
    known = {r["user_id"]: r for r in rows}
    return {u["id"] for u in users if inactive(settings, u, known.get(u["id"], _EMPTY))}


def forget_user(tx: Tx, user_id: str) -> None:
    """The user is being deleted."""
    for table in (SECURITY, OLD_PASSWORD, USED_PASSCODE):
        tx.execute(sa.delete(table).where(table.c.user_id == user_id))


def _seconds() -> float:
    return clock.seconds(clock.now())


def _ago(seconds: float) -> str:
    return clock.at(_seconds() - seconds)


def _day(text: str) -> date:
    return date.fromisoformat(text[:10])
