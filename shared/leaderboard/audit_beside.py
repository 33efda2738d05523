"""What the record keeps beside its fold, held against the audit log: here who asked for sockets,
row by row with the leaves of `connections`; suspicions are in `audit_alerts`.

Every row was written from one record, of which the log has the leaf: what the leaf tells is
compared, and all else that the row says is put together again as its writer did, and is proved by
the leaf's commitment. Rows that an erasure has emptied prove nothing any more; of those it is
compared what is left, and that the log has forgotten somebody whom they may have named.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from leaderboard import events as ev
from leaderboard.audit_accounts import Fault, Few, Report, unequal
from leaderboard.audit_leaves import (
    BESIDE,
    NOBODY,
    Leaf,
    LogKeys,
    commitment,
    opening,
    said,
)
from leaderboard.audit_rebuild import leaves_in
from leaderboard.audit_replay import Refolded
from leaderboard.codec_writing import encode_data
from leaderboard.model import Offset, Place, PlayerId, TournamentId
from leaderboard.record_ports import AttemptRow, Witness

_WRITER: Final = "/on-connect"
"""Whoever else tells of an attempt may have written its data in another way."""
_CUT: Final = {"reason": 512, "address": 512, "user_agent": 8_192}
"""Longer ones the record cuts off there."""


@dataclass(slots=True)
class CountedBeside:
    """What was compared. `unproved`: rows of which something can't be proved, as the record keeps
    less of it than came. Of alerts, `given` are those that the inputs give as well, and `untold`
    those that they give and nobody has told."""

    attempts: int = 0
    alerts: int = 0
    reviews: int = 0
    unproved: int = 0
    given: int = 0
    untold: int = 0


@dataclass(slots=True)
class Forgotten:
    """Whom the log has erased, of all partitions of `wagers` and `gdpr-events`."""

    players: dict[TournamentId, set[PlayerId]] = field(default_factory=dict)
    """Pseudonyms."""
    names: dict[tuple[TournamentId, PlayerId], str] = field(default_factory=dict)
    """Under which name the record has them since, where it has."""
    requests: set[str] = field(default_factory=set)
    """Ids of the requests, of notices in `gdpr-events`."""
    late_since_ms: int = sys.maxsize
    """The notice of an erasure that is younger may not be read yet."""
    _late: dict[TournamentId, set[PlayerId]] = field(default_factory=dict)
    _is_linked: bool = False

    def take(self, tournaments: Mapping[TournamentId, Refolded], names: Mapping[Any, str]) -> None:
        """What the replay of one partition came to."""
        self.names |= names
        for name, refolded in tournaments.items():
            erased = {one for one in refolded.out if refolded.is_erased(one)}
            if erased:
                self.players[name] = erased
                at_ms = dict(refolded.erasures)
                self._late[name] = {
                    one
                    for one in erased
                    if at_ms.get(refolded.out[one][0], 0) >= self.late_since_ms
                }

    def take_notices(
        self, place: Place, entries: Iterable[bytes], end: Offset, report: Report
    ) -> None:
        """A shard of `gdpr-events`, also what lies beyond `end`, where the record has read to: who
        is forgotten there may be so in the record by now. Raises AuditError."""
        last = -1
        for _, leaf in leaves_in(place, entries):
            last = leaf.offset
            request = (leaf.data or {}).get("erasure_id")
            if isinstance(request, str):
                self.requests.add(request)
        check_end(place, last, end, report)

    def has(self, witness: Witness, tournament_id: TournamentId, player: PlayerId | None) -> bool:
        """Whether the player of a leaf was erased, here or anywhere: the record rewrites what it
        has beside with the first erasure that it reads, of whichever tournament."""
        if player is None or player in self.players.get(tournament_id, ()):
            return bool(self.players or self.requests)
        request = witness.requests_of(tournament_id).get(player)
        if request is None:
            return False
        return request in self._asked(witness) or self._may_be_late(witness)

    def _asked(self, witness: Witness) -> set[str]:
        """Of all erasures, as far as the keys are there that lead to their requests."""
        if not self._is_linked:
            self._is_linked = True
            for name, players in self.players.items():
                known = witness.requests_of(name)
                self.requests |= {known[one] for one in players if one in known}
                witness.done_with([name])
        return self.requests

    def _may_be_late(self, witness: Witness) -> bool:
        """Whether somebody was erased just now of whom nothing tells who it was: the key is gone,
        and who reads `gdpr-events` is behind who reads `wagers`."""
        return any(
            not late <= witness.requests_of(name).keys()
            for name, late in self._late.items()
            if late
        )


class AttemptCheck:
    """Compares one partition. `kept_since_ms`: what is older than that may have gone."""

    def __init__(
        self,
        witness: Witness,
        keys: LogKeys,
        forgotten: Forgotten,
        report: Report,
        kept_since_ms: int = 0,
    ) -> None:
        self._witness = witness
        self._keys = keys
        self._forgotten = forgotten
        self._report = report
        self._kept_since_ms = kept_since_ms
        self._nameless: set[PlayerId] = set()
        """Pseudonyms of emptied rows that have no key."""

    def run(
        self, place: Place, entries: Iterable[bytes], end: Offset, counted: CountedBeside
    ) -> None:
        """The leaves of a partition up to where the record has read. Raises AuditError."""
        rows = self._witness.attempts(place.partition)
        row = next(rows, None)
        faults, last = Few(self._report), -1
        for _, leaf in leaves_in(place, entries):
            if leaf.offset >= end:
                break
            last = leaf.offset
            while row is not None and row.offset < leaf.offset:
                faults.put(_stranger(row, place))
                row = next(rows, None)
            if row is None or row.offset != leaf.offset:
                if leaf.data is not None and not self._may_be_gone(leaf):
                    faults.put(Fault(_where(leaf.offset, place), "is missing in the record"))
                continue
            if leaf.data is None:
                faults.put(Fault(_where(row.offset, place), f"the log says {leaf.refused}"))
            else:
                counted.attempts += 1
                put_all(faults, _where(row.offset, place), self._unlike(row, leaf, counted))
            row = next(rows, None)
        while row is not None:
            faults.put(_stranger(row, place))
            row = next(rows, None)
        faults.end(f"connection_attempts of {place}")
        check_end(place, last, end, self._report)

    def finish(self) -> None:
        """Of all partitions: no more players can have lost their keys than were forgotten."""
        if len(self._nameless) > len(self._forgotten.requests):
            what = (
                f"{len(self._nameless)} players are emptied and have no key, and the log has "
                f"forgotten {len(self._forgotten.requests)}"
            )
            self._report(Fault("connection_attempts", what))

    def _may_be_gone(self, leaf: Leaf) -> bool:
        return min(leaf.time_ms, leaf.logged_ms) < self._kept_since_ms

    def _unlike(self, row: AttemptRow, leaf: Leaf, counted: CountedBeside) -> Iterator[str]:
        told = leaf.data or {}
        yield from unequal(
            {
                "time_ms": (row.time_ms, leaf.time_ms),
                "tournament_id": (row.tournament_id, leaf.tournament_id),
                "allowed": (bool(row.allowed), told.get("allowed")),
                "reason": (row.reason, _kept(told.get("reason"), "reason")),
            }
        )
        if row.event_id == NOBODY:
            yield from self._unlike_emptied(row, leaf)
            return
        secret = self._keys.others
        if row.player_id is not None:
            key = self._witness.key_of(BESIDE, row.player_id)
            if key is None:
                yield f"is of {row.player_id}, of whom there is no key"
                return
            secret = key.secret
            if key.pseudonym != leaf.player:
                yield f"is of {row.player_id}, in the log of somebody else"
                return
        elif leaf.player is not None:
            yield "is of nobody, in the log of somebody"
            return
        if self._keys.id_of(leaf.source, row.event_id) != leaf.id:
            yield "event_id is not that of the log"
        elif any(_is_cut(getattr(row, name), most) for name, most in _CUT.items()):
            counted.unproved += 1
        elif not is_committed(leaf, secret, row.event_id, _data_of(row)):
            if leaf.source == _WRITER:
                yield "address or user_agent is not what the log is committed to"
            else:
                counted.unproved += 1

    def _unlike_emptied(self, row: AttemptRow, leaf: Leaf) -> Iterator[str]:
        if (row.player_id, row.address, row.user_agent) != (None, None, None):
            yield "names what an erasure takes away"
        player = leaf.player
        if player is None or player in self._witness.requests_of(BESIDE):
            if not self._forgotten.has(self._witness, BESIDE, player):
                yield "is emptied, and the log has not forgotten its player"
        else:
            self._nameless.add(player)


# --- parts, of suspicions as well ----------------------------------------------------------------


def is_committed(leaf: Leaf, secret: bytes, event_id: str, data: Iterable[bytes]) -> bool:
    """Whether the leaf commits to this event's id with one of these data."""
    key = opening(secret, leaf.place.topic, leaf.place.partition, leaf.offset)
    return any(commitment(key, said(event_id, one)) == leaf.commitment for one in data)


