"""What is kept about how users authenticate: failures, activity, old passwords, used passcodes. Times as in clock."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

SECURITY = sa.Table(
    "user_security",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False, default=0),  # wrong passwords in a row
    sa.Column("failed_at", sa.String(32)),
    sa.Column("active_on", sa.String(10)),  # day of the last login, written only where inactivity counts
    sa.Column("changed_at", sa.String(32)),  # of the password
    sa.Column("self_service", sa.Boolean, nullable=False, default=False),  # whether the user chose it
)

OLD_PASSWORD = sa.Table(
    "old_password",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("set_at", sa.String(32), primary_key=True),
    sa.Column("hash", sa.String(255), nullable=False),
)

USED_PASSCODE = sa.Table(
    "used_passcode",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),  # RFC 6238's T
    sa.Column("code", sa.String(16), primary_key=True),
)
