"""The audit of what the record keeps beside its fold: an untouched play passes, whatever was erased
and in whichever order; an edited, dropped or inserted row of suspicions, decisions and connection
attempts is found in many random places, and where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import sqlalchemy as sa

from audited import BESIDE as TOPICS
from audited import LOG_ID, AuditedPlay, compare_beside
from consuming import REMEMBERED
from contract.test_audit_rebuild import PLACES, Told, named, other, row_of
from hosting import hosted
from leaderboard import events as ev
from leaderboard.adapters import sql_schema as tables
from leaderboard.adapters.memory_board import MemoryBoard
from leaderboard.adapters.sql_retention import POLICIES, Retention
from leaderboard.adapters.sql_witness import SqlWitness, witness_of
from leaderboard.audit_accounts import Fault
from leaderboard.audit_beside import CountedBeside
from leaderboard.audit_leaves import NOBODY
from leaderboard.audit_rebuild import Ends, PartitionRebuild, Scope
from leaderboard.audit_replay import Refolded
from leaderboard.codec import encode_data
from leaderboard.events import CONNECTIONS, FRAUD_ALERTS, GDPR_EVENTS, POSITION_CHANGES, WAGERS
from leaderboard.fold import LogEntry
from leaderboard.fraud_ports import NO_EVIDENCE, review_id
from leaderboard.fraud_rules import RULES
from leaderboard.model import Offset, Place, erasure_id_of
from leaderboard.record_ports import Input
from logs import START_MS, TOMBSTONE_KEY, ended, entry
from plays import oracle_alerts, suspicious_log
from records import DIALECTS, engine_of, fresh_database, loaded, moved

TOURNAMENTS: Final = ("t0", "t1", "t2")
PIECE: Final = 60
Entries = dict[str, list[bytes]]


@pytest.fixture(scope="module")
def suspicions() -> Iterator[Any]:
    """The module of on-wager that tells of suspicions."""
    with hosted("on-wager"):
        yield __import__("suspicions")


def mixed(seed: int, length: int, erased: Sequence[str] = ("p1", "c0")) -> list[LogEntry]:
    """Tournaments in one partition, each with players of its own; these are erased at the end: one
    of them of a pair that was told of."""
    chance = random.Random(seed)
    waiting = {t: list(suspicious_log(seed * 10 + n, length)) for n, t in enumerate(TOURNAMENTS)}
    found: list[LogEntry] = []
    while waiting:
        name = chance.choice(list(waiting))
        one = moved(waiting[name].pop(0), name, 3 * len(found))
        if (player := one.event.player_id) is not None:
            data = one.event.data.model_copy(update={"player_id": f"{name}-{player}"})
            one = one._replace(event=one.event._replace(data=data))
        found.append(one)
        if not waiting[name]:
            del waiting[name]
    for name in TOURNAMENTS:
        for gone_player in erased:
            gone = ev.PlayerErased(
                tournament_id=name, player_id=f"{name}-{gone_player}", erasure_id="er-1"
            )
            found.append(entry(3 * len(found), gone, event_id=f"gone-{name}-{gone_player}"))
    return found


class Beside:
    """What comes beside a play, by the offsets of its own topics."""

    def __init__(self, play: AuditedPlay, seed: int) -> None:
        self.play = play
        self.ends = dict.fromkeys(TOPICS, 0)
        self._chance = random.Random(seed)

    def keep(self, topic: str, events: Sequence[ev.Event]) -> None:
        if not events:
            return
        entries = []
        for event in events:
            entries.append(LogEntry(Offset(self.ends[topic]), START_MS, event))
            self.ends[topic] += self._chance.choice((1, 1, 3))
        self.play.keep(topic, entries)

    def decide(self, told: Sequence[ev.Event]) -> None:
        """An operator's decisions about these alerts, some of them twice."""
        for number, alert in enumerate(told):
            decision = self._chance.choice(("confirmed", "dismissed"))
            reason = {} if number % 3 else {"reason": f"called {alert.player_id}"}
            self.keep(FRAUD_ALERTS, [reviewed(alert, decision, number, **reason)])
            if number % 4 == 0:
                self.keep(FRAUD_ALERTS, [reviewed(alert, "dismissed", number + 1)])

    def attempts(self, players: Sequence[str | None]) -> None:
        self.keep(CONNECTIONS, [attempted(n, who) for n, who in enumerate(players)])

    def notice(self, players: Sequence[str]) -> None:
        self.keep(GDPR_EVENTS, [notice(one) for one in players])


