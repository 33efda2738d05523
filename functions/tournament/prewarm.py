"""Floors before a tournament: answered to KEDA, and set on the revisions of Knative Services.

Both are read off the schedule each time; nothing is remembered here, so any replica may answer, and
two that set the same floor do nothing twice. While nobody can tell the schedule, nobody is told a
floor and none is changed: KEDA then keeps what runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from leaderboard import events as ev
from leaderboard import prewarming, telemetry
from leaderboard.errors import NotFoundError, TransientError
from leaderboard.hosts.http import Answer, Call, ProblemError
from leaderboard.model import TournamentId
from leaderboard.ports import Revisions
from leaderboard.prewarming import KNOWN, SERVICES, Claim, Concern, Policy, Wishes
from leaderboard.reads import Tournaments
from leaderboard.settings import HttpUrl
from leaderboard.terms import Terms

PASS_SECONDS: Final = 10.0
KEPT_SECONDS: Final = 1.0
"""KEDA asks for each function on its own, from several replicas: one reading does for all."""
logger = logging.getLogger("tournament")


def _names(text: str) -> str:
    unknown = sorted(set(_split(text)) - SERVICES)
    if unknown:
        raise ValueError(f"{unknown[0][:64]!r} is none of {', '.join(sorted(SERVICES))}")
    return text


def _split(text: str) -> list[str]:
    return list(filter(None, map(str.strip, text.split(","))))


class PrewarmSettings(BaseModel):
    """How many replicas are wanted when, and whose revisions are raised."""

    model_config = ConfigDict(frozen=True)

    lead_minutes: int = Field(30, alias="PREWARM_LEAD_MINUTES", ge=0, le=24 * 60)
    floor: int = Field(10, alias="PREWARM_FLOOR", ge=1)
    players_per_replica: int = Field(10_000, alias="PREWARM_PLAYERS_PER_REPLICA", ge=1)
    least: int = Field(2, alias="PREWARM_LEAST", ge=1)
    ceiling: int = Field(50, alias="PREWARM_CEILING", ge=1, le=10_000)
    services: Annotated[str, AfterValidator(_names)] = Field("", alias="PREWARM_SERVICES")
    """Knative Services whose revisions are raised; none: no call to Kubernetes at all."""
    api_url: HttpUrl = Field("https://kubernetes.default.svc", alias="KUBERNETES_API_URL")
    account_folder: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"), alias="KUBERNETES_ACCOUNT_FOLDER"
    )

    @model_validator(mode="after")
    def _fits(self) -> PrewarmSettings:
        for name, replicas in (("PREWARM_FLOOR", self.floor), ("PREWARM_LEAST", self.least)):
            if replicas > self.ceiling:
                raise ValueError(
                    f"{name}: {replicas} is above PREWARM_CEILING, which is {self.ceiling}"
                )
        if self.services and not (self.account_folder / "token").is_file():
            raise ValueError(
                f"PREWARM_SERVICES: is set, and there is no token in {self.account_folder}: "
                "the pod has to run as a ServiceAccount whose token is mounted"
            )
        return self

    def policy(self, end_grace_ms: int) -> Policy:
        """For the core."""
        return Policy(
            least=self.least,
            floor=self.floor,
            ceiling=self.ceiling,
            players_per_replica=self.players_per_replica,
            lead_minutes=self.lead_minutes,
            end_grace_ms=end_grace_ms,
        )

    def raised(self) -> tuple[str, ...]:
        """The services whose revisions are raised."""
        return tuple(_split(self.services))


class FloorNow(BaseModel):
    """What KEDA's `metrics-api` trigger reads (`valueLocation: floor`, `targetValue: "1"`)."""

    floor: int


class Warned(BaseModel):
    """Something that pre-warming can't do for this schedule."""

    reason: Concern
    detail: str


class Prewarmed(BaseModel):
    """Since when, and with how many replicas of each function, the tournament is prepared for."""

    begins_at: ev.Time
    replicas: int
    warnings: list[Warned] = []


class _Reading(NamedTuple):
    at: float
    claims: Sequence[Claim]


