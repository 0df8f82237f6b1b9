"""Parity stories: play the same requests to the original services and to Nubila, and compare what they say.

A story is a YAML file read from top to bottom::

    story: a member makes a network
    steps:
      - name: create
        who: member                        # see ROLES
        POST: network:/v2.0/networks       # service type, then the path below the service's root
        json: {network: {name: "${tag}-net"}}
        capture: {net: $.network.id}
      - name: show
        who: stranger
        GET: network:/v2.0/networks/${net}

Keys of a step: `name`; `who`; one HTTP method; `headers`; `json`, `text`, `base64` or `zeros` (a body of that many
bytes); `version` (microversion: "compute 2.79"); `capture` (variable: path); `until` (path: value, repeats the
request until it holds or 60 s passed); `keep` (path: {key: regex}, drops list items made by others); `unordered`
(paths of lists that are sets); `drop` (paths not recorded at all); `match: exact` (error wording counts); `differs`
(path: reason; a known and justified difference); `ours: {status: 409, because: reason}` (the original fails
here; only this status is checked); `note`; `optional: true` (a helper step that is not compared);
`later` (why only the original is asked as yet).
Variables: captures, `tag`, `fresh1` to `fresh5` (new UUIDs), `host`, `hypervisor`, and of everybody who acts
`NAME.user_id .user_name .password .project_id .project_name .token`.
Keys of a story: `story`, `about`, `actors`, `unordered`, `differs`, `later` (recorded already, why not yet compared),
`steps`.

`record` plays a story against any cloud and writes `<story>.answers.json` beside it; `compare` plays it again
elsewhere and prints what differs. Both make the projects and users they need and remove them afterwards::

    OS_AUTH_URL=... OS_PASSWORD=... python -m nubila.testing.stories record tests/wire/stories/identity/*.yaml
    OS_CLIENT_CONFIG_FILE=DIR/clouds.yaml OS_CLOUD=nubila-admin python -m nubila.testing.stories compare STORY...
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nubila.testing.story_cloud import JSON_HEADERS, Answer, Cast, Cloud, StoryError, pick
from nubila.testing.story_match import Bindings, Difference, Scrubber, compare, path_matches

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
HEADERS = (
    "content-type",
    "location",
    "openstack-api-version",
    "x-openstack-nova-api-version",
    "vary",
    "x-subject-token",
    "www-authenticate",
    "x-openstack-request-id",
    "allow",
    "content-md5",
    "content-range",
    "accept-ranges",
    "retry-after",
    "content-disposition",
)
STEP_KEYS = {*METHODS, "name", "who", "headers", "json", "text", "base64", "zeros", "version", "capture", "until"}
STEP_KEYS |= {"keep", "unordered", "drop", "match", "differs", "ours", "note", "optional", "later"}


@dataclasses.dataclass(frozen=True)
class Story:
    """A story as read from its file."""

    path: Path
    text: str
    title: str
    steps: list[dict[str, Any]]
    actors: dict[str, list[str]]
    unordered: list[str]
    differs: dict[str, str]
    later: str

    @property
    def answers_path(self) -> Path:
        """Where the recorded answers stand."""
        return self.path.with_suffix(".answers.json")

    def recorded(self) -> dict[str, dict[str, Any]]:
        """The recorded answers by step name."""
        answers: dict[str, dict[str, Any]] = json.loads(self.answers_path.read_text())["answers"]
        return answers

    def record(self, played: Played, label: str) -> None:
        """Keep what was seen; `label` says who answered."""
        doc = {"recorded_from": label, "answers": played.answers}
        self.answers_path.write_text(json.dumps(doc, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> Story:
    """Read and check a story; raises StoryError naming the step and key."""
    text = path.read_text()
    try:
        doc = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StoryError(f"{path} is not YAML: {error}") from error
    names: set[str] = set()
    for step in doc["steps"]:
        name = step.get("name", "?")
        unknown = set(step) - STEP_KEYS
        if unknown or name in names or len(set(step) & set(METHODS)) != 1:
            raise StoryError(f"{path}: step {name!r}: unknown {sorted(unknown)}, name used twice or not one method")
        names.add(name)
    return Story(
        path,
        text,
        doc["story"],
        doc["steps"],
        doc.get("actors", {}),
        doc.get("unordered", []),
        doc.get("differs", {}),
        doc.get("later", ""),
    )


def _mentioned(text: str) -> set[str]:
    return {name for name in re.findall(r"\$\{(\w+)\.(?:\w+)\}", text) if name not in ("base",)}


@dataclasses.dataclass
class Played:
    """One story played once: scrubbed answers by step name, and raw exchanges for reading."""

    answers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    raw: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Player:
    """Plays one story against one cloud."""

    def __init__(self, cloud: Cloud, story: Story, cast: Cast) -> None:
        self.cloud, self.story, self.cast = cloud, story, cast
        mount = urllib.parse.urlsplit(cloud.bases.get("placement", "")).path
        self.scrub = Scrubber(story.text, mount)
        self.vars: dict[str, Any] = {"tag": cast.tag}
        for number in range(1, 6):
            self.vars[f"fresh{number}"] = str(uuid.uuid4())
            self.scrub.know(self.vars[f"fresh{number}"], f"fresh{number}")
        self.made: list[str] = []
        self.scrub.know(cast.tag, "tag")
        for service, base in cloud.bases.items():
            self.vars[f"base.{service}"] = base
            self.scrub.know(base, service)
        for name, actor in cast.actors.items():
            for field in ("token", "user_id", "user_name", "project_id", "project_name", "password"):
                value = getattr(actor, field)
                self.vars[f"{name}.{field}"] = value
                if field.endswith("_id") or field == "token":
                    self.scrub.know(value, f"{name}.{field}")
        for host, name in cloud.names.items():
            self.vars.setdefault(name, host)
            self.scrub.know(host, name)

    def play(self, *, later: bool = False) -> Played:
        """Every step in order, those for `later` only if asked; a step that cannot capture ends it with StoryError."""
        played = Played()
        try:
            for number, step in enumerate(self.story.steps, 1):
                if "later" in step and not later:
                    continue
                request, answer = self._step(step)
                body = self._body(step, answer)
                if not step.get("optional"):
                    headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
                    exact = step.get("match") == "exact"
                    played.answers[step["name"]] = self.scrub.answer(answer.status, headers, body, exact=exact)
                played.raw.append({"number": number, "step": step["name"], "request": request, "answer": answer})
        finally:
            self._clean()
        return played

    def _step(self, step: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
        method = next(name for name in METHODS if name in step)
        url = self.cloud.url(self._fill(step[method]))
        headers, body = self._request(step)
        deadline = time.monotonic() + 60
        while True:
            answer = self.cloud.http.request(method, url, headers, body)
            if all(_lookup(answer, path) == self._fill(value) for path, value in step.get("until", {}).items()):
                break
            if time.monotonic() > deadline:
                raise StoryError(f"{self.story.path.name}: {step['name']}: waited in vain: {answer}")
            time.sleep(0.1)
        self._remember(method, url, answer)
        for name, path in step.get("capture", {}).items():
            try:
                self.vars[name] = _pick_answer(answer, path)
            except KeyError:
                message = f"{self.story.path.name}: {step['name']}: no {path} in {answer.status} {answer.body}"
                raise StoryError(message) from None
            self.scrub.know(self.vars[name], name)
        shown = {k: v for k, v in headers.items()}
        sent = None if body is None else (body.decode(errors="replace") if len(body) < 20000 else f"{len(body)} bytes")
        return {"who": step.get("who", "member"), "method": method, "url": url, "headers": shown, "body": sent}, answer

    def _request(self, step: dict[str, Any]) -> tuple[dict[str, str], bytes | None]:
        headers = {"Accept": "application/json"}
        who = self.cast.actors[step.get("who", "member")]
        if who.token:
            headers["X-Auth-Token"] = who.token
        if "version" in step:
            headers["OpenStack-API-Version"] = self._fill(step["version"])
        body: bytes | None = None
        if "json" in step:
            body = json.dumps(self._fill(step["json"])).encode()
            headers["Content-Type"] = "application/json"
        elif "text" in step:
            body = str(self._fill(step["text"])).encode()
            headers["Content-Type"] = "application/json"
        elif "base64" in step:
            body = base64.b64decode(step["base64"])
            headers["Content-Type"] = "application/octet-stream"
        elif "zeros" in step:
            body = bytes(int(step["zeros"]))
            headers["Content-Type"] = "application/octet-stream"
        for name, value in step.get("headers", {}).items():
            if value is None:
                headers.pop(name, None)
            else:
                headers[name] = str(self._fill(value))
        return headers, body

    def _fill(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._fill(key): self._fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item) for item in value]
        if not isinstance(value, str):
            return value
        whole = re.fullmatch(r"\$\{([\w.-]+)\}", value)
        if whole:
            return self._var(whole[1])
        return re.sub(r"\$\{([\w.-]+)\}", lambda m: str(self._var(m[1])), value)

    def _var(self, name: str) -> Any:
        if name not in self.vars:
            raise StoryError(f"{self.story.path.name}: nothing is called ${{{name}}}")
        return self.vars[name]

    def _body(self, step: dict[str, Any], answer: Answer) -> Any:
        body = answer.body
        for path, wishes in step.get("keep", {}).items():
            patterns = {key: re.compile(str(self._fill(pattern))) for key, pattern in wishes.items()}
            try:
                items = pick(body, path)
            except KeyError:
                continue
            items[:] = [i for i in items if all(p.search(str(i.get(k))) for k, p in patterns.items())]
        for path in step.get("drop", []):
            parent, _, key = path.rpartition(".")
            try:
                if key in pick(body, parent):
                    pick(body, parent)[key] = "<dropped>"
            except (KeyError, TypeError):
                continue
        if answer.status >= 400 and isinstance(body, dict) and "_text" in body:
            body = {"message": body["_text"]}
        return body

    def _remember(self, method: str, url: str, answer: Answer) -> None:
        """Note what a step made, so that a story that ends early leaves nothing behind."""
        plain = url.split("?")[0]
        if method == "DELETE" and answer.status < 300 and plain in self.made:
            self.made.remove(plain)
        if method != "POST" or answer.status not in (200, 201, 202) or plain.endswith(("/action", "/auth/tokens")):
            return
        body = answer.body if isinstance(answer.body, dict) else {}
        inner = next(iter(body.values())) if len(body) == 1 else body
        made = inner.get("id") or inner.get("name") if isinstance(inner, dict) else None
        if made:
            self.made.append(f"{plain.rstrip('/')}/{made}")

    def _clean(self) -> None:
        headers = {**JSON_HEADERS, "X-Auth-Token": self.cloud.admin.token}
        for url in reversed(self.made):
            if "/servers/" in url:
                self.cloud.http.request("DELETE", url, headers, None)
                deadline = time.monotonic() + 60
                while self.cloud.http.request("GET", url, headers, None).status == 200 and time.monotonic() < deadline:
                    time.sleep(0.2)
        for url in reversed(self.made):
            if "/routers/" in url:
                self._empty_router(url, headers)
            if "/servers/" not in url and "/resource_providers/" not in url:
                self.cloud.http.request("DELETE", url, headers, None)
        self.made.clear()

    def _empty_router(self, url: str, headers: dict[str, str]) -> None:
        root, _, router = url.rpartition("/routers/")
        found = self.cloud.http.request("GET", f"{root}/ports?device_id={router}", headers, None)
        for port in (found.body or {}).get("ports", []):
            body = json.dumps({"port_id": port["id"]}).encode()
            self.cloud.http.request("PUT", f"{url}/remove_router_interface", headers, body)


def _pick_answer(answer: Answer, path: str) -> Any:
    if path.startswith("header:"):
        name = path[7:].lower()
        if name not in answer.headers:
            raise KeyError(path)
        return answer.headers[name]
    return pick(answer.body, path)


def _lookup(answer: Answer, path: str) -> Any:
    if path == "status":
        return answer.status
    try:
        return _pick_answer(answer, path)
    except KeyError:
        return None


def play(cloud: Cloud, story: Story, *, later: bool = False) -> Played:
    """Play a story with a cast of its own; `later` also plays what is not compared yet."""
    wanted = {step.get("who", "member") for step in story.steps} | _mentioned(story.text)
    with Cast(cloud, wanted, story.actors) as cast:
        return Player(cloud, story, cast).play(later=later)


def check(story: Story, played: Played, shared: Mapping[str, str] | None = None) -> dict[str, list[Difference]]:
    """Unjustified differences by step between the recording and `played`; `shared` are reasons for all stories."""
    recorded = story.recorded()
    bindings = Bindings()
    found: dict[str, list[Difference]] = {}
    for step in story.steps:
        name = step["name"]
        if step.get("optional") or "later" in step or name not in recorded:
            continue
        if name not in played.answers:
            found[name] = [Difference("step", "answered", "not reached")]
            continue
        if "ours" in step:
            wished, seen = step["ours"]["status"], played.answers[name]["status"]
            if wished != seen:
                found[name] = [Difference("status", wished, seen)]
            continue
        unordered = [*story.unordered, *step.get("unordered", [])]
        excuses = {**(shared or {}), **story.differs, **step.get("differs", {})}
        differences = [
            one
            for one in compare(recorded[name], played.answers[name], bindings, unordered)
            if not any(path_matches(pattern, one.path) for pattern in excuses)
        ]
        if differences:
            found[name] = differences
    return found


def report(found: Mapping[str, Sequence[Difference]]) -> str:
    """The differences for people to read."""
    lines = []
    for step, differences in found.items():
        lines.append(f"  {step}:")
        lines.extend(f"    {difference}" for difference in differences)
    return "\n".join(lines)


def _cloud(environ: Mapping[str, str]) -> Cloud:
    """The cloud named by OS_CLIENT_CONFIG_FILE and OS_CLOUD, or by OS_AUTH_URL and OS_PASSWORD."""
    if "OS_CLOUD" in environ:
        path = Path(environ.get("OS_CLIENT_CONFIG_FILE", "clouds.yaml"))
        auth = yaml.safe_load(path.read_text())["clouds"][environ["OS_CLOUD"]]["auth"]
        url = auth["auth_url"].rstrip("/")
        return Cloud(
            url if url.endswith("/v3") else url + "/v3", auth["password"], auth["username"], auth["project_name"]
        )
    return Cloud(environ["OS_AUTH_URL"], environ["OS_PASSWORD"])


def _write_raw(folder: Path, story: Story, played: Played) -> None:
    target = folder / story.path.parent.name / story.path.stem
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.json"):
        old.unlink()
    for one in played.raw:
        request, answer = one["request"], one["answer"]
        slug = re.sub(r"[^a-z0-9]+", "-", one["step"].lower()).strip("-")
        sent = request["body"]
        with contextlib.suppress(TypeError, ValueError):
            sent = json.loads(sent)
        seen = {"status": answer.status, "headers": answer.headers, "body": answer.body}
        doc = {"step": one["step"], "request": {**request, "body": sent}, "response": seen}
        name = f"{one['number']:03d}-{slug}.{request['method']}.{answer.status}.json"
        (target / name).write_text(json.dumps(doc, indent=1, ensure_ascii=False) + "\n")


def _record(cloud: Cloud, story: Story, label: str, raw: Path | None) -> str:
    played = play(cloud, story, later=True)
    if raw:
        _write_raw(raw, story, played)
    story.record(played, label)
    return f"recorded {len(played.answers)} answers"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: record or compare stories; 1 when something differs, 2 when a story cannot be played."""
    parser = argparse.ArgumentParser(prog="stories", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("stories", nargs="+", type=Path)
    parser.add_argument("--label", default="", help="record: which services answered, written into the file")
    parser.add_argument("--raw", type=Path, help="record: also write every exchange unscrubbed below this folder")
    args = parser.parse_args(argv)
    status = 0
    try:
        cloud = _cloud(os.environ)
    except (StoryError, OSError, KeyError) as error:
        print(f"no cloud to play against: {error!r}", file=sys.stderr)
        return 2
    for path in args.stories:
        try:
            story = load(path)
            if args.action == "record":
                print(f"{path}: {_record(cloud, story, args.label, args.raw)}", flush=True)
                continue
            if story.later:
                print(f"{path}: not compared: {story.later}")
                continue
            found = check(story, play(cloud, story), shared_reasons(path))
        except StoryError as error:
            print(f"{path}: {error}", file=sys.stderr, flush=True)
            status = 2
            continue
        print(f"{path}: {'same' if not found else 'differs in ' + str(len(found)) + ' steps'}", flush=True)
        if found:
            print(report(found), flush=True)
            status = status or 1
    return status


def shared_reasons(story: Path) -> dict[str, str]:
    """Reasons that hold for every story of a service: `differs.yaml` in the story's folder."""
    path = story.parent / "differs.yaml"
    reasons: dict[str, str] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return reasons


if __name__ == "__main__":
    sys.exit(main())