def reviewed(alert: ev.Event, decision: Any, number: int, **more: Any) -> ev.Event:
    data = ev.FraudReviewed(
        tournament_id=str(alert.tournament_id), alert_id=alert.id, decision=decision,
        decided_by="olga", **more,
    )  # fmt: skip
    at_ms = START_MS + number
    return ev.Event(review_id(alert.id, decision, at_ms), "/tournament", at_ms, data)


def attempted(number: int, player: str | None, **more: Any) -> ev.Event:
    """As on-connect tells of one; of who is nobody, or was forgotten, no player."""
    data = ev.ConnectionDecided(
        tournament_id=None if number % 5 == 4 else TOURNAMENTS[0], player_id=player,
        allowed=player is not None, reason="allowed" if player else "no_ticket",
        address=None if number % 4 == 3 else f"192.0.2.{number % 250}",
        user_agent=None if number % 7 == 6 else f"{player}'s browser é", **more,
    )  # fmt: skip
    return ev.Event(f"attempt-{number}-{player}", "/on-connect", START_MS + number, data)


def notice(player: str) -> ev.Event:
    request = erasure_id_of(TOMBSTONE_KEY, player)
    return entry(0, ev.PlayerErased(player_id=player, erasure_id=request)).event


def played(
    play: AuditedPlay, suspicions: Any, seed: int, erased: Sequence[str] = ("p1", "c0")
) -> Beside:
    """A play with what comes beside it, suspicions as soon as their wagers were folded; of those in
    the last piece some are told when their players are erased already."""
    log = mixed(seed, 90, erased)
    waiting = sorted(
        oracle_alerts(suspicions, log).values(),
        key=lambda one: one.data.evidence["sequence"],  # type: ignore[union-attr]
    )
    assert {one.id.rpartition("/")[2] for one in waiting} == set(RULES)
    beside, chance = Beside(play, seed), random.Random(seed)
    players = sorted({str(one.event.player_id) for one in log if one.event.player_id})
    for start in range(0, len(log), PIECE):
        piece = log[start : start + PIECE]
        play.take(piece)
        told = [a for a in waiting if a.data.evidence["sequence"] <= piece[-1].offset]  # type: ignore[union-attr]
        waiting = waiting[len(told) :]
        beside.keep(FRAUD_ALERTS, told)
        beside.keep(FRAUD_ALERTS, told[:2])  # after a crash they are told again
        beside.decide([one for one in told if chance.random() < 0.5])
        beside.attempts([chance.choice([*players, None]) for _ in range(20)])
        gone = {str(e.event.player_id) for e in piece if type(e.event.data) is ev.PlayerErased}
        beside.notice(sorted(gone))
        beside.attempts([*sorted(gone), None, *players[:3]])  # late, and as nobody
    return beside


def audited(
    play: AuditedPlay, entries: Entries | None = None, **more: Any
) -> tuple[list[Fault], CountedBeside]:
    """All that is found, in wagers and beside."""
    with play.engine.connect() as connection, connection.begin():
        return found_by(play, SqlWitness(connection, TOMBSTONE_KEY), entries, **more)


def found_by(
    play: AuditedPlay,
    witness: SqlWitness,
    entries: Entries | None = None,
    is_expired: Callable[[Refolded], bool] = lambda one: False,
    **more: Any,
) -> tuple[list[Fault], CountedBeside]:
    faults: list[Fault] = []
    entries = entries or entries_of(play)
    ends = witness.ends()
    upto = Ends(ends[Place(WAGERS, 0)][1], ends[Place(POSITION_CHANGES, 0)][1])
    scope = Scope(witness, play.keys, {}, START_MS + 1, is_expired)
    partition = PartitionRebuild(0, scope, faults.append, REMEMBERED)
    partition.run(entries[WAGERS], entries[POSITION_CHANGES], upto)
    counted = compare_beside(witness, play.keys, partition, entries, faults.append, **more)
    return faults, counted


