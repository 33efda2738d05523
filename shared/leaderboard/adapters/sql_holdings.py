"""Everything that the record holds on one player, a bounded page at a time.

What a player's events are found by is the order of the log: an index for them would cost every
wager, and hardly anybody asks. So a page looks at a bounded number of rows, whosever they are, and
says where to go on; one may be empty and not the last.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.sql_engine import reading
from leaderboard.adapters.sql_erasure import may_name, named_in
from leaderboard.dead_letters import MAX_SEARCHED_BYTES
from leaderboard.events import format_time_ms
from leaderboard.fold import Terms
from leaderboard.model import PlayerId
from leaderboard.record_ports import Held

LOOKED_AT: Final = 20_000
"""Rows that a page looks at, at most: some hundredths of a second."""
LEAST_COST: Final = 200
"""What a question counts at least: so many tournaments without an event are no endless page."""
LETTERS: Final = 100
"""So many dead letters at once, which may have 32 KiB each, and `LETTERS_LOOKED_AT`."""
LETTERS_LOOKED_AT: Final = 2_000
TOURNAMENTS: Final = 100
_MAX_CURSOR: Final = 512
_MAX_TEXT: Final = 249
"""Of a key: names of topics are the longest."""
_WHO, _OF = tables.players.c, tables.tournaments.c

Thing = Mapping[str, Any]


class _Step(NamedTuple):
    """Some things of a section, behind which key it goes on (None: with the next section), and how
    many rows were looked at."""

    things: Sequence[Thing]
    after: tuple[Any, ...] | None
    cost: int


class _Asked(NamedTuple):
    """One step: for whom, behind which key (None: from the start), how much at most."""

    connection: sa.Connection
    player_id: PlayerId
    after: tuple[Any, ...] | None
    limit: int
    budget: int


class SqlHoldings:
    """`record_ports.Holdings` in SQL. Safe for several threads.

    `looked_at` is for tests: how many rows a page looks at."""

    def __init__(self, engine: sa.Engine, looked_at: int = LOOKED_AT) -> None:
        self._engine = engine
        self._looked_at = looked_at

    def page(self, player_id: PlayerId, after: str | None, limit: int) -> Held:
        section, key = (0, None) if after is None else _read(after)
        things: list[Thing] = []
        budget = self._looked_at
        with reading(self._engine) as connection:
            while section < len(_SECTIONS) and len(things) < limit and budget > 0:
                left = limit - len(things)
                step = _SECTIONS[section].take(_Asked(connection, player_id, key, left, budget))
                things += step.things
                budget -= max(step.cost, LEAST_COST)
                key = step.after
                section += key is None
        return Held(things, None if section == len(_SECTIONS) else _written(section, key))


# --- sections, in the order in which they are told -----------------------------------------------


def _requests(asked: _Asked) -> _Step:
    row = tables.erasure_requests.c
    found = asked.connection.execute(
        sa.select(row.requested_at_ms).where(row.player_id == asked.player_id)
    )
    things = [
        {"kind": "erasure_request", "requested_at": format_time_ms(at_ms)} for (at_ms,) in found
    ]
    return _Step(things, None, len(things))


def _tournaments(asked: _Asked) -> _Step:
    (after,) = asked.after or (-1,)
    limit = min(asked.limit, TOURNAMENTS)
    found = asked.connection.execute(
        sa.select(
            _OF.tournament_no, _OF.tournament_id, _OF.state, _OF.terms,
            _WHO.display_name, _WHO.joined_at, _WHO.out_at,
        )
        .join_from(tables.players, tables.tournaments, _OF.tournament_no == _WHO.tournament_no)
        .where(_WHO.player_id == asked.player_id, _WHO.tournament_no > after)
        .order_by(_WHO.tournament_no)
        .limit(limit)
    ).all()  # fmt: skip
    things = [
        {
            "kind": "tournament",
            "tournament_id": row.tournament_id,
            "name": Terms.model_validate_json(row.terms).name,
            "state": row.state,
            "display_name": row.display_name,
            "joined": row.joined_at is not None,
            "removed": row.out_at is not None,
        }
        for row in found
    ]
    return _Step(things, (found[-1].tournament_no,) if len(found) == limit else None, len(found))


def _events(asked: _Asked) -> _Step:
    row = tables.inputs.c

    def of(tournament: Any) -> sa.ColumnElement[bool]:
        return sa.and_(row.tournament_no == tournament.tournament_no)

    def thing(tournament: Any, one: Any) -> Thing:
        return {
            "kind": "event",
            "tournament_id": tournament.tournament_id,
            "type": one.kind,
            "source": one.source,
            "id": one.event_id,
            "time": format_time_ms(one.time_ms),
            "received_at": format_time_ms(one.logged_at_ms),
            "became": one.disposition,
            "data": json.loads(one.data),
        }

    def mine(tournament: Any) -> sa.ColumnElement[bool]:
        return sa.and_(row.player_no == tournament.player_no)

    return _in_tournaments(asked, tables.inputs, row.log_offset, of, mine, thing)


def _changes(asked: _Asked) -> _Step:
    row = tables.position_changes.c

    def of(tournament: Any) -> sa.ColumnElement[bool]:
        return sa.and_(row.tournament_id == tournament.tournament_id)

    def thing(tournament: Any, one: Any) -> Thing:
        return {
            "kind": "position_change",
            "tournament_id": one.tournament_id,
            "sequence": one.sequence,
            "time": format_time_ms(one.time_ms),
            "old_rank": one.old_rank,
            "new_rank": one.new_rank,
            "score": one.score,
            "distance": one.distance,
        }

    def mine(tournament: Any) -> sa.ColumnElement[bool]:
        return sa.and_(row.player_id == asked.player_id)

    return _in_tournaments(asked, tables.position_changes, row.sequence, of, mine, thing)


def _in_tournaments(
    asked: _Asked,
    table: sa.Table,
    order: sa.Column[Any],
    of: Callable[[Any], sa.ColumnElement[bool]],
    mine: Callable[[Any], sa.ColumnElement[bool]],
    thing: Callable[[Any, Any], Thing],
) -> _Step:
    """A piece of one of the player's tournaments, of a table whose order within it is `order`."""
    number, after = asked.after or (-1, -1)
    tournament = asked.connection.execute(
        sa.select(_WHO.tournament_no, _WHO.player_no, _OF.tournament_id)
        .join_from(tables.players, tables.tournaments, _OF.tournament_no == _WHO.tournament_no)
        .where(_WHO.player_id == asked.player_id, _WHO.tournament_no >= number)
        .order_by(_WHO.tournament_no)
        .limit(1)
    ).first()
    if tournament is None:
        return _Step((), None, 0)
    if tournament.tournament_no != number:
        after = -1
    behind = sa.and_(of(tournament), order > after)
    piece = sa.select(order).where(behind).order_by(order).limit(asked.budget).subquery("piece")
    last, looked_at = asked.connection.execute(
        sa.select(sa.func.max(piece.c[order.name]), sa.func.count())
    ).one()
    over = (tournament.tournament_no + 1, -1)
    if last is None:
        return _Step((), over, 0)
    found = asked.connection.execute(
        sa.select(table)
        .where(behind, order <= last, mine(tournament))
        .order_by(order)
        .limit(asked.limit)
    ).all()
    things = [thing(tournament, one) for one in found]
    if len(found) == asked.limit:
        return _Step(things, (tournament.tournament_no, found[-1]._mapping[order]), looked_at)
    is_whole = looked_at < asked.budget
    return _Step(things, over if is_whole else (tournament.tournament_no, last), looked_at)


