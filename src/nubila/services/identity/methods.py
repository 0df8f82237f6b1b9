"""Which authentication methods there are: one line here per method. Its parts are described in proof.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nubila.core.config import Settings
from nubila.services.identity import federation_login, methods_external, methods_totp, oauth1
from nubila.services.identity import methods_basic as basic
from nubila.services.identity.proof import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "password": Method(basic.by_password, basic.PASSWORD_SCHEMA),
        "token": Method(basic.by_token, basic.TOKEN_SCHEMA),
        "application_credential": Method(basic.by_app_cred, basic.APP_CRED_SCHEMA),
        "totp": Method(methods_totp.prove, methods_totp.SCHEMA),
        "oauth1": Method(oauth1.prove, oauth1.SCHEMA),
        "mapped": Method(federation_login.prove, federation_login.SCHEMA),
        "external": Method(methods_external.prove, enabled=methods_external.enabled),
    }
)


def enabled(settings: Settings) -> tuple[str, ...]:
    """Names of the methods that this cloud offers."""
    return tuple(name for name, method in METHODS.items() if method.enabled(settings))


def schemas() -> dict[str, Any]:
    """The JSON Schema of each method's object, for the request's."""
    return {name: dict(method.schema) for name, method in METHODS.items()}
