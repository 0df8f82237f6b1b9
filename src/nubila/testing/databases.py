"""Throw-away PostgreSQL and MariaDB servers for tests.

Each server lives in a directory of its own under the system's temporary directory, listens on a Unix socket there and
nowhere else, keeps nothing through a crash (no fsync: that is what makes it quick), and dies with the process that
started it. Nothing of an installed server is used except its programs.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

Kind = Literal["sqlite", "postgresql", "mariadb"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql", "mariadb")
START_S = 60.0  # a cold start on a busy machine


def _program(*names: str, beside: str = "") -> str | None:
    """Find a program on the path, in sbin, or where Debian keeps PostgreSQL's."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *sorted(glob.glob(beside), reverse=True)])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return os.path.realpath(found) if beside else found
    return None


def _postgres(name: str) -> str | None:
    return _program(name, beside="/usr/lib/postgresql/*/bin")


def available(kind: Kind) -> bool:
    """Say whether the programs for this kind of database are installed."""
    if kind == "postgresql":
        return _postgres("initdb") is not None and _postgres("postgres") is not None
    if kind == "mariadb":
        return _program("mariadb-install-db") is not None and _program("mariadbd") is not None
    return True


class Server:
    """One running server; ``fresh()`` gives the URL of a new, empty database on it."""

    def __init__(self, kind: Literal["postgresql", "mariadb"]) -> None:
        self.kind = kind
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.root = Path(tempfile.mkdtemp(prefix=f"nubila-{kind[:2]}-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _as(self, user: str, argv: Sequence[str], *, dies: str | None = None) -> list[str]:
        """Return `argv` run as `user` when we are root (PostgreSQL refuses root), ended with us by signal `dies`."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise RuntimeError("setpriv is missing: install util-linux")
        options = ["--reuid", user, "--regid", user, "--init-groups"] if os.geteuid() == 0 else []
        options += ["--pdeathsig", dies] if dies else []
        return [setpriv, *options, *argv] if options else list(argv)

    def _start(self) -> None:
        data, log = self.root / "data", self.root / "log"
        user = "postgres" if self.kind == "postgresql" else "mysql"
        if os.geteuid() == 0:
            shutil.chown(self.root, user, user)
        if self.kind == "postgresql":
            self._prepare(
                user,
                [_postgres("initdb") or "initdb", "-D", str(data), "-U", "nubila", "-A", "trust"],
                ["-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
            )
            settings = {
                "listen_addresses": "",
                "unix_socket_directories": str(self.root),
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "shared_buffers": "32MB",
                "deadlock_timeout": "200ms",
                "autovacuum": "off",  # its brief locks would make tests that never wait for one flicker
            }
            argv = [_postgres("postgres") or "postgres", "-D", str(data)]
            argv += itertools.chain.from_iterable(("-c", f"{k}={v}") for k, v in settings.items())
            dies = "QUIT"
            self.admin = f"postgresql+psycopg://nubila@/postgres?host={self.root}"
        else:
            socket = self.root / "socket"
            self._prepare(
                user,
                [_program("mariadb-install-db") or "mariadb-install-db", "--no-defaults", f"--datadir={data}"],
                ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"],
            )
            argv = [_program("mariadbd") or "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}"]
            argv += ["--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
            argv += [f"--pid-file={self.root}/pid", "--skip-log-bin", "--innodb-flush-method=nosync"]
            dies = "KILL"
            self.admin = f"mysql+pymysql://root@localhost/?unix_socket={socket}"
        with open(log, "wb") as out:
            self._process = subprocess.Popen(
                self._as(user, argv, dies=dies), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
            )
        self._engine = sa.create_engine(self.admin, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        self._wait(log)

    def _prepare(self, user: str, argv: list[str], options: list[str]) -> None:
        done = subprocess.run(self._as(user, argv + options), capture_output=True, timeout=120, cwd="/", check=False)
        if done.returncode:
            raise RuntimeError(f"{argv[0]} failed: {(done.stderr or done.stdout).decode(errors='replace')[-500:]}")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-800:]
                raise RuntimeError(f"{self.kind} did not start: {tail}")
            try:
                with self._engine.connect():
                    return
            except sa.exc.DBAPIError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.05)

    def fresh(self) -> str:
        """Make a new, empty database and return its URL."""
        name = f"t{next(self._numbers)}"
        with self._engine.connect() as conn:
            if self.kind == "mariadb":
                # names must compare as they do elsewhere: by case, accent and trailing space
                conn.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin")
            else:
                conn.exec_driver_sql(f"CREATE DATABASE {name}")
        return sa.make_url(self.admin).set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Drop a database that ``fresh`` made (its connections are ended)."""
        name = sa.make_url(url).database
        force = " WITH (FORCE)" if self.kind == "postgresql" else ""
        with self._engine.connect() as conn:
            conn.exec_driver_sql(f"DROP DATABASE {name}{force}")

    def stop(self) -> None:
        """End the server and forget everything it held."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT if self.kind == "postgresql" else signal.SIGKILL)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        shutil.rmtree(self.root, ignore_errors=True)


class Databases:
    """All kinds of database behind one door; servers start when first asked for."""

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}
        self._files = Path(tempfile.mkdtemp(prefix="nubila-sq-"))
        self._numbers = itertools.count(1)

    def fresh(self, kind: Kind) -> str:
        """Return the URL of a new, empty database of this kind."""
        if kind == "sqlite":
            directory = self._files / str(next(self._numbers))
            directory.mkdir()
            return f"sqlite:///{directory}/db"
        server = self._servers.get(kind)
        if server is None:
            server = self._servers[kind] = Server(kind)
        return server.fresh()

    def drop(self, url: str) -> None:
        """Remove a database that ``fresh`` made."""
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            shutil.rmtree(Path(str(parsed.database)).parent, ignore_errors=True)
        else:
            self._servers["mariadb" if parsed.get_backend_name() == "mysql" else "postgresql"].drop(url)

    def close(self) -> None:
        """Stop the servers and remove all files."""
        for server in self._servers.values():
            server.stop()
        shutil.rmtree(self._files, ignore_errors=True)
