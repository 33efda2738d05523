"""A tournament in the record against the same in the audit log: its own row, terms, players, who
stays out, standings. See `audit_record`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from leaderboard import events as ev
from leaderboard.audit_replay import OVER, Refolded, name_when_erased
from leaderboard.fold import RemovalReason, Terms
from leaderboard.model import ERASED, PlayerId, erased_name
from leaderboard.ports import PlayerRow
from leaderboard.record_ports import AccountRow, MemberRow, StandingRow, Witness

ERASED_REASON: Final = RemovalReason.ERASED.value
SHOWN: Final = 5
"""Differing rows of one table that are told one by one; the rest of it is only counted."""


class Fault(NamedTuple):
    """Something that is not as the log has it. `where` is the place to look at."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


Report = Callable[[Fault], None]


@dataclass(slots=True)
class People:
    """Who stands behind the players' numbers of one tournament, as its inputs have shown."""

    by_no: dict[int, PlayerId | None] = field(default_factory=dict)
    """None: somebody of whom no leaf has a pseudonym."""
    no_of: dict[PlayerId, int] = field(default_factory=dict)
    names: dict[int, str | None] = field(default_factory=dict)
    erasure_ids: dict[int, str | None] = field(default_factory=dict)
    """By offset; what the record's inputs say, as their keys are gone."""
    erased_names: dict[PlayerId, str] = field(default_factory=dict)
    """Under which names erased players stand since."""


class AccountCheck:
    """One tournament in the record against the same in the log, at the same offset."""

    def __init__(
        self,
        witness: Witness,
        account: AccountRow,
        refolded: Refolded,
        people: People,
        report: Report,
    ) -> None:
        self._witness = witness
        self._account = account
        self._mine = refolded
        self._people = people
        self._report = report
        self._name = account.tournament_id
        self._erased: set[PlayerId] = set()
        """Names that erasures have left, by the marks in the record."""

    def run(self) -> None:
        account, mine = self._account, self._mine
        terms = mine.terms
        wanted = {
            "log_offset": (account.offset, mine.offset),
            "sequence": (account.sequence, mine.standings.sequence),
            "state": (account.state, terms.state.value),
            "starts_at_ms": (account.starts_at_ms, terms.starts_at_ms),
            "ends_at_ms": (account.ends_at_ms, terms.ends_at_ms),
            "players": (account.players, len(mine.standings)),
            "players_seen": (account.players_seen, len(self._people.by_no)),
            "ids_applied": (account.ids_applied, mine.ids_applied),
            "over_at_ms": (account.over_at_ms, mine.over_at_ms),
        }
        for what in (*unequal(wanted), *unlike_terms(account.terms, terms)):
            self._report(Fault(f"tournaments, {self._name}", what))
        self._compare_revisions()
        self._compare_members()
        rows = mine.rows()
        found = enumerate(self._witness.standings(account), 1)
        self._compare_rows("standings", found, rows)
        if terms.state in OVER:
            self._compare_rows("final_standings", self._witness.final(account), rows)
        else:
            self._compare_rows("final_standings", self._witness.final(account), [])
        ids = self._people.erasure_ids
        wanted_erasures = sorted((at, ids.get(at), asked) for at, asked in mine.erasures)
        if list(self._witness.erasures(account)) != wanted_erasures:
            self._report(Fault(f"erasures of {self._name}", "are not those of the log"))

    def _compare_revisions(self) -> None:
        where = f"terms_history of {self._name}"
        found = list(self._witness.revisions(self._account))
        for one, mine in zip_longest(found, self._mine.revisions):
            if one is None:
                self._report(Fault(f"{where} at {mine.revision}", "is missing in the record"))
            elif mine is None or one[0] != mine.revision:
                self._report(Fault(f"{where} at {one[0]}", "the log has no such revision"))
                return
            else:
                for what in unlike_terms(one[1], mine):
                    self._report(Fault(f"{where} at {one[0]}", what))

    def _compare_members(self) -> None:
        faults = Few(self._report)
        found = self._witness.exclusions(self._account)
        self._erased = {erased_name(mark) for _, why, mark in found if why == ERASED_REASON}
        seen, hidden, out = set(), set(), set()
        for member in self._witness.members(self._account):
            seen.add(member.no)
            where = f"players of {self._name}, number {member.no}"
            for what in self._unlike_member(member):
                faults.put(Fault(where, what))
            if self._witness.key_of(self._name, member.player_id) is None:
                hidden.add(member.player_id)
            elif member.out_at is not None:
                out.add(self._witness.mark_of(self._name, member.player_id))
        for no in self._people.by_no.keys() - seen:
            faults.put(Fault(f"players of {self._name}, number {no}", "is missing in the record"))
        faults.end(f"players of {self._name}")
        if [(at, why) for at, why, _ in found] != sorted(
            (at, why.value) for at, why in self._mine.out.values()
        ):
            what = "offsets or reasons are not those of the log"
        elif not out <= {mark for _, _, mark in found} or not hidden <= self._erased:
            what = "a mark is not that of the player who is out"
        else:
            return
        self._report(Fault(f"exclusions of {self._name}", what))

    def _unlike_member(self, member: MemberRow) -> Iterator[str]:
        if member.no not in self._people.by_no:
            yield "no input of the log is of this player"
            return
        mine = self._people.by_no[member.no]
        key = self._witness.key_of(self._name, member.player_id)
        if key is not None:
            if key.pseudonym != mine:
                yield f"is {member.player_id}, in the log somebody else"
            name = self._people.names.get(member.no)
            yield from unequal({"display_name": (member.display_name, name)})
        elif not member.player_id.startswith(ERASED):
            yield f"is {member.player_id}, of whom there is no key"
        elif mine is not None and not self._mine.is_erased(mine):
            yield "stands as erased, and the log has not erased them"
        elif member.player_id not in self._erased:
            yield f"stands as {member.player_id}, and no mark is of that name"
        elif member.display_name is not None:
            yield "an erased player has a display_name"
        elif mine is not None:
            self._people.erased_names[mine] = PlayerId(member.player_id)
        if mine is not None:
            yield from unequal(
                {
                    "joined_at": (member.joined_at, self._mine.joined.get(mine)),
                    "out_at": (member.out_at, self._mine.out_first.get(mine)),
                }
            )

    def _compare_rows(
        self, table: str, found: Iterable[tuple[int, StandingRow]], rows: list[PlayerRow]
    ) -> None:
        faults = Few(self._report)
        for wanted_rank, (one, mine) in enumerate(zip_longest(found, rows), 1):
            where = f"{table} of {self._name} at rank {wanted_rank}"
            if one is None:
                faults.put(Fault(where, "is missing in the record"))
                continue
            rank, row = one
            if rank != wanted_rank:
                faults.put(Fault(where, f"the record has rank {rank} here"))
            elif mine is None:
                faults.put(Fault(where, "the log has nobody here"))
            elif not self._is_same(row, mine):
                faults.put(
                    Fault(
                        where,
                        f"number {row.no} with {row.score.score} since {row.reached}, "
                        f"in the log {self._shown(mine)}",
                    )
                )
        faults.end(f"{table} of {self._name}")

    def _is_same(self, row: StandingRow, mine: PlayerRow) -> bool:
        player = self._people.by_no.get(row.no)
        names = () if player is None else (player, name_when_erased(player))
        return mine.player_id in names and (row.score, row.reached) == (mine.score, mine.reached)

    def _shown(self, mine: PlayerRow) -> str:
        no = self._people.no_of.get(mine.player_id)
        who = "an erased player" if no is None else f"number {no}"
        return f"{who} with {mine.score.score} since {mine.reached}"


