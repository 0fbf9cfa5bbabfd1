"""Jobs know the comparison that they belong to, and the figures that it tells of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("comparison_id", sa.String(length=36), nullable=True))
    op.add_column("jobs", sa.Column("figures", sa.JSON(), nullable=True))
    op.create_index("ix_jobs_comparison_id", "jobs", ["comparison_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_comparison_id", "jobs")
    op.drop_column("jobs", "figures")
    op.drop_column("jobs", "comparison_id")
