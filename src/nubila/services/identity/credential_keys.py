"""Encryption of secrets in the database: credentials' blobs, sensitive options of domains, secrets of OAuth.

Goal: a copy of the database alone gives no secret away. Fernet messages (AES-128-CBC with HMAC-SHA256) made with the
primary key of ``keys/credential`` in the state directory, a key repository with the same layout as the tokens' (files
0, 1, 2 ... of mode 0600; the highest is the primary, 0 is staged, the rest still read). Each secret is kept with the
hash of the key that made it, so that :func:`migrate` finds what an older key made, and :func:`rotate` refuses to drop a
key that is still needed.

The directory is read again when it changed, looked at once a second at most. When what is there cannot be used the
keys read before stay in use; without any, whoever needs a secret gets 503 with the reason. Keys are made once, with the
cloud (:func:`setup`), and never by themselves: new keys in an emptied directory would look like damaged secrets.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from nubila.core import clock
from nubila.core.faults import unavailable
from nubila.core.tokens import DEFAULT_MAX_ACTIVE_KEYS, KeysError, rotate_keys, setup_keys
from nubila.services.identity.kinds import Credential
from nubila.services.identity.kinds_config import DOMAIN_CONFIG
from nubila.services.identity.kinds_oauth1 import ACCESS_TOKEN, REQUEST_TOKEN, Consumer

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

CHECK_S = 1.0
_BATCH = 200
_CRED = Credential.table
_SECRETS = (  # table, key columns, the column with the secret
    (_CRED, (_CRED.c.id,), _CRED.c.encrypted_blob),
    (DOMAIN_CONFIG, (DOMAIN_CONFIG.c.domain_id, DOMAIN_CONFIG.c.group_name, DOMAIN_CONFIG.c.option_name),
     DOMAIN_CONFIG.c.secret),
    (Consumer.table, (Consumer.table.c.id,), Consumer.table.c.encrypted_secret),
    (REQUEST_TOKEN, (REQUEST_TOKEN.c.id,), REQUEST_TOKEN.c.secret),
    (ACCESS_TOKEN, (ACCESS_TOKEN.c.id,), ACCESS_TOKEN.c.secret),
)  # fmt: skip


class RotationRefused(Exception):
    """Dropping a key now would lose secrets; the text says what to do first."""


@dataclass(frozen=True)
class Keys:
    """The keys of one state of the directory, primary first."""

    raw: tuple[bytes, ...]
    fernet: MultiFernet
    hash: str  # of the primary, as stored in the column key_hash

    def encrypt(self, text: str) -> str:
        """The secret as it is stored, with :attr:`hash` beside it."""
        return self.fernet.encrypt(text.encode("utf-8", "surrogatepass")).decode("ascii")

    def decrypt(self, stored: str) -> str:
        """The secret. Raises Fault 503 when no key of ours made it."""
        try:
            return self.fernet.decrypt(stored.encode("ascii", "replace")).decode("utf-8", "surrogatepass")
        except InvalidToken:
            raise unavailable(
                "A secret in the database was made with a credential key that is not in the key repository; "
                "restore keys/credential from a backup."
            ) from None


def directory(cloud: Cloud) -> Path:
    """Where the keys are."""
    return cloud.state / "keys" / "credential"


def setup(cloud: Cloud) -> None:
    """Make the directory (0700) with a primary and a staged key (0600); harmless when they are there."""
    setup_keys(directory(cloud))


def read(where: Path) -> Keys:
    """The keys of a directory. Raises :class:`~nubila.core.tokens.KeysError` naming the file and the fix."""
    try:
        numbers = sorted((int(n) for n in os.listdir(where) if n.isascii() and n.isdigit()), reverse=True)
        raw = tuple((where / str(n)).read_bytes().strip() for n in numbers)
    except OSError as e:
        raise KeysError(f"credential keys: {e.filename} cannot be read: {e.strerror}; restore it") from None
    if not raw:
        raise KeysError(f"credential keys: {where} holds no keys; restore them from a backup")
    made = []
    for number, key in zip(numbers, raw, strict=True):
        try:
            made.append(Fernet(key))
        except ValueError:
            raise KeysError(f"credential keys: {where / str(number)} is not a Fernet key; restore it") from None
    return Keys(raw, MultiFernet(made), hashlib.sha256(raw[0]).hexdigest())


class _Kept:
    """What one process has read, and what is wrong with the directory as it is now."""

    def __init__(self) -> None:
        self.keys: Keys | None = None
        self.problem: str | None = None
        self.seen: tuple[int, int] | None = None
        self.next = 0.0


def _kept(cloud: Cloud) -> _Kept:
    found: _Kept = cloud.memory.setdefault("identity.credential_keys", _Kept())
    return found


def keys(cloud: Cloud) -> Keys:
    """The keys in force. Raises Fault 503 when there are none."""
    kept, now = _kept(cloud), clock.monotonic()
    if kept.keys is None or now >= kept.next:
        kept.next = now + CHECK_S
        where = directory(cloud)
        try:
            stat = os.stat(where)
            if kept.keys is None or (stat.st_mtime_ns, stat.st_ino) != kept.seen:
                kept.keys = read(where)
                kept.seen = (stat.st_mtime_ns, stat.st_ino)
            kept.problem = None
        except KeysError as e:
            kept.problem = str(e)
        except OSError as e:
            kept.problem = f"credential keys: {where} cannot be read: {e.strerror}; restore it"
    if kept.keys is None:
        raise unavailable(f"Secrets cannot be read or written: {kept.problem}.")
    return kept.keys


def problem(cloud: Cloud) -> str | None:
    """Why the directory as it is now is not in use; None when it is (for ``nubila doctor``)."""
    try:
        read(directory(cloud))
    except KeysError as e:
        return str(e)
    return None


def behind(reader: Reader, key_hash: str) -> int:
    """How many secrets were made with another key than the one with this hash."""
    return sum(
        int(reader.scalar(
            sa.select(sa.func.count()).select_from(table).where(secret.is_not(None), table.c.key_hash != key_hash)
        ) or 0)
        for table, _, secret in _SECRETS
    )  # fmt: skip


def rotate(cloud: Cloud, max_active_keys: int = DEFAULT_MAX_ACTIVE_KEYS) -> int:
    """Make the staged key the primary and stage a new one; return the primary's number.

    Run :func:`migrate` afterwards. Raises :class:`RotationRefused` while secrets made with an older key are left,
    because the oldest key may be dropped, and :class:`~nubila.core.tokens.KeysError` without keys.
    """
    now = read(directory(cloud))
    with cloud.store.read() as reader:
        left = behind(reader, now.hash)
    if left:
        raise RotationRefused(f"{left} secrets were made with an older key; migrate them first.")
    primary = rotate_keys(directory(cloud), max_active_keys)
    _kept(cloud).keys = None
    return primary


def migrate(cloud: Cloud) -> int:
    """Make every secret anew with the primary key; return how many were not. May be killed and repeated."""
    found, done = read(directory(cloud)), 0
    for table, key, secret in _SECRETS:
        where = (secret.is_not(None), table.c.key_hash != found.hash)
        while True:
            with cloud.store.write() as tx:
                rows = tx.rows(sa.select(secret, *key).where(*where).order_by(*key).limit(_BATCH).with_for_update())
                for stored, *id in rows:
                    mine = [column == value for column, value in zip(key, id, strict=True)]
                    values = {secret.name: found.encrypt(found.decrypt(stored)), "key_hash": found.hash}
                    tx.execute(sa.update(table).where(secret == stored, *mine).values(values))
            done += len(rows)
            if len(rows) < _BATCH:
                break
    return done
