"""Real input: three Formula 1 seasons through the whole path, compared after every round.

The data and their credit: tests/data/f1/README.md. One backfilled tournament a season; results
go in as `score.submitted`; the standings that `query` answers are compared with the official
ones."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import httpx

from leaderboard import events as ev
from running import wait_for
from whole_path import Path, event, header, unique

DATA = FilePath(__file__).parent.parent / "data" / "f1"
OFFICIAL_ROWS = 1443
RESULTS = 1659


class Result(NamedTuple):
    """What one driver took from one session. `classified`: neither retired nor kept out."""

    driver: str
    points: int
    is_sprint: bool
    classified: bool


class Place(NamedTuple):
    """One row of a table: official or ours."""

    rank: int
    driver: str
    points: int


Round = tuple[int, int]
"""Season and round."""


def read_results() -> dict[Round, list[Result]]:
    """All results by round, in the order of the log: sprints are driven before races."""
    found: dict[Round, list[Result]] = defaultdict(list)
    with (DATA / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[int(row["season"]), int(row["round"])].append(
                Result(
                    row["driver"],
                    int(row["points"]),  # no half points in these seasons: anything else fails
                    row["session"] == "sprint",
                    row["position"].isdecimal(),
                )
            )
    return {at: sorted(rows, key=lambda row: not row.is_sprint) for at, rows in found.items()}


def read_official() -> dict[Round, list[Place]]:
    found: dict[Round, list[Place]] = defaultdict(list)
    with (DATA / "standings.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[int(row["season"]), int(row["round"])].append(
                Place(int(row["position"]), row["driver"], int(row["points"]))
            )
    return dict(found)


def opening(season: int) -> datetime:
    return datetime(season, 3, 1, tzinfo=UTC)


def season_schedule(tournament_id: str, season: int) -> ev.Event:
    """A tournament that lies years back: it counts by the times of its events."""
    data = ev.TournamentScheduled(
        tournament_id=tournament_id,
        name=f"Formula 1 {season}",
        starts_at=opening(season),
        ends_at=datetime(season + 1, 1, 1, tzinfo=UTC),
        rules=ev.Rules.model_validate({"scoring": {"kind": "submitted"}}),
    )
    return event(data, time_ms=ev.to_ms(opening(season)))


def round_events(tournament_id: str, at: Round, results: Sequence[Result]) -> list[ev.Event]:
    season, number = at
    sunday = opening(season) + timedelta(weeks=number)
    sessions = {True: "sprint", False: "race"}
    return [
        event(
            ev.ScoreSubmitted(
                tournament_id=tournament_id, player_id=result.driver, score=result.points
            ),
            time_ms=ev.to_ms(sunday - timedelta(days=result.is_sprint)),
            event_id=f"{season}/{number}/{sessions[result.is_sprint]}/{result.driver}",
        )
        for result in results
    ]


def levels(places: Sequence[Place]) -> dict[int, list[int]]:
    """The ranks that each number of points holds."""
    found: dict[int, list[int]] = defaultdict(list)
    for place in places:
        found[place.points].append(place.rank)
    return {points: sorted(ranks) for points, ranks in found.items()}


def assert_agree(ours: Sequence[Place], official: Sequence[Place], unlisted: set[str]) -> int:
    """Points of every official row, ranks wherever points differ; how many rows were equal.

    `unlisted` drivers retired from all they drove so far: the sport leaves them out until they
    are classified once, a board shows their 0 points. They stand level with the last."""
    points = {place.driver: place.points for place in ours}
    assert points == {p.driver: p.points for p in official} | dict.fromkeys(unlisted, 0)
    assert [place.rank for place in ours] == list(range(1, len(ours) + 1))
    our_levels, official_levels = levels(ours), levels(official)
    if unlisted and 0 in official_levels:
        first = official_levels[0][0]
        official_levels[0] = list(range(first, first + len(our_levels[0])))
    elif unlisted:
        official_levels[0] = list(range(len(official) + 1, len(ours) + 1))
    assert our_levels == official_levels
    rank = {place.driver: place.rank for place in ours}
    equal = 0
    for place in official:
        ranks = our_levels[place.points]
        assert rank[place.driver] == place.rank if len(ranks) == 1 else place.rank in ranks
        equal += 1
    return equal


def places_of(rows: Sequence[Mapping[str, Any]]) -> list[Place]:
    return [Place(row["rank"], row["player_id"], row["score"]) for row in rows]


def state_of(path: Path, tournament_id: str) -> str:
    return str(path.get(f"/v1/tournaments/{tournament_id}").json()["state"])


def ends_in_log(path: Path, tournament_ids: Collection[str]) -> list[str]:
    """Who wrote the ends of these tournaments, by their sources."""
    keys = {name.encode() for name in tournament_ids}
    kind = ev.type_of(ev.TournamentEnded).encode()
    ends = path.consumed(
        ev.WAGERS, lambda r: r.key in keys and dict(r.headers).get("ce_type") == kind
    )
    return [header(record, "ce_source") for record in ends]


def tick(path: Path) -> httpx.Response:
    """The timer's event, as the stack's own clock sends it every second."""
    return path.http.post(
        f"{path.settings['TOURNAMENT_URL']}/",
        json={},
        headers={
            "ce-specversion": "1.0",
            "ce-id": unique("tick"),
            "ce-source": "/tests",
            "ce-type": "io.leaderboard.timer.ticked.v1",
        },
    )


def test_three_seasons_of_formula_1_stand_as_the_official_tables_after_every_round(
    path: Path,
) -> None:
    results, official = read_results(), read_official()
    assert sum(map(len, official.values())) == OFFICIAL_ROWS
    assert sum(map(len, results.values())) == RESULTS
    assert official.keys() == results.keys()
    seasons = {season: unique(f"f1-{season}") for season in sorted({at[0] for at in official})}
    path.publish([season_schedule(name, season) for season, name in seasons.items()])
    classified: dict[int, set[str]] = defaultdict(set)
    driven: dict[int, set[str]] = defaultdict(set)
    compared = 0
    for at in sorted(official, key=lambda at: (at[1], at[0])):
        season = at[0]
        entries = path.publish(round_events(seasons[season], at, results[at]))
        driven[season] |= {result.driver for result in results[at]}
        classified[season] |= {result.driver for result in results[at] if result.classified}
        path.reached(seasons[season], entries[-1].offset)
        ours = places_of(path.standings(seasons[season]))
        compared += assert_agree(ours, official[at], driven[season] - classified[season])
    assert compared == OFFICIAL_ROWS

    assert tick(path).status_code == 204
    for name in seasons.values():
        assert state_of(path, name) == "running", "a backfilled tournament was ended by the clock"
    ends = [ev.TournamentEnded(tournament_id=t, decided_by="steward") for t in seasons.values()]
    path.publish([event(end) for end in ends])
    for name in seasons.values():
        wait_for(lambda name=name: state_of(path, name) == "ended", 10)  # type: ignore[misc]
    assert ends_in_log(path, seasons.values()) == ["/tests"] * len(seasons)
    for season, name in seasons.items():
        last = official[max(at for at in official if at[0] == season)]
        assert assert_agree(places_of(path.standings(name)), last, set()) == len(last)
