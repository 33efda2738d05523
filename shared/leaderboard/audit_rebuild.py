"""The audit's second half: the log folded again, and everything that the platform shows compared
with it. The first half, that the log is whole and is what was signed, is the reader's.

One partition at a time: its inputs and its position changes side by side, so that of both only what
the other does not have yet is kept. Record and boards are asked before the log is opened, so that
the log has all that they say.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from leaderboard.audit_accounts import Fault, Report
from leaderboard.audit_boards import BoardCheck, Page
from leaderboard.audit_leaves import Leaf, LeafError, LogKeys, decode
from leaderboard.audit_record import RecordCheck
from leaderboard.audit_replay import (
    Refolded,
    Replay,
    Step,
    Told,
    body_of,
    change_of,
    entry_of,
    said_by,
)
from leaderboard.audit_suspicions import Suspects
from leaderboard.errors import LeaderboardError
from leaderboard.events import POSITION_CHANGES, POSITION_SOURCE, WAGERS
from leaderboard.model import REMEMBERED_IDS, Offset, Place, PlayerId, TournamentId
from leaderboard.record_ports import Witness

TOLD_EVERY: Final = 1_000
"""Leaves between two words about how far it is."""


class AuditError(LeaderboardError):
    """The log can't be folded from here on. The message says where."""


@dataclass(slots=True)
class _Numbered:
    """Leaves of one shard, decoded, in order; `index` and `last` of the one that came last."""

    place: Place
    entries: Iterator[bytes]
    told: Callable[[int], None]
    index: int = -1
    last: int = -1
    raw: bytes = b""
    log: str | None = None

    def next(self) -> Leaf | None:
        """None at the end. Raises AuditError."""
        raw = next(self.entries, None)
        if raw is None:
            self.told((self.index + 1) % TOLD_EVERY)
            return None
        self.index += 1
        if self.index % TOLD_EVERY == TOLD_EVERY - 1:
            self.told(TOLD_EVERY)
        try:
            leaf = decode(raw)
        except LeafError as error:
            raise AuditError(f"{self.where()}: {error}") from None
        if leaf.place != self.place:
            raise AuditError(f"{self.where()}: is a leaf of {leaf.place}")
        if leaf.offset <= self.last:
            raise AuditError(f"{self.where()}: offset {leaf.offset} comes after {self.last}")
        if self.log not in (None, leaf.log):
            raise AuditError(f"{self.where()}: the topic's id was {self.log}, now {leaf.log}")
        self.last, self.raw, self.log = leaf.offset, raw, leaf.log
        return leaf

    def where(self) -> str:
        return f"{self.place}, entry {self.index}"


def leaves_in(
    place: Place, entries: Iterable[bytes], told: Callable[[int], None] = lambda more: None
) -> Iterator[tuple[bytes, Leaf]]:
    """The leaves of a shard, as they are and as they read; `told` hears of every thousand.

    Raises AuditError for one that is none of this shard, or whose offset does not rise."""
    numbered = _Numbered(place, iter(entries), told)
    while (leaf := numbered.next()) is not None:
        yield numbered.raw, leaf


