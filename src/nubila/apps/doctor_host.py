"""What ``nubila doctor`` asks about a machine that is to carry real networks: the kernel and Open vSwitch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence

from nubila.apps.checks import Check
from nubila.apps.host import PATH

Run = Callable[[Sequence[str]], tuple[int, str]]
OLDEST_SWITCH = (3, 1)
"""The oldest Open vSwitch that is tested."""
_PROBES = {
    "network namespaces": (["true"], "a kernel with CONFIG_NET_NS"),
    "pairs of devices": (["ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"], "CONFIG_VETH"),
    "nftables": (["nft", "add", "table", "inet", "probe"], "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"),
}  # each in a namespace of its own, which ends with the command


def _run(argv: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, env={"PATH": PATH}
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return 1, str(e)
    return done.returncode, (done.stdout or done.stderr).strip()


def able(run: Run = _run) -> Iterator[Check]:
    """Whether the kernel can what the real gear needs, and whether the switch is new enough; nothing stays behind."""
    for name, (argv, fix) in _PROBES.items():
        status, said = run(["unshare", "--net", *argv])
        yield Check(name, status == 0, said.partition("\n")[0], fix)
    status, said = run(["ovs-vsctl", "--version"])
    found = re.search(r"(\d+)\.(\d+)[.\d]*", said)
    version = tuple(map(int, found.groups())) if found and status == 0 else (0, 0)
    oldest = ".".join(map(str, OLDEST_SWITCH))
    yield Check("Open vSwitch", version >= OLDEST_SWITCH, found[0] if found else said, f"install {oldest} or newer")
