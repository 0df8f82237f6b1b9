"""Machines of a cloud: join tokens, certificates over real TLS, what a host may ask and report, draining, removing."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nubila.agent.client import HostApi, Unreachable
from nubila.apps import hosting
from nubila.apps.lifecycle import Cannot
from nubila.core import hosts, pki, work
from nubila.core.ports import Capabilities
from nubila.testing.cloud import Response, TestCloud, call_app
from nubila.testing.started import Started, free_port, nubila, started

# --- a cloud with a TLS listener, from outside ------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """The running cloud, and how to speak to its listener for hosts."""

    cloud: Started
    port: int

    @property
    def keys(self) -> Path:
        return self.cloud.state / "keys" / "pki"

    @property
    def authority(self) -> pki.Authority:
        return pki.Authority(self.keys, "hosts")

    def token(self, **options: Any) -> str:
        wanted: dict[str, Any] = {"host": None, "roles": ["compute"], "ttl_s": 60.0, **options}
        return hosting.create_token(self.cloud.state, **wanted)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        shown: tuple[Path, Path] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and decoded body; OSError when TLS refuses. ``shown``: certificate and key of the client."""
        context = ssl.create_default_context(cafile=str(self.keys / "ca.pem"))
        if shown is not None:
            context.load_cert_chain(*map(str, shown))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read()
            kind = answer.getheader("content-type") or ""
            return answer.status, json.loads(text) if text and "json" in kind else text
        finally:
            connection.close()

    def join(self, token: str, host: str, csr: str | None = None) -> tuple[int, Any]:
        csr = pki.request(pki.new_key(), host).decode() if csr is None else csr
        return self.ask("POST", "/host/join", {"token": token, "host": host, "csr": csr})

    def public(self, method: str, path: str, **headers: str) -> int:
        """The status on the port that everybody reaches."""
        host, _, port = self.cloud.auth_url.removesuffix("/v3").rpartition("//")[2].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            connection.request(method, path, b"{}" if method == "POST" else None, headers)
            return connection.getresponse().status
        finally:
            connection.close()


@dataclass(frozen=True)
class Joined:
    """A host's name and the files with its certificate and key."""

    name: str
    files: tuple[Path, Path]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    port = free_port()
    with started("simulated", "hosts", ["--host-listen", f"127.0.0.1:{port}", "--host", "ctl"]) as cloud:
        yield Wire(cloud, port)


@pytest.fixture
def member(wire: Wire, tmp_path: Path) -> Joined:
    """A host that has joined and said hello."""
    name = f"h{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    return enrol(wire, tmp_path, name, wire.token())


def enrol(wire: Wire, directory: Path, name: str, token: str) -> Joined:
    key = pki.new_key()
    status, answer = wire.join(token, name, pki.request(key, name).decode())
    assert status == 200, answer
    files = (directory / f"{name}.pem", directory / f"{name}.key")
    files[0].write_text(answer["certificate"])
    files[1].write_bytes(pki.key_pem(key))
    made = Joined(name, files)
    assert wire.ask("POST", "/host/hello", HELLO, shown=made.files)[0] == 200
    return made


HELLO = {
    "roles": ["compute"], "tunnel_ip": "198.18.0.9", "bridges": {},
    "capabilities": {"vcpus": 2, "ram_mb": 1024, "disk_gb": 10},
}  # fmt: skip


@pytest.mark.parametrize("path", ["/host/ca", "/host/join", "/host/every", "//host/every", "/host/take", "/host"])
@pytest.mark.parametrize("forged", ["", "unix", "host:ctl", "tls:anonymous"])
def test_the_public_port_has_no_host_api(wire: Wire, path: str, forged: str) -> None:
    headers = {"X-Nubila-Host": "ctl"}
    if forged:
        headers["X-Forwarded-For"] = forged
    for method in ("GET", "POST"):
        assert wire.public(method, path, **headers) == 404


def test_strangers_can_only_join(wire: Wire) -> None:
    assert wire.ask("GET", "/host/ca") == (200, (wire.keys / "ca.pem").read_bytes())
    for method, path in (
        ("GET", "/host/every"), ("POST", "/host/take"), ("POST", "/host/hello"), ("GET", "/host/images/x"),
        ("GET", "/v3"), ("GET", "/healthz"), ("GET", "/metrics"),
    ):  # fmt: skip
        assert wire.ask(method, path, {} if method == "POST" else None, headers={"X-Nubila-Host": "ctl"})[0] == 404
    assert wire.join("x" * (1 << 17), "big")[0] == 413


