"""What nftables would do to the first packet of a connection: our own tables, read as JSON and worked out.

Covers the vocabulary that our rules use (names of devices, addresses, ports, marks, state of the connection, counters,
sets and maps written in place). A rule with anything else in it is shown and passed over, and said to be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

Packet = dict[str, Any]
"""iifname, oifname, src, dst, protocol, sport, dport; mark, ctmark (numbers); status (set of words)."""
_HOOKS = {"mangle": -150, "dstnat": -100, "filter": 0, "srcnat": 100, "raw": -300}


class _Unknown(Exception):
    """An expression that is not worked out here."""


def walk(ruleset: Mapping[str, Any], hook: str, packet: Packet) -> tuple[list[str], str]:
    """Pass every chain of a hook; ``packet`` is changed as the rules say. (sentences, why it was dropped or "")."""
    items = ruleset.get("nftables", [])
    chains = [item["chain"] for item in items if "chain" in item and item["chain"].get("hook") == hook]
    said: list[str] = []
    family = "ip6" if ":" in packet["dst"] else "ip"
    for chain in sorted(chains, key=lambda c: c.get("prio", 0)):
        if chain["family"] not in (family, "inet"):
            continue
        key = (chain["family"], chain["table"], chain["name"])
        rules = [
            item["rule"] for item in items
            if "rule" in item and (item["rule"]["family"], item["rule"]["table"], item["rule"]["chain"]) == key
        ]  # fmt: skip
        where = f"nft {chain['table']} {chain['name']}"
        verdict = _chain(rules, packet, where, said)
        if verdict == "drop" or (verdict == "" and chain.get("policy") == "drop"):
            return said, f"{where} drops it"
    return said, ""


def _chain(rules: Sequence[Mapping[str, Any]], packet: Packet, where: str, said: list[str]) -> str:
    """The verdict of a chain's rules: "drop", "accept" or "" (none of them decided)."""
    for rule in rules:
        try:
            verdict = _rule(rule["expr"], packet, where, said)
        except _Unknown as e:
            said.append(f"{where}: a rule was passed over that cannot be worked out here ({e})")
            continue
        if verdict:
            return verdict
    return ""


def _rule(expressions: Sequence[Mapping[str, Any]], packet: Packet, where: str, said: list[str]) -> str:
    for expression in expressions:
        ((kind, value),) = expression.items()
        if kind == "match":
            if not _matches(value, packet):
                return ""
        elif kind in ("counter", "log", "comment"):
            continue
        elif kind == "mangle":
            _mangle(value, packet)
        elif kind in ("accept", "drop"):
            said.append(f"{where}: {kind}")
            return str(kind)
        elif kind in ("dnat", "snat", "masquerade", "redirect"):
            return _translate(kind, value or {}, packet, where, said)
        elif kind in ("ct helper", "limit"):
            continue
        else:
            raise _Unknown(kind)
    return ""


def _translate(kind: str, value: Mapping[str, Any], packet: Packet, where: str, said: list[str]) -> str:
    before = dict(packet)
    if kind == "redirect":
        packet["dport"], packet["local"] = value.get("port"), True
        said.append(f"{where}: redirected to port {value.get('port')} of the router itself")
    elif kind == "masquerade":
        packet["src"] = packet.get("own") or packet["src"]
        said.append(f"{where}: source becomes the address of {packet.get('oifname')}")
    else:
        side = "dst" if kind == "dnat" else "src"
        address = value.get("addr")
        if isinstance(address, Mapping):
            raise _Unknown("a map of addresses")
        packet[side] = address
        if value.get("port") is not None and side == "dst":
            packet["dport"] = value["port"]
        packet["status"].add(kind)
        what = "destination" if kind == "dnat" else "source"
        port = f":{packet['dport']}" if packet.get("dport") != before.get("dport") else ""
        said.append(f"{where}: {what} {before[side]} becomes {address}{port}")
    return "accept"


def _mangle(value: Mapping[str, Any], packet: Packet) -> None:
    key = value["key"]
    name = "mark" if "meta" in key else "ctmark" if "ct" in key else ""
    if not name:
        raise _Unknown("a change of something else than a mark")
    packet[name] = _number(value["value"], packet)


def _number(value: Any, packet: Packet) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        ((kind, inner),) = value.items()
        if kind in ("&", "|", "^"):
            left, right = (_number(part, packet) for part in inner)
            return {"&": left & right, "|": left | right, "^": left ^ right}[kind]
        if kind == "meta" and inner.get("key") == "mark":
            return int(packet.get("mark", 0))
        if kind == "ct" and inner.get("key") == "mark":
            return int(packet.get("ctmark", 0))
    raise _Unknown("a calculation")


def _left(left: Mapping[str, Any], packet: Packet) -> Any:
    ((kind, value),) = left.items()
    if kind == "&":
        return _number(left, packet)
    key = value.get("key") if isinstance(value, Mapping) else None
    meta = {"mark": packet.get("mark", 0), "l4proto": packet["protocol"]}
    meta |= {"iifgroup": packet.get("iifgroup", 0), "oifgroup": 0}
    meta |= {name: packet.get(name, "") for name in ("iifname", "oifname")}
    tracked = {"state": {"new"}, "status": packet["status"], "mark": packet.get("ctmark", 0)}
    if kind in ("meta", "ct") and key in (known := meta if kind == "meta" else tracked):
        return known[key]
    if kind == "payload" and "field" in value:
        return _field(value["protocol"], value["field"], packet)
    raise _Unknown(f"{kind} {key or ''}".strip())


def _field(protocol: str, name: str, packet: Packet) -> Any:
    if name in ("saddr", "daddr"):
        return packet["src" if name == "saddr" else "dst"]
    if name in ("sport", "dport"):
        return packet.get(name) if protocol in (packet["protocol"], "th") else None
    if name in ("protocol", "nexthdr"):
        return packet["protocol"]
    raise _Unknown(f"{protocol} {name}")


def _matches(match: Mapping[str, Any], packet: Packet) -> bool:
    left, right = _left(match["left"], packet), match["right"]
    hit = bool(left & _words(right)) if isinstance(left, set) else _among(left, right)
    return bool(hit) is not (match["op"] == "!=")


def _words(right: Any) -> set[str]:
    found = right.get("set", []) if isinstance(right, Mapping) else right if isinstance(right, list) else [right]
    return {str(word) for word in found}


def _among(left: Any, right: Any) -> bool:
    if left is None:
        return False
    if isinstance(right, Mapping):
        if "set" in right:
            return any(_among(left, one) for one in right["set"])
        if "prefix" in right:
            net = ipaddress.ip_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False)
            return ipaddress.ip_address(str(left)) in net
        if "range" in right:
            low, high = right["range"]
            return bool(low <= left <= high)
        raise _Unknown("a comparison")
    if isinstance(right, list):
        return any(_among(left, one) for one in right)
    if isinstance(right, str) and right.endswith("*"):
        return str(left).startswith(right[:-1])
    return str(left) == str(right)
