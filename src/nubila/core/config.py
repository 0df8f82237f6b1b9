"""One typed configuration: ``DIR/nubila.toml``, overridden by command-line options and NUBILA_* variables.

Every setting has a default that works; unknown names are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses as dc
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Sections(dict[str, Any]):
    """Tables of nubila.toml with names of the operator's own; never changed."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # lets it be a default


def setting(default: T, doc: str) -> T:
    """A setting's default and the sentence that the documentation has for it."""
    made: T = dc.field(default=default, metadata={"doc": doc})
    return made


@dc.dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may set. Units are in the names."""

    name: str = setting(
        "nubila", "The cloud's name: it marks everything the cloud makes on hosts, so two clouds can share one machine."
    )
    gear: str = setting(
        "auto", "Which drivers hosts use: real (QEMU, Open vSwitch; needs root), simulated, or auto to choose."
    )
    listen: str = setting("127.0.0.1:5000", "Address and port on which all APIs answer.")
    host_listen: str = setting(
        "", "Address and port of the host API for other machines (mutual TLS); empty: no other host can join."
    )
    classic_ports: bool = setting(
        False, "Whether the APIs also listen on the ports of the original services (5000, 8774, 8778, 9292, 9696)."
    )
    public_url: str = setting(
        "", "Fixed base of the URLs in the catalogue and in links; empty: as the request's Host header says."
    )
    tls_cert: str = setting(
        "",
        "Certificate file (PEM, chain after it) of the API listeners: they speak https; auto: made by the cloud's own "
        "authority; empty: plain http.",
    )
    tls_key: str = setting("", "Private key file (PEM, unencrypted) of tls_cert; empty: the key is in tls_cert.")
    tls_ca: str = setting(
        "", "CA file by which clients verify tls_cert, written into clouds.yaml; empty: what clients trust anyway."
    )
    tls_client_ca: str = setting(
        "", "CA file (PEM) of client certificates; clients are then asked for one (mutual TLS); empty: not asked."
    )
    tls_client_crl: str = setting("", "Revocation list (PEM) of tls_client_ca: revoked certificates are refused.")
    tls_client_required: bool = setting(False, "Whether clients without a certificate of tls_client_ca are refused.")
    trusted_proxies: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1"),
        "Addresses and networks of proxies whose X-Forwarded-For, -Host, -Proto and -Prefix headers are believed.",
    )
    client_cert_header: str = setting(
        "",
        "Header in which a trusted proxy passes on the client certificate it verified (PEM, escaped or base64).",
    )
    audit: bool = setting(True, "Whether logins and changes of Identity are written to DIR/log/audit.log (CADF).")
    audit_opt_out: tuple[str, ...] = setting(
        (), "Events left out of the audit log: identity.authenticate.success, identity.user.updated and the like."
    )
    log_max_bytes: int = setting(100_000_000, "Size in bytes at which a log is rotated.")
    log_keep: int = setting(5, "Number of old logs kept beside each log.")
    database: str = setting(
        "", "SQLAlchemy URL of a PostgreSQL or MariaDB database; empty: SQLite in the state directory."
    )
    host: str = setting("", "This host's name in the cloud; empty: the machine's own.")
    region: str = setting("RegionOne", "Name of the region in the catalogue.")
    api_workers: int = setting(1, "Number of API server processes.")
    controllers: int = setting(0, "Number of controller processes; 0: a thread in the first API server.")
    token_ttl_s: int = setting(3600, "Seconds until a token expires.")
    token_provider: str = setting(
        "fernet", "Which tokens are made: fernet (short), or jws (ES256, readable with public keys); both are accepted."
    )
    oidc: tuple[Any, ...] = setting(
        (),
        "Per identity provider, a table [[oidc]]: identity_provider, issuer, audience, jwks (file or URL), skew_s.",
    )
    default_authorization_ttl: int = setting(
        0, "Minutes that groups given by an identity provider without authorization_ttl are remembered; 0: not at all."
    )
    trusted_dashboards: tuple[str, ...] = setting(
        (), "URLs of dashboards that browsers may be sent back to with a token (web single sign-on)."
    )
    oauth2_cert_dn_mapping_id: str = setting(
        "oauth2_mapping", "The mapping that says which user a client certificate is for (OAuth 2.0 with mutual TLS)."
    )
    limit_model: str = setting(
        "flat",
        "How limits of projects are worked out: flat, or strict_two_level (no project below another, and none has a "
        "higher limit than its domain).",
    )
    bcrypt_rounds: int = setting(12, "Cost of password hashes: the logarithm of the number of rounds.")
    password_hash_algorithm: str = setting(
        "bcrypt", "How passwords are hashed: bcrypt, bcrypt_sha256, scrypt or pbkdf2_sha512; old hashes stay readable."
    )
    password_hash_rounds: int = setting(
        0, "Cost of scrypt (logarithm of N) or pbkdf2_sha512 (iterations); 0: the default. bcrypt has bcrypt_rounds."
    )
    lockout_failure_attempts: int = setting(
        0, "Wrong passwords in a row after which a user is locked; 0: never (see login_failures_per_minute)."
    )
    lockout_duration: int = setting(1800, "Seconds a user stays locked; 0: until an administrator enables it anew.")
    disable_user_account_days_inactive: int = setting(
        0, "Days without a login after which a user counts as disabled; 0: never."
    )
    password_expires_days: int = setting(0, "Days a new password is valid; 0: for ever.")
    unique_last_password_count: int = setting(
        0, "How many of a user's last passwords, the current one included, a new one must differ from; 0: none."
    )
    minimum_password_age: int = setting(0, "Days before users may change a password they chose themselves.")
    password_regex: str = setting("", "Regular expression that new passwords match from their start; empty: any.")
    password_regex_description: str = setting("", "What password_regex asks for, told to users whose password fails.")
    change_password_upon_first_use: bool = setting(
        False, "Whether users must change a password that an administrator gave them before it is good for a token."
    )
    totp_included_previous_windows: int = setting(
        1, "How many 30-second steps a one-time passcode is still good for after its own."
    )
    remote_user_header: str = setting(
        "", "Header in which a trusted proxy names the user it authenticated (method external); empty: not believed."
    )
    remote_domain_header: str = setting("", "Header in which it names that user's domain; empty: the default domain.")
    remote_user_certificate: bool = setting(
        False, "Whether the common name of a verified client certificate is the user's name (method external)."
    )
    login_failures_per_minute: int = setting(
        0, "Failed logins a minute allowed per user and address, then 429 until it is less; 0: no limit."
    )
    max_body_bytes: int = setting(1 << 20, "Largest request body in bytes (image data and host API excepted).")
    image_max_bytes: int = setting(1 << 40, "Largest image in bytes.")
    switch: str = setting(
        "openvswitch", "What joins guests to networks on this host: openvswitch or linuxbridge (kernel bridges)."
    )
    physical_devices: tuple[str, ...] = setting(
        (),
        "Device of each physical network on this host, as NETWORK=DEVICE: an Open vSwitch bridge, or with linuxbridge "
        "the network card; empty: physnet1 is a bridge of its own.",
    )
    tunnel_ip: str = setting(
        "127.0.0.1", "Address of this host for tunnels between hosts; a loopback one means that of host_listen."
    )
    external_cidr: str = setting(
        "",
        "Addresses of the first external network; empty: the first free of 172.24.4.0/24 to 172.24.99.0/24.",
    )
    external_dns: str = setting("", "Name server that guests are told when their subnet names none.")
    vni_range: tuple[int, int] = setting(
        (1, 65535), "First and last VXLAN network identifier given to tenant networks."
    )
    tenant_network_types: tuple[str, ...] = setting(
        ("vxlan",),
        "Types of networks that nobody names a type for, best first: the first with a free id is taken (vxlan, vlan, "
        "gre, geneve, local).",
    )
    vlan_range: tuple[int, int] = setting((1, 4094), "First and last VLAN id given to vlan networks.")
    physical_networks: tuple[str, ...] = setting(
        ("physnet1",),
        "Names of the physical networks that flat and vlan networks may use, besides those that hosts report; `*` "
        "allows flat networks any name.",
    )
    physical_network_mtu: int = setting(1500, "Largest packet in bytes on physical networks.")
    global_mtu: int = setting(1500, "Largest packet in bytes between hosts; tunnels leave less to tenant networks.")
    cpu_ratio: float = setting(4.0, "How many virtual CPUs are offered for each real one.")
    ram_ratio: float = setting(1.0, "How much memory is offered for each byte there is.")
    disk_ratio: float = setting(1.0, "How much disk is offered for each byte there is.")
    l3_ha: bool = setting(False, "Whether new routers are highly available unless they are asked for otherwise.")
    max_l3_agents_per_router: int = setting(3, "On how many hosts a highly available router is; 0: on all.")
    min_l3_agents_per_router: int = setting(1, "How many hosts must be there to make a highly available router.")
    l3_ha_net_cidr: str = setting("169.254.192.0/18", "Addresses of the hidden network between such a router's hosts.")
    ha_vrrp_advert_s: float = setting(0.1, "Seconds between VRRP advertisements (0.01 to 40).")
    network_quotas: tuple[str, ...] = setting(
        (),
        "Limits of Network that projects without their own have, as RESOURCE=NUMBER (-1: unlimited), e.g. router=30, "
        "floatingip=100; resources left out keep the built-in ones (`openstack quota show --default`).",
    )
    resource_provider_bandwidths: tuple[str, ...] = setting(
        (),
        "What bridges or network cards of physical networks carry, as DEVICE:EGRESS:INGRESS in kbit/s seen from "
        "guests on every host, or as HOST:DEVICE:EGRESS:INGRESS on one; DEVICE rp_tunnelled is for networks in "
        "tunnels. Servers with a guaranteed bandwidth go only where it is.",
    )
    resource_provider_inventory_defaults: tuple[str, ...] = setting(
        ("allocation_ratio:1.0", "min_unit:1", "step_size:1", "reserved:0"),
        "What else Placement is told of these bandwidths, as NAME:NUMBER (also max_unit).",
    )
    resource_provider_packet_processing_without_direction: tuple[str, ...] = setting(
        (), "How many kilopackets a second hosts switch, as HOST:RATE, or :RATE for every host."
    )
    resource_provider_packet_processing_with_direction: tuple[str, ...] = setting(
        (), "The same with a rate for each direction, as HOST:EGRESS:INGRESS; instead of the one before."
    )
    resource_provider_packet_processing_inventory_defaults: tuple[str, ...] = setting(
        ("allocation_ratio:1.0", "min_unit:1", "step_size:1", "reserved:0"),
        "What else Placement is told of these packet rates, as NAME:NUMBER (also max_unit).",
    )
    dns_domain: str = setting(
        "openstacklocal", "Domain of guests' names, in which they look names up; networks and ports may add their own."
    )
    dhcp_agents_per_network: int = setting(1, "On how many hosts DHCP runs for each network.")
    dhcp_dns_servers: tuple[str, ...] = setting(
        (), "Name servers that DHCP's own name servers ask; empty: those of the network's subnets, else external_dns."
    )
    dhcp_host_resolvers: bool = setting(
        False, "Whether, without any such name server, they ask those in the network host's /etc/resolv.conf."
    )
    ipv6_pd_enabled: bool = setting(
        False,
        "Whether `use_default_subnetpool` means IPv6 prefix delegation for IPv6 subnets, instead of the default pool.",
    )
    dhcp_standin_after_s: float = setting(
        150.0, "Seconds of silence after which another host serves DHCP for a host's networks as well."
    )
    simulated_boot_s: float = setting(0.0, "Seconds a simulated guest takes to boot.")
    simulated_hosts: int = setting(1, "Number of hosts in the simulated gear.")
    sweep_s: float = setting(60.0, "Seconds between full compares of everything.")
    ldap: Sections = setting(  # noqa: RUF009  # it is how a setting is declared; the class only checks its default
        Sections(), "Directories with users and groups, a table [ldap.<domain name>] for each domain; see docs/ldap.md."
    )

    def __post_init__(self) -> None:
        """Refuse what could only fail at somebody's login. Raises :class:`BadSetting`."""
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise BadSetting(f"setting {name} must not be negative; 0 turns it off")
        try:
            re.compile(self.password_regex)
        except re.error as e:
            raise BadSetting(f"setting password_regex is no regular expression: {e}") from None
        if self.switch not in SWITCHES:
            raise BadSetting(f"setting switch must be one of {', '.join(SWITCHES)}, not {self.switch!r}")
        wrong = [one for one in self.physical_devices if not re.fullmatch(r"[^=\s]{1,64}=[^=\s/]{1,15}", one)]
        if wrong:
            raise BadSetting(f"setting physical_devices: {wrong[0]!r} is not NETWORK=DEVICE, e.g. physnet1=eth1")
        self._check_segments()
        self._check_offers()
        labels = self.dns_domain.removesuffix(".").split(".")
        if not all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", label) for label in labels):
            raise BadSetting(f"setting dns_domain: {self.dns_domain!r} is no domain, e.g. cloud.example.org")
        if self.limit_model not in LIMIT_MODELS:
            raise BadSetting(f"setting limit_model must be one of {', '.join(LIMIT_MODELS)}, not {self.limit_model!r}")
        if self.password_hash_algorithm not in PASSWORD_ALGORITHMS:
            raise BadSetting(
                f"setting password_hash_algorithm must be one of {', '.join(PASSWORD_ALGORITHMS)}, "
                f"not {self.password_hash_algorithm!r}"
            )

    def _check_offers(self) -> None:
        for name, (form, shape) in _OFFERS.items():
            wrong = [one for one in getattr(self, name) if not re.fullmatch(form, str(one))]
            if wrong:
                raise BadSetting(f"setting {name}: {wrong[0]!r} is not {shape}")
        directions = "resource_provider_packet_processing_{}_direction"
        if getattr(self, directions.format("with")) and getattr(self, directions.format("without")):
            raise BadSetting(f"setting {directions.format('with')}: leave it or {directions.format('without')} out")

    def _check_segments(self) -> None:
        for name, most in (("vni_range", 2**24 - 1), ("vlan_range", 4094)):
            given: tuple[Any, ...] = getattr(self, name)
            if not (len(given) == 2 and all(isinstance(n, int) for n in given) and 1 <= given[0] <= given[1] <= most):
                raise BadSetting(f"setting {name} must be two numbers in order, from 1 to {most}, not {given}")
        kinds = self.tenant_network_types
        if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= set(TENANT_TYPES):
            raise BadSetting(
                f"setting tenant_network_types must be some of {', '.join(TENANT_TYPES)}, each once, not {kinds}"
            )
        names: tuple[Any, ...] = self.physical_networks
        if "vlan" in kinds and not set(names) - {"*"}:
            raise BadSetting("setting tenant_network_types has vlan: name a physical network in physical_networks")
        if len(set(names)) != len(names) or not all(isinstance(one, str) and one for one in names):
            raise BadSetting(f"setting physical_networks must be different names, not {names}")


