"""Speak LDAP with one server: connect, bind, search, change. The only file that knows the library (ldap3).

Every wait is bounded: ``connection_timeout`` for connecting and each step of TLS, ``operation_timeout`` for every
answer; and :meth:`Session.cut` ends whatever a session waits for from another thread. TLS is done with Python's ssl
module: ``demand`` verifies chain and name, ``allow`` goes on when that fails and says so in the log, ``never`` does
not look. Where TLS is asked for, nothing is ever sent in the clear, whatever ``tls_req_cert`` says.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from nubila.services.identity.ldap.options import Options

log = logging.getLogger("nubila.ldap")
UNVERIFIED = "CERTIFICATE_VERIFY_FAILED"
PAGED = "1.2.840.113556.1.4.319"
SUBTREE_DELETE = "1.2.840.113556.1.4.805"
OK, NO_SUCH_OBJECT, SIZE_LIMIT, INVALID_CREDENTIALS, EXISTS = 0, 32, 4, 49, 68
NO_SUCH_ATTRIBUTE, VALUE_EXISTS, INSUFFICIENT_ACCESS, UNWILLING, PROTOCOL_ERROR = 16, 20, 50, 53, 2
BUSY, UNAVAILABLE, TIME_LIMIT = 51, 52, 3
Changes = Sequence[tuple[str, str, Sequence[str]]]  # ("add" | "delete" | "replace", attribute, values)


class Unreachable(Exception):
    """The directory does not answer, or not as one does. ``reason`` says why without naming the server."""

    def __init__(self, server: object, reason: str) -> None:
        super().__init__(f"{server}: {reason}")
        self.reason = reason


class Rejected(Exception):
    """The directory said no: its result code and text."""

    def __init__(self, code: int, what: str, text: str) -> None:
        super().__init__(f"{what}: {text} (LDAP result {code})")
        self.code, self.what, self.text = code, what, text


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; attribute names in lower case."""

    dn: str
    attributes: Mapping[str, list[bytes]]

    def all(self, name: str) -> list[str]:
        """All values of an attribute, as text."""
        return [as_text(v) for v in self.attributes.get(name.lower(), ())]

    def first(self, name: str | None) -> str | None:
        """The first value, None without one."""
        found = self.attributes.get(name.lower()) if name else None
        return as_text(found[0]) if found else None


def as_text(value: bytes) -> str:
    """A value as text; what is not UTF-8 (an objectGUID, say) in hexadecimal digits."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


@dataclass(frozen=True, slots=True)
class Address:
    """One server."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"ldapi://{self.host}" if self.scheme == "ldapi" else f"{self.scheme}://{self.host}:{self.port}"


def address(url: str) -> Address:
    """The server that a URL names."""
    parts = urlsplit(url)
    if parts.scheme == "ldapi":
        return Address("ldapi", unquote(parts.netloc) or "/var/run/slapd/ldapi", 0)
    return Address(parts.scheme, parts.hostname or "localhost", parts.port or (636 if parts.scheme == "ldaps" else 389))


@cache
def _library() -> Any:
    """Loaded when the first directory is used: processes without one do not pay for it."""
    import ldap3

    return ldap3


