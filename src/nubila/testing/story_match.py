"""Scrub recorded answers and compare them with fresh ones.

Goal: what two clouds say about the same requests can be compared although every id, time, address and
host name differs. `Scrubber` turns a raw answer into one where such values are placeholders:

- values the story knows (captures, users, projects, base URLs, the tag) become `<name>`;
- other ids become `<uuid:1>`, `<hex32:2>` ... numbered in the order met within a story;
- times keep their written form: `<time:seconds,Z>`, `<time:micros>`; MACs keep the vendor prefix;
- the wording of errors becomes `<text>` unless a step says `match: exact`.

`compare` walks two scrubbed answers. Numbered placeholders match one to one over the whole story, so the
same id must reappear wherever it did in the recording.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

ERROR_TEXT_KEYS = {"message", "detail", "details", "reason", "faultstring", "debuginfo"}
"""Keys whose strings are wording of ours in an error body (identity `error.message`, `NeutronError.message`...)."""

SECRET_KEYS = {"adminPass": "<password>", "private_key": "<private key>", "secret": "<secret>", "audit_ids": "<audit>"}
LOOSE_NUMBER_KEYS = {"provider:segmentation_id", "standard_attr_id"}
FREE_ADDRESS_KEYS = {"ip_address", "addr", "fixed_ip_address", "floating_ip_address"}
HASH_KEYS = {"checksum", "os_hash_value", "etag", "content-md5", "_sha256"}

TELLING_HEADERS = {"content-type", "location", "x-subject-token", "www-authenticate", "content-disposition"}
"""Headers whose presence says something; of the others one more does no harm."""

_TIME = re.compile(r"\b\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
_IDS = re.compile(
    r"(?P<uuid>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b)"
    r"|(?P<hex>\b(?:[0-9a-f]{64}|[0-9a-f]{56}|[0-9a-f]{32})\b)"
    r"|(?P<mac>\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b(?!:))"
)
_GENERATED = [
    (re.compile(r"\bhost(?:-\d{1,3}){4}(?![\w-])|\bhost-[0-9a-f]{1,4}(?:-[0-9a-f]{0,4}){2,7}(?![\w-])"), "host-<ip>"),
    (re.compile(r"\br-[a-z0-9]{8}\b"), "<reservation>"),
    (re.compile(r"\binstance-[0-9a-f]{8}\b"), "instance-<number>"),
]
_IP = re.compile(r"^(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]*:[0-9a-f:.]+)$")
_FINGERPRINT = re.compile(r"^(?:[0-9a-f]{2}:){15}[0-9a-f]{2}$")
_NUMBERED = re.compile(r"<([a-z]+\d*):(\d+)>")


class Scrubber:
    """Replaces what differs from run to run; one per story and run, because it numbers what it meets."""

    def __init__(self, story_text: str, mount: str = "") -> None:
        """`story_text` is the story's source: addresses and fingerprints written in it are kept as they are. `mount` is
        the path a service lives below, left out where a root-relative link begins with it.
        """
        self._text = story_text
        self._mount = mount
        self._known: dict[str, str] = {}
        self._numbers: dict[str, dict[str, int]] = {}

    def know(self, value: object, name: str) -> None:
        """From now on write `<name>` where `value` stands; a short value only where it stands alone."""
        if isinstance(value, str) and len(value) >= 2 and value not in self._known:
            self._known[value] = f"<{name}>"

    def answer(self, status: int, headers: Mapping[str, str], body: Any, *, exact: bool = False) -> dict[str, Any]:
        """A recorded answer: status, selected headers and body, all scrubbed."""
        seen = {name: self._header(name, value) for name, value in headers.items()}
        if body is None:
            seen.pop("content-type", None)  # Nothing has no type; some servers name one all the same.
        return {"status": status, "headers": seen, "body": self._value(body, "", status >= 400 and not exact)}

    def _header(self, name: str, value: str) -> str:
        if name in ("x-subject-token", "x-openstack-request-id"):
            return "<present>"
        if name == "content-type":
            kind = "; ".join(part.strip().lower() for part in value.split(";"))
            return kind.removesuffix("; charset=utf-8") if "json" in kind else kind  # JSON knows no other.
        if name == "www-authenticate":
            return self._string(value).replace("/v3", "")
        if name in ("vary", "allow"):
            return ", ".join(sorted({part.strip().lower() for part in value.split(",")}))
        if name in HASH_KEYS:
            return value
        return self._string(value)

    def _value(self, value: Any, key: str, error: bool) -> Any:
        if isinstance(value, dict):
            # Keys may be ids too (allocations by provider).
            return {self._string(k): self._value(v, k, error) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(item, key, error) for item in value]
        if key in LOOSE_NUMBER_KEYS and isinstance(value, int) and not self._written(str(value)):
            return "<number>"
        if not isinstance(value, str):
            return value
        return self._leaf(value, key, error)

    def _leaf(self, value: str, key: str, error: bool) -> str:
        if error and key in ERROR_TEXT_KEYS:
            return "<text>" if value else ""
        if value and key in SECRET_KEYS:
            return SECRET_KEYS[key]
        if key in FREE_ADDRESS_KEYS and _IP.match(value):
            wished = re.search(rf'(?:ip|address):\s*"?{re.escape(value)}(?![\w.:])', self._text)
            return value if wished else "<ip>"
        if key in HASH_KEYS or self._written(value):
            return self._string(value) if value in self._known else value
        if key == "fingerprint" and _FINGERPRINT.match(value):
            return "<fingerprint>"
        if key == "public_key":
            return "<public key>"
        return self._string(value)

    def _written(self, value: str) -> bool:
        """Does the story itself name this value?"""
        return re.search(rf"(?<![\w.:/-]){re.escape(value)}(?![\w:/-]|\.\d)", self._text) is not None

    def _string(self, value: str) -> str:
        if self._mount and value.startswith(self._mount + "/"):
            value = value.removeprefix(self._mount)
        for known in sorted(self._known, key=len, reverse=True):
            if value == known or (len(known) >= 8 and known in value):
                value = value.replace(known, self._known[known])
        value = _TIME.sub(_time_form, value)
        for pattern, stands_for in _GENERATED:
            value = pattern.sub(stands_for, value)
        return _IDS.sub(self._id_form, value)

    def _id_form(self, match: re.Match[str]) -> str:
        text = match.group(0)
        if match.group("mac"):
            return f"<mac {text[:8]}>"
        kind = "uuid" if match.group("uuid") else f"hex{len(text)}"
        numbers = self._numbers.setdefault(kind, {})
        return f"<{kind}:{numbers.setdefault(text, len(numbers) + 1)}>"


def _time_form(match: re.Match[str]) -> str:
    parts = ["seconds" if match.group(2) is None else {7: "micros", 4: "millis"}.get(len(match.group(2)), "fraction")]
    if match.group(1) == " ":
        parts.append("space")
    if match.group(3):
        parts.append(match.group(3))
    return f"<time:{','.join(parts)}>"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One place where two answers differ; `path` is `status`, `headers.NAME` or `$.a.b[0]`."""

    path: str
    recorded: Any
    seen: Any

    def __str__(self) -> str:
        return f"{self.path}\n      recorded: {_short(self.recorded)}\n      seen:     {_short(self.seen)}"