_NOT_NEGATIVE = (
    "lockout_failure_attempts", "lockout_duration", "disable_user_account_days_inactive", "password_expires_days",
    "unique_last_password_count", "minimum_password_age", "totp_included_previous_windows", "login_failures_per_minute",
)  # fmt: skip
_HOST, _RATE = r"[A-Za-z0-9._-]{0,64}", r"(\d{0,9}|1\d{9})"
_DEFAULTS = (
    r"(allocation_ratio:\d{1,5}(\.\d{1,4})?|(min_unit|max_unit|step_size):[1-9]\d{0,8}|reserved:\d{1,9})",
    "NAME:NUMBER with allocation_ratio, min_unit, max_unit, step_size or reserved",
)
_OFFERS = {
    "resource_provider_bandwidths": (
        rf"({_HOST}:)?[^:\s/]{{1,64}}:{_RATE}:{_RATE}", "DEVICE:EGRESS:INGRESS, e.g. br-ex:10000000:10000000",
    ),
    "resource_provider_inventory_defaults": _DEFAULTS,
    "resource_provider_packet_processing_without_direction": (rf"{_HOST}:{_RATE}", "HOST:RATE, e.g. :1000"),
    "resource_provider_packet_processing_with_direction": (
        rf"{_HOST}:{_RATE}:{_RATE}", "HOST:EGRESS:INGRESS, e.g. :1000:1000",
    ),
    "resource_provider_packet_processing_inventory_defaults": _DEFAULTS,
}  # fmt: skip
SWITCHES = ("openvswitch", "linuxbridge")
TENANT_TYPES = ("vxlan", "vlan", "gre", "geneve", "local")
LIMIT_MODELS = ("flat", "strict_two_level")
PASSWORD_ALGORITHMS = ("bcrypt", "bcrypt_sha256", "scrypt", "pbkdf2_sha512")


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
    made = Settings(**clean)
    for text in made.trusted_proxies:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as e:
            raise BadSetting(f"setting trusted_proxies must be addresses or networks: {e}") from None
    return made


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
