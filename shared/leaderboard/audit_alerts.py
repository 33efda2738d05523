"""Suspicions of fraud and what was decided about them, as the record keeps them, held against the
leaves of `fraud-alerts`. See `audit_beside`.

The record has a suspicion once, as it was told first, and of its decisions the last: so all leaves
are read before the rows are. A suspicion's leaf is found by its id, a decision's by the
suspicion's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final, NamedTuple

from leaderboard import events as ev
from leaderboard.audit_accounts import Fault, Few, Report, unequal
from leaderboard.audit_beside import CountedBeside, Forgotten, check_end, is_committed, put_all
from leaderboard.audit_leaves import NOBODY, Leaf, LogKeys
from leaderboard.audit_rebuild import leaves_in
from leaderboard.audit_suspicions import Suspected
from leaderboard.codec_writing import encode_data
from leaderboard.fraud_ports import (
    LONGEST_RULE,
    LONGEST_WORDS,
    NO_EVIDENCE,
    kept_text,
    partner_in,
    review_id,
    sequence_in,
    severity_hundredths,
)
from leaderboard.model import ERASED, Offset, Place, TournamentId
from leaderboard.record_ports import AlertRow, ReviewRow, Witness

_PAIRS: Final = "collusion"
"""The rule that names a second player."""


class _Told(NamedTuple):
    leaf: Leaf
    is_ours: bool
    """Whether it is from who tells of suspicions; anybody else's has an id of their own."""

    @property
    def where(self) -> str:
        return f"{self.leaf.tournament_id}, offset {self.leaf.offset} of {self.leaf.place}"


