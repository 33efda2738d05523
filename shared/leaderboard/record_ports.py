"""What the record is asked for and given, as roles beside those of `ports`, with the same rules:
calls block, are safe to repeat, and raise TransientError when the database is away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from leaderboard.audit_leaves import PlayerKey, Who
from leaderboard.errors import Refusal
from leaderboard.events import Record as EventRecord
from leaderboard.fold import LogEntry, Terms
from leaderboard.model import Disposition, Offset, Place, PlayerId, Score, State, TournamentId
from leaderboard.ports import BoardView, PlayerRow, Snapshot, Summary


class Member(NamedTuple):
    """What is known of a player in a tournament. Not whether they were erased: only who holds the
    tombstone key could tell, by their id."""

    has_joined: bool
    is_disqualified: bool


class Record(Protocol):
    """The record's answers, the same that a board gives, at the sequence that it has reached."""

    def find(self, tournament_id: TournamentId) -> Summary | None:
        """One tournament, None where the record knows none (yet)."""

    def all(self, state: State | None = None) -> Sequence[Summary]:
        """Every tournament there ever was, in order of start and id."""

    def sequences(self, tournaments: Sequence[TournamentId]) -> Mapping[TournamentId, Offset]:
        """The sequence that each has reached, those left out that it does not know."""

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        """As `Board.top`."""

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        """As `Board.player`."""

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        """As `Board.around`."""

    def member(self, tournament_id: TournamentId, player_id: PlayerId) -> Member:
        """What it has of the player there; nothing of who or what it does not know (yet)."""

    def tournaments_of(self, player_id: PlayerId) -> Sequence[TournamentId]:
        """Every tournament that knows the player."""

    def is_forgotten(self, erasure_id: str) -> bool:
        """Whether the player behind this request was forgotten: the record has read of it."""

    def pseudonyms(self, erasure_id: str) -> Mapping[TournamentId, bool]:
        """Where the player behind this request has a pseudonym in the audit log, or had one; True
        where the key behind it was destroyed. The empty id stands for their connections."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A request to forget, as the log has it."""

    erasure_id: str
    requested_at_ms: int
    player_id: PlayerId | None
    """None as soon as every place is done."""
    done_at_ms: Mapping[str, int]
    """When each place was done; nothing before all are."""


class Requests(Protocol):
    """Requests to forget that the log has, until they are done: a store that was emptied does not
    end them. `Archive.forget` puts them down."""

    def pending(self, limit: int) -> Sequence[Requested]:
        """The oldest of those that are not done."""

    def find(self, erasure_id: str) -> Requested | None:
        """The request of this id; None where the log has not told of it (yet)."""

    def applied_in(self, erasure_id: str) -> Sequence[TournamentId]:
        """The tournaments that have forgotten the player by this request."""

    def reopen(self, erasure_id: str, player_id: PlayerId) -> None:
        """It was done and is asked again, and there is something to do: keep whom it is about."""

    def close(self, erasure_id: str, done_at_ms: Mapping[str, int], now_ms: int) -> bool:
        """Every place is done: forget whom it is about. Harmless again: the first time counts.
        False where it is not known, so that it could still come."""


@dataclass(frozen=True, slots=True)
class Held:
    """Some of what is held on a player: things of the contract's words, as JSON can say them."""

    things: Sequence[Mapping[str, Any]]
    """Each with its `kind`; without regard to how many there are, one page costs about the same."""
    after: str | None
    """What to go on behind; None: these were the last. A page may be empty and not the last."""


class Holdings(Protocol):
    """Everything that the record holds on a player, for the player."""

    def page(self, player_id: PlayerId, after: str | None, limit: int) -> Held:
        """Up to `limit` things behind `after`. Raises ValueError for what is no place to go on."""


class Input(NamedTuple):
    """An event at its place in the log, with its data as they came (JSON text)."""

    entry: LogEntry
    body: str


class Folded(NamedTuple):
    """What became of a batch in the record."""

    verdicts: Sequence[Disposition | Refusal]
    """Aligned with the inputs."""
    repeats: int
    """How many were applied although an event of the same source and id had been before: ids
    are remembered for a while only, and the record alone sees what outlives that."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the record has of a tournament that has a board, to be compared with it."""

    tournament_id: TournamentId
    sequence: Offset
    players: int
    is_over: bool
    confirmed_at_ms: int | None
    """When record and board were found equal after the end; None: not yet."""


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """Some of a tournament's rows in the record, at one sequence."""

    sequence: Offset
    rows: Sequence[PlayerRow]
    last: int | None
    """What to go on behind; None: these were the last."""
    players: int | None
    """With the last rows: how many there are, counted."""