def put_all(faults: Few, where: str, whats: Iterable[str]) -> None:
    """All that is wrong with one row, as one fault."""
    found = list(whats)
    if found:
        faults.put(Fault(where, "; ".join(found)))


def check_end(place: Place, last: int, end: Offset, report: Report) -> None:
    """The log has to be as far as the record is."""
    if last < end - 1:
        what = f"ends at offset {last}, the record has read to {end - 1}"
        report(Fault(f"{place} of the log", what))


def _where(offset: int, place: Place) -> str:
    return f"connection_attempts of {place} at offset {offset}"


def _stranger(row: AttemptRow, place: Place) -> Fault:
    return Fault(_where(row.offset, place), "is in the record, and the log has no such")


def _kept(text: object, name: str) -> object:
    """As the record keeps it."""
    return text.replace("\0", "\\x00")[: _CUT[name]] if isinstance(text, str) else text


def _is_cut(text: str | None, most: int) -> bool:
    return text is not None and (len(text) >= most or "\\x00" in text)


def _data_of(row: AttemptRow) -> Iterator[bytes]:
    """What the row's event may have said: what is null may have been left out, too."""
    given = {name: getattr(row, name) for name in ev.ConnectionDecided.model_fields}
    given["allowed"] = bool(row.allowed)
    optional = [name for name in ("address", "user_agent") if given[name] is None]
    for count in range(len(optional) + 1):
        for left in itertools.combinations(optional, count):
            some = {name: value for name, value in given.items() if name not in left}
            yield encode_data(ev.ConnectionDecided.model_construct(_fields_set=set(some), **some))