class AlertCheck:
    """Compares all partitions: first `take` of each, then `run`.

    `gone` are tournaments that the record may have let go of, and has; `found` is what the inputs
    come to, where they were folded."""

    def __init__(
        self, witness: Witness, keys: LogKeys, forgotten: Forgotten, report: Report
    ) -> None:
        self._witness = witness
        self._keys = keys
        self._forgotten = forgotten
        self._report = report
        self._alerts: dict[str, _Told] = {}
        self._reviews: dict[str, Leaf] = {}
        self._sources = {ev.POSITION_SOURCE}
        self._emptied: set[str] = set()

    def take(self, place: Place, entries: Iterable[bytes], end: Offset) -> None:
        """The leaves of a partition, up to where the record has read. Raises AuditError."""
        last = -1
        for _, leaf in leaves_in(place, entries):
            if leaf.offset >= end:
                break
            last = leaf.offset
            if leaf.kind == "fraud.suspected":
                self._sources.add(leaf.source)
                told = _Told(leaf, leaf.source == ev.POSITION_SOURCE)
                before = self._alerts.setdefault(leaf.id, told).leaf
                if not _is_same(before, leaf):
                    where = f"{place} of the log at offset {leaf.offset}"
                    self._report(Fault(where, "was told before, with other words"))
            elif leaf.kind == "fraud.reviewed":
                self._reviews[str((leaf.data or {}).get("alert_id"))] = leaf
        check_end(place, last, end, self._report)

    def run(
        self,
        gone: Set[TournamentId],
        found: Mapping[tuple[TournamentId, int, str], Suspected],
        counted: CountedBeside,
    ) -> None:
        """The rows, and what has none."""
        faults = Few(self._report)
        for one in _with_keys(self._witness, self._witness.alerts()):
            self._compare_alert(one, found, faults, counted)
        for told in self._alerts.values():
            if told.is_ours and told.leaf.tournament_id not in gone:
                faults.put(Fault(f"fraud_alerts of {told.where}", "is missing in the record"))
        faults.end("fraud_alerts")
        counted.untold = sum(name not in gone for name, _, _ in found) - counted.given
        faults = Few(self._report)
        for review in self._witness.reviews():
            self._compare_review(review, faults, counted)
        for leaf in self._reviews.values():
            if leaf.tournament_id not in gone:
                where = f"fraud_reviews of {_Told(leaf, True).where}"
                faults.put(Fault(where, "is missing in the record"))
        faults.end("fraud_reviews")

    # suspicions

    def _compare_alert(
        self,
        row: AlertRow,
        found: Mapping[tuple[TournamentId, int, str], Suspected],
        faults: Few,
        counted: CountedBeside,
    ) -> None:
        told = self._told_of(row.alert_id)
        if row.evidence == NO_EVIDENCE:
            self._emptied.add(row.alert_id)
        if told is None:
            where = f"fraud_alerts of {row.tournament_id}, {row.alert_id}"
            faults.put(Fault(where, "is in the record, and the log has no such"))
            return
        counted.alerts += 1
        leaf, (_, sequence, rule) = told.leaf, _parts_of(row.alert_id)
        tournament_id = leaf.tournament_id or TournamentId("")
        given = found.get((tournament_id, sequence, rule))
        counted.given += given is not None and given.player == leaf.player
        where = f"fraud_alerts of {tournament_id}, {row.alert_id}"
        put_all(faults, where, self._unlike_alert(row, told, given, counted))

    def _told_of(self, alert_id: str) -> _Told | None:
        for source in self._sources:
            told = self._alerts.pop(self._keys.id_of(source, alert_id), None)
            if told is not None:
                return told
        return None

    def _unlike_alert(
        self, row: AlertRow, told: _Told, given: Suspected | None, counted: CountedBeside
    ) -> Iterator[str]:
        leaf = told.leaf
        yield from unequal(
            {
                "tournament_id": (row.tournament_id, leaf.tournament_id),
                "rule": (row.rule, _kept((leaf.data or {}).get("rule"), LONGEST_RULE)),
                "time_ms": (row.time_ms, leaf.time_ms),
            }
        )
        key = self._witness.key_of(row.tournament_id, row.player_id)
        if key is not None and key.pseudonym != leaf.player:
            yield f"is of {row.player_id}, in the log of somebody else"
            return
        try:
            evidence = json.loads(row.evidence)
        except ValueError:
            evidence = None
        if not isinstance(evidence, dict):
            yield "evidence is no JSON object"
            return
        if key is not None and is_committed(
            leaf, key.secret, row.alert_id, [_data_of(row, evidence)]
        ):
            yield from unequal(
                {
                    "other_player_id": (row.other_player_id, partner_in(evidence)),
                    "sequence": (row.sequence, sequence_in(evidence)),
                    "severity_hundredths": (
                        row.severity_hundredths, severity_hundredths(evidence),
                    ),
                }
            )  # fmt: skip
        elif row.evidence == NO_EVIDENCE:
            yield from self._unlike_emptied(row, told, given, counted, is_named=key is not None)
        elif key is None:
            yield f"is of {row.player_id}, of whom there is no key"
        elif told.is_ours:
            yield "evidence is not what the log is committed to"
        else:
            counted.unproved += 1  # whoever wrote it may write data in another way

    def _unlike_emptied(
        self,
        row: AlertRow,
        told: _Told,
        given: Suspected | None,
        counted: CountedBeside,
        *,
        is_named: bool,
    ) -> Iterator[str]:
        """A row that an erasure has emptied: its player's, or of whom the evidence named."""
        leaf, (_, sequence, _) = told.leaf, _parts_of(row.alert_id)
        if told.is_ours:
            yield from unequal({"sequence": (row.sequence, sequence)})
        if given is None or given.severity_hundredths != row.severity_hundredths:
            # Whoever told of it may have begun anew, and have known less of the player.
            counted.unproved += 1
        if row.other_player_id is not None:
            yield "names whom an erasure takes away"
        forgotten, tournament_id = self._forgotten, row.tournament_id
        if is_named:
            partner = None if given is None else given.partner
            is_right = row.rule == _PAIRS and forgotten.has(self._witness, tournament_id, partner)
            if not is_right:
                yield "is emptied, and the log has forgotten nobody whom it named"
        elif not row.player_id.startswith(ERASED):
            yield f"is of {row.player_id}, of whom there is no key"
        elif not forgotten.has(self._witness, tournament_id, leaf.player):
            yield "stands as erased, and the log has not erased its player"
        elif leaf.player is not None:
            name = forgotten.names.get((tournament_id, leaf.player), row.player_id)
            yield from unequal({"player_id": (row.player_id, name)})

    # decisions

    def _compare_review(self, row: ReviewRow, faults: Few, counted: CountedBeside) -> None:
        leaf = self._reviews.pop(self._keys.id_of(ev.POSITION_SOURCE, row.alert_id), None)
        if leaf is None:
            where = f"fraud_reviews of {row.tournament_id}, {row.alert_id}"
            faults.put(Fault(where, "is in the record, and the log has no such"))
            return
        counted.reviews += 1
        where = f"fraud_reviews of {leaf.tournament_id}, {row.alert_id}"
        put_all(faults, where, self._unlike_review(row, leaf, counted))

    def _unlike_review(self, row: ReviewRow, leaf: Leaf, counted: CountedBeside) -> Iterator[str]:
        told = leaf.data or {}
        yield from unequal(
            {
                "tournament_id": (row.tournament_id, leaf.tournament_id),
                "decision": (row.decision, told.get("decision")),
                "decided_by": (row.decided_by, _kept(told.get("decided_by"), LONGEST_WORDS)),
                "decided_at_ms": (row.decided_at_ms, leaf.time_ms),
            }
        )
        if row.reason == NOBODY and row.alert_id in self._emptied:
            return  # a reason may name anybody
        event_id = review_id(row.alert_id, str(told.get("decision")), leaf.time_ms)
        if self._keys.id_of(leaf.source, event_id) != leaf.id or "\\x00" in (row.reason or ""):
            # Whoever wrote it numbers decisions in another way; or the record keeps other words.
            counted.unproved += 1
            return
        given = {name: getattr(row, name) for name in ("alert_id", "decision", "decided_by")}
        given |= {"tournament_id": row.tournament_id}
        if row.reason is not None:
            given["reason"] = row.reason
        ordered = {name: given[name] for name in ev.FraudReviewed.model_fields if name in given}
        data = ev.FraudReviewed.model_construct(_fields_set=set(ordered), **ordered)
        if not is_committed(leaf, self._keys.others, event_id, [encode_data(data)]):
            yield "reason is not what the log is committed to"