def entries_of(play: AuditedPlay) -> Entries:
    return {place.topic: play.entries(place.topic) for place in play.logs}


def rows_in(play: AuditedPlay, table: sa.Table) -> int:
    with play.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


# --- untouched -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("seed", range(3))
def test_untouched_play_passes_before_and_after_its_keys_are_destroyed(
    request: pytest.FixtureRequest, tmp_path: Path, suspicions: Any, dialect: str, seed: int
) -> None:
    with fresh_database(dialect, request, tmp_path) as url, engine_of(url) as engine:
        play = AuditedPlay(
            tmp_path / "log", engine, MemoryBoard(TOMBSTONE_KEY, REMEMBERED), REMEMBERED
        )
        played(play, suspicions, seed)
        for _ in range(2):
            faults, counted = audited(play)
            assert faults == []
            assert counted.attempts == rows_in(play, tables.connection_attempts) > 100
            assert counted.alerts == rows_in(play, tables.fraud_alerts) > 20
            assert counted.reviews == rows_in(play, tables.fraud_reviews) > 5
            # The fold of the leaves comes to the same suspicions: none more, none fewer.
            assert (counted.given, counted.untold) == (counted.alerts, 0)
            assert counted.unproved == 0
            assert emptied(play) > 3
            assert play.destroy_keys() > 0


def emptied(play: AuditedPlay) -> int:
    alerts, attempts = tables.fraud_alerts, tables.connection_attempts
    with play.engine.connect() as connection:
        counts = [
            connection.execute(
                sa.select(sa.func.count()).select_from(one).where(column == value)
            ).scalar_one()
            for one, column, value in (
                (alerts, alerts.c.evidence, NO_EVIDENCE),
                (attempts, attempts.c.event_id, NOBODY),
            )
        ]
    return min(counts)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[AuditedPlay]:
    with engine_of(loaded(f"sqlite:///{tmp_path / 'record.sqlite'}")) as engine:
        yield AuditedPlay(
            tmp_path / "log", engine, MemoryBoard(TOMBSTONE_KEY, REMEMBERED), REMEMBERED
        )


def test_row_that_is_emptied_before_its_tournament_has_the_erasure_is_no_fault(
    play: AuditedPlay, suspicions: Any
) -> None:
    """The record empties everything with the first erasure that it reads, of whichever place."""
    log = mixed(4, 60)
    play.take(log)
    beside = Beside(play, 1)
    alerts = list(oracle_alerts(suspicions, log).values())
    gone = {str(e.event.player_id) for e in log if type(e.event.data) is ev.PlayerErased}
    mine = [one for one in alerts if one.player_id not in gone]
    beside.keep(FRAUD_ALERTS, alerts)
    assert audited(play)[0] == []
    # No event of its tournaments: this one is on its way.
    beside.notice([str(mine[0].player_id)])
    assert audited(play)[0] == []
    faults, _ = audited(play, {**entries_of(play), GDPR_EVENTS: []})
    assert {fault.what for fault in faults} & {
        "stands as erased, and the log has not erased its player"
    }


def test_leaves_that_the_record_has_not_read_are_no_fault(play: AuditedPlay) -> None:
    play.take(mixed(1, 30))
    beside = Beside(play, 1)
    beside.attempts(["ann", None])
    longer = entries_of(play)
    beside.attempts(["bea"])
    longer[CONNECTIONS] = play.entries(CONNECTIONS)
    with play.engine.begin() as connection:
        connection.execute(
            sa.delete(tables.connection_attempts).where(
                tables.connection_attempts.c.player_id == "bea"
            )
        )
        position = tables.log_positions
        connection.execute(
            sa.update(position)
            .where(position.c.topic == CONNECTIONS)
            .values(next_offset=beside.ends[CONNECTIONS] - 1)
        )
    found = [f for f in audited(play, longer)[0] if "missing" in f.what]
    assert found == []


def test_attempts_go_by_their_age_and_not_before(play: AuditedPlay) -> None:
    play.take(mixed(1, 30))
    Beside(play, 1).attempts(["ann", "bea"])
    with play.engine.begin() as connection:
        connection.execute(sa.delete(tables.connection_attempts))
    assert len(audited(play)[0]) == 2
    assert audited(play, kept_since_ms=START_MS + 1_000)[0] == []