class Archive(Protocol):
    """The record's writer. Each batch is one transaction with the offset that it reaches: what is
    given again is skipped, and of two owners of a partition one finds it taken. Whoever was
    forgotten, before or at the same moment, is named by nothing that is kept.

    The writing methods raise ForeignLogError for a batch of another log than before."""

    def reached(self, place: Place, log_id: str) -> Offset | None:
        """Everything below this offset is in the record; None: nothing of this place yet."""

    def fold(
        self, place: Place, log_id: str, batch: Sequence[Input], next_offset: Offset
    ) -> Folded:
        """Take in inputs of `wagers`, in log order."""

    def keep_changes(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        """Keep position changes, each sequence of a tournament once; how many were new."""

    def keep_alerts(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        """Keep suspicions, each id once, and what was decided about them; how many were new."""

    def keep_attempts(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        """Keep who asked for a socket; how many were new."""

    def keep_dead_letters(
        self, place: Place, log_id: str, records: Sequence[EventRecord], next_offset: Offset
    ) -> int:
        """Keep records of a dead-letter topic as they came; how many were new."""

    def forget(
        self, place: Place, log_id: str, entries: Sequence[LogEntry], next_offset: Offset
    ) -> int:
        """Forget erased players in what stands beside the tournaments; how many were new."""

    def ledgers(self, partition: int) -> Sequence[Ledger]:
        """The tournaments of a partition of `wagers` that have a board, or had one lately."""

    def page(self, tournament_id: TournamentId, after: int, limit: int) -> LedgerPage | None:
        """Rows in a fixed order: those behind `after` (-1: from the start). None where the record
        does not know the tournament any more (it was set back, or its retention is over)."""

    def confirm(self, tournament_id: TournamentId, sequence: Offset) -> int | None:
        """Put down that board and record were found equal at `sequence`, after the end; when that
        was. None where the record does not stand there any more."""


class Known(NamedTuple):
    """What the keys of the audit log say of one player in one tournament."""

    key: PlayerKey | None
    """None: destroyed, or never to be drawn."""
    ended: Offset | None
    """Of the player's erasure in `wagers`: behind it they are nobody."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An erasure whose key exists still."""

    tournament_id: TournamentId
    erasure_id: str
    offset: Offset
    """Of the erasure in `wagers`."""
    changes: Place | None
    """Where the position changes up to the erasure lie; None: not all of them are known to be
    there yet."""
    changes_until: Offset
    """They lie below this offset there."""


class Head(NamedTuple):
    """How far one shard of the audit log is: tree size, root (hex), and the offset behind its last
    leaf."""

    origin: str
    place: Place
    size: int
    root: str
    next_offset: Offset


class Pseudonyms(Protocol):
    """The keys behind the players of the audit log. A key is drawn once, when a player is first
    met, and is the same for everybody from then on; one that was destroyed never comes back."""

    def of(self, wanted: Collection[Who], *, of_wagers: bool) -> Mapping[Who, Known]:
        """The keys of these players, drawn where there are none. None is drawn for who is
        erased, nor (`of_wagers`) for a tournament that the record does not know."""

    def end(self, partition: int, erased: Mapping[Who, Offset]) -> Mapping[Who, Offset]:
        """Put down erasures, by their offsets in this partition of `wagers`; where the players'
        ends are. The first erasure of a player counts. Tournaments that the record does not
        know have none."""

    def endings(self, partition: int, limit: int) -> Sequence[Ending]:
        """Erasures of a partition of `wagers` whose keys exist still, the oldest first."""

    def wait_for(self, endings: Sequence[Ending]) -> None:
        """Put down up to where the changes of these lie, as they say it themselves."""

    def destroy(self, endings: Sequence[Ending]) -> None:
        """Destroy these keys."""

    def destroy_beside(self, players: Collection[PlayerId]) -> None:
        """Destroy the keys that these players have beside all tournaments."""

    def heads(self, places: Collection[Place]) -> Sequence[Head]:
        """The shards' heads as they were put down last, of whatever origin."""

    def put_heads(self, heads: Sequence[Head]) -> None:
        """Put down how far shards are; a head that is smaller than a known one changes nothing."""


class Snapshots(Protocol):
    """What lost boards are made from: the record, as it stood at any offset it has passed."""

    def reached(self, log_id: str, partition: int) -> Offset | None:
        """Everything below this offset is in the record; None where it knows nothing of the
        log. Raises ForeignLogError where it holds another one."""

    def expected(
        self, partition: int, before: Offset, *, quiet_only: bool = False
    ) -> Mapping[TournamentId, Offset]:
        """Which tournaments have to have a board, and how far it has to be at least: the offset
        of the last event below `before`. `quiet_only`: those without an event from there on,
        which costs one look at each instead of a search."""

    def taken(
        self, tournament_id: TournamentId, before: Offset
    ) -> AbstractContextManager[Snapshot | None]:
        """The tournament after every event below `before`, for as long as the context is open;
        None where it did not exist then.

        Where somebody was erased later it is the tournament as it is now: who was erased is not
        brought back, not even for the time between."""

    def erasures(self, tournament_id: TournamentId) -> Sequence[tuple[str, int]]:
        """Erasures that the tournament has applied: id and time of the request."""

    def entries(
        self, partition: int, start: Offset, end: Offset
    ) -> Iterator[tuple[TournamentId, Sequence[LogEntry] | None]]:
        """The log from `start` to below `end` as the record keeps it, in pieces of one
        tournament each, in order within every tournament.

        None in place of entries for one that has erased somebody: nothing of that player is kept
        under their name, so the fold of what is kept would be another one."""


# --- the record as a witness of the audit log ----------------------------------------------------


class InputRow(NamedTuple):
    """A row of `inputs`, with the tournament's id and the player's name as it is now."""

    tournament_id: str
    offset: int
    player_no: int | None
    player_id: str | None
    logged_at_ms: int
    kind: str
    source: str
    event_id: str
    time_ms: int
    number: int | None
    data: str
    disposition: str
    event_key: bytes | None
    ordinal: int | None
    touched: bool
    before_score: int | None
    before_subscore: int | None
    before_reached: int | None


class ChangeRow(NamedTuple):
    """A row of `position_changes`."""

    sequence: int
    player_id: str
    old_rank: int | None
    new_rank: int | None
    score: int
    subscore: int | None
    distance: int | None
    cause_source: str
    cause_id: str
    time_ms: int


class AccountRow(NamedTuple):
    """A tournament's own row."""

    no: int
    tournament_id: TournamentId
    offset: Offset
    sequence: Offset
    state: str
    starts_at_ms: int
    ends_at_ms: int
    terms: Terms
    players: int
    players_seen: int
    ids_applied: int
    over_at_ms: int | None


class MemberRow(NamedTuple):
    """Who stands behind a player's number in one tournament."""

    no: int
    player_id: str
    display_name: str | None
    joined_at: int | None
    out_at: int | None


class StandingRow(NamedTuple):
    """A player's standing."""

    no: int
    score: Score
    reached: Offset


class FinalRow(NamedTuple):
    """A standing of a board that is over."""

    rank: int
    standing: StandingRow


class AttemptRow(NamedTuple):
    """A row of `connection_attempts`."""

    offset: int
    event_id: str
    time_ms: int
    tournament_id: str | None
    player_id: str | None
    allowed: bool
    reason: str
    address: str | None
    user_agent: str | None


class AlertRow(NamedTuple):
    """A row of `fraud_alerts`."""

    alert_id: str
    tournament_id: TournamentId
    sequence: int
    rule: str
    player_id: str
    other_player_id: str | None
    time_ms: int
    severity_hundredths: int
    evidence: str


class ReviewRow(NamedTuple):
    """A row of `fraud_reviews`."""

    alert_id: str
    tournament_id: TournamentId
    decision: str
    decided_by: str
    decided_at_ms: int
    reason: str | None


class Witness(Protocol):
    """All that the record says, in one consistent view. Iterators stream, in the order named."""

    def ends(self) -> Mapping[Place, tuple[str, Offset]]:
        """The log's id and the next offset of every partition that the record has read."""

    def inputs(self, partition: int) -> Iterator[InputRow]:
        """All inputs of a partition, by offset."""

    def changes(self, tournament_id: TournamentId) -> Iterator[ChangeRow]:
        """A tournament's position changes, by sequence."""

    def changed(self) -> Mapping[TournamentId, int]:
        """The tournaments with position changes, and where the record says that they end."""

    def accounts(self, partition: int) -> Sequence[AccountRow]:
        """The tournaments of a partition."""

    def revisions(self, account: AccountRow) -> Sequence[tuple[int, Terms]]:
        """The terms as each revision left them, by revision."""

    def members(self, account: AccountRow) -> Iterator[MemberRow]:
        """The players, by number."""

    def standings(self, account: AccountRow) -> Iterator[StandingRow]:
        """The standings, the first rank first."""

    def final(self, account: AccountRow) -> Iterator[FinalRow]:
        """The standings that the end left, by rank."""

    def exclusions(self, account: AccountRow) -> Sequence[tuple[int, str, bytes]]:
        """Offset, reason and mark of who stays out, sorted."""

    def erasures(self, account: AccountRow) -> Sequence[tuple[int, str, int]]:
        """Offset, id of the request, and event time of the erasures applied, sorted."""

    def attempts(self, partition: int) -> Iterator[AttemptRow]:
        """Who asked for sockets, of a partition of `connections`, by offset."""

    def alerts(self) -> Iterator[AlertRow]:
        """All suspicions, by tournament and id."""

    def reviews(self) -> Iterator[ReviewRow]:
        """What was decided about suspicions, by tournament and id."""

    def key_of(self, tournament_id: TournamentId, player_id: PlayerId | str) -> PlayerKey | None:
        """The key behind a player's leaves in a tournament, None where there is none (any more)."""

    def requests_of(self, tournament_id: TournamentId) -> Mapping[str, str]:
        """Of every pseudonym in a tournament that has a key: the id that a request to forget its
        player has."""

    def mark_of(self, tournament_id: TournamentId, player_id: str) -> bytes:
        """The mark that would keep a player out of a tournament."""

    def done_with(self, tournaments: Sequence[TournamentId]) -> None:
        """Nobody will ask for keys of these again."""
