"""Requests to forget are kept until they are done everywhere; a player's attempts have an index."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0005"
down_revision: Final[str | None] = "record_0004"
branch_labels: Final = None
depends_on: Final = None

TABLES: Final = ("erasure_requests",)


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make the table, with a row for each mark: what was read before is nobody's to go on with but
    the store's, and no row of it knows the player."""
    requests = op.create_table(
        "erasure_requests",
        sa.Column("erasure_id", _text(64), nullable=False),
        sa.Column("player_id", _text(64)),
        sa.Column("requested_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger()),
        sa.Column("places", sa.UnicodeText()),
        sa.PrimaryKeyConstraint("erasure_id"),
        comment="Requests to forget as the log has them; player_id: only until every place is "
        "done; places: what was done and when (JSON), from then on",
    )
    op.create_index("erasure_requests_by_player", "erasure_requests", ["player_id"])
    op.create_index("attempts_of_player", "connection_attempts", ["player_id"])
    marks = sa.table(
        "forgotten_players",
        sa.column("erasure_id", sa.Unicode(64)),
        sa.column("requested_at_ms", sa.BigInteger()),
    )
    known = sa.select(marks.c.erasure_id, marks.c.requested_at_ms)
    op.execute(sa.insert(requests).from_select(["erasure_id", "requested_at_ms"], known))


def downgrade() -> None:
    """Requests that are pending are with the store alone again."""
    op.drop_index("attempts_of_player", "connection_attempts")
    op.drop_table("erasure_requests")
