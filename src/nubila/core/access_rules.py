"""Access rules: which requests a token of an application credential may make.

A rule is (service type, method, path); the path may hold ``*`` or ``{name}`` (a segment or a part of one, not empty)
and ``**`` (anything, also across slashes). A request that no rule allows is answered 401, as services behind
Keystonemiddleware answer it. API reference: "Application credentials", access rules.

Users write the templates, so matching must not depend on luck: positions are kept in sets, which takes time
proportional to template times path, where a regular expression could take for ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

Rule = tuple[str, str, str]
"""Service type, method, path."""
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_TOKEN = re.compile(r"\{[^}]*\}|\*\*|\*|[^{*]+|\{")


@lru_cache(maxsize=1024)
def _tokens(template: str) -> tuple[str, ...]:
    return tuple("*" if len(t) > 1 and t[0] == "{" else t for t in _TOKEN.findall(template))


def matches(template: str, path: str) -> bool:
    """Whether the template stands for the whole path."""
    at, end = {0}, len(path)
    for token in _tokens(template):
        if token == "**":
            at = set(range(min(at), end + 1))
        elif token == "*":
            reached: set[int] = set()
            for start in sorted(at):
                if start + 1 in reached:
                    continue
                stop = path.find("/", start)
                reached.update(range(start + 1, (stop if stop >= 0 else end) + 1))
            at = reached
        else:
            at = {start + len(token) for start in at if path.startswith(token, start)}
        if not at:
            return False
    return end in at


def allows(rules: Sequence[Rule], service: str, method: str, *paths: str) -> bool:
    """Whether one of the rules lets this request through; ``paths`` are the names that its path has."""
    if service == "identity" and method == "GET" and paths[0].endswith("/v3/auth/tokens"):
        return True  # any token may be validated
    return any(
        kind == service and wanted == method and any(matches(template, path) for path in paths)
        for kind, wanted, template in rules
    )
