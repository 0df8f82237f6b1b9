"""A part of the Networking API that brings its own resources: everything it adds to the service, in one value.

A feature's module (qos, trunks, ...) declares one ``FEATURE``; ``__init__`` puts them together. What a feature adds to
networks, ports or routers themselves (an attribute, a field of a spec) stays where those are declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nubila.core.call import Route
from nubila.core.declare import Resource
from nubila.core.policy import Rule
from nubila.core.service import Hooks, HostItem
from nubila.services.network.rbac import Shareable


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a feature adds to the service; names as in :class:`nubila.core.service.Service`."""

    kinds: Sequence[type[Resource]] = ()
    hooks: Mapping[type[Resource], Hooks] = field(default_factory=dict)
    routes: Sequence[Route] = ()
    rules: Sequence[Rule] = ()
    reconcilers: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    host_items: Mapping[str, HostItem] = field(default_factory=dict)
    sweeps: Mapping[str, Callable[..., list[str]]] = field(default_factory=dict)
    invariants: Sequence[Callable[..., list[str]]] = ()
    quotas: Mapping[str, int] = field(default_factory=dict)  # default limits by resource, -1 = unlimited
    resources: Mapping[str, str] = field(default_factory=dict)  # collection in the URL -> name of one, for GET /v2.0
    shareable: Sequence[Shareable] = ()  # what RBAC policies can be about (rbac.py says how)
    extensions: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)  # alias -> (name, promise, date)


def merged(features: Sequence[Feature], part: str) -> dict[Any, Any]:
    """One mapping of all features' mappings called ``part``."""
    return {key: value for feature in features for key, value in getattr(feature, part).items()}


def joined(features: Sequence[Feature], part: str) -> tuple[Any, ...]:
    """One tuple of all features' sequences called ``part``."""
    return tuple(value for feature in features for value in getattr(feature, part))
