"""Every benchmark, by its name for `make bench ONLY=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench import audit_log, fraud, gateway, growth, memory, on_wager, reads, record, screen, starts
from bench.report import Bench

BENCHES: Final[dict[str, Callable[[Bench], None]]] = {
    "on-wager": on_wager.one_tournament,
    "tournaments": on_wager.many_tournaments,
    "screen": screen.screen,
    "reads": reads.reads,
    "gateway": gateway.gateway,
    "rebuild": record.rebuild,
    "archive": record.archive,
    "audit-log": audit_log.audit_log,
    "record-reads": record.reads,
    "start": starts.start,
    "memory": memory.memory,
    "growth": growth.growth,
    "fraud": fraud.fraud,
}
