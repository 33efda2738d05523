"""What the functions need from the outside, as roles. Adapters fill them; one contract suite a
port runs over every adapter. Unless said otherwise every call blocks, is safe to repeat, and
raises TransientError when the dependency is away: nothing is lost then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from leaderboard.errors import Refusal
from leaderboard.events import Event
from leaderboard.fold import LogEntry, RemovalReason, Terms
from leaderboard.model import (
    Disposition,
    Offset,
    PlayerId,
    PositionChange,
    Score,
    Standing,
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


class Applying(Protocol):
    """A batch on its way to a board. One of the two is called, once."""

    def result(self) -> BatchApplied:
        """Wait for it. Raises as `Board.apply`."""

    def abandon(self) -> None:
        """Nobody wants the result: the board may have applied the batch or not."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A batch that is applied already, as an `Applying`."""

    applied: BatchApplied

    def result(self) -> BatchApplied:
        return self.applied

    def abandon(self) -> None:
        pass


class Board(Protocol):
    """The leaderboards of all tournaments. Every call is atomic; ranks start at 1."""

    def apply(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> BatchApplied:
        """Apply the entries (in log order) that lie above the board's own offset.

        `log_id` names the log: offsets of another one mean nothing. `after` is the last offset
        that the caller knows applied, None if it knows none. `confirmed`: every change and every
        refusal up to this offset was emitted and acknowledged; the board forgets those. `told`:
        those up to this offset are in the caller's hands, and not told again.

        A refusal is told again for an entry that the board has applied before, as long as
        nothing above it was confirmed: dead letters survive a crash.

        Raises BoardBehindError when the board is missing or stands below `after`, and
        ForeignLogError when it belongs to another log; nothing is applied then."""

    def begin(
        self,
        tournament_id: TournamentId,
        log_id: str,
        after: Offset | None,
        entries: Sequence[LogEntry],
        confirmed: Offset | None,
        told: Offset | None = None,
    ) -> Applying:
        """As `apply`, set going; raises like it here or with the result. No other call for the
        tournament until the result is there or the call is abandoned."""

    def top(self, tournament_id: TournamentId, limit: int, after_rank: int = 0) -> BoardView | None:
        """Standings from `after_rank` + 1 on; None where no board exists. One round trip."""

    def player(self, tournament_id: TournamentId, player_id: PlayerId) -> BoardView | None:
        """The player's own standing with `distance`; no standings if they have none."""

    def around(
        self, tournament_id: TournamentId, player_id: PlayerId, radius: int
    ) -> BoardView | None:
        """Standings centred on the player; empty if they have none. One round trip."""

    def is_erased(self, tournament_id: TournamentId, player_id: PlayerId) -> bool | None:
        """Whether the board has applied an erasure of the player: nothing brings them back.
        None where no board is there to say so. One round trip."""

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
        """The board's sequence and the rows of these players, in one atomic step. A row that
        contradicts the order has the score 2^53, which nobody can have."""

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

    def begin_changes(
        self, changes: Sequence[PositionChange], taken_in_ms: int = 0, alerts: Sequence[Event] = ()
    ) -> int:
        """As `publish_changes`, and `alerts` behind them to `fraud-alerts`, without waiting; a
        number for `confirm_changes`, of both.

        `taken_in_ms`, if not 0, becomes the records' time: when Kafka took in the oldest event
        behind them. Whoever pushes them knows by it how long that took.

        Waits for what was begun before. Raises TransientError; then whatever was begun and is
        not confirmed may or may not have arrived, but nothing without what was begun before it."""

    def confirm_changes(self, begun: int) -> None:
        """Wait until these are acknowledged. Raises TransientError as `begin_changes`."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One JSON message for every socket on a channel."""

    channel: str
    body: bytes


class Gateway(Protocol):
    """The holder of the players' sockets.

    Channels are `top.<t>` with its further parts `top.<t>.<n>`, the same for `curve` (a new
    subscriber gets the last frame at once, from the gateway or, where that keeps none, from
    `on-connect`), `me.<t>.<p>` and `conn.<id>` (nothing is kept)."""

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand the frames over, in order for each channel. No subscriber is no error."""

    def close(self, channel: str) -> None:
        """Close every socket that is subscribed to the channel, with all its channels."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a ticket stands for. `expires_at_ms` is the end of the token that opened it, `network`
    where the ticket is good (`callers.network_of`), None for everywhere."""

    tournament_id: TournamentId
    player_id: PlayerId
    connection_id: str
    expires_at_ms: int
    network: str | None = None


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

    def sockets(self, tournament_id: TournamentId) -> int:
        """How many leases the tournament has, some of which may be over."""

    def is_spread(self, tournament_id: TournamentId) -> bool:
        """Whether some of the tournament's sockets may be in a later part than the first
        (`frames.part_of`): it has many, or had."""

    def let_go(self, tournament_id: TournamentId) -> int:
        """Forget some that are over; how many it has then. While more than a few in a hundred
        are, some are found."""

    def release(self, tournament_id: TournamentId, player_id: PlayerId) -> str | None:
        """End the player's lease; the id of the connection that they had."""

    def left(self, grant: Grant) -> None:
        """The socket of this grant has ended: it is not due any more, and the player's connection
        no longer, unless another one is by now."""

    def due(self, now_ms: int, limit: int) -> Sequence[str]:
        """Ids of connections to close now, oldest first."""

    def closed(self, connection_ids: Sequence[str]) -> None:
        """These were closed; they are due no more."""

    def count(self) -> int:
        """How many there are: held by someone, or about to be closed."""


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
    opened_at_ms: int = 0
    """When it was requested, or requested again after everything had been done."""
    done_at_ms: Mapping[str, int] = field(default_factory=dict)
    """When each place was done, where that is known."""


class Erasures(Protocol):
    """Requests to forget. The id is derived from the player with a key: the same again."""

    def id_of(self, player_id: PlayerId) -> str:
        """The id that a request for this player has. Asks nobody."""

    def begin(self, player_id: PlayerId, now_ms: int) -> Erasure:
        """Open the request, or find the one that exists."""

    def find(self, erasure_id: str) -> Erasure | None:
        """The request of this id."""

    def mark(self, erasure_id: str, places: Mapping[str, str]) -> Erasure:
        """Set the state of places; when none is pending the player's id is forgotten."""

    def restore(self, erasure_id: str, requested_at_ms: int) -> None:
        """The log says that there was such a request, and no more than that: whether a place is
        done has to be looked at. What is known of it stays."""

    def pending(self, limit: int) -> tuple[int, Sequence[Erasure]]:
        """How many requests have a place pending, and the oldest of them."""

    def opened_before(self, at_ms: int) -> int:
        """How many requests that have a place pending were opened before this time."""

    def is_erased(self, player_id: PlayerId) -> bool:
        """Whether the player has asked to be forgotten, ever."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a player who wants in, before it is decided."""

    erasure_id: str
    """Of the request to forget them that there is or would be."""
    is_asked: bool
    """Whether there is such a request; where there is, nothing else was looked at."""
    tombstone: bool | None = None
    """Whether the board says that it has erased them; None where no board can tell."""
    holder: str | None = None
    """The id of the player's connection; None without one, and where it can't be told."""
    sockets: int = 0
    """`Connections.sockets`; 0 where it can't be told."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What became of an entry."""

    before: str | None
    """The id of the connection that had the lease before."""
    is_erased: bool
    """Whether somebody has asked to forget the player, looked at after the lease stood."""
    sockets: int
    """How many leases the tournament has now, some of which may be over."""


class Entrance(Protocol):
    """The two questions of every decision about a connection, over erasures, board and leases.

    Each is as good as the calls that it stands for, one after the other, and costs one round trip
    where all of them lie on one server."""

    def look(self, tournament_id: TournamentId, player_id: PlayerId) -> Sight:
        """`Erasures.is_erased`, `Board.is_erased`, `Connections.holder` and `sockets`.

        Raises TransientError where the request to forget can't be looked for. A board that is
        away tells nothing, and takes the leases with it: they lie beside it."""

    def enter(self, grant: Grant) -> Entered:
        """`Connections.lease`, then `Erasures.is_erased`: an erasure that began in between has
        looked for the lease either after it stood, or is seen here."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a Knative Service. `version` is of what was read: a change names it.

    `is_routed`: some traffic goes there; the others have no floor whatever they say."""

    name: str
    service: str
    version: str
    is_routed: bool
    annotations: Mapping[str, str]


class Revisions(Protocol):
    """The revisions of Knative Services."""

    def of(self, services: Iterable[str]) -> Sequence[Revision]:
        """All revisions of these services, also those that no traffic goes to. Raises
        TransientError as well where the cluster does not let us: it says so, and may be told to."""

    def annotate(self, revision: Revision, changes: Mapping[str, str | None]) -> bool:
        """Set these annotations (None: remove); False, and nothing done, where the revision is
        another one by now or gone."""
