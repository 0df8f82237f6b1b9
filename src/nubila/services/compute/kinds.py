"""What Compute keeps. A server's desired and observed columns are written by different parties:

desired by the API (``want``, ``power``, ``boots``, ``hard``, ``nics`` ...), observed by reconcilers and hosts
(``vm_state``, ``power_state``, ``booted``, ``host_gone``, ``fault`` ...). What users see as status and task_state is
derived from the difference (views.py), so nothing can be stuck in a transitional state that nobody works on.
"""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.clock import new_id, now
from nubila.core.declare import METADATA, Attr, Resource
from nubila.core.types import Bool, Enum, Float, Id64, Int, Json, Str, Text, Time, Uuid


class Flavor(Resource):
    """The size of a server: processors, memory, disk, and properties for placement and the hypervisor."""

    kind = "flavor"
    service = "compute"
    owner = ""

    id = Attr(Str(255, lo=1), "Id chosen by the operator or a random UUID.", key=True)
    name = Attr(Str(255, lo=1), "Unique name.")
    ram = Attr(Int(1), "Memory in MiB.")
    vcpus = Attr(Int(1), "Virtual processors.")
    disk = Attr(Int(), "Root disk in GiB; 0 = the image's own size.")
    ephemeral = Attr(Int(), "Additional empty disk in GiB.", default=0, api="OS-FLV-EXT-DATA:ephemeral")
    swap = Attr(Int(), "Swap disk in MiB.", default=0)
    rxtx_factor = Attr(Float(), "Kept for clients; has no effect.", default=1.0)
    is_public = Attr(Bool, "Whether every project may use it.", default=True, api="os-flavor-access:is_public")
    disabled = Attr(Bool, "Hidden from users.", default=False, api="OS-FLV-DISABLED:disabled")
    description = Attr(Text(), "Free text.", null=True, default=None)
    extra_specs = Attr(Json, "Properties, text to text.", default=dict)
    created_at = Attr(Time, "When it was made.", default=now)
    updated_at = Attr(Time, "When it last changed.", null=True, default=None)
    unique = (("name",),)


class Keypair(Resource):
    """A public SSH key of a user; the private half is never kept."""

    kind = "keypair"
    service = "compute"
    owner = "user_id"

    id = Attr(Uuid, "Internal id.", key=True, default=new_id)
    user_id = Attr(Id64, "Whose key it is.", index=True)
    name = Attr(Str(255, lo=1), "Unique among the user's keys.")
    type = Attr(Enum("ssh", "x509"), "Kind of key.", default="ssh")
    public_key = Attr(Text(), "The key in OpenSSH's one-line form.")
    fingerprint = Attr(Str(255), "MD5 of the key as pairs of hexadecimal digits.")
    created_at = Attr(Time, "When it was made.", default=now)
    unique = (("user_id", "name"),)


