"""Keys of the uploaders' own: what tells a wrong one, what is stored under one, and the processes that one can be sealed to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_STORED = ("artifact_files", "jobs", "uploads")


def upgrade() -> None:
    op.create_table(
        "customer_key_checks",
        sa.Column("id", sa.String(length=32), primary_key=True),
        sa.Column("value", sa.String(length=64), nullable=False),
        sa.Column("damaged_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "job_recipients",
        sa.Column("job_id", sa.String(length=36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("recipient", sa.String(length=100), primary_key=True),
    )
    op.create_table(
        "recipients",
        sa.Column("id", sa.String(length=100), primary_key=True),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("age", sa.String(length=100), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_recipients_seen_at", "recipients", ["seen_at"])
    for table in _STORED:
        op.add_column(table, sa.Column("customer_key", sa.String(length=32), nullable=True))
        op.create_index(f"ix_{table}_customer_key", table, ["customer_key"])
    op.add_column("jobs", sa.Column("sealed_key", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "sealed_key")
    for table in reversed(_STORED):
        op.drop_index(f"ix_{table}_customer_key", table)
        op.drop_column(table, "customer_key")
    op.drop_table("recipients")
    op.drop_table("job_recipients")
    op.drop_table("customer_key_checks")
