"""Follow a packet through this host: one leg of ``nubila net trace``. It only looks; nothing is sent or changed.

A leg begins where a packet enters a thing of this host (a switch by a port, a namespace by a device) and ends where it
leaves it. ``answer`` takes a question and gives ``{"steps": [[where, what], ...], "out": [...], "stop": "why" or ""}``
and, after a router, the packet as it leaves. Whoever asks (apps/net_trace.py) joins the legs of several hosts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nubila.core.ports import TryAgain
from nubila.drivers import links, programs, router, trace_nft, trace_ovs
from nubila.drivers.ovs import OpenVSwitch
from nubila.drivers.ovs_view import ID, NETWORK, OWNER, Interface

if TYPE_CHECKING:
    from nubila.drivers.network import RealNetwork

Answer = dict[str, Any]


def answer(driver: RealNetwork, question: Mapping[str, Any]) -> Answer:
    """Do what the question asks: switch, route or dhcp."""
    does = {"switch": _switch, "route": _route, "dhcp": _dhcp}.get(str(question.get("do")))
    if does is None:
        return {"error": f"this host cannot trace {question.get('do')}"}
    try:
        return does(driver, question)
    except TryAgain as e:
        return {"steps": [], "out": [], "stop": str(e)}


# --- the switch ---------------------------------------------------------------------------------------------------


def _switch(driver: RealNetwork, question: Mapping[str, Any]) -> Answer:
    switch = driver.switch
    if not isinstance(switch, OpenVSwitch):
        return _bridge(driver, question)
    view = switch.view()
    source, packet = question["from"], dict(question["packet"])
    bridge, in_port = switch.bridge, ""
    if "outside" in source:
        bridge, in_port = switch.physical_bridge(source["outside"]), "LOCAL"
    else:
        found = [i for i in view.interfaces.values() if _enters(i, source)]
        if not found or not found[0].ofport:
            return _stop(switch.bridge, f"{source.get('device') or 'the tunnel of the network'} is not plugged in here")
        in_port = str(found[0].ofport)
    text = switch.daemons.control("ofproto/trace", bridge, trace_ovs.flow(in_port, packet))
    outcome = trace_ovs.read(text)
    numbers = {str(i.ofport): i for i in view.interfaces.values() if i.ofport}
    out, joins = [], set()
    for where, number in outcome.outputs:
        interface = numbers.get(number) if where == switch.bridge else None
        if interface is not None and interface.kind != "patch":
            out.append({
                "device": interface.name, "kind": interface.kind, "id": interface.ids.get(ID, ""),
                "owner": interface.ids.get(OWNER, ""), "network_id": interface.ids.get(NETWORK, ""),
            })  # fmt: skip
        elif interface is not None:
            joins.add(interface.ids.get(ID, ""))
        elif number == "LOCAL":
            out.append({"device": where, "kind": "host", "id": "", "owner": "", "network_id": ""})
    out += [{"device": f"int-{name}", "kind": "physical", "id": name, "owner": "", "network_id": ""} for name in joins]
    steps = [[one.bridge, one.says] for one in outcome.passed]
    return {
        "steps": steps,
        "out": out,
        "stop": "" if out or outcome.floods else outcome.stop or trace_ovs.why(outcome.passed),
    }


def _enters(interface: Interface, source: Mapping[str, Any]) -> bool:
    """Whether the packet comes in here: by a device, a network's tunnel, or the joint to a physical network."""
    if "device" in source:
        return interface.name == str(source["device"])
    if "uplink" in source:
        return (interface.kind, interface.ids.get(NETWORK)) == ("uplink", source["uplink"])
    return (interface.kind, interface.ids.get(ID)) == ("patch", source["physical"])


def _bridge(driver: RealNetwork, question: Mapping[str, Any]) -> Answer:
    """A Linux bridge: who of the network is here; its filters are not worked out."""
    source, network = question["from"], question.get("network_id")
    with links.opened(driver.place.namespace) as net:
        device = net.device(source["device"]) if "device" in source else None
    if "device" in source and (device is None or not device.up):
        return _stop(source["device"], "the device is not there" if device is None else "the device is down")
    steps = [["Linux bridge", "filters of this host (nft list ruleset) are not worked out: they may still drop it"]]
    here = [
        port for port in driver.switch.plugged() if port.network_id == network and port.device != source.get("device")
    ]
    out = [
        {"device": p.inner or p.device, "kind": p.kind, "id": p.id, "owner": p.owner, "network_id": p.network_id}
        for p in here
    ]
    away = (
        []
        if "uplink" in source
        else [{"device": "uplink", "kind": "uplink", "id": "", "owner": "", "network_id": network}]
    )
    return {"steps": steps, "out": out + away, "stop": ""}


def _stop(where: str, why: str) -> Answer:
    return {"steps": [[where, why]], "out": [], "stop": why}


# --- namespaces ---------------------------------------------------------------------------------------------------


