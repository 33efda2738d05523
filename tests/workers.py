"""How `make test` spreads the tests over its workers: by file, the longest first.

Most tests wait for servers, so several workers share the machine. Each starts servers of its own
(the fixtures of a session are those of a worker). What measures time lies in `tests/alone`, and
runs when the other workers have ended and their servers with them."""

from __future__ import annotations

import gc
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import pytest
from xdist.scheduler import LoadFileScheduling

from leaderboard.hosts.collector import USUAL

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

ALONE: Final = "tests/alone/"
ON_THE_STACK: Final = "the shared stack"
SHARED_STACK: Final = frozenset(
    f"tests/{name}.py"
    for name in (
        "faults/test_away",
        "faults/test_emptied",
        "integration/test_bad_input",
        "integration/test_dead_letters",
        "integration/test_f1",
        "integration/test_path",
        "integration/test_rebuild_command",
    )
)
"""Those that use the fixture `path`: as one file, since its stack is dear to start."""
LONGEST: Final = (
    "faults/test_cluster",
    "faults/test_runner",
    "security/test_api",
    "security/test_fuzz",
    "functions/test_archive",
    *(name.removeprefix("tests/").removesuffix(".py") for name in sorted(SHARED_STACK)),
    "functions/test_kafka_host",
    "functions/test_kafka_overlap",
    "security/test_secrets",
    "integration/test_stack",
    "integration/test_bench",
    "simulation/test_simulation",
    "simulation/test_mutations",
    "integration/test_relay",
    "functions/test_on_wager",
    "integration/test_reads",
    "contract/test_kafka_feed",
    "browser/test_page",
    "integration/test_cluster_stack",
    "security/test_fuzz_kafka",
)
"""Files of half a minute and more: who starts one of them last waits for it in the end."""


def in_order(path: PurePath) -> tuple[bool, bool, int]:
    """Where a file's tests come in a run. Pure ones first: they are quick to fail, and no thread of
    a client draws random numbers (to jitter its next attempt) while Hypothesis does."""
    name = f"{path.parent.name}/{path.stem}"
    length = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return "alone" in path.parts, "unit" not in path.parts, length


class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # xdist tells no types
    """Files in the order of the run to whichever worker is free; those in `ALONE` to the last
    worker, when it is the only one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return ON_THE_STACK if path in SHARED_STACK else path

    def _assign_work_unit(self, node: WorkerController) -> None:
        if not self._only_alone_is_left() or len(self.nodes) == 1:
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if not self._only_alone_is_left():
            super()._reschedule(node)
        elif len(self.nodes) == 1:
            # A worker does not begin a test before it knows the next one, or that there is none.
            while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:
                super()._assign_work_unit(node)
            if not self.workqueue:
                node.shutdown()
        elif self._is_spare(node):
            node.shutdown()

    def remove_node(self, node: WorkerController) -> str | None:
        crashed: str | None = super().remove_node(node)
        if crashed is None:
            for other in self.nodes:
                self._reschedule(other)
        return crashed

    def _is_spare(self, node: WorkerController) -> bool:
        """Whether it has hardly anything left to do, and another one stays."""
        stays = any(not other.shutting_down for other in self.nodes if other is not node)
        pending: int = self._pending_of(self.assigned_work[node])
        return stays and not node.shutting_down and pending <= 2

    def _only_alone_is_left(self) -> bool:
        # What a worker that crashed leaves comes behind them.
        for scope in [one for one in self.workqueue if one.startswith(ALONE)]:
            self.workqueue.move_to_end(scope)
        return bool(self.workqueue) and next(iter(self.workqueue)).startswith(ALONE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> AloneLast | None:
    """Only where files are what is spread; every other way of `--dist` stays as it is."""
    return AloneLast(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: in_order(item.path))


def pytest_runtest_teardown() -> None:
    """A function that a test has imported here lets the collector rest, as it would in a process of
    its own; thousands of tests later a worker would hold gigabytes."""
    gc.set_threshold(*USUAL)
