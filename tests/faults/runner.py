"""The fault runner: trials over the local stack, each with one fault in the middle of its load.

    make faults TRIALS=40 SEED=7 ONLY="kill on-wager"

A trial is clean when its fault bit and all five views say the same afterwards. Its seed repeats
what was drawn (which fault, when, which wagers); how the machine interleaves it is not repeated."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as Folder
from typing import Final

from faults.bites import DidNotBiteError, Fault, Trial
from faults.kinds import FAULTS
from faults.play import ASTRAY, Play
from faults.scene import SESSION_MS, Scene
from faults.viewers import Viewer
from faults.views import OUT_OF_TIME, Views, level_within
from running import wait_for
from sockets import Players

LEVEL_SECONDS: Final = 60.0
TRIALS_A_STACK: Final = 60
"""Then a new one: every lost store is made anew with all tournaments there ever were."""
ALWAYS: Final = ("kill on-wager", "lose redis tail", "kill archive", "kill on-rank-change")
"""Also in a schedule that is shorter than a round: those that promise most."""
BEFORE_SECONDS: Final = (0.4, 1.2)
AFTER_SECONDS: Final = 0.5
WATCHED: Final = (("p000", 0), ("p001", 1), ("p003", 3))
"""Players with a screen, and the number of their tournament."""


@dataclass(slots=True)
class Result:
    """What came of one trial. Seconds are from the fault's end until all views were level."""

    fault: str
    seed: int
    bite: str = ""
    has_bitten: bool = False
    recovery_seconds: float | None = None
    last_behind: str = ""
    """What was the last to be level."""
    mismatches: list[str] = field(default_factory=list)
    events: int = 0
    reads_from_record: int = 0
    repeated_changes: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return self.has_bitten and not self.mismatches


def run_trial(scene: Scene, fault: Fault, seed: int) -> Result:
    """One trial, from its tournaments to the comparison."""
    result, started = Result(fault.name, seed), time.monotonic()
    chance = random.Random(seed)
    play = Play(scene, seed)
    viewers: list[Viewer] = []
    views = Views(
        scene,
        play,
        viewers,
        spares_frames=spares_frames(fault.name),
        sends_back=sends_back(fault.name),
    )
    try:
        play.schedule()
        wait_for(lambda: all(at >= 0 for at in scene.board_offsets(play.tournaments).values()), 30)
        viewers += [Viewer(scene, play.tournaments[number], p) for p, number in WATCHED]
        wait_for(lambda: all(viewer.is_open for viewer in viewers), 20)
        play.start()
        time.sleep(chance.uniform(*BEFORE_SECONDS))
        try:
            result.bite = fault.strike(Trial(scene, play, viewers, chance))
            result.has_bitten = True
        except DidNotBiteError as error:
            result.bite = str(error)
        over_at = time.monotonic()
        time.sleep(AFTER_SECONDS)
        play.finish()
        level_at, found, result.last_behind = level_within(views.differences, LEVEL_SECONDS)
        if level_at is None:
            result.mismatches = [f"not level after {LEVEL_SECONDS:g} s: {one}" for one in found]
        else:
            result.recovery_seconds = level_at - over_at
            result.mismatches = views.final_differences()
        _count(result, play, views)
    except Exception as error:  # noqa: BLE001 - a trial that breaks off is a mismatch, not the end
        at = traceback.extract_tb(error.__traceback__)[-1]
        result.mismatches.append(f"{type(error).__name__} at {at.name}:{at.lineno}: {error}"[:300])
    finally:
        for viewer in viewers:
            viewer.stop()
        play.end()
        views.close()
    result.seconds = time.monotonic() - started
    return result


def spares_frames(name: str) -> bool:
    """Whether a fault hits nothing between position changes and screens."""
    words = ("on-wager", "archive", "relay", "postgres", "two owners", "clock")
    return any(word in name for word in words) and "redis" not in name


def sends_back(name: str) -> bool:
    """Whether a fault takes boards back, or has frames sent again: readers drop those."""
    return any(word in name for word in ("lose", "empty", "on-rank-change", "gateway", "shard"))


def _count(result: Result, play: Play, views: Views) -> None:
    result.events = sum(map(len, views.entries.values()))
    result.reads_from_record = play.counts["read from record"]
    result.repeated_changes = views.repeated_changes
    if result.fault.startswith("clock"):
        late = sum(
            entry.event.source == ASTRAY and views.verdicts[name][entry.offset] in OUT_OF_TIME
            for name, log in views.entries.items()
            for entry in log
        )
        result.has_bitten = late > 0
        result.bite += f": {late} did not count"


