"""The relay's side of the outbox in SQL: who sends which lane, what it sends, what is done.

Why nothing is lost, counted twice or sent out of order, whatever dies:

1. *Numbers.* A lane's counter, and the batch that gets its numbers, are in the lane's row. They
   change in one transaction under that row's lock (`turn`), before anything of the batch is sent.
   So of one lane there is one list of batches, and what has a number keeps it.
2. *Late commits.* What waits is found by being unsent, not by being above some position: a row
   that commits late is in a later batch and gets a higher number than all that was sent before.
   Positions only say the order inside a batch. A row that was committed before another one was
   written has a lower position and is visible whenever the other one is, so it goes first.
3. *One batch after the other.* A lane gets its next batch only after Kafka has acknowledged all
   of the one before. Who sends a batch sends it in order, and nothing of it after a failure. So
   in the log the first appearance of a number comes after a first appearance of each lower one,
   even if a relay that was believed dead sends its batch at the same time: what it adds are
   numbers that were there before, which a board drops as `duplicate`.

Leases (a relay's row, which it renews) only keep two relays from doing the same work. Time is the
database's. A relay that is stopped longer than its lease loses its lanes and finds out by `turn`.

Counters start at the clock (units of 10 µs: 15 digits until 2286) wherever that is ahead of them:
an outbox that was made anew, or restored from a backup, does not give old numbers again.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from leaderboard.errors import LeaderboardError, RefusedError
from leaderboard.events import Record
from leaderboard.producer.outbox import record_of
from leaderboard.producer.tables import LANE, LANES, OUTBOX, RELAY, now_ms

NUMBERS_PER_MS: Final = 100
DAY_MS: Final = 24 * 3600 * 1000
CHUNK: Final = 1000
"""Parameters in one statement: SQL Server takes 2,100."""

_ROWS: Final = "WITH (ROWLOCK)"
_PAST: Final = "WITH (ROWLOCK, READPAST)"
_LOCKING: Final = "WITH (UPDLOCK, ROWLOCK, READPAST)"
"""SQL Server's FOR UPDATE SKIP LOCKED, as hints of the table."""


