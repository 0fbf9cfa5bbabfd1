"""Which owners' encrypted copies of a blob are damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "damaged_copies",
        sa.Column("sha256", sa.String(length=64), sa.ForeignKey("blobs.sha256", ondelete="CASCADE"), primary_key=True),
        sa.Column("owner", sa.String(length=64), primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("damaged_copies")
