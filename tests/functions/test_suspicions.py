"""Alerts of on-wager, killed, retried, doubled and robbed: each once, as over the whole log."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from consuming import TOURNAMENTS, Ports, Reader, maker, memory_ports, moved_to, redis_ports
from hosting import Hosted
from leaderboard import events as ev
from leaderboard.events import WAGERS
from leaderboard.fold import LogEntry
from leaderboard.fraud_rules import RULES
from leaderboard.model import Disposition, Offset, Place, TournamentId
from logs import START_MS, ended, erased, scheduled
from plays import MONEY, SENSITIVE, oracle_alerts, played, suspicious_log
from ports import Countdown


def mixed(seed: int, length: int = 30) -> list[LogEntry]:
    """Three tournaments in one partition."""
    chance = random.Random(seed)
    waiting = {t: list(suspicious_log(seed * 10 + i, length)) for i, t in enumerate(TOURNAMENTS)}
    entries: list[LogEntry] = []
    while waiting:
        name = chance.choice(list(waiting))
        entries.append(moved_to(name, waiting[name].pop(0), len(entries)))
        if not waiting[name]:
            del waiting[name]
    return entries


def alerts(ports: Ports) -> dict[str, ev.Event]:
    """What readers have at the end, each id once; the same id never says anything else."""
    found: dict[str, ev.Event] = {}
    for one in ports.feed.alerts:
        assert found.setdefault(one.id, one) == one, "one id, two alerts"
    return found


def main_of(on_wager: Hosted) -> Any:
    return __import__("suspicions")


def test_a_log_has_alerts_of_every_kind_and_the_whole_log_agrees(on_wager: Hosted) -> None:
    entries = mixed(1, 120)
    ports = memory_ports()
    Reader(entries, maker(on_wager, ports), seed=1).run()
    found = alerts(ports)
    assert found == oracle_alerts(main_of(on_wager), entries)
    kinds = Counter(one.id.rsplit("/", 1)[1] for one in found.values())
    assert set(kinds) == set(RULES)
    assert len(found) == len(ports.feed.alerts), "undisturbed, each is told once"


@pytest.mark.parametrize("survives", [False, True], ids=["killed", "retried"])
@pytest.mark.parametrize("seed", range(2))
def test_interrupted_anywhere_each_alert_is_told_as_over_the_whole_log(
    on_wager: Hosted, seed: int, survives: bool
) -> None:
    entries = mixed(seed)
    expected = oracle_alerts(main_of(on_wager), entries)
    assert len(expected) > 10
    repeated = 0
    for step in range(1 + seed, 10_000, 5):
        ports, countdown = memory_ports(), Countdown(step)
        Reader(entries, maker(on_wager, ports, countdown), seed=step).run(survives=survives)
        assert alerts(ports) == expected, f"interrupted at step {step}"
        repeated += len(ports.feed.alerts) > len(expected)
        if not countdown.bit:
            break
    assert step > 100
    assert repeated > 2, "some were told twice, under the same ids"


def test_interrupted_anywhere_it_is_the_same_on_redis(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = mixed(2)
    expected = oracle_alerts(main_of(on_wager), entries)
    for step in range(1, 10_000, 17):
        client.flushdb()
        ports, countdown = redis_ports(client), Countdown(step)
        Reader(entries, maker(on_wager, ports, countdown), seed=step).run()
        assert alerts(ports) == expected, f"interrupted at step {step}"
        if not countdown.bit:
            break
    assert step > 100


@pytest.mark.parametrize("seed", range(5))
def test_two_owners_at_once_tell_no_other_alerts(on_wager: Hosted, seed: int) -> None:
    entries = mixed(seed)
    ports, chance = memory_ports(), random.Random(seed)
    readers = [Reader(entries, maker(on_wager, ports), seed=seed + i) for i in (0, 100)]
    while not all(reader.is_done() for reader in readers):
        chance.choice(readers).step()
    assert alerts(ports) == oracle_alerts(main_of(on_wager), entries)


def test_a_process_keeps_what_it_knows_when_the_store_loses_it(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = mixed(4)
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=4)
    while not reader.is_done():
        reader.step()
        client.delete(*[f"{{{name}}}:watch" for name in TOURNAMENTS])
    assert alerts(ports) == oracle_alerts(main_of(on_wager), entries)


def test_without_what_was_kept_a_new_process_begins_anew_and_says_nothing_twice(
    on_wager: Hosted, client: redis.Redis
) -> None:
    """The loss is real: with it the two differ, else the tests above prove nothing."""
    entries = mixed(5, 80)
    expected = oracle_alerts(main_of(on_wager), entries)
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=5)
    while not reader.is_done():
        reader.step()
        client.delete(*[f"{{{name}}}:watch" for name in TOURNAMENTS])
        reader.restart()
        reader.step()
    assert alerts(ports).keys() != expected.keys()


def drop_dispositions(on_wager: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if boards did not tell again why an event had not counted."""
    suspicions = main_of(on_wager)
    told = suspicions.pieces_of

    def pieces_of(entries: Sequence[LogEntry], applied: Any, above: int) -> Any:
        verdicts = [Disposition.SKIPPED if one is Disposition.DUPLICATE else one
                    for one in applied.verdicts]  # fmt: skip
        return told(entries, type(applied)(
            applied.offset, applied.sequence, applied.terms, applied.terms_changed, verdicts,
            applied.unconfirmed), above)  # fmt: skip

    monkeypatch.setattr(suspicions, "pieces_of", pieces_of)


