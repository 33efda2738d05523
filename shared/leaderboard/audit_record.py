"""The record held against the audit log: every input, change, player and standing, row by row.

The log names players by pseudonyms and events by keyed hashes, and tells their data in part; the
rest is in each leaf's commitment. So with the keys that still exist every column that says what
happened can be proved. Of players who were erased the keys are gone, and the record's rows are
rewritten: of those what the fold needs is compared, and that it really is an erased player's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from leaderboard.audit_accounts import AccountCheck, Fault, Few, People, Report, unequal
from leaderboard.audit_leaves import NOBODY, Leaf, LogKeys, PlayerKey, commitment, opening, said
from leaderboard.audit_replay import Refolded, Step, Told, entry_of
from leaderboard.model import ERASED, Place, PlayerId, Score, TournamentId
from leaderboard.record_ports import (
    ChangeRow,
    InputRow,
    Witness,
)
from leaderboard.terms import event_key_of

_HIDDEN_WORDS: Final = ("reason", "decided_by")
_UNPROVED: Final = frozenset({"tournament_id", "player_id", "erasure_id", "wager", *_HIDDEN_WORDS})
_DEFAULTS: Final[Mapping[str, Any]] = {"win_minor": 0, "subscore": None}


class RecordCheck:
    """Compares one partition. Steps come in the order of the log; `finish` when all have come that
    the record has taken in."""

    def __init__(self, witness: Witness, keys: LogKeys, place: Place, report: Report) -> None:
        self._witness = witness
        self._keys = keys
        self._place = place
        self._report = report
        self._rows = _Peeked(witness.inputs(place.partition))
        self._people: dict[TournamentId, People] = {}
        self.inputs = 0
        """Rows compared."""
        self.fraud_rules: Any = None
        """What the schedule that came last says of fraud rules: the log does not tell them."""
        self._accounts = witness.accounts(place.partition)
        self.tournaments = {one.tournament_id for one in self._accounts}
        """That the record has."""

    # inputs

    def take(self, step: Step) -> None:
        """The next input of the log."""
        offset = step.leaf.offset
        self._drop_below(offset)
        found = []
        while (row := self._rows.head) is not None and row.offset == offset:
            found.append(row)
            self._rows.pop()
        if step.tournament is None:
            for row in found:
                self._input_fault(row, "is in the record, and is refused by the log's fold")
            return
        mine = [row for row in found if row.tournament_id == step.tournament.tournament_id]
        for row in found:
            if row not in mine:
                self._input_fault(row, "is not this tournament's event")
        if not mine and step.tournament.tournament_id not in self.tournaments:
            return  # `finish` tells of the whole tournament, unless it is old
        if not mine:
            where = f"inputs of {step.tournament.tournament_id} at offset {offset}"
            self._report(Fault(where, "is missing in the record"))
            return
        self.inputs += 1
        for fault in self._compare(mine[0], step):
            self._input_fault(mine[0], fault)

    def _drop_below(self, offset: int) -> None:
        while (row := self._rows.head) is not None and row.offset < offset:
            self._input_fault(row, f"is in the record, and {self._place} of the log has no such")
            self._rows.pop()

    def _input_fault(self, row: InputRow, what: str) -> None:
        self._report(Fault(f"inputs of {row.tournament_id} at offset {row.offset}", what))

    def _compare(self, row: InputRow, step: Step) -> Iterator[str]:
        leaf, before = step.leaf, step.before
        score = Score(0) if before is None else before.score
        yield from unequal(
            {
                "kind": (row.kind, leaf.kind),
                "source": (row.source, leaf.source),
                "time_ms": (row.time_ms, leaf.time_ms),
                "logged_at_ms": (row.logged_at_ms, leaf.logged_ms),
                "number": (row.number, leaf.number),
                "disposition": (row.disposition, step.verdict.value),
                "ordinal": (row.ordinal, step.ordinal),
                "touched": (bool(row.touched), step.touched),
                "before_score": (row.before_score, None if before is None else score.score),
                "before_subscore": (
                    row.before_subscore,
                    None if before is None else score.subscore,
                ),
                "before_reached": (row.before_reached, None if before is None else before.reached),
            }
        )
        people = self._people.setdefault(TournamentId(row.tournament_id), People())
        if leaf.player is None and not leaf.is_of_nobody:
            if row.player_no is not None:
                yield "names a player, and the event has none"
            yield from self._proved(row, step, self._keys.others)
            if leaf.kind == "tournament.scheduled":
                self.fraud_rules = _fraud_rules(row.data)
            return
        key = self._key_of(row)
        if key is None:
            yield from self._compare_hidden(row, step, people)
            return
        if leaf.player != key.pseudonym or row.player_no is None:
            yield f"is of player {row.player_id}, in the log of another one"
            return
        yield from _linked(people, row.player_no, leaf.player)
        yield from self._proved(row, step, key.secret)
        if leaf.kind == "player.joined" and step.verdict.value == "applied":
            people.names[row.player_no] = _field(row.data, "display_name")

    def _key_of(self, row: InputRow) -> PlayerKey | None:
        if row.player_id is None:
            return None
        return self._witness.key_of(TournamentId(row.tournament_id), row.player_id)

    def _proved(self, row: InputRow, step: Step, secret: bytes) -> Iterator[str]:
        """Id and data, to the byte."""
        leaf = step.leaf
        key = opening(secret, leaf.place.topic, leaf.place.partition, leaf.offset)
        if commitment(key, said(row.event_id, row.data.encode())) != leaf.commitment:
            yield "event_id or data is not what the log is committed to"
        wanted = event_key_of(row.source, row.event_id) if step.is_action else None
        if row.event_key is not None and wanted is not None:
            if bytes(row.event_key) != wanted:
                yield "event_key is not that of source and event_id"
        elif row.event_key is not None or wanted is not None:
            yield f"event_key is {'there' if wanted is None else 'missing'}"

    def _compare_hidden(self, row: InputRow, step: Step, people: People) -> Iterator[str]:
        """A row that was rewritten when its player was erased."""
        leaf, name = step.leaf, row.player_id
        if name is not None and not name.startswith(ERASED):
            yield f"is of player {name}, of whom there is no key"
            return
        if row.player_no is None:
            # Only who was never there has no number: nobody writes down a name to forget it.
            if leaf.kind != "player.erased" or leaf.player in people.no_of:
                yield "names no player"
        elif leaf.player is not None:
            yield from _linked(people, row.player_no, leaf.player)
        else:
            people.by_no.setdefault(row.player_no, None)
        if leaf.kind == "player.erased":
            people.erasure_ids[row.offset] = _field(row.data, "erasure_id")
        if (row.event_key is None) is step.is_action:
            yield f"event_key is {'missing' if step.is_action else 'there'}"
        hidden = f"{NOBODY}-" if row.event_key is None else f"{NOBODY}-{bytes(row.event_key).hex()}"
        if not row.event_id.startswith(hidden):
            yield "event_id is not the one that an erasure leaves"
        yield from _hidden_data(row, leaf)

    # everything else

    def finish(
        self,
        tournaments: Mapping[TournamentId, Refolded],
        is_expired: Callable[[Refolded], bool],
    ) -> None:
        """All inputs have come that the record has. `is_expired`: whether the record may have let
        go of a tournament, because of its age."""
        while (row := self._rows.head) is not None:
            self._input_fault(row, f"is in the record, and {self._place} of the log has no such")
            self._rows.pop()
        known = self.tournaments
        for account in self._accounts:
            refolded = tournaments.get(account.tournament_id)
            if refolded is None or refolded.place.partition != self._place.partition:
                where = f"tournaments, {account.tournament_id}"
                self._report(Fault(where, f"no schedule in {self._place} of the log"))
                continue
            check = AccountCheck(
                self._witness, account, refolded,
                self._people.get(account.tournament_id, People()), self._report,
            )  # fmt: skip
            check.run()
        for name, refolded in tournaments.items():
            if refolded.place == self._place and name not in known and not is_expired(refolded):
                self._report(Fault(f"tournaments, {name}", "is missing in the record"))

    def erased_names(self) -> dict[tuple[TournamentId, PlayerId], str]:
        """Under which name the record has an erased player, by tournament and pseudonym."""
        return {
            (tournament_id, player): name
            for tournament_id, people in self._people.items()
            for player, name in people.erased_names.items()
        }

    def changes(
        self, tournament_id: TournamentId, refolded: Refolded, told: Told, count: int, mark: int
    ) -> int:
        """The record's position changes against the first `count` that the log has told; how many
        were equal. `mark`: where the record says that they end."""
        where = f"position_changes of {tournament_id}"
        faults = Few(self._report)
        equal = 0
        wanted = (told.at(index) for index in range(count))
        for row, entry in _merged(self._witness.changes(tournament_id), wanted):
            if row is None and entry is not None:
                faults.put(Fault(f"{where} at sequence {entry[0]}", "is missing in the record"))
            elif row is not None and entry is None:
                at = f"{where} at sequence {row.sequence}"
                faults.put(Fault(at, "is in the record, and was never told"))
            elif row is not None and entry is not None:
                what = self._unlike(tournament_id, row, entry, refolded)
                equal += what is None
                if what is not None:
                    faults.put(Fault(f"{where} at sequence {row.sequence}", what))
        last = told.at(count - 1)[0] if count else -1
        if mark != last:
            told_where = f"told_changes of {tournament_id}"
            faults.put(Fault(told_where, f"ends at {mark}, the log at {last}"))
        faults.end(where)
        return equal

    def _unlike(
        self,
        tournament_id: TournamentId,
        row: ChangeRow,
        entry: tuple[int, PlayerId, bytes, bytes],
        refolded: Refolded,
    ) -> str | None:
        key = self._witness.key_of(tournament_id, row.player_id)
        cause_id = row.cause_id
        if key is not None:
            cause_id = self._keys.id_of(row.cause_source, cause_id)
        elif not (row.player_id.startswith(ERASED) and refolded.is_erased(entry[1])):
            return f"is of {row.player_id}, of whom there is no key"
        elif cause_id != NOBODY:
            return "still names what an erased player did"
        data = {
            "sequence": row.sequence, "old_rank": row.old_rank, "new_rank": row.new_rank,
            "score": row.score, "subscore": row.subscore, "distance": row.distance,
            "cause": {"source": row.cause_source, "id": cause_id},
        }  # fmt: skip
        found = entry_of(data, entry[1] if key is None else PlayerId(key.pseudonym), row.time_ms)
        if found[3] != entry[3]:
            return "ranks, score, distance, source or time differ from what was told"
        if key is not None and found != entry:
            return "player or cause differ from what was told"
        return None


# --- parts ---------------------------------------------------------------------------------------


class _Peeked:
    """Rows of which the next one can be looked at."""

    def __init__(self, rows: Iterator[InputRow]) -> None:
        self._rows = rows
        self.head: InputRow | None = next(rows, None)

    def pop(self) -> None:
        self.head = next(self._rows, None)


def _linked(people: People, no: int, player: PlayerId) -> Iterator[str]:
    """A number stands for one player, and a player under one number."""
    if people.by_no.get(no) is None:
        people.by_no[no] = player
    if people.no_of.setdefault(player, no) != no or people.by_no[no] != player:
        yield f"is of number {no}, and the player's other events of another one"


def _hidden_data(row: InputRow, leaf: Leaf) -> Iterator[str]:
    try:
        data = json.loads(row.data)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        yield "data is no JSON object"
        return
    name = data.get("player_id")
    if (
        not isinstance(name, str)
        or not name.startswith(ERASED)
        or row.player_id not in (None, name)
    ):
        yield "data names another player than the row"
    if data.get("tournament_id") != row.tournament_id:
        yield "data is of another tournament"
    told = {k: v for k, v in (leaf.data or {}).items() if k not in _UNPROVED}
    kept = {k: v for k, v in data.items() if k not in _UNPROVED}
    for field_name in sorted(told.keys() | kept.keys()):
        default = _DEFAULTS.get(field_name, ...)
        if kept.get(field_name, default) != told.get(field_name, default):
            yield f"{field_name} in data is not that of the log"
    if any(data.get(word, NOBODY) != NOBODY for word in _HIDDEN_WORDS):
        yield "data has words that an erasure takes away"
    if data.get("wager", {"source": NOBODY, "id": NOBODY}) != {"source": NOBODY, "id": NOBODY}:
        yield "data names a wager that an erasure takes away"


def _fraud_rules(data: str) -> Any:
    rules = _field(data, "rules")
    return rules.get("fraud") if isinstance(rules, dict) else None


def _field(data: str, name: str) -> Any:
    try:
        return json.loads(data).get(name)
    except (ValueError, AttributeError):
        return None


def _merged(
    rows: Iterator[ChangeRow], entries: Iterator[tuple[int, PlayerId, bytes, bytes]]
) -> Iterator[tuple[ChangeRow | None, tuple[int, PlayerId, bytes, bytes] | None]]:
    """Both in order of their sequences, those of one sequence together."""
    row, entry = next(rows, None), next(entries, None)
    while row is not None or entry is not None:
        if entry is None or (row is not None and row.sequence < entry[0]):
            yield row, None
            row = next(rows, None)
        elif row is None or entry[0] < row.sequence:
            yield None, entry
            entry = next(entries, None)
        else:
            yield row, entry
            row, entry = next(rows, None), next(entries, None)
