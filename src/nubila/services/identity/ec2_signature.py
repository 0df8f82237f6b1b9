"""Signatures of the EC2 and S3 APIs, worked out again from what a service passes on of a request.

Versions 2 and 4 of AWS request signing (and the S3 string of version 1, HMAC-SHA1). Pure functions: no clock, no
database. Anything missing or malformed raises :class:`BadSignature` with a sentence that gives no secret away.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"
_S3_SERVICES = ("s3", "iam", "sts")
_OLD_BOTO = re.compile(r"Boto/2\.[0-9]\.[0-2]")  # signs the host without its port


class BadSignature(Exception):
    """The request was not signed with the secret, or not in a way that is understood."""


def same(given: Any, wanted: str) -> bool:
    """Compare two signatures in constant time."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(), wanted.encode())


def _texts(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise BadSignature(f"{what} must be an object.")
    return {k: v if isinstance(v, str) else str(v) for k, v in value.items()}


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise BadSignature(f"{name} is missing.")
    return value


def _query(params: Mapping[str, str]) -> str:
    return "&".join(f"{quote(k, safe='-_~')}={quote(v, safe='-_~')}" for k, v in sorted(params.items()))


def _sha256(key: bytes, message: str | bytes) -> bytes:
    return hmac.digest(key, message.encode() if isinstance(message, str) else message, "sha256")


def _derived(secret: str, *parts: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (*parts, "aws4_request"):
        key = _sha256(key, part)
    return key


# --- EC2 -----------------------------------------------------------------------------------------------------------


def ec2_signed(secret: str, given: Mapping[str, Any]) -> bool:
    """Whether ``given`` (access, signature, verb, host, path, params, headers, body_hash) was signed with the secret.

    Some clients sign the host without its port: that is tried too.
    """
    signature = given.get("signature")
    if not signature:
        raise BadSignature("EC2 signature not supplied.")
    host = _text(given, "host")
    if same(signature, ec2_signature(secret, given, host)):
        return True
    try:
        bare = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return bool(bare and bare != host and same(signature, ec2_signature(secret, given, bare)))


def ec2_signature(secret: str, given: Mapping[str, Any], host: str) -> str:
    """The signature such a request must have."""
    params = _texts(given.get("params") or {}, "params")
    headers = {k.lower().strip(): v.strip() for k, v in _texts(given.get("headers") or {}, "headers").items()}
    version = params.get("SignatureVersion")
    if version == "2":
        return _version2(secret, given, host, params)
    if version is not None:
        raise BadSignature("SignatureVersion must be 2, or absent for version 4.")
    if headers.get("authorization", "").startswith(ALGORITHM) or params.get("X-Amz-Algorithm") == ALGORITHM:
        return _version4(secret, given, host, params, headers)
    raise BadSignature("The signature is of no known form; sign with version 2 or 4.")


def _version2(secret: str, given: Mapping[str, Any], host: str, params: dict[str, str]) -> str:
    if params.get("SignatureMethod", "HmacSHA256") not in ("HmacSHA256", "HmacSHA1"):
        raise BadSignature("SignatureMethod must be HmacSHA256.")
    signed = {**params, "SignatureMethod": "HmacSHA256"}
    signed.pop("Signature", None)
    message = f"{_text(given, 'verb')}\n{host}\n{_text(given, 'path')}\n{_query(signed)}"
    return base64.b64encode(_sha256(secret.encode(), message)).decode()


def _version4(secret: str, given: Mapping[str, Any], host: str, params: dict[str, str], headers: dict[str, str]) -> str:
    authorization = headers.get("authorization", "")

    def part(name: str) -> str:
        if authorization:
            found = authorization.partition(f"{name}=")[2].split(",")[0].strip()
        else:
            found = params.get(f"X-Amz-{name}", "")
        if not found:
            raise BadSignature(f"{name} is missing from the signature.")
        return found

    verb, names, scope = _text(given, "verb").upper(), part("SignedHeaders"), part("Credential").split("/")
    if len(scope) != 5 or scope[4] != "aws4_request":
        raise BadSignature("Credential must be KEY/DATE/REGION/SERVICE/aws4_request.")
    if scope[0] != given.get("access"):
        raise BadSignature("Credential names another access key.")
    at = headers.get("x-amz-date") or params.get("X-Amz-Date") or ""
    if not at or not at.startswith(scope[1]):
        raise BadSignature("X-Amz-Date is missing or not of the day in Credential.")
    if "host" not in names.split(";"):
        raise BadSignature("SignedHeaders must have host.")
    if "host" in headers:
        given_host = headers["host"]
        old = _OLD_BOTO.match(headers.get("user-agent", "")) is not None
        headers = {**headers, "host": given_host.split(":")[0] if old else given_host}
    else:
        headers = {**headers, "host": host}
    listed = "".join(f"{name}:{headers[name]}\n" for name in names.split(";") if name in headers)
    query = "" if verb == "POST" else _query({k: v for k, v in params.items() if k != "X-Amz-Signature"})
    canonical = "\n".join((verb, _text(given, "path"), query, listed, names, _text(given, "body_hash")))
    message = "\n".join((ALGORITHM, at, "/".join(scope[1:]), hashlib.sha256(canonical.encode()).hexdigest()))
    return _sha256(_derived(secret, *scope[1:4]), message).hex()


def ec2_time(given: Mapping[str, Any]) -> datetime | None:
    """When a request was signed, from what the signature covers; None when it does not say.

    Raises :class:`BadSignature` for what is no time.
    """
    params = _texts(given.get("params") or {}, "params")
    if params.get("SignatureVersion") == "2":
        text = params.get("Timestamp")
    else:
        headers = {k.lower().strip(): v.strip() for k, v in _texts(given.get("headers") or {}, "headers").items()}
        text = headers.get("x-amz-date") or params.get("X-Amz-Date")
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadSignature("The timestamp is not one like 2030-01-31T12:00:00Z.") from None


# --- S3 ------------------------------------------------------------------------------------------------------------


def s3_signed(secret: str, given: Mapping[str, Any]) -> bool:
    """Whether ``given`` (access, signature, token: the string to sign, base64) was signed with the secret."""
    try:
        message = base64.urlsafe_b64decode(_text(given, "token"))
    except (ValueError, binascii.Error):
        raise BadSignature("token must be base64.") from None
    if message[:4] != b"AWS4":
        wanted = base64.b64encode(hmac.digest(secret.encode(), message, "sha1")).decode()
        return same(given.get("signature"), wanted)
    lines = message.decode("utf-8", "replace").split("\n")
    scope = lines[2].split("/") if len(lines) == 4 else []
    if lines[0] != ALGORITHM or len(scope) != 4 or scope[3] != "aws4_request" or scope[2] not in _S3_SERVICES:
        raise BadSignature("token is not a string to sign of version 4.")
    return same(given.get("signature"), _sha256(_derived(secret, *scope[:3]), message).hex())
