"""The rules by which a simulated world goes wrong, for Hypothesis to choose from and to shrink."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import logs
from leaderboard.codec import encode_kafka
from leaderboard.events import WAGERS, Record
from leaderboard.fold import LogEntry
from leaderboard.model import TournamentId
from simulation.rest import check_at_rest, come_to_rest
from simulation.store import SHARDS
from simulation.world import FUNCTIONS_RUN, TOURNAMENTS, World

PLAYERS: Final = ("ann", "bea", "cyd", "dot", "eve")
DAY_SECONDS: Final = 25 * 3600.0
Steps = list[tuple[str, dict[str, Any]]]
NOBODYS: Final = TournamentId("nobodys")

tournaments = st.sampled_from(TOURNAMENTS)
players = st.sampled_from(PLAYERS)
small = st.integers(0, 7)
names = st.sampled_from(FUNCTIONS_RUN)
amounts = st.integers(-3, 9)


class Producer:
    """Writes to `wagers` as game platforms and operators do, well or not."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sent: list[Record] = []
        self._number = 0
        self._ids = 0

    def send(self, entry: LogEntry, tournament_id: str, **changes: Any) -> None:
        self._ids += 1
        data = entry.event.data.model_copy(update={"tournament_id": tournament_id})
        made = {"id": f"i{self._ids}", "subject": getattr(data, "player_id", None), **changes}
        event = entry.event._replace(data=data, **made)
        self._put(encode_kafka(event, WAGERS))

    def score(self, tournament_id: str, player_id: str, amount: int, how: int) -> None:
        """`how` chooses among all the ways to do it wrong; most of them are right."""
        entry = logs.scored(0, player_id, amount, how % 3 or None)
        changes: dict[str, Any] = {}
        if how == 4:
            entry = logs.scored(0, player_id, 2**53 - 1)
        elif how == 5:
            changes["time_ms"] = logs.START_MS - 1
        elif how == 6:
            changes["time_ms"] = logs.END_MS
        elif how in (7, 8):
            self._number += how == 7
            changes |= {"source": "/numbered", "sequence": self._number}
        elif how == 9:
            tournament_id = NOBODYS
        self.send(entry, tournament_id, **changes)

    def repeat(self, back: int) -> None:
        """An event of before, once more, with a new offset."""
        if self._sent:
            self._put(self._sent[-1 - back % len(self._sent)])

    def garbage(self, tournament_id: str) -> None:
        headers = (("ce_source", b"/garbage"),)
        self._put(Record(WAGERS, tournament_id.encode(), b"{", headers))

    def schedule(self, tournament_id: str, how: int) -> None:
        rules: dict[str, Any] = {}
        if how == 1:
            rules["join"] = "required"
        elif how == 2:
            rules["order"] = "ascending"
        elif how == 3:
            rules["operator"] = "best"
        elif how == 4:
            rules["ends_ms"] = logs.END_MS + 1
        self.send(logs.scheduled(0, **rules), tournament_id)

    def _put(self, record: Record) -> None:
        self._sent.append(record)
        self._world.log(record)


