"""What stands beside the record: what readers were told, who asked for sockets, dead letters."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0002"
down_revision: Final[str | None] = "record_0001"
branch_labels: Final = None
depends_on: Final = None


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make the tables."""
    _position_changes()
    _told_changes()
    _connection_attempts()
    _dead_letters()


def downgrade() -> None:
    """What they held can be had again only as far as Kafka reaches back."""
    for name in reversed(TABLES):
        op.drop_table(name)


TABLES: Final = (
    "position_changes",
    "told_changes",
    "connection_attempts",
    "dead_letters",
)


def _position_changes() -> None:
    op.create_table(
        "position_changes",
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("player_id", _text(64), nullable=False),
        sa.Column("old_rank", sa.Integer()),
        sa.Column("new_rank", sa.Integer()),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("subscore", sa.BigInteger()),
        sa.Column("distance", sa.BigInteger()),
        sa.Column("cause_source", _text(512), nullable=False),
        sa.Column("cause_id", _text(512), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_id", "sequence", "month"),
        postgresql_partition_by="RANGE (month)",
        comment="What readers of position-changes were told, each once",
    )


def _told_changes() -> None:
    op.create_table(
        "told_changes",
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_id"),
        comment="The last sequence in position_changes: a change that comes again is dropped",
    )


def _connection_attempts() -> None:
    op.create_table(
        "connection_attempts",
        sa.Column("log_partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event_id", _text(512), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("tournament_id", _text(64)),
        sa.Column("player_id", _text(64)),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("reason", _text(512), nullable=False),
        sa.Column("address", _text(512)),
        sa.Column("user_agent", sa.UnicodeText()),
        sa.PrimaryKeyConstraint("log_partition", "log_offset", "month"),
        postgresql_partition_by="RANGE (month)",
        comment="Who asked for a socket, from where, and what was answered",
    )


def _dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("topic", _text(249), nullable=False),
        sa.Column("log_partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("logged_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", _text(64)),
        sa.Column("tournament_id", _text(512)),
        sa.Column("player_id", _text(512)),
        sa.Column("headers", sa.UnicodeText(), nullable=False),
        sa.Column("value", sa.LargeBinary()),
        sa.Column("handled", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "log_partition", "log_offset", "month"),
        postgresql_partition_by="RANGE (month)",
        comment="Records of the dead-letter topics as they came; handled: 1 for the mark that "
        "an operator replayed or dropped one",
    )
