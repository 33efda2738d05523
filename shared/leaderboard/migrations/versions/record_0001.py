"""The record itself: the log of `wagers`, folded."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "record_0001"
down_revision: Final[str | None] = None
branch_labels: Final = None
depends_on: Final = None


def _text(length: int) -> sa.types.TypeEngine[str]:
    """SQL Server compares without regard to case unless it is told not to."""
    exact = sa.Unicode(length, collation="Latin1_General_100_BIN2")
    return sa.Unicode(length).with_variant(exact, "mssql")


def upgrade() -> None:
    """Make the tables."""
    _log_positions()
    _tournaments()
    _terms_history()
    _players()
    _standings()
    _exclusions()
    _erasures()
    _event_ids()
    _producer_numbers()
    _inputs()
    _final_standings()


def downgrade() -> None:
    """Nothing of the record is left."""
    for name in reversed(TABLES):
        op.drop_table(name)


TABLES: Final = (
    "log_positions",
    "tournaments",
    "terms_history",
    "players",
    "standings",
    "exclusions",
    "erasures",
    "event_ids",
    "producer_numbers",
    "inputs",
    "final_standings",
)


def _log_positions() -> None:
    op.create_table(
        "log_positions",
        sa.Column("topic", _text(249), nullable=False),
        sa.Column("log_partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_id", _text(400), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "log_partition"),
        comment="How far each partition is in the record: written with what it stands for",
    )


def _tournaments() -> None:
    op.create_table(
        "tournaments",
        sa.Column("tournament_no", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("tournament_id", _text(64), nullable=False),
        sa.Column("log_partition", sa.Integer(), nullable=False),
        sa.Column("log_id", _text(400), nullable=False),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("state", _text(16), nullable=False),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("terms", sa.UnicodeText(), nullable=False),
        sa.Column("players", sa.Integer(), nullable=False),
        sa.Column("players_seen", sa.Integer(), nullable=False),
        sa.Column("ids_applied", sa.BigInteger(), nullable=False),
        sa.Column("over_at_ms", sa.BigInteger()),
        sa.Column("confirmed_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tournament_no"),
        sa.UniqueConstraint("tournament_id"),
        comment="players: with a standing; players_seen: numbers given; ids_applied: applied "
        "events that go by id; over_at_ms: event time of the end; confirmed_at_ms: "
        "when board and record were found equal after it",
    )
    op.create_index("tournaments_by_state", "tournaments", ["log_partition", "state"])


def _terms_history() -> None:
    op.create_table(
        "terms_history",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("terms", sa.UnicodeText(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "revision"),
        comment="Rules, schedule and state as each revision left them",
    )


def _players() -> None:
    op.create_table(
        "players",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("player_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("player_id", _text(64), nullable=False),
        sa.Column("display_name", _text(64)),
        sa.Column("joined_at", sa.BigInteger()),
        sa.Column("out_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tournament_no", "player_no"),
        comment="joined_at: offset of the first join; out_at: of the removal. An erased "
        "player stands here under a name that is not theirs",
    )
    op.create_index("players_by_id", "players", ["tournament_no", "player_id"], unique=True)
    op.create_index("tournaments_of_player", "players", ["player_id"])


def _standings() -> None:
    op.create_table(
        "standings",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("player_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank_score", sa.BigInteger(), nullable=False),
        sa.Column("rank_subscore", sa.BigInteger(), nullable=False),
        sa.Column("reached", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "player_no"),
        comment="Scores with the sign that makes the smallest one the best; reached: the sequence",
    )
    op.create_index(
        "standings_in_order",
        "standings",
        ["tournament_no", "rank_score", "rank_subscore", "reached"],
    )


def _exclusions() -> None:
    op.create_table(
        "exclusions",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mark", sa.LargeBinary(16), nullable=False),
        sa.Column("reason", _text(32), nullable=False),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "mark"),
        comment="Who stays out, by keyed tombstone: without the key nobody knows whom it means",
    )


def _erasures() -> None:
    op.create_table(
        "erasures",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("erasure_id", _text(64), nullable=False),
        sa.Column("requested_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "log_offset"),
        comment="Erasures that this tournament has applied",
    )


def _event_ids() -> None:
    op.create_table(
        "event_ids",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event_key", sa.LargeBinary(16), nullable=False),
        sa.Column("ordinal", sa.BigInteger()),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "event_key"),
        comment="The unique key of source and id, of applied events; ordinal: its place among "
        "those of the tournament that go by id, null for one that goes by its "
        "producer's number",
    )


def _producer_numbers() -> None:
    op.create_table(
        "producer_numbers",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source", _text(512), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "source", mssql_clustered=False),
        comment="The last applied number of each producer that numbers its events",
    )


def _inputs() -> None:
    op.create_table(
        "inputs",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("logged_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", _text(64), nullable=False),
        sa.Column("source", _text(512), nullable=False),
        sa.Column("event_id", _text(512), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("player_no", sa.Integer()),
        sa.Column("number", sa.BigInteger()),
        sa.Column("traceparent", _text(512)),
        sa.Column("extensions", sa.UnicodeText()),
        sa.Column("data", sa.UnicodeText(), nullable=False),
        sa.Column("disposition", _text(32), nullable=False),
        sa.Column("event_key", sa.LargeBinary(16)),
        sa.Column("ordinal", sa.BigInteger()),
        sa.Column("repeats", sa.BigInteger()),
        sa.Column("touched", sa.Boolean(), nullable=False),
        sa.Column("before_score", sa.BigInteger()),
        sa.Column("before_subscore", sa.BigInteger()),
        sa.Column("before_reached", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tournament_no", "log_offset", "month"),
        postgresql_partition_by="RANGE (month)",
        comment="The log, with what became of each event. touched: it changed its player's "
        "row, which was before_* (null: none); repeats: offset of an applied event "
        "with the same source and id",
    )


def _final_standings() -> None:
    op.create_table(
        "final_standings",
        sa.Column("tournament_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("standing_rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("player_no", sa.Integer(), nullable=False),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("subscore", sa.BigInteger(), nullable=False),
        sa.Column("reached", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tournament_no", "standing_rank"),
        comment="The board of a tournament that is over, as its end left it",
    )
    op.create_index(
        "final_standing_of_player", "final_standings", ["tournament_no", "player_no"], unique=True
    )
