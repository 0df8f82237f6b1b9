"""Authentication by whoever is in front: a proxy that names the user, or the client certificate of a TLS connection.

Off unless a setting says so. The header (REMOTE_USER in other servers' terms) is believed only from an address in
``trusted_proxies``; everybody else's is ignored. The certificate is one that our own listener, or a trusted proxy,
verified. The user must exist; without a domain from the proxy it is one of the default domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from nubila.core.call import Call
from nubila.services.identity import compliance
from nubila.services.identity.lookup import DEFAULT_DOMAIN
from nubila.services.identity.proof import Proof, find_user

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.config import Settings
    from nubila.core.db import Reader

Row = dict[str, Any]


def enabled(settings: Settings) -> bool:
    """Whether anybody is trusted to name users."""
    return bool(settings.remote_user_header or settings.remote_user_certificate)


def remote_user(call: Call) -> Row | None:
    """The user (``{name, domain}``) that a trusted front vouches for, None without one."""
    settings = call.cloud.settings
    if settings.remote_user_header and call.from_proxy:
        name = call.headers.get(settings.remote_user_header.lower(), "")
        if name:
            header = settings.remote_domain_header.lower()
            domain = call.headers.get(header, "") if header else ""
            return {"name": name, "domain": {"name": domain} if domain else {"id": DEFAULT_DOMAIN}}
    if settings.remote_user_certificate and call.client_cert:
        try:
            subject = x509.load_der_x509_certificate(call.client_cert).subject
        except ValueError:
            return None
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) == 1 and names[0].value:
            return {"name": str(names[0].value), "domain": {"id": DEFAULT_DOMAIN}}
    return None


def prove(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """The user that the front names."""
    name = remote_user(proof.call)
    user = find_user(reader, name) if name else None
    if user is not None and not compliance.usable(cloud, reader, user):
        user = None
    proof.users.append(user["id"] if user else None)


def implied(cloud: Cloud, reader: Reader, proof: Proof) -> None:
    """Count a front's user also when the request does not ask for the method, unless there is no such user."""
    name = remote_user(proof.call)
    user = find_user(reader, name) if name else None
    if user is not None and compliance.usable(cloud, reader, user):
        proof.users.append(user["id"])
        proof.methods.insert(0, "external")
