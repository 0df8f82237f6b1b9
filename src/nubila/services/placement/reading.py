"""What other services read of Placement."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.placement.kinds import PROVIDER_TRAIT

_TRAITS = sa.select(PROVIDER_TRAIT.c.provider_id, PROVIDER_TRAIT.c.trait)


def traits_by_provider(reader: Reader) -> dict[str, set[str]]:
    """provider id -> its traits."""
    out: dict[str, set[str]] = {}
    for provider, trait in reader.rows(_TRAITS):
        out.setdefault(provider, set()).add(trait)
    return out
