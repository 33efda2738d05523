"""Who was forgotten, beyond any tournament: what comes late must not name them again."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0003"
down_revision: Final[str | None] = "record_0002"
branch_labels: Final = None
depends_on: Final = None

TABLES: Final = ("forgotten_players",)


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make the table, and mark whom tournaments have forgotten: they know the request's id."""
    marks = op.create_table(
        "forgotten_players",
        sa.Column("erasure_id", _text(64), nullable=False),
        sa.Column("requested_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("erasure_id"),
        comment="Who was forgotten, by the keyed id of their request: without the key nobody "
        "knows whom it means. Kept for ever, so that nothing that comes late names them",
    )
    erasures = sa.table(
        "erasures",
        sa.column("erasure_id", sa.Unicode(64)),
        sa.column("requested_at_ms", sa.BigInteger()),
    )
    known = sa.select(
        erasures.c.erasure_id, sa.func.min(erasures.c.requested_at_ms).label("requested_at_ms")
    ).group_by(erasures.c.erasure_id)
    op.execute(sa.insert(marks).from_select(["erasure_id", "requested_at_ms"], known))


def downgrade() -> None:
    """Those whom tournaments have forgotten are marked again by an upgrade; others are not."""
    op.drop_table("forgotten_players")
