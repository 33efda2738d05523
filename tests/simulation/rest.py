"""What a world comes to when nothing goes wrong any more, and what has to be true of it then."""

from __future__ import annotations

import json
from typing import Any, Final

from leaderboard.adapters.sql_requests import SqlRequests
from leaderboard.audit_leaves import AUDITED
from leaderboard.events import WAGERS
from leaderboard.frames import top_frame
from leaderboard.model import BOARD_KEPT_MS, PlayerId, State, TournamentId
from leaderboard.ports import BoardView
from leaderboard.rebuild import ANY
from records import dump
from simulation.views import ALL
from simulation.world import FUNCTIONS_RUN, TOURNAMENTS, World

ROUND_SECONDS: Final = 2.0
QUIET_ROUNDS: Final = 5
"""Longer than any function leaves anything alone."""
ROUNDS: Final = 400
AT_ONCE: Final = 50
OVER: Final = (State.ENDED, State.CANCELLED)


def come_to_rest(world: World) -> None:
    """Everything is back, and everything is delivered, until nothing moves any more."""
    _heal(world)
    _deliver(world)
    for player_id in sorted(world.seen.accepted - world.to_repeat):
        _check_ended(world, PlayerId(player_id))
    if world.erased:
        # As the docs say: asked again after an error, and after tournaments were scheduled.
        for player_id in sorted(world.erased):
            assert world.erase(player_id)
        _deliver(world)


def _check_ended(world: World, player_id: PlayerId) -> None:
    """A request that is in the log ends by itself, whatever was lost meanwhile."""
    erasure_id = world.store.erasures.id_of(player_id)
    in_record, in_store = SqlRequests(world.engine), world.store.erasures.find(erasure_id)
    requested = in_record.find(erasure_id)
    assert requested is not None, f"the record knows no request of {player_id}"
    assert requested.player_id is None, f"the record has the request of {player_id} open"
    is_open = in_store is not None and in_store.player_id is not None
    assert not is_open, f"the store has the request of {player_id} open"


def _heal(world: World) -> None:
    world.effects.leave()
    world._away.clear()
    world.cluster.failing_commits = 0
    for name in FUNCTIONS_RUN:
        for process in world.processes[name]:
            process.consumer.learn()
        if not world.processes[name]:
            world.start(name)
    for socket in world.seen.sockets.values():
        socket.hears = True


def _deliver(world: World) -> None:
    quiet, last = 0, _state(world)
    for _ in range(ROUNDS):
        for name in FUNCTIONS_RUN:
            for index in range(len(world.processes[name])):
                world.turn(name, index, AT_ONCE)
        if world.erased:
            world.look_after()
        world.check()
        now = _state(world)
        quiet, last = (0 if now != last else quiet + 1), now
        if quiet == QUIET_ROUNDS:
            return
        world.clock.sleep(ROUND_SECONDS)
    raise AssertionError("it does not come to rest")


def _state(world: World) -> Any:
    ends = [log.end for log in world.cluster.logs.values()]
    committed = [dict(world.cluster.group(name).committed) for name in FUNCTIONS_RUN]
    boards = [world.store.board.top(name, ALL) for name in TOURNAMENTS]
    return ends, committed, boards, dict(world.seen.shown)


def check_at_rest(world: World) -> None:
    """All views of every tournament say the same, and that is what the log says."""
    for name in FUNCTIONS_RUN:
        for place, log in world.cluster.logs.items():
            if place in world.processes[name][0].consumer.all_places() and log.end:
                assert world.cluster.committed(name, place) == log.end, f"{name} is not done"
    for tournament_id in TOURNAMENTS:
        _check_tournament(world, tournament_id)
    for place, log in world.cluster.logs.items():
        if place.topic in AUDITED:
            signed = [leaf.offset for leaf in world.logs.leaves(place)]
            wanted = world.dropped[place] + [one.offset for one in log.records]
            assert signed == wanted, f"the audit log of {place} is not whole"
    for place in (p for p in world.cluster.logs if p.topic == WAGERS):
        due = world.seen.due_letters(place)
        assert due.items() <= world.seen.letters.items(), "a dead letter is missing"
    assert world.seen.surplus == {}, "something was refused that counts"
    for socket in world.seen.sockets.values():
        _check_socket(world, socket)
    _check_erased(world)


def _check_tournament(world: World, name: TournamentId) -> None:
    expected = world.oracle.last.get(name)
    board, record = world.store.board.top(name, ALL), world.record.top(name, ALL)
    assert record == expected, f"the record of {name} differs"
    if board is None and expected is not None:
        assert _is_let_go(world, name, expected), f"the board of {name} is gone"
    else:
        assert board == expected, f"the board of {name} differs"
    missing = world.seen.has_all_below(world.place_of(name), ANY)
    assert missing is None, f"{missing} are missing"
    shown = world.seen.kept.get(f"top.{name}")
    if board is not None:
        assert shown is not None, f"{name} was never shown"
        if board.terms.state in OVER:
            # Nobody watches it any more: an erasure that hides no row of it is not shown.
            shown = {**_frame(board), "standings": shown["standings"], "players": shown["players"]}
        assert shown == _frame(board), f"the last frame of {name} is not its board"
        found = world.store.directory.find(name)
        assert found is not None, f"{name} is not in the list"
        assert found.terms == board.terms, f"{name} is in the list as it was"
    elif shown is not None:
        erased = world.oracle.erased[name] & {row[1] for row in shown["standings"]}
        assert not erased, f"the last frame of {name} shows who was erased"


def _frame(view: BoardView) -> Any:
    return json.loads(top_frame(view).body)


def _is_let_go(world: World, name: TournamentId, expected: BoardView) -> bool:
    """Over for so long that the record alone answers."""
    partition = world.place_of(name).partition
    ledgers = {one.tournament_id: one for one in world.archive.ledgers(partition)}
    # Those that were confirmed long ago are not told of any more.
    confirmed = ledgers[name].confirmed_at_ms if name in ledgers else 0
    is_old = confirmed is not None and confirmed + BOARD_KEPT_MS <= world.clock.now_ms()
    return expected.terms.state in OVER and is_old


def _check_socket(world: World, socket: Any) -> None:
    board = world.store.board.top(socket.tournament_id, ALL)
    if board is not None and board.terms.state not in OVER:
        assert socket.top == _frame(board), "a page is not level"
    if not socket.is_whole:
        return
    own = [
        change
        for change in world.oracle.changes[socket.tournament_id][socket.opened_at :]
        if change[0] == socket.player_id
    ]
    if own:
        assert socket.position is not None, "a player was not told"
        assert socket.position["sequence"] == own[-1][1], "a player was not told the last of it"


def _check_erased(world: World) -> None:
    """No board, no row of the record and no frame knows who was erased."""
    rows = dump(world.engine)
    for player_id in world.erased:
        assert world.store.erasures.is_erased(PlayerId(player_id))
        for name in TOURNAMENTS:
            board = world.store.board.top(name, ALL)
            assert board is None or player_id not in [one.player_id for one in board.standings]
        for table, found in rows.items():
            for row in found:
                assert not _names(row, player_id), f"{table} knows {player_id}: {row}"


def _names(row: tuple[object, ...], player_id: str) -> bool:
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in row]
    return any(player_id == text or f'"{player_id}"' in text for text in texts)
