"""The audit log folded again: from the leaves of `wagers`, and nothing else.

Leaves name players by pseudonyms and events by keyed hashes. Neither matters to the fold: ranks do
not depend on who a player is, and repetitions are known by ids being equal. So who holds the log
alone comes to every verdict, every position change and every board; who holds the record as well
can compare them row by row.

No clock, no chance, no key.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from leaderboard.audit_leaves import NOBODY, Leaf, LeafError
from leaderboard.errors import Refusal
from leaderboard.fold import (
    Join,
    LogEntry,
    RemovalReason,
    Remove,
    Row,
    SeenIds,
    Standings,
    Terms,
    decide,
)
from leaderboard.model import (
    REMEMBERED_IDS,
    Disposition,
    Offset,
    Place,
    PlayerId,
    PositionChange,
    State,
    TournamentId,
    erased_name,
)
from leaderboard.ports import PlayerRow

OVER: Final = (State.ENDED, State.CANCELLED)


def mark_of(pseudonym: str) -> bytes:
    """What keeps a player out here; the board's own mark is keyed, and nobody else can tell it."""
    return blake2b(pseudonym.encode(), digest_size=16).digest()


def name_when_erased(pseudonym: str) -> PlayerId:
    """Under which name the row of an erased player stands in a `Refolded` that is over."""
    return erased_name(mark_of(pseudonym))


@dataclass(slots=True)
class Refolded:
    """One tournament as the leaves so far leave it. Players are pseudonyms."""

    tournament_id: TournamentId
    place: Place
    terms: Terms
    standings: Standings
    offset: Offset
    revisions: list[Terms]
    over_at_ms: int | None = None
    ids_applied: int = 0
    """Applied events that go by id."""
    producers: set[str] = field(default_factory=set)
    """Sources that go by their numbers."""
    joined: dict[PlayerId, Offset] = field(default_factory=dict)
    """Offset of each player's first join."""
    out: dict[PlayerId, tuple[Offset, RemovalReason]] = field(default_factory=dict)
    """Offset of each player's first removal, and the reason that counts now."""
    out_first: dict[PlayerId, Offset] = field(default_factory=dict)
    erasures: list[tuple[Offset, int]] = field(default_factory=list)
    """Offset and event time of each one applied."""

    def rows(self) -> list[PlayerRow]:
        """The whole board, the first rank first."""
        found = []
        for standing in self.standings.page(0, len(self.standings)):
            row = self.standings.row(standing.player_id)
            if row is None:
                raise AssertionError("who is ranked has a row")
            found.append(PlayerRow(standing.player_id, row.score, row.reached))
        return found

    def is_erased(self, player: PlayerId) -> bool:
        known = self.out.get(player)
        return known is not None and known[1] is RemovalReason.ERASED


class Step(NamedTuple):
    """What one leaf of `wagers` did."""

    leaf: Leaf
    tournament: Refolded | None
    """None where the event belonged to none that the log had scheduled."""
    verdict: Disposition | Refusal
    is_action: bool = False
    """Whether it asked something of a player's row, and so has a place among the known ids."""
    change: PositionChange | None = None
    touched: bool = False
    """Whether it changed the player's row."""
    before: Row | None = None
    """The row before, where it was touched."""
    ordinal: int | None = None
    """Its place among the applied events that go by id."""


class Replay:
    """Folds leaves of `wagers` of any number of partitions, each in the order of its offsets.

    `remembered_ids` must be that of the boards."""

    def __init__(self, remembered_ids: int = REMEMBERED_IDS) -> None:
        self._remembered_ids = remembered_ids
        self.tournaments: dict[TournamentId, Refolded] = {}

    def take(self, leaf: Leaf) -> Step:
        """Fold one leaf. Raises LeafError for one that says no event of its type."""
        entry = leaf.entry()
        if entry is None:
            return Step(leaf, None, Refusal(leaf.refused or Refusal.SCHEMA))
        if leaf.tournament_id is None:
            raise LeafError(f"{leaf.place}/{leaf.offset} names no tournament")
        known = self.tournaments.get(leaf.tournament_id)
        if known is not None:
            return self._step(known, leaf, entry)
        terms = decide(None, entry).terms
        if terms is None:
            return Step(leaf, None, Refusal.UNKNOWN_TOURNAMENT)
        return Step(leaf, self._begin(leaf, terms), Disposition.APPLIED)

    def _begin(self, leaf: Leaf, terms: Terms) -> Refolded:
        if leaf.tournament_id is None:
            raise AssertionError("looked at before")
        standings = Standings(leaf.tournament_id, mark_of, self._remembered_ids)
        # Whoever has no pseudonym left was erased before: nothing of theirs counts again.
        gone = {mark_of(NOBODY): RemovalReason.ERASED}
        seen = SeenIds(self._remembered_ids)
        standings.take_over(terms.rules.order, leaf.offset, {}, {}, gone, seen)
        begun = Refolded(leaf.tournament_id, leaf.place, terms, standings, leaf.offset, [terms])
        self.tournaments[leaf.tournament_id] = begun
        return begun

    def _step(self, known: Refolded, leaf: Leaf, entry: LogEntry) -> Step:
        if leaf.place != known.place:
            raise LeafError(f"{known.tournament_id} lies in {known.place}, and in {leaf.place}")
        terms, verdict = decide(known.terms, entry)
        if terms is not None and terms is not known.terms:
            if terms.state in OVER and known.terms.state not in OVER:
                known.over_at_ms = leaf.time_ms
            known.terms = terms
            known.revisions.append(terms)
            known.standings.changed_terms(entry.offset)
        known.offset = entry.offset
        if isinstance(verdict, Disposition | Refusal):
            return Step(leaf, known, verdict)
        player_id = verdict.player_id
        before = known.standings.row(player_id)
        applied = known.standings.apply(known.terms.rules, entry, verdict)
        if applied.verdict is not Disposition.APPLIED:
            return Step(leaf, known, applied.verdict, is_action=True)
        ordinal = self._ordinal(known, leaf)
        touched = known.standings.row(player_id) is not before
        if isinstance(verdict, Remove):
            touched = touched and not verdict.keep_row
            self._put_out(known, leaf, verdict)
        elif isinstance(verdict, Join):
            known.joined.setdefault(player_id, leaf.offset)
        return Step(
            leaf, known, Disposition.APPLIED, True, applied.change,
            touched, before if touched else None, ordinal,
        )  # fmt: skip

    def _ordinal(self, known: Refolded, leaf: Leaf) -> int | None:
        """As `fold.SeenIds` puts ids down."""
        if leaf.number is not None:
            if leaf.source in known.producers:
                return None
            if len(known.producers) < self._remembered_ids:
                known.producers.add(leaf.source)
                return None
        known.ids_applied += 1
        return known.ids_applied - 1

    @staticmethod
    def _put_out(known: Refolded, leaf: Leaf, action: Remove) -> None:
        if leaf.kind == "player.erased":
            known.erasures.append((leaf.offset, leaf.time_ms))
        if leaf.player is None:
            return
        known.out_first.setdefault(leaf.player, leaf.offset)
        before = known.out.get(leaf.player)
        if before is None or (
            before[1] is not action.reason and before[1] is not RemovalReason.ERASED
        ):
            known.out[leaf.player] = (leaf.offset, action.reason)


