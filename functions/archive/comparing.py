"""Record and boards are two witnesses of one log: this compares them, a bounded piece at a time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from leaderboard import telemetry
from leaderboard.errors import TransientError
from leaderboard.model import BOARD_KEPT_MS, ERASED, Offset, TournamentId
from leaderboard.ports import Board, Directory, PlayerRow, Progress
from leaderboard.record_ports import Archive, Ledger, LedgerPage

LOOK_SECONDS = 1.0
"""How often a piece of a live tournament is compared with its board."""
LIVE_PIECE = 1_000
FINAL_LOOK_SECONDS = 0.1
FINAL_PIECE = 5_000
logger = logging.getLogger("archive")


@dataclass(slots=True)
class _Pass:
    """One tournament being compared: where it goes on, and what has to be looked at again."""

    ledger: Ledger
    partition: int
    after: int = -1
    is_clean: bool = True
    suspected: bool = False
    """The piece differed, and is being looked at again."""


class StandingCheck:
    """Compares record and boards, one bounded piece at a time. `clock` counts seconds.

    Board and record are never at rest, so a row is compared by the sequence at which it was
    reached: what one of the two can't know yet is no difference. One that is still there when
    the same piece is looked at again is, and an operator has to know."""

    def __init__(
        self,
        archive: Archive,
        board: Board,
        directory: Directory,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._archive = archive
        self._board = board
        self._directory = directory
        self._progress = progress
        self._clock = clock
        self._now_ms = now_ms
        self._next_at = -math.inf
        self._waiting: list[_Pass] = []

    def look(self, owned: dict[int, str]) -> float:
        """Compare the next piece, when it is time; the seconds until the next one."""
        now = self._clock()
        if now < self._next_at:
            return self._next_at - now
        wait = LOOK_SECONDS
        try:
            wait = self._look(owned)
        except TransientError as error:
            logger.warning("can't compare now", extra=telemetry.fields(error=str(error)))
        self._next_at = self._clock() + wait
        return wait

    def _look(self, owned: dict[int, str]) -> float:
        if not self._waiting:
            self._waiting = [
                _Pass(ledger, partition)
                for partition in owned
                for ledger in self._archive.ledgers(partition)
            ]
        while self._waiting:
            current = self._waiting[0]
            log_id = owned.get(current.partition)
            if log_id is None:
                self._waiting.pop(0)
            elif current.ledger.confirmed_at_ms is not None:
                self._let_go(current, log_id)
                self._waiting.pop(0)
            else:
                return self._compare_piece(current, log_id)
        return LOOK_SECONDS

    def _compare_piece(self, current: _Pass, log_id: str) -> float:
        ledger = current.ledger
        limit = FINAL_PIECE if ledger.is_over else LIVE_PIECE
        page = self._archive.page(ledger.tournament_id, current.after, limit)
        if page is None:
            self._waiting.pop(0)
            return LOOK_SECONDS
        found = self._board.rows(ledger.tournament_id, [row.player_id for row in page.rows])
        if found is None:
            # Being rebuilt, or not there yet.
            self._waiting.pop(0)
            return LOOK_SECONDS
        board_sequence, theirs = found
        differing = sum(
            differs(mine, other, page.sequence, board_sequence)
            for mine, other in zip(page.rows, theirs, strict=True)
        )
        if differing:
            current.is_clean = False
            if not current.suspected:
                current.suspected = True
                return FINAL_LOOK_SECONDS
            alarm("board and record differ", ledger, differing, board_sequence, page.sequence)
        current.suspected = False
        telemetry.RECORD_COMPARED.inc(len(page.rows))
        if board_sequence != page.sequence:
            current.is_clean = False
        if page.last is not None:
            current.after = page.last
            return FINAL_LOOK_SECONDS if ledger.is_over else LOOK_SECONDS
        self._waiting.pop(0)
        if self._counts_agree(ledger, page) and ledger.is_over and current.is_clean:
            self._confirm(current, log_id, page.sequence)
        return LOOK_SECONDS

    def _counts_agree(self, ledger: Ledger, page: LedgerPage) -> bool:
        """Every row of the record is on the board; with as many there, the two are equal. False
        also where it can't be told, because one of the two is further."""
        view = self._board.top(ledger.tournament_id, 1)
        if view is None or view.sequence != page.sequence:
            return False
        if view.players == page.players:
            return True
        differing = abs(view.players - (page.players or 0))
        alarm(
            "board and record differ in the number of players",
            ledger,
            differing,
            view.sequence,
            page.sequence,
        )
        return False

    def _confirm(self, current: _Pass, log_id: str, sequence: Offset) -> None:
        tournament_id = current.ledger.tournament_id
        at_ms = self._archive.confirm(tournament_id, sequence)
        if at_ms is None:
            return
        logger.info("confirmed", extra=telemetry.fields(tournament=tournament_id))
        self._board.expire(tournament_id, sequence, at_ms + BOARD_KEPT_MS)
        self._progress.forget(log_id, current.partition, [tournament_id])

    def _let_go(self, current: _Pass, log_id: str) -> None:
        """Again for each that was confirmed: a board that was rebuilt since has no end yet."""
        ledger = current.ledger
        if ledger.confirmed_at_ms is None:
            return
        ends_ms = ledger.confirmed_at_ms + BOARD_KEPT_MS
        tournament_id: TournamentId = ledger.tournament_id
        self._board.expire(tournament_id, ledger.sequence, ends_ms)
        self._progress.forget(log_id, current.partition, [tournament_id])
        if self._now_ms() >= ends_ms:
            self._directory.remove(tournament_id)


def alarm(what: str, ledger: Ledger, players: int, board: Offset, record: Offset) -> None:
    """An operator has to know: one of the two witnesses is wrong."""
    telemetry.RECORD_DIFFERENCES.inc(players)
    logger.error(
        what,
        extra=telemetry.fields(
            tournament=ledger.tournament_id, players=players, board=board, record=record
        ),
    )


def differs(
    mine: PlayerRow, theirs: PlayerRow | None, sequence: Offset, board_sequence: Offset
) -> bool:
    """Whether a row of the record and one of the board contradict each other.

    `sequence` is what the record has come to, `board_sequence` what the board has."""
    if theirs is None:
        if board_sequence < sequence and mine.player_id.startswith(ERASED):
            # Erased after the end: a board that has not come to that shows the player's name.
            return False
        # A board that is further may have lost the player; one that is not has to have them.
        return board_sequence <= sequence and mine.reached <= board_sequence
    if mine.reached == theirs.reached:
        return mine.score != theirs.score
    newer, other = (mine.reached, board_sequence)
    if theirs.reached > mine.reached:
        newer, other = (theirs.reached, sequence)
    return newer <= other