def _attempts(asked: _Asked) -> _Step:
    row = tables.connection_attempts.c
    keys = (row.log_partition, row.log_offset)
    found = asked.connection.execute(
        sa.select(tables.connection_attempts)
        .where(row.player_id == asked.player_id, _behind(keys, asked.after))
        .order_by(*keys)
        .limit(asked.limit)
    ).all()
    things = [
        {
            "kind": "connection_attempt",
            "tournament_id": one.tournament_id,
            "time": format_time_ms(one.time_ms),
            "allowed": one.allowed,
            "reason": one.reason,
            "address": one.address,
            "user_agent": one.user_agent,
        }
        for one in found
    ]
    is_whole = len(found) < asked.limit
    after = None if is_whole else (found[-1].log_partition, found[-1].log_offset)
    return _Step(things, after, len(found))


def _alerts(asked: _Asked) -> _Step:
    row, review = tables.fraud_alerts.c, tables.fraud_reviews.c
    named = sa.or_(row.player_id == asked.player_id, row.other_player_id == asked.player_id)
    decided = (review.decision, review.decided_at_ms, review.reason)
    found = asked.connection.execute(
        sa.select(tables.fraud_alerts, *decided)
        .outerjoin_from(tables.fraud_alerts, tables.fraud_reviews, row.alert_id == review.alert_id)
        .where(named, _behind((row.alert_id,), asked.after))
        .order_by(row.alert_id)
        .limit(asked.limit)
    ).all()
    things = [_suspicion(asked.player_id, one) for one in found]
    return _Step(things, None if len(found) < asked.limit else (found[-1].alert_id,), len(found))


