"""tournament: operators schedule, start, end, cancel and correct; each is an event in the log.

An operator's request is first put to the fold, with the terms as they stand: what would not
count is refused here, with the same reasons. Then the event is published, and the answer waits a
moment for the board to show it, so that callers read their own writes. The log decides, not this
function: between question and event others may have written. The terms come from the record where
there is no board: a tournament long over is refused as such, and one whose board is being made
anew can still be ended.

A timer event makes it write the starts and ends that are due, under ids that are the same from
every replica, so that only the first of them counts.

The schedule also says how many replicas the functions need, see `prewarm`. What `on-wager`
suspects is decided here too, see `alerts`.
"""

from __future__ import annotations

import leaderboard.hosts.starting  # noqa: F401 - before all else: see there

# isort: split
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from alerts import Queue
from corrections import check as check_correction
from flask import Request, Response
from once import HEADER, Once
from prewarm import PASS_SECONDS, FloorNow, Floors, Prewarmed, PrewarmSettings, Raising
from pydantic import BaseModel, ConfigDict, Field

from leaderboard import events as ev
from leaderboard import telemetry
from leaderboard.adapters.kafka_feed import KafkaFeed
from leaderboard.adapters.redis_board import RedisBoard
from leaderboard.adapters.redis_client import BRIEF, RedisClient, check, connect
from leaderboard.adapters.redis_directory import RedisDirectory
from leaderboard.adapters.redis_replies import RedisReplies
from leaderboard.codec import decode_kafka, encode_kafka
from leaderboard.errors import NotFoundError, Refusal, TransientError
from leaderboard.fold import Adjust, LogEntry, Terms, decide, event_key
from leaderboard.fraud_rules import Parameters
from leaderboard.hosts.first_use import FirstUse
from leaderboard.hosts.framework import served
from leaderboard.hosts.http import Answer, Call, HttpApp, ProblemError, Route
from leaderboard.hosts.readiness import Needs
from leaderboard.hosts.repeating import Repeating
from leaderboard.model import Disposition, Offset, State, TournamentId
from leaderboard.ports import Feed, Outgoing, Summary
from leaderboard.prewarming import Wishes
from leaderboard.reads import Reads
from leaderboard.settings import (
    DatabaseSettings,
    KafkaSettings,
    OriginSettings,
    RedisSettings,
    TokenSettings,
    load_or_exit,
)
from leaderboard.wiring import alerts_of, engine_of, let_in_by, record_of, revisions_of, tokens_of

SOURCE: Final = "/tournament"
TIMER_TYPES: Final = ("io.leaderboard.timer.ticked.v1", "dev.knative.sources.ping")
"""The second is what Knative's PingSource sends: it can't be told another one."""
SHOWN_WITHIN_SECONDS: Final = 5.0
WRITE_AGAIN_SECONDS: Final = 30.0
ACKNOWLEDGED_WITHIN_SECONDS: Final = 10.0
MAX_BODY_BYTES: Final = 32 * 1024
OPERATORS: Final = frozenset({"operator", "service"})


@dataclass(frozen=True)
class Ports:
    """Where terms are read and events are written."""

    reads: Reads
    feed: Feed


# --- what is asked and answered ----------------------------------------------------------------


class Decision(BaseModel):
    """Why, for the record."""

    model_config = ConfigDict(strict=True)

    reason: ev.Text | None = None


class Adjustment(BaseModel):
    """Points to add (or, below 0, to take), and why."""

    model_config = ConfigDict(strict=True)

    player_id: ev.Id
    delta: ev.Number
    reason: ev.Text


class Disqualification(BaseModel):
    """Who has to leave the board for good, and why."""

    model_config = ConfigDict(strict=True)

    player_id: ev.Id
    reason: ev.Text


class Written(BaseModel):
    """The event in the log: its id, and its place in the tournament's order."""

    event_id: str
    offset: int


class ScheduledRules(ev.Rules):
    """Rules as operators give them: numbers of fraud detection that nobody understands are refused
    here. In the log they count as nothing said."""

    fraud: Parameters | None = None


class Schedule(ev.TournamentScheduled):
    """A schedule as operators give it: wishes that nobody understands are refused here."""

    rules: ScheduledRules
    prewarm: Wishes | None = None


class Scheduled(Written):
    """How the tournament is prepared for; null where it wants nothing, or nobody could tell."""

    prewarm: Prewarmed | None


# --- operators ---------------------------------------------------------------------------------