class Floors:
    """The floors that the schedule wants. Safe for several threads."""

    def __init__(
        self,
        tournaments: Callable[[], Tournaments],
        policy: Policy,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`clock` tells milliseconds since 1970."""
        self._tournaments = tournaments
        self._policy = policy
        self._clock = clock
        self._reading: _Reading | None = None
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._told = 0
        """The claimed replicas that were last complained of."""

    def __call__(self, call: Call) -> Answer:
        """The replicas of a function that are wanted now, as KEDA asks for them."""
        function = call.path["function"]
        if function not in KNOWN:
            raise NotFoundError(f"no floor is known for {function!r}")
        return Answer(FloorNow(floor=self.of(function)))

    def of(self, function: str) -> int:
        """The floor of one function now. Raises TransientError while nobody can tell."""
        self._asked.add(function)
        return prewarming.floor_of(function, self.claimed(), self._policy)

    def claimed(self) -> int:
        """The replicas that tournaments claim now; 0: there is nothing to prepare for. Raises
        TransientError as `of`."""
        replicas = prewarming.claimed(self._claims(), self._clock())
        telemetry.FLOOR_CLAIMED.set(replicas)
        for function in tuple(self._asked):
            # Also of those that another process is asked for now: what was told is told no longer.
            floor = prewarming.floor_of(function, replicas, self._policy)
            telemetry.FLOOR.labels(function).set(floor)
        self._complain(replicas)
        return replicas

    def review(self, tournament_id: TournamentId, terms: Terms) -> Prewarmed | None:
        """What will be done for a tournament with these terms, and what can't be. None where it
        wants nothing, or while nobody can tell what the others want."""
        claim = prewarming.claim_of(tournament_id, terms, self._policy)
        if claim is None:
            return None
        now_ms = self._clock()
        try:
            others = self._claims()
        except TransientError:
            return None
        found = prewarming.concerns(claim, terms, others, now_ms, self._policy)
        for reason, detail in found.items():
            telemetry.PREWARM_CONCERNS.labels(reason.value).inc()
            fields = telemetry.fields(tournament=tournament_id, reason=reason.value, detail=detail)
            logger.warning("a tournament can't be prepared for as it should be", extra=fields)
        return Prewarmed(
            begins_at=ev.from_ms(max(claim.begins_ms, now_ms)),
            replicas=claim.replicas,
            warnings=[Warned(reason=reason, detail=text) for reason, text in found.items()],
        )

    def check(self, wishes: Wishes | None) -> None:
        """Refuse what no cluster may fulfil. Raises ProblemError."""
        ceiling = self._policy.ceiling
        if wishes is not None and wishes.floor is not None and wishes.floor > ceiling:
            detail = f"{wishes.floor} is above the ceiling of {ceiling} replicas"
            errors = [{"field": "prewarm.floor", "detail": detail}]
            raise ProblemError(422, "The body is wrong.", errors=errors)

    def _claims(self) -> Sequence[Claim]:
        with self._lock:
            now, kept = time.monotonic(), self._reading
            if kept is None or now >= kept.at + KEPT_SECONDS:
                found = prewarming.claims_of(self._tournaments().all(), self._policy)
                kept = self._reading = _Reading(now, found)
            return kept.claims

    def _complain(self, replicas: int) -> None:
        if replicas == self._told:
            return
        self._told = replicas
        if replicas > self._policy.ceiling:
            fields = telemetry.fields(claimed=replicas, ceiling=self._policy.ceiling)
            logger.warning("tournaments claim more replicas than the ceiling", extra=fields)


class Raising:
    """Raises the revisions of Knative Services to their floors, and gives them back their own.

    Any number of replicas may do it: a change names the version of the revision that it was decided
    on, so whoever comes second does nothing, and looks again at the next pass."""

    def __init__(
        self, revisions: Callable[[], Revisions], floors: Floors, services: Sequence[str]
    ) -> None:
        self._revisions = revisions
        self._floors = floors
        self._services = tuple(services)

    def __call__(self) -> None:
        """One pass. Raises TransientError when something could not be seen or done, after all that
        could be."""
        # Without a tournament a revision has the floor that its Service was deployed with.
        is_wanted = self._floors.claimed() > 0
        wanted = {one: self._floors.of(one) for one in self._services}
        floors = wanted if is_wanted else dict.fromkeys(self._services, 0)
        revisions = self._revisions()
        refused: list[str] = []
        for one in revisions.of(self._services):
            change = prewarming.change_of(one, floors.get(one.service, 0))
            if not change:
                continue
            try:
                outcome = "changed" if revisions.annotate(one, change) else "overtaken"
            except TransientError as error:
                refused.append(str(error))
                outcome = "refused"
            telemetry.REVISION_FLOORS.labels(one.service, outcome).inc()
            fields = telemetry.fields(
                revision=one.name, outcome=outcome, min_scale=change.get(prewarming.MIN_SCALE)
            )
            logger.info("floor of a revision", extra=fields)
        if refused:
            raise TransientError("; ".join(refused))
