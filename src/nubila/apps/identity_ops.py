"""Operating Identity from outside the API: first things made again, and keys."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nubila.apps import first, wiring
from nubila.apps.lifecycle import Cannot
from nubila.core import jws, keyfiles, tokens
from nubila.core.cloud import Cloud
from nubila.services.identity import audit, credential_keys, hashing
from nubila.services.identity.bootstrap import NeedsPassword, Wanted, repair

PASSWORD_VARIABLE = "OS_BOOTSTRAP_PASSWORD"  # the name keystone-manage uses
DIRECTORIES = {
    "fernet": ("fernet",), "jws": ("jws/private", "jws/public"), "credential": ("credential",),
}  # fmt: skip
NOT_SECRET = ("jws/public",)


def given_password(path: Path | None) -> str | None:
    """The password in a file's first line or in the environment; None when there is neither. Raises Cannot."""
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE) or None
    try:
        text = path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as e:
        raise Cannot(f"{path} cannot be read as text: {e}") from None
    if not text:
        raise Cannot(f"the first line of {path} is empty; write the password there")
    return text


@contextmanager
def _opened(state: Path) -> Iterator[Cloud]:
    if not (state / "run" / "options.json").exists():
        raise Cannot(f"there is no cloud in {state}; bring one up with `nubila up`, or name it with --state")
    try:
        cloud = wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))
    except (keyfiles.KeysError, ValueError) as e:
        raise Cannot(str(e)) from None
    try:
        yield cloud
    finally:
        cloud.store.close()


# --- first things -----------------------------------------------------------------------------------------------------


def bootstrap(
    state: Path, password: str | None, *, user: str, project: str, role: str, service_name: str, region_id: str,
    public_url: str, internal_url: str, admin_url: str,
) -> list[str]:  # fmt: skip
    """Make sure that somebody can administer the cloud; returns what was done, line by line. Raises Cannot."""
    urls = {"public": public_url, "internal": internal_url, "admin": admin_url}
    with _opened(state) as cloud:
        wanted = Wanted(
            password=hashing.passwords(cloud).hash(password) if password is not None else None,
            user=user, project=project, role=role, service=service_name, region=region_id,
            urls={k: v for k, v in urls.items() if v},
        )  # fmt: skip
        try:
            done: list[str] = cloud.store.transact(lambda tx: repair(cloud, tx, wanted))
        except NeedsPassword:
            raise Cannot(f"there is no user {user} yet: give it a password (leave --keep-password out)") from None
        if done:
            audit.record(state, cloud.settings, "updated", "bootstrap", user, done=done)
    if password is not None:
        done += _into_clouds_yaml(state, user, password)
    return done or ["everything was as it should be"]


def _into_clouds_yaml(state: Path, user: str, password: str) -> list[str]:
    """Keep DIR/clouds.yaml right, so that our own commands go on working."""
    path = state / "clouds.yaml"
    if not path.exists():
        return []
    found = yaml.safe_load(path.read_text()) or {}
    mine = [c["auth"] for c in found.get("clouds", {}).values() if c["auth"].get("username") == user]
    if not any(a["password"] != password for a in mine):
        return []
    for auth in mine:
        auth["password"] = password
    first.write_private(path, yaml.safe_dump(found, sort_keys=False))
    return [f"wrote the password into {path}"]


# --- keys -------------------------------------------------------------------------------------------------------------


def _files(keys: Path, part: str) -> dict[int, Path]:
    directory = keys / part
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    out = {}
    for name in names:
        number = name.removesuffix(".pem")
        if number.isascii() and number.isdigit():
            out[int(number)] = directory / name
    return dict(sorted(out.items()))


def _purpose(kind: str, number: int, all_: list[int]) -> str:
    staged, primary = (0, all_[-1]) if kind != "jws" else (all_[-1], all_[-2] if len(all_) > 1 else all_[-1])
    return "staged" if number == staged else "primary" if number == primary else "reads older ones"


def keys(state: Path) -> list[dict[str, Any]]:
    """Every key there is: kind, number, what it is for, age in seconds, permission bits."""
    out = []
    for kind, parts in DIRECTORIES.items():
        files = _files(state / "keys", parts[-1])
        for number, path in files.items():
            info = path.stat()
            out.append({
                "kind": kind, "number": number, "for": _purpose(kind, number, list(files)),
                "age_s": round(time.time() - info.st_mtime), "mode": f"{stat.S_IMODE(info.st_mode):04o}",
                "file": str(path),
            })  # fmt: skip
    return out


def key_table(found: list[dict[str, Any]]) -> str:
    """The keys as lines for people."""
    lines = [f"{'kind':12}{'number':8}{'for':18}{'age':>12}  file"]
    lines += [f"{k['kind']:12}{k['number']:<8}{k['for']:18}{_age(k['age_s']):>12}  {k['file']}" for k in found]
    return "\n".join(lines)


def _age(seconds: int) -> str:
    for size, letter in ((86400, "d"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds // size} {letter}"
    return f"{seconds} s"


def setup_keys(state: Path, kind: str) -> str:
    """Make the keys of a kind unless they are there."""
    directory = state / "keys" / kind
    (jws.setup_keys if kind == "jws" else tokens.setup_keys)(directory)
    return f"{directory} has its keys"


def rotate(state: Path, kind: str, max_active_keys: int) -> list[str]:
    """Make the staged key the primary and stage a new one; returns what there is to say. Raises Cannot."""
    if kind == "credential":
        return _rotate_credential(state, max_active_keys)
    ages = [k["age_s"] for k in keys(state) if k["kind"] == kind and k["for"] == "primary"]
    try:
        primary = tokens.rotate(state / "keys", kind, max_active_keys)
    except (keyfiles.KeysError, ValueError, OSError) as e:
        raise Cannot(f"{e}; `nubila key setup --kind {kind}` makes missing ones") from None
    settings = wiring.settings(state, first.overrides(state))
    audit.record(state, settings, "rotated", "key", kind, primary=primary)
    said, ttl = [f"{kind}: key {primary} is the primary"], settings.token_ttl_s
    if ages and max_active_keys > 2 and ages[0] < ttl / (max_active_keys - 2):
        said.append(f"the last rotation was {_age(ages[0])} ago: tokens may end before their time")
    return said


def _rotate_credential(state: Path, max_active_keys: int) -> list[str]:
    with _opened(state) as cloud:
        try:
            primary = credential_keys.rotate(cloud, max_active_keys)
        except credential_keys.RotationRefused as e:
            raise Cannot(f"{e} `nubila key migrate` does it") from None
        except keyfiles.KeysError as e:
            raise Cannot(str(e)) from None
        audit.record(state, cloud.settings, "rotated", "key", "credential", primary=primary)
        said = [f"credential: key {primary} is the primary"]
        return [*said, f"{credential_keys.migrate(cloud)} secrets were encrypted again"]


def migrate(state: Path) -> str:
    """Encrypt every secret in the database with the primary key. Raises Cannot."""
    with _opened(state) as cloud:
        try:
            return f"{credential_keys.migrate(cloud)} secrets were encrypted again"
        except keyfiles.KeysError as e:
            raise Cannot(str(e)) from None