def scheduling(floors: Floors) -> Callable[[Call, Ports], Answer]:
    """The operation that schedules, and tells what `floors` can't do for the tournament."""

    def schedule(call: Call, ports: Ports) -> Answer:
        """Schedule a tournament, or change the schedule of one that is not over."""
        given: Schedule = call.body
        floors.check(given.prewarm)
        data = ev.TournamentScheduled.model_validate_json(call.raw_body)
        written, terms = _write(call, ports, data)
        prewarm = None if terms is None else floors.review(TournamentId(data.tournament_id), terms)
        where = {"Location": f"/v1/tournaments/{data.tournament_id}"}
        answer = Scheduled(event_id=written.event_id, offset=written.offset, prewarm=prewarm)
        return Answer(answer, status=201, headers=where)

    return schedule


def start(call: Call, ports: Ports) -> Answer:
    """Start a tournament before its time, or before its first event."""
    return _decide(call, ports, ev.TournamentStarted)


def end(call: Call, ports: Ports) -> Answer:
    """End a tournament at once: what comes later in its log does not count."""
    return _decide(call, ports, ev.TournamentEnded)


def cancel(call: Call, ports: Ports) -> Answer:
    """Cancel a tournament."""
    return _decide(call, ports, ev.TournamentCancelled)


def adjust(call: Call, ports: Ports) -> Answer:
    """Correct a player's score."""
    data = ev.ScoreAdjusted(
        tournament_id=call.path["tournament_id"],
        player_id=call.body.player_id,
        delta=call.body.delta,
        reason=call.body.reason,
        decided_by=call.authenticated().subject,
    )
    return Answer(_write(call, ports, data)[0], status=202)


def disqualify(call: Call, ports: Ports) -> Answer:
    """Take a player off the board, for good."""
    data = ev.PlayerDisqualified(
        tournament_id=call.path["tournament_id"],
        player_id=call.body.player_id,
        reason=call.body.reason,
        decided_by=call.authenticated().subject,
    )
    return Answer(_write(call, ports, data)[0], status=202)


_Control = ev.TournamentStarted | ev.TournamentEnded | ev.TournamentCancelled


def _decide(call: Call, ports: Ports, model: type[_Control]) -> Answer:
    given = {} if call.body is None or call.body.reason is None else {"reason": call.body.reason}
    tournament_id, decided_by = call.path["tournament_id"], call.authenticated().subject
    data = model(tournament_id=tournament_id, decided_by=decided_by, **given)
    return Answer(_write(call, ports, data)[0], status=202)


def _write(call: Call, ports: Ports, data: ev.Data) -> tuple[Written, Terms | None]:
    """What was written, and the terms that the fold makes of it as things stand."""
    event_id = call.headers.get(HEADER) or str(uuid.uuid4())
    event = ev.Event(event_id, SOURCE, _now_ms(), data)
    if event_id.startswith(f"{event.tournament_id}/"):
        # Or the timer's end, or a confirmed suspicion, would be taken for a repetition of this.
        told = {"field": HEADER, "detail": "must not begin with the tournament's id and a slash"}
        raise ProblemError(422, "Such ids are those of our own events.", errors=[told])
    return _put(event._replace(subject=event.player_id), ports)


def _put(event: ev.Event, ports: Ports) -> tuple[Written, Terms | None]:
    decode_kafka(encode_kafka(event, ev.WAGERS))  # refuses what no reader of the log could read
    tournament_id = event.tournament_id
    if tournament_id is None:
        raise AssertionError("operators write to the log of one tournament")
    terms = _checked(event, _terms(tournament_id, ports), ports)
    offset = ports.feed.publish([Outgoing(ev.WAGERS, event)])[0]
    _wait_until_shown(ports, tournament_id, offset)
    return Written(event_id=event.id, offset=offset), terms


def _terms(tournament_id: TournamentId, ports: Ports) -> Terms | None:
    """As board or record have them; None where both know no such tournament."""
    seen = ports.reads.top(tournament_id, 1)
    return None if seen is None else seen.view.terms


