"""What the functions need from the outside, as roles. Adapters fill them; one contract suite a
port runs over every adapter. Unless said otherwise every call blocks, is safe to repeat, and
raises TransientError when the dependency is away: nothing is lost then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from leaderboard.errors import Refusal
from leaderboard.events import Event
from leaderboard.events import Record as EventRecord
from leaderboard.fold import LogEntry, RemovalReason, Terms
from leaderboard.model import (
    Disposition,
    Offset,
    Place,
    PlayerId,
    PositionChange,
    Score,
    Standing,
    State,
    TournamentId,
)


@dataclass(frozen=True, slots=True)
class BatchApplied:
    """The answer of `Board.apply`.

    `verdicts` are aligned with the entries. `unconfirmed` are all visible changes that nobody
    has confirmed yet, in order, also those of earlier calls: emit them from the oldest on.
    `terms` is None where no board exists (then every verdict is a refusal or a reason)."""

    offset: Offset | None
    sequence: Offset
    terms: Terms | None
    terms_changed: bool
    verdicts: Sequence[Disposition | Refusal]
    unconfirmed: Sequence[PositionChange]


@dataclass(frozen=True, slots=True)
class BoardView:
    """A board at one sequence, read in one atomic step."""

    tournament_id: TournamentId
    sequence: Offset
    terms: Terms
    players: int
    standings: Sequence[Standing] = ()
    distance: int | None = None
    """Of the one player asked for."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores at some ranks of a board at one sequence, from the first rank down."""

    tournament_id: TournamentId
    sequence: Offset
    points: Sequence[tuple[int, int]]
    """(rank, score)."""


class PlayerRow(NamedTuple):
    """A player's score, and the sequence at which the pair was reached."""

    player_id: PlayerId
    score: Score
    reached: Offset


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a board holds, folded from every event of the log up to `offset`, nothing of it
    unconfirmed. The iterables come in chunks of some thousand and can be read once."""

    tournament_id: TournamentId
    log_id: str
    offset: Offset
    sequence: Offset
    terms: Terms
    players: int
    """How many rows there are."""
    rows: Iterable[Sequence[PlayerRow]]
    names: Iterable[Sequence[tuple[PlayerId, str | None]]]
    """Who joined, with the display name."""
    older: Iterable[Sequence[bytes]]
    newer: Iterable[Sequence[bytes]]
    """The two generations of applied ids (see `fold.SeenIds`)."""
    numbers: Mapping[str, int]
    out: Mapping[bytes, RemovalReason]
    """Who stays out, by tombstone."""


class Board(Protocol):
    """The leaderboards of all tournaments. Every call is atomic; ranks start at 1."""

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
    ) -> BatchApplied:
        """Apply the entries (in log order) that lie above the board's own offset.

        `log_id` names the log: offsets of another one mean nothing. `after` is the last offset
        that the caller knows applied, None if it knows none. `confirmed`: every change and every
        refusal up to this offset was emitted and acknowledged; the board forgets those.

        A refusal is told again for an entry that the board has applied before, as long as
        nothing above it was confirmed: dead letters survive a crash.

        Raises BoardBehindError when the board is missing or stands below `after`, and
        ForeignLogError when it belongs to another log; nothing is applied then."""

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        """Standings from `after_rank` + 1 on; None where no board exists. One round trip."""

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        """The player's own standing with `distance`; no standings if they have none."""

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        """Standings centred on the player; empty if they have none. One round trip."""

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        """Whether the board has applied an erasure of the player: nothing brings them back."""

    def scores_at(self, tournament_id: TournamentId, ranks: Sequence[int]) -> Curve | None:
        """The scores at these ranks, those beyond the last left out. One round trip."""

    def is_in(self, tournament_id: TournamentId, player_id: PlayerId) -> bool:
        """Whether the player has joined or has a standing."""

    def stands_at(
        self, log_id: str, tournaments: Sequence[TournamentId]
    ) -> Sequence[Offset | None]:
        """The offset up to which each of these boards has the log; None where there is none.
        One round trip to each shard. Raises ForeignLogError as `apply` does."""

    def rows(
        self, tournament_id: TournamentId, players: Sequence[PlayerId]
    ) -> tuple[Offset, Sequence[PlayerRow | None]] | None:
        """The board's sequence and the rows of these players, in one atomic step."""

    def restore(
        self,
        snapshot: Snapshot,
        *,
        force: bool = False,
        loaded: Callable[[int], None] = lambda rows: None,
    ) -> bool:
        """Put the snapshot where no board is, or one that stands below it, or (`force`) any.

        Loaded aside and swapped in by compare, so readers see the old board or the whole new one,
        and a try that broke off leaves nothing that counts. False where a board stands at or
        above the snapshot by then: it stays. `loaded` is told the rows of each chunk. Raises
        ForeignLogError for a board of another log."""

    def expire(self, tournament_id: TournamentId, sequence: Offset, at_ms: int) -> bool:
        """Let the whole board go at `at_ms` (since 1970), also what is written to it until then,
        if it stands at this sequence; False where it does not, or is not there."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the public list shows of a tournament. The newer `revision` wins."""

    tournament_id: TournamentId
    terms: Terms


