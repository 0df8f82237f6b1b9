"""Operating Identity: addresses in the catalogue, proxies, first things made again, keys."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from nubila.apps import wiring
from nubila.core import pki
from nubila.core.config import BadSetting, Settings, load
from nubila.edge.forwarded import Proxies, der
from nubila.testing.cloud import Response, TestCloud

FORGED = {"X-Forwarded-Host": "evil.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}


def login(cloud: TestCloud, **how: object) -> Response:
    body = {"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": "admin", "domain": {"id": "default"}, "password": cloud.passwords["admin"]}}},
        "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
    }}  # fmt: skip
    got = cloud.request("POST", "/v3/auth/tokens", body, token="", **how)  # type: ignore[arg-type]
    assert got.status == 201, got.body
    return got


def urls(got: Response) -> set[str]:
    return {e["url"].partition("/v")[0] for s in got.json["token"]["catalog"] for e in s["endpoints"]}


# --- the catalogue's host ---------------------------------------------------------------------------------------------


def test_the_catalogue_follows_the_name_the_client_used(cloud: TestCloud) -> None:
    for host in ("cloud.example.org", "10.1.2.3:5000", "[2001:db8::1]:5000"):
        assert all(u.startswith(f"http://{host}") for u in urls(login(cloud, headers={"host": host})))


def test_a_trusted_proxy_says_what_the_client_used(cloud: TestCloud) -> None:
    sent = {"X-Forwarded-Host": "a.example, api.example.org", "X-Forwarded-Proto": "https"}
    got = login(cloud, headers=sent, client="127.0.0.1")
    assert all(u.startswith("https://api.example.org") for u in urls(got))
    under = login(cloud, headers={**sent, "X-Forwarded-Prefix": "/cloud/"})
    assert all(u.startswith("https://api.example.org/cloud") for u in urls(under))
    project = cloud.request("GET", "/v3/projects", headers=sent).json["projects"][0]
    assert project["links"]["self"].startswith("https://api.example.org/v3/projects/")


def test_nobody_else_does(cloud: TestCloud) -> None:
    got = login(cloud, headers={"host": "10.0.0.5:5000", **FORGED}, client="192.0.2.77")
    assert all(u.startswith("http://10.0.0.5:5000") for u in urls(got))
    for junk in ("a b", "evil/../x", "x@y", "a\\b", ""):
        got = login(cloud, headers={"host": "10.0.0.5:5000", "X-Forwarded-Host": junk})
        assert all(u.startswith("http://10.0.0.5:5000") for u in urls(got))


def test_a_fixed_address_wins(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "c", public_url="https://cloud.example.org/")
    try:
        for headers in ({}, {"host": "other:1"}, FORGED):
            assert all(u.startswith("https://cloud.example.org") and "//" not in u[8:] for u in
                       urls(login(cloud, headers=headers)))  # fmt: skip
        refused = cloud.request("GET", "/v3/projects", token="", headers=FORGED)
        assert refused.headers["www-authenticate"] == 'Keystone uri="https://cloud.example.org/v3"'
    finally:
        cloud.close()


# --- who may speak for the client -------------------------------------------------------------------------------------


def seen(settings: Settings, client: str, **headers: str):  # type: ignore[no-untyped-def]
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Proxies(settings).seen({"client": (client, 1), "scheme": "http"}, named)


def test_the_client_is_the_last_address_that_is_no_proxy_of_ours() -> None:
    settings = Settings(trusted_proxies=("10.0.0.0/8", "::1"))
    assert seen(settings, "10.0.0.1", x_forwarded_for="1.1.1.1, 192.0.2.9, 10.0.0.2").peer == "192.0.2.9"
    assert seen(settings, "::ffff:10.0.0.1", x_forwarded_for="192.0.2.9").peer == "192.0.2.9"
    assert seen(settings, "::1", x_forwarded_for="2001:db8::1").peer == "2001:db8::1"
    assert seen(settings, "10.0.0.1", x_forwarded_for="unix").peer == "10.0.0.1"
    assert seen(settings, "10.0.0.1", x_forwarded_for="host:a#b, 10.0.0.3").peer == "10.0.0.3"
    assert seen(settings, "192.0.2.1", x_forwarded_for="1.1.1.1").peer == "192.0.2.1"
    assert seen(settings, "192.0.2.1").proxied is False
    assert seen(settings, "10.9.9.9").proxied is True


def test_a_proxy_passes_the_client_certificate_on(tmp_path: Path) -> None:
    authority = pki.Authority(tmp_path, "c")
    pem = authority.pem.decode()
    raw = der(pem)
    assert raw is not None
    told = Settings(client_cert_header="X-SSL-Client-Cert")
    for text in (pem, pem.replace("\n", " "), quote(pem), base64.b64encode(raw).decode()):
        assert seen(told, "127.0.0.1", x_ssl_client_cert=text).client_cert == raw
        assert seen(told, "192.0.2.1", x_ssl_client_cert=text).client_cert is None
        assert seen(Settings(), "127.0.0.1", x_ssl_client_cert=text).client_cert is None
    for junk in ("", "(null)", "AAAA", "%zz", "-----BEGIN CERTIFICATE-----"):
        assert seen(told, "127.0.0.1", x_ssl_client_cert=junk).client_cert is None


def test_proxies_are_addresses(tmp_path: Path) -> None:
    (tmp_path / "nubila.toml").write_text('trusted_proxies = ["the-proxy"]\n')
    with pytest.raises(BadSetting, match="trusted_proxies must be addresses or networks"):
        load(tmp_path / "nubila.toml", environ={})
    assert wiring.settings(tmp_path / "none").trusted_proxies == ("127.0.0.0/8", "::1")