_NAMES = ("id", "name", "alias", "rel", "binary")
"""Attributes that say which item of a list one is."""


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."


class Bindings:
    """Which numbered placeholder of the recording stands for which of the run; one to one."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}

    def bind(self, recorded: str, seen: str) -> bool:
        """True when the pair is new on both sides or known as a pair."""
        if self.there.get(recorded, seen) != seen or self.back.get(seen, recorded) != recorded:
            return False
        self.there[recorded], self.back[seen] = seen, recorded
        return True


def _glob(pattern: str) -> str:
    return pattern.replace("[*]", "\0").replace("[", "[[]").replace("\0", "[[]*]")


def path_matches(pattern: str, path: str) -> bool:
    """Does a story's path pattern cover `path`? `[*]` is any index, `*` any one key, `**` anything; a prefix covers
    what is below it."""
    globbed = _glob(pattern)
    return fnmatch.fnmatchcase(path, globbed) or any(fnmatch.fnmatchcase(path, globbed + end) for end in (".*", "[[]*"))


def compare(
    recorded: Mapping[str, Any],
    seen: Mapping[str, Any],
    bindings: Bindings,
    unordered: Iterable[str] = (),
) -> list[Difference]:
    """All differences between two scrubbed answers; paths in `unordered` name lists compared as sets."""
    found: list[Difference] = []
    if recorded["status"] != seen["status"]:
        found.append(Difference("status", recorded["status"], seen["status"]))
    for name in sorted({*recorded["headers"], *seen["headers"]}):
        old, new = recorded["headers"].get(name, ABSENT), seen["headers"].get(name, ABSENT)
        if not _same_text(old, new, bindings) and not _more(name, old, new):
            found.append(Difference(f"headers.{name}", old, new))
    _walk(recorded["body"], seen["body"], "$", bindings, tuple(unordered), found)
    return found


def _more(name: str, old: Any, new: Any) -> bool:
    """Does a header only say more than it did? That harms nobody."""
    if old is ABSENT:
        return name not in TELLING_HEADERS
    return name == "vary" and isinstance(new, str) and set(old.split(", ")) <= set(new.split(", "))


def _same_text(old: Any, new: Any, bindings: Bindings) -> bool:
    if old == new and not (isinstance(old, str) and _NUMBERED.search(old)):
        return True
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    if old == "<ip>" and _IP.match(new):
        return True  # an address of our choice that the story happens to name elsewhere
    if _NUMBERED.sub(r"<\1>", old) != _NUMBERED.sub(r"<\1>", new):
        return False
    pairs = zip(_NUMBERED.finditer(old), _NUMBERED.finditer(new), strict=True)
    return all(bindings.bind(a.group(0), b.group(0)) for a, b in pairs)


def _walk(
    old: Any, new: Any, path: str, bindings: Bindings, unordered: tuple[str, ...], found: list[Difference]
) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        _walk_dict(old, new, path, bindings, unordered, found)
    elif isinstance(old, list) and isinstance(new, list):
        if any(fnmatch.fnmatchcase(path, _glob(pattern)) for pattern in unordered):
            new = _align(old, new, path, bindings, unordered)
        for index in range(max(len(old), len(new))):
            a = old[index] if index < len(old) else ABSENT
            b = new[index] if index < len(new) else ABSENT
            _walk(a, b, f"{path}[{index}]", bindings, unordered, found)
    elif old == "<number>" and type(new) is int:
        return  # a number of our choice that the story happens to name elsewhere
    elif type(old) is not type(new) or not _same_text(old, new, bindings):
        found.append(Difference(path, old, new))


def _walk_dict(
    old: dict[str, Any],
    new: dict[str, Any],
    path: str,
    bindings: Bindings,
    unordered: tuple[str, ...],
    found: list[Difference],
) -> None:
    rest = dict(new)
    for key, value in old.items():
        hit = key if key in rest else next((k for k in rest if _same_text(key, k, bindings)), None)
        _walk(value, ABSENT if hit is None else rest.pop(hit), f"{path}.{key}", bindings, unordered, found)
    found.extend(Difference(f"{path}.{key}", ABSENT, value) for key, value in rest.items())


def _align(old: list[Any], new: list[Any], path: str, bindings: Bindings, unordered: tuple[str, ...]) -> list[Any]:
    """`new` reordered so that equal items stand where `old` has them, the rest by fewest differences."""

    def cost(a: Any, b: Any) -> int:
        found: list[Difference] = []
        _walk(a, b, path, copy.deepcopy(bindings), unordered, found)
        others = (
            isinstance(a, dict)
            and isinstance(b, dict)
            and any(f"{path}.{k}" in {o.path for o in found} for k in _NAMES)
        )
        return len(found) + (10 if others else 0)

    left = list(new)
    aligned: list[Any] = []
    for item in old:
        if not left:
            break
        best = min(left, key=lambda other: cost(item, other))
        left.remove(best)
        aligned.append(best)
    return aligned + left
