"""A service: its declarations, rules, routes and reconcilers, put together in one value that apps wire in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from nubila.core.gates import Version

if TYPE_CHECKING:
    from nubila.core.call import Call, Reply, Route, StreamReply
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Store, Tx
    from nubila.core.declare import Resource
    from nubila.core.faults import Fault
    from nubila.core.policy import Rule
    from nubila.core.query import ListQuery
    from nubila.core.work import Item

Row = dict[str, Any]
Kind: TypeAlias = "type[Resource]"  # below, ``type`` is a field


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a declaration cannot say about a resource's create, show, list, update and delete.

    All run inside the request's transaction. ``prepare`` runs after policy and may change the values before the insert
    (defaults that need other rows); ``created``, ``updated`` and ``deleting`` do what follows from the change
    (children, asks);
    ``present`` fills computed attributes of a whole page at once; ``scope`` narrows lists; ``target`` enriches the row
    for policy. ``own_filters`` names query keys that ``scope`` handles itself.
    """

    prepare: Callable[[Call, Row], None] | None = None
    created: Callable[[Call, Row], None] | None = None
    prepare_update: Callable[[Call, Row, Row], None] | None = None  # (call, row as it is, new values)
    updated: Callable[[Call, Row, Row], None] | None = None  # (call, row before, row after)
    deleting: Callable[[Call, Row], None] | None = None
    deleted: Callable[[Call, Row], None] | None = None
    present: Callable[[Call, list[Row]], None] | None = None
    trim: Callable[[str, Row, Row], None] | None = None  # (verb, row, view): leave out what is not always shown
    scope: Callable[[Call, ListQuery], list[Any]] | None = None
    target: Callable[[Call, Row], Mapping[str, Any]] | None = None
    rule: Callable[[Call, str, Row | None], str | None] | None = None  # (call, verb, row): instead of the declared one
    own_filters: tuple[str, ...] = ()
    column: Callable[[str], Any] | None = None  # SQL for a policy target name that is no attribute (lists)
    column_for: Callable[[Call, str], Any] | None = None  # the same where it depends on the caller
    find: Callable[[Call, str], Row | None] | None = None  # instead of the key lookup
    listed: Callable[[Call, Callable[[], Reply]], Reply] | None = None  # around every list: may know the answer already


@dataclass(frozen=True, kw_only=True)
class HostItem:
    """A kind of thing that hosts make real: how to say what it should be, and how to take in what it is.

    ``describe`` returns the spec (a ports.* struct) for (id, host), None when it should not exist there. ``observe``
    writes what the host saw, inside the transaction that settles the work row. ``every`` names all that belong on a
    host (for prune and a full compare).
    """

    describe: Callable[[Cloud, Reader, str, str], Any]
    observe: Callable[[Cloud, Tx, str, str, Mapping[str, Any]], str]
    every: Callable[[Cloud, Reader, str], list[str]]
    order: int = 0  # ensured in this order, removed in the reverse


@dataclass(frozen=True, kw_only=True)
class Service:
    """One API service."""

    name: str  # folder and dialect: "network"
    type: str  # catalogue type
    title: str  # catalogue name: "neutron"
    prefix: str  # path on the one port: "/network", "" for identity
    catalog_path: str = ""  # what the catalogue URL has after the prefix: "/v2.1"
    classic_port: int
    loose_paths: bool = False  # "_" and "-" mean the same in the paths
    project_after: tuple[str, ...] = ()  # behind these prefixes the caller's project id may stand, as in old catalogues
    kinds: Sequence[Kind] = ()
    hooks: Mapping[Kind, Hooks] = field(default_factory=dict)
    routes: Sequence[Route] = ()
    rules: Sequence[Rule] = ()
    reconcilers: Mapping[str, Callable[[Cloud, Store, Item], None]] = field(default_factory=dict)
    host_items: Mapping[str, HostItem] = field(default_factory=dict)
    sweeps: Mapping[str, Callable[[Cloud, Reader], list[str]]] = field(default_factory=dict)  # work kind -> all ids
    bootstrap: Callable[[Cloud, Tx], None] | None = None
    on_host: Callable[[Cloud, Tx, Row], None] | None = None  # a host reported: inventory, agents
    invariants: Sequence[Callable[[Cloud, Reader], list[str]]] = ()  # sentences about what is wrong among the rows
    quotas: Mapping[str, int] = field(default_factory=dict)  # default limits by resource, -1 = unlimited
    observe: Callable[[Call, Reply | StreamReply, Fault | None], None] | None = None  # sees every answer; never raises
    healthy: Callable[[Cloud, Reader], str] | None = None  # "" = fine, else a sentence
    gauges: Callable[[Cloud, Reader], dict[str, float]] | None = None  # more of /metrics: name{labels} -> value
    versions: tuple[Version, Version] | None = None  # microversions honoured (lowest, highest)
    version_headers: tuple[str, ...] = ()  # lower-case request headers that choose one, newest style first
    version_word: str = ""  # "compute" in "OpenStack-API-Version: compute 2.90"
    request_id_headers: tuple[str, ...] = ("x-openstack-request-id",)