def test_a_token_is_good_once_for_its_host_and_cloud(wire: Wire) -> None:
    ours = wire.authority.fingerprint
    good = wire.token(host="one")
    refused = {
        "forged": (f"{'A' * 32}.{ours}", "one", 403, "not one of this cloud's"),
        "without fingerprint": (good.partition(".")[0], "one", 403, "another cloud"),
        "another cloud's": (good.partition(".")[0] + "." + "0" * 64, "one", 403, "another cloud"),
        "expired": (wire.token(ttl_s=-1.0), "one", 403, "expired"),
        "another host's": (good, "two", 403, "for host one"),
        "a taken name": (wire.token(), "ctl", 409, "has joined already"),
        "no name": (good, "../one", 400, "not a host name"),
    }
    for what, (token, host, status, says) in refused.items():
        got, answer = wire.join(token, host)
        assert (got, says in answer["error"]["message"]) == (status, True), (what, answer)
    for csr in ("", "nonsense", pki.new_key().public_key().curve.name):
        assert wire.join(good, "one", csr)[0] == 400, "and the token is not used up"
    assert wire.join(good, "one")[0] == 200
    got, answer = wire.join(good, "one")
    assert (got, "used already" in answer["error"]["message"]) == (403, True)


def test_one_token_admits_one_of_many_at_once(wire: Wire) -> None:
    token, results = wire.token(), []
    threads = [threading.Thread(target=lambda n=n: results.append(wire.join(token, f"crowd{n}")[0])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [200, 403, 403, 403, 403, 403]


def test_the_command_refuses_in_one_sentence_and_leaves_nothing(wire: Wire, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{wire.port}"
    cases = [
        (url, "x.y", "is not the cloud this token was made for"),
        (url, f"{'A' * 32}.{wire.authority.fingerprint}", "make one with"),
        (url.replace("https", "http"), wire.token(), "must be https"),
        (f"https://127.0.0.1:{free_port()}", wire.token(), "cannot reach"),
    ]
    for where, token, says in cases:
        state = tmp_path / "state"
        got = nubila("join", where, "--token", token, "--state", str(state), "--gear", "simulated", "--host", "late")
        assert (got.returncode, says in got.stderr, got.stderr.count("\n")) == (2, True, 1), got.stderr
        assert not state.exists()
    got = nubila("join", url, "--token", wire.token(), "--state", str(wire.cloud.state), "--gear", "simulated")
    assert (got.returncode, "already" in got.stderr) == (2, True), "a running cloud does not become a host"


def sign(
    wire: Wire, directory: Path, name: str, *, days: tuple[float, float] = (-1, 1), ca: pki.Authority | None = None
) -> tuple[Path, Path]:
    """A client certificate by the cloud's (or another) authority, valid for these days from now."""
    authority, key, now = ca or wire.authority, pki.new_key(), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority._key, hashes.SHA256())
    )
    files = (directory / "shown.pem", directory / "shown.key")
    files[0].write_bytes(pki_pem(certificate))
    files[1].write_bytes(pki.key_pem(key))
    return files


def pki_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def test_tls_refuses_certificates_that_are_not_valid(wire: Wire, member: Joined, tmp_path: Path) -> None:
    def refused(shown: tuple[Path, Path]) -> bool:
        try:
            return wire.ask("GET", "/host/every", shown=shown)[0] == 0
        except OSError:
            return True

    assert not refused(member.files)
    assert refused(sign(wire, tmp_path, member.name, days=(-10, -1))), "expired"
    assert refused(sign(wire, tmp_path, member.name, days=(1, 10))), "not valid yet"
    other = pki.Authority(tmp_path / "pki", "hosts")
    assert refused(sign(wire, tmp_path, member.name, ca=other)), "another authority of the same name"
    assert refused((wire.keys / "server.pem", wire.keys / "server.key")), "a server's certificate"


def test_only_the_certificate_in_force_speaks_for_a_host(wire: Wire, member: Joined, tmp_path: Path) -> None:
    assert wire.ask("GET", "/host/every", shown=member.files)[0] == 200
    for name in (member.name, "ctl", "nobody"):
        status, answer = wire.ask("GET", "/host/every", shown=sign(wire, tmp_path, name))
        assert status == 403, (name, answer)
    token = wire.token(host=member.name)
    (tmp_path / "new").mkdir()
    again = enrol(wire, tmp_path / "new", member.name, token)
    assert wire.ask("GET", "/host/every", shown=again.files)[0] == 200
    assert wire.ask("GET", "/host/every", shown=member.files)[0] == 403, "replaced"


def test_a_host_cannot_speak_for_another(wire: Wire, member: Joined) -> None:
    mine = wire.ask("GET", "/host/every", shown=member.files)[1]["kinds"]
    for header in ("X-Nubila-Host", "X-Forwarded-For", "X-Forwarded-Host"):
        assert wire.ask("GET", "/host/every", shown=member.files, headers={header: "ctl"})[1]["kinds"] == mine
    assert not any(mine.values()), "the controller's external network is not this host's"
    for path in ("/v3", "/healthz", "/compute/v2.1/servers", "/host/../v3"):
        assert wire.ask("GET", path, shown=member.files)[0] == 404, "the host API is all that is there"
    said = {**HELLO, "roles": ["compute", "network"]}
    answer = wire.ask("POST", "/host/hello", said, shown=member.files)[1]
    assert (answer["host"], answer["roles"]) == (member.name, ["compute"]), "the token said which roles"


def test_a_removed_host_is_refused_at_once(wire: Wire, member: Joined, tmp_path: Path) -> None:
    got: list[int] = []
    wait = {"max": 1, "wait_s": 25}
    wire.ask("POST", "/host/take", {"max": 64, "wait_s": 0}, shown=member.files)
    waiting = threading.Thread(target=lambda: got.append(wire.ask("POST", "/host/take", wait, shown=member.files)[0]))
    waiting.start()
    done = nubila("host", "remove", member.name, "--force", "--state", str(wire.cloud.state))
    assert done.returncode == 0, done.stderr
    waiting.join(30)
    assert got == [403], "even while it waits for work"
    for method, path in (("GET", "/host/every"), ("POST", "/host/hello"), ("POST", "/host/take")):
        assert wire.ask(method, path, HELLO if method == "POST" else None, shown=member.files)[0] == 403
    listed = json.loads(nubila("host", "list", "--json", "--state", str(wire.cloud.state)).stdout)
    assert member.name not in [h["name"] for h in listed]
    (tmp_path / "new").mkdir()
    back = enrol(wire, tmp_path / "new", member.name, wire.token())
    assert wire.ask("GET", "/host/every", shown=back.files)[0] == 200, "a new token lets it come back"


def test_an_agent_obeys_nobody_else(wire: Wire, member: Joined) -> None:
    """A host's certificate does not make a control plane, though the same authority signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, member.files))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    files = {"certificate": member.files[0], "key": member.files[1], "ca": wire.keys / "ca.pem"}
    try:
        impostor = HostApi(f"https://127.0.0.1:{listener.getsockname()[1]}", member.name, **files)
        with pytest.raises(Unreachable, match="certificate"):
            impostor.every()
    finally:
        listener.close()
    real = HostApi(f"https://localhost:{wire.port}", member.name, **files)
    assert set(real.every()) == {
        "guest", "network", "port", "router", "query", "security_group", "address_set",
    }  # fmt: skip
    real.close()


# --- what a host reports, in process ----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Iterator[TestCloud]:
    """A controller's host, a second network host and a compute host, all alive."""
    made = TestCloud(tmp_path / "cloud", hosts=1)
    made.add_host("host2")
    made.add_host("host3", roles=["compute"])
    (made.state / "run" / "options.json").write_text("{}")
    made.settle()
    yield made
    made.close()


def tell(cloud: TestCloud, host: str, path: str, body: Any) -> Response:
    headers = {"x-nubila-host": host}
    return call_app(cloud.edge, "POST", f"/host{path}", body=msgspec.json.encode(body), headers=headers, peer="unix")


@pytest.mark.parametrize(
    "wrong",
    [{"tunnel_ip": "here"}, {"tunnel_ip": "0.0.0.0"}, {"tunnel_ip": "224.0.0.1"}, {"tunnel_ip": "x" * 999},
     {"roles": "compute"}, {"bridges": {"a": 1}}, {"capabilities": {}},
     {"capabilities": {"vcpus": "many", "ram_mb": 1, "disk_gb": 1}},
     {"capabilities": {"vcpus": -1, "ram_mb": 1, "disk_gb": 1}},
     {"capabilities": {"vcpus": 2**63, "ram_mb": 1, "disk_gb": 1}}],
    ids=str,
)  # fmt: skip
def test_a_hello_that_would_hurt_others_is_refused(cloud: TestCloud, wrong: dict[str, Any]) -> None:
    with cloud.cloud.store.read() as reader:
        before = hosts.get(reader, "host1")
    assert tell(cloud, "host1", "/hello", {**HELLO, **wrong}).status == 400
    with cloud.cloud.store.read() as reader:
        assert hosts.get(reader, "host1") == before


SHAPES: list[Any] = [
    [], "x", 1, {"power": 1, "boots": "x"}, {"power": "on", "boots": {}}, {"power": ["on"]}, {"status": 5},
    {"status": ["ACTIVE"]}, {"fault": {}}, {"status": "ACTIVE", "nics": 1}, {"answer": "x"}, {"power": None},
    {"power": "on", "boots": 10**30},
]  # fmt: skip


def test_odd_reports_are_refused_and_nothing_gets_stuck(three: TestCloud) -> None:
    server = make_server(three, network_of(three))
    for ending in (
        {"again_s": float("1e300")}, {"again_s": -1}, {"again_s": "x"}, {"gone": "x"}, {"note": 5}, {"gen": -1},
        {"token": 2**70}, {"kind": 5},
    ):  # fmt: skip
        one = {"kind": "guest", "id": "x", "gen": 1, "token": 1, **ending}
        assert tell(three, "host1", "/settle", {"items": [one]}).status == 400, ending
    tried: set[tuple[str, int]] = set()
    for shape in SHAPES:
        for agent in three.agents:
            agent._greet()  # frees what the last odd report has left leased, and asks for everything
            for item in tell(three, agent.place.host, "/take", {"wait_s": 0}).json["items"]:
                said = {**{k: item[k] for k in ("kind", "id", "gen", "token")}, "observed": shape, "again_s": 0}
                got = tell(three, agent.place.host, "/settle", {"items": [said]})
                assert got.status in (200, 400), (item["kind"], shape, got.body)
                tried.add((item["kind"], got.status))
    assert {kind for kind, _ in tried} == {"network", "port", "guest", "security_group", "address_set"}
    for agent in three.agents:
        agent._greet()
    three.settle()
    assert work.invariants(three.cloud.store) == []
    assert work.pending(three.cloud.store) == []
    shown = three.request("GET", f"/compute/v2.1/servers/{server}").json["server"]
    assert shown["status"] in ("ACTIVE", "ERROR", "SHUTOFF")


# --- draining and removing, in process --------------------------------------------------------------------------------


def network_of(cloud: TestCloud, *, router: bool = False) -> str:
    n = "/network/v2.0"
    network: str = cloud.request("POST", f"{n}/networks", {"network": {"name": "n"}}).json["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
    subnet_id = cloud.request("POST", f"{n}/subnets", {"subnet": subnet}).json["subnet"]["id"]
    if router:
        made = cloud.request("POST", f"{n}/routers", {"router": {"name": "r"}}).json["router"]["id"]
        path = f"{n}/routers/{made}/add_router_interface"
        assert cloud.request("PUT", path, {"subnet_id": subnet_id}).status == 200
    cloud.settle()
    return network


def make_server(cloud: TestCloud, network: str, zone: str | None = None) -> str:
    body = {"name": "i", "disk_format": "raw", "container_format": "bare"}
    image = cloud.request("POST", "/image/v2/images", body).json["id"]
    octets = {"content-type": "application/octet-stream"}
    cloud.request("PUT", f"/image/v2/images/{image}/file", body=b"x" * 4096, headers=octets)
    flavor = cloud.request("GET", "/compute/v2.1/flavors").json["flavors"][0]["id"]
    wish = {"name": "s", "imageRef": image, "flavorRef": flavor, "networks": [{"uuid": network}]}
    if zone:
        wish["availability_zone"] = zone
    made = cloud.request("POST", "/compute/v2.1/servers", {"server": wish})
    assert made.status == 202, made.body
    cloud.settle()
    return str(made.json["server"]["id"])


def status_of(cloud: TestCloud, id: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.request("GET", f"/compute/v2.1/servers/{id}").json["server"]
    return found


def settled(cloud: TestCloud, act: Callable[[], Any]) -> Any:
    result = act()
    cloud.settle()
    return result


def where(cloud: TestCloud, network: str) -> tuple[set[str], set[str]]:
    """The hosts of the DHCP server and of the router, as the API shows them."""
    n = "/network/v2.0"
    ports = cloud.request("GET", f"{n}/ports", query={"network_id": network}).json["ports"]
    return (
        {p["binding:host_id"] for p in ports if p["device_owner"] == "network:dhcp"},
        {p["binding:host_id"] for p in ports if p["device_owner"] == "network:router_interface"},
    )


def test_a_drained_host_hands_over_and_takes_nothing_new(three: TestCloud) -> None:
    network = network_of(three, router=True)
    for _ in range(2):  # there and back
        dhcp_on, router_on = where(three, network)
        assert dhcp_on | router_on <= {"host1", "host2"}
        for name in sorted(dhcp_on | router_on):
            said = settled(three, lambda name=name: hosting.drain(three.state, name))  # type: ignore[misc]
            assert "takes nothing new" in said
            assert name not in set.union(*where(three, network)), "routers and DHCP have moved"
            assert all(where(three, network)), "to somewhere"
            gone = next(a for a in three.agents if a.place.host == name)
            assert gone.drivers.network.routers() == []
            assert status_of(three, make_server(three, network, f"nova:{name}"))["status"] == "ERROR"
            settled(three, lambda name=name: hosting.enable(three.state, name))  # type: ignore[misc]
    assert status_of(three, make_server(three, network, "nova:host1"))["status"] == "ACTIVE"
    assert work.pending(three.cloud.store) == []


def test_the_last_network_host_goes_on_while_it_is_drained(three: TestCloud) -> None:
    network = network_of(three, router=True)
    for name in ("host1", "host2"):
        settled(three, lambda name=name: hosting.drain(three.state, name))  # type: ignore[misc]
    dhcp_on, router_on = where(three, network)
    assert dhcp_on == router_on
    assert len(router_on) == 1
    assert router_on <= {"host1", "host2"}, "better from there than from nowhere"
    with pytest.raises(Cannot, match="1 routers and DHCP for 1 networks"):
        hosting.remove(three.state, router_on.copy().pop(), force=False, patience_s=0.0)
    settled(three, lambda: hosting.enable(three.state, "host1"))
    settled(three, three.sweep)
    assert where(three, network) == ({"host1"}, {"host1"})
    three.settle()
    assert "is removed" in hosting.remove(three.state, "host2", force=False)


def test_a_host_with_guests_is_not_removed(three: TestCloud) -> None:
    server = make_server(three, network_of(three), "nova:host3")
    with pytest.raises(Cannot, match="1 guests are still on host3"):
        hosting.remove(three.state, "host3", force=False)
    assert status_of(three, server)["status"] == "ACTIVE"
    assert three.request("DELETE", f"/compute/v2.1/servers/{server}").status == 204
    three.settle()
    assert "is removed" in hosting.remove(three.state, "host3", force=False)
    assert status_of(three, make_server(three, network_of(three), "nova:host1"))["status"] == "ACTIVE"


def test_guests_given_up_with_a_host_can_be_deleted(three: TestCloud) -> None:
    server = make_server(three, network_of(three), "nova:host3")
    hosting.remove(three.state, "host3", force=True)
    assert three.request("DELETE", f"/compute/v2.1/servers/{server}").status == 204
    three.agents.pop()
    three.settle()
    assert three.request("GET", f"/compute/v2.1/servers/{server}").status == 404


def test_a_host_that_does_not_exist_is_named(three: TestCloud) -> None:
    for act in (hosting.drain, hosting.enable):
        with pytest.raises(Cannot, match="there is no host nowhere"):
            act(three.state, "nowhere")
    with pytest.raises(Cannot, match="there is no host nowhere"):
        hosting.remove(three.state, "nowhere", force=False)


def test_capabilities_survive_the_trip(cloud: TestCloud) -> None:
    what = Capabilities(vcpus=3, ram_mb=2048, disk_gb=7, traits=("A", "B"))
    assert tell(cloud, "host1", "/hello", {**HELLO, "capabilities": msgspec.to_builtins(what)}).status == 200
    with cloud.cloud.store.read() as reader:
        row = hosts.get(reader, "host1")
    assert row is not None
    assert msgspec.convert(row["capabilities"], Capabilities) == what
