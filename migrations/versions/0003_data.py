"""What methods that look at data need: companions of jobs, statistics that are kept, comparisons."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "companions",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("artifact_id", sa.String(length=36), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_companions_job_id_jobs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name="fk_companions_artifact_id_artifacts", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("job_id", "role", name="pk_companions"),
    )
    op.create_index("ix_companions_artifact_id", "companions", ["artifact_id"])
    op.create_table(
        "statistics",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name="fk_statistics_sha256_blobs"),
        sa.PrimaryKeyConstraint("key", name="pk_statistics"),
    )
    for column in ("owner", "sha256", "used_at"):
        op.create_index(f"ix_statistics_{column}", "statistics", [column])
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("jobs", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
    )
    op.create_index("ix_comparisons_owner", "comparisons", ["owner"])
    op.create_index("ix_comparisons_listing", "comparisons", ["owner", "created_at", "id"])


def downgrade() -> None:
    for table in ("comparisons", "statistics", "companions"):
        op.drop_table(table)