class Server(Resource):
    """A guest: what it should be, where it is, and what its host saw last."""

    kind = "server"
    service = "compute"
    owner = "project_id"

    id = Attr(Uuid, "UUID of the server.", key=True, default=new_id)
    project_id = Attr(Id64, "Owner.", index=True)
    user_id = Attr(Id64, "Who created it.", index=True)
    created_at = Attr(Time, "When it was asked for.", default=now)
    updated_at = Attr(Time, "When anything changed last.", default=now)
    deleted = Attr(Bool, "Gone; kept for administrators and changes-since.", default=False)
    deleted_at = Attr(Time, "When it was gone.", null=True, default=None)
    # desired: written by the API
    name = Attr(Str(255, lo=1), "Display name.")
    hostname = Attr(Str(255), "Name the guest learns from metadata.")
    description = Attr(Str(255), "Free text.", null=True, default=None)
    metadata = Attr(Json, "The user's key and value pairs.", default=dict)
    tags = Attr(Json, "The user's tags, sorted.", default=list)
    flavor = Attr(Json, "The flavor as it was when the server was made.")
    flavor_id = Attr(Str(255), "Id of that flavor.", index=True)
    vcpus = Attr(Int(), "Processors, for usage sums.")
    ram = Attr(Int(), "Memory in MiB, for usage sums.")
    disk = Attr(Int(), "Root, ephemeral and swap disk in GiB, for usage sums.")
    image_id = Attr(Uuid, "Image of the root disk.", null=True, default=None, index=True)
    image = Attr(Json, "Format, checksum and properties of that image.", default=dict)
    key_name = Attr(Str(255), "Name of the key pair.", null=True, default=None)
    keypair = Attr(Json, "The key pair as it was.", null=True, default=None)
    user_data = Attr(Text(), "Base64 for the guest.", null=True, default=None)
    config_drive = Attr(Bool, "Whether the guest gets its metadata on a drive.", default=False)
    files = Attr(Json, "Personality: files for the guest (before 2.57).", default=list)
    access_ip_v4 = Attr(Str(64), "Shown to the user only.", null=True, default=None)
    access_ip_v6 = Attr(Str(64), "Shown to the user only.", null=True, default=None)
    auto_disk = Attr(Bool, "OS-DCF:diskConfig AUTO.", default=False)
    zone_wanted = Attr(Str(255), "Availability zone asked for (pinned).", null=True, default=None)
    host_wanted = Attr(Str(255), "Host an administrator asked for.", null=True, default=None)
    hints = Attr(Json, "Scheduler hints as given.", default=dict)
    group_id = Attr(Uuid, "Server group it belongs to.", null=True, default=None, index=True)
    networks = Attr(Json, "Networks asked for, before the ports are made.", default=list)
    security_groups = Attr(Json, "Ids of security groups for ports made at creation.", null=True, default=None)
    group_names = Attr(Json, "Names of those groups, shown until there are ports.", default=list)
    trusted_certs = Attr(Json, "Certificate ids given at creation.", null=True, default=None)
    locked_by = Attr(Str(8), "owner, admin or nothing.", null=True, default=None)
    locked_reason = Attr(Str(255), "Why it is locked.", null=True, default=None)
    reservation_id = Attr(Str(32), "Common to the servers of one request.", index=True)
    launch_index = Attr(Int(), "Position within that request.", default=0)
    want = Attr(Enum("present", "gone"), "Whether it should exist.", default="present")
    power = Attr(Enum("on", "off"), "Whether it should run.", default="on")
    boots = Attr(Int(), "How many reboots have been asked for.", default=0)
    hard = Attr(Bool, "The last reboot asked for was a hard one.", default=False)
    nics = Attr(Json, "Ports in order: port_id, tag, owned.", default=list)
    # observed: written by reconcilers and hosts
    host = Attr(Str(64), "Where it is placed.", null=True, default=None, index=True)
    zone = Attr(Str(255), "Availability zone of that host.", null=True, default=None)
    vm_state = Attr(
        Enum("building", "active", "stopped", "error", "deleted"), "Last settled state.", default="building"
    )
    power_state = Attr(Int(), "0 unknown, 1 running, 4 off, 6 crashed.", default=0)
    booted = Attr(Int(), "How many of the reboots have happened.", default=0)
    host_gone = Attr(Bool, "The host has confirmed that nothing of it is left.", default=False)
    fault = Attr(Json, "code, message, created of the last failure.", null=True, default=None)
    deadline = Attr(Float(), "Unix time when building counts as failed.", null=True, default=None)
    launched_at = Attr(Time, "When it first ran.", null=True, default=None)
    terminated_at = Attr(Time, "When it ended.", null=True, default=None)
    password = Attr(Text(), "Encrypted password the guest reported.", null=True, default=None)

    indexes = (("project_id", "deleted", "created_at"), ("deleted", "created_at"))


