"""Metering labels in the API: whose they are, what routers are told to count, how counts add up."""

from __future__ import annotations

from typing import Any

import pytest
from networking import Net, Play

from nubila.core.ports import LabelRule, LabelSpec
from nubila.services.network import metering

Json = dict[str, Any]
LABELS, RULES = "metering/metering-labels", "metering/metering-label-rules"


def label(net: Net, **values: Any) -> Json:
    return net.make("metering_label", LABELS, **values)


def rule(net: Net, label: Json, **values: Any) -> Json:
    return net.make("metering_label_rule", RULES, metering_label_id=label["id"], **values)


@pytest.mark.req("C/MTR-01", "C/MTR-02")
def test_labels_and_rules_are_made_shown_and_deleted(admin: Net) -> None:
    one = label(admin, name="l", description="x" * 1024)
    assert (one["shared"], one["name"]) == (False, "l")
    made = rule(admin, one, remote_ip_prefix="10.0.1.0/24")
    assert made == {
        "id": made["id"], "metering_label_id": one["id"], "direction": "ingress", "excluded": False,
        "remote_ip_prefix": "10.0.1.0/24", "source_ip_prefix": None, "destination_ip_prefix": None,
    }  # fmt: skip
    both = rule(admin, one, direction="egress", source_ip_prefix="10.0.1.7", destination_ip_prefix="0.0.0.0/0")
    assert both["source_ip_prefix"] == "10.0.1.7/32"
    assert len(admin.ok("GET", RULES, metering_label_id=one["id"])["metering_label_rules"]) == 2

    def refused(**values: Any) -> tuple[int, str]:
        body = {"metering_label_rule": {"metering_label_id": one["id"], "direction": "ingress", **values}}
        return admin.refused("POST", RULES, body)

    assert refused(remote_ip_prefix="10.0.0.0/16") == (409, "MeteringLabelRuleOverlaps")
    assert refused()[0] == 400
    assert refused(remote_ip_prefix="10.9.0.0/16", source_ip_prefix="10.0.0.1")[0] == 400
    assert refused(source_ip_prefix="10.0.0.1", destination_ip_prefix="fd00::1")[0] == 400
    assert refused(remote_ip_prefix="not an address")[0] == 400
    assert refused(remote_ip_prefix="10.9.0.0/16", direction="any")[0] == 400
    assert refused(remote_ip_prefix="10.9.0.0/16", metering_label_id="00000000-0000-0000-0000-000000000000")[0] == 404
    rule(admin, one, direction="ingress", remote_ip_prefix="10.0.1.9/32", excluded=True)
    rule(admin, one, direction="ingress", remote_ip_prefix="fd03::/64")
    admin.ok("DELETE", f"metering/metering-label-rules/{both['id']}")
    admin.ok("DELETE", f"metering/metering-labels/{one['id']}")
    assert admin.ok("GET", RULES)["metering_label_rules"] == []
    used = admin.ok("GET", f"quotas/{one['project_id']}/details")["quota"]
    assert (used["metering_label"]["used"], used["metering_label_rule"]["used"]) == (0, 0)


@pytest.mark.req("C/MTR-03", "C/MTR-06")
def test_members_make_none_and_see_only_their_projects(admin: Net, demo: Net) -> None:
    own = demo.make("network")["project_id"]
    theirs, mine = label(admin, name="theirs"), label(admin, name="mine", project_id=own)
    other = rule(admin, theirs, direction="ingress", remote_ip_prefix="10.0.0.0/8")
    assert [x["id"] for x in demo.ok("GET", LABELS)["metering_labels"]] == [mine["id"]]
    assert demo.ok("GET", RULES)["metering_label_rules"] == []
    for path in (f"metering/metering-labels/{theirs['id']}", f"metering/metering-label-rules/{other['id']}"):
        assert demo.refused("GET", path)[0] == 404
        assert demo.refused("DELETE", path)[0] == 404
    assert demo.refused("POST", LABELS, {"metering_label": {"name": "x"}})[0] == 403
    body = {"metering_label_id": theirs["id"], "direction": "ingress", "remote_ip_prefix": "11.0.0.0/8"}
    assert demo.refused("POST", RULES, {"metering_label_rule": body})[0] == 404
    body["metering_label_id"] = mine["id"]
    assert demo.refused("POST", RULES, {"metering_label_rule": body})[0] == 403
    admin.ok("PUT", f"quotas/{own}", {"quota": {"metering_label": 1}})
    full = {"metering_label": {"name": "more", "project_id": own}}
    assert admin.refused("POST", LABELS, full) == (409, "OverQuota")


@pytest.mark.req("C/MTR-03")
def test_routers_count_for_their_project_and_shared_labels_and_sums_last(play: Play) -> None:
    _, subnet = play.network()
    public = play.test.request("GET", "/network/v2.0/networks?router:external=true").json["networks"][0]["id"]
    router = play.post("routers", "router", external_gateway_info={"network_id": public})["id"]
    play.put(f"routers/{router}/add_router_interface", {"subnet_id": subnet})
    play.test.settle()
    host = play.scalar("select host from router")
    own = play.post(LABELS, "metering_label", "admin", name="own", project_id=play.project)["id"]
    shared = play.post(LABELS, "metering_label", "admin", name="all", shared=True)["id"]
    play.post(LABELS, "metering_label", "admin", name="not here")
    assert ("metering", play.project, "") in play.debts()
    for direction in ("egress", "ingress"):
        play.post(RULES, "metering_label_rule", "admin", metering_label_id=own, direction=direction,
                  remote_ip_prefix="10.0.0.0/24")  # fmt: skip
    play.post(RULES, "metering_label_rule", "admin", metering_label_id=own, direction="egress",
              source_ip_prefix="10.0.0.9", destination_ip_prefix="9.9.9.0/24", excluded=True)  # fmt: skip
    play.test.settle()
    spec = {one.id: set(one.rules) for one in play.spec("router", router, host).labels}
    assert spec == {
        own: {
            LabelRule(direction="egress", source="10.0.0.0/24"),
            LabelRule(direction="ingress", destination="10.0.0.0/24"),
            LabelRule(direction="egress", source="10.0.0.9/32", destination="9.9.9.0/24", excluded=True),
        },
        shared: set(),
    }
    assert LabelSpec(id=shared) in play.spec("router", router, host).labels

    def said(where: str, packets: int, octets: int) -> list[tuple[int, int]]:
        with play.cloud.store.write() as tx:
            metering.observe(tx, router, where, [{"label_id": own, "packets": packets, "bytes": octets}])
        with play.cloud.store.read() as r:
            return [(p, b) for id, _, p, b in metering.sums(r) if id == own]

    assert said(host, 5, 500) == [(5, 500)]
    assert said(host, 5, 500) == [(5, 500)]
    assert said(host, 8, 800) == [(8, 800)]
    assert said(host, 2, 200) == [(10, 1000)], "the host's counter began anew"
    assert said("another", 1, 100) == [(11, 1100)], "the router moved"
    text = play.test.request("GET", "/metrics").body.decode()
    assert f'nubila_metering_bytes_total{{label="{own}",project="{play.project}"}} 1100' in text
    assert text.count("# TYPE nubila_metering_packets_total counter") == 1
    play.delete(f"metering/metering-labels/{own}", "admin")
    assert said(host, 9, 900) == []
    play.test.settle()
    assert [one.id for one in play.spec("router", router, host).labels] == [shared]
