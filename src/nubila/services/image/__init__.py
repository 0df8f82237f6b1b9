"""Image v2: disks that instances start from, kept as files."""

from __future__ import annotations

from nubila.core.service import Service
from nubila.services.image import data, images, members, reconcile, schemas, versions
from nubila.services.image.kinds import Image
from nubila.services.image.policies import RULES

SERVICE = Service(
    name="image",
    type="image",
    title="glance",
    prefix="/image",
    classic_port=9292,
    kinds=(Image,),
    routes=(*versions.ROUTES, *images.ROUTES, *data.ROUTES, *members.ROUTES, *schemas.ROUTES),
    rules=RULES,
    reconcilers={"image": reconcile.image},
    sweeps={"image": reconcile.sweep},
)
