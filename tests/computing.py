"""Helpers of the Compute tests: a caller with a microversion, an image, a network."""

from __future__ import annotations

from typing import Any

from nubila.testing.cloud import Response, TestCloud

LATEST = "2.100"
MIB = 1 << 20


class Nova:
    """Compute as one user sees it."""

    def __init__(self, cloud: TestCloud, user: str = "admin") -> None:
        self.cloud, self.token = cloud, cloud.token(user)

    def __call__(
        self, method: str, path: str, body: Any = None, *, v: str = LATEST, expect: int | None = None
    ) -> Response:
        got = self.cloud.request(
            method, f"/compute/v2.1{path}", body, token=self.token, headers={"OpenStack-API-Version": f"compute {v}"}
        )
        if expect is not None:
            assert got.status == expect, (method, path, got.status, got.body)
        return got

    def boot(self, image: str, **more: Any) -> dict[str, Any]:
        """Create a server without waiting for anything."""
        body = {"name": "guest", "imageRef": image, "flavorRef": "42", "networks": "none", **more}
        server: dict[str, Any] = self("POST", "/servers", {"server": body}, expect=202).json["server"]
        return server

    def server(self, id: str, v: str = LATEST) -> dict[str, Any]:
        """Show a server."""
        shown: dict[str, Any] = self("GET", f"/servers/{id}", v=v, expect=200).json["server"]
        return shown

    def act(self, id: str, action: dict[str, Any], expect: int = 202) -> Response:
        """Act on a server."""
        return self("POST", f"/servers/{id}/action", action, expect=expect)


def image(cloud: TestCloud, name: str = "tiny", **more: Any) -> str:
    """Upload a small raw image; returns its id."""
    body = {"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public", **more}
    made = cloud.request("POST", "/image/v2/images", body)
    assert made.status == 201, made.body
    id: str = made.json["id"]
    sent = cloud.request(
        "PUT", f"/image/v2/images/{id}/file", headers={"Content-Type": "application/octet-stream"}, body=b"\0" * MIB
    )
    assert sent.status == 204, sent.body
    return id


def network(cloud: TestCloud, token: str, cidr: str = "10.9.0.0/24", name: str = "net") -> tuple[str, str]:
    """Create a network with one subnet; returns both ids."""
    net = cloud.request("POST", "/network/v2.0/networks", {"network": {"name": name}}, token=token).json["network"][
        "id"
    ]
    body = {"subnet": {"network_id": net, "cidr": cidr, "ip_version": 4, "dns_nameservers": ["9.9.9.9"]}}
    subnet = cloud.request("POST", "/network/v2.0/subnets", body, token=token).json["subnet"]["id"]
    return net, subnet
