"""One typed configuration: ``DIR/nubila.toml``, overridden by command-line options and NUBILA_* variables.

Every setting has a default that works; unknown names are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses as dc
import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dc.dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may set. Units are in the names."""

    name: str = "nubila"  # the cloud's name: marks everything on hosts
    gear: str = "auto"  # real | simulated | auto
    listen: str = "127.0.0.1:5000"
    host_listen: str = (
        ""  # address:port of the host API for other machines (mutual TLS); "" = off until a token is made
    )
    classic_ports: bool = False
    public_url: str = ""  # fixed base of the catalogue; "" = follow the request's Host header
    database: str = ""  # SQLAlchemy URL; "" = SQLite in the state directory
    host: str = ""  # this host's name; "" = the machine's
    region: str = "RegionOne"
    api_workers: int = 1
    controllers: int = 0  # extra controller processes; 0 = a thread in the first API worker
    token_ttl_s: int = 3600
    token_max_active_keys: int = 3
    bcrypt_rounds: int = 12
    max_body_bytes: int = 1 << 20
    image_max_bytes: int = 1 << 40
    tunnel_ip: str = "127.0.0.1"
    external_cidr: str = ""  # e.g. 172.24.4.0/24; "" = the first free of 172.24.4.0/24 ... 172.24.99.0/24
    external_dns: str = ""
    vni_range: tuple[int, int] = (1, 65535)
    vlan_range: tuple[int, int] = (1, 4094)
    physical_networks: tuple[str, ...] = ("physnet1",)
    physical_network_mtu: int = 1500
    global_mtu: int = 1500
    cpu_ratio: float = 4.0
    ram_ratio: float = 1.0
    disk_ratio: float = 1.0
    dhcp_agents_per_network: int = 1
    simulated_boot_s: float = 0.0
    simulated_hosts: int = 1
    sweep_s: float = 60.0  # full compare of everything


class BadSetting(ValueError):
    """A setting that is unknown or has the wrong form; the text names it and the nearest known one."""


def load(path: Path, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file (absent = defaults), then NUBILA_<NAME> variables, then overrides."""
    known = {f.name: f for f in dc.fields(Settings)}
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values.update(tomllib.loads(path.read_text()))
        except tomllib.TOMLDecodeError as e:
            raise BadSetting(f"{path}: {e}") from None
    for name in known:
        text = (environ if environ is not None else os.environ).get(f"NUBILA_{name.upper()}")
        if text is not None:
            values[name] = text
    values.update({k: v for k, v in (overrides or {}).items() if v is not None})
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadSetting(f"{path}: unknown setting {name!r}{hint}")
        clean[name] = _as(type(known[name].default), name, value)
    return Settings(**clean)


def _as(kind: type, name: str, value: Any) -> Any:
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(int(p) if str(p).lstrip("-").isdigit() else p for p in parts)
        if kind is bool and not isinstance(value, bool):
            raise TypeError
        return kind(value)
    except (ValueError, TypeError, KeyError):
        raise BadSetting(f"setting {name} must be a {kind.__name__}, not {value!r}") from None
