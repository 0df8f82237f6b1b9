"""What bridges have learned, as ovs-appctl(8) shows it."""

from __future__ import annotations

from nubila.drivers.ovs_learned import known

SHOWN = """ port  VLAN  MAC                Age
LOCAL     0  3e:a0:60:06:f9:84   12
    1     0  FA:16:3e:82:e4:6c    3
    2  4094  fa:16:3e:00:00:01  static
"""


def test_every_line_but_the_head_is_an_entry() -> None:
    assert list(known(SHOWN)) == ["3e:a0:60:06:f9:84", "fa:16:3e:82:e4:6c", "fa:16:3e:00:00:01"]
    assert list(known("")) == []
