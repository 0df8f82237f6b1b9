"""``nubila launch NAME``: image, network, key, guest and floating IP in one go."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
import yaml

from nubila.apps import lifecycle
from nubila.apps.client import ApiError, Client, poll


def _client(state: Path, project: str) -> Client:
    try:
        found = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"][f"nubila-{project}"]
        auth = found["auth"]
    except FileNotFoundError:
        raise lifecycle.Cannot(f"there is no cloud in {state}; bring one up with `nubila up -d`") from None
    except KeyError:
        raise lifecycle.Cannot(f"{state / 'clouds.yaml'} has no cloud nubila-{project}; use admin or demo") from None
    try:
        return Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"], found.get("cacert"))
    except OSError as e:
        raise lifecycle.Cannot(f"the cloud does not answer ({e}); bring it up with `nubila up -d`") from None


def _image(state: Path, gear: str) -> str:
    admin = _client(state, "admin")
    found = admin.call("GET", "image", "/images", name="tiny")["images"]
    if found:
        return str(found[0]["id"])
    body = {"name": "tiny", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
    if gear == "real":
        from nubila.apps.quickstart import cached_image

        path = cached_image(lambda line: click.echo(f"  {line}"))
    else:
        body["disk_format"] = "raw"
        path = state / "tiny.raw"
        path.write_bytes(bytes(1 << 20))
    image: str = admin.call("POST", "image", "/images", body)["id"]
    admin.upload(image, path)
    return image


def _network(c: Client) -> tuple[str, str]:
    """The project's network "launch" with its router, and the external network."""
    external = c.call("GET", "network", "/networks", **{"router:external": "true"})["networks"][0]["id"]
    found = c.call("GET", "network", "/networks", name="launch", project_id=c.project_id)["networks"]
    if found:
        return found[0]["id"], external
    network = c.call("POST", "network", "/networks", {"network": {"name": "launch"}})["network"]["id"]
    body = {"network_id": network, "cidr": "10.100.0.0/24", "ip_version": 4, "name": "launch"}
    subnet = c.call("POST", "network", "/subnets", {"subnet": body})["subnet"]["id"]
    router = {"name": "launch", "external_gateway_info": {"network_id": external}}
    router_id = c.call("POST", "network", "/routers", {"router": router})["router"]["id"]
    c.call("PUT", "network", f"/routers/{router_id}/add_router_interface", {"subnet_id": subnet})
    return network, external


def _group(c: Client) -> None:
    """Let SSH and ping in through a group of our own."""
    if c.call("GET", "network", "/security-groups", name="launch", project_id=c.project_id)["security_groups"]:
        return
    group = c.call("POST", "network", "/security-groups", {"security_group": {"name": "launch"}})["security_group"][
        "id"
    ]
    for rule in ({"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}, {"protocol": "icmp"}):
        body: dict[str, Any] = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", **rule}
        c.call("POST", "network", "/security-group-rules", {"security_group_rule": body})


def _key(c: Client, state: Path) -> Path:
    path = state / "launch_key"
    if not path.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    public = path.with_suffix(".pub").read_text().strip()
    try:
        body = {"keypair": {"name": "launch", "type": "ssh", "public_key": public}}
        c.call("POST", "compute", "/os-keypairs", body)
    except ApiError as e:
        if e.status != 409:
            raise
    return path


def launch(state: Path, name: str, *, flavor: str, project: str) -> None:
    """Start a guest and say how to log in. Raises Cannot with what went wrong."""
    gear = str(lifecycle.status(state).get("gear"))
    c = _client(state, project)
    try:
        image = _image(state, gear)
        network, external = _network(c)
        _group(c)
        key = _key(c, state)
        flavors = c.call("GET", "compute", "/flavors")["flavors"]
        flavor_id = next((f["id"] for f in flavors if flavor in (f["name"], f["id"])), None)
        if flavor_id is None:
            raise lifecycle.Cannot(f"there is no flavor {flavor}; there are {', '.join(f['name'] for f in flavors)}")
        body = {"server": {
            "name": name, "imageRef": image, "flavorRef": flavor_id, "key_name": "launch",
            "networks": [{"uuid": network}], "security_groups": [{"name": "launch"}, {"name": "default"}],
        }}  # fmt: skip
        server = c.call("POST", "compute", "/servers", body)["server"]["id"]
        click.echo(f"server {name} ({server}) is being built")

        def active() -> bool:
            found = c.call("GET", "compute", f"/servers/{server}")["server"]
            if found["status"] == "ERROR":
                raise lifecycle.Cannot(f"{name} is in ERROR: {found.get('fault', {}).get('message', '')}")
            return bool(found["status"] == "ACTIVE")

        poll("ACTIVE", active, 120)
        port = c.call("GET", "network", "/ports", device_id=server)["ports"][0]["id"]
        wanted = {"floatingip": {"floating_network_id": external, "port_id": port}}
        address = c.call("POST", "network", "/floatingips", wanted)["floatingip"]["floating_ip_address"]
    except (ApiError, OSError, TimeoutError) as e:
        raise lifecycle.Cannot(str(e)) from None
    click.echo(f"ACTIVE; floating IP {address}")
    if gear == "real":
        click.echo(f"log in: ssh -i {key} cirros@{address}")
