"""Suspicions of fraud, and what operators decided about them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0006"
down_revision: Final[str | None] = "record_0005"
branch_labels: Final = None
depends_on: Final = None

TABLES: Final = ("fraud_alerts", "fraud_reviews")


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make both tables, empty: what the topic still has is read into them."""
    op.create_table(
        "fraud_alerts",
        sa.Column("alert_id", _text(192), nullable=False),
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("rule", _text(64), nullable=False),
        sa.Column("player_id", _text(64), nullable=False),
        sa.Column("other_player_id", _text(64)),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("severity_hundredths", sa.BigInteger(), nullable=False),
        sa.Column("evidence", sa.UnicodeText(), nullable=False),
        sa.PrimaryKeyConstraint("alert_id"),
        comment="Suspicions, each once; other_player_id: whom its evidence names beside the "
        "player; of who was forgotten the evidence is empty",
    )
    op.create_index("fraud_alert_time", "fraud_alerts", ["time_ms", "alert_id"])
    op.create_index("fraud_alerts_of_player", "fraud_alerts", ["player_id"])
    op.create_index("fraud_alerts_of_other", "fraud_alerts", ["other_player_id"])
    op.create_table(
        "fraud_reviews",
        sa.Column("alert_id", _text(192), nullable=False),
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("decision", _text(16), nullable=False),
        sa.Column("decided_by", _text(512), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", _text(512)),
        sa.PrimaryKeyConstraint("alert_id"),
        comment="What was decided about a suspicion last",
    )


def downgrade() -> None:
    """An upgrade makes them again, with what the topic still has."""
    op.drop_table("fraud_reviews")
    op.drop_table("fraud_alerts")