def _route(driver: RealNetwork, question: Mapping[str, Any]) -> Answer:
    """A router's namespace, or the host itself: translations, routes, filters."""
    id, device = question.get("router") or "", question.get("iif") or ""
    namespace = router.namespace(driver.place, id) if id else driver.place.namespace
    place = f"qrouter-{id}" if id else "the host itself"
    if namespace and not links.namespace_exists(namespace):
        return _stop(place, "the router's namespace is not here")
    packet: dict[str, Any] = {
        **question["packet"],
        "iifname": device,
        "oifname": "",
        "mark": 0,
        "ctmark": 0,
        "status": set(),
    }
    steps: list[list[str]] = []
    with links.entered(namespace):
        rules = json.loads(programs.run(["nft", "-j", "list", "ruleset"], package="nftables") or "{}")
        said, stop = trace_nft.walk(rules, "prerouting", packet)
        steps += [[place, text] for text in said]
        if stop:
            return {"steps": steps, "out": [], "stop": stop}
        if packet.get("local"):
            steps.append([place, "the metadata service of this host answers"])
            return {"steps": steps, "out": [{"device": place, "kind": "metadata", "id": id}], "stop": ""}
        way = _way(packet, device)
        if isinstance(way, str):
            text = f"no route to {packet['dst']}: {way}"
            return {"steps": [*steps, [place, text]], "out": [], "stop": f"{place} has {text}"}
        if way.get("type") == "local":
            steps.append([place, f"{packet['dst']} is an address of its own"])
            return {"steps": steps, "out": [{"device": way.get("dev"), "kind": "local", "id": id}], "stop": ""}
        packet["oifname"], hop = way["dev"], way.get("gateway") or packet["dst"]
        steps.append([place, f"route: {packet['dst']} {f'via {hop} ' if way.get('gateway') else ''}by {way['dev']}"])
        for hook in ("forward", "postrouting"):
            packet["own"] = way.get("prefsrc")
            said, stop = trace_nft.walk(rules, hook, packet)
            steps += [[place, text] for text in said]
            if stop:
                return {"steps": steps, "out": [], "stop": stop}
        mac, own = _neighbour(hop, way["dev"])
    kept = {key: packet[key] for key in ("src", "dst", "protocol", "dport", "sport") if key in packet}
    out = {"device": way["dev"], "kind": "route", "id": id, "next_hop": hop, "mac": mac, "own_mac": own}
    return {"steps": steps, "out": [out], "stop": "", "packet": kept}


def _way(packet: Mapping[str, Any], device: str) -> dict[str, Any] | str:
    """What the kernel's routes say, in the namespace this thread is in; the kernel's words when there is none."""
    argv = ["ip", "-j", "route", "get", packet["dst"]]
    if device:
        argv += ["from", packet["src"], "iif", device]
    if packet.get("mark"):
        argv += ["mark", str(packet["mark"])]
    try:
        found = json.loads(programs.run(argv, package="iproute2"))
    except TryAgain as e:
        return str(e).rpartition("RTNETLINK answers: ")[2].strip(" .")
    way: dict[str, Any] = found[0]
    kinds = {"unreachable", "blackhole", "prohibit", "throw"}
    return str(way["type"]) if way.get("type") in kinds else way


def _neighbour(address: str, device: str) -> tuple[str, str]:
    """The MAC that the kernel knows for an address ("" none), and the device's own."""
    with links.opened("") as net:
        found = net.device(device)
    shown = programs.run(["ip", "-j", "neigh", "show", address, "dev", device], package="iproute2")
    rows = json.loads(shown or "[]")
    return next((row["lladdr"] for row in rows if row.get("lladdr")), ""), found.mac if found else ""


# --- DHCP ---------------------------------------------------------------------------------------------------------


def _dhcp(driver: RealNetwork, question: Mapping[str, Any]) -> Answer:
    """Whether DHCP of a network would answer a MAC, and with what."""
    id, mac = str(question["network_id"]), str(question["mac"]).lower()
    place, run_dir = f"qdhcp-{id}", driver.dhcp.run_dir(id)
    if not links.namespace_exists(driver.dhcp_namespace(id)):
        return _stop(place, "the DHCP server's namespace is not here")
    if not driver.dhcp.runs(id):
        return _stop(place, "dnsmasq does not run")
    steps = [[place, "dnsmasq runs"]]
    lines = (run_dir / "hosts").read_text().splitlines()
    mine = [line.split(",") for line in lines if line.lower().startswith(mac)]
    given = [part for line in mine for part in line[1:] if part[:1] == "[" or part.count(".") == 3]
    if not given:
        return {
            **_stop(place, f"dnsmasq knows no address for {mac}"),
            "steps": [*steps, [place, "no entry for this MAC"]],
        }
    steps.append([place, f"it gives {', '.join(given)}"])
    return {"steps": steps, "out": [{"device": place, "kind": "answered", "id": id}], "stop": ""}