def test_repetitions_that_counted_as_play_would_be_seen(
    on_wager: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = mixed(1)
    expected = oracle_alerts(main_of(on_wager), entries)
    drop_dispositions(on_wager, monkeypatch)
    ports = memory_ports()
    Reader(entries, maker(on_wager, ports), seed=1).run()
    assert alerts(ports) != expected


def kept_in(client: redis.Redis) -> bytes:
    chunks: Any = client.lrange("{t1}:watch", 0, -1)
    return b"".join(chunks)


# --- what it may not keep ------------------------------------------------------------------------


def test_nobody_who_was_erased_is_in_what_is_kept(on_wager: Hosted, client: redis.Redis) -> None:
    entries = [scheduled(0, **MONEY, fraud=SENSITIVE)]
    for offset in range(1, 60):
        player = ("leaver", "stayer")[offset % 2]
        entries.append(played(offset, player, 50, after_ms=offset * 400))
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=1)
    reader.run()
    assert b"leaver" in kept_in(client)
    entries += [erased(60, "leaver"), played(61, "leaver", 50, after_ms=30_000)]
    entries.append(played(62, "stayer", 50, after_ms=30_100))
    reader.run()
    kept = kept_in(client)
    assert b"leaver" not in kept
    assert b"stayer" in kept


def naming(client: redis.Redis, player_id: str) -> set[bytes]:
    """Keys of the store that name the player."""
    keys: Any = client.keys("*")
    return {key for key in keys if player_id.encode() in (client.dump(key) or b"")}


@pytest.mark.parametrize("killed", [False, True])
def test_who_was_erased_is_nowhere_although_nothing_comes_any_more(
    on_wager: Hosted, client: redis.Redis, killed: bool
) -> None:
    """A board hears with its next batch that its changes arrived; there is none."""
    client.config_set("rdbcompression", "no")  # else a dump may not show it
    entries = [scheduled(0, **MONEY)]
    entries += [played(n, ("leaver", "stayer")[n % 2], 50, after_ms=n * 400) for n in range(1, 8)]
    entries += [erased(8, "leaver")]
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=1)
    reader.run()
    place = Place(WAGERS, 0)
    assert naming(client, "leaver") == {b"{t1}:outbox"}
    assert reader.function.safe(place, Offset(9)) == 8, "a crash now has the erasure read again"
    if killed:
        reader.committed = Offset(8)
        reader.restart()
        reader.run()
    reader.tick()
    assert naming(client, "leaver") == set()
    assert reader.function.safe(place, Offset(9)) == 9
    told = len(ports.feed.changes)
    reader.entries = [*entries, played(9, "stayer", 50, after_ms=9_000)]
    reader.run()
    assert [one.sequence for one in ports.feed.changes[told:]] == [9], "nothing is told again"