def test_what_the_record_cuts_off_is_counted_and_not_called_wrong(play: AuditedPlay) -> None:
    play.take(mixed(1, 30))
    beside = Beside(play, 1)
    one = attempted(0, "ann")
    long = one.data.model_copy(update={"address": "x" * 600})
    beside.keep(CONNECTIONS, [one._replace(data=long), attempted(1, "ann")])
    faults, counted = audited(play)
    assert (faults, counted.attempts, counted.unproved) == ([], 2, 1)


def test_alert_of_another_writer_than_ours_is_compared_as_far_as_it_goes(
    play: AuditedPlay,
) -> None:
    play.take(mixed(1, 30))
    beside = Beside(play, 1)
    data = ev.FraudSuspected(tournament_id="t0", player_id="ann", rule="other", evidence={"x": 1})
    event = ev.Event("theirs", "/somebody", START_MS, data)
    again = ev.Event("theirs", "/another", START_MS, data)  # the record knows ids alone
    beside.keep(FRAUD_ALERTS, [event, again])
    faults, counted = audited(play)
    assert (faults, counted.alerts, counted.given) == ([], 1, 0)


def test_what_another_writer_says_beside_is_counted_and_not_called_wrong(play: AuditedPlay) -> None:
    """The record keeps none of it, and its sequence need not be in the id."""
    play.take(mixed(1, 30))
    beside = Beside(play, 1)
    told: dict[str, Any] = {"tournament_id": "t0", "rule": "other", "evidence": {"sequence": 4}}
    for player in ("ann", "bea"):
        data = ev.FraudSuspected(player_id=player, case="more", **told)
        beside.keep(FRAUD_ALERTS, [ev.Event(f"of-{player}", "/somebody", START_MS, data)])
    one = attempted(1, "ann", case="more")
    beside.keep(CONNECTIONS, [one._replace(source="/somebody"), attempted(2, "ann")])
    beside.notice(["bea"])
    faults, counted = audited(play)
    assert (faults, counted.alerts, counted.attempts, counted.unproved) == ([], 2, 2, 3)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keys_that_were_drawn_after_the_record_was_looked_at_are_no_fault(
    request: pytest.FixtureRequest, tmp_path: Path, dialect: str
) -> None:
    """`archive` has a batch in the record a moment before the log, which may meet a player for
    the first time in it."""
    log = mixed(1, 30)
    with fresh_database(dialect, request, tmp_path) as url, engine_of(url) as engine:
        play = AuditedPlay(
            tmp_path / "log", engine, MemoryBoard(TOMBSTONE_KEY, REMEMBERED), REMEMBERED
        )
        play.take(log[:40])
        late = [LogEntry(Offset(0), START_MS, attempted(1, "ann"))]
        inputs = [Input(one, encode_data(one.event.data).decode()) for one in log[40:]]
        play.fold.apply(0, LOG_ID, inputs, Offset(log[-1].offset + 1))
        place = Place(CONNECTIONS, 0)
        play.archive.keep_attempts(place, f"{CONNECTIONS}/topic-three/0", late, Offset(1))
        with witness_of(engine, TOMBSTONE_KEY) as witness:
            assert witness.ends()[place][1] == 1
            play.take(log[40:])
            play.keep(CONNECTIONS, late)
            faults, counted = found_by(play, witness)
        assert (faults, counted.attempts) == ([], 1)


def test_emptied_suspicion_of_who_had_begun_anew_is_counted_and_not_called_wrong(
    play: AuditedPlay, suspicions: Any
) -> None:
    """A watch that was lost knows less of its players: it may tell of the same, less severely."""
    log = mixed(4, 60, erased=())
    play.take(log)
    beside = Beside(play, 1)
    gone = {str(e.event.player_id) for e in log if type(e.event.data) is ev.PlayerErased}
    alerts = oracle_alerts(suspicions, log).values()
    one = next(a for a in alerts if a.player_id not in gone and not a.id.endswith("collusion"))
    data = one.data.model_copy(update={"evidence": {**one.data.evidence, "severity": 77.7}})  # type: ignore[union-attr]
    beside.keep(FRAUD_ALERTS, [one._replace(data=data)])
    assert audited(play)[0] == []
    beside.notice([str(one.player_id)])
    faults, counted = audited(play)
    assert (faults, counted.alerts, counted.unproved) == ([], 1, 1)