def _suspicion(player_id: PlayerId, row: Any) -> Thing:
    """A suspicion of the player, or one that names them. What it says only where it is about nobody
    else."""
    is_own = row.player_id == player_id and row.other_player_id is None
    at_ms = row.decided_at_ms
    return {
        "kind": "fraud_alert",
        "tournament_id": row.tournament_id,
        "rule": row.rule,
        "time": format_time_ms(row.time_ms),
        "evidence": json.loads(row.evidence) if is_own else None,
        "state": row.decision or "open",
        "decided_at": None if at_ms is None else format_time_ms(at_ms),
        "reason": row.reason if is_own else None,
    }


def _letters(asked: _Asked) -> _Step:
    row = tables.dead_letters.c
    keys = (row.topic, row.log_partition, row.log_offset)
    limit, budget = min(asked.limit, LETTERS), min(asked.budget, LETTERS_LOOKED_AT)
    behind = _behind(keys, asked.after)
    connection = asked.connection
    last = connection.execute(
        sa.select(*keys).where(behind).order_by(*keys).limit(1).offset(budget - 1)
    ).first()
    named = may_name([asked.player_id], connection.dialect.name)
    piece = sa.select(tables.dead_letters).where(behind, named)
    if last is not None:
        piece = piece.where(sa.not_(_behind(keys, tuple(last))))
    found = connection.execute(piece.order_by(*keys).limit(limit)).all()
    things = [_letter(asked.player_id, one) for one in found if asked.player_id in named_in(one)]
    after = None if last is None else tuple(last)
    if len(found) == limit:
        after = (found[-1].topic, found[-1].log_partition, found[-1].log_offset)
    return _Step(things, after, budget)


def _letter(player_id: PlayerId, row: Any) -> Thing:
    """A refused event. What it says only where it is about this player: it may just name them
    beside others, and what others did is not theirs to have."""
    is_own = player_id in _about(json.loads(row.headers), row.value)
    value = None if row.value is None or not is_own else row.value.decode("utf-8", "replace")
    return {
        "kind": "refused_event",
        "topic": row.topic,
        "time": format_time_ms(row.logged_at_ms),
        "reason": row.reason,
        "value": value,
    }


def _about(headers: Mapping[str, str | None], value: bytes | None) -> set[object]:
    found: set[object] = {text for name, text in headers.items() if name.lower() == "ce_subject"}
    try:
        body = json.loads(value or b"{}") if len(value or b"") <= MAX_SEARCHED_BYTES else {}
    except (ValueError, RecursionError):
        return found
    for one in (body, body.get("data") if isinstance(body, dict) else None):
        if isinstance(one, dict):
            found |= {str(one.get("player_id")), str(one.get("subject"))}
    return found


def _behind(
    keys: Sequence[sa.Column[Any]], after: tuple[Any, ...] | None
) -> sa.ColumnElement[bool]:
    """Rows behind this key: compared in full, for not every dialect compares tuples."""
    if after is None:
        return sa.true()
    more: sa.ColumnElement[bool] = keys[-1] > after[-1]
    for key, value in zip(keys[-2::-1], after[-2::-1], strict=True):
        more = sa.or_(key > value, sa.and_(key == value, more))
    return more


# --- where to go on ------------------------------------------------------------------------------


class _Section(NamedTuple):
    name: str
    take: Callable[[_Asked], _Step]
    key: tuple[int | None, ...]
    """What each part of the key is below; None: a text."""


_NUMBER, _OFFSET = 2**31, 2**63
_SECTIONS: Final = (
    _Section("requests", _requests, ()),
    _Section("tournaments", _tournaments, (_NUMBER,)),
    _Section("events", _events, (_NUMBER, _OFFSET)),
    _Section("changes", _changes, (_NUMBER, _OFFSET)),
    _Section("attempts", _attempts, (_NUMBER, _OFFSET)),
    _Section("alerts", _alerts, (None,)),
    _Section("letters", _letters, (None, _NUMBER, _OFFSET)),
)
"""A further kind of thing is one line here, at any place."""


def _written(section: int, key: tuple[Any, ...] | None) -> str:
    told = json.dumps([_SECTIONS[section].name, *(key or ())], separators=(",", ":"))
    return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")


def _read(after: str) -> tuple[int, tuple[Any, ...] | None]:
    """Raises ValueError for what `_written` never wrote: it comes from outside."""
    try:
        if len(after) > _MAX_CURSOR:
            raise ValueError
        name, *key = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        (section,) = [n for n, one in enumerate(_SECTIONS) if one.name == name]
        below = _SECTIONS[section].key
        if key and (len(key) != len(below) or not all(map(_fits, key, below))):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise ValueError("that is no place to go on from") from None
    return section, tuple(key) or None


def _fits(part: object, below: int | None) -> bool:
    if below is None:
        return isinstance(part, str) and len(part) <= _MAX_TEXT and part.isprintable()
    # No true or false: they are numbers to Python.
    return isinstance(part, int) and not isinstance(part, bool) and -1 <= part < below