class Few:
    """Tells the first faults of a table and counts the rest: one row too many shifts all below."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0

    def put(self, fault: Fault) -> None:
        self._count += 1
        if self._count <= SHOWN:
            self._report(fault)

    def end(self, where: str) -> None:
        if self._count > SHOWN:
            self._report(Fault(where, f"{self._count - SHOWN} more rows differ"))


def unequal(pairs: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            yield f"{name} is {found!r}, by the log {wanted!r}"


_PLAIN_TERMS: Final = (
    *("name", "state", "starts_at_ms", "ends_at_ms", "created", "revision"),
    *("backfilled", "stays_out"),
)


def unlike_terms(found: Terms, mine: Terms) -> Iterator[str]:
    """All of the terms that the log tells in clear: not what nobody understands, nor wishes."""
    pairs = {name: (getattr(found, name), getattr(mine, name)) for name in _PLAIN_TERMS}
    pairs["events of control"] = (len(found.control_ids), len(mine.control_ids))
    if mine.prizes is not None:
        pairs["prizes"] = (found.prizes, mine.prizes)
    for name in ev.Rules.model_fields:
        if name != "scoring":
            pairs[f"rules.{name}"] = (getattr(found.rules, name), getattr(mine.rules, name))
    pairs["rules.scoring"] = (_known(found.rules.scoring), _known(mine.rules.scoring))
    for what in unequal(pairs):
        yield f"terms: {what}"


def _known(scoring: Any) -> dict[str, Any]:
    return {name: getattr(scoring, name) for name in type(scoring).model_fields}