def test_board_that_goes_on_hears_it_with_a_batch_and_holds_nothing_up(on_wager: Hosted) -> None:
    entries = [scheduled(0, **MONEY)]
    entries += [played(n, ("leaver", "stayer")[n % 2], 50, after_ms=n * 400) for n in range(1, 8)]
    entries += [erased(8, "leaver")]
    entries += [played(n, "stayer", 50, after_ms=n * 400) for n in range(9, 40)]
    reader = Reader(entries, maker(on_wager, memory_ports()), seed=1)
    reader.run()  # without a tick in between
    assert reader.function.safe(Place(WAGERS, 0), Offset(40)) == 40


def test_nor_where_detection_was_switched_off_meanwhile(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = [scheduled(0, **MONEY, fraud=SENSITIVE)]
    for offset in range(1, 60):
        player = ("leaver", "stayer")[offset % 2]
        entries.append(played(offset, player, 50, after_ms=offset * 400))
    ports = redis_ports(client)
    Reader(entries, maker(on_wager, ports), seed=1).run()
    assert b"leaver" in kept_in(client)

    def switched_off() -> Any:
        main = on_wager.main
        given = main.Ports(
            ports.board, ports.directory, ports.progress, ports.feed, ports.erasures,
            ports.record, ports.snapshots,
        )  # fmt: skip
        return main.OnWager(given, suspicions=main.Unsuspecting(ports.watches))

    told = len(ports.feed.alerts)
    entries += [played(60, "stayer", 50, after_ms=30_000)]
    Reader(entries, switched_off, seed=2).run()
    assert b"leaver" in kept_in(client), "nobody has asked to be forgotten"
    entries += [erased(61, "leaver"), played(62, "leaver", 50, after_ms=30_000)]
    entries += [played(63, "stayer", 50, after_ms=30_100)]
    Reader(entries, switched_off, seed=3).run()
    assert b"leaver" not in kept_in(client)
    entries += [played(64, "stayer", 50, after_ms=30_200)]
    Reader(entries, maker(on_wager, ports), seed=4).run()  # and on again
    assert b"stayer" in kept_in(client)
    assert b"leaver" not in kept_in(client)
    assert len(ports.feed.alerts) == told


def test_an_end_forgets_everybody_and_still_tells_nothing_twice(
    on_wager: Hosted, client: redis.Redis
) -> None:
    entries = [scheduled(0, **MONEY, fraud=SENSITIVE)]
    entries += [played(n, f"p{n % 3}", 50, after_ms=n * 100) for n in range(1, 40)]
    entries.append(ended(40))
    ports = redis_ports(client)
    reader = Reader(entries, maker(on_wager, ports), seed=1)
    reader.run()
    told = len(ports.feed.alerts)
    assert told
    assert b"p1" not in kept_in(client)
    reader.committed = None
    reader.restart()
    reader.run()
    assert len(ports.feed.alerts) == told


def test_little_is_held_at_a_time_and_the_rest_is_read_again(on_wager: Hosted) -> None:
    entries = mixed(6)
    ports = memory_ports()
    make = maker(on_wager, ports)

    def small() -> Any:
        function = make()
        function._suspicions._limit = 5
        return function

    reader = Reader(entries, small, seed=6)
    largest = 0
    while not reader.is_done():
        reader.step()
        largest = max(largest, len(reader.function._suspicions._held))
    assert largest < len(TOURNAMENTS)
    assert alerts(ports) == oracle_alerts(main_of(on_wager), entries)


def in_turns(names: Sequence[TournamentId], rounds: int, first: int = 0) -> list[LogEntry]:
    """A wager in each of these tournaments, again and again; places from `first` on."""
    plays = [scheduled(0, **MONEY, fraud=SENSITIVE)]
    plays += [played(n, f"p{n % 5}", 50, after_ms=n * 30_000) for n in range(1, rounds)]
    turns = [(name, play) for play in plays for name in names]
    return [moved_to(name, play, at) for at, (name, play) in enumerate(turns, first)]


def reads_where_half_fits(
    on_wager: Hosted, entries: Sequence[LogEntry], names: int
) -> list[TournamentId]:
    """Whose watches were read, and in the end all alerts are there."""
    ports = memory_ports()
    read = ports.watches.read
    reads: list[TournamentId] = []

    def counted(tournament_id: TournamentId) -> Any:
        reads.append(tournament_id)
        return read(tournament_id)

    ports.watches.read = counted  # type: ignore[method-assign]
    make = maker(on_wager, ports)

    def small() -> Any:
        function = make()
        function._suspicions._limit = 5 * names // 2
        return function

    reader = Reader(entries, small, seed=1)
    reader.run()
    assert len(reader.function._suspicions._held) < names
    assert alerts(ports) == oracle_alerts(main_of(on_wager), entries)
    return reads


def test_more_tournaments_than_fit_are_not_all_read_each_time(on_wager: Hosted) -> None:
    """Had the one to go been the one that was used longest ago, 483 of 720 would be read."""
    names = [TournamentId(f"t{number}") for number in range(12)]
    entries = in_turns(names, 60)
    reads = reads_where_half_fits(on_wager, entries, len(names))
    assert len(names) < len(reads) < 0.6 * len(entries)


def test_tournaments_in_which_nobody_plays_make_room(
    on_wager: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_of(on_wager), "PLAYED_TURNS", 4)
    before = [TournamentId(f"before{number}") for number in range(6)]
    now = [TournamentId(f"now{number}") for number in range(5)]
    entries = in_turns(before, 60)
    entries += in_turns(now, 60, first=len(entries))
    reads = reads_where_half_fits(on_wager, entries, 12)
    assert sum(name in now for name in reads) < 3 * len(now)


@pytest.mark.parametrize("wholes_after", [1, 20_000])
def test_what_is_kept_whole_and_what_is_kept_piece_by_piece_are_the_same(
    on_wager: Hosted, monkeypatch: pytest.MonkeyPatch, wholes_after: int
) -> None:
    monkeypatch.setattr(main_of(on_wager), "KEPT_WHOLE_AFTER", wholes_after)
    entries = mixed(7)
    ports = memory_ports()
    reader = Reader(entries, maker(on_wager, ports), seed=7)
    while not reader.is_done():
        reader.step()
        reader.restart()
        reader.step()
    assert alerts(ports) == oracle_alerts(main_of(on_wager), entries)


def test_alerts_say_what_is_wanted_of_them(on_wager: Hosted) -> None:
    entries = [scheduled(0, **MONEY, fraud={"velocity": {"wagers": 3}})]
    entries += [played(n, "fast", 50, after_ms=n * 1000) for n in range(1, 6)]
    ports = memory_ports()
    Reader(entries, maker(on_wager, ports), seed=1).run()
    (one,) = ports.feed.alerts
    assert isinstance(one.data, ev.FraudSuspected)
    assert (one.id, one.source, one.subject) == ("t1/4/velocity", "/leaderboard/on-wager", "fast")
    assert one.time_ms == START_MS + 4000
    assert one.data.evidence == {
        "wagers": 4, "within_seconds": 3.0, "limit": 3, "window_seconds": 60, "severity": 20.0,
        "sequence": 4, "cause": {"source": "/tests", "id": "e4"},
    }  # fmt: skip