# --- position changes -----------------------------------------------------------------------------


def change_of(step: Step) -> dict[str, Any] | None:
    """What a leaf of `position-changes` has to say of a step; None where nobody could see it.

    All but its own place in the log, the time at which Kafka took it, and its commitment: they
    can't be derived, and are checked by the tree alone. Its id is `id`, made of the change's own:
    see `audit_leaves.LogKeys.id_of`."""
    change = step.change
    if change is None:
        return None
    data: dict[str, Any] = {
        "cause": {"id": step.leaf.id, "source": step.leaf.source},
        "distance": change.distance,
        "new_rank": change.new_rank,
        "old_rank": change.old_rank,
        "score": change.score.score,
        "sequence": change.sequence,
    }
    if change.score.subscore:
        data["subscore"] = change.score.subscore
    return {
        "data": data,
        "player": change.player_id,
        "time_ms": change.time_ms,
        "tournament": change.tournament_id,
    }


def said_by(leaf: Leaf) -> dict[str, Any]:
    """The same of a leaf that is there."""
    return {
        "data": leaf.data,
        "player": leaf.player,
        "time_ms": leaf.time_ms,
        "tournament": leaf.tournament_id,
    }


class Told:
    """Which changes of one tournament the log has told, each once: 48 bytes for each, so that what
    is told again, however late, and the record's own rows can be compared with them."""

    def __init__(self) -> None:
        self._sequences = array("q")
        self._players = array("l")
        self._numbers: dict[PlayerId, int] = {}
        self._names: list[PlayerId] = []
        self._ids = bytearray()
        self._bodies = bytearray()

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def last(self) -> int:
        """The last sequence told; -1 before the first."""
        return self._sequences[-1] if self._sequences else -1

    def add(self, sequence: int, player: PlayerId, cause_id: str, body: tuple[Any, ...]) -> None:
        """The next one. `body` is all but player and cause."""
        number = self._numbers.setdefault(player, len(self._names))
        if number == len(self._names):
            self._names.append(player)
        self._sequences.append(sequence)
        self._players.append(number)
        self._ids += _digest(cause_id)
        self._bodies += _digest(body)

    def at(self, index: int) -> tuple[int, PlayerId, bytes, bytes]:
        """Sequence, player, digest of the cause's id, digest of the body."""
        some = slice(16 * index, 16 * index + 16)
        player = self._names[self._players[index]]
        return self._sequences[index], player, bytes(self._ids[some]), bytes(self._bodies[some])

    def find(self, sequence: int) -> tuple[int, PlayerId, bytes, bytes] | None:
        index = bisect_left(self._sequences, sequence)
        if index == len(self) or self._sequences[index] != sequence:
            return None
        return self.at(index)


def entry_of(
    data: Mapping[str, Any], player: PlayerId, time_ms: int
) -> tuple[int, PlayerId, bytes, bytes]:
    """A change as `Told.at` has it."""
    body = body_of(data, time_ms)
    return data["sequence"], player, _digest(data["cause"]["id"]), _digest(body)


def body_of(data: Mapping[str, Any], time_ms: int) -> tuple[Any, ...]:
    """All of a change but player and cause's id, in a fixed order."""
    return (
        data["sequence"], data["old_rank"], data["new_rank"], data["score"],
        data.get("subscore") or 0, data["distance"], data["cause"]["source"], time_ms,
    )  # fmt: skip


def _digest(value: object) -> bytes:
    return blake2b(repr(value).encode(), digest_size=16).digest()
