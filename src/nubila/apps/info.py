"""Facts about a cloud for people: addresses, exports for the shell, what a thing waits for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from nubila import __version__
from nubila.apps import first
from nubila.apps.lifecycle import Cannot


def _clouds(state: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]
    except FileNotFoundError:
        raise Cannot(f"there is no cloud in {state}; bring one up with `nubila up`, or name it with --state") from None
    return found


def openrc(state: Path, project: str) -> str:
    """Shell exports for one of the first projects."""
    clouds = _clouds(state)
    name = f"nubila-{project}"
    if name not in clouds:
        known = ", ".join(c.removeprefix("nubila-") for c in clouds)
        raise Cannot(f"there is no password for project {project} in {state / 'clouds.yaml'}; it has {known}")
    auth = clouds[name]["auth"]
    exports = {
        "OS_AUTH_URL": auth["auth_url"], "OS_USERNAME": auth["username"], "OS_PASSWORD": auth["password"],
        "OS_PROJECT_NAME": auth["project_name"], "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": clouds[name]["region_name"], "OS_IDENTITY_API_VERSION": "3", "OS_IMAGE_API_VERSION": "2",
    }  # fmt: skip
    if "cacert" in clouds[name]:
        exports["OS_CACERT"] = clouds[name]["cacert"]
    return "".join(f"export {k}={shlex.quote(str(v))}\n" for k, v in exports.items())


def facts(state: Path) -> dict[str, Any]:
    """Where the cloud is and what it is made of."""
    clouds = _clouds(state)
    options = first.overrides(state)
    return {
        "version": __version__, "state": str(state), "gear": options.get("gear"),
        "auth_url": clouds["nubila-admin"]["auth"]["auth_url"], "clouds": str(state / "clouds.yaml"),
        "database": options.get("database") or f"sqlite:///{state / 'nubila.db'}".split("@")[-1],
        "logs": str(state / "log"),
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """The facts as lines."""
    return "".join(f"{k:10} {v}\n" for k, v in found.items())


def why(state: Path, id: str) -> list[str]:
    """What the queue says about one id, and about that on which it depends."""
    from nubila.apps import wiring
    from nubila.core import work
    from nubila.services.network import why as network_why

    cloud = wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))
    with cloud.store.read() as reader:
        lines, others = network_why.about(reader, id)
    for row in [row for one in (id, *others) for row in work.why(cloud.store, one)]:
        where = f"on {row['shard']}" if row["shard"] else "controller"
        due = row["due_in_s"]
        when = "settled" if row["gen"] == row["done"] and due is None else (
            "now" if due is None or due <= 0 else f"again in {due:.0f} s")  # fmt: skip
        lines.append(f"{row['kind']:10} {where:20} {when:16} {row['note'] or '-'}")
    return lines or [f"nothing is recorded about {id}: it does not exist, or it is gone for good"]


def dump(found: Any) -> str:
    """JSON for programs."""
    return json.dumps(found, indent=2)
