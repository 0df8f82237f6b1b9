"""All tables as they are declared.

Until the first release this is the only revision and follows the declarations. With the first release it must be frozen
(the tables written out), so that 0002 finds what that release really had.
"""

from __future__ import annotations

from alembic import context, op

revision = "0001"
down_revision = None


def upgrade() -> None:
    for meta in context.config.attributes["metadata"]:
        meta.create_all(op.get_bind())
