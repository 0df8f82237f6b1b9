"""Glance's published policy rule names with their current defaults, for the operations we have."""

from __future__ import annotations

from dataclasses import replace

from nubila.core.policy import Rule

ADMIN = "rule:context_is_admin"
_MEMBER = "role:member and project_id:%(project_id)s"
_READER = "role:reader and project_id:%(project_id)s"
_SEEN = (
    "project_id:%(project_id)s or project_id:%(member_id)s or 'community':%(visibility)s or 'public':%(visibility)s "
    "or 'shared':%(visibility)s"
)
_OWNER_WRITES = f"{ADMIN} or ({_MEMBER})"
_MEMBER_READS = f"{ADMIN} or role:reader and (project_id:%(project_id)s or project_id:%(member_id)s)"
_IMAGES = "/v2/images"
_IMAGE, _FILE = "/v2/images/{image_id}", "/v2/images/{image_id}/file"
_MEMBERS, _ONE_MEMBER = "/v2/images/{image_id}/members", "/v2/images/{image_id}/members/{member_id}"

_RULES: list[Rule] = [
    Rule("context_is_admin", "role:admin", "Who counts as administrator."),
    Rule("service_api", "role:service or role:admin", "Calls between services."),
    Rule("add_image", f"{ADMIN} or ({_MEMBER} and project_id:%(owner)s)", "Create images.", (("POST", _IMAGES),)),
    Rule("delete_image", _OWNER_WRITES, "Delete an image.", (("DELETE", _IMAGE),)),
    Rule("get_image", f"{ADMIN} or (role:reader and ({_SEEN}))", "Show an image.", (("GET", _IMAGE),)),
    Rule("get_images", f"{ADMIN} or ({_READER})", "List images.", (("GET", _IMAGES),)),
    Rule("modify_image", _OWNER_WRITES, "Change an image.", (("PATCH", _IMAGE),)),
    Rule("publicize_image", ADMIN, "Make an image public.", (("PATCH", _IMAGE),)),
    Rule("communitize_image", _OWNER_WRITES, "Make an image a community image.", (("PATCH", _IMAGE),)),
    Rule("download_image", f"{ADMIN} or (role:member and ({_SEEN}))", "Download the data.", (("GET", _FILE),)),
    Rule("upload_image", _OWNER_WRITES, "Upload or stage the data.", (("PUT", _FILE),)),
    Rule("add_member", _OWNER_WRITES, "Share an image.", (("POST", _MEMBERS),)),
    Rule("delete_member", _OWNER_WRITES, "Stop sharing an image.", (("DELETE", _ONE_MEMBER),)),
    Rule("get_member", _MEMBER_READS, "Show with whom an image is shared.", (("GET", _ONE_MEMBER),)),
    Rule("get_members", _MEMBER_READS, "List with whom an image is shared.", (("GET", _MEMBERS),)),
    Rule(
        "modify_member", f"{ADMIN} or (role:member and project_id:%(member_id)s)", "Accept or reject a shared image.",
        (("PUT", _ONE_MEMBER),),
    ),
    Rule("deactivate", _OWNER_WRITES, "Stop downloads.", (("POST", f"{_IMAGE}/actions/deactivate"),)),
    Rule("reactivate", _OWNER_WRITES, "Allow downloads again.", (("POST", f"{_IMAGE}/actions/reactivate"),)),
]  # fmt: skip
RULES: list[Rule] = [replace(rule, scopes=("project",)) if rule.operations else rule for rule in _RULES]