def test_erasure_whose_notice_is_not_read_yet_is_no_fault(play: AuditedPlay) -> None:
    """Of `archive`'s processes the one that has `gdpr-events` may be down for a while."""
    log = mixed(1, 30, erased=())
    play.take(log)
    beside = Beside(play, 1)
    gone = {str(e.event.player_id) for e in log if type(e.event.data) is ev.PlayerErased}
    players = {str(e.event.player_id) for e in log if type(e.event.data) is ev.WagerPlaced}
    player = min(players - gone)
    beside.attempts([player])
    at_ms, after = START_MS + 9_999, log[-1].offset + 1
    erasure = ev.PlayerErased(tournament_id=player[:2], player_id=player, erasure_id="er-1")
    play.take([entry(after, erasure, event_id="gone", time_ms=at_ms)])
    assert audited(play)[0] == [], "the key tells who it was"
    play.destroy_keys()
    assert len(audited(play)[0]) == 1
    assert len(audited(play, late_since_ms=at_ms + 1)[0]) == 1
    assert audited(play, late_since_ms=at_ms)[0] == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_words_with_a_zero_are_kept_and_not_called_wrong(
    request: pytest.FixtureRequest, tmp_path: Path, dialect: str
) -> None:
    """PostgreSQL takes none: whoever writes one must not stop who keeps them."""
    with fresh_database(dialect, request, tmp_path) as url, engine_of(url) as engine:
        play = AuditedPlay(
            tmp_path / "log", engine, MemoryBoard(TOMBSTONE_KEY, REMEMBERED), REMEMBERED
        )
        play.take(mixed(1, 30))
        beside = Beside(play, 1)
        data = ev.FraudSuspected(
            tournament_id="t0", player_id="ann", rule="o\0", evidence={"with_player_id": "b\0"}
        )
        one = ev.Event("theirs", "/somebody", START_MS, data)
        beside.keep(FRAUD_ALERTS, [one, reviewed(one, "dismissed", 1, reason="a\0" * 256)])
        faults, counted = audited(play)
        assert (faults, counted.alerts, counted.reviews, counted.unproved) == ([], 1, 1, 2)


def test_tournament_that_is_older_than_its_retention_is_no_fault(
    play: AuditedPlay, suspicions: Any
) -> None:
    log = mixed(4, 60, erased=())
    log.append(entry(log[-1].offset + 1, moved(ended(0), "t1", 0).event.data, event_id="over"))
    play.take(log)
    Beside(play, 1).keep(FRAUD_ALERTS, list(oracle_alerts(suspicions, log).values()))
    with play.engine.begin() as connection:
        table = tables.tournaments
        connection.execute(sa.update(table).values(confirmed_at_ms=START_MS))
        over_ms = connection.execute(
            sa.select(table.c.over_at_ms).where(table.c.tournament_id == "t1")
        ).scalar_one()
    assert audited(play)[0] == []
    now_ms = over_ms + 1 + POLICIES["default"].tournaments * 24 * 3_600_000
    Retention(play.engine, POLICIES["default"], now_ms).apply()
    faults, _ = audited(play, is_expired=lambda one: one.over_at_ms == over_ms)
    assert faults == []
    missing = [fault for fault in audited(play)[0] if fault.where.startswith("tournaments")]
    assert [fault.what for fault in missing] == ["is missing in the record"]


# --- changed by hand -----------------------------------------------------------------------------

TAMPERED: Final = {
    table.name: table
    for table in (tables.connection_attempts, tables.fraud_alerts, tables.fraud_reviews)
}
OF_THE_MACHINE: Final = {"month"}


@pytest.fixture(scope="module")
def shared_play(
    tmp_path_factory: pytest.TempPathFactory, suspicions: Any
) -> Iterator[tuple[AuditedPlay, Entries]]:
    """One that nobody changes for good."""
    folder = tmp_path_factory.mktemp("beside")
    with engine_of(loaded(f"sqlite:///{folder / 'record.sqlite'}")) as engine:
        play = AuditedPlay(
            folder / "log", engine, MemoryBoard(TOMBSTONE_KEY, REMEMBERED), REMEMBERED
        )
        played(play, suspicions, 6, ["p1"])
        play.destroy_keys()
        entries = entries_of(play)
        assert audited(play, entries)[0] == []
        yield play, entries