def schedule_of(trials: int, seed: int, only: str) -> list[tuple[Fault, int]]:
    """Which fault in which trial, each with a seed of its own: all kinds in turn (slow ones in
    every third round), shuffled anew in each. With `only`, those whose name contains it."""
    chance = random.Random(seed)
    chosen = [f for f in FAULTS if f.name == only] or [f for f in FAULTS if only in f.name]
    if not chosen:
        known = ", ".join(fault.name for fault in FAULTS)
        raise SystemExit(f"no fault is called {only!r}; there are: {known}")
    planned: list[tuple[Fault, int]] = []
    for number in itertools.count():
        if len(planned) >= trials:
            break
        some = [f for f in chosen if not f.slow or number % 3 == 0] or chosen
        one_round = chance.sample(some, len(some))
        if number == 0:
            one_round.sort(key=lambda fault: fault.name not in ALWAYS)
        # A schedule of one is how a trial is repeated: its seed is the one that was told.
        planned += [(f, seed if trials == 1 else chance.randrange(10**9)) for f in one_round]
    # A cluster wants a stack of its own: one, not one for each.
    return sorted(planned[:trials], key=lambda one: one[0].cluster)


def run(
    trials: int,
    seed: int,
    only: str,
    folder: Folder,
    tell: Callable[[str], None],
    until_seconds: float = float("inf"),
) -> list[Result]:
    """Trials one after the other. Ends only processes that it started itself."""
    results: list[Result] = []
    started = time.monotonic()
    players = Players()
    scene: Scene | None = None
    stacks = 0
    try:
        for number, (fault, own_seed) in enumerate(schedule_of(trials, seed, only)):
            if time.monotonic() - started > until_seconds:
                tell(f"out of time after {number} trials")
                break
            spent = number % TRIALS_A_STACK == 0 or bool(results and results[-1].mismatches)
            if scene is not None and (spent or scene.cluster != fault.cluster):
                scene.close()
                scene = None
            if scene is None:
                stacks += 1
                scene = _opened(folder / f"stack-{stacks}", players, cluster=fault.cluster)
            result = run_trial(scene, fault, own_seed)
            results.append(result)
            tell(line_of(number + 1, result))
    finally:
        if scene is not None:
            scene.close()
        players.stop()
    return results


def _opened(folder: Folder, players: Players, *, cluster: bool) -> Scene:
    folder.mkdir(parents=True)
    scene = Scene(folder, players, cluster=cluster)
    try:
        scene.open()
    except BaseException:
        scene.close()
        raise
    return scene


def line_of(number: int, result: Result) -> str:
    state = "clean" if result.is_clean else "DIFFERS" if result.mismatches else "did not bite"
    took = "-" if result.recovery_seconds is None else f"{result.recovery_seconds:.1f} s"
    lines = [
        f"{number:4d} {result.fault:28s} {state:12s} {took:>7s} of {result.seconds:4.1f} s,"
        f" seed {result.seed}: {result.bite}",
        f"       last: {result.last_behind}",
    ]
    lines += [f"       {one}" for one in result.mismatches]
    if result.mismatches:
        again = f'make faults TRIALS=1 SEED={result.seed} ONLY="{result.fault}"'
        lines.append(f"       again: {again}")
    return "\n".join(lines)


# --- what is left of it ------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """Markdown: a line a fault."""
    lines = [
        "| fault | trials | bit | clean | recovery p50 | max | mismatches |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = [fault.name for fault in FAULTS if any(r.fault == fault.name for r in results)]
    for name in [*kinds, None]:
        some = [r for r in results if name in (r.fault, None)]
        took = [r.recovery_seconds for r in some if r.recovery_seconds is not None and r.is_clean]
        p50 = f"{statistics.median(took):.1f} s" if took else "-"
        most = f"{max(took):.1f} s" if took else "-"
        lines.append(
            f"| {name or '**all**'} | {len(some)} | {sum(r.has_bitten for r in some)} "
            f"| {sum(r.is_clean for r in some)} | {p50} | {most} "
            f"| {sum(bool(r.mismatches) for r in some)} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """Where it was measured, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, sessions of {SESSION_MS} ms"
    )


def write(results: Sequence[Result], seed: int, only: str, folder: Folder) -> None:
    """`faults.json` with every trial, `faults.md` with the table."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "seed": seed,
        "only": only,
        "machine": machine(),
        "trials": [asdict(result) | {"clean": result.is_clean} for result in results],
    }
    (folder / "faults.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    text = f"Seed {seed}, {len(results)} trials; {machine()}.\n\n{table(results)}\n"
    (folder / "faults.md").write_text(text, encoding="utf-8")
