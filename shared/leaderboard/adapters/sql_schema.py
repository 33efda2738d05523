"""The tables of the system of record, for PostgreSQL, SQLite and SQL Server.

The record is the log, folded: every input with what became of it, and what all inputs together
amount to. Players stand under a number of their own for each tournament; `players` alone says
whose it is, so that an erasure is one row there (and the rewriting of that player's inputs).

Made and changed by the migrations beside this file; a test holds the two together. Times are
milliseconds since 1970, months are `year × 100 + month` (UTC) of the writing, offsets those of
`wagers`, in the partition that holds the tournament.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Unicode,
    UnicodeText,
)

metadata = MetaData()

_EXACT: Final = "Latin1_General_100_BIN2"
"""SQL Server compares without regard to case unless it is told not to."""


def _text(length: int) -> String:
    return Unicode(length).with_variant(Unicode(length, collation=_EXACT), "mssql")


_ID = _text(64)

log_positions = Table(
    "log_positions",
    metadata,
    Column("topic", _text(249), primary_key=True),
    Column("log_partition", Integer, primary_key=True, autoincrement=False),
    Column("log_id", _text(400), nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    comment="How far each partition is in the record: written with what it stands for",
)

tournaments = Table(
    "tournaments",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=True),
    Column("tournament_id", _ID, nullable=False, unique=True),
    Column("log_partition", Integer, nullable=False),
    Column("log_id", _text(400), nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("state", _text(16), nullable=False),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("terms", UnicodeText, nullable=False),
    Column("players", Integer, nullable=False),
    Column("players_seen", Integer, nullable=False),
    Column("ids_applied", BigInteger, nullable=False),
    Column("over_at_ms", BigInteger),
    Column("confirmed_at_ms", BigInteger),
    comment="players: with a standing; players_seen: numbers given; ids_applied: applied events "
    "that go by id; over_at_ms: event time of the end; confirmed_at_ms: when board and record "
    "were found equal after it",
)
Index("tournaments_by_state", tournaments.c.log_partition, tournaments.c.state)

terms_history = Table(
    "terms_history",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("terms", UnicodeText, nullable=False),
    comment="Rules, schedule and state as each revision left them",
)

players = Table(
    "players",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("player_no", Integer, primary_key=True, autoincrement=False),
    Column("player_id", _ID, nullable=False),
    Column("display_name", _text(64)),
    Column("joined_at", BigInteger),
    Column("out_at", BigInteger),
    comment="joined_at: offset of the first join; out_at: of the removal. An erased player stands "
    "here under a name that is not theirs",
)
Index("players_by_id", players.c.tournament_no, players.c.player_id, unique=True)
Index("tournaments_of_player", players.c.player_id)

standings = Table(
    "standings",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("player_no", Integer, primary_key=True, autoincrement=False),
    Column("rank_score", BigInteger, nullable=False),
    Column("rank_subscore", BigInteger, nullable=False),
    Column("reached", BigInteger, nullable=False),
    comment="Scores with the sign that makes the smallest one the best; reached: the sequence",
)
Index(
    "standings_in_order",
    standings.c.tournament_no,
    standings.c.rank_score,
    standings.c.rank_subscore,
    standings.c.reached,
)

exclusions = Table(
    "exclusions",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("mark", LargeBinary(16), primary_key=True),
    Column("reason", _text(32), nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    comment="Who stays out, by keyed tombstone: without the key nobody knows whom it means",
)

erasures = Table(
    "erasures",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("erasure_id", _ID, nullable=False),
    Column("requested_at_ms", BigInteger, nullable=False),
    comment="Erasures that this tournament has applied",
)

forgotten_players = Table(
    "forgotten_players",
    metadata,
    Column("erasure_id", _ID, primary_key=True),
    Column("requested_at_ms", BigInteger, nullable=False),
    comment="Who was forgotten, by the keyed id of their request: without the key nobody knows "
    "whom it means. Kept for ever, so that nothing that comes late names them",
)

erasure_requests = Table(
    "erasure_requests",
    metadata,
    Column("erasure_id", _ID, primary_key=True),
    Column("player_id", _ID),
    Column("requested_at_ms", BigInteger, nullable=False),
    Column("done_at_ms", BigInteger),
    Column("places", UnicodeText),
    comment="Requests to forget as the log has them; player_id: only until every place is done; "
    "places: what was done and when (JSON), from then on",
)
Index("erasure_requests_by_player", erasure_requests.c.player_id)

event_ids = Table(
    "event_ids",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("event_key", LargeBinary(16), primary_key=True),
    Column("ordinal", BigInteger),
    Column("log_offset", BigInteger, nullable=False),
    comment="The unique key of source and id, of applied events; ordinal: its place among those "
    "of the tournament that go by id, null for one that goes by its producer's number",
)

producer_numbers = Table(
    "producer_numbers",
    metadata,
    Column("tournament_no", Integer, autoincrement=False, nullable=False),
    Column("source", _text(512), nullable=False),
    Column("number", BigInteger, nullable=False),
    # SQL Server clusters by 900 bytes at most.
    PrimaryKeyConstraint("tournament_no", "source", mssql_clustered=False),
    comment="The last applied number of each producer that numbers its events",
)

inputs = Table(
    "inputs",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("logged_at_ms", BigInteger, nullable=False),
    Column("kind", _text(64), nullable=False),
    Column("source", _text(512), nullable=False),
    Column("event_id", _text(512), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("player_no", Integer),
    Column("number", BigInteger),
    Column("traceparent", _text(512)),
    Column("extensions", UnicodeText),
    Column("data", UnicodeText, nullable=False),
    Column("disposition", _text(32), nullable=False),
    Column("event_key", LargeBinary(16)),
    Column("ordinal", BigInteger),
    Column("repeats", BigInteger),
    Column("touched", Boolean, nullable=False),
    Column("before_score", BigInteger),
    Column("before_subscore", BigInteger),
    Column("before_reached", BigInteger),
    postgresql_partition_by="RANGE (month)",
    comment="The log, with what became of each event. touched: it changed its player's row, which "
    "was before_* (null: none); repeats: offset of an applied event with the same source and id",
)

position_changes = Table(
    "position_changes",
    metadata,
    Column("tournament_id", _ID, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("player_id", _ID, nullable=False),
    Column("old_rank", Integer),
    Column("new_rank", Integer),
    Column("score", BigInteger, nullable=False),
    Column("subscore", BigInteger),
    Column("distance", BigInteger),
    Column("cause_source", _text(512), nullable=False),
    Column("cause_id", _text(512), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    postgresql_partition_by="RANGE (month)",
    comment="What readers of position-changes were told, each once",
)

told_changes = Table(
    "told_changes",
    metadata,
    Column("tournament_id", _ID, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    comment="The last sequence in position_changes: a change that comes again is dropped",
)

final_standings = Table(
    "final_standings",
    metadata,
    Column("tournament_no", Integer, primary_key=True, autoincrement=False),
    Column("standing_rank", Integer, primary_key=True, autoincrement=False),
    Column("player_no", Integer, nullable=False),
    Column("score", BigInteger, nullable=False),
    Column("subscore", BigInteger, nullable=False),
    Column("reached", BigInteger, nullable=False),
    comment="The board of a tournament that is over, as its end left it",
)
Index(
    "final_standing_of_player",
    final_standings.c.tournament_no,
    final_standings.c.player_no,
    unique=True,
)

connection_attempts = Table(
    "connection_attempts",
    metadata,
    Column("log_partition", Integer, primary_key=True, autoincrement=False),
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("event_id", _text(512), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("tournament_id", _ID),
    Column("player_id", _ID),
    Column("allowed", Boolean, nullable=False),
    Column("reason", _text(512), nullable=False),
    Column("address", _text(512)),
    Column("user_agent", UnicodeText),
    postgresql_partition_by="RANGE (month)",
    comment="Who asked for a socket, from where, and what was answered",
)
Index("attempts_of_player", connection_attempts.c.player_id)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("topic", _text(249), primary_key=True),
    Column("log_partition", Integer, primary_key=True, autoincrement=False),
    Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("logged_at_ms", BigInteger, nullable=False),
    Column("reason", _text(64)),
    Column("tournament_id", _text(512)),
    Column("player_id", _text(512)),
    Column("headers", UnicodeText, nullable=False),
    Column("value", LargeBinary),
    Column("handled", SmallInteger, nullable=False),
    postgresql_partition_by="RANGE (month)",
    comment="Records of the dead-letter topics as they came; handled: 1 for the mark that an "
    "operator replayed or dropped one",
)

pseudonym_keys = Table(
    "pseudonym_keys",
    metadata,
    Column("tournament_id", _ID, primary_key=True),
    Column("erasure_id", _ID, primary_key=True),
    Column("secret", LargeBinary(32), nullable=False),
    comment="Random keys behind the players of the audit log, by the id that a request to forget "
    "the player has; without a tournament: of their connections. Who is forgotten has none",
)
Index("pseudonym_keys_of_player", pseudonym_keys.c.erasure_id)

pseudonym_ends = Table(
    "pseudonym_ends",
    metadata,
    Column("tournament_id", _ID, primary_key=True),
    Column("erasure_id", _ID, primary_key=True),
    Column("log_partition", Integer, nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    Column("changes_partition", Integer),
    Column("changes_until", BigInteger),
    Column("destroyed_at_ms", BigInteger),
    comment="Erasures as the audit log has them: behind log_offset of wagers the player is nobody, "
    "and once the log has the position changes below changes_until as well the key is destroyed",
)
Index(
    "pseudonym_ends_open",
    pseudonym_ends.c.log_partition,
    pseudonym_ends.c.destroyed_at_ms,
)

audit_heads = Table(
    "audit_heads",
    metadata,
    Column("origin", _text(255), primary_key=True),
    Column("topic", _text(249), nullable=False),
    Column("log_partition", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("root", _text(64), nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    comment="How far each shard of the audit log was when it was last looked at: a log that was "
    "set back, or made anew, shows",
)

fraud_alerts = Table(
    "fraud_alerts",
    metadata,
    Column("alert_id", _text(192), primary_key=True),
    Column("tournament_id", _ID, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("rule", _text(64), nullable=False),
    Column("player_id", _ID, nullable=False),
    Column("other_player_id", _ID),
    Column("time_ms", BigInteger, nullable=False),
    Column("severity_hundredths", BigInteger, nullable=False),
    Column("evidence", UnicodeText, nullable=False),
    comment="Suspicions, each once; other_player_id: whom its evidence names beside the "
    "player; of who was forgotten the evidence is empty",
)
Index("fraud_alert_time", fraud_alerts.c.time_ms, fraud_alerts.c.alert_id)
Index("fraud_alerts_of_player", fraud_alerts.c.player_id)
Index("fraud_alerts_of_other", fraud_alerts.c.other_player_id)

fraud_reviews = Table(
    "fraud_reviews",
    metadata,
    Column("alert_id", _text(192), primary_key=True),
    Column("tournament_id", _ID, nullable=False),
    Column("decision", _text(16), nullable=False),
    Column("decided_by", _text(512), nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("reason", _text(512)),
    comment="What was decided about a suspicion last",
)

PARTITIONED: Final = (inputs, position_changes, connection_attempts, dead_letters)
"""Partitioned by month where the dialect can (PostgreSQL)."""
