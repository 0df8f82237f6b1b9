"""``nubila quickstart``: a small real cloud, proved step by step, then taken away again (after seed 000).

Two projects with two web servers each behind a router, a third with a guest on a private and one on a shared network.
Every claim is tried with real packets; the first one that fails ends the run with what was seen and where to look.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nubila.apps import lifecycle, supervisor
from nubila.apps.client import ApiError, Client, poll

BOOT_S = 120.0
WEB = """#!/bin/sh
mkdir -p /tmp/www
hostname > /tmp/www/index.html
httpd -p 80 -h /tmp/www || busybox httpd -p 80 -h /tmp/www
"""


class Failed(Exception):
    """A step that did not hold: what was seen."""


@dataclass
class Guest:
    """One guest of the story."""

    name: str
    project: str
    id: str = ""
    fixed: str = ""
    floating: str = ""
    port: str = ""


@dataclass
class Story:
    """What the steps share."""

    state: Path
    keep: bool
    image: Path | None
    clients: dict[str, Client] = field(default_factory=dict)
    admin: Client = None  # type: ignore[assignment]  # set by the first step
    ids: dict[str, str] = field(default_factory=dict)
    guests: list[Guest] = field(default_factory=list)
    timings: list[tuple[str, float]] = field(default_factory=list)
    key: Path = field(default_factory=Path)
    tty: bool = field(default_factory=lambda: sys.stdout.isatty())
    began: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print a step with its time; turn what goes wrong into Failed."""
        if self.tty:
            print(f"  ..      {title}", end="", flush=True)
        start = time.monotonic()
        try:
            yield
        except (ApiError, OSError, TimeoutError, subprocess.SubprocessError, lifecycle.Cannot, KeyError) as e:
            if self.tty:
                print()
            raise Failed(f"{title}: {type(e).__name__}: {e}") from e
        taken = time.monotonic() - start
        self.timings.append((title, taken))
        print(f"{chr(13) if self.tty else ''}{taken:7.2f} s  {title}", flush=True)


def cached_image(say: Callable[[str], None]) -> Path:
    """The tiny image, built once and kept."""
    from nubila.drivers import tiny_image

    base = Path("/var/cache/nubila") if os.geteuid() == 0 else Path.home() / ".cache" / "nubila"
    base.mkdir(parents=True, exist_ok=True)
    path = base / "tiny.qcow2"
    tiny_image.build(path, say)
    return path


def run(state: Path | None, *, keep: bool, image: Path | None, report: Path | None) -> int:
    """Tell the story; exit status 0 when everything held."""
    own = state is None
    where = state or Path(tempfile.mkdtemp(prefix="nubila-quickstart-"))
    story = Story(where, keep, image)
    print(f"nubila quickstart: state in {where}")
    status = 1
    try:
        for part in (_cloud, _resources, _boot, _prove, _isolation, _cleanup):
            part(story)
        total = time.monotonic() - story.began
        print(f"\nTEST PASSED in {total:.1f} s")
        status = 0
    except Failed as e:
        print(f"\nTEST FAILED: {e}")
        print(f"look further: nubila status --state {where}; logs in {where}/log; nubila doctor --state {where}")
        keep = True
    except KeyboardInterrupt:
        print("\ninterrupted")
    if report is not None:
        report.write_text(json.dumps({"passed": status == 0, "steps": story.timings}, indent=1))
    if keep:
        print(f"left running: nubila destroy --state {where} --yes removes it")
    else:
        lifecycle.destroy(where)
        if own:
            shutil.rmtree(where, ignore_errors=True)
    return status


# --- the parts --------------------------------------------------------------------------------------------------------