def context(options: Options, *, verify: bool) -> ssl.SSLContext:
    """How TLS is done. ``tls_cacertdir`` counts only without ``tls_cacertfile``."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made
    file, folder = options["tls_cacertfile"], options["tls_cacertdir"]
    try:
        if file:
            made.load_verify_locations(cafile=file)
        elif folder:
            made.load_verify_locations(cadata=_folder(folder))
        else:
            made.load_default_certs()
    except (OSError, ssl.SSLError) as e:
        raise Unreachable(file or folder, f"the CA certificates cannot be read: {e}") from None
    return made


def _folder(folder: str) -> str:
    """All certificates of a folder, also when it has not been prepared by c_rehash."""
    from pathlib import Path

    found = [
        p.read_text() for p in sorted(Path(folder).iterdir()) if p.suffix in (".pem", ".crt", ".0") and p.is_file()
    ]
    if not found:
        raise OSError("there is no certificate (*.pem, *.crt, *.0) in it")
    return "\n".join(dict.fromkeys(found))


def _tls(options: Options, server: Address, *, verify: bool) -> Any:
    library = _library()
    made = context(options, verify=verify)

    class Tls(library.Tls):  # type: ignore[misc, name-defined]  # the library's own does not let OpenSSL check names
        def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
            connection.socket = made.wrap_socket(connection.socket, server_hostname=server.host)

    return Tls()


class Session:
    """One connection to one server. Not for two threads at once (except :meth:`cut`)."""

    def __init__(self, options: Options, server: Address) -> None:
        self.options, self.server = options, server
        self.born = time.monotonic()
        self.who: tuple[str, str] | None = None
        self._connection: Any = None
        self.deadline = math.inf  # monotonic; checked between pages

    # --- the connection -------------------------------------------------------------------------------------------

    def open(self) -> Session:
        """Connect, and start TLS when asked for. Raises Unreachable."""
        mode = self.options["tls_req_cert"]
        try:
            return self._open(verify=mode != "never")
        except Unreachable as e:
            if mode != "allow" or not (UNVERIFIED in e.reason or "CA certificates" in e.reason):
                raise
            log.warning("%s: certificate not verified, going on as tls_req_cert is allow: %s", self.server, e.reason)
            return self._open(verify=False)

    def _open(self, *, verify: bool) -> Session:
        library, options, server = _library(), self.options, self.server
        dereference = {
            "default": library.DEREF_ALWAYS, "always": library.DEREF_ALWAYS, "never": library.DEREF_NEVER,
            "searching": library.DEREF_SEARCH, "finding": library.DEREF_BASE,
        }  # fmt: skip
        self._dereference = dereference[options["alias_dereferencing"]]
        try:
            secure = server.scheme == "ldaps" or options["use_tls"]
            url = f"ldapi://{server.host}" if server.scheme == "ldapi" else server.host
            target = library.Server(
                url, port=server.port or None, use_ssl=server.scheme == "ldaps", get_info=library.NONE,
                connect_timeout=options["connection_timeout"],
                tls=_tls(options, server, verify=verify) if secure else None,
            )  # fmt: skip
            self._connection = library.Connection(
                target, client_strategy=library.SYNC, auto_referrals=options["chase_referrals"],
                check_names=False, auto_escape=False,
                receive_timeout=options["connection_timeout"], raise_exceptions=False, return_empty_attributes=False,
            )  # fmt: skip
            self._connection.open(read_server_info=False)
            if options["use_tls"] and server.scheme != "ldaps" and not self._connection.start_tls(False):
                raise Unreachable(server, f"StartTLS refused: {self._said()}")
            self._connection.socket.settimeout(options["operation_timeout"])
        except Unreachable:
            self.close()
            raise
        except (library.core.exceptions.LDAPExceptionError, OSError, ValueError) as e:
            self.close()
            raise Unreachable(server, _plain(e)) from None
        return self

    def close(self) -> None:
        """Say good-bye and close; never fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.strategy.close()

    def cut(self) -> None:
        """End, from another thread, whatever this session waits for."""
        connection = self._connection
        with contextlib.suppress(Exception):
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _said(self) -> str:
        result = (self._connection.result if self._connection is not None else None) or {}
        return result.get("message") or result.get("description") or self._connection.last_error or "no reason given"

    def _do(self, what: str, call: Any) -> dict[str, Any]:
        """Run one operation; its result. Raises Unreachable; the session is closed then."""
        library = _library()
        if self._connection is None:
            raise Unreachable(self.server, "the connection is closed")
        try:
            call(self._connection)
            result: dict[str, Any] | None = self._connection.result
        except (library.core.exceptions.LDAPExceptionError, OSError, AttributeError) as e:
            self.close()
            raise Unreachable(self.server, f"{what}: {_plain(e)}") from None
        except Exception as e:  # the library stumbles in many ways over what is not LDAP
            self.close()
            log.warning("%s: %s: the answer cannot be read", self.server, what, exc_info=True)
            raise Unreachable(self.server, f"{what}: the answer cannot be read ({type(e).__name__})") from None
        if not result or result["result"] in (BUSY, UNAVAILABLE, TIME_LIMIT):
            said = self._said() if result else "the connection broke"
            self.close()
            raise Unreachable(self.server, f"{what}: {said}")
        return result

    def _must(self, what: str, call: Any, fine: Iterable[int] = ()) -> dict[str, Any]:
        result = self._do(what, call)
        if result["result"] not in (OK, *fine):
            raise Rejected(result["result"], what, result.get("message") or result.get("description") or "")
        return result

    # --- operations -----------------------------------------------------------------------------------------------

    def bind(self, user: str | None, password: str) -> bool:
        """Say who we are; False for a wrong name or password. No user = anonymous. An empty password never binds."""
        library = _library()
        if user and not password:
            return False  # a directory takes a name without a password for an anonymous bind and says yes
        self.who = None

        def bind(c: Any) -> None:
            c.user, c.password = user or None, password if user else None
            c.authentication = library.SIMPLE if user else library.ANONYMOUS
            c.bind(read_server_info=False)

        result = self._do("bind", bind)
        if result["result"] == OK:
            self.who = (user or "", password)
            return True
        if result["result"] in (INVALID_CREDENTIALS, NO_SUCH_OBJECT, INSUFFICIENT_ACCESS, UNWILLING, 19, 48):
            return False  # 19: a password policy says no; 48: this entry has no password
        raise Rejected(result["result"], "bind", self._said())

    def search(
        self, base: str, scope: str, query: str, attributes: Iterable[str], *, page_size: int = 0, limit: int = 0
    ) -> list[Entry]:
        """Entries below ``base`` (scope base, one or sub) that match, page by page when ``page_size`` is given."""
        library = _library()
        scopes = {"base": library.BASE, "one": library.LEVEL, "sub": library.SUBTREE}
        out: list[Entry] = []
        cookie: Any = None
        wanted = sorted(set(attributes)) or ["1.1"]
        while True:

            def page(c: Any, cookie: Any = cookie) -> None:
                c.search(
                    base, query, scopes[scope], dereference_aliases=self._dereference, attributes=wanted,
                    size_limit=limit, time_limit=int(self.options["operation_timeout"]),
                    paged_size=page_size or None, paged_criticality=False, paged_cookie=cookie,
                )  # fmt: skip

            result = self._must(f"search below {base}", page, (NO_SUCH_OBJECT, SIZE_LIMIT))
            if result["result"] == NO_SUCH_OBJECT:
                if scope == "base":
                    return []
                raise Rejected(NO_SUCH_OBJECT, "search", f"there is no {base}; check *_tree_dn and suffix")
            if result["result"] == SIZE_LIMIT and not limit:
                raise Rejected(SIZE_LIMIT, "search", "the directory gives no more entries at once; set page_size")
            out += [
                Entry(r["dn"], {k.lower(): list(v) for k, v in r["raw_attributes"].items()})
                for r in self._connection.response or () if r.get("type") == "searchResEntry"
            ]  # fmt: skip
            control = (result.get("controls") or {}).get(PAGED)
            cookie = control["value"]["cookie"] if control else None
            if not page_size or not cookie:
                return out
            if time.monotonic() > self.deadline:
                self.close()
                raise Unreachable(self.server, "the search took too long; set operation_timeout higher")

    def add(self, dn: str, classes: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> None:
        """Create an entry."""
        self._must("add", lambda c: c.add(dn, list(classes), {k: list(v) for k, v in attributes.items()}))

    def modify(self, dn: str, changes: Changes, fine: Iterable[int] = ()) -> None:
        """Change attributes of an entry, all at once."""
        library = _library()
        verbs = {"add": library.MODIFY_ADD, "delete": library.MODIFY_DELETE, "replace": library.MODIFY_REPLACE}
        wanted: dict[str, list[Any]] = {}
        for verb, name, values in changes:
            wanted.setdefault(name, []).append((verbs[verb], list(values)))
        if wanted:
            self._must("modify", lambda c: c.modify(dn, wanted), fine)

    def rename(self, dn: str, rdn: str) -> None:
        """Change the first part of an entry's name."""
        self._must("rename", lambda c: c.modify_dn(dn, rdn))

    def delete(self, dn: str, *, subtree: bool = False) -> None:
        """Remove an entry; one that is not there is as good as removed."""
        controls = [(SUBTREE_DELETE, True, None)] if subtree else None
        self._must("delete", lambda c: c.delete(dn, controls=controls), (NO_SUCH_OBJECT,))

    def set_password(self, dn: str, attribute: str, password: str) -> None:
        """Change a password by RFC 3062, so that the directory hashes it; a server without that gets the attribute."""
        if attribute.lower() == "userpassword":
            result = self._do("password", lambda c: c.extend.standard.modify_password(dn, None, password))
            if result["result"] == OK:
                return
            if result["result"] != PROTOCOL_ERROR:
                raise Rejected(result["result"], "password", self._said())
        self.modify(dn, [("replace", attribute, [password])])


def _plain(e: BaseException) -> str:
    """What happened in a few words; the library wraps the reason in texts of its own."""
    text = str(e) or type(e).__name__
    if "timed out" in text or "Resource temporarily unavailable" in text:
        return "no answer in time"
    for word in (UNVERIFIED, "Connection refused", "Name or service not known"):
        if word in text:
            text = text[text.index(word) :].partition("(_ssl")[0].partition("'")[0]
    return text.strip(" .'\")(,")[:300]
