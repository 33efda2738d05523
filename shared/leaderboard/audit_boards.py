"""Boards against the audit log: what players see is what the log's inputs come to.

A board plays on while it is read. So each page is compared with the fold at the page's own
sequence, when the fold comes by there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from leaderboard.audit_accounts import Fault, Report, unlike_terms
from leaderboard.audit_replay import OVER, Refolded, name_when_erased
from leaderboard.fold import Row, Terms
from leaderboard.model import ERASED, Offset, PlayerId, Score, Standing, TournamentId
from leaderboard.ports import Board, PlayerRow
from leaderboard.record_ports import Witness

PAGE: Final = 5_000
"""Ranks that a board is asked for at once: some ten milliseconds of the store's time."""


class Page(NamedTuple):
    """Some ranks of a board as it stood at one sequence, and those players' own rows at another."""

    sequence: Offset
    terms: Terms
    players: int
    after_rank: int
    standings: Sequence[Standing]
    rows_sequence: Offset
    rows: Sequence[PlayerRow | None]


def pages_of(board: Board, tournament_id: TournamentId) -> list[Page]:
    """All of a board, each page at its own sequence: it may be playing. Empty where there is none.

    Raises TransientError."""
    pages: list[Page] = []
    after = 0
    while (view := board.top(tournament_id, PAGE, after)) is not None:
        found = board.rows(tournament_id, [one.player_id for one in view.standings])
        if found is None:
            return []
        pages.append(Page(view.sequence, view.terms, view.players, after, view.standings, *found))
        after += PAGE
        if after >= view.players:
            return pages
    return []


class BoardCheck:
    """Boards in Redis against the fold, each page when the fold is where the board was."""

    def __init__(
        self,
        pages: Mapping[TournamentId, Sequence[Page]],
        witness: Witness | None,
        report: Report,
    ) -> None:
        self._pages = pages
        self._witness = witness
        self._report = report
        self._erased: dict[tuple[TournamentId, PlayerId], PlayerId] = {}
        """Erased players of a board, as the fold has named them."""
        self._waiting = {name: _looks(found) for name, found in pages.items()}
        self._next = {name: looks[0][0] for name, looks in self._waiting.items() if looks}
        self._faulty: set[TournamentId] = set()
        self.equal = 0

    def take(self, refolded: Refolded, offset: Offset) -> None:
        """The fold has taken the tournament's event at `offset`."""
        name = refolded.tournament_id
        if (at := self._next.get(name)) is None or offset < at:
            return
        looks = self._waiting[name]
        while looks and looks[0][0] <= offset:
            sequence, page, is_rows = looks.pop(0)
            if sequence != offset or refolded.standings.sequence != offset:
                self._fault(name, f"stands at {sequence}, where nothing changed in the log")
            elif is_rows:
                self._compare_rows(refolded, page)
            else:
                self._compare_page(refolded, page)
        if looks:
            self._next[name] = looks[0][0]
        else:
            del self._next[name]

    def finish(self, tournaments: Mapping[TournamentId, Refolded]) -> None:
        """The log has no more for these."""
        for name, refolded in tournaments.items():
            if name in self._next:
                self._fault(name, f"stands at {self._next[name]}, the log at {refolded.offset}")
            elif self._pages.get(name):
                self.equal += name not in self._faulty
            elif name in self._pages and refolded.terms.state not in OVER:
                self._fault(name, "is missing, and the tournament is not over")

    def _compare_page(self, refolded: Refolded, page: Page) -> None:
        name, standings = refolded.tournament_id, refolded.standings
        for what in unlike_terms(page.terms, refolded.terms):
            self._fault(name, what)
        if page.players != len(standings):
            self._fault(name, f"has {page.players} players, by the log {len(standings)}")
        mine = standings.page(page.after_rank, PAGE)
        for one, wanted in zip(page.standings, mine, strict=False):
            if not self._is_one(name, one.player_id, wanted.player_id):
                told = f"{one.player_id} with {one.score.score}"
                by_log = f"another player with {wanted.score.score}"
                self._fault(name, f"rank {wanted.rank}: {told}, by the log {by_log}")
                return
            if one.score != wanted.score:
                told = f"{one.player_id} with {_shown(one.score)}"
                self._fault(name, f"rank {wanted.rank}: {told}, by the log {_shown(wanted.score)}")
                return
        if len(page.standings) != len(mine):
            at = page.after_rank + min(len(page.standings), len(mine)) + 1
            whose = "board" if len(page.standings) < len(mine) else "log"
            self._fault(name, f"rank {at}: nobody is there in the {whose}")

    def _is_one(self, name: TournamentId, player_id: PlayerId, wanted: PlayerId) -> bool:
        key = None if self._witness is None else self._witness.key_of(name, player_id)
        if key is not None:
            return wanted in (key.pseudonym, name_when_erased(key.pseudonym))
        if not (player_id.startswith(ERASED) and wanted.startswith(ERASED)):
            return False
        return self._erased.setdefault((name, player_id), wanted) == wanted

    def _compare_rows(self, refolded: Refolded, page: Page) -> None:
        """The rows by player: from these the next events go on."""
        name = refolded.tournament_id
        for one, row in zip(page.standings, page.rows, strict=True):
            mine = self._row(refolded, one.player_id)
            found = None if row is None else (row.score, row.reached)
            wanted = None if mine is None else (mine.score, mine.reached)
            if found != wanted:
                told = f"the row of {one.player_id} (rank {one.rank}) is {_told(found)}"
                self._fault(name, f"{told}, by the log {_told(wanted)}")
                return

    def _row(self, refolded: Refolded, player_id: PlayerId) -> Row | None:
        name = refolded.tournament_id
        key = None if self._witness is None else self._witness.key_of(name, player_id)
        if key is None:
            fold_name = self._erased.get((name, player_id))
            return None if fold_name is None else refolded.standings.row(fold_name)
        pseudonym = PlayerId(key.pseudonym)
        row = refolded.standings.row(pseudonym)
        return row or refolded.standings.row(name_when_erased(pseudonym))

    def _fault(self, name: TournamentId, what: str) -> None:
        self._faulty.add(name)
        self._report(Fault(f"board of {name}", what))


def _looks(pages: Sequence[Page]) -> list[tuple[Offset, Page, bool]]:
    """At which sequences to look at what, in order; the standings of a page before its rows."""
    found = [(page.sequence, page, False) for page in pages]
    found += [(page.rows_sequence, page, True) for page in pages]
    return sorted(found, key=lambda look: (look[0], look[2]))


def _shown(score: Score) -> str:
    return f"{score.score}/{score.subscore}" if score.subscore else str(score.score)


def _told(row: tuple[Score, Offset] | None) -> str:
    return "not there" if row is None else f"{_shown(row[0])} since {row[1]}"