def _cloud(s: Story) -> None:
    if s.image is None:
        with s.step("guest image (built from packages once, then cached)"):
            s.image = cached_image(lambda line: None)
    with s.step("cloud up, every API answers"):
        if not supervisor.running(s.state):
            port = lifecycle.free_port()
            name = "qs" + secrets.token_hex(2)
            made = lifecycle.up(s.state, {"gear": "real", "listen": f"127.0.0.1:{port}", "name": name})
            lifecycle.start_detached(s.state)
            s.ids["auth_url"] = made.url
        lifecycle.wait(s.state, 30)
    with s.step("administrator logs in"):
        import yaml

        auth = yaml.safe_load((s.state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"]
        s.ids["auth_url"] = auth["auth_url"]
        s.admin = Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"])
    with s.step(f"image uploaded ({s.image.stat().st_size >> 20} MB)"):
        body = {"name": "tiny", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        s.ids["image"] = s.admin.call("POST", "image", "/images", body)["id"]
        s.admin.upload(s.ids["image"], s.image)


def _resources(s: Story) -> None:
    with s.step("projects proj_1, proj_2, proj_3, each with a user"):
        roles = s.admin.call("GET", "identity", "/roles", name="member")["roles"]
        for name in ("proj_1", "proj_2", "proj_3"):
            project = s.admin.call("POST", "identity", "/projects", {"project": {"name": name, "domain_id": "default"}})
            password = secrets.token_urlsafe(18)
            user = s.admin.call("POST", "identity", "/users", {"user": {"name": name, "password": password}})
            path = f"/projects/{project['project']['id']}/users/{user['user']['id']}/roles/{roles[0]['id']}"
            s.admin.call("PUT", "identity", path)
            s.clients[name] = Client(s.ids["auth_url"], name, password, name)
    with s.step("key pair, security groups"):
        s.key = s.state / "quickstart_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(s.key)], check=True, timeout=30,
                       stdin=subprocess.DEVNULL)  # fmt: skip
        public = s.key.with_suffix(".pub").read_text().strip()
        for name, c in s.clients.items():
            c.call("POST", "compute", "/os-keypairs", {"keypair": {"name": "key", "type": "ssh", "public_key": public}})
            group = c.call("POST", "network", "/security-groups", {"security_group": {"name": "web"}})
            s.ids[f"web {name}"] = group["security_group"]["id"]
            rules: list[dict[str, Any]] = [
                {"protocol": "tcp", "port_range_min": p, "port_range_max": p} for p in (22, 80)
            ]
            for rule in [*rules, {"protocol": "icmp"}]:
                whole = {"security_group_id": s.ids[f"web {name}"], "direction": "ingress", "ethertype": "IPv4", **rule}
                c.call("POST", "network", "/security-group-rules", {"security_group_rule": whole})
    external = s.admin.call("GET", "network", "/networks", **{"router:external": "true"})["networks"][0]["id"]
    s.ids["external"] = external
    with s.step("a network, subnet and router for each project; a shared network"):
        for i, (name, c) in enumerate(s.clients.items(), 1):
            s.ids[f"net {name}"] = _network(c, f"net_{i}", f"10.{i}.0.0/24", external, {})
        s.ids["net shared"] = _network(s.admin, "shared", "10.9.0.0/24", external, {"shared": True})


def _network(c: Client, name: str, cidr: str, external: str, more: dict[str, Any]) -> str:
    network = c.call("POST", "network", "/networks", {"network": {"name": name, **more}})["network"]["id"]
    subnet = {"network_id": network, "cidr": cidr, "ip_version": 4, "name": name, "dns_nameservers": ["10.255.255.53"]}
    subnet_id = c.call("POST", "network", "/subnets", {"subnet": subnet})["subnet"]["id"]
    router = {"name": f"router_{name}", "external_gateway_info": {"network_id": external}}
    router_id = c.call("POST", "network", "/routers", {"router": router})["router"]["id"]
    c.call("PUT", "network", f"/routers/{router_id}/add_router_interface", {"subnet_id": subnet_id})
    return str(network)


def _boot(s: Story) -> None:
    import base64

    plan = [
        ("proj_1", "web_1a", "net proj_1"), ("proj_1", "web_1b", "net proj_1"),
        ("proj_2", "web_2a", "net proj_2"), ("proj_2", "web_2b", "net proj_2"),
        ("proj_3", "private_3", "net proj_3"), ("proj_3", "shared_3", "net shared"),
    ]  # fmt: skip
    flavors = s.admin.call("GET", "compute", "/flavors/detail")["flavors"]
    flavor = min((f for f in flavors if f["ram"] >= 128), key=lambda f: (f["ram"], f["disk"]))["id"]
    with s.step(f"{len(plan)} guests asked for"):
        for project, name, net in plan:
            c = s.clients[project]
            body = {"server": {
                "name": name, "imageRef": s.ids["image"], "flavorRef": flavor, "key_name": "key",
                "networks": [{"uuid": s.ids[net]}], "security_groups": [{"name": "web"}],
                "user_data": base64.b64encode(WEB.encode()).decode(),
            }}  # fmt: skip
            made = c.call("POST", "compute", "/servers", body)["server"]
            s.guests.append(Guest(name, project, made["id"]))
    with s.step("all guests ACTIVE"):
        for g in s.guests:
            _active(s.clients[g.project], g)
    with s.step("a floating IP for each"):
        for g in s.guests:
            c = s.clients[g.project]
            port = c.call("GET", "network", "/ports", device_id=g.id)["ports"][0]
            g.port, g.fixed = port["id"], port["fixed_ips"][0]["ip_address"]
            body = {"floatingip": {"floating_network_id": s.ids["external"], "port_id": g.port}}
            g.floating = c.call("POST", "network", "/floatingips", body)["floatingip"]["floating_ip_address"]


def _active(c: Client, g: Guest) -> None:
    def look() -> bool:
        server = c.call("GET", "compute", f"/servers/{g.id}")["server"]
        if server["status"] == "ERROR":
            raise KeyError(f"{g.name} is in ERROR: {server.get('fault', {}).get('message')}")
        return bool(server["status"] == "ACTIVE")

    poll(f"{g.name} ACTIVE", look, 60)


def _ssh(s: Story, g: Guest, command: str, timeout_s: float = 30) -> str:
    options = ["-i", str(s.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
               "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR"]  # fmt: skip
    done = subprocess.run(["ssh", *options, f"cirros@{g.floating}", command], capture_output=True, text=True,
                          timeout=timeout_s, stdin=subprocess.DEVNULL)  # fmt: skip
    if done.returncode:
        raise OSError(
            f"ssh to {g.name} ({g.floating}) `{command}`: status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    return done.stdout


def _each(s: Story, check: Callable[[Guest], None]) -> None:
    with ThreadPoolExecutor(len(s.guests)) as pool:
        list(pool.map(check, s.guests))


def _prove(s: Story) -> None:
    with s.step("every guest got its address by DHCP and its key by metadata: SSH by floating IP"):

        def logs_in(g: Guest) -> None:
            seen = poll(f"ssh to {g.name}", lambda: _ssh(s, g, "ip -4 addr show; hostname"), BOOT_S, 0.5)
            if g.fixed not in seen:
                raise OSError(f"{g.name} should have {g.fixed}: {seen}")
            if g.name.replace("_", "-") not in seen:
                raise OSError(f"{g.name} did not take its host name from metadata: {seen}")

        _each(s, logs_in)
    with s.step("HTTP to each web server"):

        def serves(g: Guest) -> None:
            def look() -> bool:
                with urllib.request.urlopen(f"http://{g.floating}/", timeout=5) as answer:
                    return g.name.replace("_", "-") in answer.read().decode()

            poll(f"HTTP from {g.name}", look, 30, 0.3)

        _each(s, serves)
    with s.step("guest to guest inside a project"):
        by_name = {g.name: g for g in s.guests}
        for a, b in (("web_1a", "web_1b"), ("web_2b", "web_2a")):
            _ssh(s, by_name[a], f"ping -c 2 -W 2 {by_name[b].fixed}")
            _ssh(s, by_name[a], f"timeout 5 wget -q -O - http://{by_name[b].fixed}/")
    with s.step("console log shows the login prompt"):
        for g in s.guests:
            poll(f"login prompt of {g.name}", partial(_shows_login, s, g), 20)


def _shows_login(s: Story, g: Guest) -> bool:
    answer = s.clients[g.project].call("POST", "compute", f"/servers/{g.id}/action", {"os-getConsoleOutput": {}})
    return "login:" in answer["output"]


def _isolation(s: Story) -> None:
    by_name = {g.name: g for g in s.guests}
    with s.step("no packet between projects"):
        for a, b in (("web_1a", "web_2a"), ("web_2a", "private_3"), ("private_3", "web_1b")):
            command = f"ping -c 2 -W 1 {by_name[b].fixed} >/dev/null 2>&1 && echo REACHED || echo nothing"
            if "REACHED" in _ssh(s, by_name[a], command):
                raise Failed(f"{a} reached {b} on its private address {by_name[b].fixed}")
    with s.step("nothing through a port that the security group closes"):
        g = by_name["web_1a"]
        _ssh(s, g, "setsid nc -ll -p 8081 -e /bin/cat >/dev/null 2>&1 </dev/null &")
        inside = "nc -w 1 127.0.0.1 8081 </dev/null && echo OPEN || echo closed"
        poll("the listener inside the guest", lambda: "OPEN" in _ssh(s, g, inside), 20, 0.3)
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((g.floating, 8081)) == 0:
                raise Failed(f"port 8081 of {g.name} answers although no rule opens it")


def _no_servers(c: Client) -> bool:
    return not c.call("GET", "compute", "/servers")["servers"]


def _delete_networks(c: Client) -> None:
    for router in c.call("GET", "network", "/routers", project_id=c.project_id)["routers"]:
        for port in c.call("GET", "network", "/ports", device_id=router["id"])["ports"]:
            if port["device_owner"] == "network:router_interface":
                path = f"/routers/{router['id']}/remove_router_interface"
                c.call("PUT", "network", path, {"port_id": port["id"]})
        c.call("DELETE", "network", f"/routers/{router['id']}")
    for network in c.call("GET", "network", "/networks", project_id=c.project_id)["networks"]:
        if not network["router:external"]:
            c.call("DELETE", "network", f"/networks/{network['id']}")


def _cleanup(s: Story) -> None:
    if s.keep:
        return
    with s.step("deletion leaves nothing behind"):
        for g in s.guests:
            s.clients[g.project].call("DELETE", "compute", f"/servers/{g.id}")
        for c in [*s.clients.values(), s.admin]:
            for ip in c.call("GET", "network", "/floatingips", project_id=c.project_id)["floatingips"]:
                c.call("DELETE", "network", f"/floatingips/{ip['id']}")
        for name, c in s.clients.items():
            poll(f"servers of {name} gone", partial(_no_servers, c), 60)
        for c in [*s.clients.values(), s.admin]:
            _delete_networks(c)
        here = s.state / "hosts"

        def nothing() -> bool:
            left = [str(p) for p in here.glob("*/guests/*")]
            spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, timeout=10).stdout
            ours = [n for n in s.ids.values() if f"qdhcp-{n}" in spaces]
            if left or ours:
                raise OSError(f"left behind: {left} {ours}")
            return True

        poll("nothing left on the host", nothing, 30)