def _checked(event: ev.Event, terms: Terms | None, ports: Ports) -> Terms | None:
    """The terms after the event. Refuses what the fold would not count, as things stand."""
    data, now_ms = event.data, _now_ms()
    if terms is not None and event_key(event).hex() in terms.control_ids:
        return terms  # the same request again: it may have ended what it now finds ended
    if isinstance(data, ev.TournamentScheduled) and ev.to_ms(data.ends_at) <= now_ms:
        told = [{"field": "ends_at", "detail": "has passed"}]
        raise ProblemError(422, "ends_at has passed.", errors=told)
    if isinstance(data, ev.TournamentStarted) and terms and terms.state is State.RUNNING:
        raise ProblemError(409, "The tournament is running.", state=State.RUNNING.value)
    after = Offset(0 if terms is None else terms.revision + 1)
    changed, verdict = decide(terms, LogEntry(after, now_ms, event))
    if verdict is Refusal.UNKNOWN_TOURNAMENT:
        raise NotFoundError("there is no such tournament")
    if verdict is Disposition.UNSUPPORTED:
        raise ProblemError(422, _unsupported(data, terms), reason=verdict.value)
    if isinstance(verdict, Disposition | Refusal) and verdict is not Disposition.APPLIED:
        state = None if terms is None else terms.state.value
        raise ProblemError(409, f"The tournament is {state}.", reason=verdict.value, state=state)
    if isinstance(verdict, Adjust) and changed is not None and event.tournament_id is not None:
        check_correction(ports.reads, event.tournament_id, changed, verdict)
    return changed


def _unsupported(data: ev.Data, terms: Terms | None) -> str:
    if terms is not None and terms.state is State.RUNNING:
        return "A running tournament keeps its order, its operator and its kind of scoring."
    if isinstance(data, ev.TournamentScheduled):
        scoring, operator = data.rules.scoring.kind, data.rules.operator.value
        return f"Scoring {scoring!r} with operator {operator!r} is not supported yet."
    return "This is not supported yet."


def _wait_until_shown(ports: Ports, tournament_id: TournamentId, offset: Offset) -> None:
    """Wait until readers see the event. It is in the log: being late is no error."""
    deadline = time.monotonic() + SHOWN_WITHIN_SECONDS
    pause_seconds = 0.01
    while time.monotonic() < deadline:
        try:
            seen = ports.reads.top(tournament_id, 1)
            if seen is not None and seen.view.sequence >= offset:
                # Where it was this event, or a later one, that made the terms: also the list.
                revision = seen.view.terms.revision
                if revision < offset or _listed(ports, tournament_id, revision):
                    return
        except TransientError:
            pass  # whoever reads next will tell
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.5, 0.2)


def _listed(ports: Ports, tournament_id: TournamentId, revision: int) -> bool:
    found = ports.reads.find(tournament_id)
    return found is not None and found.terms.revision >= revision


# --- timer -------------------------------------------------------------------------------------


class Timer:
    """Writes the starts and ends that are due, each once until it had time to take effect."""

    def __init__(self, ports: Callable[[], Ports], end_grace_ms: int) -> None:
        self._ports = ports
        self._end_grace_ms = end_grace_ms
        self._written: dict[str, float] = {}

    def __call__(self, call: Call) -> Answer:
        """Take a timer's event; whatever it carries is ignored."""
        if call.headers.get("ce-type") not in TIMER_TYPES:
            raise ProblemError(422, f"only {TIMER_TYPES[0]} in binary mode is taken here")
        self.tick(_now_ms())
        return Answer(status=204)

    def tick(self, now_ms: int) -> None:
        """Write what is due at `now_ms`."""
        ports = self._ports()
        now = time.monotonic()
        recent = {i: at for i, at in self._written.items() if now - at < WRITE_AGAIN_SECONDS}
        due = [
            event
            for one in ports.reads.all()
            for event in self._due(one, now_ms)
            if event.id not in recent
        ]
        if due:
            ports.feed.publish([Outgoing(ev.WAGERS, event) for event in due])
        self._written = {**recent, **{event.id: now for event in due}}

    def _due(self, one: Summary, now_ms: int) -> Iterator[ev.Event]:
        terms, tournament_id = one.terms, one.tournament_id
        if terms.backfilled or terms.state not in (State.SCHEDULED, State.RUNNING):
            return
        if terms.state is State.SCHEDULED and now_ms >= terms.starts_at_ms:
            begun = ev.TournamentStarted(tournament_id=tournament_id, decided_by="timer")
            yield ev.Event(f"{tournament_id}/started", SOURCE, now_ms, begun)
        if now_ms >= terms.ends_at_ms + self._end_grace_ms:
            over = ev.TournamentEnded(tournament_id=tournament_id, decided_by="timer")
            yield ev.Event(f"{tournament_id}/ended", SOURCE, now_ms, over)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- wiring ------------------------------------------------------------------------------------


class TimerSettings(BaseModel):
    """How long after its end a tournament waits for late deliveries."""

    model_config = ConfigDict(frozen=True)

    end_grace_seconds: float = Field(60, alias="END_GRACE_SECONDS", ge=0, le=86_400)

    def grace_ms(self) -> int:
        return int(self.end_grace_seconds * 1000)


