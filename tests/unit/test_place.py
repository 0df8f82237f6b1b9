"""Placement decisions: what fits, what is refused and why, which host is best."""

from __future__ import annotations

import pytest

from nubila.services.compute.place import Host, Wish, amounts, candidates, explain, refusal, traits

ROOM = {"VCPU": 4, "MEMORY_MB": 4096, "DISK_GB": 40}
NEED = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}


def host(name: str = "a", **changes: object) -> Host:
    options: dict[str, object] = {"name": name, "provider_id": f"id-{name}", "zone": "nova", "free": ROOM, **changes}
    return Host(**options)  # type: ignore[arg-type]


def wish(**changes: object) -> Wish:
    return Wish(**{"amounts": NEED, **changes})  # type: ignore[arg-type]


def test_amounts_count_all_disks_and_flavor_overrides() -> None:
    flavor = {"vcpus": 2, "ram": 1024, "disk": 10, "ephemeral": 5, "swap": 1025}
    assert amounts(flavor) == {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 17}
    flavor["extra_specs"] = {"resources:VCPU": "0", "resources:CUSTOM_GPU": "1", "hw:cpu_policy": "shared"}
    assert amounts(flavor) == {"MEMORY_MB": 1024, "DISK_GB": 17, "CUSTOM_GPU": 1}
    assert amounts({"vcpus": 1, "ram": 64, "disk": 0}) == {"VCPU": 1, "MEMORY_MB": 64}


def test_traits_of_a_flavor() -> None:
    specs = {"extra_specs": {"trait:HW_CPU_X86_AVX": "required", "trait:CUSTOM_OLD": "forbidden"}}
    assert traits(specs) == (frozenset({"HW_CPU_X86_AVX"}), frozenset({"CUSTOM_OLD"}))


@pytest.mark.parametrize(
    ("the_host", "the_wish", "why"),
    [
        (host(), wish(), ""),
        (host(up=False), wish(), "down"),
        (host(), wish(host="b"), "asked for"),
        (host(), wish(host="a"), ""),
        (host(), wish(zone="z2"), "zone"),
        (host(free={**ROOM, "MEMORY_MB": 511}), wish(), "MEMORY_MB"),
        (host(free={**ROOM, "MEMORY_MB": 512}), wish(), ""),
        (host(most={"VCPU": 4}), wish(amounts={"VCPU": 5}), "VCPU"),
        (host(), wish(required=frozenset({"T"})), "lacks"),
        (host(traits=frozenset({"T"})), wish(forbidden=frozenset({"T"})), "forbidden"),
        (host(), wish(policy="affinity", members={"b": 1}), "affinity"),
        (host(), wish(policy="affinity", members={}), ""),
        (host(), wish(policy="anti-affinity", members={"a": 1}), "anti-affinity"),
        (host(), wish(policy="anti-affinity", members={"a": 1}, max_per_host=2), ""),
        (host(), wish(same_hosts=frozenset({"b"})), "same_host"),
        (host(), wish(other_hosts=frozenset({"a"})), "different_host"),
    ],
)
def test_refusals(the_host: Host, the_wish: Wish, why: str) -> None:
    said = refusal(the_host, the_wish)
    assert (why in said) if why else said == ""


def test_most_free_memory_first_and_soft_policies_before_that() -> None:
    small, big = host("small"), host("big", free={**ROOM, "MEMORY_MB": 9000})
    assert [h.name for h in candidates([small, big], wish())] == ["big", "small"]
    assert candidates([small, big], wish(policy="soft-affinity", members={"small": 1}))[0] is small
    assert candidates([small, big], wish(policy="soft-anti-affinity", members={"big": 1}))[0] is small


def test_explain_names_each_host() -> None:
    assert explain([], wish()) == "There is no compute host."
    assert "a: down or disabled" in explain([host(up=False)], wish())
