"""Check requests signed by OAuth 1.0a (RFC 5849): oauthlib does the protocol, this is where it finds its facts.

HMAC signatures only. The time in a request may differ from ours by ``WINDOW_S``; within it a nonce counts once, on
whichever process (a table), so that a request that was overheard cannot be sent again.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import sqlalchemy as sa
from oauthlib import oauth1
from oauthlib.oauth1.rfc5849 import utils

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.faults import Fault, bad_request
from nubila.services.identity import credential_keys
from nubila.services.identity.kinds_oauth1 import ACCESS_TOKEN, NONCE, REQUEST_TOKEN, Consumer

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
WINDOW_S = 600
_C = Consumer.table
_NO = "0" * 64  # compared with instead of a secret that is not there


def refused(message: str) -> Fault:
    """401."""
    return Fault(401, message, "HTTPUnauthorized")


def headers(call: Call) -> dict[str, str]:
    """The OAuth parameters of the Authorization header; 400 when there is none."""
    try:
        found: dict[str, str] = dict(utils.parse_authorization_header(call.headers.get("authorization", "")))
    except ValueError:
        raise bad_request("The Authorization header must be one of OAuth 1.0a.", "ValidationError") from None
    if not found.get("oauth_consumer_key"):
        raise bad_request("oauth_consumer_key is missing from the Authorization header.", "ValidationError")
    return found


def token(reader: Reader, table: sa.Table, id: str) -> Row | None:
    """A request or access token that has not expired."""
    row: Row | None = reader.one(sa.select(table).where(table.c.id == id, table.c.expires_at > clock.now()))
    return row


class _Facts(oauth1.RequestValidator):
    """What oauthlib asks about consumers and tokens, in the caller's transaction."""

    enforce_ssl = False  # TLS is the listener's business
    client_key_length = request_token_length = access_token_length = (8, 64)
    nonce_length = (8, 64)
    verifier_length = (8, 64)
    timestamp_lifetime = WINDOW_S
    allowed_signature_methods = (oauth1.SIGNATURE_HMAC_SHA1, oauth1.SIGNATURE_HMAC_SHA256, oauth1.SIGNATURE_HMAC_SHA512)
    dummy_client = dummy_request_token = dummy_access_token = "nobody00"

    def __init__(self, cloud: Cloud, reader: Reader) -> None:
        super().__init__()
        self.cloud, self.reader = cloud, reader

    def _plain(self, row: Row | None, column: str) -> str:
        return credential_keys.keys(self.cloud).decrypt(row[column]) if row is not None else _NO

    def _consumer(self, key: str) -> Row | None:
        row: Row | None = self.reader.one(sa.select(_C).where(_C.c.id == key))
        return row

    def get_client_secret(self, client_key: str, request: Any) -> str:
        return self._plain(self._consumer(client_key), "encrypted_secret")

    def get_request_token_secret(self, client_key: str, token_: str, request: Any) -> str:
        return self._plain(token(self.reader, REQUEST_TOKEN, token_), "secret")

    def get_access_token_secret(self, client_key: str, token_: str, request: Any) -> str:
        return self._plain(token(self.reader, ACCESS_TOKEN, token_), "secret")

    def validate_client_key(self, client_key: str, request: Any) -> bool:
        return self._consumer(client_key) is not None

    def validate_request_token(self, client_key: str, token_: str, request: Any) -> bool:
        row = token(self.reader, REQUEST_TOKEN, token_)
        return row is not None and row["consumer_id"] == client_key

    def validate_access_token(self, client_key: str, token_: str, request: Any) -> bool:
        row = token(self.reader, ACCESS_TOKEN, token_)
        return row is not None and row["consumer_id"] == client_key

    def validate_verifier(self, client_key: str, token_: str, verifier: str, request: Any) -> bool:
        row = token(self.reader, REQUEST_TOKEN, token_)
        return bool(
            row is not None and row["verifier"] and same(row["verifier"], verifier)
        )  # fmt: skip

    def validate_timestamp_and_nonce(self, *args: Any, **kwargs: Any) -> bool:
        return True  # once_only, in a transaction that writes

    def validate_redirect_uri(self, client_key: str, redirect_uri: str, request: Any) -> bool:
        return True  # there is no browser to send anywhere

    def validate_requested_realms(self, client_key: str, realms: Any, request: Any) -> bool:
        return True

    def validate_realms(self, client_key: str, token_: str, request: Any, uri: Any = None, realms: Any = None) -> bool:
        return True

    def get_default_realms(self, client_key: str, request: Any) -> list[str]:
        return []

    def get_realms(self, token_: str, request: Any) -> list[str]:
        return []

    def get_redirect_uri(self, token_: str, request: Any) -> str:
        return "oob"

    def invalidate_request_token(self, client_key: str, request_token: str, request: Any) -> None:
        """The handler deletes it."""

    def save_request_token(self, token_: Any, request: Any) -> None:
        """The handler writes it."""

    def save_access_token(self, token_: Any, request: Any) -> None:
        """The handler writes it."""


def same(a: str, b: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a.encode(), b.encode())


def _request(call: Call) -> dict[str, Any]:
    query = f"?{urlencode(call.query)}" if call.query else ""
    sent = {"Authorization": call.headers.get("authorization", "")}
    return {"uri": f"{call.base}{call.path}{query}", "http_method": call.method, "body": "", "headers": sent}


def for_request_token(call: Call) -> None:
    """Raise 401 unless a consumer signed the request for a request token."""
    _accept(oauth1.RequestTokenEndpoint(_Facts(call.cloud, call.tx)).create_request_token_response(**_request(call)))


def for_access_token(call: Call) -> None:
    """Raise 401 unless a consumer signed it with an authorised request token and knows the verifier."""
    _accept(oauth1.AccessTokenEndpoint(_Facts(call.cloud, call.tx)).create_access_token_response(**_request(call)))


def for_resource(call: Call, reader: Reader) -> bool:
    """Whether a consumer signed the request with an access token."""
    endpoint = oauth1.ResourceEndpoint(_Facts(call.cloud, reader))
    valid, _ = endpoint.validate_protected_resource_request(**_request(call))
    return bool(valid)


def _accept(answer: tuple[Any, str | None, int]) -> None:
    _, body, status = answer
    if status == 200:
        return
    if status == 400:
        raise bad_request(f"The OAuth request is not valid: {body}.", "ValidationError")
    raise refused("The OAuth signature, token or verifier is not valid.")


def once_only(tx: Tx, found: dict[str, str]) -> None:
    """Raise 401 when these parameters were sent before."""
    names = ("oauth_consumer_key", "oauth_token", "oauth_timestamp", "oauth_nonce")
    digest = hashlib.sha256(repr([found.get(n) for n in names]).encode()).hexdigest()
    now = int(time.time())
    tx.execute(sa.delete(NONCE).where(NONCE.c.at < now))
    if tx.scalar(sa.select(NONCE.c.at).where(NONCE.c.digest == digest)) is not None:
        raise refused("This request was sent before; sign it anew with another nonce.")
    tx.insert(NONCE, {"digest": digest, "at": now + 2 * WINDOW_S})