def faults_of(
    shared: tuple[AuditedPlay, Entries], change: Callable[[sa.Connection], Any]
) -> tuple[list[Fault], Any]:
    """What is found after a change to the record, which is taken back; and what it tells of it."""
    play, entries = shared
    with play.engine.connect() as connection, connection.begin() as transaction:
        told = change(connection)
        faults, _ = found_by(play, SqlWitness(connection, TOMBSTONE_KEY), entries)
        transaction.rollback()
    return faults, told


def place_of(table: sa.Table, row: Any) -> str:
    """How a fault at this row begins."""
    if table is tables.connection_attempts:
        return f"connection_attempts of connections/0 at offset {row.log_offset}"
    return f"{table.name} of {row.tournament_id}, {row.alert_id}"


@pytest.mark.parametrize("name", TAMPERED)
def test_edited_column_is_found_where_it_is(
    shared_play: tuple[AuditedPlay, Entries], name: str, record_property: Told
) -> None:
    table, chance, tried = TAMPERED[name], random.Random(name), 0
    for column in table.columns:
        if column.primary_key or column.name in OF_THE_MACHINE:
            continue

        def edit(connection: sa.Connection, column: sa.Column[Any] = column) -> tuple[str, Any]:
            row = row_of(connection, table, chance)
            while column.name == "severity_hundredths" and row.evidence == NO_EVIDENCE:
                row = row_of(connection, table, chance)  # of those nothing proves it
            value = other(getattr(row, column.name), column, chance)
            connection.execute(
                sa.update(table).where(named(table, row)).values({column.name: value})
            )
            return place_of(table, row), (getattr(row, column.name), value)

        for _ in range(PLACES):
            faults, (where, values) = faults_of(shared_play, edit)
            assert [fault for fault in faults if fault.where == where], (column, values, faults)
            tried += 1
    record_property("tried", tried)


@pytest.mark.parametrize("name", TAMPERED)
def test_dropped_row_is_found_where_it_was(
    shared_play: tuple[AuditedPlay, Entries], name: str, record_property: Told
) -> None:
    table, chance = TAMPERED[name], random.Random(name)

    def drop(connection: sa.Connection) -> Any:
        row = row_of(connection, table, chance)
        connection.execute(sa.delete(table).where(named(table, row)))
        return row

    record_property("tried", PLACES)
    for _ in range(PLACES):
        faults, row = faults_of(shared_play, drop)
        wanted = place_of(table, row)
        if table is not tables.connection_attempts:
            wanted = f"{name} of {row.tournament_id}, offset "
        assert [fault.what for fault in faults if fault.where.startswith(wanted)] == [
            "is missing in the record"
        ], faults


@pytest.mark.parametrize("name", TAMPERED)
def test_inserted_row_is_found_where_it_is(
    shared_play: tuple[AuditedPlay, Entries], name: str, record_property: Told
) -> None:
    table, chance = TAMPERED[name], random.Random(name)

    def put(connection: sa.Connection) -> str:
        row = row_of(connection, table, chance)
        if table is tables.connection_attempts:
            taken = set(connection.execute(sa.select(table.c.log_offset)).scalars())
            # Where the log has no record, beyond its end, or beside the row itself.
            free = set(range(max(taken) + 30)) - taken
            key: dict[str, Any] = {"log_offset": chance.choice(sorted(free))}
            if chance.random() < 0.3:
                key = {"month": row.month + 1}
        else:
            key = {"alert_id": row.alert_id.replace("/", f"/{chance.randrange(1, 9)}", 1)}
        values = {**row._mapping, **key}
        connection.execute(sa.insert(table).values(values))
        return place_of(table, SimpleNamespace(**values))

    record_property("tried", PLACES)
    for _ in range(PLACES):
        faults, where = faults_of(shared_play, put)
        assert [fault.what for fault in faults if fault.where == where] == [
            "is in the record, and the log has no such"
        ], faults