class Directory(Protocol):
    """Which tournaments there are. Written by whoever applies their log."""

    def put(self, summary: Summary) -> None:
        """Show this, unless something with a higher revision is shown already."""

    def find(self, tournament_id: TournamentId) -> Summary | None:
        """One tournament, None where it is unknown."""

    def all(self) -> Sequence[Summary]:
        """Every tournament, in order of start and id."""

    def remove(self, tournament_id: TournamentId) -> None:
        """Show it no longer: its board is gone, and the record answers."""


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

    def tournaments_of(self, player_id: PlayerId) -> Sequence[TournamentId]:
        """Every tournament that knows the player."""


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
    given again is skipped, and of two owners of a partition one finds it taken.

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

    def page(self, tournament_id: TournamentId, after: int, limit: int) -> LedgerPage:
        """Rows in a fixed order: those behind `after` (-1: from the start)."""

    def confirm(self, tournament_id: TournamentId) -> int:
        """Put down that board and record were found equal after the end; when that was."""


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


class Progress(Protocol):
    """How far the boards are, by partition: a second witness beside the consumer's commit.

    Lives where the boards live, so a store that was emptied or lost its tail shows here. It may
    lie on another shard of it than a board, and each shard loses on its own: so it also knows
    how far each board is, to be compared with what the board itself says."""

    def read(self, log_id: str, partition: int) -> Offset | None:
        """The last offset whose effects all boards of the partition hold; None: never told."""

    def boards(self, log_id: str, partition: int) -> Mapping[TournamentId, Offset]:
        """Where each board of the partition stood when it was last told of: no board can stand
        below that unless it has lost writes, or was let go."""

    def advance(
        self,
        log_id: str,
        partition: int,
        known: Offset | None,
        offset: Offset,
        boards: Mapping[TournamentId, Offset],
    ) -> Offset | None:
        """Tell it, after the boards, before the commit: the partition's offset, and where boards
        stand, as they said themselves. Never goes back.

        Answers where it stood before. Below `known`, where the caller has seen it, the store has
        lost writes: then nothing is told, so that the loss stays visible."""

    def forget(self, log_id: str, partition: int, tournaments: Sequence[TournamentId]) -> None:
        """These boards may go, and count as lost no more when they have."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way to a topic."""

    topic: str
    event: Event


class Feed(Protocol):
    """Where events are published."""

    def publish(self, outgoing: Sequence[Outgoing]) -> Mapping[int, Offset]:
        """Send in order and wait until all are acknowledged by every replica in sync.

        Answers the offset of each, by its index. Raises TransientError if any was not
        acknowledged; then any of them may or may not have arrived."""

    def publish_changes(self, changes: Sequence[PositionChange]) -> None:
        """The same for position changes, in order, on the hot path."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One JSON message for every socket on a channel."""

    channel: str
    body: bytes


class Gateway(Protocol):
    """The holder of the players' sockets.

    Channels are `top.<t>` (a new subscriber gets the last frame at once), `me.<t>.<p>` and
    `conn.<id>` (nothing is kept)."""

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand the frames over, in order for each channel. No subscriber is no error."""

    def close(self, channel: str) -> None:
        """Close every socket that is subscribed to the channel, with all its channels."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a ticket stands for. `expires_at_ms` is the end of the token that opened it."""

    tournament_id: TournamentId
    player_id: PlayerId
    connection_id: str
    expires_at_ms: int


class Connections(Protocol):
    """Tickets, and who holds a socket: one connection per player and tournament."""

    def issue(self, grant: Grant, ttl_seconds: int) -> str:
        """A secret ticket for this grant, good once and for `ttl_seconds`."""

    def redeem(self, ticket: str) -> Grant | None:
        """What the ticket stands for, and its end; None for one unknown, used or too old."""

    def lease(self, grant: Grant) -> str | None:
        """Make this the player's one connection until it expires; the id of the one before.

        The new connection is due to be closed at its end, the one before at once and again a
        second later, in case its socket was just being opened."""

    def holder(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        """The id of the player's connection, None without one."""

    def live(self, tournament_id: TournamentId, players: Sequence[PlayerId]) -> frozenset[PlayerId]:
        """Those of `players` who hold a connection."""

    def release(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        """End the player's lease; the id of the connection that they had."""

    def due(self, now_ms: int, limit: int) -> Sequence[str]:
        """Ids of connections to close now, oldest first."""

    def closed(self, connection_ids: Sequence[str]) -> None:
        """These were closed; they are due no more."""


BOARD_PLACE: Final = "board:"
"""With a tournament's id behind it, the place of its board in an erasure."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """A request to forget a player, and the places where that is done."""

    erasure_id: str
    requested_at_ms: int
    places: Mapping[str, str]
    """Place → `pending` or `done`; a tournament's place is `board:<id>`."""
    player_id: PlayerId | None
    """None as soon as every place is done: then nothing here knows the player."""


class Erasures(Protocol):
    """Requests to forget. The id is derived from the player with a key: the same again."""

    def begin(self, player_id: PlayerId, now_ms: int) -> Erasure:
        """Open the request, or find the one that exists."""

    def find(self, erasure_id: str) -> Erasure | None:
        """The request of this id."""

    def mark(self, erasure_id: str, places: Mapping[str, str]) -> Erasure:
        """Set the state of places; when none is pending the player's id is forgotten."""

    def restore(self, erasure_id: str, tournament_id: TournamentId, requested_at_ms: int) -> None:
        """The log says that there was such a request, and that this board is done. What is known
        of it stays."""

    def is_erased(self, player_id: PlayerId) -> bool:
        """Whether the player has asked to be forgotten, ever."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the token says. `expires_at_ms` is the token's end."""

    subject: str
    roles: frozenset[str]
    expires_at_ms: int


class Tokens(Protocol):
    """The judge of bearer tokens."""

    def verify(self, token: str) -> Caller:
        """Who holds the token. Raises UnauthenticatedError; TransientError when no key could
        be fetched yet."""
