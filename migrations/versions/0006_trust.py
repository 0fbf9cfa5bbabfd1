"""Digests of a blob's chunks and when it was last read through, artifacts that are not handed out any more, and for how long a signing key is good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = {
    "blobs": [("chunks", sa.LargeBinary()), ("checked_at", sa.Float()), ("damaged_at", sa.Float())],
    "artifacts": [("quarantined", sa.String(length=500))],
    "public_keys": [("signs_from", sa.Float()), ("signs_until", sa.Float()), ("revoked_at", sa.Float()), ("revoked_because", sa.String(length=500)), ("held_at", sa.Float())],
}


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))
    op.create_index("ix_blobs_checked_at", "blobs", ["checked_at"])


def downgrade() -> None:
    op.drop_index("ix_blobs_checked_at", "blobs")
    for table, columns in _COLUMNS.items():
        for name, _ in reversed(columns):
            op.drop_column(table, name)
