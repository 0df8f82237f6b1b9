"""The keeper process: ``python -m nubila.apps.keeper ROOT``, started by the network driver, one per host."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from nubila.agent.client import HostApi
from nubila.agent.keeper import Keeper
from nubila.apps.host import HostConfig

ANSWER_S = 0.8
"""How long an answer of the control plane may take: a later one is worth nothing."""
IMPORTANCE = -10


def main(root: Path) -> None:
    """Keep the leases of the host whose state directory this is, until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = msgspec.json.decode((root / "agent.json").read_bytes(), type=HostConfig)
    api = HostApi(
        config.url, config.host, timeout_s=ANSWER_S,
        certificate=Path(config.certificate) if config.certificate else None,
        key=Path(config.key) if config.key else None, ca=Path(config.ca) if config.ca else None,
    )  # fmt: skip
    try:
        os.nice(IMPORTANCE)
    except OSError:
        logging.warning("cannot raise our priority")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    gc.freeze()
    Keeper(root / "ha", config.host, config.namespace, api).run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
