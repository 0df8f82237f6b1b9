"""How much each agent serves, as its ``configurations`` say: counted from the rows when somebody looks."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.network import agents, placing
from nubila.services.network.asks import HA_INTERFACE
from nubila.services.network.ha_tables import HA_HOST
from nubila.services.network.kinds import FloatingIP, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING

Row = dict[str, Any]
_D, _F, _H, _P, _R, _S = (
    DHCP_BINDING.c, FloatingIP.table.c, HA_HOST.c, Port.table.c, Router.table.c, Subnet.table.c
)  # fmt: skip
_ROUTER_OF = sa.union(
    sa.select(_R.id, _R.host).where(_R.host > placing.TAKEN), sa.select(_H.router_id, _H.host)
).subquery("router_of")
_SERVED = _D.state != placing.AWAY


def _by_host(column: Any, joined: Any, *where: Any) -> Any:
    return sa.select(column, sa.func.count()).select_from(joined).where(*where).group_by(column)


_O = _ROUTER_OF.c
_INTERFACES = ("network:router_interface", "network:router_interface_distributed", HA_INTERFACE)
_COUNTS: dict[str, dict[str, Any]] = {
    agents.DHCP: {
        "subnets": _by_host(_D.host, DHCP_BINDING.join(Subnet.table, _S.network_id == _D.network_id), _SERVED),
        "ports": _by_host(_D.host, DHCP_BINDING.join(Port.table, _P.network_id == _D.network_id), _SERVED),
    },
    agents.L3: {
        "routers": _by_host(_O.host, _ROUTER_OF),
        "ex_gw_ports": _by_host(
            _O.host, _ROUTER_OF.join(Port.table, _P.device_id == _O.id), _P.device_owner == "network:router_gateway"
        ),
        "interfaces": _by_host(
            _O.host, _ROUTER_OF.join(Port.table, _P.device_id == _O.id), _P.device_owner.in_(_INTERFACES)
        ),
        "floating_ips": _by_host(_O.host, _ROUTER_OF.join(FloatingIP.table, _F.router_id == _O.id)),
    },
    agents.OVS: {"devices": _by_host(_P.bound_host, Port.table, _P.bound_host != "")},
}
_COUNTS[agents.BRIDGE] = _COUNTS[agents.OVS]


def fill(reader: Reader, found: list[Row]) -> list[Row]:
    """Put what each agent serves into its configurations."""
    for binary in {a["binary"] for a in found} & _COUNTS.keys():
        for name, stmt in _COUNTS[binary].items():
            counted = dict(reader.rows(stmt))
            for agent in found:
                if agent["binary"] == binary:
                    agent["configurations"][name] = counted.get(agent["host"], 0)
    return found