@dataclass(slots=True)
class Counted:
    """What was compared in one partition, or in all."""

    inputs: int = 0
    changes: int = 0
    record_inputs: int = 0
    record_changes: int = 0
    tournaments: int = 0
    boards: int = 0
    waiting: int = 0
    """Changes that lie at one end only, and may still be on their way."""

    def add(self, other: Counted) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Ends:
    """Below which offsets the record has taken things in. None: it knows nothing of the topic."""

    inputs: Offset | None = None
    changes: Offset | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What the log is compared with. All of it may be missing: then it is folded alone."""

    witness: Witness | None = None
    keys: LogKeys | None = None
    pages: Mapping[TournamentId, Sequence[Page]] = field(default_factory=dict)
    late_before_ms: int = 0
    """What Kafka took in before that has to be at both ends."""
    is_expired: Callable[[Refolded], bool] = lambda refolded: False


class PartitionRebuild:
    """One partition of `wagers` with that of `position-changes`."""

    def __init__(
        self, number: int, scope: Scope, report: Report, window: int = REMEMBERED_IDS
    ) -> None:
        self.place = Place(WAGERS, number)
        self.replay = Replay(window)
        self.counted = Counted()
        self._scope = scope
        self._report = report
        self._pending: defaultdict[TournamentId, deque[tuple[dict[str, Any], int]]]
        self._pending = defaultdict(deque)
        self._told: defaultdict[TournamentId, Told] = defaultdict(Told)
        self._recorded: dict[TournamentId, int] = {}
        """How many of the changes told the record has."""
        self._record: RecordCheck | None = None
        self._is_finished = False
        self._boards = BoardCheck(scope.pages, scope.witness, report)
        self.suspects = Suspects()
        """What the inputs give of suspicions, as far as the record goes; nothing without one."""

    def run(
        self,
        inputs: Iterable[bytes],
        changes: Iterable[bytes],
        ends: Ends,
        told: Callable[[int], None] = lambda more: None,
    ) -> None:
        """Fold and compare all of it. Raises AuditError where the log can't be read on."""
        scope = self._scope
        if scope.witness is not None and scope.keys is not None:
            self._record = RecordCheck(scope.witness, scope.keys, self.place, self._report)
        self._inputs = _Numbered(self.place, iter(inputs), told)
        self._ends = ends
        place = Place(POSITION_CHANGES, self.place.partition)
        numbered = _Numbered(place, iter(changes), told)
        while (leaf := numbered.next()) is not None:
            self.counted.changes += 1
            self._compare(leaf, numbered.where())
        while self._advance():
            pass
        self._finish_inputs()
        for tournament_id, pending in self._pending.items():
            for wanted, logged_ms in pending:
                self._missing(tournament_id, wanted, logged_ms)
        self._boards.finish(self.replay.tournaments)
        self.counted.boards = self._boards.equal
        self.counted.tournaments = len(self.replay.tournaments)
        self._check_ends(self._inputs, ends.inputs)
        self._check_ends(numbered, ends.changes)
        self._finish_changes()

    # inputs

    def _advance(self) -> bool:
        """Fold the next input; False at the end."""
        leaf = self._inputs.next()
        if leaf is None:
            return False
        end = self._ends.inputs
        if end is not None and leaf.offset >= end:
            self._finish_inputs()
        try:
            step = self.replay.take(leaf)
        except LeafError as error:
            raise AuditError(f"{self._inputs.where()}: {error}") from None
        self.counted.inputs += 1
        if self._record is not None and not self._is_finished:
            self._record.take(step)
            self.suspects.take(step, self._record.fraud_rules)
        self._keep_change(step)
        if step.tournament is not None:
            self._boards.take(step.tournament, leaf.offset)
        return True

    def _keep_change(self, step: Step) -> None:
        wanted = change_of(step)
        if wanted is not None and step.tournament is not None:
            pending = self._pending[step.tournament.tournament_id]
            pending.append((wanted, step.leaf.logged_ms))

    def _finish_inputs(self) -> None:
        """The record goes no further than this."""
        if self._record is None or self._is_finished:
            return
        self._is_finished = True
        self.suspects.finish()
        self._record.finish(self.replay.tournaments, self._scope.is_expired)
        self.counted.record_inputs = self._record.inputs

    def _check_ends(self, shard: _Numbered, end: Offset | None) -> None:
        if end is not None and shard.last < end - 1:
            what = f"ends at offset {shard.last}, the record has read to {end - 1}"
            self._report(Fault(f"{shard.place} of the log", what))

    def erased_names(self) -> Mapping[tuple[TournamentId, PlayerId], str]:
        """Under which name the record has an erased player, by tournament and pseudonym."""
        return {} if self._record is None else self._record.erased_names()

    def gone(self) -> set[TournamentId]:
        """Tournaments that the record has let go of because of their age."""
        known = set() if self._record is None else self._record.tournaments
        return {
            name
            for name, refolded in self.replay.tournaments.items()
            if name not in known and self._scope.is_expired(refolded)
        }

    # changes

    def _compare(self, leaf: Leaf, where: str) -> None:
        tournament_id = leaf.tournament_id
        data = leaf.data
        if data is None or tournament_id is None:
            return  # what can't be read tells nobody anything
        sequence = data.get("sequence")
        if type(sequence) is not int or not isinstance(data.get("cause"), dict):
            raise AuditError(f"{where}: a change without sequence or cause")
        where = f"{where} ({tournament_id}/{sequence})"
        while self._inputs.last < sequence and self._advance():
            pass
        self._check_envelope(leaf, sequence, where)
        told = self._told[tournament_id]
        end = self._ends.changes
        if sequence <= told.last:
            self._compare_again(leaf, told, where)
            return
        self._compare_new(leaf, sequence, where)
        player = leaf.player or PlayerId("")
        told.add(sequence, player, data["cause"].get("id", ""), _body(leaf, where))
        if end is not None and leaf.offset < end:
            self._recorded[tournament_id] = len(told)

    def _compare_new(self, leaf: Leaf, sequence: int, where: str) -> None:
        tournament_id = leaf.tournament_id or TournamentId("")
        pending = self._pending[tournament_id]
        while pending and pending[0][0]["data"]["sequence"] < sequence:
            self._missing(tournament_id, *pending.popleft(), is_passed=True)
        if pending and pending[0][0]["data"]["sequence"] == sequence:
            wanted, _ = pending.popleft()
            found = said_by(leaf)
            if self._is_forgotten(leaf, wanted["player"]):
                found["player"] = wanted["player"]
            if found != wanted:
                self._report(Fault(where, f"is not what the inputs give: {_unlike(found, wanted)}"))
        elif self._inputs.last < sequence and leaf.logged_ms >= self._scope.late_before_ms:
            self.counted.waiting += 1  # its cause is not in the log of inputs yet
        else:
            self._report(Fault(where, "the inputs give no change here"))

    def _compare_again(self, leaf: Leaf, told: Told, where: str) -> None:
        """Told again after a crash: the same, word for word."""
        data = leaf.data or {}
        before = told.find(data["sequence"])
        player = leaf.player or PlayerId("")
        if before is not None and self._is_forgotten(leaf, before[1]):
            player = before[1]
        if before is None:
            self._report(Fault(where, "comes too late: later ones were told before it"))
        elif before != entry_of(data, player, leaf.time_ms):
            self._report(Fault(where, "was told before, with other words"))

    def _is_forgotten(self, leaf: Leaf, player: PlayerId) -> bool:
        """Whether the leaf names nobody because this player was erased, and the key destroyed."""
        if leaf.player is not None or leaf.tournament_id is None:
            return False
        refolded = self.replay.tournaments.get(leaf.tournament_id)
        return refolded is not None and refolded.is_erased(player)

    def _check_envelope(self, leaf: Leaf, sequence: int, where: str) -> None:
        keys = self._scope.keys
        if leaf.source != POSITION_SOURCE:
            self._report(Fault(where, f"is from {leaf.source}"))
        elif keys and leaf.id != keys.id_of(leaf.source, f"{leaf.tournament_id}/{sequence}"):
            self._report(Fault(where, "its id is not tournament/sequence"))

    def _missing(
        self,
        tournament_id: TournamentId,
        wanted: Mapping[str, Any],
        logged_ms: int,
        *,
        is_passed: bool = False,
    ) -> None:
        sequence = wanted["data"]["sequence"]
        if is_passed or logged_ms < self._scope.late_before_ms:
            where = f"{POSITION_CHANGES}/{self.place.partition} ({tournament_id}/{sequence})"
            self._report(Fault(where, "the inputs give a change that was never told"))
        else:
            self.counted.waiting += 1

    def _finish_changes(self) -> None:
        if self._record is None or self._scope.witness is None:
            return
        marks = self._scope.witness.changed()
        for tournament_id, refolded in self.replay.tournaments.items():
            if tournament_id in marks or self._recorded.get(tournament_id):
                if tournament_id not in marks and self._scope.is_expired(refolded):
                    continue
                self.counted.record_changes += self._record.changes(
                    tournament_id, refolded, self._told[tournament_id],
                    self._recorded.get(tournament_id, 0), marks.get(tournament_id, -1),
                )  # fmt: skip
        self._scope.witness.done_with(list(self.replay.tournaments))


def _body(leaf: Leaf, where: str) -> tuple[Any, ...]:
    try:
        return body_of(leaf.data or {}, leaf.time_ms)
    except KeyError as error:
        raise AuditError(f"{where}: a change without {error}") from None


def _unlike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first fields that differ, as they are and as they ought to be."""
    flat_found = {**found, **found["data"]}
    flat_wanted = {**wanted, **wanted["data"]}
    names = sorted((flat_found.keys() | flat_wanted.keys()) - {"data"})
    differ = [name for name in names if flat_found.get(name) != flat_wanted.get(name)]
    told = (f"{n} {flat_found.get(n)!r} for {flat_wanted.get(n)!r}" for n in differ[:3])
    return ", ".join(told)