def happens(**drawn: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule whose use is put down, and after which everything is checked that is always true."""

    def decorate(step: Callable[..., None]) -> Any:
        @wraps(step)
        def noted(machine: Machine, **chosen: Any) -> None:
            machine.steps.append((step.__name__, chosen))
            machine.is_broken = True
            step(machine, **chosen)
            machine.world.check()
            machine.is_broken = False

        return rule(**drawn)(noted)  # type: ignore[no-untyped-call]

    return decorate


class Machine(RuleBasedStateMachine):
    """A world, and everything that may happen to it."""

    mutations: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.mutations)
        self.producer = Producer(self.world)
        self.steps: Steps = []
        self.is_broken = False
        """A step of it failed: what comes after that says nothing."""

    def teardown(self) -> None:
        """However a run ends, everything is said the same in the end."""
        try:
            if not self.is_broken:
                come_to_rest(self.world)
                check_at_rest(self.world)
        finally:
            self.world.close()

    @initialize()
    def begin(self) -> None:
        self.producer.schedule(TOURNAMENTS[0], 0)
        self.producer.schedule(TOURNAMENTS[1], 0)
        for name in FUNCTIONS_RUN:
            self.world.start(name)

    # what players, producers and operators do

    @happens(tournament_id=tournaments, player_id=players, amount=amounts, how=st.integers(0, 12))
    def score(self, tournament_id: str, player_id: str, amount: int, how: int) -> None:
        self.producer.score(tournament_id, player_id, amount, how)

    @happens(played=st.lists(st.tuples(tournaments, players, amounts), min_size=2, max_size=6))
    def play(self, played: list[tuple[str, str, int]]) -> None:
        for tournament_id, player_id, amount in played:
            self.producer.score(tournament_id, player_id, amount, 0)

    @happens(back=small)
    def repeat(self, back: int) -> None:
        self.producer.repeat(back)

    @happens(tournament_id=tournaments, how=st.integers(0, 4))
    def schedule(self, tournament_id: str, how: int) -> None:
        self.producer.schedule(tournament_id, how)

    @happens(tournament_id=tournaments, player_id=players, what=st.integers(0, 9), amount=amounts)
    def decide(self, tournament_id: str, player_id: str, what: int, amount: int) -> None:
        """What is rarer than a wager."""
        made: dict[int, Callable[[], LogEntry]] = {
            0: lambda: logs.ended(0),
            1: lambda: logs.cancelled(0) if amount == 0 else logs.started(0),
            2: lambda: logs.disqualified(0, player_id),
            3: lambda: logs.adjusted(0, player_id, amount),
            4: lambda: logs.adjusted(0, player_id, amount),
        }
        name = f"N-{amount}" if amount > 0 else None
        one = made.get(what, lambda: logs.joined(0, player_id, name))
        self.producer.send(one(), tournament_id)

    @happens(tournament_id=tournaments, gap=st.integers(0, 3))
    def garbage(self, tournament_id: str, gap: int) -> None:
        self.world.cluster.gap = gap
        self.producer.garbage(tournament_id)

    @happens(player_id=players)
    def erase(self, player_id: str) -> None:
        self.world.erase(player_id)

    @happens()
    def look_after(self) -> None:
        self.world.look_after()

    @happens(tournament_id=tournaments, player_id=players)
    def connect(self, tournament_id: TournamentId, player_id: str) -> None:
        self.world.connect(tournament_id, player_id)

    @happens(tournament_id=tournaments, player_id=players)
    def late_attempt(self, tournament_id: str, player_id: str) -> None:
        """A decision of before, whose record comes into the log only now."""
        self.world.attempt(tournament_id, player_id, "allowed")

    @happens(which=small, hears=st.booleans())
    def cut_socket(self, which: int, hears: bool) -> None:
        sockets = list(self.world.seen.sockets.values())
        if sockets:
            sockets[which % len(sockets)].hears = hears

    # work

    @happens(name=names, index=small, records=st.sampled_from((50, 0, 1, 2, 3, 5, 8)))
    def work(self, name: str, index: int, records: int) -> None:
        self.world.turn(name, index, records)

    @happens(records=st.sampled_from((50, 1, 2, 3, 5, 8)), again=st.integers(1, 4))
    def all_work(self, records: int, again: int) -> None:
        for _ in range(again):
            for name in FUNCTIONS_RUN:
                self.world.turn(name, 0, records)

    @happens(seconds=st.sampled_from((0.1, 1.0, 6.0, DAY_SECONDS)))
    def wait(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    # what goes wrong

    @happens(
        name=st.sampled_from((*FUNCTIONS_RUN, "on-wager", "archive", "erase", "look after")),
        index=small,
        records=st.sampled_from((5, 50, 2, 1)),
        after=st.integers(0, 30),
        what=st.sampled_from(
            ("kill", "cut", "other", "same", "fail_over", "empty", "save", "publish", "cut_off")
        ),
        which=small,
    )
    def interrupt(
        self, name: str, index: int, records: int, after: int, what: str, which: int
    ) -> None:
        """Between any two effects of a round something else happens."""
        self.world.effects.interrupt(after, lambda: self._happen(what, which, name))
        if name == "erase":
            self.world.erase(PLAYERS[index % len(PLAYERS)])
        elif name == "look after":
            self.world.look_after()
        else:
            self.world.turn(name, index, records)
        self.world.effects.leave()

    def _happen(self, what: str, which: int, name: str) -> None:
        world = self.world
        match what:
            case "kill":
                world.killed()
            case "cut":
                world.cut()
            case "other":
                world.turn(FUNCTIONS_RUN[which % len(FUNCTIONS_RUN)], which, 5)
            case "same":
                world.turn(name if name in FUNCTIONS_RUN else "on-wager", which, 50)
            case "fail_over":
                world.fail_over(which % SHARDS)
            case "empty":
                self.empty()
            case "save":
                world.save(which % SHARDS)
            case "publish":
                self.producer.score(TOURNAMENTS[which % 4], PLAYERS[which % 5], 5, 0)
            case "cut_off":
                self._cut_off(name, which)

    def empty(self) -> None:
        for shard in range(SHARDS):
            self.world.saved.pop(shard, None)
            self.world.fail_over(shard)

    def _cut_off(self, name: str, index: int) -> None:
        if running := self.world.processes.get(name):
            running[index % len(running)].consumer.cut_off()
            if len(running) < 3:
                self.world.start(name)

    @happens(name=names, index=small, how=st.sampled_from(("start", "kill", "stop", "turn_on")))
    def processes(self, name: str, index: int, how: str) -> None:
        """Processes come and go, and partitions change hands."""
        running = self.world.processes[name]
        if how == "start" and len(running) < 3:
            self.world.start(name)
        elif how == "turn_on":
            self.world.cluster.group(name).turn += 1
        elif running and how == "kill":
            self.world.kill(name, running[index % len(running)])
        elif running and how == "stop":
            self.world.stop(name, running[index % len(running)])
        if not running:
            self.world.start(name)

    @happens(name=names, index=small, learns=st.booleans())
    def two_owners(self, name: str, index: int, learns: bool) -> None:
        """A process loses its partitions without knowing; or gets to know."""
        if learns:
            for process in self.world.processes[name]:
                process.consumer.learn()
        else:
            self._cut_off(name, index)

    @happens(shard=st.integers(0, SHARDS - 1))
    def save(self, shard: int) -> None:
        """The replica is told no more from here on."""
        self.world.save(shard)

    @happens(shard=st.integers(0, SHARDS))
    def lose(self, shard: int) -> None:
        """A shard fails over, or all of them are emptied."""
        if shard == SHARDS:
            self.empty()
        else:
            self.world.fail_over(shard)

    @happens(
        what=st.sampled_from(("record", "store", "kafka", "gateway")),
        seconds=st.sampled_from((0.5, 3.0, 20.0)),
    )
    def take_away(self, what: str, seconds: float) -> None:
        self.world.take_away(what, seconds)

    @happens(count=st.integers(1, 3))
    def lose_commits(self, count: int) -> None:
        self.world.cluster.failing_commits = count

    @happens(which=st.integers(0, 3))
    def drop_oldest(self, which: int) -> None:
        """Retention: the log forgets what is old."""
        self.world.drop_oldest(list(self.world.cluster.logs)[which])

    @happens(back=st.booleans())
    def restore_database(self, back: bool) -> None:
        """The record is set back to a backup, under its running functions; or backed up."""
        if back:
            self.world.set_back()
        else:
            self.world.back_up()


def replay(steps: Steps, machine: type[Machine] = Machine) -> None:
    """These steps in a new world, to the end."""
    world = machine()
    try:
        world.begin()
        for name, chosen in steps:
            getattr(world, name)(**chosen)
    finally:
        world.teardown()


def shortened(steps: Steps, machine: type[Machine] = Machine, tries: int = 400) -> Steps:
    """Fewer steps that fail in the same way: how a counterexample becomes a test."""
    wanted = failure(steps, machine)
    size = max(len(steps) // 2, 1)
    while tries > 0:
        first, cut = 0, False
        while first < len(steps) and tries > 0:
            fewer = steps[:first] + steps[first + size :]
            tries -= 1
            if failure(fewer, machine) == wanted:
                steps, cut = fewer, True
            else:
                first += size
        if size == 1 and not cut:
            break
        size = max(size // 2, 1)
    return steps


def failure(steps: Steps, machine: type[Machine] = Machine) -> str | None:
    """How these steps fail: the sort of error, and its words without the details."""
    try:
        replay(steps, machine)
    except Exception as error:  # noqa: BLE001 - told by its name
        return f"{type(error).__name__}: {str(error)[:30]}"
    return None