@pytest.mark.parametrize("name", TAMPERED)
def test_rows_that_have_changed_places_are_found(
    shared_play: tuple[AuditedPlay, Entries], name: str, record_property: Told
) -> None:
    """All but what they are found by."""
    table, chance = TAMPERED[name], random.Random(name)
    stays = {column.name for column in table.primary_key}

    def swap(connection: sa.Connection) -> list[str]:
        one = row_of(connection, table, chance)
        two = row_of(connection, table, chance)
        content = [tuple(v for n, v in r._mapping.items() if n not in stays) for r in (one, two)]
        if content[0] == content[1]:
            return []
        for row, given in ((two, one), (one, two)):
            values = {n: v for n, v in given._mapping.items() if n not in stays}
            connection.execute(sa.update(table).where(named(table, row)).values(values))
        return [place_of(table, row) for row in (one, two)]

    record_property("tried", PLACES)
    done = 0
    while done < PLACES:
        faults, places = faults_of(shared_play, swap)
        if places:
            done += 1
            # By what the leaf says the row is, whatever it says itself.
            for where in places:
                assert [fault for fault in faults if fault.where == where], (where, faults)


def test_row_that_is_emptied_as_an_erasure_does_is_found(
    shared_play: tuple[AuditedPlay, Entries], record_property: Told
) -> None:
    """Whoever wants to hide one calls it erased; its player is not."""
    chance = random.Random(3)

    def hide_alert(connection: sa.Connection) -> str:
        table = tables.fraud_alerts
        rows = connection.execute(
            sa.select(table).where(table.c.evidence != NO_EVIDENCE, table.c.rule != "collusion")
        ).all()
        row = chance.choice(rows)
        values = {"evidence": NO_EVIDENCE, "other_player_id": None}
        if chance.random() < 0.5:
            values["player_id"] = f"erased-{chance.randbytes(8).hex()}"
        connection.execute(sa.update(table).where(named(table, row)).values(values))
        return place_of(table, row)

    def hide_pair(connection: sa.Connection) -> str:
        """Whose partner is there, the fold knows."""
        table = tables.fraud_alerts
        rows = connection.execute(
            sa.select(table).where(table.c.evidence != NO_EVIDENCE, table.c.rule == "collusion")
        ).all()
        row = chance.choice(rows)
        values = {"evidence": NO_EVIDENCE, "other_player_id": None}
        connection.execute(sa.update(table).where(named(table, row)).values(values))
        return place_of(table, row)

    def hide_attempt(connection: sa.Connection) -> str:
        table = tables.connection_attempts
        rows = connection.execute(sa.select(table).where(table.c.player_id.is_not(None))).all()
        row = chance.choice(rows)
        values = {"player_id": None, "address": None, "user_agent": None, "event_id": NOBODY}
        connection.execute(sa.update(table).where(named(table, row)).values(values))
        return place_of(table, row)

    record_property("tried", 3 * PLACES)
    for hide in (hide_alert, hide_pair, hide_attempt):
        for _ in range(PLACES):
            faults, where = faults_of(shared_play, hide)
            assert [fault for fault in faults if fault.where == where], (hide, faults)


def test_keys_that_were_destroyed_with_no_erasure_show(
    shared_play: tuple[AuditedPlay, Entries],
) -> None:
    """All connections emptied, and the keys with them: the log has forgotten fewer."""
    table, keys = tables.connection_attempts, tables.pseudonym_keys

    def hide(connection: sa.Connection) -> None:
        connection.execute(
            sa.update(table).values(player_id=None, address=None, user_agent=None, event_id=NOBODY)
        )
        connection.execute(sa.delete(keys).where(keys.c.tournament_id == ""))

    faults, _ = faults_of(shared_play, hide)
    assert [fault.where for fault in faults] == ["connection_attempts"]


@pytest.mark.parametrize("topic", [CONNECTIONS, FRAUD_ALERTS, GDPR_EVENTS])
def test_log_that_ends_before_the_record_does_is_found(
    shared_play: tuple[AuditedPlay, Entries], topic: str
) -> None:
    play, entries = shared_play
    faults, _ = audited(play, {**entries, topic: entries[topic][:-1]})
    assert any(fault.where == f"{topic}/0 of the log" for fault in faults)
