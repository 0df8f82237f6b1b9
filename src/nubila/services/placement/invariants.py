"""What must be true of Placement's rows whenever nothing is being changed."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.services.placement.kinds import ALLOCATION, CONSUMER, INVENTORY

_A, _I = ALLOCATION.c, INVENTORY.c
_EMPTY = sa.select(CONSUMER.c.id).where(CONSUMER.c.id.not_in(sa.select(_A.consumer_id)))
_NOBODY = sa.select(_A.consumer_id).where(_A.consumer_id.not_in(sa.select(CONSUMER.c.id))).distinct()
_NOWHERE = (
    sa.select(_A.consumer_id, _A.provider_id, _A.resource_class)
    .outerjoin(INVENTORY, sa.and_(_I.provider_id == _A.provider_id, _I.resource_class == _A.resource_class))
    .where(_I.provider_id.is_(None))
)


def allocations(cloud: Cloud, reader: Reader) -> list[str]:
    """Every allocation has its consumer and its inventory, every consumer an allocation."""
    return [
        *(f"consumer {id} holds nothing" for (id,) in reader.rows(_EMPTY)),
        *(f"allocations are kept for consumer {id}, which is not there" for (id,) in reader.rows(_NOBODY)),
        *(f"consumer {id} holds {rc} of {provider}, which has none" for id, provider, rc in reader.rows(_NOWHERE)),
    ]


INVARIANTS = (allocations,)