def routes(
    ports: Callable[[], Ports], once: Once, timer: TimerSettings, floors: Floors
) -> list[Route]:
    """The operations of this function; `ports` is called with each request."""

    def operators(
        path: str,
        handler: Callable[[Call, Ports], Answer],
        body: type[BaseModel],
        status: int = 202,
        answer: type[BaseModel] = Written,
    ) -> Route:
        return Route(
            "POST",
            f"/v1/tournaments{path}",
            handler.__doc__ or "",
            once(path, lambda call: handler(call, ports())),
            OPERATORS,
            body=body,
            body_optional=body is Decision,
            answers={status: answer},
            headers={
                HEADER: "The event's id. The same request again counts once and is answered "
                "the same; another one with it is 422."
            },
            problems=frozenset({409}),
            max_body_bytes=MAX_BODY_BYTES,
        )

    one = "/<tournament_id>"
    tick = Timer(ports, timer.grace_ms())
    return [
        operators("", scheduling(floors), Schedule, 201, Scheduled),
        operators(f"{one}/start", start, Decision),
        operators(f"{one}/end", end, Decision),
        operators(f"{one}/cancel", cancel, Decision),
        operators(f"{one}/adjustments", adjust, Adjustment),
        operators(f"{one}/disqualifications", disqualify, Disqualification),
        # Open, as a timer has no token: it only does what time would do. Cluster-local.
        Route(
            "POST",
            "/",
            "A timer's event.",
            tick,
            None,
            answers={204: None},
            problems=frozenset({400, 422, 503}),
        ),
        # Open as well: KEDA has no token, and a number of replicas is no secret. Cluster-local.
        Route(
            "GET",
            "/internal/v1/floors/<function>",
            Floors.__call__.__doc__ or "",
            floors,
            None,
            answers={200: FloorNow},
            problems=frozenset({503}),
        ),
    ]


telemetry.log_json()
_redis_settings = load_or_exit(RedisSettings, os.environ)
_database_settings = load_or_exit(DatabaseSettings, os.environ)
_token_settings = load_or_exit(TokenSettings, os.environ)
_kafka_settings = load_or_exit(KafkaSettings, os.environ)
_client: FirstUse[RedisClient] = FirstUse(lambda: connect(_redis_settings.url, BRIEF))
_feed: FirstUse[KafkaFeed] = FirstUse(
    lambda: KafkaFeed(_kafka_settings, timeout_seconds=ACKNOWLEDGED_WITHIN_SECONDS)
)
# Each on its own: either of them may be away when this process starts.
# Reading needs no tombstones, so this function does not get the key to them.
_board = FirstUse(lambda: RedisBoard(_client(), b""))
_engine = engine_of(_database_settings)
_record = record_of(_engine)
_reads = FirstUse(lambda: Reads(_board, lambda: RedisDirectory(_client()), _record))
ports = FirstUse(lambda: Ports(_reads(), _feed()))
replies = FirstUse(lambda: RedisReplies(_client()))
alerts = alerts_of(_engine)
queue = Queue(alerts, lambda: ports().feed, lambda event: _put(event, ports()))
tokens = tokens_of(_token_settings)
_timer_settings = load_or_exit(TimerSettings, os.environ)
_prewarm_settings = load_or_exit(PrewarmSettings, os.environ)
floors = Floors(lambda: ports().reads, _prewarm_settings.policy(_timer_settings.grace_ms()))
_revisions = revisions_of(_prewarm_settings.api_url, _prewarm_settings.account_folder)
raiser = Repeating(
    "raiser",
    PASS_SECONDS,
    Raising(_revisions, floors, _prewarm_settings.raised()),
    "can't set the floors of Knative Services",
)


app = HttpApp(
    "tournament",
    [*routes(ports, Once(replies), _timer_settings, floors), *queue.routes()],
    tokens=tokens,
    ready=Needs(
        {
            "redis or database": lambda: _reads().check(lambda: check(_client())),
            "kafka": lambda: _feed().check(),
        },
        stores={
            "redis": lambda: check(_client()),
            "database": let_in_by(_database_settings, _engine),
        },
    ),
    origins=load_or_exit(OriginSettings, os.environ).origins(),
)
if _prewarm_settings.raised():
    os.register_at_fork(after_in_child=raiser.after_fork)


@served
def tournament(request: Request) -> Response:
    """The entry that functions-framework serves."""
    if _prewarm_settings.raised():
        raiser.start()
    return app(request)
