"""What the audit log needs of the record: keys of pseudonyms, their ends, and how far it is."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0004"
down_revision: Final[str | None] = "record_0003"
branch_labels: Final = None
depends_on: Final = None

TABLES: Final = ("pseudonym_keys", "pseudonym_ends", "audit_heads")


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make the tables. Keys are drawn as players are met in the log."""
    op.create_table(
        "pseudonym_keys",
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("erasure_id", _text(64), nullable=False),
        sa.Column("secret", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("tournament_id", "erasure_id"),
        comment="Random keys behind the players of the audit log, by the id that a request to "
        "forget the player has; without a tournament: of their connections. Who is forgotten has "
        "none",
    )
    op.create_index("pseudonym_keys_of_player", "pseudonym_keys", ["erasure_id"])
    op.create_table(
        "pseudonym_ends",
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("erasure_id", _text(64), nullable=False),
        sa.Column("log_partition", sa.Integer(), nullable=False),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.Column("changes_partition", sa.Integer()),
        sa.Column("changes_until", sa.BigInteger()),
        sa.Column("destroyed_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tournament_id", "erasure_id"),
        comment="Erasures as the audit log has them: behind log_offset of wagers the player is "
        "nobody, and once the log has the position changes below changes_until as well the key is "
        "destroyed",
    )
    op.create_index("pseudonym_ends_open", "pseudonym_ends", ["log_partition", "destroyed_at_ms"])
    op.create_table(
        "audit_heads",
        sa.Column("origin", _text(255), nullable=False),
        sa.Column("topic", _text(249), nullable=False),
        sa.Column("log_partition", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", _text(64), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("origin"),
        comment="How far each shard of the audit log was when it was last looked at: a log that "
        "was set back, or made anew, shows",
    )


def downgrade() -> None:
    """Without the keys nobody knows any more whom the audit log speaks of."""
    for name in reversed(TABLES):
        op.drop_table(name)