class RelayNameTakenError(LeaderboardError):
    """Another relay of the same name is alive."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one lane, in the order in which they go, and what they are in the outbox."""

    lane: int
    number: int
    positions: tuple[int, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is in the outbox: `waiting` and `refused` rows, age of the oldest that waits."""

    waiting: int
    refused: int
    oldest_ms: int


@dataclass(slots=True)
class _Lane:
    lane: int
    mine: bool
    next_number: int
    batch_number: int
    batch: list[int]
    changed: bool = False


class Lanes:
    """One relay's hold on the outbox. For one thread; every method is one short transaction.

    Errors of the database come as SQLAlchemy raises them. `numbered`: whether events get their
    `sequence`; without it boards go by ids."""

    def __init__(
        self,
        engine: sa.Engine,
        name: str,
        *,
        lease_ms: int,
        batch_size: int,
        keep_ms: int,
        numbered: bool = True,
    ) -> None:
        self._engine = engine
        self._reading = reading(engine)
        self._name = name
        self._instance = uuid.uuid4().hex
        self._lease_ms = lease_ms
        self._batch_size = batch_size
        self._keep_ms = keep_ms
        self._numbered = numbered
        self._among = _among_array if engine.dialect.name == "postgresql" else _among_list
        self.owned: tuple[int, ...] = ()

    # being there

    def register(self, seen_until_ms: int | None = None) -> int | None:
        """Take the name; None when it is ours now. Else how long the one who has it is alive:
        call again with that later. Raises RelayNameTakenError when it has grown meanwhile."""
        with self._engine.begin() as connection:
            now = _now(connection)
            named = sa.select(RELAY).where(RELAY.c.name == self._name)
            row = connection.execute(locked(named, RELAY)).one_or_none()
            until = now + self._lease_ms
            if row is None:
                values = {"name": self._name, "instance": self._instance, "alive_until_ms": until}
                try:
                    connection.execute(sa.insert(RELAY).values(values))
                except IntegrityError:
                    raise self._taken() from None
                return None
            if row.instance != self._instance and row.alive_until_ms > now:
                if seen_until_ms is not None and row.alive_until_ms > seen_until_ms:
                    raise self._taken()
                return int(row.alive_until_ms)
            self._put_name(connection, until)
            return None

    def _taken(self) -> RelayNameTakenError:
        return RelayNameTakenError(
            f"a relay named {self._name!r} is running: give this one another name (RELAY_NAME)"
        )

    def _put_name(self, connection: sa.Connection, until_ms: int) -> None:
        values = {"instance": self._instance, "alive_until_ms": until_ms}
        connection.execute(sa.update(RELAY).where(RELAY.c.name == self._name).values(values))

    def renew(self) -> None:
        """Stay alive for another lease. Raises RelayNameTakenError when the name is lost."""
        with self._engine.begin() as connection:
            self._renew(connection)

    def _renew(self, connection: sa.Connection) -> None:
        renewed = connection.execute(
            sa.update(RELAY)
            .where(RELAY.c.name == self._name, RELAY.c.instance == self._instance)
            .values(alive_until_ms=now_ms() + self._lease_ms)
        )
        if renewed.rowcount != 1:
            raise self._taken()

    def leave(self) -> None:
        """Let go of lanes and name, so that others go on at once."""
        with self._engine.begin() as connection:
            mine = sa.update(LANE).where(LANE.c.owner == self._instance)
            connection.execute(mine.values(owner=None))
            connection.execute(sa.delete(RELAY).where(RELAY.c.instance == self._instance))
        self.owned = ()

    # sending

    def anything_waits(self) -> bool:
        """Whether an event of an owned lane waits. Reads one row."""
        waits = sa.select(sa.literal(1)).select_from(OUTBOX).with_hint(OUTBOX, _PAST, "mssql")
        statement = waits.where(_waits(), OUTBOX.c.lane.in_(self.owned)).limit(1)
        with self._reading.connect() as connection:
            return connection.execute(statement).first() is not None

    def turn(self, done: Sequence[Batch], resting: Collection[int] = ()) -> list[Batch]:
        """Put down what Kafka has acknowledged (`done`) and take what is next, atomically.

        Takes free lanes up to a fair share, gives lanes back above it. Rows that can't be
        encoded are set aside with their reason. Lanes in `resting` keep what they have."""
        with self._engine.begin() as connection:
            self._renew(connection)
            found = self._locked(connection)
            now = _now(connection)
            for batch in done:
                lane = found.get(batch.lane)
                # Another number: the lane was another relay's in between, and that one is done.
                if lane is not None and lane.batch and lane.batch_number == batch.number:
                    lane.batch, lane.changed = [], True
                    self._mark_sent(connection, batch.positions, now)
            lanes = self._share(connection, found.values())
            batches = self._resume(connection, [one for one in lanes.values() if one.batch])
            asked = [n for n, one in lanes.items() if not one.batch and n not in resting]
            batches += self._number(connection, lanes, asked, now)
            self._keep(connection, lanes.values())
        self.owned = tuple(lanes)
        return [batch for batch in batches if batch.lane not in resting]

    def _locked(self, connection: sa.Connection) -> dict[int, _Lane]:
        """Lock what is mine and what is free. Lanes of others are not even waited for."""
        alive = sa.select(RELAY.c.instance).where(RELAY.c.alive_until_ms > now_ms())
        free = sa.or_(LANE.c.owner.is_(None), LANE.c.owner.not_in(alive))
        statement = sa.select(LANE).where(sa.or_(LANE.c.owner == self._instance, free))
        return {
            row.lane: _Lane(
                row.lane,
                row.owner == self._instance,
                row.next_number,
                row.batch_number,
                json.loads(row.batch or "[]"),
            )
            for row in connection.execute(locked(statement.order_by(LANE.c.lane), LANE))
        }

    def _share(self, connection: sa.Connection, found: Collection[_Lane]) -> dict[int, _Lane]:
        """Take free lanes up to a fair share, give back what is above it."""
        alive = sa.select(sa.func.count()).where(RELAY.c.alive_until_ms > now_ms())
        share = -(-LANES // max(int(connection.execute(alive).scalar_one()), 1))
        mine = [one for one in found if one.mine]
        # What is on its way stays until it is acknowledged.
        spare = [one.lane for one in mine if not one.batch][: max(len(mine) - share, 0)]
        if spare:
            given = sa.update(LANE).where(LANE.c.lane.in_(spare)).values(owner=None, batch="")
            connection.execute(given)
        taken = [one for one in found if not one.mine][: max(share - len(mine), 0)]
        for one in taken:
            one.changed = True
        return {one.lane: one for one in [*mine, *taken] if one.lane not in spare}

    def _mark_sent(self, connection: sa.Connection, positions: Sequence[int], now: int) -> None:
        for chunk in _chunks(positions):
            mark = sa.update(OUTBOX).where(self._among(chunk)).values(sent_at_ms=now)
            connection.execute(mark.with_hint(_ROWS, dialect_name="mssql"))

    def _resume(self, connection: sa.Connection, lanes: Sequence[_Lane]) -> list[Batch]:
        """Batches that were numbered before: by this relay, or by one that did not finish."""
        positions = [position for one in lanes for position in one.batch]
        rows: dict[int, Any] = {}
        for chunk in _chunks(positions):
            numbered = sa.select(OUTBOX).where(self._among(chunk))
            found = connection.execute(numbered.with_hint(OUTBOX, _ROWS, "mssql"))
            rows.update((row["position"], row) for row in found.mappings())
        batches = []
        for one in lanes:
            sent: list[tuple[int, Record]] = []
            for index, position in enumerate(one.batch):
                if (row := rows.get(position)) is None:
                    continue  # somebody deleted it
                record = self._record(connection, row, one.batch_number + index)
                if record is not None:
                    sent.append((position, record))
            batches.append(_batch(one, sent))
        return batches

    def _number(
        self, connection: sa.Connection, lanes: dict[int, _Lane], asked: list[int], now: int
    ) -> list[Batch]:
        """Give the oldest waiting rows of the lanes their place and number."""
        statement = (
            sa.select(OUTBOX)
            .with_hint(OUTBOX, _PAST, "mssql")
            .where(_waits(), OUTBOX.c.lane.in_(asked))
            .order_by(OUTBOX.c.position)
            .limit(self._batch_size)
        )
        rows = connection.execute(statement).mappings().all() if asked else ()
        taken: dict[int, list[tuple[int, Record]]] = defaultdict(list)
        for row in rows:
            one = lanes[row["lane"]]
            # A clock that was set back changes nothing.
            start = max(one.next_number, now * NUMBERS_PER_MS)
            sent = taken[one.lane]
            if (record := self._record(connection, row, start + len(sent))) is not None:
                sent.append((row["position"], record))
        batches = []
        for lane, sent in taken.items():
            if sent:
                one = lanes[lane]
                one.batch_number = max(one.next_number, now * NUMBERS_PER_MS)
                one.next_number = one.batch_number + len(sent)
                one.batch, one.changed = [position for position, _ in sent], True
                batches.append(_batch(one, sent))
        return batches

    def _record(self, connection: sa.Connection, row: Any, number: int) -> Record | None:
        try:
            return record_of(row, number if self._numbered else None)
        except RefusedError as error:
            aside = sa.update(OUTBOX).where(OUTBOX.c.position == row["position"])
            aside = aside.values(refused=str(error)[:1000])
            connection.execute(aside.with_hint(_ROWS, dialect_name="mssql"))
            return None

    def _keep(self, connection: sa.Connection, lanes: Collection[_Lane]) -> None:
        changed = [
            {
                "the_lane": one.lane,
                "next": one.next_number,
                "first": one.batch_number,
                "positions": json.dumps(one.batch) if one.batch else "",
            }
            for one in lanes
            if one.changed
        ]
        if changed:
            statement = sa.update(LANE).where(LANE.c.lane == sa.bindparam("the_lane"))
            values = {
                "owner": self._instance,
                "next_number": sa.bindparam("next"),
                "batch_number": sa.bindparam("first"),
                "batch": sa.bindparam("positions"),
            }
            connection.execute(statement.values(values), changed)

    # tidying and telling

    def prune(self, limit: int = 5000) -> int:
        """Delete rows of owned lanes that were sent long enough ago, of the `limit` oldest ones,
        and forget relays that have been away for a day."""
        with self._engine.begin() as connection:
            now = _now(connection)
            sent = OUTBOX.c.sent_at_ms.is_not(None), OUTBOX.c.lane.in_(self.owned)
            # Not "the oldest that are old enough": to find none of those means to read them all.
            oldest = sa.select(OUTBOX.c.position, OUTBOX.c.sent_at_ms).where(*sent)
            oldest = oldest.with_hint(OUTBOX, _PAST, "mssql")
            found = connection.execute(oldest.order_by(OUTBOX.c.position).limit(limit)).all()
            old = [row.position for row in found if row.sent_at_ms < now - self._keep_ms]
            for chunk in _chunks(old):
                gone = sa.delete(OUTBOX).where(self._among(chunk))
                connection.execute(gone.with_hint(_ROWS, dialect_name="mssql"))
            connection.execute(sa.delete(RELAY).where(RELAY.c.alive_until_ms < now - DAY_MS))
        return len(old)


def backlog(engine: sa.Engine) -> Backlog:
    """What is in the outbox of all lanes. Reads an index entry for each row that waits."""
    oldest = sa.func.min(OUTBOX.c.written_at_ms)
    waiting = sa.select(sa.func.count(), now_ms(), oldest).select_from(OUTBOX).where(_waits())
    waiting = waiting.with_hint(OUTBOX, _PAST, "mssql")
    refused = sa.select(sa.func.count()).select_from(OUTBOX).where(OUTBOX.c.refused.is_not(None))
    refused = refused.with_hint(OUTBOX, _PAST, "mssql")
    with reading(engine).connect() as connection:
        count, now, written = connection.execute(waiting).one()
        age = max(now - written, 0) if written is not None else 0
        return Backlog(count, connection.execute(refused).scalar_one(), age)


def listed(engine: sa.Engine, *, waiting: bool, limit: int) -> Sequence[sa.Row[Any]]:
    """Rows that were set aside, and on request those that wait; oldest first."""
    wanted: sa.ColumnElement[bool] = OUTBOX.c.refused.is_not(None)
    if waiting:
        wanted = sa.or_(wanted, OUTBOX.c.sent_at_ms.is_(None))
    statement = sa.select(OUTBOX).where(wanted).order_by(OUTBOX.c.position).limit(limit)
    statement = statement.with_hint(OUTBOX, _PAST, "mssql")
    with reading(engine).connect() as connection:
        return connection.execute(statement).all()


def retry(engine: sa.Engine, position: int) -> bool:
    """Let a row that was set aside wait again; whether there was one."""
    aside = OUTBOX.c.position == position, OUTBOX.c.refused.is_not(None)
    with engine.begin() as connection:
        again = sa.update(OUTBOX).where(*aside).values(refused=None)
        return bool(connection.execute(again).rowcount)


def reading(engine: sa.Engine) -> sa.Engine:
    """The same engine for transactions that write nothing: on SQLite they lock nobody out."""
    return engine.execution_options(reads=True)


def locked(statement: sa.Select[Any], table: sa.Table) -> sa.Select[Any]:
    """FOR UPDATE SKIP LOCKED (PostgreSQL), its hints (SQL Server); SQLite locks at BEGIN."""
    return statement.with_for_update(skip_locked=True).with_hint(table, _LOCKING, "mssql")


def _waits() -> sa.ColumnElement[bool]:
    return sa.and_(OUTBOX.c.sent_at_ms.is_(None), OUTBOX.c.refused.is_(None))


def _batch(lane: _Lane, sent: Sequence[tuple[int, Record]]) -> Batch:
    positions, records = tuple(p for p, _ in sent), tuple(record for _, record in sent)
    return Batch(lane.lane, lane.batch_number, positions, records)


def _among_list(positions: Sequence[int]) -> sa.ColumnElement[bool]:
    return OUTBOX.c.position.in_(positions)


def _among_array(positions: Sequence[int]) -> sa.ColumnElement[bool]:
    """One parameter, whatever their number."""
    array = sa.bindparam(None, list(positions), sa.ARRAY(sa.BigInteger()))
    return OUTBOX.c.position == sa.any_(array)


def _chunks(positions: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(positions), CHUNK):
        yield positions[start : start + CHUNK]


def _now(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(now_ms())).scalar_one())
