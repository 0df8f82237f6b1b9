"""Find the route of a path: a tree of path segments per service, literal before parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote

from nubila.core.call import Route
from nubila.core.gates import OPEN, Version


class _Node:
    __slots__ = ("literal", "param", "routes", "tail")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.param: _Node | None = None
        self.tail: dict[str, list[tuple[Route, tuple[str, ...]]]] = {}  # "{name...}" swallows the rest of the path
        self.routes: dict[str, list[tuple[Route, tuple[str, ...]]]] = {}  # method -> routes, first added wins


class Router:
    """The routes of one service."""

    def __init__(self, routes: Iterable[Route], *, loose: bool = False) -> None:
        """``loose``: "_" and "-" mean the same in literal segments, as clients of Networking write either."""
        self._root = _Node()
        self._loose = loose
        self._fixed: dict[tuple[str, str], Route] = {}  # paths without parameters that exist at every version
        self.routes = list(routes)
        for route in self.routes:
            self._add(route)
        several = Counter((r.method, r.path) for r in self.routes)
        for route in self.routes:
            key = (route.method, route.path)
            if several[key] == 1 and "{" not in route.path and route.gate == OPEN:
                self._fixed[key] = route

    def _add(self, route: Route) -> None:
        node, names = self._root, []
        for part in route.path.strip("/").split("/") if route.path.strip("/") else []:
            if part.startswith("{") and part.endswith("...}"):
                names.append(part[1:-4])
                node.tail.setdefault(route.method, []).append((route, tuple(names)))
                return
            if part.startswith("{"):
                names.append(part[1:-1])
                node.param = node.param or _Node()
                node = node.param
            else:
                node = node.literal.setdefault(part, _Node())
        node.routes.setdefault(route.method, []).append((route, tuple(names)))

    def find(
        self, method: str, path: str, version: Version | None = None
    ) -> tuple[Route, dict[str, str]] | frozenset[str]:
        """The route and its parameters, or the methods that the path does have (empty = no such path).

        ``path`` is still percent-encoded: a %2F stays inside its segment.
        """
        if (fixed := self._fixed.get((method, path))) is not None:
            return fixed, {}
        parts = [p for p in path.split("/") if p]
        methods: set[str] = set()
        for node, values, tail in self._walk(self._root, parts, 0, ()):
            table = node.tail if tail else node.routes
            for route, names in table.get(method) or (table.get("GET", []) if method == "HEAD" else []):
                if version is None or route.gate.open(version):
                    return route, dict(zip(names, map(unquote, values), strict=True))
            methods |= {m for m, rs in table.items() if version is None or any(r.gate.open(version) for r, _ in rs)}
        return frozenset(methods)

    def _walk(self, node: _Node, parts: list[str], i: int, values: tuple[str, ...]):  # type: ignore[no-untyped-def]
        if i == len(parts):
            if node.routes:
                yield node, values, False
        else:
            child = node.literal.get(parts[i])
            if child is None and self._loose:
                part = parts[i]
                child = node.literal.get(part.replace("_", "-")) or node.literal.get(part.replace("-", "_"))
            if child is not None:
                yield from self._walk(child, parts, i + 1, values)
            if node.param is not None:
                yield from self._walk(node.param, parts, i + 1, (*values, parts[i]))
        if node.tail and i < len(parts):
            yield node, (*values, "/".join(parts[i:])), True
