"""One OpenLDAP server with few entries for most tests, and clouds over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slapd
from corp import PEOPLE, Corp, options


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good CA that signed the server's certificate, and a bad one that did not."""
    folder = tmp_path_factory.mktemp("pki")
    good, ca, key = slapd.authority(folder, "good")
    bad, _, _ = slapd.authority(folder, "bad")
    cert, cert_key = slapd.certificate(folder, "server", ca, key)
    other, other_key = slapd.certificate(folder, "other", ca, key, names=False)
    return {"good": good, "bad": bad, "server": (cert, cert_key, good), "other": (other, other_key, good)}


@pytest.fixture
def ldap(tmp_path: Path, authorities: dict[str, Any]) -> Iterator[slapd.Slapd]:
    """A server that a test may change, stop and freeze."""
    server = slapd.Slapd(tmp_path / "slapd", certificate=authorities["server"], ldif=PEOPLE)
    yield server
    server.stop()


@pytest.fixture
def corp(tmp_path: Path, ldap: slapd.Slapd) -> Iterator[Callable[..., Corp]]:
    """Makes a cloud over the server; options of the directory as arguments."""
    made: list[Corp] = []

    def make(given: dict[str, Any] | None = None, **others: dict[str, Any]) -> Corp:
        made.append(Corp(tmp_path / f"cloud{len(made)}", given or options(ldap), **others))
        return made[-1]

    yield make
    for one in made:
        one.close()
