"""What ordinary Open vSwitch bridges, those of physical networks, have learned about where MACs are.

A bridge that saw a MAC on its cable drops frames for it that come by that cable, and goes on doing so for some
milliseconds after it has learned better: what was decided once is cached, and looked at again beside the traffic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from pathlib import Path

from nubila.core.ports import TryAgain
from nubila.drivers import ovs_db
from nubila.drivers.ovs_db import OvsRefused

PATIENCE_S = 1.0


def forget(control: Path, macs: Set[str]) -> None:
    """Have bridges that know one of these MACs forget what they have learned, best effort: frames then go everywhere.

    ``control`` is the control socket of ovs-vswitchd (ovs-appctl(8)).
    """
    with contextlib.suppress(TryAgain, OvsRefused):
        for bridge in str(_call(control, "ofproto/list")).split():
            if not macs.isdisjoint(known(str(_call(control, "fdb/show", bridge)))):
                _call(control, "fdb/flush", bridge)  # fdb/del takes away only what was set by hand


def known(shown: str) -> Iterator[str]:
    """The MAC of each line that fdb/show has written."""
    for line in shown.splitlines():
        words = line.split()
        if len(words) >= 4 and words[1].isdigit() and words[2].count(":") == 5:
            yield words[2].lower()


def _call(control: Path, command: str, *arguments: str) -> object:
    return ovs_db.call(control, command, list(arguments), PATIENCE_S) or ""