def _kept(text: object, most: int) -> object:
    return kept_text(text, most) if isinstance(text, str) else text


def _is_same(one: Leaf, other: Leaf) -> bool:
    """Whether two leaves of one id tell the same; the later one's player may be forgotten."""
    players = {one.player, other.player} - {None}
    return (one.tournament_id, one.time_ms, one.data) == (
        other.tournament_id, other.time_ms, other.data,
    ) and len(players) < 2  # fmt: skip


def _data_of(row: AlertRow, evidence: dict[str, Any]) -> bytes:
    """What the row's event said, as its writer put it."""
    given: dict[str, Any] = {
        "tournament_id": row.tournament_id, "player_id": row.player_id, "rule": row.rule,
        "evidence": evidence,
    }  # fmt: skip
    return encode_data(ev.FraudSuspected.model_construct(_fields_set=set(given), **given))


def _parts_of(alert_id: str) -> tuple[str, int, str]:
    """Tournament, offset and rule of an id that `fraud.alert_id` made; -1 of any other."""
    tournament_id, _, rest = alert_id.partition("/")
    number, _, rule = rest.partition("/")
    return tournament_id, int(number) if number.isascii() and number.isdecimal() else -1, rule


def _with_keys(witness: Witness, rows: Iterable[AlertRow]) -> Iterator[AlertRow]:
    """The rows; keys of a tournament are let go of when its last row has come."""
    before = None
    for row in rows:
        if before not in (None, row.tournament_id):
            witness.done_with([before])
        before = row.tournament_id
        yield row
    if before is not None:
        witness.done_with([before])
