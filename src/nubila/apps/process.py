"""The entry of every child process: ``python -m nubila.apps.process server|controller|agent --state DIR``."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import threading
from pathlib import Path

from nubila.apps import logs
from nubila.apps.supervisor import die_with_parent
from nubila.core.config import BadSetting, Settings


def main() -> None:
    """Run one role until SIGTERM."""
    parser = argparse.ArgumentParser(prog="nubila-process")
    parser.add_argument("role", choices=("server", "controller", "agent"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="the process to end with")
    parser.add_argument("--fds", default="")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--with-controller", action="store_true")
    args = parser.parse_args()
    if args.parent is not None:
        die_with_parent(args.parent)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if args.role == "agent":
        from nubila.apps import host

        logs.on_signals()
        host.run(args.state / "hosts")
        return
    from nubila.apps import first, wiring
    from nubila.core.tokens import KeysError

    try:
        _serve(args, wiring.settings(args.state, first.overrides(args.state)))
    except (KeysError, ValueError) as e:
        if isinstance(e, ValueError) and not isinstance(e, BadSetting):
            raise
        logging.error("cannot start: %s", e)
        sys.exit(2)


def _serve(args: argparse.Namespace, settings: Settings) -> None:
    if args.role == "server":
        from nubila.apps import server

        fds = {name: int(fd) for name, fd in (pair.split("=") for pair in args.fds.split(",") if pair)}
        server.run(
            args.state, settings, fds=fds, with_controller=args.with_controller, hosts=args.first, first=args.first
        )
    else:
        import signal

        from nubila.apps import reload, wiring
        from nubila.apps.controller import controller
        from nubila.core import work

        cloud = wiring.open_cloud(args.state, settings)
        cloud.store.calm_s = work.CALM_S
        stop = threading.Event()
        run, wake = controller(cloud)

        def end(*_: object) -> None:
            stop.set()
            wake()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        logs.on_signals(lambda: reload.settings(cloud))
        gc.freeze()
        run(stop)
        cloud.store.close()


if __name__ == "__main__":
    main()