class ServerGroup(Resource):
    """Servers that should be placed together or apart."""

    kind = "server_group"
    service = "compute"
    owner = "project_id"

    id = Attr(Uuid, "UUID of the group.", key=True, default=new_id)
    project_id = Attr(Id64, "Owner.", index=True)
    user_id = Attr(Id64, "Who created it.")
    name = Attr(Str(255, lo=1), "Name.")
    policy = Attr(Enum("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"), "How to place members.")
    rules = Attr(Json, "max_server_per_host for anti-affinity.", default=dict)
    created_at = Attr(Time, "When it was made.", default=now)


class Aggregate(Resource):
    """Hosts with something in common; with availability_zone metadata, an availability zone."""

    kind = "aggregate"
    service = "compute"
    owner = ""

    id = Attr(Int(), "Number.", key=True)
    uuid = Attr(Uuid, "UUID.", default=new_id)
    name = Attr(Str(255, lo=1), "Unique name.")
    metadata = Attr(Json, "Key and value pairs.", default=dict)
    created_at = Attr(Time, "When it was made.", default=now)
    updated_at = Attr(Time, "When it last changed.", null=True, default=None)
    unique = (("name",), ("uuid",))


class InstanceAction(Resource):
    """Something a user asked of a server, found by the request's id."""

    kind = "instance_action"
    service = "compute"
    owner = "project_id"

    id = Attr(Uuid, "Internal id.", key=True, default=new_id)
    server_id = Attr(Uuid, "The server.", index=True)
    action = Attr(Str(255), "create, delete, start, stop, reboot ...")
    request_id = Attr(Str(255), "The request that asked.")
    project_id = Attr(Id64, "Project of the asker.")
    user_id = Attr(Id64, "The asker.")
    start_time = Attr(Time, "When it was asked.", default=now)
    updated_at = Attr(Time, "When anything about it changed last.", default=now)
    message = Attr(Str(255), "Set when it failed.", null=True, default=None)
    indexes = (("server_id", "request_id"),)


class InstanceEvent(Resource):
    """The work behind an action and how it ended."""

    kind = "instance_event"
    service = "compute"
    owner = ""

    id = Attr(Uuid, "Internal id.", key=True, default=new_id)
    action_id = Attr(Uuid, "The action.", ref="instance_action.id")
    server_id = Attr(Uuid, "The server.", index=True)
    event = Attr(Str(255), "compute_start_instance ...")
    start_time = Attr(Time, "When it began.", default=now)
    finish_time = Attr(Time, "When it ended.", null=True, default=None)
    result = Attr(Str(64), "Success or Error.", null=True, default=None)
    details = Attr(Str(1024), "What went wrong, for the user.", null=True, default=None)
    host = Attr(Str(64), "Where.", null=True, default=None)


FLAVOR, KEYPAIR, SERVER, GROUP = Flavor.table, Keypair.table, Server.table, ServerGroup.table
AGGREGATE, ACTION, EVENT = Aggregate.table, InstanceAction.table, InstanceEvent.table

FLAVOR_ACCESS = sa.Table(
    "flavor_access",
    METADATA,
    sa.Column("flavor_id", sa.String(255), sa.ForeignKey("flavor.id"), primary_key=True),
    sa.Column("project_id", sa.String(255), primary_key=True),
)
AGGREGATE_HOST = sa.Table(
    "aggregate_host",
    METADATA,
    sa.Column("aggregate_id", sa.BigInteger, sa.ForeignKey("aggregate.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True),
)
SERVER_TAG = sa.Table(  # an index over server.tags, for the tag filters
    "server_tag",
    METADATA,
    sa.Column("server_id", sa.String(36), sa.ForeignKey("server.id"), primary_key=True),
    sa.Column("tag", sa.String(80), primary_key=True),
)
FORCED_DOWN = sa.Table(  # hosts an operator declared down
    "compute_forced_down", METADATA, sa.Column("host", sa.String(64), primary_key=True)
)
QUOTA_CLASS = sa.Table(  # the operator's defaults, over the built-in ones
    "compute_quota_class",
    METADATA,
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("limit", sa.BigInteger, nullable=False),
)
