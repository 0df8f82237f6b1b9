"""First start: clouds.yaml and openrc for whoever started the cloud, and the options it was started with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nubila.core.config import Settings


def overrides(state: Path) -> dict[str, Any]:
    """The options of the last ``nubila up``, kept so that a restarted process means the same."""
    try:
        found: dict[str, Any] = json.loads((state / "run" / "options.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def write_private(path: Path, text: str) -> None:
    """Write a 0600 file, complete or absent."""
    temp = path.with_name(path.name + ".new")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as f:
        f.write(text)
    temp.rename(path)


def auth_url(settings: Settings) -> str:
    """Where clients find Identity."""
    host, _, port = settings.listen.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}.get(host, host)
    scheme = "https" if settings.tls_cert else "http"
    return (settings.public_url.rstrip("/") or f"{scheme}://{host}:{port}") + "/v3"


def clouds_yaml(url: str, passwords: Mapping[str, str], region: str) -> dict[str, Any]:
    """The content of clouds.yaml: clouds nubila-admin and nubila-demo."""

    def cloud(user: str) -> dict[str, Any]:
        return {
            "auth": {
                "auth_url": url, "username": user, "password": passwords[user], "project_name": user,
                "user_domain_id": "default", "project_domain_id": "default",
            },
            "region_name": region, "identity_api_version": 3, "interface": "public",
        }  # fmt: skip

    return {"clouds": {"nubila-admin": cloud("admin"), "nubila-demo": cloud("demo")}}


def write_clouds(state: Path, url: str, passwords: Mapping[str, str] | None, region: str, cacert: str = "") -> None:
    """Write ``DIR/clouds.yaml``; without passwords (not the first start) only URL and CA are brought up to date."""
    path = state / "clouds.yaml"
    if passwords is None:
        if not path.exists():
            return
        found = yaml.safe_load(path.read_text()) or {}
        for cloud in found.get("clouds", {}).values():
            cloud["auth"]["auth_url"] = url
    else:
        found = clouds_yaml(url, passwords, region)
    for cloud in found.get("clouds", {}).values():
        cloud.pop("cacert", None)
        if cacert:
            cloud["cacert"] = cacert
    write_private(path, yaml.safe_dump(found, sort_keys=False))
